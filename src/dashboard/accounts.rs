//! Accounts, for the operator: made, credited, corrected and closed. Whatever moves money is
//! shown with its effect before it is booked, and booked once by the id of its form.

use askama::Template;
use axum::extract::{Path, Query, State as Shared};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::Failure;
use super::moment::Instant;
use super::number::{Amount, Decimals, Exact};
use super::page::{Operator, Post, Shell};
use super::wallet::kind;
use crate::admin::extract::{Body, Target};
use crate::admin::{self, credits};
use crate::billing::Credits;
use crate::store::{self, Account, AccountId, EntryFilter, Status, StoreError};

/// Accounts of one page, and entries of one account.
const ROWS: u32 = 100;
const ENTRIES: u32 = 10;

#[derive(Template)]
#[template(path = "operator_accounts.html")]
struct Accounts {
    shell: Shell,
    rows: Vec<Row>,
    more: Option<String>,
    here: String,
}

struct Row {
    id: String,
    name: String,
    status: &'static str,
    running: u32,
    balance: Exact,
    is_used_up: bool,
}

#[derive(Template)]
#[template(path = "operator_account.html")]
struct One {
    shell: Shell,
    id: String,
    name: String,
    status: &'static str,
    is_open: bool,
    balance: Amount,
    held: Amount,
    running: u32,
    entries: Vec<Move>,
    /// Names the operation of each form.
    ids: [String; 3],
    booked: Option<u64>,
    here: String,
    pages: String,
}

struct Move {
    seq: u64,
    at: Instant,
    what: &'static str,
    note: String,
    reference: String,
    amount: Exact,
    balance: Exact,
}

#[derive(Template)]
#[template(path = "operator_link.html")]
struct Handed {
    shell: Shell,
    name: String,
    url: String,
    ends: Instant,
    reusable: bool,
    back: String,
}

#[derive(Template)]
#[template(path = "operator_confirm.html")]
struct Confirm {
    shell: Shell,
    title: &'static str,
    effect: String,
    before: Exact,
    after: Option<Exact>,
    fields: Vec<(&'static str, String)>,
    typed: Option<String>,
    problem: bool,
    button: &'static str,
    is_danger: bool,
    to: String,
    back: String,
}

/// Which accounts.
#[derive(Debug, Deserialize)]
pub struct From {
    after: Option<String>,
}

/// All accounts.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn list(page: Operator, Query(from): Query<From>) -> Result<Response, Failure> {
    let rows = page.state.store.accounts(store::Page { cursor: from.after, limit: ROWS }).await?;
    let balances = Exact::column(rows.data.iter().map(|account| account.balance));
    let lines = rows.data.into_iter().zip(balances).map(|(account, balance)| Row {
        is_used_up: !account.balance.is_positive(),
        id: account.id.0.to_string(),
        name: account.name,
        status: status(account.status),
        running: account.in_flight,
        balance,
    });
    let template = Accounts {
        rows: lines.collect(),
        more: rows.next,
        here: home(&page),
        shell: page.shell("accounts"),
    };
    page.show(&template)
}

/// An account to be made.
#[derive(Debug, Deserialize)]
pub struct NewAccount {
    #[serde(default)]
    id: String,
    #[serde(default)]
    name: String,
}

/// Makes an account.
///
/// # Errors
///
/// A bad id, or one that is taken.
pub async fn create(
    page: Operator,
    Post { form, .. }: Post<NewAccount>,
) -> Result<Response, Failure> {
    let mut body = json!({});
    for (field, text) in [("id", form.id.trim()), ("name", form.name.trim())] {
        if !text.is_empty() {
            body[field] = text.into();
        }
    }
    let new = serde_json::from_value(body).map_err(|e| Failure::Invalid(e.to_string()))?;
    let (_, made) = admin::accounts::create(Shared(page.state.clone()), Body(new)).await?;
    Ok(super::see(&format!("{}/{}", home(&page), made.0.id)))
}

/// What was booked last, as the address says.
#[derive(Debug, Deserialize)]
pub struct Booked {
    booked: Option<u64>,
}

