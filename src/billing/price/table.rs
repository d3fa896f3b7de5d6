//! The price table: `pricing.toml` as the program knows it.

use std::collections::HashMap;
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
