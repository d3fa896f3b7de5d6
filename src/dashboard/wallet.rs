//! How much is left, how fast it goes, and what came and went last.

use std::collections::HashMap;

use askama::Template;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::{try_join, try_join_all, try_join3};

use super::Failure;
use super::moment::Instant;
use super::number::{Amount, Exact, grouped, percent};
use super::page::{Page, Shell};
use crate::admin::State;
use crate::billing::Credits;
use crate::billing::ledger::{Class, Kind};
use crate::store::{
    self, EntryFilter, LotFilter, LotRow, Millis, StoreError, UsageFilter, UsageRow,
};

const DAY_MS: Millis = 24 * 3_600_000;
/// Rows of what came last.
const RECENT: u32 = 5;
/// Lots shown before they are summed up.
const LOTS: u32 = 6;

#[derive(Template)]
#[template(path = "wallet.html")]
struct Wallet {
    shell: Shell,
    balance: Amount,
    held: Amount,
    available: Amount,
    running: u32,
    runway: String,
    is_used_up: bool,
    /// What that is judged by, such as `of the last 7 days`.
    pace: String,
    tone: &'static str,
    burns: Vec<Burn>,
    heartbeats: Option<super::heartbeats::Card>,
    lots: Vec<Lot>,
    more_lots: bool,
    requests: Vec<Request>,
    entries: Vec<Transaction>,
    is_new: bool,
    usage: String,
    transactions: String,
}

/// What a time cost, beside the same time before.
struct Burn {
    name: &'static str,
    spent: Amount,
    /// Such as `12.5 % more`; empty if there is nothing to compare.
    change: String,
    /// `up`, `down` or `flat`.
    way: &'static str,
    /// What it is compared with, in words.
    before: String,
}

/// Credits that end together.
struct Lot {
    what: &'static str,
    left: Amount,
    granted: Amount,
    ends: Instant,
    is_soon: bool,
    share: u32,
}

struct Request {
    at: Instant,
    model: String,
    key: String,
    tokens: String,
    cost: Exact,
    href: String,
}

struct Transaction {
    at: Instant,
    what: &'static str,
    note: String,
    amount: Exact,
    balance: Exact,
}

/// The account's own address: its wallet.
///
/// # Errors
///
/// When the account is not one that the viewer may see.
pub async fn home(Shared(_): Shared<State>, page: Page) -> Result<Response, Failure> {
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, page.href("wallet"))]).into_response())
}

/// The page.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn show(page: Page) -> Result<Response, Failure> {
    let shell = page.shell("wallet").await?;
    let store = page.state.store.as_ref();
    let id = &page.account.id;
    let recent = || store::Page { cursor: None, limit: RECENT };
    let (usage, entries, lots) = try_join3(
        store.usage(id, UsageFilter::default(), recent()),
        store.entries(id, EntryFilter::default(), recent()),
        store.lots(id, LotFilter::Usable, store::Page { cursor: None, limit: LOTS }),
    )
    .await?;
    let (usage, entries) = (usage.data, entries.data);
    let (tone, runway) = match &shell.account {
        Some(left) => (left.tone, left.runway.clone()),
        None => ("good", String::new()),
    };
    let wallet = Wallet {
        balance: page.amount(page.account.balance),
        held: page.amount(page.account.held),
        available: page.amount(page.account.available),
        running: page.account.in_flight,
        is_used_up: !page.account.balance.is_positive(),
        pace: page.pace().await?.span(),
        runway,
        tone,
        burns: burns(&page).await?,
        heartbeats: super::heartbeats::Card::of(&page).await?,
        more_lots: lots.next.is_some(),
        lots: lots.data.iter().map(|lot| Lot::of(lot, &page)).collect(),
        is_new: entries.is_empty() && usage.is_empty(),
        entries: transactions(&page, entries, &usage),
        requests: requests(&page, usage, &super::costs::key_names(&page).await?),
        usage: page.href("usage"),
        transactions: page.href("transactions"),
        shell,
    };
    page.show(&wallet)
}

async fn burns(page: &Page) -> Result<Vec<Burn>, StoreError> {
    let until = page.now + 1;
    let burns = [
        ("Today", 0, "yesterday by this time"),
        ("Last 7 days", 6, "the 7 days before"),
        ("Last 30 days", 29, "the 30 days before"),
    ];
    let burns = burns.map(async |(name, days, before)| {
        let since = page.zone.days_before(page.now, days);
        let earlier = page.zone.days_before(page.now, 2 * days + 1);
        // A time of which the account has lived only a part is no measure.
        if page.account.created_at > earlier {
            let spent = page.spent(since, until).await?;
            let before = if spent == Credits::ZERO { "nothing used" } else { "" };
            let (change, before) = (String::new(), before.to_owned());
            return Ok(Burn { name, spent: page.amount(spent), change, way: "flat", before });
        }
        let previous = page.spent(earlier, page.zone.earlier(until, days + 1));
        let (spent, previous) = try_join(page.spent(since, until), previous).await?;
        let (change, way) = change(spent, previous);
        let (change, before) = match change.as_str() {
            "" => (String::new(), "nothing used".to_owned()),
            "nothing before" => (String::new(), format!("nothing {}", within(before))),
            "the same" => (change, format!("as {before}")),
            _ => (change, format!("than {before}")),
        };
        Ok(Burn { name, spent: page.amount(spent), change, way, before })
    });
    try_join_all(burns).await
}

