//! Copies of the file: backups of a store that serves, and their way back.
//!
//! A copy is made by `VACUUM INTO`: one consistent snapshot, compact, in one file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::file::{self, Found, OpenError};
use super::{Embedded, Options, debits, migrate};
use crate::billing::audit::{Tally, Violation};
use crate::store::audit::audit_all;
use crate::store::{Store, StoreStatus};
use crate::time::Millis;

/// Why a store was not replaced, or not copied. The file that was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the two stores cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite says no.
    #[error("{path}: {source}")]
    Sqlite {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The file is damaged.
    #[error("{path} is damaged: {first}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// The first thing that SQLite found.
        first: String,
    },
    /// It can be read, and its books do not add up.
    #[error("the books in {path} do not add up")]
    Unsound {
        /// Which.
        path: PathBuf,
        /// What was looked at.
        tally: Box<Tally>,
        /// What does not add up.
        violations: Vec<Violation>,
    },
    /// The audit could not be ended.
    #[error("the books in {path} cannot be read: {why}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// What was looked at in it.
    pub tally: Tally,
    /// Where the store that was there before is now, if there was one.
    pub replaced: Option<PathBuf>,
}

/// Writes a copy of a store to a file that must not exist, for its owner alone. Blocks.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), CopyError> {
    let io = |source| CopyError::Io { path: to.into(), source };
    let sqlite = |source| CopyError::Sqlite { path: from.into(), source };
    let is_new = file::create_new(to).map_err(io)?;
    drop(is_new);
    let copied = file::open_to_read(from)
        .and_then(|db| db.execute("VACUUM INTO ?", [to.to_string_lossy()]))
        .map_err(sqlite)
        .and_then(|_| File::open(to).and_then(|file| file.sync_all()).map_err(io));
    copied.inspect_err(|_| {
        // Half a copy is none.
        let _ = fs::remove_file(to);
    })
}

/// A copy without a name: its place on the disk is free again once it is closed. Blocks.
pub(super) fn unnamed(store: &Path) -> Result<File, CopyError> {
    let to = beside(store, &format!(".copy-{}", ulid::Ulid::generate()));
    copy(store, &to)?;
    let io = |source| CopyError::Io { path: to.clone(), source };
    let file = File::open(&to).map_err(io)?;
    fs::remove_file(&to).map_err(io)?;
    Ok(file)
}

