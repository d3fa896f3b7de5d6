//! How entries, lots and usage rows are stored.

use std::collections::BTreeMap;

use redis::Value;
use serde::{Deserialize, Serialize};

use super::reply::{Odd, Reply, number, text, word};
use crate::billing::Credits;
use crate::billing::ledger::{Lot, Part, Place};
use crate::store::{
    Attribution, Entry, LotRow, Millis, Outcome, Settlement, Source, UsageFilter, UsageRow,
};

/// More than any request can use (10¹²): a count beyond it is written as this, so that sums
/// stay whole numbers that every store can count.
const COUNT_LIMIT: u64 = 1 << 40;

/// A count as it is written.
pub(super) fn count(count: u64) -> u64 {
    count.min(COUNT_LIMIT)
}

/// An item of a stream: its id, and its fields by name.
#[derive(Clone)]
pub(super) struct Item {
    pub id: String,
    fields: Vec<(String, String)>,
}

impl Item {
    pub(super) fn read(value: Value) -> Result<Self, Odd> {
        let mut item = Reply::of(value)?;
        let id = item.text()?;
        let mut fields = Vec::new();
        let mut list = item.list()?;
        while let Some(name) = list.next() {
            fields.push((text(name)?, list.text()?));
        }
        Ok(Self { id, fields })
    }

    /// Its id, and its fields and values as they are.
    pub(super) fn parts(self) -> (String, Vec<String>) {
        let values = self.fields.into_iter().flat_map(|(name, value)| [name, value]);
        (self.id, values.collect())
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let (_, value) = self.fields.iter_mut().find(|(field, _)| field == name)?;
        Some(std::mem::take(value))
    }

    fn need(&mut self, name: &str) -> Result<String, Odd> {
        self.take(name).ok_or(Odd)
    }

    /// As a line of the ledger.
    pub(super) fn entry(mut self) -> Result<Entry, Odd> {
        let seq = number(self.id.split('-').next().ok_or(Odd)?)?;
        let parts = self.need("p")?;
        let part = |packed: &str| {
            let (place, amount) = packed.split_once(':').ok_or(Odd)?;
            let place = match number(place)? {
                0 => Place::Debt,
                lot => Place::Lot(lot),
            };
            Ok(Part { place, amount: Credits::from_nano(number(amount)?) })
        };
        let parts = parts.split(',').filter(|part| !part.is_empty());
        Ok(Entry {
            seq,
            parts: parts.map(part).collect::<Result<_, _>>()?,
            ts: number(&self.need("t")?)?,
            kind: word(&self.need("k")?)?,
            amount: Credits::from_nano(number(&self.need("a")?)?),
            balance_after: Credits::from_nano(number(&self.need("b")?)?),
            reference: self.need("r")?,
            note: self.take("n"),
            undoes: self.take("u").map(|seq| number(&seq)).transpose()?,
        })
    }

    /// As the row of a request.
    pub(super) fn usage(mut self) -> Result<UsageRow, Odd> {
        let ts: Millis = number(self.id.split('-').next().ok_or(Odd)?)?;
        let Some(packed) = self.take("r") else { return self.abandoned(ts) };
        let row: ReadRow = serde_json::from_str(&packed).map_err(|_| Odd)?;
        let mut row = row.open(ts);
        if self.take("c").is_some() {
            row.charge = Credits::ZERO;
            row.flags.push("account_closed".into());
        }
        Ok(row)
    }

    fn abandoned(mut self, ts: Millis) -> Result<UsageRow, Odd> {
        let latency_ms: u64 = number(&self.need("l")?)?;
        Ok(UsageRow {
            id: self.need("x")?,
            ts,
            model: self.need("m")?,
            served_model: None,
            upstream: String::new(),
            key: self.need("k")?,
            attribution: Attribution::default(),
            input_tokens: 0,
            cached_input_tokens: 0,
            cache_creation_5m_tokens: 0,
            cache_creation_1h_tokens: 0,
            output_tokens: 0,
            reasoning_tokens: 0,
            charge: Credits::ZERO,
            price_version: String::new(),
            ttft_ms: None,
            latency_ms: u32::try_from(latency_ms).unwrap_or(u32::MAX),
            stream: false,
            outcome: Outcome::Abandoned,
            source: Source::None,
            http_status: 0,
            calls: BTreeMap::new(),
            flags: Vec::new(),
        })
    }
}

