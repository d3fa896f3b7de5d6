//! Whether the books of an account add up: everything that was written of it, read again.
//!
//! A store feeds an [`Audit`] with [`Record`]s, as they were at one instant and in the order
//! that [`Record`] gives. Entries are replayed, so what is compared is what the ledger itself
//! says. Memory does not grow with entries or requests: only with lots, with what is held, and
//! with the groups of one hour.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ledger::Kind;
use super::{Credits, Total};
use crate::time::Millis;
use checkpoint::Terms;

mod checkpoint;
mod record;
mod tally;

pub use checkpoint::{Checkpoint, Sum};
pub use record::{
    Counts, GrantedLot, Group, Head, Hold, HourSum, Line, Operation, Record, Request,
};
pub use tally::{Tally, Violation};

/// Milliseconds in an hour.
const HOUR_MS: Millis = 3_600_000;
/// Sentences kept of one invariant in one account; the rest is only counted.
const SENTENCES: u64 = 10;

/// What holds at every instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Invariant {
    /// The amounts of the entries sum to the balance.
    I1,
    /// The balance is what lots have left, less the debt.
    I2,
    /// While there is debt, every lot is empty.
    I3,
    /// What a lot was granted is the sum of what became of it, as the entries say.
    I4,
    /// The sequence has no gap, and each entry's balance is the one before it and its amount.
    I5,
    /// The parts of an entry sum to its amount.
    I6,
    /// One operation has one entry.
    I7,
    /// The sums by hour, model, key, tag and upstream are those of the requests.
    I8,
    /// What is held is the sum of what is held for requests that run.
    I9,
    /// Over all accounts: what came in is what was used, ended or was taken back, and what is
    /// left.
    I10,
    /// Each settled request has one debit of its charge, and each debit one request.
    I11,
}

impl Invariant {
    /// All of them, in order.
    pub const ALL: [Self; 11] = [
        Self::I1,
        Self::I2,
        Self::I3,
        Self::I4,
        Self::I5,
        Self::I6,
        Self::I7,
        Self::I8,
        Self::I9,
        Self::I10,
        Self::I11,
    ];

    /// What it says, in a few words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::I1 => "entries sum to the balance",
            Self::I2 => "the balance is what lots have left, less the debt",
            Self::I3 => "no lot has anything left while there is debt",
            Self::I4 => "each lot is the sum of what became of it",
            Self::I5 => "entries follow one another without a gap",
            Self::I6 => "parts sum to their entry",
            Self::I7 => "one entry for each operation",
            Self::I8 => "hourly sums are those of the requests",
            Self::I9 => "what is held is held for requests that run",
            Self::I10 => "what came in is what went out and what is left",
            Self::I11 => "each settled request has its one debit",
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The audit of one account.
#[derive(Default)]
pub struct Audit {
    account: String,
    head: Option<Head>,
    /// Where the entries stand, from a checkpoint or from nothing.
    ledger: Checkpoint,
    /// Before this, requests are gone and their sums are kept.
    trimmed_before: Option<Millis>,
    trimmed: Sum,
    sum: Total,
    lots: BTreeMap<u64, GrantedLot>,
    granted_by: HashMap<u64, Vec<u64>>,
    held: Total,
    now: Moment,
    hour: Hour,
    /// What requests cost in hours of which some are gone: by the requests, and by the sums.
    trimmed_requests: Total,
    trimmed_sums: Total,
    tally: Tally,
    violations: Vec<Violation>,
}

/// Debits and requests of one millisecond that wait for one another.
#[derive(Default)]
struct Moment {
    at: Millis,
    debits: HashMap<String, (u64, Credits)>,
    requests: HashMap<String, Request>,
}

/// What the requests of one hour sum to, less what the store says.
#[derive(Default)]
struct Hour {
    hour: i64,
    rest: BTreeMap<Group, Counts>,
}

impl Audit {
    /// Begins with an account.
    pub fn of(account: &str) -> Self {
        let tally = Tally { accounts: 1, ..Tally::default() };
        Self { account: account.to_owned(), tally, ..Self::default() }
    }

