//! From older schemas to that of today, in one step that happens whole or not at all.

use rusqlite::{Connection, Row, params};

use super::books::insert_parts;
use super::file::SCHEMA;
use super::lots;
use super::sql::{Count, Fault, Word};
use crate::billing::Credits;
use crate::billing::ledger::{Book, Booking, Class, Kind, LedgerError, NewLot, expiry};
use crate::store::{AccountId, Millis};

/// Takes the steps that are missing, all of them or none.
pub(super) fn from(db: &mut Connection, schema: i64) -> Result<(), Fault> {
    let step = db.transaction()?;
    if schema < 2 {
        to_2(&step)?;
    }
    if schema < 3 {
        step.execute_batch(include_str!("../migrate_3.sql"))?;
    }
    step.pragma_update(None, "user_version", SCHEMA)?;
    step.commit()?;
    Ok(())
}

/// Replays the ledger: what was granted becomes lots of usage credits, what was debited is
/// taken from them. Balances stay; what is older than twelve months ends with the first look
/// at it, as it would have.
fn to_2(step: &Connection) -> Result<(), Fault> {
    step.execute_batch(include_str!("../migrate_2.sql"))?;
    let accounts: Vec<(AccountId, Credits)> = step
        .prepare("SELECT id, balance FROM account")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (account, balance) in accounts {
        let book = replay(step, &account)?;
        if book.balance() != balance {
            return Err(LedgerError::Unsound.into());
        }
        let full = book.lots().iter().filter(|lot| lot.remaining.is_positive());
        let next_expiry = full.map(|lot| lot.expires_at).min();
        step.execute(
            "UPDATE account SET next_expiry = ? WHERE id = ?",
            params![next_expiry, account],
        )?;
    }
    Ok(())
}

fn replay(db: &Connection, account: &AccountId) -> Result<Book, Fault> {
    let mut book = Book::default();
    let mut grants = Vec::new();
    let mut entries = db.prepare_cached("SELECT * FROM entry WHERE account = ? ORDER BY seq")?;
    let mut rows = entries.query([account])?;
    while let Some(row) = rows.next()? {
        let entry = Old::read(row)?;
        let new = NewLot {
            number: grants.len() as u64 + 1,
            class: Class::Usage,
            effective_at: entry.ts,
            expires_at: expiry::twelve_months_after(entry.ts),
        };
        let Booking { parts, .. } = match entry.kind {
            Kind::Topup => book.credit(entry.kind, entry.amount, new)?,
            Kind::Adjust => book.adjust(entry.amount, new)?,
            Kind::DebitAi => book.debit(entry.kind, -entry.amount)?,
            // Schema 1 knew no other.
            Kind::Promo | Kind::Expiry | Kind::Refund | Kind::PaymentReversal | Kind::Forfeit => {
                return Err(LedgerError::Unsound.into());
            }
        };
        insert_parts(db, account, entry.seq, &parts)?;
        if entry.amount.is_positive() {
            grants.push((entry.seq, entry.reference));
        }
    }
    for lot in book.lots() {
        let grant = usize::try_from(lot.number - 1).ok().and_then(|at| grants.get(at));
        let (seq, source) = grant.ok_or(LedgerError::Unsound)?;
        lots::insert(db, account, lot, *seq, source)?;
    }
    Ok(book)
}

/// An entry of schema 1.
struct Old {
    seq: u64,
    ts: Millis,
    kind: Kind,
    amount: Credits,
    reference: String,
}

impl Old {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: row.get::<_, Count>("seq")?.0,
            ts: row.get("ts")?,
            kind: row.get::<_, Word<_>>("kind")?.0,
            amount: row.get("amount")?,
            reference: row.get("ref")?,
        })
    }
}
