//! The worked examples of usage credits, and what a request leaves behind.

use super::*;

#[tokio::test]
async fn a_request_may_end_below_zero_and_the_next_is_refused() {
    let bench = Bench::with("0.2").await;
    assert!(bench.admit("one").await.is_ok());
    let settled = bench.settle("one", "0.3").await.unwrap();
    assert_eq!(settled, Settled { balance: Some(credits("-0.1")), duplicate: false });
    assert_eq!(bench.admit("two").await, Err(Refused::OutOfCredits { balance: credits("-0.1") }));
}

#[tokio::test]
async fn a_top_up_pays_the_debt_and_the_next_request_passes() {
    let bench = Bench::with("-0.1").await;
    assert!(bench.admit("one").await.is_err());
    let granted = bench.top_up("pay", "5").await.unwrap();
    assert_eq!(granted.entry.balance_after, credits("4.9"));
    assert!(bench.admit("one").await.is_ok());
}

#[tokio::test]
async fn a_top_up_that_ends_at_zero_does_not_reopen() {
    let bench = Bench::with("-0.1").await;
    bench.top_up("pay", "0.1").await.unwrap();
    assert_eq!(bench.admit("one").await, Err(Refused::OutOfCredits { balance: Credits::ZERO }));
    bench.top_up("pay more", "0.000000001").await.unwrap();
    assert!(bench.admit("one").await.is_ok());
}

#[tokio::test]
async fn a_new_account_has_nothing_and_admits_nothing() {
    let bench = Bench::new().await;
    assert_eq!(bench.admit("one").await, Err(Refused::OutOfCredits { balance: Credits::ZERO }));
}

#[tokio::test]
async fn an_account_that_is_not_there_is_not_found() {
    let bench = Bench::empty().await;
    let admitted = bench.store.admit(&key_1(), request("one"), LENIENT).await;
    assert!(matches!(admitted, Err(StoreError::NotFound(_))));
    assert!(matches!(bench.settle("one", "1").await, Err(StoreError::NotFound(_))));
    assert!(matches!(bench.top_up("one", "1").await, Err(StoreError::NotFound(_))));
    let usage = bench.store.usage(&account(), UsageFilter::default(), ALL).await;
    assert!(matches!(usage, Err(StoreError::NotFound(_))));
}

#[tokio::test]
async fn an_account_is_made_once() {
    let bench = Bench::with("2").await;
    let again = bench.store.create_account(account(), "Other".into()).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))));
    assert_eq!(bench.balance().await, "2");
}

#[tokio::test]
async fn settling_again_answers_the_first_result_and_debits_nothing() {
    let bench = Bench::with("0.2").await;
    let first = bench.settle("one", "0.3").await.unwrap();
    bench.top_up("pay", "5").await.unwrap();
    let second = bench.settle("one", "0.3").await.unwrap();
    assert_eq!(second, Settled { duplicate: true, ..first });
    assert_eq!(bench.balance().await, "4.9");
    assert_eq!((bench.entries().await.len(), bench.usage().await.len()), (3, 1));
}

#[tokio::test]
async fn settling_again_with_another_charge_is_a_conflict_and_changes_nothing() {
    let bench = Bench::with("1").await;
    bench.settle("one", "0.3").await.unwrap();
    assert!(matches!(bench.settle("one", "0.9").await, Err(StoreError::Conflict(_))));
    assert_eq!((bench.balance().await.as_str(), bench.entries().await.len()), ("0.7", 2));
    bench.assert_sound().await;
}

#[tokio::test]
async fn a_grant_happens_once_by_its_id() {
    let bench = Bench::new().await;
    let first = bench.top_up("pay", "5").await.unwrap();
    assert_eq!(first.entry.reference, "pay");
    let again = bench.top_up("pay", "5").await.unwrap();
    assert_eq!(again, Granted { entry: first.entry, duplicate: true });
    assert!(matches!(bench.top_up("pay", "6").await, Err(StoreError::Conflict(_))));
    assert_eq!(bench.balance().await, "5");
}

#[tokio::test]
async fn ids_belong_to_their_account() {
    let bench = Bench::with("1").await;
    let other = AccountId("other".into());
    bench.store.create_account(other.clone(), String::new()).await.unwrap();
    bench.settle("one", "0.3").await.unwrap();
    let settled = bench
        .store
        .settle(Settlement { account: other, ..settlement("one", "0.4") })
        .await
        .unwrap();
    assert_eq!(settled, Settled { balance: Some(credits("-0.4")), duplicate: false });
}

#[tokio::test]
async fn an_adjustment_goes_either_way_and_keeps_its_reason() {
    let bench = Bench::with("1").await;
    bench.grant(Kind::Adjust, "up", "2").await.unwrap();
    bench.grant(Kind::Adjust, "down", "-4").await.unwrap();
    assert_eq!(bench.balance().await, "-1");
    let entry = &bench.entries().await[0];
    assert_eq!(entry.note.as_deref(), Some("by hand"));
    assert_eq!((entry.kind, entry.seq), (Kind::Adjust, 3));
}