/// Copies a store that may be in use or not. Blocks.
///
/// # Errors
///
/// [`CopyError`], if the file is no store of ours or cannot be copied.
pub fn backup(store: &Path, to: &Path) -> Result<(), CopyError> {
    check_kind(store)?;
    // What a process that was killed left in the log of debits belongs to it. A store that is
    // in use books what is there itself.
    if debits::are_left(store) {
        match Embedded::open(store, Options::default()) {
            Ok(store) => drop(store),
            Err(OpenError::Held { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    copy(store, to)
}

/// Puts a backup in the place of a store that no process has open. It is checked before: its
/// file, its version, its books. The store that was there is kept beside it. Blocks.
///
/// # Errors
///
/// [`CopyError`]; nothing was changed then.
pub fn restore(backup: &Path, store: &Path, now: Millis) -> Result<Restored, CopyError> {
    let lock = file::lock(store)?;
    match check_kind(backup) {
        Err(CopyError::Open(OpenError::Older { .. })) => {}
        other => other?,
    }
    let fresh = beside(store, ".restoring");
    remove_all(&fresh);
    let tally = prepare(backup, &fresh).inspect_err(|_| remove_all(&fresh))?;
    let io = |source| CopyError::Io { path: store.into(), source };
    let stamp = crate::time::rfc3339(now).replace([':', '.'], "");
    let kept = beside(store, &format!(".replaced-{stamp}"));
    let replaced = store.exists().then_some(kept);
    if let Some(kept) = &replaced {
        // Its logs go with it; without them the last debits would be missing.
        for end in ["-wal", "-shm"].into_iter().chain(debits::ENDS) {
            let log = beside(store, end);
            if log.exists() {
                fs::rename(&log, beside(kept, end)).map_err(io)?;
            }
        }
        fs::rename(store, kept).map_err(io)?;
    }
    fs::rename(&fresh, store).map_err(io)?;
    remove_all(&fresh);
    file::sync_directory(store).map_err(io)?;
    drop(lock);
    Ok(Restored { tally, replaced })
}

/// A checked copy of a backup.
fn prepare(backup: &Path, fresh: &Path) -> Result<Tally, CopyError> {
    copy(backup, fresh)?;
    let sqlite = |source| CopyError::Sqlite { path: backup.into(), source };
    let mut db = Connection::open(fresh).map_err(sqlite)?;
    let first: String =
        db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
    if first != "ok" {
        return Err(CopyError::Damaged { path: backup.into(), first });
    }
    // The backup itself stays as it is, so no further copy is kept.
    if let Found::Schema(found @ migrate::OLDEST..file::SCHEMA) =
        file::inspect(&db).map_err(sqlite)?
    {
        migrate::apply(&mut db, found).map_err(sqlite)?;
    }
    drop(db);
    let unreadable = |why: &dyn std::fmt::Display| CopyError::Unreadable {
        path: backup.into(),
        why: why.to_string(),
    };
    let store = Embedded::open(fresh, Options::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| unreadable(&error))?;
    runtime.block_on(async {
        let audited = audit_all(store.clone()).await;
        store.close().await.map_err(|error| unreadable(&error))?;
        let (tally, violations) = audited.map_err(|error| unreadable(&error))?;
        if tally.problems() > 0 {
            let tally = Box::new(tally);
            return Err(CopyError::Unsound { path: backup.into(), tally, violations });
        }
        Ok(tally)
    })
}

/// Refuses what is no store of ours, or a newer one's.
fn check_kind(path: &Path) -> Result<(), CopyError> {
    let sqlite = |source| CopyError::Open(OpenError::Sqlite { path: path.into(), source });
    let io = |source| CopyError::Io { path: path.into(), source };
    fs::metadata(path).map_err(io)?;
    let found = file::open_to_read(path).and_then(|db| file::inspect(&db)).map_err(sqlite)?;
    match found {
        Found::Schema(found) if found > file::SCHEMA => {
            Err(OpenError::Newer { path: path.into(), found }.into())
        }
        Found::Schema(found) if found < migrate::OLDEST => {
            Err(OpenError::TooOld { path: path.into(), found }.into())
        }
        Found::Schema(found) if found < file::SCHEMA => {
            Err(OpenError::Older { path: path.into(), found }.into())
        }
        Found::Schema(_) => Ok(()),
        Found::Empty | Found::Foreign => Err(OpenError::Foreign(path.into()).into()),
    }
}

pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// A file with all that SQLite and we put beside it; what is not there is no matter.
fn remove_all(path: &Path) {
    for end in ["", "-wal", "-shm", "-journal", ".lock"].into_iter().chain(debits::ENDS) {
        let _ = fs::remove_file(beside(path, end));
    }
}

/// What is in the file, read without the process that has it. Blocks.
///
/// # Errors
///
/// [`CopyError`], if it is no store of ours or cannot be read.
pub fn status(path: &Path) -> Result<StoreStatus, CopyError> {
    check_kind(path)?;
    let sqlite = |source| CopyError::Sqlite { path: path.into(), source };
    let db = file::open_to_read(path).map_err(sqlite)?;
    read_status(&db, path).map_err(sqlite)
}

pub(super) fn read_status(db: &Connection, path: &Path) -> rusqlite::Result<StoreStatus> {
    let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
    let size = |end: &str| fs::metadata(beside(path, end)).map_or(0, |file| file.len());
    let counted = |n: i64| u64::try_from(n).unwrap_or_default();
    // By accounts, because entries are too many to be counted; they have no gaps.
    let schema = number("PRAGMA user_version")?;
    let written = number("SELECT coalesce(sum(seq), 0) FROM account")?;
    let trimmed = number("SELECT coalesce(sum(seq), 0) FROM checkpoint")?;
    let trimmed_before =
        db.query_row("SELECT max(before) FROM checkpoint", [], |row| row.get(0))?;
    let oldest_entry = db.query_row(
        "SELECT min((SELECT min(ts) FROM record WHERE record.account = account.n)) FROM account",
        [],
        |row| row.get(0),
    )?;
    Ok(StoreStatus {
        kind: "sqlite".to_owned(),
        location: path.display().to_string(),
        schema: Some(schema),
        bytes: size("") + size("-wal"),
        log_bytes: size("-wal"),
        accounts: counted(number("SELECT count(*) FROM account")?),
        entries: counted(written - trimmed),
        trimmed: counted(trimmed),
        trimmed_before,
        pending: None,
        oldest_entry,
        durability: None,
        problem: None,
        server: None,
    })
}
