//! The proxy: one request from the door to its debit.
//!
//! [`serve`] calls the steps in order; each step is a file of this folder.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::alerts::Alerts;
use crate::billing::price::Model;
use crate::config::{self, Config};
use crate::prices::Prices;
use crate::store::{Attribution, Candidate, Key, Store};
use crate::telemetry::Metrics;
use crate::wire::{Endpoint, attribution, request};
use accept::Route;
use body::Body;
use error::Error;
use forward::{Extras, Upstream};
use refused::Refusals;
use settle::{Bill, Opening};
use survive::Surviving;

mod accept;
mod answer;
mod authenticate;
mod body;
mod error;
mod forward;
pub mod health;
mod limit;
mod listen;
mod meter;
mod price;
mod refusal;
pub mod refused;
mod reply;
mod route;
mod settle;
mod survive;
mod worker;

pub use authenticate::may_call;
pub use listen::listen;

/// A reply to a client.
pub type Reply = Response<Body>;

/// The status on rows of requests whose client left before there was a reply.
const CLIENT_CLOSED: u16 = 499;

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest pause in a body that is only read to be thrown away.
const LINGER: Duration = Duration::from_secs(2);

/// What every request needs.
pub struct Context {
    /// Settings.
    pub config: Config,
    /// Where balances live.
    pub store: Arc<dyn Store>,
    /// What models cost.
    pub prices: Arc<Prices>,
    /// Counters for the operator.
    pub metrics: Metrics,
    /// Who is told when something has crossed its limit.
    pub alerts: Arc<Alerts>,
    /// What was refused, by account.
    pub refusals: Arc<Refusals>,
    /// Work that outlives its client; the process waits for it.
    pub tasks: TaskTracker,
    /// The end of patience: streams are ended and settled from what is known.
    pub stop: CancellationToken,
    upstreams: HashMap<String, Upstream>,
    drains: Semaphore,
    pending: Semaphore,
    runtime: tokio::runtime::Handle,
    gate: request::Settings,
    bad_keys: limit::PerMinute<IpAddr>,
    counted: limit::PerMinute<String>,
}

impl Context {
    /// Prepares the upstreams; connects to nothing yet. Call it inside the runtime that serves.
    pub fn new(config: Config, store: Arc<dyn Store>, prices: Arc<Prices>) -> Self {
        let upstreams = config
            .upstreams
            .iter()
            .map(|upstream| (upstream.name.clone(), Upstream::new(upstream, &config)))
            .collect();
        Self {
            alerts: Arc::new(Alerts::new(&config, Arc::clone(&store))),
            store,
            prices,
            metrics: Metrics::default(),
            refusals: Arc::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            upstreams,
            runtime: tokio::runtime::Handle::current(),
            drains: Semaphore::new(config.max_drains),
            pending: Semaphore::new(config.max_pending),
            gate: request::Settings {
                max_choices: config.max_choices,
                heartbeat_prompts: config.heartbeat_prompts.clone(),
            },
            bad_keys: limit::PerMinute::new(config.auth_failures_per_minute),
            counted: limit::PerMinute::new(config.count_tokens_per_minute),
            config,
        }
    }

    /// Starts work that outlives its client, on the worker that did it so far. Also callable
    /// where no runtime is entered, as in a drop while the process ends.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        match tokio::runtime::Handle::try_current() {
            Ok(worker) if worker::place() > 0 => self.tasks.spawn_on(work, &worker),
            _ => self.tasks.spawn_on(work, &self.runtime),
        };
    }

    /// How the upstreams are doing, in the order of the configuration.
    pub fn health(&self) -> Vec<(&config::Upstream, health::Report)> {
        let upstreams = self.config.upstreams.iter();
        let known = upstreams.filter_map(|upstream| self.upstreams.get(&upstream.name));
        known.map(|upstream| (&upstream.config, upstream.health.report())).collect()
    }

    /// An upstream did not end a reply that it had begun.
    fn upstream_cut_off(&self, name: &str) {
        if let Some(upstream) = self.upstreams.get(name) {
            upstream.health.cut_off();
            self.metrics.upstream_cut_off(name);
        }
    }

    /// Whether a model has an upstream that is configured.
    pub fn is_callable(&self, model: &Model) -> bool {
        model.upstreams.iter().any(|(name, _)| self.upstreams.contains_key(name))
    }
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// In which shape a failure is told.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    endpoint: Option<Endpoint>,
    stream: bool,
}

