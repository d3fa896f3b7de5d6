//! `farebox credit`: the operator's changes of a balance, each booked once.

use clap::{Args, Subcommand};
use serde_json::json;

use super::context::Context;
use super::failure::{Exit, Failure, shell_word};
use crate::admin::credits::GrantedEntry;
use crate::billing::Credits;
use crate::store::Account;

/// What to do with credits.
#[derive(Debug, Subcommand)]
pub enum CreditCommand {
    /// Add credits; requests resume at once
    #[command(after_help = "Example:\n  \
        farebox credit add 20 --note \"invoice 17\" --idempotency-key inv17")]
    Add(ChangeArgs),
    /// Take credits away
    #[command(after_help = "Example:\n  farebox credit deduct 2.5 --note \"refund of invoice 17\"")]
    Deduct {
        #[command(flatten)]
        change: ChangeArgs,
        /// Do it even if the balance goes below zero
        #[arg(long)]
        allow_negative: bool,
    },
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
        CreditCommand::Add(change) => book(context, "add", "topup", change.amount, &change).await,
        CreditCommand::Deduct { change, allow_negative } => {
            let account = &context.account;
            let answer = context.client.get(&["accounts", account], &[]).await?;
            let balance = answer.read::<Account>()?.balance;
            let after = balance - change.amount;
            if after.is_negative() && !allow_negative {
                let message = format!(
                    "the balance of `{account}` is {balance}; this would leave it at {after}"
                );
                let again = format!("{} --allow-negative", again(context, "deduct", &change, None));
                return Err(Failure::new(Exit::Refused, message).next(again));
            }
            context.confirm(&format!("{account}: {balance} → {after} credits?"))?;
            book(context, "deduct", "adjust", -change.amount, &change).await
        }
    }
}

async fn book(
    context: &Context,
    verb: &str,
    kind: &str,
    amount: Credits,
    change: &ChangeArgs,
) -> Result<String, Failure> {
    let account = context.account.as_str();
    let id = change
        .idempotency_key
        .clone()
        .unwrap_or_else(|| format!("cli_{}", ulid::Ulid::generate().to_string().to_lowercase()));
    let body = json!({ "kind": kind, "amount": amount, "note": change.note });
    let sent = context.client.post(&["accounts", account, "credits"], &body, Some(&id)).await;
    let answer = sent.map_err(|mut failure| match failure.exit {
        // It may have been booked: repeated with the same id it is booked once.
        Exit::Unreachable => {
            failure.message.push_str(" (booked or not, the next command books it once)");
            failure.next(again(context, verb, change, Some(&id)))
        }
        Exit::Refused => failure.next(format!("farebox ledger list --account {account}")),
        _ => failure,
    })?;
    context.show(&answer, |granted: GrantedEntry| sentence(account, &granted))
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
fn again(context: &Context, verb: &str, change: &ChangeArgs, id: Option<&str>) -> String {
    let mut command = format!(
        "farebox credit {verb} --account {} {} --note {}",
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
