//! The worked examples of lots: what burns first, what ends when, what is given back.

use super::*;

const DAY: Millis = 24 * HOUR_MS;
const YEAR: Millis = 365 * DAY;

/// What an entry did: its kind, its amount and its parts, the debt as lot 0.
fn line(entry: &Entry) -> (Kind, String, Vec<(u64, String)>) {
    let place = |place| Option::<u64>::from(place).unwrap_or(0);
    let parts = entry.parts.iter().map(|part| (place(part.place), part.amount.to_string()));
    (entry.kind, entry.amount.to_string(), parts.collect())
}

fn did(kind: Kind, amount: &str, parts: &[(u64, &str)]) -> (Kind, String, Vec<(u64, String)>) {
    let parts = parts.iter().map(|(lot, amount)| (*lot, (*amount).to_owned())).collect();
    (kind, amount.to_owned(), parts)
}

fn left(lots: &[(&str, &str)]) -> Vec<(String, String)> {
    lots.iter().map(|(source, left)| ((*source).to_owned(), (*left).to_owned())).collect()
}

impl Bench {
    /// The newest entry.
    async fn last(&self) -> (Kind, String, Vec<(u64, String)>) {
        line(&self.entries().await[0])
    }

    /// 0.2 given for a day, 0.1 bought, and a request that cost 0.4.
    async fn in_debt_by_three_places() -> Self {
        let bench = Self::new().await;
        bench.promo("gift", "0.2", DAY).await.unwrap();
        bench.top_up("pay", "0.1").await.unwrap();
        bench.settle("one", "0.4").await.unwrap();
        bench
    }

