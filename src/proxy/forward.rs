//! Sends a request upstream: built, never copied, to an address of the configuration alone.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::error::Error;
use super::health::Health;
use crate::config::{self, Config};
use crate::net::{Guarded, is_link_local};
use crate::wire::{Endpoint, Kind};

/// A provider that is ready to be called.
pub struct Upstream {
    /// As configured.
    pub config: config::Upstream,
    client: Client<HttpsConnector<HttpConnector<Guarded>>, Full<Bytes>>,
    /// What every request carries: the operator's headers and the credential, in the way of
    /// the provider's own API and in that of its chat completions.
    headers: HeaderMap,
    chat_headers: HeaderMap,
    /// The addresses of endpoints whose path does not name the model.
    addresses: HashMap<Endpoint, Uri>,
    first_byte_timeout: Duration,
    /// Longest pause inside a reply.
    pub idle_timeout: Duration,
    /// How it is doing.
    pub health: Health,
}

/// What a client may add for Anthropic: the version of the API and beta features.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// `anthropic-version`, if it is a date.
    pub version: Option<HeaderValue>,
    /// `anthropic-beta`, those of the operator's list.
    pub betas: Option<HeaderValue>,
}

impl Extras {
    /// Reads what a client may say; all else of its headers is dropped.
    pub fn read(headers: &HeaderMap, config: &Config) -> Self {
        let version = headers.get("anthropic-version").filter(|value| {
            value.len() == 10 && value.as_bytes().iter().all(|b| b.is_ascii_digit() || *b == b'-')
        });
        let betas: Vec<&str> = headers
            .get_all("anthropic-beta")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|beta| config.anthropic_betas.iter().any(|allowed| allowed == beta))
            .collect();
        let betas = Some(betas.join(",")).filter(|betas| !betas.is_empty());
        Self { version: version.cloned(), betas: betas.and_then(|betas| betas.parse().ok()) }
    }
}

/// Endpoints whose path does not name the model.
const FIXED: [Endpoint; 6] = [
    Endpoint::Chat,
    Endpoint::Completions,
    Endpoint::Embeddings,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::CountTokens,
];

const DEFAULT_ANTHROPIC_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("farebox/", env!("CARGO_PKG_VERSION")));

