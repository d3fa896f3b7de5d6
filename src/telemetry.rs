//! What the operator sees: logs and counters. Never a key, a prompt or a reply.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing_subscriber::filter::LevelFilter;

use crate::billing::{Credits, Usage};
use crate::config::{Config, LogFormat};
use crate::proxy::health::Trouble;
use crate::store::{Backlog, Outcome, Source};
use crate::wire::Endpoint;

/// Starts logging to standard error, once for the process.
///
/// A panic is logged by its place alone: its message could hold what a client sent.
pub fn start(config: &Config) {
    let level = config.log_level.parse().unwrap_or(LevelFilter::INFO);
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second start in one process keeps the first: tests start several servers.
    match config.log_format {
        LogFormat::Text => {
            use std::io::IsTerminal as _;
            builder.with_ansi(std::io::stderr().is_terminal()).try_init().ok();
        }
        LogFormat::Json => {
            builder.json().flatten_event(true).try_init().ok();
        }
    }
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
        tracing::error!(place = place.unwrap_or_default(), "a task panicked");
    }));
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReply {
    endpoint: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByClass {
    model: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByModel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByEnding {
    outcome: &'static str,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByUpstream {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTrouble {
    upstream: String,
    trouble: &'static str,
}

/// Counters, for `/metrics`. None is labelled by account or key: there are too many.
#[derive(Default)]
pub struct Metrics {
    /// Requests that were admitted and are not settled.
    pub in_flight: Gauge,
    replies: Family<ByReply, Counter>,
    models: Named<OfModel>,
    settled: Family<ByEnding, Counter>,
    upstream_requests: Named<AtomicU64>,
    upstream_failures: Family<ByTrouble, Counter>,
}

/// What is counted by a name that is not known before. A label of a [`Family`] owns its name,
/// and so would be made for each request.
struct Named<T>(RwLock<HashMap<String, T>>);

/// What is counted of a model.
#[derive(Default)]
struct OfModel {
    input: AtomicU64,
    cached: AtomicU64,
    cache_creation: AtomicU64,
    output: AtomicU64,
    charged_nano: AtomicU64,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T: Default> Named<T> {
    fn count(&self, name: &str, count: impl FnOnce(&T)) {
        if let Some(known) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return count(known);
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        count(all.entry(name.into()).or_default());
    }

    fn each(&self, mut show: impl FnMut(&str, &T)) {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().for_each(|(name, counts)| show(name, counts));
    }
}

impl Metrics {
    /// A reply began.
    pub fn replied(&self, endpoint: Option<Endpoint>, status: StatusCode) {
        let endpoint = endpoint.map_or("other", endpoint_name);
        self.replies.get_or_create(&ByReply { endpoint, status: status.as_u16() }).inc();
    }

    /// A request was priced.
    pub fn settled(
        &self,
        model: &str,
        outcome: Outcome,
        source: Source,
        usage: &Usage,
        charge: Credits,
    ) {
        let cache_creation = usage.cache_creation_5m.saturating_add(usage.cache_creation_1h);
        self.models.count(model, |counts| {
            let add = |counter: &AtomicU64, count| counter.fetch_add(count, Ordering::Relaxed);
            add(&counts.input, usage.input);
            add(&counts.cached, usage.cached);
            add(&counts.cache_creation, cache_creation);
            add(&counts.output, usage.output);
            add(&counts.charged_nano, charge.nano().unsigned_abs());
        });
        let ending = ByEnding { outcome: outcome_name(outcome), source: source_name(source) };
        self.settled.get_or_create(&ending).inc();
    }

    /// A request was sent to an upstream, which failed if there is `trouble`.
    pub fn upstream_tried(&self, upstream: &str, trouble: Option<Trouble>) {
        self.upstream_requests.count(upstream, |count| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        if let Some(trouble) = trouble {
            self.upstream_failed(upstream, trouble);
        }
    }

    /// An upstream did not end a reply, of a request that is counted already.
    pub fn upstream_cut_off(&self, upstream: &str) {
        self.upstream_failed(upstream, Trouble::CutOff);
    }

    fn upstream_failed(&self, upstream: &str, trouble: Trouble) {
        let label = ByTrouble { upstream: upstream.into(), trouble: trouble.name() };
        self.upstream_failures.get_or_create(&label).inc();
    }

    /// All of them in Prometheus' text format; with what waits in the journal, if there is one.
    pub fn text(&self, backlog: Option<&Backlog>) -> String {
        let mut registry = Registry::with_prefix("farebox");
        registry.register(
            "requests_in_flight",
            "Requests admitted and not settled",
            self.in_flight.clone(),
        );
        registry.register("replies", "Replies by endpoint and status", self.replies.clone());
        let tokens = Family::<ByClass, Counter>::default();
        let charged_nano = Family::<ByModel, Counter>::default();
        self.models.each(|model, counts| {
            let OfModel { input, cached, cache_creation, output, .. } = counts;
            for (class, count) in [
                ("input", input),
                ("cached_input", cached),
                ("cache_creation", cache_creation),
                ("output", output),
            ] {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let label = ByClass { model: model.into(), class };
                    tokens.get_or_create(&label).inc_by(count);
                }
            }
            let charged = counts.charged_nano.load(Ordering::Relaxed);
            charged_nano.get_or_create(&ByModel { model: model.into() }).inc_by(charged);
        });
        registry.register("tokens", "Tokens settled, by model and class", tokens);
        registry.register(
            "charged_nano_credits",
            "Charges by model, in nano-credits",
            charged_nano,
        );
        registry.register(
            "settled",
            "Settlements by outcome and by the source of their counts",
            self.settled.clone(),
        );
        let upstream_requests = Family::<ByUpstream, Counter>::default();
        self.upstream_requests.each(|upstream, count| {
            let label = ByUpstream { upstream: upstream.into() };
            upstream_requests.get_or_create(&label).inc_by(count.load(Ordering::Relaxed));
        });
        registry.register("upstream_requests", "Requests sent to each upstream", upstream_requests);
        registry.register(
            "upstream_failures",
            "Those that failed, by what was the trouble",
            self.upstream_failures.clone(),
        );
        if let Some(backlog) = backlog {
            register_backlog(&mut registry, backlog);
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        encode(&mut text, &registry).ok();
        text
    }
}

fn register_backlog(registry: &mut Registry, backlog: &Backlog) {
    let gauge = |count: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(count.try_into().unwrap_or(i64::MAX));
        gauge
    };
    let counter = |count: u64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(count);
        counter
    };
    registry.register(
        "journal_pending",
        "Operations in the journal that the store has not taken",
        gauge(backlog.pending),
    );
    registry.register(
        "journal_halted",
        "Whether nothing is admitted because the store or the journal cannot be written",
        gauge(backlog.halted.is_some().into()),
    );
    registry.register(
        "journal_recovered",
        "Operations that the store had lost and was sent again",
        counter(backlog.recovered),
    );
    registry.register(
        "journal_refused",
        "Operations of the journal that the store refused for good",
        counter(backlog.refused),
    );
}

const fn endpoint_name(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "chat",
        Endpoint::Completions => "completions",
        Endpoint::Embeddings => "embeddings",
        Endpoint::Responses => "responses",
        Endpoint::Messages => "messages",
        Endpoint::CountTokens => "count_tokens",
        Endpoint::Generate => "generate",
        Endpoint::StreamGenerate => "stream_generate",
    }
}

const fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::ClientClosed => "client_closed",
        Outcome::UpstreamError => "upstream_error",
        Outcome::UpstreamCut => "upstream_cut",
        Outcome::Abandoned => "abandoned",
    }
}

const fn source_name(source: Source) -> &'static str {
    match source {
        Source::Reported => "reported",
        Source::Drained => "drained",
        Source::Estimated => "estimated",
        Source::None => "none",
    }
}
