//! Usage in OpenAI's shape: chat, completions, embeddings and Responses, and what the many
//! compatible providers make of it.
//!
//! Cached and written input is counted inside the prompt, reasoning inside the completion.
//! Where a provider counts either beside it, the total tells.

use super::object::{Invalid, Object, decimal_text};
use super::{Snapshot, split_writes};
use crate::billing::Usage;

/// Cache counts, which a later snapshot of the same reply need not repeat.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cache {
    read: Option<u64>,
    written: Option<u64>,
    written_5m: Option<u64>,
    written_1h: Option<u64>,
}

/// The counts of a usage object, under one name each.
#[derive(Debug, Default)]
struct Counts {
    prompt: u64,
    completion: u64,
    total: Option<u64>,
    cached: u64,
    written_5m: u64,
    written_1h: u64,
    reasoning: u64,
}

/// Reads a usage object. `None`: it has no counts, which is not a count of zero.
///
/// # Errors
///
/// [`Invalid`] if a count cannot be one.
pub fn read(usage: &Object<'_>, cache: &mut Cache) -> Result<Option<Snapshot>, Invalid> {
    if let Some(billed) = usage.object("billed_units") {
        return billed_units(&billed); // Cohere: up to 40 times below `tokens`
    }
    let prompt_details = usage.any_object(&[
        "prompt_tokens_details",
        "input_tokens_details",
        "prompt_token_details",
        "input_token_details",
    ]);
    let completion_details =
        usage.any_object(&["completion_tokens_details", "output_tokens_details"]);

    let total = usage.count("total_tokens")?;
    let prompt = usage.any_count(&["prompt_tokens", "input_tokens"])?;
    let completion = usage.any_count(&["completion_tokens", "output_tokens"])?;
    let (prompt, completion) = match (prompt, completion, total) {
        (Some(prompt), completion, _) => (prompt, completion.unwrap_or(0)),
        (None, Some(completion), Some(total)) => (total.saturating_sub(completion), completion),
        (None, None, Some(total)) => (total, 0), // embeddings of some providers
        (None, _, None) => return Ok(None),
    };
    *cache = read_cache(usage, &prompt_details)?.or(*cache);
    let (written_5m, written_1h) = split_writes(cache.written, cache.written_5m, cache.written_1h);

    let beside = usage.count("reasoning_tokens")?;
    let reasoning = completion_details.count("reasoning_tokens")?.or(beside).unwrap_or(0);
    let mut counts = Counts {
        prompt,
        completion,
        total,
        cached: cache.read.unwrap_or(0),
        written_5m,
        written_1h,
        reasoning,
    };
    // Perplexity prices reasoning and citations apart, and leaves them out of its total.
    let citations = usage.count("citation_tokens")?;
    let priced_apart = usage.object("cost").is_some_and(|cost| cost.has("reasoning_tokens_cost"));
    if beside.is_some() && (priced_apart || reasoning > completion) {
        counts.completion = completion.saturating_add(reasoning);
        counts.total = None;
    }
    let mut snapshot = classes(&counts);
    let out = &mut snapshot.usage;
    let cached_details = prompt_details.any_object(&["cached_tokens_details"]);
    out.cached_audio = cached_details.count("audio_tokens")?.unwrap_or(0).min(out.cached);
    let uncached = |all: Option<u64>, cached: Option<u64>| {
        all.unwrap_or(0).saturating_sub(cached.unwrap_or(0)).min(out.input)
    };
    out.input_audio =
        uncached(prompt_details.count("audio_tokens")?, cached_details.count("audio_tokens")?);
    out.input_image =
        uncached(prompt_details.count("image_tokens")?, cached_details.count("image_tokens")?);
    out.output_audio = completion_details.count("audio_tokens")?.unwrap_or(0).min(out.output);
    out.output_image = completion_details.count("image_tokens")?.unwrap_or(0).min(out.output);
    read_calls(usage, &mut snapshot)?;
    snapshot.call("citation_token", citations);
    snapshot.provider_cost = provider_cost(usage)?;
    Ok(Some(snapshot))
}

