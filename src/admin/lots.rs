//! The lots of an account: what its balance is made of, and when each part ends.

use axum::Json;
use axum::extract::State as Shared;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ErrorBody;
use super::extract::{Params, Target, page};
use super::{Error, State};
use crate::store::{LotFilter, LotRow, Rows};

/// Which lots.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LotsQuery {
    /// Also those that are used up or have ended; all newest first then.
    #[serde(default)]
    all: bool,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// Rows of a page, 1–500; 100 if absent.
    limit: Option<u32>,
}

/// The lots that can be used now, in the order in which they will be.
///
/// # Errors
///
/// No such account, or a page that cannot be.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/lots", tag = "credits",
    params(("account" = String, Path, description = "Whose lots"), LotsQuery),
    responses(
        (status = 200, description = "A page", body = Rows<LotRow>),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn list(
    Shared(state): Shared<State>,
    target: Target,
    Params(query): Params<LotsQuery>,
) -> Result<Json<Rows<LotRow>>, Error> {
    let filter = if query.all { LotFilter::All } else { LotFilter::Usable };
    let page = page(query.cursor, query.limit)?;
    Ok(Json(state.store.lots(&target.account.id, filter, page).await?))
}
