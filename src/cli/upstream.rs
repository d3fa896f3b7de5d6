//! `farebox upstream`: how the providers are doing.

use clap::Subcommand;

use super::context::Context;
use super::failure::Failure;
use super::table::{Align, Table};
use crate::admin::upstreams::{Upstream, Upstreams};
use crate::proxy::health::{Condition, LastFailure, Tally};

/// What to do with upstreams.
#[derive(Debug, Subcommand)]
pub enum UpstreamCommand {
    /// Show how each upstream is doing, as requests have found it
    #[command(after_help = "Example:\n  farebox upstream list")]
    List,
}

/// Runs it.
///
/// # Errors
///
/// As the control plane says.
pub async fn run(context: &Context, command: UpstreamCommand) -> Result<String, Failure> {
    let UpstreamCommand::List = command;
    let answer = context.client.get(&["upstreams"], &[]).await?;
    context.show(&answer, |upstreams: Upstreams| {
        context.note(&format!(
            "counted by this process since {}; HOUR: the last hour, failures in brackets",
            context.clock(upstreams.since)
        ));
        table(context, &upstreams.data)
    })
}

fn table(context: &Context, upstreams: &[Upstream]) -> String {
    let mut table = Table::new([
        ("UPSTREAM", Align::Left),
        ("KIND", Align::Whole),
        ("STATE", Align::Whole),
        ("MODELS", Align::Right),
        ("REQUESTS", Align::Right),
        ("HOUR", Align::Right),
        ("MEAN", Align::Right),
        ("SLOWEST", Align::Right),
        ("LAST FAILURE", Align::Left),
    ]);
    for Upstream { name, kind, models, health } in upstreams {
        table.row([
            name.clone(),
            super::usage::name(kind),
            condition(health.condition).to_owned(),
            models.to_string(),
            tries(&health.total),
            tries(&health.last_hour),
            millis(health.last_hour.mean_latency_ms),
            millis(health.last_hour.slowest_latency_ms),
            health.last_failure.map(|last| failure(context, last)).unwrap_or_default(),
        ]);
    }
    table.render(context.style)
}

const fn condition(condition: Condition) -> &'static str {
    match condition {
        Condition::Unused => "unused",
        Condition::Working => "working",
        Condition::Failing => "FAILING",
    }
}

fn tries(tally: &Tally) -> String {
    match tally.failures {
        0 => tally.requests.to_string(),
        failures => format!("{} ({failures})", tally.requests),
    }
}

fn millis(latency: Option<u64>) -> String {
    latency.map_or_else(|| "–".to_owned(), |ms| format!("{ms} ms"))
}

fn failure(context: &Context, LastFailure { at, trouble, status }: LastFailure) -> String {
    let status = status.map(|status| format!(" ({status})")).unwrap_or_default();
    format!("{} {}{status}", context.moment(at), trouble.words())
}