/// One account and what can be done with it.
///
/// # Errors
///
/// When there is no such account.
pub async fn show(
    page: Operator,
    Path(id): Path<String>,
    Query(Booked { booked }): Query<Booked>,
) -> Result<Response, Failure> {
    let account = account(&page, &id).await?;
    let latest = store::Page { cursor: None, limit: ENTRIES };
    let rows = page.state.store.entries(&account.id, EntryFilter::default(), latest).await?.data;
    let amounts = Exact::signed(rows.iter().map(|entry| entry.amount));
    let balances = Exact::column(rows.iter().map(|entry| entry.balance_after));
    let entries = rows.into_iter().zip(amounts.into_iter().zip(balances));
    let entries = entries.map(|(entry, (amount, balance))| Move {
        seq: entry.seq,
        at: Instant::ago(entry.ts, page.now, &page.zone),
        what: kind(entry.kind),
        note: entry.note.unwrap_or_default(),
        reference: entry.reference,
        amount,
        balance,
    });
    let mut shell = page.shell("accounts");
    shell.title = format!("Account {}", account.id);
    let template = One {
        name: account.name.clone(),
        status: status(account.status),
        is_open: account.status == Status::Open,
        balance: Decimals::Fitting.show(account.balance),
        held: Decimals::Fitting.show(account.held),
        running: account.in_flight,
        entries: entries.collect(),
        ids: [new_id(), new_id(), new_id()],
        booked,
        here: format!("{}/{}", home(&page), account.id),
        pages: format!("{}/billing/{}/wallet", page.state.site.base, account.id),
        id: account.id.0.to_string(),
        shell,
    };
    page.show(&template)
}

/// A link to be made.
#[derive(Debug, Deserialize)]
pub struct NewLink {
    #[serde(default)]
    lasts: String,
    reusable: Option<String>,
}

/// Makes a link that signs the account's holder in, and shows it, this once.
///
/// # Errors
///
/// A length of time that cannot be.
pub async fn link(
    page: Operator,
    Path(id): Path<String>,
    Post { form, .. }: Post<NewLink>,
) -> Result<Response, Failure> {
    let account = account(&page, &id).await?;
    let reusable = form.reusable.is_some();
    let mut body = json!({ "reusable": reusable });
    if !form.lasts.trim().is_empty() {
        body["lasts"] = form.lasts.trim().into();
    }
    let new = serde_json::from_value(body).map_err(|e| Failure::Invalid(e.to_string()))?;
    let (name, back) = (account.name.clone(), format!("{}/{}", home(&page), account.id));
    let target = Target { account, key: String::new() };
    let (_, made) = admin::links::create(Shared(page.state.clone()), target, Body(new)).await?;
    let mut shell = page.shell("accounts");
    shell.title = "Sign-in link".into();
    let ends = Instant::full(made.0.expires_at, &page.zone);
    page.show(&Handed { name, url: made.0.url, ends, reusable, back, shell })
}

/// A change of a balance, first to be shown and then, with `sure`, to be booked.
#[derive(Debug, Deserialize)]
pub struct Change {
    /// Names the operation.
    id: String,
    /// `topup`, `promotional`, `adjust`, `refund`, `reverse` or `close`.
    what: String,
    #[serde(default)]
    amount: String,
    #[serde(default)]
    note: String,
    #[serde(default)]
    expires: String,
    /// The request or payment that is undone.
    #[serde(default)]
    of: String,
    sure: Option<String>,
    /// The account's id, typed.
    typed: Option<String>,
}

/// Shows what a change would do, or books it.
///
/// # Errors
///
/// A field that means nothing, or what the ledger refuses.
pub async fn change(
    page: Operator,
    Path(id): Path<String>,
    Post { form, .. }: Post<Change>,
) -> Result<Response, Failure> {
    let account = account(&page, &id).await?;
    let is_close = form.what == "close";
    let is_typed = form.typed.as_deref().is_some_and(|typed| typed.trim() == &*account.id.0);
    if form.sure.is_some() && (!is_close || is_typed) {
        return book(&page, account, form).await;
    }
    confirm(&page, &account, &form)
}

