//! What an account's heartbeats cost, and what they would cost otherwise: computed from its
//! own rows and the price table, by `billing::compare`.

use std::collections::HashSet;

use axum::Json;
use axum::extract::State as Shared;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::error::ErrorBody;
use super::extract::{Params, Target, instant};
use super::usage::{span, total};
use super::{Error, State};
use crate::billing::Credits;
use crate::billing::compare::{
    self, ISOLATED_INPUT_TOKENS, Runs, is_candidate, less_often, percent, repriced, usual_pause,
};
use crate::billing::price::Model;
use crate::proxy::may_call;
use crate::store::{AccountId, Group, Millis, Page, SummaryRow, UsageFilter, UsageRow};
use crate::time;

/// How the origin of heartbeats is called.
pub const HEARTBEAT: &str = "heartbeat";
/// The newest heartbeats, from which pauses and sizes are taken.
const SAMPLE: u32 = 500;
/// Lighter models that are told.
const LIGHTER: usize = 5;

/// Which heartbeats.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HeartbeatsQuery {
    /// The time zone of dates, such as `Europe/Berlin`; UTC if absent.
    tz: Option<String>,
    /// Not before this RFC 3339 time or date (of the zone); 30 days before `until` if absent.
    since: Option<String>,
    /// Before this RFC 3339 time or date (of the zone); now if absent.
    until: Option<String>,
}

/// The heartbeats of an account, and what they could cost.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Heartbeats {
    /// Not before.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub since: Millis,
    /// Before.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub until: Millis,
    /// All requests by origin: `heartbeat`, `cron` and `other`. They sum to `total`.
    pub by_origin: Vec<SummaryRow>,
    /// All requests of the account.
    pub total: SummaryRow,
    /// The heartbeats by model, dearest first.
    pub by_model: Vec<SummaryRow>,
    /// Their part of everything that was spent, in percent, rounded; absent if nothing was.
    pub share_percent: Option<u64>,
    /// The usual pause between two, in minutes, rounded: 0 below half a minute. Absent where
    /// there are too few.
    pub every_minutes: Option<u64>,
    /// What they could have cost; absent if there are none.
    pub otherwise: Option<Otherwise>,
}

/// What the same heartbeats would have cost otherwise. Estimates.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Otherwise {
    /// Twice the pause.
    #[schema(value_type = String)]
    pub half_as_often: Credits,
    /// In a session of their own.
    #[schema(value_type = String)]
    pub isolated: Credits,
    /// The input of a heartbeat in a session of its own, in tokens, as `isolated` takes it.
    pub isolated_input_tokens: u64,
    /// Whether that size was seen in this account, or is one seen elsewhere.
    pub isolated_is_measured: bool,
    /// On models that cost less and that the keys of the heartbeats may call, cheapest first.
    pub lighter: Vec<Lighter>,
}

/// Another model for heartbeats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lighter {
    /// Its name.
    pub model: String,
    /// With the context as it is.
    #[schema(value_type = String)]
    pub charge: Credits,
    /// And in a session of their own.
    #[schema(value_type = String)]
    pub isolated: Credits,
}

/// A usual pause in words.
pub fn every(minutes: u64) -> String {
    match minutes {
        0 => "more than once a minute".into(),
        1 => "every minute".into(),
        _ => format!("every {minutes} min"),
    }
}

/// What heartbeats cost, and what the same runs would cost otherwise.
///
/// # Errors
///
/// No such account, a bad filter, an unknown time zone, or more than 366 days.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/usage/heartbeats", tag = "usage",
    params(("account" = String, Path, description = "Whose heartbeats"), HeartbeatsQuery),
    responses(
        (status = 200, description = "The heartbeats", body = Heartbeats),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn show(
    Shared(state): Shared<State>,
    target: Target,
    Params(query): Params<HeartbeatsQuery>,
) -> Result<Json<Heartbeats>, Error> {
    let zone = super::usage::zone(query.tz.as_deref().unwrap_or("UTC"))?;
    let (since, until) = span(
        instant("since", query.since.as_deref(), &zone)?,
        instant("until", query.until.as_deref(), &zone)?,
        time::now(),
    )?;
    Ok(Json(heartbeats(&state, &target.account.id, since, until).await?))
}

/// The heartbeats of an account from `since` until before `until`.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn heartbeats(
    state: &State,
    account: &AccountId,
    since: Millis,
    until: Millis,
) -> Result<Heartbeats, Error> {
    let store = state.store.as_ref();
    let filter = |origin: Option<&str>| UsageFilter {
        since: Some(since),
        until: Some(until),
        origin: origin.map(Into::into),
        ..UsageFilter::default()
    };
    let by = async |origin: Option<&str>, group| {
        store.summary(account, filter(origin), group, TimeZone::UTC).await
    };
    let by_model = by(Some(HEARTBEAT), Group::Model).await?;
    let all = total(&by(None, Group::Model).await?);
    let cron = named("cron", total(&by(Some("cron"), Group::Model).await?));
    let beats = named(HEARTBEAT, total(&by_model));
    let otherwise = if beats.requests == 0 {
        None
    } else {
        let keys = by(Some(HEARTBEAT), Group::Key).await?;
        Some(otherwise(state, account, filter(Some(HEARTBEAT)), &by_model, &keys).await?)
    };
    let other = rest(&all, &[&beats, &cron]);
    Ok(Heartbeats {
        since,
        until,
        share_percent: percent(beats.charge, all.charge),
        every_minutes: otherwise.as_ref().and_then(|(_, every)| *every),
        by_origin: vec![beats, cron, other],
        total: all,
        by_model,
        otherwise: otherwise.map(|(otherwise, _)| otherwise),
    })
}