    /// Takes the next record.
    pub fn take(&mut self, record: Record) {
        match record {
            Record::Account(head) => self.head = Some(head),
            Record::Checkpoint(checkpoint) => self.resume(*checkpoint),
            Record::Lot(lot) => self.lot(lot),
            Record::Hold(hold) => self.hold(&hold),
            Record::Entry(line) => self.entry(line),
            Record::Request(request) => self.request(request),
            Record::Sum(sum) => self.hour_sum(sum),
        }
    }

    /// Ends it: what was found, and what does not add up.
    pub fn finish(mut self) -> (Tally, Vec<Violation>) {
        self.end_instant();
        self.end_hour();
        match self.head {
            Some(head) => self.compare(head),
            None => self.fails(Invariant::I10, || {
                "entries or requests are written of an account that does not exist".to_owned()
            }),
        }
        self.compare_lots();
        self.compare_trimmed();
        for (kind, sum) in &self.ledger.kinds {
            self.tally.kinds.insert(kind.clone(), sum.amount);
        }
        self.tally.trimmed = self.trimmed.count;
        (self.tally, self.violations)
    }

    /// Where the entries stand; for a checkpoint, if nothing contradicts them.
    pub fn ledger(&self) -> &Checkpoint {
        &self.ledger
    }

    /// How often something did not add up so far.
    pub fn problems(&self) -> u64 {
        self.tally.problems()
    }

    fn holds(&mut self, invariant: Invariant, is_so: bool, sentence: impl FnOnce() -> String) {
        self.tally.checks[invariant.index()] += 1;
        if !is_so {
            self.fails(invariant, sentence);
        }
    }

    fn fails(&mut self, invariant: Invariant, sentence: impl FnOnce() -> String) {
        let count = &mut self.tally.violations[invariant.index()];
        *count += 1;
        if *count <= SENTENCES {
            let account = Some(self.account.clone());
            self.violations.push(Violation { account, invariant, sentence: sentence() });
        }
    }

    fn resume(&mut self, checkpoint: Checkpoint) {
        self.trimmed_before = Some(checkpoint.requests_before);
        self.trimmed_requests = checkpoint.requests.amount;
        let (requests, debits) = (self.trimmed_requests, checkpoint.of_kind(Kind::DebitAi).amount);
        self.holds(Invariant::I11, requests == -debits, || {
            format!("the trimmed requests cost {requests}, the trimmed debits sum to {debits}")
        });
        self.trimmed = checkpoint.total();
        self.sum = self.trimmed.amount;
        self.ledger = checkpoint;
    }

    fn lot(&mut self, granted: GrantedLot) {
        let GrantedLot { lot, entry } = granted;
        self.tally.lots += 1;
        self.holds(Invariant::I4, lot.adds_up(), || {
            let Terms { granted, remaining, used, expired, to_debt, forfeited, reversed } =
                Terms::of(&lot);
            format!(
                "lot {} was granted {granted}, which is not {remaining} left + {used} used + \
                 {expired} expired + {to_debt} to debt + {forfeited} forfeited + {reversed} \
                 reversed, each at least 0",
                lot.number
            )
        });
        self.granted_by.entry(entry).or_default().push(lot.number);
        self.lots.insert(lot.number, granted);
    }

    fn hold(&mut self, hold: &Hold) {
        self.tally.holds += 1;
        self.held += hold.amount;
        self.holds(Invariant::I9, !hold.amount.is_negative(), || {
            format!("{} is held for {}, less than nothing", hold.amount, hold.request)
        });
        self.holds(Invariant::I9, !hold.settled, || {
            format!("the request {} still has its place, although it is settled", hold.request)
        });
    }

