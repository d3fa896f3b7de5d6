//! Files of older versions come up to this one, with all that is in them.

use std::collections::BTreeMap;

use super::trims::{eventful, run};
use super::*;
use crate::store::embedded::file::SCHEMA;
use crate::store::embedded::{copy, migrate};

/// As version 5 made its files.
const FIVE: &str = include_str!("../../../../tests/cases/store/schema-5.sql");
const SIX: &str = include_str!("../migrate/6.sql");

/// A file of an older version with all that a store of this one has.
fn older(version: i64, from: &Path, to: &Path) {
    let db = Connection::open(to).unwrap();
    db.execute_batch(FIVE).unwrap();
    if version > 5 {
        db.execute_batch(SIX).unwrap();
    }
    db.pragma_update(None, "application_id", 0x4662_7831).unwrap();
    db.pragma_update(None, "user_version", version).unwrap();
    db.execute("ATTACH ? AS now", [from.to_string_lossy()]).unwrap();
    let tables: Vec<String> = db
        .prepare("SELECT name FROM main.sqlite_schema WHERE type = 'table'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for table in tables.iter().filter(|table| *table != "usage_hour") {
        db.execute(&format!("INSERT INTO main.{table} SELECT * FROM now.{table}"), []).unwrap();
    }
    db.execute(
        "INSERT INTO main.usage_hour
         SELECT account, hour, model, key, tag, sum(requests), sum(input), sum(cached),
             sum(cache_creation), sum(output), sum(charge), sum(estimated)
         FROM now.usage_hour GROUP BY 1, 2, 3, 4, 5",
        [],
    )
    .unwrap();
}

/// The definitions of everything in a file, without comments and spaces.
fn definitions(path: &Path) -> BTreeMap<String, String> {
    let db = read_only(path);
    let mut found =
        db.prepare("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").unwrap();
    let rows = found.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).unwrap();
    rows.map(|row| {
        let (name, sql) = row.unwrap();
        let lines = sql.lines().map(|line| line.split("--").next().unwrap());
        (name, lines.collect::<String>().split_whitespace().collect())
    })
    .collect()
}

async fn sums(bench: &Bench, by: Group) -> Vec<crate::store::SummaryRow> {
    let utc = jiff::tz::TimeZone::UTC;
    bench.store.summary(&account(), UsageFilter::default(), by, utc).await.unwrap()
}

/// Everything that happens to a balance, by two upstreams; some of it trimmed.
async fn books(trimmed_before: Option<Millis>) -> Bench {
    let bench = eventful().await;
    for (n, upstream) in ["anthropic", "bedrock", "bedrock", ""].into_iter().enumerate() {
        bench.set_clock(START + 1000 * n as i64 + HOUR_MS / 2 * n as i64);
        let upstream = upstream.to_owned();
        let row = Settlement { upstream, ..settlement(&format!("req_of_{n}"), "0.1") };
        bench.store.settle(row).await.unwrap();
    }
    if let Some(before) = trimmed_before {
        bench.store.trim(&account(), before).await.unwrap();
    }
    bench
}

#[tokio::test]
async fn a_file_of_each_older_version_comes_up_with_all_that_is_in_it() {
    for (version, trimmed_before) in [
        (5, None),
        (6, None),
        (6, Some(START + HOUR_MS / 2 + 1500)),
        (6, Some(START + 9 * HOUR_MS)),
    ] {
        let now = books(trimmed_before).await;
        let (tally, _) = run(&now, None).await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("farebox.db");
        now.store.close().await.unwrap();
        older(version, &now.path(), &path);
        let before = std::fs::read(&path).unwrap();

        let store = open(&path, &now.clock).unwrap();
        assert_eq!(definitions(&path), definitions(&now.path()));
        let now = Bench { store: open(&now.path(), &now.clock).unwrap(), ..now };
        let bench = Bench { store, clock: now.clock.clone(), directory };
        assert_eq!(run(&bench, None).await, (tally, Vec::new()), "version {version}");
        for group in [Group::Model, Group::Key, Group::Tag, Group::Day] {
            assert_eq!(sums(&bench, group).await, sums(&now, group).await);
        }
        if trimmed_before.is_none() {
            assert_eq!(sums(&bench, Group::Upstream).await, sums(&now, Group::Upstream).await);
        }
        assert_eq!(bench.entries().await, now.entries().await);
        assert_eq!(bench.usage().await, now.usage().await);

        // The copy is what that version wrote, and what this one restores.
        let kept = bench.directory.path().join(format!("farebox.db.schema-{version}"));
        let db = read_only(&kept);
        let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(found, version);
        std::fs::write(bench.directory.path().join("was.db"), before).unwrap();
        assert_eq!(definitions(&kept), definitions(&bench.directory.path().join("was.db")));
        let balance = bench.balance().await;
        let bench = bench.reopened().await;
        bench.store.close().await.unwrap();
        let to = bench.path();
        let restoring = std::thread::spawn(move || copy::restore(&kept, &to, 0));
        restoring.join().unwrap().unwrap();
        let bench = bench.reopened_file().await;
        assert_eq!(bench.balance().await, balance);
    }
}

#[tokio::test]
async fn a_step_that_fails_leaves_the_file_as_it_was() {
    let now = books(None).await;
    now.store.close().await.unwrap();
    let path = now.directory.path().join("older.db");
    older(5, &now.path(), &path);
    // A table of that name is in the way of the last step.
    let db = Connection::open(&path).unwrap();
    db.execute_batch("CREATE TABLE usage_hour_before (x)").unwrap();
    let was = definitions(&path);
    let Err(failed) = open(&path, &now.clock) else { panic!("it came up") };
    assert!(failed.to_string().contains("usage_hour_before"), "{failed}");
    assert_eq!(definitions(&path), was);
    db.execute_batch("DROP TABLE usage_hour_before").unwrap();
    drop(db);
    let bench = Bench { store: open(&path, &now.clock).unwrap(), ..now };
    assert_eq!(run(&bench, None).await.1, []);
}

#[test]
fn what_is_too_old_or_not_served_yet_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("old.db");
    for version in 1..SCHEMA {
        let _ = std::fs::remove_file(&path);
        let db = Connection::open(&path).unwrap();
        db.execute_batch(FIVE).unwrap();
        db.pragma_update(None, "application_id", 0x4662_7831).unwrap();
        db.pragma_update(None, "user_version", version).unwrap();
        drop(db);
        let refused = copy::status(&path).unwrap_err().to_string();
        let says =
            if version < migrate::OLDEST { "before the first release" } else { "start farebox" };
        assert!(refused.contains(says), "{version}: {refused}");
    }
}
