//! What a model costs, and the charge for one request.
//!
//! A price is bound to a model's entry in `pricing.toml` ([`table`] reads it). Rates are
//! whole pico-credits per token, which six decimals per million tokens always are, so a
//! charge is exact until its one rounding.

use std::collections::BTreeMap;

use super::{Credits, Usage};

mod check;
pub mod entry;
pub mod import;
pub mod problem;
pub mod read;
pub mod table;

pub use table::{Model, PriceTable};

/// Names of fees, which are those that [`Usage::calls`] counts under. Gemini bills searches
/// by the query (`web_search`) or by the reply (`grounding`), whatever the model's list says.
pub const FEES: [&str; 13] = [
    "code_interpreter",
    "collections_search",
    "computer_use",
    "file_search",
    "grounding",
    "image_generation",
    "maps_grounding",
    "mcp",
    "shell",
    "url_context",
    "web_fetch",
    "web_search",
    "x_search",
];

/// Pico-credits (10⁻¹²) per token: a rate per million tokens times 10⁶.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub i64);

impl Rate {
    pub(super) fn times(self, tokens: u64) -> i128 {
        i128::from(self.0) * i128::from(tokens)
    }
}

/// The rates of one band of one tier. A rate that is `None` falls back as
/// [`charge`] says; an explicit zero is a price.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Input outside any cache.
    pub input: Rate,
    /// Output, reasoning included unless that has a rate of its own.
    pub output: Rate,
    /// Input read from a cache; without it, `input`.
    pub cached_input: Option<Rate>,
    /// Input written to a cache; without it, `input`.
    pub cache_creation: Option<Rate>,
    /// Input written to a cache for an hour; without it, `cache_creation`.
    pub cache_creation_1h: Option<Rate>,
    /// Reasoning; without it, `output`.
    pub reasoning: Option<Rate>,
    /// Audio input; without it, `input`.
    pub audio_input: Option<Rate>,
    /// Audio input read from a cache; without it, `cached_input`.
    pub cached_audio_input: Option<Rate>,
    /// Audio output; without it, `output`.
    pub audio_output: Option<Rate>,
    /// Image input; without it, `input`.
    pub image_input: Option<Rate>,
    /// Image output; without it, `output`.
    pub image_output: Option<Rate>,
}

impl Rates {
    /// Whether tokens of audio or of an image have a rate of their own.
    fn has_media(&self) -> bool {
        let Self {
            audio_input, cached_audio_input, audio_output, image_input, image_output, ..
        } = self;
        [audio_input, cached_audio_input, audio_output, image_input, image_output]
            .iter()
            .any(|rate| rate.is_some())
    }
}

/// Rates for requests whose whole input is larger than `above` tokens.
///
/// All of such a request takes the dearer rates, not only what exceeds the threshold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Band {
    /// Tokens of input, of every class, that must be exceeded.
    pub above: u64,
    /// What then holds.
    pub rates: Rates,
}

/// Base rates and the long-context bands above them, dearest threshold last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tier {
    /// Up to the first band.
    pub rates: Rates,
    /// Ascending by `above`.
    pub bands: Vec<Band>,
}

impl Tier {
    /// The rates for a request with this much input.
    pub fn rates(&self, all_input: u64) -> &Rates {
        self.bands
            .iter()
            .rev()
            .find(|band| all_input > band.above)
            .map_or(&self.rates, |band| &band.rates)
    }
}

/// What a model costs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// The default service tier.
    pub standard: Tier,
    /// Other service tiers, by the name that the upstream's reply gives them.
    pub tiers: BTreeMap<String, Tier>,
    /// Credits per call of a tool that the upstream runs, by name: `web_search`,
    /// `file_search`, `code_interpreter`, …
    pub fees: BTreeMap<String, Credits>,
    /// Costs nothing, on purpose.
    pub free: bool,
}

impl Price {
    /// The tier that a reply names; the standard one where it names none that is priced.
    pub fn tier(&self, name: Option<&str>) -> &Tier {
        name.and_then(|name| self.tiers.get(name)).unwrap_or(&self.standard)
    }

    /// Whether any token of audio or of an image has a rate of its own.
    pub fn has_media_rates(&self) -> bool {
        let tiers = [&self.standard].into_iter().chain(self.tiers.values());
        tiers
            .flat_map(|tier| [&tier.rates].into_iter().chain(tier.bands.iter().map(|b| &b.rates)))
            .any(Rates::has_media)
    }
}

