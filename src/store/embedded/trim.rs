//! Old entries and requests are removed, and a checkpoint stands for them: the one place in
//! which lines of the ledger end. Only after an export, which is the caller's matter.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::shelf::Step;
use super::sql::{Count, Fault, Json};
use super::writer::Operation;
use super::{HOUR_MS, audit, read};
use crate::billing::Credits;
use crate::billing::audit::Checkpoint;
use crate::store::{AccountId, Millis, StoreError};

/// Records that one commit removes, so that settlements do not wait for long.
const AT_ONCE: i64 = 1000;

/// The next step of a trim. False once nothing is left to remove.
pub(super) struct Trim {
    pub account: AccountId,
    pub before: Millis,
}

impl Operation for Trim {
    type Output = bool;

    fn apply(&self, db: &Step<'_>, _now: Millis) -> Result<bool, Fault> {
        let Self { account, before } = self;
        let n: i64 = db
            .prepare_cached("SELECT n FROM account WHERE id = ?")?
            .query_row([account], |row| row.get(0))
            .optional()?
            .ok_or_else(|| read::no_account(account))?;
        let until = step(db, n, *before)?;
        let mut checkpoint = checkpoint(db, account)?.unwrap_or_default();
        let granted = granted(db, account)?;
        let lines = audit::lines_before(db, n, until)?;
        for line in &lines {
            let lots = granted.get(&line.seq).map(Vec::as_slice).unwrap_or_default();
            checkpoint.advance(line, lots)?;
        }
        let (records, requests, charge): (i64, Count, Option<Credits>) = db
            .prepare_cached(
                "SELECT count(*), count(outcome), -sum(amount) FILTER (WHERE outcome IS NOT NULL)
                 FROM record WHERE account = ? AND ts < ?",
            )?
            .query_row(params![n, until], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        if records == 0 {
            return Ok(until < *before);
        }
        checkpoint.requests.count += requests.0;
        checkpoint.requests.amount += charge.unwrap_or(Credits::ZERO);
        // Of an hour that is not whole any more, the sums cannot be compared one by one.
        let hour = until.saturating_add(HOUR_MS - 1).div_euclid(HOUR_MS) * HOUR_MS;
        checkpoint.requests_before = checkpoint.requests_before.max(hour);
        remove(db, account, n, until)?;
        db.prepare_cached(
            "INSERT INTO checkpoint (account, seq, before, state) VALUES (?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET
                 seq = excluded.seq, before = excluded.before, state = excluded.state",
        )?
        .execute(params![account, Count(checkpoint.seq), until, Json(&checkpoint)])?;
        Ok(until < *before)
    }
}

/// Until when a step goes that takes `AT_ONCE` records, and all of the last instant.
fn step(db: &Connection, n: i64, before: Millis) -> rusqlite::Result<Millis> {
    let last: Option<Millis> = db
        .prepare_cached(
            "SELECT ts FROM record WHERE account = ? ORDER BY ts, seq, sub LIMIT 1 OFFSET ?",
        )?
        .query_row(params![n, AT_ONCE - 1], |row| row.get(0))
        .optional()?;
    Ok(last.map_or(before, |ts| before.min(ts + 1)))
}

/// What stands for the trimmed entries of an account.
pub(super) fn checkpoint(
    db: &Connection,
    account: &AccountId,
) -> rusqlite::Result<Option<Checkpoint>> {
    db.prepare_cached("SELECT state FROM checkpoint WHERE account = ?")?
        .query_row([account], |row| row.get::<_, Json<Checkpoint>>(0).map(|json| json.0))
        .optional()
}

/// The lots that each entry granted.
fn granted(db: &Connection, account: &AccountId) -> Result<HashMap<u64, Vec<u64>>, Fault> {
    let mut granted: HashMap<u64, Vec<u64>> = HashMap::new();
    let mut lots = db.prepare_cached("SELECT seq, lot FROM lot WHERE account = ?")?;
    let mut rows = lots.query([account])?;
    while let Some(row) = rows.next()? {
        let (Count(seq), Count(lot)) = (row.get(0)?, row.get(1)?);
        granted.entry(seq).or_default().push(lot);
    }
    Ok(granted)
}

/// Ids of requests go with them. Those of credits stay: a payment is booked once for ever.
fn remove(db: &Connection, account: &AccountId, n: i64, until: Millis) -> Result<(), Fault> {
    db.prepare_cached(
        "INSERT INTO trimmed (account, id, fingerprint, seq)
         SELECT ?1, id, fingerprint, seq FROM record
         WHERE account = ?2 AND ts < ?3 AND id IS NOT NULL AND outcome IS NULL",
    )?
    .execute(params![account, n, until])?;
    db.prepare_cached("DELETE FROM record WHERE account = ? AND ts < ?")?
        .execute(params![n, until])?;
    Ok(())
}

/// Refuses what was done by an operation that was trimmed.
pub(super) fn must_not_be(db: &Connection, account: &AccountId, id: &str) -> Result<(), Fault> {
    let seq: Option<Count> = db
        .prepare_cached("SELECT seq FROM trimmed WHERE account = ? AND id = ?")?
        .query_row(params![account, id], |row| row.get(0))
        .optional()?;
    let Some(Count(seq)) = seq else { return Ok(()) };
    let why = format!(
        "{id} was booked as entry {seq}, which was trimmed; correct the balance by an adjustment"
    );
    Err(StoreError::Conflict(why).into())
}
