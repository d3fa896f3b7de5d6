//! What an audit says: what it looked at, and what does not add up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Invariant;
use crate::billing::Total;

/// Something that does not add up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Violation {
    /// Where; absent: over all accounts.
    pub account: Option<String>,
    /// What does not hold.
    pub invariant: Invariant,
    /// What was found, in one sentence.
    pub sentence: String,
}

/// What was looked at, and how much of it does not add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tally {
    /// Accounts.
    pub accounts: u64,
    /// Entries, without those that were trimmed.
    pub entries: u64,
    /// Entries that were trimmed, which checkpoints stand for.
    pub trimmed: u64,
    /// Requests.
    pub requests: u64,
    /// Requests that were cut off when the process ended, and cost nothing.
    pub abandoned: u64,
    /// Lots.
    pub lots: u64,
    /// Requests that run and for which something is held or noted.
    pub holds: u64,
    /// Ids of operations that the store need not remember any more.
    pub forgotten: u64,
    /// For each invariant, in order, how often it was looked at.
    pub checks: [u64; 11],
    /// For each invariant, in order, how often it did not hold.
    pub violations: [u64; 11],
    /// What all balances sum to.
    #[schema(value_type = String)]
    pub balance: Total,
    /// What all entries sum to, by kind.
    #[schema(value_type = Object)]
    pub kinds: BTreeMap<String, Total>,
}

impl Tally {
    /// Adds what was found in another account.
    pub fn add(&mut self, other: &Self) {
        self.accounts += other.accounts;
        self.entries += other.entries;
        self.trimmed += other.trimmed;
        self.requests += other.requests;
        self.abandoned += other.abandoned;
        self.lots += other.lots;
        self.holds += other.holds;
        self.forgotten += other.forgotten;
        for at in 0..self.checks.len() {
            self.checks[at] += other.checks[at];
            self.violations[at] += other.violations[at];
        }
        self.balance += other.balance;
        for (kind, amount) in &other.kinds {
            *self.kinds.entry(kind.clone()).or_default() += *amount;
        }
    }

    /// Everything that did not hold.
    pub fn problems(&self) -> u64 {
        self.violations.iter().sum()
    }

    /// Compares all accounts together.
    pub fn close(&mut self) -> Option<Violation> {
        let at = Invariant::I10.index();
        self.checks[at] += 1;
        let entries = self.kinds.values().fold(Total::ZERO, |sum, amount| sum + *amount);
        if entries == self.balance {
            return None;
        }
        self.violations[at] += 1;
        let sentence =
            format!("over all accounts, entries sum to {entries} and balances to {}", self.balance);
        Some(Violation { account: None, invariant: Invariant::I10, sentence })
    }
}
