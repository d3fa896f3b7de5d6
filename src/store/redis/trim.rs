//! Old entries and requests are removed, and a checkpoint stands for them. Only after an export,
//! which is the caller's matter.
//!
//! What is to go is read, the checkpoint is moved on by it, and one script removes it and sets
//! the checkpoint, unless another process did so meanwhile: then it is read again. So a trim
//! may be cut off after any step, and any number of processes may trim at a time.

use std::collections::HashMap;

use super::Shared;
use super::names::Name;
use super::read::Order;
use super::reply::{self, Odd, Reply};
use super::rows::Item;
use crate::billing::Credits;
use crate::billing::audit::{Checkpoint, Line, Operation};
use crate::store::sums::HOUR_MS;
use crate::store::{AccountId, Entry, Millis, Outcome, StoreError, UsageRow};

/// Entries, and requests, that one script removes, so that settlements do not wait for long.
const AT_ONCE: usize = 1000;

/// The oldest entries and requests of an account, and the instant before which they are all.
struct Oldest {
    entries: Vec<Entry>,
    requests: Vec<UsageRow>,
    until: Millis,
}

impl Shared {
    /// Removes what is from before an instant.
    pub(super) async fn trim(&self, account: &AccountId, before: Millis) -> Result<(), StoreError> {
        self.must_exist(account).await?;
        // Nothing that is written from now on is older than now.
        let before = before.min(self.now().await?);
        let mut granted: HashMap<u64, Vec<u64>> = HashMap::new();
        for lot in self.granted_lots(account).await? {
            granted.entry(lot.entry).or_default().push(lot.lot.number);
        }
        while self.trim_step(account, before, &granted).await? {}
        Ok(())
    }

    /// The next step of a trim. False once nothing is left to remove.
    async fn trim_step(
        &self,
        account: &AccountId,
        before: Millis,
        granted: &HashMap<u64, Vec<u64>>,
    ) -> Result<bool, StoreError> {
        let (step, mut checkpoint) = self.checkpoint(account).await?;
        let Some(Oldest { entries, requests, until }) = self.oldest(account, before).await? else {
            return Ok(false);
        };
        let first = checkpoint.seq + 1;
        for entry in entries {
            let line = line_of(entry);
            let lots = granted.get(&line.seq).map(Vec::as_slice).unwrap_or_default();
            if let Err(unsound) = checkpoint.advance(&line, lots) {
                // Or it was trimmed between the two reads.
                return match self.checkpoint(account).await?.0 == step {
                    true => Err(unsound.into()),
                    false => Ok(true),
                };
            }
        }
        checkpoint.requests.count += requests.len() as u64;
        checkpoint.requests.amount += requests.iter().map(|row| row.charge).sum::<Credits>();
        // Of an hour that is not whole any more, the sums cannot be compared one by one.
        let hour = until.saturating_add(HOUR_MS - 1).div_euclid(HOUR_MS) * HOUR_MS;
        checkpoint.requests_before = checkpoint.requests_before.max(hour);
        let state = serde_json::to_string(&checkpoint).map_err(|_| Odd)?;
        let mut call = self.call(&self.scripts.trim, account, &[]).arg(step.to_string());
        for value in [first.to_string(), checkpoint.seq.to_string(), until.to_string(), state] {
            call.push(value);
        }
        for row in requests.iter().filter(|row| row.outcome == Outcome::Abandoned) {
            call.push(&row.id);
        }
        let is_ours = Reply::of(self.link.commit(&call).await?)?.text()? == "ok";
        Ok(!is_ours || until < before)
    }

    /// What is oldest, if it is from before an instant. Of one millisecond all goes at once.
    async fn oldest(
        &self,
        account: &AccountId,
        before: Millis,
    ) -> Result<Option<Oldest>, StoreError> {
        let [ledger, usage] = [Name::Entries, Name::Usage].map(|name| self.names.of(account, name));
        let all = || (String::from("-"), String::from("+"));
        let mut count = AT_ONCE;
        loop {
            let entries = self.stream(&ledger, all(), Order::OldestFirst, count).await?;
            let requests = self.stream(&usage, all(), Order::OldestFirst, count).await?;
            let mut entries: Vec<_> =
                entries.into_iter().map(Item::entry).collect::<Result<_, _>>()?;
            let mut requests: Vec<_> =
                requests.into_iter().map(Item::usage).collect::<Result<_, _>>()?;
            // A list that was cut may lack some of its last instant.
            let cut = [
                entries.get(count - 1).map(|entry: &Entry| entry.ts),
                requests.get(count - 1).map(|row: &UsageRow| row.ts),
            ];
            let until = cut.into_iter().flatten().fold(before, Millis::min);
            entries.retain(|entry| entry.ts < until);
            requests.retain(|row| row.ts < until);
            if !entries.is_empty() || !requests.is_empty() {
                return Ok(Some(Oldest { entries, requests, until }));
            }
            if until == before {
                return Ok(None);
            }
            count *= 2;
        }
    }

    /// What stands for what was trimmed, and how often it was moved on.
    pub(super) async fn checkpoint(
        &self,
        account: &AccountId,
    ) -> Result<(u64, Checkpoint), StoreError> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.names.of(account, Name::Trimmed)).arg("step").arg("state");
        Ok(read(Reply::of(self.link.patient(&cmd).await?)?)?)
    }
}

/// A checkpoint, and how often it was moved on, as they are stored.
pub(super) fn read(mut stored: Reply) -> Result<(u64, Checkpoint), Odd> {
    let [step, state] = [reply::maybe(stored.value()?)?, reply::maybe(stored.value()?)?];
    match (step, state) {
        (Some(step), Some(state)) => {
            Ok((reply::number(&step)?, serde_json::from_str(&state).map_err(|_| Odd)?))
        }
        _ => Ok((0, Checkpoint::default())),
    }
}

fn line_of(entry: Entry) -> Line {
    let Entry { seq, ts, kind, amount, balance_after, reference, parts, .. } = entry;
    let operation = Operation::Unknown;
    Line { seq, ts, kind, amount, balance_after, reference, operation, parts }
}
