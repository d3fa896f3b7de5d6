//! Every invariant is found broken by name, and a store that is in use is found sound.

use rusqlite::Connection;

use super::trims::{eventful, run};
use super::*;
use crate::billing::audit::Invariant;

#[tokio::test]
async fn whatever_happened_to_a_balance_adds_up() {
    let bench = eventful().await;
    let (tally, violations) = run(&bench, None).await;
    assert_eq!(violations, []);
    assert_eq!((tally.accounts, tally.requests), (3, 7));
    assert!(tally.checks.iter().all(|&checks| checks > 0), "{:?}", tally.checks);
    let (one, violations) = run(&bench, Some(account())).await;
    assert_eq!((one.accounts, violations.len()), (1, 0));
    assert!(one.entries < tally.entries);
}

#[tokio::test]
async fn every_invariant_is_found_broken_by_its_name() {
    let one = "account = (SELECT n FROM account WHERE id = 'default')";
    let end = "account = (SELECT n FROM account WHERE id = 'ended')";
    let record = |change: &str, which: &str| format!("UPDATE record SET {change} WHERE {which}");
    let cases = [
        (Invariant::I1, "UPDATE account SET balance = balance + 1 WHERE id = 'default'".to_owned()),
        (Invariant::I2, "UPDATE lot SET remaining = remaining + 1 WHERE lot = 1".into()),
        (
            Invariant::I3,
            "INSERT INTO lot (account, lot, kind, seq, source, effective_at, expires_at, granted,
                 remaining, used, expired, to_debt, forfeited, reversed, usable)
             VALUES ('in-debt', 1, 'usage', 1, 'x', 1, 9000000000000, 5, 5, 0, 0, 0, 0, 0, 1)"
                .into(),
        ),
        (Invariant::I4, "UPDATE lot SET used = used - 1 WHERE used > 0".into()),
        (
            Invariant::I4,
            "UPDATE lot SET used = used - 1, reversed = reversed + 1 WHERE used > 0".into(),
        ),
        (Invariant::I4, "DELETE FROM lot WHERE account = 'ended'".into()),
        (Invariant::I5, format!("DELETE FROM record WHERE {one} AND seq = 3")),
        (Invariant::I5, format!("DELETE FROM record WHERE {end} AND seq = 2")),
        (Invariant::I5, record("balance_after = balance_after + 1", "seq = 2 AND sub = 0")),
        (Invariant::I5, record("ts = 0", &format!("{one} AND seq = 2"))),
        (Invariant::I5, record("kind = 'gift'", &format!("{one} AND seq = 2"))),
        (Invariant::I6, record("lot = NULL, parts = '[[1,5]]'", &format!("{one} AND seq = 3"))),
        (Invariant::I6, record("lot = NULL", &format!("{one} AND seq = 1"))),
        (Invariant::I7, record("id = NULL", &format!("{one} AND seq = 1"))),
        (
            Invariant::I7,
            format!(
                "DROP INDEX record_id; {}",
                record("id = 'more'", &format!("{one} AND seq = 1"))
            ),
        ),
        (
            Invariant::I8,
            "UPDATE usage_hour SET charge = charge + 1 WHERE account = 'in-debt'".into(),
        ),
        (
            Invariant::I8,
            "UPDATE usage_hour SET output = output + 1 WHERE account = 'default'".into(),
        ),
        (Invariant::I8, "DELETE FROM usage_hour WHERE account = 'default'".into()),
        (Invariant::I8, "UPDATE usage_hour SET hour = hour + 1 WHERE account = 'default'".into()),
        (Invariant::I8, "DELETE FROM record WHERE id = 'req_e'".into()),
        (
            Invariant::I9,
            "INSERT INTO flight (account, id, key, model, admitted_at)
             VALUES ('default', 'req_a', 'k', 'm', 1)"
                .into(),
        ),
        (Invariant::I10, "DELETE FROM account WHERE id = 'in-debt'".into()),
        (
            Invariant::I10,
            "UPDATE usage_hour SET account = 'nobody' WHERE account = 'in-debt'".into(),
        ),
        // A debit whose request is not there, and a request without its debit.
        (Invariant::I11, record("outcome = NULL", "id = 'req_b'")),
        (Invariant::I11, record("kind = 'adjust'", "id = 'req_b'")),
        (Invariant::I11, record("outcome = 'completed'", "id = 'req_e'")),
        (Invariant::I11, record("outcome = 'abandoned'", "id = 'req_b'")),
    ];
    for (invariant, sql) in cases {
        let bench = eventful().await;
        let db = Connection::open(bench.path()).unwrap();
        db.pragma_update(None, "ignore_check_constraints", true).unwrap();
        db.execute_batch(&sql).unwrap();
        assert!(db.changes() > 0, "{sql}");
        let (tally, violations) = run(&bench, None).await;
        let named = violations.iter().filter(|violation| violation.invariant == invariant);
        assert!(named.count() > 0, "{invariant} was not found in {violations:?} after {sql}");
        assert!(tally.violations[invariant as usize] > 0);
        let found: u64 = tally.violations.iter().sum();
        assert!(found >= violations.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_requests_are_settled_nothing_is_found_that_is_not_there() {
    let bench = Bench::with("5").await;
    let store = bench.store.clone();
    let clock = bench.clock.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        let mut n = 0_u64;
        while !stopped.load(Ordering::SeqCst) {
            // Some share their instant, and hours pass.
            clock.fetch_add(if n.is_multiple_of(3) { 600_000 } else { 0 }, Ordering::SeqCst);
            let id = format!("req_{n:08}");
            store.admit(&key_1(), request(&id), LENIENT).await.unwrap().ok();
            let row = settlement(&id, if n.is_multiple_of(5) { "0" } else { "0.001" });
            let outcome =
                if n.is_multiple_of(7) { Outcome::UpstreamError } else { Outcome::Completed };
            store.settle(Settlement { outcome, ..row }).await.unwrap();
            if n.is_multiple_of(11) {
                store.grant(granting(Kind::Topup, &format!("pay_{n}"), "0.01")).await.unwrap();
            }
            n += 1;
        }
        n
    });
    let mut seen = 0;
    for _ in 0..200 {
        let (tally, violations) = run(&bench, None).await;
        assert_eq!(violations, []);
        assert!(tally.requests >= seen, "it reads on");
        seen = tally.requests;
        if seen > 300 {
            break;
        }
    }
    stop.store(true, Ordering::SeqCst);
    let written = writing.await.unwrap();
    assert_eq!(run(&bench, None).await.0.requests, written);
}
