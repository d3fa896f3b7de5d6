//! The rules by example, and their identities after any history.

use proptest::prelude::*;

use super::*;

const NEVER: Millis = Millis::MAX;

fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

/// Books with lots given as class, amount, expiry; numbered from 1.
fn book(lots: &[(Class, &str, Millis)]) -> Book {
    let mut book = Book::default();
    for (number, (class, amount, expires_at)) in (1..).zip(lots) {
        let kind = if *class == Class::Usage { Kind::Topup } else { Kind::Promo };
        let new = NewLot { number, class: *class, effective_at: 0, expires_at: *expires_at };
        book.credit(kind, credits(amount), new).unwrap();
    }
    book
}

fn new(number: u64) -> NewLot {
    NewLot { number, class: Class::Usage, effective_at: 0, expires_at: NEVER }
}

fn balance(book: &Book) -> String {
    book.balance().to_string()
}

fn parts(booking: &Booking) -> Vec<(u64, String)> {
    let place = |place| match place {
        Place::Debt => 0,
        Place::Lot(number) => number,
    };
    booking.parts.iter().map(|part| (place(part.place), part.amount.to_string())).collect()
}

fn part(number: u64, amount: &str) -> (u64, String) {
    (number, amount.to_owned())
}

#[test]
fn a_debit_beyond_all_lots_is_taken_in_full_and_the_rest_is_debt() {
    let mut book = book(&[(Class::Usage, "0.2", NEVER)]);
    let booked = book.debit(Kind::DebitAi, credits("0.3")).unwrap();
    assert_eq!(parts(&booked), [part(1, "-0.2"), part(0, "-0.1")]);
    assert_eq!((balance(&book).as_str(), book.debt()), ("-0.1", credits("0.1")));
}

#[test]
fn credits_pay_the_debt_first_and_only_the_rest_can_expire() {
    let mut debtor = Book::default();
    debtor.debit(Kind::DebitAi, credits("0.1")).unwrap();
    let booked = debtor.credit(Kind::Topup, credits("5"), new(1)).unwrap();
    assert_eq!(parts(&booked), [part(0, "0.1"), part(1, "4.9")]);
    let lot = debtor.lots()[0];
    assert_eq!((lot.granted, lot.remaining), (credits("5"), credits("4.9")));
    assert_eq!(lot.to_debt, credits("0.1"));

    let (ended, expired) = Book::open(credits("4.9"), vec![lot], NEVER).unwrap();
    assert_eq!(parts(&expired[0]), [part(1, "-4.9")]);
    assert_eq!(balance(&ended), "0");
}

#[test]
fn the_soonest_expiry_burns_first_then_what_was_given_then_the_oldest() {
    let mut book = book(&[
        (Class::Usage, "1", 20),
        (Class::Usage, "1", 30),
        (Class::Promo, "1", 30),
        (Class::Usage, "1", 30),
        (Class::Usage, "1", 10),
    ]);
    let booked = book.debit(Kind::DebitAi, credits("4.5")).unwrap();
    let order = [part(5, "-1"), part(1, "-1"), part(3, "-1"), part(2, "-1"), part(4, "-0.5")];
    assert_eq!(parts(&booked), order);
}

#[test]
fn a_lot_has_ended_at_its_very_expiry() {
    let lots = book(&[(Class::Usage, "1", 10)]).lots().to_vec();
    for (now, left) in [(9, "1"), (10, "0")] {
        let (book, expired) = Book::open(credits("1"), lots.clone(), now).unwrap();
        assert_eq!((balance(&book).as_str(), expired.len()), (left, usize::from(now == 10)));
        assert_eq!(lots[0].at(now).remaining, credits(left));
    }
}

#[test]
fn refunds_in_parts_undo_a_debit_from_its_end() {
    let mut book = book(&[(Class::Promo, "1", 20), (Class::Usage, "1", NEVER)]);
    let debit = book.debit(Kind::DebitAi, credits("1.5")).unwrap().parts;
    let one = book.refund(&debit, Credits::ZERO, credits("0.2"), 3, 0).unwrap();
    assert_eq!(parts(&one), [part(2, "0.2")]);
    let two = book.refund(&debit, credits("0.2"), credits("1.3"), 3, 0).unwrap();
    assert_eq!(parts(&two), [part(2, "0.3"), part(1, "1")]);
    let three = book.refund(&debit, credits("1.5"), Credits::from_nano(1), 3, 0);
    assert_eq!(three, Err(LedgerError::MoreThanWasBooked { left: Credits::ZERO }));
    assert_eq!(balance(&book), "2");
}

