//! `farebox usage`: what requests used and cost.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::PageArgs;
use super::context::Context;
use super::export::{self, ExportArgs};
use super::failure::Failure;
use super::span::SpanArgs;
use super::table::{Align, Table, amounts, count, share};
use crate::admin::heartbeats::{Heartbeats, Otherwise, every};
use crate::admin::usage::Summary;
use crate::store::{Group, Outcome, Rows, Source, SummaryRow, UsageRow};
use crate::time;

/// What to do with usage; sums it if nothing is said.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct UsageArgs {
    #[command(subcommand)]
    command: Option<UsageCommand>,
    #[command(flatten)]
    summary: SummaryArgs,
}

#[derive(Debug, Subcommand)]
enum UsageCommand {
    /// List requests, newest first
    #[command(after_help = "Examples:\n  farebox usage list --key openclaw --last 24h\n  \
        farebox usage list --source estimated --json")]
    List(ListArgs),
    /// Sum requests by model, key, tag, upstream, day or hour
    #[command(after_help = "Example:\n  farebox usage summary --last 7d --by model")]
    Summary(SummaryArgs),
    /// Write every request to a file, oldest first, and beside it FILE.meta.json, which makes
    /// its totals checkable
    #[command(after_help = "Example:\n  \
        farebox usage export --last 30d --key openclaw -o openclaw.csv")]
    Export {
        #[command(flatten)]
        filter: RowArgs,
        #[command(flatten)]
        export: ExportArgs,
    },
    /// Show what heartbeats cost, and what they would cost otherwise
    #[command(after_help = "Example:\n  farebox usage heartbeats --last 1d")]
    Heartbeats(SpanArgs),
}

#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    page: PageArgs,
}

#[derive(Args, Debug)]
struct SummaryArgs {
    /// What the rows are: model, key, tag, upstream, day or hour
    #[arg(long, value_enum, default_value = "model", hide_possible_values = true)]
    by: Group,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Args, Debug)]
struct FilterArgs {
    #[command(flatten)]
    span: SpanArgs,
    #[command(flatten)]
    rows: RowArgs,
}

#[derive(Args, Debug)]
struct RowArgs {
    /// Exactly this model
    #[arg(long)]
    model: Option<String>,
    /// This key, by its id or its name
    #[arg(long)]
    key: Option<String>,
    /// Exactly this tag
    #[arg(long)]
    tag: Option<String>,
    /// Exactly this upstream, by its name
    #[arg(long)]
    upstream: Option<String>,
    /// Exactly this origin: user, heartbeat or cron
    #[arg(long)]
    origin: Option<String>,
    /// Whose counts: reported, drained, estimated or none
    #[arg(long)]
    source: Option<String>,
    /// How it ended: completed, client_closed, upstream_error, upstream_cut or abandoned
    #[arg(long)]
    outcome: Option<String>,
}

impl FilterArgs {
    async fn query(
        &self,
        context: &Context,
    ) -> Result<Vec<(&'static str, Option<String>)>, Failure> {
        let span = self.span.read(time::now(), &context.zone)?;
        let mut query = self.rows.query(context).await?;
        query.push(("since", span.since.map(time::rfc3339)));
        query.push(("until", span.until.map(time::rfc3339)));
        Ok(query)
    }
}

impl RowArgs {
    async fn query(
        &self,
        context: &Context,
    ) -> Result<Vec<(&'static str, Option<String>)>, Failure> {
        let key = match &self.key {
            Some(text) => Some(context.key_id(text).await?),
            None => None,
        };
        Ok(vec![
            ("model", self.model.clone()),
            ("key", key),
            ("tag", self.tag.clone()),
            ("upstream", self.upstream.clone()),
            ("origin", self.origin.clone()),
            ("source", self.source.clone()),
            ("outcome", self.outcome.clone()),
        ])
    }
}

/// Runs it.
///
/// # Errors
///
/// As the control plane says.
pub async fn run(context: &Context, args: UsageArgs) -> Result<String, Failure> {
    match args.command {
        Some(UsageCommand::List(args)) => list(context, args).await,
        Some(UsageCommand::Summary(args)) => summary(context, args).await,
        Some(UsageCommand::Export { filter, export }) => {
            let filter = filter.query(context).await?;
            export::run(context, "usage", &export, filter).await
        }
        Some(UsageCommand::Heartbeats(span)) => heartbeats(context, &span).await,
        None => summary(context, args.summary).await,
    }
}

