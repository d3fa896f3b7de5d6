//! One key: what it uses of its limits, its change, and the new key that takes its place.

use askama::Template;
use axum::extract::{Path, State as Shared};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::fields::{Fields, Sent};
use super::{Row, callable, made, new_id, rows, shown};
use crate::admin::extract::{Body, Target};
use crate::admin::keys as api;
use crate::dashboard::moment::Instant;
use crate::dashboard::page::{Page, Post, Shell};
use crate::dashboard::{Failure, params::Params, see};
use crate::store::{Key, Millis};
use crate::time;

/// How long a key that is replaced may stay valid.
const OVERLAPS: [(&str, &str); 5] = [
    ("1h", "in an hour"),
    ("24h", "in a day"),
    ("7d", "in 7 days"),
    ("30d", "in 30 days"),
    ("now", "at once"),
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
    is_saved: bool,
    here: String,
    keys: String,
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
    let fields = Fields::of(&key);
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
    let until = until(&form.overlap, &old, page.now)?;
    let like = json!({ "name": old.name, "tag": old.tag, "models": old.models,
        "rejection": old.rejection, "limits": old.limits,
        "expires_at": old.expires_at.filter(|at| *at > page.now).map(time::rfc3339) });
    let new = made(&page, form.id, like).await?;
    let target = Target { account: page.account.clone(), key: old.id };
    let state = Shared(page.state.clone());
    let ended = match until {
        None => api::revoke(state, target).await.map(drop),
        // It ends by then in any case.
        Some(at) if old.expires_at == Some(at) => Ok(()),
        Some(at) => {
            let patch = serde_json::from_value(json!({ "expires_at": time::rfc3339(at) }))
                .map_err(|error| Failure::Internal(error.to_string()))?;
            api::change(state, target, Body(patch)).await.map(drop)
        }
    };
    let replaced = Replaced {
        last4: old.last4,
        until: until.map(|at| Instant::full(at, &page.zone)),
        is_ended: ended.is_ok(),
    };
    if let Err(error) = ended {
        tracing::warn!(%error, "a key that was replaced could not be ended");
    }
    shown(&page, new, Some(replaced)).await
}

/// Until when a key stays valid that is replaced now; none: it is revoked at once. A key that
/// ends before stays with that.
fn until(overlap: &str, key: &Key, now: Millis) -> Result<Option<Millis>, Failure> {
    if overlap == "now" {
        return Ok(None);
    }
    let known = OVERLAPS.into_iter().find(|(value, _)| *value == overlap);
    let wait = known.and_then(|(value, _)| time::parse_duration(value));
    let wait = wait.ok_or_else(|| Failure::Invalid("There is no such overlap.".into()))?;
    let at = time::after(now, wait);
    Ok(Some(key.expires_at.map_or(at, |own| own.min(at))))
}
