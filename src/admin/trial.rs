//! Tries a key out, the way its holder will use it: through the proxy, by the address that pages
//! and snippets name. The secret comes with the request and is kept nowhere.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State as Shared;
use reqwest::{RequestBuilder, Response, Url};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::error::ErrorBody;
use super::extract::{Body, Target};
use super::{Error, State};
use crate::billing::Credits;
use crate::key::KeyHash;
use crate::store::Key;
use crate::wire::hello;

/// Longest wait for the proxy, and for the model behind it.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is read of a reply's text where it is no error of ours, in characters.
const SAID_CHARS: usize = 200;

/// What to try.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The key itself. It is used for this request and kept nowhere.
    key: String,
    /// A model to ask for a short answer, which costs what its tokens do; if absent the models
    /// are listed, which costs nothing.
    model: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Tried {
    /// Whether the key did what was asked of it.
    pub works: bool,
    /// The address that was called.
    pub address: String,
    /// The status of the reply; absent if there was none.
    pub status: Option<u16>,
    /// How long the reply took, in milliseconds.
    pub latency_ms: u64,
    /// How many models it may call, if they were listed.
    pub models: Option<u64>,
    /// The model that was asked, if one was.
    pub model: Option<String>,
    /// What that cost.
    #[schema(value_type = Option<String>)]
    pub charge: Option<Credits>,
    /// What was found, and what to do if it does not work.
    pub message: String,
}

/// Sends a request through the proxy with a key, as its holder will, and tells what came of it.
///
/// # Errors
///
/// No such account or key, or a secret that is not this key's.
#[utoipa::path(
    post, path = "/admin/v1/accounts/{account}/keys/{key}/test", tag = "keys",
    request_body = Trial,
    params(
        ("account" = String, Path, description = "Whose key"),
        ("key" = String, Path, description = "Its id"),
    ),
    responses(
        (status = 200, description = "What came of it, also if it does not work", body = Tried),
        (status = 400, description = "The secret is not this key's", body = ErrorBody),
        (status = 404, description = "No such key in this account", body = ErrorBody),
    )
)]
pub async fn run(
    Shared(state): Shared<State>,
    target: Target,
    Body(trial): Body<Trial>,
) -> Result<Json<Tried>, Error> {
    let keys = state.store.keys(&target.account.id).await?;
    let key = keys.into_iter().find(|key| key.id == target.key);
    let key = key.ok_or(Error::KeyNotFound(target.key))?;
    Ok(Json(attempt(&state, &key, &trial.key, trial.model).await?))
}

/// Tries a key out by its secret; see [`run`].
///
/// # Errors
///
/// A secret that is not this key's, or when the store cannot be read.
pub async fn attempt(
    state: &State,
    key: &Key,
    secret: &str,
    model: Option<String>,
) -> Result<Tried, Error> {
    let secret = secret.trim();
    // What is sent on is a secret that we made, and no text of anyone's choice.
    let found = state.store.key(&KeyHash::of(secret)).await?;
    if found.is_none_or(|found| found.id != key.id) {
        let problem = format!("is not the secret of this key, which ends in {}", key.last4);
        return Err(Error::InvalidParameter { param: "key", problem });
    }
    let base = state.site.inference.as_str();
    let mut tried = Tried {
        works: false,
        address: base.to_owned(),
        status: None,
        latency_ms: 0,
        models: None,
        model,
        charge: None,
        message: String::new(),
    };
    let Some(client) = base.parse::<Url>().ok().and_then(client) else {
        tried.message = "The address of the proxy is not known here, so it cannot be called. Try \
                         the key with curl, as below."
            .into();
        return Ok(tried);
    };
    let request = match &tried.model {
        None => client.get(format!("{base}/models")),
        Some(model) => {
            client.post(format!("{base}/chat/completions")).json(&hello::question(model))
        }
    };
    call(request.bearer_auth(secret), &mut tried).await;
    Ok(tried)
}

/// A client that goes to the proxy and nowhere else.
fn client(base: Url) -> Option<reqwest::Client> {
    base.host()?;
    // Fails only if it was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    let plain = base.scheme() == "http";
    let builder = if plain { builder.tls_certs_only([]) } else { builder };
    builder.build().ok()
}

async fn call(request: RequestBuilder, tried: &mut Tried) {
    let begun = Instant::now();
    let reply = request.send().await;
    tried.latency_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let address = &tried.address;
    match reply {
        Ok(reply) => read(reply, tried).await,
        Err(error) if error.is_timeout() => {
            tried.message = format!("{address} did not answer within 30 seconds.");
        }
        Err(error) => {
            tracing::debug!("a key could not be tried: {error}");
            tried.message = format!(
                "{address} cannot be reached from here. If your agents reach it, the key may work \
                 all the same: try it with curl."
            );
        }
    }
}

async fn read(reply: Response, tried: &mut Tried) {
    let status = reply.status();
    tried.status = Some(status.as_u16());
    let charge = reply.headers().get("x-farebox-charge").and_then(|value| value.to_str().ok());
    tried.charge = charge.and_then(|text| text.parse().ok());
    let text = reply.text().await.unwrap_or_default();
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if !status.is_success() {
        let said = body["error"]["message"].as_str().unwrap_or(&text);
        let said: String = said.chars().take(SAID_CHARS * 2).collect();
        tried.message = format!("It was refused with status {}: {said}", status.as_u16());
        return;
    }
    tried.works = true;
    tried.message = match (&tried.model, body["data"].as_array()) {
        (Some(model), _) => match hello::answer(&body) {
            Some(said) => {
                let said: String = said.chars().take(SAID_CHARS).collect();
                format!("{model} answered: “{}”", said.trim_end())
            }
            None => format!("{model} answered, without any text."),
        },
        (None, Some(models)) => {
            let count = models.len();
            tried.models = Some(count as u64);
            match count {
                0 => "It is accepted, but there is no model that it may call.".into(),
                1 => "It is accepted, and may call one model.".into(),
                _ => format!("It is accepted, and may call {count} models."),
            }
        }
        (None, None) => {
            tried.works = false;
            "Something answered at this address, but not as Farebox does.".into()
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_with_a_host_is_called() {
        for base in ["/v1", "", "data:,x", "file:///v1"] {
            assert!(base.parse::<Url>().ok().and_then(client).is_none(), "{base}");
        }
        assert!("http://127.0.0.1:8080/v1".parse::<Url>().ok().and_then(client).is_some());
    }
}
