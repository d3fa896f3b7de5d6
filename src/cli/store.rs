//! `farebox store`: how the store does, its backup, and its way back.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::context::{Context, confirm};
use super::export::{cannot_write, create_private};
use super::failure::{Exit, Failure, shell_word};
use super::table::printable;
use super::verify::{self, Found};
use super::{Global, block_on};
use crate::store::StoreStatus;
use crate::store::embedded::OpenError;
use crate::store::embedded::copy::{self, CopyError};
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
    /// store that was there is kept beside it
    #[command(after_help = "Example:\n  farebox store restore farebox-backup.db")]
    Restore {
        /// The backup
        file: PathBuf,
    },
}

impl StoreCommand {
    /// Runs it. The store of a Farebox that runs is asked for there; else the file is opened.
    ///
    /// # Errors
    ///
    /// Why it was not done; then nothing was changed.
    pub fn run(
        self,
        context: &Result<Context, Failure>,
        global: &Global,
        store: Option<&Path>,
    ) -> Result<String, Failure> {
        match self {
            Self::Status => block_on(status(context, global.json, store))?,
            Self::Backup { file } => block_on(backup(context, store, &file))?,
            Self::Restore { file } => restore(&file, store, global.yes),
        }
    }
}

/// Asks the server; what it does not answer is looked for in the file.
async fn status(
    context: &Result<Context, Failure>,
    is_json: bool,
    store: Option<&Path>,
) -> Result<String, Failure> {
    let asked = match context {
        Ok(context) => context.client.get(&["store"], &[]).await,
        Err(failure) => Err(failure.clone()),
    };
    let status: StoreStatus = match (asked, store) {
        (Ok(answer), _) if is_json => return Ok(format!("{}\n", answer.text())),
        (Ok(answer), _) => answer.read()?,
        (Err(failure), Some(store)) if is_away(&failure) && store.exists() => {
            copy::status(store).map_err(|error| refused(&error))?
        }
        (Err(failure), _) => return Err(failure),
    };
    if is_json {
        return Ok(format!("{}\n", serde_json::json!(status)));
    }
    Ok(text(&status))
}

/// No server, or no key for one: the file can still be there.
fn is_away(failure: &Failure) -> bool {
    matches!(failure.exit, Exit::Unreachable | Exit::Auth)
}

fn text(status: &StoreStatus) -> String {
    let StoreStatus { kind, location, schema, bytes, log_bytes, accounts, entries, .. } = status;
    let at = |at: Option<_>| at.map_or_else(|| "none".to_owned(), time::rfc3339);
    let mut lines = vec![
        ("store", format!("{kind}  {location}")),
        ("schema", schema.to_string()),
        ("size", format!("{bytes} bytes, {log_bytes} of them in the log")),
        ("accounts", accounts.to_string()),
        ("entries", format!("{entries}, the oldest of {}", at(status.oldest_entry))),
        ("trimmed", format!("{} entries, before {}", status.trimmed, at(status.trimmed_before))),
    ];
    match (&status.durability, status.pending) {
        (Some(durability), Some(pending)) => {
            lines.push(("commits", format!("{durability}, {pending} operations wait")));
        }
        _ => lines.push(("commits", "no Farebox was asked".to_owned())),
    }
    if let Some(problem) = &status.problem {
        lines.push(("PROBLEM", problem.clone()));
    }
    let line = |(name, value): (&str, String)| format!("{name:<10}{}\n", printable(&value));
    lines.into_iter().map(line).collect()
}

async fn backup(
    context: &Result<Context, Failure>,
    store: Option<&Path>,
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
        (Err(failure), Some(store)) if is_away(&failure) && store.exists() => {
            copy::backup(store, file).map_err(|error| refused(&error))?;
        }
        (Err(failure), _) => return Err(failure),
    }
    let status = copy::status(file).map_err(|error| refused(&error))?;
    let file = printable(&file.display().to_string());
    Ok(format!("{file}  {} accounts, {} entries\n", status.accounts, status.entries))
}

fn restore(file: &Path, store: Option<&Path>, is_sure: bool) -> Result<String, Failure> {
    let Some(store) = store else {
        let message = "the configuration names no store in a file; another kind is restored by \
            its own means";
        return Err(Failure::new(Exit::Config, message));
    };
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

/// What a copy that was not made means for the exit code.
fn refused(error: &CopyError) -> Failure {
    let failure = |exit| Failure::new(exit, error.to_string());
    match error {
        CopyError::Open(OpenError::Held { .. }) => {
            failure(Exit::Refused).next("end the Farebox that serves it, then try again")
        }
        CopyError::Open(
            OpenError::Newer { .. } | OpenError::Older { .. } | OpenError::Foreign(_),
        ) => failure(Exit::Refused),
        CopyError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            failure(Exit::NotFound)
        }
        CopyError::Damaged { .. } => failure(Exit::Integrity),
        CopyError::Unsound { path, tally, violations } => {
            let found = Found { tally: (**tally).clone(), violations: violations.clone() };
            let told = verify::verdict(&found).err().map(|told| told.message).unwrap_or_default();
            let path = shell_word(&path.display().to_string());
            Failure::new(Exit::Integrity, format!("{path} was not restored: {told}"))
        }
        CopyError::Open(_)
        | CopyError::Io { .. }
        | CopyError::Sqlite { .. }
        | CopyError::Unreadable { .. } => failure(Exit::Failed),
    }
}
