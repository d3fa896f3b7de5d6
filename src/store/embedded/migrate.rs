//! A file of an older version is brought up to this one, step by step, in one transaction: a
//! process that dies meanwhile leaves the file as it was. Before it a copy is kept beside it,
//! which that older version still opens.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::copy::{self, CopyError};
use super::file::{OpenError, SCHEMA};

/// What leads from each version to the next, oldest first. A step is never changed once it was
/// released: it says how things were then.
const STEPS: [(i64, &str); 2] =
    [(5, include_str!("migrate/6.sql")), (6, include_str!("migrate/7.sql"))];

/// The oldest version that is brought up; there was no release before it.
pub(super) const OLDEST: i64 = STEPS[0].0;
const _: () = assert!(OLDEST + STEPS.len() as i64 == SCHEMA);

/// Brings a file up from an older version, and says where its copy is.
///
/// # Errors
///
/// [`OpenError`], if no copy can be made or a step fails: the file is as it was.
pub(super) fn bring_up(db: &mut Connection, path: &Path, found: i64) -> Result<PathBuf, OpenError> {
    let kept = keep(path, found)?;
    let (from, to, copy) = (found, SCHEMA, kept.display());
    tracing::warn!(from, to, %copy, "the store is brought up to the schema of this version");
    apply(db, found).map_err(|source| OpenError::Sqlite { path: path.into(), source })?;
    Ok(kept)
}

/// All steps from a version on, or none of them.
pub(super) fn apply(db: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    for (_, sql) in STEPS.iter().filter(|(from, _)| *from >= found) {
        transaction.execute_batch(sql)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()
}

/// A copy beside the file, whole or not at all. One that an attempt before left is written anew.
fn keep(path: &Path, found: i64) -> Result<PathBuf, OpenError> {
    let kept = copy::beside(path, &format!(".schema-{found}"));
    let part = copy::beside(&kept, ".part");
    let io = |source| OpenError::Io { path: part.clone(), source };
    match fs::remove_file(&part) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    copy::copy(path, &part).map_err(|error| match error {
        CopyError::Sqlite { path, source } => OpenError::Sqlite { path, source },
        CopyError::Io { path, source } => OpenError::Io { path, source },
        error => io(std::io::Error::other(error.to_string())),
    })?;
    fs::rename(&part, &kept).map_err(io)?;
    super::file::sync_directory(path).map_err(io)?;
    Ok(kept)
}
