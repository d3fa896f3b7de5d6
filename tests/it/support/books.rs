//! The store's file, read beside the program that owns it.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use farebox::billing::Credits;
use rusqlite::{Connection, OpenFlags};

/// The ledger of one account, read on where it was left; each entry is checked as it comes.
pub struct Books {
    path: PathBuf,
    account: String,
    seq: i64,
    balance: i64,
    references: HashSet<String>,
    /// What was debited, by the request.
    pub debits: HashMap<String, Credits>,
}

impl Books {
    pub fn of(path: &Path, account: &str) -> Self {
        Self {
            path: path.into(),
            account: account.into(),
            seq: 0,
            balance: 0,
            references: HashSet::new(),
            debits: HashMap::new(),
        }
    }

    /// Reads what is new: a dense sequence, a running balance, nothing written twice, and the
    /// account's balance at its end.
    pub fn read_on(&mut self) {
        let db = open(&self.path);
        let snapshot = db.unchecked_transaction().unwrap();
        let sql = "SELECT seq, kind, amount, balance_after, ref FROM entry
                   WHERE account = ? AND seq > ? ORDER BY seq";
        let mut entries = snapshot.prepare(sql).unwrap();
        let mut rows = entries.query((&self.account, self.seq)).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let (seq, amount, after): (i64, i64, i64) =
                (row.get(0).unwrap(), row.get(2).unwrap(), row.get(3).unwrap());
            let (kind, reference): (String, String) = (row.get(1).unwrap(), row.get(4).unwrap());
            assert_eq!(seq, self.seq + 1, "the sequence is dense");
            assert_eq!(after, self.balance + amount, "the balance runs on at {seq}");
            (self.seq, self.balance) = (seq, after);
            assert!(self.references.insert(reference.clone()), "{reference} stands there twice");
            if kind == "debit_ai" {
                self.debits.insert(reference, Credits::from_nano(-amount));
            }
        }
        let sql = "SELECT balance FROM account WHERE id = ?";
        let balance: i64 = snapshot.query_row(sql, [&self.account], |row| row.get(0)).unwrap();
        assert_eq!(balance, self.balance, "the balance is the sum of the ledger");
    }
}

/// A number that a query gives.
pub fn count(path: &Path, sql: &str) -> i64 {
    open(path).query_row(sql, [], |row| row.get(0)).unwrap()
}

/// The version of the price table that each request was priced by.
pub fn price_versions(path: &Path) -> HashMap<String, String> {
    let db = open(path);
    let mut rows = db.prepare("SELECT id, price_version FROM usage").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn open(path: &Path) -> Connection {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    db
}
