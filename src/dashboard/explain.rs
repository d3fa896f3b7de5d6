//! The arithmetic of one charge, by the prices that were in force.
//!
//! Every version of the price table is kept once, as a document named by its hash; a row names
//! its version. What a row does not keep (the service tier, parts that have a rate of their own,
//! other models on the same request) is found by trying, or stands on a line of its own: the
//! lines always add up to the charge.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::admin::State;
use crate::billing::price::{Item, Model, PriceTable, itemise};
use crate::billing::{Credits, Usage};
use crate::store::{Millis, Put, Scope, Store, StoreError, UsageRow};
use crate::time;

use super::number::{Exact, grouped};

/// The document that says which version was in force when.
const HISTORY: &str = "price-history";
/// Versions that are remembered there.
const REMEMBERED: usize = 200;

/// How a charge comes about.
pub struct Explained {
    /// What there is to multiply.
    pub lines: Vec<Line>,
    /// What the lines do not account for.
    pub rest: Option<Exact>,
    /// The charge.
    pub total: Exact,
    /// A sentence on what is out of the ordinary; empty if nothing is.
    pub note: String,
}

/// Tokens or calls at a rate.
pub struct Line {
    /// Such as `cached input`.
    pub what: String,
    /// How many.
    pub count: String,
    /// Credits per million, or per call.
    pub rate: String,
    /// Whether the rate is per call.
    pub is_call: bool,
    /// The product, exact to the pico-credit.
    pub product: String,
}

/// Explains a row.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn of(state: &State, row: &UsageRow) -> Result<Explained, StoreError> {
    let total = Exact::one(row.charge);
    let Some(table) = table(state, &row.price_version).await? else {
        let note = match row.price_version.is_empty() {
            true if row.charge == Credits::ZERO => "Nothing was priced.".to_owned(),
            true => "The row does not say by which prices: only its total is known.".to_owned(),
            false => "The prices of that time are not kept.".to_owned(),
        };
        return Ok(Explained { lines: Vec::new(), rest: None, total, note });
    };
    let Some(model) = table.find(&row.model) else {
        let note = "The model is not in the prices of that time.".to_owned();
        return Ok(Explained { lines: Vec::new(), rest: None, total, note });
    };
    let usage = used(row);
    let mut found = None;
    for (priced, tier) in choices(&table, model) {
        let items = itemise(&usage, &priced.price, tier);
        let sum = sum(&items);
        if sum == Some(row.charge) {
            found = Some((priced.name.clone(), tier.map(str::to_owned), items));
            break;
        }
    }
    let (name, tier, items) =
        found.unwrap_or_else(|| (model.name.clone(), None, itemise(&usage, &model.price, None)));
    let rest = row.charge - sum(&items).unwrap_or(row.charge);
    let mut note = String::new();
    if model.price.free {
        note = "This model is free.".into();
    } else if name != model.name {
        note = format!("Priced as {name}, which answered.");
    } else if let Some(tier) = &tier {
        note = format!("At the rates of the service tier “{tier}”.");
    } else if rest != Credits::ZERO {
        note = "The last line is what the row does not keep apart: audio or images with rates \
                of their own, or other models on the same request."
            .into();
    }
    Ok(Explained {
        lines: items.iter().map(Line::of).collect(),
        rest: (rest != Credits::ZERO).then(|| Exact::one(rest)),
        total,
        note,
    })
}

/// The entries and tiers that may have set the price, the likeliest first.
fn choices<'a>(
    table: &'a PriceTable,
    model: &'a Arc<Model>,
) -> impl Iterator<Item = (&'a Arc<Model>, Option<&'a str>)> {
    let others = model.serves.iter().filter_map(|name| table.find(name));
    std::iter::once(model).chain(others).flat_map(|model| {
        let tiers = model.price.tiers.keys().map(|tier| Some(tier.as_str()));
        std::iter::once(None).chain(tiers).map(move |tier| (model, tier))
    })
}

fn sum(items: &[Item]) -> Option<Credits> {
    Credits::from_pico(items.iter().map(|item| item.pico).sum())
}