impl Upstream {
    /// Prepares a provider. Nothing is connected yet.
    pub fn new(upstream: &config::Upstream, config: &Config) -> Self {
        let mut http = HttpConnector::new_with_resolver(Guarded::new(is_not_metadata));
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(upstream.connect_timeout.unwrap_or(config.connect_timeout)));
        let https = hyper_rustls::HttpsConnectorBuilder::new().with_webpki_roots().https_or_http();
        let https = if upstream.http2 {
            https.enable_all_versions().wrap_connector(http)
        } else {
            https.enable_http1().wrap_connector(http)
        };
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            // Below the keep-alive of every provider, so that a pooled connection is rarely stale.
            .pool_idle_timeout(Duration::from_secs(20))
            .build(https);
        let mut headers = HeaderMap::new();
        for (name, value) in &upstream.headers {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) {
                headers.insert(name, value);
            }
        }
        let mut chat_headers = headers.clone();
        if let Some(key) = &upstream.api_key {
            let secret = |text: String| {
                text.parse::<HeaderValue>().ok().map(|mut value| {
                    value.set_sensitive(true);
                    value
                })
            };
            let bearer = secret(format!("Bearer {}", key.expose()));
            let (name, value) = match upstream.kind {
                Kind::Openai => (AUTHORIZATION, bearer.clone()),
                Kind::Anthropic => {
                    (HeaderName::from_static("x-api-key"), secret(key.expose().into()))
                }
                Kind::Gemini => {
                    (HeaderName::from_static("x-goog-api-key"), secret(key.expose().into()))
                }
            };
            headers.extend(value.map(|value| (name, value)));
            chat_headers.extend(bearer.map(|value| (AUTHORIZATION, value)));
        }
        let addresses = FIXED
            .into_iter()
            .filter_map(|endpoint| Some((endpoint, upstream.url(endpoint, "")?.parse().ok()?)))
            .collect();
        Self {
            config: upstream.clone(),
            client,
            headers,
            chat_headers,
            addresses,
            first_byte_timeout: upstream.first_byte_timeout.unwrap_or(config.first_byte_timeout),
            idle_timeout: upstream.idle_timeout.unwrap_or(config.idle_timeout),
            health: Health::default(),
        }
    }

    /// Whether it speaks an endpoint.
    pub fn serves(&self, endpoint: Endpoint) -> bool {
        self.config.url(endpoint, "m").is_some()
    }

    /// Sends a request and waits for the head of the reply. `stream`: an event stream is
    /// expected.
    ///
    /// # Errors
    ///
    /// [`Failure`], which says whether the upstream may have seen the request.
    pub async fn send(
        &self,
        endpoint: Endpoint,
        model: &str,
        body: Bytes,
        stream: bool,
        extras: &Extras,
    ) -> Result<Response<Incoming>, Failure> {
        let request =
            self.request(endpoint, model, body, stream, extras).ok_or(Failure::Unserved)?;
        match tokio::time::timeout(self.first_byte_timeout, self.client.request(request)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) if error.is_connect() => Err(Failure::Unsent(error)),
            Ok(Err(error)) => Err(Failure::Uncertain(error)),
            Err(_) => Err(Failure::Timeout),
        }
    }

    fn request(
        &self,
        endpoint: Endpoint,
        model: &str,
        body: Bytes,
        stream: bool,
        extras: &Extras,
    ) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = match self.addresses.get(&endpoint) {
            Some(address) => address.clone(),
            None => {
                let url = self.config.url(endpoint, model)?;
                let join = if url.contains('?') { '&' } else { '?' };
                let sse = endpoint == Endpoint::StreamGenerate && stream;
                if sse { format!("{url}{join}alt=sse").parse() } else { url.parse::<Uri>() }.ok()?
            }
        };
        let own_api = endpoint.kind() == self.config.kind;
        let headers = request.headers_mut();
        *headers = if own_api { self.headers.clone() } else { self.chat_headers.clone() };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let accept = if stream { "text/event-stream" } else { "application/json" };
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        // The meter must be able to read the reply as it passes.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(USER_AGENT, AGENT);
        if own_api && self.config.kind == Kind::Anthropic {
            let version = extras.version.clone().unwrap_or(DEFAULT_ANTHROPIC_VERSION);
            headers.insert("anthropic-version", version);
            if let Some(betas) = &extras.betas {
                headers.insert("anthropic-beta", betas.clone());
            }
        }
        Some(request)
    }
}

/// Whatever a name (mistyped, or rebound) resolves to, metadata services of clouds are never
/// called.
fn is_not_metadata(ip: IpAddr) -> bool {
    !is_link_local(ip)
}

/// Why there is no reply.
#[derive(Debug)]
pub enum Failure {
    /// No connection: the upstream has seen nothing, another may be tried.
    Unsent(hyper_util::client::legacy::Error),
    /// The request went out and nothing came back: it may have been billed, so no other
    /// upstream is tried.
    Uncertain(hyper_util::client::legacy::Error),
    /// As uncertain: no byte within the time allowed.
    Timeout,
    /// This kind of upstream has no such endpoint.
    Unserved,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unsent(error) | Failure::Uncertain(error) => Self::UpstreamUnreachable(error),
            Failure::Timeout => Self::UpstreamTimeout,
            Failure::Unserved => Self::UpstreamInvalid("no such endpoint"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_clients_headers_only_the_version_and_listed_betas_pass() {
        let mut headers = HeaderMap::new();
        headers.insert("anthropic-version", "2026-10-21".parse().unwrap());
        headers
            .insert("anthropic-beta", "fast-mode-2026-02-01, compact-2026-01-12".parse().unwrap());
        let extras = Extras::read(&headers, &Config::default());
        assert_eq!(extras.version.unwrap(), "2026-10-21");
        assert_eq!(extras.betas.unwrap(), "compact-2026-01-12");
        headers.insert("anthropic-version", "2026-10-21\tx".parse().unwrap());
        assert!(Extras::read(&headers, &Config::default()).version.is_none());
    }
}
