//! The books of an account as they are written, for an audit: read in one snapshot, while
//! requests go on.

use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::mpsc;

use super::sql::{Count, Fault, Word};
use super::{HOUR_MS, trim};
use crate::billing::Credits;
use crate::billing::audit::{
    Counts, GrantedLot, Group, Head, Hold, HourSum, Line, Operation, Record, Request,
};
use crate::billing::ledger::{LedgerError, Lot};
use crate::store::embedded::lots;
use crate::store::{AccountId, Entry, Millis, Outcome, Page, Rows, Source};

/// Records that are handed over together.
const BATCH: usize = 1000;

/// What begins the name of an account that does not exist and of which records are there.
const LOST: char = '~';

/// Accounts of which anything is written, by id; at the end those that do not exist.
pub(super) fn accounts(db: &Connection, page: &Page) -> Result<Rows<AccountId>, Fault> {
    let mut next = db.prepare_cached(
        "SELECT min(id) FROM (
             SELECT min(id) AS id FROM account WHERE id > ?1
             UNION ALL SELECT min(account) FROM lot WHERE account > ?1
             UNION ALL SELECT min(account) FROM usage_hour WHERE account > ?1
             UNION ALL SELECT min(account) FROM checkpoint WHERE account > ?1)",
    )?;
    let mut data = Vec::new();
    let mut after = page.cursor.clone().unwrap_or_default();
    while data.len() < page.limit as usize {
        let Some(id) = next.query_row([&after], |row| row.get::<_, Option<AccountId>>(0))? else {
            data.extend(lost_accounts(db)?);
            return Ok(Rows { data, next: None });
        };
        after = id.to_string();
        data.push(id);
    }
    Ok(Rows { data, next: Some(after) })
}

/// Names for accounts that records speak of and that do not exist.
fn lost_accounts(db: &Connection) -> Result<Vec<AccountId>, Fault> {
    let mut next = db.prepare_cached("SELECT min(account) FROM record WHERE account > ?")?;
    let mut exists = db.prepare_cached("SELECT 1 FROM account WHERE n = ?")?;
    let mut lost = Vec::new();
    let mut after = i64::MIN;
    while let Some(n) = next.query_row([after], |row| row.get::<_, Option<i64>>(0))? {
        after = n;
        if !exists.exists([n])? {
            lost.push(AccountId(format!("{LOST}{n}").into()));
        }
    }
    Ok(lost)
}

/// What records name an account by; none if it has no records at all.
fn number(db: &Connection, account: &AccountId) -> rusqlite::Result<Option<i64>> {
    if let Some(n) = account.0.strip_prefix(LOST) {
        return Ok(n.parse().ok());
    }
    db.prepare_cached("SELECT n FROM account WHERE id = ?")?
        .query_row([account], |row| row.get(0))
        .optional()
}

/// Where records go. Nobody may listen any more: then nothing more is read.
struct Out {
    sender: mpsc::Sender<Vec<Record>>,
    batch: Vec<Record>,
}

struct NobodyListens;

impl Out {
    fn send(&mut self, record: Record) -> Result<(), NobodyListens> {
        self.batch.push(record);
        if self.batch.len() < BATCH { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), NobodyListens> {
        let batch = std::mem::take(&mut self.batch);
        self.sender.blocking_send(batch).map_err(|_| NobodyListens)
    }
}

/// Why reading ended early.
enum Stop {
    Fault(Fault),
    NobodyListens,
}

impl From<NobodyListens> for Stop {
    fn from(_: NobodyListens) -> Self {
        Self::NobodyListens
    }
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error::{
            FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType,
        };
        Self::Fault(match error {
            // It was read, and is nothing that we write.
            FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) => {
                LedgerError::Unsound.into()
            }
            error => error.into(),
        })
    }
}

/// Hands over all records of an account, in the order of [`Record`].
pub(super) fn read(
    db: &Connection,
    account: &AccountId,
    held: Credits,
    holds: Vec<Hold>,
    sender: mpsc::Sender<Vec<Record>>,
) -> Result<(), Fault> {
    let mut out = Out { sender, batch: Vec::new() };
    let all = read_state(db, account, held, holds, &mut out)
        .and_then(|()| read_history(db, account, &mut out))
        .and_then(|()| Ok(out.flush()?));
    match all {
        Ok(()) | Err(Stop::NobodyListens) => Ok(()),
        Err(Stop::Fault(fault)) => Err(fault),
    }
}

