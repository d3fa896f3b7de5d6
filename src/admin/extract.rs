//! What a request says, read strictly: unknown fields and parameters are errors, because a
//! misspelt limit or filter that is ignored would change money or hide it.

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::LengthLimitError;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::accounts::is_id;
use super::{Error, State};
use crate::store::{Account, AccountId, Millis, Page, StoreError};
use crate::time;

/// Longest body: every one here is a handful of short fields.
const BODY_LIMIT_BYTES: usize = 64 * 1024;
/// Rows of a page unless the query says otherwise.
const PAGE_ROWS: u32 = 100;
/// Most rows of a page.
const PAGE_ROWS_LIMIT: u32 = 500;

/// A JSON body. Types that are read so deny unknown fields.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self, Error> {
        if !is_json(request.headers()) {
            return Err(Error::UnsupportedMediaType);
        }
        let bytes = to_bytes(request.into_body(), BODY_LIMIT_BYTES).await.map_err(|error| {
            if error.into_inner().is::<LengthLimitError>() {
                Error::BodyTooLarge { limit_bytes: BODY_LIMIT_BYTES }
            } else {
                Error::InvalidBody("it ended early".to_owned())
            }
        })?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| Error::InvalidBody(error.to_string()))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.unwrap_or_default().split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// The parameters of a query. Types that are read so deny unknown fields.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => {
                use std::error::Error as _;
                // The outermost message only says that a query could not be read.
                let reason = error.source().map_or_else(|| error.to_string(), |e| e.to_string());
                Err(Error::InvalidQuery(reason))
            }
        }
    }
}

/// The account that the path names, which exists, and the rest of the path.
pub struct Target {
    /// As it was when the request came.
    pub account: Account,
    /// The key that the path names, or nothing.
    pub key: String,
}

#[derive(Deserialize)]
struct Segments {
    account: String,
    #[serde(default)]
    key: String,
}

impl FromRequestParts<State> for Target {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let Path(Segments { account, key }) = Path::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::ObjectNotFound("such account".to_owned()))?;
        let has_shape = is_id(&account);
        let id = AccountId(account.into());
        if !has_shape {
            return Err(Error::AccountNotFound(id));
        }
        match state.store.account(&id).await {
            Ok(account) => Ok(Self { account, key }),
            Err(StoreError::NotFound(_)) => Err(Error::AccountNotFound(id)),
            Err(error) => Err(error.into()),
        }
    }
}

/// The page that a query asks for.
///
/// # Errors
///
/// When `limit` is not 1–500.
pub fn page(cursor: Option<String>, limit: Option<u32>) -> Result<Page, Error> {
    let limit = limit.unwrap_or(PAGE_ROWS);
    if !(1..=PAGE_ROWS_LIMIT).contains(&limit) {
        let problem = format!("must be 1 to {PAGE_ROWS_LIMIT}");
        return Err(Error::InvalidParameter { param: "limit", problem });
    }
    Ok(Page { cursor, limit })
}

/// An instant of a query: an RFC 3339 time, or a date as its midnight in `zone`.
///
/// # Errors
///
/// When it is neither.
pub fn instant(
    param: &'static str,
    text: Option<&str>,
    zone: &TimeZone,
) -> Result<Option<Millis>, Error> {
    let Some(text) = text else {
        return Ok(None);
    };
    match time::parse(text, zone) {
        Some(at) => Ok(Some(at)),
        None => Err(Error::InvalidParameter {
            param,
            problem: "must be an RFC 3339 time such as 2026-09-21T08:15:00Z, or a date".to_owned(),
        }),
    }
}

/// A short text for people: not empty, at most `limit` characters, no control characters.
///
/// # Errors
///
/// When it is not such a text.
pub fn short_text(param: &'static str, text: String, limit: usize) -> Result<String, Error> {
    let problem = if text.trim().is_empty() {
        "must not be empty".to_owned()
    } else if text.chars().count() > limit {
        format!("must have at most {limit} characters")
    } else if text.chars().any(char::is_control) {
        "must not have control characters".to_owned()
    } else {
        return Ok(text);
    };
    Err(Error::InvalidParameter { param, problem })
}
