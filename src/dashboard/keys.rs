//! The keys of an account: made here and shown once with what to paste where, changed, replaced
//! by a new one, and ended. The work is the control plane's own, so its rules hold here too.

use std::collections::HashMap;

use askama::Template;
use axum::extract::State as Shared;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use super::moment::Instant;
use super::number::{Exact, grouped};
use super::page::{Page, Post, Shell};
use super::snippet::{Snippet, snippets};
use crate::admin::extract::Target;
use crate::admin::keys::{self, CreatedKey};
use crate::admin::trial::Tried;
use crate::admin::{self, State};
use crate::billing::Credits;
use crate::billing::limit::Period;
use crate::store::{self, Group, Key, KeyLimits, Millis, UsageFilter};
use fields::{Fields, Sent};
use one::{Replaced, TrialForm};

mod fields;
pub mod one;

/// Keys whose last use is looked up.
const LOOKED_UP: usize = 100;

#[derive(Template)]
#[template(path = "keys.html")]
struct Keys {
    shell: Shell,
    keys: Vec<Row>,
    ended: Vec<Row>,
    /// Names the key that the form makes, so that a second click makes no second one.
    id: String,
    base_url: String,
    models: Vec<String>,
    fields: Fields,
    here: String,
}

struct Row {
    id: String,
    name: String,
    last4: String,
    tag: String,
    models: String,
    created: Instant,
    used: Option<Instant>,
    ends: Option<Instant>,
    /// `Active`, `Expired` or `Revoked`.
    status: &'static str,
    week: Exact,
    month: Exact,
    in_use: Vec<Used>,
    /// Its own page.
    href: String,
    /// Its requests.
    usage: String,
}

/// What is used of one limit.
struct Used {
    what: &'static str,
    used: String,
    limit: String,
    resets: Option<Instant>,
    percent: u64,
    /// `bad` once it is reached, `warn` from four fifths on.
    tone: &'static str,
}

#[derive(Template)]
#[template(path = "key_made.html")]
struct Made {
    shell: Shell,
    name: String,
    secret: String,
    snippets: Vec<Snippet>,
    is_heartbeat: bool,
    replaced: Option<Replaced>,
    trial: TrialForm,
    keys: String,
}

#[derive(Template)]
#[template(path = "key_end.html")]
struct End {
    shell: Shell,
    key: String,
    name: String,
    last4: String,
    problem: bool,
    here: String,
}

/// The page.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn show(page: Page) -> Result<Response, Failure> {
    let shell = page.shell("keys").await?;
    let keys = page.state.store.keys(&page.account.id).await?;
    let rows = rows(&page, keys).await?;
    let (keys, ended) = rows.into_iter().partition(|row| row.status == "Active");
    let template = Keys {
        keys,
        ended,
        id: new_id(),
        base_url: page.state.site.inference.clone(),
        models: callable(&page.state),
        fields: Fields::empty(),
        here: page.href("keys"),
        shell,
    };
    page.show(&template)
}

/// Keys with what they spent, the newest first.
async fn rows(page: &Page, keys: Vec<Key>) -> Result<Vec<Row>, Failure> {
    let week = spent(page, 7).await?;
    let month = spent(page, 30).await?;
    let of = |sums: &HashMap<String, Credits>, key: &Key| {
        sums.get(&key.id).copied().unwrap_or(Credits::ZERO)
    };
    let weeks = Exact::column(keys.iter().map(|key| of(&week, key)));
    let months = Exact::column(keys.iter().map(|key| of(&month, key)));
    let mut rows = Vec::new();
    for (at, ((key, week), month)) in keys.into_iter().zip(weeks).zip(months).rev().enumerate() {
        let used = if at < LOOKED_UP { last_used(page, &key.id).await? } else { None };
        let in_use = if at < LOOKED_UP { in_use(page, &key).await? } else { Vec::new() };
        rows.push(Row { in_use, ..Row::of(key, used, week, month, page) });
    }
    Ok(rows)
}

