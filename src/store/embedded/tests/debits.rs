//! The log of debits: what was answered is counted at once and booked once, whatever happens.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::AtomicBool;
use std::thread;

use tokio::runtime::Builder;

use super::faults::{eventually, flights, large, pause, pause_after_all, squeeze};
use super::*;
use crate::store::embedded::copy::beside;
use crate::store::embedded::debits::{ENDS, record};
use crate::store::embedded::operations::AllBefore;
use crate::store::embedded::shelf::Step;
use crate::store::embedded::writer::Operation;
use crate::store::{LimitsChange, Status, home};

impl Bench {
    /// Admits a request and settles it.
    async fn spend(&self, id: &str, charge: &str) -> Settled {
        self.admit(id).await.unwrap();
        self.settle(id, charge).await.unwrap()
    }

    /// As [`pause`], with what admission needs in memory.
    async fn pause(&self) -> std::sync::mpsc::Sender<()> {
        self.store.key_use(&account(), "key_1").await.unwrap();
        pause(self)
    }

    fn logs(&self) -> [PathBuf; 2] {
        ENDS.map(|end| beside(&self.path(), end))
    }

    /// The store as it would be found if its process died now.
    async fn as_if_killed(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for file in fs::read_dir(self.directory.path()).unwrap().flatten() {
            fs::copy(file.path(), directory.path().join(file.file_name())).unwrap();
        }
        let store = open(&directory.path().join("farebox.db"), &self.clock).unwrap();
        Self { store, clock: self.clock.clone(), directory }
    }
}

fn settled(balance: &str) -> Settled {
    Settled { balance: Some(credits(balance)), duplicate: false }
}

#[tokio::test]
async fn a_debit_is_answered_and_counted_before_it_is_booked() {
    let bench = Bench::with("1").await;
    let pause = bench.pause().await;
    assert_eq!(bench.spend("one", "0.4").await, settled("0.6"));
    assert_eq!(bench.admit("two").await, Ok(Admitted { balance: credits("0.6") }));
    assert_eq!(bench.settle("two", "0.7").await.unwrap(), settled("-0.1"));
    let refused = Refused::OutOfCredits { balance: credits("-0.1") };
    assert_eq!(bench.admit("three").await, Err(refused));
    drop(pause);
    assert_eq!(bench.balance().await, "-0.1");
    let balances: Vec<_> = bench.entries().await.iter().map(|e| e.balance_after).collect();
    assert_eq!(balances, ["-0.1", "0.6", "1"].map(credits));
    assert_sound(&bench.path());
}

#[tokio::test]
async fn a_key_s_cap_counts_what_is_not_booked_yet() {
    let bench = Bench::with("9").await;
    let limits = LimitsChange { daily: Some(Some(credits("1"))), ..LimitsChange::default() };
    let change = crate::store::KeyChange { limits, ..Default::default() };
    bench.store.change_key(&account(), "key_1", change).await.unwrap();
    bench.admit("warm").await.unwrap();
    let pause = bench.pause().await;
    assert_eq!(bench.settle("warm", "1.1").await.unwrap(), settled("7.9"));
    assert!(matches!(bench.admit("two").await, Err(Refused::KeySpend { .. })));
    let used = async || bench.store.key_use(&account(), "key_1").await.unwrap().spend["daily"].used;
    assert_eq!(used().await, credits("1.1"));
    drop(pause);
    assert_eq!(bench.balance().await, "7.9");
    assert_eq!(used().await, credits("1.1"));
}

#[tokio::test]
async fn what_was_answered_is_booked_after_the_death_of_the_process_as_of_its_own_time() {
    let bench = Bench::with("1").await;
    bench.admit("one").await.unwrap();
    eventually("it is noted as running", async || flights(&bench) == 1).await;
    let pause = bench.pause().await;
    bench.set_clock(START + 7_000);
    assert_eq!(bench.settle("one", "0.4").await.unwrap(), settled("0.6"));
    bench.set_clock(START + 90_000_000);
    let after = bench.as_if_killed().await;
    drop(pause);
    assert_eq!(after.balance().await, "0.6");
    let rows = after.usage().await;
    assert_eq!((rows.len(), rows[0].ts, rows[0].outcome), (1, START + 7_000, Outcome::Completed));
    assert_eq!(after.entries().await[0].ts, START + 7_000);
    assert!(after.settle("one", "0.4").await.unwrap().duplicate);
    // The writer of the first process has booked it too by now; its log is as it was.
    let again = after.reopened().await;
    assert_eq!(again.balance().await, "0.6");
    assert_sound(&again.path());
}

