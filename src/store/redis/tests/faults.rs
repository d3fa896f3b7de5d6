//! A server that is slow, gone, or whose answers are lost: never free, never twice.

use super::server::DURABLE;
use super::*;
use relay::Relay;

/// What every process of a test uses; deadlines are those of a busy machine.
async fn through(relay: &Relay, command: Duration) -> Arc<Redis> {
    let options = Options {
        connect_timeout: Duration::from_secs(5),
        command_timeout: command,
        ..Options::of(format!("redis://127.0.0.1:{}", relay.port()))
    };
    Redis::open(options).await.unwrap()
}

async fn with_account(store: &Redis) {
    store.create_account(account(), String::new()).await.unwrap();
    store.create_key(key_1(), KeyHash::of("key_1")).await.unwrap();
    store.grant(granting(Kind::Topup, "pay", "100")).await.unwrap();
}

/// Each settlement is sent two to five times by two processes, and answers are lost on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settlements_that_are_delivered_again_and_again_are_debited_once() {
    const REQUESTS: usize = 120;
    let server = Server::start(FIT);
    let relay = Relay::to(server.port());
    let patience = Duration::from_secs(5);
    let stores = [through(&relay, patience).await, through(&relay, patience).await];
    with_account(&stores[0]).await;
    relay.lose_one_reply_in(10);
    let deliveries = (0..REQUESTS).map(|n| {
        let stores = stores.clone();
        async move {
            let (mut acknowledged, mut first) = (0, 0);
            let mut sent = 0;
            // Until it is known to be booked, as a journal does.
            while sent < 2 + n % 4 || acknowledged == 0 {
                match stores[sent % 2].settle(settlement(&format!("req_{n}"), "0.01")).await {
                    Ok(settled) => {
                        acknowledged += 1;
                        first += usize::from(!settled.duplicate);
                    }
                    Err(StoreError::Unavailable(_)) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
                sent += 1;
            }
            assert!(first <= 1, "two answers say that it was booked just now");
        }
    });
    futures_util::future::join_all(deliveries).await;
    relay.lose_one_reply_in(0);
    eventually("both back", async || {
        stores[0].ready().await.is_ok() && stores[1].ready().await.is_ok()
    })
    .await;
    assert_eq!(stores[0].account(&account()).await.unwrap().balance, credits("98.8"));
    sound::assert_sound(&stores[1]).await;
}

const FIT: &[&str] = &["--appendonly", "yes", "--appendfsync", "no"];

/// Slow is worse than down: what gets no answer in time is refused, soon at once, and never
/// admitted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_stands_still_nothing_is_admitted_and_then_all_goes_on() {
    let server = Server::start(FIT);
    let relay = Relay::to(server.port());
    let patient = through(&relay, Duration::from_secs(20)).await;
    with_account(&patient).await;
    let store = through(&relay, Duration::from_millis(500)).await;
    server.pause();
    for n in 0..20 {
        let admitted = store.admit(&key_1(), request(&format!("r{n}")), LENIENT).await;
        assert!(matches!(admitted, Err(StoreError::Unavailable(_))), "{admitted:?}");
    }
    let settled = store.settle(settlement("one", "0.3")).await;
    assert!(matches!(settled, Err(StoreError::Unavailable(_))), "{settled:?}");
    server.resume();
    eventually("back", async || {
        matches!(store.admit(&key_1(), request("after"), LENIENT).await, Ok(Ok(_)))
    })
    .await;
    let settled = patient.settle(settlement("one", "0.3")).await.unwrap();
    assert_eq!(settled.balance, Some(credits("99.7")));
    sound::assert_sound(&patient).await;
}

