//! The names of keys. All of an account have its id in braces, so that a cluster keeps them
//! together and a script may touch them in one step.

use crate::key::{KeyHash, hex};
use crate::store::{AccountId, Scope};

/// A key of an account that exists once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// Hash: status, balance, number and time of the last entry, what is held, mode, and from when
    /// on places are lent ahead.
    Account,
    /// Sorted set: the lots that are not empty, in burn order.
    LotOrder,
    /// Hash: lot number → what became of it.
    Lots,
    /// Stream: the ledger, `<seq>-0`.
    Entries,
    /// Sorted set: the numbers of entries that are no debits.
    Others,
    /// Hash: id of an operator's operation → what it did. Kept for ever.
    Operations,
    /// Hash: number of an entry → how much of it was undone.
    Undone,
    /// Stream: a row for each request, `<ts>-<n>`.
    Usage,
    /// Sorted set: which sums there are, by hour.
    Hours,
    /// Hash: the sums, by hour, model, key, tag, upstream, origin, source and outcome.
    Hourly,
    /// Hash: hour or day that is over → all its sums as one text; made of the others by readers.
    Over,
    /// Sorted set: requests that run, by the end of their lease.
    Places,
    /// Hash: request that runs → what is known of it.
    Flights,
    /// Hash: process → how many places are lent to it ahead, and until when.
    Lent,
    /// Hash: key → how many of its requests run, and what is held for them.
    Running,
    /// Hash: abandoned request → its row, which a settlement replaces.
    Lost,
    /// Hash: id of a client key → the key.
    Keys,
    /// Hash: id of a client key → what admission asks of it.
    Terms,
    /// Hash: id of a client key with caps → what it has spent in each period, and when that ends.
    Spent,
    /// Hash: limit a minute and key → how full it is.
    Rates,
    /// Hash: what stands for entries and requests that were trimmed.
    Trimmed,
}

impl Name {
    /// How scripts call it.
    pub(super) const fn variable(self) -> &'static str {
        match self {
            Self::Account => "ACCT",
            Self::LotOrder => "LOTS",
            Self::Lots => "LOT",
            Self::Entries => "LED",
            Self::Others => "RARE",
            Self::Operations => "OP",
            Self::Undone => "UNDONE",
            Self::Usage => "USE",
            Self::Hours => "HOURS",
            Self::Hourly => "HOURLY",
            Self::Over => "OVER",
            Self::Places => "FLIGHT",
            Self::Flights => "FLY",
            Self::Lent => "LENT",
            Self::Running => "RUNNING",
            Self::Lost => "LOST",
            Self::Keys => "KEY",
            Self::Terms => "TERMS",
            Self::Spent => "SPENT",
            Self::Rates => "RATE",
            Self::Trimmed => "TRIMMED",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Account => "acct",
            Self::LotOrder => "lots",
            Self::Lots => "lot",
            Self::Entries => "led",
            Self::Others => "rare",
            Self::Operations => "op",
            Self::Undone => "undone",
            Self::Usage => "use",
            Self::Hours => "hours",
            Self::Hourly => "hourly",
            Self::Over => "over",
            Self::Places => "flight",
            Self::Flights => "fly",
            Self::Lent => "lent",
            Self::Running => "running",
            Self::Lost => "lost",
            Self::Keys => "keys",
            Self::Terms => "terms",
            Self::Spent => "spent",
            Self::Rates => "rate",
            Self::Trimmed => "trimmed",
        }
    }
}

/// The names under one prefix.
#[derive(Clone)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    pub(super) fn of(&self, account: &AccountId, name: Name) -> String {
        self.join(account, name.suffix(), "")
    }

    /// What a settlement did, by its request.
    pub(super) fn request(&self, account: &AccountId, id: &str) -> String {
        self.join(account, "id:", id)
    }

    /// Who made an object.
    pub(super) fn object(&self, account: &AccountId, object: &str) -> String {
        self.join(account, "own:", object)
    }

    /// A document. Those of an account are kept with it.
    pub(super) fn document(&self, scope: &Scope, name: &str) -> String {
        match scope {
            Scope::Installation => format!("{}:doc:{name}", self.prefix),
            Scope::Account(account) => self.join(account, "doc:", name),
        }
    }

    fn join(&self, account: &AccountId, kind: &str, id: &str) -> String {
        let mut name =
            String::with_capacity(self.prefix.len() + account.0.len() + kind.len() + id.len() + 4);
        for part in [self.prefix.as_str(), ":{", &account.0, "}:", kind, id] {
            name.push_str(part);
        }
        name
    }

    /// Whose key a hash is.
    pub(super) fn key(&self, hash: &KeyHash) -> String {
        format!("{}:key:{}", self.prefix, hex(&hash.0))
    }

    /// Sorted set: every account.
    pub(super) fn accounts(&self) -> String {
        format!("{}:accounts", self.prefix)
    }

    /// Sorted set: accounts in which something is due, by when.
    pub(super) fn due(&self) -> String {
        format!("{}:due", self.prefix)
    }

    /// What the scripts need not know: a key without the prefix, and with it.
    pub(super) fn bare<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.prefix)?.strip_prefix(':')
    }

    /// The key of which [`Names::bare`] is the rest.
    pub(super) fn whole(&self, bare: &str) -> String {
        format!("{}:{bare}", self.prefix)
    }

    /// There while a copy is put back.
    pub(super) fn restoring(&self) -> String {
        self.whole("restoring")
    }

    /// A word for the history that a copy began.
    pub(super) fn generation(&self) -> String {
        self.whole("generation")
    }

    /// Which processes of the server write to a file that they have begun.
    pub(super) fn files(&self) -> String {
        self.whole("files")
    }

    /// Written to find out whether anything can be.
    pub(super) fn probe(&self) -> String {
        format!("{}:probe", self.prefix)
    }
}
