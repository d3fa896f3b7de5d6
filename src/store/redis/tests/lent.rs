//! Places that are lent ahead: they change how requests are admitted, and nothing that anybody
//! was promised.

use std::sync::atomic::{AtomicBool, AtomicU64};

use super::server::DURABLE;
use super::*;
use crate::store::{KeyChange, LimitsChange, Mode};
use relay::Relay;

const PRICE: &str = "0.01";

/// A process of its own on a server, with the server's clock.
async fn process(url: String) -> Arc<Redis> {
    let options = Options {
        lease: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(20),
        command_timeout: Duration::from_secs(20),
        ..Options::of(url)
    };
    Redis::open(options).await.unwrap()
}

async fn processes<const N: usize>(server: &Server, balance: &str) -> [Arc<Redis>; N] {
    let mut stores = Vec::new();
    for _ in 0..N {
        stores.push(process(server.url()).await);
    }
    stores[0].create_account(account(), String::new()).await.unwrap();
    stores[0].create_key(key_1(), KeyHash::of("key_1")).await.unwrap();
    stores[0].grant(granting(Kind::Topup, "pay", balance)).await.unwrap();
    stores.try_into().ok().unwrap()
}

/// How many places are lent ahead, to all processes.
fn lent(server: &Server) -> u64 {
    let key = format!("fbx:{{{}}}:lent", account());
    let Ok(server::Value::List(all)) = server.run(&["HVALS", &key]) else {
        panic!("the server does not answer");
    };
    let count = |packed: &server::Value| packed.text().split(' ').next().unwrap().parse::<u64>();
    all.iter().map(|packed| count(packed).unwrap()).sum()
}

/// Clients that send one request after the other, until they are stopped or refused.
struct Load {
    is_over: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Refused>>,
    served: Arc<AtomicU64>,
}

const NOBODY: Refused = Refused::NotOpen;

