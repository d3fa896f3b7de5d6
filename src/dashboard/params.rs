//! What the address of a page asks for: a range of time, filters, a place in a list.

use jiff::civil::Date;

use super::moment::{self, Zone};
use super::{assets, page::Page};
use crate::store::Millis;
use crate::time;

const HOUR_MS: Millis = 3_600_000;
const DAY_MS: Millis = 24 * HOUR_MS;
/// Days of the longest range.
const DAYS_LIMIT: i32 = 366;

/// The pairs of a query, in their order. What nobody asks for is ignored.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Of a path with its query.
    pub fn of(path: &str) -> Self {
        let query = path.split_once('?').map_or("", |(_, query)| query);
        Self(serde_urlencoded::from_str(query).unwrap_or_default())
    }

    /// A value that is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// What is neither a range nor a place in a list.
    fn others(&self) -> Vec<(String, String)> {
        let is_other = |(name, value): &&(String, String)| {
            !value.is_empty() && !["range", "from", "to", "cursor"].contains(&name.as_str())
        };
        self.0.iter().filter(is_other).cloned().collect()
    }

    /// The same query with some values set, or taken out where they are empty. Where the place
    /// in a list is not set, it is taken out: it belongs to other filters.
    pub fn with(&self, changes: &[(&str, &str)]) -> String {
        let is_kept = |key: &str| key != "cursor" && !changes.iter().any(|(name, _)| *name == key);
        let kept = self.0.iter().filter(|(key, value)| is_kept(key) && !value.is_empty());
        let kept = kept.map(|(key, value)| (key.as_str(), value.as_str()));
        let set = changes.iter().copied().filter(|(_, value)| !value.is_empty());
        let pairs: Vec<_> = kept
            .chain(set)
            .map(|(key, value)| format!("{}={}", assets::encode(key), assets::encode(value)))
            .collect();
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }
}

/// A range of time.
#[derive(Clone, Debug)]
pub struct Range {
    /// Its name in the address: `24h`, `7d`, `30d`, `90d`; empty for dates of one's own.
    pub key: &'static str,
    /// Not before.
    pub since: Millis,
    /// Before.
    pub until: Millis,
    /// In words.
    pub title: String,
    /// Whether its parts are hours rather than days.
    pub is_hours: bool,
    /// Its first and last day, for the fields of the form.
    pub days: (Date, Date),
    /// What else its page was asked for, for the form to keep.
    pub others: Vec<(String, String)>,
}

/// A choice of range.
#[derive(Clone, Debug)]
pub struct Tab {
    /// Where it leads.
    pub href: String,
    /// Its name.
    pub title: &'static str,
    /// Whether it is shown.
    pub is_current: bool,
}

const CHOICES: [(&str, &str, i32); 4] =
    [("24h", "24 hours", 1), ("7d", "7 days", 7), ("30d", "30 days", 30), ("90d", "90 days", 90)];

impl Range {
    /// That of a page's address; the last 30 days if it says none.
    pub fn of(page: &Page, params: &Params) -> Self {
        Self::at(page.now, &page.zone, params)
    }

    fn at(now: Millis, zone: &Zone, params: &Params) -> Self {
        let date = |name| params.get(name).and_then(|text| text.parse::<Date>().ok());
        if let (Some(from), Some(to)) = (date("from"), date("to"))
            && from <= to
            && from.until(to).is_ok_and(|span| span.get_days() < DAYS_LIMIT)
        {
            let until = zone.midnight(to.tomorrow().unwrap_or(to));
            return Self {
                key: "",
                since: zone.midnight(from),
                until,
                title: if from == to {
                    moment::day(from)
                } else {
                    format!("{} – {}", moment::day(from), moment::day(to))
                },
                is_hours: from == to,
                days: (from, to),
                others: params.others(),
            };
        }
        let asked = params.get("range").unwrap_or("30d");
        let (key, title, days) =
            CHOICES.into_iter().find(|(key, ..)| *key == asked).unwrap_or(CHOICES[2]);
        let is_hours = days == 1;
        let since = if is_hours {
            now.div_euclid(HOUR_MS) * HOUR_MS - 23 * HOUR_MS
        } else {
            zone.days_before(now, days - 1)
        };
        Self {
            key,
            since,
            until: now + 1,
            title: format!("Last {title}"),
            is_hours,
            days: (zone.date(since), zone.date(now)),
            others: params.others(),
        }
    }

    /// The last seven days, for what would be too much by the hour.
    pub fn week(page: &Page) -> Self {
        Self::at(page.now, &page.zone, &Params::of("?range=7d"))
    }

