//! A Redis that dies leaves a prefix of what it wrote, whatever it had acknowledged. Here is
//! each of them: the file of a history is cut off at every command and in the middle of it, a
//! server is started on what is left, and a journal sends it what it lacks. Then each request has
//! one row and one debit.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::*;
use crate::store::journal::{self, Journal};

const FIT: &[&str] = &["--appendonly", "yes", "--appendfsync", "no"];
const PREFIX: &str = "cut";
const LEASE: Millis = 60_000;

/// A history, as it was left when server and program died.
struct Left {
    /// The server's files by their names.
    files: HashMap<String, Vec<u8>>,
    /// The one among them that grows.
    grows: String,
    /// The journal's files.
    journal: tempfile::TempDir,
    /// What the requests cost that were settled.
    charges: BTreeMap<String, Credits>,
    now: Millis,
}

/// A store and the journal before it.
struct Both {
    store: Arc<Redis>,
    journal: Arc<Journal>,
    clock: Arc<AtomicI64>,
}

impl Both {
    async fn on(server: &Server, dir: &Path, now: Millis) -> Self {
        let clock = Arc::new(AtomicI64::new(now));
        let lease = Duration::from_millis(LEASE.try_into().unwrap());
        let store = open_with(server, PREFIX, &clock, lease).await;
        let options = journal::Options { dir: dir.into(), replay: Duration::from_secs(3600) };
        let journal = Journal::open(store.clone(), options).unwrap();
        Self { store, journal, clock }
    }

    /// Until the store has all that the journal holds.
    async fn in_step(&self) {
        eventually("the journal is in step", async || {
            let backlog = self.journal.backlog().unwrap();
            assert_eq!(backlog.refused, 0);
            backlog.halted.is_none() && backlog.pending == 0
        })
        .await;
    }

    async fn admit(&self, id: &str) {
        self.store.admit(&key_1(), request(id), strict("0.1")).await.unwrap().unwrap();
    }

    /// The leases of all that runs have ended.
    fn leases_end(&self) {
        self.clock.fetch_add(LEASE, Ordering::SeqCst);
    }

    /// What time does is done, by a sweep.
    async fn sweep(&self) {
        self.store.shared.sweep(&account(), "").await.unwrap();
    }

    async fn end(&self) {
        self.journal.close().await.unwrap();
    }
}

/// Everything that makes a row or removes one, or moves money, at least once in each order.
async fn history() -> Left {
    let mut server = Server::start(FIT);
    let dir = tempfile::tempdir().unwrap();
    let both = Both::on(&server, dir.path(), START).await;
    both.in_step().await;
    let Both { store, journal, clock } = &both;
    journal.create_account(account(), "Default".into()).await.unwrap();
    let limits = KeyLimits {
        total: Some(credits("1000")),
        tokens_per_minute: Some(1_000_000),
        ..KeyLimits::default()
    };
    let key = Key { limits, ..key_1() };
    journal.create_key(key, KeyHash::of("key_1")).await.unwrap();
    journal.grant(granting(Kind::Topup, "pay", "3")).await.unwrap();
    let lasts = Some(Expiry::After(Duration::from_millis(2 * LEASE as u64 + 1)));
    journal.grant(Grant { expires: lasts, ..granting(Kind::Promo, "gift", "1") }).await.unwrap();

    let mut charges = BTreeMap::new();
    let mut settling = |id: &str, charge: &str| {
        charges.insert(id.to_owned(), credits(charge));
        let outcome =
            if charge == "0" { Outcome::UpstreamError } else { settlement(id, "0").outcome };
        journal.settle(Settlement { outcome, ..settlement(id, charge) })
    };
    // In time.
    for id in ["a1", "a2", "a3", "a4"] {
        both.admit(id).await;
    }
    settling("a1", "0.25").await.unwrap();
    store.release(&account(), "a2");
    settling("a3", "0").await.unwrap();
    for _ in 0..2 {
        settling("a4", "0.125").await.unwrap();
    }
    // Found by a sweep, and settled later: alone, with others, and never.
    for id in ["b1", "b2", "b3"] {
        both.admit(id).await;
    }
    both.leases_end();
    both.sweep().await;
    settling("b1", "0.5").await.unwrap();
    both.admit("b4").await;
    let together = ["b2", "b4", "b5", "b2"].map(|id| settling(id, "0.0625"));
    futures_util::future::try_join_all(together).await.unwrap();
    // Found by who wants a place, at the instant at which it is settled too.
    for id in ["c1", "c2", "c3"] {
        both.admit(id).await;
    }
    both.leases_end();
    both.admit("c4").await;
    settling("c1", "0.5").await.unwrap();
    settling("c2", "0").await.unwrap();
    settling("c4", "0.25").await.unwrap();
    // Into debt, over the end of a lot, and out of it.
    both.admit("d1").await;
    clock.fetch_add(2, Ordering::SeqCst);
    settling("d1", "4").await.unwrap();
    journal.refund(undo("d1", Some("1.5"), "back")).await.unwrap();
    journal.reverse(undo("pay", Some("1"), "bank")).await.unwrap();
    journal.grant(granting(Kind::Topup, "more", "9")).await.unwrap();
    both.admit("e1").await;
    both.admit("e2").await;
    settling("e1", "0.5").await.unwrap();
    store.account(&account()).await.unwrap();

    let now = clock.load(Ordering::SeqCst);
    both.end().await;
    server.kill();
    let mut files = HashMap::new();
    for file in std::fs::read_dir(server.dir().join("appendonlydir")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        files.insert(name, std::fs::read(path).unwrap());
    }
    // The last, if the one before is not put away yet.
    let grows = files.keys().filter(|name| name.ends_with(".incr.aof")).max().unwrap().clone();
    Left { files, grows, journal: dir, charges, now }
}

