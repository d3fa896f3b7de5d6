//! Downloads: the ledger or the requests of an account as a file, and its metadata.
//!
//! The bytes are made in [`crate::export`]. Anyone who serves such a download takes
//! [`download`], so that all are the same.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Json;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use jiff::tz::TimeZone;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::error::ErrorBody;
use super::extract::{Params, Target, instant};
use super::{Error, State};
use crate::billing::ledger::Kind;
use crate::export::{Export, Format, Meta, Reading, What};
use crate::store::{Outcome, Source, Store, StoreError, UsageFilter};
use crate::time;

/// Says until when a download goes, so that its metadata can be asked for.
pub const UNTIL_HEADER: &str = "x-farebox-until";
/// Pages that wait for a client that reads slowly.
const PAGES_AHEAD: usize = 2;

/// Which entries, and how they are written.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LedgerExportQuery {
    /// `csv` (as if absent) or `jsonl`.
    #[serde(default)]
    format: Format,
    /// Not before this RFC 3339 time or date (of the zone).
    since: Option<String>,
    /// Before this RFC 3339 time or date (of the zone); now if absent or later.
    until: Option<String>,
    /// The time zone of dates and of the column `time`; UTC if absent.
    tz: Option<String>,
    /// Begins CSV with a byte order mark, for spreadsheets.
    #[serde(default)]
    bom: bool,
    /// Of this kind.
    kind: Option<Kind>,
}

/// Which requests, and how they are written.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageExportQuery {
    /// `csv` (as if absent) or `jsonl`.
    #[serde(default)]
    format: Format,
    /// Not before this RFC 3339 time or date (of the zone).
    since: Option<String>,
    /// Before this RFC 3339 time or date (of the zone); now if absent or later.
    until: Option<String>,
    /// The time zone of dates and of the column `time`; UTC if absent.
    tz: Option<String>,
    /// Begins CSV with a byte order mark, for spreadsheets.
    #[serde(default)]
    bom: bool,
    /// Exactly this model.
    model: Option<String>,
    /// Exactly this key's id.
    key: Option<String>,
    /// Exactly this tag.
    tag: Option<String>,
    /// Exactly this upstream, by its name.
    upstream: Option<String>,
    /// Exactly this origin: `user`, `heartbeat` or `cron`.
    origin: Option<String>,
    /// Exactly this source of the counts.
    source: Option<Source>,
    /// Exactly this outcome.
    outcome: Option<Outcome>,
}

impl LedgerExportQuery {
    fn export(self, target: &Target) -> Result<Export, Error> {
        let Self { format, since, until, tz, bom, kind } = self;
        export(target, What::Ledger(kind), format, (since, until), tz, bom)
    }
}

impl UsageExportQuery {
    fn export(self, target: &Target) -> Result<Export, Error> {
        let filter = UsageFilter {
            since: None,
            until: None,
            model: self.model,
            key: self.key,
            tag: self.tag,
            upstream: self.upstream,
            origin: self.origin,
            source: self.source,
            outcome: self.outcome,
        };
        let times = (self.since, self.until);
        export(target, What::Usage(filter), self.format, times, self.tz, self.bom)
    }
}

fn export(
    target: &Target,
    what: What,
    format: Format,
    (since, until): (Option<String>, Option<String>),
    tz: Option<String>,
    bom: bool,
) -> Result<Export, Error> {
    let zone_name = tz.unwrap_or_else(|| "UTC".to_owned());
    let zone = TimeZone::get(&zone_name).map_err(|_| Error::InvalidParameter {
        param: "tz",
        problem: "must be a time zone such as Europe/Berlin".to_owned(),
    })?;
    let since = instant("since", since.as_deref(), &zone)?;
    // What comes now is left to the next export: a file is the same whenever it is made.
    let now = time::now();
    let until = instant("until", until.as_deref(), &zone)?.map_or(now, |until| until.min(now));
    if since.is_some_and(|since| since > until) {
        let problem = "must not be after `until` or now".to_owned();
        return Err(Error::InvalidParameter { param: "since", problem });
    }
    let account = target.account.id.clone();
    Ok(Export { account, what, since, until, format, zone, zone_name, bom })
}