fn used(row: &UsageRow) -> Usage {
    let calls = row.calls.iter().filter_map(|(call, count)| {
        let known = crate::billing::price::FEES.into_iter().find(|fee| fee == call)?;
        Some((known, *count))
    });
    Usage {
        input: row.input_tokens,
        cached: row.cached_input_tokens,
        cache_creation_5m: row.cache_creation_5m_tokens,
        cache_creation_1h: row.cache_creation_1h_tokens,
        output: row.output_tokens,
        reasoning: row.reasoning_tokens,
        calls: calls.collect(),
        ..Usage::default()
    }
}

impl Line {
    fn of(item: &Item) -> Self {
        Self {
            what: item.what.replace('_', " "),
            count: grouped(item.count),
            // Pico-credits per token are millionths of a credit per million of them.
            rate: if item.is_call { decimal(item.rate, 12) } else { decimal(item.rate, 6) },
            is_call: item.is_call,
            product: decimal(item.pico, 12),
        }
    }
}

/// A whole number of units as a decimal with at most `places`, at least four.
fn decimal(units: impl Into<i128>, places: u32) -> String {
    let units: i128 = units.into();
    let one = 10_i128.pow(places);
    let digits = format!("{:0width$}", (units % one).abs(), width = places as usize);
    let kept = digits.trim_end_matches('0').len().max(4);
    format!("{}.{}", units / one, &digits[..kept.min(digits.len())])
}

/// A version of the price table, and when it came into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// Its version.
    pub version: String,
    /// Since when.
    pub at: Millis,
}

/// What was in force, the oldest first.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn history(store: &dyn Store) -> Result<Vec<InForce>, StoreError> {
    let found = store.document(&Scope::Installation, HISTORY).await?;
    Ok(found.and_then(|found| serde_json::from_str(&found.body).ok()).unwrap_or_default())
}

/// Writes down that a version is in force from now on, unless it is already.
async fn note(store: &dyn Store, version: &str) -> Result<(), StoreError> {
    loop {
        let found = store.document(&Scope::Installation, HISTORY).await?;
        let mut known: Vec<InForce> = found
            .as_ref()
            .and_then(|found| serde_json::from_str(&found.body).ok())
            .unwrap_or_default();
        if known.last().is_some_and(|last| last.version == version) {
            return Ok(());
        }
        known.push(InForce { version: version.to_owned(), at: time::now() });
        let body = serde_json::to_string(&known[known.len().saturating_sub(REMEMBERED)..])
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let put = Put {
            name: HISTORY.into(),
            body: Some(body),
            replaces: found.map(|found| found.version),
            expires_at: None,
        };
        match store.put_document(&Scope::Installation, put).await {
            // Another instance wrote at the same time.
            Err(StoreError::Conflict(_)) => {}
            other => return other.map(drop),
        }
    }
}

/// The table that a version names.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn table(state: &State, version: &str) -> Result<Option<Arc<PriceTable>>, StoreError> {
    let now = (state.prices)();
    if now.version == version {
        return Ok(Some(now));
    }
    let found = state.store.document(&Scope::Installation, &name(version)).await?;
    let read = found.and_then(|found| PriceTable::read(&found.body).ok());
    Ok(read.map(|(table, _)| Arc::new(table)))
}

/// Keeps a version of the price table, once, and that it is in force from now on. What it
/// priced can then be explained for good.
///
/// # Errors
///
/// When the store cannot be read or written.
pub async fn keep(store: &dyn Store, table: &PriceTable) -> Result<(), StoreError> {
    let name = name(&table.version);
    if store.document(&Scope::Installation, &name).await?.is_none() {
        let body = Some(table.text.to_string());
        let put = Put { name, body, replaces: None, expires_at: None };
        match store.put_document(&Scope::Installation, put).await {
            // Another instance kept it first.
            Ok(_) | Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
    note(store, &table.version).await
}

fn name(version: &str) -> String {
    format!("prices/{version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_and_a_product_read_as_decimals() {
        assert_eq!(decimal(3_300_000_i64, 6), "3.3000");
        assert_eq!(decimal(41_200_500_000_i64, 12), "0.0412005");
        assert_eq!(decimal(10_000_000_000_000_i64, 12), "10.0000");
        assert_eq!(decimal(37_500_i64, 6), "0.0375");
    }
}
