//! Documents: small texts by name, compared and set by version, which may expire.

use rusqlite::{Connection, OptionalExtension, params};

use super::read::must_exist;
use super::shelf::Step;
use super::sql::{Count, Fault};
use super::writer::Operation;
use crate::store::{Document, Millis, Put, Scope, StoreError};

/// Expired documents that one change clears away.
const CLEARED: i64 = 100;

/// A document that has not expired.
pub(super) fn document(
    db: &Connection,
    scope: &Scope,
    name: &str,
    now: Millis,
) -> Result<Option<Document>, Fault> {
    let document = db
        .prepare_cached(
            "SELECT body, version FROM document WHERE scope = ? AND name = ?
             AND (expires_at IS NULL OR expires_at > ?)",
        )?
        .query_row(params![column(scope), name, now], |row| {
            Ok(Document { body: row.get(0)?, version: row.get::<_, Count>(1)?.0 })
        })
        .optional()?;
    Ok(document)
}

/// A change, if nobody else made one before.
pub(super) struct PutDocument {
    pub scope: Scope,
    pub put: Put,
}

impl Operation for PutDocument {
    type Output = u64;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<u64, Fault> {
        let Put { name, body, replaces, expires_at } = &self.put;
        if let Scope::Account(account) = &self.scope {
            must_exist(db, account)?;
        }
        let found = document(db, &self.scope, name, now)?.map(|document| document.version);
        if found != *replaces {
            return Err(StoreError::Conflict(format!("{name} was changed meanwhile")).into());
        }
        // By the clock, so that a document made anew never has a version of the one before.
        let version = now.unsigned_abs().max(found.unwrap_or(0) + 1);
        let scope = column(&self.scope);
        match body {
            Some(body) => db
                .prepare_cached(
                    "INSERT INTO document (scope, name, body, version, expires_at)
                     VALUES (?, ?, ?, ?, ?)
                     ON CONFLICT DO UPDATE SET body = excluded.body,
                         version = excluded.version, expires_at = excluded.expires_at",
                )?
                .execute(params![scope, name, body, version.cast_signed(), expires_at])?,
            None => db
                .prepare_cached("DELETE FROM document WHERE scope = ? AND name = ?")?
                .execute(params![scope, name])?,
        };
        db.prepare_cached(
            "DELETE FROM document WHERE (scope, name) IN (
                 SELECT scope, name FROM document INDEXED BY document_expiry
                 WHERE expires_at IS NOT NULL AND expires_at <= ? LIMIT ?)",
        )?
        .execute(params![now, CLEARED])?;
        Ok(version)
    }
}

/// An account's id is never empty.
fn column(scope: &Scope) -> &str {
    match scope {
        Scope::Installation => "",
        Scope::Account(account) => &account.0,
    }
}
