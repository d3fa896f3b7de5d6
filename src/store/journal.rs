//! A journal before a store that is elsewhere: what the store does not take now, or has lost,
//! is sent to it again.
//!
//! A settlement is written to a local file (`log`, `frame`) and sent to the store at the same
//! time. It is answered when both have it: then the balance is known, and the debit survives
//! the loss of either. If the store does not take it, it is answered once it is on disk here,
//! and waits (`pending`). Operations by the operator are answered when the store took them,
//! and are written down too.
//!
//! `replay` asks the store for its epoch twice a second and whenever something failed. While
//! the store is away, or something waits for an account, nothing of it is admitted. When the
//! epoch is another than the last (the server restarted, a replica took its place),
//! acknowledged writes may be gone: everything of the last `replay` is sent again. Each
//! operation happens once by its id, so what survived answers as a duplicate and what was lost
//! is made up for. Only then are requests admitted again.
//!
//! What several processes share is the store, not the journal: each replays its own.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Account, AccountChange, AccountId, Admission, Admitted, Answer, Backlog, Candidate, Document,
    Entry, EntryFilter, Grant, Granted, Group, Key, KeyChange, KeyUse, LotFilter, LotRow, Millis,
    Page, Put, Refused, Rows, Scope, Settled, Settlement, Store, StoreError, StoreStatus,
    SummaryRow, Undo, UsageFilter, UsageRow,
};
use crate::billing::audit::Record;
use crate::key::KeyHash;
use log::{Log, Numbered};
use record::{Line, Operation, Settings, Taken};

pub mod frame;
pub mod log;
pub mod record;
mod replay;
#[cfg(test)]
mod tests;

pub use log::OpenError;

/// Shorter than the time that stores remember the ids of requests, seven days: what is sent
/// again later than that would be booked twice.
pub const LONGEST_REPLAY: Duration = Duration::from_secs(6 * 86_400);
/// How long a reply waits for a store that should be there. After that its debit is pending.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a journal is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of its files.
    pub dir: PathBuf,
    /// How far back everything is sent again when the store may have lost it; at most
    /// [`LONGEST_REPLAY`].
    pub replay: Duration,
}

/// A store with a journal before it.
pub struct Journal {
    shared: Arc<Shared>,
    /// Ends the replay with the journal.
    end: DropGuard,
}

struct Shared {
    store: Arc<dyn Store>,
    log: Log,
    failure: watch::Receiver<Option<String>>,
    replay: Duration,
    gate: Mutex<Gate>,
    /// Something failed, or waits: look now.
    wake: Notify,
    /// Whether requests have ever been admitted.
    opened: watch::Sender<bool>,
    next: AtomicU64,
    refused: AtomicU64,
    recovered: AtomicU64,
}

/// Who may pass, and what waits.
#[derive(Default)]
struct Gate {
    /// Why nothing is admitted, of whatever account.
    halted: Option<String>,
    /// How often the store seemed to be away.
    doubts: u64,
    pending: BTreeMap<u64, Pending>,
    by_account: HashMap<AccountId, u64>,
}

/// An operation that the store has not taken.
struct Pending {
    at: Millis,
    operation: Arc<Operation>,
    /// Who waits for the store's answer.
    waiter: Option<oneshot::Sender<Result<Taken, StoreError>>>,
}

