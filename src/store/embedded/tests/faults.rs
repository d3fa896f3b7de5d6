//! What goes wrong: disks that are full, processes that die, files that are not ours.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, mpsc};
use std::task::Poll;
use std::time::Instant;

use super::*;
use crate::store::embedded::shelf::Step;
use crate::store::embedded::writer::Operation;

/// Waits until something holds that another thread brings about.
pub(super) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    while !holds().await {
        assert!(since.elapsed() < Duration::from_secs(30), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Makes the writer wait, so that what is submitted meanwhile shares one commit.
struct Wait {
    has_begun: mpsc::Sender<()>,
    // A receiver is for one thread at a time, which the writer is.
    may_end: Mutex<mpsc::Receiver<()>>,
}

impl Operation for Wait {
    type Output = ();
    fn apply(&self, _db: &Step<'_>, _now: Millis) -> Result<(), Fault> {
        self.has_begun.send(()).unwrap();
        // Ends when the sender is dropped.
        let _ = self.may_end.lock().unwrap().recv();
        Ok(())
    }
}

/// The writer waits from now until what this returns is dropped.
pub(super) fn pause(bench: &Bench) -> mpsc::Sender<()> {
    let (end, begun) = pause_after_all(bench);
    begun.recv().unwrap();
    end
}

/// The writer waits, once it has done all that it was given, until the first is dropped. The
/// second says that it does.
pub(super) fn pause_after_all(bench: &Bench) -> (mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (has_begun, begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel();
    drop(bench.store.writer.submit(Wait { has_begun, may_end: Mutex::new(may_end) }));
    (end, begun)
}

/// Leaves the database no page to grow by, until there is room.
struct Squeeze {
    has_room: Arc<AtomicBool>,
}

impl Operation for Squeeze {
    type Output = ();
    const KEPT: bool = true;
    fn apply(&self, db: &Step<'_>, _now: Millis) -> Result<(), Fault> {
        let pages: i64 = if self.has_room.load(Ordering::SeqCst) { 1 << 30 } else { 1 };
        db.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        Ok(())
    }
}

/// No page to grow by from the next commit on, until there is room.
pub(super) fn squeeze(bench: &Bench, has_room: &Arc<AtomicBool>) {
    drop(bench.store.writer.submit(Squeeze { has_room: has_room.clone() }));
}

/// Fails by itself, as no operation of ours does.
struct Faulty;

impl Operation for Faulty {
    type Output = ();
    const KEPT: bool = true;
    fn apply(&self, db: &Step<'_>, _now: Millis) -> Result<(), Fault> {
        db.execute("INSERT INTO record (account, seq) VALUES (1, 0)", [])?;
        Ok(())
    }
}

/// A settlement that is larger than the free room of the pages that there are.
pub(super) fn large(id: &str) -> Settlement {
    Settlement { flags: "x".repeat(100_000), ..settlement(id, "0.3") }
}

type Settling = tokio::task::JoinHandle<Result<Settled, StoreError>>;

/// Fills the disk and settles `one`, which then waits until there is room.
async fn settling_on_a_full_disk(bench: &Bench) -> (Arc<AtomicBool>, Settling) {
    let has_room = Arc::new(AtomicBool::new(false));
    let pause = pause(bench);
    squeeze(bench, &has_room);
    let store = bench.store.clone();
    let settling = tokio::spawn(async move { store.settle(large("one")).await });
    tokio::task::yield_now().await;
    drop(pause);
    eventually("not ready", async || bench.store.ready().await.is_err()).await;
    (has_room, settling)
}

#[tokio::test]
async fn a_settlement_outlives_a_full_disk_and_is_debited_once() {
    let bench = Bench::with("1").await;
    let (has_room, settling) = settling_on_a_full_disk(&bench).await;
    assert_eq!(bench.balance().await, "1", "reads still work, and nothing is half written");
    assert!(!settling.is_finished());

    has_room.store(true, Ordering::SeqCst);
    let settled = settling.await.unwrap().unwrap();
    assert_eq!(settled, Settled { balance: Some(credits("0.7")), duplicate: false });
    assert!(bench.store.settle(large("one")).await.unwrap().duplicate);
    assert_eq!(bench.entries().await.len(), 2);
    assert_sound(&bench.path());
}

#[tokio::test]
async fn nothing_is_admitted_or_granted_while_the_disk_is_full() {
    let bench = Bench::with("1").await;
    let (has_room, settling) = settling_on_a_full_disk(&bench).await;
    let unavailable = |result| matches!(result, Err(StoreError::Unavailable(_)));
    assert!(unavailable(bench.store.admit(&key_1(), request("two"), LENIENT).await.map(drop)));
    assert!(unavailable(bench.top_up("pay", "1").await.map(drop)));
    // Goes with a debit, so it waits as debits do.
    let owner = account();
    let mut owning = bench.store.own(&owner, "resp_1");
    assert!(std::future::poll_fn(|cx| Poll::Ready(owning.as_mut().poll(cx))).await.is_pending());

    has_room.store(true, Ordering::SeqCst);
    settling.await.unwrap().unwrap();
    owning.await.unwrap();
    assert!(bench.store.owns(&account(), "resp_1").await.unwrap());
    assert!(bench.store.ready().await.is_ok());
    assert!(bench.admit("two").await.is_ok());
    assert!(!bench.top_up("pay", "1").await.unwrap().duplicate);
}

#[tokio::test]
async fn a_store_does_not_close_over_a_settlement_that_is_not_written() {
    let bench = Bench::with("1").await;
    let (has_room, settling) = settling_on_a_full_disk(&bench).await;
    assert!(matches!(bench.store.close().await, Err(StoreError::Unavailable(_))));
    has_room.store(true, Ordering::SeqCst);
    bench.store.close().await.unwrap();
    assert_eq!(settling.await.unwrap().unwrap().balance, Some(credits("0.7")));
}

#[tokio::test]
async fn a_store_with_nothing_to_write_finds_out_itself_that_the_disk_is_back() {
    let bench = Bench::with("1").await;
    let outside = Connection::open(bench.path()).unwrap();
    outside.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The grant waits as long as a connection waits for another program's lock.
    assert!(matches!(bench.top_up("pay", "1").await, Err(StoreError::Unavailable(_))));
    assert!(bench.store.ready().await.is_err());
    outside.execute_batch("ROLLBACK").unwrap();
    eventually("ready", async || bench.store.ready().await.is_ok()).await;
    assert!(!bench.top_up("pay", "1").await.unwrap().duplicate);
}

#[tokio::test]
async fn an_operation_that_fails_by_itself_does_not_take_others_with_it() {
    let bench = Bench::with("1").await;
    let pause = pause(&bench);
    let before = bench.store.settle(settlement("one", "0.1"));
    let faulty = bench.store.writer.submit(Faulty);
    let after = bench.store.settle(settlement("two", "0.1"));
    drop(pause);
    assert_eq!(before.await.unwrap().balance, Some(credits("0.9")));
    assert!(matches!(faulty.await.unwrap(), Err(StoreError::Unavailable(_))));
    assert_eq!(after.await.unwrap().balance, Some(credits("0.8")));
    assert!(bench.store.ready().await.is_ok());
    assert_sound(&bench.path());
}

#[tokio::test]
async fn a_settlement_happens_even_if_nobody_waits_for_it() {
    let bench = Bench::with("1").await;
    drop(bench.store.settle(settlement("one", "0.3")));
    let bench = bench.reopened().await;
    assert_eq!(bench.balance().await, "0.7");
}

#[tokio::test]
async fn a_closed_store_says_so_and_can_be_closed_again() {
    let bench = Bench::with("1").await;
    bench.store.close().await.unwrap();
    assert!(matches!(bench.settle("one", "1").await, Err(StoreError::Unavailable(_))));
    assert!(bench.store.ready().await.is_err());
    let admitted = bench.store.admit(&key_1(), request("one"), LENIENT).await;
    assert!(matches!(admitted, Err(StoreError::Unavailable(_))));
    bench.store.close().await.unwrap();
}

#[tokio::test]
async fn a_second_process_is_refused_while_the_first_runs() {
    let bench = Bench::new().await;
    let second = open(&bench.path(), &bench.clock);
    assert!(matches!(second, Err(OpenError::Held { .. })));
    bench.store.close().await.unwrap();
    assert!(open(&bench.path(), &bench.clock).is_ok());
}

#[tokio::test]
async fn a_file_of_another_version_is_refused_and_left_alone() {
    for (schema, why) in [(9999, "written by a newer version"), (2, "before the first release")] {
        let bench = Bench::with("1").await;
        bench.store.close().await.unwrap();
        let db = Connection::open(bench.path()).unwrap();
        db.pragma_update(None, "user_version", schema).unwrap();
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(db);
        let before = std::fs::read(bench.path()).unwrap();
        let Err(error) = open(&bench.path(), &bench.clock) else { panic!("opened") };
        let said = error.to_string();
        assert!(said.contains(&format!("schema {schema}, ")) && said.contains(why), "{said}");
        assert_eq!(std::fs::read(bench.path()).unwrap(), before);
    }
}

#[test]
fn a_database_of_another_program_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE note (text)").unwrap();
    let opened = Embedded::open(&path, Options::default());
    assert!(matches!(opened, Err(OpenError::Foreign(_))));
}

#[cfg(unix)]
#[tokio::test]
async fn files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new").join("farebox.db");
    let clock = Arc::new(AtomicI64::new(START));
    let store = open(&path, &clock).unwrap();
    store.create_account(account(), String::new()).await.unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let files: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().flatten().collect();
    assert!(files.len() >= 3, "the database, its log and its lock: {files:?}");
    for file in files {
        assert_eq!(mode(&file.path()), 0o600, "{file:?}");
    }
}

/// Counts the rows of `flight`.
pub(super) fn flights(bench: &Bench) -> i64 {
    let db = read_only(&bench.path());
    db.query_row("SELECT count(*) FROM flight", [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_long_request_is_noted_until_it_ends() {
    let bench = Bench::with("1").await;
    bench.admit("settled").await.unwrap();
    bench.admit("released").await.unwrap();
    eventually("two rows", async || flights(&bench) == 2).await;
    bench.settle("settled", "0.1").await.unwrap();
    assert_eq!(bench.balance().await, "0.9");
    assert_eq!(flights(&bench), 1);
    bench.store.release(&account(), "released");
    eventually("no row", async || flights(&bench) == 0).await;
}

/// The writer looks for long requests when the settlement of one already waits.
#[tokio::test]
async fn a_request_noted_at_its_very_end_leaves_no_row() {
    let bench = Bench::with("1").await;
    bench.admit("one").await.unwrap();
    let pause = pause(&bench);
    let settling = bench.store.settle(settlement("one", "0.1"));
    // Long enough for the writer's next look to be due.
    tokio::time::sleep(Duration::from_millis(700)).await;
    drop(pause);
    settling.await.unwrap();
    bench.settle("two", "0.1").await.unwrap();
    assert_eq!(flights(&bench), 0);
}

#[tokio::test]
async fn a_request_that_was_refused_its_settlement_has_still_ended() {
    let bench = Bench::with("1").await;
    bench.settle("one", "0.1").await.unwrap();
    bench.admit("one").await.unwrap();
    eventually("a row", async || flights(&bench) == 1).await;
    // Answered by what is known here; an id of ours is never used twice.
    bench.settle("one", "0.2").await.unwrap();
    assert_eq!(bench.balance().await, "0.9");
    assert_eq!(flights(&bench), 0);
    assert!(matches!(bench.settle("one", "0.2").await, Err(StoreError::Conflict(_))));
    assert_eq!(bench.store.account(&account()).await.unwrap().in_flight, 0);
}

/// A request that was cut off with the process is listed and not charged; a debit that comes
/// later all the same happens once.
#[tokio::test]
async fn a_request_cut_off_by_the_end_of_the_process_is_listed_and_free() {
    let bench = Bench::with("1").await;
    bench.admit("cut").await.unwrap();
    eventually("a row", async || flights(&bench) == 1).await;
    bench.set_clock(START + 1500);
    let bench = bench.reopened().await;
    let rows = bench.usage().await;
    assert_eq!((rows.len(), rows[0].id.as_str(), rows[0].model.as_str()), (1, "cut", "sonnet"));
    assert_eq!((rows[0].outcome, rows[0].source), (Outcome::Abandoned, Source::None));
    assert_eq!((rows[0].charge, rows[0].latency_ms), (Credits::ZERO, 1500));
    assert_eq!((bench.entries().await.len(), flights(&bench)), (1, 0));
    let bench = bench.reopened().await;
    assert_eq!(bench.usage().await.len(), 1);
    assert_sound(&bench.path());
    for duplicate in [false, true] {
        let settled = bench.settle("cut", "0.3").await.unwrap();
        assert_eq!(settled, Settled { balance: Some(credits("0.7")), duplicate });
    }
    let rows = bench.usage().await;
    assert_eq!((rows.len(), rows[0].outcome), (1, Outcome::Completed));
    assert_sound(&bench.path());
}

/// The process that this test kills is this test, with the path to a store in its environment.
#[tokio::test]
async fn what_was_answered_survives_kill_9_and_is_there_once() {
    const STORE: &str = "FAREBOX_TEST_KILLED_STORE";
    const TEST: &str = "what_was_answered_survives_kill_9_and_is_there_once";
    if let Some(path) = std::env::var_os(STORE) {
        return settle_for_ever(Path::new(&path)).await;
    }
    let bench = Bench::with("100000").await;
    bench.store.close().await.unwrap();
    let module = module_path!().split_once("::").expect("the path of the crate").1;
    let mut acknowledged = Vec::new();
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::{TEST}"), "--nocapture"])
            .env(STORE, bench.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let ids = lines.filter_map(|line| line.strip_prefix("settled ").map(str::to_owned));
        acknowledged.extend(ids.take(40 + 17 * round));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(acknowledged.len(), 5 * 40 + 17 * 10);
    let store = open(&bench.path(), &bench.clock).unwrap();
    assert_sound(&bench.path());
    for id in acknowledged {
        let settled = store.settle(settlement(&id, "0.01")).await.unwrap();
        assert!(settled.duplicate, "{id} was lost");
    }
}

async fn settle_for_ever(path: &Path) {
    let store = Embedded::open(path, Options::default()).unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0_u64.. {
                    let id = format!("{}_{task}_{i}", std::process::id());
                    let admitted = store.admit(&key_1(), request(&id), LENIENT).await.unwrap();
                    admitted.unwrap();
                    store.settle(settlement(&id, "0.01")).await.unwrap();
                    // Standard output may be shared with the test harness: a line of our own.
                    println!("\nsettled {id}");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_document_that_has_expired_leaves_no_row() {
    let bench = Bench::new().await;
    let put = |name: &str, expires_at| crate::store::Put {
        name: name.into(),
        body: Some("1".into()),
        replaces: None,
        expires_at,
    };
    let scope = crate::store::Scope::Installation;
    bench.store.put_document(&scope, put("a", Some(START + 10))).await.unwrap();
    bench.set_clock(START + 10);
    bench.store.put_document(&scope, put("b", None)).await.unwrap();
    let left: i64 = read_only(&bench.path())
        .query_row("SELECT count(*) FROM document", [], |row| row.get(0))
        .unwrap();
    assert_eq!(left, 1);
}
