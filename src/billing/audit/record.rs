//! What was written of an account, as stores hand it over to be audited.

use super::Checkpoint;
use crate::billing::ledger::{Kind, Lot, Part};
use crate::billing::{Credits, Total};
use crate::time::Millis;

/// Something that was written of an account. First [`Record::Account`], the checkpoint, lots
/// and holds; then entries and requests as they come in time, and the sums of an hour once all
/// its entries and requests have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The account itself.
    Account(Head),
    /// What was trimmed.
    Checkpoint(Box<Checkpoint>),
    /// A lot.
    Lot(GrantedLot),
    /// What is held for a request that runs.
    Hold(Hold),
    /// An entry.
    Entry(Line),
    /// A request.
    Request(Request),
    /// A sum over requests.
    Sum(HourSum),
}

/// An account as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its balance.
    pub balance: Credits,
    /// What was used beyond all lots.
    pub debt: Credits,
    /// The number of its last entry.
    pub seq: u64,
    /// The instant of what was written last.
    pub ts: Millis,
    /// What is held for its requests.
    pub held: Credits,
}

/// A lot and the entry that granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantedLot {
    /// The lot as it is written.
    pub lot: Lot,
    /// The number of the entry.
    pub entry: u64,
}

/// What is held for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The request.
    pub request: String,
    /// How much.
    pub amount: Credits,
    /// It is settled already, so nothing should be.
    pub settled: bool,
}

/// What the store remembers of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Its entry.
    Entry(u64),
    /// Nothing.
    Unknown,
    /// Nothing any more: it is so old that the store need not remember it.
    Forgotten,
}

/// An entry as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number.
    pub seq: u64,
    /// When.
    pub ts: Millis,
    /// What it is about.
    pub kind: Kind,
    /// Signed.
    pub amount: Credits,
    /// The balance with it.
    pub balance_after: Credits,
    /// The operation behind it.
    pub reference: String,
    /// What the store remembers of that operation.
    pub operation: Operation,
    /// What the amount is made of.
    pub parts: Vec<Part>,
}

/// A request as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its id, which is the reference of its debit.
    pub id: String,
    /// When it was settled.
    pub ts: Millis,
    /// What it is summed by.
    pub group: Group,
    /// What it used and cost.
    pub counts: Counts,
    /// It reached its end, so it has an entry even if it cost nothing.
    pub completed: bool,
    /// The process died while it ran; it costs nothing.
    pub abandoned: bool,
    /// It was abandoned, and was settled too: then the settlement's row is the only one.
    pub also_settled: bool,
}

/// What requests of an hour are summed by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// The model.
    pub model: String,
    /// The key.
    pub key: String,
    /// The tag; empty: none.
    pub tag: String,
    /// The upstream; empty: none.
    pub upstream: String,
}

/// What one request or several used and cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests.
    pub requests: i64,
    /// Tokens: input, cached input, cache creation, output.
    pub tokens: [i64; 4],
    /// What they cost.
    pub charge: Total,
    /// Those of which some counts are ours.
    pub estimated: i64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self, sign: i64) {
        self.requests += sign * other.requests;
        for (sum, tokens) in self.tokens.iter_mut().zip(other.tokens) {
            *sum += sign * tokens;
        }
        self.charge += if sign < 0 { -other.charge } else { other.charge };
        self.estimated += sign * other.estimated;
    }
}

/// The sum over the requests of one hour and group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HourSum {
    /// Hours since 1970.
    pub hour: i64,
    /// Of which.
    pub group: Group,
    /// The sum.
    pub counts: Counts,
}
