//! One key: what it uses of its limits, its change, and the new key that takes its place.

use askama::Template;
use axum::extract::{Path, State as Shared};
use axum::response::Response;
use serde::Deserialize;

use super::fields::{Fields, Sent};
use super::{Row, callable, cheapest, is_new_id, made_already, new_id, rows, shown};
use crate::admin::extract::{Body, Target};
use crate::admin::keys as api;
use crate::admin::keys::CreatedKey;
use crate::admin::trial::{self, Tried};
use crate::dashboard::moment::Instant;
use crate::dashboard::number::{Exact, duration};
use crate::dashboard::page::{Page, Post, Shell};
use crate::dashboard::{Failure, params::Params, see};
use crate::store::Key;

/// How long a key that is replaced may stay valid.
const OVERLAPS: [(&str, &str); 5] = [
    ("1h", "in an hour"),
    ("24h", "in a day"),
    ("7d", "in 7 days"),
    ("30d", "in 30 days"),
    ("0s", "at once"),
];

#[derive(Template)]
#[template(path = "key.html")]
struct One {
    shell: Shell,
    row: Row,
    fields: Fields,
    models: Vec<String>,
    overlaps: [(&'static str, &'static str); 5],
    id: String,
    trial: TrialForm,
    is_saved: bool,
    here: String,
    keys: String,
}

/// The form that tries a key out, and what came of it.
pub struct TrialForm {
    /// Where it goes.
    pub to: String,
    /// The model that would be asked; empty if there is none.
    pub model: String,
    /// What came of the last one.
    pub tried: Option<Tried>,
    /// What it cost, every digit.
    pub charge: Option<Exact>,
    /// How long the reply took, in words.
    pub took: String,
}

impl TrialForm {
    /// That of a key.
    pub fn of(page: &Page, key: &Key, tried: Option<Tried>) -> Self {
        let took = tried.as_ref().map_or(0, |tried| tried.latency_ms);
        Self {
            to: format!("{}/{}/test", page.href("keys"), key.id),
            model: cheapest(&page.state, key).unwrap_or_default(),
            charge: tried.as_ref().and_then(|tried| tried.charge).map(Exact::one),
            took: duration(u32::try_from(took).unwrap_or(u32::MAX)),
            tried,
        }
    }
}

/// What became of a key that was replaced.
pub struct Replaced {
    /// The end of its secret.
    pub last4: String,
    /// Until when it is valid; none: it is revoked.
    pub until: Option<Instant>,
    /// False, if it could not be ended.
    pub is_ended: bool,
}

/// The path of a key's page.
#[derive(Debug, Deserialize)]
pub struct At {
    key: String,
}

/// The page.
///
/// # Errors
///
/// When there is no such key, or it has been revoked.
pub async fn show(page: Page, Path(At { key }): Path<At>) -> Result<Response, Failure> {
    let key = find(&page, &key).await?;
    one(page, key, None).await
}

async fn one(page: Page, key: Key, tried: Option<Tried>) -> Result<Response, Failure> {
    let fields = Fields::of(&key);
    let trial = TrialForm::of(&page, &key, tried);
    let name = key.name.clone();
    let here = format!("{}/{}", page.href("keys"), key.id);
    let row = rows(&page, vec![key]).await?.remove(0);
    let mut shell = page.shell("keys").await?;
    shell.title = format!("Key {name}");
    let template = One {
        row,
        fields,
        models: callable(&page.state),
        overlaps: OVERLAPS,
        id: new_id(),
        trial,
        is_saved: Params::of(&page.path).get("saved").is_some(),
        here,
        keys: page.href("keys"),
        shell,
    };
    page.show(&template)
}

async fn find(page: &Page, id: &str) -> Result<Key, Failure> {
    let keys = page.state.store.keys(&page.account.id).await?;
    let found = keys.into_iter().find(|key| key.id == id && key.revoked_at.is_none());
    let nothing = "This account has no such key, or it has been revoked.";
    found.ok_or_else(|| Failure::NotFound(nothing.into()))
}

/// Changes a key.
///
/// # Errors
///
/// A field that means nothing.
pub async fn change(
    page: Page,
    Path(At { key }): Path<At>,
    Post { form, .. }: Post<Sent>,
) -> Result<Response, Failure> {
    let key = find(&page, &key).await?;
    let patch = serde_json::from_value(form.body(Some(&key))?)
        .map_err(|error| Failure::Invalid(format!("The key cannot be changed so: {error}.")))?;
    let here = format!("{}/{}", page.href("keys"), key.id);
    let target = Target { account: page.account.clone(), key: key.id };
    let _changed = api::change(Shared(page.state.clone()), target, Body(patch)).await?;
    Ok(see(&format!("{here}?saved=1")))
}

/// What the form of a trial sends.
#[derive(Debug, Deserialize)]
pub struct TryForm {
    /// The key itself: it is used once and kept nowhere.
    secret: String,
    /// `models` or `ask`.
    what: String,
    /// `made`: the page that shows a new key, which is then shown again.
    #[serde(default)]
    from: String,
}

/// Tries a key out by its secret, and shows what came of it on the page that asked.
///
/// # Errors
///
/// When there is no such key, or the secret is not its.
pub async fn try_out(
    page: Page,
    Path(At { key }): Path<At>,
    Post { form, .. }: Post<TryForm>,
) -> Result<Response, Failure> {
    let key = find(&page, &key).await?;
    let model = match form.what.as_str() {
        "ask" => cheapest(&page.state, &key),
        _ => None,
    };
    let tried = trial::attempt(&page.state, &key, &form.secret, model).await?;
    if form.from == "made" {
        let again = CreatedKey { details: key, key: form.secret.trim().to_owned() };
        return shown(&page, again, None, Some(tried)).await;
    }
    one(page, key, Some(tried)).await
}

/// What the form of a rotation sends.
#[derive(Debug, Deserialize)]
pub struct RotateForm {
    id: String,
    overlap: String,
}

/// Makes a key like this one, shows its secret, this once, and lets this one end.
///
/// The new one comes first: if the old one cannot be ended then, nobody is left without a key,
/// and the page says so.
///
/// # Errors
///
/// When there is no such key, or the form was sent before.
pub async fn rotate(
    page: Page,
    Path(At { key }): Path<At>,
    Post { form, .. }: Post<RotateForm>,
) -> Result<Response, Failure> {
    let old = find(&page, &key).await?;
    let known = OVERLAPS.into_iter().find(|(value, _)| *value == form.overlap);
    let (overlap, _) = known.ok_or_else(|| Failure::Invalid("There is no such overlap.".into()))?;
    if !is_new_id(&form.id) {
        return Err(Failure::Invalid("The form is not a whole one: open the page again.".into()));
    }
    let rotated = api::replace(&page.state, old, form.id, api::overlap(Some(overlap))?).await;
    let rotated = rotated.map_err(made_already)?;
    let replaced = Replaced {
        last4: rotated.replaced.last4,
        until: rotated.replaced.valid_until.map(|at| Instant::full(at, &page.zone)),
        is_ended: rotated.replaced.is_ended,
    };
    shown(&page, rotated.new, Some(replaced), None).await
}
