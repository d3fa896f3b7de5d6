//! `farebox store`: how the store does, its backup, and its way back.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;

use super::context::{Context, confirm};
use super::export::{cannot_write, create_private};
use super::failure::{Exit, Failure, shell_word};
use super::table::printable;
use super::verify::{self, Found};
use super::{Global, block_on};
use crate::billing::audit::{Tally, Violation};
use crate::store::embedded::OpenError;
use crate::store::embedded::copy::{self, CopyError};
use crate::store::redis::{self, copy as shared};
use crate::store::{ServerStatus, Store, StoreError, StoreStatus};
use crate::time;

/// What to do with the store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Show what it is and how it does, also if no Farebox runs
    Status,
    /// Copy everything into one file, while requests go on or not
    #[command(after_help = "Example:\n  farebox store backup farebox-backup.db")]
    Backup {
        /// The file, which must not exist
        file: PathBuf,
    },
    /// Put a backup in the place of the store, once its file and its books are checked; the
    /// store that was there is kept beside it. A Redis must be empty
    #[command(after_help = "Example:\n  farebox store restore farebox-backup.db")]
    Restore {
        /// The backup
        file: PathBuf,
    },
}

/// Where the store is.
pub enum Place {
    /// In this file.
    File(PathBuf),
    /// In a Redis.
    Shared(Box<redis::Options>),
}

impl Place {
    /// Where the first start left the admin key.
    pub fn admin_key(&self) -> PathBuf {
        match self {
            Self::File(store) => store.with_file_name("admin-key"),
            Self::Shared(options) => options.scratch.join("admin-key"),
        }
    }
}

impl StoreCommand {
    /// Runs it. The store of a Farebox that runs is asked for there; else it is opened.
    ///
    /// # Errors
    ///
    /// Why it was not done; then nothing was changed.
    pub fn run(
        self,
        context: &Result<Context, Failure>,
        global: &Global,
        store: Option<&Place>,
    ) -> Result<String, Failure> {
        match self {
            Self::Status => block_on(status(context, global.json, store))?,
            Self::Backup { file } => block_on(backup(context, store, &file))?,
            Self::Restore { file } => restore(&file, store, global.yes),
        }
    }
}

/// Asks the server; what it does not answer is looked for in the store.
async fn status(
    context: &Result<Context, Failure>,
    is_json: bool,
    store: Option<&Place>,
) -> Result<String, Failure> {
    let asked = match context {
        Ok(context) => context.client.get(&["store"], &[]).await,
        Err(failure) => Err(failure.clone()),
    };
    let status: StoreStatus = match (asked, store) {
        (Ok(answer), _) if is_json => return Ok(format!("{}\n", answer.text())),
        (Ok(answer), _) => answer.read()?,
        (Err(failure), Some(Place::File(store))) if is_away(&failure) && store.exists() => {
            copy::status(store).map_err(|error| refused(&error))?
        }
        (Err(failure), Some(Place::Shared(options))) if is_away(&failure) => {
            let store = open(options).await?;
            let status = store.status().await.map_err(unreachable)?;
            StoreStatus { durability: None, ..status }
        }
        (Err(failure), _) => return Err(failure),
    };
    if is_json {
        return Ok(format!("{}\n", serde_json::json!(status)));
    }
    Ok(text(&status))
}

async fn open(options: &redis::Options) -> Result<Arc<redis::Redis>, Failure> {
    let opened = redis::Redis::open(options.clone()).await;
    opened.map_err(|error| Failure::new(Exit::Unreachable, error.to_string()))
}

fn unreachable(error: StoreError) -> Failure {
    Failure::new(Exit::Unreachable, error.to_string())
}

/// No server, or no key for one: the file can still be there.
fn is_away(failure: &Failure) -> bool {
    matches!(failure.exit, Exit::Unreachable | Exit::Auth)
}

