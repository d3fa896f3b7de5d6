//! A month on one page, made to be printed: what came, what went, and that it adds up.

use askama::Template;
use axum::extract::Query;
use axum::response::Response;
use jiff::ToSpan as _;
use jiff::civil::Date;
use serde::Deserialize;

use super::Failure;
use super::number::{Exact, grouped, percent};
use super::page::{Page, Shell};
use super::wallet::kind;
use crate::billing::Credits;
use crate::billing::ledger::Kind;
use crate::store::{self, EntryFilter, Group, Millis, SummaryRow, UsageFilter};

/// What is not usage.
const MOVES: [Kind; 7] = [
    Kind::Topup,
    Kind::Promo,
    Kind::Refund,
    Kind::Adjust,
    Kind::PaymentReversal,
    Kind::Expiry,
    Kind::Forfeit,
];

#[derive(Template)]
#[template(path = "report.html")]
struct Report {
    shell: Shell,
    month: String,
    days: String,
    account: String,
    opening: Exact,
    closing: Exact,
    moves: Vec<(&'static str, String, Exact)>,
    usage: Exact,
    requests: String,
    adds_up: bool,
    is_running: bool,
    /// Its lines, and all of them together.
    models: (Vec<Line>, Line),
    keys: (Vec<Line>, Line),
    /// Each day, and all of them together.
    daily: (Vec<(String, String, Exact)>, Exact),
    previous: String,
    next: Option<String>,
    made: String,
}

struct Line {
    name: String,
    requests: String,
    input: String,
    cached: String,
    output: String,
    share: String,
    cost: Exact,
}

/// Which month.
#[derive(Debug, Deserialize)]
pub struct Month {
    month: Option<String>,
}

/// The page.
///
/// # Errors
///
/// A month that is none, or when the store cannot be read.
pub async fn show(page: Page, Query(query): Query<Month>) -> Result<Response, Failure> {
    let today = page.zone.date(page.now);
    let first = match &query.month {
        Some(text) => {
            format!("{text}-01").parse::<Date>().ok().filter(|_| text.len() == 7).ok_or_else(
                || Failure::Invalid("The month must be written such as 2026-09.".into()),
            )?
        }
        None => today.first_of_month(),
    };
    let after = first.checked_add(1.month()).unwrap_or(first);
    let (since, until) = (page.zone.midnight(first), page.zone.midnight(after).min(page.now + 1));
    let until = until.max(since);
    let opening = balance_before(&page, since).await?;
    let closing = balance_before(&page, until).await?;
    let mut moves = Vec::new();
    let mut moved = Credits::ZERO;
    for kind in MOVES {
        let (count, sum) = sum_of(&page, kind, since, until).await?;
        if count > 0 {
            moved += sum;
            moves.push((kind, count, sum));
        }
    }
    let filter = UsageFilter { since: Some(since), until: Some(until), ..UsageFilter::default() };
    let by = async |group| {
        let (store, zone) = (&page.state.store, page.zone.rules.clone());
        store.summary(&page.account.id, filter.clone(), group, zone).await
    };
    let (models, daily) = (by(Group::Model).await?, by(Group::Day).await?);
    let mut keys = by(Group::Key).await?;
    let names = super::costs::key_names(&page).await?;
    for row in &mut keys {
        row.group = names.get(&row.group).cloned().unwrap_or_else(|| row.group.clone());
    }
    let used: Credits = models.iter().map(|row| row.charge).sum();
    let sum = |rows: &[SummaryRow]| rows.iter().map(|row| row.charge).sum::<Credits>();
    // The ledger and the rows must say the same, unless a request was settled in between.
    let adds_up = opening + moved - used == closing && sum(&keys) == used && sum(&daily) == used;

    let sums = [opening, closing, -used].into_iter().chain(moves.iter().map(|(.., sum)| *sum));
    let mut exact = Exact::column(sums).into_iter();
    let (opening, closing, usage) = (exact.next(), exact.next(), exact.next());
    let moves = moves
        .iter()
        .zip(exact)
        .map(|((kind_of, count, _), sum)| (kind(*kind_of), grouped(*count), sum.with_sign()));
    let requests: u64 = models.iter().map(|row| row.requests).sum();
    let report = Report {
        month: first.strftime("%B %Y").to_string(),
        days: format!("{first} to {}", after.yesterday().unwrap_or(first)),
        account: page.account.id.0.to_string(),
        opening: opening.expect("three come first"),
        closing: closing.expect("three come first"),
        usage: usage.expect("three come first").with_sign(),
        moves: moves.collect(),
        requests: grouped(requests),
        adds_up,
        is_running: after > today,
        models: Line::all(&models, used),
        keys: Line::all(&keys, used),
        daily: days(daily, used),
        previous: address(&page, first.checked_sub(1.month()).unwrap_or(first)),
        next: (after <= today).then(|| address(&page, after)),
        made: page.zone.date(page.now).to_string(),
        shell: {
            let mut shell = page.shell("settings").await?;
            shell.title = format!("Report {}", first.strftime("%Y-%m"));
            shell
        },
    };
    page.show(&report)
}

fn address(page: &Page, month: Date) -> String {
    format!("{}?month={}", page.href("report"), month.strftime("%Y-%m"))
}

fn days(rows: Vec<SummaryRow>, used: Credits) -> (Vec<(String, String, Exact)>, Exact) {
    let mut costs = Exact::column([used].into_iter().chain(rows.iter().map(|row| row.charge)));
    let total = costs.remove(0);
    let days = rows.into_iter().zip(costs);
    (days.map(|(row, cost)| (row.group, grouped(row.requests), cost)).collect(), total)
}

impl Line {
    fn all(rows: &[SummaryRow], used: Credits) -> (Vec<Self>, Self) {
        let all = super::costs::added("All".into(), rows);
        let mut costs = Exact::column([used].into_iter().chain(rows.iter().map(|row| row.charge)));
        let all = Self::of(&all, costs.remove(0), used);
        (rows.iter().zip(costs).map(|(row, cost)| Self::of(row, cost, used)).collect(), all)
    }

