//! What the writer does: each operation reads, refuses or writes, inside one transaction.

use rusqlite::{Connection, OptionalExtension, named_params, params};
use sha2::{Digest, Sha256};

use super::live::Flight;
use super::read;
use super::sql::{Count, Fault, Json, Word};
use super::writer::Operation;
use super::{HOUR_MS, Memory};
use crate::billing::ledger::{Kind, LedgerError, book};
use crate::billing::{Credits, Usage};
use crate::key::KeyHash;
use crate::store::{
    Account, AccountId, Attribution, Entry, Grant, Granted, Key, Millis, Outcome, Settled,
    Settlement, Source, Status, StoreError,
};

/// How long the maker of an object is remembered.
const OWNED_MS: Millis = 30 * 24 * HOUR_MS;

type Fingerprint = [u8; 32];

/// Debit, entry, usage row and sums; the place is given back.
pub(super) struct Settle {
    settlement: Settlement,
    fingerprint: Fingerprint,
}

impl Settle {
    pub(super) fn new(settlement: Settlement) -> Self {
        let fingerprint = fingerprint_of(&settlement);
        Self { settlement, fingerprint }
    }
}

impl Operation for Settle {
    type Output = Settled;
    const KEPT: bool = true;

    fn apply(&self, db: &Connection, now: Millis) -> Result<Settled, Fault> {
        let settlement = &self.settlement;
        // The request has ended, whatever is answered: the one write that comes first.
        forget_flight(db, &settlement.account, &settlement.id)?;
        let done = Done::find(db, &settlement.account, &settlement.id)?;
        let was_abandoned = done.as_ref().is_some_and(|done| done.fingerprint.is_none());
        if let Some(done) = done.filter(|_| !was_abandoned) {
            done.must_equal(&self.fingerprint, &settlement.id)?;
            return Ok(Settled { balance: done.balance, duplicate: true });
        }
        let mut books = Books::open(db, &settlement.account, now)?;
        if settlement.charge.is_negative() {
            return Err(LedgerError::Sign.into());
        }
        let amount = -settlement.charge;
        book(books.balance, Kind::DebitAi, amount)?;

        if was_abandoned {
            remove_abandoned(db, &settlement.account, &settlement.id)?;
        }
        let makes_entry =
            settlement.charge.is_positive() || settlement.outcome == Outcome::Completed;
        let entry = if makes_entry {
            Some(books.append(db, Kind::DebitAi, amount, &settlement.id, None)?)
        } else {
            books.touch(db)?;
            None
        };
        let seq = entry.map(|entry| entry.seq);
        let fingerprint = Some(&self.fingerprint);
        remember(db, &settlement.account, &settlement.id, fingerprint, seq, books.balance)?;
        insert_usage(db, settlement, books.ts)?;
        Ok(Settled { balance: books.balance, duplicate: false })
    }

    fn publish(&self, outcome: &Result<Settled, StoreError>, memory: &Memory) {
        let Settlement { account, id, .. } = &self.settlement;
        if let Ok(Settled { balance, duplicate: false }) = outcome {
            memory.live.set_balance(account, *balance);
        }
        memory.live.end(account, id);
    }
}

/// Credits by the operator.
pub(super) struct GrantCredits(pub Grant);

impl Operation for GrantCredits {
    type Output = Granted;

    fn apply(&self, db: &Connection, now: Millis) -> Result<Granted, Fault> {
        let Grant { account, kind, amount, note, id } = &self.0;
        let fingerprint = fingerprint_of_grant(&self.0);
        if let Some(done) = Done::find(db, account, id)? {
            done.must_equal(&fingerprint, id)?;
            let entry = read::entry_at(db, account, done.seq.unwrap_or(0))?;
            return Ok(Granted { entry, duplicate: true });
        }
        let mut books = Books::open(db, account, now)?;
        if books.status != Status::Open {
            let why = format!("the account {account} is closed and takes no credits");
            return Err(StoreError::Conflict(why).into());
        }
        if *kind == Kind::DebitAi {
            return Err(LedgerError::Sign.into());
        }
        book(books.balance, *kind, *amount)?;

        let note = (!note.is_empty()).then_some(note.as_str());
        let entry = books.append(db, *kind, *amount, id, note)?;
        remember(db, account, id, Some(&fingerprint), Some(entry.seq), books.balance)?;
        Ok(Granted { entry, duplicate: false })
    }

    fn publish(&self, outcome: &Result<Granted, StoreError>, memory: &Memory) {
        if let Ok(Granted { entry, duplicate: false }) = outcome {
            memory.live.set_balance(&self.0.account, entry.balance_after);
        }
    }
}

