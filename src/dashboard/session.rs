//! Who is signed in: sessions, and the links that begin them.
//!
//! A session is a random token in a cookie; the store knows its SHA-256 alone. It ends twelve
//! hours after it began, an hour after it was last used, when it is left, and, if it is the
//! operator's, when the admin key is another one.

use axum::http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

use crate::admin::State;
use crate::key::{self, Class, KeyHash, Secret};
use crate::store::{AccountId, Millis, Put, Scope, Store, StoreError};
use crate::time;

use super::Site;
use super::assets::encode;

const HOUR_MS: Millis = 3_600_000;
const LASTS_MS: Millis = 12 * HOUR_MS;
const IDLE_MS: Millis = HOUR_MS;
/// How stale the time of last use may be: a session in use is written so often.
const TOUCH_MS: Millis = 5 * 60_000;

/// Who is signed in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// Whoever has the admin key.
    Operator,
    /// Whoever was given a link to this account.
    Holder(AccountId),
}

/// A session, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    /// Who.
    pub who: Who,
    /// What forms must send with them.
    pub csrf: String,
    made_at: Millis,
    seen_at: Millis,
    /// The start of the admin key's hash, for the operator's sessions.
    by: String,
}

impl Session {
    /// Begins one. Answers the value of its cookie.
    ///
    /// # Errors
    ///
    /// When there is no randomness or no store.
    pub async fn begin(state: &State, who: Who) -> Result<String, StoreError> {
        let token = random()?;
        let now = time::now();
        let by = if who == Who::Operator { fingerprint(&state.admin_key) } else { String::new() };
        let session = Self { who, csrf: random()?, made_at: now, seen_at: now, by };
        session.put(state, &token, None).await?;
        Ok(token)
    }

    /// The session of a request's cookie, if it is one that lasts.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn of(state: &State, headers: &HeaderMap) -> Result<Option<Self>, StoreError> {
        let Some(token) = cookie(headers, cookie_name(&state.site)) else { return Ok(None) };
        let Some(found) = state.store.document(&Scope::Installation, &name(token)).await? else {
            return Ok(None);
        };
        let Ok(mut session) = serde_json::from_str::<Self>(&found.body) else { return Ok(None) };
        if session.who == Who::Operator && session.by != fingerprint(&state.admin_key) {
            return Ok(None);
        }
        let now = time::now();
        if now - session.seen_at >= TOUCH_MS {
            session.seen_at = now;
            // Another request may have done it, or ended the session; this one was in time.
            session.put(state, token, Some(found.version)).await.ok();
        }
        Ok(Some(session))
    }

    /// Ends the session of a request's cookie.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    pub async fn end(state: &State, headers: &HeaderMap) -> Result<(), StoreError> {
        let Some(token) = cookie(headers, cookie_name(&state.site)) else { return Ok(()) };
        take(state.store.as_ref(), name(token)).await.map(drop)
    }

    async fn put(
        &self,
        state: &State,
        token: &str,
        replaces: Option<u64>,
    ) -> Result<(), StoreError> {
        let put = Put {
            name: name(token),
            body: Some(json(self)?),
            replaces,
            expires_at: Some((self.made_at + LASTS_MS).min(self.seen_at + IDLE_MS)),
        };
        state.store.put_document(&Scope::Installation, put).await.map(drop)
    }
}

/// What a sign-in link opens, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Link {
    account: AccountId,
    reusable: bool,
}

/// Makes a sign-in token for an account's holder. `reusable`: until it expires, else once.
///
/// # Errors
///
/// When there is no randomness or no store.
pub async fn new_link(
    store: &dyn Store,
    account: &AccountId,
    reusable: bool,
    expires_at: Millis,
) -> Result<Secret, StoreError> {
    let token = key::generate(Class::Link).map_err(|e| StoreError::Unavailable(e.to_string()))?;
    let put = Put {
        name: link_name(token.expose()),
        body: Some(json(&Link { account: account.clone(), reusable })?),
        replaces: None,
        expires_at: Some(expires_at),
    };
    store.put_document(&Scope::Installation, put).await?;
    Ok(token)
}