/// Why a charge could not be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// The sum is beyond what one entry may hold, so the counts cannot be true.
    #[error("the charge is beyond the limit of 1,000,000 credits for one request")]
    OutOfRange,
}

/// The charge for one request.
///
/// Rates are pico-credits per token. The sum is exact and is rounded once, half up, to the
/// nano-credit. The classes do not overlap: where a wire counts cached input inside the
/// input total (OpenAI API reference, `usage`), `wire` has taken it out. Audio, images and
/// reasoning are parts of their class and are priced apart only by a rate of their own.
/// `tier` is the service tier that the reply names.
///
/// # Errors
///
/// [`PriceError::OutOfRange`] when the charge is beyond [`Credits::ENTRY_LIMIT`].
pub fn charge(usage: &Usage, price: &Price, tier: Option<&str>) -> Result<Credits, PriceError> {
    if price.free {
        return Ok(Credits::ZERO);
    }
    let mut pico = 0;
    each(usage, price, tier, |item| pico += item.pico);
    match Credits::from_pico(pico) {
        Some(charge) if charge <= Credits::ENTRY_LIMIT => Ok(charge),
        _ => Err(PriceError::OutOfRange),
    }
}

/// One product of a charge: tokens of a class, or calls of a tool, at their rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The class, as `pricing.toml` names its rate, or the tool.
    pub what: &'static str,
    /// Tokens or calls.
    pub count: u64,
    /// Pico-credits for one of them.
    pub rate: i64,
    /// Whether they are calls.
    pub is_call: bool,
    /// The product, in pico-credits.
    pub pico: i128,
}

/// What a charge is the sum of; nothing where nothing is counted or the model is free.
pub fn itemise(usage: &Usage, price: &Price, tier: Option<&str>) -> Vec<Item> {
    let mut items = Vec::new();
    if !price.free {
        each(usage, price, tier, |item| items.push(item));
        items.retain(|item| item.count > 0);
    }
    items
}

