//! An audit reads while requests end, late ones too: what it calls a violation is one.

use std::sync::atomic::AtomicBool;

use super::trims::run;
use super::*;
use crate::billing::audit::Invariant;

/// A store with a request that was listed as abandoned, and 3000 requests after it.
async fn with_an_abandoned_request() -> Bench {
    let bench = Bench::with("100").await;
    bench.admit("req_late").await.unwrap();
    let bench = bench.reopened().await;
    eventually("it is listed", async || !bench.usage().await.is_empty()).await;
    bench.set_clock(START + 1);
    let ids: Vec<_> = (0..3000).map(|n| format!("req_{n}")).collect();
    let settled = ids.iter().map(|id| bench.settle(id, "0.001"));
    futures_util::future::try_join_all(settled).await.unwrap();
    bench
}

#[tokio::test]
async fn an_audit_that_is_overtaken_by_a_late_settlement_begins_again() {
    let bench = with_an_abandoned_request().await;
    let (sender, mut records) = mpsc::channel(1);
    let store = bench.store.clone();
    let reading = tokio::spawn(async move { store.read_books(&account(), sender).await });
    records.recv().await.unwrap();
    bench.settle("req_late", "0.5").await.unwrap();
    while records.recv().await.is_some() {}
    let overtaken = reading.await.unwrap();
    assert!(matches!(overtaken, Err(StoreError::Conflict(_))), "{overtaken:?}");
    let (tally, violations) = run(&bench, None).await;
    assert_eq!((violations, tally.requests, tally.abandoned), (vec![], 3001, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audits_beside_requests_that_begin_and_end_find_nothing() {
    let bench = Bench::with("100").await;
    let ended = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (store, ended) = (bench.store.clone(), ended.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let id = format!("req_{client}_{n}");
                    store.admit(&key_1(), request(&id), LENIENT).await.unwrap().unwrap();
                    store.settle(settlement(&id, "0.0001")).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..30 {
        assert_eq!(run(&bench, None).await.1, []);
    }
    ended.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    bench.assert_sound().await;
}

#[tokio::test]
async fn a_row_that_stayed_beside_its_settlement_is_a_violation_with_its_name() {
    let bench = with_an_abandoned_request().await;
    let lost = format!("{}:{{default}}:lost", bench.prefix);
    // As if nobody knew of the row any more.
    bench.server.run(&["DEL", &lost]).unwrap();
    bench.settle("req_late", "0.5").await.unwrap();
    let (_, violations) = run(&bench, None).await;
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert_eq!(violations[0].invariant, Invariant::I11);
    assert!(violations[0].sentence.contains("req_late"), "{violations:?}");
}
