//! What Lua and Redis are known to get wrong.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::billing::ledger::LedgerError;

fn nano(amount: i64) -> String {
    Credits::from_nano(amount).to_string()
}

/// Lua's numbers are doubles, and written as text they lose digits from 10¹⁴ on.
#[tokio::test]
async fn amounts_beyond_1e14_are_kept_to_the_nano_credit() {
    let bench = Bench::new().await;
    let (granted, charged) = (999_999_999_999_999, 123_456_789_012_345);
    for n in 0..9 {
        bench.top_up(&format!("pay{n}"), &nano(granted)).await.unwrap();
    }
    let settled = bench.settle("one", &nano(charged)).await.unwrap();
    let left = Credits::from_nano(9 * granted - charged);
    assert_eq!(settled.balance, Some(left));
    assert_eq!(bench.balance().await, left.to_string());
    let entries = bench.entries().await;
    assert_eq!(entries[0].amount, Credits::from_nano(-charged));
    assert_eq!(entries[1].balance_after, Credits::from_nano(9 * granted));
    assert_eq!(bench.usage().await[0].charge, Credits::from_nano(charged));
    let sums = bench
        .store
        .summary(&account(), UsageFilter::default(), Group::Model, jiff::tz::TimeZone::UTC)
        .await
        .unwrap();
    assert_eq!(sums[0].charge, Credits::from_nano(charged));
    bench.assert_sound().await;
}

/// From 2⁵³ on, doubles skip whole numbers: balances end before, and what is beyond is refused.
#[tokio::test]
async fn nothing_comes_near_2_to_the_53() {
    let bench = Bench::new().await;
    for n in 0..9 {
        bench.top_up(&format!("pay{n}"), "1000000").await.unwrap();
    }
    assert_eq!(bench.balance().await, Credits::LIMIT.to_string());
    let refused = bench.top_up("more", "0.000000001").await;
    assert!(matches!(refused, Err(StoreError::Ledger(LedgerError::BalanceLimit))), "{refused:?}");
    for beyond in [9_007_199_254_740_993, i64::MAX, 1_000_000_000_000_001] {
        let charge = Credits::from_nano(beyond);
        let refused = bench.store.settle(Settlement { charge, ..settlement("x", "0") }).await;
        assert!(matches!(refused, Err(StoreError::Ledger(LedgerError::EntryLimit))), "{refused:?}");
    }
    for n in 0..18 {
        bench.settle(&format!("r{n}"), "1000000").await.unwrap();
    }
    assert_eq!(bench.balance().await, (Credits::ZERO - Credits::LIMIT).to_string());
    let refused = bench.settle("less", "0.000000001").await;
    assert!(matches!(refused, Err(StoreError::Ledger(LedgerError::BalanceLimit))), "{refused:?}");
    bench.assert_sound().await;
}

/// Lua has a nothing with a sign, which is no whole number to Redis.
#[tokio::test]
async fn nothing_is_written_without_a_sign() {
    let bench = Bench::with("1").await;
    bench.settle("free", "0").await.unwrap();
    bench.settle("all", "1").await.unwrap();
    bench.store.refund(undo("all", None, "back")).await.unwrap();
    bench.grant(Kind::Adjust, "away", "-1").await.unwrap();
    let dump = "local all = {}
                for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':*')) do
                    local kind = redis.call('TYPE', key).ok
                    local found = kind == 'hash' and redis.call('HVALS', key)
                        or kind == 'string' and { redis.call('GET', key) }
                        or kind == 'stream' and redis.call('XRANGE', key, '-', '+') or {}
                    all[#all + 1] = cjson.encode(found)
                end
                return table.concat(all, ' ')";
    let all = bench.server.run(&["EVAL", dump, "0", &bench.prefix]).unwrap();
    let all = all.text();
    assert!(all.contains("all") && !all.contains("\"-0\"") && !all.contains(":-0"), "{all}");
    bench.assert_sound().await;
}

/// A server forgets scripts when it is restarted or replaced, and by command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_are_forgotten_in_the_middle_are_brought_again() {
    let bench = Arc::new(Bench::with("100").await);
    let ended = Arc::new(AtomicBool::new(false));
    let settling = (0..8).map(|caller| {
        let bench = bench.clone();
        tokio::spawn(async move {
            for n in 0..40 {
                let id = format!("req_{caller}_{n}");
                bench.admit(&id).await.unwrap();
                assert!(!bench.settle(&id, "0.01").await.unwrap().duplicate);
            }
        })
    });
    let settling: Vec<_> = settling.collect();
    let flushing = {
        let (bench, ended) = (bench.clone(), ended.clone());
        tokio::spawn(async move {
            let mut times = 0;
            while !ended.load(Ordering::SeqCst) {
                bench.server.run(&["SCRIPT", "FLUSH"]).unwrap();
                times += 1;
                tokio::task::yield_now().await;
            }
            times
        })
    };
    for task in settling {
        task.await.unwrap();
    }
    ended.store(true, Ordering::SeqCst);
    assert!(flushing.await.unwrap() > 0);
    assert_eq!(bench.balance().await, "96.8");
    bench.assert_sound().await;
}

/// When memory is full a script may not write: it must have written nothing.
#[tokio::test]
async fn a_debit_that_finds_memory_full_is_not_half_written() {
    let server = Server::start(&["--appendonly", "yes", "--appendfsync", "no"]);
    let bench = Bench::on(Arc::new(server)).await;
    bench.store.create_account(account(), String::new()).await.unwrap();
    bench.store.create_key(key_1(), KeyHash::of("key_1")).await.unwrap();
    bench.top_up("pay", "1").await.unwrap();
    bench.server.set("maxmemory", "1");
    let refused = bench.settle("one", "0.3").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let refused = bench.store.admit(&key_1(), request("two"), LENIENT).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(bench.store.ready().await.is_err());
    bench.server.set("maxmemory", "0");
    eventually("ready", async || bench.store.ready().await.is_ok()).await;
    assert_eq!(bench.balance().await, "1");
    bench.assert_sound().await;
    assert!(!bench.settle("one", "0.3").await.unwrap().duplicate);
    assert_eq!(bench.balance().await, "0.7");
}