#[test]
fn a_refund_pays_a_debt_that_came_later() {
    let mut book = book(&[(Class::Usage, "1", NEVER)]);
    let debit = book.debit(Kind::DebitAi, credits("1")).unwrap().parts;
    book.debit(Kind::DebitAi, credits("0.7")).unwrap();
    let booked = book.refund(&debit, Credits::ZERO, credits("1"), 2, 0).unwrap();
    assert_eq!(parts(&booked), [part(0, "0.7"), part(1, "0.3")]);
}

#[test]
fn a_payment_is_taken_back_from_its_own_lot_first() {
    let mut book = book(&[(Class::Promo, "1", 20), (Class::Usage, "3.5", NEVER)]);
    let booked = book.reverse(credits("5"), Some(2), Credits::ZERO, credits("5")).unwrap();
    assert_eq!(parts(&booked), [part(2, "-3.5"), part(1, "-1"), part(0, "-0.5")]);
    let again = book.reverse(credits("5"), Some(2), credits("5"), credits("1"));
    assert_eq!(again, Err(LedgerError::MoreThanWasBooked { left: Credits::ZERO }));
}

#[test]
fn a_kind_has_only_the_signs_that_make_sense() {
    let mut book = book(&[(Class::Usage, "1", NEVER)]);
    let before = book.clone();
    for amount in ["0", "-1"] {
        for kind in [Kind::Topup, Kind::Promo] {
            let refused = book.credit(kind, credits(amount), new(2));
            assert_eq!(refused, Err(LedgerError::Sign), "{kind:?} {amount}");
        }
    }
    assert_eq!(book.debit(Kind::DebitAi, credits("-1")), Err(LedgerError::Sign));
    assert_eq!(book.adjust(Credits::ZERO, new(2)), Err(LedgerError::Sign));
    assert_eq!(book, before);
    assert_eq!(book.debit(Kind::DebitAi, Credits::ZERO).unwrap().parts, []);
    book.adjust(credits("-2"), new(2)).unwrap();
    assert_eq!(balance(&book), "-1");
}

#[test]
fn limits_hold_at_their_edge_and_not_before() {
    let million = credits("1000000");
    let nano = Credits::from_nano(1);
    let mut rich = Book::default();
    assert_eq!(rich.credit(Kind::Topup, million + nano, new(1)), Err(LedgerError::EntryLimit));
    for number in 1..=9 {
        rich.credit(Kind::Topup, million, new(number)).unwrap();
    }
    assert_eq!(rich.credit(Kind::Topup, nano, new(10)), Err(LedgerError::BalanceLimit));
    let mut poor = Book::default();
    for _ in 0..9 {
        poor.debit(Kind::DebitAi, million).unwrap();
    }
    assert_eq!(poor.debit(Kind::DebitAi, nano), Err(LedgerError::BalanceLimit));
    for extreme in [i64::MIN, i64::MAX].map(Credits::from_nano) {
        let mut book = Book::default();
        assert!(book.credit(Kind::Topup, extreme, new(1)).is_err());
        assert!(book.debit(Kind::DebitAi, extreme).is_err());
        assert!(book.adjust(extreme, new(1)).is_err());
        assert!(book.reverse(million, None, Credits::ZERO, extreme).is_err());
        assert!(book.refund(&[], Credits::ZERO, extreme, 1, 0).is_err());
        assert_eq!(book, Book::default());
    }
}

#[test]
fn credits_that_end_before_they_begin_are_refused() {
    let mut book = Book::default();
    let past = NewLot { effective_at: 5, expires_at: 5, ..new(1) };
    assert_eq!(book.credit(Kind::Promo, credits("1"), past), Err(LedgerError::ExpiryPast));
}

#[test]
fn books_that_contradict_themselves_are_not_opened() {
    let lots = book(&[(Class::Usage, "1", NEVER)]).lots().to_vec();
    for wrong in ["1.000000001", "-1", "0"] {
        assert!(Book::open(credits(wrong), lots.clone(), 0).is_err(), "{wrong}");
    }
    let broken = Lot { used: credits("0.5"), ..lots[0] };
    assert_eq!(Book::open(credits("1"), vec![broken], 0), Err(LedgerError::Unsound));
}

#[derive(Clone, Debug)]
enum Step {
    Credit { class: Class, amount: i64, lasts: Millis },
    Debit { amount: i64 },
    Adjust { amount: i64 },
    Refund { of: usize, amount: i64 },
    Reverse { of: usize, amount: i64 },
    Forfeit,
    Wait { by: Millis },
}

