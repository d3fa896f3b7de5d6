//! Client keys: the credential that names an account. The secret is shown once.

use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ErrorBody;
use super::extract::{Body, Target, short_text};
use super::limits::{NewLimits, nullable};
use super::{Error, State};
use crate::key::{self, Class, KeyHash};
use crate::store::{
    Account, Change, Key, KeyChange, KeyLimits, KeyUse, Millis, Rejection, Rows, StoreError,
};
use crate::time;

const NAME_CHARS: usize = 100;
const MODEL_CHARS: usize = 200;
const MODELS: usize = 200;
/// How long a key that is replaced stays valid unless told, and at most.
const OVERLAP: &str = "24h";
const OVERLAP_LIMIT: Duration = Duration::from_secs(366 * 24 * 3600);

/// A key to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Shown in usage rows.
    name: String,
    /// The default attribution of its requests, such as `heartbeat`.
    tag: Option<String>,
    /// Models it may call, `*` standing for any characters; all if absent or empty.
    #[serde(default)]
    models: Vec<String>,
    /// When it stops being valid: an RFC 3339 time, or a length of time such as `30d`.
    expires_at: Option<String>,
    /// How requests are refused when credits are used up.
    #[serde(default)]
    rejection: Rejection,
    /// What it may spend, and how often it may be used.
    #[serde(default)]
    limits: NewLimits,
}

/// What is to change of a key. What is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyPatch {
    /// Shown in usage rows.
    name: Option<String>,
    /// The default attribution of its requests; `null` for none.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    tag: Change<Option<String>>,
    /// Models it may call, `*` standing for any characters; all if empty.
    models: Option<Vec<String>>,
    /// When it stops being valid: an RFC 3339 time, or a length of time such as `30d`; `null`
    /// for never.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    expires_at: Change<Option<String>>,
    /// How requests are refused when credits are used up.
    rejection: Option<Rejection>,
    /// Its limits, one by one.
    #[serde(default)]
    limits: NewLimits,
}

/// A key, and what is used of its limits.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyRow {
    /// The key.
    #[serde(flatten)]
    pub key: Key,
    /// What is used; nothing where nothing is limited.
    #[serde(rename = "use")]
    pub in_use: Option<KeyUse>,
}

/// A key that was made now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedKey {
    /// What lists show of it.
    #[serde(flatten)]
    pub details: Key,
    /// The secret, shown this once.
    pub key: String,
}

/// How a key is replaced.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// How long the old key stays valid, such as `24h` (taken if absent), at most 366 days; `0s`
    /// ends it at once.
    overlap: Option<String>,
}

/// A key that took the place of another.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RotatedKey {
    /// The new key with its secret.
    #[serde(flatten)]
    pub new: CreatedKey,
    /// What became of the old one.
    pub replaced: Replaced,
}

/// What became of a key that was replaced.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Replaced {
    /// Its id.
    pub id: String,
    /// The end of its secret.
    pub last4: String,
    /// Until when it is valid; absent if it was revoked.
    #[serde(with = "crate::time::optional")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub valid_until: Option<Millis>,
    /// False if it could not be ended: it is valid as before, and has to be revoked.
    pub is_ended: bool,
}

