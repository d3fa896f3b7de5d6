//! What a debit costs in Farebox's embedded store, without HTTP, beside what SQLite and the disk
//! ask for the same row.
//!
//!   --dir PATH       where the databases are made (its disk is what is measured)
//!   --seconds S      for each row
//!   --only TEXT      rows whose name has it
//!
//! Each worker admits a request and settles it, as the proxy does, and then takes the next. CPU
//! is that of the whole process, the workers included, and of the store's own threads.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
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
use rusqlite::{Connection, params};

const AT_ONCE: [usize; 4] = [1, 16, 64, 512];

fn main() {
    let args = Args::parse();
    let dir = PathBuf::from(args.get("dir", String::from(".")));
    let time = Duration::from_secs_f64(args.get("seconds", 3.0));
    let only: String = args.get("only", String::new());
    println!(
        "| what | at once | accounts | debits/s | p50 µs | p99 µs | CPU µs | of it the store's \
         threads | bytes | rate × bare SQLite | CPU × bare SQLite |\n|{}",
        "---|".repeat(11)
    );
    append(&dir, time);
    for synchronous in [Synchronous::Normal, Synchronous::Full] {
        for accounts in [1, 1000] {
            for at_once in AT_ONCE {
                let name = format!("{synchronous:?}").to_lowercase();
                let cell = format!("{name}/{accounts}/{at_once}");
                if !cell.contains(&only) {
                    continue;
                }
                let bare = bare(&dir, &name, accounts, at_once, time / 2);
                bare.print(&format!("bare SQLite, {name}"), at_once, accounts, None);
                let folder = dir.join(format!("settle-{}", now_ns()));
                let store = runtime(2).block_on(measure(
                    &folder.join("farebox.db"),
                    synchronous,
                    at_once,
                    accounts,
                    time,
                ));
                store.print(&format!("Farebox, {name}"), at_once, accounts, Some(&bare));
                fs::remove_dir_all(&folder).ok();
            }
        }
    }
}

/// One line of the table.
struct Line {
    took: Histogram<u64>,
    debits: u64,
    seconds: f64,
    cpu_us: f64,
    store_us: f64,
    bytes: u64,
}

impl Line {
    fn rate(&self) -> f64 {
        self.debits as f64 / self.seconds
    }

    fn print(&self, what: &str, at_once: usize, accounts: usize, bare: Option<&Self>) {
        let (rate, cpu) = (self.rate(), self.cpu_us / self.debits as f64);
        let ratios = bare.map_or(String::from("| |"), |bare| {
            let bare_cpu = bare.cpu_us / bare.debits as f64;
            format!("{:.2} | {:.2} |", rate / bare.rate(), cpu / bare_cpu)
        });
        println!(
            "| {what} | {at_once} | {accounts} | {rate:.0} | {:.0} | {:.0} | {cpu:.1} | {:.1} | {} | {ratios}",
            self.took.value_at_quantile(0.5) as f64 / 1e3,
            self.took.value_at_quantile(0.99) as f64 / 1e3,
            self.store_us / self.debits as f64,
            self.bytes / self.debits.max(1),
        );
    }
}