async fn list(context: &Context, args: ListArgs) -> Result<String, Failure> {
    let mut query = args.filter.query(context).await?;
    query.extend(args.page.query());
    let path = ["accounts", &context.account, "usage"];
    let answer = context.client.get(&path, &query).await?;
    context.show(&answer, |rows: Rows<UsageRow>| {
        args.page.note_next(context, "farebox usage list", rows.next.as_deref());
        request_table(context, &rows.data)
    })
}

async fn summary(context: &Context, args: SummaryArgs) -> Result<String, Failure> {
    let mut query = args.filter.query(context).await?;
    query.push(("by", Some(name(args.by))));
    query.push(("tz", Some(context.zone_name.clone())));
    let path = ["accounts", &context.account, "usage", "summary"];
    let answer = context.client.get(&path, &query).await?;
    let mut names = HashMap::new();
    if args.by == Group::Key && !context.is_json() {
        let keys = context.client.keys(&context.account).await?;
        names.extend(keys.into_iter().map(|key| (key.id, key.name)));
    }
    context.show(&answer, |summary: Summary| {
        if summary.total.estimated > 0 {
            context.note(&format!(
                "estimated: {} requests; next: farebox usage list --source estimated",
                summary.total.estimated
            ));
        }
        summary_text(context, &summary, &names)
    })
}

fn request_table(context: &Context, rows: &[UsageRow]) -> String {
    let time = context.moment_heading();
    let mut table = Table::new([
        (&time, Align::Whole),
        ("MODEL", Align::Left),
        ("INPUT", Align::Right),
        ("CACHED", Align::Right),
        ("WRITTEN", Align::Right),
        ("OUTPUT", Align::Right),
        ("CREDITS", Align::Right),
        ("NOTES", Align::Left),
    ]);
    let charges = amounts(&rows.iter().map(|row| row.charge).collect::<Vec<_>>());
    for (row, charge) in rows.iter().zip(charges) {
        let written = row.cache_creation_5m_tokens.saturating_add(row.cache_creation_1h_tokens);
        table.row([
            context.moment(row.ts),
            row.model.clone(),
            count(row.input_tokens),
            count(row.cached_input_tokens),
            count(written),
            count(row.output_tokens),
            charge,
            notes(row),
        ]);
    }
    table.render(context.style)
}

/// What is not as it usually is: a request that ended early, counts that are ours, a tag.
fn notes(row: &UsageRow) -> String {
    let mut notes = Vec::new();
    if row.outcome != Outcome::Completed {
        notes.push(name(row.outcome));
    }
    if !matches!(row.source, Source::Reported | Source::None) {
        notes.push(name(row.source));
    }
    notes.extend(row.attribution.tag.clone());
    notes.extend(row.attribution.origin.clone().filter(|origin| origin != "user"));
    notes.extend(row.flags.iter().cloned());
    notes.dedup();
    notes.join(", ")
}

fn summary_text(context: &Context, summary: &Summary, names: &HashMap<String, String>) -> String {
    let heading = match summary.by {
        Group::Model => "MODEL",
        Group::Key => "KEY",
        Group::Tag => "TAG",
        Group::Upstream => "UPSTREAM",
        Group::Day => "DAY",
        Group::Hour => "HOUR (UTC)",
    };
    let mut table = Table::new([
        (heading, Align::Left),
        ("REQ", Align::Right),
        ("INPUT", Align::Right),
        ("CACHED", Align::Right),
        ("WRITTEN", Align::Right),
        ("OUTPUT", Align::Right),
        ("CREDITS", Align::Right),
        ("SHARE", Align::Right),
    ]);
    let rows: Vec<_> = summary.data.iter().chain([&summary.total]).collect();
    let charges = amounts(&rows.iter().map(|row| row.charge).collect::<Vec<_>>());
    let cells = rows.iter().zip(charges).map(|(row, charge)| {
        let group = match row.group.as_str() {
            "" => "(none)".to_owned(),
            id => names.get(id).map_or(id, String::as_str).to_owned(),
        };
        [
            group,
            row.requests.to_string(),
            count(row.input_tokens),
            count(row.cached_input_tokens),
            count(row.cache_creation_tokens),
            count(row.output_tokens),
            charge,
            share(row.charge, summary.total.charge),
        ]
    });
    let mut cells: Vec<_> = cells.collect();
    let total = cells.pop().expect("the total is the last row");
    for row in cells {
        table.row(row);
    }
    let [group, requests, input, cached, written, output, charge, _] = total;
    table.total([group, requests, input, cached, written, output, charge, String::new()]);
    let span = format!(
        "{} – {}, {}\n",
        context.clock(summary.since),
        context.clock(summary.until),
        super::table::printable(&summary.tz)
    );
    span + &table.render(context.style)
}