impl Journal {
    /// Opens the journal in its folder, and begins to send what waits there. Admits nothing
    /// until that has happened. Blocks for as long as reading the files takes.
    ///
    /// # Errors
    ///
    /// [`OpenError`], if another process holds the folder, it is damaged or cannot be written.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn open(store: Arc<dyn Store>, options: Options) -> Result<Arc<Self>, OpenError> {
        let replay = options.replay.min(LONGEST_REPLAY);
        // A little longer, so that what is due to be sent again is there.
        let keep = replay + Duration::from_secs(60);
        let files = log::Options { keep, ..log::Options::default() };
        let (log, found) = Log::open(&options.dir, files)?;
        let mut gate =
            Gate { halted: Some("the store has not been asked yet".into()), ..Gate::default() };
        if !found.pending.is_empty() {
            let pending = found.pending.len();
            tracing::warn!(pending, "the journal holds debits that the store has not taken yet");
        }
        for Numbered { seq, at, operation } in found.pending {
            gate.park(seq, at, Arc::new(operation), None);
        }
        let shared = Arc::new(Shared {
            store,
            failure: log.failure(),
            log,
            replay,
            gate: Mutex::new(gate),
            wake: Notify::new(),
            opened: watch::channel(false).0,
            next: AtomicU64::new(found.next),
            refused: AtomicU64::new(0),
            recovered: AtomicU64::new(0),
        });
        let end = CancellationToken::new();
        let work = replay::run(Arc::clone(&shared), found.epoch);
        tokio::spawn(end.clone().run_until_cancelled_owned(work));
        Ok(Arc::new(Self { shared, end: end.drop_guard() }))
    }

    /// Waits until the store has all that the journal holds, so that requests are admitted;
    /// but no longer than this.
    pub async fn settled_within(&self, patience: Duration) {
        let mut opened = self.shared.opened.subscribe();
        // Late is no failure: it goes on.
        let _ = tokio::time::timeout(patience, opened.wait_for(|is_open| *is_open)).await;
    }

    /// Writes an operation down and sends it, at the same time; answered when it is safe.
    fn keep(&self, operation: Operation) -> Answer<'static, Taken> {
        let shared = Arc::clone(&self.shared);
        let (seq, at) = (shared.next_seq(), crate::time::now());
        let line = Line::Operation { seq, at, taken: false, operation: &operation };
        let durable = shared.log.append(line);
        let operation = Arc::new(operation);
        let kept = Some(Arc::clone(&operation));
        let mut flight = Flight { shared: Arc::clone(&shared), seq, at, operation: kept };
        Box::pin(async move {
            let answer = shared.try_send(&operation).await;
            if matches!(answer, Err(StoreError::Unavailable(_))) {
                let taken = flight.park();
                return shared.first_safe(durable, taken).await;
            }
            flight.arrived();
            shared.log.note(Line::<()>::Ended(vec![seq]));
            if answer.is_ok() {
                // If the disk fails the store has it all the same.
                tokio::select! {
                    _ = durable => {}
                    () = shared.log_fails() => {}
                }
            }
            answer
        })
    }

    /// Does what the operator asks, and writes it down once the store took it.
    fn through<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        ask: impl FnOnce(&'a dyn Store) -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        let shared = &self.shared;
        Box::pin(async move {
            shared.log_works()?;
            let answer = shared.heed(ask(shared.store.as_ref()).await)?;
            shared.note_taken(operation).await?;
            Ok(answer)
        })
    }

    /// Asks the store alone.
    fn ask<'a, T: Send + 'a>(&'a self, answer: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move { self.shared.heed(answer.await) })
    }
}

/// An operation that is on its way; dropped before its end, it waits for the replay.
struct Flight {
    shared: Arc<Shared>,
    seq: u64,
    at: Millis,
    operation: Option<Arc<Operation>>,
}

impl Flight {
    /// The store has answered.
    fn arrived(&mut self) {
        self.operation = None;
    }

    /// Leaves it to the replay; what that will learn.
    fn park(&mut self) -> oneshot::Receiver<Result<Taken, StoreError>> {
        let (waiter, taken) = oneshot::channel();
        if let Some(operation) = self.operation.take() {
            self.shared.gate().park(self.seq, self.at, operation, Some(waiter));
            self.shared.wake.notify_one();
        }
        taken
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        drop(self.park());
    }
}

impl Gate {
    fn park(
        &mut self,
        seq: u64,
        at: Millis,
        operation: Arc<Operation>,
        waiter: Option<oneshot::Sender<Result<Taken, StoreError>>>,
    ) {
        *self.by_account.entry(operation.account().clone()).or_default() += 1;
        self.pending.insert(seq, Pending { at, operation, waiter });
    }

    fn unpark(&mut self, seq: u64) -> Option<Pending> {
        let pending = self.pending.remove(&seq)?;
        let account = pending.operation.account();
        if let Some(count) = self.by_account.get_mut(account) {
            *count -= 1;
            if *count == 0 {
                self.by_account.remove(account);
            }
        }
        Some(pending)
    }

