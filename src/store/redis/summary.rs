//! Sums over usage: whole hours from the sums that settlements keep, the rest from rows.

use std::ops::Range;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Shared;
use super::names::Name;
use super::read::Order;
use super::reply::{self, Odd, Reply};
use super::rows;
use crate::billing::Credits;
use crate::store::sums::{Cut, HOUR_MS, Sums, day_of};
use crate::store::{
    AccountId, Group, Millis, Source, StoreError, SummaryRow, UsageFilter, UsageRow,
};
use crate::time::rfc3339;

/// Rows or sums that are read in one step.
const STEP: usize = 1000;
/// The names of the sums of an hour, each of which is left out while it is nothing.
pub(super) const LETTERS: [&str; 7] = ["r", "i", "c", "w", "o", "x", "e"];

/// Sums of one hour, model, key, tag and upstream.
pub(super) struct Hour {
    pub hour: i64,
    pub model: String,
    pub key: String,
    pub tag: String,
    pub upstream: String,
    pub sum: SummaryRow,
}

impl Shared {
    /// Sums over the requests of an account, dearest group first; days in order.
    pub(super) async fn sum(
        &self,
        account: &AccountId,
        filter: &UsageFilter,
        by: Group,
        zone: &TimeZone,
    ) -> Result<Vec<SummaryRow>, StoreError> {
        self.must_exist(account).await?;
        let end = Timestamp::MAX.as_millisecond();
        let since = filter.since.unwrap_or(0).clamp(0, end);
        let until = filter.until.unwrap_or(end).clamp(since, end);
        let UsageFilter { origin, source, outcome, .. } = filter;
        let needs_rows = origin.is_some() || source.is_some() || outcome.is_some();

        let mut sums = Sums::default();
        let mut of_rows = Vec::new();
        if needs_rows {
            of_rows.push(since..until);
        } else {
            let Cut { before, hours, after } = Cut::of(since..until);
            of_rows.extend([before, after]);
            for found in self.hours(account, filter, hours).await? {
                let group = match by {
                    Group::Model => found.model,
                    Group::Key => found.key,
                    Group::Tag => found.tag,
                    Group::Upstream => found.upstream,
                    Group::Hour => rfc3339(found.hour * HOUR_MS),
                    Group::Day => {
                        let range = found.hour * HOUR_MS..(found.hour + 1) * HOUR_MS;
                        let day = day_of(zone, range.start);
                        if day != day_of(zone, range.end - 1) {
                            if !of_rows.contains(&range) {
                                of_rows.push(range);
                            }
                            continue;
                        }
                        day
                    }
                };
                sums.add(group, &found.sum);
            }
        }
        for range in of_rows {
            self.each_row(account, range, |row| {
                if rows::matches(row, filter) {
                    let group = match by {
                        Group::Model => row.model.clone(),
                        Group::Key => row.key.clone(),
                        Group::Tag => row.attribution.tag.clone().unwrap_or_default(),
                        Group::Upstream => row.upstream.clone(),
                        Group::Hour => rfc3339(row.ts - row.ts.rem_euclid(HOUR_MS)),
                        Group::Day => day_of(zone, row.ts),
                    };
                    sums.add(group, &sum_of(row));
                }
            })
            .await?;
        }
        Ok(sums.rows(by))
    }

    /// What the requests of a key were charged within a range, and how far that has counted:
    /// a place among the rows. Of hours before `trimmed` only the sums are whole.
    pub(super) async fn spent(
        &self,
        account: &AccountId,
        key: &str,
        range: Range<Millis>,
        seen: &str,
        trimmed: Millis,
    ) -> Result<Credits, StoreError> {
        // Only the rows of the hour that `seen` is in can become more.
        let last: Millis = seen.split('-').next().and_then(|ts| ts.parse().ok()).unwrap_or(0);
        let edge = (last - last % HOUR_MS).max(trimmed);
        let start = range.start.clamp(0, edge);
        let Cut { before, hours, after } = Cut::of(start..edge.min(range.end).max(start));
        let filter = UsageFilter { key: Some(key.into()), ..UsageFilter::default() };
        let hours = self.hours(account, &filter, hours).await?;
        let mut spent: Credits = hours.iter().map(|found| found.sum.charge).sum();
        let open = edge.max(range.start.max(0))..(last + 1).min(range.end);
        for rows in [before, after, open] {
            self.each_item(account, rows, |id, row| {
                if row.key == key && is_up_to(id, seen) {
                    spent += row.charge;
                }
            })
            .await?;
        }
        Ok(spent)
    }

    async fn each_row(
        &self,
        account: &AccountId,
        range: Range<Millis>,
        mut each: impl FnMut(&UsageRow),
    ) -> Result<(), StoreError> {
        self.each_item(account, range, |_, row| each(row)).await
    }

