//! The task that watches the store, and sends it what it has not taken or has lost.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::record::{Line, Operation, Taken};
use super::{LONGEST_REPLAY, Millis, Shared};
use crate::store::{AccountId, Page, Settlement, StoreError, UsageFilter};

/// How often the store is asked whether it is the one it was.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long it may take to say so, or to take one operation.
const PATIENCE: Duration = Duration::from_secs(5);
/// Operations on their way at once, each of another account.
const LANES: u64 = 32;
/// How long an operation by the operator waits for what it refers to, which another process
/// may have to send first.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Watches for as long as it is polled. `epoch` is the last one that the journal knows.
pub(super) async fn run(shared: Arc<Shared>, epoch: Option<String>) {
    let mut watch = Watch { shared, epoch, outage: None, sent: 0, missing: HashMap::new() };
    loop {
        let doubts = watch.shared.gate().doubts;
        let pause = match watch.look().await {
            Ok(()) => {
                watch.healed(doubts);
                HEARTBEAT
            }
            Err(why) => {
                watch.failed(why);
                HEARTBEAT / 5
            }
        };
        let pause = tokio::time::sleep(pause);
        if watch.outage.is_some() {
            pause.await;
        } else {
            tokio::select! {
                () = pause => {}
                () = watch.shared.wake.notified() => {}
            }
        }
    }
}

struct Watch {
    shared: Arc<Shared>,
    epoch: Option<String>,
    /// Since when the store is away.
    outage: Option<Instant>,
    /// Operations sent again since it came back.
    sent: u64,
    /// Since when operations that the store has no account for wait, by their number.
    missing: HashMap<u64, Instant>,
}

impl Watch {
    /// Asks for the epoch, sends what is due, and lets requests in again.
    async fn look(&mut self) -> Result<(), String> {
        let epoch = bounded(self.shared.store.epoch()).await.map_err(super::reason)?;
        if self.epoch.as_ref() != Some(&epoch) {
            self.send_window_again().await?;
            let written = self.shared.log.append(Line::<()>::Epoch(epoch.clone()));
            tokio::select! {
                _ = written => {}
                () = self.shared.log_fails() => return Err("the journal cannot be written".into()),
            }
            self.epoch = Some(epoch);
        }
        self.send_pending().await
    }

    fn failed(&mut self, why: String) {
        if self.outage.is_none() {
            tracing::error!(
                why,
                "the store is away: nothing is admitted, debits are kept in the journal"
            );
            self.outage = Some(Instant::now());
        }
        self.shared.gate().halted = Some(why);
    }

    /// Lets requests in, unless something has failed since `doubts` were counted: that has
    /// woken this task, and it looks again.
    fn healed(&mut self, doubts: u64) {
        {
            let mut gate = self.shared.gate();
            if gate.doubts != doubts {
                return;
            }
            gate.halted = None;
        }
        self.shared.opened.send_replace(true);
        if let Some(since) = self.outage.take() {
            tracing::info!(
                after_ms = since.elapsed().as_millis(),
                sent = self.sent,
                "the store is back, and has all that the journal holds"
            );
        }
        self.sent = 0;
    }

    /// Sends everything of the last while, in the order of each account: the store's history is
    /// another one, and the end of the old one may be missing from it.
    async fn send_window_again(&mut self) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        let is_first = self.epoch.is_none();
        shared.gate().halted = Some("what the store may have lost is sent to it again".into());
        let replay = Millis::try_from(shared.replay.as_millis()).unwrap_or(Millis::MAX);
        let since = crate::time::now().saturating_sub(replay);
        let (batches, mut read) = tokio::sync::mpsc::channel(1);
        let reader = Arc::clone(&shared);
        let reading = tokio::task::spawn_blocking(move || {
            reader.log.read_since(since, |batch| {
                batches.blocking_send(batch).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
            })
        });
        let (mut sent, mut lost) = (0_u64, 0_u64);
        while let Some(batch) = read.recv().await {
            let pending: Vec<_> = {
                // What waits anyway is sent after this.
                let gate = shared.gate();
                batch.into_iter().filter(|one| !gate.pending.contains_key(&one.seq)).collect()
            };
            sent += pending.len() as u64;
            let results = send_all(
                &shared,
                pending.into_iter().map(|one| Sent {
                    seq: one.seq,
                    at: one.at,
                    operation: Arc::new(one.operation),
                }),
            )
            .await;
            for (one, result) in results {
                match result {
                    Ok(Taken { duplicate: true, .. }) => {}
                    Ok(Taken { duplicate: false, .. }) => {
                        lost += 1;
                        shared.recovered.fetch_add(1, Ordering::Relaxed);
                        tracing::info!(
                            account = %one.operation.account(), id = one.operation.id(),
                            "the store had lost an operation, and has it again"
                        );
                    }
                    Err(StoreError::Unavailable(why)) => return Err(why),
                    Err(StoreError::NotFound(_)) => self.keep_again(one),
                    Err(error) => refuse(&shared, &one.operation, &error),
                }
            }
        }
        let read = reading.await.map_err(|error| error.to_string())?;
        read.map_err(|error| format!("the journal cannot be read: {error}"))?;
        if !is_first || lost > 0 {
            tracing::warn!(
                sent,
                lost,
                "the store was replaced or restarted: what it may have lost was sent again"
            );
        }
        Ok(())
    }

    /// What the store took once and has no account for now waits like a new one.
    fn keep_again(&self, one: Sent) {
        let seq = self.shared.next_seq();
        let operation = Operation::clone(&one.operation);
        let line = Line::Operation { seq, at: one.at, taken: false, operation };
        self.shared.log.note(line);
        self.shared.gate().park(seq, one.at, one.operation, None);
    }

    /// Sends what the store has not taken yet.
    async fn send_pending(&mut self) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        let pending: Vec<_> = {
            let gate = shared.gate();
            let all = gate.pending.iter();
            all.map(|(seq, one)| Sent { seq: *seq, at: one.at, operation: one.operation.clone() })
                .collect()
        };
        if pending.is_empty() {
            return Ok(());
        }
        let mut away = None;
        for (one, result) in send_all(&shared, pending).await {
            let answer = match result {
                Err(StoreError::Unavailable(why)) => {
                    away = Some(why);
                    continue;
                }
                Err(StoreError::NotFound(what)) => {
                    let since = *self.missing.entry(one.seq).or_insert_with(|| {
                        tracing::error!(
                            account = %one.operation.account(), id = one.operation.id(), what,
                            "the store knows nothing of what an operation is about: it waits"
                        );
                        Instant::now()
                    });
                    if one.operation.is_kept() || since.elapsed() < GIVE_UP {
                        continue;
                    }
                    Err(StoreError::NotFound(what))
                }
                answer => answer,
            };
            if let Err(error) = &answer {
                refuse(&shared, &one.operation, error);
            }
            self.missing.remove(&one.seq);
            self.sent += 1;
            shared.log.note(Line::<()>::Ended(vec![one.seq]));
            let taken = shared.gate().unpark(one.seq);
            if let Some(waiter) = taken.and_then(|pending| pending.waiter) {
                // Nobody waits any more: it is booked all the same.
                let _ = waiter.send(answer);
            }
        }
        away.map_or(Ok(()), Err)
    }
}