/// Makes a key. The answer's `key` is the secret; it is never shown again.
///
/// # Errors
///
/// A bad field, or no such account.
#[utoipa::path(
    post, path = "/admin/v1/accounts/{account}/keys", tag = "keys", request_body = NewKey,
    params(("account" = String, Path, description = "Whose key")),
    responses(
        (status = 201, description = "Made", body = CreatedKey),
        (status = 400, description = "Not a valid key", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn create(
    Shared(state): Shared<State>,
    target: Target,
    Body(new): Body<NewKey>,
) -> Result<(StatusCode, Json<CreatedKey>), Error> {
    let id = format!("key_{}", ulid::Ulid::generate().to_string().to_lowercase());
    Ok((StatusCode::CREATED, Json(make(&state, &target.account, id, new).await?)))
}

/// Makes a key by an id that no key has.
///
/// # Errors
///
/// A bad field, or an id that is taken.
pub async fn make(
    state: &State,
    account: &Account,
    id: String,
    new: NewKey,
) -> Result<CreatedKey, Error> {
    let now = time::now();
    let key = Key {
        id,
        account: account.id.clone(),
        name: short_text("name", new.name, NAME_CHARS)?,
        tag: new.tag.map(|tag| short_text("tag", tag, NAME_CHARS)).transpose()?,
        models: valid_models(new.models)?,
        rejection: new.rejection,
        limits: new.limits.of_new_key()?,
        last4: String::new(),
        created_at: now,
        expires_at: new.expires_at.map(|text| expiry(&text, now)).transpose()?,
        revoked_at: None,
    };
    with_secret(state, key).await
}

/// Gives a key that is to be made its secret, and makes it.
async fn with_secret(state: &State, key: Key) -> Result<CreatedKey, Error> {
    let secret = key::generate(Class::Client).map_err(|e| Error::Internal(e.to_string()))?;
    let key = Key { last4: key::last4(secret.expose()), ..key };
    let details = state.store.create_key(key, KeyHash::of(secret.expose())).await?;
    tracing::info!(account = %details.account, key = %details.id, "key created");
    Ok(CreatedKey { details, key: secret.expose().to_owned() })
}

/// The keys of an account, revoked ones too, oldest first; of a secret only `last4`.
///
/// # Errors
///
/// No such account.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/keys", tag = "keys",
    params(("account" = String, Path, description = "Whose keys")),
    responses(
        (status = 200, description = "All of them", body = Rows<KeyRow>),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn list(
    Shared(state): Shared<State>,
    target: Target,
) -> Result<Json<Rows<KeyRow>>, Error> {
    let mut data = Vec::new();
    for key in state.store.keys(&target.account.id).await? {
        data.push(row(&state, key).await?);
    }
    Ok(Json(Rows { data, next: None }))
}

async fn row(state: &State, key: Key) -> Result<KeyRow, Error> {
    let in_use = if key.limits == KeyLimits::default() {
        None
    } else {
        Some(state.store.key_use(&key.account, &key.id).await?)
    };
    Ok(KeyRow { key, in_use })
}

/// Changes a key, also one that is in use; in force for the next request. Limits are changed
/// one by one. A new cap counts what was spent before.
///
/// # Errors
///
/// A bad field, no such account, or no such key in it.
#[utoipa::path(
    patch, path = "/admin/v1/accounts/{account}/keys/{key}", tag = "keys",
    request_body = KeyPatch,
    params(
        ("account" = String, Path, description = "Whose key"),
        ("key" = String, Path, description = "Its id"),
    ),
    responses(
        (status = 200, description = "The key as it is now", body = KeyRow),
        (status = 400, description = "Not a valid change", body = ErrorBody),
        (status = 404, description = "No such key in this account", body = ErrorBody),
    )
)]
pub async fn change(
    Shared(state): Shared<State>,
    target: Target,
    Body(patch): Body<KeyPatch>,
) -> Result<Json<KeyRow>, Error> {
    let now = time::now();
    let change = KeyChange {
        name: patch.name.map(|name| short_text("name", name, NAME_CHARS)).transpose()?,
        tag: each(patch.tag, |tag| short_text("tag", tag, NAME_CHARS))?,
        models: patch.models.map(valid_models).transpose()?,
        rejection: patch.rejection,
        expires_at: each(patch.expires_at, |text| expiry(&text, now))?,
        limits: patch.limits.change()?,
    };
    let changed = state.store.change_key(&target.account.id, &target.key, change).await;
    let key = changed.map_err(|error| not_found(error, &target.key))?;
    tracing::info!(account = %key.account, key = %key.id, "key changed");
    Ok(Json(row(&state, key).await?))
}

/// A change by its value, if it has one.
fn each<T, U>(
    change: Change<Option<T>>,
    read: impl FnOnce(T) -> Result<U, Error>,
) -> Result<Change<Option<U>>, Error> {
    match change {
        None => Ok(None),
        Some(None) => Ok(Some(None)),
        Some(Some(value)) => read(value).map(|value| Some(Some(value))),
    }
}

fn not_found(error: StoreError, key: &str) -> Error {
    match error {
        StoreError::NotFound(_) => Error::KeyNotFound(key.to_owned()),
        other => other.into(),
    }
}

/// Ends a key at once; what runs is still answered. Revoking twice is revoking once.
///
/// # Errors
///
/// No such account, or no such key in it.
#[utoipa::path(
    delete, path = "/admin/v1/accounts/{account}/keys/{key}", tag = "keys",
    params(
        ("account" = String, Path, description = "Whose key"),
        ("key" = String, Path, description = "Its id"),
    ),
    responses(
        (status = 200, description = "Revoked", body = Key),
        (status = 404, description = "No such key in this account", body = ErrorBody),
    )
)]
pub async fn revoke(Shared(state): Shared<State>, target: Target) -> Result<Json<Key>, Error> {
    let revoked = state.store.revoke_key(&target.account.id, &target.key).await;
    let key = revoked.map_err(|error| not_found(error, &target.key))?;
    tracing::info!(account = %key.account, key = %key.id, "key revoked");
    Ok(Json(key))
}

