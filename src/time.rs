//! Instants: milliseconds inside, RFC 3339 in UTC outside.
//!
//! [`millis`] and [`optional`] are for `#[serde(with = "…")]` on fields of type [`Millis`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// Milliseconds since 1970 (UTC).
pub type Millis = i64;

/// The wall clock, in milliseconds since 1970 (UTC).
pub fn now() -> Millis {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since_1970.as_millis()).unwrap_or(Millis::MAX)
}

/// Such as `2026-09-21T08:15:00.250Z`. What no calendar holds is shown as 1970.
pub fn rfc3339(at: Millis) -> String {
    format!("{:.3}", Timestamp::from_millisecond(at).unwrap_or_default())
}

/// The same instant on the clocks of a time zone.
pub fn in_zone(at: Millis, zone: &TimeZone) -> Zoned {
    Timestamp::from_millisecond(at).unwrap_or_default().to_zoned(zone.clone())
}

/// Reads an RFC 3339 time, or a date as its first instant in `zone`.
pub fn parse(text: &str, zone: &TimeZone) -> Option<Millis> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at.as_millisecond());
    }
    // `Date` would also read the date of a longer text, whose time would then be lost.
    let is_date = text.len() == "2026-09-21".len();
    let date = text.parse::<Date>().ok().filter(|_| is_date)?;
    Some(zone.to_zoned(date.at(0, 0, 0, 0)).ok()?.timestamp().as_millisecond())
}

/// Reads a length of time, such as `45s`, `90m`, `12h`, `30d` or `2w`; a day has 24 hours.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return None,
    };
    let count = text.strip_suffix(unit)?;
    if count.is_empty() || !count.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // A century is more than anyone means and far from where the calendar ends.
    let whole = count.parse::<u64>().ok()?.checked_mul(seconds)?;
    (whole <= 100 * 366 * 86_400).then(|| Duration::from_secs(whole))
}

/// The instant a length of time after another.
pub fn after(at: Millis, wait: Duration) -> Millis {
    at.saturating_add(Millis::try_from(wait.as_millis()).unwrap_or(Millis::MAX))
}

/// An instant as RFC 3339.
pub mod millis {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Millis, TimeZone};

    /// Writes it.
    ///
    /// # Errors
    ///
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(at: &Millis, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&super::rfc3339(*at))
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// When it is not an RFC 3339 time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Millis, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse(&text, &TimeZone::UTC).ok_or_else(|| D::Error::custom("not an RFC 3339 time"))
    }
}

/// An instant as RFC 3339, or null.
pub mod optional {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Millis;

    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Instant(#[serde(with = "super::millis")] Millis);

    /// Writes it.
    ///
    /// # Errors
    ///
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(at: &Option<Millis>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => super::millis::serialize(at, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// When it is neither null nor an RFC 3339 time.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Millis>, D::Error> {
        Ok(Option::<Instant>::deserialize(deserializer)?.map(|instant| instant.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> Option<Millis> {
        parse(text, &TimeZone::UTC)
    }

    #[test]
    fn an_instant_reads_as_it_is_written() {
        for at in [0, 1, 999, 1_789_978_500_250, -1] {
            assert_eq!(utc(&rfc3339(at)), Some(at));
        }
        assert_eq!(rfc3339(1_789_978_500_250), "2026-09-21T08:15:00.250Z");
        assert_eq!(utc("2026-09-21T10:15:00.25+02:00"), Some(1_789_978_500_250));
    }

    #[test]
    fn a_date_begins_at_midnight_of_its_zone() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        assert_eq!(parse("2026-09-21", &berlin), utc("2026-09-20T22:00:00Z"));
        // Summer time ends on that day, and the next one begins 25 hours later.
        assert_eq!(parse("2026-10-26", &berlin), utc("2026-10-25T23:00:00Z"));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "today", "2026-13-01", "2026-09-21T10:00", "2026-09-21 nonsense", "1h"] {
            assert_eq!(utc(text), None, "{text:?}");
        }
        for text in ["", "d", "7", "-1d", "1.5h", "1y", "99999999999999999999d", "7 d"] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn lengths_of_time_count_in_the_unit_they_name() {
        let hours = |n: u64| Some(Duration::from_secs(n * 3600));
        assert_eq!(parse_duration("90m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("12h"), hours(12));
        assert_eq!(parse_duration("30d"), hours(720));
        assert_eq!(parse_duration("2w"), hours(336));
    }
}
