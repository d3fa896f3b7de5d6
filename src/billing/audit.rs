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

use super::ledger::{Kind, LedgerError, Lot, Part, Place};
use super::{Credits, Total};
use crate::time::Millis;

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
    fn add(&mut self, other: &Self, sign: i64) {
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
struct Terms {
    granted: Credits,
    remaining: Credits,
    used: Credits,
    expired: Credits,
    to_debt: Credits,
    forfeited: Credits,
    reversed: Credits,
}

impl Terms {
    fn of(lot: &Lot) -> Self {
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
    lots: BTreeMap<u64, Terms>,
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

    fn of_kind(&self, kind: Kind) -> Sum {
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
    fn apply(&mut self, line: &Line, granted: &[u64]) {
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

/// Something that does not add up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Violation {
    /// Where; absent: over all accounts.
    pub account: Option<String>,
    /// What does not hold.
    pub invariant: Invariant,
    /// What was found, in one sentence.
    pub sentence: String,
}

/// What was looked at, and how much of it does not add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tally {
    /// Accounts.
    pub accounts: u64,
    /// Entries, without those that were trimmed.
    pub entries: u64,
    /// Entries that were trimmed, which checkpoints stand for.
    pub trimmed: u64,
    /// Requests.
    pub requests: u64,
    /// Requests that were cut off when the process ended, and cost nothing.
    pub abandoned: u64,
    /// Lots.
    pub lots: u64,
    /// Requests that run and for which something is held or noted.
    pub holds: u64,
    /// Ids of operations that the store need not remember any more.
    pub forgotten: u64,
    /// For each invariant, in order, how often it was looked at.
    pub checks: [u64; 11],
    /// For each invariant, in order, how often it did not hold.
    pub violations: [u64; 11],
    /// What all balances sum to.
    #[schema(value_type = String)]
    pub balance: Total,
    /// What all entries sum to, by kind.
    #[schema(value_type = Object)]
    pub kinds: BTreeMap<String, Total>,
}

impl Tally {
    /// Adds what was found in another account.
    pub fn add(&mut self, other: &Self) {
        self.accounts += other.accounts;
        self.entries += other.entries;
        self.trimmed += other.trimmed;
        self.requests += other.requests;
        self.abandoned += other.abandoned;
        self.lots += other.lots;
        self.holds += other.holds;
        self.forgotten += other.forgotten;
        for at in 0..self.checks.len() {
            self.checks[at] += other.checks[at];
            self.violations[at] += other.violations[at];
        }
        self.balance += other.balance;
        for (kind, amount) in &other.kinds {
            *self.kinds.entry(kind.clone()).or_default() += *amount;
        }
    }

    /// Everything that did not hold.
    pub fn problems(&self) -> u64 {
        self.violations.iter().sum()
    }

    /// Compares all accounts together.
    pub fn close(&mut self) -> Option<Violation> {
        let at = Invariant::I10.index();
        self.checks[at] += 1;
        let entries = self.kinds.values().fold(Total::ZERO, |sum, amount| sum + *amount);
        if entries == self.balance {
            return None;
        }
        self.violations[at] += 1;
        let sentence =
            format!("over all accounts, entries sum to {entries} and balances to {}", self.balance);
        Some(Violation { account: None, invariant: Invariant::I10, sentence })
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
