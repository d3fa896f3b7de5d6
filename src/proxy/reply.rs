//! From the upstream's reply to the client's: streams are tapped, others are read whole,
//! refusals are put into our own words where the upstream's would mislead.

use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio::time::Instant;

use super::body::{Body, Decoder};
use super::error::Error;
use super::forward::{Incoming, Upstream};
use super::meter::{self, Stop, Stream, Tap};
use super::settle::{Bill, End, Ending};
use super::{Call, Context, Reply, price, route};
use crate::billing::Credits;
use crate::store::{Key, Settled};
use crate::wire::meter::{Edit, Meter, Reading, read_whole, whole_text};
use crate::wire::request::IncludeUsage;
use crate::wire::sse::looks_like_events;

const CHARGE: HeaderName = HeaderName::from_static("x-farebox-charge");
const BALANCE: HeaderName = HeaderName::from_static("x-farebox-balance");

/// The largest refusal of an upstream that is read.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;

/// A reply to the client on its way, or what the client is told instead; it is settled then.
/// In a box, so that it and the wait for the upstream before it do not both take room.
type Passing<'a> = Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send + 'a>>;

/// Turns what came of an upstream into a reply for the client, and sees to its settlement.
pub fn pass<'a>(
    ctx: &'a Arc<Context>,
    call: &'a Call,
    forwarded: Result<(&'a Upstream, Response<Incoming>), Error>,
    mut bill: Bill,
) -> Passing<'a> {
    let (upstream, reply) = match forwarded {
        Ok(forwarded) => forwarded,
        Err(error) => return fail(bill, error),
    };
    let (head, body) = reply.into_parts();
    if head.status.is_success() {
        bill.answered();
    }
    let body = match decoder(&head.headers) {
        Ok(decoder) => meter::Upstream::new(body, decoder),
        Err(error) => return fail(bill, error),
    };
    if head.status.is_success() {
        Box::pin(pass_success(ctx, call, upstream, head, body, bill))
    } else {
        Box::pin(pass_refusal(upstream, head, body, bill))
    }
}

/// An upstream has refused: that is an answer, not a fault.
async fn pass_refusal(
    upstream: &Upstream,
    head: Parts,
    mut body: meter::Upstream,
    bill: Bill,
) -> Result<Reply, Error> {
    let refusal = refusal(head.status, &head.headers, &mut body, upstream).await;
    let status = match &refusal {
        Ok(reply) => reply.status(),
        Err(error) => error.parts().0,
    };
    let mut end = End::failed(status.as_u16());
    end.ending = Ending::Whole;
    end.reading.failed = true;
    bill.settle(end).await?;
    refusal
}

#[expect(clippy::manual_async_fn, reason = "arguments of an `async fn` take their room twice")]
fn pass_success<'a>(
    ctx: &'a Arc<Context>,
    call: &'a Call,
    upstream: &'a Upstream,
    head: Parts,
    mut body: meter::Upstream,
    mut bill: Bill,
) -> impl Future<Output = Result<Reply, Error>> + use<'a> {
    async move {
        let content_type = head.headers.get(CONTENT_TYPE).cloned();
        let kind = content_type.as_ref().and_then(|value| value.to_str().ok());
        let deadline = Instant::now() + ctx.config.total_timeout;
        let first = match tokio::time::timeout(upstream.idle_timeout, body.next()).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(Stop::End)) => Bytes::new(),
            Ok(Err(Stop::Cut)) => return fail(bill, Error::UpstreamCut).await,
            Err(_) => return fail(bill, Error::UpstreamTimeout).await,
        };
        bill.first_byte();
        if !looks_like_events(kind, &first) {
            let bytes = match collect(ctx, upstream, first, &mut body, deadline).await {
                Ok(bytes) => bytes,
                Err(error) => return fail(bill, error).await,
            };
            return whole(call, head.status, content_type, bytes, bill).await;
        }
        body.unread(first);
        let stream = Stream {
            body,
            meter: Meter::stream(call.endpoint, edit(ctx, call, upstream)),
            bill,
            endpoint: call.endpoint,
            idle_timeout: upstream.idle_timeout,
            deadline,
            status: head.status.as_u16(),
        };
        let tap = Tap::new(ctx, stream);
        let mut reply = reply_with(head.status, content_type, Body::Tap(Box::new(tap)));
        // Reverse proxies such as nginx must not gather the events.
        reply.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        Ok(reply)
    }
}

/// Settles a request that the upstream failed, and tells the client.
fn fail<'a>(bill: Bill, error: Error) -> Passing<'a> {
    let settling = bill.settle(End::failed(error.parts().0.as_u16()));
    Box::pin(async move {
        settling.await?;
        Err(error)
    })
}

