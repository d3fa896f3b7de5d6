//! Backups and their way back, and what is not trimmed.

use rusqlite::Connection;

use super::trims::{eventful, run};
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