/// What is used of the limits of a key that is not revoked.
async fn in_use(page: &Page, key: &Key) -> Result<Vec<Used>, Failure> {
    if key.limits == KeyLimits::default() || key.revoked_at.is_some() {
        return Ok(Vec::new());
    }
    let now = page.state.store.key_use(&page.account.id, &key.id).await?;
    let mut all = Vec::new();
    for (period, cap) in key.limits.caps() {
        let Some(spend) = now.spend.get(period.cap()) else { continue };
        let what = match period {
            Period::Day => "Today",
            Period::Week => "This week",
            Period::Month => "This month",
            Period::Total => "In all",
        };
        let (used, limit) = (spend.used.nano(), cap.nano());
        let (percent, tone) = share(used.unsigned_abs(), limit.unsigned_abs());
        all.push(Used {
            what,
            used: page.amount(spend.used).to_string(),
            limit: page.amount(cap).to_string(),
            resets: spend.resets_at.map(|at| Instant::soon(at, &page.zone)),
            percent,
            tone,
        });
    }
    let rates = [
        ("Requests a minute", now.requests_per_minute.map(|rate| (rate.used, rate.limit))),
        ("Tokens a minute", now.tokens_per_minute.map(|rate| (rate.used, rate.limit))),
        ("At once", key.limits.max_in_flight.map(|most| (now.in_flight.into(), most.into()))),
    ];
    for (what, rate) in rates {
        let Some((used, limit)) = rate else { continue };
        let (percent, tone) = share(used, limit);
        let (used, limit) = (grouped(used), grouped(limit));
        all.push(Used { what, used, limit, resets: None, percent, tone });
    }
    Ok(all)
}

/// Whole percent of a limit, and how near it is.
fn share(used: u64, limit: u64) -> (u64, &'static str) {
    let percent = (u128::from(used) * 100 / u128::from(limit.max(1))).min(100);
    let tone = match percent {
        100.. => "bad",
        80.. => "warn",
        _ if used >= limit => "bad",
        _ => "good",
    };
    (u64::try_from(percent).unwrap_or(100), tone)
}

/// Names the key that a form of a new key makes, beside its fields.
#[derive(Debug, Deserialize)]
pub struct NewKeyForm {
    id: String,
    #[serde(flatten)]
    fields: Sent,
}

/// Makes a key and shows its secret, this once.
///
/// # Errors
///
/// A field that means nothing, or a form that was sent before.
pub async fn create(page: Page, Post { form, .. }: Post<NewKeyForm>) -> Result<Response, Failure> {
    let new = made(&page, form.id, form.fields.body(None)?).await?;
    shown(&page, new, None, None).await
}

/// Makes a key by an id of one of our forms.
async fn made(page: &Page, id: String, body: Value) -> Result<CreatedKey, Failure> {
    let new = serde_json::from_value(body)
        .map_err(|error| Failure::Invalid(format!("The key cannot be made so: {error}.")))?;
    if !is_new_id(&id) {
        return Err(Failure::Invalid("The form is not a whole one: open the page again.".into()));
    }
    keys::make(&page.state, &page.account, id, new).await.map_err(made_already)
}

/// A form that is sent again makes nothing more.
fn made_already(error: admin::Error) -> Failure {
    match error {
        admin::Error::Conflict(_) => Failure::Conflict(
            "This key was made already, and its secret was shown then. Make another one if you \
             do not have it."
                .into(),
        ),
        other => other.into(),
    }
}

/// A key that was made now, with its secret.
async fn shown(
    page: &Page,
    made: CreatedKey,
    replaced: Option<Replaced>,
    tried: Option<Tried>,
) -> Result<Response, Failure> {
    let mut shell = page.shell("keys").await?;
    shell.title = "New key".into();
    let models = callable(&page.state);
    let may = |model: &&String| crate::proxy::may_call(&made.details, model);
    let model = models.iter().find(may).or(models.first()).cloned().unwrap_or_default();
    let base_url = page.state.site.inference.clone();
    let trial = TrialForm::of(page, &made.details, tried);
    let is_heartbeat = made.details.tag.as_deref() == Some(admin::heartbeats::HEARTBEAT);
    let template = Made {
        name: made.details.name,
        snippets: snippets(&base_url, &made.key, &model, is_heartbeat),
        secret: made.key,
        is_heartbeat,
        replaced,
        trial,
        keys: page.href("keys"),
        shell,
    };
    page.show(&template)
}

/// Which key is to end.
#[derive(Debug, Deserialize)]
pub struct EndForm {
    key: String,
    /// The name, typed; absent before it is asked for.
    name: Option<String>,
}

