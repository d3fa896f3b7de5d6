//! How spending goes over time: bars by day or hour, and how long it can go on.

use std::collections::HashMap;

use askama::Template;
use axum::response::Response;
use futures_util::future::{try_join, try_join_all};
use jiff::civil::Date;

use super::Failure;
use super::chart::{self, Bar, SERIES};
use super::explain::{self, InForce};
use super::moment;
use super::number::{Decimals, Exact};
use super::page::{Page, Shell};
use super::params::{Params, Range, Tab};
use crate::billing::Credits;
use crate::billing::ledger::Kind;
use crate::billing::price::PriceTable;
use crate::store::{self, EntryFilter, Group, Millis, StoreError, SummaryRow};
use crate::time;

const DAY_MS: Millis = 24 * 3_600_000;
/// Data that a projection needs.
const PROJECTED_FROM_MS: Millis = 2 * DAY_MS;
/// Credits of a range that are marked.
const MARKS: u32 = 100;
/// Changes of prices that are, the newest.
const CHANGES: usize = 20;

#[derive(Template)]
#[template(path = "spending.html")]
struct Spending {
    shell: Shell,
    tabs: Vec<Tab>,
    modes: Vec<Tab>,
    /// Turns the comparison on or off.
    compare: Tab,
    range: Range,
    chart: String,
    names: Vec<String>,
    rows: Vec<Row>,
    /// The last line of the table.
    totals: Row,
    facts: Vec<(&'static str, String, String)>,
    is_empty: bool,
    older: String,
}

/// A line of the table.
struct Row {
    name: String,
    href: String,
    total: Exact,
    before: Option<Exact>,
    parts: Vec<Exact>,
    marks: String,
}

/// The page.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn show(page: Page) -> Result<Response, Failure> {
    let params = Params::of(&page.path);
    let range = Range::of(&page, &params);
    let is_running = params.get("show") == Some("sum");
    let is_compared = params.get("compare").is_some();
    let (names, mut bars) = bars(&page, &range).await?;
    if is_compared {
        compare(&page, &range, &mut bars).await?;
    }
    let total: Credits = bars.iter().map(Bar::total).sum();
    let drawn = if is_running { running(&bars) } else { bars.clone() };
    let decimals = page.preferences.decimals();
    let summary = summary(&bars, total, decimals);
    let unit = if range.is_hours { "Hours" } else { "Days" };
    let axis = format!("{unit} in {}", page.zone.name);
    let each = match (is_running, range.is_hours) {
        (true, _) => "cumulative",
        (false, true) => "per hour",
        (false, false) => "per day",
    };
    let title = format!("{}, credits {each}", range.title);
    let chart = chart::stacked(&title, &axis, &summary, &names, &drawn, &bars, decimals)?;
    let (rows, totals) = rows(&bars);
    let shell = page.shell("spending").await?;
    let facts = facts(&page, &range, &bars, total).await?;
    let spending = Spending {
        tabs: range.tabs(&params),
        modes: [("", if range.is_hours { "Per hour" } else { "Per day" }), ("sum", "Cumulative")]
            .map(|(key, title)| Tab {
                href: match params.with(&[("show", key)]) {
                    query if query.is_empty() => "?".into(),
                    query => query,
                },
                title,
                is_current: is_running == (key == "sum"),
            })
            .into(),
        compare: Tab {
            href: match params.with(&[("compare", if is_compared { "" } else { "1" })]) {
                query if query.is_empty() => "?".into(),
                query => query,
            },
            title: "With the time before",
            is_current: is_compared,
        },
        older: params.with(&[("range", "90d"), ("from", ""), ("to", "")]),
        rows,
        totals,
        is_empty: total == Credits::ZERO && bars.iter().all(|bar| bar.marks.is_empty()),
        facts,
        names,
        chart,
        range,
        shell,
    };
    page.show(&spending)
}