    fn of(row: &SummaryRow, cost: Exact, all: Credits) -> Self {
        Self {
            name: row.group.clone(),
            requests: grouped(row.requests),
            input: grouped(row.input_tokens.saturating_add(row.cache_creation_tokens)),
            cached: grouped(row.cached_input_tokens),
            output: grouped(row.output_tokens),
            share: percent(row.charge, all),
            cost,
        }
    }
}

/// The balance just before an instant.
async fn balance_before(page: &Page, at: Millis) -> Result<Credits, Failure> {
    let filter = EntryFilter { until: Some(at), ..EntryFilter::default() };
    let one = store::Page { cursor: None, limit: 1 };
    let rows = page.state.store.entries(&page.account.id, filter, one).await?;
    Ok(rows.data.first().map_or(Credits::ZERO, |entry| entry.balance_after))
}

/// How many entries of a kind there are in a time, and their sum.
async fn sum_of(
    page: &Page,
    kind: Kind,
    since: Millis,
    until: Millis,
) -> Result<(u64, Credits), Failure> {
    let filter = EntryFilter { kind: Some(kind), since: Some(since), until: Some(until) };
    let mut from = store::Page { cursor: None, limit: 500 };
    let (mut count, mut sum) = (0, Credits::ZERO);
    loop {
        let rows = page.state.store.entries(&page.account.id, filter.clone(), from.clone()).await?;
        count += rows.data.len() as u64;
        sum += rows.data.iter().map(|entry| entry.amount).sum();
        match rows.next {
            Some(cursor) => from.cursor = Some(cursor),
            None => return Ok((count, sum)),
        }
    }
}