fn read_state(
    db: &Connection,
    account: &AccountId,
    held: Credits,
    holds: Vec<Hold>,
    out: &mut Out,
) -> Result<(), Stop> {
    let mut heads = db.prepare_cached("SELECT balance, seq, last_ts FROM account WHERE id = ?")?;
    let mut rows = heads.query([account])?;
    if let Some(row) = rows.next()? {
        let balance: Credits = row.get(0)?;
        // Not stored: it is the part of the balance below zero.
        let debt = (-balance).max(Credits::ZERO);
        let Count(seq) = row.get(1)?;
        out.send(Record::Account(Head { balance, debt, seq, ts: row.get(2)?, held }))?;
    }
    if let Some(checkpoint) = trim::checkpoint(db, account)? {
        out.send(Record::Checkpoint(Box::new(checkpoint)))?;
    }
    let sql = format!("SELECT {}, seq FROM lot WHERE account = ? ORDER BY lot", lots::COLUMNS);
    let mut lots = db.prepare_cached(&sql)?;
    let mut rows = lots.query([account])?;
    while let Some(row) = rows.next()? {
        let Count(entry) = row.get("seq")?;
        out.send(Record::Lot(GrantedLot { lot: Lot::read(row)?, entry }))?;
    }
    let noted = noted(db, account, &holds)?;
    for hold in holds.into_iter().chain(noted) {
        out.send(Record::Hold(hold))?;
    }
    Ok(())
}

/// Requests that are noted on disk, as far as memory does not speak of them.
fn noted(db: &Connection, account: &AccountId, holds: &[Hold]) -> Result<Vec<Hold>, Stop> {
    let mut flights = db.prepare_cached(
        "SELECT id, EXISTS (
             SELECT 1 FROM record WHERE record.id = flight.id AND fingerprint IS NOT NULL
                 AND record.account = (SELECT n FROM account WHERE account.id = flight.account))
         FROM flight WHERE account = ?",
    )?;
    let mut noted: Vec<Hold> = flights
        .query_map([account], |row| {
            let (request, settled) = (row.get(0)?, row.get(1)?);
            Ok(Hold { request, amount: Credits::ZERO, settled })
        })?
        .collect::<Result<_, _>>()?;
    noted.retain(|flight| {
        flight.settled || !holds.iter().any(|hold| hold.request == flight.request)
    });
    Ok(noted)
}

/// Rows of a statement, the next one read ahead.
struct Ahead<'s, T> {
    rows: rusqlite::Rows<'s>,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
    next: Option<T>,
}

impl<'s, T> Ahead<'s, T> {
    fn of(
        rows: rusqlite::Rows<'s>,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Self, Stop> {
        let mut this = Self { rows, read, next: None };
        this.take()?;
        Ok(this)
    }

    fn take(&mut self) -> Result<Option<T>, Stop> {
        let following = self.rows.next()?.map(self.read).transpose()?;
        Ok(std::mem::replace(&mut self.next, following))
    }
}

/// What happened to an account, in order. A record is an entry, a request, or both. By its id an
/// operation is found again: what is found there is what the store remembers of it.
const RECORDS: &str = "
    SELECT ts, seq, sub, id, kind, amount, balance_after, note, undoes, lot, parts,
        key, model, coalesce(tag, '') AS tag, upstream, input, cached,
        cache_creation_5m + cache_creation_1h AS cache_creation, output, outcome, source,
        (SELECT known.seq FROM record AS known
         WHERE known.id = record.id AND known.account = record.account) AS operation
    FROM record WHERE account = ?";

/// A record, as the two that it may be.
pub(super) struct Both {
    ts: Millis,
    pub(super) line: Option<Line>,
    request: Option<Request>,
}

/// What happened to an account before an instant.
pub(super) fn lines_before(db: &Connection, n: i64, until: Millis) -> rusqlite::Result<Vec<Line>> {
    let mut records =
        db.prepare_cached(&format!("{RECORDS} AND ts < ? AND sub = 0 ORDER BY ts, seq"))?;
    let lines = records.query_map(params![n, until], read_both)?;
    lines.filter_map(|both| both.map(|both| both.line).transpose()).collect()
}

