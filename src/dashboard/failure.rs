//! What a page says when it cannot be shown: what failed, and what to do.

use std::sync::Arc;

use askama::Template;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::moment::Zone;
use super::since::Since;
use super::{assets, session, sign_in};
use crate::admin::{self, State};
use crate::alerts::AlertsError;
use crate::store::StoreError;
use crate::time;

/// Why there is no page.
#[derive(Clone, Debug)]
pub enum Failure {
    /// Nobody is signed in; afterwards they are brought to `next`.
    SignedOut {
        /// The path that was asked for.
        next: String,
    },
    /// A browser that came from elsewhere did not send its session along.
    CrossSite {
        /// The path that was asked for.
        next: String,
    },
    /// There is no such page or thing, or it is another's.
    NotFound(String),
    /// What was sent makes no sense; a sentence.
    Invalid(String),
    /// A form did not come from our own pages.
    Forged,
    /// It was changed meanwhile, or cannot be now; a sentence.
    Conflict(String),
    /// The store cannot be read or written.
    Unavailable(String),
    /// Ours.
    Internal(String),
}

#[derive(Template)]
#[template(path = "failure.html")]
struct Shown<'a> {
    base: &'a str,
    css: String,
    title: &'a str,
    what: &'a str,
    next: &'a str,
    id: &'a str,
    since: Option<String>,
    retry: bool,
}

/// Since when pages cannot be read from the store.
pub static UNREADABLE: Since = Since::never();

#[derive(Template)]
#[template(path = "again.html")]
struct Again<'a> {
    to: &'a str,
}

impl Failure {
    /// The whole answer.
    pub fn page(&self, state: &State, id: &str) -> Response {
        let base = state.site.base.as_str();
        let (status, title, what, next) = match self {
            Self::SignedOut { next } => {
                let to = format!("{base}/sign-in?next={}", assets::encode(next));
                let mut reply = (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response();
                // Whoever comes in by a link of their own is brought there, too.
                if sign_in::is_page(next)
                    && let Ok(kept) = session::set_next(&state.site, Some(next)).parse()
                {
                    reply.headers_mut().insert(header::SET_COOKIE, kept);
                }
                return reply;
            }
            Self::CrossSite { next } => {
                let to = format!("{base}{next}");
                return Html(Again { to: &to }.render().unwrap_or_default()).into_response();
            }
            Self::NotFound(what) => (
                StatusCode::NOT_FOUND,
                "Nothing here",
                what.as_str(),
                "Check the address, or go back to the start.",
            ),
            Self::Invalid(what) => (
                StatusCode::BAD_REQUEST,
                "That cannot be read",
                what.as_str(),
                "Go back and change it.",
            ),
            Self::Forged => (
                StatusCode::FORBIDDEN,
                "Not accepted",
                "This form did not come from a page that you have open.",
                "Go back, reload the page and send it again.",
            ),
            Self::Conflict(what) => (
                StatusCode::CONFLICT,
                "Not done",
                what.as_str(),
                "Go back and look at what is there now.",
            ),
            Self::Unavailable(why) => {
                tracing::error!(request.id = id, reason = %why, "a page could not be shown");
                (
                    StatusCode::SERVICE_UNAVAILABLE,
                    "The ledger cannot be reached",
                    "Balances cannot be read now. Nothing is lost: what was debited is on disk.",
                    "Try again in a moment.",
                )
            }
            Self::Internal(why) => {
                tracing::error!(request.id = id, reason = %why, "a page could not be shown");
                (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "This page failed",
                    "The fault is ours; it is in the log.",
                    "Try again, and tell your administrator the number below.",
                )
            }
        };
        let retry = matches!(self, Self::Unavailable(_) | Self::Internal(_));
        let now = time::now();
        let since = match self {
            Self::Unavailable(_) => UNREADABLE.told(true, now),
            _ => None,
        };
        let since = since.map(|at| Zone::utc().clock(at));
        let css = assets::path(state, "app.css");
        let page = Shown { base, css, title, what, next, id, since, retry };
        (status, Html(page.render().unwrap_or_default())).into_response()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(what) => Self::NotFound(format!("There is no {what}.")),
            StoreError::Conflict(why) => Self::Conflict(format!("{why}.")),
            StoreError::Ledger(why) => Self::Conflict(format!("{why}.")),
            StoreError::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

impl From<askama::Error> for Failure {
    fn from(error: askama::Error) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<admin::Error> for Failure {
    fn from(error: admin::Error) -> Self {
        use admin::Error;
        let text = error.to_string();
        match error {
            Error::AccountNotFound(_) | Error::KeyNotFound(_) | Error::ObjectNotFound(_) => {
                Self::NotFound(text)
            }
            Error::Conflict(_) | Error::NotBooked(_) => Self::Conflict(text),
            Error::LedgerUnavailable(why) => Self::Unavailable(why),
            Error::Internal(why) => Self::Internal(why),
            _ => Self::Invalid(text),
        }
    }
}

impl From<AlertsError> for Failure {
    fn from(error: AlertsError) -> Self {
        match error {
            AlertsError::Invalid { .. } => Self::Invalid(format!("{error}.")),
            AlertsError::Store(error) => error.into(),
        }
    }
}
