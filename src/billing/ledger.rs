//! How a balance changes: pure rules over the books of one account.
//!
//! Credits lie in [`Lot`]s, each with its expiry; what was used beyond them is one debt.
//! Every credit pays the debt first, a debit is taken in full, and what has ended is written
//! off before anything else ([`Book::expire`]). An operation answers a [`Booking`]: the entry
//! to write, with the parts that its amount is made of.

use super::Credits;
use crate::time::Millis;

pub mod expiry;
pub mod lot;
#[cfg(test)]
mod tests;

pub use expiry::Expiry;
pub use lot::{Class, Lot};

use lot::Use;

/// What an entry of the ledger is about. Every kind has one implied counter-account.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Usage credits, granted by the operator or bought.
    Topup,
    /// Promotional credits.
    Promo,
    /// What a request cost.
    DebitAi,
    /// What was left of a lot when it ended.
    Expiry,
    /// Usage given back.
    Refund,
    /// A payment that the payer's bank took back.
    PaymentReversal,
    /// A correction by the operator, either way, with a reason.
    Adjust,
    /// What was left of a lot when the account was closed.
    Forfeit,
}

impl Kind {
    /// The name in the ledger and in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Topup => "topup",
            Self::Promo => "promo",
            Self::DebitAi => "debit_ai",
            Self::Expiry => "expiry",
            Self::Refund => "refund",
            Self::PaymentReversal => "payment_reversal",
            Self::Adjust => "adjust",
            Self::Forfeit => "forfeit",
        }
    }

    fn allows(self, amount: Credits) -> bool {
        match self {
            Self::Topup | Self::Promo | Self::Refund => amount.is_positive(),
            Self::DebitAi => !amount.is_positive(),
            Self::Expiry | Self::PaymentReversal | Self::Forfeit => amount.is_negative(),
            Self::Adjust => amount != Credits::ZERO,
        }
    }
}

/// Why an amount cannot be booked. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The balance would leave what can be counted exactly.
    #[error("the balance would pass the limit of 9,000,000 credits")]
    BalanceLimit,
    /// One entry is larger than is believed.
    #[error("one entry may not exceed 1,000,000 credits")]
    EntryLimit,
    /// A credit of nothing, a charge that gives, a correction that corrects nothing.
    #[error("a credit is above zero, a charge is not below zero, an adjustment is not zero")]
    Sign,
    /// Credits that would have ended before they began.
    #[error("credits must expire after now")]
    ExpiryPast,
    /// More is undone than was done.
    #[error("no more than {left} credits of this entry are left to give back or take back")]
    MoreThanWasBooked {
        /// What is left of it.
        left: Credits,
    },
    /// The books of the account contradict themselves.
    #[error("the books of this account do not add up")]
    Unsound,
}

/// Where a part of an amount came from or went. Outside, a lot's number or null.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(from = "Option<u64>", into = "Option<u64>")]
pub enum Place {
    /// What was used beyond all lots.
    Debt,
    /// A lot, by its number in the account.
    Lot(u64),
}

impl From<Option<u64>> for Place {
    fn from(lot: Option<u64>) -> Self {
        lot.map_or(Self::Debt, Self::Lot)
    }
}

impl From<Place> for Option<u64> {
    fn from(place: Place) -> Self {
        match place {
            Place::Debt => None,
            Place::Lot(number) => Some(number),
        }
    }
}

/// A part of an entry's amount. The parts of an entry sum to its amount.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
pub struct Part {
    /// The number of the lot; null: the debt of the account.
    #[serde(rename = "lot")]
    #[schema(value_type = Option<u64>)]
    pub place: Place,
    /// Signed: above zero fills the lot or pays the debt.
    #[schema(value_type = String)]
    pub amount: Credits,
}

/// An entry to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booking {
    /// What it is about.
    pub kind: Kind,
    /// Signed.
    pub amount: Credits,
    /// What it is made of, in the order in which it was taken or given.
    pub parts: Vec<Part>,
}

