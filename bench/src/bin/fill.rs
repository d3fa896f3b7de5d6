//! Fills a new store with the requests of ninety days, settled by the store itself at the times
//! they are from: what `pages.py` measures.
//!
//!   --store STORE    a file that does not exist yet, or an empty redis://…
//!   --rows N         requests, a million if not said
//!
//! One account, `a0`; its three keys and eight models are used in every hour, some requests are
//! cut, and a few have a tag. A store that has the account already is left as it is.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use bench::store::{account_id, key, settlement};
use bench::{Args, now_ns, runtime};
use farebox::billing::ledger::Kind;
use farebox::key::KeyHash;
use farebox::store::embedded::{Clock, Embedded, Options, Synchronous};
use farebox::store::redis::{self, Redis};
use farebox::store::{Grant, Outcome, Store};
use tokio::task::JoinSet;

const DAYS: i64 = 90;
const DAY_MS: i64 = 24 * 3_600_000;
const KEYS: usize = 3;
const MODELS: u64 = 8;
/// Settled at the same instant.
const TOGETHER: u64 = 500;

fn main() {
    let args = Args::parse();
    let to: String = args.get("store", String::new());
    let rows: u64 = args.get("rows", 1_000_000);
    assert!(!to.is_empty(), "--store names a new file or an empty Redis");
    runtime(2).block_on(fill(&to, rows));
}

async fn fill(to: &str, rows: u64) {
    let now = i64::try_from(now_ns() / 1_000_000).expect("a time of this age");
    let begin = now - DAYS * DAY_MS;
    let clock = Arc::new(AtomicI64::new(begin));
    let store = open(to, &clock).await;
    if store.account(&account_id(0)).await.is_ok() {
        return println!("{to} is filled already");
    }
    store.create_account(account_id(0), "Ninety days".into()).await.expect("an account");
    for number in 0..KEYS {
        let mut key = key(number);
        key.account = account_id(0);
        key.name = format!("key {number}");
        store.create_key(key, KeyHash::of(&format!("fill-{number}"))).await.expect("a key");
    }
    let grant = Grant {
        account: account_id(0),
        kind: Kind::Topup,
        amount: "1000".parse().expect("an amount"),
        expires: None,
        note: "fill".into(),
        id: "fill".into(),
    };
    store.grant(grant).await.expect("credits");
    for first in (0..rows).step_by(usize::try_from(TOGETHER).expect("a small number")) {
        let part = i128::from(DAYS * DAY_MS) * i128::from(first) / i128::from(rows);
        clock.store(begin + i64::try_from(part).expect("a time"), Relaxed);
        let mut requests = JoinSet::new();
        for number in first..rows.min(first + TOGETHER) {
            requests.spawn(settle(Arc::clone(&store), number));
        }
        requests.join_all().await;
    }
    store.close().await.expect("an end");
    println!("{to} has {rows} requests of {DAYS} days");
}

async fn settle(store: Arc<dyn Store>, number: u64) {
    let mut row = settlement(number, 0);
    row.key = key(usize::try_from(number).unwrap_or(0) % KEYS).id;
    row.model = format!("m{}", number % MODELS);
    row.attribution.tag = (number % 100_003 == 77).then(|| "rare".into());
    if number % 10_007 == 5 {
        row.outcome = Outcome::UpstreamCut;
    }
    store.settle(row).await.expect("a settlement");
}

async fn open(to: &str, clock: &Arc<AtomicI64>) -> Arc<dyn Store> {
    let read = Arc::clone(clock);
    let clock: Clock = Arc::new(move || read.load(Relaxed));
    if to.contains("://") {
        let options = redis::Options {
            clock: Some(clock),
            command_timeout: Duration::from_secs(10),
            allow_unsafe: true,
            ..redis::Options::of(to)
        };
        Redis::open(options).await.expect("a Redis")
    } else {
        let options = Options { synchronous: Synchronous::Normal, clock, ..Options::default() };
        Embedded::open(Path::new(to), options).expect("a file")
    }
}
