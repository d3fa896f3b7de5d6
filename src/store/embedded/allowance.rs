//! What a key may still do: its requests that run, its spend caps and its limits a minute.
//!
//! Caps are sums of the ledger, read when the key is first used and counted on from then on;
//! limits a minute begin anew with the process. A key without limits costs one look.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::billing::Credits;
use crate::billing::limit::{Bucket, Full, Mode, Period};
use crate::store::{Admission, Key, KeyLimits, KeyUse, Measure, Millis, RateUse, Refused, Spend};

/// A key in memory.
pub(super) struct Allowance {
    pub id: Arc<str>,
    /// `None`: it has changed, and must be read before it is used again.
    terms: Option<Terms>,
    running: u32,
    held: Credits,
    /// Which `terms` these are: a charge counts once in each.
    reading: u64,
    requests: Bucket,
    tokens: Bucket,
}

/// A key as it was read, and what it has spent.
pub(super) struct Terms {
    key: Key,
    /// Unless it has no caps, whose calendar it is.
    zone: TimeZone,
    caps: Vec<Cap>,
    /// The account's last entry that `caps` count.
    seq: u64,
}

struct Cap {
    period: Period,
    cap: Credits,
    spent: Credits,
    /// What is counted: from `since`, before `until`.
    since: Millis,
    until: Millis,
}

/// One reading of a key's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading(u64);

impl Terms {
    /// A key, its charges summed by `spent` over the periods of its caps around `now`, as of
    /// the account's entry `seq`.
    pub(super) fn read<E>(
        key: Key,
        seq: u64,
        now: Millis,
        mut spent: impl FnMut(std::ops::Range<Millis>) -> Result<Credits, E>,
    ) -> Result<Self, E> {
        let has_caps = key.limits.caps().next().is_some();
        let zone = if has_caps { key.limits.time_zone() } else { TimeZone::UTC };
        let mut caps = Vec::new();
        for (period, cap) in key.limits.caps() {
            let range = period.around(now, &zone);
            let (since, until) = (range.start, range.end);
            caps.push(Cap { period, cap, spent: spent(range)?, since, until });
        }
        Ok(Self { key, zone, caps, seq })
    }

    /// Begins the periods that have begun. None ever begins again.
    fn roll(&mut self, now: Millis) {
        let Self { caps, zone, .. } = self;
        for cap in caps.iter_mut().filter(|cap| cap.until <= now) {
            let range = cap.period.around(now, zone);
            (cap.spent, cap.since, cap.until) = (Credits::ZERO, range.start, range.end);
        }
    }

    /// Counts a charge of an instant, which may be before what has begun since.
    fn count(&mut self, charge: Credits, ts: Millis) {
        self.roll(ts);
        for cap in self.caps.iter_mut().filter(|cap| cap.since <= ts) {
            cap.spent += charge;
        }
    }
}

impl Cap {
    fn resets_at(&self) -> Option<Millis> {
        (self.period != Period::Total).then_some(self.until)
    }
}

impl Allowance {
    pub(super) fn new(id: &str) -> Self {
        Self {
            id: id.into(),
            terms: None,
            running: 0,
            held: Credits::ZERO,
            reading: 0,
            requests: Bucket::default(),
            tokens: Bucket::default(),
        }
    }

    pub(super) fn is_read(&self) -> bool {
        self.terms.is_some()
    }

    pub(super) fn set_terms(&mut self, terms: Terms) {
        self.reading += 1;
        self.terms = Some(terms);
    }

    /// It has changed: what is known of it is old.
    pub(super) fn forget_terms(&mut self) {
        self.terms = None;
    }

    /// Whether a new one would be the same.
    pub(super) fn is_idle(&self, now: Millis) -> bool {
        let empty = |bucket: &Bucket, limit: fn(&KeyLimits) -> Option<u64>| {
            let limit = self.terms.as_ref().and_then(|terms| limit(&terms.key.limits));
            limit.is_none_or(|limit| bucket.is_empty(limit, now))
        };
        self.running == 0
            && empty(&self.requests, |limits| limits.requests_per_minute)
            && empty(&self.tokens, |limits| limits.tokens_per_minute)
    }

    /// Whether the key is still valid.
    pub(super) fn check_valid(&self, now: Millis) -> Result<(), Refused> {
        let Some(Terms { key, .. }) = &self.terms else { return Ok(()) };
        let revoked = key.revoked_at.is_some();
        if revoked || key.expires_at.is_some_and(|end| end <= now) {
            return Err(Refused::KeyEnded { revoked });
        }
        Ok(())
    }

