//! Sends a request upstream: built, never copied, to an address of the configuration alone.

use std::collections::HashMap;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST,
    TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::Body as _;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::error::Error;
use super::health::Health;
use crate::config::{self, Config};
use crate::wire::{Endpoint, Kind};
use connect::Connector;
use pool::{IDLE_TIMEOUT, Pool};

mod connect;
mod connection;
mod pool;

/// A provider that is ready to be called.
pub struct Upstream {
    /// As configured.
    pub config: config::Upstream,
    client: Http,
    /// What every request carries: the operator's headers and the credential, in the way of
    /// the provider's own API and in that of its chat completions.
    headers: HeaderMap,
    chat_headers: HeaderMap,
    /// The addresses of endpoints whose path does not name the model.
    addresses: HashMap<Endpoint, Uri>,
    /// Heads of requests to these, up to the length of the body, where a client adds nothing;
    /// `true` for those that ask for a stream.
    heads: HashMap<(Endpoint, bool), Vec<u8>>,
    serves: Vec<Endpoint>,
    first_byte_timeout: Duration,
    /// Longest pause inside a reply.
    pub idle_timeout: Duration,
    /// How it is doing.
    pub health: Health,
}

/// How an upstream is spoken to.
enum Http {
    /// HTTP/1, by ourselves: hyper's client costs a task and a channel more for each frame.
    One(Arc<Pool>),
    /// What the peer prefers, HTTP/2 included.
    Any(Box<Client<Connector, Full<Bytes>>>),
}

/// The body of a reply.
pub enum Incoming {
    /// From a connection of ours.
    One(connection::Incoming),
    /// From hyper's client.
    Any(hyper::body::Incoming),
}

/// Something went wrong between us and an upstream; it is only ever logged.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

impl Incoming {
    /// The next bytes.
    pub fn poll_data(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Bytes, Cause>>> {
        let body = match self {
            Self::One(body) => return body.poll_data(cx).map_err(Into::into),
            Self::Any(body) => body,
        };
        loop {
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                // Trailers: nothing in these APIs needs them.
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
            }
        }
    }
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
    fn is_empty(&self) -> bool {
        self.version.is_none() && self.betas.is_none()
    }

    /// Reads what a client may say; all else of its headers is dropped.
    pub fn read(headers: &HeaderMap, config: &Config) -> Self {
        let version = headers.get(VERSION).filter(|value| {
            value.len() == 10 && value.as_bytes().iter().all(|b| b.is_ascii_digit() || *b == b'-')
        });
        let betas: Vec<&str> = headers
            .get_all(BETA)
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

const ENDPOINTS: [Endpoint; 8] = [
    Endpoint::Chat,
    Endpoint::Completions,
    Endpoint::Embeddings,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::CountTokens,
    Endpoint::Generate,
    Endpoint::StreamGenerate,
];

/// Headers that only we write; the operator's are for what else a provider wants.
const OURS: [HeaderName; 7] = [
    CONTENT_TYPE,
    ACCEPT,
    ACCEPT_ENCODING,
    USER_AGENT,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    CONNECTION,
];

const VERSION: HeaderName = HeaderName::from_static("anthropic-version");
const BETA: HeaderName = HeaderName::from_static("anthropic-beta");
const DEFAULT_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("farebox/", env!("CARGO_PKG_VERSION")));

impl Upstream {
    /// Prepares a provider. Nothing is connected yet.
    pub fn new(upstream: &config::Upstream, config: &Config) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in &upstream.headers {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse())
                && !OURS.contains(&name)
            {
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
        let url = |endpoint| upstream.url(endpoint, "m");
        let addresses: HashMap<_, Uri> = ENDPOINTS
            .into_iter()
            .filter(|endpoint| !names_model(*endpoint))
            .filter_map(|endpoint| Some((endpoint, url(endpoint)?.parse().ok()?)))
            .collect();
        let mut built = Self {
            config: upstream.clone(),
            client: Http::new(upstream, config),
            headers,
            chat_headers,
            addresses,
            heads: HashMap::new(),
            serves: ENDPOINTS.into_iter().filter(|endpoint| url(*endpoint).is_some()).collect(),
            first_byte_timeout: upstream.first_byte_timeout.unwrap_or(config.first_byte_timeout),
            idle_timeout: upstream.idle_timeout.unwrap_or(config.idle_timeout),
            health: Health::default(),
        };
        for (endpoint, uri) in &built.addresses {
            for stream in [false, true] {
                let head = built.open_head(uri, *endpoint, stream, &Extras::default());
                built.heads.insert((*endpoint, stream), head);
            }
        }
        built
    }

