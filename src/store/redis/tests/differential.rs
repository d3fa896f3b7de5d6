//! Long random histories on both stores and in a pure model at once: the same answer to every
//! step, and the same books, requests and sums at the end.

use std::collections::HashMap;

use super::*;
use crate::billing::ledger::{Book, Booking, Class, LedgerError, Lot, NewLot, expiry};
use crate::store::embedded::{self, Embedded, Synchronous};

/// Entries of all histories together: `./test` asks for 10,000, which take some seconds.
fn entries() -> usize {
    let asked = std::env::var("FAREBOX_TEST_ENTRIES").ok();
    asked.map_or(5_000, |asked| asked.parse().expect("FAREBOX_TEST_ENTRIES is a number"))
}

/// Histories that go on at the same time, each with stores and a clock of its own.
const HISTORIES: u64 = 2;
/// Accounts of a history.
const ACCOUNTS: usize = 16;

/// A generator of steps, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        // Xorshift: Marsaglia, 2003.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// Mostly small, sometimes near what a store can count.
    fn amount(&mut self) -> i64 {
        let amount = match self.below(40) {
            0..20 => self.below(50),
            20..38 => self.below(3_000_000_000),
            38 => self.below(1_000_000_000_000_001),
            _ => 1_000_000_000_000_000 - self.below(3),
        };
        i64::try_from(amount).unwrap()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Settle { id: String, charge: i64 },
    Grant { id: String, kind: Kind, amount: i64, hours: Option<u64> },
    Refund { id: String, of: String, amount: Option<i64> },
    Reverse { id: String, of: String, amount: Option<i64> },
}

/// A step of an account that has taken `n`. Ids are often used again.
fn step(random: &mut Random, n: usize) -> Step {
    let earlier = |random: &mut Random| n.saturating_sub(random.below(12) as usize);
    let at = if random.below(12) == 0 { earlier(random) } else { n };
    match random.below(20) {
        0..11 => Step::Settle { id: format!("r{at}"), charge: random.amount() },
        11..13 => {
            let (amount, id) = (random.amount(), format!("pay{at}"));
            Step::Grant { id, kind: Kind::Topup, amount, hours: None }
        }
        13..16 => {
            let (amount, id) = (random.amount(), format!("gift{at}"));
            let hours = Some(random.below(40)).filter(|hours| *hours < 36);
            Step::Grant { id, kind: Kind::Promo, amount, hours }
        }
        16 => {
            let sign = if random.below(2) == 0 { 1 } else { -1 };
            let (amount, id) = (sign * random.amount(), format!("fix{at}"));
            Step::Grant { id, kind: Kind::Adjust, amount, hours: None }
        }
        what => {
            let amount = Some(random.amount()).filter(|_| random.below(3) > 0);
            let of = earlier(random);
            match what {
                17 | 18 => Step::Refund { id: format!("back{at}"), of: format!("r{of}"), amount },
                _ => Step::Reverse { id: format!("bank{at}"), of: format!("pay{of}"), amount },
            }
        }
    }
}

/// What a step came to, in what all three have.
#[derive(Clone, Debug, PartialEq)]
enum Came {
    Settled { balance: Credits, duplicate: bool },
    Granted { entry: Box<Entry>, duplicate: bool },
    Refused(String),
}

async fn take(store: &dyn Store, account: &AccountId, step: &Step) -> Came {
    let account = account.clone();
    let undo = |id: &str, of: &str, amount: &Option<i64>| Undo {
        account: account.clone(),
        amount: amount.map(Credits::from_nano),
        ..undo(of, None, id)
    };
    let granted = match step {
        Step::Settle { id, charge } => {
            let charge = Credits::from_nano(*charge);
            let row = Settlement { account, charge, ..settlement(id, "0") };
            return match store.settle(row).await {
                Ok(Settled { balance, duplicate }) => {
                    Came::Settled { balance: balance.expect("no journal is here"), duplicate }
                }
                Err(error) => refused(&error),
            };
        }
        Step::Grant { id, kind, amount, hours } => {
            let expires = hours.map(|hours| Expiry::After(Duration::from_secs(hours * 3600)));
            let amount = Credits::from_nano(*amount);
            store.grant(Grant { account, amount, expires, ..granting(*kind, id, "0") }).await
        }
        Step::Refund { id, of, amount } => store.refund(undo(id, of, amount)).await,
        Step::Reverse { id, of, amount } => store.reverse(undo(id, of, amount)).await,
    };
    match granted {
        Ok(Granted { entry, duplicate }) => Came::Granted { entry: Box::new(entry), duplicate },
        Err(error) => refused(&error),
    }
}

