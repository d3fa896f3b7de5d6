//! Promises of the embedded store, on real files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use super::*;
use crate::billing::ledger::Kind;
use crate::billing::{Credits, Usage};
use crate::store::{Attribution, Outcome, Source};

mod examples;
mod faults;
mod model;
mod pages;

/// 2026-09-01T00:00:00Z
const START: Millis = 1_788_220_800_000;
const LENIENT: Admission = Admission { max_in_flight: 64, hold: Credits::ZERO };
const ALL: Page = Page { cursor: None, limit: 500 };

/// A store in a directory of its own, with a clock that stands still until it is set.
struct Bench {
    store: Arc<Embedded>,
    clock: Arc<AtomicI64>,
    directory: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let bench = Self::empty();
        bench.store.create_account(account(), "Default".into()).await.unwrap();
        bench
    }

    fn empty() -> Self {
        let clock = Arc::new(AtomicI64::new(START));
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("farebox.db"), &clock).unwrap();
        Self { store, clock, directory }
    }

    async fn with(balance: &str) -> Self {
        let bench = Self::new().await;
        match balance.strip_prefix('-') {
            Some(debt) => drop(bench.settle("before", debt).await.unwrap()),
            None => drop(bench.top_up("before", balance).await.unwrap()),
        }
        bench
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("farebox.db")
    }

    /// Closes the store and opens the file again.
    async fn reopened(mut self) -> Self {
        self.store.close().await.unwrap();
        self.store = open(&self.path(), &self.clock).unwrap();
        self
    }

    fn set_clock(&self, now: Millis) {
        self.clock.store(now, Ordering::SeqCst);
    }

    async fn balance(&self) -> String {
        self.store.account(&account()).await.unwrap().balance.to_string()
    }

    async fn admit(&self, id: &str) -> Result<Admitted, Refused> {
        self.store.admit(&account(), request(id), LENIENT).await.unwrap()
    }

    async fn settle(&self, id: &str, charge: &str) -> Result<Settled, StoreError> {
        self.store.settle(settlement(id, charge)).await
    }

    async fn top_up(&self, id: &str, amount: &str) -> Result<Granted, StoreError> {
        self.grant(Kind::Topup, id, amount).await
    }

    async fn grant(&self, kind: Kind, id: &str, amount: &str) -> Result<Granted, StoreError> {
        let note = "by hand".into();
        let grant =
            Grant { account: account(), kind, amount: credits(amount), note, id: id.into() };
        self.store.grant(grant).await
    }

    async fn entries(&self) -> Vec<Entry> {
        let filter = EntryFilter::default();
        self.store.entries(&account(), filter, ALL).await.unwrap().data
    }

    async fn usage(&self) -> Vec<UsageRow> {
        self.store.usage(&account(), UsageFilter::default(), ALL).await.unwrap().data
    }
}

fn open(path: &Path, clock: &Arc<AtomicI64>) -> Result<Arc<Embedded>, OpenError> {
    let clock = clock.clone();
    let options = Options {
        synchronous: Synchronous::Normal,
        note_after: Duration::ZERO,
        clock: Arc::new(move || clock.load(Ordering::SeqCst)),
    };
    Embedded::open(path, options)
}

fn account() -> AccountId {
    AccountId("default".into())
}

fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

fn request(id: &str) -> Candidate {
    Candidate { id: id.into(), key: "key_1".into(), model: "sonnet".into() }
}

fn settlement(id: &str, charge: &str) -> Settlement {
    Settlement {
        id: id.into(),
        account: account(),
        key: "key_1".into(),
        model: "sonnet".into(),
        served_model: None,
        upstream: "anthropic".into(),
        attribution: Attribution::default(),
        usage: Usage { input: 12, output: 3, ..Usage::default() },
        charge: credits(charge),
        price_version: "v1".into(),
        ttft_ms: Some(40),
        latency_ms: 900,
        stream: true,
        outcome: Outcome::Completed,
        source: Source::Reported,
        http_status: 200,
        flags: String::new(),
    }
}

fn read_only(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// What must hold in any file, whatever happened: dense sequences, running balances, one entry
/// an operation, and sums equal to the rows.
fn assert_sound(path: &Path) {
    let db = read_only(path);
    let none = |what: &str, sql: &str| {
        let found: i64 = db.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(found, 0, "{what}");
    };
    none(
        "accounts whose balance or sequence is not that of their entries",
        "SELECT count(*) FROM account LEFT JOIN
             (SELECT account, sum(amount) AS balance, count(*) AS n, max(seq) AS last
              FROM entry GROUP BY account) AS sums ON sums.account = account.id
         WHERE account.balance <> coalesce(sums.balance, 0)
            OR account.seq <> coalesce(n, 0) OR account.seq <> coalesce(last, 0)",
    );
    none(
        "entries that do not follow from the one before",
        "SELECT count(*) FROM
             (SELECT seq, ts, amount, balance_after,
                  lag(seq, 1, 0) OVER one AS seq_before,
                  lag(ts, 1, 0) OVER one AS ts_before,
                  lag(balance_after, 1, 0) OVER one AS balance_before
              FROM entry WINDOW one AS (PARTITION BY account ORDER BY seq))
         WHERE seq <> seq_before + 1 OR ts < ts_before
            OR balance_after <> balance_before + amount",
    );
    none(
        "entries without exactly one operation",
        "SELECT (SELECT count(*) FROM entry) - (SELECT count(*) FROM op WHERE seq IS NOT NULL)
              + (SELECT count(*) FROM entry LEFT JOIN op
                 ON op.account = entry.account AND op.seq = entry.seq AND op.id = entry.ref
                 WHERE op.id IS NULL OR op.balance <> entry.balance_after)",
    );
    none(
        "requests charged otherwise than their entries say",
        "SELECT (SELECT coalesce(sum(charge), 0) FROM usage)
              + (SELECT coalesce(sum(amount), 0) FROM entry WHERE kind = 'debit_ai')",
    );
    let rows = "SELECT account, ts / 3600000, model, key, coalesce(tag, ''), count(*),
                    sum(input), sum(cached), sum(cache_creation_5m + cache_creation_1h),
                    sum(output), sum(charge), sum(source = 'estimated')
                FROM usage GROUP BY 1, 2, 3, 4, 5";
    for (one, other) in [(rows, "SELECT * FROM usage_hour"), ("SELECT * FROM usage_hour", rows)] {
        none("sums unlike their rows", &format!("SELECT count(*) FROM ({one} EXCEPT {other})"));
    }
    let integrity: String =
        db.pragma_query_value(None, "integrity_check", |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok");
}
