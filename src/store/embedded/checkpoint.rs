//! Folds the log of the database into its file, beside the writer: the syncs that this takes
//! would else be waited for by whichever debit comes next.

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::file::{self, OpenError};

/// Operations after which it is done: some four pages of the log each.
const EVERY: usize = 512;
/// Pages of the log after which the writer must wait until it begins anew. While debits come
/// without a pause a part of it is never folded, so that it would grow for ever.
pub(super) const LONG_LOG: i64 = 16_384;
/// How long it is left alone after a read that is still open kept it from beginning anew: each
/// try holds the writer up for a moment.
const PAUSE: Duration = Duration::from_secs(1);

/// The thread that does it.
pub(super) struct Checkpointer {
    /// Of operations written when it was last called.
    called_at: AtomicUsize,
    thread: Mutex<Option<(SyncSender<()>, JoinHandle<()>)>>,
}

impl Checkpointer {
    /// Starts it with a connection of its own.
    pub(super) fn start(path: &Path) -> Result<Self, OpenError> {
        let db = file::open_beside(path)
            .map_err(|source| OpenError::Sqlite { path: path.into(), source })?;
        let (call, calls) = mpsc::sync_channel(1);
        let run = move || {
            let mut again = Instant::now();
            while calls.recv().is_ok() {
                if let Err(error) = fold(&db, &mut again) {
                    tracing::warn!(%error, "the store's log could not be folded into its file");
                }
            }
        };
        let thread = thread::Builder::new()
            .name("store-log".into())
            .spawn(run)
            .map_err(|source| OpenError::Io { path: path.into(), source })?;
        Ok(Self { called_at: AtomicUsize::new(0), thread: Mutex::new(Some((call, thread))) })
    }

    /// So many operations are written by now.
    pub(super) fn after(&self, written: usize) {
        if written.wrapping_sub(self.called_at.load(Ordering::Relaxed)) < EVERY {
            return;
        }
        self.called_at.store(written, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((call, _)) = &*thread {
            // One call is as good as two.
            let _ = call.try_send(());
        }
    }

    /// Ends it, after what it is at.
    pub(super) fn end(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((call, thread)) = thread {
            drop(call);
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

/// `again`: from when on the writer may be held up.
fn fold(db: &Connection, again: &mut Instant) -> rusqlite::Result<()> {
    let log: i64 = db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(1))?;
    if log > LONG_LOG && Instant::now() >= *again {
        let is_busy: bool = db.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0))?;
        if is_busy {
            *again = Instant::now() + PAUSE;
        }
    }
    Ok(())
}