/// Where each command of an append-only file ends, by the protocol in which it is written.
fn ends(file: &[u8]) -> Vec<usize> {
    let mut at = 0;
    let line = |at: &mut usize| {
        let end = *at + file[*at..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let text = std::str::from_utf8(&file[*at + 1..end - 2]).unwrap();
        *at = end;
        text.parse::<usize>().unwrap()
    };
    let mut ends = Vec::new();
    while at < file.len() {
        for _ in 0..line(&mut at) {
            let length = line(&mut at);
            at += length + 2;
        }
        ends.push(at);
    }
    ends
}

impl Left {
    /// A server on what is left if its file ends here.
    fn server(&self, end: usize) -> Server {
        Server::start_on(FIT, |dir| {
            let dir = dir.join("appendonlydir");
            std::fs::create_dir(&dir).unwrap();
            for (name, bytes) in &self.files {
                let bytes = if *name == self.grows { &bytes[..end] } else { bytes };
                std::fs::write(dir.join(name), bytes).unwrap();
            }
        })
    }

    /// A copy of the journal.
    fn journal(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(self.journal.path()).unwrap() {
            let path = file.unwrap().path();
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        copy
    }

    /// Comes back with what is left, and looks at every request.
    async fn come_back(&self, end: usize, sweeps_first: bool) {
        let at = format!("cut at byte {end}, sweeps first: {sweeps_first}");
        let mut server = self.server(end);
        let journal = self.journal();
        if sweeps_first {
            // Another program of the same store, before this one has sent its own.
            let clock = Arc::new(AtomicI64::new(self.now + LEASE));
            let other = open(&server, PREFIX, &clock).await;
            other.shared.sweep(&account(), "").await.unwrap();
            other.close().await.unwrap();
        }
        let both = Both::on(&server, journal.path(), self.now + LEASE).await;
        both.in_step().await;
        both.leases_end();
        both.sweep().await;
        for (id, charge) in &self.charges {
            let again = Settlement { charge: *charge, ..settlement(id, "0") };
            let outcome = match *charge {
                Credits::ZERO => Outcome::UpstreamError,
                _ => again.outcome,
            };
            let again = both.store.settle(Settlement { outcome, ..again }).await.unwrap();
            assert!(again.duplicate, "{id} was not booked, {at}");
        }
        self.check(&both.store, &at).await;
        both.end().await;
        // What it left of the file that was cut off must not come back with the next start.
        server.kill();
        server.restart();
        let store = open(&server, PREFIX, &both.clock).await;
        self.check(&store, &format!("{at}, started again")).await;
    }

    async fn check(&self, store: &Arc<Redis>, at: &str) {
        let usage = store.usage(&account(), UsageFilter::default(), ALL).await.unwrap().data;
        let mut rows: BTreeMap<&str, Vec<&UsageRow>> = BTreeMap::new();
        for row in &usage {
            rows.entry(&row.id).or_default().push(row);
        }
        for (id, rows) in &rows {
            assert_eq!(rows.len(), 1, "{id} has {rows:?}, {at}");
            let is_settled = rows[0].outcome != Outcome::Abandoned;
            assert_eq!(self.charges.contains_key(*id), is_settled, "{rows:?}, {at}");
        }
        let mut debits = BTreeMap::new();
        let mut balance = Credits::ZERO;
        for entry in store.entries(&account(), EntryFilter::default(), ALL).await.unwrap().data {
            balance += entry.amount;
            if entry.kind == Kind::DebitAi {
                let twice = debits.insert(entry.reference.clone(), -entry.amount);
                assert_eq!(twice, None, "{entry:?}, {at}");
            }
        }
        for (id, charge) in &self.charges {
            assert_eq!(rows[id.as_str()][0].charge, *charge, "{at}");
            let debit = debits.remove(id);
            assert_eq!(debit.unwrap_or_default(), *charge, "{id}, {at}");
        }
        assert_eq!(debits, BTreeMap::new(), "{at}");
        let account = store.account(&account()).await.unwrap();
        assert_eq!((account.balance, account.in_flight), (balance, 0), "{at}");
        sound::assert_sound(store).await;
    }
}

/// Every cut with `FAREBOX_SOAK`, else some.
fn share_of<T>(all: Vec<T>, some: usize) -> Vec<T> {
    let step = match std::env::var_os("FAREBOX_SOAK") {
        Some(_) => 1,
        None => all.len().div_ceil(some),
    };
    all.into_iter().step_by(step).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_prefix_of_its_file_a_redis_comes_back_with_each_request_has_one_row_and_one_debit()
 {
    let left = history().await;
    let file = &left.files[&left.grows];
    let ends = ends(file);
    let mut cuts = Vec::new();
    for (n, end) in ends.iter().enumerate() {
        // At the end of a command, and in the middle of the next.
        cuts.push((*end, n % 2 == 0));
        cuts.push((*end, n % 2 == 1));
        if let Some(next) = ends.get(n + 1) {
            cuts.push((usize::midpoint(*end, *next), n % 2 == 0));
        }
    }
    let cuts = share_of(cuts, 24);
    println!("{} cuts of a file of {} commands", cuts.len(), ends.len());
    for (end, sweeps_first) in cuts {
        left.come_back(end, sweeps_first).await;
    }
}