/// The life of a request. Every failure becomes a reply in `error`.
pub fn serve(
    ctx: Arc<Context>,
    request: Request<Incoming>,
    peer: IpAddr,
) -> impl Future<Output = Reply> {
    let (head, mut body) = request.into_parts();
    // A block, because the arguments of an `async fn` take their room twice, and what is larger
    // than a kilobyte takes `malloc` many times as long.
    async move {
        let id = new_id();
        let mut shape = Shape::default();
        let (reply, is_coming) = match answer(&ctx, &id, &head, &mut body, peer, &mut shape).await {
            Ok(reply) => (reply, true),
            Err(error) => {
                let is_coming = !matches!(error, Error::BodyTimeout | Error::BodyCut(_));
                (error.into_reply(shape.endpoint, shape.stream, &id), is_coming)
            }
        };
        // A client that waits for a 100 does not send what was refused.
        if is_coming && !body.is_end_stream() && !head.headers.contains_key(header::EXPECT) {
            tokio::spawn(discard(body, ctx.config.max_body_bytes));
        }
        finish(&ctx, reply, shape.endpoint, id)
    }
}

/// The reply to one request too many.
fn shed(ctx: &Context) -> Reply {
    let id = new_id();
    finish(ctx, Error::Overloaded.into_reply(None, false, &id), None, id)
}

fn new_id() -> String {
    format!("req_{}", ulid::Ulid::generate())
}

/// Counts a reply and gives it its id.
fn finish(ctx: &Context, mut reply: Reply, endpoint: Option<Endpoint>, id: String) -> Reply {
    ctx.metrics.replied(endpoint, reply.status());
    if let Ok(id) = HeaderValue::from_maybe_shared(Bytes::from(id)) {
        // Anthropic's SDKs read `request-id`, OpenAI's `x-request-id`.
        if matches!(endpoint, Some(Endpoint::Messages | Endpoint::CountTokens)) {
            reply.headers_mut().insert(REQUEST_ID, id.clone());
        }
        reply.headers_mut().insert(X_REQUEST_ID, id);
    }
    reply
}

/// Reads on in a body that nobody needs. A client that is still sending it would otherwise
/// see a broken connection instead of the reply. What is too much or too slow is broken off.
async fn discard(mut body: Incoming, limit_bytes: usize) {
    let mut left = limit_bytes;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(LINGER, body.frame()).await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => break,
        }
    }
}

async fn answer(
    ctx: &Arc<Context>,
    id: &str,
    head: &Parts,
    body: &mut Incoming,
    peer: IpAddr,
    shape: &mut Shape,
) -> Result<Reply, Error> {
    let started = Instant::now();
    let route = accept::route(head)?;
    shape.endpoint = route.endpoint();
    accept::inspect(head, &route)?;
    let key = authenticate::authenticate(ctx, &head.headers, peer).await?;
    let (endpoint, path_model) = match route {
        Route::Call(endpoint, path_model) => (endpoint, path_model),
        Route::Models => return Ok(answer::models(ctx, &key)),
        Route::Model(name) => return answer::model(ctx, &key, &name),
        Route::Me => return answer::me(ctx, &key).await,
    };
    let body = read(ctx, body).await?;
    let call = understand(ctx, &key, id, head, endpoint, path_model.as_deref(), body, shape)?;
    route::check_owner(ctx, &key, &call.request).await?;
    if endpoint == Endpoint::CountTokens {
        return Box::pin(reply::count_tokens(ctx, &key, &call)).await;
    }
    let bill = admit(ctx, &key, &head.headers, &call, started).await?;
    let client = bill.client();
    let exchange = Surviving::of_client(ctx, client, exchange(Arc::clone(ctx), call, bill));
    tokio::select! {
        biased;
        reply = exchange => reply,
        // Nothing has been said to the client yet; dropped, the bill settles itself.
        () = ctx.stop.cancelled() => Err(Error::Draining),
    }
}

/// Reads what is asked for, and finds where it goes.
#[expect(clippy::too_many_arguments, reason = "all that is known of the request at this step")]
fn understand(
    ctx: &Context,
    key: &Key,
    id: &str,
    head: &Parts,
    endpoint: Endpoint,
    path_model: Option<&str>,
    body: Bytes,
    shape: &mut Shape,
) -> Result<Box<Call>, Error> {
    let mut request = request::read(endpoint, path_model, body, &ctx.gate)?;
    if endpoint == Endpoint::StreamGenerate {
        // Without `alt=sse` the reply is one JSON array.
        request.stream = head.uri.query() == Some("alt=sse");
    }
    shape.stream = request.stream;
    let target = route::find(ctx, key, endpoint, &request)?;
    let extras = Extras::read(&head.headers, &ctx.config);
    Ok(Box::new(Call { id: id.to_owned(), endpoint, extras, request, target }))
}

