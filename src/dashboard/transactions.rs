//! The ledger: every credit and debit with the balance after it, or by the hour and day.

use std::collections::HashMap;

use askama::Template;
use axum::response::Response;

use super::moment::Instant;
use super::number::{Exact, grouped};
use super::page::{Page, Shell};
use super::params::{Params, Range, Tab};
use super::proof::Proof;
use super::{Failure, wallet};
use crate::billing::Credits;
use crate::billing::ledger::Kind;
use crate::store::{self, Entry, EntryFilter, Group, Millis, Rows, StoreError, UsageFilter};
use crate::time;

const ROWS: u32 = 100;
/// Requests that are looked up to say what its debits were for; failed ones are among them.
const REQUESTS: u32 = 500;
/// Longer ranges have too many hours.
const WEEK_MS: Millis = 8 * 24 * 3_600_000;

#[derive(Template)]
#[template(path = "transactions.html")]
struct Transactions {
    shell: Shell,
    tabs: Vec<Tab>,
    views: Vec<Tab>,
    kinds: Vec<(&'static str, &'static str, bool)>,
    kept: Vec<(&'static str, String)>,
    is_every: bool,
    range: Range,
    entries: Vec<Line>,
    groups: Vec<Bucket>,
    opening: Exact,
    moved: Exact,
    closing: Exact,
    /// That all of the ledger adds up, as markup of ours.
    proof: String,
    here: String,
    next: Option<String>,
    is_first: bool,
    newest: String,
}

struct Line {
    seq: u64,
    at: Instant,
    what: &'static str,
    text: String,
    amount: Exact,
    word: &'static str,
    balance: Exact,
    reference: String,
    href: String,
}

/// An hour or a day of the ledger.
struct Bucket {
    name: String,
    requests: String,
    used: Exact,
    other: Exact,
    balance: Exact,
    href: String,
}

const KINDS: [Kind; 8] = [
    Kind::Topup,
    Kind::Promo,
    Kind::DebitAi,
    Kind::Refund,
    Kind::Adjust,
    Kind::Expiry,
    Kind::PaymentReversal,
    Kind::Forfeit,
];

/// The page.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn show(page: Page) -> Result<Response, Failure> {
    let params = Params::of(&page.path);
    let mut range = Range::of(&page, &params);
    let view = params.get("view").unwrap_or_default();
    let is_every = view != "hour" && view != "day";
    if view == "hour" {
        if range.until - range.since > WEEK_MS {
            range = Range::week(&page);
        }
        range.is_hours = true;
    }
    let kind = KINDS.into_iter().find(|kind| params.get("kind") == Some(kind.name()));
    let opening = balance_at(&page, range.since).await?;
    let closing = balance_at(&page, range.until).await?;
    let (rows, groups) = if is_every {
        let filter = EntryFilter { kind, since: Some(range.since), until: Some(range.until) };
        let cursor = params.get("cursor").map(str::to_owned);
        let place = store::Page { cursor, limit: ROWS };
        let rows = page.state.store.entries(&page.account.id, filter, place).await?;
        (rows, Vec::new())
    } else {
        (Rows { data: Vec::new(), next: None }, groups(&page, &range).await?)
    };
    let sums = Exact::column([opening, closing - opening, closing]);
    let transactions = Transactions {
        shell: page.shell("transactions").await?,
        tabs: range.tabs(&params),
        views: [("", "Every entry"), ("hour", "By hour"), ("day", "By day")]
            .map(|(key, title)| Tab {
                href: match params.with(&[("view", key)]) {
                    query if query.is_empty() => "?".into(),
                    query => query,
                },
                title,
                is_current: (key.is_empty() && is_every) || key == view,
            })
            .into(),
        kinds: KINDS.map(|each| (each.name(), wallet::kind(each), Some(each) == kind)).into(),
        kept: ["range", "from", "to"]
            .into_iter()
            .filter_map(|name| Some((name, params.get(name)?.to_owned())))
            .collect(),
        is_every,
        newest: rows.data.first().map_or_else(String::new, |entry| entry.seq.to_string()),
        is_first: params.get("cursor").is_none(),
        next: rows.next.as_ref().map(|cursor| {
            let query = params.with(&[]);
            let sign = if query.is_empty() { "?" } else { "&" };
            format!("{query}{sign}cursor={cursor}")
        }),
        entries: lines(&page, rows.data).await?,
        groups,
        opening: sums[0],
        moved: Exact::signed([opening, closing - opening, closing])[1],
        closing: sums[2],
        proof: Proof::of(&page).await?.render()?,
        here: page.href("transactions"),
        range,
    };
    page.show(&transactions)
}

