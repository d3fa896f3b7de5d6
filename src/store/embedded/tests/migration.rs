//! A file of an older version becomes one of today, with every balance as it was.

use super::*;

/// A file as schema 1 left it: credits, debits below zero and back, a correction each way.
fn file_of_schema_1(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
    db.execute_batch(include_str!("schema_1.sql")).unwrap();
    db.pragma_update(None, "application_id", 0x4662_7831).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    let day = 24 * HOUR_MS;
    let entries = [
        ("topup", "0.2", "first", START - 400 * day),
        ("debit_ai", "-0.3", "one", START - 20 * day),
        ("topup", "5", "second", START - 10 * day),
        ("adjust", "1", "up", START - 9 * day),
        ("adjust", "-0.4", "down", START - 8 * day),
        ("debit_ai", "-5", "two", START - 7 * day),
        ("debit_ai", "0", "free", START - 6 * day),
    ];
    let mut balance = Credits::ZERO;
    for (seq, (kind, amount, id, ts)) in (1_i64..).zip(entries) {
        balance += credits(amount);
        let fingerprint = fingerprint::of_settlement(&settlement(id, "5"));
        db.execute(
            "INSERT INTO entry VALUES ('default', ?, ?, ?, ?, ?, ?, NULL)",
            rusqlite::params![seq, ts, kind, credits(amount), balance, id],
        )
        .unwrap();
        db.execute(
            "INSERT INTO op VALUES ('default', ?, ?, ?, ?)",
            rusqlite::params![id, fingerprint, seq, balance],
        )
        .unwrap();
    }
    for (id, balance, seq) in [("default", balance, 7), ("empty", Credits::ZERO, 0)] {
        db.execute(
            "INSERT INTO account VALUES (?, ?, 'open', ?, ?, ?, ?)",
            rusqlite::params![id, id, balance, seq, START - 6 * day, START],
        )
        .unwrap();
    }
    db
}

fn migrated() -> (Bench, Result<Arc<Embedded>, OpenError>) {
    let mut bench = Bench::empty();
    let path = bench.directory.path().join("old.db");
    drop(file_of_schema_1(&path));
    let store = open(&path, &bench.clock);
    if let Ok(store) = &store {
        bench.store = store.clone();
    }
    (bench, store)
}

#[tokio::test]
async fn a_ledger_without_lots_gets_them_and_keeps_its_balance() {
    let (bench, store) = migrated();
    store.unwrap();
    assert_eq!(bench.balance().await, "0.5");
    let left = bench.left().await;
    assert_eq!(left, [("up".to_owned(), "0.5".to_owned())]);
    let lots = bench.lots(LotFilter::All).await;
    let of = |lot: usize| (lots[lot].source.as_str(), lots[lot].lot.granted, lots[lot].lot.to_debt);
    assert_eq!(of(2), ("first", credits("0.2"), Credits::ZERO));
    assert_eq!(of(1), ("second", credits("5"), credits("0.1")));
    assert_eq!(lots[1].lot.expires_at, START + 355 * 24 * HOUR_MS);
    let parts = &bench.entries().await[1].parts;
    let taken = |lot, amount| Part { place: Place::Lot(lot), amount: credits(amount) };
    assert_eq!(*parts, [taken(2, "-4.5"), taken(3, "-0.5")]);
}

#[tokio::test]
async fn a_migrated_file_is_used_and_remembers_what_was_done() {
    let (bench, store) = migrated();
    let store = store.unwrap();
    assert!(bench.settle("two", "5").await.unwrap().duplicate);
    bench.store.refund(undo("two", None, "back")).await.unwrap();
    bench.settle("three", "1").await.unwrap();
    assert_eq!(bench.balance().await, "4.5");
    drop(bench.store.close().await);
    drop(store);
    let path = bench.directory.path().join("old.db");
    let again = open(&path, &bench.clock).unwrap();
    assert_eq!(again.account(&account()).await.unwrap().balance, credits("4.5"));
}

#[tokio::test]
async fn a_ledger_that_does_not_add_up_is_left_as_it_was() {
    let bench = Bench::empty();
    let path = bench.directory.path().join("old.db");
    let db = file_of_schema_1(&path);
    db.execute("UPDATE account SET balance = balance + 1 WHERE id = 'default'", []).unwrap();
    drop(db);
    for _ in 0..2 {
        assert!(matches!(open(&path, &bench.clock), Err(OpenError::Migration { .. })));
    }
    let schema: i64 =
        read_only(&path).pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(schema, 1);
}

/// All columns and indexes, whatever way they came.
#[tokio::test]
async fn a_migrated_file_has_the_tables_of_a_new_one() {
    let (bench, store) = migrated();
    drop(store.unwrap());
    let shape = |name: &str| {
        let db = read_only(&bench.directory.path().join(name));
        let mut all: Vec<String> = Vec::new();
        for sql in [
            "SELECT t.name || '.' || c.name || ' ' || c.type || c.\"notnull\" || c.pk
             FROM sqlite_schema t, pragma_table_info(t.name) c WHERE t.type = 'table'",
            "SELECT i.tbl_name || ':' || i.name || ' ' || group_concat(c.name)
             FROM sqlite_schema i, pragma_index_info(i.name) c WHERE i.type = 'index'
             GROUP BY i.name",
        ] {
            let mut rows = db.prepare(sql).unwrap();
            let rows = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
            all.extend(rows.map(Result::unwrap));
        }
        all.sort();
        all
    };
    assert_eq!(shape("old.db"), shape("farebox.db"));
}