/// A usage row as a JSON array, without its time, which is the store's. New fields go to the
/// end, so that rows written before can still be read.
#[derive(Serialize, Deserialize)]
struct PackedRow<Text, Counts>(
    Text,
    Text,
    Option<Text>,
    Text,
    Text,
    [Option<Text>; 5],
    [u64; 11],
    Counts,
    i64,
    Text,
    Option<u32>,
    u32,
    bool,
    Outcome,
    Source,
    u16,
    Text,
);

type ReadRow = PackedRow<String, BTreeMap<String, u64>>;

/// The row of a settlement, as it is stored.
pub(super) fn pack(row: &Settlement) -> String {
    let Settlement { attribution, usage, .. } = row;
    let Attribution { run, agent, session, origin, tag } = attribution;
    let packed = PackedRow(
        row.id.as_str(),
        row.model.as_str(),
        row.served_model.as_deref(),
        row.upstream.as_str(),
        row.key.as_str(),
        [run, agent, session, origin, tag].map(Option::as_deref),
        [
            usage.input,
            usage.cached,
            usage.cache_creation_5m,
            usage.cache_creation_1h,
            usage.output,
            usage.reasoning,
            usage.input_audio,
            usage.input_image,
            usage.cached_audio,
            usage.output_audio,
            usage.output_image,
        ]
        .map(count),
        &usage.calls,
        row.charge.nano(),
        row.price_version.as_str(),
        row.ttft_ms,
        row.latency_ms,
        row.stream,
        row.outcome,
        row.source,
        row.http_status,
        row.flags.as_str(),
    );
    serde_json::to_string(&packed).expect("texts and numbers can be written")
}

impl ReadRow {
    fn open(self, ts: Millis) -> UsageRow {
        let Self(
            id,
            model,
            served_model,
            upstream,
            key,
            [run, agent, session, origin, tag],
            [input, cached, created_5m, created_1h, output, reasoning, ..],
            calls,
            charge,
            price_version,
            ttft_ms,
            latency_ms,
            stream,
            outcome,
            source,
            http_status,
            flags,
        ) = self;
        UsageRow {
            id,
            ts,
            model,
            served_model,
            upstream,
            key,
            attribution: Attribution { run, agent, session, origin, tag },
            input_tokens: input,
            cached_input_tokens: cached,
            cache_creation_5m_tokens: created_5m,
            cache_creation_1h_tokens: created_1h,
            output_tokens: output,
            reasoning_tokens: reasoning,
            charge: Credits::from_nano(charge),
            price_version,
            ttft_ms,
            latency_ms,
            stream,
            outcome,
            source,
            http_status,
            calls,
            flags: flags.split(',').filter(|flag| !flag.is_empty()).map(Into::into).collect(),
        }
    }
}

/// Whether a row is one of those that were asked for, its time aside.
pub(super) fn matches(row: &UsageRow, filter: &UsageFilter) -> bool {
    let UsageFilter { since: _, until: _, model, key, tag, upstream, origin, source, outcome } =
        filter;
    let same = |asked: &Option<String>, is: Option<&String>| {
        asked.as_ref().is_none_or(|asked| is == Some(asked))
    };
    same(model, Some(&row.model))
        && same(key, Some(&row.key))
        && same(tag, row.attribution.tag.as_ref())
        && same(upstream, Some(&row.upstream))
        && same(origin, row.attribution.origin.as_ref())
        && source.is_none_or(|source| source == row.source)
        && outcome.is_none_or(|outcome| outcome == row.outcome)
}

/// A lot from its number and what the script wrote of it.
pub(super) fn lot(packed: &str) -> Result<LotRow, Odd> {
    let mut fields = packed.splitn(13, ' ');
    let mut next = || fields.next().ok_or(Odd);
    let credits = |text: &str| number(text).map(Credits::from_nano);
    let number_of_lot = number(next()?)?;
    let [remaining, used, expired, to_debt, forfeited, reversed, granted] =
        [next()?, next()?, next()?, next()?, next()?, next()?, next()?];
    let (effective_at, expires_at) = (number(next()?)?, number(next()?)?);
    let class = word(next()?)?;
    let _seq = next()?;
    let lot = Lot {
        number: number_of_lot,
        class,
        effective_at,
        expires_at,
        granted: credits(granted)?,
        remaining: credits(remaining)?,
        used: credits(used)?,
        expired: credits(expired)?,
        to_debt: credits(to_debt)?,
        forfeited: credits(forfeited)?,
        reversed: credits(reversed)?,
    };
    Ok(LotRow { lot, source: next()?.to_owned() })
}
