//! The price of one reply: which entry of the table holds, and what it does not cover.
//!
//! The arithmetic is `billing::price`'s. What an entry has no price for is charged at what it
//! has, and the row is flagged, so that nothing is free silently.

use super::{Call, Context};
use crate::billing::hold::{Asked, most};
use crate::billing::price::{Model, Price, charge};
use crate::billing::{Credits, Usage};
use crate::store::Admission;
use crate::wire::Endpoint;
use crate::wire::meter::Reading;

/// What is known of a request before it is sent: the most that it can cost, and its tokens.
///
/// What an upstream adds to the input by itself is not in the bytes that came: all of the
/// model's context is taken where the request builds on a stored one. Pictures by address, and
/// what tools find, remain unseen.
pub fn ask(ctx: &Context, call: &Call) -> Admission {
    let Call { request, target, .. } = call;
    let model = &target.model;
    let bytes = request.body().len() as u64;
    let sent = bytes.div_ceil(ctx.config.bytes_per_token.max(1));
    let is_stored = request.previous_response.is_some() || request.conversation.is_some();
    let input = if is_stored { model.context } else { Some(sent) };

    let times = request.choices.saturating_mul(request.prompts);
    let asked = request.max_output.map(|each| each.saturating_mul(times));
    let output = match call.endpoint {
        Endpoint::Embeddings => Some(0),
        _ => {
            let each = match (request.max_output, model.max_output) {
                (Some(asked), Some(largest)) => Some(asked.min(largest)),
                (asked, largest) => asked.or(largest),
            };
            each.map(|each| each.saturating_mul(times))
        }
    };
    let of = |(input, output)| {
        let table = ctx.prices.table();
        let served = model.serves.iter().filter_map(|name| table.find(name));
        let prices = || served.clone().map(|model| &model.price).chain([&model.price]);
        // Looked for only where it makes a difference: it may be a long way through a prompt.
        let has_media = || prices().any(Price::has_media_rates) && request.may_have_media();
        let asked = Asked {
            input,
            output,
            tier: request.service_tier.as_deref(),
            tools: &request.hosted_tools,
            cache_1h: request.asks_1h_cache,
            media: request.audio_output || request.image_output || has_media(),
        };
        most(&asked, prices())
    };
    Admission {
        mode: ctx.config.admission,
        max_in_flight: ctx.config.max_in_flight,
        most: if model.price.free { Some(Credits::ZERO) } else { input.zip(output).map(of) },
        tokens: sent.saturating_add(asked.unwrap_or(0)),
    }
}

/// The charge for what a reply reports; `None` if it reports nothing that can be priced.
pub fn of_reading(
    ctx: &Context,
    model: &Model,
    asks_1h_cache: bool,
    reading: &Reading,
) -> Option<Credits> {
    let usage = reading.usage.clone()?;
    priced(ctx, model, asks_1h_cache, usage, reading, &mut Vec::new()).map(|(_, charge)| charge)
}

/// The charge for a usage: the model's own price or that of a listed model which answered
/// instead, and the tokens of other models on the same request by theirs.
pub fn priced(
    ctx: &Context,
    model: &Model,
    asks_1h_cache: bool,
    mut usage: Usage,
    reading: &Reading,
    flags: &mut Vec<&'static str>,
) -> Option<(Usage, Credits)> {
    let table = ctx.prices.table();
    let other = reading.model.as_deref().and_then(|served| {
        let listed = model.serves.iter().find(|listed| is_same_model(listed, served))?;
        table.find(listed)
    });
    let price = other.map_or(&model.price, |other| &other.price);
    // Without a split by lifetime the dearer one is taken, if it was asked for.
    if asks_1h_cache && usage.cache_creation_1h == 0 && reading.cache_unsplit {
        usage.cache_creation_1h = std::mem::take(&mut usage.cache_creation_5m);
    }
    let tier = reading.service_tier.as_deref();
    if tier.is_some_and(|tier| !is_standard(tier) && !price.tiers.contains_key(tier)) {
        flags.push("unpriced_tier");
    }
    if usage.calls.iter().any(|(call, count)| *count > 0 && !price.fees.contains_key(*call)) {
        flags.push("unpriced_call");
    }
    let Ok(mut total) = charge(&usage, price, tier) else {
        flags.push("usage_invalid");
        return None;
    };
    for (name, used) in &reading.sub_usages {
        let upstreams = model.upstreams.iter();
        let own = upstreams.clone().find_map(|(upstream, _)| table.by_upstream(upstream, name));
        let own = own.or_else(|| table.find(name));
        if own.is_none() {
            flags.push("unpriced_model");
        }
        let price = own.map_or(price, |model| &model.price);
        let sum = charge(used, price, None).ok().and_then(|part| total.checked_add(part));
        match sum.filter(|sum| *sum <= Credits::ENTRY_LIMIT) {
            Some(sum) => total = sum,
            // Counts beyond belief of another model do not make those of this one free.
            None => flags.push("usage_invalid"),
        }
    }
    if costs_more_there(reading) {
        flags.push("unpriced_geo");
    }
    Some((usage, total))
}

/// Whether the reply was computed where it costs more (Anthropic, `us`). Asking for that is
/// refused; an upstream's workspace may be set to it all the same.
fn costs_more_there(reading: &Reading) -> bool {
    reading.inference_geo.as_deref().is_some_and(|geo| !matches!(geo, "global" | "not_available"))
}

fn is_standard(tier: &str) -> bool {
    matches!(tier, "default" | "standard" | "auto" | "on_demand" | "standard_only")
}

/// Whether a reply's model is the one of an entry: the same id, or a dated version of it.
fn is_same_model(ours: &str, served: &str) -> bool {
    let ours = ours.rsplit('/').next().unwrap_or(ours);
    let served = served.rsplit('/').next().unwrap_or(served);
    served.strip_prefix(ours).is_some_and(|rest| {
        rest.is_empty()
            || (rest.starts_with(['-', '@']) && rest[1..].starts_with(|c: char| c.is_ascii_digit()))
    })
}

/// The model that answered, where it is neither the one asked for nor a version of it.
pub fn served_model(
    model: &Model,
    reading: &Reading,
    flags: &mut Vec<&'static str>,
) -> Option<String> {
    let served = reading.model.as_deref().filter(|served| !served.is_empty())?;
    let known =
        model.upstreams.iter().map(|(_, name)| name).chain([&model.name]).chain(&model.aliases);
    if known.into_iter().any(|ours| is_same_model(ours, served) || is_same_model(served, ours)) {
        return None;
    }
    flags.push("served_model");
    Some(served.chars().filter(|c| !c.is_control()).take(128).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dated_version_is_the_same_model_and_a_sibling_is_not() {
        assert!(is_same_model("gpt-4.1", "gpt-4.1-2025-04-14"));
        assert!(is_same_model("claude-sonnet-4-5", "claude-sonnet-4-5-20250929"));
        assert!(is_same_model("anthropic/claude-opus-4.6", "claude-opus-4.6"));
        assert!(!is_same_model("gpt-4.1", "gpt-4.1-mini"));
        assert!(!is_same_model("grok-4", "grok-4.3"));
    }
}
