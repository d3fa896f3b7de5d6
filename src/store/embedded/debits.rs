//! The log of debits: what the end of a reply waits for.
//!
//! A debit is appended here, and answered; the writer books it a little later, together with
//! all others of that time. What is not booked when the process dies is booked when the file is
//! opened again, as of the time that it was made: each debit once, by its id.
//!
//! Two files take turns. When one has become long, or nothing has come for a while, the other
//! takes the debits from then on; once all of the first are booked it is emptied.
//!
//! Where a debit must be on the disk before it is answered, a thread appends all that wait,
//! syncs once and answers each. Otherwise who settles appends at once, and nobody waits.

use std::fs::{self, File, OpenOptions};
use std::future::ready;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::Synchronous;
use super::copy::beside;
use super::file::{self, OpenError};
use crate::store::home::{Reply, Round};
use crate::store::journal::frame::{self, Tail};
use crate::store::pace::{GATHER, Pace};
use crate::store::{Answer, Millis, Settlement, StoreError};

pub(super) mod record;

pub(super) use record::write as record;

/// What the names of the two files end in, after that of the database.
pub(super) const ENDS: [&str; 2] = ["-debits-0", "-debits-1"];
/// Bytes after which the other file has its turn.
const LONG: u64 = 4 << 20;
/// Debits of one write and one sync.
const BATCH: usize = 512;

/// Whether a debit is in the log. Otherwise it is safe only once it is booked.
type Logged = Result<(), StoreError>;

/// A debit that was found in the log.
pub(super) struct Found {
    /// When it was made.
    pub at: Millis,
    pub debit: Settlement,
}

/// The log.
pub(super) struct Debits {
    shared: Arc<Shared>,
    /// Where each debit must be on the disk.
    thread: Mutex<Option<JoinHandle<()>>>,
    synchronous: Synchronous,
}

struct Shared {
    files: [File; 2],
    log: Mutex<Log>,
    inbox: Mutex<Inbox>,
    /// Wakes the thread.
    bell: Condvar,
}

/// Where the next debit goes.
#[derive(Default)]
struct Log {
    current: usize,
    length: u64,
    /// Of the next frame.
    number: u64,
    /// The other file holds debits that may not be booked yet.
    has_old: bool,
    /// The last write failed, and what it left behind is still there.
    is_torn: bool,
    is_closed: bool,
    buffer: Vec<u8>,
}

/// What waits for the thread.
#[derive(Default)]
struct Inbox {
    waiting: Vec<Waiting>,
    /// Of those that wait, so many wake the thread.
    crowd: usize,
    is_closed: bool,
}

struct Waiting {
    payload: Vec<u8>,
    reply: Reply<Logged>,
}

impl Debits {
    /// Opens the files beside a database, whose lock the caller holds, and reads what is in
    /// them.
    ///
    /// # Errors
    ///
    /// [`OpenError`], if they cannot be read and written, or are damaged.
    pub(super) fn open(
        path: &Path,
        synchronous: Synchronous,
    ) -> Result<(Self, Vec<Found>), OpenError> {
        let mut found = Vec::new();
        for path in paths(path) {
            read(&path, &mut found)?;
        }
        let io = |source| OpenError::Io { path: path.into(), source };
        let [first, second] = paths(path);
        let files = [open(&first).map_err(io)?, open(&second).map_err(io)?];
        file::sync_directory(path).map_err(io)?;
        let shared = Arc::new(Shared {
            files,
            log: Mutex::default(),
            inbox: Mutex::default(),
            bell: Condvar::new(),
        });
        let thread = match synchronous {
            Synchronous::Full => {
                let shared = shared.clone();
                let thread = thread::Builder::new().name("store-debits".into());
                Some(thread.spawn(move || shared.run()).map_err(io)?)
            }
            Synchronous::Normal => None,
        };
        Ok((Self { shared, thread: Mutex::new(thread), synchronous }, found))
    }

    /// Forgets all that was found: it is booked.
    ///
    /// # Errors
    ///
    /// When the files cannot be emptied.
    pub(super) fn empty(&self) -> io::Result<()> {
        let holds = |file: &&File| file.metadata().is_ok_and(|file| file.len() > 0);
        self.shared.files.iter().filter(holds).try_for_each(|file| file.set_len(0))
    }

