//! The audit of the books, while requests go on.

use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::accounts::is_id;
use super::error::ErrorBody;
use super::export::Pieces;
use super::extract::Params;
use super::{Error, State};
use crate::export::Format;
use crate::store::audit::{Event, audit};
use crate::store::{AccountId, StoreError};

/// Events that wait for a client that reads slowly.
const EVENTS_AHEAD: usize = 64;

/// What to audit.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// This account alone; all of them if absent.
    account: Option<String>,
}

/// Reads all books again and says what does not add up, one JSON object a line. The last line
/// is `done`, with everything that was looked at; without it nothing is known.
///
/// # Errors
///
/// No such account, or a bad query.
#[utoipa::path(
    get, path = "/admin/v1/ledger/verify", tag = "ledger", params(AuditQuery),
    responses(
        (status = 200, description = "What is found, as it is found", body = Event,
            content_type = "application/jsonl"),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn verify(
    Shared(state): Shared<State>,
    Params(query): Params<AuditQuery>,
) -> Result<Response, Error> {
    let account = match query.account {
        None => None,
        Some(id) => Some(existing(&state, id).await?),
    };
    let (events, mut told) = mpsc::channel(EVENTS_AHEAD);
    let (lines, body) = mpsc::channel(EVENTS_AHEAD);
    tokio::spawn(audit(state.store, account, events));
    tokio::spawn(async move {
        while let Some(event) = told.recv().await {
            let mut line = serde_json::to_vec(&event).expect("events are plain data");
            line.push(b'\n');
            // Nobody may be there to take it any more: the audit ends with its channel.
            if lines.send(Ok(line.into())).await.is_err() {
                break;
            }
        }
    });
    let headers = [(CONTENT_TYPE, Format::Jsonl.media_type())];
    Ok((headers, Body::new(Pieces(body))).into_response())
}

/// The account that a parameter names.
pub(super) async fn existing(state: &State, id: String) -> Result<AccountId, Error> {
    let has_shape = is_id(&id);
    let id = AccountId(id.into());
    if !has_shape {
        return Err(Error::AccountNotFound(id));
    }
    match state.store.account(&id).await {
        Ok(account) => Ok(account.id),
        Err(StoreError::NotFound(_)) => Err(Error::AccountNotFound(id)),
        Err(error) => Err(error.into()),
    }
}