    /// Whether its limits leave room for a request. Counts nothing.
    pub(super) fn check_limits(
        &mut self,
        mode: Mode,
        how: &Admission,
        now: Millis,
    ) -> Result<(), Refused> {
        let Some(terms) = &mut self.terms else { return Ok(()) };
        terms.roll(now);
        for cap in &terms.caps {
            if !mode.admits(cap.cap - cap.spent, self.held, how.most) {
                return Err(Refused::KeySpend {
                    period: cap.period,
                    cap: cap.cap,
                    spent: cap.spent,
                    held: self.held,
                    resets_at: cap.resets_at(),
                });
            }
        }
        let limits = &terms.key.limits;
        if let Some(limit) = limits.max_in_flight.filter(|limit| self.running >= *limit) {
            return Err(Refused::KeyInFlight { running: self.running, limit });
        }
        let full =
            |of, limit| move |Full { used, wait_ms }| Refused::KeyRate { of, limit, used, wait_ms };
        if let Some(limit) = limits.requests_per_minute {
            self.requests.fits(limit, 1, now).map_err(full(Measure::Requests, limit))?;
        }
        if let Some(limit) = limits.tokens_per_minute {
            self.tokens.fits(limit, how.tokens, now).map_err(full(Measure::Tokens, limit))?;
        }
        Ok(())
    }

    /// A request was admitted.
    pub(super) fn begin(&mut self, hold: Credits, tokens: u64, now: Millis) {
        self.running += 1;
        self.held += hold;
        let Some(Terms { key: Key { limits, .. }, .. }) = &self.terms else { return };
        if let Some(limit) = limits.requests_per_minute {
            self.requests.add(limit, 1, now);
        }
        if let Some(limit) = limits.tokens_per_minute {
            self.tokens.add(limit, tokens, now);
        }
    }

    /// A request ended that was admitted with so many tokens and has used so many.
    pub(super) fn end(&mut self, hold: Credits, expected: u64, used: u64, now: Millis) {
        self.running = self.running.saturating_sub(1);
        self.held = self.held - hold;
        let limits = self.terms.as_ref().map(|terms| &terms.key.limits);
        if let Some(limit) = limits.and_then(|limits| limits.tokens_per_minute) {
            if used > expected {
                self.tokens.add(limit, used - expected, now);
            } else {
                self.tokens.take_out(limit, expected - used, now);
            }
        }
    }

    /// A charge was answered that is not booked. Where it is counted; `None` if what is read now
    /// lacks it.
    pub(super) fn charge(&mut self, charge: Credits, now: Millis) -> Option<Reading> {
        self.terms.as_mut()?.count(charge, now);
        Some(Reading(self.reading))
    }

    /// A charge was committed, as the account's entry `seq`. False if what is read now may
    /// lack it.
    pub(super) fn charged(
        &mut self,
        charge: Credits,
        counted: Option<Reading>,
        seq: u64,
        ts: Millis,
    ) -> bool {
        let Some(terms) = &mut self.terms else { return false };
        if seq > terms.seq {
            terms.seq = seq;
            if counted != Some(Reading(self.reading)) {
                terms.count(charge, ts);
            }
        }
        true
    }

    /// What is used of its limits.
    pub(super) fn in_use(&mut self, now: Millis) -> KeyUse {
        let mut answer = KeyUse { held: self.held, in_flight: self.running, ..KeyUse::default() };
        let Some(terms) = &mut self.terms else { return answer };
        terms.roll(now);
        answer.spend = terms.caps.iter().map(spend).collect::<BTreeMap<_, _>>();
        let KeyLimits { requests_per_minute, tokens_per_minute, .. } = terms.key.limits;
        let of = |bucket: &Bucket, limit: Option<u64>| {
            limit.map(|limit| RateUse { limit, used: bucket.used(limit, now) })
        };
        answer.requests_per_minute = of(&self.requests, requests_per_minute);
        answer.tokens_per_minute = of(&self.tokens, tokens_per_minute);
        answer
    }
}

fn spend(cap: &Cap) -> (String, Spend) {
    let spend = Spend { limit: cap.cap, used: cap.spent, resets_at: cap.resets_at() };
    (cap.period.cap().to_owned(), spend)
}
