//! Accounts: who pays.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::credits::idempotency_key;
use super::error::ErrorBody;
use super::extract::{Body, Params, Target, page, short_text};
use super::limits::{nullable, places};
use super::{Error, State};
use crate::store::{Account, AccountChange, AccountId, Change, Mode, Rows};

const ID_CHARS: usize = 64;
const NAME_CHARS: usize = 100;

/// An account to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    /// 1–64 characters of `a–z 0–9 _ -`, never changed; one is made if absent.
    id: Option<String>,
    /// Shown beside the id; the id if absent.
    name: Option<String>,
}

/// What is to change of an account. What is absent stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AccountPatch {
    /// Shown beside the id.
    name: Option<String>,
    /// When its requests are admitted; `null` for what the configuration says.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<Mode>)]
    mode: Change<Option<Mode>>,
    /// Requests that may run at once; `null` for what the configuration says.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    max_in_flight: Change<Option<u32>>,
}

/// A page of accounts.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AccountsQuery {
    /// The `next` of the page before.
    cursor: Option<String>,
    /// Rows of a page, 1–500; 100 if absent.
    limit: Option<u32>,
}

/// Makes an account with no credits.
///
/// # Errors
///
/// A bad id or name, or an id that is taken.
#[utoipa::path(
    post, path = "/admin/v1/accounts", tag = "accounts", request_body = NewAccount,
    responses(
        (status = 201, description = "Made", body = Account),
        (status = 400, description = "Not a valid account", body = ErrorBody),
        (status = 409, description = "The id is taken", body = ErrorBody),
    )
)]
pub async fn create(
    Shared(state): Shared<State>,
    Body(new): Body<NewAccount>,
) -> Result<(StatusCode, Json<Account>), Error> {
    let id = match new.id {
        Some(id) => valid_id(id)?,
        None => format!("acct_{}", ulid::Ulid::generate().to_string().to_lowercase()),
    };
    let name = short_text("name", new.name.unwrap_or_else(|| id.clone()), NAME_CHARS)?;
    let account = state.store.create_account(AccountId(id.into()), name).await?;
    tracing::info!(account = %account.id, "account created");
    Ok((StatusCode::CREATED, Json(account)))
}

/// All accounts, by id.
///
/// # Errors
///
/// A page that cannot be.
#[utoipa::path(
    get, path = "/admin/v1/accounts", tag = "accounts", params(AccountsQuery),
    responses(
        (status = 200, description = "A page", body = Rows<Account>),
        (status = 400, description = "Not a valid query", body = ErrorBody),
    )
)]
pub async fn list(
    Shared(state): Shared<State>,
    Params(query): Params<AccountsQuery>,
) -> Result<Json<Rows<Account>>, Error> {
    let page = page(query.cursor, query.limit)?;
    Ok(Json(state.store.accounts(page).await?))
}

/// One account with its balance.
///
/// # Errors
///
/// No such account.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}", tag = "accounts",
    params(("account" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The account", body = Account),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn show(target: Target) -> Json<Account> {
    Json(target.account)
}

/// Changes the name of an account or how its requests are admitted; in force for the next
/// request.
///
/// # Errors
///
/// A bad field, or no such account.
#[utoipa::path(
    patch, path = "/admin/v1/accounts/{account}", tag = "accounts", request_body = AccountPatch,
    params(("account" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The account as it is now", body = Account),
        (status = 400, description = "Not a valid change", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn change(
    Shared(state): Shared<State>,
    target: Target,
    Body(patch): Body<AccountPatch>,
) -> Result<Json<Account>, Error> {
    let change = AccountChange {
        name: patch.name.map(|name| short_text("name", name, NAME_CHARS)).transpose()?,
        mode: patch.mode,
        max_in_flight: places("max_in_flight", patch.max_in_flight)?,
    };
    let account = state.store.configure_account(&target.account.id, change).await?;
    tracing::info!(account = %account.id, "account changed");
    Ok(Json(account))
}

/// Ends an account for good: no request and no credit is taken any more; once what runs is
/// settled, what is left is forfeited. `closing` until then. Closing twice is closing once.
///
/// # Errors
///
/// No `Idempotency-Key`, one that was used for other content, or no such account.
#[utoipa::path(
    post, path = "/admin/v1/accounts/{account}/close", tag = "accounts",
    params(
        ("account" = String, Path, description = "Its id"),
        ("Idempotency-Key" = String, Header, description = "Names this very operation"),
    ),
    responses(
        (status = 200, description = "The account as it is now", body = Account),
        (status = 400, description = "No `Idempotency-Key`", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
        (status = 409, description = "The key was used for other content", body = ErrorBody),
    )
)]
pub async fn close(
    Shared(state): Shared<State>,
    target: Target,
    headers: HeaderMap,
) -> Result<Json<Account>, Error> {
    let id = idempotency_key(&headers)?;
    let account = state.store.close_account(&target.account.id, id).await?;
    tracing::info!(account = %account.id, status = ?account.status, "account closed");
    Ok(Json(account))
}

/// Whether a text has the shape of an account's id.
pub(crate) fn is_id(text: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    (1..=ID_CHARS).contains(&text.len()) && text.bytes().all(is_allowed)
}

fn valid_id(id: String) -> Result<String, Error> {
    if is_id(&id) {
        return Ok(id);
    }
    let problem = format!("must be 1 to {ID_CHARS} characters of a–z, 0–9, _ and -");
    Err(Error::InvalidParameter { param: "id", problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_id_is_short_and_plain() {
        for id in ["default", "a", "team-7_b", &"x".repeat(64)] {
            assert!(is_id(id), "{id:?}");
        }
        for id in ["", "Upper", "a b", "a/b", "ä", "../x", &"x".repeat(65)] {
            assert!(!is_id(id), "{id:?}");
        }
    }
}