/// A lot to be: the credit that fills it pays the debt first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewLot {
    /// Its number; above all others of the account.
    pub number: u64,
    /// Bought or given.
    pub class: Class,
    /// From when.
    pub effective_at: Millis,
    /// Until when, exclusive.
    pub expires_at: Millis,
}

/// The debt of an account and those of its lots that an operation is about: all that are not
/// empty, and any others that it names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    debt: Credits,
    /// In burn order.
    lots: Vec<Lot>,
}

impl Book {
    /// The books at an instant: lots that have ended are written off first, one entry each.
    ///
    /// # Errors
    ///
    /// As [`Self::of`].
    pub fn open(
        balance: Credits,
        lots: Vec<Lot>,
        now: Millis,
    ) -> Result<(Self, Vec<Booking>), LedgerError> {
        let mut book = Self::of(balance, lots)?;
        let expired = book.expire(now);
        Ok((book, expired))
    }

    /// The books as they stand. No operation may use them before [`Self::expire`].
    ///
    /// The debt is the part of the balance below zero, because lots are empty while there is
    /// one.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Unsound`], if balance and lots contradict one another.
    pub fn of(balance: Credits, mut lots: Vec<Lot>) -> Result<Self, LedgerError> {
        lots.sort_unstable_by_key(Lot::burn_key);
        let book = Self { debt: (-balance).max(Credits::ZERO), lots };
        if book.balance() != balance || !book.adds_up() {
            return Err(LedgerError::Unsound);
        }
        Ok(book)
    }

    /// Writes off the lots that have ended, one entry each.
    pub fn expire(&mut self, now: Millis) -> Vec<Booking> {
        self.write_off(Kind::Expiry, Use::Expired, |lot| lot.expires_at <= now)
    }

    /// Leaves the empty lots out, until they are recalled.
    pub fn forget_empty(&mut self) {
        self.lots.retain(|lot| lot.remaining.is_positive());
    }

    /// Adds an empty lot, so that it can be filled again.
    pub fn recall(&mut self, lot: Lot) {
        if !self.lots.iter().any(|known| known.number == lot.number) {
            self.lots.push(lot);
            self.lots.sort_unstable_by_key(Lot::burn_key);
        }
    }

    /// What can be used, the debt taken off.
    pub fn balance(&self) -> Credits {
        self.lots.iter().map(|lot| lot.remaining).sum::<Credits>() - self.debt
    }

    /// What was used beyond all lots.
    pub const fn debt(&self) -> Credits {
        self.debt
    }

    /// The lots, in burn order.
    pub fn lots(&self) -> &[Lot] {
        &self.lots
    }

    /// Credits of a new lot. They pay the debt first; only the rest can be used or expire.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] for an amount or a balance that cannot be, or an end that is not after
    /// the beginning.
    pub fn credit(
        &mut self,
        kind: Kind,
        amount: Credits,
        new: NewLot,
    ) -> Result<Booking, LedgerError> {
        self.may_book(kind, amount)?;
        if new.expires_at <= new.effective_at {
            return Err(LedgerError::ExpiryPast);
        }
        let mut parts = Parts::default();
        let to_debt = self.pay_debt(amount, &mut parts);
        self.add(new, amount, to_debt, &mut parts);
        self.booked(kind, amount, parts)
    }

    /// Takes an amount in full: from the lots in burn order, then as debt.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] for an amount or a balance that cannot be.
    pub fn debit(&mut self, kind: Kind, amount: Credits) -> Result<Booking, LedgerError> {
        self.may_take(kind, amount)?;
        let order = (0..self.lots.len()).collect();
        let parts = self.take(amount, order, Use::Used);
        self.booked(kind, -amount, parts)
    }

