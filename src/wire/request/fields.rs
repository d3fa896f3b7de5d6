//! What the fields that we act on may say, and what that means for the bill.

use std::borrow::Cow;

use super::Invalid;
use super::known::Known;
use crate::wire::{Endpoint, Kind};

/// Fields of requests of OpenAI's kind that we act on, those of xAI and OpenRouter included.
pub const OPENAI: [&str; 23] = [
    "model",
    "models",
    "stream",
    "stream_options",
    "usage",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "num_choices",
    "service_tier",
    "tools",
    "web_search_options",
    "search_parameters",
    "plugins",
    "modalities",
    "audio",
    "background",
    "deferred",
    "previous_response_id",
    "conversation",
    "prompt",
];

/// Fields of requests of Anthropic's kind that we act on.
pub const ANTHROPIC: [&str; 8] = [
    "model",
    "stream",
    "max_tokens",
    "service_tier",
    "speed",
    "inference_geo",
    "tools",
    "mcp_servers",
];

/// Fields of requests of Gemini's kind that we act on.
pub const GEMINI: [&str; 5] =
    ["model", "generationConfig", "serviceTier", "tools", "cachedContent"];

/// Fields of Gemini's `generationConfig` that we act on.
pub const GENERATION: [&str; 3] = ["maxOutputTokens", "candidateCount", "responseModalities"];

/// Names of the limit on output, in all formats.
const MAX_OUTPUT: [&str; 4] =
    ["max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens"];

/// Names of the number of choices, in all formats.
const CHOICES: [&str; 4] = ["n", "best_of", "num_choices", "candidateCount"];

/// Service tiers that are priced at the standard rates.
const STANDARD_TIERS: [&str; 6] =
    ["auto", "default", "standard", "standard_only", "on_demand", "unspecified"];

/// Refuses what is known to run or answer elsewhere, where nothing is metered.
pub fn refuse_unmetered(endpoint: Endpoint, top: &Known<'_>) -> Result<(), Invalid> {
    let refuse =
        |parameter: &str, why| Err(Invalid::NotAllowed { parameter: parameter.into(), why });
    if top.flag("background")? == Some(true) {
        return refuse("background", "a reply that is fetched later cannot be metered");
    }
    if top.flag("deferred")? == Some(true) {
        return refuse("deferred", "a reply that is fetched later cannot be metered");
    }
    if top.items("models")?.next().is_some() {
        return refuse("models", "a request is priced by the one model that it names");
    }
    if top.get("cachedContent").is_some() {
        return refuse("cachedContent", "it was not created through this server");
    }
    // In the Responses format it is a template kept at the upstream; in completions, the text.
    if endpoint == Endpoint::Responses && top.get("prompt").is_some() {
        return refuse("prompt", "a stored prompt may bring its own model and tools");
    }
    Ok(())
}

/// The model that the client names, exactly as written.
pub fn model(kind: Kind, top: &Known<'_>, path_model: Option<&str>) -> Result<String, Invalid> {
    let named = top.text("model")?;
    let model = match (kind, path_model) {
        (Kind::Gemini, Some(path)) => {
            let same = |name: &str| name.strip_prefix("models/").unwrap_or(name) == path;
            if named.is_some_and(|name| !same(&name)) {
                return Err(top.problem("model", "must be the model of the path"));
            }
            path.to_owned()
        }
        _ => named.map(Cow::into_owned).unwrap_or_default(),
    };
    match model.len() {
        0 => Err(top.problem("model", "must name a model")),
        1..=256 => Ok(model),
        _ => Err(top.problem("model", "must be a string of at most 256 bytes")),
    }
}

/// The largest output asked for. Its names may stand together only if they agree, because
/// upstreams differ in which one they obey.
pub fn max_output(limits: &Known<'_>) -> Result<Option<u64>, Invalid> {
    let mut max = None;
    for name in MAX_OUTPUT {
        let given = limits.count(name)?;
        if given.is_some() && max.is_some() && given != max {
            return Err(limits.problem(name, "differs from another limit on output"));
        }
        max = max.or(given);
    }
    Ok(max)
}

/// How many prompts a list has; a list of numbers is one prompt, in tokens.
pub fn prompts(top: &Known<'_>) -> u64 {
    let items = || top.get("prompt").and_then(|prompt| prompt.items()).into_iter().flatten();
    match items().next() {
        Some(first) if first.unsigned().is_none() => items().count() as u64,
        _ => 1,
    }
}

/// How many choices are generated and billed.
pub fn choices(limits: &Known<'_>, most: u64) -> Result<u64, Invalid> {
    let mut choices = 1;
    for name in CHOICES {
        match limits.count(name)? {
            Some(count) if count == 0 || count > most => {
                return Err(limits.problem(name, format!("must be between 1 and {most}")));
            }
            Some(count) => choices = choices.max(count),
            None => {}
        }
    }
    Ok(choices)
}

