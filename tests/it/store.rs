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