    /// Corrects the balance: upwards by a new lot, downwards like a debit.
    ///
    /// # Errors
    ///
    /// As [`Self::credit`] and [`Self::debit`].
    pub fn adjust(&mut self, amount: Credits, new: NewLot) -> Result<Booking, LedgerError> {
        if amount.is_positive() {
            self.credit(Kind::Adjust, amount, new)
        } else if amount < -Credits::ENTRY_LIMIT {
            Err(LedgerError::EntryLimit)
        } else {
            self.debit(Kind::Adjust, -amount)
        }
    }

    /// Gives a debit back, or a part of it: what was taken last returns first.
    ///
    /// What was debt, or came from a lot that has ended since, becomes a new lot: of the same
    /// class, of full length if it was bought and of 30 days if it was given. `new` numbers
    /// it. The lots of `debit` must be in the book.
    ///
    /// # Errors
    ///
    /// [`LedgerError::MoreThanWasBooked`], if `before` (given back earlier) and `amount`
    /// exceed the debit; else as [`Self::credit`].
    pub fn refund(
        &mut self,
        debit: &[Part],
        before: Credits,
        amount: Credits,
        new: u64,
        now: Millis,
    ) -> Result<Booking, LedgerError> {
        self.may_book(Kind::Refund, amount)?;
        let debited = -debit.iter().map(|part| part.amount).sum::<Credits>();
        may_undo(debited, before, amount)?;

        let mut parts = Parts::default();
        let mut fresh = [(Class::Usage, Credits::ZERO), (Class::Promo, Credits::ZERO)];
        for taken in last_first(debit, before, amount) {
            let rest = taken.amount - self.pay_debt(taken.amount, &mut parts);
            let home = match taken.place {
                Place::Debt => None,
                Place::Lot(number) => self.lots.iter_mut().find(|lot| lot.number == number),
            };
            match home {
                Some(lot) if lot.expires_at > now => {
                    lot.give_back(rest);
                    parts.add(taken.place, rest);
                }
                ended => {
                    let class = ended.map_or(Class::Usage, |lot| lot.class);
                    let [usage, promo] = &mut fresh;
                    let (_, sum) = if class == Class::Usage { usage } else { promo };
                    *sum += rest;
                }
            }
        }
        let numbers = new..;
        let fresh = fresh.into_iter().filter(|(_, sum)| sum.is_positive());
        for ((class, sum), number) in fresh.zip(numbers) {
            let expires_at = expiry::of_refund(class, now);
            let new = NewLot { number, class, effective_at: now, expires_at };
            self.add(new, sum, Credits::ZERO, &mut parts);
        }
        self.booked(Kind::Refund, amount, parts)
    }

    /// Takes a payment back, or a part of it: from its own lot, then as a debit does.
    ///
    /// # Errors
    ///
    /// [`LedgerError::MoreThanWasBooked`], if `before` (taken back earlier) and `amount`
    /// exceed the payment; else as [`Self::debit`].
    pub fn reverse(
        &mut self,
        payment: Credits,
        lot: Option<u64>,
        before: Credits,
        amount: Credits,
    ) -> Result<Booking, LedgerError> {
        self.may_take(Kind::PaymentReversal, amount)?;
        may_undo(payment, before, amount)?;
        let mut order: Vec<usize> = (0..self.lots.len()).collect();
        order.sort_by_key(|&at| Some(self.lots[at].number) != lot);
        let parts = self.take(amount, order, Use::Reversed);
        self.booked(Kind::PaymentReversal, -amount, parts)
    }

    /// Empties every lot at the end of the account, one entry each. The debt stays.
    pub fn forfeit(&mut self) -> Vec<Booking> {
        self.write_off(Kind::Forfeit, Use::Forfeited, |_| true)
    }

    fn write_off(&mut self, kind: Kind, to: Use, ended: impl Fn(&Lot) -> bool) -> Vec<Booking> {
        let ended = self.lots.iter_mut().filter(|lot| lot.remaining.is_positive() && ended(lot));
        let booked = |lot: &mut Lot| {
            let amount = -lot.remaining;
            lot.take(lot.remaining, to);
            let place = Place::Lot(lot.number);
            Booking { kind, amount, parts: vec![Part { place, amount }] }
        };
        ended.map(booked).collect()
    }