/// The words of a refusal, which are the same everywhere.
fn refused(error: &StoreError) -> Came {
    assert!(!matches!(error, StoreError::Unavailable(_)), "{error}");
    Came::Refused(error.to_string())
}

/// One account, by the rules alone.
#[derive(Default)]
struct Model {
    balance: Credits,
    ts: Millis,
    lots: Vec<Lot>,
    entries: Vec<Entry>,
    done: HashMap<String, (String, Came)>,
}

impl Model {
    fn take(&mut self, step: &Step, now: Millis) -> Came {
        let (id, content) = match step {
            Step::Settle { id, .. }
            | Step::Grant { id, .. }
            | Step::Refund { id, .. }
            | Step::Reverse { id, .. } => (id, format!("{step:?}")),
        };
        if let Some((before, came)) = self.done.get(id) {
            let conflict = StoreError::Conflict(format!("the id {id} was used with other content"));
            return match came {
                _ if *before != content => refused(&conflict),
                Came::Settled { balance, .. } => {
                    Came::Settled { balance: *balance, duplicate: true }
                }
                Came::Granted { entry, .. } => {
                    Came::Granted { entry: entry.clone(), duplicate: true }
                }
                Came::Refused(_) => unreachable!("a refusal is not remembered"),
            };
        }
        match self.book(step, now) {
            Ok(came) => {
                self.done.insert(id.clone(), (content, came.clone()));
                came
            }
            Err(error) => refused(&error),
        }
    }

    fn book(&mut self, step: &Step, now: Millis) -> Result<Came, StoreError> {
        let ts = now.max(self.ts);
        let full = self.lots.iter().filter(|lot| lot.remaining.is_positive()).copied();
        let (mut book, expired) = Book::open(self.balance, full.collect(), ts)?;
        let number = self.lots.len() as u64 + 1;
        let new = |class, asked: Option<Expiry>| NewLot {
            number,
            class,
            effective_at: ts,
            expires_at: expiry::of_grant(class, asked, ts),
        };
        let (booking, reference, undoes) = match step {
            Step::Settle { id, charge } => {
                (book.debit(Kind::DebitAi, Credits::from_nano(*charge))?, id, None)
            }
            Step::Grant { id, kind, amount, hours } => {
                let amount = Credits::from_nano(*amount);
                let asked = hours.map(|hours| Expiry::After(Duration::from_secs(hours * 3600)));
                let booking = match kind {
                    Kind::Promo => book.credit(*kind, amount, new(Class::Promo, asked))?,
                    Kind::Topup => book.credit(*kind, amount, new(Class::Usage, None))?,
                    _ => book.adjust(amount, new(Class::Usage, None))?,
                };
                (booking, id, None)
            }
            Step::Refund { id, of, amount } => {
                let debit = self.undone(of, Kind::DebitAi, "charged request")?;
                let (before, amount) = self.amount_of(&debit, *amount)?;
                for part in &debit.parts {
                    if let Place::Lot(lot) = part.place {
                        book.recall(self.lots[usize::try_from(lot).unwrap() - 1]);
                    }
                }
                let booking = book.refund(&debit.parts, before, amount, number, ts)?;
                (booking, id, Some(debit.seq))
            }
            Step::Reverse { id, of, amount } => {
                let payment = self.undone(of, Kind::Topup, "payment")?;
                let (before, amount) = self.amount_of(&payment, *amount)?;
                let lot = payment.parts.iter().find_map(|part| part.place.into());
                let booking = book.reverse(payment.amount, lot, before, amount)?;
                (booking, id, Some(payment.seq))
            }
        };
        self.ts = ts;
        for ended in expired {
            let lot = Option::<u64>::from(ended.parts[0].place).unwrap();
            self.append(ended, &format!("lot_{lot}"), None, None);
        }
        let note = (!matches!(step, Step::Settle { .. })).then_some("by hand");
        let entry = self.append(booking, reference, note, undoes);
        assert_eq!(self.balance, book.balance());
        for lot in book.lots() {
            match self.lots.iter_mut().find(|known| known.number == lot.number) {
                Some(known) => *known = *lot,
                None => self.lots.push(*lot),
            }
        }
        self.lots.sort_by_key(|lot| lot.number);
        Ok(match step {
            Step::Settle { .. } => Came::Settled { balance: self.balance, duplicate: false },
            _ => Came::Granted { entry: Box::new(entry), duplicate: false },
        })
    }

