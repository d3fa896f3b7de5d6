//! Random histories of lots, with a clock that crosses their ends and steps back.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Topup { amount: i64 },
    Promo { amount: i64, hours: i64 },
    Settle { charge: i64 },
    Adjust { amount: i64 },
    Refund { of: usize, amount: Option<i64> },
    Reverse { of: usize, amount: Option<i64> },
    Clock { hours: i64 },
    Reopen,
}

/// What the plain model below knows.
fn plain_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (1_i64..50).prop_map(|amount| Step::Topup { amount }),
        4 => (1_i64..50, 1_i64..9).prop_map(|(amount, hours)| Step::Promo { amount, hours }),
        8 => (0_i64..40).prop_map(|charge| Step::Settle { charge }),
        1 => (-30_i64..0).prop_map(|amount| Step::Adjust { amount }),
        4 => (-3_i64..6).prop_map(|hours| Step::Clock { hours }),
        1 => prop_oneof![Just(Step::Clock { hours: 24 * 366 }), Just(Step::Reopen)],
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let amount = || prop_oneof![Just(None), (1_i64..30).prop_map(Some)];
    prop_oneof![
        10 => plain_step(),
        3 => (0_usize..30, amount()).prop_map(|(of, amount)| Step::Refund { of, amount }),
        1 => (0_usize..30, amount()).prop_map(|(of, amount)| Step::Reverse { of, amount }),
    ]
}

/// Lots as a list that is sorted whenever something is taken from it.
#[derive(Default)]
struct Model {
    now: Millis,
    debt: i64,
    /// Expiry, 0 if given and 1 if bought, number, rest.
    lots: Vec<(Millis, u8, usize, i64)>,
    granted: usize,
}

impl Model {
    fn credit(&mut self, class: u8, amount: i64, expires_at: Millis) {
        let paid = self.debt.min(amount);
        self.debt -= paid;
        self.granted += 1;
        self.lots.push((expires_at, class, self.granted, amount - paid));
    }

    fn debit(&mut self, amount: i64) {
        self.lots.sort();
        self.debt += amount;
        for (.., rest) in &mut self.lots {
            let taken = self.debt.min(*rest);
            *rest -= taken;
            self.debt -= taken;
        }
    }

    /// The numbers and rests of the lots that can be used.
    fn left(&mut self) -> Vec<(usize, i64)> {
        self.lots.retain(|(expires_at, .., rest)| *expires_at > self.now && *rest > 0);
        self.lots.sort();
        self.lots.iter().map(|(.., number, rest)| (*number, *rest)).collect()
    }
}

/// Does a step; an answer that refuses it is one of the rules, never a failure.
async fn take(bench: &Bench, n: usize, step: &Step) {
    let nano = |amount: i64| Credits::from_nano(amount).to_string();
    let undo_of = |what: &str, of: &usize, amount: &Option<i64>| {
        undo(&format!("{what}{of}"), amount.map(nano).as_deref(), &format!("undo{n}"))
    };
    let result = match step {
        Step::Topup { amount } => bench.top_up(&format!("pay{n}"), &nano(*amount)).await.map(drop),
        Step::Promo { amount, hours } => {
            bench.promo(&format!("gift{n}"), &nano(*amount), hours * HOUR_MS).await.map(drop)
        }
        Step::Settle { charge } => bench.settle(&format!("r{n}"), &nano(*charge)).await.map(drop),
        Step::Adjust { amount } => {
            bench.grant(Kind::Adjust, &format!("fix{n}"), &nano(*amount)).await.map(drop)
        }
        Step::Refund { of, amount } => bench.store.refund(undo_of("r", of, amount)).await.map(drop),
        Step::Reverse { of, amount } => {
            bench.store.reverse(undo_of("pay", of, amount)).await.map(drop)
        }
        Step::Clock { hours } => {
            bench.set_clock(bench.clock.load(Ordering::SeqCst) + hours * HOUR_MS);
            // A write, so that it does not depend on the sweeper whether this time was seen
            // before the clock steps back.
            bench.settle(&format!("r{n}"), "0").await.map(drop)
        }
        Step::Reopen => Ok(()),
    };
    assert!(matches!(result, Ok(()) | Err(StoreError::Ledger(_) | StoreError::NotFound(_))));
}

async fn as_in_the_model(steps: Vec<Step>) {
    let mut bench = Bench::new().await;
    let mut model = Model { now: START, ..Model::default() };
    for (n, step) in steps.into_iter().enumerate() {
        take(&bench, n, &step).await;
        if let Step::Reopen = step {
            bench = bench.reopened().await;
        }
        model.now = model.now.max(bench.clock.load(Ordering::SeqCst));
        model.left();
        let year = crate::billing::ledger::expiry::twelve_months_after(model.now);
        match step {
            Step::Topup { amount } => model.credit(1, amount, year),
            Step::Promo { amount, hours } => {
                model.credit(0, amount, (model.now + hours * HOUR_MS).min(year));
            }
            Step::Settle { charge } => model.debit(charge),
            Step::Adjust { amount } => model.debit(-amount),
            _ => {}
        }
        let left = model.left();
        let balance = left.iter().map(|(_, rest)| rest).sum::<i64>() - model.debt;
        let lots = bench.lots(LotFilter::Usable).await;
        let seen = lots.iter().map(|row| (row.lot.number as usize, row.lot.remaining.nano()));
        assert_eq!(seen.collect::<Vec<_>>(), left);
        assert_eq!(bench.balance().await, Credits::from_nano(balance).to_string());
        assert_eq!(bench.admit("probe").await.is_ok(), balance > 0);
        bench.store.release(&account(), "probe");
    }
    bench.store.close().await.unwrap();
    bench.assert_sound().await;
}

async fn sound_after(steps: Vec<Step>) {
    let mut bench = Bench::new().await;
    for (n, step) in steps.iter().enumerate() {
        take(&bench, n, step).await;
        if matches!(step, Step::Reopen) {
            bench = bench.reopened().await;
        }
    }
    bench.store.close_account(&account(), "end".into()).await.unwrap();
    let account = bench.store.account(&account()).await.unwrap();
    assert!(!account.balance.is_positive() && account.status == crate::store::Status::Closed);
    bench.store.close().await.unwrap();
    bench.assert_sound().await;
}

fn run(history: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(history);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]
    #[test]
    fn lots_burn_and_end_as_in_a_plain_model(
        steps in proptest::collection::vec(plain_step(), 1..60),
    ) {
        run(as_in_the_model(steps));
    }

    #[test]
    fn the_books_add_up_after_any_history(steps in proptest::collection::vec(step(), 1..60)) {
        run(sound_after(steps));
    }
}
