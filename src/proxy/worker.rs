//! The threads that serve clients: one for each core, each with a runtime of its own.
//!
//! A client's connection stays with one worker, and with it everything that is done for its
//! requests, the connections to upstreams included: nothing of a request moves between cores
//! but its debit. Connections are dealt to the worker that has the fewest.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::Context;
use super::listen::{Place, serve_all};
use crate::store::home;

/// How often connections to upstreams that wait for nothing are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// Threads of a worker for work that blocks.
const BLOCKING_THREADS: usize = 16;

static WORKERS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from).min(64));

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(0) };
}

/// How many different answers [`place`] has.
pub fn places() -> usize {
    1 + *WORKERS
}

/// The worker that this thread is; 0 for all threads that are none.
pub fn place() -> usize {
    PLACE.get()
}

/// A client's connection on its way to a worker.
pub struct Accepted {
    /// It.
    pub stream: TcpStream,
    /// From where.
    pub peer: IpAddr,
    /// Count it until it ends.
    pub counted: (OwnedSemaphorePermit, Place),
}

/// Counts a connection of a worker until it ends.
pub struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All workers.
pub struct Workers(Vec<Worker>);

struct Worker {
    connections: mpsc::UnboundedSender<(Accepted, Load)>,
    load: Arc<AtomicUsize>,
    ended: oneshot::Receiver<()>,
}

impl Workers {
    /// Starts them. Each ends once it has no connection and all work of the context is done.
    ///
    /// # Errors
    ///
    /// When a thread or its runtime cannot be had.
    pub fn start(ctx: &Arc<Context>) -> io::Result<Self> {
        (1..places()).map(|place| Worker::start(ctx, place)).collect::<io::Result<_>>().map(Self)
    }

    /// Hands a connection to the worker that has the fewest.
    pub fn deal(&self, accepted: Accepted) {
        let idlest = self.0.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed));
        let Some(worker) = idlest else { return };
        worker.load.fetch_add(1, Ordering::Relaxed);
        // A worker that has ended drops it, which closes it.
        worker.connections.send((accepted, Load(Arc::clone(&worker.load)))).ok();
    }

    /// No more connections come: waits until those that are open have ended.
    pub async fn end(self) {
        for Worker { connections, ended, .. } in self.0 {
            drop(connections);
            ended.await.ok();
        }
    }
}

impl Worker {
    fn start(ctx: &Arc<Context>, place: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .build()?;
        let (connections, accepted) = mpsc::unbounded_channel();
        let (has_ended, ended) = oneshot::channel();
        let ctx = Arc::clone(ctx);
        std::thread::Builder::new().name(format!("proxy-{place}")).spawn(move || {
            PLACE.set(place);
            runtime.block_on(async {
                tokio::spawn(home::serve());
                tokio::select! {
                    () = serve_all(&ctx, accepted) => {}
                    () = sweep(&ctx) => {}
                }
                drop(has_ended);
                // What outlives its client goes on in this runtime.
                ctx.tasks.wait().await;
            });
        })?;
        Ok(Self { connections, load: Arc::default(), ended })
    }
}

async fn sweep(ctx: &Context) {
    loop {
        tokio::time::sleep(SWEEP).await;
        for upstream in ctx.upstreams.values() {
            upstream.sweep();
        }
    }
}
