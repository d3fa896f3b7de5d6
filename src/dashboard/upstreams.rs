//! How the upstreams are doing, for the operator.

use askama::Template;
use axum::response::Response;

use super::Failure;
use super::moment::Instant;
use super::number::{duration, grouped};
use super::page::{Operator, Shell};
use crate::admin::upstreams::Upstream;
use crate::proxy::health::{Condition, Tally};

#[derive(Template)]
#[template(path = "operator_upstreams.html")]
struct Upstreams {
    shell: Shell,
    since: Instant,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    models: usize,
    state: &'static str,
    tone: &'static str,
    hour: String,
    hour_failures: String,
    total: String,
    total_failures: String,
    mean: String,
    slowest: String,
    success: Option<Instant>,
    failure: Option<(Instant, String)>,
}

/// The page.
///
/// # Errors
///
/// When the template fails.
pub async fn show(page: Operator) -> Result<Response, Failure> {
    let upstreams = (page.state.upstreams)();
    let template = Upstreams {
        since: Instant::ago(upstreams.since, page.now, &page.zone),
        rows: upstreams.data.into_iter().map(|upstream| Row::of(upstream, &page)).collect(),
        shell: page.shell("upstreams"),
    };
    page.show(&template)
}

impl Row {
    fn of(Upstream { name, models, health, .. }: Upstream, page: &Operator) -> Self {
        let (state, tone) = match health.condition {
            Condition::Unused => ("Not used yet", "soft"),
            Condition::Working => ("Working", "good"),
            Condition::Failing => ("Failing", "bad"),
        };
        let ago = |at| Instant::ago(at, page.now, &page.zone);
        let latency = |ms: Option<u64>| {
            ms.map_or_else(|| "–".into(), |ms| duration(u32::try_from(ms).unwrap_or(u32::MAX)))
        };
        let failures = |tally: &Tally| match tally.failures {
            0 => String::new(),
            n => format!("{} failed", grouped(n)),
        };
        Self {
            name,
            models,
            state,
            tone,
            hour: grouped(health.last_hour.requests),
            hour_failures: failures(&health.last_hour),
            total: grouped(health.total.requests),
            total_failures: failures(&health.total),
            mean: latency(health.last_hour.mean_latency_ms),
            slowest: latency(health.last_hour.slowest_latency_ms),
            success: health.last_success.map(ago),
            failure: health.last_failure.map(|last| {
                let status = last.status.map(|s| format!(" ({s})")).unwrap_or_default();
                (ago(last.at), format!("{}{status}", last.trouble.words()))
            }),
        }
    }
}