/// Asks for the name of a key, and ends it once that was typed.
///
/// # Errors
///
/// When there is no such key.
pub async fn end(page: Page, Post { form, .. }: Post<EndForm>) -> Result<Response, Failure> {
    let keys = page.state.store.keys(&page.account.id).await?;
    let key = keys
        .into_iter()
        .find(|key| key.id == form.key)
        .ok_or_else(|| Failure::NotFound("This account has no such key.".into()))?;
    if form.name.as_deref().is_some_and(|typed| typed.trim() == key.name.trim()) {
        let target = Target { account: page.account.clone(), key: key.id };
        let _ended = keys::revoke(Shared(page.state.clone()), target).await?;
        return Ok(super::see(&page.href("keys")));
    }
    let mut shell = page.shell("keys").await?;
    shell.title = "Revoke a key".into();
    let problem = form.name.is_some();
    let template = End {
        key: key.id,
        name: key.name,
        last4: key.last4,
        problem,
        here: page.href("keys"),
        shell,
    };
    page.show(&template)
}

impl Row {
    fn of(key: Key, used: Option<Millis>, week: Exact, month: Exact, page: &Page) -> Self {
        let expired = key.expires_at.is_some_and(|at| at <= page.now);
        let status = match (key.revoked_at, expired) {
            (Some(_), _) => "Revoked",
            (None, true) => "Expired",
            (None, false) => "Active",
        };
        let ends = key.revoked_at.or(key.expires_at);
        Self {
            models: if key.models.is_empty() { "all".into() } else { key.models.join(", ") },
            tag: key.tag.unwrap_or_default(),
            created: Instant::day(key.created_at, &page.zone),
            used: used.map(|at| Instant::ago(at, page.now, &page.zone)),
            ends: ends.map(|at| Instant::day(at, &page.zone)),
            in_use: Vec::new(),
            href: format!("{}/{}", page.href("keys"), key.id),
            usage: format!("{}?key={}", page.href("usage"), key.id),
            id: key.id,
            name: key.name,
            last4: key.last4,
            status,
            week,
            month,
        }
    }
}

/// The cheapest model by its output that a key may call and that answers.
fn cheapest(state: &State, key: &Key) -> Option<String> {
    let names = callable(state);
    let table = (state.prices)();
    let models = names.iter().filter(|name| crate::proxy::may_call(key, name));
    let models = models.filter_map(|name| table.find(name));
    let cheapest = models.min_by_key(|model| model.price.standard.rates.output.0);
    cheapest.map(|model| model.name.clone())
}

/// What each key spent today and on the days before, as the other pages count days.
async fn spent(page: &Page, days: i32) -> Result<HashMap<String, Credits>, Failure> {
    let since = page.zone.days_before(page.now, days - 1);
    let sums = page.sums(Group::Key, since, page.now + 1, None).await?;
    Ok(sums.into_iter().map(|sum| (sum.group, sum.charge)).collect())
}

async fn last_used(page: &Page, key: &str) -> Result<Option<Millis>, Failure> {
    let filter = UsageFilter { key: Some(key.to_owned()), ..UsageFilter::default() };
    let one = store::Page { cursor: None, limit: 1 };
    let rows = page.state.store.usage(&page.account.id, filter, one).await?;
    Ok(rows.data.first().map(|row| row.ts))
}

/// Models that answer and whose upstream is set up, by name.
pub fn callable(state: &State) -> Vec<String> {
    let upstreams = (state.upstreams)().data;
    let is_set_up = |name: &str| upstreams.iter().any(|upstream| upstream.name == name);
    let table = (state.prices)();
    let answers = |model: &&std::sync::Arc<crate::billing::price::Model>| {
        model.upstreams.iter().any(|(name, _)| is_set_up(name))
            && (model.price.free || model.price.standard.rates.output.0 > 0)
    };
    table.models.iter().filter(answers).map(|model| model.name.clone()).collect()
}

fn new_id() -> String {
    format!("key_{}", ulid::Ulid::generate().to_string().to_lowercase())
}

/// Whether an id is one that [`new_id`] made.
fn is_new_id(id: &str) -> bool {
    id.strip_prefix("key_").is_some_and(|id| {
        id.len() == 26 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_our_own_forms_name_a_key() {
        assert!(is_new_id(&new_id()));
        for bad in [
            "",
            "key_",
            "key_1",
            "req_01k5m7q3z9x2c4v6b8n0m1a2s3",
            "key_01K5M7Q3Z9X2C4V6B8N0M1A2S3",
        ] {
            assert!(!is_new_id(bad), "{bad}");
        }
    }
}
