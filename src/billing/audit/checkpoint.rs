//! Where a ledger stands after an entry: what is compared, and what trimming leaves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::Line;
use crate::billing::ledger::{Kind, LedgerError, Lot, Place};
use crate::billing::{Credits, Total};
use crate::time::Millis;

/// How many entries, and what they sum to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// Entries.
    pub count: u64,
    /// Their amounts.
    pub amount: Total,
}

/// What became of a lot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Terms {
    pub granted: Credits,
    pub remaining: Credits,
    pub used: Credits,
    pub expired: Credits,
    pub to_debt: Credits,
    pub forfeited: Credits,
    pub reversed: Credits,
}

impl Terms {
    pub(super) fn of(lot: &Lot) -> Self {
        Self {
            granted: lot.granted,
            remaining: lot.remaining,
            used: lot.used,
            expired: lot.expired,
            to_debt: lot.to_debt,
            forfeited: lot.forfeited,
            reversed: lot.reversed,
        }
    }
}

/// Where the ledger stands after an entry: what trimming leaves in place of the entries up to
/// it, so that those that are kept still add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last entry that it stands for.
    pub seq: u64,
    /// The time of that entry.
    pub ts: Millis,
    /// Requests that are gone as well. Their sums by the hour are kept.
    pub requests: Sum,
    /// The end of the hours in which requests are gone.
    pub requests_before: Millis,
    /// The balance after it.
    pub balance: Credits,
    /// The debt after it.
    pub debt: Credits,
    /// The entries it stands for, by kind.
    pub kinds: BTreeMap<String, Sum>,
    /// What had become of each lot.
    pub(super) lots: BTreeMap<u64, Terms>,
}

impl Checkpoint {
    /// All entries it stands for.
    pub fn total(&self) -> Sum {
        self.kinds.values().fold(Sum::default(), |mut sum, kind| {
            sum.count += kind.count;
            sum.amount += kind.amount;
            sum
        })
    }

    pub(super) fn of_kind(&self, kind: Kind) -> Sum {
        self.kinds.get(kind.name()).copied().unwrap_or_default()
    }

    /// Goes on by the next entry. `granted`: the lots that it granted.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Unsound`], if it does not follow: what does not add up is not trimmed,
    /// for with the entries the error would be lost.
    pub fn advance(&mut self, line: &Line, granted: &[u64]) -> Result<(), LedgerError> {
        let parts: Credits = line.parts.iter().map(|part| part.amount).sum();
        let follows = line.seq == self.seq + 1
            && Total::from(self.balance) + line.amount.into() == line.balance_after.into()
            && parts == line.amount;
        if !follows {
            return Err(LedgerError::Unsound);
        }
        self.apply(line, granted);
        Ok(())
    }

    /// Goes on by an entry. `granted`: the lots that it granted.
    pub(super) fn apply(&mut self, line: &Line, granted: &[u64]) {
        self.seq = line.seq;
        self.ts = line.ts;
        self.balance = line.balance_after;
        let sum = self.kinds.entry(line.kind.name().to_owned()).or_default();
        sum.count += 1;
        sum.amount += line.amount;
        let paid: Credits = line
            .parts
            .iter()
            .filter(|part| part.place == Place::Debt)
            .map(|part| part.amount)
            .sum();
        self.debt = self.debt - paid;
        for number in granted {
            // A refund pays the debt by itself: the lots it makes are all rest.
            let to_debt = if line.kind == Kind::Refund { Credits::ZERO } else { paid };
            self.lots.insert(*number, Terms { granted: to_debt, to_debt, ..Terms::default() });
        }
        for part in &line.parts {
            let Place::Lot(number) = part.place else { continue };
            let lot = self.lots.entry(number).or_default();
            lot.remaining += part.amount;
            let term = match line.kind {
                _ if granted.contains(&number) => &mut lot.granted,
                Kind::Expiry => &mut lot.expired,
                Kind::Forfeit => &mut lot.forfeited,
                Kind::PaymentReversal => &mut lot.reversed,
                Kind::DebitAi | Kind::Refund | Kind::Adjust | Kind::Topup | Kind::Promo => {
                    &mut lot.used
                }
            };
            let gone = if granted.contains(&number) { part.amount } else { -part.amount };
            *term += gone;
        }
    }
}