    /// Waits until the writer has written off what is due and closed what has come to its end.
    async fn swept(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let since = std::time::Instant::now();
        while !holds().await {
            assert!(since.elapsed() < Duration::from_secs(30), "never: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn status(&self) -> crate::store::Status {
        self.store.account(&account()).await.unwrap().status
    }
}

#[tokio::test]
async fn b1_a_debit_takes_what_a_lot_has_and_the_rest_is_debt() {
    let bench = Bench::with("0.2").await;
    bench.settle("one", "0.3").await.unwrap();
    assert_eq!(bench.last().await, did(Kind::DebitAi, "-0.3", &[(1, "-0.2"), (0, "-0.1")]));
    let bench = bench.reopened().await;
    assert_eq!(bench.admit("two").await, Err(Refused::OutOfCredits { balance: credits("-0.1") }));
    bench.assert_sound().await;
}

#[tokio::test]
async fn b2_a_top_up_pays_the_debt_and_the_lot_keeps_the_rest() {
    let bench = Bench::with("-0.1").await;
    bench.top_up("pay", "5").await.unwrap();
    assert_eq!(bench.last().await, did(Kind::Topup, "5", &[(0, "0.1"), (1, "4.9")]));
    let bench = bench.reopened().await;
    let LotRow { lot, source } = bench.lots(LotFilter::Usable).await.remove(0);
    assert_eq!(
        (source.as_str(), lot.granted, lot.remaining),
        ("pay", credits("5"), credits("4.9"))
    );
    assert_eq!(lot.to_debt, credits("0.1"));
    assert!(bench.admit("two").await.is_ok());
}

#[tokio::test]
async fn b3_a_top_up_that_only_pays_the_debt_leaves_an_empty_lot() {
    let bench = Bench::with("-0.1").await;
    bench.top_up("pay", "0.1").await.unwrap();
    assert_eq!(bench.balance().await, "0");
    assert!(bench.admit("two").await.is_err());
    assert_eq!(bench.lots(LotFilter::Usable).await, []);
    let all = bench.lots(LotFilter::All).await;
    assert_eq!((all[0].lot.to_debt, all[0].lot.remaining), (credits("0.1"), Credits::ZERO));
    bench.assert_sound().await;
}

#[tokio::test]
async fn b4_promotional_credits_pay_the_debt_too() {
    let bench = Bench::with("-0.1").await;
    bench.promo("gift", "1", 30 * DAY).await.unwrap();
    assert_eq!(bench.last().await, did(Kind::Promo, "1", &[(0, "0.1"), (1, "0.9")]));
    assert_eq!(bench.balance().await, "0.9");
}

#[tokio::test]
async fn b5_promotional_credits_that_end_sooner_burn_first() {
    let bench = Bench::with("5").await;
    bench.promo("gift", "1", 30 * DAY).await.unwrap();
    bench.settle("one", "0.3").await.unwrap();
    assert_eq!(bench.left().await, left(&[("gift", "0.7"), ("before", "5")]));
    assert_eq!(bench.balance().await, "5.7");
}

#[tokio::test]
async fn b6_the_soonest_expiry_beats_the_kind() {
    let bench = Bench::with("2").await;
    // Ten days before what was bought ends.
    bench.set_clock(START + YEAR - 10 * DAY);
    bench.promo("gift", "1", 30 * DAY).await.unwrap();
    bench.settle("one", "2.5").await.unwrap();
    assert_eq!(bench.last().await, did(Kind::DebitAi, "-2.5", &[(1, "-2"), (2, "-0.5")]));
    assert_eq!(bench.left().await, left(&[("gift", "0.5")]));
}

#[tokio::test]
async fn b7_of_two_that_end_together_what_was_given_burns_first() {
    let bench = Bench::with("1").await;
    bench.grant(Kind::Promo, "gift", "1").await.unwrap();
    let lots = bench.lots(LotFilter::Usable).await;
    assert_eq!(lots[0].lot.expires_at, lots[1].lot.expires_at);
    bench.settle("one", "0.4").await.unwrap();
    assert_eq!(bench.left().await, left(&[("gift", "0.6"), ("before", "1")]));
}

#[tokio::test]
async fn b8_what_no_lot_covers_is_debt() {
    let bench = Bench::with("5").await;
    bench.promo("gift", "0.7", 30 * DAY).await.unwrap();
    bench.settle("one", "6").await.unwrap();
    let parts = [(2, "-0.7"), (1, "-5"), (0, "-0.3")];
    assert_eq!(bench.last().await, did(Kind::DebitAi, "-6", &parts));
    assert_eq!((bench.balance().await.as_str(), bench.left().await.len()), ("-0.3", 0));
}

#[tokio::test]
async fn b9_debt_does_not_expire() {
    let bench = Bench::with("-0.3").await;
    bench.set_clock(START + YEAR + 31 * DAY);
    let bench = bench.reopened().await;
    bench.settle("free", "0").await.unwrap();
    assert_eq!((bench.balance().await.as_str(), bench.entries().await.len()), ("-0.3", 2));
}

#[tokio::test]
async fn b10_only_what_remains_of_a_lot_is_written_off() {
    let bench = Bench::with("-0.1").await;
    bench.top_up("pay", "5").await.unwrap();
    bench.set_clock(START + YEAR);
    let bench = bench.reopened().await;
    bench.settle("free", "0").await.unwrap();
    let expiry = &bench.entries().await[1];
    assert_eq!(line(expiry), did(Kind::Expiry, "-4.9", &[(1, "-4.9")]));
    assert_eq!((expiry.reference.as_str(), expiry.balance_after), ("lot_1", Credits::ZERO));
    assert_eq!(bench.balance().await, "0");
    bench.assert_sound().await;
}

/// B13 too: what has ended when a request settles does not pay for it.
#[tokio::test]
async fn b11_b13_lots_that_end_while_a_request_runs_do_not_pay_for_it() {
    let bench = Bench::with("5").await;
    bench.promo("gift", "1", DAY).await.unwrap();
    bench.set_clock(START + DAY - 10_000);
    bench.admit("one").await.unwrap();
    bench.set_clock(START + DAY + 20_000);
    bench.settle("one", "0.4").await.unwrap();
    let entries = bench.entries().await;
    assert_eq!(line(&entries[1]), did(Kind::Expiry, "-1", &[(2, "-1")]));
    assert_eq!(line(&entries[0]), did(Kind::DebitAi, "-0.4", &[(1, "-0.4")]));
    let balances = [&entries[1], &entries[0]].map(|entry| entry.balance_after.to_string());
    assert_eq!(balances, ["5", "4.6"]);
    bench.assert_sound().await;
}

#[tokio::test]
async fn b14_a_top_up_while_a_request_runs_pays_for_it() {
    let bench = Bench::with("0.2").await;
    bench.admit("one").await.unwrap();
    bench.top_up("pay", "5").await.unwrap();
    bench.settle("one", "0.3").await.unwrap();
    assert_eq!(bench.last().await, did(Kind::DebitAi, "-0.3", &[(1, "-0.2"), (2, "-0.1")]));
    assert_eq!(bench.balance().await, "4.9");
}

/// A settlement and the sweeper race for a lot that has ended; whoever comes first, the lots
/// and the balance are the same.
#[tokio::test]
async fn b15_expiry_and_a_debit_end_the_same_in_either_order() {
    for sweep_first in [false, true] {
        let bench = Bench::with("5").await;
        bench.promo("gift", "1", DAY).await.unwrap();
        bench.admit("one").await.unwrap();
        bench.set_clock(START + DAY);
        let sweep =
            || async { bench.swept("an expiry", async || bench.entries().await.len() > 2).await };
        if sweep_first {
            sweep().await;
        }
        bench.settle("one", "0.4").await.unwrap();
        sweep().await;
        let kinds: Vec<_> = bench.entries().await.iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [Kind::DebitAi, Kind::Expiry, Kind::Promo, Kind::Topup]);
        assert_eq!(bench.left().await, left(&[("before", "4.6")]));
        bench.assert_sound().await;
    }
}

#[tokio::test]
async fn b16_b17_settling_twice_takes_from_no_lot_twice() {
    let bench = Bench::with("0.2").await;
    let first = bench.settle("one", "0.3").await.unwrap();
    let bench = bench.reopened().await;
    let again = bench.settle("one", "0.3").await.unwrap();
    assert_eq!(again, Settled { balance: first.balance, duplicate: true });
    assert!(matches!(bench.settle("one", "0.9").await, Err(StoreError::Conflict(_))));
    assert_eq!(bench.entries().await.len(), 2);
    bench.assert_sound().await;
}

#[tokio::test]
async fn b18_b19_a_payment_makes_one_lot_however_often_it_is_told() {
    let bench = Bench::new().await;
    let (one, other) = tokio::join!(bench.top_up("pay", "5"), bench.top_up("pay", "5"));
    assert_ne!(one.unwrap().duplicate, other.unwrap().duplicate);
    let bench = bench.reopened().await;
    assert!(bench.top_up("pay", "5").await.unwrap().duplicate);
    assert!(matches!(bench.top_up("pay", "6").await, Err(StoreError::Conflict(_))));
    assert_eq!(bench.left().await, left(&[("pay", "5")]));
}

#[tokio::test]
async fn b20_a_refund_undoes_a_debit_from_its_end() {
    let bench = Bench::in_debt_by_three_places().await;
    let debit = [(1, "-0.2"), (2, "-0.1"), (0, "-0.1")];
    assert_eq!(bench.last().await, did(Kind::DebitAi, "-0.4", &debit));
    let bench = bench.reopened().await;
    let refund = bench.store.refund(undo("one", Some("0.4"), "back")).await.unwrap();
    let parts = [(0, "0.1"), (2, "0.1"), (1, "0.2")];
    assert_eq!(line(&refund.entry), did(Kind::Refund, "0.4", &parts));
    assert_eq!(refund.entry.undoes, Some(3));
    assert_eq!(bench.left().await, left(&[("gift", "0.2"), ("pay", "0.1")]));
    assert!(bench.admit("two").await.is_ok());
    bench.assert_sound().await;
}

#[tokio::test]
async fn b21_a_refund_does_not_evaporate_with_the_lots_that_have_ended() {
    let bench = Bench::in_debt_by_three_places().await;
    bench.top_up("more", "5").await.unwrap();
    let later = START + 2 * DAY;
    bench.set_clock(later);
    bench.store.refund(undo("one", None, "back")).await.unwrap();
    let parts = [(2, "0.1"), (4, "0.1"), (5, "0.2")];
    assert_eq!(bench.last().await, did(Kind::Refund, "0.4", &parts));
    assert_eq!(bench.balance().await, "5.3");
    let lots = bench.lots(LotFilter::All).await;
    let new: Vec<_> = lots[..2]
        .iter()
        .map(|row| (row.lot.class, row.lot.expires_at, row.source.as_str()))
        .collect();
    use crate::billing::ledger::Class::{Promo, Usage};
    assert_eq!(new, [(Promo, later + 30 * DAY, "back"), (Usage, later + YEAR, "back")]);
    bench.assert_sound().await;
}

#[tokio::test]
async fn b22_refunds_never_exceed_the_debit_and_happen_once_by_their_id() {
    let bench = Bench::with("1").await;
    bench.settle("one", "0.4").await.unwrap();
    let first = bench.store.refund(undo("one", Some("0.3"), "back")).await.unwrap();
    let bench = bench.reopened().await;
    let again = bench.store.refund(undo("one", Some("0.3"), "back")).await.unwrap();
    assert_eq!(again, Granted { entry: first.entry, duplicate: true });
    let other = bench.store.refund(undo("one", Some("0.1"), "back")).await;
    assert!(matches!(other, Err(StoreError::Conflict(_))));
    let refused = |result| matches!(result, Err(StoreError::Ledger(_)));
    assert!(refused(bench.store.refund(undo("one", Some("0.100000001"), "more")).await));
    assert!(refused(bench.store.refund(undo("one", Some("-0.1"), "less")).await));
    bench.store.refund(undo("one", None, "rest")).await.unwrap();
    assert_eq!(bench.last().await, did(Kind::Refund, "0.1", &[(1, "0.1")]));
    assert!(refused(bench.store.refund(undo("one", None, "none left")).await));
    let unknown = bench.store.refund(undo("before", None, "no request")).await;
    assert!(matches!(unknown, Err(StoreError::NotFound(_))));
    assert_eq!((bench.balance().await.as_str(), bench.entries().await.len()), ("1", 4));
    bench.assert_sound().await;
}

#[tokio::test]
async fn b23_a_payment_that_is_taken_back_takes_its_own_lot_first() {
    let bench = Bench::new().await;
    bench.top_up("pay", "5").await.unwrap();
    bench.settle("one", "1.5").await.unwrap();
    bench.promo("gift", "1", DAY).await.unwrap();
    let bench = bench.reopened().await;
    let reversal = bench.store.reverse(undo("pay", None, "dispute")).await.unwrap();
    let parts = [(1, "-3.5"), (2, "-1"), (0, "-0.5")];
    assert_eq!(line(&reversal.entry), did(Kind::PaymentReversal, "-5", &parts));
    assert_eq!(bench.balance().await, "-0.5");
    assert!(bench.store.reverse(undo("pay", None, "dispute")).await.unwrap().duplicate);
    let again = bench.store.reverse(undo("pay", None, "another")).await;
    assert!(matches!(again, Err(StoreError::Ledger(_))));
    let gift = bench.store.reverse(undo("gift", None, "no payment")).await;
    assert!(matches!(gift, Err(StoreError::NotFound(_))));
    bench.assert_sound().await;
}

#[tokio::test]
async fn b24_an_adjustment_upwards_is_a_lot_and_downwards_a_debit() {
    let bench = Bench::with("1").await;
    bench.grant(Kind::Adjust, "up", "2").await.unwrap();
    assert_eq!(bench.last().await, did(Kind::Adjust, "2", &[(2, "2")]));
    bench.grant(Kind::Adjust, "down", "-2").await.unwrap();
    assert_eq!(bench.last().await, did(Kind::Adjust, "-2", &[(1, "-1"), (2, "-1")]));
    bench.assert_sound().await;
}

#[tokio::test]
async fn b25_closing_lets_what_runs_settle_and_then_forfeits_the_rest() {
    let bench = Bench::with("1.5").await;
    bench.promo("gift", "0.5", DAY).await.unwrap();
    let hold = strict("0.3");
    bench.store.admit(&key_1(), request("one"), hold).await.unwrap().unwrap();
    let closing = bench.store.close_account(&account(), "end".into()).await.unwrap();
    assert_eq!((closing.status, closing.in_flight), (crate::store::Status::Closing, 1));
    assert_eq!(bench.admit("two").await, Err(Refused::NotOpen));
    assert!(matches!(bench.top_up("pay", "1").await, Err(StoreError::Conflict(_))));

    bench.settle("one", "0.25").await.unwrap();
    assert_eq!(bench.entries().await.iter().filter(|e| e.kind == Kind::DebitAi).count(), 1);
    let closed = crate::store::Status::Closed;
    bench.swept("closed", async || bench.status().await == closed).await;
    let entries = bench.entries().await;
    assert_eq!(line(&entries[2]), did(Kind::DebitAi, "-0.25", &[(2, "-0.25")]));
    assert_eq!(line(&entries[1]), did(Kind::Forfeit, "-0.25", &[(2, "-0.25")]));
    assert_eq!(line(&entries[0]), did(Kind::Forfeit, "-1.5", &[(1, "-1.5")]));
    assert_eq!(bench.balance().await, "0");
    let again = bench.store.close_account(&account(), "end".into()).await.unwrap();
    assert_eq!((again.status, bench.entries().await.len()), (closed, 5));
    bench.assert_sound().await;
}

#[tokio::test]
async fn an_account_that_was_closing_when_the_process_ended_is_closed_by_the_next() {
    let bench = Bench::with("1").await;
    bench.admit("one").await.unwrap();
    bench.store.close_account(&account(), "end".into()).await.unwrap();
    let bench = bench.reopened().await;
    bench.swept("closed", async || bench.status().await == crate::store::Status::Closed).await;
    assert_eq!(bench.last().await, did(Kind::Forfeit, "-1", &[(1, "-1")]));
    bench.assert_sound().await;
}

#[tokio::test]
async fn b26_debt_stays_on_record_and_only_an_adjustment_writes_it_off() {
    let bench = Bench::with("-0.3").await;
    let closed = bench.store.close_account(&account(), "end".into()).await.unwrap();
    assert_eq!((closed.status, closed.balance), (crate::store::Status::Closed, credits("-0.3")));
    let bench = bench.reopened().await;
    let conflict = |result| matches!(result, Err(StoreError::Conflict(_)));
    assert!(conflict(bench.grant(Kind::Adjust, "too much", "0.300000001").await));
    assert!(conflict(bench.grant(Kind::Adjust, "worse", "-1").await));
    assert!(conflict(bench.top_up("pay", "0.3").await));
    bench.grant(Kind::Adjust, "written off", "0.3").await.unwrap();
    assert_eq!(bench.balance().await, "0");
    bench.assert_sound().await;
}

#[tokio::test]
async fn b27_what_settles_after_the_end_is_recorded_and_changes_nothing() {
    let bench = Bench::with("-0.3").await;
    bench.store.close_account(&account(), "end".into()).await.unwrap();
    let settled = bench.settle("late", "0.9").await.unwrap();
    assert_eq!(settled, Settled { balance: Some(credits("-0.3")), duplicate: false });
    let entry = &bench.entries().await[0];
    assert_eq!(line(entry), did(Kind::DebitAi, "0", &[]));
    assert_eq!(entry.note.as_deref(), Some("not charged, the account was closed: 0.9"));
    let row = &bench.usage().await[0];
    assert_eq!((row.charge, row.flags.as_slice()), (Credits::ZERO, &["account_closed".into()][..]));
    assert!(bench.settle("late", "0.9").await.unwrap().duplicate);
    assert!(matches!(bench.settle("late", "0.8").await, Err(StoreError::Conflict(_))));
    bench.assert_sound().await;
}

#[tokio::test]
async fn b28_what_is_bought_on_a_leap_day_ends_on_the_last_of_february() {
    let at = |text| crate::time::parse(text, &jiff::tz::TimeZone::UTC).unwrap();
    let bench = Bench::new().await;
    for (bought, ends) in [
        ("2027-08-31T00:00:00Z", "2028-08-31T00:00:00Z"),
        ("2028-02-29T10:30:00Z", "2029-02-28T10:30:00Z"),
    ] {
        bench.set_clock(at(bought));
        bench.top_up(bought, "1").await.unwrap();
        let newest = &bench.lots(LotFilter::All).await[0];
        assert_eq!((newest.source.as_str(), newest.lot.expires_at), (bought, at(ends)));
    }
}

#[tokio::test]
async fn b29_promotional_credits_end_as_asked_at_most_in_twelve_months_and_not_in_the_past() {
    let bench = Bench::new().await;
    let until = |id, at| Grant { expires: Some(Expiry::At(at)), ..granting(Kind::Promo, id, "1") };
    bench.store.grant(until("18 months", START + 548 * DAY)).await.unwrap();
    bench.promo("30 days", "1", 30 * DAY).await.unwrap();
    let lots = bench.lots(LotFilter::Usable).await;
    let ends: Vec<_> = lots.iter().map(|row| (row.source.as_str(), row.lot.expires_at)).collect();
    assert_eq!(ends, [("30 days", START + 30 * DAY), ("18 months", START + YEAR)]);
    for past in [START, START - 1] {
        let refused = bench.store.grant(until("past", past)).await;
        let expected = crate::billing::ledger::LedgerError::ExpiryPast;
        assert!(matches!(refused, Err(StoreError::Ledger(error)) if error == expected));
    }
    // The same request is still the same when its end has come.
    bench.set_clock(START + 31 * DAY);
    assert!(bench.promo("30 days", "1", 30 * DAY).await.unwrap().duplicate);
    assert!(matches!(bench.promo("30 days", "1", DAY).await, Err(StoreError::Conflict(_))));
}

#[tokio::test]
async fn b30_at_its_very_expiry_a_lot_has_ended_for_admission_and_for_every_read() {
    let bench = Bench::new().await;
    bench.promo("gift", "1", DAY).await.unwrap();
    assert!(bench.admit("warm").await.is_ok());
    for reopened in [false, true] {
        let bench = Bench::new().await;
        bench.promo("gift", "1", DAY).await.unwrap();
        bench.set_clock(START + DAY - 1);
        assert!(bench.admit("one").await.is_ok());
        assert_eq!(bench.balance().await, "1");
        bench.set_clock(START + DAY);
        let bench = if reopened { bench.reopened().await } else { bench };
        assert_eq!(bench.admit("two").await, Err(Refused::OutOfCredits { balance: Credits::ZERO }));
        assert_eq!(bench.balance().await, "0");
        assert_eq!(bench.store.accounts(ALL).await.unwrap().data[0].balance, Credits::ZERO);
        assert_eq!(bench.lots(LotFilter::Usable).await, []);
        let all = bench.lots(LotFilter::All).await;
        assert_eq!((all[0].lot.remaining, all[0].lot.expired), (Credits::ZERO, credits("1")));
        bench.swept("an expiry", async || bench.entries().await.len() == 2).await;
        assert_eq!(bench.last().await, did(Kind::Expiry, "-1", &[(1, "-1")]));
        assert_eq!(bench.balance().await, "0");
        bench.assert_sound().await;
    }
}

#[tokio::test]
async fn b31_b32_nothing_admits_nothing_and_one_nano_admits() {
    let bench = Bench::new().await;
    assert_eq!(bench.admit("one").await, Err(Refused::OutOfCredits { balance: Credits::ZERO }));
    bench.top_up("pay", "0.000000001").await.unwrap();
    assert_eq!(bench.admit("one").await, Ok(Admitted { balance: Credits::from_nano(1) }));
}

#[tokio::test]
async fn b33_ten_requests_admitted_at_once_are_all_debited() {
    let bench = Bench::with("1").await;
    for i in 0..10 {
        bench.admit(&format!("r{i}")).await.unwrap();
    }
    for i in 0..10 {
        bench.settle(&format!("r{i}"), "0.3").await.unwrap();
    }
    assert_eq!(bench.balance().await, "-2");
    bench.assert_sound().await;
}

#[tokio::test]
async fn b34_a_hold_admits_only_what_fits() {
    let bench = Bench::with("1").await;
    let strict = strict("0.3");
    let mut admitted = Vec::new();
    for i in 0..10 {
        let id = format!("r{i}");
        if bench.store.admit(&key_1(), request(&id), strict).await.unwrap().is_ok() {
            admitted.push(id);
        }
    }
    assert_eq!(admitted.len(), 3);
    for id in admitted {
        bench.settle(&id, "0.3").await.unwrap();
    }
    assert_eq!(bench.balance().await, "0.1");
}

#[tokio::test]
async fn b35_a_hold_never_clips_what_is_debited() {
    for (actual, after) in [("0.7", "-0.1"), ("0.2", "0.4")] {
        let bench = Bench::with("0.6").await;
        let strict = strict("0.5");
        bench.store.admit(&key_1(), request("one"), strict).await.unwrap().unwrap();
        bench.settle("one", actual).await.unwrap();
        let account = bench.store.account(&account()).await.unwrap();
        assert_eq!((account.balance, account.available), (credits(after), credits(after)));
    }
}

/// A request that lost its place, here with the process, is debited all the same, once.
#[tokio::test]
async fn b36_a_settlement_after_the_place_is_gone_still_debits_once() {
    let bench = Bench::with("1").await;
    let strict = strict("1");
    bench.store.admit(&key_1(), request("one"), strict).await.unwrap().unwrap();
    let bench = bench.reopened().await;
    assert!(bench.store.admit(&key_1(), request("two"), strict).await.unwrap().is_ok());
    for duplicate in [false, true] {
        let settled = bench.settle("one", "0.3").await.unwrap();
        assert_eq!(settled, Settled { balance: Some(credits("0.7")), duplicate });
    }
    bench.assert_sound().await;
}

#[tokio::test]
async fn b37_a_clock_that_steps_back_revives_nothing() {
    let bench = Bench::with("1").await;
    bench.promo("gift", "1", DAY).await.unwrap();
    bench.set_clock(START + DAY);
    bench.settle("one", "0.1").await.unwrap();
    bench.set_clock(START + DAY - HOUR_MS);
    let bench = bench.reopened().await;
    bench.settle("two", "0.1").await.unwrap();
    let entries = bench.entries().await;
    assert_eq!((entries[0].ts, entries[0].seq), (START + DAY, 5));
    assert_eq!(bench.left().await, left(&[("before", "0.8")]));
    assert_eq!(bench.lots(LotFilter::All).await[0].lot.expired, credits("1"));
    bench.assert_sound().await;
}

/// The clock of whoever calls has no say: ours stamps everything.
#[tokio::test]
async fn b38_entries_bear_the_time_of_the_store() {
    let bench = Bench::with("1").await;
    bench.set_clock(START + 300_000);
    let late = Settlement { latency_ms: 600_000, ..settlement("one", "0.1") };
    bench.store.settle(late).await.unwrap();
    assert_eq!(bench.entries().await[0].ts, START + 300_000);
}

#[tokio::test]
async fn b39_a_charge_is_taken_to_the_nano_credit() {
    let bench = Bench::with("0.05").await;
    bench.settle("one", "0.057915").await.unwrap();
    let parts = [(1, "-0.05"), (0, "-0.007915")];
    assert_eq!(bench.last().await, did(Kind::DebitAi, "-0.057915", &parts));
}

#[tokio::test]
async fn b40_a_free_reply_is_an_entry_without_parts_and_a_failed_one_is_none() {
    let bench = Bench::with("1").await;
    bench.admit("failed").await.unwrap();
    bench.settle("free", "0").await.unwrap();
    let failed = Settlement { outcome: Outcome::UpstreamError, ..settlement("failed", "0") };
    bench.store.settle(failed).await.unwrap();
    assert_eq!(
        (bench.last().await, bench.entries().await.len()),
        (did(Kind::DebitAi, "0", &[]), 2)
    );
    assert_eq!(bench.store.account(&account()).await.unwrap().in_flight, 0);
    bench.assert_sound().await;
}

#[tokio::test]
async fn pages_of_lots_join_to_the_whole_list() {
    let bench = Bench::new().await;
    for i in 0..7 {
        bench.promo(&format!("gift{i}"), "1", (1 + i % 3) * DAY).await.unwrap();
    }
    bench.settle("one", "1.5").await.unwrap();
    for filter in [LotFilter::Usable, LotFilter::All] {
        let whole = bench.lots(filter).await;
        let (mut joined, mut cursor) = (Vec::new(), None);
        loop {
            let page = Page { cursor, limit: 2 };
            let rows = bench.store.lots(&account(), filter, page).await.unwrap();
            joined.extend(rows.data);
            cursor = rows.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(joined, whole, "{filter:?}");
    }
    assert_eq!(bench.lots(LotFilter::Usable).await.len(), 6);
    for bad in ["x", "1.promo", "1.promo.x"] {
        for filter in [LotFilter::Usable, LotFilter::All] {
            let page = Page { cursor: Some(bad.into()), limit: 2 };
            let refused = bench.store.lots(&account(), filter, page).await;
            assert!(matches!(refused, Err(StoreError::NotFound(_))), "{bad}");
        }
    }
}

#[tokio::test]
async fn many_accounts_are_swept_and_each_once() {
    let bench = Bench::empty().await;
    for i in 0..40 {
        let id = AccountId(format!("a{i}").into());
        bench.store.create_account(id.clone(), String::new()).await.unwrap();
        let lasts = Some(Expiry::After(Duration::from_secs(60)));
        let gift = Grant { account: id, expires: lasts, ..granting(Kind::Promo, "gift", "1") };
        bench.store.grant(gift).await.unwrap();
    }
    bench.set_clock(START + 60_000);
    let expired = async || {
        let filter = EntryFilter { kind: Some(Kind::Expiry), ..EntryFilter::default() };
        let mut expired = 0;
        for i in 0..40 {
            let id = AccountId(format!("a{i}").into());
            let rows = bench.store.entries(&id, filter.clone(), ALL).await.unwrap();
            expired += rows.data.len();
        }
        expired
    };
    bench.swept("all", async || expired().await == 40).await;
    bench.assert_sound().await;
}
