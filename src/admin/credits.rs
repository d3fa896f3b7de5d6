//! Credits by the operator, and what gives them back or takes them back. Nothing here pays
//! out or moves credits between accounts.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ErrorBody;
use super::extract::{Body, Target, short_text};
use super::{Error, State};
use crate::billing::Credits;
use crate::billing::ledger::{Expiry, Kind};
use crate::store::{Entry, Grant, Granted, Undo};
use crate::time;

const NOTE_CHARS: usize = 500;
const ID_CHARS: usize = 128;
/// What the ids of requests begin with: the debits of an account share its idempotency ids.
const REQUEST_PREFIX: &str = "req_";

/// A change of a balance.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGrant {
    /// `topup`, `promotional` or `adjust`.
    kind: GrantKind,
    /// A decimal string with at most nine decimals; below zero only for `adjust`.
    #[schema(value_type = String, example = "5")]
    amount: Credits,
    /// Why; shown in the ledger. An adjustment needs one.
    #[serde(default)]
    note: String,
    /// When promotional credits end: an RFC 3339 time or a date (UTC), or a length of time
    /// such as `30d`. At the latest after twelve months, also if absent.
    #[schema(example = "30d")]
    expires: Option<String>,
}

/// The kinds of change that an operator makes.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum GrantKind {
    /// Usage credits, granted or bought; they end after twelve months.
    #[serde(alias = "usage")]
    Topup,
    /// Credits given free.
    #[serde(alias = "promo")]
    Promotional,
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
    Ok(answer(&state, &target, state.store.grant(grant).await?))
}

/// A charge to be given back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRefund {
    /// The request that was charged.
    #[schema(example = "req_01k5m7q3")]
    request: String,
    /// Above zero; what is left of the charge if absent.
    #[schema(value_type = Option<String>)]
    amount: Option<Credits>,
    /// Why; shown in the ledger.
    note: String,
}

/// Gives back what a request was charged, or a part of it, to where it came from. Parts of
/// lots that have ended since come back as new ones. `Idempotency-Key` as for credits.
///
/// # Errors
///
/// As for credits; no such request, or more than it was charged.
#[utoipa::path(
    post, path = "/admin/v1/accounts/{account}/refunds", tag = "credits",
    request_body = NewRefund,
    params(
        ("account" = String, Path, description = "Whose balance"),
        ("Idempotency-Key" = String, Header, description = "Names this very operation"),
    ),
    responses(
        (status = 201, description = "Booked", body = GrantedEntry),
        (status = 200, description = "Booked before; nothing changed", body = GrantedEntry),
        (status = 400, description = "Not a valid refund", body = ErrorBody),
        (status = 404, description = "No such account, or no such charge in it", body = ErrorBody),
        (status = 409, description = "The key was used for other content", body = ErrorBody),
        (status = 422, description = "More than was charged", body = ErrorBody),
    )
)]
pub async fn refund(
    Shared(state): Shared<State>,
    target: Target,
    headers: HeaderMap,
    Body(new): Body<NewRefund>,
) -> Result<(StatusCode, Json<GrantedEntry>), Error> {
    let NewRefund { request, amount, note } = new;
    let undo = valid_undo(&target, ("request", request), amount, note, &headers)?;
    Ok(answer(&state, &target, state.store.refund(undo).await?))
}

/// A payment to be taken back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewReversal {
    /// The `ref` of the top-up, which is the `Idempotency-Key` it was booked with.
    payment: String,
    /// Above zero; what is left of the payment if absent.
    #[schema(value_type = Option<String>)]
    amount: Option<Credits>,
    /// Why; shown in the ledger.
    note: String,
}

