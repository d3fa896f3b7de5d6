//! What was refused before it was sent: it has no row, and is told in a line.

use crate::dashboard::moment::Instant;
use crate::dashboard::number::grouped;
use crate::dashboard::page::Page;
use crate::dashboard::params::Range;
use crate::proxy::refused::{Count, Reason};

/// What was refused in the range, and has no row.
pub struct RefusedLine {
    /// How many.
    pub requests: String,
    /// Each reason in words, and how often.
    pub reasons: Vec<(&'static str, String)>,
    /// When counting began, if that is within the range.
    pub since: Option<Instant>,
}

impl RefusedLine {
    /// That of a range; none, if nothing was refused.
    pub fn of(page: &Page, range: &Range) -> Option<Self> {
        let refusals = &page.state.refusals;
        let counts = refusals.of(&page.account.id, range.since, range.until);
        let requests: u64 = counts.iter().map(|count| count.requests).sum();
        let words = |count: &Count| {
            let reason = match count.reason {
                Reason::Credits => "no credits",
                Reason::KeyCap => "cap of the key",
                Reason::PerMinute => "too many a minute",
                Reason::AtOnce => "too many at once",
                Reason::Ended => "key or account ended",
            };
            (reason, grouped(count.requests))
        };
        (requests > 0).then(|| Self {
            requests: grouped(requests),
            reasons: counts.iter().map(words).collect(),
            since: (refusals.since > range.since)
                .then(|| Instant::soon(refusals.since, &page.zone)),
        })
    }
}
