//! Threads that serve clients write debits themselves, before they sleep.

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::thread::{self, ThreadId};

use tokio::runtime::Builder;

use super::faults::{eventually, large, pause, squeeze};
use super::*;
use crate::store::embedded::shelf::Step;
use crate::store::embedded::writer::Operation;

/// Says which thread writes.
struct Who;

impl Operation for Who {
    type Output = ThreadId;
    const LONG: bool = false;
    fn apply(&self, _db: &Step<'_>, _now: Millis) -> Result<ThreadId, Fault> {
        Ok(thread::current().id())
    }
}

struct Panic;

impl Operation for Panic {
    type Output = ();
    const LONG: bool = false;
    fn apply(&self, _db: &Step<'_>, _now: Millis) -> Result<(), Fault> {
        panic!("on purpose")
    }
}

/// Runs as a thread does that serves clients of a store.
fn serve<T>(store: &Arc<Embedded>, work: impl Future<Output = T>) -> T {
    let store = store.clone();
    let mut runtime = Builder::new_current_thread();
    let runtime = runtime.enable_all().on_thread_park(move || store.idle()).build().unwrap();
    runtime.block_on(async {
        // From its first sleep on.
        tokio::time::sleep(Duration::from_millis(1)).await;
        work.await
    })
}

/// With a store and an account that has one credit.
fn serving(test: impl AsyncFnOnce(Bench)) {
    let store = Arc::new(OnceLock::<Arc<Embedded>>::new());
    let seen = store.clone();
    let idle = move || seen.get().into_iter().for_each(|store| store.idle());
    let runtime = Builder::new_current_thread().enable_all().on_thread_park(idle).build().unwrap();
    runtime.block_on(async {
        let bench = Bench::with("1").await;
        store.set(bench.store.clone()).ok().unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        test(bench).await;
    });
}

#[test]
fn a_thread_that_serves_writes_its_own_debits() {
    serving(async |bench| {
        let who = bench.store.writer.submit(Who).await.unwrap().unwrap();
        assert_eq!(who, thread::current().id());
    });
}

#[test]
fn debits_of_several_threads_are_each_written_once() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::with("100"));
    let threads: Vec<_> = (0..4)
        .map(|place| {
            let store = bench.store.clone();
            thread::spawn(move || serve(&store, settle_many(store.clone(), place)))
        })
        .collect();
    let duplicates: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    // Each id came twice.
    assert_eq!(duplicates, 2 * 8 * 50);
    runtime.block_on(async {
        assert_eq!(bench.balance().await, "92");
        bench.store.close().await.unwrap();
    });
    assert_sound(&bench.path());
}

/// Eight tasks at once; every second thread has the ids of the one before. Answers how many
/// had been there.
async fn settle_many(store: Arc<Embedded>, place: usize) -> usize {
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut duplicates = 0;
                for n in 0..50 {
                    let id = format!("{}_{task}_{n}", place / 2);
                    let settled = store.settle(settlement(&id, "0.01")).await.unwrap();
                    duplicates += usize::from(settled.duplicate);
                }
                duplicates
            })
        })
        .collect();
    let mut duplicates = 0;
    for task in tasks {
        duplicates += task.await.unwrap();
    }
    duplicates
}

#[test]
fn who_waits_is_told_though_another_on_the_same_thread_does_not_wait() {
    serving(async |bench| {
        let pause = pause(&bench);
        let settling = bench.store.settle(settlement("one", "0.3"));
        drop(bench.store.settle(settlement("two", "0.3")));
        // Written by the thread of the store, which this one waits for.
        let ending = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(pause);
        });
        assert_eq!(settling.await.unwrap().balance, Some(credits("0.7")));
        ending.join().unwrap();
    });
}

#[test]
fn a_thread_that_serves_does_not_wait_for_another_program_that_writes() {
    serving(async |bench| {
        let outside = Connection::open(bench.path()).unwrap();
        outside.execute_batch("BEGIN IMMEDIATE").unwrap();
        let store = bench.store.clone();
        let settling = tokio::spawn(async move { store.settle(settlement("one", "0.3")).await });
        // This thread goes on, or the lock would never be given back while it is waited for.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(bench.store.ready().await.is_ok());
        outside.execute_batch("ROLLBACK").unwrap();
        assert_eq!(settling.await.unwrap().unwrap().balance, Some(credits("0.7")));
    });
}

#[test]
fn a_debit_that_finds_the_disk_full_is_kept_until_there_is_room() {
    serving(async |bench| {
        let has_room = Arc::new(AtomicBool::new(false));
        squeeze(&bench, &has_room);
        let store = bench.store.clone();
        let settling = tokio::spawn(async move { store.settle(large("one")).await });
        eventually("not ready", async || bench.store.ready().await.is_err()).await;
        assert!(!settling.is_finished());
        has_room.store(true, Ordering::SeqCst);
        assert_eq!(settling.await.unwrap().unwrap().balance, Some(credits("0.7")));
        assert!(bench.store.settle(large("one")).await.unwrap().duplicate);
        assert_sound(&bench.path());
    });
}

#[test]
fn what_takes_long_and_all_that_came_with_it_is_left_to_the_thread_of_the_store() {
    serving(async |bench| {
        let pause = pause(&bench);
        let who = bench.store.writer.submit(Who);
        drop(pause);
        let topped_up = bench.top_up("pay", "1").await.unwrap();
        assert!(!topped_up.duplicate);
        assert!(who.await.unwrap().is_ok());
        assert_eq!(bench.balance().await, "2");
    });
}

#[test]
fn a_panic_in_the_middle_of_a_debit_ends_the_store_and_not_the_thread() {
    serving(async |bench| {
        let answer = bench.store.writer.submit(Panic).await;
        assert!(answer.is_err(), "nobody answers");
        eventually("closed", async || bench.store.ready().await.is_err()).await;
        assert!(matches!(bench.settle("one", "0.1").await, Err(StoreError::Unavailable(_))));
        // Its file is free for the next process.
        eventually("free", async || open(&bench.path(), &bench.clock).is_ok()).await;
    });
    // What panicked was not written.
}