    /// Refuses before anything changes.
    fn may_book(&self, kind: Kind, amount: Credits) -> Result<(), LedgerError> {
        if !kind.allows(amount) {
            return Err(LedgerError::Sign);
        }
        if amount > Credits::ENTRY_LIMIT || amount < -Credits::ENTRY_LIMIT {
            return Err(LedgerError::EntryLimit);
        }
        self.balance().checked_add(amount).ok_or(LedgerError::BalanceLimit)?;
        Ok(())
    }

    fn may_take(&self, kind: Kind, amount: Credits) -> Result<(), LedgerError> {
        if amount.is_negative() {
            return Err(LedgerError::Sign);
        }
        self.may_book(kind, -amount)
    }

    /// Pays as much of the debt as there is; answers how much that was.
    fn pay_debt(&mut self, amount: Credits, parts: &mut Parts) -> Credits {
        let paid = self.debt.min(amount);
        self.debt = self.debt - paid;
        parts.add(Place::Debt, paid);
        paid
    }

    fn add(&mut self, new: NewLot, granted: Credits, to_debt: Credits, parts: &mut Parts) {
        let lot = Lot::new(new, granted, to_debt);
        parts.add(Place::Lot(lot.number), lot.remaining);
        self.lots.push(lot);
        self.lots.sort_unstable_by_key(Lot::burn_key);
    }

    /// Takes from the lots at these places of the list, then as debt.
    fn take(&mut self, amount: Credits, order: Vec<usize>, to: Use) -> Parts {
        let mut parts = Parts::default();
        let mut rest = amount;
        for at in order {
            let lot = &mut self.lots[at];
            let taken = lot.remaining.min(rest);
            lot.take(taken, to);
            parts.add(Place::Lot(lot.number), -taken);
            rest = rest - taken;
        }
        self.debt += rest;
        parts.add(Place::Debt, -rest);
        parts
    }

    /// The entry, if all identities hold.
    fn booked(&self, kind: Kind, amount: Credits, parts: Parts) -> Result<Booking, LedgerError> {
        let Parts(parts) = parts;
        let sum: Credits = parts.iter().map(|part| part.amount).sum();
        if sum != amount || !self.adds_up() {
            return Err(LedgerError::Unsound);
        }
        Ok(Booking { kind, amount, parts })
    }

    /// Lots are empty while there is debt, and each is the sum of what became of it.
    fn adds_up(&self) -> bool {
        let is_in_debt = self.debt.is_positive();
        !self.debt.is_negative()
            && self.lots.iter().all(Lot::adds_up)
            && !(is_in_debt && self.lots.iter().any(|lot| lot.remaining.is_positive()))
    }
}

/// Parts in order, none of them empty and no place twice.
#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    fn add(&mut self, place: Place, amount: Credits) {
        if amount == Credits::ZERO {
            return;
        }
        match self.0.iter_mut().find(|part| part.place == place) {
            Some(part) => part.amount += amount,
            None => self.0.push(Part { place, amount }),
        }
    }
}

fn may_undo(booked: Credits, before: Credits, amount: Credits) -> Result<(), LedgerError> {
    let left = booked - before;
    if amount > left { Err(LedgerError::MoreThanWasBooked { left }) } else { Ok(()) }
}

/// What `amount` gives back of a debit, the last part first, after `before` was given back.
fn last_first(debit: &[Part], before: Credits, amount: Credits) -> Vec<Part> {
    let mut skip = before;
    let mut rest = amount;
    let mut given = Vec::new();
    for part in debit.iter().rev() {
        let taken = -part.amount;
        let skipped = taken.min(skip);
        let back = (taken - skipped).min(rest);
        skip = skip - skipped;
        rest = rest - back;
        if back.is_positive() {
            given.push(Part { place: part.place, amount: back });
        }
    }
    given
}
