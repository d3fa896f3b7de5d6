//! The books of an account: its lots, its entries, and what was done before.

use std::borrow::Cow;

use rusqlite::{Connection, OptionalExtension, params};

use super::fingerprint::Fingerprint;
use super::live::Snapshot;
use super::sql::{Count, Fault, Json, Word};
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
    /// What records name the account by.
    n: i64,
    pub(super) status: Status,
    /// Its debt and lots. What ended by `ts` is written off already.
    pub(super) book: Book,
    /// Of what is written now: the clock, but never before what was written last.
    pub(super) ts: Millis,
    seq: u64,
    sub: u64,
    stored: Stored,
    records: Vec<Record<'a>>,
}

/// A line of the account's history: an entry, or an operation that made none.
pub(super) struct Record<'a> {
    account: i64,
    ts: Millis,
    seq: u64,
    /// Zero for an entry.
    sub: u64,
    /// Of the operation; `None`: time did it.
    id: Option<&'a str>,
    /// Of the operation's content; `None`: an abandoned request.
    fingerprint: Option<Fingerprint>,
    booking: Option<Booking>,
    balance_after: Credits,
    note: Option<Cow<'a, str>>,
    undoes: Option<u64>,
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
                "SELECT n, status, balance, seq, sub, last_ts, next_expiry FROM account
                 WHERE id = ?",
            )?
            .query_row([account], |row| {
                let (Word(status), Count(seq), Count(sub)) =
                    (row.get(1)?, row.get(3)?, row.get(4)?);
                let balance: Credits = row.get(2)?;
                Ok((row.get(0)?, status, balance, seq, sub, row.get(5)?, row.get(6)?))
            })
            .optional()?;
        let (n, status, balance, seq, sub, last_ts, next_expiry) =
            row.ok_or_else(|| read::no_account(account))?;
        let ts = now.max(last_ts);
        let (book, expired) = Book::open(balance, lots.clone(), ts)?;
        let stored = Stored { status, next_expiry, lots };
        let records = Vec::new();
        let mut books = Self { account, n, status, book, ts, seq, sub, stored, records };
        books.write_off(balance, expired);
        Ok(books)
    }

    /// Adds the entry of an operation, after which the balance is that of the book.
    pub(super) fn add(
        &mut self,
        booking: Booking,
        id: &'a str,
        fingerprint: Fingerprint,
        note: Option<&'a str>,
        undoes: Option<u64>,
    ) -> Entry {
        let record =
            Record { undoes, ..self.entry(booking, id, fingerprint, note.map(Into::into)) };
        let entry = record.entry();
        self.records.push(record);
        entry
    }

    /// The entry of an operation, which the caller writes.
    pub(super) fn entry(
        &mut self,
        booking: Booking,
        id: &'a str,
        fingerprint: Fingerprint,
        note: Option<Cow<'a, str>>,
    ) -> Record<'a> {
        let after = self.book.balance();
        let record = self.next(booking, after);
        Record { id: Some(id), fingerprint: Some(fingerprint), note, ..record }
    }

    /// An operation without an entry, which the caller writes.
    pub(super) fn no_entry(&mut self, id: &'a str, fingerprint: Option<Fingerprint>) -> Record<'a> {
        self.sub += 1;
        Record {
            account: self.n,
            ts: self.ts,
            seq: self.seq,
            sub: self.sub,
            id: Some(id),
            fingerprint,
            booking: None,
            balance_after: self.book.balance(),
            note: None,
            undoes: None,
        }
    }

    /// Remembers that an operation without an entry was done.
    pub(super) fn remember(&mut self, id: &'a str, fingerprint: Fingerprint) {
        let record = self.no_entry(id, Some(fingerprint));
        self.records.push(record);
    }

    /// Empties every lot and ends the account.
    pub(super) fn forfeit(&mut self) {
        let balance = self.book.balance();
        let forfeited = self.book.forfeit();
        self.write_off(balance, forfeited);
        self.status = Status::Closed;
    }

    /// Entries that time makes, one after another from a balance on.
    fn write_off(&mut self, balance: Credits, bookings: Vec<Booking>) {
        let mut left = balance;
        for booking in bookings {
            left += booking.amount;
            let record = self.next(booking, left);
            self.records.push(record);
        }
    }

    fn next(&mut self, booking: Booking, balance_after: Credits) -> Record<'a> {
        self.seq += 1;
        self.sub = 0;
        Record {
            account: self.n,
            ts: self.ts,
            seq: self.seq,
            sub: 0,
            id: None,
            fingerprint: None,
            booking: Some(booking),
            balance_after,
            note: None,
            undoes: None,
        }
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
        db.prepare_cached(
            "UPDATE account SET balance = ?, seq = ?, sub = ?, last_ts = ? WHERE n = ?",
        )?
        .execute(params![
            snapshot.balance,
            Count(self.seq),
            Count(self.sub),
            self.ts,
            self.n
        ])?;
        let next_expiry = snapshot.next_expiry();
        // Rare, and in indexes of their own.
        if (self.status, next_expiry) != (self.stored.status, self.stored.next_expiry) {
            db.prepare_cached("UPDATE account SET status = ?, next_expiry = ? WHERE n = ?")?
                .execute(params![Word(self.status), next_expiry, self.n])?;
        }
        for record in &self.records {
            record.insert(db)?;
        }
        for lot in self.book.lots() {
            match self.stored.lots.iter().find(|stored| stored.number == lot.number) {
                Some(stored) if stored == lot => {}
                Some(_) => lots::update(db, self.account, lot)?,
                // Only the operation itself grants, and its record is the last.
                None => {
                    let grant =
                        self.records.last().and_then(|record| Some((record.seq, record.id?)));
                    let (seq, source) = grant.ok_or(LedgerError::Unsound)?;
                    lots::insert(db, self.account, lot, seq, source)?;
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

impl Record<'_> {
    /// The columns that every record has; [`Self::columns`] gives their values.
    pub(super) const COLUMNS: &'static str = "account, ts, seq, sub, id, fingerprint, kind, amount, \
        balance_after, lot, parts, note, undoes";

    /// The ledger's view of it.
    fn entry(&self) -> Entry {
        let Booking { kind, amount, parts } = self.booking.clone().expect("an entry");
        Entry {
            seq: self.seq,
            ts: self.ts,
            kind,
            amount,
            balance_after: self.balance_after,
            reference: self.id.unwrap_or_default().into(),
            note: self.note.as_deref().map(Into::into),
            undoes: self.undoes,
            parts,
        }
    }

    /// Writes a record that is no request.
    fn insert(&self, db: &Connection) -> rusqlite::Result<()> {
        let sql = format!(
            "INSERT INTO record ({}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            Self::COLUMNS
        );
        let mut insert = db.prepare_cached(&sql)?;
        self.bind(&mut insert)?;
        insert.raw_execute().map(drop)
    }

    /// Binds [`Self::COLUMNS`], the first of the statement; answers how many they are.
    pub(super) fn bind(&self, insert: &mut rusqlite::Statement<'_>) -> rusqlite::Result<usize> {
        let booking = self.booking.as_ref();
        let (lot, parts) = match booking.map(|booking| booking.parts.as_slice()) {
            None | Some([]) => (None, None),
            Some([Part { place, .. }]) => {
                (Some(Count(Option::<u64>::from(*place).unwrap_or(0))), None)
            }
            Some(parts) => (None, Some(Json(Pairs::of(parts)))),
        };
        insert.raw_bind_parameter(1, self.account)?;
        insert.raw_bind_parameter(2, self.ts)?;
        insert.raw_bind_parameter(3, Count(self.seq))?;
        insert.raw_bind_parameter(4, Count(self.sub))?;
        insert.raw_bind_parameter(5, self.id)?;
        insert.raw_bind_parameter(6, self.fingerprint)?;
        insert.raw_bind_parameter(7, booking.map(|booking| booking.kind.name()))?;
        insert.raw_bind_parameter(8, booking.map(|booking| booking.amount))?;
        insert.raw_bind_parameter(9, self.balance_after)?;
        insert.raw_bind_parameter(10, lot)?;
        insert.raw_bind_parameter(11, parts)?;
        insert.raw_bind_parameter(12, self.note.as_deref())?;
        insert.raw_bind_parameter(13, self.undoes.map(Count))?;
        Ok(13)
    }
}

/// Parts as they stand in a column: `[lot or null, amount]` each.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(super) struct Pairs(Vec<(Option<u64>, i64)>);

impl Pairs {
    fn of(parts: &[Part]) -> Self {
        Self(parts.iter().map(|part| (part.place.into(), part.amount.nano())).collect())
    }

    pub(super) fn parts(self) -> Vec<Part> {
        let part = |(lot, nano): (Option<u64>, _)| Part {
            place: lot.into(),
            amount: Credits::from_nano(nano),
        };
        self.0.into_iter().map(part).collect()
    }
}

/// An operation that was done before.
pub(super) struct Done {
    /// `None`: the request was abandoned.
    fingerprint: Option<Fingerprint>,
    /// When its entry was written, and its number, if it made one.
    pub(super) entry: Option<(Millis, u64)>,
    pub(super) balance: Credits,
}

impl Done {
    pub(super) fn find(
        db: &Connection,
        account: &AccountId,
        id: &str,
    ) -> rusqlite::Result<Option<Self>> {
        db.prepare_cached(
            "SELECT fingerprint, ts, seq, sub, balance_after FROM record INDEXED BY record_id
             WHERE id = ? AND account = (SELECT n FROM account WHERE account.id = ?)",
        )?
        .query_row(params![id, account], |row| {
            let (Count(seq), Count(sub)) = (row.get(2)?, row.get(3)?);
            let entry = if sub == 0 { Some((row.get(1)?, seq)) } else { None };
            Ok(Self { fingerprint: row.get(0)?, entry, balance: row.get(4)? })
        })
        .optional()
    }

    /// A request that was cut off with its process.
    pub(super) const fn is_abandoned(&self) -> bool {
        self.fingerprint.is_none()
    }

    pub(super) fn must_equal(&self, fingerprint: &Fingerprint, id: &str) -> Result<(), StoreError> {
        if self.fingerprint.as_ref() == Some(fingerprint) {
            Ok(())
        } else {
            Err(StoreError::Conflict(format!("the id {id} was used with other content")))
        }
    }
}
