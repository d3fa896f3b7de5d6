//! An entry of `pricing.toml` as it is written, and the [`Model`] that it stands for.
//!
//! Rates that are not stated are inherited: a tier's from the entry, a band's from the entry
//! or tier that it belongs to, and a tier without bands has the bands of the entry, because
//! price lists state only what differs, and a class of tokens must not turn free or change
//! its meaning where a list is silent. A class that is stated nowhere falls back as
//! [`Rates`] says.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::table::{decimal, rate};
use super::{Band, Model, Price, Rate, Rates, Tier};
use crate::billing::Credits;

/// The keys of rates, in the order in which they are written.
pub const RATES: [&str; 11] = [
    "input",
    "cached_input",
    "cache_creation",
    "cache_creation_1h",
    "output",
    "reasoning",
    "audio_input",
    "cached_audio_input",
    "audio_output",
    "image_input",
    "image_output",
];

/// Rates of parts of a class, beside the class.
pub(super) const PARTS: [(&str, &str); 6] = [
    ("audio_input", "input"),
    ("image_input", "input"),
    ("cached_audio_input", "cached_input"),
    ("reasoning", "output"),
    ("audio_output", "output"),
    ("image_output", "output"),
];

/// Rates by their key of [`RATES`].
pub type Stated = BTreeMap<&'static str, Rate>;

/// A factor on the rates and fees of an entry, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Markup(pub i64);

/// One model, as the file states it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The id that clients send.
    pub name: String,
    /// Upstreams in the order they are tried: the upstream's name, and its name of the model.
    pub upstreams: Vec<(String, String)>,
    /// Costs nothing, on purpose.
    pub free: bool,
    /// Rates of the standard tier, below any band.
    pub rates: Stated,
    /// Ascending.
    pub bands: Vec<StatedBand>,
    /// By the name that the upstream's reply gives them.
    pub tiers: BTreeMap<String, StatedTier>,
    /// Per call, by name.
    pub fees: BTreeMap<String, Credits>,
    /// The entry's own markup, in place of the file's.
    pub markup: Option<Markup>,
    /// Largest context, in tokens.
    pub context: Option<u64>,
    /// Largest output, in tokens.
    pub max_output: Option<u64>,
    /// Other ids.
    pub aliases: Vec<String>,
    /// Other models that the upstream may answer with.
    pub serves: Vec<String>,
    /// Where the price was read.
    pub source: Option<String>,
    /// When it was read, as `YYYY-MM-DD`.
    pub date: Option<String>,
}

/// A long-context band, as the file states it.
#[derive(Clone, Debug, PartialEq)]
pub struct StatedBand {
    /// Tokens of input that must be exceeded.
    pub above: u64,
    /// What differs.
    pub rates: Stated,
}

/// A service tier, as the file states it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatedTier {
    /// What differs from the entry.
    pub rates: Stated,
    /// `None` for the bands of the entry.
    pub bands: Option<Vec<StatedBand>>,
}

impl Markup {
    /// No markup.
    pub const ONE: Self = Self(1_000_000);
    /// No markup is believed to be larger: credits may be small, such as a hundredth of a
    /// dollar.
    const MAX: Self = Self(1_000_000_000);

    /// Reads a factor such as `1.10`: above 0, up to 1000, with at most six decimals.
    pub fn read(text: &str) -> Option<Self> {
        let markup = rate(text).map(|Rate(millionths)| Self(millionths))?;
        (Self(0) < markup && markup <= Self::MAX).then_some(markup)
    }

    /// `value` times the markup, rounded half up to whole units: pico for rates, nano for
    /// fees. Saturates, which the limits on rates and markups keep from happening.
    fn times(self, value: i64) -> i64 {
        let product = i128::from(value) * i128::from(self.0);
        i64::try_from((product + 500_000).div_euclid(1_000_000)).unwrap_or(i64::MAX)
    }

    /// A rate with the markup on it.
    pub fn rate(self, rate: Rate) -> Rate {
        Rate(self.times(rate.0))
    }

