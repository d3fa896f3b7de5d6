//! What orchestrators and Prometheus ask.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Error, State};

/// The text format that Prometheus asks for first.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A sign of life.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`, or `degraded`: something waits in the journal, or the store behind it is away.
    status: &'static str,
    /// Operations in the journal that the store has not taken yet, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<u64>,
    /// Why nothing is admitted, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Health {
    const OK: Self = Self { status: "ok", pending: None, problem: None };
}

/// Whether the process runs.
#[utoipa::path(
    get, path = "/healthz", tag = "health", security(()),
    responses((status = 200, description = "It runs", body = Health))
)]
pub async fn live() -> Json<Health> {
    Json(Health::OK)
}

/// Whether a request could be served: a debit could be written now.
///
/// # Errors
///
/// The ledger cannot be written.
#[utoipa::path(
    get, path = "/readyz", tag = "health", security(()),
    responses(
        (status = 200, description = "A debit could be written now", body = Health),
        (status = 503, description = "It could not; with a journal as `degraded`, else an error",
            body = Health),
    )
)]
pub async fn ready(Shared(state): Shared<State>) -> Result<(StatusCode, Json<Health>), Error> {
    if state.closing.is_cancelled() {
        return Err(Error::Closing);
    }
    let ready = state.store.ready().await;
    let Some(backlog) = state.store.backlog() else {
        ready?;
        return Ok((StatusCode::OK, Json(Health::OK)));
    };
    let pending = Some(backlog.pending).filter(|count| *count > 0);
    Ok(match (ready, pending) {
        (Ok(()), None) => (StatusCode::OK, Json(Health::OK)),
        (Ok(()), Some(_)) => {
            (StatusCode::OK, Json(Health { status: "degraded", pending, problem: None }))
        }
        (Err(error), _) => {
            let problem = Some(error.to_string());
            let degraded = Health { status: "degraded", pending, problem };
            (StatusCode::SERVICE_UNAVAILABLE, Json(degraded))
        }
    })
}

/// Metrics in the text format of OpenMetrics.
#[utoipa::path(
    get, path = "/metrics", tag = "health", security(()),
    responses((status = 200, description = "All metrics", body = String,
        content_type = "application/openmetrics-text"))
)]
pub async fn metrics(Shared(state): Shared<State>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPENMETRICS)], (state.metrics_text)())
}
