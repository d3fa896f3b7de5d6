//! What eats the credits: sums by model, key, tag or upstream.

use std::collections::HashMap;

use askama::Template;
use axum::response::Response;

use super::number::{Exact, duration, grouped, percent};
use super::page::{Page, Shell};
use super::params::{Params, Range, Tab};
use super::{Failure, assets};
use crate::billing::Credits;
use crate::billing::price::{Model, Rate};
use crate::store::{self, Group, StoreError, SummaryRow, UsageFilter, UsageRow};

/// Rows before the rest is one row.
const ROWS: usize = 10;
/// Requests of which a median is taken: the latest of the range.
const TIMED: u32 = 100;
/// Requests of all groups in which those are looked for first.
const LATEST: u32 = 500;

#[derive(Template)]
#[template(path = "costs.html")]
struct Costs {
    shell: Shell,
    tabs: Vec<Tab>,
    groups: Vec<Tab>,
    range: Range,
    what: &'static str,
    rows: Vec<Line>,
    total: Option<Line>,
    older: String,
    timed: u32,
    /// Whether the time before says anything.
    is_compared: bool,
}

struct Line {
    name: String,
    href: String,
    share: String,
    bar: i64,
    cost: Exact,
    requests: String,
    input: String,
    cached: String,
    written: String,
    output: String,
    average: Exact,
    median: String,
    before: String,
    way: &'static str,
    price: Option<Price>,
}

/// What a model costs now.
struct Price {
    /// The two that matter most.
    short: String,
    /// All of them: what, and the rate.
    rates: Vec<(&'static str, String)>,
    /// Where and when it was read; may be empty.
    source: String,
}

/// The page.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn show(page: Page) -> Result<Response, Failure> {
    let params = Params::of(&page.path);
    let range = Range::of(&page, &params);
    let (by, what) = match params.get("by") {
        Some("key") => (Group::Key, "Key"),
        Some("tag") => (Group::Tag, "Tag"),
        Some("upstream") => (Group::Upstream, "Upstream"),
        _ => (Group::Model, "Model"),
    };
    let sums = page.sums(by, range.since, range.until, None).await?;
    let (earlier, end) = range.before(&page.zone);
    let before = page.sums(by, earlier, end, None).await?;
    // A time of which the account has lived only a part is no measure.
    let is_compared = page.account.created_at <= earlier && !before.is_empty();
    let before: HashMap<_, _> = before.into_iter().map(|sum| (sum.group, sum.charge)).collect();
    let names = key_names(&page).await?;
    let medians = medians(&page, &range, by, &sums).await?;
    let seen = Seen { by, sums, before, names, medians };
    let (rows, total) = lines(&page, &range, &params, seen);
    let costs = Costs {
        shell: page.shell("costs").await?,
        tabs: range.tabs(&params),
        groups: [("model", "Model"), ("key", "Key"), ("tag", "Tag"), ("upstream", "Upstream")]
            .map(|(key, title)| Tab {
                href: params.with(&[("by", key)]),
                title,
                is_current: title == what,
            })
            .into(),
        older: params.with(&[("range", "90d"), ("from", ""), ("to", "")]),
        range,
        what,
        rows,
        total,
        timed: TIMED,
        is_compared,
    };
    page.show(&costs)
}

/// The names of an account's keys, by id.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn key_names(page: &Page) -> Result<HashMap<String, String>, StoreError> {
    let keys = page.state.store.keys(&page.account.id).await?;
    Ok(keys.into_iter().map(|key| (key.id, key.name)).collect())
}

impl Page {
    /// Sums of a time, dearest first; of one model alone, if one is named.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn sums(
        &self,
        by: Group,
        since: i64,
        until: i64,
        model: Option<String>,
    ) -> Result<Vec<SummaryRow>, StoreError> {
        let (since, until) = (Some(since), Some(until));
        let filter = UsageFilter { since, until, model, ..UsageFilter::default() };
        let zone = self.zone.rules.clone();
        self.state.store.summary(&self.account.id, filter, by, zone).await
    }
}

