//! The limits of one key, used by clients of four Farebox at once, also when one is killed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::account::{Account, chat};
use crate::support::answer::Answer;
use crate::support::credits;
use crate::support::http::Call;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::Proxy;
use crate::support::redis::{DURABLE, Redis};
use crate::support::upstream::Upstream;

use super::{on, readiness, verify};

const PROXIES: usize = 4;
const CLIENTS: usize = 32;
/// Requests of each client.
const EACH: usize = 6;
const COUNTS: Counts = Counts::new(10, 7);

async fn farm(redis: &Redis, upstream: &Upstream) -> Vec<Proxy> {
    let mut proxies = Vec::new();
    for _ in 0..PROXIES {
        let setup = on(&redis.url(), upstream).env("FAREBOX_REDIS_COMMAND_TIMEOUT", "5s");
        let setup = setup.env("FAREBOX_REDIS_LEASE", "2m");
        proxies.push(setup.env("FAREBOX_ADMISSION", "strict").start().await);
    }
    proxies
}

/// The account with a key of these limits.
async fn limited(account: &Account, limits: &Value) -> Account {
    let made = account.admin_call("/keys", &json!({ "name": "limited", "limits": limits }));
    let made = made.reply().await.expect(201).json();
    account.with_key(made["key"].as_str().unwrap())
}

/// Each client on one of the processes, with the same key; how often which status was answered
/// with which code.
async fn hammer(proxies: &[Proxy], account: &Account) -> Vec<(u16, String)> {
    let clients = (0..CLIENTS).map(|client| {
        let url = format!("{}/v1/chat/completions", proxies[client % proxies.len()].url());
        let key = account.key.clone();
        tokio::spawn(async move {
            let mut body = chat("test", "Hi");
            body["max_tokens"] = json!(7);
            let mut seen = Vec::new();
            while seen.len() < EACH {
                let reply = Call::post(&url, &body).bearer(&key).reply().await;
                if reply.status == 503 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                let code = match reply.status {
                    200 => String::new(),
                    _ => reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned(),
                };
                seen.push((reply.status, code));
            }
            seen
        })
    });
    let mut seen = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        seen.extend(client.await.unwrap());
    }
    seen
}

fn served(seen: &[(u16, String)]) -> usize {
    seen.iter().filter(|(status, _)| *status == 200).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_in_strict_mode_holds_across_four_processes_and_a_kill() {
    let upstream = Upstream::answering(Answer::default().counts(COUNTS)).await;
    let redis = Redis::start(DURABLE);
    let mut proxies = farm(&redis, &upstream).await;
    let account = proxies[0].account_with(credits("1000")).await;
    let each = charge("test", &COUNTS);
    // Room for thirty requests and a half.
    let cap = farebox::billing::Credits::from_nano(each.nano() * 61 / 2);
    let account = limited(&account, &json!({ "total": cap.to_string() })).await;
    let first = hammer(&proxies, &account).await;
    account.settled().await;
    let spent = credits("1000") - account.balance().await;
    assert!(spent <= cap, "{spent} of {cap}");
    assert!(first.iter().all(|(status, _)| [200, 402].contains(status)), "{first:?}");
    // A process that is killed takes no room with it, and gives none.
    proxies[0].kill().await;
    proxies[0].restart().await;
    readiness(&proxies[0], true).await;
    let second = hammer(&proxies, &account).await;
    account.settled().await;
    let spent = credits("1000") - account.balance().await;
    assert!(spent <= cap, "{spent} of {cap}");
    println!(
        "{} and {} served below a cap of {cap}, {spent} spent",
        served(&first),
        served(&second)
    );
    verify(&proxies[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_a_minute_of_one_key_are_counted_over_four_processes_and_a_kill() {
    let upstream = Upstream::answering(Answer::default().counts(COUNTS)).await;
    let redis = Redis::start(DURABLE);
    let mut proxies = farm(&redis, &upstream).await;
    let account = proxies[0].account_with(credits("1000")).await;
    let account = limited(&account, &json!({ "requests_per_minute": 20 })).await;
    let since = std::time::Instant::now();
    let mut seen = hammer(&proxies, &account).await;
    proxies[1].kill().await;
    proxies[1].restart().await;
    readiness(&proxies[1], true).await;
    seen.extend(hammer(&proxies, &account).await);
    // A whole bucket, and what has emptied since.
    let most = 20 + usize::try_from(since.elapsed().as_secs() / 3).unwrap() + 1;
    let served = served(&seen);
    assert!((20..=most).contains(&served), "{served} of at most {most}");
    let refusals = seen.iter().filter(|(status, _)| *status != 200);
    assert!(refusals.clone().all(|(status, _)| *status == 429), "{seen:?}");
    println!("{served} of {} served by a limit of 20 a minute", seen.len());
    verify(&proxies[0]).await;
}