    async fn each_item(
        &self,
        account: &AccountId,
        range: Range<Millis>,
        mut each: impl FnMut(&str, &UsageRow),
    ) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        let key = self.names.of(account, Name::Usage);
        let (mut low, high) = (range.start.to_string(), (range.end - 1).to_string());
        loop {
            let range = (low.clone(), high.clone());
            let items = self.stream(&key, range, Order::OldestFirst, STEP).await?;
            let is_last = items.len() < STEP;
            for item in items {
                let id = item.id.clone();
                each(&id, &item.usage()?);
                low = format!("({id}");
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// The sums of whole hours, of the models, keys and tags that are asked for.
    pub(super) async fn hours(
        &self,
        account: &AccountId,
        filter: &UsageFilter,
        hours: Range<i64>,
    ) -> Result<Vec<Hour>, StoreError> {
        let mut found = Vec::new();
        if hours.is_empty() {
            return Ok(found);
        }
        // The place in the list: an hour, and how much of it was read. Redis walks to it, so it
        // must not be counted from the start of the range.
        let (mut from, mut skip) = (hours.start, 0);
        loop {
            let mut cmd = redis::cmd("ZRANGEBYSCORE");
            cmd.arg(self.names.of(account, Name::Hours)).arg(from);
            cmd.arg(format!("({}", hours.end)).arg("LIMIT").arg(skip).arg(STEP);
            let names: Vec<_> = Reply::of(self.link.patient(&cmd).await?)?
                .map(reply::text)
                .collect::<Result<_, _>>()?;
            let is_last = names.len() < STEP;
            let mut wanted = Vec::new();
            for name in names {
                let hour = hour_of(&name)?;
                if hour.hour != from {
                    (from, skip) = (hour.hour, 0);
                }
                skip += 1;
                let same = |asked: &Option<String>, is: &str| {
                    asked.as_ref().is_none_or(|asked| asked == is)
                };
                // Nobody can ask for requests without a tag: the empty one stands for them.
                if same(&filter.model, &hour.model)
                    && same(&filter.key, &hour.key)
                    && same(&filter.tag, &hour.tag)
                {
                    wanted.push((name, hour));
                }
            }
            self.fill(account, wanted, &mut found).await?;
            if is_last {
                return Ok(found);
            }
        }
    }

    async fn fill(
        &self,
        account: &AccountId,
        wanted: Vec<(String, Hour)>,
        found: &mut Vec<Hour>,
    ) -> Result<(), StoreError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.names.of(account, Name::Hourly));
        for (name, _) in &wanted {
            for letter in LETTERS {
                cmd.arg(format!("{letter}{name}"));
            }
        }
        let mut answer = Reply::of(self.link.patient(&cmd).await?)?;
        for (_, mut hour) in wanted {
            let mut next = || -> Result<i64, Odd> {
                let count = reply::maybe(answer.value()?)?;
                count.map_or(Ok(0), |count| reply::number(&count))
            };
            let mut count = || next().map(i64::unsigned_abs);
            hour.sum.requests = count()?;
            hour.sum.input_tokens = count()?;
            hour.sum.cached_input_tokens = count()?;
            hour.sum.cache_creation_tokens = count()?;
            hour.sum.output_tokens = count()?;
            hour.sum.charge = Credits::from_nano(next()?);
            hour.sum.estimated = next()?.unsigned_abs();
            if hour.sum.requests > 0 {
                found.push(hour);
            }
        }
        Ok(())
    }
}

pub(super) fn hour_of(name: &str) -> Result<Hour, Odd> {
    let (hour, group) = name.split_once(' ').ok_or(Odd)?;
    let [model, key, tag, upstream]: [String; 4] = serde_json::from_str(group).map_err(|_| Odd)?;
    let hour = reply::number(hour)?;
    Ok(Hour { hour, model, key, tag, upstream, sum: SummaryRow::default() })
}

fn sum_of(row: &UsageRow) -> SummaryRow {
    SummaryRow {
        group: String::new(),
        requests: 1,
        input_tokens: row.input_tokens,
        cached_input_tokens: row.cached_input_tokens,
        cache_creation_tokens: row.cache_creation_5m_tokens + row.cache_creation_1h_tokens,
        output_tokens: row.output_tokens,
        charge: row.charge,
        estimated: u64::from(row.source == Source::Estimated),
    }
}

/// Whether a place among the rows is not behind another.
fn is_up_to(id: &str, seen: &str) -> bool {
    let place = |id: &str| {
        let (ts, n) = id.split_once('-')?;
        Some((ts.parse::<u64>().ok()?, n.parse::<u64>().ok()?))
    };
    place(id) <= place(seen)
}
