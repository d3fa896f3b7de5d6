//! Connections to one upstream that wait for their next request.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, Uri};
use tower::ServiceExt;

use super::connect::Connector;
use super::connection::{Broken, Connection, Incoming};
use super::{Failure, connect};
use crate::proxy::worker;

/// Below the keep-alive of every provider, so that an idle connection is rarely stale.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The connections to one upstream, those of each worker apart: a connection is served by the
/// worker that opened it.
pub struct Pool {
    connector: Connector,
    origin: Uri,
    idle: Box<[Mutex<Vec<Idle>>]>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// For connections to `origin`. Nothing is connected yet.
    pub fn new(origin: Uri, connect_timeout: Duration) -> Self {
        Self {
            connector: connect::connector(connect_timeout, false),
            origin,
            idle: (0..worker::places()).map(|_| Mutex::default()).collect(),
        }
    }

    /// Sends a request, on a connection that waits for one if there is any.
    ///
    /// # Errors
    ///
    /// [`Failure`], which says whether the upstream may have seen the request.
    pub async fn request(
        self: &Arc<Self>,
        head: Bytes,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        while let Some(connection) = self.take() {
            match connection.exchange(head.clone(), body.clone(), self).await {
                Ok(reply) => return Ok(reply),
                Err(Broken::Uncertain(error)) => return Err(Failure::Uncertain(error.into())),
                // It was closed at this very moment.
                Err(Broken::Unsent(_)) => {}
            }
        }
        let connecting = Box::pin(self.connector.clone().oneshot(self.origin.clone()));
        let connection = Connection::new(connecting.await.map_err(Failure::Unsent)?);
        connection.exchange(head, body, self).await.map_err(|broken| match broken {
            Broken::Unsent(error) => Failure::Unsent(error.into()),
            Broken::Uncertain(error) => Failure::Uncertain(error.into()),
        })
    }

    /// The connection that waited last, and is still open.
    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle();
        while let Some(Idle { mut connection, since }) = idle.pop() {
            if since.elapsed() < IDLE_TIMEOUT && connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub fn put(&self, connection: Connection) {
        self.idle().push(Idle { connection, since: Instant::now() });
    }

    /// Closes what has waited too long or was closed by the upstream, of this worker's.
    pub fn sweep(&self) {
        let mut idle = self.idle();
        idle.retain_mut(|idle| idle.since.elapsed() < IDLE_TIMEOUT && idle.connection.is_idle());
        if idle.len() * 4 < idle.capacity() {
            idle.shrink_to_fit();
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle[worker::place()].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
