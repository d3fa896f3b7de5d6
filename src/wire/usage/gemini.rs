//! Usage in Gemini's shape: a snapshot on every chunk. Cached input is counted inside the
//! prompt; thoughts and what tools brought are counted beside prompt and candidates.

use std::collections::{BTreeMap, BTreeSet};

use super::Snapshot;
use super::object::{Invalid, Object};
use crate::billing::Usage;

/// More search queries than one reply has.
const MAX_QUERIES: usize = 1024;

/// What a stream of snapshots has said.
#[derive(Debug, Default)]
pub struct State {
    cached: Option<u64>,
    prompt_parts: Option<Parts>,
    cached_parts: Option<Parts>,
    tool_parts: Option<Parts>,
    /// A snapshot whose parts add up to its total has been seen.
    consistent: bool,
    queries: BTreeSet<String>,
    grounded: bool,
    on_maps: bool,
}

/// Tokens of a class by what they encode.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    audio: u64,
    image: u64,
}

impl State {
    /// Reads `usageMetadata`. `None`: it has no counts, or does not add up although an
    /// earlier one did.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if a count cannot be one.
    pub fn read(&mut self, metadata: &Object<'_>) -> Result<Option<Snapshot>, Invalid> {
        let Some(prompt) = metadata.count("promptTokenCount")? else { return Ok(None) };
        let candidates =
            metadata.any_count(&["candidatesTokenCount", "responseTokenCount"])?.unwrap_or(0);
        let thoughts = metadata.count("thoughtsTokenCount")?.unwrap_or(0);
        let tool_prompt = metadata.count("toolUsePromptTokenCount")?.unwrap_or(0);
        let total = metadata.count("totalTokenCount")?;

        let sum =
            prompt.saturating_add(candidates).saturating_add(thoughts).saturating_add(tool_prompt);
        let consistent = total.is_none_or(|total| total == sum);
        if self.consistent && !consistent {
            return Ok(None);
        }
        self.consistent = consistent;
        // What is missing from the only counts there are is thinking that is not reported.
        let hidden = if thoughts == 0 { total.unwrap_or(0).saturating_sub(sum) } else { 0 };

        self.cached = metadata.count("cachedContentTokenCount")?.or(self.cached);
        keep(&mut self.prompt_parts, parts(metadata, "promptTokensDetails")?);
        keep(&mut self.cached_parts, parts(metadata, "cacheTokensDetails")?);
        keep(&mut self.tool_parts, parts(metadata, "toolUsePromptTokensDetails")?);
        let prompt_parts = self.prompt_parts.unwrap_or_default();
        let cached_parts = self.cached_parts.unwrap_or_default();
        let tool_parts = self.tool_parts.unwrap_or_default();
        let output_parts = parts(metadata, "candidatesTokensDetails")?.unwrap_or_default();

        let cached = self.cached.unwrap_or(0).min(prompt);
        let input = (prompt - cached).saturating_add(tool_prompt);
        let reasoning = thoughts.saturating_add(hidden);
        let uncached = |all: u64, cached: u64, tool: u64| {
            all.saturating_sub(cached).saturating_add(tool).min(input)
        };
        let usage = Usage {
            input,
            cached,
            output: candidates.saturating_add(reasoning),
            reasoning,
            input_audio: uncached(prompt_parts.audio, cached_parts.audio, tool_parts.audio),
            input_image: uncached(prompt_parts.image, cached_parts.image, tool_parts.image),
            cached_audio: cached_parts.audio.min(cached),
            output_audio: output_parts.audio.min(candidates),
            output_image: output_parts.image.min(candidates),
            ..Usage::default()
        };
        let odd = (!consistent).then_some("usage_inconsistent");
        Ok(Some(Snapshot { usage, odd, ..Snapshot::default() }))
    }

