//! Retention: what is old is written to files, and only then trimmed from the store.
//!
//! For each account a folder, in it for each trim the ledger and the requests as JSON lines
//! with their metadata (`export`). A file is never written over, and it is read again and
//! checked before anything is removed. Farebox that share a store take turns at an account; if
//! one dies at it, what it has written and not removed is written again by the next.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::export::check::{CheckError, check, meta_path};
use crate::export::{Export, Format, Meta, Reading, Sum, What};
use crate::store::{
    AccountId, EntryFilter, Millis, Page, Put, Scope, Store, StoreError, UsageFilter,
};
use crate::time;

/// What is younger is never trimmed: the charges of a month are those that are disputed.
pub const YOUNGEST: Duration = Duration::from_secs(31 * 86_400);
/// How often the store is looked at for what has become old.
const EVERY: Duration = Duration::from_secs(6 * 3600);
/// How long to wait when that failed.
const AGAIN: Duration = Duration::from_secs(600);
/// For how long a turn at an account is taken; it is taken on while the work goes on.
const TURN: Duration = Duration::from_secs(10);
const DAY_MS: Millis = 24 * 3600 * 1000;
const ACCOUNTS: u32 = 500;

/// Why nothing was trimmed; what was written stays.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Too young.
    #[error("what is younger than 31 days is not trimmed")]
    TooYoung,
    /// It is another's turn.
    #[error("another Farebox trims this account now: try again (in {TURN:?}, should it have died)")]
    Busy,
    /// The files cannot be written.
    #[error("the archive {path} cannot be written ({source}): nothing was trimmed")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was written is not what was read.
    #[error("{path} is not what was written ({why}): nothing was trimmed")]
    Bad {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The store cannot be read or trimmed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<CheckError> for ArchiveError {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Io { path, source } => Self::Io { path, source },
            CheckError::Meta { path, source } => Self::Bad { path, why: source.to_string() },
        }
    }
}

/// What was trimmed of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trimmed {
    /// Whose.
    pub account: String,
    /// Everything before it.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub before: Millis,
    /// Entries that are only in the archive now.
    pub entries: u64,
    /// Requests that are only in the archive now.
    pub requests: u64,
    /// Charges that can no longer be given back by the id of their request.
    pub charges: Sum,
    /// Payments that can no longer be taken back by their id.
    pub payments: Sum,
    /// Where they are.
    pub files: Vec<String>,
}

/// Writes what is older than an instant to files in a folder, then trims it. None if there is
/// nothing as old.
///
/// # Errors
///
/// [`ArchiveError`]; then nothing was trimmed, unless the store failed meanwhile.
pub async fn trim(
    store: &Arc<dyn Store>,
    account: &AccountId,
    before: Millis,
    folder: &Path,
) -> Result<Option<Trimmed>, ArchiveError> {
    let now = time::now();
    if before > now.saturating_sub(millis(YOUNGEST)) {
        return Err(ArchiveError::TooYoung);
    }
    if !has_older(store.as_ref(), account, before).await? {
        return Ok(None);
    }
    in_turn(store.as_ref(), account, export_and_trim(store, account, before, now, folder)).await
}

/// Does the work while no other Farebox does. Two at a time would do no harm: one of them
/// finds that its file lacks what the other has just removed, or removes what both have.
async fn in_turn<T>(
    store: &dyn Store,
    account: &AccountId,
    work: impl Future<Output = Result<T, ArchiveError>>,
) -> Result<T, ArchiveError> {
    let scope = Scope::Account(account.clone());
    let put = |is_mine: bool, replaces| {
        let put = Put {
            name: "trim".into(),
            body: is_mine.then(|| "{}".into()),
            replaces,
            expires_at: Some(time::now().saturating_add(millis(TURN))),
        };
        store.put_document(&scope, put)
    };
    let mut version = match put(true, None).await {
        Err(StoreError::Conflict(_)) => return Err(ArchiveError::Busy),
        taken => taken?,
    };
    let mut work = std::pin::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = tokio::time::sleep(TURN / 3) => {
                // What fails here fails the work too, or does not matter.
                version = put(true, Some(version)).await.unwrap_or(version);
            }
        }
    };
    // Otherwise the turn ends by itself.
    let _ = put(false, Some(version)).await;
    done
}

