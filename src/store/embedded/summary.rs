//! Sums over usage, by model, key, tag, upstream or day of any time zone.
//!
//! Whole hours come from `usage_hour`; what that lacks (the edges of a range that are no whole
//! hours, hours in which a day of the zone begins, filters that the sums do not know) comes
//! from the records themselves. Both ways give the same sums to the nano-credit.

use std::ops::Range;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::types::FromSql;
use rusqlite::{Connection, params, params_from_iter};

use super::HOUR_MS;
use super::read::{Select, must_exist};
use super::sql::{Count, Fault};
use crate::billing::Credits;
use crate::store::sums::{Cut, Sums, day_of};
use crate::store::{AccountId, Group, Millis, SummaryRow, UsageFilter};
use crate::time;

/// Sums over the requests of an account, dearest group first; days in order.
pub(super) fn summary(
    db: &Connection,
    account: &AccountId,
    filter: &UsageFilter,
    by: Group,
    zone: &TimeZone,
) -> Result<Vec<SummaryRow>, Fault> {
    must_exist(db, account)?;
    let end = Timestamp::MAX.as_millisecond();
    let since = filter.since.unwrap_or(0).clamp(0, end);
    let until = filter.until.unwrap_or(end).clamp(since, end);
    let query = Query { db, account, filter };
    let sums = match by {
        Group::Model => query.by_column("+model", since..until)?,
        Group::Key => query.by_column("+key", since..until)?,
        Group::Tag => query.by_column("coalesce(tag, '')", since..until)?,
        Group::Upstream => query.by_column("+upstream", since..until)?,
        Group::Day => query.by_day(zone, since..until)?,
        Group::Hour => query.by_hour(since..until)?,
    };
    Ok(sums.rows(by))
}

/// What the requests of a key were charged, settled within a range of times.
pub(super) fn spent(
    db: &Connection,
    account: &AccountId,
    key: &str,
    range: Range<Millis>,
) -> Result<Credits, Fault> {
    // At most an hour at each edge, and none where days begin on the hour.
    let rows = |range: Range<Millis>| {
        if range.is_empty() {
            return Ok(Credits::ZERO);
        }
        db.prepare_cached(
            "SELECT coalesce(sum(charge), 0) FROM usage
             WHERE account = ? AND key = ? AND ts >= ? AND ts < ?",
        )?
        .query_row(params![account, key, range.start, range.end], |row| row.get(0))
    };
    let hours = |hours: Range<i64>| {
        db.prepare_cached(
            "SELECT coalesce(sum(charge), 0) FROM usage_hour INDEXED BY usage_hour_of_key
             WHERE account = ? AND key = ? AND hour >= ? AND hour < ?",
        )?
        .query_row(params![account, key, hours.start, hours.end], |row| row.get(0))
    };
    let end = Timestamp::MAX.as_millisecond();
    let start = range.start.max(0);
    let cut = Cut::of(start..range.end.clamp(start, end));
    let parts: [Credits; 3] = [rows(cut.before)?, hours(cut.hours)?, rows(cut.after)?];
    Ok(parts.into_iter().sum())
}

struct Query<'a> {
    db: &'a Connection,
    account: &'a AccountId,
    filter: &'a UsageFilter,
}