/// What was read for the table.
struct Seen {
    by: Group,
    /// Dearest first.
    sums: Vec<SummaryRow>,
    /// What each group cost in the time before.
    before: HashMap<String, Credits>,
    /// Of keys, by id.
    names: HashMap<String, String>,
    /// Milliseconds, by group; of all under none.
    medians: HashMap<Option<String>, u32>,
}

fn lines(page: &Page, range: &Range, params: &Params, seen: Seen) -> (Vec<Line>, Option<Line>) {
    let Seen { by, mut sums, before, names, medians } = seen;
    let table = (page.state.prices)();
    if sums.is_empty() {
        return (Vec::new(), None);
    }
    let total = added("Total".into(), &sums);
    let all_before: Credits = before.values().copied().sum();
    let mut earlier: Vec<_> = sums.iter().map(|sum| before.get(&sum.group).copied()).collect();
    let rest = sums.split_off(sums.len().min(ROWS));
    let shown = sums.len();
    earlier.truncate(shown);
    if !rest.is_empty() {
        let known: Credits = earlier.iter().flatten().copied().sum();
        earlier.push(Some(all_before - known));
        sums.push(added(format!("Other ({})", rest.len()), &rest));
    }
    sums.push(total);
    earlier.push(Some(all_before));

    let whole = sums.last().map_or(Credits::ZERO, |sum| sum.charge);
    let most = sums.first().map_or(0, |sum| sum.charge.nano()).max(1);
    let costs = Exact::column(sums.iter().map(|sum| sum.charge));
    let averages = Exact::column(sums.iter().map(average));
    let numbers = costs.into_iter().zip(averages).zip(earlier);
    let mut lines: Vec<_> = sums
        .iter()
        .zip(numbers)
        .enumerate()
        .map(|(at, (sum, ((cost, average), earlier)))| {
            let (before, way) = super::wallet::change(sum.charge, earlier.unwrap_or_default());
            Line {
                name: if at < shown { name(by, &sum.group, &names) } else { sum.group.clone() },
                href: if at < shown {
                    href(page, range, params, by, &sum.group)
                } else {
                    String::new()
                },
                share: percent(sum.charge, whole),
                bar: (sum.charge.nano().max(0) / (most / 100).max(1)).min(100),
                cost,
                requests: grouped(sum.requests),
                input: grouped(sum.input_tokens),
                cached: grouped(sum.cached_input_tokens),
                written: grouped(sum.cache_creation_tokens),
                output: grouped(sum.output_tokens),
                average,
                median: {
                    // The row of the rest has none; the last row is all of them.
                    let group = match at {
                        _ if at < shown => Some(Some(sum.group.clone())),
                        _ if at + 1 == sums.len() => Some(None),
                        _ => None,
                    };
                    let found = group.and_then(|group| medians.get(&group));
                    found.map_or_else(|| "–".into(), |ms| duration(*ms))
                },
                before: if before == "nothing before" { "new".into() } else { before },
                way,
                price: match by {
                    Group::Model if at < shown => table.find(&sum.group).map(|m| Price::of(m)),
                    _ => None,
                },
            }
        })
        .collect();
    let total = lines.pop();
    (lines, total)
}

fn name(by: Group, group: &str, names: &HashMap<String, String>) -> String {
    match by {
        Group::Key => names.get(group).cloned().unwrap_or_else(|| group.to_owned()),
        _ if group.is_empty() => "(none)".into(),
        _ => group.to_owned(),
    }
}