    /// Whether the store is there and has all that it once took.
    fn is_open(&self) -> Result<(), StoreError> {
        match &self.halted {
            Some(why) => Err(StoreError::Unavailable(self.with_count(why))),
            None => Ok(()),
        }
    }

    /// Whether requests of this account may be admitted.
    fn may_pass(&self, account: &AccountId) -> Result<(), StoreError> {
        self.is_open()?;
        match self.by_account.get(account) {
            Some(count) => Err(StoreError::Unavailable(format!(
                "{count} operations of this account wait for the store"
            ))),
            None => Ok(()),
        }
    }

    fn with_count(&self, why: &str) -> String {
        match self.pending.len() {
            0 => why.to_owned(),
            pending => format!("{why}; {pending} operations wait in the journal"),
        }
    }
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_seq(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn log_works(&self) -> Result<(), StoreError> {
        match &*self.failure.borrow() {
            Some(why) => {
                Err(StoreError::Unavailable(format!("the journal cannot be written: {why}")))
            }
            None => Ok(()),
        }
    }

    /// Ends when the journal cannot be written.
    async fn log_fails(&self) {
        let mut failure = self.failure.clone();
        if failure.wait_for(Option::is_some).await.is_err() {
            // The thread has ended; it has answered all that it will.
        }
    }

    /// Admits nothing more if an answer says that the store is away, until `replay` has looked.
    fn heed<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Unavailable(why)) = &answer {
            let mut gate = self.gate();
            gate.doubts += 1;
            gate.halted.get_or_insert_with(|| why.clone());
            self.wake.notify_one();
        }
        answer
    }

    /// Writes down what the store took.
    async fn note_taken(&self, operation: Operation) -> Result<(), StoreError> {
        let (seq, at) = (self.next_seq(), crate::time::now());
        let durable = self.log.append(Line::Operation { seq, at, taken: true, operation });
        tokio::select! {
            _ = durable => Ok(()),
            () = self.log_fails() => Err(StoreError::Unavailable(
                "it was booked, but the journal cannot be written: send it again".into(),
            )),
        }
    }

    async fn try_send(&self, operation: &Operation) -> Result<Taken, StoreError> {
        if let Some(why) = &self.gate().halted {
            return Err(StoreError::Unavailable(why.clone()));
        }
        let answer = tokio::time::timeout(PATIENCE, operation.send(self.store.as_ref())).await;
        let late = |_| StoreError::Unavailable("the store does not answer".into());
        self.heed(answer.map_err(late).flatten())
    }

    /// An operation that the store did not take: safe once it is on disk, or in the store.
    async fn first_safe(
        &self,
        durable: oneshot::Receiver<()>,
        taken: oneshot::Receiver<Result<Taken, StoreError>>,
    ) -> Result<Taken, StoreError> {
        let ended = |_| StoreError::Unavailable("the journal has ended".into());
        tokio::select! {
            biased;
            Ok(()) = durable => Ok(Taken { balance: None, duplicate: false }),
            taken = taken => taken.map_err(ended).flatten(),
        }
    }
}

/// Why a store is away, to be told once as that.
fn reason(error: StoreError) -> String {
    match error {
        StoreError::Unavailable(why) => why,
        other => other.to_string(),
    }
}

