//! Key → account. Only the SHA-256 of the whole key touches the store or a cache.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};

use super::Context;
use super::error::Error;
use crate::key::{KeyHash, last4, looks_mistyped};
use crate::store::Key;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_GOOG_API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// The key that signed a request.
///
/// Every unknown key takes the same way, whatever its shape: the lookup is by hash.
///
/// # Errors
///
/// [`Error::ApiKey`] for a missing, malformed, unknown, revoked or expired key,
/// [`Error::TooManyBadKeys`] for an address that sent many, [`Error::Ledger`] when the store
/// cannot be asked.
pub async fn authenticate(
    ctx: &Context,
    headers: &HeaderMap,
    peer: IpAddr,
) -> Result<Arc<Key>, Error> {
    if ctx.bad_keys.is_over(&peer) {
        return Err(Error::TooManyBadKeys);
    }
    match known(ctx, presented(headers)?).await {
        Err(error @ Error::ApiKey(_)) => {
            ctx.bad_keys.take(&peer);
            Err(error)
        }
        answer => answer,
    }
}

/// The key in the headers: `Authorization: Bearer`, `x-api-key` or `x-goog-api-key`. Clients
/// differ by version, so each is read on every path.
fn presented(headers: &HeaderMap) -> Result<&str, Error> {
    let missing = || {
        Error::ApiKey(
            "There is no API key. Send one as \"Authorization: Bearer …\" or \"x-api-key\".".into(),
        )
    };
    let texts = |name: HeaderName| {
        headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or_default())
    };
    let bearers = texts(AUTHORIZATION).map(|value| match value.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
        _ => "",
    });
    let given = bearers.chain(texts(X_API_KEY)).chain(texts(X_GOOG_API_KEY));
    let mut keys = given.filter(|key| !key.is_empty());
    let key = keys.next().ok_or_else(missing)?;
    if keys.any(|other| other != key) {
        return Err(Error::ApiKey("Two different API keys were sent. Send one.".into()));
    }
    Ok(key)
}

async fn known(ctx: &Context, text: &str) -> Result<Arc<Key>, Error> {
    let key = ctx.store.key(&KeyHash::of(text)).await.map_err(Error::Ledger)?;
    let ending = last4(text);
    let Some(key) = key else {
        return Err(Error::ApiKey(if looks_mistyped(text) {
            format!("The API key ending {ending} is mistyped or cut off. Copy it again.")
        } else {
            format!(
                "The API key ending {ending} is not valid. Check it, or ask the operator for one."
            )
        }));
    };
    if key.revoked_at.is_some() {
        return Err(Error::ApiKey(format!(
            "The API key ending {ending} was revoked. Ask the operator for another."
        )));
    }
    if key.expires_at.is_some_and(|end| end <= super::now_ms()) {
        return Err(Error::ApiKey(format!(
            "The API key ending {ending} has expired. Ask the operator for another."
        )));
    }
    Ok(key)
}

/// Whether a key may call a model; `*` in its list stands for any characters.
pub fn may_call(key: &Key, model: &str) -> bool {
    key.models.is_empty() || key.models.iter().any(|pattern| matches(pattern, model))
}

fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            match rest.find(middle) {
                Some(at) => rest = &rest[at + middle.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |end| rest.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_nothing_else_does() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "gpt-4.1"),
            ("claude-*", "claude-opus-4.6"),
            ("*-mini", "gpt-4.1-mini"),
            ("gpt-*-mini", "gpt-4.1-mini"),
            ("a*b*c", "a-b-b-c"),
            ("gpt-4.1", "gpt-4.1"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "x"),
            ("gpt-4.1", "gpt-4x1"),
            ("gpt-4.1", "gpt-4.1-mini"),
            ("*-mini", "gpt-4.1"),
            ("a*a", "a"),
            ("gpt-*-mini", "gpt-mini"),
            ("claude-*", "xclaude-1"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_key_is_read_from_each_header_that_clients_use() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()))
                .collect::<HeaderMap>()
        };
        assert_eq!(presented(&headers(&[("authorization", "Bearer k1")])).unwrap(), "k1");
        assert_eq!(presented(&headers(&[("authorization", "bearer  k1 ")])).unwrap(), "k1");
        assert_eq!(presented(&headers(&[("x-api-key", "k2")])).unwrap(), "k2");
        assert_eq!(presented(&headers(&[("x-goog-api-key", "k3")])).unwrap(), "k3");
        assert!(presented(&headers(&[])).is_err());
        assert!(presented(&headers(&[("authorization", "Basic k1")])).is_err());
        assert!(presented(&headers(&[("authorization", "Bearer a"), ("x-api-key", "b")])).is_err());
        let twice = headers(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]);
        assert!(presented(&twice).is_err());
    }
}
