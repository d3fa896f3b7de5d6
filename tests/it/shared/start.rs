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
