//! What may run: the modes of admission, the calendar periods of spend caps, and rates a minute.
//!
//! Every store decides by these rules, so that they mean the same everywhere.

use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Credits;
use crate::time::{Millis, in_zone};

/// When requests of an account are admitted, and so how far its balance may fall below zero.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Mode {
    /// While the balance is above zero. Bound: the requests that run at once, each in full.
    #[default]
    Lenient,
    /// While the balance less what is held is above zero. Bound: one request, and what others
    /// cost beyond their holds.
    OneRequest,
    /// If the most that the request can cost fits. Bound: what requests cost beyond their holds.
    Strict,
}

impl Mode {
    /// Whether a request may run: `left` is the balance or what a cap leaves, `held` of it is
    /// set aside for others, and the request costs at most `most` (`None`: nobody knows).
    pub fn admits(self, left: Credits, held: Credits, most: Option<Credits>) -> bool {
        left.is_positive()
            && match self {
                Self::Lenient => true,
                Self::OneRequest => (left - held).is_positive(),
                Self::Strict => most.is_some_and(|most| left - held >= most),
            }
    }

    /// What is set aside for an admitted request. Where nobody knows what it costs at most, it
    /// is all that is `available`: then nothing else runs beside it.
    pub fn hold(self, available: Credits, most: Option<Credits>) -> Credits {
        match self {
            Self::Lenient => Credits::ZERO,
            Self::OneRequest | Self::Strict => most.unwrap_or(available),
        }
    }
}

/// What a spend cap counts over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From Monday to Monday.
    Week,
    /// From the first to the first.
    Month,
    /// For ever.
    Total,
}

impl Period {
    /// The name of the cap that counts over it.
    pub const fn cap(self) -> &'static str {
        match self {
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Total => "total",
        }
    }

    /// The period around an instant, its end not included, by the calendar of a time zone. Days
    /// on which clocks change last 23 or 25 hours.
    pub fn around(self, at: Millis, zone: &TimeZone) -> Range<Millis> {
        let date = in_zone(at, zone).date();
        let monday = |date: Date| {
            let back = date.weekday().since(Weekday::Monday);
            date.checked_sub(jiff::Span::new().days(back)).unwrap_or(Date::MIN)
        };
        let (first, length) = match self {
            Self::Day => (date, jiff::Span::new().days(1)),
            Self::Week => (monday(date), jiff::Span::new().days(7)),
            Self::Month => (date.first_of_month(), jiff::Span::new().months(1)),
            Self::Total => return Millis::MIN..Millis::MAX,
        };
        let next = first.checked_add(length).unwrap_or(Date::MAX);
        first_instant(first, zone)..first_instant(next, zone)
    }
}

/// Where clocks skip midnight, a day begins after the gap.
fn first_instant(date: Date, zone: &TimeZone) -> Millis {
    let midnight = zone.to_zoned(date.at(0, 0, 0, 0));
    midnight.map_or(Timestamp::MAX, |midnight| midnight.timestamp()).as_millisecond()
}

/// Something counted against a limit a minute: a bucket that empties steadily, a whole one in a
/// minute. So at most a minute's worth passes at once, and then as much as has flowed out; who
/// is refused waits for his share alone, not for the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// In parts of [`Self::PARTS`].
    level: i64,
    at: Millis,
}

/// Why a bucket took nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// What is in it, rounded up.
    pub used: u64,
    /// Milliseconds until it would fit.
    pub wait_ms: u64,
}

impl Bucket {
    /// Parts of one: the milliseconds of a minute, so that every rate is a whole number.
    const PARTS: i64 = 60_000;
    /// Beyond every limit; parts of it stay below 2⁵³, as stores count that know only doubles.
    pub const LIMIT: u64 = 100_000_000_000;

    fn parts(amount: u64) -> i64 {
        i64::try_from(amount.min(Self::LIMIT)).unwrap_or(i64::MAX / Self::PARTS) * Self::PARTS
    }