/// A new account without credits.
pub(super) struct CreateAccount {
    pub id: AccountId,
    pub name: String,
}

impl Operation for CreateAccount {
    type Output = Account;

    fn apply(&self, db: &Connection, now: Millis) -> Result<Account, Fault> {
        let Self { id, name } = self;
        let inserted = db
            .prepare_cached(
                "INSERT INTO account (id, name, status, balance, seq, last_ts, created_at)
                 VALUES (?1, ?2, ?3, 0, 0, ?4, ?4) ON CONFLICT DO NOTHING",
            )?
            .execute(params![id, name, Word(Status::Open), now])?;
        if inserted == 0 {
            return Err(StoreError::Conflict(format!("the account {id} exists")).into());
        }
        read::account(db, id)
    }
}

/// A new key.
pub(super) struct CreateKey {
    pub key: Key,
    pub hash: KeyHash,
}

impl Operation for CreateKey {
    type Output = Key;

    fn apply(&self, db: &Connection, now: Millis) -> Result<Key, Fault> {
        let key = Key { created_at: now, ..self.key.clone() };
        read::must_exist(db, &key.account)?;
        let inserted = db
            .prepare_cached(
                "INSERT INTO key (id, hash, account, name, tag, models, rejection, last4,
                     created_at, expires_at, revoked_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                key.id,
                self.hash.0,
                key.account,
                key.name,
                key.tag,
                Json(&key.models),
                Word(key.rejection),
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

/// The end of a key.
pub(super) struct RevokeKey {
    pub account: AccountId,
    pub id: String,
}

impl Operation for RevokeKey {
    type Output = (Key, KeyHash);

    fn apply(&self, db: &Connection, now: Millis) -> Result<Self::Output, Fault> {
        db.prepare_cached(
            "UPDATE key SET revoked_at = ? WHERE id = ? AND account = ? AND revoked_at IS NULL",
        )?
        .execute(params![now, self.id, self.account])?;
        read::key_by_id(db, &self.account, &self.id)
    }

    fn publish(&self, outcome: &Result<Self::Output, StoreError>, memory: &Memory) {
        if let Ok((Key { revoked_at: Some(at), .. }, hash)) = outcome {
            memory.keys.revoke(hash, *at);
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

    fn apply(&self, db: &Connection, now: Millis) -> Result<(), Fault> {
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

    fn apply(&self, db: &Connection, _now: Millis) -> Result<(), Fault> {
        let mut insert = db.prepare_cached(
            "INSERT INTO flight (account, id, key, model, admitted_at) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )?;
        for Flight { account, request, admitted_at } in &self.0 {
            insert.execute(params![
                account,
                request.id,
                request.key,
                request.model,
                admitted_at
            ])?;
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

    fn apply(&self, db: &Connection, _now: Millis) -> Result<(), Fault> {
        Ok(forget_flight(db, &self.account, &self.request)?)
    }
}

/// Lists the requests that the last process left behind, as usage rows without a charge.
///
/// A settlement that comes late is debited all the same, and its row takes their place.
pub(super) fn abandon_flights(db: &Connection, now: Millis) -> Result<usize, Fault> {
    let flights: Vec<Flight> = db
        .prepare("SELECT account, id, key, model, admitted_at FROM flight")?
        .query_map([], Flight::read)?
        .collect::<Result<_, _>>()?;
    for Flight { account, request, admitted_at } in &flights {
        let books = Books::open(db, account, now)?;
        books.touch(db)?;
        let ran_ms = books.ts.saturating_sub(*admitted_at);
        let row = Settlement {
            id: request.id.clone(),
            account: account.clone(),
            key: request.key.clone(),
            model: request.model.clone(),
            served_model: None,
            upstream: String::new(),
            attribution: Attribution::default(),
            usage: Usage::default(),
            charge: Credits::ZERO,
            price_version: String::new(),
            ttft_ms: None,
            latency_ms: u32::try_from(ran_ms.max(0)).unwrap_or(u32::MAX),
            stream: false,
            outcome: Outcome::Abandoned,
            source: Source::None,
            http_status: 0,
            flags: String::new(),
        };
        remember(db, account, &request.id, None, None, books.balance)?;
        insert_usage(db, &row, books.ts)?;
    }
    db.execute("DELETE FROM flight", [])?;
    Ok(flights.len())
}

/// Takes back what [`abandon_flights`] wrote about a request.
fn remove_abandoned(db: &Connection, account: &AccountId, id: &str) -> rusqlite::Result<()> {
    let (ts, key, model): (Millis, String, String) = db.query_row(
        "DELETE FROM usage WHERE account = ? AND outcome = 'abandoned' AND outcome <> 'completed'
             AND id = ? RETURNING ts, key, model",
        params![account, id],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let hour = ts.div_euclid(HOUR_MS);
    let sums = "account = ? AND hour = ? AND model = ? AND key = ? AND tag = ''";
    db.execute(
        &format!("UPDATE usage_hour SET requests = requests - 1 WHERE {sums}"),
        params![account, hour, model, key],
    )?;
    db.execute(
        &format!("DELETE FROM usage_hour WHERE {sums} AND requests = 0"),
        params![account, hour, model, key],
    )?;
    db.execute("DELETE FROM op WHERE account = ? AND id = ?", params![account, id])?;
    Ok(())
}

/// The changing part of an account, read before it is written.
struct Books<'a> {
    account: &'a AccountId,
    status: Status,
    balance: Credits,
    seq: u64,
    /// Of what is written now: the clock, but never before what was written last.
    ts: Millis,
}

impl<'a> Books<'a> {
    fn open(db: &Connection, account: &'a AccountId, now: Millis) -> Result<Self, Fault> {
        db.prepare_cached("SELECT status, balance, seq, last_ts FROM account WHERE id = ?")?
            .query_row([account], |row| {
                Ok(Self {
                    account,
                    status: row.get::<_, Word<_>>(0)?.0,
                    balance: row.get(1)?,
                    seq: row.get::<_, Count>(2)?.0,
                    ts: now.max(row.get(3)?),
                })
            })
            .optional()?
            .ok_or_else(|| read::no_account(account).into())
    }

    /// Adds an entry that the rules of [`book`] allow.
    fn append(
        &mut self,
        db: &Connection,
        kind: Kind,
        amount: Credits,
        reference: &str,
        note: Option<&str>,
    ) -> Result<Entry, Fault> {
        self.balance = book(self.balance, kind, amount)?;
        self.seq += 1;
        self.touch(db)?;
        db.prepare_cached(
            "INSERT INTO entry (account, seq, ts, kind, amount, balance_after, ref, note)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            self.account,
            Count(self.seq),
            self.ts,
            kind.name(),
            amount,
            self.balance,
            reference,
            note,
        ])?;
        Ok(Entry {
            seq: self.seq,
            ts: self.ts,
            kind,
            amount,
            balance_after: self.balance,
            reference: reference.into(),
            note: note.map(Into::into),
        })
    }

    /// Writes the account as it stands here.
    fn touch(&self, db: &Connection) -> rusqlite::Result<()> {
        db.prepare_cached("UPDATE account SET balance = ?, seq = ?, last_ts = ? WHERE id = ?")?
            .execute(params![self.balance, Count(self.seq), self.ts, self.account])
            .map(drop)
    }
}

/// An operation that was done before.
struct Done {
    /// `None`: the request was abandoned.
    fingerprint: Option<Fingerprint>,
    seq: Option<u64>,
    balance: Credits,
}

impl Done {
    fn find(db: &Connection, account: &AccountId, id: &str) -> rusqlite::Result<Option<Self>> {
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

    fn must_equal(&self, fingerprint: &Fingerprint, id: &str) -> Result<(), StoreError> {
        if self.fingerprint.as_ref() == Some(fingerprint) {
            Ok(())
        } else {
            Err(StoreError::Conflict(format!("the id {id} was used with other content")))
        }
    }
}

fn remember(
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

fn forget_flight(db: &Connection, account: &AccountId, request: &str) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM flight WHERE account = ? AND id = ?")?
        .execute(params![account, request])
        .map(drop)
}

/// Writes the row of a request and adds it to the sums.
fn insert_usage(db: &Connection, row: &Settlement, ts: Millis) -> rusqlite::Result<()> {
    let Settlement { attribution, usage, .. } = row;
    db.prepare_cached(
        "INSERT INTO usage (account, ts, id, key, model, served_model, upstream,
             run, agent, session, origin, tag,
             input, cached, cache_creation_5m, cache_creation_1h, output, reasoning,
             input_audio, input_image, cached_audio, output_audio, output_image, calls,
             charge, price_version, ttft_ms, latency_ms, stream,
             outcome, source, http_status, flags)
         VALUES (:account, :ts, :id, :key, :model, :served_model, :upstream,
             :run, :agent, :session, :origin, :tag,
             :input, :cached, :cache_creation_5m, :cache_creation_1h, :output, :reasoning,
             :input_audio, :input_image, :cached_audio, :output_audio, :output_image, :calls,
             :charge, :price_version, :ttft_ms, :latency_ms, :stream,
             :outcome, :source, :http_status, :flags)",
    )?
    .execute(named_params! {
        ":account": row.account,
        ":ts": ts,
        ":id": row.id,
        ":key": row.key,
        ":model": row.model,
        ":served_model": row.served_model,
        ":upstream": row.upstream,
        ":run": attribution.run,
        ":agent": attribution.agent,
        ":session": attribution.session,
        ":origin": attribution.origin,
        ":tag": attribution.tag,
        ":input": Count(usage.input),
        ":cached": Count(usage.cached),
        ":cache_creation_5m": Count(usage.cache_creation_5m),
        ":cache_creation_1h": Count(usage.cache_creation_1h),
        ":output": Count(usage.output),
        ":reasoning": Count(usage.reasoning),
        ":input_audio": Count(usage.input_audio),
        ":input_image": Count(usage.input_image),
        ":cached_audio": Count(usage.cached_audio),
        ":output_audio": Count(usage.output_audio),
        ":output_image": Count(usage.output_image),
        ":calls": (!usage.calls.is_empty()).then_some(Json(&usage.calls)),
        ":charge": row.charge,
        ":price_version": row.price_version,
        ":ttft_ms": row.ttft_ms,
        ":latency_ms": row.latency_ms,
        ":stream": row.stream,
        ":outcome": Word(row.outcome),
        ":source": Word(row.source),
        ":http_status": row.http_status,
        ":flags": row.flags,
    })?;
    add_to_sums(db, row, ts)
}

fn add_to_sums(db: &Connection, row: &Settlement, ts: Millis) -> rusqlite::Result<()> {
    let Settlement { attribution, usage, .. } = row;
    let cache_creation =
        Count(usage.cache_creation_5m).column() + Count(usage.cache_creation_1h).column();
    db.prepare_cached(
        "INSERT INTO usage_hour (account, hour, model, key, tag, requests,
             input, cached, cache_creation, output, charge, estimated)
         VALUES (:account, :hour, :model, :key, :tag, 1,
             :input, :cached, :cache_creation, :output, :charge, :estimated)
         ON CONFLICT DO UPDATE SET
             requests = requests + 1,
             input = input + excluded.input,
             cached = cached + excluded.cached,
             cache_creation = cache_creation + excluded.cache_creation,
             output = output + excluded.output,
             charge = charge + excluded.charge,
             estimated = estimated + excluded.estimated",
    )?
    .execute(named_params! {
        ":account": row.account,
        ":hour": ts.div_euclid(HOUR_MS),
        ":model": row.model,
        ":key": row.key,
        ":tag": attribution.tag.as_deref().unwrap_or_default(),
        ":input": Count(usage.input),
        ":cached": Count(usage.cached),
        ":cache_creation": cache_creation,
        ":output": Count(usage.output),
        ":charge": row.charge,
        ":estimated": row.source == Source::Estimated,
    })
    .map(drop)
}

/// What makes two settlements of one id the same: what was used, by whom, and what it costs.
fn fingerprint_of(settlement: &Settlement) -> Fingerprint {
    let Settlement { key, model, usage, charge, .. } = settlement;
    let mut hash = Sha256::new();
    hash.update(b"settle");
    update_text(&mut hash, key);
    update_text(&mut hash, model);
    hash.update(charge.nano().to_le_bytes());
    let counts = [
        usage.input,
        usage.cached,
        usage.cache_creation_5m,
        usage.cache_creation_1h,
        usage.output,
        usage.reasoning,
        usage.input_audio,
        usage.input_image,
        usage.cached_audio,
        usage.output_audio,
        usage.output_image,
    ];
    for count in counts {
        hash.update(count.to_le_bytes());
    }
    for (call, count) in &usage.calls {
        update_text(&mut hash, call);
        hash.update(count.to_le_bytes());
    }
    hash.finalize().into()
}

fn fingerprint_of_grant(grant: &Grant) -> Fingerprint {
    let mut hash = Sha256::new();
    hash.update(b"grant");
    update_text(&mut hash, grant.kind.name());
    hash.update(grant.amount.nano().to_le_bytes());
    update_text(&mut hash, &grant.note);
    hash.finalize().into()
}

/// With its length, so that two texts never run into one another.
fn update_text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}
