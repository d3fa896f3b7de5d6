//! The books of an account: its lots, its records, and what was done before.

use std::borrow::Cow;

use rusqlite::{Connection, OptionalExtension, params};

use super::live::Snapshot;
use super::shelf::Step;
use super::sql::{Count, Fault, Json, Word};
use super::{lots, read};
use crate::billing::Credits;
use crate::billing::ledger::{
    Book, Booking, Class, Expiry, LedgerError, Lot, NewLot, Part, Place, expiry,
};
use crate::store::fingerprint::Fingerprint;
use crate::store::{AccountId, Entry, Millis, Settlement, Status, StoreError};

/// The changing part of an account, in the middle of an operation: changed here, and handed
/// back in one go by [`Books::write`]. What is refused before that has changed nothing.
pub(super) struct Books<'a> {
    account: &'a AccountId,
    pub(super) kept: Kept,
    records: Vec<Record<'a>>,
}

/// An account as the writer keeps it from one operation to the next.
#[derive(Clone)]
pub(super) struct Kept {
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
    /// In this step.
    pub(super) is_changed: bool,
}

/// What the database has, so that only what changed is written.
#[derive(Clone)]
struct Stored {
    status: Status,
    next_expiry: Option<Millis>,
    lots: Vec<Lot>,
}

impl Kept {
    fn read(db: &Connection, account: &AccountId) -> Result<Self, Fault> {
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
        let (n, status, balance, seq, sub, ts, next_expiry) =
            row.ok_or_else(|| read::no_account(account))?;
        let book = Book::of(balance, lots.clone())?;
        let stored = Stored { status, next_expiry, lots };
        Ok(Self { n, status, book, ts, seq, sub, stored, is_changed: false })
    }

    /// Writes what has changed since it was read or written last, its records aside.
    pub(super) fn write(&mut self, db: &Connection, account: &AccountId) -> rusqlite::Result<()> {
        db.prepare_cached(
            "UPDATE account SET balance = ?, seq = ?, sub = ?, last_ts = ? WHERE n = ?",
        )?
        .execute(params![
            self.book.balance(),
            Count(self.seq),
            Count(self.sub),
            self.ts,
            self.n
        ])?;
        let next_expiry = self.snapshot().next_expiry();
        // Rare, and in indexes of their own.
        if (self.status, next_expiry) != (self.stored.status, self.stored.next_expiry) {
            db.prepare_cached("UPDATE account SET status = ?, next_expiry = ? WHERE n = ?")?
                .execute(params![Word(self.status), next_expiry, self.n])?;
        }
        for lot in self.book.lots() {
            let was = self.stored.lots.iter().find(|stored| stored.number == lot.number);
            if was != Some(lot) {
                lots::update(db, account, was, lot)?;
            }
        }
        self.is_changed = false;
        self.book.forget_empty();
        self.stored.status = self.status;
        self.stored.next_expiry = next_expiry;
        self.stored.lots.clear();
        self.stored.lots.extend(self.book.lots());
        Ok(())
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let full = self.book.lots().iter().filter(|lot| lot.remaining.is_positive());
        Snapshot {
            balance: self.book.balance(),
            status: self.status,
            lots: full.map(|lot| (lot.expires_at, lot.remaining)).collect(),
            ts: self.ts,
            seq: self.seq,
        }
    }
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

impl<'a> Books<'a> {
    /// Takes an account as it is now, and writes off what has ended.
    pub(super) fn open(
        step: &Step<'_>,
        account: &'a AccountId,
        now: Millis,
    ) -> Result<Self, Fault> {
        let mut kept = match step.kept(account) {
            Some(kept) => kept,
            None => Kept::read(step, account)?,
        };
        kept.ts = now.max(kept.ts);
        let balance = kept.book.balance();
        let expired = kept.book.expire(kept.ts);
        let mut books = Self { account, kept, records: Vec::new() };
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
        let after = self.kept.book.balance();
        let record = self.next(booking, after);
        Record { id: Some(id), fingerprint: Some(fingerprint), note, ..record }
    }

