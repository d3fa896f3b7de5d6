//! Every ending of a request becomes one settlement here.
//!
//! A [`Bill`] is opened when a request is admitted. It is settled once; one that is dropped
//! before it was sent gives its place back, and one that is dropped after (a bug, a panic, a
//! limit that cut the work off) is charged what can be known. Nothing ends silently.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::Error;
use super::survive::Surviving;
use super::{Context, price};
use crate::billing::price::Model;
use crate::billing::{Credits, Usage};
use crate::store::{AccountId, Attribution, Outcome, Settled, Settlement, Source, StoreError};
use crate::wire::meter::Reading;
use crate::wire::{Endpoint, estimate};

/// How the reply ended, as far as the upstream is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It came whole.
    Whole,
    /// The upstream failed: it cut the connection, stalled, or sent what is no reply.
    Upstream,
    /// We stopped reading: the client had left and a limit was reached, or we are stopping.
    Ours,
}

/// What is known when a request ends.
pub struct End {
    /// How the reply ended.
    pub ending: Ending,
    /// What the reply said.
    pub reading: Reading,
    /// The output as far as it is kept, and its length in bytes.
    pub output: (String, u64),
    /// The status that the client got, or would have got.
    pub status: u16,
}

impl End {
    /// The upstream gave no reply that could be read.
    pub fn failed(status: u16) -> Self {
        Self {
            ending: Ending::Upstream,
            reading: Reading::default(),
            output: (String::new(), 0),
            status,
        }
    }
}

/// Whether the client of a request is still there, for everyone who works for it.
#[derive(Clone, Debug, Default)]
pub struct Client(Arc<AtomicBool>);

