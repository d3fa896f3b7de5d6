//! The books of an account: its lots, its entries, and what was done before.

use rusqlite::{Connection, OptionalExtension, params};

use super::fingerprint::Fingerprint;
use super::live::Snapshot;
use super::sql::{Count, Fault, Word};
use super::{lots, read};
use crate::billing::Credits;
use crate::billing::ledger::{
    Book, Booking, Class, Expiry, LedgerError, Lot, NewLot, Part, Place, expiry,
};
use crate::store::{AccountId, Entry, Millis, Status, StoreError};

/// The changing part of an account: read, changed here, and written in one go by
/// [`Books::write`]. What is refused before that has written nothing.
pub(super) struct Books<'a> {
    account: &'a AccountId,
    pub(super) status: Status,
    /// Its debt and lots. What ended by `ts` is written off already.
    pub(super) book: Book,
    /// Of what is written now: the clock, but never before what was written last.
    pub(super) ts: Millis,
    seq: u64,
    stored: Stored,
    entries: Vec<Entry>,
}

/// What the database has, so that only what changed is written.
struct Stored {
    status: Status,
    next_expiry: Option<Millis>,
    lots: Vec<Lot>,
}

impl<'a> Books<'a> {
    /// Reads an account and writes off what has ended.
    pub(super) fn open(
        db: &Connection,
        account: &'a AccountId,
        now: Millis,
    ) -> Result<Self, Fault> {
        let lots = lots::usable(db, account)?;
        let row = db
            .prepare_cached(
                "SELECT status, balance, seq, last_ts, next_expiry FROM account WHERE id = ?",
            )?
            .query_row([account], |row| {
                let (Word(status), Count(seq)) = (row.get(0)?, row.get(2)?);
                Ok((status, row.get::<_, Credits>(1)?, seq, row.get(3)?, row.get(4)?))
            })
            .optional()?;
        let (status, balance, seq, last_ts, next_expiry) =
            row.ok_or_else(|| read::no_account(account))?;
        let ts = now.max(last_ts);
        let (book, expired) = Book::open(balance, lots.clone(), ts)?;
        let stored = Stored { status, next_expiry, lots };
        let mut books = Self { account, status, book, ts, seq, stored, entries: Vec::new() };
        let mut left = balance;
        for booking in expired {
            left += booking.amount;
            books.append(booking, left, None);
        }
        Ok(books)
    }

    /// Adds an entry, after which the balance is that of the book.
    pub(super) fn add(
        &mut self,
        booking: Booking,
        reference: &str,
        note: Option<&str>,
        undoes: Option<u64>,
    ) -> Entry {
        let after = self.book.balance();
        let entry = self.append(booking, after, Some(reference));
        entry.note = note.map(Into::into);
        entry.undoes = undoes;
        entry.clone()
    }

    /// Empties every lot and ends the account.
    pub(super) fn forfeit(&mut self) {
        let mut left = self.book.balance();
        for booking in self.book.forfeit() {
            left += booking.amount;
            self.append(booking, left, None);
        }
        self.status = Status::Closed;
    }

    /// An entry about a lot refers to the lot, any other to its operation.
    fn append(
        &mut self,
        booking: Booking,
        balance_after: Credits,
        reference: Option<&str>,
    ) -> &mut Entry {
        let Booking { kind, amount, parts } = booking;
        let lot = || match parts.first() {
            Some(Part { place: Place::Lot(number), .. }) => format!("lot_{number}"),
            _ => String::new(),
        };
        self.seq += 1;
        let entry = Entry {
            seq: self.seq,
            ts: self.ts,
            kind,
            amount,
            balance_after,
            reference: reference.map_or_else(lot, Into::into),
            note: None,
            undoes: None,
            parts,
        };
        self.entries.push(entry);
        self.entries.last_mut().expect("it was pushed")
    }

    /// Makes lots known that are empty, so that a refund can fill them.
    pub(super) fn recall(&mut self, db: &Connection, parts: &[Part]) -> Result<(), Fault> {
        for part in parts {
            let Place::Lot(number) = part.place else { continue };
            if !self.stored.lots.iter().any(|lot| lot.number == number) {
                let lot = lots::one(db, self.account, number)?;
                self.stored.lots.push(lot);
                self.book.recall(lot);
            }
        }
        Ok(())
    }