    fn level_at(&self, limit: u64, now: Millis) -> i64 {
        let passed = now.saturating_sub(self.at).max(0);
        let out = passed.saturating_mul(Self::parts(limit) / Self::PARTS);
        self.level.saturating_sub(out).max(0)
    }

    /// What is in it, rounded up.
    pub fn used(&self, limit: u64, now: Millis) -> u64 {
        let level = self.level_at(limit, now);
        u64::try_from((level + Self::PARTS - 1) / Self::PARTS).unwrap_or_default()
    }

    /// Whether an amount fits. What is larger than the whole limit fits an empty bucket, or it
    /// could never pass.
    ///
    /// # Errors
    ///
    /// [`Full`], with the wait.
    pub fn fits(&self, limit: u64, amount: u64, now: Millis) -> Result<(), Full> {
        let level = self.level_at(limit, now);
        let room = (Self::parts(limit) - Self::parts(amount)).max(0);
        if level <= room && limit > 0 {
            return Ok(());
        }
        let rate = (Self::parts(limit) / Self::PARTS).max(1);
        let wait = if limit == 0 { Self::PARTS } else { (level - room + rate - 1) / rate };
        let wait_ms = u64::try_from(wait).unwrap_or_default();
        Err(Full { used: self.used(limit, now), wait_ms })
    }

    /// Puts an amount in, whether it fits or not.
    pub fn add(&mut self, limit: u64, amount: u64, now: Millis) {
        self.level = self.level_at(limit, now).saturating_add(Self::parts(amount));
        self.at = self.at.max(now);
    }

    /// Takes an amount out again that turned out not to be used.
    pub fn take_out(&mut self, limit: u64, amount: u64, now: Millis) {
        self.level = (self.level_at(limit, now) - Self::parts(amount)).max(0);
        self.at = self.at.max(now);
    }

