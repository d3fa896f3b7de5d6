//! The order of the list of requests, and the rows of a page in it.

use crate::billing::Credits;
use crate::dashboard::page::Page;
use crate::dashboard::params::{Params, Tab};
use crate::store::{self, Rows, StoreError, UsageFilter, UsageRow};

/// Rows that are looked at, at most, for what no index knows: an order other than time, or a
/// least cost.
const LOOKED_AT: usize = 20_000;

/// A column's head.
pub struct Head {
    /// Its name.
    pub title: &'static str,
    /// What stands on the second line of its cells; may be empty.
    pub under: &'static str,
    /// Whether it has figures.
    pub is_number: bool,
    /// Where it sorts, if it can.
    pub sort: Option<Tab>,
}

/// The order of the list; all but time begin with the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// When it was settled.
    Time,
    /// What was debited.
    Cost,
    /// Output tokens.
    Output,
    /// Milliseconds to the end.
    Duration,
}

impl Sort {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Time, Self::Cost, Self::Output, Self::Duration];

    /// In the address; empty for the order that needs no word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Time => "",
            Self::Cost => "cost",
            Self::Output => "output",
            Self::Duration => "duration",
        }
    }

    /// Of the whole list.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Time => "newest first",
            Self::Cost => "dearest first",
            Self::Output => "longest answers first",
            Self::Duration => "slowest first",
        }
    }

    fn of(self, row: &UsageRow) -> i64 {
        match self {
            Self::Time => row.ts,
            Self::Cost => row.charge.nano(),
            Self::Output => i64::try_from(row.output_tokens).unwrap_or(i64::MAX),
            Self::Duration => i64::from(row.latency_ms),
        }
    }
}

/// The columns.
pub fn heads(params: &Params, sort: Sort) -> Vec<Head> {
    let plain = |title, is_number| Head { title, under: "", is_number, sort: None };
    let sorted = |title, is_number, by: Sort| {
        let href = match params.with(&[("sort", by.word())]) {
            query if query.is_empty() => "?".into(),
            query => query,
        };
        Head {
            title,
            under: "",
            is_number,
            sort: Some(Tab { href, title, is_current: by == sort }),
        }
    };
    let under = |under, head| Head { under, ..head };
    vec![
        sorted("Time", false, Sort::Time),
        plain("Model", false),
        under("tag", plain("Key", false)),
        plain("Input", true),
        plain("Cached", true),
        plain("Written", true),
        under("(reasoning)", sorted("Output", true, Sort::Output)),
        sorted("Cost", true, Sort::Cost),
        under("first token", sorted("Time taken", true, Sort::Duration)),
        under("source", plain("Result", false)),
    ]
}

/// Rows in an order, and whether there are more in the range than were looked at.
///
/// By time a page costs what it shows. Any other order looks at the newest [`LOOKED_AT`] rows
/// and has no pages; a least cost reads on until a page is full, or so many were looked at.
pub async fn find_rows(
    page: &Page,
    filter: UsageFilter,
    sort: Sort,
    above: Option<Credits>,
    place: store::Page,
) -> Result<(Rows<UsageRow>, bool), StoreError> {
    let store = &page.state.store;
    if sort == Sort::Time && above.is_none() {
        return Ok((store.usage(&page.account.id, filter, place).await?, false));
    }
    let limit = usize::try_from(place.limit).unwrap_or(0);
    let mut found: Vec<UsageRow> = Vec::new();
    let mut cursor = place.cursor;
    for _ in 0..LOOKED_AT / 500 {
        let step = store::Page { cursor: cursor.take(), limit: 500 };
        let rows = store.usage(&page.account.id, filter.clone(), step).await?;
        let is_dear = |row: &UsageRow| above.is_none_or(|above| row.charge > above);
        found.extend(rows.data.into_iter().filter(is_dear));
        cursor = rows.next;
        if sort != Sort::Time {
            found.sort_by_key(|row| std::cmp::Reverse(sort.of(row)));
            found.truncate(limit);
        }
        if cursor.is_none() || (sort == Sort::Time && found.len() >= limit) {
            break;
        }
    }
    let is_part = sort != Sort::Time && cursor.is_some();
    let next = cursor.filter(|_| sort == Sort::Time);
    Ok((Rows { data: found, next }, is_part))
}