/// A time before as one that things happen in.
fn within(before: &str) -> String {
    if before.starts_with("the ") { format!("in {before}") } else { before.to_owned() }
}

/// How much more or less, in percent of before.
pub(super) fn change(now: Credits, before: Credits) -> (String, &'static str) {
    let difference = now - before;
    match (before.is_positive(), difference.nano()) {
        (false, 0) => (String::new(), "flat"),
        (false, _) => ("nothing before".into(), "flat"),
        (true, 0) => ("the same".into(), "flat"),
        (true, 1..) if i128::from(difference.nano()) > i128::from(before.nano()) * 10 => {
            ("over 10 times more".into(), "up")
        }
        (true, 1..) => (format!("{} more", percent(difference, before)), "up"),
        (true, ..0) => (format!("{} less", percent(-difference, before)), "down"),
    }
}

impl Lot {
    fn of(LotRow { lot, .. }: &LotRow, page: &Page) -> Self {
        let share = i128::from(lot.remaining.nano()) * 100 / i128::from(lot.granted.nano().max(1));
        Self {
            what: match lot.class {
                Class::Promo => "Promotional",
                Class::Usage => "Usage",
            },
            left: page.amount(lot.remaining),
            granted: page.amount(lot.granted),
            ends: Instant::day(lot.expires_at, &page.zone),
            is_soon: lot.expires_at - page.now < 30 * DAY_MS,
            share: u32::try_from(share).unwrap_or(100).min(100),
        }
    }
}

fn requests(page: &Page, rows: Vec<UsageRow>, names: &HashMap<String, String>) -> Vec<Request> {
    let costs = Exact::column(rows.iter().map(|row| row.charge));
    rows.into_iter()
        .zip(costs)
        .map(|(row, cost)| Request {
            at: Instant::ago(row.ts, page.now, &page.zone),
            tokens: grouped(
                row.input_tokens
                    .saturating_add(row.cached_input_tokens)
                    .saturating_add(row.cache_creation_5m_tokens)
                    .saturating_add(row.cache_creation_1h_tokens)
                    .saturating_add(row.output_tokens),
            ),
            href: format!("{}/{}?at={}", page.href("usage"), row.id, row.ts),
            key: names.get(&row.key).cloned().unwrap_or(row.key),
            model: row.model,
            cost,
        })
        .collect()
}

fn transactions(page: &Page, entries: Vec<store::Entry>, usage: &[UsageRow]) -> Vec<Transaction> {
    let amounts = Exact::signed(entries.iter().map(|entry| entry.amount));
    let balances = Exact::column(entries.iter().map(|entry| entry.balance_after));
    entries
        .into_iter()
        .zip(amounts.into_iter().zip(balances))
        .map(|(entry, (amount, balance))| Transaction {
            at: Instant::ago(entry.ts, page.now, &page.zone),
            what: kind(entry.kind),
            // A debit says what it was for, if its request is among those at hand.
            note: entry.note.unwrap_or_else(|| {
                let request = usage.iter().find(|row| row.id == entry.reference);
                request.map(|row| row.model.clone()).unwrap_or_default()
            }),
            amount,
            balance,
        })
        .collect()
}

/// What an entry is about, for people.
pub const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Topup => "Top-up",
        Kind::Promo => "Promotional",
        Kind::DebitAi => "Usage",
        Kind::Expiry => "Expired",
        Kind::Refund => "Refund",
        Kind::PaymentReversal => "Payment taken back",
        Kind::Adjust => "Adjustment",
        Kind::Forfeit => "Forfeited",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_against_what_was_before() {
        let of = |now: &str, before: &str| change(now.parse().unwrap(), before.parse().unwrap()).0;
        assert_eq!(of("1.25", "1"), "25.0\u{202f}% more");
        assert_eq!(of("0.5", "1"), "50.0\u{202f}% less");
        assert_eq!(of("1", "0"), "nothing before");
        assert_eq!(of("0", "0"), "");
        assert_eq!(of("100", "1"), "over 10 times more");
    }
}
