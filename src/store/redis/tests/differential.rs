//! Many random histories, each on both stores and in a pure model at once: the same answer to
//! every step, and the same books, requests and sums at the end.
//!
//! Everything that moves money happens in them, with a clock that steps back, crosses the ends
//! of lots and of caps' periods, processes that die, and trims of what is old. Limits a minute
//! are not in them: `examples::limits` holds both stores to those.
//!
//! Seeds are new in every run. `FAREBOX_TEST_SEED` takes the one that a failure names.

use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::store::embedded::{self, Embedded, Synchronous};
use model::Model;
use steps::{Came, KEYS, Random, Step, step, take};

mod model;
mod steps;

/// Entries of all histories together: `./test` asks for 100,000.
fn entries() -> usize {
    number("FAREBOX_TEST_ENTRIES").map_or(5_000, |asked| usize::try_from(asked).unwrap())
}

fn number(variable: &str) -> Option<u64> {
    let asked = std::env::var(variable).ok()?;
    Some(asked.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Entries of one history: so many that lots, periods and ids come to their ends.
const EACH: usize = 2_500;
/// Histories that go on at the same time, each with stores and a clock of its own.
const AT_ONCE: usize = 2;
/// Accounts of a history.
const ACCOUNTS: usize = 16;
/// Rounds of which a step may use an id again, or a little more: they are not trimmed.
const RECENT: usize = 16;
/// Longer than any period of a cap: what was spent in it is counted by its requests.
const KEPT: Millis = 32 * 86_400_000;

struct History {
    seed: u64,
    redis: Bench,
    sqlite: Arc<Embedded>,
    accounts: Vec<One>,
    directory: tempfile::TempDir,
    round: usize,
}

/// An account: its keys, and how it is by the rules.
struct One {
    keys: Vec<Key>,
    model: Model,
}

impl One {
    fn id(&self) -> &AccountId {
        &self.keys[0].account
    }
}

impl History {
    async fn new(server: Arc<Server>, seed: u64) -> Self {
        let redis = Bench::on(server).await;
        let directory = tempfile::tempdir().unwrap();
        let sqlite = open_sqlite(&directory, &redis.clock);
        let mut history = Self { seed, redis, sqlite, accounts: Vec::new(), directory, round: 0 };
        history.redis.store = history.open_redis().await;
        for n in 0..ACCOUNTS {
            let account = AccountId(format!("a{n}").into());
            let keys: Vec<_> = (0..KEYS)
                .map(|key| Key {
                    id: format!("key_{n}_{key}"),
                    account: account.clone(),
                    ..key_1()
                })
                .collect();
            for store in history.stores() {
                store.create_account(account.clone(), String::new()).await.unwrap();
                for key in &keys {
                    store.create_key(key.clone(), KeyHash::of(&key.id)).await.unwrap();
                }
            }
            history.accounts.push(One { keys, model: Model::new(account, START) });
        }
        history
    }

    /// With leases that end only when this process does.
    async fn open_redis(&self) -> Arc<Redis> {
        let lease = Duration::from_secs(20 * 366 * 86_400);
        open_with(&self.redis.server, &self.redis.prefix, &self.redis.clock, lease).await
    }

    fn stores(&self) -> [&dyn Store; 2] {
        [&*self.redis.store, &*self.sqlite]
    }

    fn now(&self) -> Millis {
        self.redis.clock.load(Ordering::SeqCst)
    }

    /// A step of each account, on everything at once.
    async fn take(&mut self, steps: &[Step]) {
        let (now, seed, round) = (self.now(), self.seed, self.round);
        let [redis, sqlite] = self.stores();
        let asked = self.accounts.iter().zip(steps).map(|(one, step)| async move {
            tokio::join!(take(redis, &one.keys, step), take(sqlite, &one.keys, step))
        });
        let came = futures_util::future::join_all(asked).await;
        for ((One { keys, model }, step), (redis, sqlite)) in
            self.accounts.iter_mut().zip(steps).zip(came)
        {
            let expected = model.take(step, now);
            let at = format!("{}, seed {seed}, round {round}, at {now}: {step:?}", keys[0].account);
            assert_eq!(sqlite, expected, "SQLite, {at}");
            assert_eq!(redis, expected, "Redis, {at}");
        }
        self.end_what_may_end().await;
    }

    /// One store ends an account with its last request, the other soon after.
    async fn end_what_may_end(&mut self) {
        let now = self.now();
        for at in 0..ACCOUNTS {
            let One { keys, model } = &self.accounts[at];
            if model.may_end() {
                let step = Step::Close { id: format!("ended{}", self.round) };
                let [redis, sqlite] = self.stores();
                let came = [take(redis, keys, &step).await, take(sqlite, keys, &step).await];
                let expected = self.accounts[at].model.take(&step, now);
                assert!(matches!(expected, Came::Seen(Status::Closed, ..)));
                assert_eq!(came, [expected.clone(), expected], "seed {}", self.seed);
            }
        }
    }

    /// Something of every account is written: from now on it does not matter whether a sweep
    /// or an answer that changed nothing had seen this time.
    async fn look(&mut self) {
        let look = Step::Look { id: format!("look{}", self.round) };
        self.take(&vec![look; ACCOUNTS]).await;
    }

    /// The processes die and others begin: what ran is abandoned.
    async fn die(&mut self) {
        let mut running = Vec::new();
        for one in &self.accounts {
            running.extend(one.model.running().map(|n| (one.id().0.to_string(), format!("r{n}"))));
        }
        running.sort_unstable();
        let file = rusqlite::Connection::open(self.directory.path().join("farebox.db")).unwrap();
        eventually("exactly the requests that run are noted", async || {
            let mut noted = file.prepare("SELECT account, id FROM flight ORDER BY 1, 2").unwrap();
            let noted = noted.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            noted.map(Result::unwrap).eq(running.iter().cloned())
        })
        .await;
        for store in self.stores() {
            store.close().await.unwrap();
        }
        self.redis.end_leases(self.accounts.iter().map(|one| &*one.id().0));
        self.redis.store = self.open_redis().await;
        self.sqlite = open_sqlite(&self.directory, &self.redis.clock);
        for One { keys, model } in &mut self.accounts {
            // Whoever asks for a place finds those that have ended.
            let probe = request("probe");
            drop(self.redis.store.admit(&keys[0], probe, LENIENT).await.unwrap());
            self.redis.store.release(&keys[0].account, "probe");
            model.abandon();
        }
        self.end_what_may_end().await;
        self.look().await;
    }

    /// What is from before an instant leaves every account.
    async fn trim(&mut self, before: Millis) {
        for One { keys, model } in &mut self.accounts {
            let account = &keys[0].account;
            self.redis.store.trim(account, before).await.unwrap();
            self.sqlite.trim(account, before).await.unwrap();
            model.trim(before);
        }
    }

    async fn assert_same_accounts(&self) {
        let at = format!("seed {}, round {}", self.seed, self.round);
        for One { keys, model } in &self.accounts {
            let account = &keys[0].account;
            let of = async |store: &dyn Store| {
                let Account { status, balance, held, available, in_flight, .. } =
                    store.account(account).await.unwrap();
                assert_eq!(available, balance - held);
                let seen = Came::Seen(status, balance, held, usize::try_from(in_flight).unwrap());
                let lots = store.lots(account, LotFilter::Usable, ALL).await.unwrap().data;
                let mut uses = Vec::new();
                for key in keys {
                    uses.push(store.key_use(account, &key.id).await.unwrap());
                }
                (seen, uses, lots)
            };
            let [redis, sqlite] = self.stores();
            let (redis, sqlite) = (of(redis).await, of(sqlite).await);
            assert_eq!(redis, sqlite, "{account}, {at}");
            let now = self.now();
            let uses = (0..KEYS).map(|key| model.key_use(key, now)).collect::<Vec<_>>();
            assert_eq!((redis.0, redis.1), (model.seen(now), uses), "{account}, {at}");
        }
    }

    async fn assert_same_books(&self) {
        let seed = self.seed;
        for one in &self.accounts {
            let (account, model) = (one.id(), &one.model);
            let [redis, sqlite] = self.stores();
            let entries = async |store: &dyn Store| {
                let of = |page| store.entries_oldest_first(account, EntryFilter::default(), page);
                all(of).await
            };
            let at = format!("{account}, seed {seed}");
            assert_same(&entries(sqlite).await, model.kept(), &format!("SQLite, {at}"));
            assert_same(&entries(redis).await, model.kept(), &format!("Redis, {at}"));
            let lots = async |store: &dyn Store| {
                let mut lots = all(|page| store.lots(account, LotFilter::All, page)).await;
                lots.reverse();
                lots.into_iter().map(|row| row.lot).collect::<Vec<_>>()
            };
            assert_same(&lots(sqlite).await, &model.lots, &format!("SQLite, {at}"));
            assert_same(&lots(redis).await, &model.lots, &format!("Redis, {at}"));
            let usage = async |store: &dyn Store| {
                let of = |page| store.usage(account, UsageFilter::default(), page);
                let mut rows = all(of).await;
                rows.sort_by(|a, b| (a.ts, &a.id).cmp(&(b.ts, &b.id)));
                rows
            };
            assert_same(&usage(redis).await, &usage(sqlite).await, &at);
            for (by, zone) in [(Group::Model, "UTC"), (Group::Day, "Asia/Kathmandu")] {
                let zone = jiff::tz::TimeZone::get(zone).unwrap();
                let of = async |store: &dyn Store| {
                    let filter = UsageFilter::default();
                    store.summary(account, filter, by, zone.clone()).await.unwrap()
                };
                assert_same(&of(redis).await, &of(sqlite).await, &at);
            }
        }
    }

    fn entries(&self) -> usize {
        self.accounts.iter().map(|one| one.model.entries.len()).sum()
    }

    /// Runs it to its end; answers how many entries it made.
    async fn run(mut self) -> usize {
        let mut random = Random::new(self.seed);
        let is_open = |one: &One| one.model.status != Status::Closed;
        let mut times = VecDeque::from([self.now()]);
        while self.entries() < EACH && self.accounts.iter().any(is_open) {
            self.round += 1;
            // A quarter of an hour, or past the end of lots, or back.
            let by = match random.below(24) {
                0..4 => 900_000,
                4 => 3_600_000 * Millis::try_from(random.below(30)).unwrap(),
                5 => -3_600_000 * Millis::try_from(random.below(4)).unwrap(),
                6 if random.below(20) == 0 => 366 * 86_400_000,
                7 if random.below(8) == 0 => 40 * 86_400_000,
                _ => 0,
            };
            self.redis.set_clock(self.now() + by);
            let steps: Vec<_> =
                self.accounts.iter().map(|one| step(&mut random, self.round, &one.model)).collect();
            self.take(&steps).await;
            if by != 0 {
                self.look().await;
            }
            if random.below(150) == 0 {
                self.die().await;
            }
            times.push_back(self.now());
            if times.len() > RECENT {
                times.pop_front();
            }
            if random.below(24) == 0 {
                self.trim(times.iter().min().unwrap() - KEPT).await;
            }
            if self.round.is_multiple_of(20) {
                self.assert_same_accounts().await;
            }
        }
        self.assert_same_accounts().await;
        self.assert_same_books().await;
        sound::assert_audited(&(self.sqlite.clone() as Arc<dyn Store>)).await;
        self.redis.assert_sound().await;
        for store in self.stores() {
            store.close().await.unwrap();
        }
        let trimmed: usize = self.accounts.iter().map(|one| one.model.trimmed).sum();
        println!("{trimmed} entries of {} were trimmed", self.entries());
        self.entries()
    }
}

fn open_sqlite(directory: &tempfile::TempDir, clock: &Arc<AtomicI64>) -> Arc<Embedded> {
    let clock = clock.clone();
    let options = embedded::Options {
        synchronous: Synchronous::Normal,
        note_after: Duration::ZERO,
        clock: Arc::new(move || clock.load(Ordering::SeqCst)),
    };
    Embedded::open(&directory.path().join("farebox.db"), options).unwrap()
}

/// Lists are long: only the first difference is told.
fn assert_same<T: PartialEq + std::fmt::Debug>(left: &[T], right: &[T], what: &str) {
    for (n, (one, other)) in left.iter().zip(right).enumerate() {
        assert_eq!(one, other, "{what}, number {n}");
    }
    assert_eq!(left.len(), right.len(), "{what}");
}

async fn all<T, F>(mut page: impl FnMut(Page) -> F) -> Vec<T>
where
    F: Future<Output = Result<Rows<T>, StoreError>>,
{
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let Rows { data, next } = page(Page { cursor, limit: 500 }).await.unwrap();
        all.extend(data);
        cursor = next;
        if cursor.is_none() {
            return all;
        }
    }
}

fn run(server: Arc<Server>, seed: u64) -> usize {
    println!("seed {seed}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { History::new(server, seed).await.run().await })
}

#[test]
fn both_stores_and_the_rules_say_the_same_over_many_histories() {
    let server = server();
    if let Some(seed) = number("FAREBOX_TEST_SEED") {
        run(server, seed);
        return;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let first = usize::try_from(now.as_secs() * 1000).unwrap();
    let (next, made) = (Arc::new(AtomicUsize::new(first)), Arc::new(AtomicUsize::new(0)));
    let threads = [(); AT_ONCE].map(|()| {
        let (server, next, made) = (server.clone(), next.clone(), made.clone());
        std::thread::spawn(move || {
            while made.load(Ordering::SeqCst) < entries() {
                let seed = next.fetch_add(1, Ordering::SeqCst) as u64;
                made.fetch_add(run(server.clone(), seed), Ordering::SeqCst);
            }
        })
    });
    // All of them end, also where one has failed, or their server would outlive the test.
    let ended: Vec<_> = threads.into_iter().map(std::thread::JoinHandle::join).collect();
    for thread in ended {
        thread.unwrap_or_else(|failure| std::panic::resume_unwind(failure));
    }
    println!(
        "{} entries in {} histories",
        made.load(Ordering::SeqCst),
        next.load(Ordering::SeqCst) - first
    );
}
