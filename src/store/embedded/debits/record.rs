//! A debit as it stands in the log: a JSON array, because names would be half of it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Found;
use crate::billing::price::FEES;
use crate::billing::{Credits, Usage};
use crate::store::{AccountId, Attribution, Millis, Outcome, Settlement, Source};

/// The first number of each record: how the others are to be read.
const VERSION: u8 = 1;

type Text<'a> = Cow<'a, str>;
type Tag<'a> = Option<Text<'a>>;
type Calls<'a> = BTreeMap<Text<'a>, u64>;

#[derive(Serialize, Deserialize)]
struct Record<'a>(
    (u8, Millis),
    #[serde(borrow)] (Text<'a>, Text<'a>, Text<'a>, Text<'a>, Tag<'a>, Text<'a>),
    #[serde(borrow)] (Tag<'a>, Tag<'a>, Tag<'a>, Tag<'a>, Tag<'a>),
    #[serde(borrow)] ([u64; 11], Calls<'a>, i64, Text<'a>),
    #[serde(borrow)] (Option<u32>, u32, bool, Outcome, Source, u16, Text<'a>),
);

/// A debit as it will stand in the log.
pub(in crate::store::embedded) fn write(debit: &Settlement, at: Millis) -> Vec<u8> {
    let Settlement {
        id,
        account,
        key,
        model,
        served_model,
        upstream,
        attribution: Attribution { run, agent, session, origin, tag },
        usage,
        charge,
        price_version,
        ttft_ms,
        latency_ms,
        stream,
        outcome,
        source,
        http_status,
        flags,
    } = debit;
    let Usage {
        input,
        cached,
        cache_creation_5m,
        cache_creation_1h,
        output,
        reasoning,
        input_audio,
        input_image,
        cached_audio,
        output_audio,
        output_image,
        calls,
    } = usage;
    let counts = [
        *input,
        *cached,
        *cache_creation_5m,
        *cache_creation_1h,
        *output,
        *reasoning,
        *input_audio,
        *input_image,
        *cached_audio,
        *output_audio,
        *output_image,
    ];
    let text = |text: &'static str| Text::Borrowed(text);
    let calls: Calls<'_> = calls.iter().map(|(name, count)| (text(name), *count)).collect();
    let record = Record(
        (VERSION, at),
        (
            id.into(),
            (*account.0).into(),
            key.into(),
            model.into(),
            borrowed(served_model),
            upstream.into(),
        ),
        (borrowed(run), borrowed(agent), borrowed(session), borrowed(origin), borrowed(tag)),
        (counts, calls, charge.nano(), price_version.into()),
        (*ttft_ms, *latency_ms, *stream, *outcome, *source, *http_status, flags.into()),
    );
    let mut payload = Vec::with_capacity(512);
    serde_json::to_writer(&mut payload, &record).expect("it is plain data");
    payload
}

fn borrowed(text: &Option<String>) -> Tag<'_> {
    text.as_deref().map(Text::Borrowed)
}

/// A debit that stands in the log; `None` if this program does not know how it is written.
pub(in crate::store::embedded) fn read(payload: &[u8]) -> Option<Found> {
    let Record((version, at), who, said, cost, how) = serde_json::from_slice(payload).ok()?;
    if version != VERSION {
        return None;
    }
    let (id, account, key, model, served_model, upstream) = who;
    let (run, agent, session, origin, tag) = said;
    let (counts, calls, charge, price_version) = cost;
    let (ttft_ms, latency_ms, stream, outcome, source, http_status, flags) = how;
    let [input, cached, cache_creation_5m, cache_creation_1h, output, reasoning, rest @ ..] =
        counts;
    let [input_audio, input_image, cached_audio, output_audio, output_image] = rest;
    let owned = |text: Tag<'_>| text.map(Text::into_owned);
    let debit = Settlement {
        id: id.into_owned(),
        account: AccountId(account.as_ref().into()),
        key: key.into_owned(),
        model: model.into_owned(),
        served_model: owned(served_model),
        upstream: upstream.into_owned(),
        attribution: Attribution {
            run: owned(run),
            agent: owned(agent),
            session: owned(session),
            origin: owned(origin),
            tag: owned(tag),
        },
        usage: Usage {
            input,
            cached,
            cache_creation_5m,
            cache_creation_1h,
            output,
            reasoning,
            input_audio,
            input_image,
            cached_audio,
            output_audio,
            output_image,
            calls: calls
                .into_iter()
                .map(|(name, count)| Some((FEES.into_iter().find(|fee| *fee == name)?, count)))
                .collect::<Option<_>>()?,
        },
        charge: Credits::from_nano(charge),
        price_version: price_version.into_owned(),
        ttft_ms,
        latency_ms,
        stream,
        outcome,
        source,
        http_status,
        flags: flags.into_owned(),
    };
    Some(Found { at, debit })
}
