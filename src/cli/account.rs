//! `farebox account`: who pays.

use clap::Subcommand;
use serde_json::{Value, json};

use super::PageArgs;
use super::context::Context;
use super::failure::{Exit, Failure};
use super::limit::Setting;
use super::table::{Align, Table, amounts};
use crate::admin::links::Link;
use crate::billing::Credits;
use crate::store::{Account, Mode, Rows, Status};
use crate::time;

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
    /// Make a link that lets the holder look at the account's billing pages
    #[command(after_help = "Example:\n  farebox account link team-a --lasts 7d")]
    Link {
        /// Its id (default: that of --account)
        id: Option<String>,
        /// How long it can be used, such as 24h or 30d
        #[arg(long, default_value = "24h", value_name = "TIME")]
        lasts: String,
        /// Let it be used until then, rather than once
        #[arg(long)]
        reusable: bool,
    },
    /// Change an account; in force for the next request ("none": as the configuration says)
    #[command(
        after_help = "Example:\n  farebox account set team-a --mode strict --max-in-flight 8"
    )]
    Set {
        /// Its id (default: that of --account)
        id: Option<String>,
        /// Shown beside the id
        #[arg(long)]
        name: Option<String>,
        /// When requests are admitted: lenient (while the balance is above zero), one_request
        /// (while it is above what is held), strict (if the most that they can cost fits), none
        #[arg(long, value_parser = ["lenient", "one_request", "strict", "none"])]
        mode: Option<String>,
        /// Requests that may run at once
        #[arg(long, value_name = "N")]
        max_in_flight: Option<Setting<u32>>,
    },
    /// End an account for good: what is left of its credits is lost
    #[command(after_help = "Example:\n  farebox account close team-a")]
    Close {
        /// Its id
        id: String,
        /// Names this very operation (made if absent)
        #[arg(long, value_name = "TEXT")]
        idempotency_key: Option<String>,
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
        AccountCommand::Link { id, lasts, reusable } => {
            let id = id.as_ref().unwrap_or(&context.account);
            let body = json!({ "lasts": lasts, "reusable": reusable });
            let path = ["accounts", id, "sign-in-links"];
            let answer = context.client.post(&path, &body, None).await?;
            context.show(&answer, |link: Link| {
                let how = if reusable { "until then" } else { "once" };
                context.note(&format!("ends {}, works {how}", time::rfc3339(link.expires_at)));
                format!("{}\n", link.url)
            })
        }
        AccountCommand::Set { id, name, mode, max_in_flight } => {
            let id = id.as_ref().unwrap_or(&context.account);
            let mode = mode.map(|mode| match mode.as_str() {
                "none" => Value::Null,
                mode => mode.into(),
            });
            let given = [
                ("name", name.map(Value::from)),
                ("mode", mode),
                ("max_in_flight", max_in_flight.map(Value::from)),
            ];
            let given = given.into_iter().filter_map(|(name, value)| Some((name.into(), value?)));
            let body = Value::Object(given.collect());
            let answer = context.client.patch(&["accounts", id], &body).await?;
            context.show(&answer, |account: Account| table(context, &[account]))
        }
        AccountCommand::Close { id, idempotency_key } => {
            let path = ["accounts", &id];
            let balance = context.client.get(&path, &[]).await?.read::<Account>()?.balance;
            let lost = balance.max(Credits::ZERO);
            context.confirm(&format!("Close {id} for good and forfeit {lost} credits?"))?;
            let is_made = idempotency_key.is_none();
            let key = idempotency_key.unwrap_or_else(super::credit::new_id);
            let path = ["accounts", &id, "close"];
            let answer = context.client.post(&path, &json!({}), Some(&key)).await?;
            if is_made {
                context.note(&format!("closed by --idempotency-key {key}"));
            }
            context.show(&answer, |account: Account| {
                if account.status == Status::Closing {
                    context.note("closed as soon as the requests that run are settled");
                }
                table(context, &[account])
            })
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
        ("MODE", Align::Whole),
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
            match account.max_in_flight {
                Some(limit) => format!("{}/{limit}", account.in_flight),
                None => account.in_flight.to_string(),
            },
            account.mode.map_or("default", mode).to_owned(),
            account.status.name().to_owned(),
            context.day(account.created_at),
        ]);
    }
    table.render(context.style)
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Lenient => "lenient",
        Mode::OneRequest => "one_request",
        Mode::Strict => "strict",
    }
}
