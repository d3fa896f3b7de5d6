//! The tests' price list, and what a request costs by it, computed apart from the program.
//!
//! Rates have at most three decimals, so that every charge is a whole number of nano-credits
//! and a test can be checked by hand; `fine` is the exception, made for rounding.

use std::fmt::Write;

use farebox::billing::Credits;

/// Tokens of one request in classes that do not overlap (`reasoning` is a part of `output`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub input: u64,
    pub cached: u64,
    pub cache_creation_5m: u64,
    pub cache_creation_1h: u64,
    pub output: u64,
    pub reasoning: u64,
}

impl Counts {
    /// A request without a cache.
    pub const fn new(input: u64, output: u64) -> Self {
        Self { input, cached: 0, cache_creation_5m: 0, cache_creation_1h: 0, output, reasoning: 0 }
    }

    /// Everything that went in, whatever its class.
    pub const fn all_input(&self) -> u64 {
        self.input + self.cached + self.cache_creation_5m + self.cache_creation_1h
    }
}

/// Credits per million tokens, as `pricing.toml` writes them.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub input: &'static str,
    pub output: &'static str,
    pub cached_input: &'static str,
    pub cache_creation: &'static str,
    pub cache_creation_1h: &'static str,
    pub audio_input: &'static str,
    pub cached_audio_input: &'static str,
    pub audio_output: &'static str,
}

/// Parts of classes that have rates of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audio {
    pub input: u64,
    pub cached: u64,
    pub output: u64,
}

impl Rates {
    /// Pico-credits: exact, before any rounding.
    pub fn pico(&self, counts: &Counts, audio: Audio) -> i128 {
        let times = |rate: &str, tokens: u64| pico_per_token(rate) * i128::from(tokens);
        times(self.input, counts.input - audio.input)
            + times(self.audio_input, audio.input)
            + times(self.cached_input, counts.cached - audio.cached)
            + times(self.cached_audio_input, audio.cached)
            + times(self.cache_creation, counts.cache_creation_5m)
            + times(self.cache_creation_1h, counts.cache_creation_1h)
            + times(self.output, counts.output - audio.output)
            + times(self.audio_output, audio.output)
    }

    fn toml(&self, text: &mut String) {
        let rates = [
            ("input", self.input),
            ("output", self.output),
            ("cached_input", self.cached_input),
            ("cache_creation", self.cache_creation),
            ("cache_creation_1h", self.cache_creation_1h),
            ("audio_input", self.audio_input),
            ("cached_audio_input", self.cached_audio_input),
            ("audio_output", self.audio_output),
        ];
        for (name, rate) in rates {
            writeln!(text, "{name} = \"{rate}\"").unwrap();
        }
    }
}

/// Ten credits a million in, twenty out: 0.00001 and 0.00002 a token.
pub const PLAIN: Rates = Rates {
    input: "10",
    output: "20",
    cached_input: "1",
    cache_creation: "12.5",
    cache_creation_1h: "15",
    audio_input: "30",
    cached_audio_input: "3",
    audio_output: "60",
};
/// `PLAIN` by the tier `priority`.
pub const PRIORITY: Rates = Rates {
    input: "17",
    output: "34",
    cached_input: "1.7",
    cache_creation: "21.25",
    cache_creation_1h: "25.5",
    audio_input: "51",
    cached_audio_input: "5.1",
    audio_output: "102",
};
/// `PLAIN` by the tier `flex`.
pub const FLEX: Rates = Rates {
    input: "5",
    output: "10",
    cached_input: "0.5",
    cache_creation: "6.25",
    cache_creation_1h: "7.5",
    audio_input: "15",
    cached_audio_input: "1.5",
    audio_output: "30",
};
/// For a model that is served in place of another, or beside it.
pub const OTHER: Rates = Rates {
    input: "7",
    output: "70",
    cached_input: "0.7",
    cache_creation: "8.75",
    cache_creation_1h: "14",
    audio_input: "70",
    cached_audio_input: "0.07",
    audio_output: "77",
};
/// Three tokens in cost 112.5 nano-credits: rounded half up, 113.
pub const FINE: Rates = Rates { input: "0.0375", output: "0.0375", ..PLAIN };

/// Credits per web search of every model of the list.
pub const WEB_SEARCH_FEE: &str = "0.01";

/// A model of the list: its name, its upstream's name, its rates, more lines of its entry.
pub struct Model {
    pub name: &'static str,
    pub upstream: &'static str,
    pub rates: Rates,
    pub more: &'static str,
}

/// Every model that the tests may name.
pub const MODELS: &[Model] = &[
    Model { name: "test", upstream: "openai", rates: PLAIN, more: "context = 128000" },
    Model { name: "other", upstream: "openai", rates: OTHER, more: "" },
    Model { name: "fine", upstream: "openai", rates: FINE, more: "" },
    Model { name: "claude", upstream: "anthropic", rates: PLAIN, more: "" },
    Model { name: "gemini", upstream: "gemini", rates: PLAIN, more: "" },
    Model {
        name: "claude-fallback",
        upstream: "anthropic",
        rates: PLAIN,
        more: "serves = [\"claude-opus-4-8\"]",
    },
    Model { name: "claude-opus-4-7", upstream: "anthropic", rates: OTHER, more: "" },
    Model { name: "claude-opus-4-8", upstream: "anthropic", rates: OTHER, more: "" },
];

/// The list as `pricing.toml`.
pub fn toml() -> String {
    let mut text = String::new();
    for model in MODELS {
        writeln!(text, "[models.\"{}\"]\nupstream = \"{}\"", model.name, model.upstream).unwrap();
        model.rates.toml(&mut text);
        if !model.more.is_empty() {
            writeln!(text, "{}", model.more).unwrap();
        }
        writeln!(text, "fees = {{ web_search = \"{WEB_SEARCH_FEE}\" }}").unwrap();
        for (tier, rates) in [("priority", PRIORITY), ("flex", FLEX)] {
            writeln!(text, "[models.\"{}\".tiers.{tier}]", model.name).unwrap();
            rates.toml(&mut text);
        }
        text.push('\n');
    }
    text
}

/// The rates of a model of the list, by the tier that a reply names.
pub fn rates(model: &str, tier: Option<&str>) -> Rates {
    match tier {
        Some("priority") => PRIORITY,
        Some("flex") => FLEX,
        _ => MODELS.iter().find(|m| m.name == model).expect("a model of the list").rates,
    }
}

/// What a request costs at the standard tier, rounded half up once.
pub fn charge(model: &str, counts: &Counts) -> Credits {
    round(rates(model, None).pico(counts, Audio::default()))
}

/// Pico-credits, half up, to the nano-credit.
pub fn round(pico: i128) -> Credits {
    Credits::from_nano(i64::try_from((pico + 500).div_euclid(1000)).unwrap())
}

/// Pico-credits for a fee such as `0.01`.
pub fn pico_of(credits: &str) -> i128 {
    // A rate per million tokens, in pico-credits per token, times a million.
    pico_per_token(credits) * 1_000_000
}

fn pico_per_token(rate: &str) -> i128 {
    let (whole, part) = rate.split_once('.').unwrap_or((rate, ""));
    format!("{whole}{part:0<6}").parse().unwrap()
}
