//! `farebox credit`: the operator's changes of a balance, each booked once.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::PageArgs;
use super::context::Context;
use super::failure::{Exit, Failure, shell_word};
use super::table::{Align, Table, amounts};
use crate::admin::credits::GrantedEntry;
use crate::billing::Credits;
use crate::billing::ledger::{Class, Lot};
use crate::store::{Account, LotRow, Rows};

/// What to do with credits.
#[derive(Debug, Subcommand)]
pub enum CreditCommand {
    /// Add credits; requests resume at once
    #[command(after_help = "Example:\n  \
        farebox credit add 20 --note \"invoice 17\" --idempotency-key inv17\n  \
        farebox credit add 5 --promotional --expires 30d --note welcome")]
    Add {
        #[command(flatten)]
        change: ChangeArgs,
        /// Given free: used before bought credits that end no sooner
        #[arg(long)]
        promotional: bool,
        /// When promotional credits end, such as 30d or 2026-12-31 (at the latest and by
        /// default after twelve months)
        #[arg(long, value_name = "TIME", requires = "promotional")]
        expires: Option<String>,
    },
    /// Take credits away
    #[command(after_help = "Example:\n  farebox credit deduct 2.5 --note \"refund of invoice 17\"")]
    Deduct {
        #[command(flatten)]
        change: ChangeArgs,
        /// Do it even if the balance goes below zero
        #[arg(long)]
        allow_negative: bool,
    },
    /// List what the balance is made of, in the order in which it is used
    Lots {
        /// Also what is used up or has ended, newest first
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Give back what a request was charged
    #[command(after_help = "Example:\n  \
        farebox credit refund req_01k5m7q3 --note \"the reply was cut\"")]
    Refund(UndoArgs),
    /// Take back a top-up whose payment was taken back
    #[command(after_help = "Example:\n  farebox credit reverse inv17 --note \"chargeback\"")]
    Reverse(UndoArgs),
}

/// What to undo.
#[derive(Args, Debug)]
pub struct UndoArgs {
    /// The id of the request, or the ref of the top-up
    of: String,
    /// Credits, such as 0.5 (default: what is left of it)
    #[arg(long, value_parser = positive)]
    amount: Option<Credits>,
    /// Why; shown in the ledger
    #[arg(long)]
    note: String,
    /// Names this very operation, so that repeating it books nothing (made if absent)
    #[arg(long, value_name = "TEXT")]
    idempotency_key: Option<String>,
}

/// A change of a balance.
#[derive(Args, Debug)]
pub struct ChangeArgs {
    /// Credits, such as 20 or 0.5
    #[arg(value_parser = positive, allow_negative_numbers = true)]
    amount: Credits,
    /// Why; shown in the ledger
    #[arg(long)]
    note: String,
    /// Names this very operation, so that repeating it books nothing (made if absent)
    #[arg(long, value_name = "TEXT")]
    idempotency_key: Option<String>,
}

/// Runs it.
///
/// # Errors
///
/// As the control plane says, or that a deduction would leave less than nothing.
pub async fn run(context: &Context, command: CreditCommand) -> Result<String, Failure> {
    match command {
        CreditCommand::Add { change, promotional, expires } => {
            let mut options = String::new();
            if promotional {
                options.push_str(" --promotional");
            }
            if let Some(expires) = &expires {
                options.push_str(&format!(" --expires {}", shell_word(expires)));
            }
            let kind = if promotional { "promotional" } else { "topup" };
            let again = |id: &str| again(context, "add", &change, &options, Some(id));
            let body = json!({
                "kind": kind, "amount": change.amount, "note": change.note, "expires": expires,
            });
            book(context, "credits", &body, change.idempotency_key.as_deref(), again).await
        }
        CreditCommand::Deduct { change, allow_negative } => {
            let account = &context.account;
            let answer = context.client.get(&["accounts", account], &[]).await?;
            let balance = answer.read::<Account>()?.balance;
            let after = balance - change.amount;
            if after.is_negative() && !allow_negative {
                let message = format!(
                    "the balance of `{account}` is {balance}; this would leave it at {after}"
                );
                let again = again(context, "deduct", &change, " --allow-negative", None);
                return Err(Failure::new(Exit::Refused, message).next(again));
            }
            context.confirm(&format!("{account}: {balance} → {after} credits?"))?;
            let options = if allow_negative { " --allow-negative" } else { "" };
            let again = |id: &str| again(context, "deduct", &change, options, Some(id));
            let body = json!({ "kind": "adjust", "amount": -change.amount, "note": change.note });
            book(context, "credits", &body, change.idempotency_key.as_deref(), again).await
        }
        CreditCommand::Lots { all, page } => {
            let mut query = page.query();
            query.push(("all", all.then(|| "true".to_owned())));
            let answer =
                context.client.get(&["accounts", &context.account, "lots"], &query).await?;
            context.show(&answer, |rows: Rows<LotRow>| {
                page.note_next(context, "farebox credit lots", rows.next.as_deref());
                lots(context, &rows.data)
            })
        }
        CreditCommand::Refund(args) => undo(context, "refund", "refunds", "request", &args).await,
        CreditCommand::Reverse(args) => {
            let account = &context.account;
            context.confirm(&format!("{account}: take the payment {} back?", args.of))?;
            undo(context, "reverse", "reversals", "payment", &args).await
        }
    }
}

async fn undo(
    context: &Context,
    verb: &str,
    route: &str,
    field: &str,
    args: &UndoArgs,
) -> Result<String, Failure> {
    let body = json!({ field: args.of, "amount": args.amount, "note": args.note });
    let again = |id: &str| {
        let (account, note) = (shell_word(&context.account), shell_word(&args.note));
        let of = shell_word(&args.of);
        let amount = args.amount.map(|amount| format!(" --amount {amount}")).unwrap_or_default();
        let id = shell_word(id);
        format!(
            "farebox credit {verb} --account {account} {of}{amount} --note {note} \
             --idempotency-key {id}"
        )
    };
    book(context, route, &body, args.idempotency_key.as_deref(), again).await
}

