//! What is answered here, at any balance: the models, and what the account has and spends.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use serde_json::{Value, json};

use super::body::Body;
use super::error::Error;
use super::{Context, Reply, authenticate};
use crate::billing::Credits;
use crate::billing::price::{Model, Rate, Rates};
use crate::store::{Group, Key, UsageFilter};

const DAY_MS: i64 = 86_400_000;

/// `GET /v1/models`: what this key can call, with prices.
pub fn models(ctx: &Context, key: &Key) -> Reply {
    let table = ctx.prices.table();
    let data: Vec<Value> = table
        .models
        .iter()
        .filter(|model| may_see(ctx, key, model))
        .map(|model| listed(model))
        .collect();
    // `first_id`, `last_id` and `has_more` are what Anthropic's clients page by.
    let end = |model: Option<&Value>| model.map_or(Value::Null, |model| model["id"].clone());
    reply(&json!({
        "object": "list", "first_id": end(data.first()), "last_id": end(data.last()),
        "has_more": false, "data": data,
    }))
}

/// `GET /v1/models/{id}`
///
/// # Errors
///
/// [`Error::ModelNotFound`] for what this key cannot call.
pub fn model(ctx: &Context, key: &Key, id: &str) -> Result<Reply, Error> {
    let table = ctx.prices.table();
    match table.find(id).filter(|model| may_see(ctx, key, model)) {
        Some(model) => Ok(reply(&listed(model))),
        None => Err(Error::ModelNotFound {
            model: id.into(),
            nearest: table
                .nearest(id)
                .into_iter()
                .filter(|name| table.find(name).is_some_and(|model| may_see(ctx, key, model)))
                .map(String::from)
                .collect(),
        }),
    }
}

fn may_see(ctx: &Context, key: &Key, model: &Arc<Model>) -> bool {
    ctx.is_callable(model) && authenticate::may_call(key, &model.name)
}

/// A model in OpenAI's fields, with context and prices in OpenRouter's: credits per token,
/// as decimal strings.
fn listed(model: &Model) -> Value {
    let rates = &model.price.standard.rates;
    let mut pricing = serde_json::Map::new();
    let mut put = |name: &str, rate: Option<Rate>| {
        if let Some(rate) = rate {
            pricing.insert(name.into(), per_token(rate).into());
        }
    };
    let free = Rates::default();
    let rates = if model.price.free { &free } else { rates };
    put("prompt", Some(rates.input));
    put("completion", Some(rates.output));
    put("input_cache_read", rates.cached_input);
    put("input_cache_write", rates.cache_creation);
    put("input_cache_write_1h", rates.cache_creation_1h);
    put("internal_reasoning", rates.reasoning);
    put("audio", rates.audio_input);
    put("input_audio_cache", rates.cached_audio_input);
    put("audio_output", rates.audio_output);
    put("image_token", rates.image_input);
    put("image_output", rates.image_output);
    for (name, fee) in &model.price.fees {
        pricing.insert(name.clone(), fee.to_string().into());
    }
    let owner = model.upstreams.first().map_or("farebox", |(upstream, _)| upstream);
    json!({
        "id": model.name,
        "object": "model",
        "type": "model",
        "created": 0,
        "created_at": "1970-01-01T00:00:00Z",
        "owned_by": owner,
        "name": model.name,
        "display_name": model.name,
        "context_length": model.context,
        "top_provider": {
            "context_length": model.context, "max_completion_tokens": model.max_output,
        },
        "pricing": pricing,
    })
}

/// Credits per token as an exact decimal: twelve decimals hold every pico-credit.
fn per_token(rate: Rate) -> String {
    let text = format!("{}.{:012}", rate.0 / 1_000_000_000_000, rate.0 % 1_000_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `GET /v1/me`: balance, spending and limits, of the key and the account that it belongs to.
///
/// # Errors
///
/// [`Error::Ledger`] when the store cannot be asked.
pub async fn me(ctx: &Context, key: &Key) -> Result<Reply, Error> {
    let account = ctx.store.account(&key.account).await.map_err(Error::Ledger)?;
    let in_use = ctx.store.key_use(&key.account, &key.id).await.map_err(Error::Ledger)?;
    let now = super::now_ms();
    let today = now - now.rem_euclid(DAY_MS);
    let filter = UsageFilter { since: Some(today - 29 * DAY_MS), ..UsageFilter::default() };
    let utc = jiff::tz::TimeZone::UTC;
    let days =
        ctx.store.summary(&key.account, filter, Group::Day, utc).await.map_err(Error::Ledger)?;
    let spent = |days_back: i64| -> Credits {
        let first = day_of(today - days_back * DAY_MS);
        days.iter().filter(|day| day.group >= first).map(|day| day.charge).sum()
    };
    Ok(reply(&json!({
        "object": "account",
        "account": account.id,
        "status": account.status,
        "balance": account.balance,
        "held": account.held,
        "available": account.available,
        "spend": { "today": spent(0), "last_7_days": spent(6), "last_30_days": spent(29) },
        "key": {
            "id": key.id,
            "name": key.name,
            "tag": key.tag,
            "models": key.models,
            "limits": key.limits,
            "use": in_use,
            "expires_at": key.expires_at.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()),
        },
        "limits": {
            "admission": account.mode.unwrap_or(ctx.config.admission),
            "max_in_flight": account.max_in_flight.unwrap_or(ctx.config.max_in_flight),
            "in_flight": account.in_flight,
            "count_tokens_per_minute": ctx.config.count_tokens_per_minute,
        },
        "billing_url": Some(&ctx.config.billing_url).filter(|url| !url.is_empty()),
    })))
}

/// The day in UTC, as summaries name it.
fn day_of(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map(|ts| ts.to_zoned(jiff::tz::TimeZone::UTC).date().to_string())
        .unwrap_or_default()
}

fn reply(body: &Value) -> Reply {
    let mut reply = Response::new(Body::whole(body.to_string().into()));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_shown_per_token_to_the_last_digit() {
        assert_eq!(per_token(Rate(3_300_000)), "0.0000033");
        assert_eq!(per_token(Rate(1)), "0.000000000001");
        assert_eq!(per_token(Rate(0)), "0");
        assert_eq!(per_token(Rate(2_000_000_000_000)), "2");
    }
}