fn decoder(headers: &HeaderMap) -> Result<Option<Decoder>, Error> {
    let encoding = headers.get(CONTENT_ENCODING).map(|value| value.to_str().unwrap_or_default());
    match encoding {
        None | Some("" | "identity") => Ok(None),
        Some(encoding) => Decoder::new(encoding)
            .map(Some)
            .map_err(|_| Error::UpstreamInvalid("an unknown content-encoding")),
    }
}

/// The one chunk that may be left out of a stream, or the one number that is added to it.
fn edit(ctx: &Arc<Context>, call: &Call, upstream: &Upstream) -> Edit {
    if call.request.asks_usage {
        let (ctx, model) = (Arc::clone(ctx), Arc::clone(&call.target.model));
        let asks_1h = call.request.asks_1h_cache;
        return Edit::AddCost(Box::new(move |reading: &Reading| {
            price::of_reading(&ctx, &model, asks_1h, reading)
        }));
    }
    match route::include_usage(call, upstream) {
        IncludeUsage::Ask => Edit::HideUsage,
        IncludeUsage::AsGiven | IncludeUsage::Omit => Edit::None,
    }
}

async fn collect(
    ctx: &Context,
    upstream: &Upstream,
    first: Bytes,
    body: &mut meter::Upstream,
    deadline: Instant,
) -> Result<Bytes, Error> {
    let mut all = BytesMut::new();
    loop {
        let idle = Instant::now() + upstream.idle_timeout;
        match tokio::time::timeout_at(idle.min(deadline), body.next()).await {
            Ok(Ok(bytes)) => {
                if all.is_empty() {
                    all.extend_from_slice(&first);
                }
                all.extend_from_slice(&bytes);
            }
            // A reply in one piece is passed on as it came.
            Ok(Err(Stop::End)) => return Ok(if all.is_empty() { first } else { all.freeze() }),
            Ok(Err(Stop::Cut)) => return Err(Error::UpstreamCut),
            Err(_) => return Err(Error::UpstreamTimeout),
        }
        if all.len() > ctx.config.max_reply_bytes {
            return Err(Error::UpstreamInvalid("a reply beyond max_reply_bytes"));
        }
    }
}

/// A reply that is not a stream: settled before its head goes out, so that the head can say
/// what it cost.
async fn whole(
    call: &Call,
    status: StatusCode,
    content_type: Option<HeaderValue>,
    bytes: Bytes,
    bill: Bill,
) -> Result<Reply, Error> {
    let Some(reading) = read_whole(call.endpoint, &bytes) else {
        // Such as a page of HTML from something between us and the provider.
        return fail(bill, Error::UpstreamInvalid("it is not JSON")).await;
    };
    let output = match reading.usage {
        Some(_) => (String::new(), 0),
        None => whole_text(call.endpoint, &bytes),
    };
    let end = End { ending: Ending::Whole, reading, output, status: status.as_u16() };
    let (settled, charge) = bill.settle(end).await?;
    let mut reply = reply_with(status, content_type, Body::whole(bytes));
    tell_charge(reply.headers_mut(), &settled, charge);
    Ok(reply)
}

/// Credits, as decimal numbers: what the request cost, and what is left where that is known.
fn tell_charge(headers: &mut HeaderMap, settled: &Settled, charge: Credits) {
    for (name, amount) in [(CHARGE, Some(charge)), (BALANCE, settled.balance)] {
        let Some(amount) = amount.map(|amount| Bytes::from(amount.to_string())) else { continue };
        if let Ok(value) = HeaderValue::from_maybe_shared(amount) {
            headers.insert(name, value);
        }
    }
}

