//! What the writer does: each operation reads, refuses or writes, inside one transaction.

use rusqlite::params;

use super::allowance::Reading;
use super::books::{Books, Done, used_twice};
use super::changes::Booked;
use super::live::{Flight, Ways};
use super::rows::{insert_usage, remove_abandoned};
use super::shelf::Step;
use super::sql::{Fault, Json, Word};
use super::writer::Operation;
use super::{HOUR_MS, Memory, read};
use crate::billing::Credits;
use crate::billing::ledger::{Kind, LedgerError};
use crate::key::KeyHash;
use crate::store::fingerprint::{Fingerprint, of_settlement};
use crate::store::{
    Account, AccountChange, AccountId, Key, KeyChange, Millis, Outcome, Settled, Settlement,
    Status, StoreError,
};

/// How long the maker of an object is remembered.
const OWNED_MS: Millis = 30 * 24 * HOUR_MS;

/// Debit, entry, usage row and sums; the place is given back.
pub(super) struct Settle {
    pub settlement: Settlement,
    /// When it was made, if it is in the log of debits and admission counts it already.
    pub logged_at: Option<Millis>,
    /// Where it counts already against the caps of its key.
    pub counted: Option<Reading>,
}

impl Operation for Settle {
    type Output = Booked<Settled>;
    const KEPT: bool = true;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Self::Output, Fault> {
        let Settlement { account, id, .. } = &self.settlement;
        let fingerprint = of_settlement(&self.settlement);
        let now = self.logged_at.unwrap_or(now);
        // The request has ended, whatever is answered: the one write that comes first.
        forget_flight(db, account, id)?;
        // Nearly every id is new: what was done under it is looked for once it is refused.
        let refused = match self.book(db, fingerprint, now) {
            Ok(Some(booked)) => return Ok(booked),
            Ok(None) => None,
            Err(Fault::Refused(refused)) => Some(refused),
            Err(fault) => return Err(fault),
        };
        match (Done::find(db, account, id)?, refused) {
            (Some(done), _) if !done.is_abandoned() => {
                done.must_equal(&fingerprint, id)?;
                Ok((Settled { balance: Some(done.balance), duplicate: true }, None))
            }
            (_, Some(refused)) => Err(refused.into()),
            (Some(_), None) => {
                remove_abandoned(db, account, id)?;
                self.book(db, fingerprint, now)?.ok_or_else(used_twice)
            }
            (None, None) => Err(used_twice()),
        }
    }

    fn publish(&self, outcome: &Result<Self::Output, StoreError>, memory: &Memory) {
        let Settlement { account, id, key, charge, usage, .. } = &self.settlement;
        let waited = self.logged_at.map(|_| *charge);
        if let Ok((_, Some(snapshot))) = outcome {
            let late = snapshot.status == Status::Closed;
            let charge = if late { Credits::ZERO } else { *charge };
            memory.live.charged(account, key, charge, self.counted, waited, snapshot.clone());
        } else if let Some(waited) = waited {
            memory.live.unbook(account, waited);
            if let Err(error) = outcome {
                tracing::error!(request.id = id, "a debit that was answered is refused: {error}");
            }
        }
        let now = outcome.as_ref().ok().and_then(|(_, snapshot)| snapshot.as_ref());
        let now = now.map_or(Millis::MIN, |snapshot| snapshot.ts);
        memory.live.end(account, id, usage.tokens(), now);
    }
}

impl Settle {
    /// Debit, entry, usage row and sums; nothing at all if the id was used before.
    fn book(
        &self,
        db: &Step<'_>,
        fingerprint: Fingerprint,
        now: Millis,
    ) -> Result<Option<Booked<Settled>>, Fault> {
        let settlement = &self.settlement;
        let mut books = Books::open(db, &settlement.account, now)?;
        let late = books.kept.status == Status::Closed;
        let row = if late { &after_the_end(settlement)? } else { settlement };
        let booking = books.kept.book.debit(Kind::DebitAi, row.charge)?;
        let is_charged = settlement.charge.is_positive();
        let record = if is_charged || settlement.outcome == Outcome::Completed {
            let note = (late && is_charged)
                .then(|| format!("not charged, the account was closed: {}", settlement.charge));
            books.entry(booking, &settlement.id, fingerprint, note.map(Into::into))
        } else {
            books.no_entry(&settlement.id, Some(fingerprint))
        };
        if !insert_usage(db, &record, row, books.kept.ts)? {
            return Ok(None);
        }
        let snapshot = books.write(db)?;
        let balance = Some(snapshot.balance);
        Ok(Some((Settled { balance, duplicate: false }, Some(snapshot))))
    }
}

/// Nothing; answered once all that was handed over before it is written.
/// With `KEPT` also if the database cannot be written for a while.
pub(super) struct AllBefore<const KEPT: bool>;

impl<const KEPT: bool> Operation for AllBefore<KEPT> {
    type Output = ();
    const KEPT: bool = KEPT;

    fn apply(&self, _db: &Step<'_>, _now: Millis) -> Result<(), Fault> {
        Ok(())
    }
}

/// What is written of a request that is settled after its account was closed: the balance of
/// a closed account never changes.
fn after_the_end(settlement: &Settlement) -> Result<Settlement, LedgerError> {
    if settlement.charge.is_negative() {
        return Err(LedgerError::Sign);
    }
    let mut row = Settlement { charge: Credits::ZERO, ..settlement.clone() };
    if !row.flags.is_empty() {
        row.flags.push(',');
    }
    row.flags.push_str("account_closed");
    Ok(row)
}

/// A new account without credits.
pub(super) struct CreateAccount {
    pub id: AccountId,
    pub name: String,
}