/// The classes, which never overlap and never fall below zero.
///
/// What the total has beyond prompt and completion was counted beside one of them: cache if
/// it does not fit into the prompt, else reasoning, else thinking that is not reported
/// (Gemini's compatible endpoint).
fn classes(counts: &Counts) -> Snapshot {
    let Counts { mut prompt, mut completion, mut reasoning, cached, .. } = *counts;
    let written = counts.written_5m.saturating_add(counts.written_1h);
    let cache = cached.saturating_add(written);
    let beside = counts.total.unwrap_or(0).saturating_sub(prompt).saturating_sub(completion);

    let mut odd = None;
    if beside > 0 {
        if cache > prompt && beside == cache {
            prompt += cache;
        } else if cache > prompt && beside == cache.saturating_add(reasoning) {
            prompt += cache;
            completion += reasoning;
        } else if reasoning == 0 {
            completion += beside;
            reasoning = beside;
        } else if beside == reasoning {
            completion += reasoning;
        } else {
            odd = Some("usage_inconsistent");
        }
    }
    if cache > prompt {
        odd = Some("usage_inconsistent");
    }
    let cached = cached.min(prompt);
    let written_1h = counts.written_1h.min(prompt - cached);
    let written_5m = counts.written_5m.min(prompt - cached - written_1h);
    let usage = Usage {
        input: prompt - cached - written_1h - written_5m,
        cached,
        cache_creation_5m: written_5m,
        cache_creation_1h: written_1h,
        output: completion,
        reasoning: reasoning.min(completion),
        ..Usage::default()
    };
    Snapshot { usage, odd, ..Snapshot::default() }
}

impl Cache {
    /// What this snapshot says, and what an earlier one said where this one is silent.
    fn or(self, earlier: Self) -> Self {
        let same_writes = self.written.is_some() || self.written_1h.is_some();
        let writes = if same_writes { self } else { earlier };
        Self { read: self.read.or(earlier.read), ..writes }
    }
}

/// The cache counts under all their names. A provider that uses two of them gives both the
/// same count, or leaves one at zero.
fn read_cache(usage: &Object<'_>, details: &Object<'_>) -> Result<Cache, Invalid> {
    let read = [
        details.any_count(&["cached_tokens", "cache_read_tokens", "cache_read_input_tokens"])?,
        usage.count("cached_tokens")?,           // Moonshot, Together
        usage.count("num_cached_tokens")?,       // Mistral
        usage.count("prompt_cache_hit_tokens")?, // DeepSeek
        usage.count("cache_read_input_tokens")?,
    ];
    const WRITTEN: [&str; 4] = [
        "cache_write_tokens",
        "cache_creation_input_tokens", // Qwen
        "cache_creation_tokens",
        "cached_creation_tokens",
    ];
    let written = [details.any_count(&WRITTEN)?, usage.any_count(&WRITTEN)?];
    let names = ["cache_creation", "cache_creation_token_details"];
    let split = match details.any_object(&names) {
        split if split.has("ephemeral_5m_input_tokens") => split,
        split if split.has("ephemeral_1h_input_tokens") => split,
        _ => usage.any_object(&names),
    };
    Ok(Cache {
        read: read.into_iter().flatten().max(),
        written: written.into_iter().flatten().max(),
        written_5m: split.count("ephemeral_5m_input_tokens")?,
        written_1h: split.count("ephemeral_1h_input_tokens")?,
    })
}

/// Calls of tools that the upstream ran, as far as the usage object counts them.
fn read_calls(usage: &Object<'_>, snapshot: &mut Snapshot) -> Result<(), Invalid> {
    // xAI
    snapshot.call("search_source", usage.count("num_sources_used")?);
    let xai = usage.any_object(&["server_side_tool_usage_details"]);
    for (name, field) in [
        ("web_search", "web_search_calls"),
        ("x_search", "x_search_calls"),
        ("code_interpreter", "code_interpreter_calls"),
        ("file_search", "file_search_calls"),
        ("file_search", "document_search_calls"),
        ("collections_search", "collections_search_calls"),
        ("mcp", "mcp_calls"),
    ] {
        snapshot.call(name, xai.count(field)?);
    }
    // Perplexity, OpenRouter, Qwen
    snapshot.call("web_search", usage.count("num_search_queries")?);
    let server = usage.any_object(&["server_tool_use"]);
    snapshot.call("web_search", server.count("web_search_requests")?);
    let search = usage.any_object(&["plugins"]).any_object(&["search"]);
    snapshot.call("web_search", search.count("count")?);
    Ok(())
}

/// What the provider charges: xAI's ticks of 10⁻¹⁰ dollars, else OpenRouter's or
/// Perplexity's `cost`.
fn provider_cost(usage: &Object<'_>) -> Result<Option<String>, Invalid> {
    if let Some(ticks) = usage.count("cost_in_usd_ticks")? {
        return Ok(decimal_text(&format!("{ticks}e-10")));
    }
    Ok(match usage.object("cost") {
        Some(cost) => cost.get("total_cost").and_then(decimal_text),
        None => usage.get("cost").and_then(decimal_text),
    })
}

