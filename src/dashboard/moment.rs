//! Instants, days and ranges as one time zone sees them.

use std::fmt;

use askama::filters::HtmlSafe;
use jiff::ToSpan as _;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::store::Millis;
use crate::time;

/// A time zone with its name.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Such as `Europe/Berlin`.
    pub name: String,
    /// Its rules.
    pub rules: TimeZone,
}

impl Zone {
    /// A zone by its name; none if there is no such zone.
    pub fn named(name: &str) -> Option<Self> {
        let is_plain = name.len() <= 64
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+-".contains(&b));
        let rules = TimeZone::get(name).ok().filter(|_| is_plain)?;
        Some(Self { name: name.to_owned(), rules })
    }

    /// Coordinated universal time.
    pub fn utc() -> Self {
        Self { name: "UTC".into(), rules: TimeZone::UTC }
    }

    /// The time of the day of an instant, such as `14:02`, for a sentence.
    pub fn clock(&self, at: Millis) -> String {
        time::in_zone(at, &self.rules).strftime("%H:%M").to_string()
    }

    /// The calendar day of an instant.
    pub fn date(&self, at: Millis) -> Date {
        time::in_zone(at, &self.rules).date()
    }

    /// The first instant of a day.
    pub fn midnight(&self, date: Date) -> Millis {
        let first = self.rules.to_zoned(date.at(0, 0, 0, 0));
        first.map_or(0, |first| first.timestamp().as_millisecond())
    }

    /// The same time of the day, `days` earlier by the calendar.
    pub fn earlier(&self, at: Millis, days: i32) -> Millis {
        let zoned = time::in_zone(at, &self.rules);
        let earlier = zoned.checked_sub(days.days());
        earlier.map_or(at, |earlier| earlier.timestamp().as_millisecond())
    }

    /// The first instant of the day that is `days` before that of `at`.
    pub fn days_before(&self, at: Millis, days: i32) -> Millis {
        let date = self.date(at);
        self.midnight(date.saturating_sub(days.days()))
    }
}

/// An instant as an element: short to read, exact in its title and `datetime`.
#[derive(Clone, Debug)]
pub struct Instant {
    at: Millis,
    zone: TimeZone,
    style: Style,
}

#[derive(Clone, Copy, Debug)]
enum Style {
    Full,
    Short,
    Dated,
    Clock,
    Day,
    Soon,
    Ago(Millis),
}

impl Instant {
    /// `2026-09-30 14:02:11`.
    pub fn full(at: Millis, zone: &Zone) -> Self {
        Self { at, zone: zone.rules.clone(), style: Style::Full }
    }

    /// `30 Sep 14:02:11`; with the year, if it is not that of `now`.
    pub fn short(at: Millis, now: Millis, zone: &Zone) -> Self {
        let is_of_now = zone.date(at).year() == zone.date(now).year();
        let style = if is_of_now { Style::Short } else { Style::Dated };
        Self { at, zone: zone.rules.clone(), style }
    }

    /// `14:02`.
    pub fn clock(at: Millis, zone: &Zone) -> Self {
        Self { at, zone: zone.rules.clone(), style: Style::Clock }
    }

    /// `30 Sep 14:02`.
    pub fn soon(at: Millis, zone: &Zone) -> Self {
        Self { at, zone: zone.rules.clone(), style: Style::Soon }
    }

    /// `30 Sep 2026`.
    pub fn day(at: Millis, zone: &Zone) -> Self {
        Self { at, zone: zone.rules.clone(), style: Style::Day }
    }

    /// `3 min ago`.
    pub fn ago(at: Millis, now: Millis, zone: &Zone) -> Self {
        Self { at, zone: zone.rules.clone(), style: Style::Ago(now) }
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zoned = time::in_zone(self.at, &self.zone);
        let text = match self.style {
            Style::Full => zoned.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            Style::Short => zoned.strftime("%-d %b %H:%M:%S").to_string(),
            Style::Dated => zoned.strftime("%-d %b %Y %H:%M:%S").to_string(),
            Style::Clock => zoned.strftime("%H:%M").to_string(),
            Style::Day => zoned.strftime("%-d %b %Y").to_string(),
            Style::Soon => zoned.strftime("%-d %b %H:%M").to_string(),
            Style::Ago(now) => ago(now - self.at),
        };
        let exact = zoned.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z");
        let title = zoned.strftime("%Y-%m-%d %H:%M:%S %:z");
        write!(f, "<time datetime=\"{exact}\" title=\"{title}\">{text}</time>")
    }
}

impl HtmlSafe for Instant {}

/// How long ago, in one unit.
fn ago(ms: Millis) -> String {
    let seconds = ms.max(0) / 1000;
    match seconds {
        ..10 => "just now".into(),
        10..60 => format!("{seconds} s ago"),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// `30 Sep`.
pub fn day(date: Date) -> String {
    date.strftime("%-d %b").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_count_by_the_calendar_also_when_the_clocks_change() {
        let berlin = Zone::named("Europe/Berlin").unwrap();
        // 2026-10-26 12:00 in Berlin; the day before had 25 hours.
        let noon = time::parse("2026-10-26T11:00:00Z", &TimeZone::UTC).unwrap();
        let midnight = |text| time::parse(text, &berlin.rules).unwrap();
        assert_eq!(berlin.days_before(noon, 0), midnight("2026-10-26"));
        assert_eq!(berlin.days_before(noon, 1), midnight("2026-10-25"));
        assert_eq!(berlin.days_before(noon, 6), midnight("2026-10-20"));
        // By then the clocks said noon as well, and it was an hour sooner.
        assert_eq!(berlin.earlier(noon, 2), midnight("2026-10-24T10:00:00Z"));
        assert_eq!(berlin.earlier(midnight("2026-10-26"), 1), midnight("2026-10-25"));
    }

    #[test]
    fn a_zone_has_a_plain_name() {
        assert!(Zone::named("Pacific/Tongatapu").is_some());
        for bad in ["", "Nowhere/At_All", "<script>", "../etc"] {
            assert!(Zone::named(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_past_is_told_in_one_unit() {
        let told: Vec<_> = [2_000, 40_000, 180_000, 7_200_000, 864_000_000].map(ago).into();
        assert_eq!(told, ["just now", "40 s ago", "3 min ago", "2 h ago", "10 days ago"]);
    }
}