    /// The whole hour that an instant is in, as sums by the hour are named.
    pub fn hour(at: Millis) -> String {
        time::rfc3339(at.div_euclid(HOUR_MS) * HOUR_MS)
    }

    /// The choices of a page.
    pub fn tabs(&self, params: &Params) -> Vec<Tab> {
        let tab = |(key, title, _): (&'static str, &'static str, i32)| Tab {
            href: match params.with(&[("range", key), ("from", ""), ("to", "")]) {
                query if query.is_empty() => "?".into(),
                query => query,
            },
            title,
            is_current: key == self.key,
        };
        CHOICES.map(tab).into()
    }

    /// As many hours or days before it, up to the same time of the day.
    pub fn before(&self, zone: &Zone) -> (Millis, Millis) {
        if self.key == "24h" {
            return (self.since - DAY_MS, self.until - DAY_MS);
        }
        let days = i32::try_from(self.count(zone)).unwrap_or(DAYS_LIMIT);
        (zone.days_before(self.since, days), zone.earlier(self.until, days))
    }

    /// How many days it touches.
    fn count(&self, zone: &Zone) -> usize {
        Self { is_hours: false, ..self.clone() }.buckets(zone).len()
    }

    /// Its hours or days, each from its first instant to the first of the next.
    pub fn buckets(&self, zone: &Zone) -> Vec<(Millis, Millis)> {
        let mut buckets = Vec::new();
        let mut at = self.since;
        while at < self.until && buckets.len() < 400 {
            let next = if self.is_hours {
                at.div_euclid(HOUR_MS) * HOUR_MS + HOUR_MS
            } else {
                zone.midnight(zone.date(at).tomorrow().unwrap_or(zone.date(at)))
            };
            if next <= at {
                break;
            }
            buckets.push((at, next));
            at = next;
        }
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;

    #[test]
    fn a_link_keeps_other_filters_and_forgets_the_place() {
        let params = Params::of("/usage?model=a%20b&range=7d&cursor=x&tag=");
        assert_eq!(params.get("model"), Some("a b"));
        assert_eq!(params.get("tag"), None);
        assert_eq!(params.with(&[("range", "30d")]), "?model=a%20b&range=30d");
        assert_eq!(params.with(&[("range", ""), ("model", "")]), "");
    }

    #[test]
    fn a_range_has_every_day_once_also_when_the_clocks_change() {
        let zone = Zone::named("Europe/Berlin").unwrap();
        let now = time::parse("2026-10-27T12:00:00Z", &TimeZone::UTC).unwrap();
        let range = Range::at(now, &zone, &Params::of("/x?range=7d"));
        let buckets = range.buckets(&zone);
        assert_eq!(buckets.len(), 7);
        let hours: Vec<_> = buckets.iter().map(|(a, b)| (b - a) / HOUR_MS).collect();
        assert_eq!(hours, [24, 24, 24, 24, 25, 24, 24]);
        let own = Range::at(now, &zone, &Params::of("/x?from=2026-10-25&to=2026-10-25"));
        assert_eq!(own.buckets(&zone).len(), 25);
        let day = Range::at(now, &zone, &Params::of("/x?range=24h"));
        assert_eq!(day.buckets(&zone).len(), 24);
    }

    #[test]
    fn the_time_before_ends_at_the_same_time_of_the_day() {
        let zone = Zone::named("Europe/Berlin").unwrap();
        let at = |text| time::parse(text, &zone.rules).unwrap();
        let now = at("2026-10-27T12:00:00+01:00") - 1;
        let of = |query| Range::at(now, &zone, &Params::of(query)).before(&zone);
        assert_eq!(of("/x?range=7d"), (at("2026-10-14"), at("2026-10-20T12:00:00+02:00")));
        assert_eq!(of("/x?from=2026-10-25&to=2026-10-26"), (at("2026-10-23"), at("2026-10-25")));
        assert_eq!(of("/x?from=2026-10-25&to=2026-10-25"), (at("2026-10-24"), at("2026-10-25")));
    }

    #[test]
    fn nonsense_is_the_last_thirty_days() {
        let now = time::parse("2026-10-27T12:00:00Z", &TimeZone::UTC).unwrap();
        for query in [
            "range=1y",
            "from=2026-10-02&to=2026-10-01",
            "from=x&to=y",
            "from=2020-01-01&to=2026-01-01",
        ] {
            let range = Range::at(now, &Zone::utc(), &Params::of(&format!("/x?{query}")));
            assert_eq!((range.key, range.buckets(&Zone::utc()).len()), ("30d", 30), "{query}");
        }
    }
}