    fn entry(&mut self, line: Line) {
        self.advance(line.ts);
        self.tally.entries += 1;
        let Line { seq, ts, amount, balance_after, .. } = line;
        let before = (self.ledger.seq, self.ledger.ts, self.ledger.balance);
        self.holds(Invariant::I5, seq == before.0 + 1 && ts >= before.1, || {
            if seq == before.0 + 1 {
                format!("entry {seq} is older than entry {}", before.0)
            } else {
                format!("entry {} is followed by entry {seq}", before.0)
            }
        });
        self.holds(
            Invariant::I5,
            Total::from(before.2) + amount.into() == balance_after.into(),
            || {
                format!(
                    "entry {seq} of {amount} takes the balance from {} to {balance_after}",
                    before.2
                )
            },
        );
        let parts = line.parts.iter().fold(Total::ZERO, |sum, part| sum + part.amount.into());
        self.holds(Invariant::I6, parts == amount.into(), || {
            format!("the parts of entry {seq} sum to {parts}, its amount is {amount}")
        });
        // What is written about a lot refers to the lot.
        let has_operation = !matches!(line.kind, Kind::Expiry | Kind::Forfeit);
        if has_operation {
            self.operation(&line);
        }
        if line.kind == Kind::DebitAi {
            self.now.debits.insert(line.reference.clone(), (seq, -amount));
            self.match_up(&line.reference);
        }
        self.sum += amount;
        let granted = self.granted_by.get(&seq).cloned().unwrap_or_default();
        self.ledger.apply(&line, &granted);
    }

    fn operation(&mut self, line: &Line) {
        let Line { seq, reference, .. } = line;
        match line.operation {
            Operation::Entry(of) => self.holds(Invariant::I7, of == *seq, || {
                format!("entry {seq} is of the operation {reference}, as entry {of} is")
            }),
            Operation::Unknown => self.holds(Invariant::I7, false, || {
                format!("entry {seq} is of an operation that is not known: {reference}")
            }),
            Operation::Forgotten => self.tally.forgotten += 1,
        }
    }

    fn request(&mut self, request: Request) {
        self.advance(request.ts);
        self.tally.requests += 1;
        self.tally.abandoned += u64::from(request.abandoned);
        if request.abandoned {
            let charge = request.counts.charge;
            self.holds(Invariant::I11, charge == Total::ZERO, || {
                format!("the request {} was abandoned and costs {charge}", request.id)
            });
            self.holds(Invariant::I11, !request.also_settled, || {
                format!("the request {} is listed as abandoned, although it is settled", request.id)
            });
        }
        if self.trimmed_before.is_some_and(|before| request.ts < before) {
            self.trimmed_requests += request.counts.charge;
        } else {
            self.hour.rest.entry(request.group.clone()).or_default().add(&request.counts, 1);
        }
        let id = request.id.clone();
        self.now.requests.insert(id.clone(), request);
        self.match_up(&id);
    }

    /// Debit and request belong together by id and by the instant of their one step.
    fn match_up(&mut self, id: &str) {
        let (Some((seq, debit)), Some(request)) =
            (self.now.debits.get(id), self.now.requests.get(id))
        else {
            return;
        };
        let (seq, debit, charge) = (*seq, *debit, request.counts.charge);
        self.now.debits.remove(id);
        self.now.requests.remove(id);
        self.holds(Invariant::I11, charge == debit.into(), || {
            format!("entry {seq} debits {debit} for the request {id}, which costs {charge}")
        });
    }

    /// Time goes on; what belongs to what came before must have come.
    fn advance(&mut self, ts: Millis) {
        if ts > self.now.at {
            self.end_instant();
            self.now.at = ts;
        }
        self.enter_hour(ts.div_euclid(HOUR_MS));
    }

    fn end_instant(&mut self) {
        for (id, (seq, debit)) in std::mem::take(&mut self.now.debits) {
            self.holds(Invariant::I11, false, || {
                format!("entry {seq} debits {debit} for the request {id}, which is not listed then")
            });
        }
        for (id, request) in std::mem::take(&mut self.now.requests) {
            let charge = request.counts.charge;
            let owes = charge != Total::ZERO || request.completed;
            self.holds(Invariant::I11, !owes, || {
                format!("the request {id} costs {charge} and has no debit")
            });
        }
    }

