//! A copy and its way back: what comes back is what was there, of each account at one instant.

use std::io::Read;

use super::trims::{eventful, run};
use super::*;
use crate::store::redis::copy::{self, CopyError};

/// A store under another prefix of the same server.
fn elsewhere(bench: &Bench) -> Options {
    let clock = bench.clock.clone();
    Options {
        prefix: format!("{}-back", bench.prefix),
        clock: Some(Arc::new(move || clock.load(Ordering::SeqCst))),
        connect_timeout: Duration::from_secs(20),
        command_timeout: Duration::from_secs(20),
        ..Options::of(bench.server.url())
    }
}

async fn copied(store: &Redis) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::copy(&mut store.backup().await.unwrap(), &mut file).unwrap();
    file
}

/// Everything that pages show of an account.
async fn shown(store: &Redis, id: &AccountId) -> Vec<String> {
    let (entries, usage) = (EntryFilter::default(), UsageFilter::default());
    let utc = jiff::tz::TimeZone::UTC;
    let held = store.account(id).await.unwrap();
    vec![
        format!(
            "{:?}",
            Account { held: Credits::ZERO, in_flight: 0, available: held.balance, ..held }
        ),
        format!("{:?}", store.entries(id, entries.clone(), ALL).await.unwrap()),
        format!("{:?}", store.usage(id, usage.clone(), ALL).await.unwrap()),
        format!("{:?}", store.lots(id, LotFilter::All, ALL).await.unwrap()),
        format!("{:?}", store.lots(id, LotFilter::Usable, ALL).await.unwrap()),
        format!("{:?}", store.keys(id).await.unwrap()),
        format!("{:?}", store.summary(id, usage, Group::Tag, utc).await.unwrap()),
    ]
}

