//! `farebox ledger verify`: whether all books add up.

use std::io::{IsTerminal, Write};

use serde_json::json;

use super::client::Download;
use super::context::Context;
use super::failure::{Exit, Failure};
use super::table::{Align, Style, Table, printable};
use crate::billing::audit::{Invariant, Tally, Violation};
use crate::store::audit::Event;

/// What an audit found.
pub struct Found {
    /// What was looked at.
    pub tally: Tally,
    /// What does not add up, as far as it was told.
    pub violations: Vec<Violation>,
}

/// Audits one account, if one is named, or all.
///
/// # Errors
///
/// [`Exit::Integrity`], if something does not add up; else as the control plane says.
pub async fn run(context: &Context) -> Result<String, Failure> {
    let query = [("account", context.asked_account.clone())];
    let download = context.client.download(&["ledger", "verify"], &query).await?;
    let found = follow(download).await?;
    if context.is_json() {
        let Found { tally, violations } = &found;
        print(&format!("{}\n", json!({ "tally": tally, "violations": violations })));
    } else {
        print(&table(&found.tally, context.style));
    }
    verdict(&found)
}

/// A sentence that all is well, or the failure.
///
/// # Errors
///
/// [`Exit::Integrity`], if something does not add up.
pub fn verdict(found: &Found) -> Result<String, Failure> {
    let problems = found.tally.problems();
    if problems == 0 {
        return Ok(String::new());
    }
    let told = found.violations.iter().map(|Violation { account, invariant, sentence }| {
        let account = account.as_deref().map(|id| format!("{id}  ")).unwrap_or_default();
        format!("  {account}{invariant}: {sentence}")
    });
    let told: Vec<_> = told.collect();
    let message = format!("{problems} things do not add up:\n{}", told.join("\n"));
    Err(Failure::new(Exit::Integrity, message))
}

async fn follow(mut download: Download) -> Result<Found, Failure> {
    let broken = |why: &str| Failure::new(Exit::Unreachable, format!("the audit broke off: {why}"));
    let mut violations = Vec::new();
    let mut waiting = Vec::new();
    let shows_progress = std::io::stderr().is_terminal();
    while let Some(piece) = download.next().await? {
        waiting.extend_from_slice(&piece);
        while let Some(end) = waiting.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).collect();
            let event = serde_json::from_slice(&line);
            match event.map_err(|error| broken(&error.to_string()))? {
                Event::Violation(violation) => violations.push(violation),
                Event::Progress { accounts, records } if shows_progress => {
                    eprint!("\r{accounts} accounts, {records} records read ");
                }
                Event::Progress { .. } => {}
                Event::Done(tally) => {
                    if shows_progress {
                        eprint!("\r{:60}\r", "");
                    }
                    return Ok(Found { tally: *tally, violations });
                }
                Event::Failed { message } => return Err(broken(&message)),
            }
        }
    }
    Err(broken("the connection ended"))
}

/// What was looked at, invariant by invariant.
pub fn table(tally: &Tally, style: Style) -> String {
    let mut table = Table::new([
        ("", Align::Left),
        ("WHAT HOLDS", Align::Left),
        ("CHECKED", Align::Right),
        ("BROKEN", Align::Right),
    ]);
    for (at, invariant) in Invariant::ALL.iter().enumerate() {
        table.row([
            invariant.to_string(),
            invariant.words().to_owned(),
            tally.checks[at].to_string(),
            tally.violations[at].to_string(),
        ]);
    }
    let mut text = table.render(style);
    let Tally { accounts, entries, requests, lots, holds, balance, .. } = tally;
    text.push_str(&format!(
        "{accounts} accounts, {entries} entries, {requests} requests, {lots} lots, {holds} \
         running: balance {balance}, {} problems\n",
        tally.problems()
    ));
    if tally.abandoned > 0 {
        text.push_str(&format!("{} requests were abandoned and not charged\n", tally.abandoned));
    }
    if tally.trimmed > 0 {
        text.push_str(&format!("{} older entries were trimmed\n", tally.trimmed));
    }
    if tally.forgotten > 0 {
        text.push_str(&format!("{} operations are too old to be remembered\n", tally.forgotten));
    }
    text
}

fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that has seen enough, such as `head`, is no failure.
    let lines: Vec<_> = text.lines().map(printable).collect();
    let _ = writeln!(out, "{}", lines.join("\n"));
}