fn text(status: &StoreStatus) -> String {
    let StoreStatus { kind, location, bytes, log_bytes, accounts, entries, .. } = status;
    let at = |at: Option<_>| at.map_or_else(|| "none".to_owned(), time::rfc3339);
    let mut lines = vec![("store", format!("{kind}  {location}"))];
    if let Some(schema) = status.schema {
        lines.push(("schema", schema.to_string()));
        lines.push(("size", format!("{bytes} bytes, {log_bytes} of them in the log")));
    }
    if let Some(server) = &status.server {
        let ServerStatus { version, masters, replicas, eviction, keys, .. } = server;
        let limit = server.memory_limit_bytes;
        let limit = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("limit {limit}"));
        lines.push(("server", format!("{version}, {masters} masters, {replicas} replicas")));
        lines.push(("memory", format!("{bytes} bytes ({limit}, {eviction}), {keys} keys")));
        lines.push(("disk", format!("{log_bytes} bytes of append-only files")));
    }
    lines.push(("accounts", accounts.to_string()));
    lines.push(("entries", format!("{entries}, the oldest of {}", at(status.oldest_entry))));
    let before = at(status.trimmed_before);
    lines.push(("trimmed", format!("{} entries, before {before}", status.trimmed)));
    lines.push((
        "commits",
        match (&status.durability, status.pending) {
            (Some(durability), Some(pending)) => format!("{durability}, {pending} operations wait"),
            (Some(durability), None) => format!("{durability}, no journal"),
            (None, _) => "no Farebox was asked".to_owned(),
        },
    ));
    if let Some(server) = &status.server {
        lines.push(("may lose", server.may_lose.clone()));
    }
    if let Some(problem) = &status.problem {
        lines.push(("PROBLEM", problem.clone()));
    }
    let line = |(name, value): (&str, String)| format!("{name:<10}{}\n", printable(&value));
    lines.into_iter().map(line).collect()
}

async fn backup(
    context: &Result<Context, Failure>,
    store: Option<&Place>,
    file: &Path,
) -> Result<String, Failure> {
    if file.exists() {
        let message = format!("{} exists, and a backup is never written over", file.display());
        return Err(Failure::new(Exit::Refused, message));
    }
    let asked = match context {
        Ok(context) => context.client.download(&["store", "backup"], &[]).await,
        Err(failure) => Err(failure.clone()),
    };
    match (asked, store) {
        (Ok(mut download), _) => {
            let length: Option<u64> = download.header("content-length").parse().ok();
            let part = super::export::beside(file, ".part");
            let failed = |error| cannot_write(&part, &error);
            let mut out = create_private(&part).map_err(failed)?;
            let mut bytes = 0;
            let arrived = loop {
                match download.next().await {
                    Ok(Some(piece)) => {
                        bytes += piece.len() as u64;
                        if let Err(error) = out.write_all(&piece) {
                            break Err(failed(error));
                        }
                    }
                    Ok(None) => break out.sync_all().map_err(failed),
                    Err(failure) => break Err(failure),
                }
            };
            let whole = arrived.and_then(|()| match length {
                Some(length) if length == bytes => Ok(()),
                _ => Err(Failure::new(Exit::Unreachable, "the copy did not arrive whole")),
            });
            whole.inspect_err(|_| {
                // Half a copy is none.
                let _ = fs::remove_file(&part);
            })?;
            fs::rename(&part, file).map_err(failed)?;
        }
        (Err(failure), Some(Place::File(store))) if is_away(&failure) && store.exists() => {
            copy::backup(store, file).map_err(|error| refused(&error))?;
        }
        (Err(failure), Some(Place::Shared(options))) if is_away(&failure) => {
            let store = open(options).await?;
            let mut copied = store.backup().await.map_err(unreachable)?;
            let failed = |error| cannot_write(file, &error);
            let mut out = create_private(file).map_err(failed)?;
            std::io::copy(&mut copied, &mut out).and_then(|_| out.sync_all()).map_err(failed)?;
        }
        (Err(failure), _) => return Err(failure),
    }
    let (accounts, entries) = if shared::is_copy(file) {
        let holds = shared::check(file).map_err(|error| refused_by_shared(&error))?;
        (holds.accounts, holds.entries)
    } else {
        let status = copy::status(file).map_err(|error| refused(&error))?;
        (status.accounts, status.entries)
    };
    let file = printable(&file.display().to_string());
    Ok(format!("{file}  {accounts} accounts, {entries} entries\n"))
}

