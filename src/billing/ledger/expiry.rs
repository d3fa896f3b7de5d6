//! When credits end. By the calendar in UTC; no clock is read here.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::Class;
use crate::time::{Millis, after};

/// How long promotional credits last that a refund gives back after they have ended.
const REFUNDED_PROMO: Duration = Duration::from_secs(30 * 86_400);

/// When promotional credits end, as it was asked. Kept as asked, so that the same request
/// later is still the same request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Expiry {
    /// At an instant.
    At(Millis),
    /// A length of time after they were granted.
    After(Duration),
}

/// The same day and time twelve months later; the last day of the month where it has no such
/// day (29 February → 28 February).
pub fn twelve_months_after(at: Millis) -> Millis {
    let later = |at: Timestamp| {
        let date = at.to_zoned(TimeZone::UTC).datetime().checked_add(12.months()).ok()?;
        Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond())
    };
    // Where the calendar ends, which no clock of ours reaches, nothing expires.
    Timestamp::from_millisecond(at).ok().and_then(later).unwrap_or(Millis::MAX)
}

/// When a lot that is granted now ends: bought credits after twelve months, given ones as
/// asked but never later. May lie before `now`, if it was asked so.
pub fn of_grant(class: Class, asked: Option<Expiry>, now: Millis) -> Millis {
    let latest = twelve_months_after(now);
    match (class, asked) {
        (Class::Usage, _) | (Class::Promo, None) => latest,
        (Class::Promo, Some(Expiry::At(at))) => at.min(latest),
        (Class::Promo, Some(Expiry::After(wait))) => after(now, wait).min(latest),
    }
}

/// When a lot ends that a refund makes because the one before has ended.
pub(super) fn of_refund(class: Class, now: Millis) -> Millis {
    match class {
        Class::Usage => twelve_months_after(now),
        Class::Promo => after(now, REFUNDED_PROMO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time;

    fn at(text: &str) -> Millis {
        time::parse(text, &TimeZone::UTC).unwrap()
    }

    #[test]
    fn b28_twelve_months_are_of_the_calendar_and_clamped() {
        for (bought, ends) in [
            ("2028-02-29T10:30:00Z", "2029-02-28T10:30:00Z"),
            ("2027-02-28T00:00:00Z", "2028-02-28T00:00:00Z"),
            ("2026-08-31T23:59:59.999Z", "2027-08-31T23:59:59.999Z"),
            ("2026-12-31T23:30:00Z", "2027-12-31T23:30:00Z"),
        ] {
            assert_eq!(twelve_months_after(at(bought)), at(ends), "{bought}");
        }
    }

    #[test]
    fn b29_promotional_credits_end_as_asked_and_never_after_twelve_months() {
        let now = at("2026-09-01T00:00:00Z");
        let days = |days: u64| Some(Expiry::After(Duration::from_secs(days * 86_400)));
        for (asked, ends) in [
            (days(30), "2026-10-01T00:00:00Z"),
            (days(548), "2027-09-01T00:00:00Z"),
            (Some(Expiry::At(at("2028-03-01T00:00:00Z"))), "2027-09-01T00:00:00Z"),
            (Some(Expiry::At(at("2026-09-02T00:00:00Z"))), "2026-09-02T00:00:00Z"),
            (None, "2027-09-01T00:00:00Z"),
        ] {
            assert_eq!(of_grant(Class::Promo, asked, now), at(ends), "{asked:?}");
        }
        assert_eq!(of_grant(Class::Usage, days(30), now), at("2027-09-01T00:00:00Z"));
    }

    #[test]
    fn an_instant_beyond_the_calendar_does_not_panic() {
        assert_eq!(twelve_months_after(Millis::MAX), Millis::MAX);
        assert_eq!(twelve_months_after(Millis::MIN), Millis::MAX);
    }
}