/// The account that a sign-in token opens. One that is not reusable is used up by this.
///
/// # Errors
///
/// When the store cannot be read or written.
pub async fn use_link(store: &dyn Store, token: &str) -> Result<Option<AccountId>, StoreError> {
    let Some(found) = store.document(&Scope::Installation, &link_name(token)).await? else {
        return Ok(None);
    };
    let Ok(link) = serde_json::from_str::<Link>(&found.body) else { return Ok(None) };
    if link.reusable || take(store, link_name(token)).await? {
        return Ok(Some(link.account));
    }
    Ok(None)
}

/// Removes a document. False if another did before.
async fn take(store: &dyn Store, name: String) -> Result<bool, StoreError> {
    let Some(found) = store.document(&Scope::Installation, &name).await? else { return Ok(false) };
    let put = Put { name, body: None, replaces: Some(found.version), expires_at: None };
    match store.put_document(&Scope::Installation, put).await {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The header that gives a browser its session, or takes it away.
pub fn set_cookie(site: &Site, token: Option<&str>) -> String {
    let name = cookie_name(site);
    let secure = if site.is_secure() { "; Secure" } else { "" };
    let (value, age) = token.map_or(("", 0), |token| (token, LASTS_MS / 1000));
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}")
}

/// Where the page is kept that was asked for before anybody was signed in.
const NEXT_COOKIE: &str = "farebox_next";
/// How long it is: whoever needs a new link first has to ask for one.
const NEXT_LASTS_S: u32 = 3_600;

/// The header by which a browser keeps the page that was asked for, until it signs in, or
/// forgets it. It comes back to the sign-in alone.
pub fn set_next(site: &Site, path: Option<&str>) -> String {
    let secure = if site.is_secure() { "; Secure" } else { "" };
    let (value, age) = path.map_or((String::new(), 0), |path| (encode(path), NEXT_LASTS_S));
    format!(
        "{NEXT_COOKIE}={value}; Path={}/sign-in; HttpOnly; SameSite=Strict; Max-Age={age}{secure}",
        site.base
    )
}

/// The page that was asked for, as a browser kept it.
pub fn next(headers: &HeaderMap) -> Option<String> {
    let kept = format!("next={}", cookie(headers, NEXT_COOKIE)?);
    let [(_, path)]: [(String, String); 1] =
        serde_urlencoded::from_str::<Vec<_>>(&kept).ok()?.try_into().ok()?;
    Some(path)
}

/// A browser sends a cookie with this prefix over TLS alone, and to this host alone.
fn cookie_name(site: &Site) -> &'static str {
    if site.is_secure() { "__Host-farebox" } else { "farebox" }
}

/// The value of a cookie.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

fn name(token: &str) -> String {
    format!("session/{}", hex(&KeyHash::of(token).0))
}

fn link_name(token: &str) -> String {
    format!("sign-in/{}", hex(&KeyHash::of(token).0))
}

fn fingerprint(key: &KeyHash) -> String {
    hex(&KeyHash::of(&hex(&key.0)).0[..8])
}

fn random() -> Result<String, StoreError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Unavailable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_read_whole_and_by_its_own_name() {
        let mut headers = HeaderMap::new();
        headers
            .append(header::COOKIE, "xfarebox=1; farebox=two; farebox_zone=UTC".parse().unwrap());
        assert_eq!(cookie(&headers, "farebox"), Some("two"));
        assert_eq!(cookie(&headers, "farebox_zone"), Some("UTC"));
        assert_eq!(cookie(&headers, "zone"), None);
    }

    #[test]
    fn the_page_that_was_asked_for_comes_back_as_it_was() {
        let site = Site::new("https://a.example/x", "");
        let asked = "/billing/a/usage?model=a%20b&range=7d";
        let set = set_next(&site, Some(asked));
        assert!(set.contains("; Path=/x/sign-in; HttpOnly; SameSite=Strict; "), "{set}");
        let mut headers = HeaderMap::new();
        assert_eq!(next(&headers), None);
        headers.append(header::COOKIE, set.split(';').next().unwrap().parse().unwrap());
        assert_eq!(next(&headers).as_deref(), Some(asked));
    }

    #[test]
    fn over_tls_the_cookie_is_bound_to_it() {
        let tls = set_cookie(&Site::new("https://a.example", ""), Some("t"));
        assert!(tls.starts_with("__Host-farebox=t; Path=/; HttpOnly; SameSite=Strict"), "{tls}");
        assert!(tls.ends_with("; Secure"));
        assert!(!set_cookie(&Site::new("http://127.0.0.1:1", ""), None).contains("Secure"));
    }
}
