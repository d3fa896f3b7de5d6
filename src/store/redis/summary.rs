//! Sums over usage: whole hours from the sums that settlements keep, the rest from rows.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Shared;
use super::hours::Hour;
use super::names::Name;
use super::read::Order;
use super::rows;
use crate::billing::Credits;
use crate::store::sums::{Cut, HOUR_MS, Sums, day_of};
use crate::store::{
    AccountId, Group, Millis, Source, StoreError, SummaryRow, UsageFilter, UsageRow,
};
use crate::time::rfc3339;

/// Rows that are read in one step.
const STEP: usize = 1000;

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
        let Cut { before, hours, after } = Cut::of(since..until);
        let found = self.hours(account, hours, |of| of.is_asked(filter) != Some(false)).await?;
        // Hours with sums that do not know what is asked.
        let mut unknown: Vec<i64> = found
            .iter()
            .filter(|found| found.of.is_asked(filter).is_none())
            .map(|found| found.hour)
            .collect();
        unknown.sort_unstable();
        unknown.dedup();

        let mut sums = Sums::default();
        let mut of_rows = vec![before, after];
        of_rows.extend(unknown.iter().map(|hour| hour * HOUR_MS..(hour + 1) * HOUR_MS));
        let mut days = Days { zone, known: HashMap::new() };
        // Hours in which a day begins, and when.
        let mut cuts: BTreeMap<i64, Millis> = BTreeMap::new();
        for Hour { hour, of, sum } in &found {
            if unknown.binary_search(hour).is_ok() {
                continue;
            }
            match by {
                Group::Model => sums.add(&of.model, sum),
                Group::Key => sums.add(&of.key, sum),
                Group::Tag => sums.add(&of.tag, sum),
                Group::Upstream => sums.add(&of.upstream, sum),
                Group::Hour => sums.add(&rfc3339(hour * HOUR_MS), sum),
                Group::Day => {
                    let (day, cut) = days.of(*hour);
                    sums.add(day, sum);
                    cuts.extend(cut.map(|cut| (*hour, cut)));
                }
            }
        }
        // Up to there they are of the day before.
        for Hour { hour, of, sum } in self.first_parts(account, &cuts).await? {
            if of.is_asked(filter) == Some(true) {
                sums.take(days.of(hour).0, &sum);
                sums.add(&day_of(zone, hour * HOUR_MS), &sum);
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
                    sums.add(&group, &sum_of(row));
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
        let hours = self.hours(account, hours, |of| of.key == key).await?;
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

    pub(super) async fn each_row(
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
}

/// The days of a zone that hours belong to.
struct Days<'a> {
    zone: &'a TimeZone,
    known: HashMap<i64, (String, Option<Millis>)>,
}

impl Days<'_> {
    /// The day in which an hour ends, and when in the hour that day begins, if it does.
    fn of(&mut self, hour: i64) -> (&str, Option<Millis>) {
        let (day, cut) = self.known.entry(hour).or_insert_with(|| {
            let (begins, ends) = (hour * HOUR_MS, (hour + 1) * HOUR_MS - 1);
            let day = day_of(self.zone, ends);
            let cut =
                (day != day_of(self.zone, begins)).then(|| first_of_day(self.zone, begins, ends));
            (day, cut)
        });
        (day, *cut)
    }
}

/// The first instant of the day in which a range of times ends, of which the first is of another.
fn first_of_day(zone: &TimeZone, mut other: Millis, mut of_day: Millis) -> Millis {
    let day = day_of(zone, of_day);
    while of_day - other > 1 {
        let middle = other + (of_day - other) / 2;
        if day_of(zone, middle) == day {
            of_day = middle;
        } else {
            other = middle;
        }
    }
    of_day
}

pub(super) fn sum_of(row: &UsageRow) -> SummaryRow {
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
