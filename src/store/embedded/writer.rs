//! The one writer: whoever holds the connection that writes.
//!
//! Operations wait in an inbox. Who has the pen takes all that wait, applies them in one
//! transaction, commits once and then answers each: many debits share one sync of the disk.
//! The pen is with a thread of the store's own. Where a commit does not wait for the disk, a
//! thread that serves clients takes the pen itself before it goes to sleep ([`Writer::write`]):
//! a debit then costs no way to another thread and back.
//!
//! When the disk fails, settlements are kept and tried again until they are written (they
//! happen once by their id); whatever else waits is answered `Unavailable` at once.
//!
//! The inbox needs no bound of its own: what waits in it belongs to a request that was admitted
//! or to a caller that waits, and both are bounded before they come here.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::oneshot;

use super::changes::Sweep;
use super::checkpoint::Checkpointer;
use super::file::{BUSY_TIMEOUT, Lock};
use super::operations::NoteFlights;
use super::shelf::{Shelf, Step};
use super::sql::Fault;
use super::{Clock, Memory, Synchronous};
use crate::store::{Millis, StoreError};

/// Operations of one commit.
const BATCH: usize = 512;
/// How often running requests and what is due are looked at.
const TICK: Duration = Duration::from_millis(500);
/// The first wait after a failed commit; it doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

thread_local! {
    /// Of a thread that serves clients.
    static HOME: OnceCell<Arc<Home>> = const { OnceCell::new() };
}

/// What others have written for a thread, to be answered there: each answer from outside would
/// wake it anew.
#[derive(Default)]
struct Home(Mutex<Vec<Box<dyn Job>>>);

impl Home {
    /// That of this thread, if it serves clients.
    fn here() -> Option<Arc<Self>> {
        HOME.with(|home| home.get().cloned())
    }

    fn written(&self) -> MutexGuard<'_, Vec<Box<dyn Job>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change that is written whole or not at all.
pub(super) trait Operation: Send + 'static {
    /// What it answers.
    type Output: Send + 'static;
    /// Whether it is tried again until it is written, rather than answered `Unavailable`.
    const KEPT: bool = false;
    /// Whether it may read or write more than a few rows.
    const LONG: bool = true;

    /// Applies it. Whatever it refuses, it refuses before its first write, so that the others
    /// of the batch are not touched. May be called again after a rollback.
    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Self::Output, Fault>;

    /// Shows the outcome in memory once it is durable, before it is answered.
    fn publish(&self, _outcome: &Result<Self::Output, StoreError>, _memory: &Memory) {}
}

/// The way to the connection that writes. When it is dropped, the thread ends after what waits.
pub(super) struct Writer(Arc<Desk>);

/// An answer that is on its way.
pub(super) type Reply<T> = oneshot::Receiver<Result<T, StoreError>>;

struct Desk {
    inbox: Mutex<Inbox>,
    /// Wakes the thread.
    bell: Condvar,
    /// `None` once the store is closed.
    pen: Mutex<Option<Pen>>,
    /// Whether threads that serve clients may write: a commit must not wait for the disk there.
    is_lent: bool,
    /// Its log is to be folded into the file.
    checkpointer: Checkpointer,
}

/// What waits for whoever has the pen.
#[derive(Default)]
struct Inbox {
    jobs: Vec<Box<dyn Job>>,
    /// Something that only the store's own thread is to do: it may take long.
    has_long: bool,
    /// The thread was called.
    is_rung: bool,
    closing: Vec<oneshot::Sender<Result<(), StoreError>>>,
    /// Nobody can send any more.
    is_abandoned: bool,
    is_closed: bool,
}

impl Inbox {
    fn is_quiet(&self) -> bool {
        self.jobs.is_empty() && self.closing.is_empty() && !self.is_rung && !self.is_abandoned
    }
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(
        lock: Lock,
        db: Connection,
        memory: Arc<Memory>,
        clock: Clock,
        synchronous: Synchronous,
        checkpointer: Checkpointer,
    ) -> std::io::Result<Self> {
        let pen = Pen {
            db,
            is_patient: true,
            shelf: Shelf::default(),
            memory: memory.clone(),
            clock,
            waiting: VecDeque::new(),
            one_by_one: 0,
            outage: None,
        };
        let desk = Arc::new(Desk {
            inbox: Mutex::default(),
            bell: Condvar::new(),
            pen: Mutex::new(Some(pen)),
            is_lent: synchronous == Synchronous::Normal,
            checkpointer,
        });
        let thread = Thread { desk: desk.clone(), ending: Ending(memory), lock };
        thread::Builder::new().name("store-writer".into()).spawn(move || thread.run())?;
        Ok(Self(desk))
    }