    /// A new lot of the account; its number is above all others.
    pub(super) fn new_lot(
        &self,
        db: &Connection,
        class: Class,
        expires: Option<Expiry>,
    ) -> Result<NewLot, Fault> {
        let number = lots::next(db, self.account)?;
        let effective_at = self.ts;
        let expires_at = expiry::of_grant(class, expires, effective_at);
        Ok(NewLot { number, class, effective_at, expires_at })
    }

    /// Writes what changed, and answers what admission is to know.
    pub(super) fn write(self, db: &Connection) -> Result<Snapshot, Fault> {
        let snapshot = self.snapshot();
        db.prepare_cached("UPDATE account SET balance = ?, seq = ?, last_ts = ? WHERE id = ?")?
            .execute(params![snapshot.balance, Count(self.seq), self.ts, self.account])?;
        let next_expiry = snapshot.next_expiry();
        // Rare, and in indexes of their own.
        if (self.status, next_expiry) != (self.stored.status, self.stored.next_expiry) {
            db.prepare_cached("UPDATE account SET status = ?, next_expiry = ? WHERE id = ?")?
                .execute(params![Word(self.status), next_expiry, self.account])?;
        }
        for entry in &self.entries {
            insert_entry(db, self.account, entry)?;
        }
        for lot in self.book.lots() {
            match self.stored.lots.iter().find(|stored| stored.number == lot.number) {
                Some(stored) if stored == lot => {}
                Some(_) => lots::update(db, self.account, lot)?,
                // Only the operation itself grants, and its entry is the last.
                None => {
                    let entry = self.entries.last().ok_or(LedgerError::Unsound)?;
                    lots::insert(db, self.account, lot, entry.seq, &entry.reference)?;
                }
            }
        }
        Ok(snapshot)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let full = self.book.lots().iter().filter(|lot| lot.remaining.is_positive());
        Snapshot {
            balance: self.book.balance(),
            status: self.status,
            lots: full.map(|lot| (lot.expires_at, lot.remaining)).collect(),
            ts: self.ts,
        }
    }
}

fn insert_entry(db: &Connection, account: &AccountId, entry: &Entry) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO entry (account, seq, ts, kind, amount, balance_after, ref, note, undoes)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        account,
        Count(entry.seq),
        entry.ts,
        entry.kind.name(),
        entry.amount,
        entry.balance_after,
        entry.reference,
        entry.note,
        entry.undoes.map(Count),
    ])?;
    insert_parts(db, account, entry.seq, &entry.parts)
}

/// Writes what the amount of an entry is made of.
pub(super) fn insert_parts(
    db: &Connection,
    account: &AccountId,
    seq: u64,
    parts: &[Part],
) -> rusqlite::Result<()> {
    for (n, part) in (0_i64..).zip(parts) {
        let lot = Option::<u64>::from(part.place).map(Count);
        db.prepare_cached(
            "INSERT INTO part (account, seq, n, lot, amount) VALUES (?, ?, ?, ?, ?)",
        )?
        .execute(params![account, Count(seq), n, lot, part.amount])?;
    }
    Ok(())
}

/// An operation that was done before.
pub(super) struct Done {
    /// `None`: the request was abandoned.
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) seq: Option<u64>,
    pub(super) balance: Credits,
}

impl Done {
    pub(super) fn find(
        db: &Connection,
        account: &AccountId,
        id: &str,
    ) -> rusqlite::Result<Option<Self>> {
        db.prepare_cached("SELECT fingerprint, seq, balance FROM op WHERE account = ? AND id = ?")?
            .query_row(params![account, id], |row| {
                Ok(Self {
                    fingerprint: row.get(0)?,
                    seq: row.get::<_, Option<Count>>(1)?.map(|seq| seq.0),
                    balance: row.get(2)?,
                })
            })
            .optional()
    }

    pub(super) fn must_equal(&self, fingerprint: &Fingerprint, id: &str) -> Result<(), StoreError> {
        if self.fingerprint.as_ref() == Some(fingerprint) {
            Ok(())
        } else {
            Err(StoreError::Conflict(format!("the id {id} was used with other content")))
        }
    }
}

pub(super) fn remember(
    db: &Connection,
    account: &AccountId,
    id: &str,
    fingerprint: Option<&Fingerprint>,
    seq: Option<u64>,
    balance: Credits,
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO op (account, id, fingerprint, seq, balance) VALUES (?, ?, ?, ?, ?)",
    )?
    .execute(params![account, id, fingerprint, seq.map(Count), balance])
    .map(drop)
}
