//! Accounts in memory: admission decides here, without the database.
//!
//! An account is read when it is first used. From then on the writer sets it after
//! every commit, so what is here is what was committed last. Lots that end count no more at
//! that very instant, before anything is written.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::billing::Credits;
use crate::billing::audit::Hold;
use crate::store::{AccountId, Admission, Admitted, Candidate, Millis, Refused, Status};

/// Accounts kept before those without running requests are forgotten.
const CAPACITY: usize = 65_536;

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
    /// Accounts that changed while they were not here.
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
    held: Credits,
    running: HashMap<Arc<str>, Running>,
}

struct Running {
    key: String,
    model: String,
    admitted_at: Millis,
    held: Credits,
    /// It has a row, which must go when it ends.
    noted: bool,
}

/// Taken before an account is read from the database: what is read is kept only if no change
/// has been missed since.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// A request that has run for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flight {
    pub account: AccountId,
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
        account: &AccountId,
        request: &Candidate,
        how: Admission,
        now: Millis,
    ) -> Result<Result<Admitted, Refused>, Ticket> {
        let mut inner = self.lock();
        let Inner { accounts, admitted, missed, .. } = &mut *inner;
        let Some(state) = accounts.get_mut(account) else { return Err(Ticket(*missed)) };
        let balance = state.snapshot.usable(now);
        if state.running.contains_key(request.id.as_str()) {
            return Ok(Ok(Admitted { balance }));
        }
        if let Err(refused) = state.may_run(how, balance) {
            return Ok(Err(refused));
        }
        let id: Arc<str> = request.id.as_str().into();
        admitted.push_back((Instant::now(), account.clone(), id.clone()));
        state.held += how.hold;
        let running = Running {
            key: request.key.clone(),
            model: request.model.clone(),
            admitted_at: now,
            held: how.hold,
            noted: false,
        };
        state.running.insert(id, running);
        Ok(Ok(Admitted { balance }))
    }

    /// Keeps an account that was read, unless it is here or what was read may be old.
    pub(super) fn insert(&self, ticket: Ticket, account: AccountId, snapshot: Snapshot) {
        let mut inner = self.lock();
        if ticket != Ticket(inner.missed) || inner.accounts.contains_key(&account) {
            return;
        }
        if inner.accounts.len() >= inner.sweep_at {
            inner.accounts.retain(|_, state| !state.running.is_empty());
            inner.sweep_at = CAPACITY.max(2 * inner.accounts.len());
        }
        let state = State { snapshot, held: Credits::ZERO, running: HashMap::new() };
        inner.accounts.insert(account, state);
    }

    /// Sets what was committed.
    pub(super) fn set(&self, account: &AccountId, snapshot: Snapshot) {
        let mut inner = self.lock();
        match inner.accounts.get_mut(account) {
            Some(state) => state.snapshot = snapshot,
            None => inner.missed += 1,
        }
    }

    /// Gives a place back. True if the request has a row that must go.
    pub(super) fn end(&self, account: &AccountId, request: &str) -> bool {
        let mut inner = self.lock();
        let Some(state) = inner.accounts.get_mut(account) else { return false };
        let Some(running) = state.running.remove(request) else { return false };
        state.held = state.held - running.held;
        running.noted
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
            let request = Candidate {
                id: id.to_string(),
                key: running.key.clone(),
                model: running.model.clone(),
            };
            flights.push(Flight { account, request, admitted_at: running.admitted_at });
        }
        flights
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn in_flight(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(u32::MAX)
    }

    fn may_run(&self, how: Admission, balance: Credits) -> Result<(), Refused> {
        let running = self.in_flight();
        // Without a hold the balance alone decides, whatever is held for others.
        let hold_fits = how.hold == Credits::ZERO || balance - self.held >= how.hold;
        if self.snapshot.status != Status::Open {
            Err(Refused::NotOpen)
        } else if !balance.is_positive() || !hold_fits {
            Err(Refused::OutOfCredits { balance })
        } else if running >= how.max_in_flight {
            Err(Refused::TooManyInFlight { running, limit: how.max_in_flight })
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENIENT: Admission = Admission { max_in_flight: 2, hold: Credits::ZERO };

    fn account() -> AccountId {
        AccountId("a".into())
    }

    fn request(id: &str) -> Candidate {
        Candidate { id: id.into(), key: "key_1".into(), model: "m".into() }
    }

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    fn admit(live: &Live, id: &str, how: Admission) -> Result<Admitted, Refused> {
        live.admit(&account(), &request(id), how, 5).ok().expect("the account is here")
    }

    fn ticket(live: &Live) -> Ticket {
        live.admit(&AccountId("nobody".into()), &request("r"), LENIENT, 5).unwrap_err()
    }

    fn snapshot(balance: &str, status: Status) -> Snapshot {
        Snapshot { balance: credits(balance), status, lots: Vec::new(), ts: 0 }
    }

    fn with(balance: &str, status: Status) -> Live {
        let live = Live::new(Duration::ZERO);
        let snapshot = snapshot(balance, status);
        live.insert(ticket(&live), account(), snapshot);
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
        let at = |now: Millis| {
            let request = request(&now.to_string());
            live.admit(&account(), &request, LENIENT, now).ok().expect("the account is here")
        };
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
            live.end(&account(), "one");
        }
        assert!(admit(&live, "three", LENIENT).is_ok());
        assert_eq!(admit(&live, "four", LENIENT), full);
    }

    #[test]
    fn a_hold_must_fit_beside_the_others() {
        let live = with("1", Status::Open);
        let strict = Admission { max_in_flight: 64, hold: credits("0.3") };
        let admitted = (0..10).filter(|i| admit(&live, &i.to_string(), strict).is_ok()).count();
        assert_eq!((admitted, live.running(&account())), (3, (3, credits("0.9"))));
        live.end(&account(), "0");
        assert_eq!(live.running(&account()), (2, credits("0.6")));
    }

    #[test]
    fn a_balance_that_was_read_before_a_commit_is_not_kept() {
        let live = Live::new(Duration::ZERO);
        let before = ticket(&live);
        live.set(&account(), snapshot("-1", Status::Open));
        live.insert(before, account(), snapshot("1", Status::Open));
        assert!(live.admit(&account(), &request("r"), LENIENT, 5).is_err());
    }

    #[test]
    fn a_long_request_is_told_once_and_a_finished_one_never() {
        let live = with("1", Status::Open);
        admit(&live, "short", LENIENT).unwrap();
        assert!(!live.end(&account(), "short"));
        admit(&live, "long", LENIENT).unwrap();
        let flight = Flight { account: account(), request: request("long"), admitted_at: 5 };
        assert_eq!(live.long_running(), [flight]);
        assert_eq!(live.long_running(), []);
        assert!(live.end(&account(), "long"));
    }

    #[test]
    fn memory_is_bounded_and_accounts_with_requests_stay() {
        let live = with("1", Status::Open);
        admit(&live, "long", LENIENT).unwrap();
        let snapshot = snapshot("1", Status::Open);
        for id in 0..=2 * CAPACITY {
            live.insert(ticket(&live), AccountId(id.to_string().into()), snapshot.clone());
        }
        assert!(live.lock().accounts.len() <= CAPACITY);
        assert_eq!(live.running(&account()).0, 1);
    }
}
