//! The ledger of an account: every change of its balance.

use axum::Json;
use axum::extract::State as Shared;
use jiff::tz::TimeZone;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ErrorBody;
use super::extract::{Params, Target, instant, page};
use super::{Error, State};
use crate::billing::ledger::Kind;
use crate::store::{Entry, EntryFilter, Rows};

/// Which entries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LedgerQuery {
    /// Of this kind.
    kind: Option<Kind>,
    /// Not before this RFC 3339 time or date (UTC).
    since: Option<String>,
    /// Before this RFC 3339 time or date (UTC).
    until: Option<String>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// Rows of a page, 1–500; 100 if absent.
    limit: Option<u32>,
}

/// The entries of an account, newest first.
///
/// # Errors
///
/// No such account, or a bad filter.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/ledger", tag = "ledger",
    params(("account" = String, Path, description = "Whose entries"), LedgerQuery),
    responses(
        (status = 200, description = "A page", body = Rows<Entry>),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn list(
    Shared(state): Shared<State>,
    target: Target,
    Params(query): Params<LedgerQuery>,
) -> Result<Json<Rows<Entry>>, Error> {
    let filter = EntryFilter {
        kind: query.kind,
        since: instant("since", query.since.as_deref(), &TimeZone::UTC)?,
        until: instant("until", query.until.as_deref(), &TimeZone::UTC)?,
    };
    let page = page(query.cursor, query.limit)?;
    Ok(Json(state.store.entries(&target.account.id, filter, page).await?))
}
