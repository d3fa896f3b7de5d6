//! What every store keeps to when what is old leaves it.

use tokio::sync::mpsc;

use super::*;
use crate::billing::audit::{Tally, Violation};
use crate::store::audit::{Event, audit};
use crate::store::sums::HOUR_MS;
use crate::store::{KeyChange, LimitsChange};

const DAY: Millis = 24 * HOUR_MS;

pub(super) async fn run(bench: &Bench, account: Option<AccountId>) -> (Tally, Vec<Violation>) {
    let (sender, mut events) = mpsc::channel(64);
    tokio::spawn(audit(bench.store.clone(), account, sender));
    let mut violations = Vec::new();
    loop {
        match events.recv().await.expect("an audit says how it ended") {
            Event::Violation(violation) => violations.push(violation),
            Event::Progress { .. } => {}
            Event::Done(tally) => return (*tally, violations),
            Event::Failed { message } => panic!("{message}"),
        }
    }
}

/// A store in which everything happened that can happen to a balance.
pub(super) async fn eventful() -> Bench {
    let bench = Bench::with("5").await;
    bench.promo("gift", "1", 1000).await.unwrap();
    bench.settle("req_a", "0.4").await.unwrap();
    bench.store.refund(undo("req_a", None, "back")).await.unwrap();
    bench.set_clock(START + 2000);
    bench.settle("req_b", "0.3").await.unwrap();
    bench.settle("req_c", "9").await.unwrap();
    bench.top_up("more", "7").await.unwrap();
    bench.store.refund(undo("req_c", None, "back 2")).await.unwrap();
    bench.grant(Kind::Adjust, "fix", "-0.5").await.unwrap();
    bench.store.reverse(undo("more", None, "dispute")).await.unwrap();
    bench.settle("req_d", "0").await.unwrap();
    let failed = Settlement { outcome: Outcome::UpstreamError, ..settlement("req_e", "0") };
    bench.store.settle(failed).await.unwrap();
    bench.store.create_account(AccountId("in-debt".into()), String::new()).await.unwrap();
    let in_debt = Settlement { account: AccountId("in-debt".into()), ..settlement("req_f", "2") };
    bench.store.settle(in_debt).await.unwrap();
    let ended = AccountId("ended".into());
    bench.store.create_account(ended.clone(), String::new()).await.unwrap();
    let grant = Grant { account: ended.clone(), ..granting(Kind::Topup, "last", "3") };
    bench.store.grant(grant).await.unwrap();
    bench.store.close_account(&ended, "end".into()).await.unwrap();
    let late = Settlement { account: ended.clone(), ..settlement("req_late", "1") };
    bench.store.settle(late).await.unwrap();
    bench
}

#[tokio::test]
async fn what_is_trimmed_leaves_balances_sums_and_the_audit_as_they_were() {
    let bench = eventful().await;
    // More than one step of a trim, over hours of which the last stays in part.
    for n in 0..2500_i64 {
        bench.set_clock(START + 5000 + n * 1000);
        bench.settle(&format!("req_{n:05}"), "0.001").await.unwrap();
    }
    let before = START + 5000 + 2400 * 1000;
    let (balance, lots) = (bench.balance().await, bench.lots(LotFilter::All).await);
    let summary = async || {
        let utc = jiff::tz::TimeZone::UTC;
        bench.store.summary(&account(), UsageFilter::default(), Group::Model, utc).await.unwrap()
    };
    let sums = summary().await;
    let (whole, _) = run(&bench, None).await;

    for _ in 0..2 {
        bench.store.trim(&account(), before).await.unwrap();
        let (tally, violations) = run(&bench, None).await;
        assert_eq!(violations, []);
        assert_eq!(tally.entries + tally.trimmed, whole.entries);
        assert_eq!((tally.balance, &tally.kinds), (whole.balance, &whole.kinds));
        assert!(tally.trimmed > 2400);
        let page = Page { cursor: None, limit: 500 };
        let oldest = EntryFilter::default();
        let kept = bench.store.entries_oldest_first(&account(), oldest, page).await.unwrap().data;
        assert_eq!((kept.len(), kept[0].ts), (100, before));
        let since = EntryFilter { since: Some(before + 1), ..EntryFilter::default() };
        let found = bench.store.entries(&account(), since, ALL).await.unwrap();
        assert_eq!(found.data.len(), 99);
    }
    assert_eq!(bench.balance().await, balance);
    assert_eq!(bench.lots(LotFilter::All).await, lots);
    assert_eq!(summary().await, sums);

    // It goes on: new entries, and a second trim of what was kept.
    bench.set_clock(START + 40 * DAY);
    bench.settle("req_new", "0.1").await.unwrap();
    bench.store.trim(&account(), START + 30 * DAY).await.unwrap();
    let (tally, violations) = run(&bench, None).await;
    assert_eq!((violations.len(), bench.entries().await.len()), (0, 1));
    assert_eq!(tally.trimmed + tally.entries, whole.entries + 1);
}

