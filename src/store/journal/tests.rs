//! The journal's files: what was answered is there, whatever happens to the process and the
//! disk, and what cannot be read is never passed over in silence.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::log::{Found, Log, Options};
use super::record::{Line, Operation};
use super::*;
use crate::billing::Usage;
use crate::store::{Attribution, Outcome, Source};

fn settlement(id: &str) -> Settlement {
    Settlement {
        id: id.into(),
        account: AccountId("default".into()),
        key: "key_1".into(),
        model: "test".into(),
        served_model: None,
        upstream: "openai".into(),
        attribution: Attribution::default(),
        usage: Usage { input: 10, calls: [("web_search", 2)].into(), ..Usage::default() },
        charge: "0.01".parse().unwrap(),
        price_version: "1".into(),
        ttft_ms: Some(3),
        latency_ms: 7,
        stream: true,
        outcome: Outcome::Completed,
        source: Source::Reported,
        http_status: 200,
        flags: String::new(),
    }
}

fn line(seq: u64) -> Line {
    let operation = Operation::Settle(Box::new(settlement(&format!("req_{seq}"))));
    Line::Operation { seq, at: crate::time::now(), taken: false, operation }
}

async fn write(log: &Log, line: Line) {
    log.append(line).await.expect("it is written");
}

async fn close(log: Log) {
    log.close().await.unwrap().unwrap();
}

fn open(dir: &Path) -> (Log, Found) {
    open_with(dir, Options::default()).unwrap()
}

/// A process that another test starts holds every lock of this one for the moment until it is
/// the other program.
fn open_with(dir: &Path, options: Options) -> Result<(Log, Found), OpenError> {
    for _ in 0..1000 {
        match Log::open(dir, options.clone()) {
            Err(OpenError::Held(_)) => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened,
        }
    }
    panic!("the lock is never free")
}

fn pending(found: &Found) -> Vec<u64> {
    found.pending.iter().map(|one| one.seq).collect()
}

/// The one file of a journal that has one.
fn only_file(dir: &Path) -> PathBuf {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files = names.filter(|path| path.extension().is_some_and(|e| e == "journal"));
    let file = files.next().expect("a file");
    assert_eq!(files.next(), None);
    file
}

#[tokio::test]
async fn what_has_not_ended_waits_and_comes_back_as_it_was_written() {
    let dir = TempDir::new().unwrap();
    let (log, found) = open(dir.path());
    assert!(found.pending.is_empty() && found.epoch.is_none());
    for seq in 1..=3 {
        write(&log, line(seq)).await;
    }
    write(&log, Line::Ended(vec![2])).await;
    write(&log, Line::Epoch("a".into())).await;
    close(log).await;
    let (_log, found) = open(dir.path());
    assert_eq!(pending(&found), [1, 3]);
    let first = Operation::Settle(Box::new(settlement("req_1")));
    assert_eq!(found.pending[0].operation, first);
    assert_eq!((found.next, found.epoch.as_deref()), (4, Some("a")));
}

#[tokio::test]
async fn a_journal_that_another_process_holds_is_refused() {
    let dir = TempDir::new().unwrap();
    let (log, _) = open(dir.path());
    let second = Log::open(dir.path(), Options::default());
    assert!(matches!(second.err(), Some(OpenError::Held(_))));
    close(log).await;
    open(dir.path());
}

#[tokio::test]
async fn a_last_write_torn_at_any_byte_leaves_all_that_was_answered_before() {
    let dir = TempDir::new().unwrap();
    let (log, _) = open(dir.path());
    for seq in 1..=2 {
        write(&log, line(seq)).await;
    }
    let file = only_file(dir.path());
    let answered = std::fs::metadata(&file).unwrap().len();
    write(&log, line(3)).await;
    let whole = std::fs::read(&file).unwrap();
    close(log).await;
    for end in usize::try_from(answered).unwrap()..whole.len() {
        std::fs::write(&file, &whole[..end]).unwrap();
        let (log, found) = open(dir.path());
        assert_eq!(pending(&found), [1, 2], "torn at {end}");
        // It goes on from there.
        write(&log, line(9)).await;
        close(log).await;
        let (log, found) = open(dir.path());
        assert_eq!(pending(&found), [1, 2, 9], "torn at {end}");
        close(log).await;
    }
}

#[tokio::test]
async fn a_flipped_bit_of_a_journal_that_was_closed_is_found() {
    let dir = TempDir::new().unwrap();
    let (log, _) = open(dir.path());
    for seq in 1..=2 {
        write(&log, line(seq)).await;
    }
    close(log).await;
    let file = only_file(dir.path());
    let whole = std::fs::read(&file).unwrap();
    let mut damaged = 0;
    // Each byte, and each bit in turn; `frame` looks at every one.
    for byte in 0..whole.len() {
        let bit = byte * 8 + byte % 8;
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, &flipped).unwrap();
        match open_with(dir.path(), Options::default()) {
            Err(OpenError::Damaged { .. } | OpenError::Newer(_)) => damaged += 1,
            Err(error) => panic!("bit {bit}: {error}"),
            // The mark that it was closed holds nothing.
            Ok((log, found)) => {
                assert!(found.unfinished > 0, "bit {bit} was passed over");
                assert_eq!(pending(&found), [1, 2], "bit {bit}");
                close(log).await;
            }
        }
    }
    assert!(damaged > whole.len() * 9 / 10, "{damaged}");
}

