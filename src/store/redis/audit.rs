//! The books of an account as they are written, for an audit.
//!
//! One script reads all that changes at one instant, and where the ledger and the requests end
//! then. What lies before is never changed, so it is read in steps while requests go on.

use std::collections::VecDeque;
use std::sync::Arc;

use redis::Value;
use tokio::sync::mpsc;

use super::hours::{Hour, Kept, split, sum_of};
use super::names::Name;
use super::read::Order;
use super::reply::{self, Odd, Reply};
use super::rows::{self, Item};
use super::{Shared, trim};
use crate::billing::Credits;
use crate::billing::audit::{
    Counts, GrantedLot, Group, Head, Hold, HourSum, Line, Operation, Record, Request,
};
use crate::billing::ledger::{Kind, LedgerError};
use crate::store::sums::HOUR_MS;
use crate::store::{AccountId, Entry, Millis, Outcome, Source, StoreError, UsageRow};

/// Records that are handed over together, and read together.
const BATCH: usize = 1000;
/// Hours whose sums are read together.
const HOURS: i64 = 240;

/// Where an account stood at one instant.
struct Instant {
    seq: u64,
    /// The place of the last request.
    last: String,
    /// Of what was written last; its sums may grow, so they are here.
    hour: i64,
    sums: VecDeque<HourSum>,
    changes: Changes,
}

/// How often something was changed that lies before an instant, which else never happens: by a
/// trim, and by the late settlement of a request that was listed as abandoned.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Changes {
    trimmed: u64,
    relisted: u64,
}

impl Shared {
    /// Hands over all records of an account, in the order of [`Record`].
    pub(super) async fn read_all(
        &self,
        account: &AccountId,
        records: mpsc::Sender<Vec<Record>>,
    ) -> Result<(), StoreError> {
        let Some((instant, state)) = self.read_state(account).await.map_err(unsound)? else {
            return Ok(());
        };
        if records.send(state).await.is_err() {
            return Ok(());
        }
        let changes = instant.changes;
        let mut history = History::new(self, account, instant);
        loop {
            let batch = history.next_batch().await.map_err(unsound)?;
            if batch.is_empty() {
                break;
            }
            if records.send(batch).await.is_err() {
                return Ok(());
            }
        }
        // What was to be read may have gone before it was.
        if self.changes(account).await? != changes {
            return Err(StoreError::Conflict(format!("{account} was changed while it was read")));
        }
        Ok(())
    }

    async fn changes(&self, account: &AccountId) -> Result<Changes, StoreError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.names.of(account, Name::Account)).arg("relisted");
        let relisted = reply::maybe(self.link.patient(&cmd).await?)?;
        let relisted = relisted.as_deref().map_or(Ok(0), reply::number)?;
        Ok(Changes { trimmed: self.checkpoint(account).await?.0, relisted })
    }

    /// The lots of an account and the entries that granted them.
    pub(super) async fn granted_lots(
        &self,
        account: &AccountId,
    ) -> Result<Vec<GrantedLot>, StoreError> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(self.names.of(account, Name::Lots));
        Ok(lots_of(Reply::of(self.link.patient(&cmd).await?)?)?)
    }

    async fn read_state(
        &self,
        account: &AccountId,
    ) -> Result<Option<(Instant, Vec<Record>)>, StoreError> {
        let call = self.call(&self.scripts.books_head, account, &[]);
        let mut answer = Reply::of(self.link.patient_run(&call).await?)?;
        if answer.text()? != "ok" {
            return Ok(None);
        }
        let balance = answer.credits()?;
        let (seq, ts, held) = (answer.number()?, answer.number()?, answer.credits()?);
        let (last, hour) = (answer.text()?, answer.number()?);
        let debt = (Credits::ZERO - balance).max(Credits::ZERO);
        let mut state = vec![Record::Account(Head { balance, debt, seq, ts, held })];
        let (trimmed, checkpoint) = trim::read(answer.list()?)?;
        if trimmed > 0 {
            state.push(Record::Checkpoint(Box::new(checkpoint)));
        }
        let mut lots = lots_of(answer.list()?)?;
        lots.sort_by_key(|granted| granted.lot.number);
        state.extend(lots.into_iter().map(Record::Lot));
        for (request, packed) in pairs(answer.list()?)? {
            let amount = reply::number(packed.split(' ').next().ok_or(Odd)?)?;
            let amount = Credits::from_nano(amount);
            let settled = self.is_settled_and_runs(account, &request).await?;
            state.push(Record::Hold(Hold { request, amount, settled }));
        }
        let mut sums = VecDeque::new();
        for sum in answer.list()? {
            let mut sum = Reply::of(sum)?;
            let name = sum.text()?;
            let (hour, of) = split(&name)?;
            let mut counts = [0; 7];
            for count in &mut counts {
                *count = sum.number()?;
            }
            sums.push_back(hour_sum(&Hour {
                hour,
                of: Arc::new(Kept::read(of)?),
                sum: sum_of(counts),
            }));
        }
        let changes = Changes { trimmed, relisted: answer.number()? };
        Ok(Some((Instant { seq, last, hour, sums, changes }, state)))
    }

    /// Whether a request has a place that it should have given back. A settlement gives it back
    /// in the same step, so one that is seen first and leaves the place there did not.
    async fn is_settled_and_runs(
        &self,
        account: &AccountId,
        request: &str,
    ) -> Result<bool, StoreError> {
        let ids = [self.names.request(account, request)];
        if self.operations(&ids, &[], account).await?[0].is_none() {
            return Ok(false);
        }
        let mut cmd = redis::cmd("HEXISTS");
        cmd.arg(self.names.of(account, Name::Flights)).arg(request);
        Ok(self.link.patient(&cmd).await? == Value::Int(1))
    }

    /// The entries of operations, of requests by their keys and of operators by their ids.
    async fn operations(
        &self,
        requests: &[String],
        operators: &[&str],
        account: &AccountId,
    ) -> Result<Vec<Option<String>>, StoreError> {
        let mut found = Vec::new();
        if !requests.is_empty() {
            let mut cmd = redis::cmd("MGET");
            cmd.arg(requests);
            found.extend(Reply::of(self.link.patient(&cmd).await?)?);
        }
        if !operators.is_empty() {
            let mut cmd = redis::cmd("HMGET");
            cmd.arg(self.names.of(account, Name::Operations)).arg(operators);
            found.extend(Reply::of(self.link.patient(&cmd).await?)?);
        }
        Ok(found.into_iter().map(reply::maybe).collect::<Result<_, _>>()?)
    }
}