impl Load {
    fn on(store: &Arc<Redis>, name: &'static str, clients: usize, how: Admission) -> Self {
        let (is_over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..clients).map(|client| {
            let (store, is_over, served) = (store.clone(), is_over.clone(), served.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    let id = format!("{name}_{client}_{n}");
                    match store.admit(&key_1(), request(&id), how).await.unwrap() {
                        Err(refused) => return refused,
                        // Some are never sent.
                        Ok(_) if n % 7 == 3 => store.release(&account(), &id),
                        Ok(_) => {
                            if n % 5 == 1 {
                                tokio::time::sleep(Duration::from_millis(n % 120)).await;
                            }
                            store.settle(settlement(&id, PRICE)).await.unwrap();
                            served.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
                NOBODY
            })
        });
        Self { clients: clients.collect(), is_over, served }
    }

    /// Waits until places are lent ahead for it.
    async fn once_lent(self, server: &Server) -> Self {
        eventually("places are lent ahead", async || lent(server) > 0).await;
        self
    }

    /// Whether a client has ended.
    fn has_ended(&self) -> bool {
        self.clients.iter().any(tokio::task::JoinHandle::is_finished)
    }

    /// What each client was refused by; how many requests were served.
    async fn refused(self) -> (Vec<Refused>, u64) {
        let refused = futures_util::future::join_all(self.clients).await;
        (refused.into_iter().map(Result::unwrap).collect(), self.served.load(Ordering::SeqCst))
    }

    async fn stop(self) -> (Vec<Refused>, u64) {
        self.is_over.store(true, Ordering::SeqCst);
        self.refused().await
    }
}

/// All places are free again, and all that was charged adds up.
async fn is_at_rest(server: &Server, store: &Arc<Redis>) {
    eventually("all places are given back", async || {
        let account = store.account(&account()).await.unwrap();
        lent(server) == 0 && account.in_flight == 0
    })
    .await;
    sound::assert_sound(store).await;
}

const FIT: &[&str] = &["--appendonly", "yes", "--appendfsync", "no"];

/// A client whose request is settled after the balance was used up has told its process of it: so
/// each overdraws with one request at most, as if every one of them had asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_places_lent_ahead_to_three_processes_each_client_overdraws_with_one_request_at_most() {
    let server = Server::start(FIT);
    let stores: [_; 3] = processes(&server, "0.1").await;
    let how = Admission { max_in_flight: 200, ..LENIENT };
    let mut deepest = Credits::ZERO;
    let mut lent_most = 0;
    for round in 0..12 {
        let id = format!("pay_{round}");
        let missing = credits("2.995") - stores[0].account(&account()).await.unwrap().balance;
        stores[0].grant(granting(Kind::Topup, &id, &missing.to_string())).await.unwrap();
        let names = ["a", "b", "c"].map(|name| &*format!("{name}{round}").leak());
        let loads: Vec<_> = (0..3).map(|n| Load::on(&stores[n], names[n], 8, how)).collect();
        while !loads.iter().any(Load::has_ended) {
            lent_most = lent_most.max(lent(&server));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for load in loads {
            for refused in load.refused().await.0 {
                let is_credits = matches!(refused, Refused::OutOfCredits { .. });
                assert!(is_credits, "{refused:?}");
            }
        }
        deepest = deepest.min(stores[0].account(&account()).await.unwrap().balance);
    }
    assert!(lent_most > 0, "nothing was ever lent ahead");
    assert!(deepest.is_negative() && deepest >= credits("-0.24"), "{deepest}");
    is_at_rest(&server, &stores[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_what_is_lent_ahead_to_three_processes_no_more_run_than_may() {
    const MOST: u32 = 20;
    let server = Server::start(FIT);
    let stores: [_; 3] = processes(&server, "1000").await;
    let how = Admission { max_in_flight: MOST, ..LENIENT };
    // The first alone, so that most places are lent to it.
    let load = Load::on(&stores[0], "first", 16, how).once_lent(&server).await;
    let (running, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let clients = (0..45).map(|client| {
        let (store, running, most) = (&stores[client % 3], &running, &most);
        async move {
            let mut served = 0;
            for n in 0..20 {
                let id = format!("{client}_{n}");
                if store.admit(&key_1(), request(&id), how).await.unwrap().is_ok() {
                    let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    running.fetch_sub(1, Ordering::SeqCst);
                    store.settle(settlement(&id, PRICE)).await.unwrap();
                    served += 1;
                }
            }
            served
        }
    });
    let clients = futures_util::future::join_all(clients);
    let (served, _) = tokio::join!(clients, load.stop());
    assert!(served.iter().sum::<u64>() > 0);
    let most = most.into_inner();
    assert!(most <= MOST.into(), "{most} ran at once");
    is_at_rest(&server, &stores[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_another_process_ends_is_refused_from_the_answer_on() {
    for round in 0..6 {
        let server = Server::start(FIT);
        let [busy, other]: [_; 2] = processes(&server, "1000").await;
        let load = Load::on(&busy, "a", 16, LENIENT).once_lent(&server).await;
        let id = "key_1";
        if round % 2 == 0 {
            other.revoke_key(&account(), id).await.unwrap();
        } else {
            let limits = LimitsChange { max_in_flight: Some(Some(0)), ..Default::default() };
            let change = KeyChange { limits, ..KeyChange::default() };
            other.change_key(&account(), id, change).await.unwrap();
        }
        let after = busy.admit(&key_1(), request("after"), LENIENT).await.unwrap();
        match (round % 2, after) {
            (0, Err(Refused::KeyEnded { revoked: true })) => {}
            (1, Err(Refused::KeyInFlight { .. })) => {}
            (_, after) => panic!("{after:?}"),
        }
        load.stop().await;
        is_at_rest(&server, &other).await;
    }
}

/// No settlement tells the process of it: it has only what it was told before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_another_process_ends_is_refused_also_where_nothing_is_settled_since() {
    let server = Server::start(FIT);
    let [quiet, other]: [_; 2] = processes(&server, "1000").await;
    let mut tried = 0;
    for round in 0..100 {
        let key = Key { id: format!("round_{round}"), ..key_1() };
        other.create_key(key.clone(), KeyHash::of(&key.id)).await.unwrap();
        let all = (0..24).map(|n| {
            let (store, key, id) = (&quiet, &key, format!("{round}_{n}"));
            async move {
                store.admit(key, request(&id), LENIENT).await.unwrap().unwrap();
                let settlement = Settlement { key: key.id.clone(), ..settlement(&id, PRICE) };
                store.settle(settlement).await.unwrap();
            }
        });
        futures_util::future::join_all(all).await;
        tried += u64::from(quiet.shared.lent.take(&key, &request("probe"), LENIENT).is_some());
        quiet.release(&account(), "probe");
        other.revoke_key(&account(), &key.id).await.unwrap();
        let after = quiet.admit(&key, request("after"), LENIENT).await.unwrap();
        assert_eq!(after, Err(Refused::KeyEnded { revoked: true }));
        if tried == 5 {
            break;
        }
    }
    assert_eq!(tried, 5, "it never admitted by what it was told before");
    is_at_rest(&server, &other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_another_process_narrows_is_so_from_the_answer_on() {
    let server = Server::start(FIT);
    let [busy, other]: [_; 2] = processes(&server, "1000").await;
    let load = Load::on(&busy, "a", 16, LENIENT).once_lent(&server).await;
    let change = AccountChange { mode: Some(Some(Mode::Strict)), ..Default::default() };
    other.configure_account(&account(), change).await.unwrap();
    let after = busy.admit(&key_1(), request("after"), LENIENT).await.unwrap();
    assert_eq!(after, Err(Refused::Unbounded));
    load.stop().await;
    is_at_rest(&server, &other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_on_a_place_lent_ahead_is_charged_though_its_account_was_closed_meanwhile() {
    let server = Server::start(FIT);
    let [busy, other]: [_; 2] = processes(&server, "1000").await;
    let load = Load::on(&busy, "a", 16, LENIENT).once_lent(&server).await;
    busy.admit(&key_1(), request("last"), LENIENT).await.unwrap().unwrap();
    other.close_account(&account(), "end".into()).await.unwrap();
    let after = busy.admit(&key_1(), request("after"), LENIENT).await.unwrap();
    assert_eq!(after, Err(Refused::NotOpen));
    load.stop().await;
    let before = other.account(&account()).await.unwrap();
    assert_eq!((before.status, before.in_flight), (Status::Closing, 1));
    let settled = busy.settle(settlement("last", PRICE)).await.unwrap();
    assert_eq!(settled.balance, Some(before.balance - credits(PRICE)));
    eventually("it is closed", async || {
        let account = other.account(&account()).await.unwrap();
        account.status == Status::Closed && account.balance == Credits::ZERO
    })
    .await;
    is_at_rest(&server, &other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_that_are_idle_with_one_process_are_no_reason_for_another_to_refuse() {
    let server = Server::start(FIT);
    let [busy, other]: [_; 2] = processes(&server, "1000").await;
    let how = Admission { max_in_flight: 16, ..LENIENT };
    for round in 0..3 {
        let name = &*format!("a{round}").leak();
        let load = Load::on(&busy, name, 8, how);
        if round == 0 {
            load.once_lent(&server).await.stop().await;
        } else {
            load.stop().await;
        }
        let all = (0..16).map(|n| {
            let (other, id) = (other.clone(), format!("b{round}_{n}"));
            async move { other.admit(&key_1(), request(&id), how).await.unwrap().map(|_| id) }
        });
        for admitted in futures_util::future::join_all(all).await {
            other.settle(settlement(&admitted.unwrap(), PRICE)).await.unwrap();
        }
    }
    is_at_rest(&server, &other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_runs_on_a_place_lent_ahead_shows_and_is_listed_if_its_process_dies() {
    let server = Arc::new(Server::start(FIT));
    let [other]: [_; 1] = processes(&server, "1000").await;
    let died = tokio::task::spawn_blocking({
        let (url, server) = (server.url(), server.clone());
        move || {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
            let server = &server;
            let served = runtime.block_on(async move {
                let busy = process(url).await;
                let load = Load::on(&busy, "a", 16, LENIENT).once_lent(server).await;
                busy.admit(&key_1(), request("cut"), LENIENT).await.unwrap().unwrap();
                let own = busy.account(&account()).await.unwrap();
                assert!(own.in_flight > 0, "its own process does not show it");
                let (_, served) = load.stop().await;
                tokio::time::sleep(4 * super::super::lent::TICK).await;
                served
            });
            // All tasks end where they are.
            drop(runtime);
            served
        }
    });
    let served = died.await.unwrap();
    let seen = other.account(&account()).await.unwrap();
    assert_eq!(seen.in_flight, 1, "another process does not see it");
    eventually("it is listed", async || {
        let rows = other.usage(&account(), UsageFilter::default(), ALL).await.unwrap().data;
        rows.iter().any(|row| row.id == "cut" && row.outcome == Outcome::Abandoned)
    })
    .await;
    let account = other.account(&account()).await.unwrap();
    let spent = Credits::from_nano(credits(PRICE).nano() * i64::try_from(served).unwrap());
    assert_eq!((account.in_flight, account.balance), (0, credits("1000") - spent));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_answers_are_lost_each_request_is_charged_once_and_all_places_come_back() {
    let server = Server::start(DURABLE);
    let relay = Relay::to(server.port());
    let [safe]: [_; 1] = processes(&server, "1000").await;
    let options = Options {
        lease: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(5),
        command_timeout: Duration::from_secs(5),
        ..Options::of(format!("redis://127.0.0.1:{}", relay.port()))
    };
    let store = Redis::open(options).await.unwrap();
    relay.lose_one_reply_in(40);
    let clients = (0..16).map(|client| {
        let store = store.clone();
        async move {
            let mut served = 0;
            for n in 0..60 {
                let id = format!("{client}_{n}");
                match store.admit(&key_1(), request(&id), LENIENT).await {
                    Ok(admitted) => drop(admitted.unwrap()),
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                }
                if n % 9 == 4 {
                    tokio::time::sleep(Duration::from_millis(80)).await;
                }
                // Until it is known to be booked, as a journal does.
                while store.settle(settlement(&id, PRICE)).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                served += 1;
            }
            served
        }
    });
    let served: i64 = futures_util::future::join_all(clients).await.into_iter().sum();
    assert!(relay.lost() > 0 && served > 0, "{} lost, {served} served", relay.lost());
    relay.lose_one_reply_in(0);
    is_at_rest(&server, &safe).await;
    let spent = Credits::from_nano(credits(PRICE).nano() * served);
    let balance = safe.account(&account()).await.unwrap().balance;
    assert_eq!(balance, credits("1000") - spent);
}
