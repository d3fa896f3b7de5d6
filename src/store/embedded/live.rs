//! Accounts in memory: admission decides here, without the database.
//!
//! An account is read when it is first used. From then on the writer sets it after
//! every commit, so what is here is what was committed last. Lots that end count no more at
//! that very instant, before anything is written.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt as _};

use super::allowance::{Allowance, Reading, Terms};
use crate::billing::Credits;
use crate::billing::audit::Hold;
use crate::store::{
    AccountId, Admission, Admitted, Candidate, Key, KeyUse, Millis, Mode, Refused, Settlement,
    Status,
};

/// Accounts kept before those without running requests are forgotten.
const CAPACITY: usize = 65_536;
/// Keys of one account kept before the idle ones are forgotten.
const KEYS: usize = 4096;

/// The accounts used lately and the requests that run.
pub(super) struct Live {
    inner: Mutex<Inner>,
    /// How long a request runs before it is noted durably.
    note_after: Duration,
}

struct Inner {
    accounts: HashMap<AccountId, State>,
    /// Requests not yet looked at by [`Live::long_running`], oldest first; many have ended.
    admitted: VecDeque<(Instant, AccountId, Arc<str>)>,
    /// Accounts and keys that changed while they were not here.
    missed: u64,
    /// How many accounts make us look for idle ones.
    sweep_at: usize,
}

/// An account as admission sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub balance: Credits,
    pub status: Status,
    /// When each lot ends and what it has left.
    pub lots: Vec<(Millis, Credits)>,
    /// Of what was written last: time never steps back behind it.
    pub ts: Millis,
    /// Of the last entry.
    pub seq: u64,
}

/// How requests of an account are admitted, where it is not as the configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ways {
    pub mode: Option<Mode>,
    pub max_in_flight: Option<u32>,
}

impl Snapshot {
    /// The balance at an instant, written down or not: what has ended is gone.
    pub(super) fn usable(&self, now: Millis) -> Credits {
        let now = now.max(self.ts);
        let ended = self.lots.iter().filter(|(expires_at, _)| *expires_at <= now);
        self.balance - ended.map(|(_, remaining)| *remaining).sum()
    }

    /// When the first lot ends.
    pub(super) fn next_expiry(&self) -> Option<Millis> {
        self.lots.iter().map(|(expires_at, _)| *expires_at).min()
    }
}

struct State {
    snapshot: Snapshot,
    ways: Ways,
    held: Credits,
    /// Debits that were answered and are not booked: when they were made, and the charge.
    unbooked: VecDeque<(Millis, Credits)>,
    /// What those come to.
    unbooked_sum: Credits,
    running: HashMap<Arc<str>, Running>,
    keys: HashMap<Arc<str>, Allowance>,
    /// How many keys make us look for idle ones.
    sweep_at: usize,
}

struct Running {
    key: Arc<str>,
    model: String,
    admitted_at: Millis,
    held: Credits,
    tokens: u64,
    /// It has a row, which must go when it ends.
    noted: bool,
}

/// Taken before an account or a key is read from the database: what is read is kept only if
/// no change has been missed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// What must be read before there is an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Account(Ticket),
    Key(Ticket),
}

/// A request that has run for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flight {
    pub account: AccountId,
    pub key: String,
    pub request: Candidate,
    pub admitted_at: Millis,
}

impl Live {
    pub(super) fn new(note_after: Duration) -> Self {
        let inner = Inner {
            accounts: HashMap::new(),
            admitted: VecDeque::new(),
            missed: 0,
            sweep_at: CAPACITY,
        };
        Self { inner: Mutex::new(inner), note_after }
    }

