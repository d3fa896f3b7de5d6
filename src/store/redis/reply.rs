//! Reads what scripts answer: lists of texts, the first of which says what came of it.

use redis::Value;
use serde::de::DeserializeOwned;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as WordError, StrDeserializer};

use crate::billing::Credits;
use crate::billing::ledger::LedgerError;
use crate::store::{AccountId, StoreError};

/// An answer that no script of ours gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Odd;

impl From<Odd> for StoreError {
    fn from(_: Odd) -> Self {
        Self::Unavailable("the store answered what it was not asked".into())
    }
}

/// The parts of an answer, taken from its front.
pub(super) struct Reply(std::vec::IntoIter<Value>);

impl Reply {
    pub(super) fn of(value: Value) -> Result<Self, Odd> {
        match value {
            Value::Array(parts) => Ok(Self(parts.into_iter())),
            // As RESP3 shows a hash.
            Value::Map(pairs) => {
                let parts: Vec<_> = pairs.into_iter().flat_map(|(a, b)| [a, b]).collect();
                Ok(Self(parts.into_iter()))
            }
            _ => Err(Odd),
        }
    }

    /// The next part, whatever it is.
    pub(super) fn value(&mut self) -> Result<Value, Odd> {
        self.0.next().ok_or(Odd)
    }

    pub(super) fn text(&mut self) -> Result<String, Odd> {
        text(self.value()?)
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self) -> Result<T, Odd> {
        number(&self.text()?)
    }

    pub(super) fn credits(&mut self) -> Result<Credits, Odd> {
        self.number().map(Credits::from_nano)
    }

    pub(super) fn list(&mut self) -> Result<Self, Odd> {
        Self::of(self.value()?)
    }
}

impl Iterator for Reply {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.0.next()
    }
}

pub(super) fn text(value: Value) -> Result<String, Odd> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_err(|_| Odd),
        Value::SimpleString(text) => Ok(text),
        Value::Okay => Ok("OK".into()),
        Value::Int(number) => Ok(number.to_string()),
        // As RESP3 shows the scores of sorted sets: whole numbers, all of ours.
        Value::Double(number) => Ok(format!("{number:.0}")),
        _ => Err(Odd),
    }
}

/// A text, or nothing.
pub(super) fn maybe(value: Value) -> Result<Option<String>, Odd> {
    match value {
        Value::Nil => Ok(None),
        other => text(other).map(Some),
    }
}

pub(super) fn number<T: std::str::FromStr>(text: &str) -> Result<T, Odd> {
    text.parse().map_err(|_| Odd)
}

/// A choice, from the word that the API shows for it.
pub(super) fn word<T: DeserializeOwned>(word: &str) -> Result<T, Odd> {
    let word: StrDeserializer<'_, WordError> = word.into_deserializer();
    T::deserialize(word).map_err(|_| Odd)
}

/// The word that the API shows for a choice.
pub(super) fn word_of<T: serde::Serialize>(choice: T) -> String {
    match serde_json::to_value(choice) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// Why a script refused, from the word that it answered; the rest of the answer says more.
pub(super) fn refused(word: &str, mut rest: Reply, account: &AccountId, id: &str) -> StoreError {
    match word {
        "no_account" => no_account(account),
        "conflict" => StoreError::Conflict(format!("the id {id} was used with other content")),
        "sign" => LedgerError::Sign.into(),
        "entry_limit" => LedgerError::EntryLimit.into(),
        "balance_limit" => LedgerError::BalanceLimit.into(),
        "expiry_past" => LedgerError::ExpiryPast.into(),
        "more" => match rest.credits() {
            Ok(left) => LedgerError::MoreThanWasBooked { left }.into(),
            Err(odd) => odd.into(),
        },
        "trimmed" => match (rest.text(), rest.text()) {
            (Ok(id), Ok(seq)) => StoreError::Conflict(format!(
                "{id} was booked as entry {seq}, which was trimmed; correct the balance by an \
                 adjustment"
            )),
            _ => Odd.into(),
        },
        "not_open" => {
            let status = rest.text().unwrap_or_default();
            let what = format!("the account {account} is {status} and takes no credits");
            StoreError::Conflict(what)
        }
        _ => Odd.into(),
    }
}

pub(super) fn no_account(account: &AccountId) -> StoreError {
    StoreError::NotFound(format!("account {account}"))
}

pub(super) fn no_page() -> StoreError {
    StoreError::NotFound("page with this cursor".into())
}
