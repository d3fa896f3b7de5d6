//! `farebox ledger`: every change of a balance.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::PageArgs;
use super::context::Context;
use super::export::{self, ExportArgs};
use super::failure::Failure;
use super::span::SpanArgs;
use super::table::{Align, Table, amounts};
use super::verify;
use crate::archive::Trimmed;
use crate::billing::ledger::Kind;
use crate::store::{Account, Entry, Rows};
use crate::time;

/// What to do with the ledger; lists it if nothing is said.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LedgerArgs {
    #[command(subcommand)]
    command: Option<LedgerCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum LedgerCommand {
    /// List entries, newest first
    #[command(after_help = "Example:\n  farebox ledger list --kind topup --last 30d")]
    List(ListArgs),
    /// Write every entry with the balance after it to a file, oldest first, and beside it
    /// FILE.meta.json, which makes its totals checkable
    #[command(after_help = "Examples:\n  \
        farebox ledger export --from 2026-09-01 --to 2026-10-01 -o september.csv\n  \
        farebox ledger export --format jsonl --kind topup")]
    Export {
        /// Only entries of this kind
        #[arg(long)]
        kind: Option<KindArg>,
        #[command(flatten)]
        export: ExportArgs,
    },
    /// Move old entries and requests from the store to files of the server's archive
    #[command(after_help = "Examples:\n  \
        farebox ledger trim --before 2025-10-01 --account team-a\n  \
        farebox ledger trim --before 2025-10-01 --all")]
    Trim {
        /// Of every account, one after the other
        #[arg(long)]
        all: bool,
        /// Everything before this date (UTC) or time, at least 31 days ago
        #[arg(long, value_name = "TIME")]
        before: String,
    },
    /// Check that all books add up, while requests go on (of one account with --account);
    /// ends with 8 if they do not
    #[command(after_help = "Examples:\n  \
        farebox ledger verify\n  \
        farebox ledger verify --export september.csv")]
    Verify {
        /// Check this exported file against its FILE.meta.json instead
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
    },
}

impl LedgerArgs {
    /// Whether no control plane is needed.
    pub fn is_local(&self) -> bool {
        matches!(self.command, Some(LedgerCommand::Verify { export: Some(_) }))
    }

    /// Runs what needs no control plane.
    ///
    /// # Errors
    ///
    /// What does not add up, or a file that cannot be read.
    pub fn run_here(&self) -> Result<String, Failure> {
        match &self.command {
            Some(LedgerCommand::Verify { export: Some(file) }) => export::verify(file),
            _ => Ok(String::new()),
        }
    }
}

#[derive(Args, Debug)]
struct ListArgs {
    /// Only entries of this kind
    #[arg(long)]
    kind: Option<KindArg>,
    #[command(flatten)]
    span: SpanArgs,
    #[command(flatten)]
    page: PageArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum KindArg {
    /// Credits added
    Topup,
    /// Promotional credits
    Promo,
    /// What requests cost
    DebitAi,
    /// Credits that ended unused
    Expiry,
    /// Charges given back
    Refund,
    /// Payments taken back
    PaymentReversal,
    /// Corrections
    Adjust,
    /// Credits lost with the account
    Forfeit,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Topup => Self::Topup,
            KindArg::Promo => Self::Promo,
            KindArg::DebitAi => Self::DebitAi,
            KindArg::Expiry => Self::Expiry,
            KindArg::Refund => Self::Refund,
            KindArg::PaymentReversal => Self::PaymentReversal,
            KindArg::Adjust => Self::Adjust,
            KindArg::Forfeit => Self::Forfeit,
        }
    }
}

/// Runs it.
///
/// # Errors
///
/// As the control plane says.
pub async fn run(context: &Context, args: LedgerArgs) -> Result<String, Failure> {
    let list = match args.command {
        Some(LedgerCommand::List(list)) => list,
        Some(LedgerCommand::Export { kind, export }) => {
            let kind = kind.map(|kind| Kind::from(kind).name().to_owned());
            return export::run(context, "ledger", &export, vec![("kind", kind)]).await;
        }
        Some(LedgerCommand::Trim { before, all }) => return trim(context, &before, all).await,
        Some(LedgerCommand::Verify { export: Some(file) }) => return export::verify(&file),
        Some(LedgerCommand::Verify { export: None }) => return verify::run(context).await,
        None => args.list,
    };
    let span = list.span.read(time::now(), &context.zone)?;
    let mut query = vec![
        ("kind", list.kind.map(|kind| Kind::from(kind).name().to_owned())),
        ("since", span.since.map(time::rfc3339)),
        ("until", span.until.map(time::rfc3339)),
    ];
    query.extend(list.page.query());
    let path = ["accounts", &context.account, "ledger"];
    let answer = context.client.get(&path, &query).await?;
    context.show(&answer, |rows: Rows<Entry>| {
        list.page.note_next(context, "farebox ledger list", rows.next.as_deref());
        table(context, &rows.data)
    })
}

async fn trim(context: &Context, before: &str, is_all: bool) -> Result<String, Failure> {
    let whose = if is_all { "all accounts" } else { context.account.as_str() };
    context.confirm(&format!(
        "{whose}: move everything before {before} to the archive? Its charges and payments can \
         then no longer be refunded or reversed by their ids."
    ))?;
    if !is_all {
        return trim_one(context, &context.account, before).await;
    }
    let (mut told, mut cursor) = (String::new(), None);
    loop {
        let page = [("limit", Some("500".to_owned())), ("cursor", cursor)];
        let accounts: Rows<Account> = context.client.get(&["accounts"], &page).await?.read()?;
        for account in accounts.data {
            told.push_str(&trim_one(context, &account.id.0, before).await?);
        }
        match accounts.next {
            Some(next) => cursor = Some(next),
            None => return Ok(told),
        }
    }
}

async fn trim_one(context: &Context, account: &str, before: &str) -> Result<String, Failure> {
    let path = ["accounts", account, "ledger", "trim"];
    let body = serde_json::json!({ "before": before });
    let answer = context.client.post_long(&path, &body).await?;
    context.show(&answer, |trimmed: Option<Trimmed>| {
        let Some(trimmed) = trimmed else {
            return format!("{account}  nothing is as old\n");
        };
        let Trimmed { entries, requests, charges, payments, files, .. } = trimmed;
        context.note(&format!(
            "no longer undone by their ids: {} charges of {}, {} payments of {}",
            charges.count, charges.amount, payments.count, payments.amount
        ));
        format!("{account}  {entries} entries, {requests} requests → {}\n", files.join(", "))
    })
}

fn table(context: &Context, entries: &[Entry]) -> String {
    let time = context.moment_heading();
    let mut table = Table::new([
        ("SEQ", Align::Right),
        (&time, Align::Whole),
        ("KIND", Align::Whole),
        ("AMOUNT", Align::Right),
        ("BALANCE", Align::Right),
        ("REF", Align::Left),
        ("NOTE", Align::Left),
    ]);
    let changes = amounts(&entries.iter().map(|entry| entry.amount).collect::<Vec<_>>());
    let balances = amounts(&entries.iter().map(|entry| entry.balance_after).collect::<Vec<_>>());
    for ((entry, change), balance) in entries.iter().zip(changes).zip(balances) {
        table.row([
            entry.seq.to_string(),
            context.moment(entry.ts),
            entry.kind.name().to_owned(),
            change,
            balance,
            entry.reference.clone(),
            entry.note.clone().unwrap_or_default(),
        ]);
    }
    table.render(context.style)
}
