//! Credits by the operator: the only way in which the control plane changes a balance.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ErrorBody;
use super::extract::{Body, Target, short_text};
use super::{Error, State};
use crate::billing::Credits;
use crate::billing::ledger::Kind;
use crate::store::{Entry, Grant};

const NOTE_CHARS: usize = 500;
const ID_CHARS: usize = 128;
/// What the ids of requests begin with: the debits of an account share its idempotency ids.
const REQUEST_PREFIX: &str = "req_";

/// A change of a balance.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGrant {
    /// `topup` or `adjust`.
    kind: GrantKind,
    /// A decimal string with at most nine decimals; below zero only for `adjust`.
    #[schema(value_type = String, example = "5")]
    amount: Credits,
    /// Why; shown in the ledger. An adjustment needs one.
    #[serde(default)]
    note: String,
}

/// The kinds of change that an operator makes.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum GrantKind {
    /// Usage credits, granted or bought.
    #[serde(alias = "usage")]
    Topup,
    /// A correction, either way.
    Adjust,
}

/// The entry that was written.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct GrantedEntry {
    /// The entry, of now or of the first time.
    #[serde(flatten)]
    pub entry: Entry,
    /// It had been booked before, by the same `Idempotency-Key`.
    pub duplicate: bool,
}

/// Adds or corrects credits. The header `Idempotency-Key` is needed: repeating a call with
/// the same key and content answers the first result and books nothing.
///
/// # Errors
///
/// A bad field, no `Idempotency-Key`, one that was used for other content, no such account,
/// or an amount beyond the limits.
#[utoipa::path(
    post, path = "/admin/v1/accounts/{account}/credits", tag = "credits",
    request_body = NewGrant,
    params(
        ("account" = String, Path, description = "Whose balance"),
        ("Idempotency-Key" = String, Header, description = "Names this very operation: \
            1–128 visible ASCII characters; the `ref` of its entry"),
    ),
    responses(
        (status = 201, description = "Booked", body = GrantedEntry),
        (status = 200, description = "Booked before; nothing changed", body = GrantedEntry),
        (status = 400, description = "Not a valid change", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
        (status = 409, description = "The key was used for other content", body = ErrorBody),
        (status = 422, description = "Beyond the limits", body = ErrorBody),
        (status = 503, description = "Unknown whether booked; repeat", body = ErrorBody),
    )
)]
pub async fn grant(
    Shared(state): Shared<State>,
    target: Target,
    headers: HeaderMap,
    Body(new): Body<NewGrant>,
) -> Result<(StatusCode, Json<GrantedEntry>), Error> {
    let id = idempotency_key(&headers)?;
    let grant = valid_grant(&target, new, id)?;
    let granted = state.store.grant(grant).await?;
    let (entry, duplicate) = (granted.entry, granted.duplicate);
    tracing::info!(
        account = %target.account.id, seq = entry.seq, kind = entry.kind.name(),
        amount = %entry.amount, duplicate, "credits changed"
    );
    let status = if duplicate { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(GrantedEntry { entry, duplicate })))
}

fn valid_grant(target: &Target, new: NewGrant, id: String) -> Result<Grant, Error> {
    let amount_problem =
        |problem: &str| Error::InvalidParameter { param: "amount", problem: problem.to_owned() };
    let kind = match new.kind {
        GrantKind::Topup if !new.amount.is_positive() => {
            return Err(amount_problem("must be above zero; `adjust` takes credits away"));
        }
        GrantKind::Adjust if new.amount == Credits::ZERO => {
            return Err(amount_problem("must not be zero"));
        }
        GrantKind::Topup => Kind::Topup,
        GrantKind::Adjust => Kind::Adjust,
    };
    let note = match (kind, new.note.is_empty()) {
        (Kind::Topup, true) => new.note,
        _ => short_text("note", new.note, NOTE_CHARS)?,
    };
    Ok(Grant {
        account: target.account.id.clone(),
        kind,
        amount: new.amount,
        expires: None,
        note,
        id,
    })
}

fn idempotency_key(headers: &HeaderMap) -> Result<String, Error> {
    let mut given = headers.get_all("idempotency-key").iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return Err(Error::IdempotencyKeyMissing);
    };
    let is_visible = |text: &&str| text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    let problem = match value.to_str().ok().filter(is_visible).map(str::trim) {
        Some("") => return Err(Error::IdempotencyKeyMissing),
        Some(text) if text.starts_with(REQUEST_PREFIX) => "must not begin with `req_`".to_owned(),
        Some(text) if text.len() <= ID_CHARS => return Ok(text.to_owned()),
        _ => format!("must be at most {ID_CHARS} visible ASCII characters"),
    };
    Err(Error::InvalidParameter { param: "Idempotency-Key", problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_money_needs_one_plain_idempotency_key() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("idempotency-key", value.parse().unwrap());
            }
            idempotency_key(&headers)
        };
        assert_eq!(read(&["invoice 17"]).unwrap(), "invoice 17");
        for missing in [&[][..], &[""], &["a", "b"]] {
            assert!(matches!(read(missing), Err(Error::IdempotencyKeyMissing)), "{missing:?}");
        }
        for bad in ["req_01", &"x".repeat(129), "ä"] {
            assert!(matches!(read(&[bad]), Err(Error::InvalidParameter { .. })), "{bad}");
        }
    }
}