async fn export_and_trim(
    store: &Arc<dyn Store>,
    account: &AccountId,
    before: Millis,
    now: Millis,
    folder: &Path,
) -> Result<Option<Trimmed>, ArchiveError> {
    let folder = folder.join(&*account.0);
    let stamp = time::rfc3339(now).replace([':', '.'], "");
    let ledger = write(store, export(account, What::Ledger(None), before), &folder, &stamp).await?;
    let usage = What::Usage(UsageFilter::default());
    let usage = write(store, export(account, usage, before), &folder, &stamp).await?;
    store.trim(account, before).await?;
    let (ledger_file, ledger) = ledger;
    let (usage_file, usage) = usage;
    let sum = |kind: &str| ledger.sums.get(kind).copied().unwrap_or_default();
    let trimmed = Trimmed {
        account: account.to_string(),
        before,
        entries: ledger.total.count,
        requests: usage.total.count,
        charges: sum("debit_ai"),
        payments: sum("topup"),
        files: [ledger_file, usage_file].map(|path| path.display().to_string()).to_vec(),
    };
    tracing::info!(
        account = %account, entries = trimmed.entries, requests = trimmed.requests,
        "old entries were archived and trimmed"
    );
    Ok(Some(trimmed))
}

async fn has_older(
    store: &dyn Store,
    account: &AccountId,
    before: Millis,
) -> Result<bool, StoreError> {
    let one = || Page { cursor: None, limit: 1 };
    let entries = EntryFilter { until: Some(before), ..EntryFilter::default() };
    let usage = UsageFilter { until: Some(before), ..UsageFilter::default() };
    Ok(!store.entries_oldest_first(account, entries, one()).await?.data.is_empty()
        || !store.usage_oldest_first(account, usage, one()).await?.data.is_empty())
}

fn export(account: &AccountId, what: What, until: Millis) -> Export {
    Export {
        account: account.clone(),
        what,
        since: None,
        until,
        format: Format::Jsonl,
        zone: TimeZone::UTC,
        zone_name: "UTC".to_owned(),
        bom: false,
    }
}

/// Writes a file and its metadata, makes both durable, and reads them again.
async fn write(
    store: &Arc<dyn Store>,
    export: Export,
    folder: &Path,
    stamp: &str,
) -> Result<(PathBuf, Meta), ArchiveError> {
    let path = folder.join(format!("{stamp}_{}", export.file_name()));
    let io = |source| ArchiveError::Io { path: path.clone(), source };
    create_folder(folder).map_err(io)?;
    let mut file = io::BufWriter::new(create_new(&path).map_err(io)?);
    let mut reading = Reading::new(store.clone(), export);
    while let Some(bytes) = reading.next().await? {
        file.write_all(&bytes).map_err(io)?;
    }
    file.into_inner().map_err(|error| io(error.into_error()))?.sync_all().map_err(io)?;
    let meta = reading.meta().await?;
    let text = serde_json::to_vec_pretty(&meta).expect("metadata are plain data");
    let mut beside = create_new(&meta_path(&path)).map_err(io)?;
    beside.write_all(&text).and_then(|()| beside.sync_all()).map_err(io)?;
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;

    let again = path.clone();
    let checked = tokio::task::spawn_blocking(move || check(&again)).await;
    let (found, problems) = checked.map_err(|error| io(io::Error::other(error)))??;
    match problems.into_iter().next() {
        None if found == meta => Ok((path, meta)),
        None => Err(ArchiveError::Bad { path, why: "its metadata differ".to_owned() }),
        Some(why) => Err(ArchiveError::Bad { path, why }),
    }
}

/// With its parents, for the owner alone: it says who spent what.
fn create_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

fn create_new(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).create_new(true).open(path)
}

fn millis(length: Duration) -> Millis {
    Millis::try_from(length.as_millis()).unwrap_or(Millis::MAX)
}

/// Trims, for as long as it is polled, what has become older than `retention`.
pub async fn keep_trimmed(store: Arc<dyn Store>, retention: Duration, folder: PathBuf) {
    loop {
        // By whole days, so that a file holds a day or more and not a few minutes.
        let before = (time::now() - millis(retention)).div_euclid(DAY_MS) * DAY_MS;
        match trim_all(&store, before, &folder).await {
            Ok(true) => tokio::time::sleep(EVERY).await,
            Ok(false) => tokio::time::sleep(TURN).await,
            Err(error) => {
                tracing::error!("old entries are kept: {error}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Whether all accounts were; else others are at some of them.
async fn trim_all(
    store: &Arc<dyn Store>,
    before: Millis,
    folder: &Path,
) -> Result<bool, ArchiveError> {
    let (mut cursor, mut is_all) = (None, true);
    loop {
        let accounts = store.accounts(Page { cursor, limit: ACCOUNTS }).await?;
        for account in &accounts.data {
            match trim(store, &account.id, before, folder).await {
                Err(ArchiveError::Busy) => is_all = false,
                trimmed => drop(trimmed?),
            }
        }
        match accounts.next {
            Some(next) => cursor = Some(next),
            None => return Ok(is_all),
        }
    }
}