#[tokio::test]
async fn what_was_copied_comes_back_as_it_was_and_goes_on() {
    let bench = eventful().await;
    bench.set_clock(START + 40 * 24 * HOUR_MS);
    bench.store.trim(&account(), START + 1500).await.unwrap();
    let limits = crate::store::LimitsChange {
        total: Some(Some(credits("100"))),
        ..crate::store::LimitsChange::default()
    };
    let change = KeyChange { limits, ..KeyChange::default() };
    bench.store.change_key(&account(), "key_1", change).await.unwrap();
    bench.settle("req_now", "0.1").await.unwrap();
    bench.admit("req_runs").await.unwrap();
    bench.store.own(&account(), "resp_1").await.unwrap();
    let note = |name: &str| Put {
        name: name.into(),
        body: Some("{}".into()),
        replaces: None,
        expires_at: None,
    };
    bench.store.put_document(&Scope::Installation, note("settings")).await.unwrap();
    bench.store.put_document(&Scope::Account(account()), note("alerts")).await.unwrap();

    let file = copied(&bench.store).await;
    let holds = copy::check(file.path()).unwrap();
    let tally = copy::restore(file.path(), elsewhere(&bench)).await.unwrap();
    assert_eq!((holds.accounts, holds.entries), (tally.accounts, tally.entries));
    assert_eq!(tally.kinds, run(&bench, None).await.0.kinds);

    let back = Redis::open(elsewhere(&bench)).await.unwrap();
    sound::assert_sound(&back).await;
    for id in ["default", "in-debt", "ended"].map(|id| AccountId(id.into())) {
        assert_eq!(shown(&back, &id).await, shown(&bench.store, &id).await);
    }
    let key = back.key(&KeyHash::of("key_1")).await.unwrap().expect("its secret is known");
    assert_eq!(key.id, "key_1");
    let used = async |store: &Redis| store.key_use(&account(), "key_1").await.unwrap().spend;
    assert_eq!(used(&back).await, used(&bench.store).await);
    assert!(back.owns(&account(), "resp_1").await.unwrap());
    for scope in [Scope::Installation, Scope::Account(account())] {
        let name = if scope == Scope::Installation { "settings" } else { "alerts" };
        let was = bench.store.document(&scope, name).await.unwrap();
        assert!(was.is_some() && was == back.document(&scope, name).await.unwrap());
    }
    // What was done is known, and what ran is settled.
    assert!(back.settle(settlement("req_now", "0.1")).await.unwrap().duplicate);
    let again = back.grant(granting(Kind::Topup, "more", "7")).await;
    assert!(again.is_ok_and(|again| again.duplicate));
    assert!(!back.settle(settlement("req_runs", "0.1")).await.unwrap().duplicate);
    sound::assert_sound(&back).await;
    assert_ne!(back.epoch().await.unwrap(), bench.store.epoch().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_under_load_is_of_one_instant_of_each_account() {
    let bench = Bench::with("100").await;
    let store = bench.store.clone();
    let clock = bench.clock.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let load = tokio::spawn(async move {
        let mut n = 0;
        while !stopped.load(Ordering::SeqCst) {
            clock.fetch_add(HOUR_MS / 10, Ordering::SeqCst);
            let ids: Vec<_> = (0..20).map(|one| format!("req_{n}_{one}")).collect();
            let settled = ids.iter().map(|id| store.settle(settlement(id, "0.001")));
            futures_util::future::try_join_all(settled).await.unwrap();
            n += 1;
        }
    });
    eventually("there is much", async || bench.entries().await.len() == 500).await;
    for _ in 0..3 {
        let file = copied(&bench.store).await;
        let options = Options {
            prefix: format!("{}-{}", bench.prefix, file.path().display()),
            ..elsewhere(&bench)
        };
        let tally = copy::restore(file.path(), options).await.unwrap();
        assert!(tally.entries >= 500, "{tally:?}");
    }
    stop.store(true, Ordering::SeqCst);
    load.await.unwrap();
}

#[tokio::test]
async fn a_restore_that_was_cut_off_is_served_by_nobody_and_can_be_done_again() {
    let bench = eventful().await;
    let file = copied(&bench.store).await;
    let options = elsewhere(&bench);
    // As it is left in the middle.
    let key = |rest: &str| format!("{}:{rest}", options.prefix);
    bench.server.run(&["SET", &key("restoring"), "1"]).unwrap();
    bench.server.run(&["ZADD", &key("accounts"), "0", "half"]).unwrap();
    bench.server.run(&["HSET", &key("{half}:acct"), "balance", "7"]).unwrap();
    let Err(refused) = Redis::open(options.clone()).await else { panic!("it was served") };
    assert!(refused.to_string().contains("farebox store restore"), "{refused}");
    let tally = copy::restore(file.path(), options.clone()).await.unwrap();
    assert_eq!(tally.accounts, 3);
    drop(Redis::open(options.clone()).await.unwrap());
    let again = copy::restore(file.path(), options).await;
    assert!(matches!(again, Err(CopyError::NotEmpty(_))), "{again:?}");
}

#[tokio::test]
async fn what_is_no_whole_sound_copy_is_not_served() {
    let bench = eventful().await;
    let file = copied(&bench.store).await;
    let mut text = String::new();
    std::fs::File::open(file.path()).unwrap().read_to_string(&mut text).unwrap();
    let end = text.trim_end().rfind('\n').unwrap() + 1;
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    let spoilt = [
        text[..end].to_owned(),
        text[..end / 2].to_owned(),
        text.clone() + "{}\n",
        changed("\"by hand\"", "\"by Hand\""),
        changed("\"version\":1", "\"version\":2"),
        "no copy\n".into(),
        String::new(),
    ];
    for spoilt in spoilt {
        let path = file.path().with_extension("spoilt");
        std::fs::write(&path, &spoilt).unwrap();
        let refused = copy::restore(&path, elsewhere(&bench)).await;
        assert!(matches!(refused, Err(CopyError::Damaged { .. })), "{refused:?}");
        std::fs::remove_file(&path).unwrap();
    }
    // Whole, but of books that do not add up.
    let acct = format!("{}:{{default}}:acct", bench.prefix);
    bench.server.run(&["HINCRBY", &acct, "balance", "1"]).unwrap();
    let file = copied(&bench.store).await;
    let refused = copy::restore(file.path(), elsewhere(&bench)).await;
    assert!(matches!(refused, Err(CopyError::Unsound { .. })), "{refused:?}");
    assert!(Redis::open(elsewhere(&bench)).await.is_err());
}
