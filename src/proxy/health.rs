//! How the upstreams are doing, as requests have found them: in memory, since the start and
//! over the last hour. An upstream's own words are never kept; ours stand for them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::forward::Failure;
use crate::time::{self, Millis};

/// Minutes that are remembered one by one.
const MINUTES: usize = 60;
/// Minutes by which an upstream is called failing.
const RECENT: u64 = 5;

/// What went wrong with a request to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// There was no connection to it.
    NotReached,
    /// It took the request and sent nothing in the time allowed, or hung up.
    NoAnswer,
    /// It has too much to do, or a rate limit or quota of ours is used up (429).
    Busy,
    /// It refused our key, or our account there (401, 402, 403).
    Refused,
    /// It failed (408 or 5xx).
    Failed,
    /// It began a reply and did not end it.
    CutOff,
}

impl Trouble {
    /// The trouble that a status means; a client's own mistakes are none.
    pub fn of_status(status: StatusCode) -> Option<Self> {
        match status.as_u16() {
            429 => Some(Self::Busy),
            401..=403 => Some(Self::Refused),
            408 | 500.. => Some(Self::Failed),
            _ => None,
        }
    }

    /// The trouble behind a missing reply; none where nothing was tried.
    pub fn of_failure(failure: &Failure) -> Option<Self> {
        match failure {
            Failure::Unsent(_) => Some(Self::NotReached),
            Failure::Uncertain(_) | Failure::Timeout => Some(Self::NoAnswer),
            Failure::Unserved => None,
        }
    }

    /// As in the API and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotReached => "not_reached",
            Self::NoAnswer => "no_answer",
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::CutOff => "cut_off",
        }
    }

    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NotReached => "could not be reached",
            Self::NoAnswer => "did not answer",
            Self::Busy => "was too busy, or a quota there is used up",
            Self::Refused => "refused our key or account",
            Self::Failed => "failed",
            Self::CutOff => "broke a reply off",
        }
    }
}

/// Requests to an upstream; each that was tried counts, also where another one helped out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tally {
    /// Requests.
    pub requests: u64,
    /// Those that failed.
    pub failures: u64,
    /// Mean time to the head of a reply, over the requests that got one.
    pub mean_latency_ms: Option<u64>,
    /// The longest such time.
    pub slowest_latency_ms: Option<u64>,
}

/// The last failure of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastFailure {
    /// When.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Millis,
    /// What it was.
    pub trouble: Trouble,
    /// The status that it answered with, where it did.
    pub status: Option<u16>,
}

/// Whether an upstream can be counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Nothing was sent to it since the start.
    Unused,
    /// Most requests of the last five minutes went well; without any, the last one did.
    Working,
    /// More than half of them failed; without any, the last one did.
    Failing,
}

/// How an upstream is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// In one word.
    pub condition: Condition,
    /// Since the start.
    pub total: Tally,
    /// Over the last hour.
    pub last_hour: Tally,
    /// When it last answered.
    #[serde(with = "crate::time::optional")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_success: Option<Millis>,
    /// When it last failed, and how.
    pub last_failure: Option<LastFailure>,
}

/// What is counted.
#[derive(Clone, Copy, Default)]
struct Counts {
    requests: u64,
    failures: u64,
    answers: u64,
    latency_ms: u64,
    slowest_ms: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.answers += other.answers;
        self.latency_ms += other.latency_ms;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
    }

    fn tally(&self) -> Tally {
        Tally {
            requests: self.requests,
            failures: self.failures,
            mean_latency_ms: self.latency_ms.checked_div(self.answers),
            slowest_latency_ms: (self.answers > 0).then_some(self.slowest_ms),
        }
    }
}

struct Seen {
    total: Counts,
    /// By minute since the start, modulo [`MINUTES`], with that minute.
    minutes: [(u64, Counts); MINUTES],
    last_success: Option<Millis>,
    last_failure: Option<LastFailure>,
    /// The last thing seen was a failure.
    failed_last: bool,
}

impl Seen {
    fn count(&mut self, minute: u64, counts: &Counts) {
        self.total.add(counts);
        let slot = &mut self.minutes[usize::try_from(minute).unwrap_or(0) % MINUTES];
        if slot.0 != minute {
            *slot = (minute, Counts::default());
        }
        slot.1.add(counts);
    }

    /// The minutes before and including `minute`, as many as `length`.
    fn since(&self, minute: u64, length: u64) -> Counts {
        let mut sum = Counts::default();
        for (at, counts) in &self.minutes {
            if *at <= minute && *at + length > minute {
                sum.add(counts);
            }
        }
        sum
    }

    fn report(&self, minute: u64) -> Report {
        let recent = self.since(minute, RECENT);
        let condition = match (self.total.requests, recent.requests) {
            (0, _) => Condition::Unused,
            (_, 0) if self.failed_last => Condition::Failing,
            (_, n) if n > 0 && recent.failures * 2 > n => Condition::Failing,
            _ => Condition::Working,
        };
        Report {
            condition,
            total: self.total.tally(),
            last_hour: self.since(minute, MINUTES as u64).tally(),
            last_success: self.last_success,
            last_failure: self.last_failure,
        }
    }
}