    /// An operation without an entry, which the caller writes.
    pub(super) fn no_entry(&mut self, id: &'a str, fingerprint: Option<Fingerprint>) -> Record<'a> {
        self.kept.sub += 1;
        Record {
            account: self.kept.n,
            ts: self.kept.ts,
            seq: self.kept.seq,
            sub: self.kept.sub,
            id: Some(id),
            fingerprint,
            booking: None,
            balance_after: self.kept.book.balance(),
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
        let balance = self.kept.book.balance();
        let forfeited = self.kept.book.forfeit();
        self.write_off(balance, forfeited);
        self.kept.status = Status::Closed;
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
        self.kept.seq += 1;
        self.kept.sub = 0;
        Record {
            account: self.kept.n,
            ts: self.kept.ts,
            seq: self.kept.seq,
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
            if !self.kept.book.lots().iter().any(|lot| lot.number == number) {
                let lot = lots::one(db, self.account, number)?;
                self.kept.stored.lots.push(lot);
                self.kept.book.recall(lot);
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
        let effective_at = self.kept.ts;
        let expires_at = expiry::of_grant(class, expires, effective_at);
        Ok(NewLot { number, class, effective_at, expires_at })
    }

    /// Writes the records and new lots, keeps the rest for the end of the step, and answers
    /// what admission is to know.
    pub(super) fn write(mut self, step: &Step<'_>) -> Result<Snapshot, Fault> {
        for record in &self.records {
            if !record.insert(step, None)? {
                return Err(used_twice());
            }
        }
        let Kept { book, stored, .. } = &mut self.kept;
        for lot in book.lots() {
            if stored.lots.iter().any(|stored| stored.number == lot.number) {
                continue;
            }
            // Only the operation itself grants, and its record is the last.
            let grant = self.records.last().and_then(|record| Some((record.seq, record.id?)));
            let (seq, source) = grant.ok_or(LedgerError::Unsound)?;
            lots::insert(step, self.account, lot, seq, source)?;
            stored.lots.push(*lot);
        }
        let snapshot = self.kept.snapshot();
        step.keep(self.account, self.kept);
        Ok(snapshot)
    }
}

impl Record<'_> {
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

    /// Writes it, with the columns of a request if it is one. False if its id was used before.
    ///
    /// Values go by position, in the order of the table's columns: names, and even the length
    /// of the statement's text, would show in what a debit costs.
    pub(super) fn insert(
        &self,
        db: &Connection,
        request: Option<&Settlement>,
    ) -> rusqlite::Result<bool> {
        const SQL: &str = "INSERT INTO record VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,\
            ?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)\
            ON CONFLICT (id, account) WHERE id IS NOT NULL DO NOTHING";
        let booking = self.booking.as_ref();
        let (lot, parts) = match booking.map(|booking| booking.parts.as_slice()) {
            None | Some([]) => (None, None),
            Some([Part { place, .. }]) => {
                (Some(Count(Option::<u64>::from(*place).unwrap_or(0))), None)
            }
            Some(parts) => (None, Some(Json(Pairs::of(parts)))),
        };
        let mut insert = db.prepare_cached(SQL)?;
        let mut at = 0;
        macro_rules! bind {
            ($($value:expr),* $(,)?) => {$(
                at += 1;
                insert.raw_bind_parameter(at, $value)?;
            )*};
        }
        bind![
            self.account,
            self.ts,
            Count(self.seq),
            Count(self.sub),
            self.id,
            self.fingerprint,
            booking.map(|booking| booking.kind.name()),
            booking.map(|booking| booking.amount),
            self.balance_after,
            lot,
            parts,
            self.note.as_deref(),
            self.undoes.map(Count),
        ];
        if let Some(row) = request {
            let Settlement { attribution, usage, .. } = row;
            bind![
                &row.key,
                &row.model,
                &row.served_model,
                &row.upstream,
                &attribution.run,
                &attribution.agent,
                &attribution.session,
                &attribution.origin,
                &attribution.tag,
                Count(usage.input),
                Count(usage.cached),
                Count(usage.cache_creation_5m),
                Count(usage.cache_creation_1h),
                Count(usage.output),
                Count(usage.reasoning),
                Count(usage.input_audio),
                Count(usage.input_image),
                Count(usage.cached_audio),
                Count(usage.output_audio),
                Count(usage.output_image),
                (!usage.calls.is_empty()).then_some(Json(&usage.calls)),
                &row.price_version,
                row.ttft_ms,
                row.latency_ms,
                row.stream,
                row.outcome.name(),
                row.source.name(),
                row.http_status,
                &row.flags,
            ];
        }
        insert.raw_execute().map(|rows| rows > 0)
    }
}

/// An id is in use that was looked for and not found, after something was written: not a
/// refusal, which would leave that behind, but a fault, with which all is rolled back.
pub(super) fn used_twice() -> Fault {
    rusqlite::Error::StatementChangedRows(0).into()
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
    /// Of an account, by its id.
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