    /// Hands an operation over; it happens even if nobody waits for the reply.
    pub(super) fn submit<O: Operation>(&self, operation: O) -> Reply<O::Output> {
        let (reply, receiver) = oneshot::channel();
        let home = Home::here();
        let is_served = home.is_some();
        let job = Box::new(Pending { operation, outcome: None, reply, home });
        let mut inbox = self.0.inbox();
        if inbox.is_closed {
            drop(inbox);
            (job as Box<dyn Job>).fail("the store is closed");
            return receiver;
        }
        inbox.jobs.push(job);
        inbox.has_long |= O::LONG;
        if O::LONG || !self.0.is_lent || !is_served {
            self.0.ring(inbox);
        }
        receiver
    }

    /// Answers what others have written for this thread, which serves clients and is about to
    /// sleep, and writes what waits. A thread that calls this once must call it every time.
    pub(super) fn write(&self) {
        HOME.with(|home| {
            let written = std::mem::take(&mut *home.get_or_init(Arc::default).written());
            for job in written {
                job.reply();
            }
        });
        if self.0.is_lent {
            self.0.write();
        }
    }

    /// Asks the writer to end once everything is written.
    pub(super) fn close(&self) -> Reply<()> {
        let (reply, receiver) = oneshot::channel();
        let mut inbox = self.0.inbox();
        if inbox.is_closed {
            // Closing twice is closing once; nobody waits where this fails.
            let _ = reply.send(Ok(()));
        } else {
            inbox.closing.push(reply);
            self.0.ring(inbox);
        }
        receiver
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut inbox = self.0.inbox();
        inbox.is_abandoned = true;
        self.0.ring(inbox);
    }
}

impl Desk {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the thread.
    fn ring(&self, mut inbox: MutexGuard<'_, Inbox>) {
        inbox.is_rung = true;
        drop(inbox);
        self.bell.notify_one();
    }

    /// Writes until nothing waits; leaves to the thread whatever may take long.
    ///
    /// Who does not get the pen may go: who has it looks at the inbox once more after putting
    /// it down.
    fn write(&self) {
        loop {
            let inbox = self.inbox();
            if inbox.jobs.is_empty() {
                return;
            }
            if inbox.has_long {
                return self.ring(inbox);
            }
            drop(inbox);
            let done = catch_unwind(AssertUnwindSafe(|| {
                let mut pen = match self.pen.try_lock() {
                    Ok(pen) => pen,
                    Err(TryLockError::WouldBlock) => return Written::Elsewhere,
                    Err(TryLockError::Poisoned(_)) => return Written::Not,
                };
                pen.as_mut().map_or(Written::Elsewhere, |pen| pen.write_at_once(self))
            }));
            match done {
                Ok(Written::All) => {}
                Ok(Written::Elsewhere) => return,
                // After a panic the pen is poisoned, and the thread ends with the store.
                Ok(Written::Not) | Err(_) => return self.ring(self.inbox()),
            }
        }
    }
}

enum Written {
    All,
    /// Somebody else sees to it.
    Elsewhere,
    /// The thread must.
    Not,
}

/// An operation of any type, on its way through the thread.
trait Job: Send {
    fn is_kept(&self) -> bool;
    fn apply(&mut self, db: &Step<'_>, now: Millis) -> rusqlite::Result<()>;
    /// Shows in memory what was committed.
    fn publish(&self, memory: &Memory);
    /// Tells who waits what was committed. False if nobody does: it is done all the same.
    fn reply(self: Box<Self>) -> bool;
    fn home(&self) -> Option<&Arc<Home>>;
    fn fail(self: Box<Self>, why: &str);
}

struct Pending<O: Operation> {
    operation: O,
    outcome: Option<Result<O::Output, StoreError>>,
    home: Option<Arc<Home>>,
    reply: oneshot::Sender<Result<O::Output, StoreError>>,
}

impl<O: Operation> Job for Pending<O> {
    fn is_kept(&self) -> bool {
        O::KEPT
    }