/// The balance just before an instant, by the last entry ahead of it.
async fn balance_at(page: &Page, at: Millis) -> Result<Credits, StoreError> {
    let filter = EntryFilter { until: Some(at), ..EntryFilter::default() };
    let last = store::Page { cursor: None, limit: 1 };
    let entries = page.state.store.entries(&page.account.id, filter, last).await?;
    Ok(entries.data.first().map_or(Credits::ZERO, |entry| entry.balance_after))
}

/// Hours or days in which something happened, newest first. What was used is the sum of the
/// requests; the rest of the change of the balance is everything else.
async fn groups(page: &Page, range: &Range) -> Result<Vec<Bucket>, StoreError> {
    let by = if range.is_hours { Group::Hour } else { Group::Day };
    let sums = page.sums(by, range.since, range.until, None).await?;
    let sums: HashMap<_, _> = sums.into_iter().map(|sum| (sum.group.clone(), sum)).collect();
    let mut before = balance_at(page, range.since).await?;
    let mut found = Vec::new();
    for (begins, ends) in range.buckets(&page.zone) {
        let key = match by {
            Group::Hour => Range::hour(begins),
            _ => page.zone.date(begins).to_string(),
        };
        let sum = sums.get(&key);
        let after = balance_at(page, ends.min(range.until)).await?;
        let (requests, used) = sum.map_or((0, Credits::ZERO), |sum| (sum.requests, sum.charge));
        if requests > 0 || after != before {
            found.push((begins, requests, -used, after - before + used, after));
        }
        before = after;
    }
    let used = Exact::signed(found.iter().map(|group| group.2));
    let other = Exact::signed(found.iter().map(|group| group.3));
    let balance = Exact::column(found.iter().map(|group| group.4));
    let all = found.iter().zip(used).zip(other).zip(balance);
    let mut groups: Vec<_> = all
        .map(|(((group, used), other), balance)| {
            let at = time::in_zone(group.0, &page.zone.rules);
            let date = page.zone.date(group.0);
            let format = if range.is_hours { "%a %-d %b, %H:%M" } else { "%a %-d %b %Y" };
            Bucket {
                name: at.strftime(format).to_string(),
                requests: grouped(group.1),
                used,
                other,
                balance,
                href: format!("?from={date}&to={date}"),
            }
        })
        .collect();
    groups.reverse();
    Ok(groups)
}

/// What the requests behind debits were: model and key, by the id of the request.
async fn requests(page: &Page, entries: &[Entry]) -> Result<HashMap<String, String>, StoreError> {
    let debits = || entries.iter().filter(|entry| entry.kind == Kind::DebitAi);
    let (Some(last), Some(first)) = (debits().next(), debits().next_back()) else {
        return Ok(HashMap::new());
    };
    let filter =
        UsageFilter { since: Some(first.ts), until: Some(last.ts + 1), ..UsageFilter::default() };
    let names = super::costs::key_names(page).await?;
    let rows = store::Page { cursor: None, limit: REQUESTS };
    let rows = page.state.store.usage(&page.account.id, filter, rows).await?;
    let told = rows.data.into_iter().map(|row| {
        let key = names.get(&row.key).unwrap_or(&row.key);
        let what = format!("{}, {key}", row.model);
        (row.id, what)
    });
    Ok(told.collect())
}

async fn lines(page: &Page, entries: Vec<Entry>) -> Result<Vec<Line>, StoreError> {
    let requests = requests(page, &entries).await?;
    let amounts = Exact::signed(entries.iter().map(|entry| entry.amount));
    let balances = Exact::column(entries.iter().map(|entry| entry.balance_after));
    Ok(entries
        .into_iter()
        .zip(amounts.into_iter().zip(balances))
        .map(|(entry, (amount, balance))| Line {
            seq: entry.seq,
            at: Instant::short(entry.ts, page.now, &page.zone),
            what: wallet::kind(entry.kind),
            text: match (entry.note, entry.undoes) {
                (Some(note), Some(seq)) => format!("{note} (of #{seq})"),
                (Some(note), None) => note,
                (None, Some(seq)) => format!("of #{seq}"),
                (None, None) => requests.get(&entry.reference).cloned().unwrap_or_default(),
            },
            word: if entry.amount.is_negative() { "debit" } else { "credit" },
            href: match entry.kind {
                Kind::DebitAi => {
                    format!("{}/{}?at={}", page.href("usage"), entry.reference, entry.ts)
                }
                _ => String::new(),
            },
            reference: entry.reference,
            amount,
            balance,
        })
        .collect())
}
