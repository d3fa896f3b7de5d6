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
    /// A top-up of nothing, a charge that gives, a correction that corrects nothing.
    #[error("a top-up is above zero, a charge is not below zero, an adjustment is not zero")]
    Sign,
}

/// The balance after booking a signed amount: in full, never clipped at zero.
///
/// # Errors
///
/// [`LedgerError`] when the amount has a sign that its kind cannot have, or the amount or the
/// balance passes its limit.
pub fn book(balance: Credits, kind: Kind, amount: Credits) -> Result<Credits, LedgerError> {
    let sign_fits = match kind {
        Kind::Topup => amount.is_positive(),
        Kind::DebitAi => !amount.is_positive(),
        Kind::Adjust => amount != Credits::ZERO,
    };
    if !sign_fits {
        return Err(LedgerError::Sign);
    }
    if amount > Credits::ENTRY_LIMIT || amount < -Credits::ENTRY_LIMIT {
        return Err(LedgerError::EntryLimit);
    }
    balance.checked_add(amount).ok_or(LedgerError::BalanceLimit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Adjust, DebitAi, Topup};

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    fn booked(balance: &str, kind: Kind, amount: &str) -> Result<String, LedgerError> {
        book(credits(balance), kind, credits(amount)).map(|balance| balance.to_string())
    }

    #[test]
    fn a_debit_is_taken_in_full_also_below_zero() {
        assert_eq!(booked("0.2", DebitAi, "-0.3"), Ok("-0.1".into()));
    }

    #[test]
    fn a_top_up_pays_the_debt_first() {
        assert_eq!(booked("-0.1", Topup, "5"), Ok("4.9".into()));
        assert_eq!(booked("-0.1", Topup, "0.1"), Ok("0".into()));
    }

    #[test]
    fn a_kind_has_only_the_signs_that_make_sense() {
        assert_eq!(booked("1", Topup, "0"), Err(LedgerError::Sign));
        assert_eq!(booked("1", Topup, "-1"), Err(LedgerError::Sign));
        assert_eq!(booked("1", DebitAi, "1"), Err(LedgerError::Sign));
        assert_eq!(booked("1", Adjust, "0"), Err(LedgerError::Sign));
        assert_eq!(booked("1", DebitAi, "0"), Ok("1".into()));
        assert_eq!(booked("1", Adjust, "-2"), Ok("-1".into()));
    }

    #[test]
    fn limits_hold_at_their_edge_and_not_before() {
        assert_eq!(booked("0", Topup, "1000000"), Ok("1000000".into()));
        assert_eq!(booked("0", Topup, "1000000.000000001"), Err(LedgerError::EntryLimit));
        assert_eq!(booked("8999999", Topup, "1"), Ok("9000000".into()));
        assert_eq!(booked("8999999", Topup, "1.000000001"), Err(LedgerError::BalanceLimit));
        assert_eq!(booked("-9000000", DebitAi, "-0.000000001"), Err(LedgerError::BalanceLimit));
        let extreme = Credits::from_nano(i64::MIN);
        assert_eq!(book(Credits::ZERO, Adjust, extreme), Err(LedgerError::EntryLimit));
    }
}
