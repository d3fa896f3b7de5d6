//! The price table: `pricing.toml` as the program knows it.
//!
//! [`PriceTable::read`] makes it from the file's text; the rules are in `read`, `entry` and
//! `check`, how they are told in `problem`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::{Price, Rate};

/// A model that clients may name, and where its requests go.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The id that clients send.
    pub name: String,
    /// Upstreams in the order they are tried: the upstream's name, and its name of the model.
    pub upstreams: Vec<(String, String)>,
    /// What it costs; a running request keeps the price it was admitted at.
    pub price: Price,
    /// Largest context, in tokens.
    pub context: Option<u64>,
    /// Largest output, in tokens.
    pub max_output: Option<u64>,
    /// Other ids for this model.
    pub aliases: Vec<String>,
    /// Other models that the upstream may answer with, and whose own entry then sets the price.
    pub serves: Vec<String>,
    /// Where the price was read.
    pub source: Option<String>,
    /// When it was read, as `YYYY-MM-DD`.
    pub date: Option<String>,
}

/// Every model that has a price. Built whole or not at all.
#[derive(Clone, Debug, Default)]
pub struct PriceTable {
    /// Names this table on usage rows: the first 12 hex digits of the file's SHA-256.
    pub version: String,
    /// The file, from which it can be read again.
    pub text: Arc<str>,
    /// Models in the order of the file.
    pub models: Vec<Arc<Model>>,
    /// Names and aliases.
    pub by_name: HashMap<String, Arc<Model>>,
}

impl PriceTable {
    /// The model with exactly this id or alias.
    pub fn find(&self, name: &str) -> Option<&Arc<Model>> {
        self.by_name.get(name)
    }

    /// The first model that asks this upstream for the model that it calls `upstream_model`.
    pub fn by_upstream(&self, upstream: &str, upstream_model: &str) -> Option<&Arc<Model>> {
        self.models
            .iter()
            .find(|model| model.upstreams.iter().any(|(u, m)| u == upstream && m == upstream_model))
    }

    /// The three models whose id or alias is nearest to `name`, for "did you mean".
    pub fn nearest(&self, name: &str) -> Vec<&str> {
        let ids = self.models.iter().map(|model| {
            let ids = std::iter::once(&model.name).chain(&model.aliases);
            let distance = ids.map(|id| distance(name, id)).min().unwrap_or(usize::MAX);
            (distance, model.name.as_str())
        });
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        ids.into_iter().take(3).map(|(_, id)| id).collect()
    }
}

/// Reads a rate per million tokens, such as `3.3`, exactly: at most six decimals.
pub fn rate(per_million: &str) -> Option<Rate> {
    let (whole, part) = per_million.split_once('.').unwrap_or((per_million, "0"));
    let is_number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > 6 {
        return None;
    }
    let pico = format!("{part:0<6}").parse::<i64>().ok()?;
    whole.parse::<i64>().ok()?.checked_mul(1_000_000)?.checked_add(pico).map(Rate)
}

/// Per million tokens, in credits, as `pricing.toml` writes it: [`rate`] reads it back.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&decimal(self.0, 6))
    }
}

impl Rate {
    /// The rate in credits per token, as a decimal text.
    pub fn per_token(self) -> String {
        decimal(self.0, 12)
    }
}

/// `value` · 10^−`decimals` as text, without trailing zeros.
pub(super) fn decimal(value: i64, decimals: usize) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = decimals + 1);
    let (whole, part) = digits.split_at(digits.len() - decimals);
    let part = part.trim_end_matches('0');
    if part.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") }
}

/// How many characters must be inserted, deleted or replaced to make one text of the other
/// (Levenshtein).
pub(super) fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_is_read_exactly_or_not_at_all() {
        assert_eq!(rate("3.3"), Some(Rate(3_300_000)));
        assert_eq!(rate("0.000001"), Some(Rate(1)));
        assert_eq!(rate("4.125").map(Rate::per_token), Some("0.000004125".into()));
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", " 1", "1_0", "0.0000001", "٣"] {
            assert_eq!(rate(text), None, "{text:?}");
        }
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("ouput", "output"), 1);
        assert_eq!(distance("gpt-4.1", "gpt-4.1"), 0);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn the_nearest_three_names_are_offered_and_aliases_count_for_their_model() {
        let text = ["gpt-4.1", "gpt-4o", "grok-4", "claude-opus-5"].map(|name| {
            let alias = if name == "claude-opus-5" { "aliases = [\"gpt-4.2\"]" } else { "" };
            format!("[models.{name:?}]\nupstream = \"u\"\nfree = true\n{alias}\n")
        });
        let (table, _) = PriceTable::read(&text.concat()).unwrap();
        assert_eq!(table.nearest("gpt-4.2"), ["claude-opus-5", "gpt-4.1", "gpt-4o"]);
    }

    proptest! {
        #[test]
        fn a_rate_reads_as_it_is_written(pico in 0..=i64::MAX / 1_000_000) {
            prop_assert_eq!(rate(&Rate(pico).to_string()), Some(Rate(pico)));
        }

        #[test]
        fn a_written_rate_is_the_text_it_was_read_from(text in "(0|[1-9][0-9]{0,4})(\\.[0-9]{0,5}[1-9])?") {
            prop_assert_eq!(rate(&text).unwrap().to_string(), text);
        }
    }
}