/// Cohere's billed units, which need not be whole in form but are in fact.
fn billed_units(units: &Object<'_>) -> Result<Option<Snapshot>, Invalid> {
    let input = units.count("input_tokens")?;
    let output = units.count("output_tokens")?;
    if input.is_none() && output.is_none() {
        return Ok(None);
    }
    let usage =
        Usage { input: input.unwrap_or(0), output: output.unwrap_or(0), ..Usage::default() };
    Ok(Some(Snapshot { usage, ..Snapshot::default() }))
}

/// The counts that llama.cpp's server gives without being asked. Its cache is its own and
/// has no price.
///
/// # Errors
///
/// [`Invalid`] if a count cannot be one.
pub fn timings(timings: &Object<'_>) -> Result<Option<Snapshot>, Invalid> {
    let (Some(prompt), Some(output)) = (timings.count("prompt_n")?, timings.count("predicted_n")?)
    else {
        return Ok(None);
    };
    let input = prompt.saturating_add(timings.count("cache_n")?.unwrap_or(0));
    let usage = Usage { input, output, ..Usage::default() };
    Ok(Some(Snapshot { usage, ..Snapshot::default() }))
}

/// Calls of tools that the upstream ran, by the items of a response's output. Those that
/// the usage object counts itself are left as they are.
pub fn count_items(items: &[Object<'_>], snapshot: &mut Snapshot) {
    let mut calls = std::collections::BTreeMap::new();
    let mut containers = std::collections::BTreeSet::new();
    for item in items {
        let name = match item.text("type").as_deref() {
            Some("web_search_call") if is_search(item) => "web_search",
            Some("x_search_call") => "x_search",
            Some("file_search_call") => "file_search",
            // Billed by the container, which several calls may share.
            Some("code_interpreter_call")
                if containers.insert(item.text("container_id").unwrap_or_default()) =>
            {
                "code_interpreter"
            }
            Some("image_generation_call") => "image_generation",
            Some("computer_call") => "computer_use",
            Some("mcp_call") => "mcp",
            Some("shell_call") => "shell",
            _ => continue,
        };
        *calls.entry(name).or_insert(0) += 1;
    }
    for (name, count) in calls {
        snapshot.usage.calls.entry(name).or_insert(count);
    }
}

/// Opening a page or finding in it is a `web_search_call` too, but not a search.
fn is_search(item: &Object<'_>) -> bool {
    let action = item.any_object(&["action"]);
    !matches!(action.text("type").as_deref(), Some("open_page" | "find" | "find_in_page"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(json: &str) -> Snapshot {
        let object = Object::parse(json).unwrap();
        read(&object, &mut Cache::default()).unwrap().unwrap()
    }

    #[test]
    fn cache_and_reasoning_beside_the_totals_are_both_found() {
        let read = usage(
            r#"{"prompt_tokens":100,"completion_tokens":10,"total_tokens":460,
            "prompt_tokens_details":{"cached_tokens":300},
            "completion_tokens_details":{"reasoning_tokens":50}}"#,
        );
        assert_eq!((read.usage.input, read.usage.cached, read.usage.output), (100, 300, 60));
        assert_eq!(read.odd, None);
    }

    #[test]
    fn classes_never_exceed_the_prompt_that_holds_them() {
        let read = usage(
            r#"{"prompt_tokens":100,"completion_tokens":1,"total_tokens":101,
            "prompt_tokens_details":{"cached_tokens":90,"cache_write_tokens":90}}"#,
        );
        assert_eq!(read.usage.all_input(), 100);
        assert_eq!((read.usage.cached, read.usage.cache_creation_5m), (90, 10));
        assert_eq!(read.odd, Some("usage_inconsistent"));
    }

    #[test]
    fn reasoning_is_at_most_the_output_that_holds_it() {
        let read = usage(
            r#"{"prompt_tokens":1,"completion_tokens":10,"total_tokens":11,
            "completion_tokens_details":{"reasoning_tokens":12}}"#,
        );
        assert_eq!((read.usage.output, read.usage.reasoning), (10, 10));
    }

    #[test]
    fn one_container_is_one_session_however_many_calls() {
        let call = r#"{"type":"code_interpreter_call","container_id":"c1"}"#;
        let open = r#"{"type":"web_search_call","action":{"type":"open_page"}}"#;
        let items: Vec<_> =
            [call, call, open].iter().map(|json| Object::parse(json).unwrap()).collect();
        let mut snapshot = Snapshot::default();
        count_items(&items, &mut snapshot);
        assert_eq!(snapshot.usage.calls.into_iter().collect::<Vec<_>>(), [("code_interpreter", 1)]);
    }

    #[test]
    fn an_object_without_counts_is_not_a_count_of_zero() {
        let object = Object::parse(r#"{"trafficType":"ON_DEMAND"}"#).unwrap();
        assert_eq!(read(&object, &mut Cache::default()), Ok(None));
    }
}
