//! The one writer: a thread that owns the connection that writes.
//!
//! It takes all operations that wait, applies them in one transaction, commits once and then
//! answers each: many debits share one sync of the disk. When the disk fails, settlements are
//! kept and tried again until they are written (they happen once by their id); whatever else
//! waits is answered `Unavailable` at once.
//!
//! The queue needs no bound of its own: what waits in it belongs to a request that was admitted
//! or to a caller that waits, and both are bounded before they come here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::oneshot;

use super::changes::Sweep;
use super::file::Lock;
use super::operations::NoteFlights;
use super::shelf::{Shelf, Step};
use super::sql::Fault;
use super::{Clock, Memory};
use crate::store::{Millis, StoreError};

/// Operations of one commit.
const BATCH: usize = 512;
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

/// The way to the writer. When the last one is dropped, the writer ends after what waits.
pub(super) struct Writer(mpsc::Sender<Message>);

/// An answer that is on its way.
pub(super) type Reply<T> = oneshot::Receiver<Result<T, StoreError>>;

enum Message {
    Job(Box<dyn Job>),
    Close(oneshot::Sender<Result<(), StoreError>>),
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(
        lock: Lock,
        db: Connection,
        memory: Arc<Memory>,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let (sender, messages) = mpsc::channel();
        let thread = Thread {
            ending: Ending(memory.clone()),
            lock,
            db,
            shelf: Shelf::default(),
            memory,
            clock,
            messages,
            waiting: VecDeque::new(),
            one_by_one: 0,
            outage: None,
        };
        thread::Builder::new().name("store-writer".into()).spawn(move || thread.run())?;
        Ok(Self(sender))
    }

    /// Hands an operation over; it happens even if nobody waits for the reply.
    pub(super) fn submit<O: Operation>(&self, operation: O) -> Reply<O::Output> {
        let (reply, receiver) = oneshot::channel();
        let pending = Pending { operation, outcome: None, reply };
        if let Err(mpsc::SendError(Message::Job(job))) =
            self.0.send(Message::Job(Box::new(pending)))
        {
            job.fail("the store is closed");
        }
        receiver
    }

    /// Asks the writer to end once everything is written.
    pub(super) fn close(&self) -> Reply<()> {
        let (reply, receiver) = oneshot::channel();
        if let Err(mpsc::SendError(Message::Close(reply))) = self.0.send(Message::Close(reply)) {
            // Closing twice is closing once; nobody waits where this fails.
            let _ = reply.send(Ok(()));
        }
        receiver
    }
}

/// An operation of any type, on its way through the thread.
trait Job: Send {
    fn is_kept(&self) -> bool;
    fn apply(&mut self, db: &Step<'_>, now: Millis) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, memory: &Memory);
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

    fn answer(self: Box<Self>, memory: &Memory) {
        let outcome = self.outcome.expect("a committed operation was applied");
        self.operation.publish(&outcome, memory);
        // Nobody waits any more: it is done all the same.
        let _ = self.reply.send(outcome);
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

struct Thread {
    ending: Ending,
    /// Dropped after `db`, and only then may another process open the file.
    lock: Lock,
    db: Connection,
    shelf: Shelf,
    memory: Arc<Memory>,
    clock: Clock,
    messages: mpsc::Receiver<Message>,
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

enum Gathered {
    Go,
    Close(oneshot::Sender<Result<(), StoreError>>),
    /// Nobody can send any more.
    Abandoned,
}

impl Thread {
    fn run(mut self) {
        let mut last_tick = Instant::now();
        let closing = loop {
            let gathered = self.gather();
            self.memory.pending.store(self.waiting.len(), Ordering::Relaxed);
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                self.note_long_runs();
                self.sweep();
            }
            if matches!(gathered, Gathered::Go) {
                if self.outage.as_ref().is_none_or(|outage| outage.retry_at <= Instant::now()) {
                    self.commit_some();
                }
                continue;
            }
            while !self.waiting.is_empty() && self.commit_some() {}
            match gathered {
                Gathered::Close(reply) if self.waiting.is_empty() => break Some(reply),
                Gathered::Close(reply) => {
                    let why = format!("{} operations cannot be written", self.waiting.len());
                    let _ = reply.send(Err(StoreError::Unavailable(why)));
                }
                Gathered::Abandoned => break None,
                Gathered::Go => {}
            }
        };
        // Only a tidy-up: without it the next start reads the log.
        if let Err(error) = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::warn!(%error, "the store's log was not folded into its file");
        }
        drop(self.db);
        drop(self.lock);
        drop(self.ending);
        if let Some(reply) = closing {
            let _ = reply.send(Ok(()));
        }
    }

    /// Waits for something to do, then takes what else has come.
    fn gather(&mut self) -> Gathered {
        let wait = match &self.outage {
            Some(outage) => outage.retry_at.saturating_duration_since(Instant::now()).min(TICK),
            None if self.waiting.is_empty() => TICK,
            None => Duration::ZERO,
        };
        let mut next = self.messages.recv_timeout(wait);
        loop {
            match next {
                Ok(Message::Job(job)) => self.take(job),
                Ok(Message::Close(reply)) => return Gathered::Close(reply),
                Err(RecvTimeoutError::Timeout) => return Gathered::Go,
                Err(RecvTimeoutError::Disconnected) => return Gathered::Abandoned,
            }
            if self.waiting.len() >= BATCH && self.outage.is_none() {
                return Gathered::Go;
            }
            next = self.messages.try_recv().map_err(|error| match error {
                mpsc::TryRecvError::Empty => RecvTimeoutError::Timeout,
                mpsc::TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            });
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
            self.waiting.push_front(Box::new(Pending { operation, outcome: None, reply }));
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
                self.waiting.push_back(Box::new(Pending { operation, outcome: None, reply }));
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
            Ok(()) => {}
            Err(Failure::Operation(error)) if size > 1 => {
                tracing::error!(%error, "an operation fails its batch; each is now tried alone");
                self.one_by_one = size;
                return true;
            }
            Err(Failure::Operation(error)) => {
                tracing::error!(%error, "an operation cannot be written");
                if let Some(job) = self.waiting.pop_front() {
                    job.fail(&error.to_string());
                }
            }
            Err(Failure::Disk(error)) => {
                self.failed(&error);
                return false;
            }
        }
        self.one_by_one = self.one_by_one.saturating_sub(1);
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
        self.memory.pending.store(self.waiting.len() - size, Ordering::Relaxed);
        for job in self.waiting.drain(..size) {
            job.answer(&self.memory);
        }
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