    fn append(
        &mut self,
        booking: Booking,
        reference: &str,
        note: Option<&str>,
        undoes: Option<u64>,
    ) -> Entry {
        self.balance += booking.amount;
        let entry = Entry {
            seq: self.entries.len() as u64 + 1,
            ts: self.ts,
            kind: booking.kind,
            amount: booking.amount,
            balance_after: self.balance,
            reference: reference.into(),
            note: note.map(Into::into),
            undoes,
            parts: booking.parts,
        };
        self.entries.push(entry.clone());
        entry
    }

    fn undone(&self, of: &str, kind: Kind, what: &str) -> Result<Entry, StoreError> {
        let mut found = self.entries.iter();
        let entry = found.find(|entry| entry.reference == of && entry.kind == kind);
        entry.cloned().ok_or_else(|| StoreError::NotFound(format!("{what} {of}")))
    }

    fn amount_of(
        &self,
        entry: &Entry,
        asked: Option<i64>,
    ) -> Result<(Credits, Credits), LedgerError> {
        let undone = self.entries.iter().filter(|e| e.undoes == Some(entry.seq));
        let before: Credits = undone.map(|e| e.amount.abs()).sum();
        let left = entry.amount.abs() - before;
        match asked {
            None if !left.is_positive() => Err(LedgerError::MoreThanWasBooked { left }),
            None => Ok((before, left)),
            Some(asked) => Ok((before, Credits::from_nano(asked))),
        }
    }
}

struct History {
    redis: Bench,
    sqlite: Arc<Embedded>,
    accounts: Vec<(AccountId, Model)>,
    _directory: tempfile::TempDir,
}

impl History {
    async fn new(server: Arc<Server>) -> Self {
        let redis = Bench::on(server).await;
        let directory = tempfile::tempdir().unwrap();
        let clock = redis.clock.clone();
        let options = embedded::Options {
            synchronous: Synchronous::Normal,
            note_after: Duration::from_secs(3600),
            clock: Arc::new(move || clock.load(Ordering::SeqCst)),
        };
        let sqlite = Embedded::open(&directory.path().join("farebox.db"), options).unwrap();
        let mut accounts = Vec::new();
        for n in 0..ACCOUNTS {
            let id = AccountId(format!("a{n}").into());
            for store in [&*redis.store as &dyn Store, &*sqlite] {
                store.create_account(id.clone(), String::new()).await.unwrap();
            }
            accounts.push((id, Model::default()));
        }
        Self { redis, sqlite, accounts, _directory: directory }
    }

    /// A step of each account, on everything at once.
    async fn round(&mut self, steps: &[Step]) {
        let now = self.redis.clock.load(Ordering::SeqCst);
        let (redis, sqlite) = (&*self.redis.store, &*self.sqlite);
        let asked = self.accounts.iter().zip(steps).map(|((account, _), step)| async move {
            tokio::join!(take(redis, account, step), take(sqlite, account, step))
        });
        let came = futures_util::future::join_all(asked).await;
        for (((account, model), step), (redis, sqlite)) in
            self.accounts.iter_mut().zip(steps).zip(came)
        {
            let expected = model.take(step, now);
            assert_eq!(sqlite, expected, "SQLite, {account}: {step:?}");
            assert_eq!(redis, expected, "Redis, {account}: {step:?}");
        }
    }