/// What was read and is nothing that we write is a finding, not an outage.
fn unsound(error: StoreError) -> StoreError {
    if error.to_string() == StoreError::from(Odd).to_string() {
        LedgerError::Unsound.into()
    } else {
        error
    }
}

fn lots_of(packed: Reply) -> Result<Vec<GrantedLot>, Odd> {
    let lots = pairs(packed)?.into_iter().map(|(number, packed)| {
        let packed = format!("{number} {packed}");
        let entry = reply::number(packed.split(' ').nth(11).ok_or(Odd)?)?;
        Ok(GrantedLot { lot: rows::lot(&packed)?.lot, entry })
    });
    lots.collect()
}

fn pairs(mut list: Reply) -> Result<Vec<(String, String)>, Odd> {
    let mut pairs = Vec::new();
    while let Some(name) = list.next() {
        pairs.push((reply::text(name)?, list.text()?));
    }
    Ok(pairs)
}

/// Entries, requests and sums, merged by time.
struct History<'a> {
    shared: &'a Shared,
    account: &'a AccountId,
    instant: Instant,
    entries: VecDeque<Line>,
    /// Where the next step of entries begins; none: there are no more.
    next_entry: Option<String>,
    requests: VecDeque<Request>,
    next_request: Option<String>,
    sums: VecDeque<HourSum>,
    /// The first hour whose sums are not read yet.
    next_hour: Option<i64>,
}

impl<'a> History<'a> {
    fn new(shared: &'a Shared, account: &'a AccountId, instant: Instant) -> Self {
        let has_requests = !instant.last.is_empty();
        Self {
            shared,
            account,
            next_entry: (instant.seq > 0).then(|| "-".into()),
            next_request: has_requests.then(|| "-".into()),
            next_hour: Some(i64::MIN),
            instant,
            entries: VecDeque::new(),
            requests: VecDeque::new(),
            sums: VecDeque::new(),
        }
    }