async fn heartbeats(context: &Context, span: &SpanArgs) -> Result<String, Failure> {
    let span = span.read(time::now(), &context.zone)?;
    let query =
        [("since", span.since.map(time::rfc3339)), ("until", span.until.map(time::rfc3339))];
    let path = ["accounts", &context.account, "usage", "heartbeats"];
    let answer = context.client.get(&path, &query).await?;
    context.show(&answer, |heartbeats: Heartbeats| {
        if heartbeats.otherwise.is_some() {
            context.note("what it would have cost is an estimate: the same tokens, other rates");
        } else {
            context.note("no heartbeat was seen; see \"Heartbeats\" in the README");
        }
        heartbeats_text(context, &heartbeats)
    })
}

fn heartbeats_text(context: &Context, heartbeats: &Heartbeats) -> String {
    let mut table = Table::new([
        ("ORIGIN", Align::Left),
        ("REQ", Align::Right),
        ("INPUT", Align::Right),
        ("OUTPUT", Align::Right),
        ("CREDITS", Align::Right),
        ("SHARE", Align::Right),
    ]);
    let rows: Vec<_> = heartbeats.by_origin.iter().chain([&heartbeats.total]).collect();
    let charges = amounts(&rows.iter().map(|row| row.charge).collect::<Vec<_>>());
    let cells = |row: &SummaryRow, charge: String, share: String| {
        let input = row.input_tokens + row.cached_input_tokens + row.cache_creation_tokens;
        let (input, output) = (count(input), count(row.output_tokens));
        [row.group.clone(), row.requests.to_string(), input, output, charge, share]
    };
    for (row, charge) in heartbeats.by_origin.iter().zip(&charges) {
        let share = share(row.charge, heartbeats.total.charge);
        table.row(cells(row, charge.clone(), share));
    }
    let all = charges.last().cloned().unwrap_or_default();
    table.total(cells(&heartbeats.total, all, String::new()));
    let mut text = format!(
        "{} – {}{}\n{}",
        context.clock(heartbeats.since),
        context.clock(heartbeats.until),
        heartbeats.every_minutes.map(|m| format!(", {}", every(m))).unwrap_or_default(),
        table.render(context.style)
    );
    if let Some(otherwise) = &heartbeats.otherwise {
        text.push('\n');
        text.push_str(&otherwise_text(context, otherwise));
    }
    text
}

fn otherwise_text(context: &Context, otherwise: &Otherwise) -> String {
    let size = count(otherwise.isolated_input_tokens);
    let mut ways = vec![
        ("half as often".to_owned(), otherwise.half_as_often),
        (format!("in a session of their own ({size} tokens of input)"), otherwise.isolated),
    ];
    for other in &otherwise.lighter {
        ways.push((format!("on {}", other.model), other.charge));
        ways.push((format!("on {}, in a session of their own", other.model), other.isolated));
    }
    let mut table = Table::new([("THE SAME HEARTBEATS", Align::Left), ("CREDITS", Align::Right)]);
    let charges = amounts(&ways.iter().map(|(_, charge)| *charge).collect::<Vec<_>>());
    for ((way, _), charge) in ways.into_iter().zip(charges) {
        table.row([way, charge]);
    }
    table.render(context.style)
}

/// The name of a value in the API.
pub(super) fn name(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}