    fn text(self) -> String {
        decimal(self.0, 6)
    }
}

impl Default for Markup {
    fn default() -> Self {
        Self::ONE
    }
}

/// A key of [`RATES`], from a key of the file.
pub fn rate_key(key: &str) -> Option<&'static str> {
    RATES.into_iter().find(|known| *known == key)
}

impl Entry {
    /// An entry that states nothing yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            upstreams: vec![],
            free: false,
            rates: Stated::new(),
            bands: vec![],
            tiers: BTreeMap::new(),
            fees: BTreeMap::new(),
            markup: None,
            context: None,
            max_output: None,
            aliases: vec![],
            serves: vec![],
            source: None,
            date: None,
        }
    }

    /// The model that the entry stands for, with its own markup or else the file's.
    pub fn model(&self, file_markup: Markup) -> Model {
        let markup = self.markup.unwrap_or(file_markup);
        let tiers = self.tiers.iter().map(|(name, tier)| {
            let bands = tier.bands.as_ref().unwrap_or(&self.bands);
            (name.clone(), priced(&over(&self.rates, &tier.rates), bands, markup))
        });
        let fees = self
            .fees
            .iter()
            .map(|(name, fee)| (name.clone(), Credits::from_nano(markup.times(fee.nano()))));
        Model {
            name: self.name.clone(),
            upstreams: self.upstreams.clone(),
            price: Price {
                standard: priced(&self.rates, &self.bands, markup),
                tiers: tiers.collect(),
                fees: fees.collect(),
                free: self.free,
            },
            context: self.context,
            max_output: self.max_output,
            aliases: self.aliases.clone(),
            serves: self.serves.clone(),
            source: self.source.clone(),
            date: self.date.clone(),
        }
    }

    /// Everything that is stated of prices and limits, by its path in the file.
    pub fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        add_rates(&mut facts, "", &self.rates);
        add_bands(&mut facts, "", &self.bands);
        for (name, tier) in &self.tiers {
            let path = format!("tiers.{name}.");
            add_rates(&mut facts, &path, &tier.rates);
            match &tier.bands {
                Some(bands) if bands.is_empty() => {
                    facts.insert(format!("{path}bands"), "none".into());
                }
                bands => add_bands(&mut facts, &path, bands.as_deref().unwrap_or_default()),
            }
        }
        for (name, fee) in &self.fees {
            facts.insert(format!("fees.{name}"), fee.to_string());
        }
        for (key, tokens) in [("context", self.context), ("max_output", self.max_output)] {
            facts.extend(tokens.map(|tokens| (key.to_owned(), tokens.to_string())));
        }
        facts.extend(self.markup.map(|markup| ("markup".to_owned(), markup.text())));
        facts.extend(self.free.then(|| ("free".to_owned(), "true".to_owned())));
        facts
    }

    /// The entry as `pricing.toml` writes it.
    pub fn toml(&self) -> String {
        let mut out = String::new();
        let name = quoted(&self.name);
        line(&mut out, format_args!("[models.{name}]"));
        let (upstreams, models): (Vec<_>, Vec<_>) = self.upstreams.iter().cloned().unzip();
        line(&mut out, format_args!("upstream = {}", one_or_list(&upstreams)));
        if models.iter().any(|model| *model != self.name) {
            line(&mut out, format_args!("upstream_model = {}", one_or_list(&models)));
        }
        if self.free {
            line(&mut out, format_args!("free = true"));
        }
        write_rates(&mut out, &self.rates);
        if !self.fees.is_empty() {
            let fees =
                self.fees.iter().map(|(name, fee)| format!("{} = \"{fee}\"", quoted_key(name)));
            line(&mut out, format_args!("fees = {{ {} }}", fees.collect::<Vec<_>>().join(", ")));
        }
        if let Some(markup) = self.markup {
            line(&mut out, format_args!("markup = \"{}\"", markup.text()));
        }
        for (key, tokens) in [("context", self.context), ("max_output", self.max_output)] {
            if let Some(tokens) = tokens {
                line(&mut out, format_args!("{key} = {tokens}"));
            }
        }
        for (key, ids) in [("aliases", &self.aliases), ("serves", &self.serves)] {
            if !ids.is_empty() {
                line(&mut out, format_args!("{key} = {}", list(ids)));
            }
        }
        for (key, text) in [("source", &self.source), ("date", &self.date)] {
            if let Some(text) = text {
                line(&mut out, format_args!("{key} = {}", quoted(text)));
            }
        }
        write_bands(&mut out, &format!("models.{name}"), &self.bands);
        for (tier_name, tier) in &self.tiers {
            let path = format!("models.{name}.tiers.{}", quoted_key(tier_name));
            line(&mut out, format_args!("[{path}]"));
            write_rates(&mut out, &tier.rates);
            match &tier.bands {
                Some(bands) if bands.is_empty() => line(&mut out, format_args!("bands = []")),
                Some(bands) => write_bands(&mut out, &path, bands),
                None => {}
            }
        }
        out
    }
}