    /// Notes what the candidates of a chunk were grounded on.
    pub fn note_grounding(&mut self, candidates: &[Object<'_>]) {
        for candidate in candidates {
            let Some(grounding) = candidate.object("groundingMetadata") else { continue };
            let queries = grounding.items("webSearchQueries");
            let chunks = grounding.objects("groundingChunks");
            let on_maps = chunks.iter().any(|chunk| chunk.has("maps"));
            for query in queries.unwrap_or_default() {
                if query != "\"\"" && self.queries.len() < MAX_QUERIES {
                    self.queries.insert(query.to_owned());
                }
            }
            self.on_maps |= on_maps;
            self.grounded |= chunks.iter().any(|chunk| chunk.has("web"));
        }
    }

    /// Searches, by the query (`web_search`, from Gemini 3 on) and by the reply (`grounding`,
    /// before). A price has a fee for one of them.
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        let queries = u64::try_from(self.queries.len()).unwrap_or(u64::MAX);
        let calls = [
            ("web_search", queries),
            ("grounding", u64::from(self.grounded || queries > 0)),
            ("maps_grounding", u64::from(self.on_maps)),
        ];
        calls.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

fn keep(known: &mut Option<Parts>, new: Option<Parts>) {
    *known = new.or(*known);
}

/// The audio and image tokens of a class. They need not add up to it.
fn parts(metadata: &Object<'_>, name: &str) -> Result<Option<Parts>, Invalid> {
    if !metadata.has(name) {
        return Ok(None);
    }
    let mut parts = Parts::default();
    for detail in metadata.objects(name) {
        let tokens = detail.count("tokenCount")?.unwrap_or(0);
        match detail.text("modality").as_deref() {
            Some("AUDIO") => parts.audio = parts.audio.saturating_add(tokens),
            Some("IMAGE") => parts.image = parts.image.saturating_add(tokens),
            _ => {}
        }
    }
    Ok(Some(parts))
}

/// The service tier: by name from the Gemini API, by traffic type from Vertex.
pub fn service_tier(metadata: &Object<'_>) -> Option<String> {
    if let Some(tier) = metadata.text("serviceTier") {
        let tier = tier.to_ascii_lowercase();
        let tier = tier.strip_prefix("service_tier_").unwrap_or(&tier);
        return (tier != "unspecified").then(|| tier.to_owned());
    }
    match metadata.text("trafficType").as_deref()? {
        "ON_DEMAND_FLEX" => Some("flex".into()),
        "ON_DEMAND_PRIORITY" => Some("priority".into()),
        "PROVISIONED_THROUGHPUT" => Some("provisioned".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(snapshots: &[&str]) -> Option<Snapshot> {
        let mut state = State::default();
        let mut last = None;
        for json in snapshots {
            if let Some(snapshot) = state.read(&Object::parse(json).unwrap()).unwrap() {
                last = Some(snapshot);
            }
        }
        last
    }

    #[test]
    fn a_snapshot_that_does_not_add_up_does_not_replace_one_that_does() {
        let good = r#"{"promptTokenCount":10,"candidatesTokenCount":5,"totalTokenCount":15}"#;
        let bad = r#"{"promptTokenCount":10,"candidatesTokenCount":1,"totalTokenCount":99}"#;
        assert_eq!(last(&[good, bad]).unwrap().usage.output, 5);
        assert_eq!(last(&[bad]).unwrap().odd, Some("usage_inconsistent"));
    }

    #[test]
    fn the_cached_count_stays_where_a_later_snapshot_does_not_repeat_it() {
        let first = r#"{"promptTokenCount":10,"cachedContentTokenCount":8,"totalTokenCount":10}"#;
        let second = r#"{"promptTokenCount":10,"candidatesTokenCount":5,"totalTokenCount":15}"#;
        let usage = last(&[first, second]).unwrap().usage;
        assert_eq!((usage.input, usage.cached, usage.output), (2, 8, 5));
    }

    #[test]
    fn metadata_without_counts_is_no_snapshot() {
        assert_eq!(last(&[r#"{"trafficType":"ON_DEMAND"}"#]), None);
    }
}