fn step() -> impl Strategy<Value = Step> {
    let class = prop_oneof![Just(Class::Promo), Just(Class::Usage)];
    prop_oneof![
        4 => (class, 0_i64..50, 1_i64..40)
            .prop_map(|(class, amount, lasts)| Step::Credit { class, amount, lasts }),
        8 => (0_i64..40).prop_map(|amount| Step::Debit { amount }),
        1 => (-20_i64..20).prop_map(|amount| Step::Adjust { amount }),
        4 => (0_usize..20, 1_i64..30).prop_map(|(of, amount)| Step::Refund { of, amount }),
        2 => (0_usize..20, 1_i64..30).prop_map(|(of, amount)| Step::Reverse { of, amount }),
        1 => Just(Step::Forfeit),
        6 => (0_i64..20).prop_map(|by| Step::Wait { by }),
    ]
}

/// A debit or a payment, and how much of it was undone.
struct Done {
    parts: Vec<Part>,
    amount: Credits,
    lot: u64,
    undone: Credits,
}

/// All lots ever, as a store would keep them: only those that are not empty are read.
fn play(steps: Vec<Step>) {
    let mut all: Vec<Lot> = Vec::new();
    let mut balance = Credits::ZERO;
    let (mut debits, mut payments): (Vec<Done>, Vec<Done>) = (Vec::new(), Vec::new());
    let mut now = 0;
    for step in steps {
        let full = all.iter().copied().filter(|lot| lot.remaining.is_positive()).collect();
        let (mut book, mut bookings) = Book::open(balance, full, now).unwrap();
        let number = all.len() as u64 + 1;
        let nano = Credits::from_nano;
        let new =
            |class, lasts| NewLot { number, class, effective_at: now, expires_at: now + lasts };
        let booked = match step {
            Step::Credit { class, amount, lasts } => {
                let booked = book.credit(Kind::Topup, nano(amount), new(class, lasts));
                booked.inspect(|booking| {
                    let (parts, amount) = (Vec::new(), booking.amount);
                    payments.push(Done { parts, amount, lot: number, undone: Credits::ZERO });
                })
            }
            Step::Debit { amount } => book.debit(Kind::DebitAi, nano(amount)).inspect(|booking| {
                let (parts, amount) = (booking.parts.clone(), -booking.amount);
                debits.push(Done { parts, amount, lot: 0, undone: Credits::ZERO });
            }),
            Step::Adjust { amount } => book.adjust(nano(amount), new(Class::Usage, 100)),
            Step::Refund { of, amount } => {
                let Some(debit) = debits.get_mut(of) else { continue };
                for part in &debit.parts {
                    if let Place::Lot(number) = part.place {
                        book.recall(all[number as usize - 1]);
                    }
                }
                let booked = book.refund(&debit.parts, debit.undone, nano(amount), number, now);
                assert_eq!(booked.is_ok(), debit.undone + nano(amount) <= debit.amount);
                booked.inspect(|booking| debit.undone += booking.amount)
            }
            Step::Reverse { of, amount } => {
                let Some(paid) = payments.get_mut(of) else { continue };
                let booked = book.reverse(paid.amount, Some(paid.lot), paid.undone, nano(amount));
                assert_eq!(booked.is_ok(), paid.undone + nano(amount) <= paid.amount);
                booked.inspect(|booking| paid.undone = paid.undone - booking.amount)
            }
            Step::Forfeit => {
                bookings.extend(book.forfeit());
                book.debit(Kind::DebitAi, Credits::ZERO)
            }
            Step::Wait { by } => {
                now += by;
                continue;
            }
        };
        let Ok(booked) = booked else { continue };
        bookings.push(booked);
        for booking in bookings {
            let sum: Credits = booking.parts.iter().map(|part| part.amount).sum();
            assert_eq!(sum, booking.amount, "parts sum to the amount");
            balance += booking.amount;
        }
        assert_eq!(balance, book.balance(), "entries sum to the balance");
        for lot in book.lots() {
            assert!(lot.adds_up(), "{lot:?}");
            match all.iter_mut().find(|known| known.number == lot.number) {
                Some(known) => *known = *lot,
                None => all.push(*lot),
            }
        }
        all.sort_by_key(|lot| lot.number);
        let remaining: Credits = all.iter().map(|lot| lot.remaining).sum();
        assert_eq!(balance, remaining - book.debt(), "lots less debt are the balance");
        assert!(book.debt() == Credits::ZERO || remaining == Credits::ZERO);
        assert!(all.iter().all(|lot| lot.remaining == Credits::ZERO || lot.expires_at > now));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn identities_hold_after_any_history(steps in proptest::collection::vec(step(), 1..80)) {
        play(steps);
    }
}