/// The service tier, as the price table names it. Anthropic's fast mode is one, too.
pub fn service_tier(top: &Known<'_>) -> Result<Option<String>, Invalid> {
    let priced = |text: Option<Cow<'_, str>>| {
        let text = text?.to_ascii_lowercase();
        // Gemini's enum may be written in full.
        let tier = text.strip_prefix("service_tier_").unwrap_or(&text);
        (!STANDARD_TIERS.contains(&tier)).then(|| tier.to_owned())
    };
    let tier = top.text("service_tier")?.or(top.text("serviceTier")?);
    match (priced(tier), priced(top.text("speed")?)) {
        (Some(_), Some(_)) => Err(top.problem("speed", "cannot be combined with a service tier")),
        (tier, speed) => Ok(tier.or(speed)),
    }
}

/// Where the upstream is asked to compute.
pub fn inference_geo(top: &Known<'_>) -> Result<Option<String>, Invalid> {
    let geo = top.text("inference_geo")?.map(|geo| geo.to_ascii_lowercase());
    Ok(geo.filter(|geo| geo != "global"))
}

/// Kinds of output beside text.
#[derive(Default)]
pub struct Modalities {
    pub audio: bool,
    pub image: bool,
}

/// The kinds of output asked for.
pub fn modalities(limits: &Known<'_>) -> Result<Modalities, Invalid> {
    let mut output = Modalities::default();
    for name in ["modalities", "responseModalities"] {
        for item in limits.items(name)? {
            let kind = item.string().map(|kind| kind.to_ascii_lowercase());
            match kind.as_deref() {
                Some("text" | "modality_unspecified") => {}
                Some("audio") => output.audio = true,
                Some("image") => output.image = true,
                _ => return Err(limits.problem(name, "may list text, audio and image")),
            }
        }
    }
    Ok(output)
}