impl Query<'_> {
    /// `column` is written so that no index tempts SQLite to walk all of an account's rows for
    /// the order of its groups.
    fn by_column(&self, column: &str, range: Range<Millis>) -> Result<Sums, Fault> {
        let mut sums = Sums::default();
        let mut add = |parts: Vec<(String, SummaryRow)>| {
            for (group, part) in parts {
                sums.add(&group, &part);
            }
        };
        if self.needs_rows() {
            add(self.sum_rows(column, range)?);
        } else {
            let cut = Cut::of(range);
            add(self.sum_rows(column, cut.before)?);
            add(self.sum_hours(column, cut.hours)?);
            add(self.sum_rows(column, cut.after)?);
        }
        Ok(sums)
    }

    fn by_day(&self, zone: &TimeZone, range: Range<Millis>) -> Result<Sums, Fault> {
        let Cut { before, hours, after } = Cut::of(range);
        let parts: Vec<(i64, _)> = if self.needs_rows() {
            let hour = format!("ts / {HOUR_MS}");
            self.sum_rows(&hour, hours.start * HOUR_MS..hours.end * HOUR_MS)?
        } else {
            self.sum_hours("hour", hours)?
        };
        let mut sums = Sums::default();
        for (hour, part) in parts {
            let (begins, ends) = (hour * HOUR_MS, (hour + 1) * HOUR_MS);
            let day = day_of(zone, ends - 1);
            sums.add(&day, &part);
            if day == day_of(zone, begins) {
                continue;
            }
            // Up to where the day begins they are of the one before, as far as rows are there:
            // of hours that were trimmed the sums are all there is.
            for (ts, part) in self.sum_rows::<Millis>("ts", begins..ends)? {
                let of = day_of(zone, ts);
                if of != day {
                    sums.take(&day, &part);
                    sums.add(&of, &part);
                }
            }
        }
        let single_rows = [before, after];
        for range in single_rows {
            for (ts, part) in self.sum_rows::<Millis>("ts", range)? {
                sums.add(&day_of(zone, ts), &part);
            }
        }
        Ok(sums)
    }

    fn by_hour(&self, range: Range<Millis>) -> Result<Sums, Fault> {
        let of_rows = format!("ts / {HOUR_MS}");
        let parts: Vec<(i64, _)> = if self.needs_rows() {
            self.sum_rows(&of_rows, range)?
        } else {
            let Cut { before, hours, after } = Cut::of(range);
            let mut parts = self.sum_rows(&of_rows, before)?;
            parts.extend(self.sum_hours("hour", hours)?);
            parts.extend(self.sum_rows(&of_rows, after)?);
            parts
        };
        let name = |(hour, part)| (time::rfc3339(hour * HOUR_MS), part);
        Ok(Sums::of(parts.into_iter().map(name).collect()))
    }

    /// Whether the filter asks for what the sums do not know.
    fn needs_rows(&self) -> bool {
        let UsageFilter { origin, source, outcome, .. } = self.filter;
        origin.is_some() || source.is_some() || outcome.is_some()
    }

    fn sum_rows<K: FromSql>(
        &self,
        group: &str,
        range: Range<Millis>,
    ) -> Result<Vec<(K, SummaryRow)>, Fault> {
        let columns = format!(
            "{group}, count(*), sum(input), sum(cached),
             sum(cache_creation_5m + cache_creation_1h), sum(output), -coalesce(sum(amount), 0),
             sum(source = 'estimated')"
        );
        let mut select = Select::of_usage(&columns, self.filter, self.account);
        select.and_row(self.filter);
        select.and_times(Some(range.start), Some(range.end));
        if range.is_empty() { Ok(Vec::new()) } else { self.parts(select) }
    }

    fn sum_hours<K: FromSql>(
        &self,
        group: &str,
        hours: Range<i64>,
    ) -> Result<Vec<(K, SummaryRow)>, Fault> {
        let sql = format!(
            "SELECT {group}, sum(requests), sum(input), sum(cached),
                 sum(cache_creation), sum(output), sum(charge), sum(estimated)
             FROM usage_hour WHERE account = ?"
        );
        let mut select = Select::of(sql, self.account);
        select.and_group(self.filter);
        select.and("hour >= ?", hours.start);
        select.and("hour < ?", hours.end);
        self.parts(select)
    }

    fn parts<K: FromSql>(&self, mut select: Select) -> Result<Vec<(K, SummaryRow)>, Fault> {
        select.sql.push_str(" GROUP BY 1");
        let parts = self
            .db
            .prepare_cached(&select.sql)?
            .query_map(params_from_iter(select.values), |row| {
                let count = |column| row.get::<_, Count>(column).map(|count| count.0);
                let sum = SummaryRow {
                    group: String::new(),
                    requests: count(1)?,
                    input_tokens: count(2)?,
                    cached_input_tokens: count(3)?,
                    cache_creation_tokens: count(4)?,
                    output_tokens: count(5)?,
                    charge: row.get(6)?,
                    estimated: count(7)?,
                };
                Ok((row.get(0)?, sum))
            })?
            .collect::<Result<_, _>>()?;
        Ok(parts)
    }
}