fn confirm(page: &Operator, account: &Account, form: &Change) -> Result<Response, Failure> {
    let amount = match form.amount.trim() {
        "" => None,
        text => Some(
            text.parse::<Credits>()
                .map_err(|error| Failure::Invalid(format!("The amount “{text}” is {error}.")))?,
        ),
    };
    let needed = || {
        let problem = "An amount is needed, such as 20 or 0.5.";
        amount.ok_or_else(|| Failure::Invalid(problem.into()))
    };
    // What is about to be booked is said to the last digit.
    let shown = |amount: Credits| amount.to_string().replace('-', "−");
    let id = &account.id;
    let some = |amount: Option<Credits>, rest: &str| {
        amount.map_or_else(|| rest.to_owned(), |amount| format!("{} credits", shown(amount)))
    };
    let (title, effect, after) = match form.what.as_str() {
        "topup" => {
            let amount = needed()?;
            let effect = format!("{} usage credits are added to {id}.", shown(amount));
            ("Add credits", effect, Some(account.balance + amount))
        }
        "promotional" => {
            let amount = needed()?;
            let ends = match form.expires.trim() {
                "" => "in twelve months".to_owned(),
                text => format!("by “{text}”"),
            };
            let effect = format!(
                "{} promotional credits are given to {id}; they end {ends}.",
                shown(amount)
            );
            ("Give promotional credits", effect, Some(account.balance + amount))
        }
        "adjust" => {
            let amount = needed()?;
            let effect = format!("The balance of {id} is corrected by {}.", shown(amount));
            ("Correct the balance", effect, Some(account.balance + amount))
        }
        "refund" => {
            let part = some(amount, "What is left of the charge");
            ("Refund a request", format!("{part} of {} goes back to {id}.", form.of), None)
        }
        "reverse" => {
            let part = some(amount, "What is left of the payment");
            ("Take a payment back", format!("{part} of {} is taken from {id}.", form.of), None)
        }
        "close" => {
            let lost = shown(account.balance.max(Credits::ZERO));
            let effect = format!(
                "{id} is closed for good: no request and no credit is taken any more, and the \
                 {lost} credits that are left are forfeited once what runs is settled."
            );
            ("Close the account", effect, Some(Credits::ZERO.min(account.balance)))
        }
        _ => return Err(Failure::Invalid("There is no such change.".into())),
    };
    let is_close = form.what == "close";
    let mut shell = page.shell("accounts");
    shell.title = title.to_owned();
    let here = format!("{}/{}", home(page), account.id);
    let template = Confirm {
        title,
        effect,
        before: Exact::one(account.balance),
        after: after.map(Exact::one),
        fields: vec![
            ("id", form.id.clone()),
            ("what", form.what.clone()),
            ("amount", form.amount.clone()),
            ("note", form.note.clone()),
            ("expires", form.expires.clone()),
            ("of", form.of.clone()),
        ],
        typed: is_close.then(|| account.id.0.to_string()),
        problem: form.sure.is_some(),
        button: if is_close { "Close it for good" } else { "Book it" },
        is_danger: is_close || form.what == "reverse",
        to: format!("{here}/change"),
        back: here,
        shell,
    };
    page.show(&template)
}

async fn book(page: &Operator, account: Account, form: Change) -> Result<Response, Failure> {
    let mut headers = HeaderMap::new();
    let key = HeaderValue::from_str(&form.id)
        .map_err(|_| Failure::Invalid("The form is not a whole one: open it again.".into()))?;
    headers.insert("idempotency-key", key);
    let here = format!("{}/{}", home(page), account.id);
    let target = Target { account, key: String::new() };
    let state = Shared(page.state.clone());
    let text = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let invalid = |error: serde_json::Error| Failure::Invalid(format!("Not booked: {error}."));
    let entry = match form.what.as_str() {
        "close" => {
            let _closed = admin::accounts::close(state, target, headers).await?;
            return Ok(super::see(&here));
        }
        "refund" => {
            let body = json!({ "request": form.of.trim(), "amount": text(&form.amount),
                "note": form.note });
            let body = Body(serde_json::from_value(body).map_err(invalid)?);
            credits::refund(state, target, headers, body).await?.1
        }
        "reverse" => {
            let body = json!({ "payment": form.of.trim(), "amount": text(&form.amount),
                "note": form.note });
            let body = Body(serde_json::from_value(body).map_err(invalid)?);
            credits::reverse(state, target, headers, body).await?.1
        }
        kind => {
            let mut body = json!({ "kind": kind, "amount": form.amount.trim(), "note": form.note });
            if kind == "promotional"
                && let Some(expires) = text(&form.expires)
            {
                body["expires"] = expires.into();
            }
            let body = Body(serde_json::from_value(body).map_err(invalid)?);
            credits::grant(state, target, headers, body).await?.1
        }
    };
    Ok(super::see(&format!("{here}?booked={}", entry.0.entry.seq)))
}

async fn account(page: &Operator, id: &str) -> Result<Account, Failure> {
    let nobody = || Failure::NotFound("There is no such account.".into());
    if !admin::accounts::is_id(id) {
        return Err(nobody());
    }
    page.state.store.account(&AccountId(id.into())).await.map_err(|error| match error {
        StoreError::NotFound(_) => nobody(),
        other => other.into(),
    })
}

fn home(page: &Operator) -> String {
    format!("{}/operator/accounts", page.state.site.base)
}

const fn status(status: Status) -> &'static str {
    match status {
        Status::Open => "Open",
        Status::Closing => "Closing",
        Status::Closed => "Closed",
    }
}

fn new_id() -> String {
    format!("page_{}", ulid::Ulid::generate().to_string().to_lowercase())
}
