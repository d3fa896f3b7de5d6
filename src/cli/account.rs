//! `farebox account`: who pays.

use clap::Subcommand;
use serde_json::json;

use super::PageArgs;
use super::context::Context;
use super::failure::{Exit, Failure};
use super::table::{Align, Table, amounts};
use crate::store::{Account, Rows, Status};

/// What to do with accounts.
#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Make an account with no credits
    #[command(after_help = "Example:\n  farebox account create team-a --name \"Team A\"")]
    Create {
        /// 1-64 characters of a-z 0-9 _ - (made if absent)
        id: Option<String>,
        /// Shown beside the id
        #[arg(long)]
        name: Option<String>,
    },
    /// List accounts by id
    List {
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show one account with its balance
    Show {
        /// Its id (default: that of --account)
        id: Option<String>,
    },
}

/// Runs it.
///
/// # Errors
///
/// As the control plane says.
pub async fn run(context: &Context, command: AccountCommand) -> Result<String, Failure> {
    match command {
        AccountCommand::Create { id, name } => {
            let mut body = json!({});
            if let Some(id) = id {
                body["id"] = id.into();
            }
            if let Some(name) = name {
                body["name"] = name.into();
            }
            let sent = context.client.post(&["accounts"], &body, None).await;
            let answer = sent.map_err(|failure| match failure.exit {
                Exit::Refused => failure.next("farebox account list"),
                _ => failure,
            })?;
            context.show(&answer, |account: Account| {
                let id = &account.id;
                context.note(&format!("next: farebox key create --account {id} --name NAME"));
                table(context, &[account])
            })
        }
        AccountCommand::List { page } => {
            let answer = context.client.get(&["accounts"], &page.query()).await?;
            context.show(&answer, |rows: Rows<Account>| {
                page.note_next(context, "farebox account list", rows.next.as_deref());
                table(context, &rows.data)
            })
        }
        AccountCommand::Show { id } => {
            let id = id.as_ref().unwrap_or(&context.account);
            let answer = context.client.get(&["accounts", id], &[]).await?;
            context.show(&answer, |account: Account| table(context, &[account]))
        }
    }
}

/// `farebox balance`: what an account can still spend.
///
/// # Errors
///
/// As the control plane says.
pub async fn balance(context: &Context) -> Result<String, Failure> {
    let answer = context.client.get(&["accounts", &context.account], &[]).await?;
    context.show(&answer, |account: Account| {
        if !account.available.is_positive() {
            let id = &account.id;
            context.note("requests are refused until the balance is above zero");
            context.note(&format!("next: farebox credit add --account {id} AMOUNT --note WHY"));
        }
        format!(
            "{}  {} credits  (available {}, held {}, {} in flight)\n",
            account.id, account.balance, account.available, account.held, account.in_flight
        )
    })
}

fn table(context: &Context, accounts: &[Account]) -> String {
    let mut table = Table::new([
        ("ACCOUNT", Align::Left),
        ("NAME", Align::Left),
        ("BALANCE", Align::Right),
        ("HELD", Align::Right),
        ("AVAILABLE", Align::Right),
        ("RUNNING", Align::Right),
        ("STATUS", Align::Whole),
        ("CREATED", Align::Whole),
    ]);
    let column = |of: fn(&Account) -> crate::billing::Credits| {
        amounts(&accounts.iter().map(of).collect::<Vec<_>>())
    };
    let columns = [column(|a| a.balance), column(|a| a.held), column(|a| a.available)];
    for (at, account) in accounts.iter().enumerate() {
        table.row([
            account.id.to_string(),
            account.name.clone(),
            columns[0][at].clone(),
            columns[1][at].clone(),
            columns[2][at].clone(),
            account.in_flight.to_string(),
            status(account.status).to_owned(),
            context.day(account.created_at),
        ]);
    }
    table.render(context.style)
}

const fn status(status: Status) -> &'static str {
    match status {
        Status::Open => "open",
        Status::Closing => "closing",
        Status::Closed => "closed",
    }
}
