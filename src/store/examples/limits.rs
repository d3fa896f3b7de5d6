//! How much may run: modes of accounts, and limits of keys.

use super::*;
use crate::store::{
    AccountChange, KeyChange, KeyLimits, LimitsChange, Measure, Mode, Period, RateUse, Spend,
};

const DAY: Millis = 24 * 3_600_000;

fn at(text: &str) -> Millis {
    text.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// A store with credits, whose one key has limits.
async fn limited(limits: KeyLimits) -> Bench {
    let bench = Bench::with("100").await;
    change(&bench, limits_of(limits)).await;
    bench
}

fn limits_of(limits: KeyLimits) -> LimitsChange {
    LimitsChange {
        daily: Some(limits.daily),
        weekly: Some(limits.weekly),
        monthly: Some(limits.monthly),
        total: Some(limits.total),
        zone: Some(limits.zone),
        requests_per_minute: Some(limits.requests_per_minute),
        tokens_per_minute: Some(limits.tokens_per_minute),
        max_in_flight: Some(limits.max_in_flight),
    }
}

async fn change(bench: &Bench, limits: LimitsChange) {
    let change = KeyChange { limits, ..KeyChange::default() };
    bench.store.change_key(&account(), "key_1", change).await.unwrap();
}

fn daily(cap: &str, zone: &str) -> KeyLimits {
    KeyLimits { daily: Some(credits(cap)), zone: Some(zone.into()), ..KeyLimits::default() }
}

async fn admit(bench: &Bench, id: &str, how: Admission) -> Result<Admitted, Refused> {
    bench.store.admit(&key_1(), request(id), how).await.unwrap()
}

/// Whether a request would be admitted now; it takes no place.
async fn may_run(bench: &Bench) -> bool {
    let admitted = bench.admit("probe").await.is_ok();
    bench.store.release(&account(), "probe");
    admitted
}

async fn spend(bench: &Bench, id: &str, charge: &str) {
    bench.admit(id).await.unwrap();
    bench.settle(id, charge).await.unwrap();
}

async fn set_mode(bench: &Bench, mode: Option<Mode>) {
    let change = AccountChange { mode: Some(mode), ..AccountChange::default() };
    assert_eq!(bench.store.configure_account(&account(), change).await.unwrap().mode, mode);
}

fn spent(period: Period, cap: &str, spent: &str, resets_at: Option<Millis>) -> Refused {
    Refused::KeySpend {
        period,
        cap: credits(cap),
        spent: credits(spent),
        held: Credits::ZERO,
        resets_at,
    }
}

#[tokio::test]
async fn a_daily_cap_refuses_from_its_sum_to_midnight_of_its_zone() {
    let bench = limited(daily("1", "Europe/Vilnius")).await;
    // The day on which clocks go back: 25 hours.
    bench.set_clock(at("2026-10-24T21:00:00Z"));
    spend(&bench, "one", "0.999999999").await;
    spend(&bench, "two", "0.3").await;
    let midnight = at("2026-10-25T22:00:00Z");
    let refused = spent(Period::Day, "1", "1.299999999", Some(midnight));
    assert_eq!(bench.admit("three").await, Err(refused.clone()));
    bench.set_clock(midnight - 1);
    assert_eq!(bench.admit("three").await, Err(refused));
    bench.set_clock(midnight);
    assert!(may_run(&bench).await);
}

#[tokio::test]
async fn a_weekly_cap_begins_anew_on_monday_also_in_a_week_of_changing_clocks() {
    let weekly =
        KeyLimits { daily: None, weekly: Some(credits("1")), ..daily("1", "Europe/Vilnius") };
    let bench = limited(weekly).await;
    bench.set_clock(at("2026-10-18T21:00:00Z"));
    spend(&bench, "one", "1").await;
    let monday = at("2026-10-25T22:00:00Z");
    let refused = spent(Period::Week, "1", "1", Some(monday));
    bench.set_clock(monday - 1);
    assert_eq!(bench.admit("two").await, Err(refused));
    bench.set_clock(monday);
    assert!(may_run(&bench).await);
}

#[tokio::test]
async fn caps_are_sums_of_the_ledger_and_survive_a_restart() {
    // Days of this zone begin at 18:15 UTC.
    let limits = KeyLimits { total: Some(credits("9")), ..daily("1", "Asia/Kathmandu") };
    let bench = limited(limits).await;
    for (id, ts, charge) in [
        ("yesterday", "2026-09-10T18:14:59.999Z", "0.5"),
        ("first", "2026-09-10T18:15:00Z", "0.2"),
        ("noon", "2026-09-11T06:00:00Z", "0.2"),
        ("last", "2026-09-11T18:14:59.999Z", "0.2"),
    ] {
        bench.set_clock(at(ts));
        spend(&bench, id, charge).await;
    }
    let kept = bench.store.key_use(&account(), "key_1").await.unwrap();
    let bench = bench.reopened().await;
    let read = bench.store.key_use(&account(), "key_1").await.unwrap();
    assert_eq!(read, kept);
    let resets_at = Some(at("2026-09-11T18:15:00Z"));
    let day = Spend { limit: credits("1"), used: credits("0.6"), resets_at };
    let total = Spend { limit: credits("9"), used: credits("1.1"), resets_at: None };
    let expected = [("daily".to_owned(), day), ("total".to_owned(), total)];
    assert_eq!(read.spend, expected.into());
}

#[tokio::test]
async fn a_total_cap_never_begins_anew_and_a_new_cap_counts_what_was_spent() {
    let bench = Bench::with("100").await;
    spend(&bench, "one", "0.7").await;
    change(&bench, LimitsChange { total: Some(Some(credits("0.7"))), ..LimitsChange::default() })
        .await;
    bench.set_clock(START + 300 * DAY);
    let refused = spent(Period::Total, "0.7", "0.7", None);
    assert_eq!(bench.admit("two").await, Err(refused));
    change(&bench, LimitsChange { total: Some(None), ..LimitsChange::default() }).await;
    assert!(may_run(&bench).await);
}

#[tokio::test]
async fn a_refund_gives_credits_back_and_no_room_under_a_cap() {
    let bench = limited(daily("1", "UTC")).await;
    spend(&bench, "one", "1").await;
    bench.store.refund(undo("one", None, "back")).await.unwrap();
    assert_eq!(bench.balance().await, "100");
    assert!(!may_run(&bench).await);
}

#[tokio::test]
async fn what_one_key_spends_is_nothing_to_another() {
    let bench = limited(daily("1", "UTC")).await;
    spend(&bench, "one", "1").await;
    let other = Key { id: "key_2".into(), limits: daily("1", "UTC"), ..key_1() };
    bench.store.create_key(other.clone(), KeyHash::of("key_2")).await.unwrap();
    assert!(bench.admit("two").await.is_err());
    assert!(bench.store.admit(&other, request("two"), LENIENT).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_cap_is_taken_by_the_mode_of_the_account() {
    let how = |most: &str| Admission { most: Some(credits(most)), ..LENIENT };
    for (mode, admitted) in [(Mode::Lenient, 4), (Mode::OneRequest, 3), (Mode::Strict, 2)] {
        let bench = limited(daily("1", "UTC")).await;
        set_mode(&bench, Some(mode)).await;
        let mut ran = 0;
        for id in 0..4 {
            ran += usize::from(admit(&bench, &id.to_string(), how("0.4")).await.is_ok());
        }
        assert_eq!(ran, admitted, "{mode:?}");
    }
}

#[tokio::test]
async fn an_account_has_the_mode_it_was_given_and_else_the_default() {
    let bench = Bench::with("1").await;
    let unbounded = Admission { mode: Mode::OneRequest, ..LENIENT };
    set_mode(&bench, Some(Mode::Strict)).await;
    assert_eq!(admit(&bench, "one", unbounded).await, Err(Refused::Unbounded));
    let bench = bench.reopened().await;
    assert_eq!(admit(&bench, "one", unbounded).await, Err(Refused::Unbounded));
    set_mode(&bench, None).await;
    assert!(admit(&bench, "one", unbounded).await.is_ok());
    // Nobody knows what the first one costs, so it has all to itself.
    let full = Refused::HoldDoesNotFit { balance: credits("1"), held: credits("1"), most: None };
    assert_eq!(admit(&bench, "two", unbounded).await, Err(full));
}

#[tokio::test]
async fn an_account_has_as_many_places_as_it_was_given_and_else_the_default() {
    let bench = Bench::with("1").await;
    let change = |limit| AccountChange { max_in_flight: Some(limit), ..AccountChange::default() };
    let set = bench.store.configure_account(&account(), change(Some(1))).await.unwrap();
    assert_eq!((set.max_in_flight, set.name.as_str()), (Some(1), "Default"));
    bench.admit("one").await.unwrap();
    let full = Err(Refused::TooManyInFlight { running: 1, limit: 1 });
    assert_eq!(bench.admit("two").await, full);
    bench.store.configure_account(&account(), change(None)).await.unwrap();
    assert!(bench.admit("two").await.is_ok());
    let nobody = AccountId("nobody".into());
    let refused = bench.store.configure_account(&nobody, change(None)).await;
    assert!(matches!(refused, Err(StoreError::NotFound(_))));
}

/// The second of two at once is refused, the first may end below zero.
#[tokio::test]
async fn one_request_may_cost_more_than_there_is_and_no_second_one() {
    let bench = Bench::with("0.2").await;
    set_mode(&bench, Some(Mode::OneRequest)).await;
    let how = Admission { most: Some(credits("0.3")), ..LENIENT };
    assert!(admit(&bench, "one", how).await.is_ok());
    let full =
        Refused::HoldDoesNotFit { balance: credits("0.2"), held: credits("0.3"), most: None };
    assert_eq!(admit(&bench, "two", how).await, Err(full));
    bench.settle("one", "0.3").await.unwrap();
    assert_eq!(bench.balance().await, "-0.1");
}

#[tokio::test]
async fn a_hold_that_does_not_fit_says_what_there_is() {
    let bench = Bench::with("1").await;
    admit(&bench, "one", strict("0.9")).await.unwrap();
    let (balance, held, most) = (credits("1"), credits("0.9"), Some(credits("0.2")));
    let refused = Err(Refused::HoldDoesNotFit { balance, held, most });
    assert_eq!(admit(&bench, "two", strict("0.2")).await, refused);
    assert!(admit(&bench, "two", strict("0.1")).await.is_ok());
}

#[tokio::test]
async fn many_keys_have_no_more_places_than_their_account() {
    let bench = Bench::with("1").await;
    let how = Admission { max_in_flight: 5, ..LENIENT };
    let mut ran = 0;
    for id in 0..20 {
        let id = format!("key_of_many_{id}");
        let key = Key { id: id.clone(), ..key_1() };
        bench.store.create_key(key.clone(), KeyHash::of(&id)).await.unwrap();
        ran += usize::from(bench.store.admit(&key, request(&id), how).await.unwrap().is_ok());
    }
    assert_eq!(ran, 5);
}

#[tokio::test]
async fn a_key_has_its_own_places() {
    let bench = limited(KeyLimits { max_in_flight: Some(1), ..KeyLimits::default() }).await;
    bench.admit("one").await.unwrap();
    let full = Err(Refused::KeyInFlight { running: 1, limit: 1 });
    assert_eq!(bench.admit("two").await, full);
    let other = Key { id: "key_2".into(), ..key_1() };
    bench.store.create_key(other.clone(), KeyHash::of("key_2")).await.unwrap();
    assert!(bench.store.admit(&other, request("other"), LENIENT).await.unwrap().is_ok());
    bench.settle("one", "0.1").await.unwrap();
    assert!(bench.admit("two").await.is_ok());
}

#[tokio::test]
async fn requests_a_minute_pass_as_they_flow_out() {
    let limits = KeyLimits { requests_per_minute: Some(3), ..KeyLimits::default() };
    let bench = limited(limits).await;
    for id in ["one", "two", "three"] {
        spend(&bench, id, "0.1").await;
    }
    let full = |wait_ms| Refused::KeyRate { of: Measure::Requests, limit: 3, used: 3, wait_ms };
    for _ in 0..2 {
        assert_eq!(bench.admit("four").await, Err(full(20_000)));
    }
    bench.set_clock(START + 19_999);
    assert_eq!(bench.admit("four").await, Err(full(1)));
    bench.set_clock(START + 20_000);
    assert!(bench.admit("four").await.is_ok());
    assert!(bench.admit("five").await.is_err());
}

#[tokio::test]
async fn tokens_a_minute_count_what_is_asked_until_it_is_known_what_was_used() {
    let limits = KeyLimits { tokens_per_minute: Some(100), ..KeyLimits::default() };
    let bench = limited(limits).await;
    let how = |tokens| Admission { tokens, ..LENIENT };
    let used = async || {
        let in_use = bench.store.key_use(&account(), "key_1").await.unwrap();
        in_use.tokens_per_minute.unwrap().used
    };
    admit(&bench, "one", how(90)).await.unwrap();
    let full = Refused::KeyRate { of: Measure::Tokens, limit: 100, used: 90, wait_ms: 600 };
    assert_eq!(admit(&bench, "two", how(11)).await, Err(full));
    // A settlement of these tests uses 15 tokens.
    bench.settle("one", "0.1").await.unwrap();
    assert_eq!(used().await, 15);
    admit(&bench, "two", how(10)).await.unwrap();
    bench.settle("two", "0.1").await.unwrap();
    assert_eq!(used().await, 30);
    admit(&bench, "never sent", how(70)).await.unwrap();
    assert_eq!(used().await, 100);
    bench.store.release(&account(), "never sent");
    assert_eq!(used().await, 30);
}

#[tokio::test]
async fn a_key_that_has_ended_since_it_was_looked_up_is_refused() {
    let bench = Bench::with("1").await;
    assert!(may_run(&bench).await);
    let ends = KeyChange { expires_at: Some(Some(START + 5)), ..KeyChange::default() };
    bench.store.change_key(&account(), "key_1", ends).await.unwrap();
    bench.set_clock(START + 4);
    assert!(may_run(&bench).await);
    bench.set_clock(START + 5);
    assert_eq!(bench.admit("one").await, Err(Refused::KeyEnded { revoked: false }));
    let again = KeyChange { expires_at: Some(None), ..KeyChange::default() };
    bench.store.change_key(&account(), "key_1", again).await.unwrap();
    bench.admit("runs").await.unwrap();
    bench.store.revoke_key(&account(), "key_1").await.unwrap();
    assert_eq!(bench.admit("one").await, Err(Refused::KeyEnded { revoked: true }));
    assert!(bench.settle("runs", "0.1").await.is_ok());
}

#[tokio::test]
async fn a_change_of_a_key_is_in_force_at_once_and_leaves_the_rest() {
    let bench = Bench::with("1").await;
    bench.admit("one").await.unwrap();
    let hash = KeyHash::of("key_1");
    assert_eq!(bench.store.key(&hash).await.unwrap().unwrap().name, "Laptop");
    let limits = LimitsChange { max_in_flight: Some(Some(1)), ..LimitsChange::default() };
    let change = KeyChange {
        name: Some("Server".into()),
        tag: Some(Some("night".into())),
        models: Some(vec!["claude-*".into()]),
        rejection: Some(Rejection::Billing),
        limits,
        ..KeyChange::default()
    };
    let changed = bench.store.change_key(&account(), "key_1", change).await.unwrap();
    let expected = Key {
        name: "Server".into(),
        tag: Some("night".into()),
        models: vec!["claude-*".into()],
        rejection: Rejection::Billing,
        limits: KeyLimits { max_in_flight: Some(1), ..KeyLimits::default() },
        ..key_1()
    };
    assert_eq!(changed, expected);
    assert_eq!(bench.store.key(&hash).await.unwrap().as_deref(), Some(&expected));
    // The request that ran before counts too.
    let full = Err(Refused::KeyInFlight { running: 1, limit: 1 });
    assert_eq!(bench.admit("two").await, full);
    let stranger = bench.store.change_key(&account(), "key_9", KeyChange::default()).await;
    assert!(matches!(stranger, Err(StoreError::NotFound(_))));
    let bench = bench.reopened().await;
    assert_eq!(bench.store.keys(&account()).await.unwrap(), [expected]);
}

#[tokio::test]
async fn what_is_used_of_each_limit_can_be_read() {
    let limits = KeyLimits {
        monthly: Some(credits("50")),
        requests_per_minute: Some(60),
        tokens_per_minute: Some(1000),
        ..KeyLimits::default()
    };
    let bench = limited(limits).await;
    spend(&bench, "one", "0.25").await;
    admit(&bench, "two", Admission { tokens: 100, ..strict("0.5") }).await.unwrap();
    let in_use = bench.store.key_use(&account(), "key_1").await.unwrap();
    assert_eq!((in_use.held, in_use.in_flight), (credits("0.5"), 1));
    let resets_at = Some(at("2026-10-01T00:00:00Z"));
    let month = Spend { limit: credits("50"), used: credits("0.25"), resets_at };
    assert_eq!(in_use.spend, [("monthly".to_owned(), month)].into());
    assert_eq!(in_use.requests_per_minute, Some(RateUse { limit: 60, used: 2 }));
    assert_eq!(in_use.tokens_per_minute, Some(RateUse { limit: 1000, used: 115 }));
    let stranger = bench.store.key_use(&account(), "key_9").await;
    assert!(matches!(stranger, Err(StoreError::NotFound(_))));
}

#[tokio::test]
async fn a_key_that_is_not_there_admits_nothing() {
    let bench = Bench::with("1").await;
    let stranger = Key { id: "key_9".into(), ..key_1() };
    let refused = bench.store.admit(&stranger, request("one"), LENIENT).await;
    assert!(matches!(refused, Err(StoreError::NotFound(_))));
}

/// A clock that steps back over midnight does not give a day's cap out twice.
#[tokio::test]
async fn a_clock_that_steps_back_begins_no_day_again() {
    let bench = limited(daily("1", "UTC")).await;
    bench.set_clock(START + DAY);
    spend(&bench, "one", "1").await;
    bench.set_clock(START + DAY - 1);
    assert!(!may_run(&bench).await);
    bench.set_clock(START + 2 * DAY);
    assert!(may_run(&bench).await);
}
