//! Reads `pricing.toml`: its text in, a table or every problem of it out.
//!
//! Rates are texts, because a TOML number is a float to most programs that write it, and
//! every problem is found in one go, each with its place.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use toml::de::DeTable;

use super::check::{check, meant};
use super::entry::{Entry, Markup, RATES, Stated, StatedBand, StatedTier, rate_key};
use super::problem::{Problem, Severity};
use super::{FEES, PriceTable};
use crate::billing::Credits;

mod values;

use values::{Key, Reader, Value, in_order};

/// The file, entry by entry, before inheritance and markup.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// The markup of entries that have none of their own.
    pub markup: Markup,
    /// In the order of the file.
    pub entries: Vec<Located>,
}

/// An entry and where it stands.
#[derive(Clone, Debug)]
pub struct Located {
    /// What is stated.
    pub entry: Entry,
    /// Where.
    pub places: Places,
}

/// Where the parts of an entry stand in the file, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The name, in the first header.
    pub name: Range<usize>,
    /// The value of each key; of a misspelt one under the key that was probably meant.
    pub keys: HashMap<String, Range<usize>>,
    /// In the order of the entry's aliases.
    pub aliases: Vec<Range<usize>>,
    /// In the order of the entry's `serves`.
    pub serves: Vec<Range<usize>>,
}

impl Places {
    /// Whether the key stands there, valid or not.
    pub fn is_stated(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// The value of a key, or else the entry's name.
    pub fn of(&self, key: &str) -> Range<usize> {
        self.keys.get(key).unwrap_or(&self.name).clone()
    }
}

impl PriceTable {
    /// Reads the text of a `pricing.toml`, all or nothing; with it come warnings.
    ///
    /// # Errors
    ///
    /// Every problem of the file, warnings included, in the order of the file.
    pub fn read(text: &str) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        let (file, mut problems) = read_file(text);
        problems.extend(check(&file));
        problems.sort_by_key(|problem| problem.span.start);
        if problems.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(problems);
        }
        let models = file.entries.iter().map(|located| Arc::new(located.entry.model(file.markup)));
        let models: Vec<_> = models.collect();
        let by_name = models.iter().flat_map(|model| {
            let ids = std::iter::once(&model.name).chain(&model.aliases);
            ids.map(|id| (id.clone(), Arc::clone(model)))
        });
        let by_name = by_name.collect();
        Ok((Self { version: version(text), text: text.into(), models, by_name }, problems))
    }
}

