//! The embedded store: one SQLite file, one process.
//!
//! The debit of a request is appended to a log and answered (`debits`). One thread writes
//! (`writer`): it takes all operations that wait (`operations`, `changes`), these debits among
//! them, commits once and answers each. Admission and keys are answered from memory (`live`, `keys`),
//! pages are read on other connections (`read`, `summary`). Nothing is loaded at start, so
//! a million accounts cost nothing until they are used.

use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::sums::HOUR_MS;
use super::{
    Account, AccountChange, AccountId, Admission, Admitted, Answer, Candidate, Document, Entry,
    EntryFilter, Grant, Granted, Group, Key, KeyChange, KeyUse, LotFilter, LotRow, Millis, Page,
    Put, Refused, Rows, Scope, Settled, Settlement, Store, StoreError, StoreStatus, SummaryRow,
    Undo, UsageFilter, UsageRow,
};
use crate::billing::audit::Record;
use crate::key::KeyHash;
use changes::{Booked, CloseAccount, GrantCredits, Refund, Reverse, Sweep};
use checkpoint::Checkpointer;
use debits::{Debits, Found};
use documents::PutDocument;
use keys::Keys;
use live::{Live, Missing};
use operations::{
    AllBefore, ChangeKey, ConfigureAccount, CreateAccount, CreateKey, ForgetFlight, Own, Settle,
};
use read::Order;
use readers::Readers;
use shelf::{Shelf, Step};
use sql::Fault;
use trim::Trim;
use writer::{Operation, Reply, Writer};

mod allowance;
mod audit;
mod books;
mod changes;
mod checkpoint;
pub mod copy;
mod debits;
mod documents;
mod file;
mod keys;
mod live;
mod lots;
mod migrate;
mod operations;
mod read;
mod readers;
mod rows;
mod shelf;
mod sql;
mod summary;
#[cfg(test)]
mod tests;
mod trim;
mod writer;

pub use file::OpenError;

/// Reads of keys and accounts at once.
const LOOKUPS: usize = 2;
/// Reads of pages and sums at once; they may be long, so they have turns of their own.
const PAGES: usize = 4;

/// Where a store takes the time from.
pub type Clock = Arc<dyn Fn() -> Millis + Send + Sync>;

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Synchronous {
    /// Until the disk has it: nothing that was answered is lost, also when the power fails.
    #[default]
    Full,
    /// Until the operating system has it: what was answered survives the death of the process,
    /// but the last moments may be lost with the power.
    Normal,
}

/// How a store is opened.
#[derive(Clone)]
pub struct Options {
    /// What a commit waits for.
    pub synchronous: Synchronous,
    /// A request that runs for longer is noted on disk, so that it is listed if the process
    /// dies; shorter ones cost nothing.
    pub note_after: Duration,
    /// The time; it may step back.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        let clock = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
        };
        Self {
            synchronous: Synchronous::default(),
            note_after: Duration::from_secs(1),
            clock: Arc::new(clock),
        }
    }
}

/// A store in one SQLite file.
pub struct Embedded {
    writer: Writer,
    debits: Arc<Debits>,
    memory: Arc<Memory>,
    lookups: Readers,
    pages: Readers,
    clock: Clock,
    path: PathBuf,
    synchronous: Synchronous,
}

/// What is known without the database; the writer keeps it true.
struct Memory {
    live: Live,
    keys: Keys,
    outage: ArcSwapOption<String>,
    /// Operations that wait to be written.
    pending: AtomicUsize,
    /// Operations that were written.
    written: AtomicUsize,
}

impl Memory {
    /// Sets why the database cannot be written.
    fn set_outage(&self, why: Option<String>) {
        self.outage.store(why.map(Arc::new));
    }

    /// `Unavailable` while the database cannot be written.
    fn outage(&self) -> Result<(), StoreError> {
        match &*self.outage.load() {
            Some(why) => Err(StoreError::Unavailable(why.to_string())),
            None => Ok(()),
        }
    }
}