/// With `appendfsync always`, what was acknowledged is there after any death of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9_of_the_server_and_is_there_once() {
    let mut server = Server::start(DURABLE);
    let relay = Relay::to(server.port());
    let store = through(&relay, Duration::from_secs(5)).await;
    with_account(&store).await;
    let mut acknowledged = Vec::new();
    let mut unknown = Vec::new();
    for round in 0..3 {
        let settling: Vec<_> = (0..8)
            .map(|caller| {
                let store = store.clone();
                tokio::spawn(async move {
                    let (mut sure, mut unsure) = (Vec::new(), Vec::new());
                    for n in 0.. {
                        let id = format!("req_{round}_{caller}_{n}");
                        match store.settle(settlement(&id, "0.001")).await {
                            Ok(_) => sure.push(id),
                            Err(_) => {
                                unsure.push(id);
                                return (sure, unsure);
                            }
                        }
                    }
                    unreachable!("it goes on until the server dies")
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.kill();
        for task in settling {
            let (sure, unsure) = task.await.unwrap();
            acknowledged.extend(sure);
            unknown.extend(unsure);
        }
        server.restart();
        eventually("back", async || store.ready().await.is_ok()).await;
    }
    assert!(!acknowledged.is_empty());
    for id in &acknowledged {
        assert!(store.settle(settlement(id, "0.001")).await.unwrap().duplicate, "{id} was lost");
    }
    for id in &unknown {
        store.settle(settlement(id, "0.001")).await.unwrap();
    }
    let debits = i64::try_from(acknowledged.len() + unknown.len()).unwrap();
    let left = credits("100") - Credits::from_nano(debits * 1_000_000);
    assert_eq!(store.account(&account()).await.unwrap().balance, left);
    sound::assert_sound(&store).await;
}

/// Two processes share an account: what one revokes, spends or takes, the other sees at once.
#[tokio::test]
async fn two_processes_share_places_holds_and_keys() {
    let bench = Bench::with("1").await;
    let other = open(&bench.server, &bench.prefix, &bench.clock).await;
    bench.store.admit(&key_1(), request("one"), strict("0.7")).await.unwrap().unwrap();
    let refused = other.admit(&key_1(), request("two"), strict("0.7")).await.unwrap();
    assert!(matches!(refused, Err(Refused::HoldDoesNotFit { .. })), "{refused:?}");
    bench.settle("one", "0.1").await.unwrap();
    other.admit(&key_1(), request("two"), strict("0.7")).await.unwrap().unwrap();

    let hash = KeyHash::of("key_1");
    assert!(other.key(&hash).await.unwrap().is_some());
    bench.store.revoke_key(&account(), "key_1").await.unwrap();
    let refused = other.admit(&key_1(), request("three"), LENIENT).await.unwrap();
    assert_eq!(refused, Err(Refused::KeyEnded { revoked: true }));
}

/// A process that dies holds nothing for longer than a lease, and its requests are listed; what
/// it settles late is debited all the same, once.
#[tokio::test]
async fn places_of_a_dead_process_are_free_when_their_lease_ends() {
    let bench = Bench::with("1").await;
    bench.store.admit(&key_1(), request("one"), strict("1")).await.unwrap().unwrap();
    let lease = bench.store.shared.lease.as_millis() as Millis;
    let other = open(&bench.server, &bench.prefix, &bench.clock).await;
    bench.set_clock(START + lease - 1);
    assert!(other.admit(&key_1(), request("two"), strict("1")).await.unwrap().is_err());
    bench.set_clock(START + lease);
    other.admit(&key_1(), request("two"), strict("1")).await.unwrap().unwrap();
    let rows = bench.usage().await;
    assert_eq!((rows.len(), rows[0].id.as_str(), rows[0].outcome), (1, "one", Outcome::Abandoned));
    for duplicate in [false, true] {
        let settled = bench.settle("one", "0.3").await.unwrap();
        assert_eq!(settled, Settled { balance: Some(credits("0.7")), duplicate });
    }
    let rows = bench.usage().await;
    assert_eq!((rows.len(), rows[0].outcome), (1, Outcome::Completed));
    bench.assert_sound().await;
}

/// A request that runs for longer than its lease keeps its place, because its process lives.
#[tokio::test]
async fn leases_are_renewed_while_a_request_runs() {
    let bench = Bench::with("1").await;
    let lease = Duration::from_secs(10);
    let options = Options {
        lease,
        prefix: bench.prefix.clone(),
        connect_timeout: Duration::from_secs(20),
        command_timeout: Duration::from_secs(20),
        ..Options::of(bench.server.url())
    };
    let store =
        Redis::open(Options { prefix: format!("{}r", bench.prefix), ..options }).await.unwrap();
    with_account(&store).await;
    store.admit(&key_1(), request("one"), LENIENT).await.unwrap().unwrap();
    let place = format!("{}r:{{default}}:flight", bench.prefix);
    let until = || {
        let score = bench.server.run(&["ZSCORE", &place, "one"]).unwrap();
        score.text().parse::<i64>().unwrap()
    };
    let first = until();
    eventually("renewed", async || until() > first).await;
    store.settle(settlement("one", "0.1")).await.unwrap();
    assert_eq!(store.account(&account()).await.unwrap().in_flight, 0);
}

/// More places than Lua passes values end at a time, as when a busy process dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_places_that_end_at_once_are_all_listed() {
    const PLACES: usize = 10_000;
    let bench = Bench::with("1").await;
    let how = Admission { max_in_flight: u32::MAX, ..LENIENT };
    let ids: Vec<_> = (0..PLACES).map(|n| format!("req_{n}")).collect();
    let key = key_1();
    let admitted = ids.iter().map(|id| bench.store.admit(&key, request(id), how));
    for admitted in futures_util::future::try_join_all(admitted).await.unwrap() {
        admitted.unwrap();
    }
    let lease = bench.store.shared.lease.as_millis() as Millis;
    bench.set_clock(START + lease);
    bench.admit("another").await.unwrap();
    assert_eq!(bench.store.account(&account()).await.unwrap().in_flight, 1);
    let (tally, violations) = trims::run(&bench, None).await;
    assert_eq!((violations, tally.abandoned), (vec![], PLACES as u64));
}
