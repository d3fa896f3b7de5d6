//! Every failure becomes a reply here, and is logged here, once.
//!
//! The words matter: agents sort errors by their text. Those about money are in `refusal`.

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::Reply;
use super::body::Body;
use super::forward::Cause;
use super::refusal::{Refusal, Why};
use crate::store::{Key, Measure, Refused, Rejection, StoreError};
use crate::wire::request::Invalid;
use crate::wire::{self, Endpoint};

/// Why a request failed. The message is for the client, the source for the log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} Send a well-formed HTTP request.")]
    MalformedHttp(&'static str),
    #[error("There is nothing at this path. Served are: {}.", super::accept::SERVED.join(", "))]
    NoSuchEndpoint,
    #[error("This path takes {allow} only. Send the request with that method.")]
    Method { allow: &'static str },
    #[error("{0}")]
    ApiKey(String),
    #[error(
        "Too many requests with wrong keys came from this address. Wait, then send the right key."
    )]
    TooManyBadKeys,
    #[error(
        "The body must be application/json in UTF-8 without a content-encoding. Set content-type to application/json."
    )]
    MediaType,
    #[error("The body is larger than {limit_bytes} bytes. Send a smaller request.")]
    BodyTooLarge { limit_bytes: usize },
    #[error("The body did not arrive in time. Send it again.")]
    BodyTimeout,
    #[error("The body ended early. Send it again.")]
    BodyCut(#[source] hyper::Error),
    #[error("{0} Correct the request and send it again.")]
    Invalid(#[from] Invalid),
    #[error("The parameter \"{parameter}\" is not allowed: {why}. Leave it out.")]
    NotAllowed { parameter: String, why: String },
    #[error("The model \"{model}\" is not known here. {}", list(.nearest))]
    ModelNotFound { model: String, nearest: Vec<String> },
    #[error("The model \"{model}\" is not served at this endpoint. Use {instead}.")]
    WrongEndpoint { model: String, instead: &'static str },
    #[error("This key may not call the model \"{model}\". It may call: {}.", .allowed.join(", "))]
    ModelNotAllowed { model: String, allowed: Vec<String> },
    #[error(
        "There is no response or conversation \"{id}\" of this account. Send the whole context instead."
    )]
    ObjectNotFound { id: String },
    #[error("{0}")]
    Refused(Box<Refusal>),
    #[error(
        "What this request can cost has no bound, and this account asks for one. Set the largest output, such as max_tokens."
    )]
    Unbounded,
    #[error("The account is closed. Ask the operator to open it.")]
    NotOpen,
    #[error(
        "{running} requests of this account run at once, and {limit} may. Send this one when one of them has ended."
    )]
    TooManyConcurrent { running: u32, limit: u32 },
    #[error(
        "{running} requests of this key run at once, and {limit} may. Send this one when one of them has ended."
    )]
    KeyConcurrent { running: u32, limit: u32 },
    #[error(
        "This key may use {limit} {} a minute, and {used} are used. Wait {wait_s} s, then send the request again.", measured(*.of)
    )]
    KeyRate { of: Measure, limit: u64, used: u64, wait_s: u64 },
    #[error("Too many requests of this kind in one minute. Wait {wait_s} s, then send it again.")]
    RateLimited { wait_s: u64 },
    #[error("The service is busy. Send the request again in a second.")]
    Overloaded,
    #[error("The service is restarting. Send the request again in a second.")]
    Draining,
    #[error("The ledger cannot record usage now. Send the request again in a few seconds.")]
    Ledger(#[source] StoreError),
    #[error("The model's provider cannot be reached. Send the request again; nothing was charged.")]
    UpstreamUnreachable(#[source] Cause),
    #[error("The model's provider failed ({0}). Send the request again; nothing was charged.")]
    UpstreamStatus(StatusCode),
    #[error("The model's provider is busy. Wait {wait_s} s, then send the request again.")]
    UpstreamBusy { wait_s: u64 },
    #[error(
        "The service is misconfigured and the operator was notified. Try another model until then."
    )]
    UpstreamAuth(StatusCode),
    #[error(
        "The model's provider sent something that is not a reply ({0}). Send the request again."
    )]
    UpstreamInvalid(&'static str),
    #[error("The model's provider broke off its reply. Send the request again.")]
    UpstreamCut,
    #[error("The model's provider did not answer in time. Send the request again.")]
    UpstreamTimeout,
}