    /// Takes a place, or says why not; in one step, so that limits are exact.
    pub(super) fn admit(
        &self,
        key: &Key,
        request: &Candidate,
        how: Admission,
        now: Millis,
    ) -> Result<Result<Admitted, Refused>, Missing> {
        let mut inner = self.lock();
        let Inner { accounts, admitted, missed, .. } = &mut *inner;
        let Some(state) = accounts.get_mut(&key.account) else {
            return Err(Missing::Account(Ticket(*missed)));
        };
        let balance = state.usable(now);
        if state.running.contains_key(request.id.as_str()) {
            return Ok(Ok(Admitted { balance }));
        }
        let running = state.in_flight();
        let State { snapshot, ways, held, keys, .. } = state;
        let Some(allowance) = keys.get_mut(key.id.as_str()).filter(|known| known.is_read()) else {
            return Err(Missing::Key(Ticket(*missed)));
        };
        let now = now.max(snapshot.ts);
        let mode = ways.mode.unwrap_or(how.mode);
        let account = AccountNow { status: snapshot.status, balance, held: *held, running };
        let limit = ways.max_in_flight.unwrap_or(how.max_in_flight);
        let checked = allowance
            .check_valid(now)
            .and_then(|()| account.check(mode, how.most, limit))
            .and_then(|()| allowance.check_limits(mode, &how, now));
        if let Err(refused) = checked {
            return Ok(Err(refused));
        }
        let hold = mode.hold(balance - *held, how.most);
        *held += hold;
        allowance.begin(hold, how.tokens, now);
        let id: Arc<str> = request.id.as_str().into();
        admitted.push_back((Instant::now(), key.account.clone(), id.clone()));
        let running = Running {
            key: allowance.id.clone(),
            model: request.model.clone(),
            admitted_at: now,
            held: hold,
            tokens: how.tokens,
            noted: false,
        };
        state.running.insert(id, running);
        Ok(Ok(Admitted { balance }))
    }

    /// Keeps an account that was read, unless it is here or what was read may be old.
    pub(super) fn insert(
        &self,
        ticket: Ticket,
        account: AccountId,
        snapshot: Snapshot,
        ways: Ways,
        now: Millis,
    ) {
        let mut inner = self.lock();
        if ticket != Ticket(inner.missed) || inner.accounts.contains_key(&account) {
            return;
        }
        if inner.accounts.len() >= inner.sweep_at {
            inner.accounts.retain(|_, state| !state.is_idle(now));
            inner.sweep_at = CAPACITY.max(2 * inner.accounts.len());
        }
        let state = State {
            snapshot,
            ways,
            held: Credits::ZERO,
            unbooked: VecDeque::new(),
            unbooked_sum: Credits::ZERO,
            running: HashMap::new(),
            keys: HashMap::new(),
            sweep_at: KEYS,
        };
        inner.accounts.insert(account, state);
    }

    /// Keeps what was read of a key, unless it may be old.
    pub(super) fn insert_key(
        &self,
        ticket: Ticket,
        account: &AccountId,
        id: &str,
        terms: Terms,
        now: Millis,
    ) {
        let mut inner = self.lock();
        if ticket != Ticket(inner.missed) {
            return;
        }
        let Some(State { keys, sweep_at, .. }) = inner.accounts.get_mut(account) else { return };
        if keys.len() >= *sweep_at {
            keys.retain(|_, allowance| !allowance.is_idle(now));
            *sweep_at = KEYS.max(2 * keys.len());
        }
        let allowance = match keys.get_mut(id) {
            Some(allowance) => allowance,
            None => {
                let allowance = Allowance::new(id);
                keys.entry(allowance.id.clone()).or_insert(allowance)
            }
        };
        if !allowance.is_read() {
            allowance.set_terms(terms);
        }
    }

    /// Sets what was committed.
    pub(super) fn set(&self, account: &AccountId, snapshot: Snapshot) {
        let mut inner = self.lock();
        match inner.accounts.get_mut(account) {
            Some(state) => state.snapshot = snapshot,
            None => inner.missed += 1,
        }
    }

    /// Sets how requests of an account are admitted.
    pub(super) fn set_ways(&self, account: &AccountId, ways: Ways) {
        let mut inner = self.lock();
        match inner.accounts.get_mut(account) {
            Some(state) => state.ways = ways,
            None => inner.missed += 1,
        }
    }

    /// A key was changed or revoked: it is read anew when it is next used.
    pub(super) fn forget_key(&self, account: &AccountId, id: &str) {
        let mut inner = self.lock();
        inner.missed += 1;
        let state = inner.accounts.get_mut(account);
        if let Some(allowance) = state.and_then(|state| state.keys.get_mut(id)) {
            allowance.forget_terms();
        }
    }

