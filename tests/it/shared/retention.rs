//! What is old leaves a Redis that several Farebox share, also if they die at it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use farebox::billing::Usage;
use farebox::billing::ledger::Kind;
use farebox::store::redis::{Options, Redis as RedisStore};
use farebox::store::{AccountId, Attribution, Grant, Outcome, Settlement, Source, Store};
use farebox::time;
use serde_json::Value;

use crate::support::credits;
use crate::support::http::Call;
use crate::support::proxy::Proxy;
use crate::support::redis::{DURABLE, Redis};
use crate::support::until;
use crate::support::upstream::Upstream;

use super::{on, verify};

const DAY_MS: i64 = 24 * 3600 * 1000;
/// Requests of as many days, oldest first; those older than the retention are most of them.
const REQUESTS: i64 = 20_000;
const DAYS: i64 = 100;

/// An account whose requests are spread evenly over the last days.
async fn old_account(url: &str) {
    let begin = time::now() - DAYS * DAY_MS;
    let clock = Arc::new(AtomicI64::new(begin));
    let now = clock.clone();
    let options = Options {
        clock: Some(Arc::new(move || now.load(Ordering::SeqCst))),
        command_timeout: Duration::from_secs(20),
        ..Options::of(url)
    };
    let store = RedisStore::open(options).await.unwrap();
    let id = AccountId("default".into());
    store.create_account(id.clone(), "default".into()).await.unwrap();
    let grant = Grant {
        account: id.clone(),
        kind: Kind::Topup,
        amount: credits("5000"),
        expires: None,
        note: String::new(),
        id: "inv1".into(),
    };
    store.grant(grant).await.unwrap();
    for day in 0..DAYS {
        clock.store(begin + day * DAY_MS, Ordering::SeqCst);
        let settled = (0..REQUESTS / DAYS).map(|n| store.settle(old(&id, day, n)));
        for settled in futures_util::future::join_all(settled).await {
            settled.unwrap();
        }
    }
    store.close().await.unwrap();
}

fn old(account: &AccountId, day: i64, n: i64) -> Settlement {
    Settlement {
        id: format!("req_old{day:03}_{n:05}"),
        account: account.clone(),
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
    }
}

async fn status(proxy: &Proxy) -> Value {
    let told = proxy.cli(&["store", "status", "--json"]).await;
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    serde_json::from_slice(&told.stdout).unwrap()
}

/// The numbers of the entries in all whole files of an archive.
fn archived(folder: &Path) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.contains("ledger") || name.ends_with(".meta.json") {
            continue;
        }
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            // A file that a kill cut off ends anywhere.
            let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
            found.insert(entry["seq"].as_u64().unwrap());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retention_that_is_killed_in_the_middle_loses_nothing_and_doubles_nothing() {
    let upstream = Upstream::start().await;
    let redis = Redis::start(DURABLE);
    old_account(&redis.url()).await;
    let setup = |archive: &Path| {
        let setup = on(&redis.url(), &upstream).env("FAREBOX_INITIAL_CREDITS", "");
        setup.env("FAREBOX_RETENTION", "31d").env("FAREBOX_ARCHIVE", archive.to_str().unwrap())
    };
    let archive = tempfile::tempdir().unwrap();
    let mut proxy = setup(archive.path()).start().await;
    let trimmed = async |proxy: &Proxy| {
        let store = Call::get(format!("{}/admin/v1/store", proxy.admin_url()));
        let told = store.bearer(proxy.admin_key()).reply().await;
        told.expect(200).json()["trimmed"].as_u64().unwrap()
    };
    // Of the moments of a trim those in which some of it is done.
    let some = until("a trim has begun", || async {
        Some(trimmed(&proxy).await).filter(|trimmed| *trimmed > 0)
    });
    some.await;
    proxy.kill().await;
    let left = |redis: &Redis| redis.run(&["XLEN", "fbx:{default}:led"]).unwrap().text();
    let kept: i64 = left(&redis).parse().unwrap();
    println!("killed when {kept} of {} entries were left", REQUESTS + 1);

    // Two go on with it, and one request is served meanwhile.
    proxy.restart().await;
    let other = setup(archive.path()).start().await;
    other.default_account().chat("Hi").await.expect(200);
    let goal = u64::try_from(REQUESTS / DAYS * 69).unwrap();
    let all = until("all of it is done", || async {
        Some(trimmed(&proxy).await).filter(|trimmed| *trimmed >= goal)
    });
    let trimmed = all.await;
    for proxy in [&proxy, &other] {
        verify(proxy).await;
    }
    let account = proxy.default_account();
    account.settled().await;
    let charged = credits("5000") - account.balance().await;
    assert!(charged > credits("200") && charged < credits("201"), "{charged}");
    let archived = archived(&archive.path().join("default"));
    assert!((1..=trimmed).all(|seq| archived.contains(&seq)), "some entries are nowhere");
    let told = status(&proxy).await;
    assert_eq!(told["kind"], "redis");
    assert_eq!(told["server"]["eviction"], "noeviction");
    assert_eq!(told["durability"], "appendfsync always");
    assert!(told["server"]["may_lose"].as_str().unwrap().contains("power: nothing"), "{told}");
    assert!(told["problem"].is_null(), "{told}");
}