/// A bar for every hour or day, idle ones too, split by the dearest models.
async fn bars(page: &Page, range: &Range) -> Result<(Vec<String>, Vec<Bar>), StoreError> {
    let by = if range.is_hours { Group::Hour } else { Group::Day };
    let models = page.sums(Group::Model, range.since, range.until, None);
    let (all, models) = try_join(totals(page, range, by, None), models).await?;
    let mut names: Vec<_> = models.iter().take(SERIES).map(|model| model.group.clone()).collect();
    let series = names.iter().map(|name| totals(page, range, by, Some(name.clone())));
    let series = try_join_all(series).await?;
    let has_rest = models.len() > SERIES;
    if has_rest {
        names.push(format!("Other ({})", models.len() - SERIES));
    }
    let buckets = range.buckets(&page.zone);
    let mut marks = marks(page, range).await?;
    marks.extend(price_changes(page, range, &models).await?);
    marks.sort();
    let count = buckets.len();
    let bars = buckets.into_iter().enumerate().map(|(at, (begins, ends))| {
        let key = key(page, by, begins);
        let of = |sums: &HashMap<String, Credits>| sums.get(&key).copied().unwrap_or_default();
        let mut parts: Vec<_> = series.iter().map(of).collect();
        if has_rest {
            let named: Credits = parts.iter().copied().sum();
            parts.push(of(&all) - named);
        }
        let (name, tick) = names_of(page, range, begins);
        // Ticks count from the newest bar, which is always told.
        let (every, rare) = spacing(count);
        let from_end = count - 1 - at;
        let date = page.zone.date(begins);
        Bar {
            parts,
            name,
            tick: if from_end.is_multiple_of(every) { tick } else { String::new() },
            is_minor: !from_end.is_multiple_of(rare),
            before: None,
            is_open: ends > page.now,
            marks: marks
                .iter()
                .filter(|(when, _)| (begins..ends).contains(when))
                .map(|(_, what)| what.clone())
                .collect(),
            href: format!("{}?from={date}&to={date}", page.href("usage")),
        }
    });
    Ok((names, bars.collect()))
}

/// How many bars stand between two ticks, on a wide and on a narrow drawing.
const fn spacing(bars: usize) -> (usize, usize) {
    match bars {
        ..=8 => (1, 2),
        9..=26 => (3, 6),
        27..=45 => (5, 10),
        _ => (15, 30),
    }
}

async fn totals(
    page: &Page,
    range: &Range,
    by: Group,
    model: Option<String>,
) -> Result<HashMap<String, Credits>, StoreError> {
    let sums = page.sums(by, range.since, range.until, model).await?;
    Ok(sums.into_iter().map(|sum| (sum.group, sum.charge)).collect())
}

/// What the sums of a bar are found under.
fn key(page: &Page, by: Group, begins: Millis) -> String {
    match by {
        Group::Hour => Range::hour(begins),
        _ => page.zone.date(begins).to_string(),
    }
}

fn names_of(page: &Page, range: &Range, begins: Millis) -> (String, String) {
    let at = time::in_zone(begins, &page.zone.rules);
    if range.is_hours {
        (at.strftime("%a %-d %b, %H:%M").to_string(), at.strftime("%H:%M").to_string())
    } else {
        (at.strftime("%a %-d %b").to_string(), at.strftime("%-d %b").to_string())
    }
}

/// Credits that came in, each with its time.
async fn marks(page: &Page, range: &Range) -> Result<Vec<(Millis, String)>, StoreError> {
    let mut marks = Vec::new();
    for (kind, word) in [(Kind::Topup, "top-up"), (Kind::Promo, "promotional credits")] {
        let (since, until) = (Some(range.since), Some(range.until));
        let filter = EntryFilter { kind: Some(kind), since, until };
        let few = store::Page { cursor: None, limit: MARKS };
        let entries = page.state.store.entries(&page.account.id, filter, few).await?;
        marks.extend(
            entries
                .data
                .into_iter()
                .map(|entry| (entry.ts, format!("{word} of {}", page.amount(entry.amount).text()))),
        );
    }
    Ok(marks)
}

/// Changes of the prices of models that were used, each with its time.
async fn price_changes(
    page: &Page,
    range: &Range,
    models: &[SummaryRow],
) -> Result<Vec<(Millis, String)>, StoreError> {
    let history = explain::history(page.state.store.as_ref()).await?;
    let within = |pair: &&[InForce]| (range.since..range.until).contains(&pair[1].at);
    let changes: Vec<_> = history.windows(2).filter(within).collect();
    let mut marks = Vec::new();
    for pair in changes.into_iter().rev().take(CHANGES) {
        let old = explain::table(&page.state, &pair[0].version).await?;
        let new = explain::table(&page.state, &pair[1].version).await?;
        let (Some(old), Some(new)) = (old, new) else { continue };
        let price = |table: &PriceTable, name: &str| table.find(name).map(|m| m.price.clone());
        let changed: Vec<_> = models
            .iter()
            .map(|model| model.group.as_str())
            .filter(|name| price(&old, name) != price(&new, name))
            .collect();
        match changed.as_slice() {
            [] => {}
            [one] => marks.push((pair[1].at, format!("price of {one} changed"))),
            [one, rest @ ..] => {
                marks.push((pair[1].at, format!("prices of {one} and {} more changed", rest.len())))
            }
        }
    }
    Ok(marks)
}

/// Sets beside each bar what its hour or day of the time before came to.
async fn compare(page: &Page, range: &Range, bars: &mut [Bar]) -> Result<(), StoreError> {
    let by = if range.is_hours { Group::Hour } else { Group::Day };
    let (since, until) = range.before(&page.zone);
    let sums = page.sums(by, since, until, None).await?;
    let sums: HashMap<_, _> = sums.into_iter().map(|sum| (sum.group, sum.charge)).collect();
    let days = i32::try_from(bars.len()).unwrap_or(i32::MAX);
    for (bar, (begins, _)) in bars.iter_mut().zip(range.buckets(&page.zone)) {
        let earlier = match by {
            Group::Hour => begins - DAY_MS,
            _ => page.zone.days_before(begins, days),
        };
        bar.before = Some(sums.get(&key(page, by, earlier)).copied().unwrap_or_default());
    }
    Ok(())
}