#[tokio::test]
async fn what_was_trimmed_is_said_to_be_and_is_never_booked_again() {
    let bench = eventful().await;
    bench.set_clock(START + 40 * DAY);
    bench.store.trim(&account(), START + 30 * DAY).await.unwrap();
    let balance = bench.balance().await;
    // A payment keeps its id for ever.
    let again = bench.top_up("more", "7").await;
    assert!(matches!(&again, Err(StoreError::Conflict(why)) if why.contains("was trimmed")));
    let refund = bench.store.refund(undo("req_b", None, "late")).await;
    assert!(matches!(&refund, Err(StoreError::NotFound(why)) if why.contains("if it was trimmed")));
    let reversal = bench.store.reverse(undo("before", None, "late 2")).await;
    assert!(matches!(&reversal, Err(StoreError::Conflict(why)) if why.contains("was trimmed")));
    assert_eq!(bench.balance().await, balance);
    assert_eq!(run(&bench, None).await.1, []);
}

#[tokio::test]
async fn what_a_key_has_spent_counts_on_when_its_requests_are_trimmed() {
    let bench = Bench::with("5").await;
    for n in 0..4 {
        bench.set_clock(START + n * HOUR_MS / 2);
        bench.settle(&format!("req_{n}"), "0.1").await.unwrap();
    }
    bench.set_clock(START + 40 * DAY);
    let limits = LimitsChange { total: Some(Some(credits("1"))), ..LimitsChange::default() };
    let change = || KeyChange { limits: limits.clone(), ..KeyChange::default() };
    let used = async || {
        bench.store.change_key(&account(), "key_1", change()).await.unwrap();
        let used = bench.store.key_use(&account(), "key_1").await.unwrap();
        used.spend.values().map(|spend| spend.used.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(used().await, ["0.4"]);
    // In the middle of an hour, then all.
    for before in [START + HOUR_MS + 1, START + 30 * DAY] {
        bench.store.trim(&account(), before).await.unwrap();
        assert_eq!(used().await, ["0.4"]);
    }
    assert_eq!(run(&bench, None).await.1, []);
}

#[tokio::test]
async fn a_millisecond_in_which_very_much_happened_is_trimmed_as_one() {
    let bench = Bench::with("5").await;
    let ids: Vec<_> = (0..1500).map(|n| format!("req_{n:04}")).collect();
    let settled = ids.iter().map(|id| bench.settle(id, "0.001"));
    for settled in futures_util::future::join_all(settled).await {
        settled.unwrap();
    }
    bench.set_clock(START + 1);
    bench.settle("req_after", "1").await.unwrap();
    bench.store.trim(&account(), START + 1).await.unwrap();
    let (tally, violations) = run(&bench, None).await;
    assert_eq!((violations.len(), tally.trimmed, tally.entries), (0, 1501, 1));
    assert_eq!(bench.balance().await, "2.5");
}

/// A day of this zone begins within an hour, of which only the sum is left.
#[tokio::test]
async fn the_days_of_any_zone_add_up_when_their_requests_are_trimmed() {
    let bench = Bench::with("9").await;
    let begins = START - START.rem_euclid(DAY) + 18 * HOUR_MS + 15 * 60_000;
    for (id, at) in [("eve", begins - 1), ("morn", begins), ("next", begins + DAY)] {
        bench.set_clock(at);
        bench.settle(id, "1").await.unwrap();
    }
    bench.set_clock(begins + 40 * DAY);
    bench.store.trim(&account(), begins + HOUR_MS).await.unwrap();
    let zone = jiff::tz::TimeZone::get("Asia/Kathmandu").unwrap();
    let days = bench.store.summary(&account(), UsageFilter::default(), Group::Day, zone).await;
    let charges: Vec<_> = days.unwrap().into_iter().map(|day| day.charge).collect();
    assert_eq!(charges, ["2", "1"].map(credits), "the trimmed hour is of the day it ends in");
}
