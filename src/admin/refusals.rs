//! What was refused before it was sent: it has no row, so it is counted apart.

use axum::Json;
use axum::extract::State as Shared;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::error::ErrorBody;
use super::extract::{Params, Target, instant};
use super::{Error, State};
use crate::proxy::refused::Count;
use crate::store::Millis;
use crate::time;

/// Which refusals.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RefusalsQuery {
    /// From the hour of this RFC 3339 time or date (UTC) on; since the start if absent.
    since: Option<String>,
    /// Before this RFC 3339 time or date (UTC), with the hour that it is in; now if absent.
    until: Option<String>,
}

/// Requests that were refused, by reason.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Refused {
    /// When this process began to count. Each process counts for itself.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub counted_since: Millis,
    /// The most frequent reason first; reasons that did not occur are left out.
    pub data: Vec<Count>,
}

/// How many requests of an account were refused before they were sent, by whole hours (UTC).
/// They cost nothing.
///
/// # Errors
///
/// No such account, or a bad time.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/refusals", tag = "usage",
    params(("account" = String, Path, description = "Whose requests"), RefusalsQuery),
    responses(
        (status = 200, description = "Counts by reason", body = Refused),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn show(
    Shared(state): Shared<State>,
    target: Target,
    Params(query): Params<RefusalsQuery>,
) -> Result<Json<Refused>, Error> {
    let since = instant("since", query.since.as_deref(), &TimeZone::UTC)?.unwrap_or(0);
    let until = instant("until", query.until.as_deref(), &TimeZone::UTC)?;
    let until = until.unwrap_or_else(|| time::now() + 1);
    Ok(Json(Refused {
        counted_since: state.refusals.since,
        data: state.refusals.of(&target.account.id, since, until),
    }))
}