/// The median time of the latest requests of each group that is shown, and of all (`None`).
async fn medians(
    page: &Page,
    range: &Range,
    by: Group,
    sums: &[SummaryRow],
) -> Result<HashMap<Option<String>, u32>, StoreError> {
    let latest = async |limit, filter: UsageFilter| -> Result<_, StoreError> {
        let (since, until) = (Some(range.since), Some(range.until));
        let filter = UsageFilter { since, until, ..filter };
        let page_of = store::Page { cursor: None, limit };
        Ok(page.state.store.usage(&page.account.id, filter, page_of).await?.data)
    };
    // Among the latest of all there are often enough of each.
    let all = latest(LATEST, UsageFilter::default()).await?;
    let is_whole = all.len() < LATEST as usize;
    let mut medians = HashMap::new();
    let times = all.iter().map(|row| row.latency_ms);
    medians.extend(median(times.take(TIMED as usize)).map(|median| (None, median)));
    for group in sums.iter().take(ROWS).map(|sum| &sum.group) {
        let its = |row: &&UsageRow| match by {
            Group::Model => row.model == *group,
            Group::Key => row.key == *group,
            Group::Upstream => row.upstream == *group,
            _ => row.attribution.tag.as_deref().unwrap_or_default() == group,
        };
        let mut times: Vec<_> = all.iter().filter(its).map(|row| row.latency_ms).collect();
        let mut filter = UsageFilter::default();
        match by {
            Group::Model => filter.model = Some(group.clone()),
            Group::Key => filter.key = Some(group.clone()),
            Group::Upstream => filter.upstream = Some(group.clone()),
            // Rows without a tag cannot be asked for.
            _ if group.is_empty() => continue,
            _ => filter.tag = Some(group.clone()),
        }
        if times.len() < TIMED as usize && !is_whole {
            times = latest(TIMED, filter).await?.iter().map(|row| row.latency_ms).collect();
        }
        let median = median(times.into_iter().take(TIMED as usize));
        medians.extend(median.map(|median| (Some(group.clone()), median)));
    }
    Ok(medians)
}

fn median(times: impl Iterator<Item = u32>) -> Option<u32> {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) / 2).copied()
}

impl Price {
    fn of(model: &Model) -> Self {
        let price = &model.price;
        if price.free {
            return Self { short: "free".into(), rates: Vec::new(), source: String::new() };
        }
        let rates = &price.standard.rates;
        let optional = |what, rate: Option<Rate>| Some((what, rate?.to_string()));
        let all = [
            Some(("Input", rates.input.to_string())),
            optional("Cached input", rates.cached_input),
            optional("Cache write, 5 min", rates.cache_creation),
            optional("Cache write, 1 h", rates.cache_creation_1h),
            Some(("Output", rates.output.to_string())),
        ];
        let read = model.date.as_ref().map(|date| format!("read on {date}"));
        let said = model.source.iter().cloned().chain(read);
        Self {
            short: format!("{} in, {} out", rates.input, rates.output),
            rates: all.into_iter().flatten().collect(),
            source: said.collect::<Vec<_>>().join(", "),
        }
    }
}

/// The requests behind a row.
fn href(page: &Page, range: &Range, params: &Params, by: Group, group: &str) -> String {
    let filter = match by {
        Group::Key => "key",
        Group::Tag => "tag",
        Group::Upstream => "upstream",
        _ => "model",
    };
    if group.is_empty() {
        return String::new();
    }
    let time = match range.key {
        "" => format!(
            "from={}&to={}",
            params.get("from").unwrap_or_default(),
            params.get("to").unwrap_or_default()
        ),
        key => format!("range={key}"),
    };
    format!("{}?{filter}={}&{time}", page.href("usage"), assets::encode(group))
}

/// All rows as one.
pub(super) fn added(group: String, rows: &[SummaryRow]) -> SummaryRow {
    let mut sum = SummaryRow { group, ..SummaryRow::default() };
    for row in rows {
        sum.requests += row.requests;
        sum.input_tokens += row.input_tokens;
        sum.cached_input_tokens += row.cached_input_tokens;
        sum.cache_creation_tokens += row.cache_creation_tokens;
        sum.output_tokens += row.output_tokens;
        sum.charge += row.charge;
        sum.estimated += row.estimated;
    }
    sum
}

/// What one request cost on average, to the millionth of a credit.
fn average(sum: &SummaryRow) -> Credits {
    let requests = i64::try_from(sum.requests.max(1)).unwrap_or(i64::MAX);
    Credits::from_nano(sum.charge.nano() / requests / 1000 * 1000)
}