impl Store for Journal {
    fn create_account(&self, id: AccountId, name: String) -> Answer<'_, Account> {
        let operation = Operation::CreateAccount { account: id.clone(), name: name.clone() };
        self.through(operation, |store| store.create_account(id, name))
    }

    fn account(&self, id: &AccountId) -> Answer<'_, Account> {
        self.ask(self.shared.store.account(id))
    }

    fn accounts(&self, page: Page) -> Answer<'_, Rows<Account>> {
        self.ask(self.shared.store.accounts(page))
    }

    fn configure_account(&self, id: &AccountId, change: AccountChange) -> Answer<'_, Account> {
        let (shared, id) = (&self.shared, id.clone());
        Box::pin(async move {
            shared.log_works()?;
            let before = shared.heed(shared.store.account(&id).await)?;
            let after = shared.heed(shared.store.configure_account(&id, change).await)?;
            let (before, after) = (Settings::of(&before), Settings::of(&after));
            shared
                .note_taken(Operation::ConfigureAccount { account: id.clone(), before, after })
                .await?;
            shared.heed(shared.store.account(&id).await)
        })
    }

    fn create_key(&self, key: Key, hash: KeyHash) -> Answer<'_, Key> {
        let operation = Operation::CreateKey { key: Box::new(key.clone()), hash: hash.0 };
        self.through(operation, move |store| store.create_key(key, hash))
    }

    fn key(&self, hash: &KeyHash) -> Answer<'_, Option<Arc<Key>>> {
        let answer = self.ask(self.shared.store.key(hash));
        Box::pin(async move {
            match answer.await? {
                // It may be among what the store has lost and is about to be sent again.
                None => self.shared.gate().is_open().map(|()| None),
                known => Ok(known),
            }
        })
    }

    fn keys(&self, account: &AccountId) -> Answer<'_, Vec<Key>> {
        self.ask(self.shared.store.keys(account))
    }

    fn change_key(&self, account: &AccountId, id: &str, change: KeyChange) -> Answer<'_, Key> {
        let (shared, account, id) = (&self.shared, account.clone(), id.to_owned());
        Box::pin(async move {
            shared.log_works()?;
            let keys = shared.heed(shared.store.keys(&account).await)?;
            let after = shared.heed(shared.store.change_key(&account, &id, change).await)?;
            if let Some(before) = keys.into_iter().find(|key| key.id == id) {
                let (before, after) = (Box::new(before), Box::new(after.clone()));
                shared.note_taken(Operation::ChangeKey { before, after }).await?;
            }
            Ok(after)
        })
    }

    fn key_use(&self, account: &AccountId, id: &str) -> Answer<'_, KeyUse> {
        self.ask(self.shared.store.key_use(account, id))
    }

    fn revoke_key(&self, account: &AccountId, id: &str) -> Answer<'_, Key> {
        let (account, key) = (account.clone(), id.to_owned());
        let operation = Operation::RevokeKey { account: account.clone(), key: key.clone() };
        self.through(operation, move |store| store.revoke_key(&account, &key))
    }

    fn admit(
        &self,
        key: &Key,
        request: Candidate,
        how: Admission,
    ) -> Answer<'_, Result<Admitted, Refused>> {
        let may_pass = |()| self.shared.gate().may_pass(&key.account);
        match self.shared.log_works().and_then(may_pass) {
            Ok(()) => self.ask(self.shared.store.admit(key, request, how)),
            Err(unavailable) => Box::pin(std::future::ready(Err(unavailable))),
        }
    }

    fn release(&self, account: &AccountId, request: &str) {
        self.shared.store.release(account, request);
    }

    fn settle(&self, settlement: Settlement) -> Answer<'_, Settled> {
        let kept = self.keep(Operation::Settle(Box::new(settlement)));
        Box::pin(async move {
            let Taken { balance, duplicate } = kept.await?;
            Ok(Settled { balance, duplicate })
        })
    }

    fn grant(&self, grant: Grant) -> Answer<'_, Granted> {
        self.through(Operation::Grant(grant.clone()), |store| store.grant(grant))
    }

    fn refund(&self, refund: Undo) -> Answer<'_, Granted> {
        self.through(Operation::Refund(refund.clone()), |store| store.refund(refund))
    }

    fn reverse(&self, reversal: Undo) -> Answer<'_, Granted> {
        self.through(Operation::Reverse(reversal.clone()), |store| store.reverse(reversal))
    }

    fn close_account(&self, account: &AccountId, id: String) -> Answer<'_, Account> {
        let account = account.clone();
        let operation = Operation::Close { account: account.clone(), id: id.clone() };
        self.through(operation, move |store| store.close_account(&account, id))
    }

    fn lots(&self, account: &AccountId, filter: LotFilter, page: Page) -> Answer<'_, Rows<LotRow>> {
        self.ask(self.shared.store.lots(account, filter, page))
    }

    fn entries(
        &self,
        account: &AccountId,
        filter: EntryFilter,
        page: Page,
    ) -> Answer<'_, Rows<Entry>> {
        self.ask(self.shared.store.entries(account, filter, page))
    }

    fn usage(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        page: Page,
    ) -> Answer<'_, Rows<UsageRow>> {
        self.ask(self.shared.store.usage(account, filter, page))
    }

    fn entries_oldest_first(
        &self,
        account: &AccountId,
        filter: EntryFilter,
        page: Page,
    ) -> Answer<'_, Rows<Entry>> {
        self.ask(self.shared.store.entries_oldest_first(account, filter, page))
    }

    fn usage_oldest_first(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        page: Page,
    ) -> Answer<'_, Rows<UsageRow>> {
        self.ask(self.shared.store.usage_oldest_first(account, filter, page))
    }

    fn summary(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        by: Group,
        zone: jiff::tz::TimeZone,
    ) -> Answer<'_, Vec<SummaryRow>> {
        self.ask(self.shared.store.summary(account, filter, by, zone))
    }

    fn audited_accounts(&self, page: Page) -> Answer<'_, Rows<AccountId>> {
        self.ask(self.shared.store.audited_accounts(page))
    }

    fn read_books(
        &self,
        account: &AccountId,
        records: mpsc::Sender<Vec<Record>>,
    ) -> Answer<'_, ()> {
        self.ask(self.shared.store.read_books(account, records))
    }

    fn trim(&self, account: &AccountId, before: Millis) -> Answer<'_, ()> {
        self.ask(self.shared.store.trim(account, before))
    }

    fn status(&self) -> Answer<'_, StoreStatus> {
        let status = self.ask(self.shared.store.status());
        Box::pin(async move {
            let mut status = status.await?;
            status.pending = self.backlog().map(|backlog| backlog.pending);
            if let Some(server) = &mut status.server {
                let replay = humantime_serde::re::humantime::format_duration(self.shared.replay);
                let again = format!("; journals send the last {replay} again, once");
                server.may_lose.push_str(&again);
            }
            Ok(status)
        })
    }

    fn backup(&self) -> Answer<'_, std::fs::File> {
        self.ask(self.shared.store.backup())
    }

    fn own(&self, account: &AccountId, object: &str) -> Answer<'_, ()> {
        let object = object.to_owned();
        let kept = self.keep(Operation::Own { account: account.clone(), object });
        Box::pin(async move { kept.await.map(drop) })
    }

    fn owns(&self, account: &AccountId, object: &str) -> Answer<'_, bool> {
        self.ask(self.shared.store.owns(account, object))
    }

    fn document(&self, scope: &Scope, name: &str) -> Answer<'_, Option<Document>> {
        self.ask(self.shared.store.document(scope, name))
    }

    fn put_document(&self, scope: &Scope, put: Put) -> Answer<'_, u64> {
        // It could not be sent again: documents are no history, and this one may be another by now.
        self.ask(self.shared.store.put_document(scope, put))
    }

    fn epoch(&self) -> Answer<'_, String> {
        self.shared.store.epoch()
    }

    fn backlog(&self) -> Option<Backlog> {
        let gate = self.shared.gate();
        let halted = self.shared.log_works().err().map(reason);
        Some(Backlog {
            pending: gate.pending.len() as u64,
            oldest: gate.pending.values().map(|pending| pending.at).min(),
            refused: self.shared.refused.load(Ordering::Relaxed),
            recovered: self.shared.recovered.load(Ordering::Relaxed),
            halted: halted.or_else(|| gate.halted.clone()),
        })
    }

    fn ready(&self) -> Answer<'_, ()> {
        let works = self.shared.log_works().and_then(|()| self.shared.gate().is_open());
        match works {
            Ok(()) => self.ask(self.shared.store.ready()),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn close(&self) -> Answer<'_, ()> {
        self.end.token().cancel();
        let written = self.shared.log.close();
        Box::pin(async move {
            let ended = |_| StoreError::Unavailable("the journal has ended".into());
            written.await.map_err(ended)?.map_err(StoreError::Unavailable)?;
            let pending = self.shared.gate().pending.len();
            if pending > 0 {
                tracing::warn!(
                    pending,
                    "operations wait in the journal: they are sent when this is started again"
                );
            }
            self.shared.store.close().await
        })
    }
}