/// The store's answer is no, and will stay no.
fn refuse(shared: &Shared, operation: &Operation, error: &StoreError) {
    shared.refused.fetch_add(1, Ordering::Relaxed);
    tracing::error!(
        account = %operation.account(), id = operation.id(), %error,
        "the store refuses an operation of the journal for good: correct the account by hand"
    );
}

/// An operation on its way.
#[derive(Clone)]
struct Sent {
    seq: u64,
    at: Millis,
    operation: Arc<Operation>,
}

/// Sends operations: those of one account one after the other, those of others meanwhile.
/// Stops at the first that the store does not answer.
async fn send_all(
    shared: &Arc<Shared>,
    operations: impl IntoIterator<Item = Sent>,
) -> Vec<(Sent, Result<Taken, StoreError>)> {
    let hasher = RandomState::new();
    let lane = |account: &AccountId| hasher.hash_one(account) % LANES;
    let mut lanes: HashMap<u64, Vec<Sent>> = HashMap::new();
    for one in operations {
        lanes.entry(lane(one.operation.account())).or_default().push(one);
    }
    let mut sending = JoinSet::new();
    for lane in lanes.into_values() {
        let shared = Arc::clone(shared);
        sending.spawn(async move {
            let mut results = Vec::new();
            for one in lane {
                let result = bounded(send(&shared, &one)).await;
                let is_away = matches!(result, Err(StoreError::Unavailable(_)));
                results.push((one, result));
                if is_away {
                    break;
                }
            }
            results
        });
    }
    let mut results: Vec<_> = sending.join_all().await.into_iter().flatten().collect();
    results.sort_by_key(|(one, _)| one.seq);
    results
}

/// Sends one operation, unless the store may have forgotten that it has it.
async fn send(shared: &Shared, one: &Sent) -> Result<Taken, StoreError> {
    let forgets = Millis::try_from(LONGEST_REPLAY.as_millis()).unwrap_or(Millis::MAX);
    if one.at < crate::time::now().saturating_sub(forgets)
        && let Operation::Settle(settlement) = &*one.operation
        && is_recorded(shared, settlement, one.at).await?
    {
        return Ok(Taken { balance: None, duplicate: true });
    }
    one.operation.send(shared.store.as_ref()).await
}

/// Whether the store has the row of a request that ended at about this time or later.
async fn is_recorded(
    shared: &Shared,
    settlement: &Settlement,
    at: Millis,
) -> Result<bool, StoreError> {
    const HOUR_MS: Millis = 3_600_000; // clocks differ
    let filter = UsageFilter {
        since: Some(at - HOUR_MS),
        key: Some(settlement.key.clone()),
        ..UsageFilter::default()
    };
    let mut page = Page { cursor: None, limit: 500 };
    loop {
        let rows = shared.store.usage(&settlement.account, filter.clone(), page.clone()).await?;
        if rows.data.iter().any(|row| row.id == settlement.id) {
            return Ok(true);
        }
        match rows.next {
            Some(next) => page.cursor = Some(next),
            None => return Ok(false),
        }
    }
}

async fn bounded<T>(answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = |_| StoreError::Unavailable("the store does not answer".into());
    tokio::time::timeout(PATIENCE, answer).await.map_err(late).flatten()
}