#[tokio::test]
async fn what_ends_after_a_debit_is_never_written_off_before_it() {
    let bench = Bench::with("1").await;
    let first = bench.pause().await;
    bench.admit("one").await.unwrap();
    // What is written in the second commit after that, and sees what has ended.
    let (second, begun) = pause_after_all(&bench);
    for _ in 0..512 {
        drop(bench.store.writer.submit(AllBefore::<true>));
    }
    let granted = bench.store.grant(granting(Kind::Topup, "two", "5"));
    drop(first);
    begun.recv().unwrap();
    bench.settle("one", "0.4").await.unwrap();
    bench.set_clock(START + 400 * 86_400_000);
    drop(second);
    granted.await.unwrap();
    let kinds: Vec<_> = bench.entries().await.iter().rev().map(|entry| entry.kind).collect();
    assert_eq!(kinds[..3], [Kind::Topup, Kind::Topup, Kind::DebitAi]);
    bench.assert_sound().await;
}

#[tokio::test]
async fn a_debit_that_was_booked_before_the_process_died_is_not_booked_again() {
    let bench = Bench::with("1").await;
    bench.spend("one", "0.4").await;
    // Booked, and still in the log.
    assert_eq!(bench.balance().await, "0.6");
    let after = bench.as_if_killed().await;
    assert_eq!((after.balance().await.as_str(), after.usage().await.len()), ("0.6", 1));
    assert_sound(&after.path());
}

#[tokio::test]
async fn the_log_is_empty_soon_after_the_last_debit_and_when_the_store_is_closed() {
    let bench = Bench::with("1").await;
    let bytes = |bench: &Bench| bench.logs().map(|path| fs::metadata(path).unwrap().len());
    bench.spend("one", "0.1").await;
    assert_ne!(bytes(&bench), [0, 0]);
    eventually("it is empty", async || bytes(&bench) == [0, 0]).await;
    bench.spend("two", "0.1").await;
    bench.store.close().await.unwrap();
    assert_eq!(bytes(&bench), [0, 0]);
}

#[tokio::test]
async fn the_last_write_of_a_process_that_died_may_be_torn_and_another_may_not() {
    let bench = Bench::with("9").await;
    let pause = bench.pause().await;
    for id in ["one", "two", "three"] {
        bench.spend(id, "1").await;
    }
    let [log, _] = bench.logs();
    let whole = fs::read(&log).unwrap();
    fs::write(&log, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(bench.as_if_killed().await.balance().await, "7");
    let mut spoilt = whole.clone();
    spoilt[whole.len() / 2] ^= 1;
    fs::write(&log, spoilt).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("farebox.db");
    fs::copy(&log, beside(&path, ENDS[0])).unwrap();
    let Err(error) = open(&path, &bench.clock) else { panic!("opened") };
    assert!(error.to_string().contains("is damaged at byte"), "{error}");
    fs::write(&log, whole).unwrap();
    drop(pause);
}

#[tokio::test]
async fn where_the_log_cannot_be_written_a_debit_is_answered_once_it_is_booked() {
    for synchronous in [Synchronous::Normal, Synchronous::Full] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("farebox.db");
        for end in ENDS {
            // A disk that is always full.
            symlink("/dev/full", beside(&path, end)).unwrap();
        }
        let store = Embedded::open(&path, Options { synchronous, ..Options::default() }).unwrap();
        let bench = Bench { store, clock: Arc::default(), directory };
        bench.store.create_account(account(), String::new()).await.unwrap();
        bench.store.create_key(key_1(), KeyHash::of("key_1")).await.unwrap();
        bench.top_up("pay", "1").await.unwrap();
        bench.admit("one").await.unwrap();
        let pause = bench.pause().await;
        let store = bench.store.clone();
        let settling = tokio::spawn(async move { store.settle(settlement("one", "0.3")).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!settling.is_finished());
        drop(pause);
        assert_eq!(settling.await.unwrap().unwrap(), settled("0.7"));
        assert_eq!(
            read_only(&bench.path())
                .query_row("SELECT balance FROM account", [], |row| row.get::<_, i64>(0)),
            Ok(700_000_000)
        );
    }
}

#[tokio::test]
async fn a_debit_that_finds_the_database_s_disk_full_is_answered_and_kept_until_there_is_room() {
    let bench = Bench::with("1").await;
    bench.admit("one").await.unwrap();
    let has_room = Arc::new(AtomicBool::new(false));
    // In one batch, which is tried again and again.
    let pause = bench.pause().await;
    squeeze(&bench, &has_room);
    assert_eq!(bench.store.settle(large("one")).await.unwrap(), settled("0.7"));
    drop(pause);
    eventually("not ready", async || bench.store.ready().await.is_err()).await;
    assert_eq!(bench.as_if_killed().await.balance().await, "0.7");
    has_room.store(true, Ordering::SeqCst);
    eventually("ready", async || bench.store.ready().await.is_ok()).await;
    assert_eq!(bench.balance().await, "0.7");
    assert!(bench.store.settle(large("one")).await.unwrap().duplicate);
    assert_sound(&bench.path());
}

#[tokio::test]
async fn an_account_does_not_close_over_a_debit_that_is_not_booked() {
    let bench = Bench::with("1").await;
    bench.admit("one").await.unwrap();
    let pause = bench.pause().await;
    let closing = tokio::spawn({
        let store = bench.store.clone();
        async move { store.close_account(&account(), "bye".into()).await }
    });
    assert_eq!(bench.settle("one", "0.4").await.unwrap(), settled("0.6"));
    drop(pause);
    closing.await.unwrap().unwrap();
    let closed = async || bench.store.account(&account()).await.unwrap().status == Status::Closed;
    eventually("closed", closed).await;
    let amounts: Vec<_> = bench.entries().await.iter().map(|e| e.amount).collect();
    assert_eq!(amounts, ["-0.6", "-0.4", "1"].map(credits));
}

struct Panic;

impl Operation for Panic {
    type Output = ();
    fn apply(&self, _db: &Step<'_>, _now: Millis) -> Result<(), Fault> {
        panic!("on purpose")
    }
}

#[tokio::test]
async fn a_panic_of_the_writer_ends_the_store_and_what_was_answered_is_booked_by_the_next() {
    let bench = Bench::with("1").await;
    bench.admit("one").await.unwrap();
    assert!(bench.store.writer.submit(Panic).await.is_err(), "nobody answers");
    eventually("closed", async || bench.store.ready().await.is_err()).await;
    assert!(matches!(bench.settle("one", "0.1").await, Err(StoreError::Unavailable(_))));
    assert!(matches!(bench.top_up("pay", "1").await, Err(StoreError::Unavailable(_))));
    // Its file is free for the next process.
    eventually("free", async || open(&bench.path(), &bench.clock).is_ok()).await;
}

/// Runs as a thread does that serves clients.
fn serve<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::spawn(home::serve());
        tokio::task::yield_now().await;
        work.await
    })
}