    /// Charges a request that runs, before its debit is booked: its place is given back, and
    /// from now on admission counts the charge. Answers the balance then, and where the charge
    /// counts against the caps of its key; `None` if the request is not here or its debit may yet
    /// be refused, and nothing has changed.
    pub(super) fn charge(
        &self,
        settlement: &Settlement,
        now: Millis,
    ) -> Option<(Credits, Option<Reading>)> {
        let Settlement { id, account, key, charge, usage, .. } = settlement;
        let mut inner = self.lock();
        let Inner { accounts, missed, .. } = &mut *inner;
        let state = accounts.get_mut(account)?;
        let is_open = state.snapshot.status == Status::Open;
        if !is_open || charge.is_negative() || !state.running.contains_key(id.as_str()) {
            return None;
        }
        let at = now.max(state.snapshot.ts);
        let counted = state.keys.get_mut(key.as_str()).and_then(|key| key.charge(*charge, at));
        if counted.is_none() {
            *missed += 1;
        }
        state.unbooked.push_back((at, *charge));
        state.unbooked_sum += *charge;
        state.end(id, usage.tokens(), at);
        Some((state.usable(at), counted))
    }

    /// A debit of [`Self::charge`] will never be booked.
    pub(super) fn unbook(&self, account: &AccountId, charge: Credits) {
        let mut inner = self.lock();
        // An account with such a debit is not forgotten.
        if let Some(state) = inner.accounts.get_mut(account) {
            state.booked(charge);
        }
    }

    /// Whether requests of an account run, or are not booked yet.
    pub(super) fn is_busy(&self, account: &AccountId) -> bool {
        let inner = self.lock();
        let state = inner.accounts.get(account);
        state.is_some_and(|state| !state.running.is_empty() || !state.unbooked.is_empty())
    }

    /// Sets what a committed charge left, and counts it against the caps of its key. One that
    /// waited to be booked is what it is of [`Self::charge`]: both in one step, or admission
    /// could see it twice or not at all.
    pub(super) fn charged(
        &self,
        account: &AccountId,
        key: &str,
        charge: Credits,
        counted: Option<Reading>,
        waited: Option<Credits>,
        snapshot: Snapshot,
    ) {
        let mut inner = self.lock();
        let (seq, ts) = (snapshot.seq, snapshot.ts);
        let is_here = inner.accounts.get_mut(account).is_some_and(|state| {
            state.snapshot = snapshot;
            if let Some(waited) = waited {
                state.booked(waited);
            }
            let allowance = state.keys.get_mut(key);
            allowance.is_some_and(|allowance| allowance.charged(charge, counted, seq, ts))
        });
        if !is_here {
            inner.missed += 1;
        }
    }

    /// Gives a place back, of a request that used so many tokens. True if it has a row that
    /// must go.
    pub(super) fn end(&self, account: &AccountId, request: &str, tokens: u64, now: Millis) -> bool {
        let mut inner = self.lock();
        let state = inner.accounts.get_mut(account);
        state.is_some_and(|state| state.end(request, tokens, now))
    }

    /// What is used of a key's limits.
    pub(super) fn key_use(
        &self,
        account: &AccountId,
        id: &str,
        now: Millis,
    ) -> Result<KeyUse, Missing> {
        let mut inner = self.lock();
        let Inner { accounts, missed, .. } = &mut *inner;
        let Some(state) = accounts.get_mut(account) else {
            return Err(Missing::Account(Ticket(*missed)));
        };
        match state.keys.get_mut(id).filter(|known| known.is_read()) {
            Some(allowance) => Ok(allowance.in_use(now.max(state.snapshot.ts))),
            None => Err(Missing::Key(Ticket(*missed))),
        }
    }

    /// How many requests of an account run, and what is held for them.
    pub(super) fn running(&self, account: &AccountId) -> (u32, Credits) {
        let inner = self.lock();
        inner
            .accounts
            .get(account)
            .map_or((0, Credits::ZERO), |state| (state.in_flight(), state.held))
    }

    /// What is held for an account, and for which requests.
    pub(super) fn holds(&self, account: &AccountId) -> (Credits, Vec<Hold>) {
        let inner = self.lock();
        let Some(state) = inner.accounts.get(account) else { return (Credits::ZERO, Vec::new()) };
        let hold = |(id, running): (&Arc<str>, &Running)| Hold {
            request: id.to_string(),
            amount: running.held,
            settled: false,
        };
        (state.held, state.running.iter().map(hold).collect())
    }

