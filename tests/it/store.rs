//! `farebox store` and the archive: copies while it serves, their way back, and what is old.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use farebox::billing::Usage;
use farebox::billing::ledger::Kind;
use farebox::store::embedded::{Embedded, Options};
use farebox::store::{AccountId, Attribution, Grant, Outcome, Settlement, Source, Store};
use farebox::time;
use serde_json::Value;

use crate::support::credits;
use crate::support::load::{Load, vary};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;

const DAY_MS: i64 = 24 * 3600 * 1000;

async fn cli(proxy: &Proxy, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = proxy.cli(args).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_made_under_load_is_restored_and_what_was_there_is_kept() {
    let upstream = Upstream::start().await;
    vary(&upstream);
    let mut proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    let load = Load::start(&account, "backed up", 4);
    let file = proxy.dir().join("backup.db");
    let file = file.to_str().unwrap();
    let (code, out, err) = cli(&proxy, &["store", "backup", file]).await;
    assert!(code == 0 && out.contains("1 accounts"), "{out} {err}");
    load.end().await;
    account.settled().await;
    let (code, _, err) = cli(&proxy, &["store", "backup", file]).await;
    assert!(code == 6 && err.contains("never written over"), "{err}");
    let (code, out, _) = cli(&proxy, &["store", "status"]).await;
    assert!(code == 0 && out.contains("operations wait"), "{out}");
    let (code, _, err) = cli(&proxy, &["store", "restore", file]).await;
    let pid = format!("(pid {})", proxy.pid());
    assert!(code == 6 && err.contains("in use by another process") && err.contains(&pid), "{err}");

    let after = account.balance().await;
    proxy.terminate().await;
    let (code, out, _) = cli(&proxy, &["store", "status"]).await;
    assert!(code == 0 && out.contains("no Farebox was asked"), "{out}");
    let (code, out, err) = cli(&proxy, &["store", "restore", file]).await;
    assert!(code == 0 && out.contains("all of it adds up; what was there is"), "{out} {err}");
    let kept = out.trim().rsplit_once(' ').unwrap().1.to_owned();
    proxy.restart().await;
    account.check_books().await;
    assert!(account.balance().await >= after, "it is the older state");
    // And back again, to what was replaced.
    proxy.terminate().await;
    let (code, _, err) = cli(&proxy, &["store", "restore", &kept]).await;
    assert_eq!(code, 0, "{err}");
    // Without a Farebox the file is copied directly.
    let (code, _, err) = cli(&proxy, &["store", "backup", &format!("{file}.2")]).await;
    assert_eq!(code, 0, "{err}");
    proxy.restart().await;
    assert_eq!(account.balance().await, after);
    account.check_books().await;
}

#[tokio::test]
async fn what_is_no_sound_backup_is_refused_by_its_exit_code() {
    let upstream = Upstream::start().await;
    let mut proxy = Proxy::before(&upstream).await;
    proxy.default_account().chat("Hi").await.expect(200);
    let file = |name: &str| proxy.dir().join(name).to_str().unwrap().to_owned();
    for name in ["newer", "foreign", "unsound"] {
        assert_eq!(cli(&proxy, &["store", "backup", &file(name)]).await.0, 0);
    }
    std::fs::write(file("text"), "no database ".repeat(500)).unwrap();
    let change = |name: &str, sql: &str| {
        rusqlite::Connection::open(file(name)).unwrap().execute_batch(sql).unwrap();
    };
    change("newer", "PRAGMA user_version = 9999");
    change("foreign", "PRAGMA application_id = 5");
    change("unsound", "UPDATE account SET balance = balance + 1");
    let cases = [
        ("newer", 6, "written by a newer version"),
        ("foreign", 6, "of another program"),
        ("unsound", 8, "I1: the entries sum to"),
        ("text", 1, "not a database"),
        ("none", 5, "No such file"),
    ];
    let files = cases.map(|(name, code, text)| (file(name), code, text));
    proxy.terminate().await;
    for (file, code, text) in files {
        let (found, out, err) = cli(&proxy, &["store", "restore", &file]).await;
        assert!(found == code && err.contains(text), "{file}: {found} {out} {err}");
    }
    proxy.restart().await;
    proxy.default_account().check_books().await;
}

/// A store of 100 days: a top-up, then a request a day.
async fn old_store(path: &std::path::Path) {
    let begin = time::now() - 100 * DAY_MS;
    let clock = Arc::new(AtomicI64::new(begin));
    let now = clock.clone();
    let options =
        Options { clock: Arc::new(move || now.load(Ordering::SeqCst)), ..Options::default() };
    let store = Embedded::open(path, options).unwrap();
    let id = AccountId("default".into());
    store.create_account(id.clone(), "default".into()).await.unwrap();
    let grant = Grant {
        account: id.clone(),
        kind: Kind::Topup,
        amount: credits("50"),
        expires: None,
        note: String::new(),
        id: "inv1".into(),
    };
    store.grant(grant).await.unwrap();
    for n in 0..100 {
        clock.store(begin + n * DAY_MS, Ordering::SeqCst);
        let row = Settlement {
            id: format!("req_old{n:03}"),
            account: id.clone(),
            key: "key_1".into(),
            model: "test".into(),
            served_model: None,
            upstream: "up".into(),
            attribution: Attribution::default(),
            usage: Usage { input: 10, output: 5, ..Usage::default() },
            charge: credits("0.01"),
            price_version: "v1".into(),
            ttft_ms: None,
            latency_ms: 2,
            stream: false,
            outcome: Outcome::Completed,
            source: Source::Reported,
            http_status: 200,
            flags: String::new(),
        };
        store.settle(row).await.unwrap();
    }
    store.close().await.unwrap();
}

async fn tally(proxy: &Proxy) -> Value {
    let (code, out, err) = cli(proxy, &["ledger", "verify", "--json"]).await;
    assert_eq!(code, 0, "{out} {err}");
    serde_json::from_str::<Value>(&out).unwrap()["tally"].clone()
}

#[tokio::test]
async fn what_is_old_leaves_the_store_for_a_file_and_everything_adds_up_as_before() {
    let upstream = Upstream::start().await;
    let mut proxy = Setup::before(&upstream).env("FAREBOX_INITIAL_CREDITS", "").start().await;
    proxy.terminate().await;
    std::fs::remove_file(proxy.store()).unwrap();
    old_store(&proxy.store()).await;
    proxy.restart().await;
    let account = proxy.default_account();
    let balance = account.balance().await;
    let before = tally(&proxy).await;

    let date = |days: i64| time::rfc3339(time::now() - days * DAY_MS)[..10].to_owned();
    let (code, _, err) = cli(&proxy, &["ledger", "trim", "--before", &date(20)]).await;
    assert!(code == 2 && err.contains("at least 31 days ago"), "{err}");
    // Without an archive nothing is trimmed.
    let archive = proxy.store().with_file_name("archive");
    std::fs::write(&archive, "in the way").unwrap();
    let (code, _, err) = cli(&proxy, &["ledger", "trim", "--before", &date(40)]).await;
    assert!(code == 6 && err.contains("nothing was trimmed"), "{err}");
    assert_eq!(tally(&proxy).await, before);
    std::fs::remove_file(&archive).unwrap();

    let (code, out, err) = cli(&proxy, &["ledger", "trim", "--before", &date(40)]).await;
    assert!(code == 0 && err.contains("1 payments of 50"), "{out} {err}");
    let file = out.split_once("→ ").unwrap().1.split(", ").next().unwrap().to_owned();
    let (code, out, _) = cli(&proxy, &["ledger", "verify", "--export", &file]).await;
    assert!(code == 0 && out.contains("as exported"), "{out}");
    let after = tally(&proxy).await;
    assert!(after["trimmed"].as_u64().unwrap() >= 59, "{after}");
    for name in ["balance", "kinds"] {
        assert_eq!(after[name], before[name]);
    }
    assert_eq!(account.balance().await, balance);
    let (_, out, _) = cli(&proxy, &["ledger", "trim", "--before", &date(40)]).await;
    assert!(out.contains("nothing is as old"), "{out}");

    let refund = ["credit", "refund", "req_old001", "--note", "late"];
    let (code, _, err) = cli(&proxy, &refund).await;
    assert!(code == 5 && err.contains("if it was trimmed"), "{err}");
}

/// A file of schema 5 with a top-up and this many requests, as that version wrote them.
fn file_of_schema_5(path: &std::path::Path, requests: i64) {
    const NANO: i64 = 1_000_000_000;
    let begin = time::now() - 100 * DAY_MS;
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch(include_str!("../cases/store/schema-5.sql")).unwrap();
    db.pragma_update(None, "application_id", 0x4662_7831).unwrap();
    db.pragma_update(None, "user_version", 5).unwrap();
    let (granted, each, expires) = (1000 * NANO, NANO / 1000, begin + 365 * DAY_MS);
    let left = granted - requests * each;
    let last = begin + requests * 1000;
    db.execute_batch(&format!(
        "BEGIN;
         INSERT INTO account (n, id, name, status, balance, seq, sub, last_ts, created_at, next_expiry)
         VALUES (1, 'default', 'default', 'open', {left}, {requests} + 1, 0, {last}, {begin}, {expires});
         INSERT INTO lot VALUES ('default', 1, 'usage', 1, 'inv1', {begin}, {expires}, {granted},
             {left}, {requests} * {each}, 0, 0, 0, 0, 1);
         INSERT INTO record (account, ts, seq, sub, id, fingerprint, kind, amount, balance_after, lot)
         VALUES (1, {begin}, 1, 0, 'inv1', zeroblob(32), 'topup', {granted}, {granted}, 1);
         WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {requests})
         INSERT INTO record (account, ts, seq, sub, id, fingerprint, kind, amount, balance_after,
             lot, key, model, upstream, input, cached, cache_creation_5m, cache_creation_1h,
             output, reasoning, calls, price_version, latency_ms, stream, outcome, source,
             http_status, flags)
         SELECT 1, {begin} + n * 1000, n + 1, 0, format('req_%08d', n), zeroblob(32), 'debit_ai',
             -{each}, {granted} - n * {each}, 1, 'key_1', 'test', format('up%d', n % 3), 10, 0,
             0, 0, 5, 0, '{{}}', 'v1', 2, 0, 'completed', 'reported', 200, '' FROM n;
         INSERT INTO usage_hour
         SELECT 'default', ts / 3600000, model, key, '', count(*), sum(input), 0, 0, sum(output),
             -sum(amount), 0
         FROM record WHERE outcome IS NOT NULL GROUP BY 2, 3, 4;
         COMMIT;"
    ))
    .unwrap();
}

