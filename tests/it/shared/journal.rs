//! The journal of the real program: its disk is full or cannot be written, its process dies
//! while debits wait in it.
#![cfg(target_os = "linux")]

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::support::answer::Answer;
use crate::support::load::Load;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::Proxy;
use crate::support::redis::{DURABLE, Redis};
use crate::support::script::Gate;
use crate::support::until;
use crate::support::upstream::Upstream;

use super::{CLIENTS, Tally, debits, metric, on, readiness, varied_upstream, verify};

const COUNTS: Counts = Counts::new(11, 7);

/// Fails every write to a file, or none.
fn set_full(proxy: &Proxy, full: bool) {
    let limit = if full { "--fsize=0:unlimited" } else { "--fsize=unlimited:unlimited" };
    let set = Command::new("prlimit").args(["--pid", &proxy.pid().to_string(), limit]).status();
    assert!(set.unwrap().success());
}

/// A program that survives the signal for files that are too large.
const SURVIVES: &str = r#"trap "" XFSZ; exec "$0" "$@""#;

async fn gated_upstream() -> (Upstream, Gate) {
    let gate = Gate::new();
    let held = gate.clone();
    let answer = Answer::text(["Hello", " world"]).counts(COUNTS);
    let upstream = Upstream::start().await;
    upstream.for_model("test", answer.staged(move |script| script.gated_after(2, &held)));
    (upstream, gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_well_while_redis_is_away_and_its_debit_survives_kill_9_until_it_is_back() {
    let (upstream, gate) = gated_upstream().await;
    let redis = Redis::start(DURABLE);
    let mut proxy = on(&redis.url(), &upstream).start().await;
    let account = proxy.default_account();
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = account.stream_chat("Hi").await;
        stream.until("Hello").await;
        streams.push(stream);
    }
    redis.pause();
    gate.open_all();
    for stream in streams {
        let reply = stream.rest().await;
        assert!(reply.complete && reply.text().contains("[DONE]"), "{reply:?}");
    }
    until("five pending debits", || async {
        (metric(&proxy, "journal_pending").await == 5).then_some(())
    })
    .await;
    readiness(&proxy, false).await;
    let refused = account.chat("Hi").await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "ledger_unavailable"));
    let ready = proxy.readyz().await.json();
    assert_eq!((&ready["status"], &ready["pending"]), (&json!("degraded"), &json!(5)));
    let problem = ready["problem"].as_str().unwrap();
    assert!(problem.contains("5 operations wait in the journal"), "{problem}");
    assert_eq!(problem.matches("cannot be reached").count(), 1, "{problem}");

    proxy.kill().await;
    redis.resume();
    proxy.restart().await;
    readiness(&proxy, true).await;
    account.settled().await;
    let debits = debits(&account).await;
    assert_eq!(debits.len(), 5, "each once");
    assert!(debits.values().all(|debits| *debits == [charge("test", &COUNTS)]));
    account.check_books().await;
    verify(&proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_the_journal_nothing_new_is_admitted_and_running_replies_are_debited() {
    let (upstream, gate) = gated_upstream().await;
    let redis = Redis::start(DURABLE);
    let proxy = on(&redis.url(), &upstream).by_shell(&[], SURVIVES).start().await;
    let account = proxy.default_account();
    let mut stream = account.stream_chat("Hi").await;
    stream.until("Hello").await;
    let mut second = account.stream_chat("Hi").await;
    second.until("Hello").await;

    set_full(&proxy, true);
    gate.open_all();
    // Redis has the debit: the reply may end.
    let reply = stream.rest().await;
    assert!(reply.complete && reply.text().contains("[DONE]"), "{reply:?}");
    let reply = second.rest().await;
    assert!(reply.complete && reply.text().contains("[DONE]"), "{reply:?}");
    readiness(&proxy, false).await;
    let refused = account.chat("Hi").await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "ledger_unavailable"));
    let refused = account.grant("topup", "1", "while full", "while-full").await;
    assert_eq!(refused.status, 503);

    set_full(&proxy, false);
    readiness(&proxy, true).await;
    assert!(account.grant("topup", "1", "while full", "while-full").await.status < 300);
    account.settled().await;
    assert_eq!(debits(&account).await.len(), 2);
    account.check_books().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_whose_debit_neither_disk_nor_redis_takes_ends_in_an_error_and_is_debited_later() {
    let (upstream, gate) = gated_upstream().await;
    let redis = Redis::start(DURABLE);
    let proxy = on(&redis.url(), &upstream).by_shell(&[], SURVIVES).start().await;
    let account = proxy.default_account();
    let mut stream = account.stream_chat("Hi").await;
    stream.until("Hello").await;
    set_full(&proxy, true);
    redis.pause();
    gate.open_all();
    let broken = stream.rest().await;
    assert!(!broken.text().contains("[DONE]"), "{broken:?}");
    let last = broken.events().pop().expect("an error event");
    assert_eq!(last["error"]["code"], "ledger_unavailable");

    redis.resume();
    set_full(&proxy, false);
    readiness(&proxy, true).await;
    account.settled().await;
    let debits = debits(&account).await;
    assert_eq!(debits.len(), 1, "once");
    account.check_books().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_fills_up_again_and_again_under_load_costs_no_debit() {
    let upstream = varied_upstream().await;
    let redis = Redis::start(DURABLE);
    let proxy = on(&redis.url(), &upstream).by_shell(&[], SURVIVES).start().await;
    let load = Load::steady(&proxy.default_account(), "full", CLIENTS);
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        set_full(&proxy, true);
        readiness(&proxy, false).await;
        set_full(&proxy, false);
        readiness(&proxy, true).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let seen = load.end().await;
    super::assert_only_unavailable(&seen);
    Tally::of(&proxy, &upstream, &seen).await.print("no room for the journal, 5 times");
}

/// A file system that cannot be written: the program does not start, and says why.
#[tokio::test]
async fn a_journal_on_a_read_only_disk_keeps_the_program_from_starting() {
    let script = "mount -t tmpfs -o ro none /mnt && ! touch /mnt/x 2>&1";
    let tried = Command::new("unshare").args(["-rm", "sh", "-c", script]).output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let upstream = varied_upstream().await;
    let redis = Redis::start(DURABLE);
    let mut proxy = on(&redis.url(), &upstream).start().await;
    proxy.terminate().await;
    let script = r#"mount -t tmpfs -o ro none /mnt && FAREBOX_JOURNAL=/mnt/journal exec "$0" "$@""#;
    let ended = proxy.serve_by(&["unshare", "-rm", "sh", "-c", script]).await;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success());
    assert!(said.contains("cannot open the journal /mnt/journal"), "{said}");
    assert!(said.contains("FAREBOX_JOURNAL"), "{said}");
}
