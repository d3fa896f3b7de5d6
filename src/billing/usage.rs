//! What one request used, in classes that do not overlap.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error};

use super::price::FEES;

/// Tokens of one request, as the upstream counted them, in disjoint classes.
///
/// `input`, `cached`, `cache_creation_5m`, `cache_creation_1h` and `output` never share a
/// token. The other counts are parts of these and are only priced apart where the model
/// has a rate of its own for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Input neither read from nor written to a cache: text, images, audio, tool results.
    pub input: u64,
    /// Input read from a cache.
    pub cached: u64,
    /// Input written to a cache with the default lifetime.
    pub cache_creation_5m: u64,
    /// Input written to a cache with the long lifetime (one hour).
    pub cache_creation_1h: u64,
    /// Everything generated, reasoning included.
    pub output: u64,
    /// The part of `output` that was reasoning.
    pub reasoning: u64,
    /// The part of `input` that was audio.
    pub input_audio: u64,
    /// The part of `input` that was images.
    pub input_image: u64,
    /// The part of `cached` that was audio.
    pub cached_audio: u64,
    /// The part of `output` that was audio.
    pub output_audio: u64,
    /// The part of `output` that was images.
    pub output_image: u64,
    /// Calls of tools that the upstream runs and bills by the call, by the names of
    /// [`FEES`].
    #[serde(deserialize_with = "known_calls")]
    pub calls: BTreeMap<&'static str, u64>,
}

impl Usage {
    /// Every token, in and out.
    pub fn tokens(&self) -> u64 {
        self.all_input().saturating_add(self.output)
    }

    /// Every input token, whatever its class: what long-context bands look at.
    pub fn all_input(&self) -> u64 {
        self.input
            .saturating_add(self.cached)
            .saturating_add(self.cache_creation_5m)
            .saturating_add(self.cache_creation_1h)
    }
}

fn known_calls<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<&'static str, u64>, D::Error> {
    let known = |name: String| FEES.into_iter().find(|fee| *fee == name).ok_or(name);
    BTreeMap::<String, u64>::deserialize(deserializer)?
        .into_iter()
        .map(|(name, count)| Ok((known(name).map_err(D::Error::custom)?, count)))
        .collect()
}