/// Longest `retry-after` of a limit a minute.
const LONGEST_WAIT_S: u64 = 10;

const fn measured(of: Measure) -> &'static str {
    match of {
        Measure::Requests => "requests",
        Measure::Tokens => "tokens",
    }
}

fn list(names: &[String]) -> String {
    match names {
        [] => "GET /v1/models lists the models.".into(),
        names => format!("Nearest are: {}. GET /v1/models lists all.", names.join(", ")),
    }
}

impl Error {
    /// Status, `type` and `code` of the OpenAI error object.
    pub fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        const INVALID: &str = "invalid_request_error";
        const RATE: &str = "rate_limit_error";
        const API: &str = "api_error";
        match self {
            Self::MalformedHttp(_) => (StatusCode::BAD_REQUEST, INVALID, "malformed_http"),
            Self::NoSuchEndpoint => (StatusCode::NOT_FOUND, INVALID, "endpoint_not_enabled"),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed"),
            Self::ApiKey(_) => {
                (StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key")
            }
            Self::TooManyBadKeys => (StatusCode::TOO_MANY_REQUESTS, RATE, "rate_limit_exceeded"),
            Self::MediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_media_type")
            }
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, "body_too_large"),
            Self::BodyTimeout | Self::BodyCut(_) => {
                (StatusCode::REQUEST_TIMEOUT, INVALID, "request_timeout")
            }
            Self::Invalid(Invalid::Json { .. }) => {
                (StatusCode::BAD_REQUEST, INVALID, "invalid_json")
            }
            Self::Invalid(Invalid::DuplicateKey { .. }) => {
                (StatusCode::BAD_REQUEST, INVALID, "duplicate_key")
            }
            Self::Invalid(Invalid::Parameter { .. }) => {
                (StatusCode::BAD_REQUEST, INVALID, "invalid_parameter")
            }
            Self::Invalid(Invalid::NotAllowed { .. }) | Self::NotAllowed { .. } => {
                (StatusCode::BAD_REQUEST, INVALID, "parameter_not_allowed")
            }
            Self::ModelNotFound { .. } | Self::WrongEndpoint { .. } => {
                (StatusCode::NOT_FOUND, INVALID, "model_not_found")
            }
            Self::ModelNotAllowed { .. } => {
                (StatusCode::FORBIDDEN, "permission_error", "model_not_allowed")
            }
            Self::ObjectNotFound { .. } => (StatusCode::NOT_FOUND, INVALID, "object_not_found"),
            Self::Refused(refusal) => refusal.parts(),
            Self::Unbounded => (StatusCode::BAD_REQUEST, INVALID, "max_tokens_required"),
            Self::NotOpen => (StatusCode::FORBIDDEN, "permission_error", "account_closed"),
            Self::TooManyConcurrent { .. } | Self::KeyConcurrent { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, RATE, "too_many_concurrent_requests")
            }
            Self::RateLimited { .. } | Self::UpstreamBusy { .. } | Self::KeyRate { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, RATE, "rate_limit_exceeded")
            }
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, API, "overloaded"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, API, "draining"),
            Self::Ledger(_) => (StatusCode::SERVICE_UNAVAILABLE, API, "ledger_unavailable"),
            Self::UpstreamUnreachable(_) | Self::UpstreamStatus(_) | Self::UpstreamCut => {
                (StatusCode::BAD_GATEWAY, API, "upstream_error")
            }
            Self::UpstreamAuth(_) => (StatusCode::BAD_GATEWAY, API, "upstream_auth_error"),
            Self::UpstreamInvalid(_) => (StatusCode::BAD_GATEWAY, API, "upstream_invalid_response"),
            Self::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, API, "upstream_timeout"),
        }
    }

    /// Seconds after which the same request may go well; `None` where repeating cannot help.
    const fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::RateLimited { wait_s }
            | Self::UpstreamBusy { wait_s }
            | Self::KeyRate { wait_s, .. } => Some(*wait_s),
            Self::Overloaded
            | Self::Draining
            | Self::TooManyConcurrent { .. }
            | Self::KeyConcurrent { .. } => Some(1),
            Self::Ledger(_) => Some(5),
            Self::TooManyBadKeys => Some(10),
            _ => None,
        }
    }

    /// Whether an SDK may repeat the request by itself.
    const fn may_retry(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::UpstreamBusy { .. }
            | Self::Overloaded
            | Self::Draining
            | Self::TooManyConcurrent { .. }
            | Self::KeyConcurrent { .. }
            | Self::KeyRate { .. }
            | Self::Ledger(_)
            | Self::TooManyBadKeys
            | Self::BodyTimeout
            | Self::BodyCut(_)
            | Self::UpstreamUnreachable(_)
            | Self::UpstreamStatus(_)
            | Self::UpstreamInvalid(_)
            | Self::UpstreamCut
            | Self::UpstreamTimeout => true,
            Self::MalformedHttp(_)
            | Self::NoSuchEndpoint
            | Self::Method { .. }
            | Self::ApiKey(_)
            | Self::MediaType
            | Self::BodyTooLarge { .. }
            | Self::Invalid(_)
            | Self::NotAllowed { .. }
            | Self::ModelNotFound { .. }
            | Self::WrongEndpoint { .. }
            | Self::ModelNotAllowed { .. }
            | Self::ObjectNotFound { .. }
            | Self::Refused(_)
            | Self::Unbounded
            | Self::NotOpen
            | Self::UpstreamAuth(_) => false,
        }
    }

    /// A refusal by the store.
    pub fn refused(refused: Refused, key: &Key, billing_url: &str) -> Self {
        let for_money = |why| {
            Self::Refused(Box::new(Refusal {
                why,
                account: key.account.to_string(),
                billing_url: billing_url.into(),
                style: key.rejection,
            }))
        };
        match refused {
            Refused::OutOfCredits { balance } => for_money(Why::Empty { balance }),
            Refused::HoldDoesNotFit { balance, held, most } => {
                for_money(Why::Held { balance, held, most })
            }
            Refused::KeySpend { period, cap, spent, held, resets_at } => {
                for_money(Why::Cap { period, cap, spent, held, resets_at })
            }
            Refused::Unbounded => Self::Unbounded,
            Refused::KeyEnded { revoked } => Self::ApiKey(format!(
                "The API key ending {} {}. Ask the operator for another.",
                key.last4,
                if revoked { "was revoked" } else { "has expired" }
            )),
            Refused::KeyInFlight { running, limit } => Self::KeyConcurrent { running, limit },
            Refused::KeyRate { of, limit, used, wait_ms } => {
                // Agents wait as long as they are told, so a long wait is told in parts.
                let wait_s = wait_ms.div_ceil(1000).clamp(1, LONGEST_WAIT_S);
                Self::KeyRate { of, limit, used, wait_s }
            }
            Refused::TooManyInFlight { running, limit } => {
                Self::TooManyConcurrent { running, limit }
            }
            Refused::NotOpen => Self::NotOpen,
        }
    }

    /// The error object of the endpoint's dialect.
    pub fn object(&self, endpoint: Option<Endpoint>, request_id: &str) -> Value {
        let (status, kind, code) = self.parts();
        let message = self.to_string();
        match endpoint {
            Some(Endpoint::Messages | Endpoint::CountTokens) => json!({
                "type": "error",
                "error": { "type": anthropic_type(status, kind), "message": message },
                "request_id": request_id,
            }),
            Some(Endpoint::Generate | Endpoint::StreamGenerate) => json!({
                "error": {
                    "code": status.as_u16(), "message": message, "status": google_status(status),
                },
                "request_id": request_id,
            }),
            _ => {
                let mut error = json!({
                    "message": message, "type": kind, "param": self.parameter(), "code": code,
                });
                if let Self::Refused(refusal) = self {
                    error["details"] = refusal.details();
                }
                json!({ "error": error, "request_id": request_id })
            }
        }
    }

    fn parameter(&self) -> Option<&str> {
        match self {
            Self::Invalid(
                Invalid::Parameter { parameter, .. } | Invalid::NotAllowed { parameter, .. },
            )
            | Self::NotAllowed { parameter, .. } => Some(parameter),
            Self::ModelNotFound { .. } | Self::WrongEndpoint { .. } => Some("model"),
            Self::Refused(refusal) => refusal.parameter(),
            Self::Unbounded => Some("max_tokens"),
            Self::KeyConcurrent { .. } => Some("max_in_flight"),
            Self::KeyRate { of: Measure::Requests, .. } => Some("requests_per_minute"),
            Self::KeyRate { of: Measure::Tokens, .. } => Some("tokens_per_minute"),
            _ => None,
        }
    }

    /// The reply to the client; logs the failure.
    pub fn into_reply(self, endpoint: Option<Endpoint>, stream: bool, request_id: &str) -> Reply {
        let (status, _, code) = self.parts();
        self.log(status, code, request_id);
        if let (Self::Refused(refusal), Some(endpoint)) = (&self, endpoint)
            && refusal.style == Rejection::Message
            && let Some((kind, body)) =
                wire::refusal::message(endpoint, stream, &self.to_string(), request_id)
        {
            let mut reply = Response::new(Body::whole(body.into()));
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            return reply;
        }
        let body = self.object(endpoint, request_id).to_string();
        let mut reply = Response::new(Body::whole(body.into()));
        *reply.status_mut() = status;
        let headers = reply.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if !self.may_retry() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if let Some(seconds) = self.retry_after_s() {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Self::Method { allow } = self {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if matches!(self, Self::MalformedHttp(_) | Self::BodyTooLarge { .. } | Self::BodyTimeout) {
            headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        reply
    }

    /// The event that ends a stream which cannot go on.
    pub fn event(&self, endpoint: Endpoint, request_id: &str) -> String {
        let (status, _, code) = self.parts();
        self.log(status, code, request_id);
        let object = self.object(Some(endpoint), request_id);
        match endpoint {
            Endpoint::Messages => format!("event: error\ndata: {object}\n\n"),
            Endpoint::Responses => {
                let error = &object["error"];
                let event = json!({
                    "type": "error", "code": error["code"], "message": error["message"], "param": null,
                });
                format!("event: error\ndata: {event}\n\n")
            }
            _ => format!("data: {object}\n\n"),
        }
    }

    /// What the operator must see is a warning; what clients do wrong is for debugging.
    fn log(&self, status: StatusCode, code: &str, request_id: &str) {
        use std::error::Error as _;
        let cause =
            self.source().map(|source| format!(": {}", innermost(source))).unwrap_or_default();
        if status.is_server_error() {
            tracing::warn!(
                request.id = request_id,
                code,
                status = status.as_u16(),
                "refused{cause}"
            );
        } else {
            tracing::debug!(
                request.id = request_id,
                code,
                status = status.as_u16(),
                "refused{cause}"
            );
        }
    }
}

/// The cause behind a chain of errors; the outer ones only say that there is one.
fn innermost<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> &'e (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}

fn anthropic_type(status: StatusCode, kind: &'static str) -> &'static str {
    match status.as_u16() {
        402 => "billing_error",
        404 => "not_found_error",
        413 => "request_too_large",
        503 => "overloaded_error",
        504 => "timeout_error",
        _ => kind,
    }
}

fn google_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        402 | 429 => "RESOURCE_EXHAUSTED",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        500..=599 => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_lack_of_credits_is_402_and_not_to_be_retried() {
        let error = Error::Refused(Box::new(Refusal {
            why: Why::Empty { balance: "-0.1".parse().unwrap() },
            account: "default".into(),
            billing_url: String::new(),
            style: Rejection::Limit,
        }));
        let object = error.object(Some(Endpoint::Chat), "req_1");
        assert_eq!(object["error"]["code"], "insufficient_credits");
        assert_eq!(object["error"]["details"]["balance"], "-0.1");
        assert_eq!(
            error.object(Some(Endpoint::Messages), "req_1")["error"]["type"],
            "billing_error"
        );
        let reply = error.into_reply(Some(Endpoint::Chat), true, "req_1");
        assert_eq!(reply.status(), StatusCode::PAYMENT_REQUIRED);
        assert_eq!(reply.headers()["x-should-retry"], "false");
        assert!(!reply.headers().contains_key(RETRY_AFTER));
    }
}
