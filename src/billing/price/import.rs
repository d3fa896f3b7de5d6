//! Takes prices over from public lists: JSON in, entries out, and what they would change.
//!
//! Numbers are read as decimal text and never pass through a float. A price that is not
//! exact in `pricing.toml` is refused by name, not rounded.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::entry::{Entry, Markup, PARTS, Stated, StatedTier};
use super::problem::Severity;
use super::read::File;
use super::{PriceTable, Rate};

mod litellm;
mod openrouter;
mod write;

pub use write::merge;

/// Whose list it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// LiteLLM's `model_prices_and_context_window.json`.
    Litellm,
    /// OpenRouter's answer to `GET /api/v1/models`.
    Openrouter,
}

/// What to take over, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Guessed from the list if `None`.
    pub format: Option<Format>,
    /// Ids to take, `*` standing for anything. Without any: all models of the upstreams that
    /// are built in.
    pub models: Vec<String>,
    /// The upstream of all entries. Without it, only models of the upstreams that are built
    /// in are taken, each for its own.
    pub upstream: Option<String>,
    /// The markup of all entries.
    pub markup: Option<Markup>,
    /// Where the prices are from; the list's name if `None`.
    pub source: Option<String>,
    /// Today, as `YYYY-MM-DD`: the date of the entries. What is retired by then is skipped.
    pub today: String,
}

/// What was found in a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Import {
    /// In the order of their names.
    pub entries: Vec<Entry>,
    /// What was wanted but cannot be taken over: its id, and why.
    pub skipped: Vec<(String, String)>,
    /// Prices that `pricing.toml` has no key for: the id, and the list's name of the price.
    pub left_out: Vec<(String, String)>,
}

/// What an import does to one model.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A new entry.
    Added(Entry),
    /// An entry that becomes another, with what differs: key, old value and new value.
    Changed(Entry, Vec<(String, String, String)>),
    /// The entry of this name says the same.
    Unchanged(String),
    /// Nothing, and why.
    Skipped(String, String),
}

/// Why a list cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Not JSON, or of another shape.
    #[error("this is not a list of prices that is understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads a list of prices.
///
/// # Errors
///
/// [`ImportError`] when the list cannot be read at all; a model that cannot be taken over is
/// in [`Import::skipped`].
pub fn import(json: &str, options: &Options) -> Result<Import, ImportError> {
    let top: Object = serde_json::from_str(json)?;
    let guess = if top.contains_key("data") { Format::Openrouter } else { Format::Litellm };
    let mut import = match options.format.unwrap_or(guess) {
        Format::Litellm => litellm::read(&top, options),
        Format::Openrouter => openrouter::read(&top, options)?,
    };
    let (entries, refused) = believable(import.entries);
    import.entries = entries;
    import.skipped.extend(refused);
    import.skipped.sort();
    import.left_out.sort();
    import.left_out.dedup();
    Ok(import)
}

/// What the entries of an import would change in a file.
///
/// An entry is known by its name, or by the upstream's name of the model: two entries for
/// one model would be two prices for it.
pub fn plan(file: &File, import: &Import) -> Vec<Change> {
    let entries = || file.entries.iter().map(|located| &located.entry);
    let changes = import.entries.iter().map(|new| {
        let same_upstream = |old: &&Entry| old.upstreams.iter().any(|u| new.upstreams.contains(u));
        let old =
            entries().find(|old| old.name == new.name).or_else(|| entries().find(same_upstream));
        if let Some(old) = old {
            let merged = merged(old, new);
            let differences = differences(old, &merged);
            return match differences.is_empty() {
                true => Change::Unchanged(old.name.clone()),
                false => Change::Changed(merged, differences),
            };
        }
        match entries().find(|old| old.aliases.contains(&new.name)) {
            Some(old) => Change::Skipped(new.name.clone(), format!("is an alias of {}", old.name)),
            None => Change::Added(new.clone()),
        }
    });
    let skipped = import.skipped.iter().cloned().map(|(name, why)| Change::Skipped(name, why));
    changes.chain(skipped).collect()
}

/// The old entry at the new price. What the operator decided stays: names, upstreams,
/// markup, and fees that the list does not know.
fn merged(old: &Entry, new: &Entry) -> Entry {
    let mut fees = old.fees.clone();
    fees.extend(new.fees.clone());
    Entry {
        name: old.name.clone(),
        upstreams: old.upstreams.clone(),
        aliases: old.aliases.clone(),
        serves: old.serves.clone(),
        markup: new.markup.or(old.markup),
        context: new.context.or(old.context),
        max_output: new.max_output.or(old.max_output),
        fees,
        ..new.clone()
    }
}

