//! Model → price → upstream: where a request goes, and on to the next where that may be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Response, StatusCode};

use super::error::Error;
use super::forward::{Failure, Incoming, Upstream};
use super::health::Trouble;
use super::{Call, Context, authenticate};
use crate::billing::price::{Model, Price};
use crate::store::Key;
use crate::wire::request::{IncludeUsage, Request};
use crate::wire::{Endpoint, Kind};

/// Where a request goes, at which price.
pub struct Target {
    /// The entry of the price table, as of now: a later change does not touch this request.
    pub model: Arc<Model>,
    /// The table's version.
    pub price_version: String,
}

/// Finds the model, and refuses what cannot be priced.
///
/// # Errors
///
/// [`Error::ModelNotFound`], [`Error::WrongEndpoint`], [`Error::ModelNotAllowed`], and
/// [`Error::NotAllowed`] for what costs money that has no price.
pub fn find(
    ctx: &Context,
    key: &Key,
    endpoint: Endpoint,
    request: &Request,
) -> Result<Target, Error> {
    let table = ctx.prices.table();
    let model = table.find(&request.model).filter(|model| ctx.is_callable(model));
    let Some(model) = model else {
        let callable = |name: &&str| table.find(name).is_some_and(|model| ctx.is_callable(model));
        return Err(Error::ModelNotFound {
            model: shown(&request.model),
            nearest: table
                .nearest(&request.model)
                .into_iter()
                .filter(callable)
                .map(String::from)
                .collect(),
        });
    };
    if !authenticate::may_call(key, &model.name) {
        let allowed = key.models.clone();
        return Err(Error::ModelNotAllowed { model: shown(&request.model), allowed });
    }
    if upstreams(ctx, model, endpoint).next().is_none() {
        let instead = instead(ctx, model);
        return Err(Error::WrongEndpoint { model: shown(&request.model), instead });
    }
    check_priced(&model.price, request)?;
    Ok(Target { model: Arc::clone(model), price_version: table.version.clone() })
}

/// A client's text in an error: bounded, without control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}

/// The upstreams of a model that are configured and speak an endpoint, in order.
fn upstreams<'c, 'm>(
    ctx: &'c Context,
    model: &'m Model,
    endpoint: Endpoint,
) -> impl Iterator<Item = (&'c Upstream, &'m str)> {
    model.upstreams.iter().filter_map(move |(name, model)| {
        let upstream = ctx.upstreams.get(name)?;
        upstream.serves(endpoint).then_some((upstream, model.as_str()))
    })
}

/// Where a model is served, for the client that asked elsewhere.
fn instead(ctx: &Context, model: &Model) -> &'static str {
    let kind = model.upstreams.iter().find_map(|(name, _)| ctx.upstreams.get(name));
    match kind.map(|upstream| upstream.config.kind) {
        Some(Kind::Anthropic) => "/v1/messages or /v1/chat/completions",
        Some(Kind::Gemini) => "/v1beta/models/{model}:generateContent or /v1/chat/completions",
        _ => "/v1/chat/completions or /v1/responses",
    }
}

/// Refuses what is known to cost money that this price does not cover.
fn check_priced(price: &Price, request: &Request) -> Result<(), Error> {
    if price.free {
        return Ok(());
    }
    let refuse =
        |parameter: &str, why: String| Err(Error::NotAllowed { parameter: parameter.into(), why });
    if let Some(tier) = &request.service_tier
        && !price.tiers.contains_key(tier)
    {
        return refuse("service_tier", format!("\"{}\" has no price here", shown(tier)));
    }
    if let Some(geo) = &request.inference_geo {
        return refuse("inference_geo", format!("\"{}\" has no price here", shown(geo)));
    }
    if let Some(tool) = request.hosted_tools.iter().find(|tool| !price.fees.contains_key(*tool)) {
        return refuse("tools", format!("\"{}\" has no fee in the price table", shown(tool)));
    }
    if request.audio_output && price.standard.rates.audio_output.is_none() {
        return refuse("modalities", "audio output has no rate for this model".into());
    }
    if request.image_output && price.standard.rates.image_output.is_none() {
        return refuse("modalities", "image output has no rate for this model".into());
    }
    Ok(())
}

/// Objects at an upstream are shared by all its tenants: only the account that created one
/// may build on it.
///
/// # Errors
///
/// [`Error::ObjectNotFound`] for what is foreign or unknown, alike.
pub async fn check_owner(ctx: &Context, key: &Key, request: &Request) -> Result<(), Error> {
    for id in [&request.previous_response, &request.conversation].into_iter().flatten() {
        if !ctx.store.owns(&key.account, id).await.map_err(Error::Ledger)? {
            return Err(Error::ObjectNotFound { id: shown(id) });
        }
    }
    Ok(())
}

/// Sends a request to the first upstream of its model that takes it; `trying` hears the name
/// of each before anything is sent to it, and `waiting` tells whether anybody still waits.
///
/// The next one is tried only if the one before was not reached, or answered 408, 429 or a
/// 5xx: never after an uncertain failure, because that may have been billed, and never for a
/// client that left, who would pay for a reply that nobody reads.
///
/// # Errors
///
/// The failure of the last upstream tried.
pub async fn forward<'c>(
    ctx: &'c Context,
    call: &Call,
    mut trying: impl FnMut(&str),
    waiting: impl Fn() -> bool,
) -> Result<(&'c Upstream, Response<Incoming>), Error> {
    let mut last = Error::UpstreamInvalid("no upstream");
    let mut upstreams = upstreams(ctx, &call.target.model, call.endpoint).peekable();
    while let Some((upstream, model)) = upstreams.next() {
        trying(&upstream.config.name);
        let body = call.request.upstream_body(model, include_usage(call, upstream));
        let stream = call.request.stream;
        let started = Instant::now();
        let answer = upstream.send(call.endpoint, model, body, stream, &call.extras).await;
        note(ctx, upstream, &answer, started.elapsed());
        match answer {
            Ok(reply) if is_passing(reply.status()) && upstreams.peek().is_some() && waiting() => {
                last = Error::UpstreamStatus(reply.status());
            }
            Ok(reply) => return Ok((upstream, reply)),
            Err(failure) => {
                let unsent = matches!(failure, Failure::Unsent(_));
                last = failure.into();
                if !unsent || !waiting() {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// Remembers how an upstream did.
fn note(
    ctx: &Context,
    upstream: &Upstream,
    answer: &Result<Response<Incoming>, Failure>,
    latency: Duration,
) {
    let trouble = match answer {
        Ok(reply) => upstream.health.answered(reply.status(), latency),
        Err(failure) => match Trouble::of_failure(failure) {
            Some(trouble) => {
                upstream.health.failed(trouble);
                Some(trouble)
            }
            None => return,
        },
    };
    ctx.metrics.upstream_tried(&upstream.config.name, trouble);
}

/// Statuses after which another upstream may do better; nothing was billed.
fn is_passing(status: StatusCode) -> bool {
    status == StatusCode::REQUEST_TIMEOUT
        || status == StatusCode::TOO_MANY_REQUESTS
        || status.is_server_error()
}

/// Usage is always asked for in streams of upstreams that take it, and never of others.
pub fn include_usage(call: &Call, upstream: &Upstream) -> IncludeUsage {
    let has_option = matches!(call.endpoint, Endpoint::Chat | Endpoint::Completions);
    match (has_option && call.request.stream, upstream.config.include_usage) {
        (false, _) => IncludeUsage::AsGiven,
        (true, true) => IncludeUsage::Ask,
        (true, false) => IncludeUsage::Omit,
    }
}