impl Operation for CreateAccount {
    type Output = Account;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Account, Fault> {
        let Self { id, name } = self;
        let inserted = db
            .prepare_cached(
                "INSERT INTO account (id, name, status, balance, seq, sub, last_ts, created_at)
                 VALUES (?1, ?2, ?3, 0, 0, 0, ?4, ?4) ON CONFLICT DO NOTHING",
            )?
            .execute(params![id, name, Word(Status::Open), now])?;
        if inserted == 0 {
            return Err(StoreError::Conflict(format!("the account {id} exists")).into());
        }
        read::account(db, id, now)
    }
}

/// A new key.
pub(super) struct CreateKey {
    pub key: Key,
    pub hash: KeyHash,
}

impl Operation for CreateKey {
    type Output = Key;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Key, Fault> {
        let key = Key { created_at: now, ..self.key.clone() };
        read::must_exist(db, &key.account)?;
        let inserted = db
            .prepare_cached(
                "INSERT INTO key (id, hash, account, name, tag, models, rejection, limits, last4,
                     created_at, expires_at, revoked_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                key.id,
                self.hash.0,
                key.account,
                key.name,
                key.tag,
                Json(&key.models),
                Word(key.rejection),
                Json(&key.limits),
                key.last4,
                key.created_at,
                key.expires_at,
                key.revoked_at,
            ])?;
        if inserted == 0 {
            return Err(StoreError::Conflict("this key exists".into()).into());
        }
        Ok(key)
    }
}

/// A change of a key, or its end.
pub(super) struct ChangeKey {
    pub account: AccountId,
    pub id: String,
    /// `None`: it is revoked.
    pub change: Option<KeyChange>,
}

impl Operation for ChangeKey {
    type Output = (Key, KeyHash);

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Self::Output, Fault> {
        let (mut key, hash) = read::key_by_id(db, &self.account, &self.id)?;
        match &self.change {
            Some(change) => change.clone().apply(&mut key),
            None => key.revoked_at = key.revoked_at.or(Some(now)),
        }
        db.prepare_cached(
            "UPDATE key SET name = ?, tag = ?, models = ?, rejection = ?, limits = ?,
                 expires_at = ?, revoked_at = ? WHERE id = ?",
        )?
        .execute(params![
            key.name,
            key.tag,
            Json(&key.models),
            Word(key.rejection),
            Json(&key.limits),
            key.expires_at,
            key.revoked_at,
            key.id,
        ])?;
        Ok((key, hash))
    }

    fn publish(&self, outcome: &Result<Self::Output, StoreError>, memory: &Memory) {
        if let Ok((key, hash)) = outcome {
            memory.keys.change(hash, key);
            memory.live.forget_key(&key.account, &key.id);
        }
    }
}

/// A change of how an account is called or served.
pub(super) struct ConfigureAccount {
    pub id: AccountId,
    pub change: AccountChange,
}

impl Operation for ConfigureAccount {
    type Output = Ways;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Ways, Fault> {
        let Account { name, mode, max_in_flight, .. } = read::account(db, &self.id, now)?;
        let change = self.change.clone();
        let ways = Ways {
            mode: change.mode.unwrap_or(mode),
            max_in_flight: change.max_in_flight.unwrap_or(max_in_flight),
        };
        db.prepare_cached("UPDATE account SET name = ?, mode = ?, max_in_flight = ? WHERE id = ?")?
            .execute(params![
                change.name.unwrap_or(name),
                ways.mode.map(Word),
                ways.max_in_flight,
                self.id,
            ])?;
        Ok(ways)
    }

    fn publish(&self, outcome: &Result<Self::Output, StoreError>, memory: &Memory) {
        if let Ok(ways) = outcome {
            memory.live.set_ways(&self.id, *ways);
        }
    }
}

/// Who made an object at an upstream.
pub(super) struct Own {
    pub account: AccountId,
    pub object: String,
}

impl Operation for Own {
    type Output = ();
    /// As the debit that it goes with, or a reply could be paid and its client told otherwise.
    const KEPT: bool = true;

    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<(), Fault> {
        db.prepare_cached("DELETE FROM owned WHERE until <= ?")?.execute([now])?;
        db.prepare_cached(
            "INSERT INTO owned (account, object, until) VALUES (?, ?, ?)
             ON CONFLICT DO UPDATE SET until = excluded.until",
        )?
        .execute(params![self.account, self.object, now.saturating_add(OWNED_MS)])?;
        Ok(())
    }
}

/// Rows for requests that have run for a while, so that a crash does not make them vanish.
pub(super) struct NoteFlights(pub Vec<Flight>);

impl Operation for NoteFlights {
    type Output = ();
    const KEPT: bool = true;

    fn apply(&self, db: &Step<'_>, _now: Millis) -> Result<(), Fault> {
        let mut insert = db.prepare_cached(
            "INSERT INTO flight (account, id, key, model, admitted_at) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )?;
        for Flight { account, key, request, admitted_at } in &self.0 {
            insert.execute(params![account, request.id, key, request.model, admitted_at])?;
            db.noted(account, &request.id);
        }
        Ok(())
    }
}

/// A request with a row ended without a settlement.
pub(super) struct ForgetFlight {
    pub account: AccountId,
    pub request: String,
}

impl Operation for ForgetFlight {
    type Output = ();
    const KEPT: bool = true;

    fn apply(&self, db: &Step<'_>, _now: Millis) -> Result<(), Fault> {
        Ok(forget_flight(db, &self.account, &self.request)?)
    }
}

fn forget_flight(db: &Step<'_>, account: &AccountId, request: &str) -> rusqlite::Result<()> {
    if !db.ends(account, request) {
        return Ok(());
    }
    db.prepare_cached("DELETE FROM flight WHERE account = ? AND id = ?")?
        .execute(params![account, request])
        .map(drop)
}