/// Every product of a charge. Audio, images and reasoning are taken out of their class where
/// they have a rate of their own, and are never more than it, whatever an upstream says.
fn each(usage: &Usage, price: &Price, tier: Option<&str>, mut item: impl FnMut(Item)) {
    let rates = price.tier(tier).rates(usage.all_input());
    let cached_rate = rates.cached_input.unwrap_or(rates.input);
    let creation_rate = rates.cache_creation.unwrap_or(rates.input);
    let long_rate = rates.cache_creation_1h.unwrap_or(creation_rate);
    let mut tokens = |what, count, rate: Rate| {
        item(Item { what, count, rate: rate.0, is_call: false, pico: rate.times(count) });
    };
    let mut class = |what, rate, class: u64, parts: &[(&'static str, Option<Rate>, u64)]| {
        let mut rest = class;
        for &(what, own, count) in parts {
            if let Some(own) = own {
                let count = count.min(rest);
                rest -= count;
                tokens(what, count, own);
            }
        }
        tokens(what, rest, rate);
    };
    class(
        "input",
        rates.input,
        usage.input,
        &[
            ("audio_input", rates.audio_input, usage.input_audio),
            ("image_input", rates.image_input, usage.input_image),
        ],
    );
    let cached_audio = ("cached_audio_input", rates.cached_audio_input, usage.cached_audio);
    class("cached_input", cached_rate, usage.cached, &[cached_audio]);
    class("cache_creation", creation_rate, usage.cache_creation_5m, &[]);
    class("cache_creation_1h", long_rate, usage.cache_creation_1h, &[]);
    class(
        "output",
        rates.output,
        usage.output,
        &[
            ("audio_output", rates.audio_output, usage.output_audio),
            ("image_output", rates.image_output, usage.output_image),
            ("reasoning", rates.reasoning, usage.reasoning),
        ],
    );
    for (call, count) in &usage.calls {
        let rate = price.fees.get(*call).copied().unwrap_or_default().nano() * 1000;
        let pico = i128::from(rate) * i128::from(*count);
        item(Item { what: call, count: *count, rate, is_call: true, pico });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(per_million: &str) -> Rate {
        table::rate(per_million).unwrap()
    }

    /// Claude Sonnet 4.5 as it ships.
    fn sonnet() -> Price {
        let rates = Rates {
            input: rate("3.3"),
            output: rate("16.5"),
            cached_input: Some(rate("0.33")),
            cache_creation: Some(rate("4.125")),
            ..Rates::default()
        };
        Price { standard: Tier { rates, bands: vec![] }, ..Price::default() }
    }

    #[test]
    fn four_classes_of_sonnet_cost_what_the_worked_example_says() {
        let usage = Usage {
            input: 12_000,
            cached: 3_000,
            cache_creation_5m: 1_000,
            output: 800,
            ..Usage::default()
        };
        assert_eq!(charge(&usage, &sonnet(), None), Ok("0.057915".parse().unwrap()));
    }

    #[test]
    fn a_charge_is_rounded_once_half_up() {
        let rates = Rates { input: rate("0.0375"), ..Rates::default() };
        let price = Price { standard: Tier { rates, bands: vec![] }, ..Price::default() };
        let usage = Usage { input: 3, ..Usage::default() };
        assert_eq!(charge(&usage, &price, None), Ok(Credits::from_nano(113)));
    }

    #[test]
    fn a_band_takes_the_whole_request_just_above_its_threshold() {
        let mut price = sonnet();
        let dear = Rates { input: rate("6.6"), output: rate("24.75"), ..Rates::default() };
        price.standard.bands = vec![Band { above: 200_000, rates: dear }];
        let at =
            |input| charge(&Usage { input, ..Usage::default() }, &price, None).unwrap().to_string();
        assert_eq!(at(200_000), "0.66");
        assert_eq!(at(200_001), "1.3200066");
    }

    #[test]
    fn a_tier_of_the_reply_sets_the_rates_and_an_unknown_one_does_not() {
        let mut price = sonnet();
        let rates = Rates { input: rate("6.6"), ..price.standard.rates.clone() };
        price.tiers.insert("priority".into(), Tier { rates, bands: vec![] });
        let usage = Usage { input: 1_000_000, ..Usage::default() };
        let cost = |tier| charge(&usage, &price, tier).unwrap().to_string();
        assert_eq!(cost(Some("priority")), "6.6");
        assert_eq!(cost(Some("default")), "3.3");
        assert_eq!(cost(None), "3.3");
    }

    #[test]
    fn calls_of_hosted_tools_cost_their_fee_each() {
        let mut price = sonnet();
        price.fees.insert("web_search".into(), "0.01".parse().unwrap());
        let usage = Usage { calls: [("web_search", 7)].into(), ..Usage::default() };
        assert_eq!(charge(&usage, &price, None), Ok("0.07".parse().unwrap()));
    }

    #[test]
    fn counts_beyond_belief_are_refused_and_not_wrapped() {
        let usage = Usage { input: u64::MAX, output: u64::MAX, ..Usage::default() };
        assert_eq!(charge(&usage, &sonnet(), None), Err(PriceError::OutOfRange));
    }

    #[test]
    fn a_charge_is_told_as_products_that_add_up_to_it() {
        let usage = Usage {
            input: 12_485,
            cached: 96_000,
            output: 812,
            calls: [("web_search", 2)].into(),
            ..Usage::default()
        };
        let mut price = sonnet();
        price.fees.insert("web_search".into(), "0.01".parse().unwrap());
        let items = itemise(&usage, &price, None);
        let told: Vec<_> = items.iter().map(|item| (item.what, item.count)).collect();
        assert_eq!(
            told,
            [("input", 12_485), ("cached_input", 96_000), ("output", 812), ("web_search", 2)]
        );
        let sum = Credits::from_pico(items.iter().map(|item| item.pico).sum());
        assert_eq!(sum, charge(&usage, &price, None).ok());
        assert!(itemise(&usage, &Price { free: true, ..price }, None).is_empty());
    }

    proptest! {
        /// Parts are priced inside their class: with equal rates they change nothing.
        #[test]
        fn parts_with_the_rate_of_their_class_change_nothing(
            output in 0_u64..10_000_000,
            reasoning in 0_u64..20_000_000,
            audio in 0_u64..20_000_000,
        ) {
            let mut price = sonnet();
            let usage = Usage { output, reasoning, output_audio: audio, ..Usage::default() };
            let plain = charge(&usage, &price, None);
            price.standard.rates.reasoning = Some(price.standard.rates.output);
            price.standard.rates.audio_output = Some(price.standard.rates.output);
            prop_assert_eq!(charge(&usage, &price, None), plain);
        }
    }
}