/// Sends a change of the balance, booked once; `again` is the command that repeats it.
async fn book(
    context: &Context,
    route: &str,
    body: &Value,
    id: Option<&str>,
    again: impl Fn(&str) -> String,
) -> Result<String, Failure> {
    let account = context.account.as_str();
    let is_made = id.is_none();
    let id = id.map_or_else(new_id, str::to_owned);
    let sent = context.client.post(&["accounts", account, route], body, Some(&id)).await;
    let answer = sent.map_err(|mut failure| match failure.exit {
        // It may have been booked: repeated with the same id it is booked once.
        Exit::Unreachable => {
            failure.message.push_str(" (booked or not, the next command books it once)");
            failure.next(again(&id))
        }
        Exit::Refused => failure.next(format!("farebox ledger list --account {account}")),
        _ => failure,
    })?;
    if is_made {
        context.note(&format!("repeating it with --idempotency-key {id} books nothing"));
    }
    context.show(&answer, |granted: GrantedEntry| sentence(account, &granted))
}

/// A name for an operation that was given none.
pub(super) fn new_id() -> String {
    format!("cli_{}", ulid::Ulid::generate().to_string().to_lowercase())
}

fn lots(context: &Context, rows: &[LotRow]) -> String {
    let mut table = Table::new([
        ("LOT", Align::Right),
        ("KIND", Align::Left),
        ("LEFT", Align::Right),
        ("OF", Align::Right),
        ("USED", Align::Right),
        ("LOST", Align::Right),
        ("SINCE", Align::Left),
        ("ENDS", Align::Left),
        ("SOURCE", Align::Left),
    ]);
    let column =
        |of: fn(&Lot) -> Credits| amounts(&rows.iter().map(|row| of(&row.lot)).collect::<Vec<_>>());
    let columns = [
        column(|lot| lot.remaining),
        column(|lot| lot.granted),
        // What paid a debt was used before it came.
        column(|lot| lot.used + lot.to_debt),
        column(|lot| lot.expired + lot.forfeited + lot.reversed),
    ];
    for (at, LotRow { lot, source }) in rows.iter().enumerate() {
        let kind = match lot.class {
            Class::Promo => "promo",
            Class::Usage => "usage",
        };
        let [left, of, used, lost] = columns.each_ref().map(|column| column[at].clone());
        table.row([
            lot.number.to_string(),
            kind.to_owned(),
            left,
            of,
            used,
            lost,
            context.clock(lot.effective_at),
            context.clock(lot.expires_at),
            source.clone(),
        ]);
    }
    table.render(context.style)
}

/// Before and after, and what was written.
fn sentence(account: &str, granted: &GrantedEntry) -> String {
    let entry = &granted.entry;
    let after = entry.balance_after;
    let before = after - entry.amount;
    let sign = if entry.amount.is_negative() { "" } else { "+" };
    let change = format!("{before} → {after} credits  ({sign}{}", entry.amount);
    if granted.duplicate {
        format!("{account}  booked before as entry {}, nothing changed now: {change})\n", entry.seq)
    } else {
        format!("{account}  {change}, entry {})\n", entry.seq)
    }
}

/// The command that repeats a change.
fn again(
    context: &Context,
    verb: &str,
    change: &ChangeArgs,
    options: &str,
    id: Option<&str>,
) -> String {
    let mut command = format!(
        "farebox credit {verb} --account {} {} --note {}{options}",
        shell_word(&context.account),
        change.amount,
        shell_word(&change.note)
    );
    if let Some(id) = id.or(change.idempotency_key.as_deref()) {
        command.push_str(" --idempotency-key ");
        command.push_str(&shell_word(id));
    }
    command
}

fn positive(text: &str) -> Result<Credits, String> {
    match text.parse::<Credits>() {
        Ok(amount) if amount.is_positive() => Ok(amount),
        Ok(_) => Err("must be above zero".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::ledger::Kind;
    use crate::store::Entry;

    fn granted(amount: &str, after: &str, duplicate: bool) -> GrantedEntry {
        let entry = Entry {
            seq: 12,
            ts: 0,
            kind: Kind::Topup,
            amount: amount.parse().unwrap(),
            balance_after: after.parse().unwrap(),
            reference: "inv17".to_owned(),
            note: None,
            undoes: None,
            parts: Vec::new(),
        };
        GrantedEntry { entry, duplicate }
    }

    #[test]
    fn a_change_shows_the_balance_before_and_after() {
        assert_eq!(
            sentence("default", &granted("5", "4.9", false)),
            "default  -0.1 → 4.9 credits  (+5, entry 12)\n"
        );
        assert_eq!(
            sentence("default", &granted("-2.5", "2.4", false)),
            "default  4.9 → 2.4 credits  (-2.5, entry 12)\n"
        );
    }

    #[test]
    fn a_repeated_change_says_that_nothing_changed() {
        assert_eq!(
            sentence("default", &granted("5", "4.9", true)),
            "default  booked before as entry 12, nothing changed now: -0.1 → 4.9 credits  (+5)\n"
        );
    }

    #[test]
    fn amounts_on_the_command_line_are_exact_and_above_zero() {
        assert_eq!(positive("0.000000001"), Ok(Credits::from_nano(1)));
        for text in ["0", "-1", "1e3", "0.0000000001", "five", "1,5"] {
            assert!(positive(text).is_err(), "{text}");
        }
    }
}