/// Takes back a top-up whose payment was taken back (a chargeback): from its own credits
/// first, then as a debit. `Idempotency-Key` as for credits.
///
/// # Errors
///
/// As for credits; no such payment, or more than it was.
#[utoipa::path(
    post, path = "/admin/v1/accounts/{account}/reversals", tag = "credits",
    request_body = NewReversal,
    params(
        ("account" = String, Path, description = "Whose balance"),
        ("Idempotency-Key" = String, Header, description = "Names this very operation"),
    ),
    responses(
        (status = 201, description = "Booked", body = GrantedEntry),
        (status = 200, description = "Booked before; nothing changed", body = GrantedEntry),
        (status = 400, description = "Not a valid reversal", body = ErrorBody),
        (status = 404, description = "No such account, or no such payment in it", body = ErrorBody),
        (status = 409, description = "The key was used for other content", body = ErrorBody),
        (status = 422, description = "More than was paid", body = ErrorBody),
    )
)]
pub async fn reverse(
    Shared(state): Shared<State>,
    target: Target,
    headers: HeaderMap,
    Body(new): Body<NewReversal>,
) -> Result<(StatusCode, Json<GrantedEntry>), Error> {
    let NewReversal { payment, amount, note } = new;
    let undo = valid_undo(&target, ("payment", payment), amount, note, &headers)?;
    Ok(answer(&state, &target, state.store.reverse(undo).await?))
}

fn answer(state: &State, target: &Target, granted: Granted) -> (StatusCode, Json<GrantedEntry>) {
    state.alerts.touch(&target.account.id);
    let Granted { entry, duplicate } = granted;
    tracing::info!(
        account = %target.account.id, seq = entry.seq, kind = entry.kind.name(),
        amount = %entry.amount, duplicate, "credits changed"
    );
    let status = if duplicate { StatusCode::OK } else { StatusCode::CREATED };
    (status, Json(GrantedEntry { entry, duplicate }))
}

fn valid_undo(
    target: &Target,
    (param, of): (&'static str, String),
    amount: Option<Credits>,
    note: String,
    headers: &HeaderMap,
) -> Result<Undo, Error> {
    let id = idempotency_key(headers)?;
    if amount.is_some_and(|amount| !amount.is_positive()) {
        let problem = "must be above zero".to_owned();
        return Err(Error::InvalidParameter { param: "amount", problem });
    }
    let of = short_text(param, of, ID_CHARS)?;
    let note = short_text("note", note, NOTE_CHARS)?;
    Ok(Undo { account: target.account.id.clone(), of, amount, note, id })
}

fn valid_grant(target: &Target, new: NewGrant, id: String) -> Result<Grant, Error> {
    let amount_problem =
        |problem: &str| Error::InvalidParameter { param: "amount", problem: problem.to_owned() };
    let kind = match new.kind {
        GrantKind::Topup | GrantKind::Promotional if !new.amount.is_positive() => {
            return Err(amount_problem("must be above zero; `adjust` takes credits away"));
        }
        GrantKind::Adjust if new.amount == Credits::ZERO => {
            return Err(amount_problem("must not be zero"));
        }
        GrantKind::Topup => Kind::Topup,
        GrantKind::Promotional => Kind::Promo,
        GrantKind::Adjust => Kind::Adjust,
    };
    let note = match (kind, new.note.is_empty()) {
        (Kind::Topup | Kind::Promo, true) => new.note,
        _ => short_text("note", new.note, NOTE_CHARS)?,
    };
    let expires = match (kind, new.expires) {
        (_, None) => None,
        (Kind::Promo, Some(text)) => Some(expiry(&text)?),
        _ => {
            let problem = "is for promotional credits; others end after twelve months".to_owned();
            return Err(Error::InvalidParameter { param: "expires", problem });
        }
    };
    Ok(Grant { account: target.account.id.clone(), kind, amount: new.amount, expires, note, id })
}

/// An expiry as the text says it. A length of time counts from when it is booked, by the
/// clock of the store.
fn expiry(text: &str) -> Result<Expiry, Error> {
    let length = time::parse_duration(text).map(Expiry::After);
    let at = || time::parse(text, &TimeZone::UTC).map(Expiry::At);
    length.or_else(at).ok_or_else(|| {
        let problem = "must be an RFC 3339 time such as 2026-12-31T00:00:00Z, a date, or a time \
            such as 30d";
        Error::InvalidParameter { param: "expires", problem: problem.to_owned() }
    })
}

/// What names the operation; the same in every repetition.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<String, Error> {
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
