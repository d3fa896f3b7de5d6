//! Operations of one account that wait while others of it are on their way go together.
//!
//! Each account has a lane of its own, for as long as something of it is under way: an account
//! that is busy shares one script and one answer among many requests, and none waits for
//! another account.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::store::home::{Reply, Round};
use crate::store::{AccountId, StoreError};

/// Operations of one script.
const AT_ONCE: usize = 128;

/// An operation, and where its answer goes.
type Op<O, T> = (O, Reply<Result<T, StoreError>>);

/// What waits, by account.
type Waiting<O, T> = HashMap<AccountId, Vec<Op<O, T>>>;

/// The lanes of one kind of operation.
pub(super) struct Lanes<O, T> {
    waiting: Mutex<Waiting<O, T>>,
}

impl<O, T> Default for Lanes<O, T> {
    fn default() -> Self {
        Self { waiting: Mutex::new(HashMap::new()) }
    }
}

impl<O: Send + 'static, T: Send + 'static> Lanes<O, T> {
    /// Hands an operation over; it happens even if nobody waits for the answer. `send` answers
    /// each operation that it is given, in order.
    pub(super) fn submit<S, F>(
        self: &Arc<Self>,
        account: &AccountId,
        op: O,
        send: S,
    ) -> oneshot::Receiver<Result<T, StoreError>>
    where
        S: Fn(AccountId, Vec<O>) -> F + Send + 'static,
        F: Future<Output = Vec<Result<T, StoreError>>> + Send,
    {
        let (reply, receiver) = Reply::new();
        {
            let mut waiting = self.lock();
            if let Some(lane) = waiting.get_mut(account) {
                lane.push((op, reply));
                return receiver;
            }
            waiting.insert(account.clone(), Vec::new());
        }
        let (lanes, account) = (self.clone(), account.clone());
        tokio::spawn(async move {
            let lane = Lane { lanes: &lanes, account };
            let mut batch = vec![(op, reply)];
            while !batch.is_empty() {
                let (ops, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                let answers = send(lane.account.clone(), ops).await;
                let mut round = Round::default();
                for (reply, answer) in replies.into_iter().zip(answers) {
                    round.give(reply, answer);
                }
                drop(round);
                batch = lane.next();
            }
        });
        receiver
    }

    /// Waits until nothing of an account is under way.
    pub(super) async fn quiet(&self, account: &AccountId) {
        while self.lock().contains_key(account) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until nothing is under way.
    pub(super) async fn idle(&self) {
        while !self.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<O, T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lane<'a, O: Send + 'static, T: Send + 'static> {
    lanes: &'a Lanes<O, T>,
    account: AccountId,
}

impl<O: Send + 'static, T: Send + 'static> Lane<'_, O, T> {
    /// What has come to wait meanwhile; the lane ends with nothing.
    fn next(&self) -> Vec<Op<O, T>> {
        let mut waiting = self.lanes.lock();
        let Some(lane) = waiting.get_mut(&self.account) else { return Vec::new() };
        let batch: Vec<_> = lane.drain(..lane.len().min(AT_ONCE)).collect();
        if batch.is_empty() {
            waiting.remove(&self.account);
        }
        batch
    }
}

/// A task that ends early, by a panic or with its runtime, leaves no lane behind that nobody
/// serves.
impl<O: Send + 'static, T: Send + 'static> Drop for Lane<'_, O, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lanes.lock().remove(&self.account);
        }
    }
}
