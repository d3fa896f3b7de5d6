//! How often requests of each account were refused, by the hour and the reason.
//!
//! In memory alone, since the start: what is refused costs nothing, and must not be able to fill
//! the disk. What has no account (a bad key) is not in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::store::{AccountId, Millis, Refused};
use crate::time;

const HOUR_MS: Millis = 3_600_000;
/// Hours of an account that are remembered: as many as ninety days have.
const HOURS: usize = 90 * 24;

/// Why a request was refused before it was sent.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No credits are left, or they are held, or the most it may cost does not fit (402).
    Credits,
    /// A spend cap of the key has no room (402).
    KeyCap,
    /// Too much in a minute (429).
    PerMinute,
    /// Too many at once (429).
    AtOnce,
    /// The key or the account has ended (401, 403).
    Ended,
}

impl Reason {
    /// That of a refusal.
    pub const fn of(refused: &Refused) -> Self {
        match refused {
            Refused::OutOfCredits { .. } | Refused::HoldDoesNotFit { .. } | Refused::Unbounded => {
                Self::Credits
            }
            Refused::KeySpend { .. } => Self::KeyCap,
            Refused::KeyRate { .. } => Self::PerMinute,
            Refused::TooManyInFlight { .. } | Refused::KeyInFlight { .. } => Self::AtOnce,
            Refused::NotOpen | Refused::KeyEnded { .. } => Self::Ended,
        }
    }
}

/// How many requests were refused for a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// Why.
    pub reason: Reason,
    /// How many.
    pub requests: u64,
}

type Hours = BTreeMap<(i64, Reason), u64>;

/// What this process has refused.
pub struct Refusals {
    /// When it began to count.
    pub since: Millis,
    counts: Mutex<HashMap<AccountId, Hours>>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { since: time::now(), counts: Mutex::default() }
    }
}

impl Refusals {
    /// Counts one.
    pub fn add(&self, account: &AccountId, refused: &Refused, now: Millis) {
        let mut counts = self.counts();
        let hours = counts.entry(account.clone()).or_default();
        *hours.entry((now.div_euclid(HOUR_MS), Reason::of(refused))).or_default() += 1;
        while hours.len() > HOURS {
            hours.pop_first();
        }
    }

    /// What was refused in a time, the most frequent reason first. An hour counts if it begins
    /// in that time, or if that time begins in it.
    pub fn of(&self, account: &AccountId, since: Millis, until: Millis) -> Vec<Count> {
        let (first, end) = (since.div_euclid(HOUR_MS), (until - 1).div_euclid(HOUR_MS));
        let mut sums: BTreeMap<Reason, u64> = BTreeMap::new();
        if let Some(hours) = self.counts().get(account) {
            for (_, reason, count) in hours
                .iter()
                .map(|((hour, reason), count)| (*hour, *reason, *count))
                .filter(|(hour, ..)| (first..=end).contains(hour))
            {
                *sums.entry(reason).or_default() += count;
            }
        }
        let mut counts: Vec<_> =
            sums.into_iter().map(|(reason, requests)| Count { reason, requests }).collect();
        counts.sort_by_key(|count| std::cmp::Reverse(count.requests));
        counts
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<AccountId, Hours>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason_and_hour_and_no_more_than_can_be_remembered() {
        let (refusals, account) = (Refusals::default(), AccountId("a".into()));
        let broke = Refused::OutOfCredits { balance: "-1".parse().unwrap() };
        let busy = Refused::TooManyInFlight { running: 2, limit: 2 };
        for hour in 0..3 * i64::try_from(HOURS).unwrap() {
            refusals.add(&account, &broke, hour * HOUR_MS);
        }
        let last = (3 * i64::try_from(HOURS).unwrap() - 1) * HOUR_MS;
        refusals.add(&account, &busy, last + 5);
        let count = |reason, requests| Count { reason, requests };
        let two = refusals.of(&account, last - HOUR_MS, last + 10);
        assert_eq!(two, [count(Reason::Credits, 2), count(Reason::AtOnce, 1)]);
        let all: u64 = refusals.of(&account, 0, Millis::MAX).iter().map(|c| c.requests).sum();
        assert_eq!(all, HOURS as u64);
        assert_eq!(refusals.of(&AccountId("b".into()), 0, Millis::MAX), []);
    }
}