fn restore(file: &Path, store: Option<&Place>, is_sure: bool) -> Result<String, Failure> {
    match store {
        Some(Place::File(store)) => restore_file(file, store, is_sure),
        Some(Place::Shared(options)) => restore_shared(file, options, is_sure),
        None => {
            let message = "the configuration names no store, or cannot be read";
            Err(Failure::new(Exit::Config, message).next("farebox check"))
        }
    }
}

fn restore_shared(file: &Path, options: &redis::Options, is_sure: bool) -> Result<String, Failure> {
    let store = redis::without_secrets(&options.url);
    confirm(is_sure, &format!("Put {} into {store}, which must be empty?", file.display()))?;
    let restored = block_on(shared::restore(file, options.clone()))?;
    let tally = restored.map_err(|error| refused_by_shared(&error))?;
    let (accounts, entries) = (tally.accounts, tally.entries);
    Ok(printable(&format!("{store}  {accounts} accounts, {entries} entries, all of it adds up"))
        + "\n")
}

fn restore_file(file: &Path, store: &Path, is_sure: bool) -> Result<String, Failure> {
    let question = format!("Put {} in the place of the store {}?", file.display(), store.display());
    confirm(is_sure, &question)?;
    let restored = copy::restore(file, store, time::now()).map_err(|error| refused(&error))?;
    let kept = match &restored.replaced {
        Some(path) => format!("; what was there is {}", path.display()),
        None => String::new(),
    };
    let tally = &restored.tally;
    Ok(printable(&format!(
        "{}  {} accounts, {} entries, all of it adds up{kept}",
        store.display(),
        tally.accounts,
        tally.entries
    )) + "\n")
}

/// As [`refused`], for a Redis.
fn refused_by_shared(error: &shared::CopyError) -> Failure {
    use shared::CopyError;
    let failure = |exit| Failure::new(exit, error.to_string());
    match error {
        CopyError::Open(_) => failure(Exit::Unreachable),
        CopyError::Store(_) => failure(Exit::Unreachable),
        CopyError::NotEmpty(_) => failure(Exit::Refused),
        CopyError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            failure(Exit::NotFound)
        }
        CopyError::Io { .. } => failure(Exit::Failed),
        CopyError::Damaged { .. } => failure(Exit::Integrity),
        CopyError::Unsound { tally, violations, .. } => {
            unsound(&error.to_string(), tally, violations)
        }
    }
}

fn unsound(what: &str, tally: &Tally, violations: &[Violation]) -> Failure {
    let found = Found { tally: tally.clone(), violations: violations.to_vec() };
    let told = verify::verdict(&found).err().map(|told| told.message).unwrap_or_default();
    Failure::new(Exit::Integrity, format!("{what}: {told}"))
}

/// What a copy that was not made means for the exit code.
fn refused(error: &CopyError) -> Failure {
    let failure = |exit| Failure::new(exit, error.to_string());
    match error {
        CopyError::Open(OpenError::Held { .. }) => {
            failure(Exit::Refused).next("end the Farebox that serves it, then try again")
        }
        CopyError::Open(
            OpenError::Newer { .. }
            | OpenError::Older { .. }
            | OpenError::TooOld { .. }
            | OpenError::Foreign(_),
        ) => failure(Exit::Refused),
        CopyError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            failure(Exit::NotFound)
        }
        CopyError::Damaged { .. } => failure(Exit::Integrity),
        CopyError::Unsound { path, tally, violations } => {
            let path = shell_word(&path.display().to_string());
            unsound(&format!("{path} was not restored"), tally, violations)
        }
        CopyError::Open(_)
        | CopyError::Io { .. }
        | CopyError::Sqlite { .. }
        | CopyError::Unreadable { .. } => failure(Exit::Failed),
    }
}