    fn enter_hour(&mut self, hour: i64) {
        if hour > self.hour.hour {
            self.end_hour();
            self.hour.hour = hour;
        }
    }

    fn hour_sum(&mut self, sum: HourSum) {
        let begins = sum.hour.saturating_mul(HOUR_MS);
        if self.trimmed_before.is_some_and(|before| begins < before) {
            self.trimmed_sums += sum.counts.charge;
            return;
        }
        self.enter_hour(sum.hour);
        self.hour.rest.entry(sum.group).or_default().add(&sum.counts, -1);
    }

    fn end_hour(&mut self) {
        let hour = self.hour.hour;
        for (group, rest) in std::mem::take(&mut self.hour.rest) {
            self.holds(Invariant::I8, rest == Counts::default(), || {
                let Group { model, key, tag, upstream } = group;
                let Counts { requests, charge, .. } = rest;
                format!(
                    "the sums of hour {hour} for {model}, key {key}, tag {tag:?}, upstream \
                     {upstream:?} lack {requests} requests of {charge} (or differ in their tokens)"
                )
            });
        }
    }

    fn compare(&mut self, head: Head) {
        let (sum, last) = (self.sum, self.ledger.seq);
        self.tally.balance = head.balance.into();
        self.holds(Invariant::I1, sum == head.balance.into(), || {
            format!("the entries sum to {sum}, the balance is {}", head.balance)
        });
        self.holds(Invariant::I5, last == head.seq, || {
            format!("the last entry is {last}, the account counts {}", head.seq)
        });
        let remaining =
            self.lots.values().fold(Total::ZERO, |sum, lot| sum + lot.lot.remaining.into());
        let debt = self.ledger.debt;
        self.holds(Invariant::I2, remaining - debt.into() == head.balance.into(), || {
            format!(
                "lots have {remaining} left and the debt is {debt}, but the balance is {}",
                head.balance
            )
        });
        self.holds(Invariant::I2, debt == head.debt, || {
            format!("the entries leave a debt of {debt}, the account has {}", head.debt)
        });
        let in_debt = debt.is_positive() || head.debt.is_positive();
        self.holds(Invariant::I3, !in_debt || remaining == Total::ZERO, || {
            format!("there is a debt of {}, and lots have {remaining} left", debt.max(head.debt))
        });
        let held = self.held;
        self.holds(Invariant::I9, held == head.held.into() && !head.held.is_negative(), || {
            format!("{} is held, and requests that run hold {held}", head.held)
        });
    }

    fn compare_lots(&mut self) {
        let written = std::mem::take(&mut self.lots);
        let replayed = std::mem::take(&mut self.ledger.lots);
        for (number, GrantedLot { lot, entry }) in &written {
            let found = replayed.get(number).copied().unwrap_or_default();
            self.holds(Invariant::I4, found == Terms::of(lot), || {
                format!(
                    "lot {number} of entry {entry} has {} left of {}; by the entries it has {} \
                     of {} (or what became of the rest differs)",
                    lot.remaining, lot.granted, found.remaining, found.granted
                )
            });
        }
        for number in replayed.keys().filter(|number| !written.contains_key(number)) {
            self.fails(Invariant::I4, || {
                format!("entries speak of lot {number}, which does not exist")
            });
        }
        self.ledger.lots = replayed;
    }

    /// Requests that are gone are still in the sums.
    fn compare_trimmed(&mut self) {
        if self.trimmed_before.is_none() {
            return;
        }
        let (sums, requests) = (self.trimmed_sums, self.trimmed_requests);
        self.holds(Invariant::I8, sums == requests, || {
            format!(
                "in hours that were trimmed, requests cost {requests} and their sums say {sums}"
            )
        });
    }
}