/// What differs between two entries of one name, source and date aside.
fn differences(old: &Entry, new: &Entry) -> Vec<(String, String, String)> {
    let (old, new) = (old.facts(), new.facts());
    let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let text = |facts: &BTreeMap<String, String>, key| {
        facts.get(key).cloned().unwrap_or_else(|| "–".into())
    };
    let pairs = keys.into_iter().map(|key| (key.clone(), text(&old, key), text(&new, key)));
    pairs.filter(|(_, old, new)| old != new).collect()
}

/// Parts with one `pricing.toml`, those apart that it would refuse.
fn believable(entries: Vec<Entry>) -> (Vec<Entry>, Vec<(String, String)>) {
    let mut kept = vec![];
    let mut refused = vec![];
    for entry in entries {
        let problems = PriceTable::read(&entry.toml()).err().unwrap_or_default();
        match problems.into_iter().find(|problem| problem.severity == Severity::Error) {
            Some(problem) => refused.push((entry.name, problem.message)),
            None => kept.push(entry),
        }
    }
    (kept, refused)
}

/// A JSON object whose values are still text.
type Object = BTreeMap<String, Box<RawValue>>;

/// The text of a JSON number, or of a string; `None` for anything else.
fn scalar(raw: &RawValue) -> Option<&str> {
    let text = raw.get();
    match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').filter(|text| !text.contains('\\')),
        None => text.starts_with(|c: char| c == '-' || c.is_ascii_digit()).then_some(text),
    }
}

/// A string or a whole number of an object.
fn field<'o>(object: &'o Object, key: &str) -> Option<&'o str> {
    scalar(object.get(key)?)
}

/// A number of tokens of an object.
fn tokens(object: &Object, key: &str) -> Option<u64> {
    let tokens = exact(field(object, key)?, 0).ok()?;
    u64::try_from(tokens).ok().filter(|tokens| *tokens > 0)
}

/// A rate from a price per token. [`Rate`] counts pico-credits per token.
fn rate_per_token(text: &str) -> Result<Rate, &'static str> {
    match exact(text, 12) {
        Err(NotExact::TooFine) => Err("has more than six decimals per 1,000,000 tokens"),
        Err(NotExact::NotNumber) => Err("is not a number"),
        Ok(pico) if pico < 0 => Err("is negative"),
        Ok(pico) => Ok(Rate(pico)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotExact {
    NotNumber,
    TooFine,
}

/// A JSON number, such as `3e-06`, times 10^`decimals`, as a whole number or not at all.
fn exact(text: &str, decimals: i32) -> Result<i64, NotExact> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().map_err(|_| NotExact::NotNumber)?;
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let part = part.trim_end_matches('0');
    let digits: i128 = format!("{whole}{part}").parse().map_err(|_| NotExact::NotNumber)?;
    let scale = i32::try_from(part.len()).map_err(|_| NotExact::NotNumber)?;

    let shift = exponent.checked_add(decimals - scale).ok_or(NotExact::NotNumber)?;
    let power = 10_i128.checked_pow(shift.unsigned_abs());
    let value = match (digits, power) {
        (0, _) => 0,
        (_, None) if shift < 0 => return Err(NotExact::TooFine),
        (_, Some(power)) if shift < 0 && digits % power != 0 => return Err(NotExact::TooFine),
        (_, Some(power)) if shift < 0 => digits / power,
        (_, power) => power.and_then(|p| digits.checked_mul(p)).ok_or(NotExact::NotNumber)?,
    };
    i64::try_from(value).map_err(|_| NotExact::NotNumber)
}

/// Whether `text` is matched by `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| matches(rest, &text[at..]))
        }),
    }
}

/// Leaves out rates of parts that equal the rate of their class. Lists repeat them, and in a
/// band or tier that restates only the class they would keep the part at its old rate.
fn without_repeated_parts(entry: &mut Entry) {
    let drop_from = |rates: &mut Stated, base: &Stated| {
        for (part, class) in PARTS {
            let is_repeated = rates.contains_key(part) && rates.get(part) == rates.get(class);
            if is_repeated && !base.contains_key(part) {
                rates.remove(part);
            }
        }
    };
    drop_from(&mut entry.rates, &Stated::new());
    for band in &mut entry.bands {
        drop_from(&mut band.rates, &entry.rates);
    }
    for StatedTier { rates, bands } in entry.tiers.values_mut() {
        drop_from(rates, &entry.rates);
        let mut base = entry.rates.clone();
        base.extend(&*rates);
        for band in bands.iter_mut().flatten() {
            drop_from(&mut band.rates, &base);
        }
    }
}

#[cfg(test)]
mod tests;