/// Of the upstream's headers only the content type passes.
fn reply_with(status: StatusCode, content_type: Option<HeaderValue>, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(CONTENT_TYPE, content_type.unwrap_or(json));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// What a client is told when an upstream refuses.
///
/// What the client did wrong passes as it is. All else is put into our words: a refusal of
/// our own key or quota is the operator's matter, and in the upstream's words it would make
/// agents lock the provider, or show them part of the key.
async fn refusal(
    status: StatusCode,
    headers: &HeaderMap,
    body: &mut meter::Upstream,
    upstream: &Upstream,
) -> Result<Reply, Error> {
    let text = read_refusal(body, upstream).await;
    let about_us = text.as_deref().is_some_and(|text| is_about_the_operator(text, upstream));
    let error = match (status.as_u16(), text) {
        (401..=403, _) => Error::UpstreamAuth(status),
        _ if about_us => Error::UpstreamAuth(status),
        (408 | 504, _) => Error::UpstreamTimeout,
        (429, _) => Error::UpstreamBusy { wait_s: wait_s(headers) },
        (400 | 404 | 409 | 413 | 415 | 422, Some(text)) => {
            let content_type = headers.get(CONTENT_TYPE).cloned();
            return Ok(reply_with(status, content_type, Body::whole(text.into())));
        }
        (400..=499, _) => Error::UpstreamInvalid("an unexpected refusal"),
        (500..=599, _) => Error::UpstreamStatus(status),
        _ => Error::UpstreamInvalid("a redirect or another unexpected status"),
    };
    if let Error::UpstreamAuth(_) = error {
        tracing::error!(
            upstream = upstream.config.name,
            status = status.as_u16(),
            "the upstream refused our key or its quota is used up: check its account and its key"
        );
    }
    Err(error)
}

/// The text of a refusal; `None` if it is cut, too long, or longer on its way than one pause
/// in a reply may last.
async fn read_refusal(body: &mut meter::Upstream, upstream: &Upstream) -> Option<Vec<u8>> {
    let reading = async {
        let mut text = Vec::new();
        loop {
            match body.next().await {
                Ok(bytes) => text.extend_from_slice(&bytes),
                Err(Stop::End) => return Some(text),
                Err(Stop::Cut) => return None,
            }
            if text.len() > MAX_REFUSAL_BYTES {
                return None;
            }
        }
    };
    tokio::time::timeout(upstream.idle_timeout, reading).await.ok()?
}

/// Whether a refusal is about the operator's account or key at the upstream, or shows the key.
fn is_about_the_operator(text: &[u8], upstream: &Upstream) -> bool {
    let key = upstream.config.api_key.as_ref().map(|key| key.expose()).unwrap_or_default();
    let shows_key = !key.is_empty() && memchr::memmem::find(text, key.as_bytes()).is_some();
    shows_key || is_about_money_or_key(text)
}

/// Whether a refusal speaks of the operator's money or key. Gemini refuses a wrong key with
/// 400.
fn is_about_money_or_key(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text).to_ascii_lowercase();
    [
        "insufficient_quota",
        "credit balance is too low",
        "billing_hard_limit",
        "billing_not_active",
        "exceeded your current quota",
        "invalid_api_key",
        "api_key_invalid",
        "api key not valid",
        "api key expired",
        "incorrect api key",
        "invalid x-api-key",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// A short wait: agents sleep through a long one with the user watching.
fn wait_s(headers: &HeaderMap) -> u64 {
    let given = headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    given.and_then(|value| value.trim().parse().ok()).unwrap_or(2).clamp(1, 10)
}

/// Counts tokens at the upstream: free there and here, so only its rate is limited.
///
/// # Errors
///
/// [`Error::RateLimited`], or what went wrong upstream.
pub async fn count_tokens(ctx: &Arc<Context>, key: &Key, call: &Call) -> Result<Reply, Error> {
    if let Some(wait_s) = ctx.counted.take(&key.id) {
        return Err(Error::RateLimited { wait_s: wait_s.min(10) });
    }
    let (upstream, reply) = route::forward(ctx, call, |_| (), || true).await?;
    let (head, body) = reply.into_parts();
    let mut body = meter::Upstream::new(body, decoder(&head.headers)?);
    if !head.status.is_success() {
        return refusal(head.status, &head.headers, &mut body, upstream).await;
    }
    let deadline = Instant::now() + ctx.config.total_timeout;
    let bytes = collect(ctx, upstream, Bytes::new(), &mut body, deadline).await?;
    Ok(reply_with(head.status, head.headers.get(CONTENT_TYPE).cloned(), Body::whole(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_an_upstream_asks_for_is_kept_short() {
        let wait = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::RETRY_AFTER, value.parse().unwrap());
            wait_s(&headers)
        };
        assert_eq!(wait("3"), 3);
        assert_eq!(wait("3600"), 10);
        assert_eq!(wait("0"), 1);
        assert_eq!(wait("Wed, 21 Oct 2026 07:28:00 GMT"), 2);
        assert_eq!(wait_s(&HeaderMap::new()), 2);
    }

    #[test]
    fn a_refusal_about_the_operators_account_is_told_from_one_about_the_request() {
        for ours in [
            "Your credit balance is too low",
            "insufficient_quota",
            "API key not valid. Please pass a valid API key.",
        ] {
            assert!(is_about_money_or_key(ours.as_bytes()), "{ours}");
        }
        assert!(!is_about_money_or_key(br#"{"error":{"message":"max_tokens is too large"}}"#));
    }
}