/// Makes a key like another, with a secret of its own, and lets the other end after a while, so
/// that nothing is refused while it is replaced. The new one counts what it spends from zero.
///
/// # Errors
///
/// No such account, no such key in it, or an overlap that cannot be.
#[utoipa::path(
    post, path = "/admin/v1/accounts/{account}/keys/{key}/rotate", tag = "keys",
    request_body = Rotation,
    params(
        ("account" = String, Path, description = "Whose key"),
        ("key" = String, Path, description = "The id of the key that is replaced"),
    ),
    responses(
        (status = 201, description = "Made", body = RotatedKey),
        (status = 400, description = "Not a valid overlap", body = ErrorBody),
        (status = 404, description = "No such key in this account", body = ErrorBody),
    )
)]
pub async fn rotate(
    Shared(state): Shared<State>,
    target: Target,
    Body(rotation): Body<Rotation>,
) -> Result<(StatusCode, Json<RotatedKey>), Error> {
    let id = format!("key_{}", ulid::Ulid::generate().to_string().to_lowercase());
    let overlap = overlap(rotation.overlap.as_deref())?;
    let keys = state.store.keys(&target.account.id).await?;
    let old = keys.into_iter().find(|key| key.id == target.key && key.revoked_at.is_none());
    let old = old.ok_or(Error::KeyNotFound(target.key))?;
    Ok((StatusCode::CREATED, Json(replace(&state, old, id, overlap).await?)))
}

/// How long an old key stays valid.
///
/// # Errors
///
/// A text that is no length of time, or a longer one than a year.
pub fn overlap(text: Option<&str>) -> Result<Duration, Error> {
    let overlap = time::parse_duration(text.unwrap_or(OVERLAP));
    overlap.filter(|overlap| *overlap <= OVERLAP_LIMIT).ok_or_else(|| {
        let problem = "must be a length of time such as 24h or 7d, at most 366 days; 0s for none";
        Error::InvalidParameter { param: "overlap", problem: problem.to_owned() }
    })
}

/// Makes a key like `old` by an id that no key has, and lets `old` end after `overlap`.
///
/// The new one comes first: if the old one cannot be ended then, nobody is left without a key,
/// and the answer says so.
///
/// # Errors
///
/// An id that is taken, or when the store cannot be written.
pub async fn replace(
    state: &State,
    old: Key,
    id: String,
    overlap: Duration,
) -> Result<RotatedKey, Error> {
    let now = time::now();
    let like = Key {
        id,
        created_at: now,
        // One that has ended is replaced by one that has not.
        expires_at: old.expires_at.filter(|at| *at > now),
        ..old.clone()
    };
    let new = with_secret(state, like).await?;
    // A key that ends before its overlap does stays with that.
    let until = time::after(now, overlap);
    let valid_until = old.expires_at.map_or(until, |own| own.min(until));
    let (account, key) = (&old.account, &old.id);
    let ended = if overlap.is_zero() {
        state.store.revoke_key(account, key).await
    } else {
        let change = KeyChange { expires_at: Some(Some(valid_until)), ..KeyChange::default() };
        state.store.change_key(account, key, change).await
    };
    match &ended {
        Ok(_) => tracing::info!(%account, key, "key replaced"),
        Err(error) => tracing::warn!(%account, key, %error, "a replaced key could not be ended"),
    }
    let replaced = Replaced {
        valid_until: (!overlap.is_zero()).then_some(valid_until),
        is_ended: ended.is_ok(),
        id: old.id,
        last4: old.last4,
    };
    Ok(RotatedKey { new, replaced })
}

fn valid_models(models: Vec<String>) -> Result<Vec<String>, Error> {
    if models.len() > MODELS {
        let problem = format!("must have at most {MODELS} entries");
        return Err(Error::InvalidParameter { param: "models", problem });
    }
    models.into_iter().map(|model| short_text("models", model, MODEL_CHARS)).collect()
}

/// The instant that a text means, counted from `now` where it is a length of time.
fn expiry(text: &str, now: Millis) -> Result<Millis, Error> {
    let at = match time::parse_duration(text) {
        Some(wait) => Some(time::after(now, wait)),
        None => time::parse(text, &TimeZone::UTC),
    };
    let problem = match at {
        Some(at) if at > now => return Ok(at),
        Some(_) => "must lie in the future",
        None => "must be an RFC 3339 time such as 2026-12-31T00:00:00Z, or a time such as 30d",
    };
    Err(Error::InvalidParameter { param: "expires_at", problem: problem.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_future_time_or_counts_from_now() {
        let now = time::parse("2026-09-21", &TimeZone::UTC).unwrap();
        let at = |text| expiry(text, now).map(time::rfc3339).ok();
        assert_eq!(at("30d").as_deref(), Some("2026-10-21T00:00:00.000Z"));
        assert_eq!(at("2027-01-01T00:00:00+01:00").as_deref(), Some("2026-12-31T23:00:00.000Z"));
        for text in ["2026-09-21", "2020-01-01T00:00:00Z", "0s", "soon", "-1d", ""] {
            assert_eq!(at(text), None, "{text:?}");
        }
    }
}