#[test]
fn debits_of_several_threads_that_serve_are_each_booked_once() {
    for synchronous in [Synchronous::Full, Synchronous::Normal] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("farebox.db");
        let store = Embedded::open(&path, Options { synchronous, ..Options::default() }).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            store.create_account(account(), String::new()).await.unwrap();
            store.create_key(key_1(), KeyHash::of("key_1")).await.unwrap();
            store.grant(granting(Kind::Topup, "pay", "100")).await.unwrap();
        });
        let threads: Vec<_> = (0..4)
            .map(|place| {
                let store = store.clone();
                thread::spawn(move || serve(spend_many(store, place)))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        runtime.block_on(async {
            assert_eq!(store.account(&account()).await.unwrap().balance, credits("84"));
            store.close().await.unwrap();
        });
        assert_sound(&path);
    }
}

/// Eight tasks at once, fifty requests each, each settled twice.
async fn spend_many(store: Arc<Embedded>, place: usize) {
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    let id = format!("{place}_{task}_{n}");
                    let admitted = store.admit(&key_1(), request(&id), LENIENT).await.unwrap();
                    admitted.unwrap();
                    for duplicate in [false, true] {
                        let settled = store.settle(settlement(&id, "0.01")).await.unwrap();
                        assert_eq!(settled.duplicate, duplicate);
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[test]
fn who_waits_is_told_though_another_on_the_same_thread_does_not_wait() {
    serve(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("farebox.db");
        let opened = Embedded::open(&path, Options::default()).unwrap();
        opened.create_account(account(), String::new()).await.unwrap();
        opened.create_key(key_1(), KeyHash::of("key_1")).await.unwrap();
        opened.grant(granting(Kind::Topup, "pay", "1")).await.unwrap();
        for id in ["one", "two"] {
            opened.admit(&key_1(), request(id), LENIENT).await.unwrap().unwrap();
        }
        let settling = opened.settle(settlement("one", "0.3"));
        drop(opened.settle(settlement("two", "0.3")));
        assert_eq!(settling.await.unwrap(), settled("0.7"));
        opened.close().await.unwrap();
    });
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let text = |n: usize| Some(format!("\"{n}\\ \u{1F600}\n"));
    let mut all = Settlement {
        served_model: text(1),
        attribution: Attribution {
            run: text(2),
            agent: text(3),
            session: text(4),
            origin: text(5),
            tag: text(6),
        },
        usage: Usage {
            input: 1,
            cached: 2,
            cache_creation_5m: 3,
            cache_creation_1h: 4,
            output: u64::MAX,
            reasoning: 6,
            input_audio: 7,
            input_image: 8,
            cached_audio: 9,
            output_audio: 10,
            output_image: 11,
            ..Usage::default()
        },
        ..settlement("all", "1234567.000000001")
    };
    all.usage.calls.insert("web_search", 12);
    let plain = Settlement { ttft_ms: None, ..settlement("plain", "0") };
    for debit in [all, plain] {
        let found = debits::record::read(&record(&debit, START)).unwrap();
        assert_eq!((found.at, found.debit), (START, debit));
    }
    let newer = record(&settlement("one", "1"), START);
    assert!(debits::record::read(&[b"[[2", &newer[3..]].concat()).is_none());
}