/// The conversation, given as its id or as an object with its id.
pub fn conversation(top: &Known<'_>) -> Result<Option<String>, Invalid> {
    let id = match top.get("conversation") {
        None => return Ok(None),
        Some(value) if value.members().is_some() => {
            let object = top.object("conversation", "conversation", &["id"])?;
            object.text("id")?.ok_or_else(|| object.problem("id", "is missing"))?
        }
        Some(_) => top.text("conversation")?.unwrap_or_default(),
    };
    Ok(Some(id.into_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::wire::Endpoint;
    use crate::wire::request::tests::{blamed, read_json};

    #[test]
    fn the_limit_on_output_is_found_under_all_its_names_and_must_agree() {
        let max = |endpoint, body| read_json(endpoint, body).unwrap().max_output;
        assert_eq!(max(Endpoint::Chat, json!({ "max_tokens": 7 })), Some(7));
        assert_eq!(
            max(Endpoint::Chat, json!({ "max_completion_tokens": 7, "max_tokens": 7 })),
            Some(7)
        );
        assert_eq!(max(Endpoint::Responses, json!({ "max_output_tokens": 7 })), Some(7));
        assert_eq!(max(Endpoint::Messages, json!({ "max_tokens": 7 })), Some(7));
        let config = json!({ "generationConfig": { "maxOutputTokens": 7 } });
        assert_eq!(max(Endpoint::Generate, config), Some(7));
        let config = json!({ "generation_config": { "max_output_tokens": 7 } });
        assert_eq!(max(Endpoint::Generate, config), Some(7));
        assert_eq!(max(Endpoint::Chat, json!({ "max_tokens": null })), None);
        let differ = json!({ "max_tokens": 7, "max_completion_tokens": 8 });
        assert_eq!(blamed(Endpoint::Chat, differ), "max_completion_tokens");
        for bad in [json!(-1), json!(1.5), json!("7"), json!(100.0), json!([7]), json!(true)] {
            assert_eq!(blamed(Endpoint::Chat, json!({ "max_tokens": bad })), "max_tokens");
        }
        let both = json!({ "generation_config": {}, "generationConfig": { "maxOutputTokens": 7 } });
        assert_eq!(blamed(Endpoint::Generate, both), "generationConfig");
    }

    #[test]
    fn choices_are_counted_and_capped() {
        let choices = |endpoint, body| read_json(endpoint, body).unwrap().choices;
        assert_eq!(choices(Endpoint::Chat, json!({})), 1);
        assert_eq!(choices(Endpoint::Chat, json!({ "n": 8 })), 8);
        assert_eq!(choices(Endpoint::Completions, json!({ "n": 2, "best_of": 5 })), 5);
        let config = json!({ "generationConfig": { "candidateCount": 3 } });
        assert_eq!(choices(Endpoint::Generate, config), 3);
        assert_eq!(blamed(Endpoint::Chat, json!({ "n": 9 })), "n");
        assert_eq!(blamed(Endpoint::Chat, json!({ "n": 0 })), "n");
        assert_eq!(blamed(Endpoint::Completions, json!({ "best_of": 100 })), "best_of");
    }

    #[test]
    fn tiers_at_standard_rates_are_no_tier() {
        let tier = |endpoint, body| read_json(endpoint, body).unwrap().service_tier;
        for standard in ["auto", "default", "Standard", "standard_only", "on_demand"] {
            assert_eq!(tier(Endpoint::Chat, json!({ "service_tier": standard })), None);
        }
        assert_eq!(tier(Endpoint::Chat, json!({ "service_tier": null })), None);
        assert_eq!(
            tier(Endpoint::Chat, json!({ "service_tier": "Priority" })).unwrap(),
            "priority"
        );
        assert_eq!(tier(Endpoint::Generate, json!({ "serviceTier": "flex" })).unwrap(), "flex");
        let full = json!({ "service_tier": "SERVICE_TIER_PRIORITY" });
        assert_eq!(tier(Endpoint::Generate, full).unwrap(), "priority");
        assert_eq!(tier(Endpoint::Messages, json!({ "speed": "fast" })).unwrap(), "fast");
        assert_eq!(tier(Endpoint::Messages, json!({ "speed": "standard" })), None);
        assert_eq!(blamed(Endpoint::Chat, json!({ "service_tier": 2 })), "service_tier");
        let geo = |geo: &str| read_json(Endpoint::Messages, json!({ "inference_geo": geo }));
        assert_eq!(geo("us").unwrap().inference_geo.as_deref(), Some("us"));
        assert_eq!(geo("global").unwrap().inference_geo, None);
    }

    #[test]
    fn audio_and_images_are_seen_coming() {
        let output = |endpoint, body| {
            let request = read_json(endpoint, body).unwrap();
            (request.audio_output, request.image_output)
        };
        assert_eq!(output(Endpoint::Chat, json!({ "modalities": ["text"] })), (false, false));
        assert_eq!(
            output(Endpoint::Chat, json!({ "modalities": ["text", "audio"] })),
            (true, false)
        );
        assert_eq!(output(Endpoint::Chat, json!({ "audio": { "voice": "x" } })), (true, false));
        let config = json!({ "generationConfig": { "responseModalities": ["TEXT", "IMAGE"] } });
        assert_eq!(output(Endpoint::Generate, config), (false, true));
        assert_eq!(blamed(Endpoint::Chat, json!({ "modalities": ["video"] })), "modalities");
    }

    #[test]
    fn what_cannot_be_metered_is_refused_by_name() {
        assert_eq!(blamed(Endpoint::Responses, json!({ "background": true })), "background");
        assert_eq!(blamed(Endpoint::Responses, json!({ "prompt": { "id": "p" } })), "prompt");
        assert_eq!(blamed(Endpoint::Chat, json!({ "deferred": true })), "deferred");
        assert_eq!(blamed(Endpoint::Chat, json!({ "models": ["dear"] })), "models");
        assert_eq!(blamed(Endpoint::Generate, json!({ "cachedContent": "c" })), "cachedContent");
        assert_eq!(blamed(Endpoint::Generate, json!({ "cached_content": "c" })), "cachedContent");
        assert!(read_json(Endpoint::Responses, json!({ "background": false })).is_ok());
        assert!(read_json(Endpoint::Completions, json!({ "prompt": ["a", "b"] })).is_ok());
        assert!(read_json(Endpoint::Chat, json!({ "brand_new": { "x": [1] } })).is_ok());
    }

    #[test]
    fn objects_of_earlier_requests_are_named() {
        let request = |body| read_json(Endpoint::Responses, body).unwrap();
        let previous = request(json!({ "previous_response_id": "resp_1" }));
        assert_eq!(previous.previous_response.as_deref(), Some("resp_1"));
        let conversation = |body| request(json!({ "conversation": body })).conversation;
        assert_eq!(conversation(json!("conv_1")).as_deref(), Some("conv_1"));
        assert_eq!(conversation(json!({ "id": "conv_1" })).as_deref(), Some("conv_1"));
        assert_eq!(conversation(json!(null)), None);
        assert_eq!(blamed(Endpoint::Responses, json!({ "conversation": {} })), "conversation.id");
        assert_eq!(blamed(Endpoint::Responses, json!({ "conversation": 1 })), "conversation");
    }
}
