//! The floor under a debit: SQLite alone, and the disk alone.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use bench::now_ns;
use bench::store::{account_id, settlement};
use rusqlite::{Connection, params};

use crate::line::{Line, histogram, own_cpu_us};

/// The same row and the same balance by SQLite alone, as many in a commit as there are at once.
pub fn sqlite(
    dir: &Path,
    synchronous: &str,
    accounts: usize,
    batch: usize,
    time: Duration,
) -> Line {
    let folder = dir.join(format!("bare-{}", now_ns()));
    fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("bare.db");
    let db = Connection::open(&path).expect("a database");
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).expect("wal");
    db.pragma_update(None, "synchronous", synchronous).expect("synchronous");
    db.execute_batch(include_str!("../../../../src/store/schema.sql")).expect("the schema");
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
    let before = own_cpu_us();
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
    let cpu = own_cpu_us() - before;
    drop(db);
    let disk = fs::metadata(&path).map_or(0, |file| file.len());
    fs::remove_dir_all(&folder).ok();
    Line {
        at_once: batch,
        accounts,
        debits: number,
        seconds,
        cpu_us: cpu,
        disk,
        ..Line::of(&format!("bare SQLite, {synchronous}"), &took)
    }
}

/// How often the disk can be made to keep 4 KiB more.
pub fn append(dir: &Path, time: Duration) -> Line {
    let path = dir.join(format!("append-{}", now_ns()));
    let mut file = fs::File::create(&path).expect("a file");
    let mut took = histogram();
    let began = Instant::now();
    let before = own_cpu_us();
    while began.elapsed() < time {
        let start = Instant::now();
        file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).expect("written");
        took.record(start.elapsed().as_nanos() as u64).expect("bounds");
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = own_cpu_us() - before;
    fs::remove_file(&path).ok();
    Line {
        at_once: 1,
        debits: took.len(),
        seconds,
        cpu_us: cpu,
        ..Line::of("append 4 KiB and fdatasync", &took)
    }
}