impl Client {
    /// It hung up.
    pub fn left(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it hung up.
    pub fn is_gone(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The result of a settlement: the balance after it, and the charge.
pub type Settling = Surviving<Result<(Settled, Credits), Error>>;

/// A request that was admitted and is not settled yet.
pub struct Bill {
    ctx: Arc<Context>,
    facts: Option<Box<Facts>>,
}

/// What a settlement needs to know of the request.
struct Facts {
    opening: Opening,
    ttft: Option<Duration>,
    upstream: String,
    /// The upstream took the request and began to reply.
    answered: bool,
    client: Client,
}

/// What opens a bill.
pub struct Opening {
    /// The request's id.
    pub id: String,
    /// Who pays.
    pub account: AccountId,
    /// The key's id.
    pub key: String,
    /// Where it came in.
    pub endpoint: Endpoint,
    /// The price that it is admitted at.
    pub model: Arc<Model>,
    /// The table of that price.
    pub price_version: String,
    /// For the usage row.
    pub attribution: Attribution,
    /// Whether a stream is asked for.
    pub stream: bool,
    /// Whether a cache lifetime of an hour is asked for.
    pub asks_1h_cache: bool,
    /// The body, for an estimate.
    pub body: Bytes,
    /// When the request came in.
    pub started: Instant,
}

impl Bill {
    /// Opens a bill for a request that the store has admitted.
    pub fn open(ctx: &Arc<Context>, opening: Opening) -> Self {
        ctx.metrics.in_flight.inc();
        let facts = Facts {
            opening,
            ttft: None,
            upstream: String::new(),
            answered: false,
            client: Client::default(),
        };
        Self { ctx: Arc::clone(ctx), facts: Some(Box::new(facts)) }
    }

    /// From now on the upstream may bill: the request is on its way to it.
    pub fn sent(&mut self, upstream: &str) {
        if let Some(facts) = &mut self.facts {
            upstream.clone_into(&mut facts.upstream);
        }
    }

    /// The upstream took the request: from now on it is to blame for a reply that breaks off.
    pub fn answered(&mut self) {
        if let Some(facts) = &mut self.facts {
            facts.answered = true;
        }
    }

    /// The first byte of the reply's body is here.
    pub fn first_byte(&mut self) {
        if let Some(facts) = &mut self.facts
            && facts.ttft.is_none()
        {
            facts.ttft = Some(facts.opening.started.elapsed());
        }
    }

    /// Whether the client is still there.
    pub fn client(&self) -> Client {
        self.facts.as_ref().map_or_else(Client::default, |facts| facts.client.clone())
    }

    /// The request's id.
    pub fn id(&self) -> &str {
        self.facts.as_ref().map_or("", |facts| &facts.opening.id)
    }

    /// Settles: debit, entry, usage row and totals in one step, once. Comes to its end whether
    /// or not anybody waits for it.
    ///
    /// # Errors
    ///
    /// [`Error::Ledger`] when the store cannot take it now; the store keeps it and repeats it.
    pub fn settle(mut self, end: End) -> Settling {
        let facts = self.facts.take().expect("only settling and dropping take it, once");
        self.ctx.metrics.in_flight.dec();
        Surviving::new(&self.ctx, settle(Arc::clone(&self.ctx), facts, Box::new(end)))
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        let Some(facts) = self.facts.take() else { return };
        self.ctx.metrics.in_flight.dec();
        if facts.upstream.is_empty() {
            self.ctx.store.release(&facts.opening.account, &facts.opening.id);
            return;
        }
        let end = End {
            ending: Ending::Ours,
            reading: Reading::default(),
            output: (String::new(), 0),
            status: super::CLIENT_CLOSED,
        };
        let ctx = Arc::clone(&self.ctx);
        self.ctx.spawn(async move {
            let id = facts.opening.id.clone();
            if let Err(error) = settle(ctx, facts, Box::new(end)).await {
                tracing::error!(request.id = id, "unsettled: {error}");
            }
        });
    }
}

/// How long a reply waits for its debit. The store keeps trying; the client is told that its
/// reply is not whole.
const PATIENCE: Duration = Duration::from_secs(15);

async fn settle(
    ctx: Arc<Context>,
    mut facts: Box<Facts>,
    end: Box<End>,
) -> Result<(Settled, Credits), Error> {
    let measured = measure(&ctx, &mut facts, &end).await;
    let charge = measured.charge;
    let owner = facts.opening.account.clone();
    let is_response = facts.opening.endpoint == Endpoint::Responses;
    let object = end.reading.response_id.clone().filter(|_| is_response);
    let settled = ctx.store.settle(row(&ctx, *facts, *end, measured));
    let committed = async {
        let Some(object) = object else { return settled.await };
        // Both wait for the same commit.
        let (owned, settled) = tokio::join!(ctx.store.own(&owner, &object), settled);
        owned.and(settled)
    };
    let committed = tokio::time::timeout(PATIENCE, committed).await;
    ctx.alerts.touch(&owner);
    match committed {
        Ok(settled) => Ok((settled.map_err(Error::Ledger)?, charge)),
        Err(_) => Err(Error::Ledger(StoreError::Unavailable("a debit waits for the disk".into()))),
    }
}

/// The row of a request.
fn row(ctx: &Context, facts: Facts, end: End, measured: Measured) -> Settlement {
    let Measured { usage, charge, source, outcome, mut flags } = measured;
    let Facts { opening, ttft, upstream, answered, .. } = facts;
    if answered && matches!(outcome, Outcome::UpstreamCut | Outcome::UpstreamError) {
        ctx.upstream_cut_off(&upstream);
    }
    ctx.metrics.settled(&opening.model.name, outcome, source, &usage, charge);
    let settlement = Settlement {
        served_model: price::served_model(&opening.model, &end.reading, &mut flags),
        id: opening.id,
        account: opening.account,
        key: opening.key,
        model: opening.model.name.clone(),
        upstream,
        attribution: opening.attribution,
        usage,
        charge,
        price_version: opening.price_version,
        ttft_ms: ttft.map(millis),
        latency_ms: millis(opening.started.elapsed()),
        stream: opening.stream,
        outcome,
        source,
        http_status: end.status,
        flags: flags.join(","),
    };
    log(&settlement);
    settlement
}

/// What a request used and costs.
struct Measured {
    usage: Usage,
    charge: Credits,
    source: Source,
    outcome: Outcome,
    flags: Vec<&'static str>,
}

/// Prices what the upstream reported, or else what can be counted here.
async fn measure(ctx: &Context, facts: &mut Facts, end: &End) -> Measured {
    let Decided { basis, source, outcome, flag } = decide(facts, end);
    let mut flags: Vec<&'static str> = end.reading.flags.clone();
    flags.extend(flag);
    let model = Arc::clone(&facts.opening.model);
    let asks_1h = facts.opening.asks_1h_cache;
    let reported =
        match basis {
            Basis::Nothing => Some((Usage::default(), Credits::ZERO)),
            Basis::Reported => end.reading.usage.clone().and_then(|usage| {
                price::priced(ctx, &model, asks_1h, usage, &end.reading, &mut flags)
            }),
            Basis::Estimate { .. } => None,
        };
    if let Some((usage, charge)) = reported {
        return Measured { usage, charge, source, outcome, flags };
    }
    let with_output = !matches!(basis, Basis::Estimate { output: false });
    let body = std::mem::take(&mut facts.opening.body);
    let usage = Box::pin(estimated(facts, end, body, with_output)).await;
    // Our own counts are bounded by the bytes that passed, so that they always have a price.
    let priced = price::priced(ctx, &model, asks_1h, usage, &end.reading, &mut flags);
    let (usage, charge) = priced.unwrap_or_default();
    // What is odd about the reply was found twice where its own counts had no price.
    flags.sort_unstable();
    flags.dedup();
    Measured { usage, charge, source: Source::Estimated, outcome, flags }
}

/// One event a request, in the standard names; for debugging, as the row holds the same.
fn log(settlement: &Settlement) {
    tracing::debug!(
        request.id = settlement.id,
        account = %settlement.account,
        key = settlement.key,
        gen_ai.request.model = settlement.model,
        gen_ai.usage.input_tokens = settlement.usage.all_input(),
        gen_ai.usage.output_tokens = settlement.usage.output,
        charge = %settlement.charge,
        status = settlement.http_status,
        outcome = ?settlement.outcome,
        source = ?settlement.source,
        latency_ms = settlement.latency_ms,
        "settling"
    );
}

/// What the charge rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basis {
    /// Nothing was used, or nothing that the customer answers for.
    Nothing,
    /// The counts of the upstream.
    Reported,
    /// Ours: the input, and with `output` also what was delivered.
    Estimate { output: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decided {
    basis: Basis,
    source: Source,
    outcome: Outcome,
    flag: Option<&'static str>,
}

/// The table of endings: who pays what, and what the row says.
fn decide(facts: &Facts, end: &End) -> Decided {
    decide_by(end.ending, &end.reading, facts.client.is_gone())
}

fn decide_by(ending: Ending, reading: &Reading, client_gone: bool) -> Decided {
    let failed = reading.failed || ending == Ending::Upstream;
    let outcome = match (ending, failed, client_gone) {
        (_, true, _) if reading.output_seen || reading.usage.is_some() => Outcome::UpstreamCut,
        (_, true, _) => Outcome::UpstreamError,
        (_, _, true) | (Ending::Ours, ..) => Outcome::ClientClosed,
        _ => Outcome::Completed,
    };
    let reported = if client_gone { Source::Drained } else { Source::Reported };
    let nothing = |flag| Decided { basis: Basis::Nothing, source: Source::None, outcome, flag };
    let estimate = |output, flag| Decided {
        basis: Basis::Estimate { output },
        source: Source::Estimated,
        outcome,
        flag,
    };
    if reading.usage.is_some() {
        return Decided { basis: Basis::Reported, source: reported, outcome, flag: None };
    }
    match (ending, reading.output_seen) {
        // Delivered and cut off: what was delivered, and what it was made from.
        (Ending::Upstream, true) => estimate(true, None),
        (Ending::Whole, true) if reading.failed => estimate(true, None),
        // The upstream failed before it gave anything: its fault, not the customer's.
        (Ending::Upstream, false) => nothing(Some("upstream_fault")),
        (Ending::Whole, false) if reading.failed => nothing(None),
        (Ending::Whole, _) => estimate(true, Some("usage_missing")),
        // The client left: providers bill the prompt, and what they had generated. They do so
        // too where it was we who stopped.
        (Ending::Ours, output) => estimate(output, (!client_gone).then_some("stopped")),
    }
}

/// Counts that are ours: exact input where the reply gave it, else by tokenizer.
async fn estimated(facts: &Facts, end: &End, body: Bytes, with_output: bool) -> Usage {
    let exact = end.reading.input.clone();
    let (text, bytes) = if with_output { end.output.clone() } else { (String::new(), 0) };
    let endpoint = facts.opening.endpoint;
    let model =
        facts.opening.model.upstreams.first().map_or_else(String::new, |(_, model)| model.clone());
    // The tokenizer takes milliseconds for a long text: not on a thread that serves others.
    let counted = tokio::task::spawn_blocking(move || {
        let mut usage = exact.unwrap_or_else(|| Usage {
            input: estimate::input_tokens(endpoint, &model, &body),
            ..Usage::default()
        });
        usage.output = estimate::output_tokens(&model, &text, bytes);
        usage
    });
    counted.await.unwrap_or_default()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(usage: bool, output_seen: bool, failed: bool) -> Reading {
        Reading { usage: usage.then(Usage::default), output_seen, failed, ..Reading::default() }
    }

    #[test]
    fn every_ending_has_the_payer_that_the_table_says() {
        use Basis::{Estimate, Nothing, Reported};
        use Ending::{Ours, Upstream, Whole};
        let cases = [
            // ending, usage, output, failed, client gone → basis, source, outcome
            (Whole, true, true, false, false, Reported, Source::Reported, Outcome::Completed),
            (Whole, true, false, false, false, Reported, Source::Reported, Outcome::Completed),
            (Whole, true, true, false, true, Reported, Source::Drained, Outcome::ClientClosed),
            (Whole, true, true, true, false, Reported, Source::Reported, Outcome::UpstreamCut),
            (Ours, true, true, false, true, Reported, Source::Drained, Outcome::ClientClosed),
            (
                Ours,
                false,
                true,
                false,
                true,
                Estimate { output: true },
                Source::Estimated,
                Outcome::ClientClosed,
            ),
            (
                Ours,
                false,
                false,
                false,
                true,
                Estimate { output: false },
                Source::Estimated,
                Outcome::ClientClosed,
            ),
            (
                Upstream,
                false,
                true,
                false,
                false,
                Estimate { output: true },
                Source::Estimated,
                Outcome::UpstreamCut,
            ),
            (Upstream, true, true, false, false, Reported, Source::Reported, Outcome::UpstreamCut),
            (Upstream, false, false, false, false, Nothing, Source::None, Outcome::UpstreamError),
            (Upstream, false, false, false, true, Nothing, Source::None, Outcome::UpstreamError),
            (Whole, false, false, true, false, Nothing, Source::None, Outcome::UpstreamError),
            (
                Whole,
                false,
                true,
                true,
                false,
                Estimate { output: true },
                Source::Estimated,
                Outcome::UpstreamCut,
            ),
            (
                Whole,
                false,
                true,
                false,
                false,
                Estimate { output: true },
                Source::Estimated,
                Outcome::Completed,
            ),
            (
                Whole,
                false,
                false,
                false,
                false,
                Estimate { output: true },
                Source::Estimated,
                Outcome::Completed,
            ),
        ];
        for (ending, usage, output, failed, gone, basis, source, outcome) in cases {
            let decided = decide_by(ending, &reading(usage, output, failed), gone);
            let case = (ending, usage, output, failed, gone);
            assert_eq!(
                (decided.basis, decided.source, decided.outcome),
                (basis, source, outcome),
                "{case:?}"
            );
        }
    }
}
