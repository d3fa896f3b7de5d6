//! One account by the rules of `billing` alone: what both stores are held to.

use std::collections::{BTreeMap, HashMap};

use crate::billing::ledger::{Book, Booking, Class, Expiry, LedgerError, Lot, NewLot, expiry};
use crate::billing::limit::Period;
use crate::store::{Admission, KeyLimits, Mode, Outcome, Spend};

use super::super::*;
use super::steps::{Came, KEYS, Step, refused};

pub(super) struct Model {
    id: AccountId,
    pub status: Status,
    pub balance: Credits,
    /// The time that was written last. Time never steps back behind it.
    ts: Millis,
    pub lots: Vec<Lot>,
    pub entries: Vec<Entry>,
    /// How many of them are gone, from the first.
    pub trimmed: usize,
    limits: [KeyLimits; KEYS],
    /// What is held for each request that runs.
    running: BTreeMap<usize, Credits>,
    /// Of which key, when and how much.
    charges: Vec<(usize, Millis, Credits)>,
    done: HashMap<String, (String, Came)>,
}

impl Model {
    pub(super) fn new(id: AccountId, now: Millis) -> Self {
        Self {
            id,
            status: Status::Open,
            balance: Credits::ZERO,
            ts: now,
            lots: Vec::new(),
            entries: Vec::new(),
            trimmed: 0,
            limits: Default::default(),
            running: BTreeMap::new(),
            charges: Vec::new(),
            done: HashMap::new(),
        }
    }

    /// What is from before an instant goes; balance and lots stay as they are.
    pub(super) fn trim(&mut self, before: Millis) {
        let old = self.entries.iter().take_while(|entry| entry.ts < before).count();
        self.trimmed = self.trimmed.max(old);
    }

    /// The entries that were not trimmed.
    pub(super) fn kept(&self) -> &[Entry] {
        &self.entries[self.trimmed..]
    }

    /// The numbers of the requests that run.
    pub(super) fn running(&self) -> impl Iterator<Item = usize> {
        self.running.keys().copied()
    }

    /// Whether a request was settled.
    pub(super) fn is_done(&self, n: usize) -> bool {
        self.done.contains_key(&format!("r{n}"))
    }

    /// Whether nothing more can happen to it but its end.
    pub(super) fn may_end(&self) -> bool {
        self.status == Status::Closing && self.running.is_empty()
    }

    /// The process that served its requests died.
    pub(super) fn abandon(&mut self) {
        self.running.clear();
    }

    pub(super) fn take(&mut self, step: &Step, now: Millis) -> Came {
        match step {
            Step::Admit { n, how } => return Came::Admitted(self.admit(*n, how, now)),
            Step::Release { n } => {
                self.running.remove(n);
                return Came::Released;
            }
            Step::Limits { key, limits } => {
                self.limits[*key] = limits.clone();
                return Came::Limited;
            }
            // Whatever is answered, the request has ended.
            Step::Settle { n, .. } => drop(self.running.remove(n)),
            _ => {}
        }
        let (id, content) = identity(step);
        if let Some((before, came)) = self.done.get(&id) {
            let conflict = StoreError::Conflict(format!("the id {id} was used with other content"));
            return match came {
                _ if *before != content => refused(&conflict),
                Came::Settled { balance, .. } => {
                    Came::Settled { balance: *balance, duplicate: true }
                }
                Came::Granted { entry, .. } => {
                    Came::Granted { entry: entry.clone(), duplicate: true }
                }
                Came::Seen(..) => self.seen(now),
                other => unreachable!("{other:?} is not remembered"),
            };
        }
        match self.book(&id, step, now) {
            Ok(came) => {
                self.done.insert(id, (content, came.clone()));
                came
            }
            Err(error) => refused(&error),
        }
    }

    fn admit(&mut self, n: usize, how: &Admission, now: Millis) -> Result<Admitted, Refused> {
        let now = now.max(self.ts);
        let (balance, held, running) = (self.usable(now), self.held(), self.running.len());
        if self.running.contains_key(&n) {
            return Ok(Admitted { balance });
        }
        let Admission { mode, max_in_flight: limit, most, .. } = *how;
        let running = u32::try_from(running).unwrap();
        if self.status != Status::Open {
            return Err(Refused::NotOpen);
        }
        if !balance.is_positive() {
            return Err(Refused::OutOfCredits { balance });
        }
        if mode == Mode::Strict && most.is_none() {
            return Err(Refused::Unbounded);
        }
        if !mode.admits(balance, held, most) {
            let most = most.filter(|_| mode == Mode::Strict);
            return Err(Refused::HoldDoesNotFit { balance, held, most });
        }
        if running >= limit {
            return Err(Refused::TooManyInFlight { running, limit });
        }
        self.check_key(n % KEYS, how, now)?;
        self.running.insert(n, mode.hold(balance - held, most));
        Ok(Admitted { balance })
    }

