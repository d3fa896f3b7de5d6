//! What happens by time alone: leases are renewed, and what is due is swept.
//!
//! Correctness rests on neither: every operation writes off what has ended by itself, and a
//! lease that was not renewed only frees a place. Any number of processes may sweep.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::reply::{Reply, text};
use super::{Shared, lent};
use crate::store::{AccountId, Millis, StoreError};

/// How often what is due is looked for.
const TICK: Duration = Duration::from_millis(500);
/// Accounts of one look.
const AT_ONCE: usize = 100;

/// Starts both tasks; they end with the store.
pub(super) fn start(shared: &Arc<Shared>) {
    tokio::spawn(renew_for_ever(Arc::downgrade(shared), shared.lease / 3));
    tokio::spawn(sweep_for_ever(Arc::downgrade(shared)));
    tokio::spawn(tick_for_ever(Arc::downgrade(shared)));
}

async fn renew_for_ever(shared: Weak<Shared>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        for (account, requests) in shared.running.all() {
            // While the store is away its places are what nobody takes.
            if let Err(error) = shared.renew(&account, &requests).await {
                tracing::warn!("leases were not renewed: {error}");
                break;
            }
        }
    }
}

async fn sweep_for_ever(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(TICK).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = shared.sweep_what_is_due().await {
            tracing::debug!("what is due was not swept: {error}");
        }
    }
}

async fn tick_for_ever(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(lent::TICK).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.tick().await;
    }
}

impl Shared {
    async fn renew(&self, account: &AccountId, requests: &[String]) -> Result<(), StoreError> {
        let mut call = self.call(&self.scripts.renew, account, &[]);
        call.push(self.lease.as_millis().to_string());
        for request in requests {
            call.push(request);
        }
        let mut answer = Reply::of(self.link.run(&call).await?)?;
        if answer.text()? == "ok" {
            // Should this process die, others find them.
            self.note_due(account, answer.number()?).await;
        }
        Ok(())
    }

    /// Notes that an account is to be looked at. What is lost here is only late.
    pub(super) async fn note_due(&self, account: &AccountId, at: Millis) {
        let mut cmd = ::redis::cmd("ZADD");
        cmd.arg(self.names.due()).arg("LT").arg(at).arg(&*account.0);
        if let Err(error) = self.link.quick(&cmd).await.map_err(StoreError::from) {
            tracing::debug!("when an account is due was not noted: {error}");
        }
    }

    async fn sweep_what_is_due(&self) -> Result<(), StoreError> {
        let now = self.now().await?;
        let mut cmd = ::redis::cmd("ZRANGEBYSCORE");
        cmd.arg(self.names.due()).arg("-inf").arg(now).arg("WITHSCORES");
        cmd.arg("LIMIT").arg(0).arg(AT_ONCE);
        for (account, seen) in pairs(self.link.quick(&cmd).await?)? {
            self.sweep(&AccountId(account.into()), &seen).await?;
        }
        Ok(())
    }

    pub(super) async fn sweep(&self, account: &AccountId, seen: &str) -> Result<(), StoreError> {
        let call = self.call(&self.scripts.sweep, account, &[]);
        let mut answer = Reply::of(self.link.commit(&call).await?)?;
        let mut due = String::new();
        if answer.text()? == "ok" {
            due = answer.text()?;
            let lost: u64 = answer.number()?;
            if lost > 0 {
                tracing::warn!(%account, lost, "requests were cut off when their process ended");
            }
        }
        let call = self.scripts.due.call(&self.names, account, &[self.names.due()]);
        let call = call.arg(&*account.0).arg(seen).arg(due);
        self.link.run(&call).await?;
        Ok(())
    }
}

/// Members and scores of a sorted set: RESP3 pairs them, RESP2 does not.
fn pairs(answer: ::redis::Value) -> Result<Vec<(String, String)>, StoreError> {
    let mut answer = Reply::of(answer)?;
    let mut pairs = Vec::new();
    while let Some(first) = answer.next() {
        pairs.push(match first {
            ::redis::Value::Array(_) => {
                let mut pair = Reply::of(first)?;
                (pair.text()?, pair.text()?)
            }
            member => (text(member)?, answer.text()?),
        });
    }
    Ok(pairs)
}