/// The ledger of an account as a file, oldest entry first, each with the balance after it. The
/// header `x-farebox-until` says how far it goes: with it as `until` the metadata are those of
/// these bytes.
///
/// # Errors
///
/// No such account, or a bad query. A download that breaks off is not whole.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/ledger/export", tag = "ledger",
    params(("account" = String, Path, description = "Whose entries"), LedgerExportQuery),
    responses(
        (status = 200, description = "The file", content_type = "text/csv", body = String),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn ledger(
    Shared(state): Shared<State>,
    target: Target,
    Params(query): Params<LedgerExportQuery>,
) -> Result<Response, Error> {
    Ok(download(state.store, query.export(&target)?))
}

/// What is in the file that the same query downloads: balances, counts, sums, SHA-256.
///
/// # Errors
///
/// No such account, or a bad query.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/ledger/export/meta", tag = "ledger",
    params(("account" = String, Path, description = "Whose entries"), LedgerExportQuery),
    responses(
        (status = 200, description = "The metadata", body = Meta),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn ledger_meta(
    Shared(state): Shared<State>,
    target: Target,
    Params(query): Params<LedgerExportQuery>,
) -> Result<Json<Meta>, Error> {
    Ok(Json(Reading::new(state.store, query.export(&target)?).meta().await?))
}

/// The requests of an account as a file, oldest first. `x-farebox-until` as for the ledger.
///
/// # Errors
///
/// No such account, or a bad query. A download that breaks off is not whole.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/usage/export", tag = "usage",
    params(("account" = String, Path, description = "Whose requests"), UsageExportQuery),
    responses(
        (status = 200, description = "The file", content_type = "text/csv", body = String),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn usage(
    Shared(state): Shared<State>,
    target: Target,
    Params(query): Params<UsageExportQuery>,
) -> Result<Response, Error> {
    Ok(download(state.store, query.export(&target)?))
}

/// What is in the file that the same query downloads: counts, sums, SHA-256.
///
/// # Errors
///
/// No such account, or a bad query.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/usage/export/meta", tag = "usage",
    params(("account" = String, Path, description = "Whose requests"), UsageExportQuery),
    responses(
        (status = 200, description = "The metadata", body = Meta),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn usage_meta(
    Shared(state): Shared<State>,
    target: Target,
    Params(query): Params<UsageExportQuery>,
) -> Result<Json<Meta>, Error> {
    Ok(Json(Reading::new(state.store, query.export(&target)?).meta().await?))
}

/// The reply that is an export: streamed, as a file with its name.
pub fn download(store: Arc<dyn Store>, export: Export) -> Response {
    let headers = [
        (CONTENT_TYPE.as_str(), export.format.media_type().to_owned()),
        (CONTENT_DISPOSITION.as_str(), format!("attachment; filename=\"{}\"", export.file_name())),
        (UNTIL_HEADER, time::rfc3339(export.until)),
    ];
    let (pages, body) = mpsc::channel(PAGES_AHEAD);
    let mut reading = Reading::new(store, export);
    tokio::spawn(async move {
        while let Some(page) = reading.next().await.transpose() {
            let failed = page.as_ref().err().cloned();
            if let Some(error) = &failed {
                tracing::error!(%error, "an export broke off");
            }
            // Nobody may be there to take it any more.
            if pages.send(page).await.is_err() || failed.is_some() {
                break;
            }
        }
    });
    (headers, Body::new(Pieces(body))).into_response()
}

/// A body that comes piece by piece. An error in it ends the connection, so that no client
/// takes a part for the whole.
pub(super) struct Pieces(pub mpsc::Receiver<Result<Bytes, StoreError>>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = StoreError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StoreError>>> {
        self.0.poll_recv(cx).map(|page| page.map(|page| page.map(Frame::data)))
    }
}
