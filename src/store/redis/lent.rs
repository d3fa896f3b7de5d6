//! Places lent ahead: where many requests of an account come at once, a process is lent places
//! before it needs them, and admits by them without asking.
//!
//! Only requests that need no more than a positive balance are admitted so: in lenient mode, of
//! keys without limits and without an end. Each of them takes one place, and has it until its
//! settlement is answered; that answer also says what the balance is now, whether the key is
//! still as it was, and that both are believed for [`BELIEVED`] from when it was asked for. An
//! answer that says otherwise, or none, ends it at once: then all places of that time are given
//! back and none is used again.
//!
//! So the bound of lenient mode holds as it stands. The store counts the places that are lent
//! ahead among the `max_in_flight` of the account; and from the instant at which the balance is
//! used up, each place settles one request at most, because with that settlement its process has
//! learned of it. Whoever changes a key or an account waits for `BELIEVED` before it is done, so
//! that what is revoked is refused by all from then on.
//!
//! A request that runs for longer than [`TICK`] is given a place of its own (`board`), by which
//! all processes know of it. Places that are idle are given back within two ticks of the end of
//! what is believed; another process that finds none left waits that long before it refuses.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Shared;
use super::reply::{Odd, Reply};
use crate::billing::Credits;
use crate::store::{AccountId, Admission, Candidate, Key, Mode, StoreError};

/// How long what the store said of an account and a key is believed, from when it was asked.
pub(super) const BELIEVED: Duration = Duration::from_millis(100);
/// How often places that are idle, and requests that run for long, are looked for.
pub(super) const TICK: Duration = Duration::from_millis(50);
/// Requests that ask at once from which on places are lent ahead.
const MANY: usize = 4;
/// Requests that are given places of their own in one step.
const AT_ONCE: usize = 100;
/// More than are ever lent: takes back all.
const ALL: u64 = 1 << 40;

/// Whether requests may take places that were lent ahead, as scripts say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lending {
    /// Of this key and account.
    Yes,
    /// Not of this key.
    NotKey,
    /// Not of this account.
    NotAccount,
}

impl Lending {
    pub(super) fn read(word: &str) -> Result<Self, Odd> {
        match word {
            "yes" => Ok(Self::Yes),
            "key" => Ok(Self::NotKey),
            "account" => Ok(Self::NotAccount),
            _ => Err(Odd),
        }
    }
}

/// What the store said with an answer.
pub(super) struct News {
    pub lending: Lending,
    pub balance: Credits,
    /// When it was asked.
    pub asked: Instant,
}

/// What is lent to this process, by account.
pub(super) struct Lent {
    purses: Mutex<HashMap<AccountId, Purse>>,
    /// Tests that set the store's time have it asked each time.
    is_off: bool,
    /// This process among all, and how many purses it has had.
    process: String,
    next: AtomicU64,
}

/// The places of one account.
struct Purse {
    /// By which the store counts them.
    name: String,
    free: u64,
    /// To be given back: nobody takes them.
    owed: u64,
    /// How many may run at once, by which they were lent.
    limit: u32,
    balance: Credits,
    /// Until when what was said of a key is believed.
    keys: HashMap<String, Instant>,
    /// Goes up when nothing is believed any more: places that were taken before are owed.
    term: u64,
    runs: HashMap<String, Run>,
    /// How many places the store counts is not known: when nothing runs all are taken back.
    is_unclear: bool,
    lent_on: Instant,
}

/// A request that has one of the places.
struct Run {
    key: String,
    model: String,
    since: Instant,
    term: u64,
    /// It was asked to be given a place of its own.
    boards: bool,
    /// Its settlement is on its way.
    is_ending: bool,
    /// It ended while it was boarding; and without a settlement.
    has_ended: bool,
    is_released: bool,
}

/// Places that a process asks for ahead.
#[derive(Default)]
pub(super) struct Wanted {
    pub purse: String,
    pub places: usize,
}

/// What one account has to tell the store.
#[derive(Default)]
struct Errand {
    purse: String,
    back: Option<u64>,
    boarding: Vec<(String, String, String, Duration)>,
}

