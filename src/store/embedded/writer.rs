//! The one writer: the thread that holds the connection that writes.
//!
//! Operations wait in an inbox. The thread takes all that wait, applies them in one
//! transaction, commits once and then answers each: many share one sync of the disk. Debits
//! that are in the log ([`super::debits`]) wait for nobody: they are gathered for a moment, so
//! that a commit has many of them.
//!
//! When the disk fails, settlements are kept and tried again until they are written (they
//! happen once by their id); whatever else waits is answered `Unavailable` at once.
//!
//! The inbox needs no bound of its own: what waits in it belongs to a request that was admitted
//! or to a caller that waits, and both are bounded before they come here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::oneshot;

use super::changes::Sweep;
use super::checkpoint::Checkpointer;
use super::debits::Debits;
use super::file::Lock;
use super::operations::NoteFlights;
use super::shelf::{Shelf, Step};
use super::sql::Fault;
use super::{Clock, Memory};
use crate::store::{Millis, StoreError};

/// Operations of one commit.
const BATCH: usize = 512;
/// How long a debit that is in the log may wait for others.
const GATHER: Duration = Duration::from_millis(40);
/// How often running requests and what is due are looked at.
const TICK: Duration = Duration::from_millis(500);
/// The first wait after a failed commit; it doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// A change that is written whole or not at all.
pub(super) trait Operation: Send + 'static {
    /// What it answers.
    type Output: Send + 'static;
    /// Whether it is tried again until it is written, rather than answered `Unavailable`.
    const KEPT: bool = false;

    /// Applies it. Whatever it refuses, it refuses before its first write, so that the others
    /// of the batch are not touched. May be called again after a rollback.
    fn apply(&self, db: &Step<'_>, now: Millis) -> Result<Self::Output, Fault>;

    /// Shows the outcome in memory once it is durable, before it is answered.
    fn publish(&self, _outcome: &Result<Self::Output, StoreError>, _memory: &Memory) {}
}

/// The way to the thread. When it is dropped, the thread ends after what waits.
pub(super) struct Writer(Arc<Desk>);

/// An answer that is on its way.
pub(super) type Reply<T> = oneshot::Receiver<Result<T, StoreError>>;

/// What belongs to the thread and is shared with it.
struct Desk {
    inbox: Mutex<Inbox>,
    /// Wakes the thread.
    bell: Condvar,
    /// Operations that were handed over and are not written.
    unwritten: AtomicUsize,
}

/// What waits for the thread.
#[derive(Default)]
struct Inbox {
    jobs: Vec<Box<dyn Job>>,
    /// When the first of them came, if nobody waits for any.
    gathers_since: Option<Instant>,
    /// Somebody waits, or there is something else to do.
    is_rung: bool,
    closing: Vec<oneshot::Sender<Result<(), StoreError>>>,
    /// Nobody can send any more.
    is_abandoned: bool,
    is_closed: bool,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(
        lock: Lock,
        db: Connection,
        memory: Arc<Memory>,
        clock: Clock,
        debits: Arc<Debits>,
        checkpointer: Checkpointer,
    ) -> std::io::Result<Self> {
        let desk = Arc::new(Desk {
            inbox: Mutex::default(),
            bell: Condvar::new(),
            unwritten: AtomicUsize::new(0),
        });
        let pen = Pen {
            db,
            shelf: Shelf::default(),
            memory: memory.clone(),
            now: clock(),
            clock,
            desk: desk.clone(),
            waiting: VecDeque::new(),
            one_by_one: 0,
            outage: None,
        };
        let ending = Ending(memory, desk.clone());
        let thread = Thread { desk: desk.clone(), ending, lock, pen, debits, checkpointer };
        thread::Builder::new().name("store-writer".into()).spawn(move || thread.run())?;
        Ok(Self(desk))
    }

    /// Hands an operation over; it happens even if nobody waits for the reply.
    pub(super) fn submit<O: Operation>(&self, operation: O) -> Reply<O::Output> {
        let (reply, receiver) = oneshot::channel();
        let job = Box::new(Pending { operation, outcome: None, reply });
        let mut inbox = self.0.inbox();
        if inbox.is_closed {
            drop(inbox);
            (job as Box<dyn Job>).fail("the store is closed");
            return receiver;
        }
        self.0.unwritten.fetch_add(1, Ordering::Release);
        inbox.jobs.push(job);
        self.0.ring(inbox);
        receiver
    }

