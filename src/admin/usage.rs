//! The requests of an account: one by one, and summed by model, key, tag, upstream, day
//! or hour.

use axum::Json;
use axum::extract::State as Shared;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::error::ErrorBody;
use super::extract::{Params, Target, instant, page};
use super::{Error, State};
use crate::store::{Group, Millis, Outcome, Rows, Source, SummaryRow, UsageFilter, UsageRow};
use crate::time;

const DAY_MS: Millis = 24 * 3600 * 1000;
/// What a summary covers unless the query says otherwise.
const SUMMARY_SPAN_MS: Millis = 30 * DAY_MS;
/// What a summary covers at most: its work grows with the requests in it.
const SUMMARY_SPAN_LIMIT_MS: Millis = 366 * DAY_MS;

/// Which requests.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// Not before this RFC 3339 time or date (UTC).
    since: Option<String>,
    /// Before this RFC 3339 time or date (UTC).
    until: Option<String>,
    /// Exactly this model.
    model: Option<String>,
    /// Exactly this key's id.
    key: Option<String>,
    /// Exactly this tag.
    tag: Option<String>,
    /// Exactly this upstream, by its name.
    upstream: Option<String>,
    /// Exactly this origin: `user`, `heartbeat` or `cron`.
    origin: Option<String>,
    /// Exactly this source of the counts.
    source: Option<Source>,
    /// Exactly this outcome.
    outcome: Option<Outcome>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// Rows of a page, 1–500; 100 if absent.
    limit: Option<u32>,
}

/// What to sum, and how. Filters are spelt out again because a flattened struct cannot
/// deny unknown fields.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SummaryQuery {
    /// What the rows are; `model` if absent.
    by: Option<Group>,
    /// The time zone of days and dates, such as `Europe/Berlin`; UTC if absent.
    tz: Option<String>,
    /// Not before this RFC 3339 time or date (of the zone); 30 days before `until` if absent.
    since: Option<String>,
    /// Before this RFC 3339 time or date (of the zone); now if absent.
    until: Option<String>,
    /// Exactly this model.
    model: Option<String>,
    /// Exactly this key's id.
    key: Option<String>,
    /// Exactly this tag.
    tag: Option<String>,
    /// Exactly this upstream, by its name.
    upstream: Option<String>,
    /// Exactly this origin: `user`, `heartbeat` or `cron`.
    origin: Option<String>,
    /// Exactly this source of the counts.
    source: Option<Source>,
    /// Exactly this outcome.
    outcome: Option<Outcome>,
}

/// Sums over requests.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Summary {
    /// What the rows are.
    pub by: Group,
    /// The time zone of days.
    pub tz: String,
    /// Not before.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub since: Millis,
    /// Before.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub until: Millis,
    /// Dearest group first; days in order.
    pub data: Vec<SummaryRow>,
    /// All rows together.
    pub total: SummaryRow,
}

/// The requests of an account, newest first.
///
/// # Errors
///
/// No such account, or a bad filter.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/usage", tag = "usage",
    params(("account" = String, Path, description = "Whose requests"), UsageQuery),
    responses(
        (status = 200, description = "A page", body = Rows<UsageRow>),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn list(
    Shared(state): Shared<State>,
    target: Target,
    Params(query): Params<UsageQuery>,
) -> Result<Json<Rows<UsageRow>>, Error> {
    let filter = UsageFilter {
        since: instant("since", query.since.as_deref(), &TimeZone::UTC)?,
        until: instant("until", query.until.as_deref(), &TimeZone::UTC)?,
        model: query.model,
        key: query.key,
        tag: query.tag,
        upstream: query.upstream,
        origin: query.origin,
        source: query.source,
        outcome: query.outcome,
    };
    let page = page(query.cursor, query.limit)?;
    Ok(Json(state.store.usage(&target.account.id, filter, page).await?))
}

/// Sums over the requests of an account.
///
/// # Errors
///
/// No such account, a bad filter, an unknown time zone, or more than 366 days.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/usage/summary", tag = "usage",
    params(("account" = String, Path, description = "Whose requests"), SummaryQuery),
    responses(
        (status = 200, description = "The sums", body = Summary),
        (status = 400, description = "Not a valid query", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn summary(
    Shared(state): Shared<State>,
    target: Target,
    Params(query): Params<SummaryQuery>,
) -> Result<Json<Summary>, Error> {
    let tz = query.tz.unwrap_or_else(|| "UTC".to_owned());
    let zone = zone(&tz)?;
    let (since, until) = span(
        instant("since", query.since.as_deref(), &zone)?,
        instant("until", query.until.as_deref(), &zone)?,
        time::now(),
    )?;
    let filter = UsageFilter {
        since: Some(since),
        until: Some(until),
        model: query.model,
        key: query.key,
        tag: query.tag,
        upstream: query.upstream,
        origin: query.origin,
        source: query.source,
        outcome: query.outcome,
    };
    let by = query.by.unwrap_or(Group::Model);
    let data = state.store.summary(&target.account.id, filter, by, zone).await?;
    let total = total(&data);
    Ok(Json(Summary { by, tz, since, until, data, total }))
}

/// The time zone of a query.
pub(super) fn zone(name: &str) -> Result<TimeZone, Error> {
    TimeZone::get(name).map_err(|_| Error::InvalidParameter {
        param: "tz",
        problem: "must be a time zone such as Europe/Berlin".to_owned(),
    })
}

/// What a summary covers: bounded, and up to now, what is settled this millisecond included.
pub(super) fn span(
    since: Option<Millis>,
    until: Option<Millis>,
    now: Millis,
) -> Result<(Millis, Millis), Error> {
    let until = until.unwrap_or(now + 1);
    let since = since.unwrap_or(until.saturating_sub(SUMMARY_SPAN_MS));
    let problem = match until.saturating_sub(since) {
        ..0 => "must not be after `until`",
        0..=SUMMARY_SPAN_LIMIT_MS => return Ok((since, until)),
        _ => "must be at most 366 days before `until`",
    };
    Err(Error::InvalidParameter { param: "since", problem: problem.to_owned() })
}

pub(super) fn total(rows: &[SummaryRow]) -> SummaryRow {
    let mut total = SummaryRow { group: "total".to_owned(), ..SummaryRow::default() };
    for row in rows {
        total.requests += row.requests;
        total.input_tokens += row.input_tokens;
        total.cached_input_tokens += row.cached_input_tokens;
        total.cache_creation_tokens += row.cache_creation_tokens;
        total.output_tokens += row.output_tokens;
        total.charge += row.charge;
        total.estimated += row.estimated;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_covers_thirty_days_unless_told_and_never_more_than_366() {
        let now = 1000 * DAY_MS;
        assert_eq!(span(None, None, now).unwrap(), (now + 1 - 30 * DAY_MS, now + 1));
        assert_eq!(span(Some(5), Some(9), now).unwrap(), (5, 9));
        assert!(span(Some(now - 366 * DAY_MS), Some(now), now).is_ok());
        assert!(span(Some(now - 366 * DAY_MS - 1), Some(now), now).is_err());
        assert!(span(Some(now), Some(now - 1), now).is_err());
        assert!(span(Some(Millis::MIN), Some(Millis::MAX), now).is_err());
    }

    #[test]
    fn the_total_is_the_exact_sum_of_the_rows() {
        let row = |charge: &str, requests| SummaryRow {
            charge: charge.parse().unwrap(),
            requests,
            ..SummaryRow::default()
        };
        let total = total(&[row("0.1", 3), row("0.2", 4)]);
        assert_eq!((total.charge.to_string().as_str(), total.requests), ("0.3", 7));
    }
}