    fn check_key(&self, key: usize, how: &Admission, now: Millis) -> Result<(), Refused> {
        let limits = &self.limits[key];
        let (running, held) = self.of_key(key);
        for (period, cap) in limits.caps() {
            let (spent, resets_at) = self.spent(key, period, now);
            if !how.mode.admits(cap - spent, held, how.most) {
                return Err(Refused::KeySpend { period, cap, spent, held, resets_at });
            }
        }
        match limits.max_in_flight {
            Some(limit) if running >= limit => Err(Refused::KeyInFlight { running, limit }),
            _ => Ok(()),
        }
    }

    /// How many requests of a key run, and what is held for them.
    fn of_key(&self, key: usize) -> (u32, Credits) {
        let own = || self.running.iter().filter(|(n, _)| **n % KEYS == key);
        (u32::try_from(own().count()).unwrap(), own().map(|(_, held)| *held).sum())
    }

    /// What a key was charged in the period of now, and when the next begins.
    fn spent(&self, key: usize, period: Period, now: Millis) -> (Credits, Option<Millis>) {
        let range = period.around(now, &self.limits[key].time_zone());
        let counts = |(of, ts, _): &&(usize, Millis, _)| *of == key && range.contains(ts);
        let spent = self.charges.iter().filter(counts).map(|(.., charge)| *charge).sum();
        (spent, (period != Period::Total).then_some(range.end))
    }

    /// What is used of a key's limits.
    pub(super) fn key_use(&self, key: usize, now: Millis) -> KeyUse {
        let (in_flight, held) = self.of_key(key);
        let spend = self.limits[key].caps().map(|(period, limit)| {
            let (used, resets_at) = self.spent(key, period, now.max(self.ts));
            (period.cap().to_owned(), Spend { limit, used, resets_at })
        });
        KeyUse { spend: spend.collect(), held, in_flight, ..KeyUse::default() }
    }

    fn held(&self) -> Credits {
        self.running.values().copied().sum()
    }

    /// The balance, what has ended taken off.
    fn usable(&self, now: Millis) -> Credits {
        let ended = self.lots.iter().filter(|lot| lot.expires_at <= now);
        self.balance - ended.map(|lot| lot.remaining).sum()
    }

    pub(super) fn seen(&self, now: Millis) -> Came {
        let balance = self.usable(now.max(self.ts));
        Came::Seen(self.status, balance, self.held(), self.running.len())
    }

    fn book(&mut self, id: &str, step: &Step, now: Millis) -> Result<Came, StoreError> {
        let ts = now.max(self.ts);
        let full = self.lots.iter().filter(|lot| lot.remaining.is_positive()).copied();
        let (mut book, expired) = Book::open(self.balance, full.collect(), ts)?;
        let mut written = Written { note: Some("by hand".into()), ..Written::default() };
        match step {
            Step::Settle { n, charge, outcome } => {
                let charge = Credits::from_nano(*charge);
                let late = self.status == Status::Closed;
                let taken = if late { Credits::ZERO } else { charge };
                let booking = book.debit(Kind::DebitAi, taken)?;
                self.charges.push((n % KEYS, ts, taken));
                let is_charged = charge.is_positive();
                written.note = (late && is_charged)
                    .then(|| format!("not charged, the account was closed: {charge}"));
                if is_charged || *outcome == Outcome::Completed {
                    written.booking = Some(booking);
                }
            }
            Step::Look { .. } => {
                written = Written {
                    booking: Some(book.debit(Kind::DebitAi, Credits::ZERO)?),
                    ..Written::default()
                };
            }
            Step::Grant { kind, amount, expires, .. } => {
                let amount = Credits::from_nano(*amount);
                self.may_grant(*kind, amount)?;
                written.booking = Some(self.credit(&mut book, *kind, amount, *expires, ts)?);
            }
            Step::Refund { of, amount, .. } => {
                self.must_be_open(self.status == Status::Open)?;
                let debit = self.undone(of, Kind::DebitAi, "charged request")?;
                let (before, amount) = self.amount_of(&debit, *amount)?;
                for part in &debit.parts {
                    if let Place::Lot(lot) = part.place {
                        book.recall(self.lots[usize::try_from(lot).unwrap() - 1]);
                    }
                }
                let booking = book.refund(&debit.parts, before, amount, self.next_lot(), ts)?;
                (written.booking, written.undoes) = (Some(booking), Some(debit.seq));
            }
            Step::Reverse { of, amount, .. } => {
                self.must_be_open(self.status != Status::Closed)?;
                let payment = self.undone(of, Kind::Topup, "payment")?;
                let (before, amount) = self.amount_of(&payment, *amount)?;
                let lot = payment.parts.iter().find_map(|part| part.place.into());
                let booking = book.reverse(payment.amount, lot, before, amount)?;
                (written.booking, written.undoes) = (Some(booking), Some(payment.seq));
            }
            Step::Close { .. } => return Ok(self.close(book, expired, ts)),
            Step::Admit { .. } | Step::Release { .. } | Step::Limits { .. } => unreachable!(),
        }
        self.write_off(expired, ts);
        let is_settlement = matches!(step, Step::Settle { .. } | Step::Look { .. });
        let entry = written
            .booking
            .map(|booking| self.append(booking, id, written.note.as_deref(), written.undoes));
        self.keep(&book);
        Ok(match entry {
            Some(entry) if !is_settlement => {
                Came::Granted { entry: Box::new(entry), duplicate: false }
            }
            _ => Came::Settled { balance: self.balance, duplicate: false },
        })
    }

