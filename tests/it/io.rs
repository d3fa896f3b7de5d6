//! Every call to the disk on the way of a debit and of a credit fails once, in each way that
//! it can: whatever fails, what was answered is booked, and once.
//!
//! The calls are failed from outside, by `strace` on the running program.
#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use farebox::billing::Credits;
use serde_json::json;

use crate::support::account::{Account, chat};
use crate::support::answer::Answer;
use crate::support::books::Books;
use crate::support::http::Reply;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{credits, until, within};

const COUNTS: Counts = Counts::new(11, 7);

/// What the store calls to write, to make durable and to read, and how each fails.
const FAULTS: [(&str, &str); 5] = [
    ("pwrite64", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("fsync,fdatasync", "EIO"),
    ("ftruncate", "EIO"),
    ("pread64", "EIO"),
];

/// Fails one call of the program, the n-th of its kind that a thread makes.
struct Saboteur {
    strace: Child,
    log: PathBuf,
}

impl Saboteur {
    async fn attach(proxy: &Proxy, call: &str, error: &str, n: usize) -> Self {
        let log = proxy.dir().join("strace.log");
        // What it says once it is attached to all threads.
        let said = proxy.dir().join("strace.said");
        let strace = Command::new("strace")
            .args(["-f", "-p", &proxy.pid().to_string(), "-o", log.to_str().unwrap()])
            .args(["-e", &format!("trace={call}")])
            .args(["-e", &format!("inject={call}:error={error}:when={n}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&said).unwrap())
            .spawn()
            .expect("strace is installed");
        until("the attachment of strace", || async {
            std::fs::read_to_string(&said).unwrap().contains(" attached").then_some(())
        })
        .await;
        Self { strace, log }
    }

    /// Lets the program go. Whether a call was failed.
    fn leave(mut self) -> bool {
        let told = Command::new("kill").args(["-s", "INT", &self.strace.id().to_string()]).status();
        assert!(told.unwrap().success());
        self.strace.wait().unwrap();
        std::fs::read_to_string(&self.log).unwrap_or_default().contains("(INJECTED)")
    }
}

/// Repeats what was refused because the store was away, as its client would.
async fn until_taken<F: Future<Output = Reply>>(ask: impl Fn() -> F) -> Reply {
    until("the store's return", || async {
        let reply = ask().await;
        if reply.status == 503 {
            assert_eq!(reply.code(), "ledger_unavailable", "{reply:?}");
            return None;
        }
        assert!(reply.status / 100 == 2, "{reply:?}");
        Some(reply)
    })
    .await
}

/// A stream, a whole reply and a credit. The ids of the replies.
async fn work(account: &Account, name: &str) -> [String; 2] {
    let stream = async {
        let mut body = chat("test", "Hi");
        body["stream"] = json!(true);
        let reply = until_taken(|| account.call("/v1/chat/completions", &body).reply()).await;
        assert!(reply.text().ends_with("data: [DONE]\n\n"), "{reply:?}");
        reply
    };
    let whole = until_taken(|| account.chat("Hi"));
    let credit = until_taken(|| account.grant("topup", "1", "a credit", name));
    let (stream, whole, _) = tokio::join!(stream, whole, credit);
    [stream, whole].map(|reply| reply.header("x-request-id").unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_to_the_disk_fails_nothing_is_lost_and_nothing_is_booked_twice() {
    each_call_fails_once("full").await;
}

/// The threads that serve clients append to the log of debits here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_fails_where_no_commit_waits_for_the_disk_all_is_booked_once() {
    each_call_fails_once("normal").await;
}

async fn each_call_fails_once(synchronous: &str) {
    let upstream = Upstream::answering(Answer::default().counts(COUNTS)).await;
    let mut proxy = Setup::before(&upstream).env("FAREBOX_SYNCHRONOUS", synchronous).start().await;
    let account = proxy.default_account();
    let mut books = Books::of(&proxy.store(), &account.id);
    let mut answered: Vec<String> = Vec::new();
    let mut rounds = 0;
    let mut failed: HashMap<(&str, &str), usize> = HashMap::new();
    for (call, error) in FAULTS {
        for n in 1.. {
            let saboteur = Saboteur::attach(&proxy, call, error, n).await;
            let ids = work(&account, &format!("{call} {error} {n}")).await;
            let has_failed = saboteur.leave();
            rounds += 1;
            answered.extend(ids);
            let latest = &answered[answered.len() - 2..];
            within("the booking of what was answered", async {
                books.read_on();
                while !latest.iter().all(|id| books.debits.contains_key(id)) {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    books.read_on();
                }
            })
            .await;
            for id in latest {
                let debit = books.debits.get(id);
                assert_eq!(debit, Some(&charge("test", &COUNTS)), "{call} {error} {n}: {id}");
            }
            if !has_failed {
                break;
            }
            *failed.entry((call, error)).or_default() += 1;
        }
    }
    let syncs = [("fsync,fdatasync", "EIO")].into_iter().filter(|_| synchronous == "full");
    for fault in [("pwrite64", "EIO"), ("pwrite64", "ENOSPC")].into_iter().chain(syncs) {
        assert!(failed.contains_key(&fault), "{fault:?} was never made: {failed:?}");
    }
    // What was answered is still there when another process reads the files.
    proxy.kill().await;
    proxy.restart().await;
    let mut books = Books::of(&proxy.store(), &account.id);
    books.read_on();
    assert!(answered.iter().all(|id| books.debits.contains_key(id)));
    let debited: Credits = books.debits.values().copied().sum();
    let left = credits("100") + (0..rounds).map(|_| credits("1")).sum() - debited;
    assert_eq!(account.balance().await, left, "each credit is there once");
    account.check_books().await;
    println!(
        "{synchronous}: {} calls failed, one at a time: {failed:?}",
        failed.values().sum::<usize>()
    );
}
