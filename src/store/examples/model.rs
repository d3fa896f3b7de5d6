//! Random histories against a plain model, and many callers at once.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// What may happen. Ids come from a small set, so that they are often used again.
#[derive(Clone, Debug)]
enum Step {
    Settle { id: u8, charge: i64, completed: bool },
    Grant { id: u8, kind: Kind, amount: i64 },
    Clock { by: Millis },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let nano = || prop_oneof![0_i64..5, 0_i64..3_000_000_000, Just(1_000_000_000_000_000)];
    prop_oneof![
        8 => (0_u8..40, nano(), any::<bool>())
            .prop_map(|(id, charge, completed)| Step::Settle { id, charge, completed }),
        4 => (0_u8..20, prop_oneof![Just(Kind::Topup), Just(Kind::Adjust)], nano(), any::<bool>())
            .prop_map(|(id, kind, amount, up)| {
                Step::Grant { id, kind, amount: if up { amount } else { -amount } }
            }),
        2 => (-7_200_000_i64..7_200_000).prop_map(|by| Step::Clock { by }),
        1 => Just(Step::Reopen),
    ]
}

/// The ledger in its simplest form.
#[derive(Default)]
struct Model {
    balance: i64,
    amounts: Vec<i64>,
    done: HashMap<String, (String, i64)>,
}

#[derive(Debug, PartialEq)]
enum Answered {
    Applied { balance: i64 },
    Duplicate { balance: i64 },
    Conflict,
    Refused,
}

impl Model {
    const LIMIT: i64 = 9_000_000_000_000_000;

    fn apply(
        &mut self,
        id: String,
        content: String,
        amount: i64,
        entry: bool,
        fits: bool,
    ) -> Answered {
        if let Some((first, balance)) = self.done.get(&id) {
            let same = *first == content;
            return if same {
                Answered::Duplicate { balance: *balance }
            } else {
                Answered::Conflict
            };
        }
        if !fits || (self.balance + amount).abs() > Self::LIMIT {
            return Answered::Refused;
        }
        self.balance += amount;
        if entry {
            self.amounts.push(amount);
        }
        self.done.insert(id, (content, self.balance));
        Answered::Applied { balance: self.balance }
    }
}

fn answered(result: Result<(Credits, bool), StoreError>) -> Answered {
    match result {
        Ok((balance, false)) => Answered::Applied { balance: balance.nano() },
        Ok((balance, true)) => Answered::Duplicate { balance: balance.nano() },
        Err(StoreError::Conflict(_)) => Answered::Conflict,
        Err(StoreError::Ledger(_)) => Answered::Refused,
        Err(error) => panic!("{error}"),
    }
}

async fn replay(steps: Vec<Step>) {
    let mut bench = Bench::new().await;
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Settle { id, charge, completed } => {
                let id = format!("req_{id}");
                let outcome = if completed { Outcome::Completed } else { Outcome::UpstreamError };
                let charge_of = Credits::from_nano(charge);
                let row = Settlement { charge: charge_of, outcome, ..settlement(&id, "0") };
                let result =
                    bench.store.settle(row).await.map(|s| (s.balance.unwrap(), s.duplicate));
                let entry = completed || charge > 0;
                let expected = model.apply(id, format!("settle {charge}"), -charge, entry, true);
                assert_eq!(answered(result), expected);
            }
            Step::Grant { id, kind, amount } => {
                let id = format!("grant_{id}");
                let result = bench
                    .grant(kind, &id, &Credits::from_nano(amount).to_string())
                    .await
                    .map(|granted| (granted.entry.balance_after, granted.duplicate));
                let fits = amount > 0 || (amount < 0 && kind == Kind::Adjust);
                let content = format!("{kind:?} {amount}");
                assert_eq!(answered(result), model.apply(id, content, amount, true, fits));
            }
            Step::Clock { by } => bench.set_clock(bench.clock.load(Ordering::SeqCst) + by),
            Step::Reopen => bench = bench.reopened().await,
        }
        // Admission sees every change at once.
        let admitted = bench.admit("probe").await.is_ok();
        bench.store.release(&account(), "probe");
        assert_eq!(admitted, model.balance > 0);
    }
    let entries = bench.entries().await;
    let amounts: Vec<_> = entries.iter().rev().map(|entry| entry.amount.nano()).collect();
    assert_eq!(amounts, model.amounts);
    assert_eq!(bench.balance().await, Credits::from_nano(model.balance).to_string());
    bench.store.close().await.unwrap();
    bench.assert_sound().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]
    #[test]
    fn any_history_ends_as_in_the_model(steps in proptest::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(replay(steps));
    }
}