    /// Hands over a debit that is in the log, or will be: nobody waits until it is written.
    /// Gives it back if the store is closed.
    pub(super) fn gather<O: Operation>(&self, operation: O) -> Result<(), O> {
        let (reply, _) = oneshot::channel();
        let mut inbox = self.0.inbox();
        if inbox.is_closed {
            return Err(operation);
        }
        self.0.unwritten.fetch_add(1, Ordering::Release);
        inbox.jobs.push(Box::new(Pending { operation, outcome: None, reply }));
        let is_first = !inbox.is_rung && inbox.gathers_since.is_none();
        if is_first {
            inbox.gathers_since = Some(Instant::now());
        }
        drop(inbox);
        if is_first {
            self.0.bell.notify_one();
        }
        Ok(())
    }

    /// Whether all that was handed over is written.
    pub(super) fn is_done(&self) -> bool {
        self.0.unwritten.load(Ordering::Acquire) == 0
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

    /// Waits until there is something to do, or for so long. True if nothing came.
    fn wait(&self, wait: Duration) -> bool {
        let since = Instant::now();
        let mut inbox = self.inbox();
        loop {
            let until = match inbox.gathers_since {
                Some(first) => (first + GATHER).min(since + wait),
                None => since + wait,
            };
            let left = until.saturating_duration_since(Instant::now());
            if inbox.is_rung || left.is_zero() {
                inbox.is_rung = false;
                return inbox.jobs.is_empty();
            }
            inbox = self.bell.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// An operation of any type, on its way through the thread.
trait Job: Send {
    fn is_kept(&self) -> bool;
    fn apply(&mut self, db: &Step<'_>, now: Millis) -> rusqlite::Result<()>;
    /// Shows in memory what was committed.
    fn publish(&self, memory: &Memory);
    /// Tells who waits what was committed.
    fn reply(self: Box<Self>);
    fn fail(self: Box<Self>, why: &str);
}

struct Pending<O: Operation> {
    operation: O,
    outcome: Option<Result<O::Output, StoreError>>,
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

    fn reply(self: Box<Self>) {
        let Self { outcome, reply, .. } = *self;
        // Whoever does not wait any more: it is done all the same.
        let _ = outcome.map(|outcome| reply.send(outcome));
    }

    fn fail(self: Box<Self>, why: &str) {
        let _ = self.reply.send(Err(StoreError::Unavailable(why.into())));
    }
}

/// Refuses admissions and operations once the thread has ended, in whatever way.
struct Ending(Arc<Memory>, Arc<Desk>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.set_outage(Some("the store is closed".into()));
        let mut inbox = self.1.inbox();
        inbox.is_closed = true;
        let late = std::mem::take(&mut inbox.jobs);
        drop(inbox);
        for job in late {
            job.fail("the store is closed");
        }
    }
}

/// The thread.
struct Thread {
    desk: Arc<Desk>,
    ending: Ending,
    pen: Pen,
    debits: Arc<Debits>,
    /// Its log is to be folded into the file.
    checkpointer: Checkpointer,
    /// Dropped after the connection, and only then may another process open the file.
    lock: Lock,
}

/// The connection that writes, and what belongs to it.
struct Pen {
    db: Connection,
    shelf: Shelf,
    memory: Arc<Memory>,
    clock: Clock,
    /// Of what waits: when it was taken. A debit that came by then is booked as of its own
    /// time, so nothing that is later may be done before those that come now.
    now: Millis,
    desk: Arc<Desk>,
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
    fn run(mut self) {
        let mut last_tick = Instant::now();
        let mut wait = TICK;
        let closing = loop {
            let is_idle = self.desk.wait(wait);
            // Before what waits is taken: then all that is in the log so far is among it.
            self.debits.turn(is_idle);
            let pen = &mut self.pen;
            let (closing, is_abandoned) = pen.take_all();
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                pen.note_long_runs();
                pen.sweep();
            }
            let is_ending = is_abandoned || !closing.is_empty();
            if is_ending || pen.outage.as_ref().is_none_or(|o| o.retry_at <= Instant::now()) {
                while pen.commit_some() && !pen.waiting.is_empty() {}
            }
            if pen.waiting.is_empty() {
                self.debits.booked();
            }
            self.checkpointer.after(pen.memory.written.load(Ordering::Relaxed));
            if is_abandoned || (is_ending && pen.waiting.is_empty()) {
                break closing;
            }
            for reply in closing {
                let why = format!("{} operations cannot be written", pen.waiting.len());
                let _ = reply.send(Err(StoreError::Unavailable(why)));
            }
            let retry = pen.outage.as_ref().map(|outage| outage.retry_at);
            wait = retry.map_or(TICK, |at| at.saturating_duration_since(Instant::now()).min(TICK));
        };
        self.end(closing);
    }

    fn end(self, closing: Vec<oneshot::Sender<Result<(), StoreError>>>) {
        let Self { desk, ending, mut pen, debits, checkpointer, lock } = self;
        desk.inbox().is_closed = true;
        debits.close();
        // What came after all: nothing more can.
        let (late, _) = pen.take_all();
        while pen.commit_some() && !pen.waiting.is_empty() {}
        if pen.waiting.is_empty()
            && let Err(error) = debits.empty()
        {
            tracing::warn!(%error, "the log of debits was not emptied: all of it is booked");
        }
        for job in pen.waiting.drain(..) {
            job.fail("the store is closed");
        }
        checkpointer.end();
        // Only a tidy-up: without it the next start reads the log.
        if let Err(error) = pen.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::warn!(%error, "the store's log was not folded into its file");
        }
        drop(pen);
        drop(lock);
        drop(ending);
        for reply in closing.into_iter().chain(late) {
            let _ = reply.send(Ok(()));
        }
    }
}

impl Pen {
    /// Takes what waits in the inbox.
    fn take_all(&mut self) -> (Vec<oneshot::Sender<Result<(), StoreError>>>, bool) {
        let desk = self.desk.clone();
        let mut inbox = desk.inbox();
        let jobs = std::mem::take(&mut inbox.jobs);
        inbox.gathers_since = None;
        let closing = std::mem::take(&mut inbox.closing);
        let is_abandoned = inbox.is_abandoned;
        self.now = (self.clock)();
        drop(inbox);
        for job in jobs {
            self.take(job);
        }
        self.memory.pending.store(self.waiting.len(), Ordering::Relaxed);
        (closing, is_abandoned)
    }

    fn take(&mut self, job: Box<dyn Job>) {
        match &self.outage {
            Some(outage) if !job.is_kept() => {
                job.fail(&outage.why);
                self.done(1);
            }
            _ => self.waiting.push_back(job),
        }
    }

    /// So many of what was handed over wait no more.
    fn done(&self, count: usize) {
        self.desk.unwritten.fetch_sub(count, Ordering::Release);
    }

    /// Something of the thread's own.
    fn own<O: Operation>(&self, operation: O) -> Box<dyn Job> {
        self.desk.unwritten.fetch_add(1, Ordering::Release);
        let (reply, _) = oneshot::channel();
        Box::new(Pending { operation, outcome: None, reply })
    }

    fn note_long_runs(&mut self) {
        let flights = self.memory.live.long_running();
        if !flights.is_empty() {
            // Ahead of all, because the settlement that ends one of them may be waiting.
            let job = self.own(NoteFlights(flights));
            self.waiting.push_front(job);
        }
    }

    /// Writes off what has ended and closes what has come to its end. Only for the record:
    /// every operation sees it anyway.
    fn sweep(&mut self) {
        if self.outage.is_some() {
            return;
        }
        match Sweep::due(&self.db, &self.memory, self.now) {
            Ok(None) => {}
            Ok(Some(operation)) => {
                let job = self.own(operation);
                self.waiting.push_back(job);
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
                    self.done(1);
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
        let done: Vec<_> = self.waiting.drain(..size).collect();
        for job in &done {
            job.publish(&self.memory);
        }
        self.done(size);
        done.into_iter().for_each(|job| job.reply());
        Ok(())
    }

    /// Applies the next operations in one transaction.
    fn apply(&mut self, size: usize) -> Result<(), Failure> {
        let transaction = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(Failure::Disk)?;
        if size == 0 {
            probe(&transaction).map_err(Failure::Disk)?;
        }
        let step = Step::new(&transaction, &mut self.shelf);
        for job in self.waiting.iter_mut().take(size) {
            job.apply(&step, self.now).map_err(Failure::of_operation)?;
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
        self.done(others.len());
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