    fn apply(&mut self, db: &Step<'_>, now: Millis) -> rusqlite::Result<()> {
        self.outcome = Some(match self.operation.apply(db, now) {
            Ok(output) => Ok(output),
            Err(Fault::Refused(refused)) => Err(refused),
            Err(Fault::Db(error)) => return Err(error),
        });
        Ok(())
    }

    fn publish(&self, memory: &Memory) {
        let outcome = self.outcome.as_ref().expect("a committed operation was applied");
        self.operation.publish(outcome, memory);
    }

    fn reply(self: Box<Self>) -> bool {
        let Self { outcome, reply, .. } = *self;
        outcome.is_some_and(|outcome| reply.send(outcome).is_ok())
    }

    fn home(&self) -> Option<&Arc<Home>> {
        self.home.as_ref()
    }

    fn fail(self: Box<Self>, why: &str) {
        let _ = self.reply.send(Err(StoreError::Unavailable(why.into())));
    }
}

/// Refuses admissions once the thread has ended, in whatever way.
struct Ending(Arc<Memory>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.set_outage(Some("the store is closed".into()));
    }
}

/// The thread of the store's own.
struct Thread {
    desk: Arc<Desk>,
    ending: Ending,
    /// Dropped after the connection, and only then may another process open the file.
    lock: Lock,
}

/// The connection that writes, and what belongs to it.
struct Pen {
    db: Connection,
    /// Whether a commit waits for another program that has the lock.
    is_patient: bool,
    shelf: Shelf,
    memory: Arc<Memory>,
    clock: Clock,
    waiting: VecDeque<Box<dyn Job>>,
    /// Operations to commit alone, because one of them made a batch fail.
    one_by_one: usize,
    outage: Option<Outage>,
}

/// The database cannot be written.
struct Outage {
    why: String,
    retry_at: Instant,
    wait: Duration,
}

impl Thread {
    fn run(self) {
        let Self { desk, ending, lock } = self;
        let mut last_tick = Instant::now();
        let mut wait = TICK;
        let (pen, closing) = loop {
            let mut inbox = desk.inbox();
            if inbox.is_quiet() {
                let waited = desk.bell.wait_timeout(inbox, wait);
                inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            inbox.is_rung = false;
            drop(inbox);
            let mut lent = match desk.pen.lock() {
                Ok(lent) => lent,
                // Something panicked in the middle of a transaction.
                Err(poisoned) => break (poisoned.into_inner().take(), Vec::new()),
            };
            let Some(pen) = lent.as_mut() else { break (None, Vec::new()) };
            let (closing, is_abandoned) = pen.take_all(&desk);
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                pen.note_long_runs();
                pen.sweep();
            }
            pen.be_patient(true);
            let is_ending = is_abandoned || !closing.is_empty();
            if is_ending || pen.outage.as_ref().is_none_or(|o| o.retry_at <= Instant::now()) {
                while pen.commit_some() && !pen.waiting.is_empty() {}
            }
            desk.checkpointer.after(pen.memory.written.load(Ordering::Relaxed));
            if is_abandoned || (is_ending && pen.waiting.is_empty()) {
                break (lent.take(), closing);
            }
            for reply in closing {
                let why = format!("{} operations cannot be written", pen.waiting.len());
                let _ = reply.send(Err(StoreError::Unavailable(why)));
            }
            let retry = pen.outage.as_ref().map(|outage| outage.retry_at);
            wait = retry.map_or(TICK, |at| at.saturating_duration_since(Instant::now()).min(TICK));
        };
        let mut inbox = desk.inbox();
        inbox.is_closed = true;
        let late = std::mem::take(&mut inbox.jobs);
        let closing = closing.into_iter().chain(std::mem::take(&mut inbox.closing));
        let closing: Vec<_> = closing.collect();
        drop(inbox);
        for job in late {
            job.fail("the store is closed");
        }
        desk.checkpointer.end();
        // Only a tidy-up: without it the next start reads the log.
        if let Some(pen) = pen
            && let Err(error) = pen.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        {
            tracing::warn!(%error, "the store's log was not folded into its file");
        }
        drop(lock);
        drop(ending);
        for reply in closing {
            let _ = reply.send(Ok(()));
        }
    }
}

