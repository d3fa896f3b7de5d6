//! The store itself: how it does, a copy of it, and the trim of what is old.

use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use jiff::tz::TimeZone;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::error::ErrorBody;
use super::export::Pieces;
use super::extract::{Body as Document, Target, instant};
use super::{Error, State};
use crate::archive::{self, ArchiveError, Trimmed};
use crate::store::{StoreError, StoreStatus};

/// Bytes of a copy that are sent together, and how many of these wait.
const PIECE_BYTES: usize = 256 * 1024;
const PIECES_AHEAD: usize = 4;

/// What the store is and how it does.
///
/// # Errors
///
/// A store that cannot be read.
#[utoipa::path(
    get, path = "/admin/v1/store", tag = "store",
    responses(
        (status = 200, description = "The store", body = StoreStatus),
        (status = 503, description = "It cannot be read", body = ErrorBody),
    )
)]
pub async fn status(Shared(state): Shared<State>) -> Result<Json<StoreStatus>, Error> {
    Ok(Json(state.store.status().await?))
}

/// A copy of everything in one file, made while requests go on: an SQLite database as it was at
/// one instant, or for a Redis lines of JSON, of each account as it was at one.
///
/// # Errors
///
/// A store that cannot be read.
#[utoipa::path(
    get, path = "/admin/v1/store/backup", tag = "store",
    responses(
        (status = 200, description = "The copy", content(
            (Vec<u8> = "application/vnd.sqlite3"), (Vec<u8> = "application/x-ndjson"))),
        (status = 503, description = "It cannot be read", body = ErrorBody),
    )
)]
pub async fn backup(Shared(state): Shared<State>) -> Result<Response, Error> {
    let mut file = state.store.backup().await?;
    let internal = |error: std::io::Error| Error::Internal(error.to_string());
    let length = file.metadata().map_err(internal)?.len();
    let mut start = [0; 6];
    let is_database = file.read_exact(&mut start).is_ok() && start == *b"SQLite";
    file.rewind().map_err(internal)?;
    let (pieces, body) = mpsc::channel(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece);
            let piece = match read {
                Ok(0) => break,
                Ok(_) => Ok(Bytes::from(piece)),
                Err(error) => Err(StoreError::Unavailable(error.to_string())),
            };
            // Nobody may be there to take it any more.
            if pieces.blocking_send(piece).is_err() {
                break;
            }
        }
    });
    let (kind, name) = match is_database {
        true => ("application/vnd.sqlite3", "farebox.db"),
        false => ("application/x-ndjson", "farebox.jsonl"),
    };
    let headers = [
        (CONTENT_TYPE, kind.to_owned()),
        (CONTENT_LENGTH, length.to_string()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    Ok((headers, Body::new(Pieces(body))).into_response())
}

/// What to trim.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTrim {
    /// Everything before this RFC 3339 time or date (UTC), at least 31 days ago.
    #[schema(example = "2025-10-01")]
    before: String,
}

/// Writes the old entries and requests of an account to the archive, checks what was written,
/// and removes them; a checkpoint stands for them. Sums of usage stay. What is trimmed cannot be
/// refunded or reversed by its id any more. `null` if there is nothing as old. Trimming twice is
/// trimming once.
///
/// # Errors
///
/// No such account, a time that is too young, an archive that cannot be written, or another
/// Farebox that trims the account now.
#[utoipa::path(
    post, path = "/admin/v1/accounts/{account}/ledger/trim", tag = "ledger",
    request_body = NewTrim,
    params(("account" = String, Path, description = "Whose entries")),
    responses(
        (status = 200, description = "What was trimmed", body = Option<Trimmed>),
        (status = 400, description = "Not a valid time", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
        (status = 409, description = "The archive cannot be written, or another Farebox trims it",
            body = ErrorBody),
    )
)]
pub async fn trim(
    Shared(state): Shared<State>,
    target: Target,
    Document(new): Document<NewTrim>,
) -> Result<Json<Option<Trimmed>>, Error> {
    let invalid =
        |problem: &str| Error::InvalidParameter { param: "before", problem: problem.to_owned() };
    let before = instant("before", Some(&new.before), &TimeZone::UTC)?;
    let before = before.ok_or_else(|| invalid("is missing"))?;
    let folder: Arc<Path> = state.archive.clone();
    // It goes on if the client leaves: a trim is not left half done.
    let trimming = tokio::spawn(async move {
        archive::trim(&state.store, &target.account.id, before, &folder).await
    });
    let trimmed = trimming.await.map_err(|error| Error::Internal(error.to_string()))?;
    trimmed.map(Json).map_err(|error| match error {
        ArchiveError::TooYoung => invalid("must be at least 31 days ago"),
        ArchiveError::Store(error) => error.into(),
        ArchiveError::Io { .. } | ArchiveError::Bad { .. } | ArchiveError::Busy => {
            Error::Conflict(error.to_string())
        }
    })
}