/// What they would have cost otherwise, and their usual pause in minutes.
async fn otherwise(
    state: &State,
    account: &AccountId,
    filter: UsageFilter,
    by_model: &[SummaryRow],
    by_key: &[SummaryRow],
) -> Result<(Otherwise, Option<u64>), Error> {
    let sample = state.store.usage(account, filter, Page { cursor: None, limit: SAMPLE }).await?;
    let every_minutes =
        usual_pause(starts(&sample.data)).map(|ms| (ms.unsigned_abs() + 30_000) / 60_000);
    let measured = isolated_input(&sample.data);
    let tokens = measured.unwrap_or(ISOLATED_INPUT_TOKENS);

    let table = (state.prices)();
    let runs: Vec<Runs> = by_model.iter().map(runs).collect();
    let charge = runs.iter().fold(Credits::ZERO, |sum, runs| sum + runs.charge);
    let models = by_model.iter().map(|row| table.find(&row.group).map(AsRef::as_ref));
    let priced: Vec<_> = runs.iter().cloned().zip(models).collect();

    let used: HashSet<&str> = by_key.iter().map(|row| row.group.as_str()).collect();
    let mut keys = state.store.keys(account).await?;
    keys.retain(|key| used.contains(key.id.as_str()) && key.revoked_at.is_none());
    let upstreams: HashSet<String> =
        (state.upstreams)().data.into_iter().map(|upstream| upstream.name).collect();
    let may_be_called = |model: &Model| {
        is_candidate(model)
            && model.upstreams.iter().any(|(name, _)| upstreams.contains(name))
            && keys.iter().all(|key| may_call(key, &model.name))
    };
    let mut lighter: Vec<Lighter> = table
        .models
        .iter()
        .filter(|model| may_be_called(model))
        .filter_map(|model| {
            Some(Lighter {
                model: model.name.clone(),
                charge: repriced(&runs, model, None)?,
                isolated: repriced(&runs, model, Some(tokens))?,
            })
        })
        .filter(|model| model.charge < charge)
        .collect();
    lighter.sort_by(|a, b| a.charge.cmp(&b.charge).then_with(|| a.model.cmp(&b.model)));
    lighter.truncate(LIGHTER);
    let otherwise = Otherwise {
        half_as_often: less_often(charge, 1, 2),
        isolated: compare::isolated(&priced, tokens),
        isolated_input_tokens: tokens,
        isolated_is_measured: measured.is_some(),
        lighter,
    };
    Ok((otherwise, every_minutes))
}

/// When each run began; several requests of one run count once.
fn starts(rows: &[UsageRow]) -> Vec<i64> {
    let mut seen = HashSet::new();
    // Newest first, so reversed the first request of a run is met first.
    let first = rows.iter().rev().filter(|row| match &row.attribution.run {
        Some(run) => seen.insert(run.as_str()),
        None => true,
    });
    first.map(|row| row.ts - i64::from(row.latency_ms)).collect()
}

/// The mean input of those that ran in a session of their own already.
fn isolated_input(rows: &[UsageRow]) -> Option<u64> {
    let is_isolated = |row: &&UsageRow| {
        row.attribution.session.as_deref().is_some_and(|session| session.ends_with(":heartbeat"))
    };
    let input = |row: &UsageRow| {
        row.input_tokens
            + row.cached_input_tokens
            + row.cache_creation_5m_tokens
            + row.cache_creation_1h_tokens
    };
    let (count, sum) = rows
        .iter()
        .filter(is_isolated)
        .fold((0_u64, 0_u64), |(count, sum), row| (count + 1, sum.saturating_add(input(row))));
    sum.checked_div(count)
}

fn runs(row: &SummaryRow) -> Runs {
    Runs {
        requests: row.requests,
        input: row.input_tokens,
        cached: row.cached_input_tokens,
        cache_creation: row.cache_creation_tokens,
        output: row.output_tokens,
        charge: row.charge,
    }
}

fn named(group: &str, row: SummaryRow) -> SummaryRow {
    SummaryRow { group: group.to_owned(), ..row }
}

/// What is in `all` and in none of `parts`.
fn rest(all: &SummaryRow, parts: &[&SummaryRow]) -> SummaryRow {
    let mut rest = named("other", all.clone());
    for part in parts {
        rest.requests = rest.requests.saturating_sub(part.requests);
        rest.input_tokens = rest.input_tokens.saturating_sub(part.input_tokens);
        rest.cached_input_tokens =
            rest.cached_input_tokens.saturating_sub(part.cached_input_tokens);
        rest.cache_creation_tokens =
            rest.cache_creation_tokens.saturating_sub(part.cache_creation_tokens);
        rest.output_tokens = rest.output_tokens.saturating_sub(part.output_tokens);
        rest.charge = rest.charge - part.charge;
        rest.estimated = rest.estimated.saturating_sub(part.estimated);
    }
    rest
}
