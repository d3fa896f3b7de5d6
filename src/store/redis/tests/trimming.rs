//! A trim that is not alone: others trim, settle and audit meanwhile.

use super::trims::run;
use super::*;

const DAY: Millis = 24 * HOUR_MS;

/// An account with this many requests, a second apart, some of them on top of each other.
async fn busy(requests: i64) -> Bench {
    let bench = Bench::with("100").await;
    for n in 0..requests / 4 {
        bench.set_clock(START + n * 4000);
        let ids: Vec<_> = (0..4).map(|one| format!("req_{n}_{one}")).collect();
        let settled = ids.iter().map(|id| bench.settle(id, "0.001"));
        for settled in futures_util::future::join_all(settled).await {
            settled.unwrap();
        }
    }
    bench.set_clock(START + 40 * DAY);
    bench
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_trim_one_account_at_a_time_and_it_is_trimmed_once() {
    let bench = busy(6000).await;
    let (whole, _) = run(&bench, None).await;
    let before = START + 30 * DAY;
    let mut trims = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = open(&bench.server, &bench.prefix, &bench.clock).await;
        trims.spawn(async move { store.trim(&account(), before).await });
    }
    for n in 0..50 {
        bench.settle(&format!("req_meanwhile_{n}"), "0.001").await.unwrap();
    }
    let (_, violations) = run(&bench, None).await;
    assert_eq!(violations, [], "an audit meanwhile");
    for trimmed in trims.join_all().await {
        trimmed.unwrap();
    }
    let (tally, violations) = run(&bench, None).await;
    assert_eq!(violations, []);
    assert_eq!((tally.trimmed, tally.entries), (whole.entries, 50));
    assert_eq!(bench.balance().await, "93.95");
    bench.assert_sound().await;
}

#[tokio::test]
async fn an_audit_that_is_overtaken_by_a_trim_begins_again() {
    let bench = busy(4000).await;
    let (sender, mut records) = mpsc::channel(1);
    let store = bench.store.clone();
    let reading = tokio::spawn(async move { store.read_books(&account(), sender).await });
    records.recv().await.unwrap();
    bench.store.trim(&account(), START + 30 * DAY).await.unwrap();
    while records.recv().await.is_some() {}
    let overtaken = reading.await.unwrap();
    assert!(matches!(overtaken, Err(StoreError::Conflict(_))), "{overtaken:?}");
    assert_eq!(run(&bench, None).await.1, []);
}

#[tokio::test]
async fn books_that_do_not_add_up_are_not_trimmed() {
    let bench = busy(40).await;
    let ledger = format!("{}:{{default}}:led", bench.prefix);
    bench.server.run(&["XDEL", &ledger, "7-0"]).unwrap();
    let refused = bench.store.trim(&account(), START + 30 * DAY).await;
    assert!(matches!(refused, Err(StoreError::Ledger(_))), "{refused:?}");
    assert_eq!(bench.entries().await.len(), 40);
}

#[tokio::test]
async fn an_abandoned_request_that_was_trimmed_is_settled_late_and_once() {
    let bench = Bench::with("5").await;
    bench.admit("req_late").await.unwrap();
    let bench = bench.reopened().await;
    eventually("it is listed", async || !bench.usage().await.is_empty()).await;
    bench.set_clock(START + 40 * DAY);
    bench.store.trim(&account(), START + 30 * DAY).await.unwrap();
    assert_eq!(bench.usage().await.len(), 0);
    bench.settle("req_late", "1").await.unwrap();
    assert_eq!((bench.usage().await.len(), bench.balance().await.as_str()), (1, "4"));
    assert_eq!(run(&bench, None).await.1, []);
}
