//! kill −9 at any moment: what a client saw complete is paid, once, and the books add up.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::account::chat;
use crate::support::answer::Answer;
use crate::support::books::{Books, count};
use crate::support::http::Call;
use crate::support::load::{Load, Seen, billed, vary};
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::random::Random;
use crate::support::until;
use crate::support::upstream::Upstream;
use crate::support::{credits, figure};

/// The same moments in every run, as far as a machine's load allows it.
const SEED: u64 = 0x5eed_fa2e_b0c5;
const CLIENTS: usize = 8;
/// In every so many rounds a request runs long enough to be noted before the kill.
const NOTED_EVERY: usize = 20;

/// A durable store, and credits for everything.
async fn durable(upstream: &Upstream) -> Proxy {
    waiting_for(upstream, "full").await
}

/// A store whose commits wait for the disk (`full`), or for the operating system (`normal`).
async fn waiting_for(upstream: &Upstream, synchronous: &str) -> Proxy {
    Setup::before(upstream)
        .env("FAREBOX_SYNCHRONOUS", synchronous)
        .env("FAREBOX_INITIAL_CREDITS", "1000000")
        .start()
        .await
}

async fn restart(proxy: &mut Proxy) -> Duration {
    let since = Instant::now();
    proxy.restart().await;
    let ready = Call::get(format!("{}/readyz", proxy.admin_url())).reply().await;
    assert_eq!(ready.status, 200, "it is ready when it listens: {ready:?}");
    since.elapsed()
}

/// Under load the one writer commits nearly all the time, so many of the kills fall into a
/// commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_under_load_nothing_complete_is_free_and_nothing_is_paid_twice() {
    killed_again_and_again("full", figure(100, 1000)).await;
}

/// The threads that serve clients write here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_a_store_that_does_not_wait_for_the_disk_loses_nothing_either() {
    killed_again_and_again("normal", figure(40, 1000)).await;
}

async fn killed_again_and_again(synchronous: &str, kills: usize) {
    let upstream = Upstream::start().await;
    vary(&upstream);
    upstream.for_model("other", Answer::default().staged(|script| script.stall_after(2)));
    let mut proxy = waiting_for(&upstream, synchronous).await;
    let account = proxy.default_account();
    let mut books = Books::of(&proxy.store(), &account.id);
    let mut random = Random::new(SEED);
    let mut all: Vec<Seen> = Vec::new();
    let mut noted = HashSet::new();
    let mut slowest = Duration::ZERO;
    for round in 0..kills {
        let load = Load::start(&account, &format!("round {round}"), CLIENTS);
        let pause = Duration::from_micros(random.below(150_000) as u64);
        if round % NOTED_EVERY == 0 {
            noted.insert(cut_off_when_noted(&mut proxy).await);
        } else {
            tokio::time::sleep(pause).await;
            proxy.kill().await;
        }
        let seen = load.end().await;
        slowest = slowest.max(restart(&mut proxy).await);
        books.read_on();
        for one in seen.iter().filter(|one| one.complete) {
            let id = one.id.as_ref().expect("a reply has an id");
            assert!(books.debits.contains_key(id), "lost in round {round}: {one:?}");
        }
        all.extend(seen);
    }

    let billed = billed(&upstream).await;
    let complete: Vec<_> = all.iter().filter(|one| one.complete).collect();
    for one in &complete {
        let debit = books.debits[one.id.as_ref().expect("a reply has an id")];
        assert_eq!(debit, billed[&one.prompt], "{one:?}");
    }
    assert!(complete.len() > kills, "hardly anything was served: {}", complete.len());
    assert!(books.debits.len() <= all.len(), "more debits than requests");
    account.check_books().await;
    assert_eq!(account.view().await.in_flight, 0);

    let usage = account.usage().await;
    let abandoned: Vec<_> = usage.iter().filter(|row| row.outcome == "abandoned").collect();
    let zero = credits("0");
    assert!(abandoned.iter().all(|row| row.charge == zero && row.source == "none"));
    for id in &noted {
        assert!(abandoned.iter().any(|row| row.id == *id), "{id} vanished");
    }
    println!(
        "{kills} kills, {synchronous}: {} requests, {} complete, {} debits, 0 lost, 0 doubled, {} abandoned; \
         slowest restart {slowest:?}",
        all.len(),
        complete.len(),
        books.debits.len(),
        abandoned.len(),
    );
}

/// Holds a stream open until the store has noted that it runs, then kills. Its id.
async fn cut_off_when_noted(proxy: &mut Proxy) -> String {
    let mut body = chat("other", "held open");
    body["stream"] = json!(true);
    let url = format!("{}/v1/chat/completions", proxy.url());
    let mut held = Call::post(url, &body).bearer(&proxy.client_key).send().await;
    held.next().await.expect("a first piece").expect("a first piece");
    let id = held.headers["x-request-id"].to_str().unwrap().to_owned();
    let store = proxy.store();
    until("a note of a long request", || async {
        let sql = format!("SELECT count(*) FROM flight WHERE id = '{id}'");
        (count(&store, &sql) == 1).then_some(())
    })
    .await;
    proxy.kill().await;
    id
}

#[tokio::test]
async fn a_reply_whose_last_event_was_seen_is_paid_even_if_the_program_is_killed_then() {
    let counts = Counts::new(17, 5);
    let upstream = Upstream::answering(Answer::default().counts(counts)).await;
    let mut proxy = durable(&upstream).await;
    let account = proxy.default_account();
    let mut books = Books::of(&proxy.store(), &account.id);
    for round in 0..50 {
        let (path, model, last) = match round % 3 {
            0 => ("/v1/messages", "claude", "message_stop"),
            _ => ("/v1/chat/completions", "test", "[DONE]"),
        };
        let mut body = chat(model, "Hi");
        body["max_tokens"] = json!(1000);
        body["stream"] = json!(true);
        let mut stream = account.call(path, &body).send().await;
        stream.until(last).await;
        proxy.kill().await;
        let id = stream.headers["x-request-id"].to_str().unwrap().to_owned();
        restart(&mut proxy).await;
        books.read_on();
        assert_eq!(books.debits.get(&id), Some(&charge(model, &counts)), "round {round}");
        assert_eq!(books.debits.len(), round + 1);
    }
    account.check_books().await;
}

/// A machine that swaps, a debugger, a laptop's lid: the program stands still and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_and_continued_under_load_it_loses_and_doubles_nothing() {
    let upstream = Upstream::start().await;
    vary(&upstream);
    let proxy = durable(&upstream).await;
    let account = proxy.default_account();
    let load = Load::start(&account, "stopped", CLIENTS);
    let mut random = Random::new(SEED);
    for _ in 0..20 {
        proxy.signal("STOP");
        tokio::time::sleep(Duration::from_millis(random.below(100) as u64)).await;
        proxy.signal("CONT");
        tokio::time::sleep(Duration::from_millis(random.below(60) as u64)).await;
    }
    let seen = load.end().await;
    account.settled().await;
    let mut books = Books::of(&proxy.store(), &account.id);
    books.read_on();
    let billed = billed(&upstream).await;
    for one in &seen {
        assert!(one.complete, "{one:?}");
        let id = one.id.as_ref().expect("a reply has an id");
        assert_eq!(books.debits.get(id), billed.get(&one.prompt), "{one:?}");
    }
    assert_eq!(books.debits.len(), seen.len());
    account.check_books().await;
}