    /// Appends a debit, which the writer has already been given to book.
    pub(super) fn append(&self, payload: Vec<u8>) -> Answer<'static, ()> {
        if self.synchronous == Synchronous::Normal {
            let mut log = self.shared.log();
            return Box::pin(ready(log.append(&self.shared.files, [&payload[..]])));
        }
        let (reply, receiver) = Reply::new();
        let mut inbox = self.shared.inbox();
        if !inbox.is_closed {
            inbox.waiting.push(Waiting { payload, reply });
        }
        let waiting = inbox.waiting.len();
        let is_due = waiting == 1 || waiting == inbox.crowd;
        drop(inbox);
        if is_due {
            self.shared.bell.notify_one();
        }
        let ended = |_| StoreError::Unavailable("the store is closed".into());
        Box::pin(async move { receiver.await.map_err(ended)? })
    }

    /// Lets the other file have its turn if this one is long, or holds anything and nothing
    /// comes. All that is in the first was handed to the writer before this returns.
    pub(super) fn turn(&self, is_idle: bool) {
        let mut log = self.shared.log();
        if !log.has_old && (log.length > LONG || (is_idle && log.length > 0)) {
            log.current = 1 - log.current;
            (log.length, log.number) = (0, 0);
            log.has_old = true;
        }
    }

    /// All that was in the log at its last turn is booked.
    pub(super) fn booked(&self) {
        let mut log = self.shared.log();
        if log.has_old {
            // Where it cannot be emptied, it is tried again; booked twice is booked once.
            log.has_old = self.shared.files[1 - log.current].set_len(0).is_err();
        }
    }

    /// Ends the thread once what waits is appended. Nothing can be appended any more.
    pub(super) fn close(&self) {
        self.shared.inbox().is_closed = true;
        self.shared.bell.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It has nothing to say.
            let _ = thread.join();
        }
        self.shared.log().is_closed = true;
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that syncs.
    fn run(&self) {
        let mut pace = Pace::new();
        loop {
            let mut inbox = self.inbox();
            while inbox.waiting.is_empty() && !inbox.is_closed {
                inbox = self.bell.wait(inbox).unwrap_or_else(PoisonError::into_inner);
            }
            if inbox.waiting.is_empty() {
                return;
            }
            let mut inbox = self.gather(inbox);
            let size = inbox.waiting.len().min(BATCH);
            let waiting: Vec<Waiting> = inbox.waiting.drain(..size).collect();
            pace.count(size, Instant::now());
            inbox.crowd = pace.crowd().min(BATCH);
            drop(inbox);
            let logged = self.append_and_sync(&waiting);
            answer(waiting, &logged);
        }
    }

    /// Waits until as many wait as come in [`GATHER`], or for so long.
    fn gather<'a>(&self, mut inbox: MutexGuard<'a, Inbox>) -> MutexGuard<'a, Inbox> {
        let since = Instant::now();
        while inbox.waiting.len() < inbox.crowd && !inbox.is_closed {
            let left = GATHER.saturating_sub(since.elapsed());
            if left.is_zero() {
                break;
            }
            inbox = self.bell.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        inbox
    }

    fn append_and_sync(&self, waiting: &[Waiting]) -> Logged {
        let mut log = self.log();
        let (current, before) = (log.current, (log.length, log.number));
        log.append(&self.files, waiting.iter().map(|one| &one.payload[..]))?;
        drop(log);
        let synced = self.files[current].sync_data();
        if synced.is_err() {
            let mut log = self.log();
            // What the disk may not have must not stand before what it will have.
            if log.current == current {
                (log.length, log.number) = before;
                log.is_torn = true;
            }
        }
        synced.map_err(|error| unlogged(&error))
    }
}

impl Log {
    /// Appends debits, each a frame, in one write: all of them or none.
    fn append<'a>(
        &mut self,
        files: &[File; 2],
        payloads: impl IntoIterator<Item = &'a [u8]>,
    ) -> Logged {
        let file = &files[self.current];
        if self.is_closed {
            return Err(StoreError::Unavailable("the store is closed".into()));
        }
        if self.is_torn {
            file.set_len(self.length).map_err(|error| unlogged(&error))?;
            self.is_torn = false;
        }
        self.buffer.clear();
        let mut number = self.number;
        for payload in payloads {
            frame::write(number, payload, &mut self.buffer);
            number += 1;
        }
        if let Err(error) = file.write_all_at(&self.buffer, self.length) {
            self.is_torn = file.set_len(self.length).is_err();
            return Err(unlogged(&error));
        }
        self.length += self.buffer.len() as u64;
        self.number = number;
        Ok(())
    }
}

fn unlogged(error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("the log of debits cannot be written: {error}"))
}

/// Answers what was appended, or was not.
fn answer(waiting: Vec<Waiting>, logged: &Logged) {
    let mut round = Round::default();
    for Waiting { reply, .. } in waiting {
        round.give(reply, logged.clone());
    }
}

/// Reads what stands in a file, if it is there.
fn read(path: &Path, found: &mut Vec<Found>) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.into(), source };
    if length(path) == 0 {
        return Ok(());
    }
    let bytes = fs::read(path).map_err(io)?;
    let scan = frame::scan(&bytes, 0);
    match scan.tail {
        Tail::None => {}
        // Nobody was answered from it.
        Tail::Unfinished => tracing::warn!(
            path = %path.display(), bytes = bytes.len() - scan.length,
            "the last write of debits was not finished: nobody was answered from it"
        ),
        Tail::Damaged => {
            return Err(OpenError::DamagedDebits { path: path.into(), at: scan.length });
        }
        Tail::Foreign => return Err(OpenError::NewerDebits(path.into())),
    }
    for payload in scan.payloads {
        let one = record::read(&bytes[payload]);
        found.push(one.ok_or_else(|| OpenError::NewerDebits(path.into()))?);
    }
    Ok(())
}

/// Whether there are debits beside a database that may not be in it.
pub(super) fn are_left(path: &Path) -> bool {
    paths(path).iter().any(|path| length(path) > 0)
}

/// The bytes of a file; none if it is not there.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn paths(path: &Path) -> [PathBuf; 2] {
    ENDS.map(|end| beside(path, end))
}

/// Opens to write, made for the owner alone if it is not there.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).create(true).truncate(false).open(path)
}
