//! Promises of the embedded store, on real files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use super::*;
use crate::billing::ledger::{Expiry, Kind};
use crate::billing::{Credits, Usage};
use crate::store::examples::*;
use crate::store::{Attribution, KeyLimits, Outcome, Rejection, Source};

mod audit;
mod copy;
mod debits;
mod faults;
mod log;
mod migrate;
mod plans;

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

/// A store in a directory of its own, with a clock that stands still until it is set.
struct Bench {
    store: Arc<Embedded>,
    clock: Arc<AtomicI64>,
    directory: TempDir,
}

impl Bench {
    async fn empty() -> Self {
        let clock = Arc::new(AtomicI64::new(START));
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("farebox.db"), &clock).unwrap();
        Self { store, clock, directory }
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

    /// Opens the file of a store that was closed.
    async fn reopened_file(mut self) -> Self {
        self.store = open(&self.path(), &self.clock).unwrap();
        self
    }

    /// Writes what waits, and looks whether everything in the file fits together.
    async fn assert_sound(&self) {
        assert_sound(&self.path());
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
             (SELECT account, sum(amount) AS balance, count(*) AS entries, max(seq) AS last
              FROM entry GROUP BY account) AS sums ON sums.account = account.id
         WHERE account.balance <> coalesce(sums.balance, 0)
            OR account.seq <> coalesce(entries, 0) OR account.seq <> coalesce(last, 0)",
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
        "entries without an operation, but those that only time makes, and operations without
         content, but abandoned requests",
        "SELECT count(*) FROM record
         WHERE (id IS NULL) <> (kind IN ('expiry', 'forfeit') AND kind IS NOT NULL)
            OR (fingerprint IS NULL) <> (id IS NULL OR outcome IS 'abandoned')",
    );
    none(
        "accounts that do not know how many records followed their last entry",
        "SELECT count(*) FROM account WHERE sub < (SELECT coalesce(max(sub), 0) FROM record
             WHERE record.account = account.n AND record.seq = account.seq)",
    );
    none(
        "accounts whose balance is not what their lots have left, or whose next expiry is not
         the soonest of them",
        "SELECT count(*) FROM account LEFT JOIN
             (SELECT account, sum(remaining) AS remaining, min(expires_at) AS next
              FROM lot WHERE remaining > 0 GROUP BY account) AS lots ON lots.account = account.id
         WHERE coalesce(remaining, 0) <> max(balance, 0) OR next_expiry IS NOT next",
    );
    none(
        "lots that are not what the parts of entries made them",
        "SELECT count(*) FROM lot LEFT JOIN
             (SELECT account, lot, sum(amount) AS sum FROM part
              WHERE lot IS NOT NULL GROUP BY account, lot) AS parts
             ON parts.account = lot.account AND parts.lot = lot.lot
         WHERE coalesce(sum, 0) <> remaining
            OR granted <> remaining + used + expired + to_debt + forfeited + reversed
            OR source NOT IN (SELECT ref FROM entry
                              WHERE entry.account = lot.account AND entry.seq = lot.seq)",
    );
    none(
        "entries whose parts do not sum to their amount",
        "SELECT count(*) FROM entry LEFT JOIN
             (SELECT account, seq, sum(amount) AS sum FROM part GROUP BY account, seq) AS parts
             ON parts.account = entry.account AND parts.seq = entry.seq
         WHERE coalesce(sum, 0) <> amount",
    );
    none(
        "entries of which more was undone than they booked",
        "SELECT count(*) FROM entry JOIN
             (SELECT account, undoes, sum(abs(amount)) AS undone FROM entry
              WHERE undoes IS NOT NULL GROUP BY account, undoes) AS undone
             ON undone.account = entry.account AND undone.undoes = entry.seq
         WHERE undone > abs(amount)",
    );
    none(
        "requests charged otherwise than their entries say",
        "SELECT (SELECT coalesce(sum(charge), 0) FROM usage)
              + (SELECT coalesce(sum(amount), 0) FROM entry WHERE kind = 'debit_ai')",
    );
    let rows = "SELECT account, ts / 3600000, model, key, coalesce(tag, ''), upstream, count(*),
                    sum(input), sum(cached), sum(cache_creation_5m + cache_creation_1h),
                    sum(output), sum(charge), sum(source = 'estimated')
                FROM usage GROUP BY 1, 2, 3, 4, 5, 6";
    for (one, other) in [(rows, "SELECT * FROM usage_hour"), ("SELECT * FROM usage_hour", rows)] {
        none("sums unlike their rows", &format!("SELECT count(*) FROM ({one} EXCEPT {other})"));
    }
    let integrity: String =
        db.pragma_query_value(None, "integrity_check", |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok");
}
