//! LiteLLM's list: US dollars per token, one flat object a model.
//!
//! A name is a class (`input_cost_per_token`), then maybe a threshold
//! (`_above_200k_tokens`), then maybe a service tier (`_priority`). Above a threshold the
//! whole request takes the dearer rates, as in `pricing.toml`.

use std::collections::BTreeMap;

use super::{Import, Object, Options, exact, field, matches, rate_per_token, tokens};
use crate::billing::Credits;
use crate::billing::price::Rate;
use crate::billing::price::entry::{Entry, Markup, Stated, StatedBand, StatedTier};

/// LiteLLM's name of a provider, and ours of the upstream that is built in for it.
const UPSTREAMS: [(&str, &str); 5] = [
    ("openai", "openai"),
    ("text-completion-openai", "openai"),
    ("anthropic", "anthropic"),
    ("gemini", "gemini"),
    ("xai", "xai"),
];

/// Kinds of models that an endpoint is served for.
const MODES: [&str; 4] = ["chat", "responses", "completion", "embedding"];

/// Names of classes. The longest that a price begins with is meant.
const CLASSES: [(&str, &str); 13] = [
    ("cache_creation_input_token_cost_above_1hr", "cache_creation_1h"),
    // OpenAI's long lifetime.
    ("cache_creation_input_token_cost_above_12hr", "cache_creation_1h"),
    ("cache_creation_input_token_cost", "cache_creation"),
    ("cache_read_input_audio_token_cost", "cached_audio_input"),
    ("cache_read_input_token_cost", "cached_input"),
    // DeepSeek's old name.
    ("input_cost_per_token_cache_hit", "cached_input"),
    ("input_cost_per_audio_token", "audio_input"),
    ("input_cost_per_image_token", "image_input"),
    ("input_cost_per_token", "input"),
    ("output_cost_per_reasoning_token", "reasoning"),
    ("output_cost_per_audio_token", "audio_output"),
    ("output_cost_per_image_token", "image_output"),
    ("output_cost_per_token", "output"),
];

/// Service tiers that replies name.
const TIERS: [&str; 3] = ["flex", "priority", "ultrafast"];

/// Prices per call.
const FEES: [(&str, &str); 3] = [
    ("google_maps_grounding_cost_per_query", "maps_grounding"),
    ("code_interpreter_cost_per_session", "code_interpreter"),
    ("search_context_cost_per_query", "web_search"),
];

pub(super) fn read(top: &Object, options: &Options) -> Import {
    let mut import = Import::default();
    let mut entries: BTreeMap<String, (bool, Entry)> = BTreeMap::new();
    for (key, raw) in top {
        let Ok(model) = serde_json::from_str::<Object>(raw.get()) else { continue };
        let Some(provider) = field(&model, "litellm_provider") else { continue };
        let built_in = UPSTREAMS.iter().find(|(theirs, _)| *theirs == provider);
        let bare = key.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/'));
        let bare = bare.unwrap_or(key);
        // Elsewhere the same names stand for other prices, so the prefix stays.
        let name = if built_in.is_some() { bare } else { key.as_str() };
        let is_wanted = match options.models.as_slice() {
            [] => built_in.is_some(),
            globs => globs.iter().any(|glob| matches(glob, name) || matches(glob, key)),
        };
        // Entries of other providers need to be told which upstream they are for.
        let upstream = options.upstream.as_deref().or(built_in.map(|(_, ours)| *ours));
        let (true, Some(upstream)) = (is_wanted && key != "sample_spec", upstream) else {
            continue;
        };
        match entry(name, &model, options, &mut import.left_out) {
            Ok(mut entry) => {
                entry.upstreams = vec![(upstream.to_owned(), bare.to_owned())];
                let is_built_in = built_in.is_some();
                match entries.get(name) {
                    None => drop(entries.insert(name.to_owned(), (is_built_in, entry))),
                    Some((_, same)) if *same == entry => {}
                    Some((false, _)) if is_built_in => {
                        entries.insert(name.to_owned(), (true, entry));
                    }
                    Some(_) => {
                        let why = format!("stands twice in the list, here as {key}");
                        import.skipped.push((name.to_owned(), why));
                    }
                }
            }
            Err(why) => import.skipped.push((name.to_owned(), why)),
        }
    }
    import.entries = entries.into_values().map(|(_, entry)| entry).collect();
    import
}

/// One model, or why it cannot be taken over.
fn entry(
    name: &str,
    model: &Object,
    options: &Options,
    left_out: &mut Vec<(String, String)>,
) -> Result<Entry, String> {
    if let Some(mode) = field(model, "mode").filter(|mode| !MODES.contains(mode)) {
        return Err(format!("{mode} is not served"));
    }
    if name.starts_with("ft:") {
        return Err("a fine-tune has an id of its own".into());
    }
    if let Some(date) = field(model, "deprecation_date").filter(|d| *d <= options.today.as_str()) {
        return Err(format!("retired {date}"));
    }
    if model.contains_key("tiered_pricing") {
        return Err("has tiered_pricing, which is not read".into());
    }
    let mut entry = Entry::new(name);
    let mut left = vec![];
    // Thresholds of a request that reaches them, where others must be exceeded.
    let reached = u64::from(field(model, "litellm_provider") == Some("xai"));
    for (key, raw) in model {
        let Some(text) = super::scalar(raw) else { continue };
        if key.ends_with("_batches") || !key.contains("cost") {
            continue;
        }
        let Some((class, above, tier)) = parse(key) else {
            if exact(text, 12) != Ok(0) && !FEES.iter().any(|(theirs, _)| theirs == key) {
                left.push((name.to_owned(), key.clone()));
            }
            continue;
        };
        let rate = rate_per_token(text).map_err(|why| format!("{key} = {text} {why}"))?;
        let rates = place(&mut entry, above.map(|above| above - reached), tier);
        // Two long lifetimes have one key: the dearer one is safe.
        let dearest = rates.get(class).copied().unwrap_or_default().max(rate);
        rates.insert(class, dearest);
    }
    if !entry.rates.contains_key("input") {
        return Err("has no price per token".into());
    }
    if field(model, "mode") == Some("embedding") {
        entry.rates.entry("output").or_default();
    }
    if entry.rates.values().all(|rate| *rate == Rate(0)) {
        return Err("costs nothing; if so, write it by hand with `free = true`".into());
    }
    sort_bands(&mut entry);
    super::without_repeated_parts(&mut entry);
    fast(&mut entry, model);
    entry.fees = fees(model)?;
    entry.markup = options.markup;
    entry.context = tokens(model, "max_input_tokens");
    entry.max_output = tokens(model, "max_output_tokens");
    let source = options.source.as_deref().unwrap_or("LiteLLM model_prices_and_context_window");
    entry.source = Some(source.to_owned());
    entry.date = Some(options.today.clone());
    left_out.append(&mut left);
    Ok(entry)
}

