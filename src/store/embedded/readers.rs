//! A few connections that only read, on threads that may block.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::file;
use super::sql::Fault;
use crate::store::StoreError;

/// At most so many reads at once; the others wait their turn.
#[derive(Clone)]
pub(super) struct Readers(Arc<Inner>);

struct Inner {
    path: PathBuf,
    turns: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(path: PathBuf, at_once: usize) -> Self {
        let turns = Semaphore::new(at_once);
        Self(Arc::new(Inner { path, turns, idle: Mutex::default() }))
    }

    /// Reads what was committed when it begins.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let unavailable =
            |error: &dyn std::fmt::Display| StoreError::Unavailable(error.to_string());
        let _turn = self.0.turns.acquire().await.map_err(|error| unavailable(&error))?;
        let inner = self.0.clone();
        let read = move || -> Result<T, Fault> {
            let idle = inner.idle().pop();
            let db = idle.map_or_else(|| file::open_to_read(&inner.path), Ok)?;
            // One snapshot for all statements of a query.
            let snapshot = db.unchecked_transaction()?;
            let answer = query(&snapshot);
            snapshot.finish()?;
            inner.idle().push(db);
            answer
        };
        let answer = tokio::task::spawn_blocking(read).await;
        Ok(answer.map_err(|error| unavailable(&error))??)
    }

    /// Closes the connections that nobody uses.
    pub(super) fn close_idle(&self) {
        self.0.idle().clear();
    }
}

impl Inner {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
