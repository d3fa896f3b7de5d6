//! Lots as rows.

use rusqlite::{Connection, Row, named_params, params};

use super::sql::{Count, Word};
use crate::billing::ledger::Lot;
use crate::store::{AccountId, LotRow};

/// The columns of [`Lot::read`], in its order: they are read with every debit, and to look
/// each up by its name would cost more than to read it.
pub(super) const COLUMNS: &str = "lot, kind, effective_at, expires_at, granted, remaining, used, \
    expired, to_debt, forfeited, reversed";

/// Those that are not empty.
pub(super) fn usable(db: &Connection, account: &AccountId) -> rusqlite::Result<Vec<Lot>> {
    db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM lot INDEXED BY lot_usable WHERE account = ? AND usable"
    ))?
    .query_map([account], Lot::read)?
    .collect()
}

/// One, empty or not.
pub(super) fn one(db: &Connection, account: &AccountId, number: u64) -> rusqlite::Result<Lot> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM lot WHERE account = ? AND lot = ?"))?
        .query_row(params![account, Count(number)], Lot::read)
}

/// The number of the next one.
pub(super) fn next(db: &Connection, account: &AccountId) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT coalesce(max(lot), 0) + 1 FROM lot WHERE account = ?")?
        .query_row([account], |row| row.get::<_, Count>(0))
        .map(|Count(number)| number)
}

/// Writes a new one, granted by an entry.
pub(super) fn insert(
    db: &Connection,
    account: &AccountId,
    lot: &Lot,
    seq: u64,
    source: &str,
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO lot (account, lot, kind, seq, source, effective_at, expires_at, granted,
             remaining, used, expired, to_debt, forfeited, reversed, usable)
         VALUES (:account, :lot, :kind, :seq, :source, :effective_at, :expires_at, :granted,
             :remaining, :used, :expired, :to_debt, :forfeited, :reversed, :usable)",
    )?
    .execute(named_params! {
        ":account": account,
        ":lot": Count(lot.number),
        ":kind": Word(lot.class),
        ":seq": Count(seq),
        ":source": source,
        ":effective_at": lot.effective_at,
        ":expires_at": lot.expires_at,
        ":granted": lot.granted,
        ":remaining": lot.remaining,
        ":used": lot.used,
        ":expired": lot.expired,
        ":to_debt": lot.to_debt,
        ":forfeited": lot.forfeited,
        ":reversed": lot.reversed,
        ":usable": lot.remaining.is_positive(),
    })
    .map(drop)
}

/// Writes what became of one.
pub(super) fn update(
    db: &Connection,
    account: &AccountId,
    was: Option<&Lot>,
    lot: &Lot,
) -> rusqlite::Result<()> {
    let usable = lot.remaining.is_positive();
    db.prepare_cached(
        // The index needs no change while a lot stays usable, or empty.
        if was.is_some_and(|was| was.remaining.is_positive() == usable) {
            "UPDATE lot SET remaining = ?, used = ?, expired = ?, forfeited = ?, reversed = ?
             WHERE account = ? AND lot = ? AND usable = ?"
        } else {
            "UPDATE lot SET remaining = ?1, used = ?2, expired = ?3, forfeited = ?4,
                 reversed = ?5, usable = ?8 WHERE account = ?6 AND lot = ?7"
        },
    )?
    .execute(params![
        lot.remaining,
        lot.used,
        lot.expired,
        lot.forfeited,
        lot.reversed,
        account,
        Count(lot.number),
        usable,
    ])
    .map(drop)
}

impl Lot {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get::<_, Count>(0)?.0,
            class: row.get::<_, Word<_>>(1)?.0,
            effective_at: row.get(2)?,
            expires_at: row.get(3)?,
            granted: row.get(4)?,
            remaining: row.get(5)?,
            used: row.get(6)?,
            expired: row.get(7)?,
            to_debt: row.get(8)?,
            forfeited: row.get(9)?,
            reversed: row.get(10)?,
        })
    }
}

impl LotRow {
    /// Of [`COLUMNS`] and `source`.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { lot: Lot::read(row)?, source: row.get("source")? })
    }
}