/// The class, the threshold in tokens and the service tier of a price's name.
fn parse(key: &str) -> Option<(&'static str, Option<u64>, Option<&'static str>)> {
    let (rest, class) = CLASSES
        .into_iter()
        .filter_map(|(theirs, ours)| Some((key.strip_prefix(theirs)?, ours)))
        .min_by_key(|(rest, _)| rest.len())?;
    let (above, rest) = match rest.strip_prefix("_above_").and_then(|s| s.split_once("_tokens")) {
        Some((above, rest)) => (Some(threshold(above)?), rest),
        None => (None, rest),
    };
    if rest.is_empty() {
        return Some((class, above, None));
    }
    let tier = rest.strip_prefix('_')?;
    let tier = TIERS.into_iter().find(|known| *known == tier)?;
    Some((class, above, Some(tier)))
}

/// `200k` → 200,000.
fn threshold(text: &str) -> Option<u64> {
    let (digits, factor) = match text.strip_suffix('k') {
        Some(digits) => (digits, 1_000),
        None => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor).filter(|above| *above > 0)
}

/// The rates of the entry, or of its tier, or of the band there.
fn place<'e>(entry: &'e mut Entry, above: Option<u64>, tier: Option<&str>) -> &'e mut Stated {
    let (rates, bands) = match tier {
        None => (&mut entry.rates, &mut entry.bands),
        Some(tier) => {
            let StatedTier { rates, bands } = entry.tiers.entry(tier.to_owned()).or_default();
            if above.is_none() {
                return rates;
            }
            (rates, bands.get_or_insert_default())
        }
    };
    let Some(above) = above else { return rates };
    let at = bands.iter().position(|band| band.above == above).unwrap_or_else(|| {
        bands.push(StatedBand { above, rates: Stated::new() });
        bands.len() - 1
    });
    &mut bands[at].rates
}

fn sort_bands(entry: &mut Entry) {
    entry.bands.sort_by_key(|band| band.above);
    for bands in entry.tiers.values_mut().filter_map(|tier| tier.bands.as_mut()) {
        bands.sort_by_key(|band| band.above);
    }
}

/// Anthropic's fast mode is stated as a factor on every rate.
fn fast(entry: &mut Entry, model: &Object) {
    let factors = model.get("provider_specific_entry").map(|raw| raw.get());
    let factors = factors.and_then(|text| serde_json::from_str::<Object>(text).ok());
    let factor = factors.as_ref().and_then(|factors| field(factors, "fast"));
    let Some(factor) = factor.and_then(|text| exact(text, 6).ok()).map(Markup) else { return };
    let faster =
        |rates: &Stated| rates.iter().map(|(key, rate)| (*key, factor.rate(*rate))).collect();
    let bands = entry.bands.iter();
    let bands = bands.map(|band| StatedBand { above: band.above, rates: faster(&band.rates) });
    let bands = Some(bands.collect::<Vec<_>>()).filter(|bands| !bands.is_empty());
    let tier = StatedTier { rates: faster(&entry.rates), bands };
    entry.tiers.insert("fast".into(), tier);
}

/// Fees per call. Where searches have several sizes, the dearest counts: replies do not name
/// the size.
fn fees(model: &Object) -> Result<BTreeMap<String, Credits>, String> {
    let mut fees = BTreeMap::new();
    for (theirs, ours) in FEES {
        let Some(raw) = model.get(theirs) else { continue };
        let sizes = serde_json::from_str::<Object>(raw.get()).unwrap_or_default();
        let texts = sizes.values().filter_map(|raw| super::scalar(raw)).chain(super::scalar(raw));
        for text in texts {
            let nano = exact(text, 9).map_err(|_| format!("{theirs} = {text} is not exact"))?;
            let fee = fees.entry(ours.to_owned()).or_insert(Credits::ZERO);
            *fee = (*fee).max(Credits::from_nano(nano));
        }
    }
    // A zero in the list may as well mean that nobody looked: such calls stay refused.
    fees.retain(|_, fee| fee.is_positive());
    // Gemini before 3 bills a reply with searches, not each search.
    let is_gemini = field(model, "litellm_provider") == Some("gemini");
    let by_query = field(model, "web_search_billing_unit") == Some("per_query");
    if let Some(fee) = fees.get("web_search").copied().filter(|_| is_gemini && !by_query) {
        fees.extend([("grounding".to_owned(), fee), ("web_search".to_owned(), Credits::ZERO)]);
    }
    Ok(fees)
}