#[tokio::test]
async fn segments_are_deleted_when_nothing_in_them_is_needed_and_not_before() {
    let dir = TempDir::new().unwrap();
    let options = Options { keep: Duration::ZERO, segment: 1 };
    let (log, _) = open_with(dir.path(), options.clone()).unwrap();
    write(&log, Line::Epoch("a".into())).await;
    // Each is a segment of its own; the fifth waits for the store.
    for seq in 1..=9 {
        write(&log, line(seq)).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
        if seq != 5 {
            write(&log, Line::Ended(vec![seq])).await;
        }
    }
    close(log).await;
    let first = |dir: &Path| {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names.remove(0)
    };
    assert!(first(dir.path()) > format!("{:020}", 5), "what has ended is deleted");
    let (log, found) = open_with(dir.path(), options.clone()).unwrap();
    assert_eq!((pending(&found), found.epoch.as_deref()), (vec![5], Some("a")));
    let before = first(dir.path());
    write(&log, Line::Ended(vec![5])).await;
    write(&log, line(10)).await;
    write(&log, Line::Ended(vec![10])).await;
    write(&log, line(11)).await;
    close(log).await;
    assert!(first(dir.path()) > before);
    let (_log, found) = open_with(dir.path(), options).unwrap();
    assert_eq!((pending(&found), found.epoch.as_deref()), (vec![11], Some("a")));
}

#[tokio::test]
async fn what_was_taken_is_kept_to_be_sent_again() {
    let dir = TempDir::new().unwrap();
    let (log, _) = open(dir.path());
    for seq in 1..=3 {
        write(&log, line(seq)).await;
    }
    write(&log, Line::Ended(vec![1, 2, 3])).await;
    let since = |since| {
        let mut found = Vec::new();
        log.read_since(since, |batch| {
            found.extend(batch.into_iter().map(|one| one.seq));
            Ok(())
        })
        .unwrap();
        found
    };
    assert_eq!(since(0), [1, 2, 3]);
    assert_eq!(since(crate::time::now() + 1), [0; 0]);
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_with_what_to_do() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Log::open(&file.join("journal"), Options::default()).err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    assert!(error.to_string().contains("FAREBOX_JOURNAL"), "{error}");
}

/// Runs a test of this module again in a process of its own, which writes for ever and says
/// what was answered.
fn writing(test: &str, dir: &Path, shell: &str) -> Child {
    let module = module_path!().split_once("::").expect("the path of the crate").1;
    Command::new("sh")
        .args(["-c", &format!("{shell} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{test}"), "--nocapture"])
        .env(WRITES, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

const WRITES: &str = "FAREBOX_TEST_WRITES_JOURNAL";

/// Eight writers at once; each says the number of every line that was answered.
async fn write_for_ever(dir: &Path) {
    let (log, found) = open(dir);
    let (log, next) = (Arc::new(log), Arc::new(AtomicU64::new(found.next)));
    let mut failure = log.failure();
    tokio::spawn(async move {
        while failure.wait_for(Option::is_some).await.is_ok() {
            println!("failed");
            failure.wait_for(Option::is_none).await.unwrap();
        }
    });
    for _ in 0..8 {
        let (log, next) = (log.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let seq = next.fetch_add(1, Ordering::Relaxed);
                write(&log, line(seq)).await;
                println!("written {seq}");
            }
        });
    }
    std::future::pending().await
}

/// What a writing process says: the numbers that were answered, none where the disk failed.
fn said(child: &mut Child) -> impl Iterator<Item = Option<u64>> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.filter_map(|line| match line.strip_prefix("written ") {
        Some(number) => number.parse().ok().map(Some),
        None => (line == "failed").then_some(None),
    })
}

#[tokio::test]
async fn what_was_answered_survives_kill_9_at_any_moment_and_is_there_once() {
    if let Some(dir) = std::env::var_os(WRITES) {
        return write_for_ever(Path::new(&dir)).await;
    }
    let test = "what_was_answered_survives_kill_9_at_any_moment_and_is_there_once";
    let dir = TempDir::new().unwrap();
    let mut answered = Vec::new();
    for round in 0..20 {
        let mut child = writing(test, dir.path(), "");
        let mut numbers = said(&mut child).flatten();
        answered.extend(numbers.by_ref().take(1 + 13 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said before it was killed, but was not read yet.
        answered.extend(numbers);
        let (log, found) = open(dir.path());
        let there = pending(&found);
        let lost: Vec<_> = answered.iter().filter(|seq| !there.contains(seq)).collect();
        assert!(lost.is_empty(), "round {round} lost {lost:?}");
        close(log).await;
    }
    println!("20 kills: {} lines answered, 0 lost", answered.len());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn on_a_full_disk_nothing_is_answered_and_all_is_written_when_there_is_room() {
    if let Some(dir) = std::env::var_os(WRITES) {
        return write_for_ever(Path::new(&dir)).await;
    }
    let test = "on_a_full_disk_nothing_is_answered_and_all_is_written_when_there_is_room";
    let dir = TempDir::new().unwrap();
    let mut child = writing(test, dir.path(), "trap '' XFSZ;");
    let mut said = said(&mut child);
    let set_full = |pid: u32, limit: &str| {
        let set = Command::new("prlimit").args(["--pid", &pid.to_string(), limit]).status();
        assert!(set.unwrap().success());
    };
    let mut answered: Vec<_> = said.by_ref().flatten().take(50).collect();
    for _ in 0..3 {
        // Some way into one of the next writes.
        let limit = std::fs::metadata(only_file(dir.path())).unwrap().len() + 4500;
        set_full(child.id(), &format!("--fsize={limit}:unlimited"));
        answered.extend(said.by_ref().map_while(|said| said));
        set_full(child.id(), "--fsize=unlimited:unlimited");
        answered.extend(said.by_ref().flatten().take(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    answered.extend(said.flatten());
    let (_log, found) = open(dir.path());
    let there = pending(&found);
    assert!(answered.iter().all(|seq| there.contains(seq)));
}