/// The first 12 hex digits of the text's SHA-256.
fn version(text: &str) -> String {
    let hash = Sha256::digest(text);
    hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Reads what is stated, and tells what cannot be read. What entries must be as a whole and
/// among themselves is not looked at.
pub fn read_file(text: &str) -> (File, Vec<Problem>) {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader::default();
    for error in errors {
        let span = error.span().unwrap_or_default();
        reader.problems.push(Problem::error(span, format!("not TOML: {}", error.message())));
    }
    let mut file = File::default();
    for (key, value) in in_order(document.get_ref()) {
        match key.get_ref().as_ref() {
            "markup" => file.markup = reader.markup(value).unwrap_or_default(),
            "models" => {
                for (name, value) in reader.table("models", value) {
                    file.entries.extend(reader.entry(name, value));
                }
            }
            other => drop(reader.unknown(other, key, ["markup", "models"])),
        }
    }
    if file.entries.is_empty() && reader.problems.is_empty() {
        reader.error(0..0, "no model has a price, so none can be served", "");
    }
    (file, reader.problems)
}

/// Keys of an entry beside its rates.
const KEYS: [&str; 13] = [
    "upstream",
    "upstream_model",
    "free",
    "bands",
    "tiers",
    "fees",
    "markup",
    "context",
    "max_output",
    "aliases",
    "serves",
    "source",
    "date",
];

/// No call of a tool is believed to cost more.
const MAX_FEE: Credits = Credits::from_nano(100_000_000_000);

impl Reader {
    fn entry(&mut self, key: &Key<'_>, value: &Value<'_>) -> Option<Located> {
        let name = key.get_ref().as_ref();
        let mut entry = Entry::new(name);
        let mut places = Places { name: key.span(), ..Places::default() };
        self.id(name, key.span());
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(name, value, "a table such as [models.\"NAME\"]");
            return None;
        };
        let (mut upstreams, mut upstream_models) = (vec![], vec![]);
        for (key, value) in in_order(table) {
            let key_name = key.get_ref().as_ref();
            places.keys.insert(key_name.to_owned(), value.span());
            if let Some(rate_key) = rate_key(key_name) {
                self.rate_into(&mut entry.rates, rate_key, value);
                continue;
            }
            match key_name {
                "upstream" => upstreams = self.one_or_more(key_name, value),
                "upstream_model" => upstream_models = self.one_or_more(key_name, value),
                "free" => entry.free = self.boolean(key_name, value),
                "bands" => entry.bands = self.bands(value),
                "tiers" => entry.tiers = self.tiers(value),
                "fees" => entry.fees = self.fees(value),
                "markup" => entry.markup = self.markup(value),
                "context" => entry.context = self.tokens(key_name, value),
                "max_output" => entry.max_output = self.tokens(key_name, value),
                "aliases" => (entry.aliases, places.aliases) = self.ids(key_name, value),
                "serves" => (entry.serves, places.serves) = self.ids(key_name, value),
                "source" => entry.source = self.text(key_name, value),
                "date" => entry.date = self.date(value),
                _ => {
                    let meant = self.misspelt(key_name, key, table, &mut places, name);
                    entry.free |= meant == Some("free");
                }
            }
        }
        entry.upstreams = self.upstreams(&places, name, upstreams, upstream_models);
        Some(Located { entry, places })
    }

    /// An unknown key of an entry; returns the one that was probably meant. That then counts
    /// as stated, so that one slip is one error, which tells what follows from it.
    fn misspelt(
        &mut self,
        name: &str,
        key: &Key<'_>,
        table: &DeTable<'_>,
        places: &mut Places,
        model: &str,
    ) -> Option<&'static str> {
        let meant = self.unknown(name, key, KEYS.into_iter().chain(RATES))?;
        if table.contains_key(meant) {
            return None;
        }
        places.keys.insert(meant.to_owned(), key.span());
        if let ("input" | "output", Some(problem)) = (meant, self.problems.last_mut()) {
            let note = format!("model \"{model}\" has no {meant} price, so it cannot be served");
            problem.note = Some(note);
        }
        Some(meant)
    }

    /// Each upstream with its name of the model: one name for all, one each, or the entry's own.
    fn upstreams(
        &mut self,
        places: &Places,
        name: &str,
        upstreams: Vec<String>,
        models: Vec<String>,
    ) -> Vec<(String, String)> {
        if !places.is_stated("upstream") {
            let message = format!("model \"{name}\" has no upstream");
            self.error(places.name.clone(), message, "add `upstream = \"…\"`");
            return vec![];
        }
        let models = match models.as_slice() {
            [] => vec![name.to_owned(); upstreams.len()],
            [one] => vec![one.clone(); upstreams.len()],
            several => several.to_vec(),
        };
        if models.len() != upstreams.len() {
            let message =
                format!("{} upstream models for {} upstreams", models.len(), upstreams.len());
            self.error(places.of("upstream_model"), message, "one for each, or one for all");
        }
        upstreams.into_iter().zip(models).collect()
    }

    fn rate_into(&mut self, rates: &mut Stated, key: &'static str, value: &Value<'_>) {
        if let Some(rate) = self.rate(key, value) {
            rates.insert(key, rate);
        }
    }

    fn bands(&mut self, value: &Value<'_>) -> Vec<StatedBand> {
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type("bands", value, "a list of tables such as [[models.\"NAME\".bands]]");
            return vec![];
        };
        let mut bands: Vec<StatedBand> = vec![];
        for value in array {
            let mut rates = Stated::new();
            let mut above = None;
            for (key, value) in self.table("bands", value) {
                match (key.get_ref().as_ref(), rate_key(key.get_ref())) {
                    (_, Some(key)) => self.rate_into(&mut rates, key, value),
                    ("above", _) => above = Some((self.tokens("above", value), value.span())),
                    (other, _) => {
                        self.unknown(other, key, ["above"].into_iter().chain(RATES));
                    }
                }
            }
            match above {
                None => {
                    let label = "add `above = …`, in tokens";
                    self.error(value.span(), "a band does not say from where it holds", label);
                }
                Some((Some(above), span)) => {
                    if bands.last().is_some_and(|last| last.above >= above) {
                        let label = "put the smaller threshold first";
                        self.error(span, "bands are not in ascending order", label);
                    }
                    bands.push(StatedBand { above, rates });
                }
                Some((None, _)) => {}
            }
        }
        bands
    }

    fn tiers(&mut self, value: &Value<'_>) -> BTreeMap<String, StatedTier> {
        let mut tiers = BTreeMap::new();
        for (key, value) in self.table("tiers", value) {
            let name = key.get_ref().as_ref();
            if matches!(name, "default" | "standard" | "auto") {
                let message = format!("tier `{name}` is what the entry itself states");
                self.error(key.span(), message, "put its rates into the entry");
            } else if name.is_empty() || name.chars().any(|c| c.is_uppercase() || c.is_whitespace())
            {
                self.error(key.span(), format!("tier `{name}` is not a name in lower case"), "");
            }
            let mut tier = StatedTier::default();
            for (key, value) in self.table(name, value) {
                match (key.get_ref().as_ref(), rate_key(key.get_ref())) {
                    (_, Some(key)) => self.rate_into(&mut tier.rates, key, value),
                    ("bands", _) => tier.bands = Some(self.bands(value)),
                    (other, _) => {
                        self.unknown(other, key, ["bands"].into_iter().chain(RATES));
                    }
                }
            }
            tiers.insert(name.to_owned(), tier);
        }
        tiers
    }

    fn fees(&mut self, value: &Value<'_>) -> BTreeMap<String, Credits> {
        let mut fees = BTreeMap::new();
        for (key, value) in self.table("fees", value) {
            let name = key.get_ref().as_ref();
            if !FEES.contains(&name) {
                let label = match meant(name, FEES) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!("known are {}", FEES.join(", ")),
                };
                // Only a warning: a call without a fee is refused, not free.
                let message = format!("no call is counted under the name of fee `{name}`");
                self.problems.push(Problem::warning(key.span(), message).label(label));
            }
            let Some(text) = self.decimal(name, value) else { continue };
            match text.parse::<Credits>() {
                Ok(fee) if fee.is_negative() => {
                    self.error(value.span(), format!("fee `{name}` is negative"), "");
                }
                Ok(fee) if fee > MAX_FEE => {
                    let message = format!("fee `{name}` is above {MAX_FEE} credits");
                    self.error(value.span(), message, "fees are credits per call");
                }
                Ok(fee) => drop(fees.insert(name.to_owned(), fee)),
                Err(error) => self.error(value.span(), format!("fee `{name}`: {error}"), ""),
            }
        }
        fees
    }
}

#[cfg(test)]
mod tests;
