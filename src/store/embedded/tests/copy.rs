//! Backups and their way back, and the trim of what is old.

use rusqlite::Connection;

use super::audit::{eventful, run};
use super::*;
use crate::store::embedded::copy::{self, CopyError, backup, restore};

const DAY: Millis = 24 * HOUR_MS;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_store_in_use_is_whole_and_comes_back_in_its_place() {
    let bench = eventful().await;
    let before = bench.balance().await;
    let mut copied = bench.store.backup().await.unwrap();
    bench.settle("req_after", "0.1").await.unwrap();
    let file = bench.directory.path().join("backup.db");
    let mut out = std::fs::File::create(&file).unwrap();
    std::io::copy(&mut copied, &mut out).unwrap();

    let path = bench.path();
    let Err(held) = restore(&file, &path, 0) else { panic!("it is in use") };
    let pid = std::process::id();
    assert!(held.to_string().contains(&format!("another process (pid {pid})")), "{held}");
    bench.store.close().await.unwrap();
    let restoring = {
        let path = path.clone();
        move || restore(&file, &path, 0)
    };
    let restored = std::thread::spawn(restoring).join().unwrap().unwrap();
    let bench = Bench { store: open(&path, &bench.clock).unwrap(), ..bench };
    assert_eq!(bench.balance().await, before);
    // What was there is kept, with its last commit.
    let kept = open(&restored.replaced.unwrap(), &bench.clock).unwrap();
    let usage = kept.usage(&account(), UsageFilter::default(), ALL).await.unwrap();
    assert!(usage.data.iter().any(|row| row.id == "req_after"));
    let names: Vec<_> = std::fs::read_dir(bench.directory.path())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("restoring") || name.contains("copy-"))
        .collect();
    assert_eq!(names, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_a_sound_store_of_ours_is_not_restored() {
    let bench = eventful().await;
    bench.store.close().await.unwrap();
    let file = |name: &str| bench.directory.path().join(name);
    let change = |name: &str, sql: &str| {
        std::fs::copy(bench.path(), file(name)).unwrap();
        Connection::open(file(name)).unwrap().execute_batch(sql).unwrap();
    };
    change("newer.db", "PRAGMA user_version = 9999");
    change("older.db", "PRAGMA user_version = 2");
    change("foreign.db", "PRAGMA application_id = 5");
    change("unsound.db", "UPDATE account SET balance = balance + 1");
    std::fs::write(file("text.db"), "no database ".repeat(500)).unwrap();
    let mut bytes = std::fs::read(bench.path()).unwrap();
    let from = bytes.len() / 2;
    bytes[from..].fill(0x5a);
    std::fs::write(file("damaged.db"), bytes).unwrap();

    let was = std::fs::read(bench.path()).unwrap();
    for name in
        ["newer.db", "older.db", "foreign.db", "unsound.db", "text.db", "damaged.db", "none.db"]
    {
        let (from, to) = (file(name), bench.path());
        let refused = std::thread::spawn(move || restore(&from, &to, 0)).join().unwrap();
        let Err(error) = refused else { panic!("{name} was restored") };
        let is_unsound = matches!(error, CopyError::Unsound { .. });
        assert_eq!(is_unsound, name == "unsound.db", "{name}: {error}");
        assert_eq!(std::fs::read(bench.path()).unwrap(), was, "{name}");
    }
    let Err(exists) = backup(&bench.path(), &file("text.db")) else { panic!("written over") };
    assert!(matches!(exists, CopyError::Io { .. }), "{exists}");
}

#[tokio::test]
async fn what_is_trimmed_leaves_balances_sums_and_the_audit_as_they_were() {
    let bench = eventful().await;
    // More than one step of a trim, over hours of which the last stays in part.
    for n in 0..2500_i64 {
        bench.set_clock(START + 5000 + n * 1000);
        bench.settle(&format!("req_{n:05}"), "0.001").await.unwrap();
    }
    let before = START + 5000 + 2400 * 1000;
    let (balance, lots) = (bench.balance().await, bench.lots(LotFilter::All).await);
    let summary = async || {
        let utc = jiff::tz::TimeZone::UTC;
        bench.store.summary(&account(), UsageFilter::default(), Group::Model, utc).await.unwrap()
    };
    let sums = summary().await;
    let (whole, _) = run(&bench, None).await;

    for _ in 0..2 {
        bench.store.trim(&account(), before).await.unwrap();
        let (tally, violations) = run(&bench, None).await;
        assert_eq!(violations, []);
        assert_eq!(tally.entries + tally.trimmed, whole.entries);
        assert_eq!((tally.balance, &tally.kinds), (whole.balance, &whole.kinds));
        assert!(tally.trimmed > 2400);
        let page = Page { cursor: None, limit: 500 };
        let oldest = EntryFilter::default();
        let kept = bench.store.entries_oldest_first(&account(), oldest, page).await.unwrap().data;
        assert_eq!((kept.len(), kept[0].ts), (100, before));
        let since = EntryFilter { since: Some(before + 1), ..EntryFilter::default() };
        let found = bench.store.entries(&account(), since, ALL).await.unwrap();
        assert_eq!(found.data.len(), 99);
    }
    assert_eq!(bench.balance().await, balance);
    assert_eq!(bench.lots(LotFilter::All).await, lots);
    assert_eq!(summary().await, sums);

    // It goes on: new entries, and a second trim of what was kept.
    bench.set_clock(START + 40 * DAY);
    bench.settle("req_new", "0.1").await.unwrap();
    bench.store.trim(&account(), START + 30 * DAY).await.unwrap();
    let (tally, violations) = run(&bench, None).await;
    assert_eq!((violations.len(), bench.entries().await.len()), (0, 1));
    assert_eq!(tally.trimmed + tally.entries, whole.entries + 1);
}

#[tokio::test]
async fn what_was_trimmed_is_said_to_be_and_is_never_booked_again() {
    let bench = eventful().await;
    bench.set_clock(START + 40 * DAY);
    bench.store.trim(&account(), START + 30 * DAY).await.unwrap();
    let balance = bench.balance().await;
    // A payment keeps its id for ever.
    let again = bench.top_up("more", "7").await;
    assert!(matches!(&again, Err(StoreError::Conflict(why)) if why.contains("was trimmed")));
    let refund = bench.store.refund(undo("req_b", None, "late")).await;
    assert!(matches!(&refund, Err(StoreError::NotFound(why)) if why.contains("if it was trimmed")));
    let reversal = bench.store.reverse(undo("before", None, "late 2")).await;
    assert!(matches!(&reversal, Err(StoreError::Conflict(why)) if why.contains("was trimmed")));
    assert_eq!(bench.balance().await, balance);
    assert_eq!(run(&bench, None).await.1, []);
}

#[tokio::test]
async fn books_that_do_not_add_up_are_not_trimmed() {
    let bench = eventful().await;
    let db = Connection::open(bench.path()).unwrap();
    db.execute("UPDATE record SET amount = amount + 1 WHERE seq = 2", []).unwrap();
    let refused = bench.store.trim(&account(), START + 30 * DAY).await;
    assert!(matches!(refused, Err(StoreError::Ledger(_))), "{refused:?}");
    assert!(bench.entries().await.len() > 5);
}

#[tokio::test]
async fn a_store_says_what_it_is_and_how_it_does() {
    let bench = eventful().await;
    let status = bench.store.status().await.unwrap();
    assert_eq!((status.kind.as_str(), status.accounts), ("sqlite", 3));
    assert_eq!(status.entries, run(&bench, None).await.0.entries);
    assert_eq!((status.oldest_entry, status.pending), (Some(START), Some(0)));
    assert_eq!(status.durability.as_deref(), Some("normal"));
    assert!(status.bytes > 0 && status.problem.is_none());
    let beside = copy::status(&bench.path()).unwrap();
    assert_eq!((beside.entries, beside.pending), (status.entries, None));
}