impl Embedded {
    /// Opens the file, made with its directory if it is not there, and lists the requests that
    /// the last process left behind. Blocks.
    ///
    /// # Errors
    ///
    /// [`OpenError`], if another process holds the file, a newer version wrote it, or it cannot
    /// be read and written.
    pub fn open(path: &Path, options: Options) -> Result<Arc<Self>, OpenError> {
        let Options { synchronous, note_after, clock } = options;
        let (lock, mut db) = file::open(path, synchronous)?;
        let io = |source| OpenError::Io { path: path.into(), source };
        let sqlite = |source| OpenError::Sqlite { path: path.into(), source };
        let (debits, found) = Debits::open(path, synchronous)?;
        if !found.is_empty() {
            tracing::info!(debits = found.len(), "debits of the last process are booked");
            at_once(&mut db, |step| book(step, found)).map_err(sqlite)?;
        }
        debits.empty().map_err(io)?;
        let abandoned =
            at_once(&mut db, |step| rows::abandon_flights(step, clock())).map_err(sqlite)?;
        if abandoned > 0 {
            tracing::warn!(abandoned, "requests were cut off when the last process ended");
        }
        let memory = Arc::new(Memory {
            live: Live::new(note_after),
            keys: Keys::default(),
            outage: ArcSwapOption::empty(),
            pending: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
        });
        let log = Checkpointer::start(path)?;
        let debits = Arc::new(debits);
        let writer = Writer::start(lock, db, memory.clone(), clock.clone(), debits.clone(), log)
            .map_err(io)?;
        Ok(Arc::new(Self {
            writer,
            debits,
            memory,
            lookups: Readers::new(path.into(), LOOKUPS),
            pages: Readers::new(path.into(), PAGES),
            clock,
            path: path.into(),
            synchronous,
        }))
    }

    /// Hands an operation to the writer at once; the answer waits for the commit.
    fn write<O: Operation>(&self, operation: O) -> Answer<'_, O::Output> {
        let reply = self.writer.submit(operation);
        Box::pin(answered(reply))
    }

    /// As [`Self::write`], for an operation that also says what the account is then.
    fn book<T, O>(&self, operation: O) -> Answer<'_, T>
    where
        T: Send + 'static,
        O: Operation<Output = Booked<T>>,
    {
        let reply = self.writer.submit(operation);
        Box::pin(async move { answered(reply).await.map(|(answer, _)| answer) })
    }

    /// Reads a page.
    fn page<T: Send + 'static>(
        &self,
        query: impl FnOnce(&rusqlite::Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Answer<'_, T> {
        self.read_written(&self.pages, query)
    }

    /// Reads what may depend on debits: once all that were answered are booked.
    fn read_written<'a, T: Send + 'static>(
        &'a self,
        readers: &'a Readers,
        query: impl FnOnce(&rusqlite::Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Answer<'a, T> {
        Box::pin(async move {
            self.all_booked().await;
            readers.read(query).await
        })
    }

    /// Waits until all that was answered is in the database, unless that cannot be written.
    async fn all_booked(&self) {
        if !self.writer.is_done() && self.memory.outage().is_ok() {
            // If it fails, what is in the database can be read all the same.
            let _ = answered(self.writer.submit(AllBefore::<false>)).await;
        }
    }

    /// Answers from memory, into which it first reads what is missing.
    async fn answer_from_memory<T>(
        &self,
        account: &AccountId,
        key: &str,
        mut missing: Missing,
        ask: impl Fn(&Live, Millis) -> Result<T, Missing>,
    ) -> Result<T, StoreError> {
        loop {
            let (id, live) = (account.clone(), &self.memory.live);
            match missing {
                Missing::Account(ticket) => {
                    let read = move |db: &_| read::snapshot(db, &id);
                    let (snapshot, ways) = self.lookups.read(read).await?;
                    live.insert(ticket, account.clone(), snapshot, ways, (self.clock)());
                }
                Missing::Key(ticket) => {
                    let (key_id, now) = (key.to_owned(), (self.clock)());
                    let read = move |db: &_| read::terms(db, &id, &key_id, now);
                    let terms = self.read_written(&self.lookups, read).await?;
                    live.insert_key(ticket, account, key, terms, now);
                }
            }
            match ask(live, (self.clock)()) {
                Ok(answer) => return Ok(answer),
                // Something changed while it was read, or the other is missing too.
                Err(next) => missing = next,
            }
        }
    }

    /// Adds what runs to what is written.
    fn with_running(&self, mut account: Account) -> Account {
        (account.in_flight, account.held) = self.memory.live.running(&account.id);
        account.available = account.balance - account.held;
        account
    }
}

