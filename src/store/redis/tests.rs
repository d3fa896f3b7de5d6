//! Promises of the shared store, on real servers.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, Weak};

use super::*;
use crate::billing::ledger::{Expiry, Kind, Place};
use crate::billing::{Credits, Usage};
use crate::store::examples::*;
use crate::store::sums::HOUR_MS;
use crate::store::{Attribution, KeyLimits, Outcome, Rejection, Source, Status};
use server::Redis as Server;

#[allow(dead_code, reason = "tests from outside share it")]
#[path = "../../../tests/servers/redis.rs"]
mod server;

#[allow(dead_code, reason = "tests from outside share it")]
#[path = "../../../tests/servers/relay.rs"]
mod relay;

mod audits;
mod copies;
mod differential;
mod faults;
mod kinds;
mod lent;
mod over;
mod prefixes;
mod sound;
mod traps;
mod trimming;

// The same files stand below the other store.
#[path = "../examples/bench.rs"]
mod bench;
#[path = "../examples/documents.rs"]
mod documents;
#[path = "../examples/histories.rs"]
mod histories;
#[path = "../examples/limits.rs"]
mod limits;
#[path = "../examples/lots.rs"]
mod lots;
#[path = "../examples/model.rs"]
mod model;
#[path = "../examples/pages.rs"]
mod pages;
#[path = "../examples/requests.rs"]
mod requests;
#[path = "../examples/trims.rs"]
mod trims;

/// Random histories of each kind.
const CASES: u32 = 40;

/// A store under a prefix of its own, with a clock that stands still until it is set.
struct Bench {
    store: Arc<Redis>,
    clock: Arc<AtomicI64>,
    prefix: String,
    server: Arc<Server>,
}

/// One server for all examples that run at a time: each has its own prefix. It does not sync,
/// because it ends with the last of them.
fn server() -> Arc<Server> {
    static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    server.upgrade().unwrap_or_else(|| {
        let started = Server::start(&["--appendonly", "yes", "--appendfsync", "no"]);
        let started = Arc::new(started);
        *server = Arc::downgrade(&started);
        started
    })
}

impl Bench {
    async fn empty() -> Self {
        Self::on(server()).await
    }

    async fn on(server: Arc<Server>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let clock = Arc::new(AtomicI64::new(START));
        let store = open(&server, &prefix, &clock).await;
        Self { store, clock, prefix, server }
    }

    /// Closes the store and opens it again, after the leases of the first have ended.
    async fn reopened(mut self) -> Self {
        self.store.close().await.unwrap();
        self.end_leases(["default"]);
        self.store = open(&self.server, &self.prefix, &self.clock).await;
        self
    }

    /// Nobody lends the places of what runs any longer.
    fn end_leases<'a>(&self, accounts: impl IntoIterator<Item = &'a str>) {
        let end = "for _, place in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
                       redis.call('ZADD', KEYS[1], 0, place)
                   end
                   redis.call('ZADD', KEYS[2], 0, ARGV[1])";
        let due = format!("{}:due", self.prefix);
        for account in accounts {
            let flights = format!("{}:{{{account}}}:flight", self.prefix);
            self.server.run(&["EVAL", end, "2", &flights, &due, account]).unwrap();
        }
    }

    async fn assert_sound(&self) {
        // On a connection of its own: the store may be closed.
        let store = open(&self.server, &self.prefix, &self.clock).await;
        sound::assert_sound(&store).await;
    }
}

async fn open(server: &Server, prefix: &str, clock: &Arc<AtomicI64>) -> Arc<Redis> {
    open_with(server, prefix, clock, Options::of(server.url()).lease).await
}

async fn open_with(
    server: &Server,
    prefix: &str,
    clock: &Arc<AtomicI64>,
    lease: Duration,
) -> Arc<Redis> {
    let clock = clock.clone();
    let options = Options {
        prefix: prefix.into(),
        lease,
        clock: Some(Arc::new(move || clock.load(Ordering::SeqCst))),
        // Tests share a machine that is busy: nothing here is about time.
        connect_timeout: Duration::from_secs(20),
        command_timeout: Duration::from_secs(20),
        ..Options::of(server.url())
    };
    Redis::open(options).await.unwrap()
}

/// Waits until something holds that must come to hold.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let since = std::time::Instant::now();
    while !holds().await {
        assert!(since.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
