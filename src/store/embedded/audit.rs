//! The books of an account as they are written, for an audit: read in one snapshot, while
//! requests go on.

use rusqlite::{Connection, Row};
use tokio::sync::mpsc;

use super::HOUR_MS;
use super::sql::{Count, Fault, Word};
use crate::billing::Credits;
use crate::billing::audit::{
    Counts, GrantedLot, Group, Head, Hold, HourSum, Line, Operation, Record, Request,
};
use crate::billing::ledger::{LedgerError, Lot};
use crate::store::embedded::lots;
use crate::store::{AccountId, Entry, Millis, Outcome, Page, Rows, Source};

/// Records that are handed over together.
const BATCH: usize = 1000;

/// Whatever is written of an account, even if the account itself is not.
const TABLES: [(&str, &str); 3] =
    [("account", "id"), ("lot", "account"), ("usage_hour", "account")];

/// Accounts of which anything is written, by id.
pub(super) fn accounts(db: &Connection, page: &Page) -> Result<Rows<AccountId>, Fault> {
    let next_of = TABLES.map(|(table, column)| {
        format!("SELECT min({column}) AS id FROM {table} WHERE {column} > ?1")
    });
    let sql = format!("SELECT min(id) FROM ({})", next_of.join(" UNION ALL "));
    let mut next = db.prepare_cached(&sql)?;
    let mut data = Vec::new();
    let mut after = page.cursor.clone().unwrap_or_default();
    while data.len() < page.limit as usize {
        let Some(id) = next.query_row([&after], |row| row.get::<_, Option<AccountId>>(0))? else {
            return Ok(Rows { data, next: None });
        };
        after = id.to_string();
        data.push(id);
    }
    Ok(Rows { data, next: Some(after) })
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
        "SELECT flight.id, fingerprint IS NOT NULL FROM flight
         LEFT JOIN account ON account.id = flight.account
         LEFT JOIN record ON record.account = account.n AND record.id = flight.id
         WHERE flight.account = ?",
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

/// Entries, requests and sums, merged by time.
fn read_history(db: &Connection, account: &AccountId, out: &mut Out) -> Result<(), Stop> {
    let mut entries = db.prepare_cached(ENTRY_IN_ORDER)?;
    let mut requests = db.prepare_cached(
        "SELECT id, ts, model, key, coalesce(tag, '') AS tag, input, cached,
             cache_creation_5m + cache_creation_1h AS cache_creation, output,
             coalesce(-amount, 0) AS charge, outcome, source
         FROM record WHERE account = (SELECT n FROM account WHERE account.id = ?)
             AND outcome IS NOT NULL
         ORDER BY ts, seq, sub",
    )?;
    let mut sums = db.prepare_cached(
        "SELECT * FROM usage_hour WHERE account = ? ORDER BY hour, model, key, tag",
    )?;
    let mut entries = Ahead::of(entries.query([account])?, read_line)?;
    let mut requests = Ahead::of(requests.query([account])?, read_request)?;
    let mut sums = Ahead::of(sums.query([account])?, read_sum)?;
    loop {
        let entry = entries.next.as_ref().map(|line| line.ts);
        let request = requests.next.as_ref().map(|request| request.ts);
        // A sum comes after all that happened before its hour has ended.
        let sum = sums.next.as_ref().map(|sum| sum.hour.saturating_add(1).saturating_mul(HOUR_MS));
        let is_first = |at: Option<Millis>| {
            at.is_some_and(|at| [entry, request, sum].into_iter().flatten().all(|x| at <= x))
        };
        if is_first(sum) {
            out.send(Record::Sum(sums.take()?.expect("it is there")))?;
        } else if is_first(entry) {
            out.send(Record::Entry(entries.take()?.expect("it is there")))?;
        } else if is_first(request) {
            out.send(Record::Request(requests.take()?.expect("it is there")))?;
        } else {
            return Ok(());
        }
    }
}

/// Entries of an account in the order in which they were written. What time did has no
/// operation.
const ENTRY_IN_ORDER: &str = "SELECT ts, seq, kind, amount, balance_after, id, note, undoes,
        lot, parts, id IS NOT NULL AND fingerprint IS NOT NULL AS is_done
     FROM record WHERE account = (SELECT n FROM account WHERE account.id = ?) AND sub = 0
     ORDER BY ts, seq";

fn read_line(row: &Row<'_>) -> rusqlite::Result<Line> {
    let Entry { seq, ts, kind, amount, balance_after, reference, parts, .. } = Entry::read(row)?;
    let is_done = row.get("is_done")?;
    let operation = if is_done { Operation::Entry(seq) } else { Operation::Unknown };
    Ok(Line { seq, ts, kind, amount, balance_after, reference, operation, parts })
}

fn read_request(row: &Row<'_>) -> rusqlite::Result<Request> {
    let outcome = row.get::<_, Word<Outcome>>("outcome")?.0;
    let source = row.get::<_, Word<Source>>("source")?.0;
    let charge: Credits = row.get("charge")?;
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
    Ok(Group { model: row.get("model")?, key: row.get("key")?, tag: row.get("tag")? })
}

fn read_tokens(row: &Row<'_>) -> rusqlite::Result<[i64; 4]> {
    Ok([row.get("input")?, row.get("cached")?, row.get("cache_creation")?, row.get("output")?])
}
