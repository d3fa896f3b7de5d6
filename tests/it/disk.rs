//! A disk that takes nothing more: nobody gets a complete reply without a debit, nothing new
//! is served, what is there can be read; and when there is room again, all is made up for.
//!
//! The disk is filled in two ways: by a limit on the size of files, which fails every write
//! and needs no rights, and by a small file system of the program's own, where the kernel
//! allows one. A disk that turns read-only cannot be made here: a file system with a file
//! open for writing refuses it.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::support::account::{Account, chat};
use crate::support::answer::Answer;
use crate::support::books::Books;
use crate::support::http::{Call, Reply};
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::script::Gate;
use crate::support::upstream::Upstream;
use crate::support::{figure, until};

const COUNTS: Counts = Counts::new(11, 7);

/// A program that survives the signal for files that are too large.
fn limited(upstream: &Upstream) -> Setup {
    Setup::before(upstream)
        .env("FAREBOX_SYNCHRONOUS", "full")
        .by_shell(&[], r#"trap "" XFSZ; exec "$0" "$@""#)
}

/// Fails every write to a file, or none.
fn set_full(proxy: &Proxy, full: bool) {
    let limit = if full { "--fsize=0:unlimited" } else { "--fsize=unlimited:unlimited" };
    let set = Command::new("prlimit").args(["--pid", &proxy.pid().to_string(), limit]).status();
    assert!(set.unwrap().success());
}

async fn readiness(proxy: &Proxy, status: u16) {
    until(&format!("readiness {status}"), || async {
        let ready = Call::get(format!("{}/readyz", proxy.admin_url())).reply().await;
        (ready.status == status).then_some(())
    })
    .await;
}

/// An upstream whose replies wait for the gate before their last pieces.
async fn gated_upstream() -> (Upstream, Gate) {
    let gate = Gate::new();
    let held = gate.clone();
    let answer = Answer::text(["Hello", " world"]).counts(COUNTS);
    let upstream = Upstream::start().await;
    for model in ["test", "claude"] {
        let held = held.clone();
        let answer = answer.clone();
        upstream.for_model(model, answer.staged(move |script| script.gated_after(2, &held)));
    }
    upstream.for_model("other", answer.staged(move |script| script.gated_head(&held)));
    (upstream, gate)
}

fn assert_unavailable(reply: &Reply) {
    assert_eq!((reply.status, reply.code().as_str()), (503, "ledger_unavailable"), "{reply:?}");
    assert_eq!(reply.header("retry-after"), Some("5"));
}

/// What needs no write still answers.
async fn assert_reads_work(proxy: &Proxy, account: &Account) {
    for path in ["/v1/models", "/v1/models/test", "/v1/me"] {
        account.get(path).await.expect(200);
    }
    account.view().await;
    account.usage().await;
    account.ledger().await;
    account.summary("by=model").await;
    Call::get(format!("{}/healthz", proxy.admin_url())).reply().await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_replies_wait_for_their_debit_and_come_to_their_end_with_it() {
    let (upstream, gate) = gated_upstream().await;
    let proxy = limited(&upstream).start().await;
    let account = proxy.default_account();
    let mut streams = Vec::new();
    for (path, model) in [("/v1/chat/completions", "test"), ("/v1/messages", "claude")] {
        for _ in 0..5 {
            let mut body = chat(model, "Hi");
            body["max_tokens"] = json!(1000);
            body["stream"] = json!(true);
            let mut stream = account.call(path, &body).send().await;
            stream.next().await.expect("a first piece").expect("a first piece");
            streams.push(stream);
        }
    }
    let whole = tokio::spawn(account.call("/v1/chat/completions", &chat("other", "Hi")).reply());
    upstream.received(11).await;

    set_full(&proxy, true);
    gate.open_all();
    upstream.ended(11).await;
    readiness(&proxy, 503).await;
    assert!(!whole.is_finished(), "a reply without a debit");
    for _ in 0..3 {
        assert_unavailable(&account.chat("Hi").await);
        let refused = account.grant("topup", "1", "while full", "while-full").await;
        assert_unavailable(&refused);
    }
    assert_reads_work(&proxy, &account).await;
    let mut books = Books::of(&proxy.store(), &account.id);
    books.read_on();
    assert_eq!(books.debits.len(), 0, "the disk is full");

    set_full(&proxy, false);
    for stream in streams {
        let reply = stream.rest().await.expect(200);
        let text = reply.text();
        assert!(text.contains("[DONE]") || text.contains("message_stop"), "{text}");
    }
    whole.await.unwrap().expect(200);
    readiness(&proxy, 200).await;
    account.chat("Hi").await.expect(200);
    // Who asks waits until what was answered is booked.
    account.balance().await;
    books.read_on();
    let mut debits: Vec<_> = books.debits.values().copied().collect();
    let mut expected = vec![charge("test", &COUNTS); 6];
    expected.extend([charge("claude", &COUNTS); 5]);
    expected.push(charge("other", &COUNTS));
    debits.sort();
    expected.sort();
    assert_eq!(debits, expected);
    assert!(account.grant("topup", "1", "while full", "while-full").await.status < 300);
    account.check_books().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_whose_debit_cannot_be_written_ends_in_an_error_and_is_debited_later() {
    let (upstream, gate) = gated_upstream().await;
    let proxy = limited(&upstream).start().await;
    let account = proxy.default_account();
    let mut stream = account.stream_chat("Hi").await;
    stream.until("Hello").await;
    let whole = tokio::spawn(account.call("/v1/chat/completions", &chat("other", "Hi")).reply());
    upstream.received(2).await;
    set_full(&proxy, true);
    gate.open_all();
    let (broken, refused) = tokio::join!(stream.rest(), whole);
    assert!(!broken.complete && !broken.text().contains("[DONE]"), "{broken:?}");
    let last = broken.events().pop().expect("an error event");
    assert_eq!(last["error"]["code"], "ledger_unavailable");
    assert_unavailable(&refused.unwrap());

    set_full(&proxy, false);
    readiness(&proxy, 200).await;
    account.settled().await;
    let usage = account.usage().await;
    assert_eq!(usage.len(), 2, "each once");
    for row in usage {
        assert_eq!(row.charge, charge(&row.model, &COUNTS));
    }
    account.check_books().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_end_on_a_full_disk_it_says_what_is_lost_and_shows_no_reply_complete() {
    let (upstream, gate) = gated_upstream().await;
    let setup = limited(&upstream).setting("drain_timeout", "\"100ms\"");
    let mut proxy = setup.start().await;
    let account = proxy.default_account();
    let mut stream = account.stream_chat("Hi").await;
    stream.until("Hello").await;
    set_full(&proxy, true);
    gate.open_all();
    readiness(&proxy, 503).await;
    proxy.signal("TERM");
    let reply = stream.rest().await;
    assert!(!reply.complete && !reply.text().contains("[DONE]"), "{reply:?}");
    assert_ne!(proxy.exit().await.code(), Some(0));
    let said = proxy.output();
    assert!(said.contains(" operations cannot be written"), "{said}");

    proxy.restart().await;
    let mut books = Books::of(&proxy.store(), &account.id);
    books.read_on();
    assert!(books.debits.is_empty());
    account.check_books().await;
}

/// A small file system that only the program sees; the test goes by `/proc`.
struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    const SCRIPT: &str = r#"mkdir "$HOME/disk" &&
        mount -t tmpfs -o size=8m,mode=700 none "$HOME/disk" &&
        exec "$0" "$@""#;

    fn is_allowed() -> bool {
        let script = "mount -t tmpfs -o size=1m none /tmp";
        let tried = Command::new("unshare").args(["-rm", "sh", "-c", script]).output();
        tried.is_ok_and(|tried| tried.status.success())
    }

    fn of(proxy: &Proxy) -> Self {
        let root = format!("/proc/{}/root", proxy.pid());
        let dir = proxy.dir().join("disk");
        Self { dir: PathBuf::from(root).join(dir.strip_prefix("/").unwrap()) }
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut ballast = File::create(self.dir.join("ballast")).unwrap();
        let page = [0; 4096];
        while ballast.write_all(&page).is_ok() {}
    }

    fn clear(&self) {
        std::fs::remove_file(self.dir.join("ballast")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_again_and_again_costs_no_debit() {
    if !SmallDisk::is_allowed() {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let upstream = Upstream::answering(Answer::default().counts(COUNTS)).await;
    let proxy = Setup::before(&upstream)
        .env("FAREBOX_SYNCHRONOUS", "full")
        .env("FAREBOX_STORE", "disk/farebox.db")
        .by_shell(&["unshare", "-rm"], SmallDisk::SCRIPT)
        .start()
        .await;
    let disk = SmallDisk::of(&proxy);
    let account = proxy.default_account();
    let mut paid = Vec::new();
    for round in 0..figure(10, 20) {
        disk.fill();
        // What is left of the log is used up first.
        let mut stuck = Vec::new();
        let refused = loop {
            let call = account.call("/v1/chat/completions", &chat("test", "Hi"));
            let mut reply = tokio::spawn(call.reply());
            let done = until("a debit, or the end of the disk", || async {
                let ready = Call::get(format!("{}/readyz", proxy.admin_url())).reply().await;
                (reply.is_finished() || ready.status == 503).then_some(reply.is_finished())
            })
            .await;
            if !done {
                stuck.push(reply);
                break account.chat("Hi").await;
            }
            let reply = (&mut reply).await.unwrap();
            if reply.status != 200 {
                break reply;
            }
            paid.push(reply.header("x-request-id").unwrap().to_owned());
        };
        assert_unavailable(&refused);
        assert_reads_work(&proxy, &account).await;
        disk.clear();
        readiness(&proxy, 200).await;
        for reply in stuck {
            // It was there in time, or it was refused.
            let reply = reply.await.unwrap();
            if reply.status == 200 {
                paid.push(reply.header("x-request-id").unwrap().to_owned());
            } else {
                assert_unavailable(&reply);
            }
        }
        let reply = account.chat("Hi").await.expect(200);
        paid.push(reply.header("x-request-id").unwrap().to_owned());
        let debited = account.ledger().await.into_iter().filter(|entry| entry.kind == "debit_ai");
        let mut debited: Vec<_> = debited.map(|entry| entry.reference).collect();
        debited.sort();
        paid.sort();
        assert_eq!(debited, paid, "round {round}");
    }
    let debited = account.check_books().await;
    let each = charge("test", &COUNTS);
    assert_eq!(debited, paid.iter().map(|_| each).sum());
}
