//! A lot: credits that came together and end together.

use super::NewLot;
use crate::billing::Credits;
use crate::time::Millis;

/// Whether credits were bought or given.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Given free. First, because it burns first.
    Promo,
    /// Bought, or granted as if.
    Usage,
}

/// Credits with one expiry. What was granted is the sum of what became of it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
pub struct Lot {
    /// Unique in the account and rising.
    #[serde(rename = "lot")]
    pub number: u64,
    /// Bought or given.
    #[serde(rename = "kind")]
    pub class: Class,
    /// From when it is used.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub effective_at: Millis,
    /// Until when, exclusive: at this very instant it has ended.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Millis,
    /// What it began with.
    #[schema(value_type = String)]
    pub granted: Credits,
    /// What can still be used.
    #[schema(value_type = String)]
    pub remaining: Credits,
    /// What requests and corrections used.
    #[schema(value_type = String)]
    pub used: Credits,
    /// What was left at its end.
    #[schema(value_type = String)]
    pub expired: Credits,
    /// What paid a debt when it came.
    #[schema(value_type = String)]
    pub to_debt: Credits,
    /// What was left when the account was closed.
    #[schema(value_type = String)]
    pub forfeited: Credits,
    /// What was taken back with a payment.
    #[schema(value_type = String)]
    pub reversed: Credits,
}

/// What becomes of credits that are taken from a lot.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    Used,
    Expired,
    Forfeited,
    Reversed,
}

impl Lot {
    pub(super) fn new(new: NewLot, granted: Credits, to_debt: Credits) -> Self {
        let NewLot { number, class, effective_at, expires_at } = new;
        Self {
            number,
            class,
            effective_at,
            expires_at,
            granted,
            remaining: granted - to_debt,
            used: Credits::ZERO,
            expired: Credits::ZERO,
            to_debt,
            forfeited: Credits::ZERO,
            reversed: Credits::ZERO,
        }
    }

    /// Soonest expiry first, then given before bought, then oldest.
    pub(super) const fn burn_key(&self) -> (Millis, Class, u64) {
        (self.expires_at, self.class, self.number)
    }

    pub(super) fn take(&mut self, amount: Credits, to: Use) {
        self.remaining = self.remaining - amount;
        *match to {
            Use::Used => &mut self.used,
            Use::Expired => &mut self.expired,
            Use::Forfeited => &mut self.forfeited,
            Use::Reversed => &mut self.reversed,
        } += amount;
    }

    /// What was used can be used again.
    pub(super) fn give_back(&mut self, amount: Credits) {
        self.used = self.used - amount;
        self.remaining += amount;
    }

    /// As it shows at an instant: what has ended shows as expired, written off or not yet.
    #[must_use]
    pub fn at(mut self, now: Millis) -> Self {
        if self.expires_at <= now {
            self.take(self.remaining, Use::Expired);
        }
        self
    }

    /// Whether what was granted is the sum of what became of it, no term below zero.
    pub fn adds_up(&self) -> bool {
        let Self { granted, remaining, used, expired, to_debt, forfeited, reversed, .. } = *self;
        let terms = [remaining, used, expired, to_debt, forfeited, reversed];
        !terms.iter().any(|term| term.is_negative())
            && terms.into_iter().sum::<Credits>() == granted
    }
}
