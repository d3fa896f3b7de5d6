//! The file: who may open it, and what must hold before it is used.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::Synchronous;
use super::migrate::{self, OLDEST};

/// The version that this program writes.
pub(super) const SCHEMA: i64 = 7;
/// "Fbx1" in `PRAGMA application_id`: tells our files from other SQLite files.
const APPLICATION: i64 = 0x4662_7831;
/// Statements kept prepared; more than there are.
const STATEMENTS: usize = 64;
/// How long a connection waits for another program, such as `sqlite3`, that has the lock.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the store {path} is in use by another process{}: end that one, or set FAREBOX_STORE to \
         another file",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// Which process, if it said so.
        pid: Option<u32>,
    },
    /// A newer program wrote it.
    #[error(
        "the store {path} has schema {found}, written by a newer version of farebox; \
         this version knows schema {SCHEMA}: run that version again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// Written before there was a release.
    #[error(
        "the store {path} has schema {found}, from before the first release, which nothing \
         reads: move it away, or set FAREBOX_STORE to another file"
    )]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// An older program wrote it, and no server has had it since.
    #[error(
        "the store {path} has schema {found}, of an older version: start farebox on it, which \
         brings it up to schema {SCHEMA} and keeps a copy"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// What was written to the log of debits before its end cannot be read.
    #[error(
        "the log of debits {path} is damaged at byte {at}: debits may be lost with it. Put back a \
         copy of the file, or move it away to start without what it holds"
    )]
    DamagedDebits {
        /// The file.
        path: PathBuf,
        /// Where.
        at: usize,
    },
    /// A newer program wrote the log of debits.
    #[error(
        "the log of debits {0} was written by a newer version of farebox: run that version again"
    )]
    NewerDebits(PathBuf),
    /// A database, but not ours.
    #[error("{0} is an SQLite database of another program: set FAREBOX_STORE to another file")]
    Foreign(PathBuf),
    /// The file or its directory cannot be made or read.
    #[error(
        "cannot open the store {path} ({source}): check that its folder can be written, or set \
         FAREBOX_STORE to another file"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite says no.
    #[error("cannot open the store {path}: {source}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

/// Holds the file against other processes until dropped.
pub(super) struct Lock(#[expect(dead_code, reason = "the lock is the open file")] File);

/// Makes what is missing, takes the lock, checks the version and opens the one connection that
/// writes.
pub(super) fn open(path: &Path, synchronous: Synchronous) -> Result<(Lock, Connection), OpenError> {
    let io = |source| OpenError::Io { path: path.into(), source };
    let sqlite = |source| OpenError::Sqlite { path: path.into(), source };

    let lock = lock(path)?;
    create_file(path).map_err(io)?;
    // A new file must not lose its name with the power.
    sync_directory(path).map_err(io)?;

    let mut db = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(sqlite)?;
    let found = inspect(&db).map_err(sqlite)?;
    match found {
        Found::Empty | Found::Schema(SCHEMA) => configure(&db, synchronous).map_err(sqlite)?,
        Found::Schema(found) if found < OLDEST => {
            return Err(OpenError::TooOld { path: path.into(), found });
        }
        Found::Schema(found) if found < SCHEMA => {
            configure(&db, synchronous).map_err(sqlite)?;
            migrate::bring_up(&mut db, path, found)?;
        }
        Found::Schema(found) => return Err(OpenError::Newer { path: path.into(), found }),
        Found::Foreign => return Err(OpenError::Foreign(path.into())),
    }
    if matches!(found, Found::Empty) {
        create_tables(&mut db).map_err(sqlite)?;
    }
    Ok((lock, db))
}

/// Takes the lock of a store, and makes the directory for it.
pub(super) fn lock(path: &Path) -> Result<Lock, OpenError> {
    let io = |source| OpenError::Io { path: path.into(), source };
    if let Some(directory) = directory(path) {
        create_directory(directory).map_err(io)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let mut lock = create_file(Path::new(&beside)).map_err(io)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => {
            let said = fs::read_to_string(&beside).unwrap_or_default();
            OpenError::Held { path: path.into(), pid: said.trim().parse().ok() }
        }
        TryLockError::Error(source) => io(source),
    })?;
    // For whoever finds it locked. The lock holds without it.
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(Lock(lock))
}

/// Makes the names in a file's directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(directory(path).unwrap_or(Path::new("."))).and_then(|d| d.sync_all())?;
    }
    Ok(())
}

fn directory(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty())
}

/// How long what is done beside the writer may keep it from writing.
const BESIDE_TIMEOUT: Duration = Duration::from_millis(10);

/// A connection beside the one that writes. What waits there for a long read gives up soon: it
/// may have the writer's lock meanwhile.
pub(super) fn open_beside(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BESIDE_TIMEOUT)?;
    Ok(db)
}

/// A connection that only reads.
pub(super) fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(db)
}

pub(super) enum Found {
    Empty,
    Schema(i64),
    Foreign,
}

/// Looks without changing anything: a newer file is left exactly as it is.
pub(super) fn inspect(db: &Connection) -> rusqlite::Result<Found> {
    let pragma = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let tables = db.query_row("SELECT 1 FROM sqlite_schema", [], |_| Ok(())).optional()?;
    Ok(match (tables, pragma("application_id")?) {
        (None, 0) => Found::Empty,
        (_, APPLICATION) => Found::Schema(pragma("user_version")?),
        _ => Found::Foreign,
    })
}

fn configure(db: &Connection, synchronous: Synchronous) -> rusqlite::Result<()> {
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    let level = match synchronous {
        Synchronous::Full => "full",
        Synchronous::Normal => "normal",
    };
    db.pragma_update(None, "synchronous", level)?;
    db.pragma_update(None, "cache_size", -16_384)?; // KiB
    db.pragma_update(None, "temp_store", "memory")?;
    db.pragma_update_and_check(None, "journal_size_limit", 64 << 20, |_| Ok(()))?; // bytes
    // `checkpoint` does it.
    db.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))
}

fn create_tables(db: &mut Connection) -> rusqlite::Result<()> {
    let step = db.transaction()?;
    step.execute_batch(include_str!("../schema.sql"))?;
    step.pragma_update(None, "application_id", APPLICATION)?;
    step.pragma_update(None, "user_version", SCHEMA)?;
    step.commit()
}

/// With its parents, for the owner alone.
fn create_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

/// Makes a file that must not be there, for the owner alone.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).create_new(true).open(path)
}

/// Opens a file to write, made for the owner alone if it is not there. SQLite gives the files
/// that it makes beside a database the database's own permissions.
fn create_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).create(true).truncate(false).open(path)
}