/// Entries, requests and sums, merged by time.
fn read_history(db: &Connection, account: &AccountId, out: &mut Out) -> Result<(), Stop> {
    let mut records = db.prepare_cached(&format!("{RECORDS} ORDER BY ts, seq, sub"))?;
    let mut sums = db.prepare_cached(
        "SELECT * FROM usage_hour WHERE account = ? ORDER BY hour, model, key, tag, upstream",
    )?;
    let n = number(db, account)?;
    let mut records = Ahead::of(records.query([n])?, read_both)?;
    let mut sums = Ahead::of(sums.query([account])?, read_sum)?;
    loop {
        // A sum comes after all that happened before its hour has ended.
        let hour_ends =
            sums.next.as_ref().map(|sum| sum.hour.saturating_add(1).saturating_mul(HOUR_MS));
        let happened = records.next.as_ref().map(|both| both.ts);
        let sum_is_next = match (hour_ends, happened) {
            (Some(ends), Some(ts)) => ends <= ts,
            (ends, _) => ends.is_some(),
        };
        if sum_is_next {
            let sum = sums.take()?;
            out.send(Record::Sum(sum.expect("it is there")))?;
        } else if let Some(Both { line, request, .. }) = records.take()? {
            for record in line.map(Record::Entry).into_iter().chain(request.map(Record::Request)) {
                out.send(record)?;
            }
        } else {
            return Ok(());
        }
    }
}

fn read_both(row: &Row<'_>) -> rusqlite::Result<Both> {
    let ts = row.get("ts")?;
    let line = match row.get::<_, i64>("sub")? {
        0 => Some(read_line(row)?),
        _ => None,
    };
    let outcome: Option<Word<Outcome>> = row.get("outcome")?;
    let request = outcome.map(|Word(outcome)| read_request(row, outcome)).transpose()?;
    Ok(Both { ts, line, request })
}

fn read_line(row: &Row<'_>) -> rusqlite::Result<Line> {
    let Entry { seq, ts, kind, amount, balance_after, reference, parts, .. } = Entry::read(row)?;
    let known: Option<Count> = row.get("operation")?;
    let operation = known.map_or(Operation::Unknown, |Count(seq)| Operation::Entry(seq));
    Ok(Line { seq, ts, kind, amount, balance_after, reference, operation, parts })
}

fn read_request(row: &Row<'_>, outcome: Outcome) -> rusqlite::Result<Request> {
    let source = row.get::<_, Word<Source>>("source")?.0;
    // What it cost is the amount of its entry.
    let amount: Option<Credits> = row.get("amount")?;
    let charge = -amount.unwrap_or(Credits::ZERO);
    Ok(Request {
        id: row.get("id")?,
        ts: row.get("ts")?,
        group: read_group(row)?,
        counts: Counts {
            requests: 1,
            tokens: read_tokens(row)?,
            charge: charge.into(),
            estimated: i64::from(source == Source::Estimated),
        },
        completed: outcome == Outcome::Completed,
        abandoned: outcome == Outcome::Abandoned,
        // An id has one row there.
        also_settled: false,
    })
}

fn read_sum(row: &Row<'_>) -> rusqlite::Result<HourSum> {
    let charge: Credits = row.get("charge")?;
    Ok(HourSum {
        hour: row.get("hour")?,
        group: read_group(row)?,
        counts: Counts {
            requests: row.get("requests")?,
            tokens: read_tokens(row)?,
            charge: charge.into(),
            estimated: row.get("estimated")?,
        },
    })
}

fn read_group(row: &Row<'_>) -> rusqlite::Result<Group> {
    Ok(Group {
        model: row.get("model")?,
        key: row.get("key")?,
        tag: row.get("tag")?,
        upstream: row.get("upstream")?,
    })
}

fn read_tokens(row: &Row<'_>) -> rusqlite::Result<[i64; 4]> {
    Ok([row.get("input")?, row.get("cached")?, row.get("cache_creation")?, row.get("output")?])
}
