//! The books of an account: its balance, its entries, and what was done before.

use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::read;
use super::sql::{Count, Fault, Word};
use crate::billing::Credits;
use crate::billing::ledger::{Kind, book};
use crate::store::{AccountId, Entry, Grant, Millis, Settlement, Status, StoreError};

/// The SHA-256 of an operation's content.
pub(super) type Fingerprint = [u8; 32];

/// The changing part of an account, read before it is written.
pub(super) struct Books<'a> {
    account: &'a AccountId,
    pub(super) status: Status,
    pub(super) balance: Credits,
    seq: u64,
    /// Of what is written now: the clock, but never before what was written last.
    pub(super) ts: Millis,
}

impl<'a> Books<'a> {
    pub(super) fn open(
        db: &Connection,
        account: &'a AccountId,
        now: Millis,
    ) -> Result<Self, Fault> {
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
    pub(super) fn append(
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
    pub(super) fn touch(&self, db: &Connection) -> rusqlite::Result<()> {
        db.prepare_cached("UPDATE account SET balance = ?, seq = ?, last_ts = ? WHERE id = ?")?
            .execute(params![self.balance, Count(self.seq), self.ts, self.account])
            .map(drop)
    }
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

/// What makes two settlements of one id the same: what was used, by whom, and what it costs.
pub(super) fn fingerprint_of(settlement: &Settlement) -> Fingerprint {
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

pub(super) fn fingerprint_of_grant(grant: &Grant) -> Fingerprint {
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