impl Pen {
    /// Takes what waits in the inbox.
    fn take_all(&mut self, desk: &Desk) -> (Vec<oneshot::Sender<Result<(), StoreError>>>, bool) {
        let mut inbox = desk.inbox();
        let jobs = std::mem::take(&mut inbox.jobs);
        inbox.has_long = false;
        let closing = std::mem::take(&mut inbox.closing);
        let is_abandoned = inbox.is_abandoned;
        drop(inbox);
        for job in jobs {
            self.take(job);
        }
        self.memory.pending.store(self.waiting.len(), Ordering::Relaxed);
        (closing, is_abandoned)
    }

    /// Writes what waits without waiting for anything itself.
    fn write_at_once(&mut self, desk: &Desk) -> Written {
        if self.outage.is_some() || self.one_by_one > 0 || !self.waiting.is_empty() {
            return Written::Not;
        }
        let mut inbox = desk.inbox();
        if inbox.has_long {
            return Written::Not;
        }
        self.waiting.extend(inbox.jobs.drain(..));
        drop(inbox);
        self.be_patient(false);
        while !self.waiting.is_empty() {
            let size = BATCH.min(self.waiting.len());
            match self.commit(size) {
                Ok(()) => {}
                // Another program writes. The thread waits for it.
                Err(Failure::Disk(error)) if is_busy(&error) => return Written::Not,
                Err(failure) => {
                    self.went_wrong(failure, size);
                    return Written::Not;
                }
            }
        }
        Written::All
    }

    fn be_patient(&mut self, is_patient: bool) {
        if self.is_patient != is_patient {
            self.is_patient = is_patient;
            let timeout = if is_patient { BUSY_TIMEOUT } else { Duration::ZERO };
            // It fails for no connection that is open.
            let _ = self.db.busy_timeout(timeout);
        }
    }

    fn take(&mut self, job: Box<dyn Job>) {
        match &self.outage {
            Some(outage) if !job.is_kept() => job.fail(&outage.why),
            _ => self.waiting.push_back(job),
        }
    }

    fn note_long_runs(&mut self) {
        let flights = self.memory.live.long_running();
        if !flights.is_empty() {
            let (reply, _) = oneshot::channel();
            let operation = NoteFlights(flights);
            // Ahead of all, because the settlement that ends one of them may be waiting.
            self.waiting.push_front(Box::new(Pending {
                operation,
                outcome: None,
                home: None,
                reply,
            }));
        }
    }

    /// Writes off what has ended and closes what has come to its end. Only for the record:
    /// every operation sees it anyway.
    fn sweep(&mut self) {
        if self.outage.is_some() {
            return;
        }
        match Sweep::due(&self.db, &self.memory, (self.clock)()) {
            Ok(None) => {}
            Ok(Some(operation)) => {
                let (reply, _) = oneshot::channel();
                self.waiting.push_back(Box::new(Pending {
                    operation,
                    outcome: None,
                    home: None,
                    reply,
                }));
            }
            Err(error) => tracing::warn!(%error, "what is due could not be read"),
        }
    }

    /// Writes the next batch and answers it. False if the database cannot be written.
    fn commit_some(&mut self) -> bool {
        let size = if self.one_by_one > 0 { 1 } else { BATCH }.min(self.waiting.len());
        if size == 0 && self.outage.is_none() {
            return true;
        }
        match self.commit(size) {
            Ok(()) => {
                self.one_by_one = self.one_by_one.saturating_sub(1);
                true
            }
            Err(failure) => self.went_wrong(failure, size),
        }
    }

    /// After a batch that was not committed. False if the database cannot be written.
    fn went_wrong(&mut self, failure: Failure, size: usize) -> bool {
        match failure {
            Failure::Operation(error) if size > 1 => {
                tracing::error!(%error, "an operation fails its batch; each is now tried alone");
                self.one_by_one = size;
            }
            Failure::Operation(error) => {
                tracing::error!(%error, "an operation cannot be written");
                if let Some(job) = self.waiting.pop_front() {
                    job.fail(&error.to_string());
                }
                self.one_by_one = self.one_by_one.saturating_sub(1);
            }
            Failure::Disk(error) => {
                self.failed(&error);
                return false;
            }
        }
        true
    }

