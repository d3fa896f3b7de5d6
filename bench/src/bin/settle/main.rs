//! What a debit costs in each of Farebox's stores, without HTTP, beside what SQLite, Redis and the
//! disk ask for something like it.
//!
//!   --dir PATH       where databases are made (its disk is what is measured)
//!   --seconds S      for each row
//!   --only TEXT      rows whose name has it, such as `redis` or `full/1/64`
//!   --json FILE      the table's rows, also there
//!
//! Each worker admits a request and settles it, as the proxy does, and then takes the next. CPU
//! is that of this process, the workers included, and of the Redis server; apart, that of the
//! embedded store's threads or of the server. Rows of Redis need redis-server, redis-cli and
//! redis-benchmark, and start servers of their own.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bench::store::{account_id, key, settlement};
use bench::{Args, now_ns, runtime};
use farebox::billing::ledger::Kind;
use farebox::key::KeyHash;
use farebox::store::embedded::{Embedded, Options, Synchronous};
use farebox::store::{Admission, Candidate, Grant, Mode, Store};
use hdrhistogram::Histogram;
use line::{Line, Table, cpu_us, histogram, own_cpu_us};

mod bare;
mod line;
mod redis;

const AT_ONCE: [usize; 4] = [1, 16, 64, 512];
/// Accounts that requests are of, in turn.
const ACCOUNTS: [usize; 2] = [1, 1000];

fn main() {
    let args = Args::parse();
    let dir = PathBuf::from(args.get("dir", String::from(".")));
    let time = Duration::from_secs_f64(args.get("seconds", 3.0));
    let only: String = args.get("only", String::new());
    let json: String = args.get("json", String::new());
    let mut table = Table::begin();
    table.add(bare::append(&dir, time), None);
    for synchronous in [Synchronous::Normal, Synchronous::Full] {
        for accounts in ACCOUNTS {
            for at_once in AT_ONCE {
                let name = format!("{synchronous:?}").to_lowercase();
                if format!("{name}/{accounts}/{at_once}").contains(&only) {
                    let bare = bare::sqlite(&dir, &name, accounts, at_once, time / 2);
                    table.add(bare.clone(), None);
                    table.add(embedded(&dir, synchronous, at_once, accounts, time), Some(&bare));
                }
            }
        }
    }
    for setting in redis::SETTINGS {
        for accounts in ACCOUNTS {
            for at_once in AT_ONCE {
                if format!("redis/{}/{accounts}/{at_once}", setting.name).contains(&only) {
                    let server = redis::Servers::start(&dir, &setting);
                    let bare = server.bare(at_once, time / 2);
                    table.add(bare.clone(), None);
                    table.add(server.farebox(at_once, accounts, time), Some(&bare));
                }
            }
        }
    }
    if !json.is_empty() {
        fs::write(&json, table.json()).unwrap_or_else(|error| panic!("{json}: {error}"));
    }
}

fn embedded(
    dir: &std::path::Path,
    synchronous: Synchronous,
    at_once: usize,
    accounts: usize,
    time: Duration,
) -> Line {
    let folder = dir.join(format!("settle-{}", now_ns()));
    let path = folder.join("farebox.db");
    let mut line = runtime(2).block_on(async {
        let options = Options { synchronous, ..Options::default() };
        let store: Arc<dyn Store> = Embedded::open(&path, options).expect("a database can be made");
        measure(store, at_once, accounts, time, || cpu_us("store")).await
    });
    let name = format!("{synchronous:?}").to_lowercase();
    line.what = format!("Farebox, SQLite {name}");
    line.disk = fs::metadata(&path).map_or(0, |file| file.len());
    fs::remove_dir_all(&folder).ok();
    line
}

/// Fills a store with accounts, and lets workers debit them; `store_cpu` is in µs.
async fn measure(
    store: Arc<dyn Store>,
    workers: usize,
    accounts: usize,
    time: Duration,
    store_cpu: impl Fn() -> f64,
) -> Line {
    for account in 0..accounts {
        let id = account_id(account);
        store.create_account(id.clone(), String::new()).await.expect("an account");
        let key = key(account);
        let hash = KeyHash::of(&key.id);
        store.create_key(key, hash).await.expect("a key");
        let grant = Grant {
            account: id,
            kind: Kind::Topup,
            amount: "1000000".parse().expect("an amount"),
            expires: None,
            note: String::new(),
            id: format!("grant-{account}"),
        };
        store.grant(grant).await.expect("credits");
    }
    let serial = Arc::new(AtomicU64::new(0));
    let before = (own_cpu_us(), store_cpu());
    let began = Instant::now();
    let running: Vec<_> = (0..workers)
        .map(|_| {
            let (store, serial) = (Arc::clone(&store), Arc::clone(&serial));
            tokio::spawn(async move {
                let mut took = histogram();
                while began.elapsed() < time {
                    let number = serial.fetch_add(1, Relaxed);
                    let start = Instant::now();
                    debit(store.as_ref(), number, accounts).await;
                    took.record(start.elapsed().as_nanos() as u64).expect("bounds");
                }
                took
            })
        })
        .collect();
    let mut took = histogram();
    for worker in running {
        took.add(worker.await.expect("a worker")).expect("same bounds");
    }
    let seconds = began.elapsed().as_secs_f64();
    let (cpu, store_us) = (own_cpu_us() - before.0, store_cpu() - before.1);
    store.close().await.expect("the store closes");
    Line {
        at_once: workers,
        accounts,
        debits: took.len(),
        seconds,
        cpu_us: cpu,
        store_us,
        ..Line::of("", &took)
    }
}

async fn debit(store: &dyn Store, number: u64, accounts: usize) {
    let account = number as usize % accounts;
    let settlement = settlement(number, account);
    let candidate = Candidate { id: settlement.id.clone(), model: settlement.model.clone() };
    let (mode, max_in_flight) = (Mode::Lenient, u32::MAX);
    let how = Admission { mode, max_in_flight, most: None, tokens: 0 };
    let admitted = store.admit(&key(account), candidate, how).await;
    admitted.expect("the store answers").expect("admitted");
    store.settle(settlement).await.expect("settled");
}
