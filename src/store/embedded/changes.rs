//! What operators and time do to a balance: credits, refunds, chargebacks, the end of an
//! account, and lots that end.

use std::sync::Arc;

use rusqlite::{Connection, params};

use super::books::{Books, Done};
use super::live::Snapshot;
use super::shelf::Step;
use super::sql::Fault;
use super::writer::Operation;
use super::{Memory, read, trim};
use crate::billing::Credits;
use crate::billing::ledger::{Class, Kind, LedgerError, Place};
use crate::store::fingerprint::{Fingerprint, of_closing, of_grant, of_undo};
use crate::store::{AccountId, Entry, Grant, Granted, Millis, Status, StoreError, Undo};

/// An answer, and the account as it is now if that changed.
pub(super) type Booked<T> = (T, Option<Snapshot>);

/// Credits by the operator.
pub(super) struct GrantCredits(pub Grant);

impl Operation for GrantCredits {
    type Output = Booked<Granted>;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Self::Output, Fault> {
        let Grant { account, kind, amount, expires, note, id } = &self.0;
        let fingerprint = of_grant(&self.0);
        if let Some(granted) = granted_before(db, account, id, &fingerprint)? {
            return Ok((granted, None));
        }
        let mut books = Books::open(db, account, now)?;
        // The one thing that may still happen to a closed account.
        let writes_debt_off = *kind == Kind::Adjust
            && books.kept.status == Status::Closed
            && amount.is_positive()
            && *amount <= books.kept.book.debt();
        if books.kept.status != Status::Open && !writes_debt_off {
            return Err(not_open(account, books.kept.status).into());
        }
        let booking = match kind {
            Kind::Topup => {
                let lot = books.new_lot(db, Class::Usage, None)?;
                books.kept.book.credit(*kind, *amount, lot)?
            }
            Kind::Promo => {
                let lot = books.new_lot(db, Class::Promo, *expires)?;
                books.kept.book.credit(*kind, *amount, lot)?
            }
            Kind::Adjust => {
                let lot = books.new_lot(db, Class::Usage, None)?;
                books.kept.book.adjust(*amount, lot)?
            }
            Kind::DebitAi | Kind::Expiry | Kind::Refund | Kind::PaymentReversal | Kind::Forfeit => {
                return Err(LedgerError::Sign.into());
            }
        };
        let note = (!note.is_empty()).then_some(note.as_str());
        let entry = books.add(booking, id, fingerprint, note, None);
        granted(db, books, entry)
    }

    fn publish(&self, outcome: &Result<Self::Output, StoreError>, memory: &Memory) {
        publish(&self.0.account, outcome, memory);
    }
}

/// A charge that is given back.
pub(super) struct Refund(pub Undo);

impl Operation for Refund {
    type Output = Booked<Granted>;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Self::Output, Fault> {
        let Undo { account, of, note, id, .. } = &self.0;
        let fingerprint = of_undo(Kind::Refund, &self.0);
        if let Some(granted) = granted_before(db, account, id, &fingerprint)? {
            return Ok((granted, None));
        }
        let mut books = Books::open(db, account, now)?;
        if books.kept.status != Status::Open {
            return Err(not_open(account, books.kept.status).into());
        }
        let debit = undone(db, account, of, Kind::DebitAi)?;
        let (before, amount) = self.0.amount_of(db, &debit)?;
        books.recall(db, &debit.parts)?;
        let new = books.new_lot(db, Class::Usage, None)?.number;
        let ts = books.kept.ts;
        let booking = books.kept.book.refund(&debit.parts, before, amount, new, ts)?;
        let entry = books.add(booking, id, fingerprint, Some(note), Some(debit.seq));
        granted(db, books, entry)
    }

    fn publish(&self, outcome: &Result<Self::Output, StoreError>, memory: &Memory) {
        publish(&self.0.account, outcome, memory);
    }
}

/// A payment that is taken back.
pub(super) struct Reverse(pub Undo);

impl Operation for Reverse {
    type Output = Booked<Granted>;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Self::Output, Fault> {
        let Undo { account, of, note, id, .. } = &self.0;
        let fingerprint = of_undo(Kind::PaymentReversal, &self.0);
        if let Some(granted) = granted_before(db, account, id, &fingerprint)? {
            return Ok((granted, None));
        }
        let mut books = Books::open(db, account, now)?;
        // While it is closing there is still something to take.
        if books.kept.status == Status::Closed {
            return Err(not_open(account, books.kept.status).into());
        }
        let payment = undone(db, account, of, Kind::Topup)?;
        let (before, amount) = self.0.amount_of(db, &payment)?;
        let lot = payment.parts.iter().find_map(|part| match part.place {
            Place::Lot(number) => Some(number),
            Place::Debt => None,
        });
        let booking = books.kept.book.reverse(payment.amount, lot, before, amount)?;
        let entry = books.add(booking, id, fingerprint, Some(note), Some(payment.seq));
        granted(db, books, entry)
    }

    fn publish(&self, outcome: &Result<Self::Output, StoreError>, memory: &Memory) {
        publish(&self.0.account, outcome, memory);
    }
}