    /// Whether nothing is left in it: a new one would be the same.
    pub fn is_empty(&self, limit: u64, now: Millis) -> bool {
        self.level_at(limit, now) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::rfc3339;

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    #[test]
    fn each_mode_admits_by_its_own_rule() {
        use Mode::{Lenient, OneRequest, Strict};
        for (mode, left, held, most, admitted) in [
            (Lenient, "0.000000001", "5", None, true),
            (Lenient, "0", "0", Some("0"), false),
            (OneRequest, "0.2", "0", Some("0.3"), true),
            (OneRequest, "0.2", "0.2", Some("0.3"), false),
            (OneRequest, "0.2", "0.1", None, true),
            (Strict, "0.3", "0", Some("0.3"), true),
            (Strict, "0.3", "0.1", Some("0.3"), false),
            (Strict, "0.3", "0.1", Some("0.2"), true),
            (Strict, "9", "0", None, false),
            (Strict, "0", "0", Some("0"), false),
        ] {
            let answer = mode.admits(credits(left), credits(held), most.map(credits));
            assert_eq!(answer, admitted, "{mode:?} {left} {held} {most:?}");
        }
    }

    #[test]
    fn only_what_costs_nobody_knows_what_holds_all_that_is_available() {
        let (available, most) = (credits("0.5"), Some(credits("0.3")));
        assert_eq!(Mode::Lenient.hold(available, most), Credits::ZERO);
        assert_eq!(Mode::OneRequest.hold(available, most), credits("0.3"));
        assert_eq!(Mode::OneRequest.hold(available, None), available);
        assert_eq!(Mode::Strict.hold(available, most), credits("0.3"));
    }

    fn around(period: Period, at: &str, zone: &str) -> (String, String, i64) {
        let zone = TimeZone::get(zone).unwrap();
        let at: Timestamp = at.parse().unwrap();
        let Range { start, end } = period.around(at.as_millisecond(), &zone);
        (rfc3339(start), rfc3339(end), (end - start) / 3_600_000)
    }

    #[test]
    fn a_day_of_changing_clocks_has_as_many_hours_as_it_has() {
        let day = |at, zone| around(Period::Day, at, zone);
        let of =
            |from: &str, to: &str, hours| (format!("{from}.000Z"), format!("{to}.000Z"), hours);
        assert_eq!(
            day("2026-03-29T10:00:00Z", "Europe/Vilnius"),
            of("2026-03-28T22:00:00", "2026-03-29T21:00:00", 23)
        );
        assert_eq!(
            day("2026-10-25T21:59:59Z", "Europe/Vilnius"),
            of("2026-10-24T21:00:00", "2026-10-25T22:00:00", 25)
        );
        // Midnight is skipped: the day begins at one.
        assert_eq!(
            day("2018-11-04T12:00:00Z", "America/Sao_Paulo"),
            of("2018-11-04T03:00:00", "2018-11-05T02:00:00", 23)
        );
        // Midnight comes twice: the day begins with the first.
        assert_eq!(
            day("2026-11-01T12:00:00Z", "America/Havana"),
            of("2026-11-01T04:00:00", "2026-11-02T05:00:00", 25)
        );
        // Far from whole hours and from UTC.
        assert_eq!(
            day("2026-09-20T18:15:00Z", "Asia/Kathmandu"),
            of("2026-09-20T18:15:00", "2026-09-21T18:15:00", 24)
        );
    }

    #[test]
    fn a_week_begins_on_monday_and_a_month_on_its_first_day() {
        let sunday = "2026-03-29T20:59:59.999Z";
        let (from, to, hours) = around(Period::Week, sunday, "Europe/Vilnius");
        assert_eq!(
            (from.as_str(), to.as_str()),
            ("2026-03-22T22:00:00.000Z", "2026-03-29T21:00:00.000Z")
        );
        assert_eq!(hours, 7 * 24 - 1);
        let (from, ..) = around(Period::Week, "2026-03-29T21:00:00Z", "Europe/Vilnius");
        assert_eq!(from, "2026-03-29T21:00:00.000Z");
        let (from, to, _) = around(Period::Month, "2028-02-29T23:00:00Z", "UTC");
        assert_eq!(
            (from.as_str(), to.as_str()),
            ("2028-02-01T00:00:00.000Z", "2028-03-01T00:00:00.000Z")
        );
        assert_eq!(Period::Total.around(0, &TimeZone::UTC), Millis::MIN..Millis::MAX);
    }

    #[test]
    fn a_minutes_worth_passes_at_once_and_then_what_has_flowed_out() {
        let mut bucket = Bucket::default();
        for _ in 0..3 {
            assert_eq!(bucket.fits(3, 1, 5), Ok(()));
            bucket.add(3, 1, 5);
        }
        assert_eq!(bucket.fits(3, 1, 5), Err(Full { used: 3, wait_ms: 20_000 }));
        assert_eq!(bucket.fits(3, 1, 20_004), Err(Full { used: 3, wait_ms: 1 }));
        assert_eq!(bucket.fits(3, 1, 20_005), Ok(()));
        assert!(bucket.is_empty(3, 60_005) && !bucket.is_empty(3, 60_004));
    }

    #[test]
    fn what_is_larger_than_the_limit_passes_alone() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.fits(100, 250, 0), Ok(()));
        bucket.add(100, 250, 0);
        assert_eq!(bucket.fits(100, 1, 0), Err(Full { used: 250, wait_ms: 90_600 }));
        bucket.take_out(100, 249, 0);
        assert_eq!(bucket.fits(100, 99, 0), Ok(()));
        assert_eq!(bucket.fits(100, 250, 0), Err(Full { used: 1, wait_ms: 600 }));
        assert_eq!(Bucket::default().fits(0, 1, 0), Err(Full { used: 0, wait_ms: 60_000 }));
    }

    #[test]
    fn a_clock_that_steps_back_empties_nothing() {
        let mut bucket = Bucket::default();
        bucket.add(2, 2, 100_000);
        assert_eq!(bucket.used(2, 40_000), 2);
        bucket.add(2, 1, 40_000);
        assert_eq!(bucket.used(2, 100_000), 3);
    }
}
