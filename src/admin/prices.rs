//! The price table as the operator set it: rates per million tokens, as decimal strings.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use serde::Serialize;
use utoipa::ToSchema;

use super::State;
use crate::billing::Credits;
use crate::billing::price::{Model, PriceTable, Rate, Rates, Tier};

/// The price table that requests are admitted by now.
#[derive(Debug, Serialize, ToSchema)]
pub struct Prices {
    /// As `price_version` of usage rows.
    version: String,
    /// In the order of the file.
    data: Vec<ModelPrice>,
}

/// A model and what it costs.
#[derive(Debug, Serialize, ToSchema)]
struct ModelPrice {
    /// The id that clients send.
    model: String,
    /// In the order they are tried.
    upstreams: Vec<UpstreamModel>,
    /// Costs nothing, on purpose.
    free: bool,
    #[serde(flatten)]
    standard: TierPrice,
    /// Other service tiers.
    tiers: BTreeMap<String, TierPrice>,
    /// Credits per call of a tool that the upstream runs.
    #[schema(value_type = BTreeMap<String, String>)]
    fees: BTreeMap<String, Credits>,
    /// Largest context, in tokens.
    context: Option<u64>,
    /// Largest output, in tokens.
    max_output: Option<u64>,
    /// Other ids for this model.
    aliases: Vec<String>,
    /// Where the price was read.
    source: Option<String>,
    /// When, as `YYYY-MM-DD`.
    date: Option<String>,
}

/// Where a model's requests go.
#[derive(Debug, Serialize, ToSchema)]
struct UpstreamModel {
    /// The upstream's name.
    upstream: String,
    /// Its name of the model.
    model: String,
}

/// Rates, and the dearer ones of long requests.
#[derive(Debug, Serialize, ToSchema)]
struct TierPrice {
    /// By class; a class that is absent takes the rate of the one it is a part of.
    rates: BTreeMap<&'static str, String>,
    /// Ascending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bands: Vec<BandPrice>,
}

/// Rates of requests whose whole input is larger than `above` tokens.
#[derive(Debug, Serialize, ToSchema)]
struct BandPrice {
    above: u64,
    rates: BTreeMap<&'static str, String>,
}

/// Every model that has a price.
#[utoipa::path(
    get, path = "/admin/v1/prices", tag = "prices",
    responses((status = 200, description = "The price table", body = Prices))
)]
pub async fn list(Shared(state): Shared<State>) -> Json<Prices> {
    Json(prices(&(state.prices)()))
}

fn prices(table: &PriceTable) -> Prices {
    Prices {
        version: table.version.clone(),
        data: table.models.iter().map(|model| model_price(model)).collect(),
    }
}

fn model_price(model: &Model) -> ModelPrice {
    let upstreams = model.upstreams.iter().map(|(upstream, model)| UpstreamModel {
        upstream: upstream.clone(),
        model: model.clone(),
    });
    let tiers = model.price.tiers.iter().map(|(name, tier)| (name.clone(), tier_price(tier)));
    let fees = model.price.fees.iter().map(|(name, fee)| (name.clone(), *fee));
    ModelPrice {
        model: model.name.clone(),
        upstreams: upstreams.collect(),
        free: model.price.free,
        standard: tier_price(&model.price.standard),
        tiers: tiers.collect(),
        fees: fees.collect(),
        context: model.context,
        max_output: model.max_output,
        aliases: model.aliases.clone(),
        source: model.source.clone(),
        date: model.date.clone(),
    }
}

fn tier_price(tier: &Tier) -> TierPrice {
    let bands =
        tier.bands.iter().map(|band| BandPrice { above: band.above, rates: rates(&band.rates) });
    TierPrice { rates: rates(&tier.rates), bands: bands.collect() }
}

/// The rates that are set, by the names of `pricing.toml`.
fn rates(rates: &Rates) -> BTreeMap<&'static str, String> {
    [
        ("input", Some(rates.input)),
        ("output", Some(rates.output)),
        ("cached_input", rates.cached_input),
        ("cache_creation", rates.cache_creation),
        ("cache_creation_1h", rates.cache_creation_1h),
        ("reasoning", rates.reasoning),
        ("audio_input", rates.audio_input),
        ("cached_audio_input", rates.cached_audio_input),
        ("audio_output", rates.audio_output),
        ("image_input", rates.image_input),
        ("image_output", rates.image_output),
    ]
    .into_iter()
    .filter_map(|(name, rate)| Some((name, per_million(rate?))))
    .collect()
}

/// A rate as credits per million tokens. Micro-credits per million tokens are
/// pico-credits per token, so the text is exact.
fn per_million(rate: Rate) -> String {
    Credits::from_nano(rate.0.saturating_mul(1000)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::price::table::rate;

    #[test]
    fn a_rate_is_shown_as_it_stands_in_the_file() {
        for text in ["0", "3.3", "0.0375", "0.000001", "10000"] {
            assert_eq!(per_million(rate(text).unwrap()), text);
        }
    }
}