/// A request that is understood and has somewhere to go.
struct Call {
    id: String,
    endpoint: Endpoint,
    request: request::Request,
    target: route::Target,
    extras: Extras,
}

/// Reads a body, bounded by the bytes that arrive and not by what is declared.
async fn read(ctx: &Context, body: &mut Incoming) -> Result<Bytes, Error> {
    let limit_bytes = ctx.config.max_body_bytes;
    if body.size_hint().lower() > limit_bytes as u64 {
        return Err(Error::BodyTooLarge { limit_bytes });
    }
    let arriving = async {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        loop {
            let frame = tokio::time::timeout(ctx.config.body_idle_timeout, body.frame());
            let data = match frame.await.map_err(|_| Error::BodyTimeout)? {
                None => break,
                Some(frame) => frame.map_err(Error::BodyCut)?.into_data().unwrap_or_default(),
            };
            if first.len() + all.len() + data.len() > limit_bytes {
                return Err(Error::BodyTooLarge { limit_bytes });
            }
            // Most bodies are one frame.
            if first.is_empty() && all.is_empty() {
                first = apart(data);
            } else {
                if all.is_empty() {
                    let expected = usize::try_from(body.size_hint().lower()).unwrap_or_default();
                    all.reserve(first.len() + data.len() + expected);
                    all.extend_from_slice(&std::mem::take(&mut first));
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    };
    tokio::time::timeout(ctx.config.body_timeout, arriving).await.map_err(|_| Error::BodyTimeout)?
}

/// Takes a place in the account's budget, or refuses. Nothing is sent upstream before this.
async fn admit(
    ctx: &Arc<Context>,
    key: &Key,
    headers: &HeaderMap,
    call: &Call,
    started: Instant,
) -> Result<Bill, Error> {
    let how = price::ask(ctx, call);
    let candidate = Candidate { id: call.id.clone(), model: call.target.model.name.clone() };
    let admitted = ctx.store.admit(key, candidate, how).await.map_err(Error::Ledger)?;
    admitted.map_err(|refused| {
        ctx.refusals.add(&key.account, &refused, now_ms());
        Error::refused(refused, key, &ctx.config.billing_url)
    })?;
    let request = &call.request;
    Ok(Bill::open(
        ctx,
        Opening {
            id: call.id.clone(),
            account: key.account.clone(),
            key: key.id.clone(),
            endpoint: call.endpoint,
            model: Arc::clone(&call.target.model),
            price_version: call.target.price_version.clone(),
            attribution: attribute(headers, request, key),
            stream: request.stream,
            asks_1h_cache: request.asks_1h_cache,
            body: request.body().clone(),
            started,
        },
    ))
}

/// A body to keep while the reply streams. A small one is copied, because it lies in the
/// buffer of its connection, which is many times as large and would have to be made anew.
fn apart(body: Bytes) -> Bytes {
    const SMALL_BYTES: usize = 16 << 10;
    if body.len() < SMALL_BYTES { Bytes::copy_from_slice(&body) } else { body }
}

/// Whom and what a request was for: its headers, its body, and the key's own tag.
fn attribute(headers: &HeaderMap, request: &request::Request, key: &Key) -> Attribution {
    let given = attribution::from_headers(headers);
    let mut found = attribution::merge(given, request.attribution.clone());
    found.tag = found.tag.or_else(|| key.tag.clone());
    // A key or header of their own mark background work more surely than any prompt.
    if let Some(tag) = found.tag.as_deref().filter(|tag| matches!(*tag, "heartbeat" | "cron")) {
        found.origin = Some(tag.to_owned());
    }
    found
}

/// Sends the request upstream and turns what comes back into the reply.
async fn exchange(ctx: Arc<Context>, call: Box<Call>, mut bill: Bill) -> Result<Reply, Error> {
    let client = bill.client();
    let sent = |upstream: &str| bill.sent(upstream);
    let forwarded = route::forward(&ctx, &call, sent, || !client.is_gone()).await;
    reply::pass(&ctx, &call, forwarded, bill).await
}
