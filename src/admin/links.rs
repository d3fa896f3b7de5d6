//! Links that let an account's holder look at its pages.

use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ErrorBody;
use super::extract::{Body, Target};
use super::{Error, State};
use crate::dashboard::session;
use crate::store::Millis;
use crate::time;

/// How long a link lasts unless told.
const LASTS: Duration = Duration::from_secs(24 * 3600);
/// How long one may last.
const LASTS_LIMIT: Duration = Duration::from_secs(366 * 24 * 3600);

/// A link to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLink {
    /// How long it can be used, such as `24h` or `30d`; 24 hours if absent.
    lasts: Option<String>,
    /// Whether it can be used until then, rather than once.
    #[serde(default)]
    reusable: bool,
}

/// A link, shown this once.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// To be opened in a browser.
    pub url: String,
    /// The same as a code for the sign-in page.
    pub token: String,
    /// When it can no longer be used.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Millis,
}

/// Makes a link that signs the holder of an account in to its pages.
///
/// # Errors
///
/// No such account, or a length of time that cannot be.
#[utoipa::path(
    post, path = "/admin/v1/accounts/{account}/sign-in-links", tag = "accounts",
    params(("account" = String, Path, description = "Whose pages")),
    request_body = NewLink,
    responses(
        (status = 201, description = "Made", body = Link),
        (status = 400, description = "Not a valid link", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn create(
    Shared(state): Shared<State>,
    target: Target,
    Body(new): Body<NewLink>,
) -> Result<(StatusCode, Json<Link>), Error> {
    let lasts = match new.lasts.as_deref() {
        None => Some(LASTS),
        Some(text) => time::parse_duration(text),
    };
    let lasts =
        lasts.filter(|lasts| !lasts.is_zero() && *lasts <= LASTS_LIMIT).ok_or_else(|| {
            let problem =
                "must be a length of time such as 24h or 30d, at most 366 days".to_owned();
            Error::InvalidParameter { param: "lasts", problem }
        })?;
    let expires_at = time::after(time::now(), lasts);
    let account = &target.account.id;
    let token = session::new_link(state.store.as_ref(), account, new.reusable, expires_at).await?;
    tracing::info!(%account, "sign-in link made");
    let url = state.site.url(&format!("/sign-in/{}", token.expose()));
    let link = Link { url, token: token.expose().to_owned(), expires_at };
    Ok((StatusCode::CREATED, Json(link)))
}