    async fn next_batch(&mut self) -> Result<Vec<Record>, StoreError> {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            self.read_ahead().await?;
            let entry = self.entries.front().map(|line| line.ts);
            let request = self.requests.front().map(|request| request.ts);
            // A sum comes after all that happened before its hour has ended.
            let end = |sum: &HourSum| sum.hour.saturating_add(1).saturating_mul(HOUR_MS);
            let sum = self.sums.front().map(end);
            let is_first = |at: Option<Millis>| {
                at.is_some_and(|at| [entry, request, sum].into_iter().flatten().all(|x| at <= x))
            };
            let record = if is_first(sum) {
                self.sums.pop_front().map(Record::Sum)
            } else if is_first(entry) {
                self.entries.pop_front().map(Record::Entry)
            } else {
                self.requests.pop_front().map(Record::Request)
            };
            match record {
                Some(record) => batch.push(record),
                None => break,
            }
        }
        Ok(batch)
    }

    async fn read_ahead(&mut self) -> Result<(), StoreError> {
        if self.entries.is_empty()
            && let Some(low) = self.next_entry.take()
        {
            self.read_entries(low).await?;
        }
        if self.requests.is_empty()
            && let Some(low) = self.next_request.take()
        {
            self.read_requests(low).await?;
        }
        while self.sums.is_empty()
            && let Some(hour) = self.next_hour.take()
        {
            self.read_sums(hour).await?;
        }
        Ok(())
    }

    async fn read_entries(&mut self, low: String) -> Result<(), StoreError> {
        let key = self.shared.names.of(self.account, Name::Entries);
        let range = (low, format!("{}-0", self.instant.seq));
        let items = self.shared.stream(&key, range, Order::OldestFirst, BATCH).await?;
        if items.len() == BATCH {
            self.next_entry = items.last().map(|item| format!("({}", item.id));
        }
        let entries: Vec<Entry> = items.into_iter().map(Item::entry).collect::<Result<_, _>>()?;
        let is_request = |entry: &&Entry| entry.kind == Kind::DebitAi;
        let by_time = |entry: &&Entry| matches!(entry.kind, Kind::Expiry | Kind::Forfeit);
        let requests: Vec<_> = entries.iter().filter(is_request).collect();
        let operators: Vec<_> =
            entries.iter().filter(|entry| !is_request(entry) && !by_time(entry)).collect();
        let keys: Vec<_> = requests
            .iter()
            .map(|entry| self.shared.names.request(self.account, &entry.reference))
            .collect();
        let ids: Vec<_> = operators.iter().map(|entry| entry.reference.as_str()).collect();
        let found = self.shared.operations(&keys, &ids, self.account).await?;
        let remembered = self.shared.now().await? - millis(self.shared.remember);
        let mut operations = std::collections::HashMap::new();
        for (entry, found) in requests.iter().chain(&operators).zip(found) {
            let operation = match found.as_deref().map(|packed| packed.split(' ').nth(1)) {
                Some(Some(seq)) => Operation::Entry(reply::number(seq)?),
                Some(None) => return Err(Odd.into()),
                None if is_request(entry) && entry.ts < remembered => Operation::Forgotten,
                None => Operation::Unknown,
            };
            operations.insert(entry.seq, operation);
        }
        self.entries.extend(entries.into_iter().map(|entry| Line {
            operation: operations.get(&entry.seq).copied().unwrap_or(Operation::Unknown),
            seq: entry.seq,
            ts: entry.ts,
            kind: entry.kind,
            amount: entry.amount,
            balance_after: entry.balance_after,
            reference: entry.reference,
            parts: entry.parts,
        }));
        Ok(())
    }

    async fn read_requests(&mut self, low: String) -> Result<(), StoreError> {
        let key = self.shared.names.of(self.account, Name::Usage);
        let range = (low, self.instant.last.clone());
        let items = self.shared.stream(&key, range, Order::OldestFirst, BATCH).await?;
        if items.len() == BATCH {
            self.next_request = items.last().map(|item| format!("({}", item.id));
        }
        let rows: Vec<_> = items.into_iter().map(Item::usage).collect::<Result<_, _>>()?;
        let abandoned: Vec<_> = rows
            .iter()
            .filter(|row| row.outcome == Outcome::Abandoned)
            .map(|row| self.shared.names.request(self.account, &row.id))
            .collect();
        // Settled since the row was read: then it is gone, and all is read again.
        let settled = self.shared.operations(&abandoned, &[], self.account).await?;
        let mut settled = settled.into_iter();
        for row in rows {
            let also_settled =
                row.outcome == Outcome::Abandoned && settled.next().flatten().is_some();
            self.requests.push_back(Request { also_settled, ..request_of(row) });
        }
        Ok(())
    }

    async fn read_sums(&mut self, from: i64) -> Result<(), StoreError> {
        let first = match from {
            i64::MIN => self.shared.first_hour(self.account).await?,
            from => Some(from),
        };
        let Some(first) = first.filter(|first| *first < self.instant.hour) else {
            self.sums.append(&mut self.instant.sums);
            return Ok(());
        };
        let end = (first + HOURS).min(self.instant.hour);
        let found = self.shared.counts_and_texts(self.account, first..end).await?;
        self.sums.extend(found.iter().map(hour_sum));
        self.next_hour = Some(end);
        Ok(())
    }
}

fn hour_sum(Hour { hour, of, sum }: &Hour) -> HourSum {
    let Kept { model, key, tag, upstream, .. } = (**of).clone();
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    HourSum {
        hour: *hour,
        group: Group { model, key, tag, upstream },
        counts: Counts {
            requests: count(sum.requests),
            tokens: [
                count(sum.input_tokens),
                count(sum.cached_input_tokens),
                count(sum.cache_creation_tokens),
                count(sum.output_tokens),
            ],
            charge: sum.charge.into(),
            estimated: count(sum.estimated),
        },
    }
}

fn request_of(row: UsageRow) -> Request {
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    Request {
        id: row.id,
        ts: row.ts,
        group: Group {
            model: row.model,
            key: row.key,
            tag: row.attribution.tag.unwrap_or_default(),
            upstream: row.upstream,
        },
        counts: Counts {
            requests: 1,
            tokens: [
                count(row.input_tokens),
                count(row.cached_input_tokens),
                count(row.cache_creation_5m_tokens + row.cache_creation_1h_tokens),
                count(row.output_tokens),
            ],
            charge: row.charge.into(),
            estimated: i64::from(row.source == Source::Estimated),
        },
        completed: row.outcome == Outcome::Completed,
        abandoned: row.outcome == Outcome::Abandoned,
        also_settled: false,
    }
}

fn millis(wait: std::time::Duration) -> Millis {
    Millis::try_from(wait.as_millis()).unwrap_or(Millis::MAX)
}