async fn measure(
    path: &Path,
    synchronous: Synchronous,
    workers: usize,
    accounts: usize,
    time: Duration,
) -> Line {
    let options = Options { synchronous, ..Options::default() };
    let store: Arc<dyn Store> = Embedded::open(path, options).expect("a database can be made");
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
    let before = (cpu_us(""), cpu_us("store"));
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
    let (cpu, store_cpu) = (cpu_us("") - before.0, cpu_us("store") - before.1);
    store.close().await.expect("the store closes");
    let bytes = fs::metadata(path).map_or(0, |file| file.len());
    Line { debits: took.len(), took, seconds, cpu_us: cpu, store_us: store_cpu, bytes }
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

/// The same row and the same balance by SQLite alone, as many in a commit as there are at once.
fn bare(dir: &Path, synchronous: &str, accounts: usize, batch: usize, time: Duration) -> Line {
    let folder = dir.join(format!("bare-{}", now_ns()));
    fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("bare.db");
    let db = Connection::open(&path).expect("a database");
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).expect("wal");
    db.pragma_update(None, "synchronous", synchronous).expect("synchronous");
    db.execute_batch(include_str!("../../../src/store/schema.sql")).expect("the schema");
    db.execute_batch("BEGIN").expect("begin");
    for account in 0..accounts {
        db.execute(
            "INSERT INTO account (n, id, name, status, balance, seq, sub, last_ts, created_at)
             VALUES (?, ?, '', 'open', 0, 0, 0, 0, 0)",
            params![account as i64, account_id(account).to_string()],
        )
        .expect("an account");
    }
    db.execute_batch("COMMIT").expect("commit");
    let mut took = histogram();
    let (mut number, mut seqs) = (0_u64, vec![0_i64; accounts]);
    let before = cpu_us("");
    let began = Instant::now();
    while began.elapsed() < time {
        let start = Instant::now();
        db.execute_batch("BEGIN IMMEDIATE").expect("begin");
        for _ in 0..batch {
            number += 1;
            let account = number as usize % accounts;
            seqs[account] += 1;
            let row = settlement(number, account);
            db.prepare_cached(
                "INSERT INTO record (account, ts, seq, sub, id, fingerprint, kind, amount,
                     balance_after, lot, key, model, upstream, input, cached, output,
                     price_version, ttft_ms, latency_ms, stream, outcome, source, http_status,
                     flags)
                 VALUES (?, ?, ?, 0, ?, x'0011223344556677', 'debit_ai', ?, ?, 1, ?, ?, ?, ?, ?, ?,
                     ?, ?, ?, ?, 'completed', 'reported', ?, '')",
            )
            .and_then(|mut insert| {
                insert.execute(params![
                    account as i64,
                    number as i64,
                    seqs[account],
                    row.id,
                    -row.charge.nano(),
                    seqs[account] * -295_000,
                    row.key,
                    row.model,
                    row.upstream,
                    256,
                    1024,
                    300,
                    row.price_version,
                    row.ttft_ms,
                    row.latency_ms,
                    row.stream,
                    row.http_status,
                ])
            })
            .expect("a record");
            db.prepare_cached("UPDATE account SET balance = balance - ?, seq = ? WHERE n = ?")
                .and_then(|mut update| {
                    update.execute(params![295_000, seqs[account], account as i64])
                })
                .expect("a balance");
        }
        db.execute_batch("COMMIT").expect("commit");
        took.record(start.elapsed().as_nanos() as u64).expect("bounds");
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_us("") - before;
    drop(db);
    let bytes = fs::metadata(&path).map_or(0, |file| file.len());
    fs::remove_dir_all(&folder).ok();
    Line { took, debits: number, seconds, cpu_us: cpu, store_us: 0.0, bytes }
}

/// How often the disk can be made to keep 4 KiB more.
fn append(dir: &Path, time: Duration) {
    let path = dir.join(format!("append-{}", now_ns()));
    let mut file = fs::File::create(&path).expect("a file");
    let mut took = histogram();
    let began = Instant::now();
    let before = cpu_us("");
    while began.elapsed() < time {
        let start = Instant::now();
        file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).expect("written");
        took.record(start.elapsed().as_nanos() as u64).expect("bounds");
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_us("") - before;
    fs::remove_file(&path).ok();
    let line = Line { debits: took.len(), took, seconds, cpu_us: cpu, store_us: 0.0, bytes: 0 };
    line.print("append 4 KiB and fdatasync", 1, 0, None);
}

/// CPU used by the threads of this process whose names begin so, in µs.
fn cpu_us(threads: &str) -> f64 {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let named = tasks.map(|task| task.path()).filter(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with(threads))
    });
    let ran = |task: PathBuf| {
        let times = fs::read_to_string(task.join("schedstat")).ok()?;
        times.split_whitespace().next()?.parse::<f64>().ok()
    };
    named.filter_map(ran).sum::<f64>() / 1e3
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("bounds")
}
