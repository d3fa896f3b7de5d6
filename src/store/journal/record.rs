//! What the journal writes down, and how an operation is sent to the store.

use serde::{Deserialize, Serialize};

use crate::billing::Credits;
use crate::key::KeyHash;
use crate::store::{
    Account, AccountChange, AccountId, Grant, Key, KeyChange, Millis, Mode, Settled, Settlement,
    Store, StoreError, Undo,
};

/// One line of the journal, with an operation or a reference to one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line<O = Operation> {
    /// An operation.
    Operation {
        /// Its number, unlike that of any other line of this journal.
        seq: u64,
        /// When it was made, by the clock of this machine.
        at: Millis,
        /// The store had taken it before it was written down; otherwise it waits.
        taken: bool,
        /// What is to be done.
        operation: O,
    },
    /// These do not wait any more: the store took them, or refused them for good.
    Ended(Vec<u64>),
    /// All that stands before is part of the history that the store calls so.
    Epoch(String),
    /// The process ended in order; nothing follows but another start.
    Closed,
}

/// A line as it is written: its text, and what it means apart from its operation.
pub(super) struct Written {
    pub text: Vec<u8>,
    pub line: Line<()>,
}

impl<O: Serialize> Line<O> {
    pub(super) fn write(self) -> Written {
        let mut text = serde_json::to_vec(&self).expect("a line can be written");
        text.push(b'\n');
        let line = match self {
            Self::Operation { seq, at, taken, operation: _ } => {
                Line::Operation { seq, at, taken, operation: () }
            }
            Self::Ended(seqs) => Line::Ended(seqs),
            Self::Epoch(epoch) => Line::Epoch(epoch),
            Self::Closed => Line::Closed,
        };
        Written { text, line }
    }
}

/// What a store that loses its last writes is asked again. Each happens once by its own id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// [`Store::create_account`]
    CreateAccount {
        /// Its id.
        account: AccountId,
        /// Its name.
        name: String,
    },
    /// [`Store::create_key`]
    CreateKey {
        /// The key, without its secret.
        key: Box<Key>,
        /// The hash of its secret.
        hash: [u8; 32],
    },
    /// [`Store::revoke_key`]
    RevokeKey {
        /// Whose.
        account: AccountId,
        /// The key's id.
        key: String,
    },
    /// [`Store::change_key`]: again only where the key is as it was before. Else the change is
    /// there, or another has followed it.
    ChangeKey {
        /// As it was.
        before: Box<Key>,
        /// As it became.
        after: Box<Key>,
    },
    /// [`Store::configure_account`], likewise.
    ConfigureAccount {
        /// Whose.
        account: AccountId,
        /// As they were.
        before: Settings,
        /// As they became.
        after: Settings,
    },
    /// [`Store::settle`]
    Settle(Box<Settlement>),
    /// [`Store::own`]
    Own {
        /// Whose.
        account: AccountId,
        /// What.
        object: String,
    },
    /// [`Store::grant`]
    Grant(Grant),
    /// [`Store::refund`]
    Refund(Undo),
    /// [`Store::reverse`]
    Reverse(Undo),
    /// [`Store::close_account`]
    Close {
        /// Which.
        account: AccountId,
        /// The operation's.
        id: String,
    },
}

/// How an account is called and served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    name: String,
    mode: Option<Mode>,
    max_in_flight: Option<u32>,
}

impl Settings {
    /// Those of an account.
    pub fn of(account: &Account) -> Self {
        let Account { name, mode, max_in_flight, .. } = account;
        Self { name: name.clone(), mode: *mode, max_in_flight: *max_in_flight }
    }

    fn change(&self) -> AccountChange {
        let Self { name, mode, max_in_flight } = self.clone();
        let (mode, max_in_flight) = (Some(mode), Some(max_in_flight));
        AccountChange { name: Some(name), mode, max_in_flight }
    }
}

/// What the store did with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The balance after a settlement.
    pub balance: Option<Credits>,
    /// The store had it already.
    pub duplicate: bool,
}