async fn answered<T>(reply: Reply<T>) -> Result<T, StoreError> {
    let ended = |_| StoreError::Unavailable("the store has ended".into());
    reply.await.map_err(ended)?
}

/// Books what the last process had answered and not booked.
fn book(db: &Step<'_>, found: Vec<Found>) -> Result<(), Fault> {
    for Found { at, debit } in found {
        // It may have been noted as running.
        db.noted(&debit.account, &debit.id);
        let settle = Settle { settlement: debit, logged_at: Some(at), counted: None };
        if let Err(fault) = settle.apply(db, at) {
            let Fault::Refused(error) = fault else { return Err(fault) };
            let id = settle.settlement.id;
            tracing::error!(request.id = id, "a debit that was answered is refused: {error}");
        }
    }
    Ok(())
}

/// Does something in one transaction, before there is a writer.
fn at_once<T>(
    db: &mut rusqlite::Connection,
    work: impl FnOnce(&Step<'_>) -> Result<T, Fault>,
) -> Result<T, rusqlite::Error> {
    let transaction = db.transaction()?;
    let mut shelf = Shelf::default();
    let step = Step::new(&transaction, &mut shelf);
    let done = match work(&step) {
        Ok(done) => done,
        Err(Fault::Db(error)) => return Err(error),
        Err(Fault::Refused(error)) => {
            return Err(rusqlite::Error::ToSqlConversionFailure(error.into()));
        }
    };
    step.finish()?;
    transaction.commit()?;
    Ok(done)
}

impl Store for Embedded {
    fn create_account(&self, id: AccountId, name: String) -> Answer<'_, Account> {
        self.write(CreateAccount { id, name })
    }

    fn account(&self, id: &AccountId) -> Answer<'_, Account> {
        let id = id.clone();
        Box::pin(async move {
            let now = (self.clock)();
            let account =
                self.read_written(&self.lookups, move |db| read::account(db, &id, now)).await?;
            Ok(self.with_running(account))
        })
    }

    fn accounts(&self, page: Page) -> Answer<'_, Rows<Account>> {
        Box::pin(async move {
            let now = (self.clock)();
            let read = move |db: &_| read::accounts(db, &page, now);
            let Rows { data, next } = self.page(read).await?;
            let data = data.into_iter().map(|account| self.with_running(account)).collect();
            Ok(Rows { data, next })
        })
    }

    fn configure_account(&self, id: &AccountId, change: AccountChange) -> Answer<'_, Account> {
        let id = id.clone();
        let reply = self.writer.submit(ConfigureAccount { id: id.clone(), change });
        Box::pin(async move {
            answered(reply).await?;
            self.account(&id).await
        })
    }

    fn create_key(&self, key: Key, hash: KeyHash) -> Answer<'_, Key> {
        self.write(CreateKey { key, hash })
    }

    fn key(&self, hash: &KeyHash) -> Answer<'_, Option<Arc<Key>>> {
        let hash = *hash;
        let ticket = match self.memory.keys.get(&hash) {
            Ok(key) => return Box::pin(ready(Ok(Some(key)))),
            Err(ticket) => ticket,
        };
        Box::pin(async move {
            let found = self.lookups.read(move |db| read::key(db, &hash)).await?.map(Arc::new);
            if let Some(key) = &found {
                self.memory.keys.insert(ticket, hash, key.clone());
            }
            Ok(found)
        })
    }

    fn keys(&self, account: &AccountId) -> Answer<'_, Vec<Key>> {
        let account = account.clone();
        self.page(move |db| read::keys(db, &account))
    }

    fn change_key(&self, account: &AccountId, id: &str, change: KeyChange) -> Answer<'_, Key> {
        let (account, id) = (account.clone(), id.into());
        let reply = self.writer.submit(ChangeKey { account, id, change: Some(change) });
        Box::pin(async move { answered(reply).await.map(|(key, _)| key) })
    }

    fn key_use(&self, account: &AccountId, id: &str) -> Answer<'_, KeyUse> {
        match self.memory.live.key_use(account, id, (self.clock)()) {
            Ok(answer) => Box::pin(ready(Ok(answer))),
            Err(missing) => {
                let (account, id) = (account.clone(), id.to_owned());
                Box::pin(async move {
                    let ask = |live: &Live, now| live.key_use(&account, &id, now);
                    self.answer_from_memory(&account, &id, missing, ask).await
                })
            }
        }
    }

    fn revoke_key(&self, account: &AccountId, id: &str) -> Answer<'_, Key> {
        let (account, id) = (account.clone(), id.into());
        let reply = self.writer.submit(ChangeKey { account, id, change: None });
        Box::pin(async move { answered(reply).await.map(|(key, _)| key) })
    }

    fn admit(
        &self,
        key: &Key,
        request: Candidate,
        how: Admission,
    ) -> Answer<'_, Result<Admitted, Refused>> {
        if let Err(outage) = self.memory.outage() {
            return Box::pin(ready(Err(outage)));
        }
        match self.memory.live.admit(key, &request, how, (self.clock)()) {
            Ok(answer) => Box::pin(ready(Ok(answer))),
            Err(missing) => {
                let key = key.clone();
                Box::pin(async move {
                    let ask = |live: &Live, now| live.admit(&key, &request, how, now);
                    self.answer_from_memory(&key.account, &key.id, missing, ask).await
                })
            }
        }
    }

    fn release(&self, account: &AccountId, request: &str) {
        let is_noted = self.memory.live.end(account, request, 0, (self.clock)());
        if is_noted {
            let request = request.into();
            // Nobody waits for it; it is kept until it is written.
            drop(self.writer.submit(ForgetFlight { account: account.clone(), request }));
        }
    }

    fn settle(&self, settlement: Settlement) -> Answer<'_, Settled> {
        let now = (self.clock)();
        let Some((balance, counted)) = self.memory.live.charge(&settlement, now) else {
            // Not of a request that runs here, or not surely booked: answered when it is.
            return self.book(Settle { settlement, logged_at: None, counted: None });
        };
        let record = debits::record(&settlement, now);
        let settle = Settle { settlement, logged_at: Some(now), counted };
        if let Err(settle) = self.writer.gather(settle) {
            return self.book(settle);
        }
        let logged = self.debits.append(record);
        Box::pin(async move {
            if logged.await.is_err() {
                // The writer has it, and keeps it.
                answered(self.writer.submit(AllBefore::<true>)).await?;
            }
            Ok(Settled { balance: Some(balance), duplicate: false })
        })
    }

    fn grant(&self, grant: Grant) -> Answer<'_, Granted> {
        self.book(GrantCredits(grant))
    }

    fn refund(&self, refund: Undo) -> Answer<'_, Granted> {
        self.book(Refund(refund))
    }

    fn reverse(&self, reversal: Undo) -> Answer<'_, Granted> {
        self.book(Reverse(reversal))
    }

    fn close_account(&self, account: &AccountId, id: String) -> Answer<'_, Account> {
        let account = account.clone();
        Box::pin(async move {
            let close = CloseAccount { account: account.clone(), id };
            answered(self.writer.submit(close)).await?;
            // Without running requests it ends at once, else the writer looks again and again.
            let (accounts, memory) = (vec![account.clone()], self.memory.clone());
            answered(self.writer.submit(Sweep { accounts, memory })).await?;
            self.account(&account).await
        })
    }

    fn lots(&self, account: &AccountId, filter: LotFilter, page: Page) -> Answer<'_, Rows<LotRow>> {
        let account = account.clone();
        let now = (self.clock)();
        self.page(move |db| read::lots(db, &account, filter, &page, now))
    }

    fn entries(
        &self,
        account: &AccountId,
        filter: EntryFilter,
        page: Page,
    ) -> Answer<'_, Rows<Entry>> {
        let account = account.clone();
        self.page(move |db| read::entries(db, &account, &filter, &page, Order::NewestFirst))
    }

    fn usage(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        page: Page,
    ) -> Answer<'_, Rows<UsageRow>> {
        let account = account.clone();
        self.page(move |db| read::usage(db, &account, &filter, &page, Order::NewestFirst))
    }

    fn entries_oldest_first(
        &self,
        account: &AccountId,
        filter: EntryFilter,
        page: Page,
    ) -> Answer<'_, Rows<Entry>> {
        let account = account.clone();
        self.page(move |db| read::entries(db, &account, &filter, &page, Order::OldestFirst))
    }

    fn usage_oldest_first(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        page: Page,
    ) -> Answer<'_, Rows<UsageRow>> {
        let account = account.clone();
        self.page(move |db| read::usage(db, &account, &filter, &page, Order::OldestFirst))
    }

    fn summary(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        by: Group,
        zone: jiff::tz::TimeZone,
    ) -> Answer<'_, Vec<SummaryRow>> {
        let account = account.clone();
        self.page(move |db| summary::summary(db, &account, &filter, by, &zone))
    }

    fn audited_accounts(&self, page: Page) -> Answer<'_, Rows<AccountId>> {
        self.page(move |db| audit::accounts(db, &page))
    }

    fn read_books(
        &self,
        account: &AccountId,
        records: mpsc::Sender<Vec<Record>>,
    ) -> Answer<'_, ()> {
        let account = account.clone();
        let memory = self.memory.clone();
        self.page(move |db| {
            let (held, holds) = memory.live.holds(&account);
            audit::read(db, &account, held, holds, records)
        })
    }

    fn trim(&self, account: &AccountId, before: Millis) -> Answer<'_, ()> {
        let account = account.clone();
        Box::pin(async move {
            // Step by step: what settles meanwhile waits for one of them at most.
            while answered(self.writer.submit(Trim { account: account.clone(), before })).await? {}
            Ok(())
        })
    }

    fn status(&self) -> Answer<'_, StoreStatus> {
        let path = self.path.clone();
        Box::pin(async move {
            let read = move |db: &_| Ok(copy::read_status(db, &path)?);
            let status = self.page(read).await?;
            let problem = self.memory.outage().err().map(|error| error.to_string());
            let pending = self.memory.pending.load(Ordering::Relaxed) as u64;
            let durability = match self.synchronous {
                Synchronous::Full => "full",
                Synchronous::Normal => "normal",
            };
            let durability = Some(durability.to_owned());
            Ok(StoreStatus { pending: Some(pending), durability, problem, ..status })
        })
    }

    fn backup(&self) -> Answer<'_, std::fs::File> {
        let path = self.path.clone();
        Box::pin(async move {
            self.all_booked().await;
            let copied = tokio::task::spawn_blocking(move || copy::unnamed(&path)).await;
            let unavailable = |error: &dyn std::fmt::Display| {
                StoreError::Unavailable(format!("no copy could be made: {error}"))
            };
            copied.map_err(|error| unavailable(&error))?.map_err(|error| unavailable(&error))
        })
    }

    fn own(&self, account: &AccountId, object: &str) -> Answer<'_, ()> {
        self.write(Own { account: account.clone(), object: object.into() })
    }

    fn owns(&self, account: &AccountId, object: &str) -> Answer<'_, bool> {
        let (account, object) = (account.clone(), object.to_owned());
        let now = (self.clock)();
        Box::pin(self.lookups.read(move |db| read::owns(db, &account, &object, now)))
    }

    fn epoch(&self) -> Answer<'_, String> {
        // What was acknowledged is in the file; there is no other copy that could take its place.
        Box::pin(ready(Ok("embedded".into())))
    }

    fn document(&self, scope: &Scope, name: &str) -> Answer<'_, Option<Document>> {
        let (scope, name) = (scope.clone(), name.to_owned());
        let now = (self.clock)();
        Box::pin(self.lookups.read(move |db| documents::document(db, &scope, &name, now)))
    }

    fn put_document(&self, scope: &Scope, put: Put) -> Answer<'_, u64> {
        self.write(PutDocument { scope: scope.clone(), put })
    }

    fn ready(&self) -> Answer<'_, ()> {
        Box::pin(ready(self.memory.outage()))
    }

    fn close(&self) -> Answer<'_, ()> {
        self.lookups.close_idle();
        self.pages.close_idle();
        Box::pin(answered(self.writer.close()))
    }
}