/// How one upstream is doing. Counting takes a lock for a moment, once a request.
pub struct Health {
    started: Instant,
    seen: Mutex<Seen>,
}

impl Default for Health {
    fn default() -> Self {
        let seen = Seen {
            total: Counts::default(),
            minutes: [(0, Counts::default()); MINUTES],
            last_success: None,
            last_failure: None,
            failed_last: false,
        };
        Self { started: Instant::now(), seen: Mutex::new(seen) }
    }
}

impl Health {
    /// The head of a reply came; with `trouble`, that of one that helps nobody.
    pub fn answered(&self, status: StatusCode, latency: Duration) -> Option<Trouble> {
        let trouble = Trouble::of_status(status);
        let latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        let counts = Counts {
            requests: 1,
            failures: u64::from(trouble.is_some()),
            answers: 1,
            latency_ms,
            slowest_ms: latency_ms,
        };
        self.note(&counts, trouble, Some(status.as_u16()));
        trouble
    }

    /// No reply came.
    pub fn failed(&self, trouble: Trouble) {
        self.note(&Counts { requests: 1, failures: 1, ..Counts::default() }, Some(trouble), None);
    }

    /// A reply that had begun, and is counted already, did not end.
    pub fn cut_off(&self) {
        self.note(&Counts { failures: 1, ..Counts::default() }, Some(Trouble::CutOff), None);
    }

    /// How it is doing now.
    pub fn report(&self) -> Report {
        self.lock().report(self.minute())
    }

    fn note(&self, counts: &Counts, trouble: Option<Trouble>, status: Option<u16>) {
        let (now, minute) = (time::now(), self.minute());
        let mut seen = self.lock();
        seen.count(minute, counts);
        seen.failed_last = trouble.is_some();
        match trouble {
            None => seen.last_success = Some(now),
            Some(trouble) => seen.last_failure = Some(LastFailure { at: now, trouble, status }),
        }
    }

    fn minute(&self) -> u64 {
        self.started.elapsed().as_secs() / 60
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        // Counts stay true whatever panicked while they were locked.
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(requests: u64, failures: u64) -> Counts {
        Counts { requests, failures, ..Counts::default() }
    }

    fn seen() -> Seen {
        Health::default().seen.into_inner().unwrap()
    }

    #[test]
    fn an_hour_forgets_minute_by_minute_and_the_total_never() {
        let mut seen = seen();
        seen.count(0, &attempts(3, 1));
        seen.count(59, &attempts(5, 0));
        assert_eq!(seen.report(59).last_hour.requests, 8);
        assert_eq!(seen.report(60).last_hour.requests, 5);
        // The same place in memory, an hour later.
        seen.count(60, &attempts(1, 0));
        assert_eq!(seen.report(60).last_hour, attempts(6, 0).tally());
        assert_eq!(seen.report(500).last_hour, Tally::default());
        assert_eq!(seen.report(500).total, attempts(9, 1).tally());
    }

    #[test]
    fn an_upstream_is_failing_when_most_of_five_minutes_failed_or_the_last_try_did() {
        let mut seen = seen();
        assert_eq!(seen.report(0).condition, Condition::Unused);
        seen.count(0, &attempts(4, 2));
        assert_eq!(seen.report(4).condition, Condition::Working);
        seen.count(1, &attempts(1, 1));
        assert_eq!(seen.report(4).condition, Condition::Failing);
        assert_eq!(seen.report(40).condition, Condition::Working);
        seen.failed_last = true;
        assert_eq!(seen.report(40).condition, Condition::Failing);
    }

    #[test]
    fn a_clients_own_mistake_is_no_trouble_of_the_upstream() {
        let trouble = |status| Trouble::of_status(StatusCode::from_u16(status).unwrap());
        for status in [200, 201, 400, 404, 413, 422] {
            assert_eq!(trouble(status), None, "{status}");
        }
        assert_eq!(trouble(429), Some(Trouble::Busy));
        assert_eq!(trouble(403), Some(Trouble::Refused));
        for status in [408, 500, 502, 503, 529] {
            assert_eq!(trouble(status), Some(Trouble::Failed), "{status}");
        }
    }

    #[test]
    fn a_reply_that_breaks_off_is_one_request_and_one_failure() {
        let health = Health::default();
        assert_eq!(health.answered(StatusCode::OK, Duration::from_millis(20)), None);
        health.cut_off();
        let report = health.report();
        assert_eq!((report.total.requests, report.total.failures), (1, 1));
        assert_eq!(report.total.mean_latency_ms, Some(20));
        assert_eq!(report.last_failure.unwrap().trouble, Trouble::CutOff);
    }
}
