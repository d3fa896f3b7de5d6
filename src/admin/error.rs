//! Every failure of the control plane and its reply, in the shape of OpenAI's errors.
//!
//! A handler returns an [`Error`]; the reply's body is written by [`complete`] once the
//! request's id is known. A failure is logged there, once.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ROUTES;
use crate::billing::ledger::LedgerError;
use crate::store::{AccountId, StoreError};

/// Why a request to the control plane failed. The message is for the operator.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The body cannot be read as what the route takes; unknown fields among it.
    #[error("The body is not what this route takes: {0}.")]
    InvalidBody(String),
    /// A parameter of the query or a field of the body has a value that means nothing.
    #[error("`{param}` {problem}.")]
    InvalidParameter {
        /// The parameter or field.
        param: &'static str,
        /// What is wrong with it, as the end of a sentence.
        problem: String,
    },
    /// The query cannot be read; unknown parameters among it.
    #[error("The query is not what this route takes: {0}.")]
    InvalidQuery(String),
    /// A change of money without an `Idempotency-Key`.
    #[error(
        "The header `Idempotency-Key` is missing: a text of your choice, the same whenever you \
         repeat this very operation, so that it is booked once."
    )]
    IdempotencyKeyMissing,
    /// No key, or not the admin key.
    #[error("Not authorized: {0}.")]
    Unauthorized(&'static str),
    /// No such account.
    #[error("There is no account `{0}`.")]
    AccountNotFound(AccountId),
    /// No such key in this account.
    #[error("The account has no key `{0}`.")]
    KeyNotFound(String),
    /// Something else that the store does not have.
    #[error("There is no {0}.")]
    ObjectNotFound(String),
    /// No such path.
    #[error("The control plane does not serve this path. It serves: {}.", served())]
    NoRoute,
    /// The path exists, with other methods.
    #[error("This path takes other methods, which the header `Allow` lists.")]
    MethodNotAllowed,
    /// The id is taken, or an idempotency key came again with other content.
    #[error("Conflict: {0}.")]
    Conflict(String),
    /// The body is too long.
    #[error("The body is longer than {limit_bytes} bytes.")]
    BodyTooLarge {
        /// What is taken.
        limit_bytes: usize,
    },
    /// The body is not JSON by its own word.
    #[error("The body must be JSON, sent with `Content-Type: application/json`.")]
    UnsupportedMediaType,
    /// The `Host` header names neither a loopback host nor one that the operator allowed.
    #[error(
        "The control plane does not answer to this `Host`. Call it by a loopback name, or add \
         the name to the allowed hosts of the configuration."
    )]
    HostNotAllowed,
    /// The amount cannot be booked.
    #[error("Not booked: {0}.")]
    NotBooked(LedgerError),
    /// No randomness, or another failure that is ours.
    #[error("Farebox failed: {0}.")]
    Internal(String),
    /// The process is ending.
    #[error("Farebox is ending; running requests are still served.")]
    Closing,
    /// The store cannot be read or written.
    #[error("The ledger cannot be read or written now. Repeat with the same content.")]
    LedgerUnavailable(String),
}

/// The body of every failed request.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The failure.
    pub error: ErrorObject,
}

/// OpenAI's error object, with the request's id.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorObject {
    /// What is wrong, and what to do.
    pub message: String,
    /// The family of the failure.
    #[serde(rename = "type")]
    pub kind: String,
    /// The parameter or field that is meant, where there is one.
    pub param: Option<String>,
    /// The failure, for programs.
    pub code: String,
    /// As in the header `x-request-id`.
    pub request_id: String,
}

impl Error {
    /// Status, `type` and `code` of the error object.
    fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        match self {
            Self::InvalidBody(_) => (StatusCode::BAD_REQUEST, REQUEST, "invalid_json"),
            Self::InvalidParameter { .. } => (StatusCode::BAD_REQUEST, REQUEST, "invalid_value"),
            Self::InvalidQuery(_) => (StatusCode::BAD_REQUEST, REQUEST, "invalid_query"),
            Self::IdempotencyKeyMissing => {
                (StatusCode::BAD_REQUEST, REQUEST, "idempotency_key_missing")
            }
            Self::Unauthorized(_) => {
                (StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key")
            }
            Self::AccountNotFound(_) => (StatusCode::NOT_FOUND, REQUEST, "account_not_found"),
            Self::KeyNotFound(_) => (StatusCode::NOT_FOUND, REQUEST, "key_not_found"),
            Self::ObjectNotFound(_) => (StatusCode::NOT_FOUND, REQUEST, "object_not_found"),
            Self::NoRoute => (StatusCode::NOT_FOUND, REQUEST, "endpoint_not_enabled"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, REQUEST, "method_not_allowed")
            }
            Self::Conflict(_) => (StatusCode::CONFLICT, REQUEST, "conflict"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, "body_too_large"),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, "unsupported_media_type")
            }
            Self::HostNotAllowed => (StatusCode::MISDIRECTED_REQUEST, REQUEST, "host_not_allowed"),
            Self::NotBooked(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, REQUEST, "amount_out_of_range")
            }
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "api_error", "internal_error"),
            Self::Closing => (StatusCode::SERVICE_UNAVAILABLE, "api_error", "draining"),
            Self::LedgerUnavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "api_error", "ledger_unavailable")
            }
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            Self::InvalidParameter { param, .. } => Some((*param).to_owned()),
            Self::IdempotencyKeyMissing => Some("Idempotency-Key".to_owned()),
            _ => None,
        }
    }

    /// Tells the log what the operator may have to act on.
    fn log(&self, request_id: &str) {
        match self {
            Self::Internal(reason) | Self::LedgerUnavailable(reason) => {
                tracing::error!(request.id = request_id, %reason, "a control request failed");
            }
            Self::Unauthorized(reason) => {
                tracing::warn!(request.id = request_id, reason, "a control request was refused");
            }
            _ => {}
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(what) => Self::ObjectNotFound(what),
            StoreError::Conflict(why) => Self::Conflict(why),
            StoreError::Ledger(LedgerError::ExpiryPast) => Self::InvalidParameter {
                param: "expires",
                problem: "must lie in the future".to_owned(),
            },
            StoreError::Ledger(why) => Self::NotBooked(why),
            StoreError::Unavailable(why) => Self::LedgerUnavailable(why),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.parts().0.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the body of a reply that is an [`Error`]; leaves every other reply alone.
///
/// Only the status and body are the error's: `Allow` was added on the way here.
pub fn complete(response: &mut Response, request_id: &str) {
    let Some(error) = response.extensions_mut().remove::<Error>() else {
        return;
    };
    error.log(request_id);
    let (_, kind, code) = error.parts();
    let body = ErrorBody {
        error: ErrorObject {
            message: error.to_string(),
            kind: kind.to_owned(),
            param: error.param(),
            code: code.to_owned(),
            request_id: request_id.to_owned(),
        },
    };
    let (parts, body) = Json(body).into_response().into_parts();
    *response.body_mut() = Body::new(body);
    // The empty body of before had a length of its own.
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.headers_mut().extend(parts.headers);
    match error {
        Error::LedgerUnavailable(_) => {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        Error::Unauthorized(_) => {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        _ => {}
    }
}

/// All routes in one line.
fn served() -> String {
    let lines: Vec<_> =
        ROUTES.iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    lines.join(", ")
}