    async fn assert_same_lots(&self) {
        for (account, model) in &self.accounts {
            let of = async |store: &dyn Store| {
                let lots = store.lots(account, LotFilter::Usable, ALL).await.unwrap().data;
                (store.account(account).await.unwrap().balance, lots)
            };
            let (redis, sqlite) = (of(&*self.redis.store).await, of(&*self.sqlite).await);
            assert_eq!(redis, sqlite, "{account}");
            assert_eq!(redis.0, model.balance, "{account}");
        }
    }

    async fn assert_same_books(&self) {
        for (account, model) in &self.accounts {
            let (redis, sqlite): (&dyn Store, &dyn Store) = (&*self.redis.store, &*self.sqlite);
            let entries = async |store: &dyn Store| {
                let of = |page| store.entries_oldest_first(account, EntryFilter::default(), page);
                all(of).await
            };
            assert_eq!(entries(sqlite).await, model.entries, "SQLite, {account}");
            assert_eq!(entries(redis).await, model.entries, "Redis, {account}");
            let lots = async |store: &dyn Store| {
                let mut lots = all(|page| store.lots(account, LotFilter::All, page)).await;
                lots.reverse();
                lots.into_iter().map(|row| row.lot).collect::<Vec<_>>()
            };
            assert_eq!(lots(sqlite).await, model.lots, "SQLite, {account}");
            assert_eq!(lots(redis).await, model.lots, "Redis, {account}");
            let usage = async |store: &dyn Store| {
                let of = |page| store.usage(account, UsageFilter::default(), page);
                let mut rows = all(of).await;
                rows.sort_by(|a, b| (a.ts, &a.id).cmp(&(b.ts, &b.id)));
                rows
            };
            assert_eq!(usage(redis).await, usage(sqlite).await, "{account}");
            for (by, zone) in [(Group::Model, "UTC"), (Group::Day, "Asia/Kathmandu")] {
                let zone = jiff::tz::TimeZone::get(zone).unwrap();
                let of = async |store: &dyn Store| {
                    let filter = UsageFilter::default();
                    store.summary(account, filter, by, zone.clone()).await.unwrap()
                };
                assert_eq!(of(redis).await, of(sqlite).await, "{account}");
            }
        }
    }

    fn entries(&self) -> usize {
        self.accounts.iter().map(|(_, model)| model.entries.len()).sum()
    }
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

async fn one_history(server: Arc<Server>, seed: u64) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut history = History::new(server).await;
    let mut n = 0;
    while history.entries() < entries() / HISTORIES as usize {
        n += 1;
        // A quarter of an hour, or past the end of lots, or back.
        let by = match random.below(24) {
            0..4 => 900_000,
            4 => 3_600_000 * random.below(30) as Millis,
            5 => -3_600_000 * random.below(4) as Millis,
            6 if random.below(20) == 0 => 366 * 86_400_000,
            _ => 0,
        };
        if by != 0 {
            history.redis.set_clock(history.redis.clock.load(Ordering::SeqCst) + by);
            // Written at once, so that it does not matter whether a sweep saw this time.
            let seen: Vec<_> = (0..ACCOUNTS)
                .map(|_| Step::Settle { id: format!("clock{n}"), charge: 0 })
                .collect();
            history.round(&seen).await;
        }
        let steps: Vec<_> = (0..ACCOUNTS).map(|_| step(&mut random, n)).collect();
        history.round(&steps).await;
        if n % 200 == 0 {
            history.assert_same_lots().await;
        }
    }
    history.assert_same_books().await;
    history.redis.assert_sound().await;
    history.sqlite.close().await.unwrap();
}

#[test]
fn both_stores_and_the_rules_say_the_same_over_long_histories() {
    let server = server();
    let histories: Vec<_> = (1..=HISTORIES)
        .map(|seed| {
            let server = server.clone();
            std::thread::spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(one_history(server, seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            })
        })
        .collect();
    for history in histories {
        history.join().unwrap();
    }
}