    /// From now on nothing is admitted; once nothing runs, what is left is forfeited.
    fn close(&mut self, mut book: Book, expired: Vec<Booking>, ts: Millis) -> Came {
        self.write_off(expired, ts);
        if self.status == Status::Open {
            self.status = Status::Closing;
        }
        if self.may_end() {
            let forfeited = book.forfeit();
            self.write_off(forfeited, ts);
            self.status = Status::Closed;
        }
        self.keep(&book);
        self.seen(ts)
    }

    fn credit(
        &self,
        book: &mut Book,
        kind: Kind,
        amount: Credits,
        asked: Option<Expiry>,
        ts: Millis,
    ) -> Result<Booking, LedgerError> {
        let class = if kind == Kind::Promo { Class::Promo } else { Class::Usage };
        let asked = asked.filter(|_| class == Class::Promo);
        let expires_at = expiry::of_grant(class, asked, ts);
        let new = NewLot { number: self.next_lot(), class, effective_at: ts, expires_at };
        match kind {
            Kind::Adjust => book.adjust(amount, new),
            _ => book.credit(kind, amount, new),
        }
    }

    fn next_lot(&self) -> u64 {
        self.lots.len() as u64 + 1
    }

    fn may_grant(&self, kind: Kind, amount: Credits) -> Result<(), StoreError> {
        let debt = (-self.balance).max(Credits::ZERO);
        let writes_debt_off = kind == Kind::Adjust
            && self.status == Status::Closed
            && amount.is_positive()
            && amount <= debt;
        self.must_be_open(self.status == Status::Open || writes_debt_off)
    }

    fn must_be_open(&self, is_so: bool) -> Result<(), StoreError> {
        let (id, status) = (&self.id, self.status.name());
        let what = format!("the account {id} is {status} and takes no credits");
        if is_so { Ok(()) } else { Err(StoreError::Conflict(what)) }
    }

    /// Entries that time makes.
    fn write_off(&mut self, bookings: Vec<Booking>, ts: Millis) {
        self.ts = ts;
        for booking in bookings {
            let lot = Option::<u64>::from(booking.parts[0].place).unwrap();
            self.append(booking, &format!("lot_{lot}"), None, None);
        }
    }

    fn keep(&mut self, book: &Book) {
        assert_eq!(self.balance, book.balance());
        for lot in book.lots() {
            match self.lots.iter_mut().find(|known| known.number == lot.number) {
                Some(known) => *known = *lot,
                None => self.lots.push(*lot),
            }
        }
        self.lots.sort_by_key(|lot| lot.number);
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
        let is_it = |entry: &&Entry| entry.reference == of && entry.kind == kind;
        if let Some(entry) = self.kept().iter().find(is_it) {
            return Ok(entry.clone());
        }
        // The ids of payments are kept for ever.
        if let Some(entry) = self.entries.iter().find(is_it).filter(|_| kind == Kind::Topup) {
            return Err(StoreError::Conflict(format!(
                "{of} was booked as entry {}, which was trimmed; correct the balance by an \
                 adjustment",
                entry.seq
            )));
        }
        let why = match self.trimmed {
            0 => "",
            _ => " (if it was trimmed, correct the balance)",
        };
        Err(StoreError::NotFound(format!("{what} {of}{why}")))
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

/// What an operation writes; without a booking it is only remembered.
#[derive(Default)]
struct Written {
    booking: Option<Booking>,
    note: Option<String>,
    undoes: Option<u64>,
}

/// The id of a step, and what must be the same when it comes again.
fn identity(step: &Step) -> (String, String) {
    match step {
        Step::Settle { n, charge, .. } => (format!("r{n}"), charge.to_string()),
        Step::Look { id }
        | Step::Grant { id, .. }
        | Step::Refund { id, .. }
        | Step::Reverse { id, .. }
        | Step::Close { id } => (id.clone(), format!("{step:?}")),
        Step::Admit { .. } | Step::Release { .. } | Step::Limits { .. } => unreachable!(),
    }
}