impl Purse {
    fn new(name: &str, limit: u32) -> Self {
        Self {
            name: name.into(),
            free: 0,
            owed: 0,
            limit,
            balance: Credits::ZERO,
            keys: HashMap::new(),
            term: 0,
            runs: HashMap::new(),
            is_unclear: false,
            lent_on: Instant::now(),
        }
    }

    /// Nothing that was said is believed any more.
    fn end_term(&mut self) {
        self.term += 1;
        self.owed += std::mem::take(&mut self.free);
        self.keys.clear();
    }

    /// A place is free again.
    fn take_back(&mut self, term: u64) {
        match term == self.term {
            true => self.free += 1,
            false => self.owed += 1,
        }
    }

    fn hear(&mut self, key: &str, news: &News) {
        match news.lending {
            Lending::NotAccount => self.end_term(),
            Lending::NotKey => drop(self.keys.remove(key)),
            Lending::Yes => {
                self.balance = news.balance;
                let until = news.asked + BELIEVED;
                match self.keys.get_mut(key) {
                    Some(believed) => *believed = until.max(*believed),
                    None => drop(self.keys.insert(key.into(), until)),
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.free == 0 && self.owed == 0
    }
}

impl Lent {
    pub(super) fn new(is_off: bool) -> Self {
        Self {
            purses: Mutex::default(),
            is_off,
            process: ulid::Ulid::generate().to_string(),
            next: AtomicU64::new(0),
        }
    }

    /// Admits a request by a place that is there; the balance as it was last heard of.
    pub(super) fn take(&self, key: &Key, request: &Candidate, how: Admission) -> Option<Credits> {
        if how.mode != Mode::Lenient {
            return None;
        }
        let mut purses = self.lock();
        let purse = purses.get_mut(&key.account)?;
        if purse.runs.contains_key(&request.id) {
            return Some(purse.balance);
        }
        let now = Instant::now();
        let believed = purse.keys.get(&key.id).is_some_and(|until| now < *until);
        if purse.free == 0 || !believed || purse.limit != how.max_in_flight {
            return None;
        }
        purse.free -= 1;
        let run = Run {
            key: key.id.clone(),
            model: request.model.clone(),
            since: now,
            term: purse.term,
            boards: false,
            is_ending: false,
            has_ended: false,
            is_released: false,
        };
        purse.runs.insert(request.id.clone(), run);
        Some(purse.balance)
    }

    /// The purse that places for so many requests that ask at once are lent to, and how many.
    pub(super) fn wanted(&self, account: &AccountId, asking: usize) -> Wanted {
        match self.lock().get(account) {
            Some(purse) if purse.is_unclear => Wanted::default(),
            Some(purse) => Wanted { purse: purse.name.clone(), places: 2 * asking },
            None if self.is_off || asking < MANY => Wanted::default(),
            None => {
                let n = self.next.fetch_add(1, Ordering::Relaxed);
                Wanted { purse: format!("{}-{n}", self.process), places: 2 * asking }
            }
        }
    }

    /// The store has lent places to a purse.
    pub(super) fn add(&self, account: &AccountId, name: &str, count: u64, limit: u32) {
        if count == 0 {
            return;
        }
        let mut purses = self.lock();
        let purse = purses.entry(account.clone()).or_insert_with(|| Purse::new(name, limit));
        match purse.limit == limit {
            true => purse.free += count,
            false => {
                purse.end_term();
                purse.limit = limit;
                purse.owed += count;
            }
        }
    }

    /// What the store said of a key, which asked for a place.
    pub(super) fn hear(&self, account: &AccountId, key: &str, news: &News) {
        if let Some(purse) = self.lock().get_mut(account) {
            purse.hear(key, news);
        }
    }

    /// The settlement of a request is on its way.
    pub(super) fn ending(&self, account: &AccountId, request: &str) {
        if let Some(run) = self.lock().get_mut(account).and_then(|p| p.runs.get_mut(request)) {
            run.is_ending = true;
        }
    }

    /// The settlement of a request was answered, with what the store said; or it was not.
    pub(super) fn ended(&self, account: &AccountId, request: &str, key: &str, news: Option<&News>) {
        let mut purses = self.lock();
        let Some(purse) = purses.get_mut(account) else { return };
        match news {
            Some(news) => purse.hear(key, news),
            None => purse.end_term(),
        }
        purse.end(request, false);
    }

    /// Ends a request that has a place here without a settlement; `false` if it has none.
    pub(super) fn release(&self, account: &AccountId, request: &str) -> bool {
        let mut purses = self.lock();
        purses.get_mut(account).is_some_and(|purse| purse.end(request, true))
    }

    /// Nothing that was said of an account is believed any more.
    pub(super) fn doubt(&self, account: &AccountId) {
        if let Some(purse) = self.lock().get_mut(account) {
            purse.end_term();
        }
    }

    /// How many places the store counts for a purse is not known.
    pub(super) fn lose_count(&self, account: &AccountId, name: &str) {
        let mut purses = self.lock();
        let purse = purses.entry(account.clone()).or_insert_with(|| Purse::new(name, 0));
        if purse.name == name {
            purse.end_term();
            purse.owed = 0;
            purse.is_unclear = true;
        }
    }

    /// What is to be told to the store of one account: `all` that runs, or what does for long.
    fn errand(&self, account: &AccountId, all: bool, lease: Duration) -> Option<Errand> {
        let mut purses = self.lock();
        let purse = purses.get_mut(account)?;
        let now = Instant::now();
        purse.keys.retain(|_, until| now < *until);
        if purse.keys.is_empty() && purse.free > 0 {
            purse.end_term();
        }
        let mut errand = Errand { purse: purse.name.clone(), ..Errand::default() };
        if purse.is_unclear && purse.runs.is_empty() {
            purses.remove(account);
            errand.back = Some(ALL);
            return Some(errand);
        }
        let owed = std::mem::take(&mut purse.owed);
        if owed > 0 || purse.lent_on.elapsed() > lease / 3 {
            purse.lent_on = now;
            errand.back = Some(owed);
        }
        for (id, run) in &mut purse.runs {
            let is_full = !all && errand.boarding.len() == AT_ONCE;
            let waits = is_full || run.boards || run.is_ending;
            let ran = now - run.since;
            if !waits && (all || ran >= TICK) {
                run.boards = true;
                errand.boarding.push((id.clone(), run.key.clone(), run.model.clone(), ran));
            }
        }
        if purse.is_empty() {
            purses.remove(account);
        }
        (errand.back.is_some() || !errand.boarding.is_empty()).then_some(errand)
    }

    /// A request was given a place of its own, or was settled before. What is to be done with
    /// that place: it is to be lent on, or to be given back.
    fn boarded(&self, account: &AccountId, request: &str, has_place: bool) -> Boarded {
        let mut purses = self.lock();
        let Some(purse) = purses.get_mut(account) else { return Boarded::Nothing };
        let Some(run) = purse.runs.get_mut(request) else { return Boarded::Nothing };
        run.boards = false;
        let (ended, released, ending) = (run.has_ended, run.is_released, run.is_ending);
        if has_place {
            purse.runs.remove(request);
            return match (released, ended || ending) {
                (true, _) => Boarded::GiveBack,
                (false, true) => Boarded::Nothing,
                (false, false) => Boarded::LendOn,
            };
        }
        if ended && let Some(run) = purse.runs.remove(request) {
            purse.take_back(run.term);
        }
        Boarded::Nothing
    }

    fn accounts(&self) -> Vec<AccountId> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, Purse>> {
        self.purses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Purse {
    /// A request has ended; `false` if it had no place here.
    fn end(&mut self, request: &str, is_released: bool) -> bool {
        let Some(run) = self.runs.get_mut(request) else { return false };
        if run.boards {
            // Whose its place is shows when that is answered.
            run.has_ended = true;
            run.is_released = is_released;
        } else if let Some(run) = self.runs.remove(request) {
            self.take_back(run.term);
        }
        true
    }
}

/// What becomes of a place that was given to a request of its own.
enum Boarded {
    Nothing,
    LendOn,
    GiveBack,
}

impl Shared {
    /// Tells the store what has changed since the last tick.
    pub(super) async fn tick(self: &Arc<Self>) {
        for account in self.lent.accounts() {
            self.run_errand(&account, false).await;
        }
    }

    /// Has the store know of all requests of an account that run here.
    pub(super) async fn tell_all(self: &Arc<Self>, account: &AccountId) {
        self.run_errand(account, true).await;
    }

    /// Gives back what is lent and not in use.
    pub(super) async fn give_all_back(self: &Arc<Self>) {
        for account in self.lent.accounts() {
            self.give_idle_back(&account).await;
        }
    }

    /// Gives back what is lent of an account and not in use.
    pub(super) async fn give_idle_back(self: &Arc<Self>, account: &AccountId) {
        self.lent.doubt(account);
        self.run_errand(account, false).await;
    }

    async fn run_errand(self: &Arc<Self>, account: &AccountId, all: bool) {
        let Some(errand) = self.lent.errand(account, all, self.lease) else { return };
        let mut sent = Ok(());
        if let Some(back) = errand.back {
            sent = self.give_back(account, &errand.purse, back).await;
        }
        if !errand.boarding.is_empty() {
            let boarded = self.board(account, &errand).await;
            self.heed_boarded(account, &errand, boarded.as_deref().ok());
            sent = sent.and(boarded.map(drop));
        }
        if let Err(error) = sent {
            tracing::debug!("places that were lent ahead could not be told of: {error}");
            self.lent.lose_count(account, &errand.purse);
        }
    }

    async fn give_back(
        &self,
        account: &AccountId,
        purse: &str,
        back: u64,
    ) -> Result<(), StoreError> {
        let call = self.call(&self.scripts.lend, account, &[]);
        let call = call.arg(purse).arg(back.to_string()).arg(self.lease.as_millis().to_string());
        self.link.run(&call).await?;
        Ok(())
    }

    async fn board(&self, account: &AccountId, errand: &Errand) -> Result<Vec<bool>, StoreError> {
        let script = &self.scripts.board;
        let ids: Vec<_> =
            errand.boarding.iter().map(|(id, ..)| self.names.request(account, id)).collect();
        let mut call = self.call(script, account, &ids);
        call.push(self.lease.as_millis().to_string());
        call.push(&errand.purse);
        call.push(script.fixed_keys().to_string());
        for (id, key, model, ran) in &errand.boarding {
            for word in [id, key, model] {
                call.push(word);
            }
            call.push(ran.as_millis().to_string());
        }
        let mut answers = Reply::of(self.link.run(&call).await?)?;
        let mut boarded = Vec::new();
        for _ in &errand.boarding {
            boarded.push(answers.text()? == "1");
        }
        // Should this process die, others find them.
        self.note_due(account, answers.number()?).await;
        Ok(boarded)
    }

    /// What the store answered to those who boarded; without an answer each may have a place.
    fn heed_boarded(
        self: &Arc<Self>,
        account: &AccountId,
        errand: &Errand,
        boarded: Option<&[bool]>,
    ) {
        for (n, (id, ..)) in errand.boarding.iter().enumerate() {
            let has_place = boarded.is_none_or(|boarded| boarded[n]);
            match self.lent.boarded(account, id, has_place) {
                Boarded::Nothing => {}
                Boarded::LendOn => self.running.begin(account, id),
                Boarded::GiveBack => self.send_release(account, id),
            }
        }
    }

    /// Waits until nobody admits by what was said of this account before, if places of it are
    /// lent ahead.
    pub(super) async fn outlive_belief(&self, lent: &str) {
        if lent != "0" {
            tokio::time::sleep(BELIEVED).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::examples::{LENIENT, account, credits, key_1, request};

    const NAME: &str = "purse";

    fn news(lending: Lending) -> News {
        News { lending, balance: credits("1"), asked: Instant::now() }
    }

    /// Three places, and a key that is believed.
    fn three_places() -> Lent {
        let lent = Lent::new(false);
        lent.add(&account(), NAME, 3, LENIENT.max_in_flight);
        lent.hear(&account(), "key_1", &news(Lending::Yes));
        lent
    }

    fn take(lent: &Lent, id: &str) -> bool {
        lent.take(&key_1(), &request(id), LENIENT).is_some()
    }

    /// How many more requests could take a place.
    fn free(lent: &Lent) -> u64 {
        lent.lock().get(&account()).map_or(0, |purse| purse.free)
    }

    fn errand(lent: &Lent) -> Option<Errand> {
        lent.errand(&account(), true, Duration::from_secs(60))
    }

    fn settled(lent: &Lent, id: &str, lending: Lending) {
        lent.ending(&account(), id);
        lent.ended(&account(), id, "key_1", Some(&news(lending)));
    }

    #[test]
    fn as_many_requests_as_places_are_admitted_and_the_same_one_again_takes_no_second() {
        let lent = three_places();
        assert!(take(&lent, "a") && take(&lent, "a") && take(&lent, "b") && take(&lent, "c"));
        assert!(!take(&lent, "d"));
        settled(&lent, "b", Lending::Yes);
        assert!(take(&lent, "d") && !take(&lent, "e"));
    }

    #[test]
    fn nothing_is_admitted_by_a_place_in_another_mode_or_by_another_number_or_key() {
        let lent = three_places();
        for mode in [Mode::OneRequest, Mode::Strict] {
            assert!(lent.take(&key_1(), &request("a"), Admission { mode, ..LENIENT }).is_none());
        }
        let how = Admission { max_in_flight: 3, ..LENIENT };
        assert!(lent.take(&key_1(), &request("a"), how).is_none());
        let key = Key { id: "key_2".into(), ..key_1() };
        assert!(lent.take(&key, &request("a"), LENIENT).is_none());
    }

    #[test]
    fn a_place_that_was_taken_before_an_end_of_what_is_believed_is_given_back_and_not_used_again() {
        let lent = three_places();
        assert!(take(&lent, "a") && take(&lent, "b"));
        settled(&lent, "a", Lending::NotAccount);
        // Others are lent since; those of before come back in any order.
        lent.add(&account(), NAME, 1, LENIENT.max_in_flight);
        lent.hear(&account(), "key_1", &news(Lending::Yes));
        settled(&lent, "b", Lending::Yes);
        assert_eq!(free(&lent), 1);
        assert_eq!(errand(&lent).unwrap().back, Some(3));
        assert!(take(&lent, "c") && !take(&lent, "d"));
    }

    #[test]
    fn what_is_said_is_believed_from_when_it_was_asked_and_no_longer_than_it_holds() {
        let lent = three_places();
        let old = News { asked: Instant::now() - BELIEVED, ..news(Lending::Yes) };
        lent.hear(&account(), "key_2", &old);
        let key = Key { id: "key_2".into(), ..key_1() };
        assert!(lent.take(&key, &request("a"), LENIENT).is_none());
        // An old answer that comes late does not shorten what a newer one said.
        lent.hear(&account(), "key_1", &old);
        assert!(take(&lent, "a"));
        lent.hear(&account(), "key_1", &news(Lending::NotKey));
        assert!(!take(&lent, "b"));
        // Nothing is believed any more: all that is idle goes back.
        assert_eq!(errand(&lent).unwrap().back, Some(2));
    }

    #[test]
    fn a_place_that_was_given_to_a_request_of_its_own_is_not_in_the_purse_any_more() {
        let lent = three_places();
        assert!(take(&lent, "a") && take(&lent, "b") && take(&lent, "c"));
        assert_eq!(errand(&lent).unwrap().boarding.len(), 3);
        assert!(errand(&lent).is_none(), "they are asked for once");
        // One goes on, one was dropped meanwhile, one was settled before it was asked for.
        lent.release(&account(), "b");
        settled(&lent, "c", Lending::Yes);
        assert!(matches!(lent.boarded(&account(), "a", true), Boarded::LendOn));
        assert!(matches!(lent.boarded(&account(), "b", true), Boarded::GiveBack));
        assert!(matches!(lent.boarded(&account(), "c", false), Boarded::Nothing));
        assert_eq!(free(&lent), 1);
        assert!(!lent.release(&account(), "a"), "its place is the store's affair");
    }

    #[test]
    fn where_the_count_is_lost_nothing_is_admitted_and_all_is_taken_back_once_nothing_runs() {
        let lent = three_places();
        assert!(take(&lent, "a"));
        lent.lose_count(&account(), NAME);
        assert!(!take(&lent, "b"));
        assert_eq!(lent.wanted(&account(), 100).places, 0);
        assert!(errand(&lent).is_some_and(|errand| errand.back.is_none()), "one still runs");
        lent.release(&account(), "a");
        lent.boarded(&account(), "a", false);
        assert_eq!(errand(&lent).unwrap().back, Some(ALL));
        assert!(lent.accounts().is_empty());
    }
}
