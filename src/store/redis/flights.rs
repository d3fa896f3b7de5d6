//! The requests of this process that run: their places are lent on while they do.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::AccountId;

/// Requests of this process by account.
#[derive(Default)]
pub(super) struct Running(Mutex<HashMap<AccountId, HashSet<String>>>);

impl Running {
    pub(super) fn begin(&self, account: &AccountId, request: &str) {
        let mut running = self.lock();
        match running.get_mut(account) {
            Some(requests) => drop(requests.insert(request.into())),
            None => drop(running.insert(account.clone(), HashSet::from([request.into()]))),
        }
    }

    pub(super) fn end(&self, account: &AccountId, request: &str) {
        let mut running = self.lock();
        if let Some(requests) = running.get_mut(account) {
            requests.remove(request);
            if requests.is_empty() {
                running.remove(account);
            }
        }
    }

    /// All that run now.
    pub(super) fn all(&self) -> Vec<(AccountId, Vec<String>)> {
        let running = self.lock();
        running
            .iter()
            .map(|(account, requests)| (account.clone(), requests.iter().cloned().collect()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, HashSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