#[tokio::test]
async fn what_cannot_be_booked_changes_nothing() {
    let bench = Bench::with("1").await;
    for (kind, amount) in [
        (Kind::Topup, "-1"),
        (Kind::Topup, "0"),
        (Kind::Adjust, "0"),
        (Kind::DebitAi, "-1"),
        (Kind::Topup, "1000001"),
    ] {
        let refused = bench.grant(kind, "bad", amount).await;
        assert!(matches!(refused, Err(StoreError::Ledger(_))), "{kind:?} {amount}");
    }
    for charge in [Credits::from_nano(-1), Credits::from_nano(i64::MIN)] {
        let refused = bench.store.settle(Settlement { charge, ..settlement("bad", "0") }).await;
        assert!(matches!(refused, Err(StoreError::Ledger(_))));
    }
    assert_eq!((bench.balance().await.as_str(), bench.entries().await.len()), ("1", 1));
}

#[tokio::test]
async fn a_free_reply_has_an_entry_of_zero_and_a_failed_one_only_its_row() {
    let bench = Bench::with("1").await;
    bench.settle("free", "0").await.unwrap();
    let failed = Settlement {
        outcome: Outcome::UpstreamError,
        source: Source::None,
        usage: Usage::default(),
        ..settlement("failed", "0")
    };
    bench.admit("failed").await.unwrap();
    bench.store.settle(failed.clone()).await.unwrap();
    let entries = bench.entries().await;
    assert_eq!((entries.len(), entries[0].amount), (2, Credits::ZERO));
    assert_eq!(bench.usage().await.len(), 2);
    assert_eq!(bench.store.account(&account()).await.unwrap().in_flight, 0);
    assert!(bench.store.settle(failed).await.unwrap().duplicate);
    bench.assert_sound().await;
}

#[tokio::test]
async fn ten_requests_at_once_may_all_pass_and_each_is_debited_in_full() {
    let bench = Bench::with("1").await;
    for i in 0..10 {
        assert!(bench.admit(&format!("r{i}")).await.is_ok());
    }
    for i in 0..10 {
        bench.settle(&format!("r{i}"), "0.3").await.unwrap();
    }
    assert_eq!(bench.balance().await, "-2");
}

#[tokio::test]
async fn what_runs_and_what_is_held_shows_until_it_ends() {
    let bench = Bench::with("0.6").await;
    let strict = strict("0.5");
    bench.store.admit(&key_1(), request("one"), strict).await.unwrap().unwrap();
    let running = bench.store.account(&account()).await.unwrap();
    assert_eq!((running.in_flight, running.held), (1, credits("0.5")));
    assert_eq!(running.available, credits("0.1"));
    bench.settle("one", "0.7").await.unwrap();
    let ended = &bench.store.accounts(ALL).await.unwrap().data[0];
    assert_eq!((ended.in_flight, ended.held, ended.available), (0, Credits::ZERO, credits("-0.1")));
}

#[tokio::test]
async fn a_clock_that_steps_back_does_not_turn_the_ledger_round() {
    let bench = Bench::with("1").await;
    bench.set_clock(START - 3_600_000);
    bench.settle("one", "0.1").await.unwrap();
    assert_eq!(bench.entries().await[0].ts, START);
    bench.set_clock(START + 5);
    bench.settle("two", "0.1").await.unwrap();
    assert_eq!(bench.entries().await[0].ts, START + 5);
    bench.assert_sound().await;
}

#[tokio::test]
async fn a_closed_account_takes_no_credits_and_no_requests() {
    let bench = Bench::with("1").await;
    bench.store.close_account(&account(), "end".into()).await.unwrap();
    let bench = bench.reopened().await;
    assert_eq!(bench.admit("one").await, Err(Refused::NotOpen));
    assert!(matches!(bench.top_up("pay", "1").await, Err(StoreError::Conflict(_))));
}