/// 64 callers, each settlement sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_callers_at_once_are_each_debited_exactly_once() {
    let bench = Arc::new(Bench::with("10").await);
    let callers: Vec<_> = (0..64)
        .map(|caller| {
            let bench = bench.clone();
            tokio::spawn(async move {
                for i in 0..20 {
                    let id = format!("req_{caller}_{i}");
                    let (one, other) =
                        tokio::join!(bench.settle(&id, "0.01"), bench.settle(&id, "0.01"));
                    let (one, other) = (one.unwrap(), other.unwrap());
                    assert_ne!(one.duplicate, other.duplicate);
                    assert_eq!(one.balance, other.balance);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(bench.balance().await, "-2.8");
    bench.assert_sound().await;
    let filter = EntryFilter { kind: Some(Kind::DebitAi), ..EntryFilter::default() };
    let (mut debits, mut cursor) = (0, None);
    loop {
        let page = Page { cursor, limit: 500 };
        let rows = bench.store.entries(&account(), filter.clone(), page).await.unwrap();
        debits += rows.data.len();
        cursor = rows.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(debits, 64 * 20);
}

/// Two processes, one after the other, hear of every settlement two to five times between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn settlements_delivered_two_to_five_times_in_any_order_are_debited_once() {
    const REQUESTS: usize = 200;
    let mut bench = Bench::with("10").await;
    let of = |n| std::iter::repeat_n(n, 2 + n % 4);
    let mut deliveries: Vec<usize> = (0..REQUESTS).flat_map(of).collect();
    // In an order of no meaning: 1009 is prime, and more than there are.
    let mut places = (0..deliveries.len()).map(|at| at * 7919 % 1009);
    deliveries.sort_by_cached_key(|_| places.next());
    let mut booked = [0; REQUESTS];
    for half in deliveries.chunks(deliveries.len().div_ceil(2)) {
        let sent: Vec<_> = half
            .iter()
            .map(|&n| {
                let store = bench.store.clone();
                let settled = settlement(&format!("req_{n}"), "0.01");
                tokio::spawn(async move { (n, store.settle(settled).await.unwrap()) })
            })
            .collect();
        for one in sent {
            let (n, Settled { duplicate, .. }) = one.await.unwrap();
            booked[n] += usize::from(!duplicate);
        }
        bench = bench.reopened().await;
    }
    assert_eq!(booked, [1; REQUESTS]);
    assert_eq!(bench.balance().await, "8");
    assert_eq!(bench.usage().await.len(), REQUESTS);
    bench.store.close().await.unwrap();
    bench.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_more_requests_run_at_once_than_may() {
    const LIMIT: u32 = 5;
    let bench = Arc::new(Bench::with("10").await);
    let running = Arc::new(AtomicI64::new(0));
    let callers: Vec<_> = (0..32)
        .map(|caller| {
            let (bench, running) = (bench.clone(), running.clone());
            tokio::spawn(async move {
                let how = Admission { max_in_flight: LIMIT, ..LENIENT };
                let mut admitted = 0;
                for i in 0..100 {
                    let id = format!("req_{caller}_{i}");
                    match bench.store.admit(&key_1(), request(&id), how).await.unwrap() {
                        Ok(_) => {
                            let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                            assert!(now <= i64::from(LIMIT));
                            tokio::task::yield_now().await;
                            running.fetch_sub(1, Ordering::SeqCst);
                            bench.store.release(&account(), &id);
                            admitted += 1;
                        }
                        Err(Refused::TooManyInFlight { limit, .. }) => assert_eq!(limit, LIMIT),
                        Err(other) => panic!("{other:?}"),
                    }
                }
                admitted
            })
        })
        .collect();
    let mut admitted = 0;
    for caller in callers {
        admitted += caller.await.unwrap();
    }
    assert!(admitted > 0);
    assert_eq!(bench.store.account(&account()).await.unwrap().in_flight, 0);
}
