//! Which time a list or a sum covers, as people say it.

use clap::Args;
use jiff::ToSpan;
use jiff::tz::TimeZone;

use super::failure::{Exit, Failure};
use crate::store::Millis;
use crate::time;

const FORMS: &str = "2026-09-21, 2026-09-21T08:15:00Z or 2026-09-21T10:15:00+02:00";

/// A span of time.
#[derive(Args, Clone, Debug, Default)]
pub struct SpanArgs {
    /// The last hours or days, such as 12h, 7d or 4w; days begin at midnight and today counts
    #[arg(long, value_name = "TIME", conflicts_with_all = ["since", "until"])]
    pub last: Option<String>,
    /// Not before this time, or this date's midnight
    #[arg(long, alias = "from", value_name = "TIME")]
    pub since: Option<String>,
    /// Before this time, or this date's midnight
    #[arg(long, alias = "to", value_name = "TIME")]
    pub until: Option<String>,
}

/// A span of time in instants; open where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Not before.
    pub since: Option<Millis>,
    /// Before.
    pub until: Option<Millis>,
}

impl SpanArgs {
    /// Reads the texts, dates in `zone`.
    ///
    /// # Errors
    ///
    /// A text that is not a time.
    pub fn read(&self, now: Millis, zone: &TimeZone) -> Result<Span, Failure> {
        if let Some(last) = &self.last {
            let since = since_last(last, now, zone).ok_or_else(|| {
                Failure::new(Exit::Usage, format!("--last {last}: not such as 12h, 7d or 4w"))
            })?;
            return Ok(Span { since: Some(since), until: None });
        }
        let read = |name: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => match time::parse(text, zone) {
                Some(at) => Ok(Some(at)),
                None => {
                    Err(Failure::new(Exit::Usage, format!("--{name} {text}: not such as {FORMS}")))
                }
            },
        };
        Ok(Span { since: read("since", &self.since)?, until: read("until", &self.until)? })
    }
}

/// When the last hours began; or the last days, today being one of them.
fn since_last(text: &str, now: Millis, zone: &TimeZone) -> Option<Millis> {
    let length = time::parse_duration(text)?;
    if !text.ends_with(['d', 'w']) {
        return Some(now.saturating_sub(i64::try_from(length.as_millis()).ok()?));
    }
    let days = i64::try_from(length.as_secs() / 86_400).ok()?;
    let today = time::in_zone(now, zone).date();
    let first = today.checked_sub((days - 1).max(0).days()).ok()?;
    Some(zone.to_zoned(first.at(0, 0, 0, 0)).ok()?.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }

    fn read(args: &SpanArgs) -> Result<(Option<String>, Option<String>), Failure> {
        let now = time::parse("2026-10-26T09:30:00Z", &TimeZone::UTC).unwrap();
        let span = args.read(now, &berlin())?;
        Ok((span.since.map(time::rfc3339), span.until.map(time::rfc3339)))
    }

    fn last(text: &str) -> SpanArgs {
        SpanArgs { last: Some(text.to_owned()), ..SpanArgs::default() }
    }

    #[test]
    fn the_last_days_begin_at_midnight_and_count_today() {
        let since = |text| read(&last(text)).unwrap().0.unwrap();
        assert_eq!(since("1d"), "2026-10-25T23:00:00.000Z");
        // Across the end of summer time midnight lies an hour earlier in UTC.
        assert_eq!(since("7d"), "2026-10-19T22:00:00.000Z");
        assert_eq!(since("1w"), since("7d"));
        assert_eq!(since("12h"), "2026-10-25T21:30:00.000Z");
    }

    #[test]
    fn dates_are_read_in_the_zone_and_nonsense_is_refused() {
        let args = SpanArgs {
            since: Some("2026-09-01".into()),
            until: Some("2026-09-02T00:00:00Z".into()),
            last: None,
        };
        let (since, until) = read(&args).unwrap();
        assert_eq!(since.as_deref(), Some("2026-08-31T22:00:00.000Z"));
        assert_eq!(until.as_deref(), Some("2026-09-02T00:00:00.000Z"));
        for bad in [last("yesterday"), SpanArgs { since: Some("7d".into()), ..last("1d") }] {
            let bad = SpanArgs { last: bad.last.filter(|_| bad.since.is_none()), ..bad };
            assert_eq!(read(&bad).unwrap_err().exit, Exit::Usage);
        }
    }
}