    /// Whether it speaks an endpoint.
    pub fn serves(&self, endpoint: Endpoint) -> bool {
        self.serves.contains(&endpoint)
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
        let reply = async {
            match &self.client {
                Http::One(pool) => {
                    let head = self.head(endpoint, model, body.len(), stream, extras)?;
                    pool.request(head, body).await.map(|reply| reply.map(Incoming::One))
                }
                Http::Any(client) => {
                    let uri = self.address(endpoint, model, stream).ok_or(Failure::Unserved)?;
                    let mut request = Request::new(Full::new(body));
                    *request.method_mut() = Method::POST;
                    let headers = request.headers_mut();
                    self.each_header(endpoint, stream, extras, |name, value| {
                        headers.insert(name, value.clone());
                    });
                    *request.uri_mut() = uri;
                    match Box::pin(client.request(request)).await {
                        Ok(reply) => Ok(reply.map(Incoming::Any)),
                        Err(error) if error.is_connect() => Err(Failure::Unsent(error.into())),
                        Err(error) => Err(Failure::Uncertain(error.into())),
                    }
                }
            }
        };
        tokio::time::timeout(self.first_byte_timeout, reply).await.unwrap_or(Err(Failure::Timeout))
    }

    /// Closes connections of this worker that have waited too long for a request.
    pub fn sweep(&self) {
        if let Http::One(pool) = &self.client {
            pool.sweep();
        }
    }

    /// The address of an endpoint, for a model that may be named in its path.
    fn address(&self, endpoint: Endpoint, model: &str, stream: bool) -> Option<Uri> {
        if let Some(address) = self.addresses.get(&endpoint) {
            return Some(address.clone());
        }
        let url = self.config.url(endpoint, model)?;
        let join = if url.contains('?') { '&' } else { '?' };
        let sse = endpoint == Endpoint::StreamGenerate && stream;
        if sse { format!("{url}{join}alt=sse").parse() } else { url.parse() }.ok()
    }

    /// The headers of a request, but for those that say where it goes and where it ends.
    fn each_header(
        &self,
        endpoint: Endpoint,
        stream: bool,
        extras: &Extras,
        mut put: impl FnMut(HeaderName, &HeaderValue),
    ) {
        let own_api = endpoint.kind() == self.config.kind;
        let speaks_messages = own_api && self.config.kind == Kind::Anthropic;
        for (name, value) in if own_api { &self.headers } else { &self.chat_headers } {
            if !(speaks_messages && *name == VERSION) {
                put(name.clone(), value);
            }
        }
        put(CONTENT_TYPE, &HeaderValue::from_static("application/json"));
        let accept = if stream { "text/event-stream" } else { "application/json" };
        put(ACCEPT, &HeaderValue::from_static(accept));
        // The meter must be able to read the reply as it passes.
        put(ACCEPT_ENCODING, &HeaderValue::from_static("identity"));
        put(USER_AGENT, &AGENT);
        if speaks_messages {
            put(VERSION, extras.version.as_ref().unwrap_or(&DEFAULT_VERSION));
            if let Some(betas) = &extras.betas {
                put(BETA, betas);
            }
        }
    }

    /// A request's head, as HTTP/1 writes it.
    fn head(
        &self,
        endpoint: Endpoint,
        model: &str,
        body_bytes: usize,
        stream: bool,
        extras: &Extras,
    ) -> Result<Bytes, Failure> {
        let built = self.heads.get(&(endpoint, stream));
        let mut head = match built.filter(|_| extras.is_empty()) {
            Some(built) => {
                let mut head = Vec::with_capacity(built.len() + 40);
                head.extend_from_slice(built);
                head
            }
            None => {
                let uri = self.address(endpoint, model, stream).ok_or(Failure::Unserved)?;
                self.open_head(&uri, endpoint, stream, extras)
            }
        };
        // Writing to memory does not fail.
        let _ = write!(head, "content-length: {body_bytes}\r\n\r\n");
        Ok(head.into())
    }

    /// The beginning of a head, without what depends on the body.
    fn open_head(&self, uri: &Uri, endpoint: Endpoint, stream: bool, extras: &Extras) -> Vec<u8> {
        let mut head = Vec::with_capacity(512);
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        head.extend_from_slice(format!("POST {target} HTTP/1.1\r\n").as_bytes());
        let mut put = |name: &str, value: &[u8]| {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        };
        if !self.headers.contains_key(HOST) {
            put("host", host(uri).as_bytes());
        }
        self.each_header(endpoint, stream, extras, |name, value| {
            put(name.as_str(), value.as_bytes());
        });
        head
    }
}

impl Http {
    fn new(upstream: &config::Upstream, config: &Config) -> Self {
        let timeout = upstream.connect_timeout.unwrap_or(config.connect_timeout);
        match upstream.base_url.parse() {
            Ok(origin) if !upstream.http2 => Self::One(Arc::new(Pool::new(origin, timeout))),
            _ => Self::Any(Box::new(
                Client::builder(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .pool_timer(TokioTimer::new())
                    .pool_idle_timeout(IDLE_TIMEOUT)
                    .build(connect::connector(timeout, true)),
            )),
        }
    }
}

/// Whether the path of an endpoint names the model.
const fn names_model(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Generate | Endpoint::StreamGenerate)
}

/// The host that a request is for, with its port where that is not the usual one.
fn host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    match uri.port_u16() {
        Some(80) if uri.scheme_str() == Some("http") => host.to_owned(),
        Some(443) if uri.scheme_str() == Some("https") => host.to_owned(),
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Why there is no reply.
#[derive(Debug)]
pub enum Failure {
    /// No connection: the upstream has seen nothing, another may be tried.
    Unsent(Cause),
    /// The request went out and nothing came back: it may have been billed, so no other
    /// upstream is tried.
    Uncertain(Cause),
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