/// `base`, with what `own` states in place of it.
fn over(base: &Stated, own: &Stated) -> Stated {
    let mut rates = base.clone();
    rates.extend(own);
    rates
}

fn priced(rates: &Stated, bands: &[StatedBand], markup: Markup) -> Tier {
    let bands = bands.iter().map(|band| Band {
        above: band.above,
        rates: marked_up(&over(rates, &band.rates), markup),
    });
    Tier { rates: marked_up(rates, markup), bands: bands.collect() }
}

impl Rates {
    /// Every rate under its key, in the order of [`RATES`]; `None` where it falls back.
    pub fn named(&self) -> [(&'static str, Option<Rate>); 11] {
        let rates = [
            Some(self.input),
            self.cached_input,
            self.cache_creation,
            self.cache_creation_1h,
            Some(self.output),
            self.reasoning,
            self.audio_input,
            self.cached_audio_input,
            self.audio_output,
            self.image_input,
            self.image_output,
        ];
        std::array::from_fn(|at| (RATES[at], rates[at]))
    }
}

fn marked_up(stated: &Stated, markup: Markup) -> Rates {
    let rate = |key| stated.get(key).map(|rate: &Rate| markup.rate(*rate));
    Rates {
        input: rate("input").unwrap_or_default(),
        output: rate("output").unwrap_or_default(),
        cached_input: rate("cached_input"),
        cache_creation: rate("cache_creation"),
        cache_creation_1h: rate("cache_creation_1h"),
        reasoning: rate("reasoning"),
        audio_input: rate("audio_input"),
        cached_audio_input: rate("cached_audio_input"),
        audio_output: rate("audio_output"),
        image_input: rate("image_input"),
        image_output: rate("image_output"),
    }
}

fn add_rates(facts: &mut BTreeMap<String, String>, path: &str, rates: &Stated) {
    facts.extend(rates.iter().map(|(key, rate)| (format!("{path}{key}"), rate.to_string())));
}

fn add_bands(facts: &mut BTreeMap<String, String>, path: &str, bands: &[StatedBand]) {
    for band in bands {
        add_rates(facts, &format!("{path}above {}.", band.above), &band.rates);
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn write_rates(out: &mut String, rates: &Stated) {
    for key in RATES {
        if let Some(rate) = rates.get(key) {
            line(out, format_args!("{key} = \"{rate}\""));
        }
    }
}

fn write_bands(out: &mut String, path: &str, bands: &[StatedBand]) {
    for band in bands {
        line(out, format_args!("[[{path}.bands]]"));
        line(out, format_args!("above = {}", band.above));
        write_rates(out, &band.rates);
    }
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn quoted_key(key: &str) -> String {
    let is_bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !key.is_empty() && key.bytes().all(is_bare) { key.to_owned() } else { quoted(key) }
}

fn list(texts: &[String]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

fn one_or_list(texts: &[String]) -> String {
    match texts {
        [one] => quoted(one),
        texts => list(texts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::price::PriceTable;
    use crate::billing::price::read::read_file;

    const FULL: &str = r#"[models."m"]
upstream = ["a", "b"]
upstream_model = ["m-1", "m-2"]
input = "3.3"
cached_input = "0.33"
output = "16.5"
fees = { web_search = "0.01" }
markup = "1.5"
context = 200000
max_output = 64000
aliases = ["n", "o"]
serves = ["n"]
source = "the list"
date = "2026-11-21"
[[models."m".bands]]
above = 100000
input = "6.6"
[models."m".tiers.flex]
input = "1.65"
bands = []
[models."m".tiers.priority]
input = "6.6"
[[models."m".tiers.priority.bands]]
above = 200000
output = "33"
"#;

    #[test]
    fn an_entry_is_written_as_it_was_read() {
        let (file, problems) = read_file(FULL);
        assert_eq!(problems, []);
        assert_eq!(file.entries[0].entry.toml(), FULL);
    }

    fn input(tier: &Tier, all_input: u64) -> String {
        tier.rates(all_input).input.to_string()
    }

    #[test]
    fn a_band_and_a_tier_inherit_what_they_do_not_state() {
        let (table, _) = PriceTable::read(&FULL.replace("markup = \"1.5\"\n", "")).unwrap();
        let price = &table.find("m").unwrap().price;
        let band = price.standard.rates(100_001);
        assert_eq!((band.input, band.output), (Rate(6_600_000), Rate(16_500_000)));
        assert_eq!(band.cached_input, Some(Rate(330_000)));

        let priority = price.tier(Some("priority"));
        assert_eq!(priority.rates.output, Rate(16_500_000));
        assert_eq!(priority.rates(200_001).input, Rate(6_600_000));
        assert_eq!(priority.rates(200_001).output, Rate(33_000_000));
    }

    #[test]
    fn rates_are_named_as_in_the_file() {
        let stated: Stated = RATES.into_iter().zip((1..).map(Rate)).collect();
        let named = marked_up(&stated, Markup::ONE).named();
        assert_eq!(named.map(|(key, rate)| rate == stated.get(key).copied()), [true; 11]);
    }

    #[test]
    fn a_tier_has_the_bands_of_its_entry_unless_it_states_its_own() {
        let text = FULL.replace("markup = \"1.5\"\n", "");
        let (table, _) = PriceTable::read(&text).unwrap();
        assert_eq!(input(table.find("m").unwrap().price.tier(Some("flex")), 100_001), "1.65");
        let (table, _) = PriceTable::read(&text.replace("bands = []\n", "")).unwrap();
        assert_eq!(input(table.find("m").unwrap().price.tier(Some("flex")), 100_001), "6.6");
    }

    #[test]
    fn a_markup_multiplies_rates_and_fees_and_the_entrys_own_replaces_the_files() {
        let base = "[models.m]\nupstream = \"u\"\ninput = \"3\"\noutput = \"0.000003\"\n\
                    tiers.fast.input = \"6\"\nbands = [{ above = 1, input = \"4\" }]\n\
                    fees = { web_search = \"0.000000005\" }\n";
        // 0.000003 × 1.5 = 0.0000045, and half a pico is rounded up.
        let text = format!("markup = \"1.5\"\n{}", base.replace("0.000003", "0.004003"));
        let (table, _) = PriceTable::read(&text).unwrap();
        let price = &table.find("m").unwrap().price;
        assert_eq!(price.standard.rates.input.to_string(), "4.5");
        assert_eq!(price.standard.rates.output.to_string(), "0.006005");
        assert_eq!(input(&price.standard, 2), "6");
        assert_eq!(input(price.tier(Some("fast")), 0), "9");
        assert_eq!(price.fees["web_search"], Credits::from_nano(8));

        let text = text.replace("upstream", "markup = \"2\"\nupstream");
        let (table, _) = PriceTable::read(&text).unwrap();
        assert_eq!(table.find("m").unwrap().price.standard.rates.input.to_string(), "6");
    }
}
