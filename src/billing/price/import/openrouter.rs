//! OpenRouter's list of models: US dollars per token, as decimal text.
//!
//! A zero beside a price means that there is no such price apart (`internal_reasoning` of
//! nearly every model), so it is left out and the class falls back as usual.

use super::{Import, ImportError, Object, Options, exact, field, matches, rate_per_token, tokens};
use crate::billing::Credits;
use crate::billing::price::Rate;
use crate::billing::price::entry::{Entry, Stated, StatedBand};

/// Names of classes.
const CLASSES: [(&str, &str); 11] = [
    ("prompt", "input"),
    ("completion", "output"),
    ("input_cache_read", "cached_input"),
    ("input_cache_write", "cache_creation"),
    ("input_cache_write_1h", "cache_creation_1h"),
    ("internal_reasoning", "reasoning"),
    ("audio", "audio_input"),
    ("input_audio_cache", "cached_audio_input"),
    ("audio_output", "audio_output"),
    ("image_token", "image_input"),
    ("image_output", "image_output"),
];

pub(super) fn read(top: &Object, options: &Options) -> Result<Import, ImportError> {
    let data = top.get("data").map_or("[]", |raw| raw.get());
    let models: Vec<Object> = serde_json::from_str(data)?;
    let mut import = Import::default();
    for model in &models {
        let Some(id) = field(model, "id") else { continue };
        let globs = &options.models;
        if !globs.is_empty() && !globs.iter().any(|glob| matches(glob, id)) {
            continue;
        }
        match entry(id, model, options, &mut import.left_out) {
            Ok(entry) => import.entries.push(entry),
            Err(why) => import.skipped.push((id.to_owned(), why)),
        }
    }
    import.entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(import)
}

/// One model, or why it cannot be taken over.
fn entry(
    id: &str,
    model: &Object,
    options: &Options,
    left_out: &mut Vec<(String, String)>,
) -> Result<Entry, String> {
    let pricing =
        model.get("pricing").and_then(|raw| serde_json::from_str::<Object>(raw.get()).ok());
    let pricing = pricing.ok_or("has no price")?;
    let mut entry = Entry::new(id);
    entry.rates = rates(&pricing)?;
    if !entry.rates.contains_key("input") || !entry.rates.contains_key("output") {
        return Err("has no price per token".into());
    }
    if entry.rates.values().all(|rate| *rate == Rate(0)) {
        return Err("costs nothing; if so, write it by hand with `free = true`".into());
    }
    let mut left = vec![];
    for (key, raw) in &pricing {
        let is_zero = super::scalar(raw).is_some_and(|text| exact(text, 12) == Ok(0));
        match key.as_str() {
            _ if is_zero || CLASSES.iter().any(|(theirs, _)| theirs == key) => {}
            "overrides" => entry.bands = bands(raw.get(), id, &mut left)?,
            "web_search" => {
                let text = field(&pricing, key).unwrap_or_default();
                let nano = exact(text, 9).map_err(|_| format!("{key} = {text} is not exact"))?;
                entry.fees.insert("web_search".into(), Credits::from_nano(nano));
            }
            "request" => return Err("has a price per request, which is not metered".into()),
            _ => left.push((id.to_owned(), key.clone())),
        }
    }
    super::without_repeated_parts(&mut entry);
    let upstream = options.upstream.as_deref().unwrap_or("openrouter");
    entry.upstreams = vec![(upstream.to_owned(), id.to_owned())];
    entry.markup = options.markup;
    entry.context = tokens(model, "context_length");
    let provider = model.get("top_provider");
    let provider = provider.and_then(|raw| serde_json::from_str::<Object>(raw.get()).ok());
    entry.max_output = provider.and_then(|provider| tokens(&provider, "max_completion_tokens"));
    entry.source = Some(options.source.clone().unwrap_or_else(|| "OpenRouter /models".into()));
    entry.date = Some(options.today.clone());
    left_out.append(&mut left);
    Ok(entry)
}

fn rates(pricing: &Object) -> Result<Stated, String> {
    let mut rates = Stated::new();
    for (theirs, ours) in CLASSES {
        let Some(text) = field(pricing, theirs) else { continue };
        let rate = rate_per_token(text).map_err(|why| format!("{theirs} = {text} {why}"))?;
        if rate > Rate(0) || ours == "input" || ours == "output" {
            rates.insert(ours, rate);
        }
    }
    Ok(rates)
}

/// Bands from overrides for long prompts; those for hours of the day are left out.
fn bands(
    overrides: &str,
    id: &str,
    left_out: &mut Vec<(String, String)>,
) -> Result<Vec<StatedBand>, String> {
    let overrides: Vec<Object> =
        serde_json::from_str(overrides).map_err(|_| "has overrides of an unknown shape")?;
    let mut bands = vec![];
    for item in &overrides {
        match tokens(item, "min_prompt_tokens") {
            Some(above) if !item.contains_key("utc_start") => {
                bands.push(StatedBand { above, rates: rates(item)? });
            }
            _ => left_out.push((id.to_owned(), "overrides by the hour".into())),
        }
    }
    bands.sort_by_key(|band| band.above);
    Ok(bands)
}