impl Undo {
    /// What was undone of an entry before, and what is to be now.
    fn amount_of(&self, db: &Connection, entry: &Entry) -> Result<(Credits, Credits), Fault> {
        let before: Credits = db
            .prepare_cached(
                "SELECT coalesce(sum(abs(amount)), 0) FROM record INDEXED BY record_undoes
                 WHERE account = (SELECT n FROM account WHERE account.id = ?) AND undoes = ?",
            )?
            .query_row(params![self.account, entry.seq.cast_signed()], |row| row.get(0))?;
        let left = entry.amount.abs() - before;
        if self.amount.is_none() && !left.is_positive() {
            return Err(LedgerError::MoreThanWasBooked { left }.into());
        }
        Ok((before, self.amount.unwrap_or(left)))
    }
}

/// The first half of the end of an account: from now on nothing is admitted.
pub(super) struct CloseAccount {
    pub account: AccountId,
    pub id: String,
}

impl Operation for CloseAccount {
    type Output = Booked<()>;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Self::Output, Fault> {
        let Self { account, id } = self;
        let fingerprint = of_closing();
        if let Some(done) = Done::find(db, account, id)? {
            done.must_equal(&fingerprint, id)?;
            return Ok(((), None));
        }
        let mut books = Books::open(db, account, now)?;
        if books.kept.status == Status::Open {
            books.kept.status = Status::Closing;
        }
        books.remember(id, fingerprint);
        Ok(((), Some(books.write(db)?)))
    }

    fn publish(&self, outcome: &Result<Self::Output, StoreError>, memory: &Memory) {
        publish(&self.account, outcome, memory);
    }
}

/// What time does: lots that have ended are written off, and an account that is closing is
/// closed once none of its requests runs.
pub(super) struct Sweep {
    pub accounts: Vec<AccountId>,
    pub memory: Arc<Memory>,
}

impl Operation for Sweep {
    type Output = Vec<Snapshot>;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Self::Output, Fault> {
        let swept = self.accounts.iter().map(|account| {
            let mut books = Books::open(db, account, now)?;
            // Nothing is admitted since it is closing, so what has ended stays ended.
            if books.kept.status == Status::Closing && !self.memory.live.is_busy(account) {
                books.forfeit();
            }
            books.write(db)
        });
        swept.collect()
    }

    fn publish(&self, outcome: &Result<Self::Output, StoreError>, memory: &Memory) {
        for (account, snapshot) in self.accounts.iter().zip(outcome.iter().flatten()) {
            memory.live.set(account, snapshot.clone());
        }
    }
}

impl Sweep {
    /// Accounts of one commit.
    const AT_ONCE: usize = 500;

    /// The accounts in which something is due.
    pub(super) fn due(
        db: &Connection,
        memory: &Arc<Memory>,
        now: Millis,
    ) -> rusqlite::Result<Option<Self>> {
        let mut accounts: Vec<AccountId> = db
            .prepare_cached(
                "SELECT id FROM account INDEXED BY account_expiry
                 WHERE next_expiry IS NOT NULL AND next_expiry <= ? LIMIT ?",
            )?
            .query_map(params![now, Self::AT_ONCE.cast_signed()], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let closing: Vec<AccountId> = db
            .prepare_cached(
                "SELECT id FROM account INDEXED BY account_closing WHERE status = 'closing'",
            )?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let is_idle = |account: &AccountId| !memory.live.is_busy(account);
        accounts.extend(closing.into_iter().filter(is_idle).take(Self::AT_ONCE));
        accounts.sort_unstable();
        accounts.dedup();
        Ok((!accounts.is_empty()).then(|| Self { accounts, memory: memory.clone() }))
    }
}

/// Shows admission what was committed.
pub(super) fn publish<T>(
    account: &AccountId,
    outcome: &Result<Booked<T>, StoreError>,
    memory: &Memory,
) {
    if let Ok((_, Some(snapshot))) = outcome {
        memory.live.set(account, snapshot.clone());
    }
}

fn granted_before(
    db: &Connection,
    account: &AccountId,
    id: &str,
    fingerprint: &Fingerprint,
) -> Result<Option<Granted>, Fault> {
    let Some(done) = Done::find(db, account, id)? else {
        trim::must_not_be(db, account, id)?;
        return Ok(None);
    };
    done.must_equal(fingerprint, id)?;
    let (ts, seq) = done.entry.unwrap_or_default();
    let entry = read::entry_at(db, account, ts, seq)?;
    Ok(Some(Granted { entry, duplicate: true }))
}

fn granted(db: &Step<'_>, books: Books<'_>, entry: Entry) -> Result<Booked<Granted>, Fault> {
    let snapshot = books.write(db)?;
    Ok((Granted { entry, duplicate: false }, Some(snapshot)))
}

/// The entry that is to be undone.
fn undone(db: &Connection, account: &AccountId, of: &str, kind: Kind) -> Result<Entry, Fault> {
    let place = Done::find(db, account, of)?.and_then(|done| done.entry);
    if place.is_none() {
        trim::must_not_be(db, account, of)?;
    }
    let entry = place.map(|(ts, seq)| read::entry_at(db, account, ts, seq)).transpose()?;
    if let Some(entry) = entry.filter(|entry| entry.kind == kind) {
        return Ok(entry);
    }
    let what = if kind == Kind::Topup { "payment" } else { "charged request" };
    // Requests that were trimmed have left no id behind.
    let hint = match trim::checkpoint(db, account)? {
        Some(_) => " (if it was trimmed, correct the balance)",
        None => "",
    };
    Err(StoreError::NotFound(format!("{what} {of}{hint}")).into())
}

fn not_open(account: &AccountId, status: Status) -> StoreError {
    let what = if status == Status::Closing { "closing" } else { "closed" };
    StoreError::Conflict(format!("the account {account} is {what} and takes no credits"))
}
