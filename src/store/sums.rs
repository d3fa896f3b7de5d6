//! Sums over usage, whatever they are read from.
//!
//! Stores keep sums by the hour, because days of nearly every time zone are made of whole UTC
//! hours; what they lack comes from the rows themselves.

use std::collections::HashMap;
use std::ops::Range;

use jiff::tz::TimeZone;

use super::{Group, Millis, SummaryRow};
use crate::time::in_zone;

/// Milliseconds in an hour.
pub(super) const HOUR_MS: Millis = 3_600_000;

/// Sums by group.
#[derive(Default)]
pub(super) struct Sums(HashMap<String, SummaryRow>);

impl Sums {
    pub(super) fn of(parts: Vec<(String, SummaryRow)>) -> Self {
        let mut sums = Self::default();
        for (group, part) in parts {
            sums.add(&group, &part);
        }
        sums
    }

    pub(super) fn add(&mut self, group: &str, part: &SummaryRow) {
        if !self.0.contains_key(group) {
            let sum = SummaryRow { group: group.to_owned(), ..SummaryRow::default() };
            self.0.insert(group.to_owned(), sum);
        }
        if let Some(sum) = self.0.get_mut(group) {
            add(sum, part);
        }
    }

    /// Takes a part out that was added before, under another name.
    pub(super) fn take(&mut self, group: &str, part: &SummaryRow) {
        let Some(sum) = self.0.get_mut(group) else { return };
        let less = |sum: &mut u64, part: u64| *sum = sum.saturating_sub(part);
        less(&mut sum.requests, part.requests);
        less(&mut sum.input_tokens, part.input_tokens);
        less(&mut sum.cached_input_tokens, part.cached_input_tokens);
        less(&mut sum.cache_creation_tokens, part.cache_creation_tokens);
        less(&mut sum.output_tokens, part.output_tokens);
        sum.charge = sum.charge - part.charge;
        less(&mut sum.estimated, part.estimated);
        if sum.requests == 0 {
            self.0.remove(group);
        }
    }

    /// The groups, dearest first; days in order.
    pub(super) fn rows(self, by: Group) -> Vec<SummaryRow> {
        let mut rows: Vec<_> = self.0.into_values().collect();
        rows.sort_by(|a, b| match by {
            Group::Day | Group::Hour => a.group.cmp(&b.group),
            Group::Model | Group::Key | Group::Tag | Group::Upstream => {
                b.charge.cmp(&a.charge).then_with(|| a.group.cmp(&b.group))
            }
        });
        rows
    }
}

/// Adds a part to a sum.
pub(super) fn add(sum: &mut SummaryRow, part: &SummaryRow) {
    sum.requests += part.requests;
    sum.input_tokens += part.input_tokens;
    sum.cached_input_tokens += part.cached_input_tokens;
    sum.cache_creation_tokens += part.cache_creation_tokens;
    sum.output_tokens += part.output_tokens;
    sum.charge += part.charge;
    sum.estimated += part.estimated;
}

/// A range of times, cut at whole hours. Each part may be empty.
pub(super) struct Cut {
    pub before: Range<Millis>,
    /// Since 1970.
    pub hours: Range<i64>,
    pub after: Range<Millis>,
}

impl Cut {
    pub(super) fn of(range: Range<Millis>) -> Self {
        let first = (range.start + HOUR_MS - 1) / HOUR_MS;
        let last = (range.end / HOUR_MS).max(first);
        let (whole, end) = (first * HOUR_MS, last * HOUR_MS);
        Self {
            before: range.start..whole.min(range.end),
            hours: first..last,
            after: end.min(range.end)..range.end,
        }
    }
}

/// The calendar day of a time, `YYYY-MM-DD`.
pub(super) fn day_of(zone: &TimeZone, ts: Millis) -> String {
    in_zone(ts, zone).date().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The three parts are one after another, and only the edges are no whole hours.
        #[test]
        fn a_cut_range_loses_nothing(start in 0_i64..5 * HOUR_MS, length in 0_i64..5 * HOUR_MS) {
            let end = start + length;
            let Cut { before, hours, after } = Cut::of(start..end);
            prop_assert_eq!(before.start, start);
            prop_assert_eq!(after.end, end);
            prop_assert!(before.end - before.start < HOUR_MS || hours.is_empty());
            prop_assert!(after.end - after.start < HOUR_MS);
            if hours.is_empty() {
                prop_assert_eq!(before.end, after.start);
            } else {
                prop_assert_eq!(before.end, hours.start * HOUR_MS);
                prop_assert_eq!(after.start, hours.end * HOUR_MS);
            }
        }
    }
}
