//! Processes, servers and the ways between them fail, under load.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::support::figure;
use crate::support::http::Call;
use crate::support::load::Load;
use crate::support::random::Random;
use crate::support::redis::{DURABLE, Redis};
use crate::support::relay::Relay;
use crate::support::until;

use super::{
    CLIENTS, Tally, assert_only_unavailable, is_ready, metric, on, readiness, under_load,
    varied_upstream, verify,
};

/// The same moments in every run, as far as a machine's load allows it.
const SEED: u64 = 0x5eed_fa2e_b0c5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_on_redis_nothing_complete_is_free_and_nothing_is_paid_twice() {
    let kills = figure(10, 100);
    let upstream = varied_upstream().await;
    let redis = Redis::start(DURABLE);
    let mut proxy = on(&redis.url(), &upstream).start().await;
    let mut random = Random::new(SEED);
    let mut seen = Vec::new();
    for round in 0..kills {
        readiness(&proxy, true).await;
        let load = Load::start(&proxy.default_account(), &format!("round {round}"), CLIENTS);
        tokio::time::sleep(Duration::from_millis(50 + random.below(150) as u64)).await;
        proxy.kill().await;
        let mut round = load.end().await;
        // A reply that the kill cut off is none.
        round.retain(|one| one.complete);
        seen.extend(round);
        proxy.restart().await;
    }
    let tally = Tally::of(&proxy, &upstream, &seen).await;
    tally.print(&format!("Farebox killed {kills} times"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_again_and_again_loses_nothing_and_doubles_nothing() {
    let kills = figure(3, 20);
    let upstream = varied_upstream().await;
    let mut redis = Redis::start(DURABLE);
    let proxy = on(&redis.url(), &upstream).start().await;
    let mut random = Random::new(SEED);
    let mut seen = Vec::new();
    for round in 0..kills {
        let name = format!("round {round}");
        seen.extend(
            under_load(&proxy, &name, async || {
                redis.kill();
                tokio::time::sleep(Duration::from_millis(random.below(1000) as u64)).await;
                redis.restart();
            })
            .await,
        );
    }
    assert_only_unavailable(&seen);
    let tally = Tally::of(&proxy, &upstream, &seen).await;
    tally.print(&format!("Redis killed {kills} times (appendfsync always)"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_stands_still_for_a_while_loses_nothing_and_doubles_nothing() {
    let upstream = varied_upstream().await;
    let redis = Redis::start(DURABLE);
    let proxy = on(&redis.url(), &upstream).start().await;
    let pauses: &[u64] = &[100, 1000, 4000, 300, 3000, 10_000, 30_000];
    let pauses = &pauses[..figure(3, pauses.len())];
    let mut seen = Vec::new();
    for pause in pauses {
        let name = format!("{pause} ms");
        seen.extend(
            under_load(&proxy, &name, async || {
                redis.pause();
                tokio::time::sleep(Duration::from_millis(*pause)).await;
                redis.resume();
            })
            .await,
        );
    }
    assert_only_unavailable(&seen);
    let tally = Tally::of(&proxy, &upstream, &seen).await;
    tally.print(&format!("Redis stopped for {pauses:?} ms"));
}

/// The replica hears nothing of the last debits; then it takes the primary's place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_to_a_lagging_replica_loses_is_sent_again_from_the_journal() {
    let failovers = figure(2, 20);
    let upstream = varied_upstream().await;
    let mut primary = Redis::start(DURABLE);
    let relay = Relay::to(primary.port());
    let url = format!("redis://127.0.0.1:{}", relay.port());
    let proxy = on(&url, &upstream).start().await;
    let account = proxy.default_account();
    let mut seen = Vec::new();
    for round in 0..failovers {
        let replica = Redis::start(DURABLE);
        let wire = Relay::to(primary.port());
        replica.follow_at(wire.port(), &primary);
        let load = Load::steady(&account, &format!("round {round}"), CLIENTS);
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.refuse(true);
        // Replies that the replica will know nothing of.
        until("a top-up", || async {
            let id = format!("failover {round}");
            let reply = account.grant("topup", "1", "after the cut", &id).await;
            (reply.status < 300).then_some(())
        })
        .await;
        for _ in 0..5 {
            until("a reply", || async {
                (account.chat("after the cut").await.status == 200).then_some(())
            })
            .await;
        }
        primary.kill();
        replica.promote();
        relay.switch(replica.port());
        readiness(&proxy, true).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        seen.extend(load.end().await);
        primary = replica;
    }
    assert_only_unavailable(&seen);
    let recovered = metric(&proxy, "journal_recovered_total").await;
    assert!(recovered >= 6 * failovers as u64, "only {recovered} were lost and sent again");
    let tally = Tally::of(&proxy, &upstream, &seen).await;
    let topups = account.ledger().await.iter().filter(|entry| entry.kind == "topup").count();
    assert_eq!(topups, failovers + 1, "each once");
    tally.print(&format!(
        "{failovers} failovers to a replica that lagged, {recovered} lost operations sent again"
    ));
}

/// The replica has never heard of the account and its key: until they are sent to it again,
/// nobody is told that the key is not valid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_a_failover_lost_is_never_called_invalid() {
    let upstream = varied_upstream().await;
    let mut primary = Redis::start(DURABLE);
    let replica = Redis::start(DURABLE);
    let relay = Relay::to(primary.port());
    let url = format!("redis://127.0.0.1:{}", relay.port());
    let proxy = on(&url, &upstream).start().await;
    let seen = under_load(&proxy, "before and after", async || {
        primary.kill();
        relay.switch(replica.port());
    })
    .await;
    assert_only_unavailable(&seen);
    Tally::of(&proxy, &upstream, &seen).await.print("failover to a replica that had nothing");
}

/// A key that was revoked, and what was forbidden to another, does not come back to life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_revoked_or_narrowed_just_before_a_failover_are_so_after_it() {
    let upstream = varied_upstream().await;
    let mut primary = Redis::start(DURABLE);
    let relay = Relay::to(primary.port());
    let url = format!("redis://127.0.0.1:{}", relay.port());
    let proxy = on(&url, &upstream).start().await;
    let account = proxy.default_account();
    let mut keys = Vec::new();
    for name in ["revoked", "narrowed", "ended"] {
        let made = account.admin_call("/keys", &json!({ "name": name })).reply().await;
        let made = made.expect(201).json();
        let signed = account.with_key(made["key"].as_str().unwrap());
        assert_eq!(signed.chat("before").await.status, 200);
        keys.push((format!("/keys/{}", made["id"].as_str().unwrap()), signed));
    }
    let replica = Redis::start(DURABLE);
    let wire = Relay::to(primary.port());
    replica.follow_at(wire.port(), &primary);
    wire.refuse(true);

    // Of all this the replica hears nothing.
    let call = |method, path: &str, body: &Value| {
        let url = format!("{}/admin/v1/accounts/default{path}", proxy.admin_url());
        let call = Call::new(method, url).bearer(proxy.admin_key());
        call.header("content-type", "application/json").body(body.to_string())
    };
    let done = [
        call(Method::DELETE, &keys[0].0, &Value::Null),
        call(Method::PATCH, &keys[1].0, &json!({ "limits": { "total": "0.000000001" } })),
        call(Method::PATCH, &keys[2].0, &json!({ "expires_at": "1s" })),
        call(Method::PATCH, "", &json!({ "max_in_flight": 7 })),
    ];
    for call in done {
        let reply = call.reply().await;
        assert!(reply.status < 300, "{reply:?}");
    }
    primary.kill();
    replica.promote();
    relay.switch(replica.port());
    readiness(&proxy, true).await;
    let stored = replica.run(&["HGET", "fbx:{default}:acct", "max_in_flight"]).unwrap();
    assert_eq!(stored.text(), "7");
    tokio::time::sleep(Duration::from_secs(1)).await;
    for ((_, signed), status) in keys.iter().zip([401, 402, 401]) {
        let reply = signed.chat("after").await;
        assert_eq!(reply.status, status, "{reply:?}");
    }
    verify(&proxy).await;
}

/// Debits are carried out, and nobody hears of it: each is sent again, some of them often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debits_whose_replies_are_lost_are_sent_again_and_booked_once() {
    let rounds = figure(3, 30);
    let upstream = varied_upstream().await;
    let redis = Redis::start(DURABLE);
    let relay = Relay::to(redis.port());
    let url = format!("redis://127.0.0.1:{}", relay.port());
    let proxy = on(&url, &upstream).start().await;
    let mut random = Random::new(SEED);
    let mut seen = Vec::new();
    for round in 0..rounds {
        let loses = 2 + random.below(3) as u64;
        let name = format!("round {round}");
        let lost = relay.lost();
        seen.extend(
            under_load(&proxy, &name, async || {
                relay.lose_one_reply_in(loses);
                let since = Instant::now();
                while relay.lost() < lost + 10 && since.elapsed() < Duration::from_secs(20) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                relay.lose_one_reply_in(0);
            })
            .await,
        );
    }
    assert_only_unavailable(&seen);
    assert!(relay.lost() > 0);
    let tally = Tally::of(&proxy, &upstream, &seen).await;
    tally.print(&format!("{} replies of Redis lost", relay.lost()));
}

/// What a server says that cannot take a debit now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_full_read_only_loading_or_slow_refuses_cleanly_and_work_resumes() {
    let upstream = varied_upstream().await;
    let mut redis = Redis::start(DURABLE);
    let relay = Relay::to(redis.port());
    let url = format!("redis://127.0.0.1:{}", relay.port());
    let proxy = on(&url, &upstream).start().await;
    let mut seen = Vec::new();

    seen.extend(
        under_load(&proxy, "out of memory", async || {
            redis.set("maxmemory", "1");
            readiness(&proxy, false).await;
            redis.set("maxmemory", "0");
        })
        .await,
    );
    seen.extend(
        under_load(&proxy, "read-only", async || {
            // Of nobody: what it has stays.
            redis.run(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
            readiness(&proxy, false).await;
            redis.promote();
        })
        .await,
    );
    seen.extend(
        under_load(&proxy, "slow", async || {
            relay.delay(Duration::from_millis(250));
            tokio::time::sleep(Duration::from_secs(2)).await;
            relay.delay(Duration::ZERO);
        })
        .await,
    );
    seen.extend(
        under_load(&proxy, "loading", async || {
            redis.kill();
            // Microseconds a key.
            redis.restart_loading("1000");
            readiness(&proxy, false).await;
        })
        .await,
    );
    assert_only_unavailable(&seen);
    let tally = Tally::of(&proxy, &upstream, &seen).await;
    tally.print("Redis out of memory, read-only, slow by 250 ms, loading");
    assert!(is_ready(&proxy).await);
}
