//! Four Farebox, one nearly empty account: how far below zero it can fall.

use std::time::Duration;

use serde_json::json;

use crate::support::account::{Account, chat};
use crate::support::answer::Answer;
use crate::support::http::Call;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::Proxy;
use crate::support::redis::{Cluster, DURABLE, Redis};
use crate::support::upstream::Upstream;
use crate::support::{credits, figure};
use farebox::billing::Credits;

use super::{on, verify};

const PROXIES: usize = 4;
const CLIENTS: usize = 64;
/// Requests of each client in a round; forty rounds are more than ten thousand requests.
const EACH: usize = 4;
const COUNTS: Counts = Counts::new(10, 7);
/// Output that a request asks for at most: more than it gets, and more than its input.
const MAX_OUTPUT: u64 = 100;

/// Requests of an account that may run at once: so many may overdraw it in lenient mode.
const MAX_IN_FLIGHT: i64 = 64;

/// A mode, what an account is given for each round, and how far it may fall below zero.
struct Bound {
    mode: &'static str,
    goal: Credits,
    lowest: Credits,
}

impl Bound {
    /// The bounds of the README's table, for requests that cost no more than their holds.
    fn of_each_mode() -> [Self; 3] {
        let each = charge("test", &COUNTS);
        // Two requests and a half, by what they cost or by more than they hold.
        let two_and_a_half = |amount: Credits| Credits::from_nano(amount.nano() * 5 / 2);
        let most = charge("test", &Counts::new(MAX_OUTPUT, MAX_OUTPUT));
        [
            Self {
                mode: "lenient",
                goal: two_and_a_half(each),
                lowest: times(each, -MAX_IN_FLIGHT),
            },
            Self { mode: "one_request", goal: two_and_a_half(each), lowest: -each },
            Self { mode: "strict", goal: two_and_a_half(most), lowest: Credits::ZERO },
        ]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_processes_overdraw_one_account_in_redis_by_no_more_than_its_mode_allows() {
    let redis = Redis::start(DURABLE);
    race(&redis.url(), "Redis").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_processes_overdraw_one_account_in_a_cluster_by_no_more_than_its_mode_allows() {
    let cluster = Cluster::start(DURABLE);
    race(&cluster.url(), "a cluster").await;
}

async fn race(url: &str, store: &str) {
    let upstream = Upstream::answering(Answer::default().counts(COUNTS)).await;
    let mut proxies = Vec::new();
    for _ in 0..PROXIES {
        let setup = on(url, &upstream).env("FAREBOX_INITIAL_CREDITS", "0");
        let setup =
            setup.env("FAREBOX_REDIS_COMMAND_TIMEOUT", "5s").env("FAREBOX_REDIS_LEASE", "2m");
        proxies.push(setup.start().await);
    }
    for bound in Bound::of_each_mode() {
        race_in(&bound, &proxies, store).await;
    }
    verify(&proxies[0]).await;
}

async fn race_in(bound: &Bound, proxies: &[Proxy], store: &str) {
    let Bound { mode, goal, lowest } = bound;
    let account = proxies[0].account_with(credits("0")).await;
    account.patch("", &json!({ "mode": mode })).await.expect(200);
    let mut sent = 0;
    let mut served = 0;
    for _ in 0..figure(2, 40) {
        let missing = *goal - account.balance().await;
        if missing.is_positive() {
            account.topup(missing).await;
        }
        let statuses = all_at_once(proxies, &account).await;
        account.settled().await;
        sent += statuses.len();
        served += statuses.iter().filter(|status| **status == 200).count();
        assert!(statuses.iter().all(|status| [200, 402, 429].contains(status)), "{mode}");
    }
    let ledger = account.ledger().await;
    let deepest = ledger.iter().map(|entry| entry.balance_after).min().unwrap();
    assert!(deepest >= *lowest, "{mode}: {deepest}");
    let debits = ledger.iter().filter(|entry| entry.kind == "debit_ai").count();
    assert_eq!(debits, served, "{mode}");
    assert!(served > 0 && served < sent, "{mode}: {served} of {sent} served");
    account.check_books().await;
    // Nothing is held back for what has ended.
    account.topup(credits("1000")).await;
    let statuses = all_at_once(proxies, &account).await;
    let refused = statuses.iter().filter(|status| **status != 200).count();
    account.settled().await;
    assert_eq!(refused, 0, "{mode}: refused though there is room");
    println!(
        "{sent} requests of 64 clients by 4 processes on {store}, {mode}: {served} served, \
         {debits} debits, {} refused, deepest balance {deepest} ({lowest} allowed), \
         0 refused after a top-up",
        sent - served,
    );
}

/// Each client on one of the processes, with the same key; what they were answered.
async fn all_at_once(proxies: &[Proxy], account: &Account) -> Vec<u16> {
    let clients = (0..CLIENTS).map(|client| {
        let url = format!("{}/v1/chat/completions", proxies[client % PROXIES].url());
        let key = account.key.clone();
        tokio::spawn(async move {
            let mut body = chat("test", "Hi");
            body["max_tokens"] = json!(MAX_OUTPUT);
            let mut statuses = Vec::new();
            while statuses.len() < EACH {
                match Call::post(&url, &body).bearer(&key).reply().await.status {
                    // A busy machine, not a matter of credits.
                    503 => tokio::time::sleep(Duration::from_millis(50)).await,
                    status => statuses.push(status),
                }
            }
            statuses
        })
    });
    let mut statuses = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        statuses.extend(client.await.unwrap());
    }
    statuses
}

fn times(amount: Credits, count: i64) -> Credits {
    Credits::from_nano(amount.nano() * count)
}
