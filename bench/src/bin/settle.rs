//! How many debits a second Farebox's embedded store makes durable, without HTTP.
//!
//!   --dir PATH       where the database is made (its disk is what is measured)
//!   --seconds S      for each row
//!   --accounts N     that the debits are spread over
//!
//! Each worker admits a request and settles it, as the proxy does, and then takes the next.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bench::{Args, now_ns, runtime};
use farebox::billing::ledger::Kind;
use farebox::billing::{Credits, Usage};
use farebox::store::embedded::{Embedded, Options, Synchronous};
use farebox::store::{
    AccountId, Admission, Attribution, Candidate, Grant, Outcome, Settlement, Source, Store,
};
use hdrhistogram::Histogram;

fn main() {
    let args = Args::parse();
    let dir: String = args.get("dir", ".".into());
    let seconds = Duration::from_secs_f64(args.get("seconds", 4.0));
    let accounts = args.get("accounts", 100);
    println!("| what | rate | p50 µs | p99 µs |\n|---|---|---|---|");
    for synchronous in [Synchronous::Normal, Synchronous::Full] {
        for workers in [1, 16, 64, 256] {
            let folder = Path::new(&dir).join(format!("settle-{}", now_ns()));
            let (rate, took) = runtime(2).block_on(measure(
                &folder.join("farebox.db"),
                synchronous,
                workers,
                accounts,
                seconds,
            ));
            println!(
                "| Farebox's store, {synchronous:?}, {workers} at once | {rate:.0} debits/s | {:.0} | {:.0} |",
                took.value_at_quantile(0.5) as f64 / 1e3,
                took.value_at_quantile(0.99) as f64 / 1e3,
            );
            std::fs::remove_dir_all(&folder).ok();
        }
    }
}

async fn measure(
    path: &Path,
    synchronous: Synchronous,
    workers: usize,
    accounts: usize,
    time: Duration,
) -> (f64, Histogram<u64>) {
    let options = Options { synchronous, ..Options::default() };
    let store: Arc<dyn Store> = Embedded::open(path, options).expect("a database can be made");
    for account in 0..accounts {
        let id = AccountId(format!("a{account}").into());
        store.create_account(id.clone(), String::new()).await.expect("an account");
        let grant = Grant {
            account: id,
            kind: Kind::Topup,
            amount: "1000000".parse().expect("an amount"),
            note: String::new(),
            id: format!("grant-{account}"),
        };
        store.grant(grant).await.expect("credits");
    }
    let serial = Arc::new(AtomicU64::new(0));
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
    let rate = took.len() as f64 / began.elapsed().as_secs_f64();
    store.close().await.expect("the store closes");
    (rate, took)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("bounds")
}

async fn debit(store: &dyn Store, number: u64, accounts: usize) {
    let account = AccountId(format!("a{}", number as usize % accounts).into());
    let id = format!("req_{number:026}");
    let (key, model) = (String::from("key_bench"), String::from("gpt-4o-mini"));
    let candidate = Candidate { id: id.clone(), key: key.clone(), model: model.clone() };
    let how = Admission { max_in_flight: u32::MAX, hold: Credits::ZERO };
    store.admit(&account, candidate, how).await.expect("the store answers").expect("admitted");
    let settlement = Settlement {
        id,
        account,
        key,
        model,
        served_model: None,
        upstream: "openai".into(),
        attribution: Attribution::default(),
        usage: Usage { input: 256, cached: 1024, output: 300, ..Usage::default() },
        charge: "0.000295".parse().expect("an amount"),
        price_version: "bench".into(),
        ttft_ms: Some(400),
        latency_ms: 2000,
        stream: true,
        outcome: Outcome::Completed,
        source: Source::Reported,
        http_status: 200,
        flags: String::new(),
    };
    store.settle(settlement).await.expect("settled");
}
