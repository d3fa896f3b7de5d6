//! A Farebox that is started before its Redis waits for it, and says so.

use crate::support::proxy::Proxy;
use crate::support::redis::{DURABLE, Redis};
use crate::support::until;
use crate::support::upstream::Upstream;

use super::{Tally, on, readiness, under_load, varied_upstream, verify};

/// Waits until a request is served: a moment after Redis came, its key is there too.
async fn served(proxy: &Proxy) {
    let account = proxy.default_account();
    until("a request is served", || async {
        (account.chat("Hi").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn started_while_redis_is_away_it_is_not_ready_and_serves_once_redis_is_there() {
    let upstream = varied_upstream().await;
    let mut redis = Redis::start(DURABLE);
    redis.kill();
    let proxy = on(&redis.url(), &upstream).start().await;
    let told = proxy.readyz().await;
    assert_eq!(told.status, 503);
    assert!(told.text().contains(&redis.address()), "{told:?}");
    let refused = proxy.default_account().chat("Hi").await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str()),
        (503, Some("ledger_unavailable"))
    );

    // The first account, its key and credits are made when it comes.
    redis.restart();
    readiness(&proxy, true).await;
    served(&proxy).await;
    let seen = under_load(&proxy, "late", async || {
        redis.kill();
        redis.restart();
    })
    .await;
    Tally::of(&proxy, &upstream, &seen).await.print("Farebox started before its Redis");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_and_is_unfit_is_not_used_until_it_is_fit() {
    let upstream = Upstream::start().await;
    let mut redis = Redis::start(&["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]);
    redis.kill();
    let proxy = on(&redis.url(), &upstream).start().await;
    redis.restart();
    until("the problem is named", || async {
        let told = proxy.readyz().await;
        assert_eq!(told.status, 503, "{told:?}");
        let names = |word: &str| told.text().contains(word);
        (names("appendonly yes") && names("noeviction")).then_some(())
    })
    .await;
    redis.set("appendonly", "yes");
    redis.set("maxmemory-policy", "noeviction");
    readiness(&proxy, true).await;
    served(&proxy).await;
    verify(&proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_ends_the_start_with_a_sentence() {
    let upstream = Upstream::start().await;
    let redis = Redis::start(DURABLE);
    redis.set("requirepass", "right");
    let own = Redis::start(DURABLE);
    let proxy = on(&own.url(), &upstream).start().await;
    let port = redis.port();
    for url in [format!("redis://:wrong@127.0.0.1:{port}"), format!("redis://127.0.0.1:{port}")] {
        let store = format!("FAREBOX_STORE={url}");
        let dir = format!("FAREBOX_DATA_DIR={}", proxy.dir().join("other").display());
        let ended = proxy.serve_by(&["timeout", "20", "env", &store, &dir]).await;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success(), "{url}");
        assert!(said.contains("does not answer") && said.contains("password"), "{url}: {said}");
    }
}

/// It answers, but only that it is loading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn started_while_redis_loads_its_file_it_waits_and_then_serves() {
    let upstream = varied_upstream().await;
    let mut redis = Redis::start(DURABLE);
    let proxy = on(&redis.url(), &upstream).start().await;
    served(&proxy).await;
    // It looks up from loading after every thousand commands.
    let fill = "for n = 1, 6000 do redis.call('SET', 'filler:' .. n, 1) end";
    redis.run(&["EVAL", fill, "0"]).unwrap();
    redis.kill();
    redis.restart_loading("1000");
    // One that starts beside the other.
    let late = on(&redis.url(), &upstream).start().await;
    let told = late.readyz().await;
    assert_eq!(told.status, 503, "{told:?}");
    assert!(redis.run(&["PING"]).is_err_and(|error| error.starts_with("LOADING")));
    readiness(&late, true).await;
    served(&late).await;
    late.default_account().settled().await;
    late.default_account().check_books().await;
    verify(&late).await;
}

/// On the first start of all nothing is acknowledged: the account, its key and its credits are
/// there once the replica is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn started_for_the_first_time_beside_a_replica_that_hangs_it_waits_and_is_set_up_once() {
    let upstream = varied_upstream().await;
    let primary = Redis::start(DURABLE);
    let replica = primary.replica(DURABLE);
    let fresh = || on(&primary.url(), &upstream).env("FAREBOX_REDIS_WAIT", "1");
    replica.pause();
    let mut proxy = fresh().start().await;
    assert_eq!(proxy.readyz().await.status, 503);
    // Also if it ends meanwhile.
    proxy.kill().await;
    proxy.restart().await;
    assert_eq!(proxy.readyz().await.status, 503);
    replica.resume();
    readiness(&proxy, true).await;
    served(&proxy).await;
    let account = proxy.default_account();
    account.settled().await;
    assert_eq!(account.ledger().await.iter().filter(|entry| entry.kind == "topup").count(), 1);
    verify(&proxy).await;
}