#[tokio::test]
async fn an_old_file_that_is_killed_while_it_comes_up_is_the_old_one_or_the_new_one() {
    const REQUESTS: i64 = 60_000;
    let upstream = Upstream::start().await;
    let mut proxy = Setup::before(&upstream).env("FAREBOX_INITIAL_CREDITS", "").start().await;
    proxy.terminate().await;
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(proxy.store().with_file_name(format!("farebox.db{end}")));
    }
    file_of_schema_5(&proxy.store(), REQUESTS);
    let look = |path: &std::path::Path| {
        let db = rusqlite::Connection::open(path).unwrap();
        let whole: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(whole, "ok");
        db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap()
    };
    let mut killed = 0;
    for round in 1..100 {
        let after_ms = round * 40;
        let after = format!("{}.{:03}", after_ms / 1000, after_ms % 1000);
        proxy.serve_by(&["timeout", "-s", "KILL", &after]).await;
        if look(&proxy.store()) != 5 {
            break;
        }
        killed += 1;
    }
    println!("killed {killed} times before it had come up");
    assert!(killed > 0, "it was never killed before its end");
    proxy.restart().await;
    let told = tally(&proxy).await;
    assert_eq!(told["requests"].as_i64(), Some(REQUESTS));
    assert!(told["violations"].as_array().unwrap().iter().all(|count| count == 0), "{told}");
    let kept = proxy.store().with_file_name("farebox.db.schema-5");
    assert_eq!(look(&kept), 5);
    let by_upstream = ["usage", "summary", "--by", "upstream", "--last", "200d", "--json"];
    let (code, out, err) = cli(&proxy, &by_upstream).await;
    assert!(code == 0 && out.contains("up0") && out.contains("up2"), "{out} {err}");
}