impl Operation {
    /// Whose it is.
    pub fn account(&self) -> &AccountId {
        match self {
            Self::CreateAccount { account, .. }
            | Self::RevokeKey { account, .. }
            | Self::Own { account, .. }
            | Self::Close { account, .. } => account,
            Self::ConfigureAccount { account, .. } => account,
            Self::CreateKey { key, .. } | Self::ChangeKey { after: key, .. } => &key.account,
            Self::Settle(settlement) => &settlement.account,
            Self::Grant(grant) => &grant.account,
            Self::Refund(undo) | Self::Reverse(undo) => &undo.account,
        }
    }

    /// What it goes by, for the log.
    pub fn id(&self) -> &str {
        match self {
            Self::CreateAccount { account, .. } => &account.0,
            Self::ConfigureAccount { account, .. } => &account.0,
            Self::CreateKey { key, .. } | Self::ChangeKey { after: key, .. } => &key.id,
            Self::RevokeKey { key, .. } => key,
            Self::Settle(settlement) => &settlement.id,
            Self::Own { object, .. } => object,
            Self::Grant(grant) => &grant.id,
            Self::Refund(undo) | Self::Reverse(undo) => &undo.id,
            Self::Close { id, .. } => id,
        }
    }

    /// Whether it waits for its account for as long as that takes: it is part of a reply that
    /// somebody has.
    pub const fn is_kept(&self) -> bool {
        matches!(self, Self::Settle(_) | Self::Own { .. })
    }

    /// Sends it to a store.
    ///
    /// # Errors
    ///
    /// The store's, but for what says that it is there already.
    pub async fn send(&self, store: &dyn Store) -> Result<Taken, StoreError> {
        let granted = |granted: crate::store::Granted| Taken {
            balance: Some(granted.entry.balance_after),
            duplicate: granted.duplicate,
        };
        let was_there = |error| match error {
            StoreError::Conflict(_) => Ok(Taken { balance: None, duplicate: true }),
            error => Err(error),
        };
        // Where the store does not say whether it was there, nothing can be said of it either.
        let done = Taken { balance: None, duplicate: true };
        match self {
            Self::CreateAccount { account, name } => {
                let made = store.create_account(account.clone(), name.clone()).await;
                made.map(|_| Taken { duplicate: false, ..done }).or_else(was_there)
            }
            Self::CreateKey { key, hash } => {
                let made = store.create_key(Key::clone(key), KeyHash(*hash)).await;
                made.map(|_| Taken { duplicate: false, ..done }).or_else(was_there)
            }
            Self::ChangeKey { before, after } => {
                let keys = store.keys(&after.account).await?;
                if !keys.contains(before) || before == after {
                    return Ok(done);
                }
                let change = KeyChange::to(after);
                let changed = store.change_key(&after.account, &after.id, change).await;
                changed.map(|_| Taken { duplicate: false, ..done })
            }
            Self::ConfigureAccount { account, before, after } => {
                let now = Settings::of(&store.account(account).await?);
                if now != *before || before == after {
                    return Ok(done);
                }
                let changed = store.configure_account(account, after.change()).await;
                changed.map(|_| Taken { duplicate: false, ..done })
            }
            Self::RevokeKey { account, key } => store.revoke_key(account, key).await.map(|_| done),
            Self::Settle(settlement) => {
                let Settled { balance, duplicate } =
                    store.settle(Settlement::clone(settlement)).await?;
                Ok(Taken { balance, duplicate })
            }
            Self::Own { account, object } => store.own(account, object).await.map(|()| done),
            Self::Grant(grant) => store.grant(grant.clone()).await.map(granted),
            Self::Refund(undo) => store.refund(undo.clone()).await.map(granted),
            Self::Reverse(undo) => store.reverse(undo.clone()).await.map(granted),
            Self::Close { account, id } => {
                store.close_account(account, id.clone()).await.map(|_| done)
            }
        }
    }
}