#[tokio::test]
async fn a_usage_row_says_all_that_was_settled() {
    let bench = Bench::with("1").await;
    let attribution = Attribution {
        run: Some("4bf9".into()),
        agent: Some("main".into()),
        session: Some("s1".into()),
        origin: Some("heartbeat".into()),
        tag: Some("night".into()),
    };
    let usage = Usage {
        input: 1,
        cached: 2,
        cache_creation_5m: 3,
        cache_creation_1h: 4,
        output: 5,
        reasoning: 2,
        calls: [("web_search", 2)].into(),
        ..Usage::default()
    };
    let settled = Settlement {
        served_model: Some("sonnet-4-5".into()),
        attribution: attribution.clone(),
        usage,
        outcome: Outcome::ClientClosed,
        source: Source::Drained,
        flags: "served_model,usage_regressed".into(),
        ..settlement("one", "0.25")
    };
    bench.store.settle(settled).await.unwrap();
    let row = UsageRow {
        id: "one".into(),
        ts: START,
        model: "sonnet".into(),
        served_model: Some("sonnet-4-5".into()),
        upstream: "anthropic".into(),
        key: "key_1".into(),
        attribution,
        input_tokens: 1,
        cached_input_tokens: 2,
        cache_creation_5m_tokens: 3,
        cache_creation_1h_tokens: 4,
        output_tokens: 5,
        reasoning_tokens: 2,
        charge: credits("0.25"),
        price_version: "v1".into(),
        ttft_ms: Some(40),
        latency_ms: 900,
        stream: true,
        outcome: Outcome::ClientClosed,
        source: Source::Drained,
        http_status: 200,
        calls: [("web_search".to_owned(), 2)].into(),
        flags: vec!["served_model".into(), "usage_regressed".into()],
    };
    assert_eq!(bench.usage().await, [row]);
}

#[tokio::test]
async fn counts_beyond_belief_are_written_and_do_not_break_the_sums() {
    let bench = Bench::with("1").await;
    for id in ["one", "two"] {
        let usage = Usage { input: u64::MAX, cache_creation_1h: u64::MAX, ..Usage::default() };
        bench.store.settle(Settlement { usage, ..settlement(id, "0") }).await.unwrap();
    }
    bench.assert_sound().await;
}

fn key(id: &str) -> (Key, KeyHash) {
    let key = Key {
        id: id.into(),
        tag: Some("heartbeat".into()),
        models: vec!["claude-*".into()],
        rejection: Rejection::BadRequest,
        limits: KeyLimits { daily: Some(credits("5")), ..KeyLimits::default() },
        expires_at: Some(START + 1),
        ..key_1()
    };
    (key, KeyHash::of(id))
}

#[tokio::test]
async fn a_key_is_found_by_its_hash_alone_at_once_and_after_a_restart() {
    let bench = Bench::new().await;
    let (made, hash) = key("key_a");
    assert_eq!(bench.store.key(&hash).await.unwrap(), None);
    bench.store.create_key(made.clone(), hash).await.unwrap();
    for _ in 0..2 {
        assert_eq!(bench.store.key(&hash).await.unwrap().as_deref(), Some(&made));
    }
    let bench = bench.reopened().await;
    assert_eq!(bench.store.key(&hash).await.unwrap().as_deref(), Some(&made));
    assert_eq!(bench.store.keys(&account()).await.unwrap(), [key_1(), made]);
}

#[tokio::test]
async fn a_revoked_key_is_revoked_at_once_and_only_once() {
    let bench = Bench::new().await;
    let (made, hash) = key("key_a");
    bench.store.create_key(made, hash).await.unwrap();
    bench.store.key(&hash).await.unwrap();
    let stranger = AccountId("other".into());
    bench.store.create_account(stranger.clone(), String::new()).await.unwrap();
    let refused = bench.store.revoke_key(&stranger, "key_a").await;
    assert!(matches!(refused, Err(StoreError::NotFound(_))));

    bench.store.revoke_key(&account(), "key_a").await.unwrap();
    assert_eq!(bench.store.key(&hash).await.unwrap().unwrap().revoked_at, Some(START));
    bench.set_clock(START + 9);
    let again = bench.store.revoke_key(&account(), "key_a").await.unwrap();
    assert_eq!(again.revoked_at, Some(START));
}

#[tokio::test]
async fn a_hash_names_one_key_and_a_key_needs_an_account() {
    let bench = Bench::new().await;
    let (made, hash) = key("key_a");
    bench.store.create_key(made.clone(), hash).await.unwrap();
    let twin = Key { id: "key_2".into(), ..made.clone() };
    assert!(matches!(bench.store.create_key(twin, hash).await, Err(StoreError::Conflict(_))));
    let orphan = Key { account: AccountId("nobody".into()), ..key("key_3").0 };
    let refused = bench.store.create_key(orphan, KeyHash::of("key_3")).await;
    assert!(matches!(refused, Err(StoreError::NotFound(_))));
}

#[tokio::test]
async fn an_object_belongs_to_its_maker_for_thirty_days() {
    let bench = Bench::new().await;
    let stranger = AccountId("other".into());
    bench.store.own(&account(), "resp_1").await.unwrap();
    assert!(bench.store.owns(&account(), "resp_1").await.unwrap());
    assert!(!bench.store.owns(&stranger, "resp_1").await.unwrap());
    bench.set_clock(START + 30 * 24 * HOUR_MS - 1);
    assert!(bench.store.owns(&account(), "resp_1").await.unwrap());
    bench.set_clock(START + 30 * 24 * HOUR_MS);
    assert!(!bench.store.owns(&account(), "resp_1").await.unwrap());
}