    fn commit(&mut self, size: usize) -> Result<(), Failure> {
        if let Err(failure) = self.apply(size) {
            self.shelf.rolled_back();
            return Err(failure);
        }
        self.shelf.committed();
        // Before the answers: who has one may expect the store to work.
        self.healed();
        self.memory.written.fetch_add(size, Ordering::Relaxed);
        self.memory.pending.store(self.waiting.len() - size, Ordering::Relaxed);
        answer(self.waiting.drain(..size), &self.memory);
        Ok(())
    }

    /// Applies the next operations in one transaction.
    fn apply(&mut self, size: usize) -> Result<(), Failure> {
        let now = (self.clock)();
        let transaction = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(Failure::Disk)?;
        if size == 0 {
            probe(&transaction).map_err(Failure::Disk)?;
        }
        let step = Step::new(&transaction, &mut self.shelf);
        for job in self.waiting.iter_mut().take(size) {
            job.apply(&step, now).map_err(Failure::of_operation)?;
        }
        step.finish().map_err(Failure::of_operation)?;
        transaction.commit().map_err(Failure::Disk)
    }

    fn healed(&mut self) {
        if self.outage.take().is_some() {
            self.memory.set_outage(None);
            tracing::info!("the store can be written again");
        }
    }

    fn failed(&mut self, error: &rusqlite::Error) {
        if self.outage.is_none() {
            tracing::error!(%error, "the store cannot be written; settlements are kept");
        }
        let why = error.to_string();
        let (kept, others): (VecDeque<_>, VecDeque<_>) =
            self.waiting.drain(..).partition(|job| job.is_kept());
        self.waiting = kept;
        self.memory.set_outage(Some(why.clone()));
        for job in others {
            job.fail(&why);
        }
        let wait = self.outage.as_ref().map_or(FIRST_RETRY, |o| (2 * o.wait).min(LAST_RETRY));
        self.outage = Some(Outage { why, retry_at: Instant::now() + wait, wait });
    }
}

/// Nothing waits, but whether the database can be written again must be found out.
fn probe(db: &Connection) -> rusqlite::Result<()> {
    let schema: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    db.pragma_update(None, "user_version", schema)
}

/// Answers what was committed. What came from another thread that serves clients is put down
/// there, but for the last, which is answered from here and so wakes the thread: who submits
/// there waits at once, or not at all.
fn answer(jobs: impl Iterator<Item = Box<dyn Job>>, memory: &Memory) {
    let here = Home::here();
    let mut others: Vec<Arc<Home>> = Vec::new();
    for job in jobs {
        job.publish(memory);
        let is_elsewhere =
            |home: &&Arc<Home>| here.as_ref().is_none_or(|here| !Arc::ptr_eq(here, home));
        let Some(home) = job.home().filter(is_elsewhere).cloned() else {
            job.reply();
            continue;
        };
        home.written().push(job);
        if !others.iter().any(|known| Arc::ptr_eq(known, &home)) {
            others.push(home);
        }
    }
    for home in others {
        loop {
            let last = home.written().pop();
            if last.is_none_or(Job::reply) {
                break;
            }
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

/// Why a batch was not committed.
enum Failure {
    /// One operation's content: trying again cannot help.
    Operation(rusqlite::Error),
    /// The disk or the file.
    Disk(rusqlite::Error),
}

impl Failure {
    /// Sorts what an operation ran into.
    fn of_operation(error: rusqlite::Error) -> Self {
        use ErrorCode::{
            ApiMisuse, ConstraintViolation, ParameterOutOfRange, TooBig, TypeMismatch, Unknown,
        };
        match error.sqlite_error_code() {
            None
            | Some(
                ApiMisuse | ConstraintViolation | ParameterOutOfRange | TooBig | TypeMismatch
                | Unknown,
            ) => Self::Operation(error),
            Some(_) => Self::Disk(error),
        }
    }
}