    /// The requests that have come to run for long since the last call; the caller writes
    /// their rows.
    pub(super) fn long_running(&self) -> Vec<Flight> {
        let mut inner = self.lock();
        let Inner { accounts, admitted, .. } = &mut *inner;
        let mut flights = Vec::new();
        while let Some((since, ..)) = admitted.front()
            && since.elapsed() >= self.note_after
            && let Some((_, account, id)) = admitted.pop_front()
        {
            let state = accounts.get_mut(&account);
            let Some(running) = state.and_then(|state| state.running.get_mut(&id)) else {
                continue;
            };
            running.noted = true;
            let request = Candidate { id: id.to_string(), model: running.model.clone() };
            let key = running.key.to_string();
            flights.push(Flight { account, key, request, admitted_at: running.admitted_at });
        }
        flights
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The balance as admission sees it.
    fn usable(&self, now: Millis) -> Credits {
        let has_ended = |end: Millis| end <= now.max(self.snapshot.ts);
        if self.unbooked.is_empty() || !self.snapshot.next_expiry().is_some_and(has_ended) {
            return self.snapshot.usable(now) - self.unbooked_sum;
        }
        // What a debit took of a lot that has ended since is not lost with it once more.
        let mut left = self.snapshot.clone();
        left.lots.sort_by_key(|(expires_at, _)| *expires_at);
        for (at, charge) in &self.unbooked {
            left.balance = left.balance - *charge;
            let mut rest = *charge;
            for (expires_at, remaining) in &mut left.lots {
                if *expires_at > *at {
                    let taken = rest.min(*remaining);
                    (*remaining, rest) = (*remaining - taken, rest - taken);
                }
            }
        }
        left.usable(now)
    }

    /// A debit waits no more. They are booked in their order.
    fn booked(&mut self, charge: Credits) {
        if let Some(first) = self.unbooked.iter().position(|(_, unbooked)| *unbooked == charge) {
            self.unbooked.remove(first);
            self.unbooked_sum = self.unbooked_sum - charge;
        }
    }

    /// As [`Live::end`].
    fn end(&mut self, request: &str, tokens: u64, now: Millis) -> bool {
        let Some(running) = self.running.remove(request) else { return false };
        self.held = self.held - running.held;
        if let Some(allowance) = self.keys.get_mut(&running.key) {
            allowance.end(running.held, running.tokens, tokens, now);
        }
        running.noted
    }

    fn in_flight(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(u32::MAX)
    }

    /// Whether it would be the same if it were read anew.
    fn is_idle(&self, now: Millis) -> bool {
        self.running.is_empty()
            && self.unbooked.is_empty()
            && self.keys.values().all(|allowance| allowance.is_idle(now))
    }
}

/// What admission asks of an account.
struct AccountNow {
    status: Status,
    balance: Credits,
    held: Credits,
    running: u32,
}

impl AccountNow {
    fn check(&self, mode: Mode, most: Option<Credits>, limit: u32) -> Result<(), Refused> {
        let Self { status, balance, held, running } = *self;
        if status != Status::Open {
            Err(Refused::NotOpen)
        } else if !balance.is_positive() {
            Err(Refused::OutOfCredits { balance })
        } else if mode == Mode::Strict && most.is_none() {
            Err(Refused::Unbounded)
        } else if !mode.admits(balance, held, most) {
            let most = most.filter(|_| mode == Mode::Strict);
            Err(Refused::HoldDoesNotFit { balance, held, most })
        } else if running >= limit {
            Err(Refused::TooManyInFlight { running, limit })
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{KeyLimits, Rejection};

    const LENIENT: Admission =
        Admission { mode: Mode::Lenient, max_in_flight: 2, most: None, tokens: 0 };

    fn account() -> AccountId {
        AccountId("a".into())
    }

    fn key() -> Key {
        Key {
            id: "key_1".into(),
            account: account(),
            name: String::new(),
            tag: None,
            models: Vec::new(),
            rejection: Rejection::Limit,
            limits: KeyLimits::default(),
            last4: String::new(),
            created_at: 0,
            expires_at: None,
            revoked_at: None,
        }
    }

    fn request(id: &str) -> Candidate {
        Candidate { id: id.into(), model: "m".into() }
    }

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    fn charge(live: &Live, id: &str, charge: &str, now: Millis) -> Credits {
        let charge = credits(charge);
        let settlement = Settlement {
            charge,
            account: account(),
            ..crate::store::examples::settlement(id, "0")
        };
        live.charge(&settlement, now).expect("the request runs here").0
    }

    #[test]
    fn a_debit_that_waits_to_be_booked_is_not_lost_once_more_with_the_lot_that_it_used() {
        let lots = vec![(900, credits("4")), (500, credits("3"))];
        let live = with("7", Status::Open);
        live.set(&account(), Snapshot { lots, ..snapshot("7", Status::Open) });
        for id in ["a", "b", "c"] {
            let how = Admission { max_in_flight: 9, ..LENIENT };
            assert_eq!(admit_at(&live, id, how, 100).unwrap().balance, credits("7"));
        }
        assert_eq!(charge(&live, "a", "2", 200), credits("5"));
        assert_eq!(charge(&live, "b", "1.5", 499), credits("3.5"));
        // The lot of 3 is gone with what the first took, and the second took half of the other.
        assert_eq!(admit_at(&live, "d", LENIENT, 500).unwrap().balance, credits("3.5"));
        // A debit after the end takes nothing of it, and may overdraw.
        assert_eq!(charge(&live, "c", "6", 500), credits("-2.5"));
        // Booked, all is as it was said.
        for booked in ["2", "1.5", "6"] {
            live.unbook(&account(), credits(booked));
        }
        assert_eq!(admit_at(&live, "e", LENIENT, 100).unwrap().balance, credits("7"));
    }

    fn admit_at(live: &Live, id: &str, how: Admission, now: Millis) -> Result<Admitted, Refused> {
        live.admit(&key(), &request(id), how, now).expect("the account and its key are here")
    }

    fn admit(live: &Live, id: &str, how: Admission) -> Result<Admitted, Refused> {
        admit_at(live, id, how, 5)
    }

    fn end(live: &Live, id: &str) -> bool {
        live.end(&account(), id, 0, 5)
    }

    fn ticket(live: &Live) -> Ticket {
        let stranger = Key { account: AccountId("nobody".into()), ..key() };
        match live.admit(&stranger, &request("r"), LENIENT, 5) {
            Err(Missing::Account(ticket)) => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn snapshot(balance: &str, status: Status) -> Snapshot {
        Snapshot { balance: credits(balance), status, lots: Vec::new(), ts: 0, seq: 1 }
    }

    fn terms(key: Key, spent: &str) -> Terms {
        Terms::read::<()>(key, 1, 5, |_| Ok(credits(spent))).unwrap()
    }

    fn with(balance: &str, status: Status) -> Live {
        let live = Live::new(Duration::ZERO);
        let snapshot = snapshot(balance, status);
        live.insert(ticket(&live), account(), snapshot, Ways::default(), 5);
        live.insert_key(ticket(&live), &account(), "key_1", terms(key(), "0"), 5);
        live
    }

    #[test]
    fn only_more_than_nothing_admits() {
        for (balance, admitted) in [("0.000000001", true), ("0", false), ("-0.1", false)] {
            let answer = admit(&with(balance, Status::Open), "r", LENIENT);
            assert_eq!(answer.is_ok(), admitted, "at {balance}: {answer:?}");
        }
    }

    #[test]
    fn a_lot_admits_until_the_very_instant_of_its_end_and_time_does_not_step_back() {
        let lots = vec![(10, credits("0.4")), (20, credits("0.6"))];
        let snapshot = Snapshot { lots, ..snapshot("1", Status::Open) };
        for (now, usable) in [(9, "1"), (10, "0.6"), (19, "0.6"), (20, "0")] {
            assert_eq!(snapshot.usable(now), credits(usable), "at {now}");
        }
        let later = Snapshot { ts: 12, ..snapshot };
        assert_eq!(later.usable(5), credits("0.6"));
        assert_eq!(later.next_expiry(), Some(10));

        let live = with("1", Status::Open);
        live.set(&account(), later);
        let at = |now: Millis| admit_at(&live, &now.to_string(), LENIENT, now);
        assert_eq!(at(19), Ok(Admitted { balance: credits("0.6") }));
        assert_eq!(at(20), Err(Refused::OutOfCredits { balance: Credits::ZERO }));
    }

    #[test]
    fn an_account_that_is_not_open_admits_nothing() {
        for status in [Status::Closing, Status::Closed] {
            assert_eq!(admit(&with("1", status), "r", LENIENT), Err(Refused::NotOpen));
        }
    }

    #[test]
    fn a_place_is_taken_once_and_given_back_once() {
        let live = with("1", Status::Open);
        for _ in 0..2 {
            assert!(admit(&live, "one", LENIENT).is_ok());
        }
        assert!(admit(&live, "two", LENIENT).is_ok());
        let full = Err(Refused::TooManyInFlight { running: 2, limit: 2 });
        assert_eq!(admit(&live, "three", LENIENT), full);
        for _ in 0..2 {
            end(&live, "one");
        }
        assert!(admit(&live, "three", LENIENT).is_ok());
        assert_eq!(admit(&live, "four", LENIENT), full);
    }

    #[test]
    fn a_hold_must_fit_beside_the_others() {
        let live = with("1", Status::Open);
        let most = Some(credits("0.3"));
        let strict = Admission { mode: Mode::Strict, max_in_flight: 64, most, tokens: 0 };
        let admitted = (0..10).filter(|i| admit(&live, &i.to_string(), strict).is_ok()).count();
        assert_eq!((admitted, live.running(&account())), (3, (3, credits("0.9"))));
        end(&live, "0");
        assert_eq!(live.running(&account()), (2, credits("0.6")));
    }

    #[test]
    fn a_balance_that_was_read_before_a_commit_is_not_kept() {
        let live = Live::new(Duration::ZERO);
        let before = ticket(&live);
        live.set(&account(), snapshot("-1", Status::Open));
        live.insert(before, account(), snapshot("1", Status::Open), Ways::default(), 5);
        assert!(live.admit(&key(), &request("r"), LENIENT, 5).is_err());
    }

    #[test]
    fn a_long_request_is_told_once_and_a_finished_one_never() {
        let live = with("1", Status::Open);
        admit(&live, "short", LENIENT).unwrap();
        assert!(!end(&live, "short"));
        admit(&live, "long", LENIENT).unwrap();
        let flight = Flight {
            account: account(),
            key: "key_1".into(),
            request: request("long"),
            admitted_at: 5,
        };
        assert_eq!(live.long_running(), [flight]);
        assert_eq!(live.long_running(), []);
        assert!(end(&live, "long"));
    }

    fn daily(cap: &str) -> Key {
        let limits = KeyLimits { daily: Some(credits(cap)), ..KeyLimits::default() };
        Key { limits, ..key() }
    }

    /// A charge that was committed before the sums were read is in them already, though it is
    /// shown here only later; one that came after them is not.
    #[test]
    fn a_charge_counts_once_against_a_cap_whenever_the_key_was_read() {
        let live = with("9", Status::Open);
        live.forget_key(&account(), "key_1");
        let mut before = terms(daily("1"), "0.6");
        live.insert_key(ticket(&live), &account(), "key_1", before, 5);
        let charged = |seq| {
            let snapshot = Snapshot { seq, ..snapshot("9", Status::Open) };
            live.charged(&account(), "key_1", credits("0.3"), None, None, snapshot);
            live.key_use(&account(), "key_1", 5).unwrap().spend["daily"].used
        };
        assert_eq!(charged(1), credits("0.6"));
        assert_eq!(charged(2), credits("0.9"));
        assert_eq!(charged(3), credits("1.2"));
        live.forget_key(&account(), "key_1");
        let old = ticket(&live);
        live.charged(&account(), "key_1", credits("0.3"), None, None, snapshot("9", Status::Open));
        before = terms(daily("1"), "1.2");
        live.insert_key(old, &account(), "key_1", before, 5);
        assert!(matches!(live.key_use(&account(), "key_1", 5), Err(Missing::Key(_))));
    }

    #[test]
    fn many_keys_of_an_account_are_bounded_and_those_in_use_stay() {
        let live = with("1", Status::Open);
        admit(&live, "long", LENIENT).unwrap();
        for id in 0..=2 * KEYS {
            live.insert_key(ticket(&live), &account(), &id.to_string(), terms(key(), "0"), 5);
        }
        let known = live.lock().accounts[&account()].keys.len();
        assert!(known <= KEYS + 1, "{known}");
        assert_eq!(live.key_use(&account(), "key_1", 5).unwrap().in_flight, 1);
    }

    #[test]
    fn memory_is_bounded_and_accounts_with_requests_stay() {
        let live = with("1", Status::Open);
        admit(&live, "long", LENIENT).unwrap();
        let snapshot = snapshot("1", Status::Open);
        for id in 0..=2 * CAPACITY {
            let id = AccountId(id.to_string().into());
            live.insert(ticket(&live), id, snapshot.clone(), Ways::default(), 5);
        }
        assert!(live.lock().accounts.len() <= CAPACITY);
        assert_eq!(live.running(&account()).0, 1);
    }
}
