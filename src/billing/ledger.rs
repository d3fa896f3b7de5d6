//! How a balance changes: credits first pay the debt, debits are taken in full.

use super::Credits;

/// What an entry of the ledger is about. Every kind has one implied counter-account.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Usage credits, granted by the operator or bought.
    Topup,
    /// What a request cost.
    DebitAi,
    /// A correction by the operator, either way, with a reason.
    Adjust,
}

impl Kind {
    /// The name in the ledger and in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Topup => "topup",
            Self::DebitAi => "debit_ai",
            Self::Adjust => "adjust",
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
}

/// The balance after booking a signed amount: in full, never clipped at zero.
///
/// # Errors
///
/// [`LedgerError`] when the amount or the balance passes its limit.
pub fn book(balance: Credits, amount: Credits) -> Result<Credits, LedgerError> {
    if amount.abs() > Credits::ENTRY_LIMIT {
        return Err(LedgerError::EntryLimit);
    }
    balance.checked_add(amount).ok_or(LedgerError::BalanceLimit)
}