/// Each bar with all before it.
fn running(bars: &[Bar]) -> Vec<Bar> {
    let mut sums: Vec<Credits> = Vec::new();
    let mut before = Credits::ZERO;
    let add = |bar: &Bar| {
        before += bar.before.unwrap_or_default();
        sums.resize(bar.parts.len(), Credits::ZERO);
        for (sum, part) in sums.iter_mut().zip(&bar.parts) {
            *sum += *part;
        }
        Bar { parts: sums.clone(), before: bar.before.map(|_| before), ..bar.clone() }
    };
    bars.iter().map(add).collect()
}

fn summary(bars: &[Bar], total: Credits, decimals: Decimals) -> String {
    let highest = bars.iter().max_by_key(|bar| bar.total());
    match highest.filter(|bar| bar.total().is_positive()) {
        Some(bar) => format!(
            "Most on {} with {} credits; {} in all.",
            bar.name,
            decimals.show(bar.total()).text(),
            decimals.show(total).text()
        ),
        None => "Nothing was used.".into(),
    }
}

async fn facts(
    page: &Page,
    range: &Range,
    bars: &[Bar],
    total: Credits,
) -> Result<Vec<(&'static str, String, String)>, StoreError> {
    let over: Vec<_> = bars.iter().filter(|bar| !bar.is_open).collect();
    let full: Credits = over.iter().map(|bar| bar.total()).sum();
    let count = i64::try_from(over.len().max(1)).unwrap_or(1);
    let average = Credits::from_nano(full.nano() / count);
    let (since, until) = range.before(&page.zone);
    // A time of which the account has lived only a part is no measure.
    let compared = if page.account.created_at <= since {
        let before = page.spent(since, until).await?;
        let (change, _) = super::wallet::change(total, before);
        match change.ends_with("more") || change.ends_with("less") {
            true => format!("{change} than in the time before"),
            false if change == "the same" => "the same as in the time before".into(),
            false => change,
        }
    } else {
        String::new()
    };
    let mut facts = vec![
        ("Total credits", page.amount(total).text(), compared),
        (
            if range.is_hours { "Credits an hour" } else { "Credits a day" },
            page.amount(average).text(),
            over_words(over.len(), range.is_hours),
        ),
    ];
    let pace = page.pace().await?;
    let balance = page.account.balance;
    if pace.over_ms >= PROJECTED_FROM_MS
        && let Some(ms) = pace.lasts_ms(balance)
        && ms < i128::from(400 * DAY_MS)
    {
        let date: Date = page.zone.date(page.now + i64::try_from(ms).unwrap_or(0));
        let day = if date.year() == page.zone.date(page.now).year() {
            moment::day(date)
        } else {
            date.strftime("%-d %b %Y").to_string()
        };
        facts.push(("Used up around", day, format!("at the pace {}", pace.span())));
    }
    Ok(facts)
}

/// What an average is taken over.
fn over_words(count: usize, is_hours: bool) -> String {
    match (count, is_hours) {
        (0, _) => "none is over yet".into(),
        (1, true) => "of the one full hour".into(),
        (1, false) => "of the one full day".into(),
        (_, true) => format!("on average over {count} full hours"),
        (_, false) => format!("on average over {count} full days"),
    }
}

/// The lines of the table, the newest first, and one for all of them. Columns line up with it.
fn rows(bars: &[Bar]) -> (Vec<Row>, Row) {
    let column = |amounts: Vec<Credits>| {
        let sum = amounts.iter().copied().sum();
        Exact::column(amounts.into_iter().chain([sum]))
    };
    let totals = column(bars.iter().map(Bar::total).collect());
    let columns: Vec<_> = (0..bars.first().map_or(0, |bar| bar.parts.len()))
        .map(|at| column(bars.iter().map(|bar| bar.parts[at]).collect()))
        .collect();
    let befores = column(bars.iter().map(|bar| bar.before.unwrap_or_default()).collect());
    let is_compared = bars.iter().any(|bar| bar.before.is_some());
    let row = |at: usize, name: String, href: String, marks: String| Row {
        before: is_compared.then(|| befores[at]),
        total: totals[at],
        parts: columns.iter().map(|column| column[at]).collect(),
        name,
        href,
        marks,
    };
    let lines = bars.iter().enumerate().rev();
    let lines =
        lines.map(|(at, bar)| row(at, bar.name.clone(), bar.href.clone(), bar.marks.join("; ")));
    (lines.collect(), row(bars.len(), "Total".into(), String::new(), String::new()))
}
