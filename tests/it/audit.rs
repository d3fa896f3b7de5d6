//! `farebox ledger verify`: whatever is changed behind the program's back is found and named.

use std::process::Output;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use crate::support::credits;
use crate::support::load::{Load, vary};
use crate::support::proxy::Proxy;
use crate::support::until;
use crate::support::upstream::Upstream;

async fn cli(proxy: &Proxy, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = proxy.cli(args).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

async fn verified(proxy: &Proxy) -> Value {
    let (code, out, err) = cli(proxy, &["ledger", "verify", "--json"]).await;
    assert_eq!(code, 0, "{out} {err}");
    serde_json::from_str(&out).unwrap()
}

/// Changes the file while the program has it open, as a careless hand would.
fn behind_its_back(proxy: &Proxy, sql: &str) {
    let db = Connection::open(proxy.store()).unwrap();
    db.busy_timeout(Duration::from_secs(60)).unwrap();
    db.pragma_update(None, "ignore_check_constraints", true).unwrap();
    db.execute_batch(sql).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_the_books_are_sound_and_all_of_them_are_read() {
    let upstream = Upstream::start().await;
    vary(&upstream);
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    let load = Load::start(&account, "audited", 8);
    until("some requests", || async { (account.usage().await.len() > 50).then_some(()) }).await;
    for _ in 0..5 {
        verified(&proxy).await;
    }
    let seen = load.end().await;
    account.settled().await;
    let found = verified(&proxy).await;
    assert_eq!(found["tally"]["requests"], seen.len());
    assert_eq!(found["tally"]["balance"], account.balance().await.to_string());
    let (code, out, err) = cli(&proxy, &["ledger", "verify", "--account", "default"]).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("I11") && out.contains(" 0 problems"), "{out}");
    assert_eq!(cli(&proxy, &["ledger", "verify", "--account", "nobody"]).await.0, 5);
}

#[tokio::test]
async fn whatever_is_changed_behind_its_back_is_named_and_ends_with_8() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    account.chat("Hi").await.expect(200);
    let other = proxy.account_with(credits("1")).await;
    other.chat("Hi").await.expect(200);
    account.settled().await;
    other.settled().await;
    let id = account.last_usage().await.id;
    verified(&proxy).await;
    // What is broken, how, and how it is made whole again.
    let first = "seq = 1 AND sub = 0";
    let record = |change: &str, which: &str| format!("UPDATE record SET {change} WHERE {which}");
    let cases = [
        (
            "I1",
            "UPDATE account SET balance = balance + 1 WHERE id = 'default'".to_owned(),
            "UPDATE account SET balance = balance - 1 WHERE id = 'default'".to_owned(),
        ),
        (
            "I2",
            "UPDATE lot SET remaining = remaining + 1, granted = granted + 1".into(),
            "UPDATE lot SET remaining = remaining - 1, granted = granted - 1".into(),
        ),
        (
            "I3",
            record("parts = '[[1,1],[null,-1]]', lot = NULL", first),
            record("parts = NULL, lot = 1", first),
        ),
        ("I4", "UPDATE lot SET used = used + 1".into(), "UPDATE lot SET used = used - 1".into()),
        (
            "I5",
            record("balance_after = balance_after + 1", first),
            record("balance_after = balance_after - 1", first),
        ),
        (
            "I6",
            record("parts = '[[1,1],[null,-1]]', lot = NULL", first),
            record("parts = NULL, lot = 1", first),
        ),
        ("I7", record("id = NULL", first), record("id = 'initial-credits'", first)),
        (
            "I8",
            "UPDATE usage_hour SET charge = charge + 1".into(),
            "UPDATE usage_hour SET charge = charge - 1".into(),
        ),
        (
            "I9",
            format!("INSERT INTO flight VALUES ('default', '{id}', 'k', 'm', 1)"),
            "DELETE FROM flight".into(),
        ),
        (
            "I10",
            "UPDATE account SET n = n + 1000000".into(),
            "UPDATE account SET n = n - 1000000".into(),
        ),
        (
            "I11",
            record("outcome = 'abandoned'", &format!("id = '{id}'")),
            record("outcome = 'completed'", &format!("id = '{id}'")),
        ),
    ];
    for (invariant, harm, cure) in cases {
        behind_its_back(&proxy, &harm);
        let (code, out, err) = cli(&proxy, &["ledger", "verify"]).await;
        assert_eq!(code, 8, "after {harm}: {out} {err}");
        assert!(err.contains(&format!("{invariant}: ")), "no {invariant} after {harm}: {err}");
        assert!(!out.contains(" 0 problems"), "{out}");
        behind_its_back(&proxy, &cure);
        verified(&proxy).await;
    }
}
