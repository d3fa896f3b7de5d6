//! What is read: accounts, keys and the pages of the ledger and of usage.
//!
//! Pages go by key, never by offset: page one thousand of a million rows costs what the first
//! one costs. What few rows have is found by an index; a model, a key or a tag by the sums of
//! usage, which tell the hours in which it was used.

use std::ops::Range;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params, params_from_iter};

use super::allowance::Terms;
use super::books::Pairs;
use super::live::{Flight, Snapshot, Ways};
use super::sql::{Count, Fault, Json, Word};
use super::{HOUR_MS, lots, summary};
use crate::billing::Credits;
use crate::billing::ledger::{Class, Kind, Part, Place};
use crate::key::KeyHash;
use crate::store::{
    Account, AccountId, Attribution, Candidate, Entry, EntryFilter, Key, LotFilter, LotRow, Millis,
    Outcome, Page, Rows, Source, StoreError, UsageFilter, UsageRow,
};

/// The largest page.
const PAGE: u32 = 500;

/// Which end of a list comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    NewestFirst,
    OldestFirst,
}

/// An account without the lots that have ended, written off or not. The first parameter is
/// the time.
const ACCOUNT: &str = "SELECT id, name, status, created_at, mode, max_in_flight, balance -
        (SELECT coalesce(sum(remaining), 0) FROM lot INDEXED BY lot_usable
         WHERE lot.account = id AND usable AND expires_at <= max(?, last_ts)) AS usable
     FROM account WHERE id";

/// What admission needs.
pub(super) fn snapshot(db: &Connection, id: &AccountId) -> Result<(Snapshot, Ways), Fault> {
    let lots = lots::usable(db, id)?.iter().map(|lot| (lot.expires_at, lot.remaining)).collect();
    db.prepare_cached(
        "SELECT balance, status, last_ts, seq, mode, max_in_flight FROM account WHERE id = ?",
    )?
    .query_row([id], |row| {
        let (Word(status), Count(seq)) = (row.get(1)?, row.get(3)?);
        let mode: Option<Word<_>> = row.get(4)?;
        let ways = Ways { mode: mode.map(|Word(mode)| mode), max_in_flight: row.get(5)? };
        Ok((Snapshot { balance: row.get(0)?, status, lots, ts: row.get(2)?, seq }, ways))
    })
    .optional()?
    .ok_or_else(|| no_account(id).into())
}

/// One account as it is now; what runs is not in the database.
pub(super) fn account(db: &Connection, id: &AccountId, now: Millis) -> Result<Account, Fault> {
    db.prepare_cached(&format!("{ACCOUNT} = ?"))?
        .query_row(params![now, id], Account::read)
        .optional()?
        .ok_or_else(|| no_account(id).into())
}

/// Accounts by id.
pub(super) fn accounts(db: &Connection, page: &Page, now: Millis) -> Result<Rows<Account>, Fault> {
    let limit = limit(page);
    let after = page.cursor.as_deref().unwrap_or_default();
    let data = db
        .prepare_cached(&format!("{ACCOUNT} > ? ORDER BY id LIMIT ?"))?
        .query_map(params![now, after, limit + 1], Account::read)?
        .collect::<Result<_, _>>()?;
    Ok(cut(data, limit, |account| account.id.to_string()))
}

pub(super) fn must_exist(db: &Connection, id: &AccountId) -> Result<(), Fault> {
    db.prepare_cached("SELECT 1 FROM account WHERE id = ?")?
        .exists([id])?
        .then_some(())
        .ok_or_else(|| no_account(id).into())
}

pub(super) fn no_account(id: &AccountId) -> StoreError {
    StoreError::NotFound(format!("account {id}"))
}

/// The key with a hash.
pub(super) fn key(db: &Connection, hash: &KeyHash) -> Result<Option<Key>, Fault> {
    let key = db
        .prepare_cached("SELECT * FROM key WHERE hash = ?")?
        .query_row([hash.0], Key::read)
        .optional()?;
    Ok(key)
}

/// A key of an account, and its hash.
pub(super) fn key_by_id(
    db: &Connection,
    account: &AccountId,
    id: &str,
) -> Result<(Key, KeyHash), Fault> {
    db.prepare_cached("SELECT * FROM key WHERE id = ? AND account = ?")?
        .query_row(params![id, account], |row| Ok((Key::read(row)?, KeyHash(row.get("hash")?))))
        .optional()?
        .ok_or_else(|| StoreError::NotFound(format!("key {id}")).into())
}

/// A key, and what it has spent of its caps: all of one moment, as every read is.
pub(super) fn terms(
    db: &Connection,
    account: &AccountId,
    id: &str,
    now: Millis,
) -> Result<Terms, Fault> {
    let (key, _) = key_by_id(db, account, id)?;
    let (Count(seq), ts): (Count, Millis) = db
        .prepare_cached("SELECT seq, last_ts FROM account WHERE id = ?")?
        .query_row([account], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Terms::read(key, seq, now.max(ts), |range| summary::spent(db, account, id, range))
}

/// The keys of an account, oldest first.
pub(super) fn keys(db: &Connection, account: &AccountId) -> Result<Vec<Key>, Fault> {
    must_exist(db, account)?;
    let keys = db
        .prepare_cached("SELECT * FROM key WHERE account = ? ORDER BY created_at, id")?
        .query_map([account], Key::read)?
        .collect::<Result<_, _>>()?;
    Ok(keys)
}

/// One entry.
pub(super) fn entry_at(
    db: &Connection,
    account: &AccountId,
    ts: Millis,
    seq: u64,
) -> Result<Entry, Fault> {
    let entry = db
        .prepare_cached(&format!("{ENTRY} AND ts = ? AND seq = ?"))?
        .query_row(params![account, ts, Count(seq)], Entry::read)
        .optional()?
        .ok_or_else(|| StoreError::NotFound(format!("entry {seq}")))?;
    Ok(entry)
}

/// Entries of an account, which is the first parameter.
const ENTRY: &str = "SELECT ts, seq, kind, amount, balance_after, id, note, undoes, lot, parts
     FROM record WHERE account = (SELECT n FROM account WHERE account.id = ?) AND sub = 0";
const ENTRY_OF_KIND: &str =
    "SELECT ts, seq, kind, amount, balance_after, id, note, undoes, lot, parts
     FROM record INDEXED BY record_kind
     WHERE account = (SELECT n FROM account WHERE account.id = ?) AND kind <> 'debit_ai'";

/// A page of the ledger. The cursor is the time and the number of the last row.
pub(super) fn entries(
    db: &Connection,
    account: &AccountId,
    filter: &EntryFilter,
    page: &Page,
    order: Order,
) -> Result<Rows<Entry>, Fault> {
    must_exist(db, account)?;
    let limit = limit(page);
    let data = entries_page(account, filter, page, order, limit + 1)?.rows(db, Entry::read)?;
    Ok(cut(data, limit, |entry| format!("{}.{}", entry.ts, entry.seq)))
}

/// A page of lots. The cursor is what the last row is sorted by.
pub(super) fn lots(
    db: &Connection,
    account: &AccountId,
    filter: LotFilter,
    page: &Page,
    now: Millis,
) -> Result<Rows<LotRow>, Fault> {
    let limit = limit(page);
    let now: Millis = db
        .prepare_cached("SELECT max(last_ts, ?) FROM account WHERE id = ?")?
        .query_row(params![now, account], |row| row.get(0))
        .optional()?
        .ok_or_else(|| no_account(account))?;
    let cursor = page.cursor.as_deref();
    let mut data = lots_page(account, filter, cursor, now, limit + 1)?.rows(db, LotRow::read)?;
    for row in &mut data {
        row.lot = row.lot.at(now);
    }
    Ok(cut(data, limit, |LotRow { lot, .. }| match filter {
        LotFilter::Usable => {
            let class = match lot.class {
                Class::Promo => "promo",
                Class::Usage => "usage",
            };
            format!("{}.{class}.{}", lot.expires_at, lot.number)
        }
        LotFilter::All => lot.number.to_string(),
    }))
}

pub(super) fn lots_page(
    account: &AccountId,
    filter: LotFilter,
    cursor: Option<&str>,
    now: Millis,
    limit: u32,
) -> Result<Select, StoreError> {
    let select = format!("SELECT {}, source FROM lot", lots::COLUMNS);
    let number = |text: &str| text.parse::<i64>().map_err(|_| no_page());
    match filter {
        LotFilter::All => {
            let mut select = Select::of(format!("{select} WHERE account = ?"), account);
            select.and("lot < ?", cursor.map_or(Ok(i64::MAX), number)?);
            select.page("lot DESC", limit);
            Ok(select)
        }
        LotFilter::Usable => {
            let sql = format!("{select} INDEXED BY lot_usable WHERE account = ? AND usable");
            let mut select = Select::of(sql, account);
            select.and("expires_at > ?", now);
            if let Some(cursor) = cursor {
                let mut fields = cursor.splitn(3, '.');
                let (Some(at), Some(class), Some(lot)) =
                    (fields.next(), fields.next(), fields.next())
                else {
                    return Err(no_page());
                };
                select.and("(expires_at, kind, lot) > (?, ?, ?)", number(at)?);
                select.values.extend([class.to_owned().into(), number(lot)?.into()]);
            }
            select.page("expires_at, kind, lot", limit);
            Ok(select)
        }
    }
}

pub(super) fn entries_page(
    account: &AccountId,
    filter: &EntryFilter,
    page: &Page,
    order: Order,
    limit: u32,
) -> Result<Select, StoreError> {
    // The index leaves debits out.
    let kind = filter.kind;
    let by_kind = kind.is_some_and(|kind| kind != Kind::DebitAi);
    let mut select = Select::of(if by_kind { ENTRY_OF_KIND } else { ENTRY }, account);
    if let Some(kind) = kind {
        select.and("kind = ?", kind.name().to_owned());
    }
    select.and_times(filter.since, filter.until);
    let (after, order) = match order {
        Order::NewestFirst => ("(ts, seq) < (?, ?)", "ts DESC, seq DESC"),
        Order::OldestFirst => ("(ts, seq) > (?, ?)", "ts, seq"),
    };
    if let Some(cursor) = page.cursor.as_deref() {
        select.and_place(after, cursor)?;
    }
    select.page(order, limit);
    Ok(select)
}

/// A page of requests. The cursor is the place of the last row.
pub(super) fn usage(
    db: &Connection,
    account: &AccountId,
    filter: &UsageFilter,
    page: &Page,
    order: Order,
) -> Result<Rows<UsageRow>, Fault> {
    must_exist(db, account)?;
    let limit = limit(page);
    let read = |filter: &UsageFilter, limit| {
        usage_page(account, filter, page, order, limit)?.rows(db, Placed::read)
    };
    let data = if is_in_sums(filter) && index_of(filter).is_empty() {
        let mut data = Vec::new();
        let mut hours = hours_of(filter, page, order);
        while let missing @ 1.. = (limit as usize + 1).saturating_sub(data.len())
            && let Some(hour) = next_hour(db, account, filter, hours.clone(), order)?
        {
            let (start, end) = (hour * HOUR_MS, (hour + 1) * HOUR_MS);
            let within = UsageFilter {
                since: Some(filter.since.map_or(start, |since| since.max(start))),
                until: Some(filter.until.map_or(end, |until| until.min(end))),
                ..filter.clone()
            };
            data.extend(read(&within, u32::try_from(missing).unwrap_or(limit))?);
            match order {
                Order::NewestFirst => hours.end = hour,
                Order::OldestFirst => hours.start = hour + 1,
            }
        }
        data
    } else {
        read(filter, limit + 1)?
    };
    let Rows { data, next } = cut(data, limit, |row| row.place.clone());
    Ok(Rows { data: data.into_iter().map(|row| row.row).collect(), next })
}

/// Whether the sums of an hour tell if there is such a row in it.
fn is_in_sums(UsageFilter { model, key, tag, upstream, .. }: &UsageFilter) -> bool {
    model.is_some() || key.is_some() || tag.is_some() || upstream.is_some()
}

/// The hours in which a page can have rows.
fn hours_of(filter: &UsageFilter, page: &Page, order: Order) -> Range<i64> {
    let hour = |ts: Millis| ts.clamp(0, Millis::MAX - HOUR_MS).div_euclid(HOUR_MS);
    let mut hours = hour(filter.since.unwrap_or(0))..hour(filter.until.unwrap_or(Millis::MAX)) + 1;
    let cursor = page.cursor.as_deref().and_then(|cursor| cursor.split('.').next());
    if let Some(Ok(ts)) = cursor.map(str::parse) {
        match order {
            Order::NewestFirst => hours.end = hours.end.min(hour(ts) + 1),
            Order::OldestFirst => hours.start = hours.start.max(hour(ts)),
        }
    }
    hours
}

/// The next hour that has rows of the model, key, tag and upstream.
fn next_hour(
    db: &Connection,
    account: &AccountId,
    filter: &UsageFilter,
    hours: Range<i64>,
    order: Order,
) -> Result<Option<i64>, Fault> {
    let mut select = Select::of("SELECT hour FROM usage_hour WHERE account = ?", account);
    select.and_group(filter);
    select.and("hour >= ?", hours.start);
    select.and("hour < ?", hours.end);
    select.page(if order == Order::NewestFirst { "hour DESC" } else { "hour" }, 1);
    Ok(select.rows(db, |row| row.get(0))?.pop())
}

/// A row of usage, and the cursor that begins after it.
struct Placed {
    row: UsageRow,
    place: String,
}

impl Placed {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (seq, sub): (i64, i64) = (row.get("seq")?, row.get("sub")?);
        let row = UsageRow::read(row)?;
        let place = format!("{}.{seq}.{sub}", row.ts);
        Ok(Self { row, place })
    }
}

pub(super) fn usage_page(
    account: &AccountId,
    filter: &UsageFilter,
    page: &Page,
    order: Order,
    limit: u32,
) -> Result<Select, StoreError> {
    let mut select = Select::of_usage("*, coalesce(-amount, 0) AS charge", filter, account);
    select.and_row(filter);
    select.and_times(filter.since, filter.until);
    let (after, order) = match order {
        Order::NewestFirst => ("(ts, seq, sub) < (?, ?, ?)", "ts DESC, seq DESC, sub DESC"),
        Order::OldestFirst => ("(ts, seq, sub) > (?, ?, ?)", "ts, seq, sub"),
    };
    if let Some(cursor) = page.cursor.as_deref() {
        select.and_place(after, cursor)?;
    }
    select.page(order, limit);
    Ok(select)
}

/// The index for a filter, the one that leaves fewest rows first. Without statistics SQLite
/// would often rather walk a whole range of times.
fn index_of(filter: &UsageFilter) -> &'static str {
    let UsageFilter { origin, source, outcome, .. } = filter;
    if outcome.is_some_and(|outcome| outcome != Outcome::Completed) {
        "INDEXED BY record_outcome"
    } else if source.is_some_and(|source| source != Source::Reported) {
        "INDEXED BY record_source"
    } else if origin.is_some() {
        "INDEXED BY record_origin"
    } else {
        ""
    }
}

/// Whether an account made an object, and not too long ago.
pub(super) fn owns(
    db: &Connection,
    account: &AccountId,
    object: &str,
    now: Millis,
) -> Result<bool, Fault> {
    let owns = db
        .prepare_cached("SELECT 1 FROM owned WHERE account = ? AND object = ? AND until > ?")?
        .exists(params![account, object, now])?;
    Ok(owns)
}

/// A statement that grows by conditions.
pub(super) struct Select {
    pub sql: String,
    pub values: Vec<Value>,
}

impl Select {
    /// Begins with the account as the first parameter.
    pub(super) fn of(sql: impl Into<String>, account: &AccountId) -> Self {
        Self { sql: sql.into(), values: vec![account.to_string().into()] }
    }

    /// Some columns of an account's requests.
    pub(super) fn of_usage(columns: &str, filter: &UsageFilter, account: &AccountId) -> Self {
        let sql = format!(
            "SELECT {columns} FROM record {}
             WHERE account = (SELECT n FROM account WHERE account.id = ?) AND outcome IS NOT NULL",
            index_of(filter)
        );
        Self::of(sql, account)
    }

    pub(super) fn and(&mut self, condition: &str, value: impl Into<Value>) {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
        self.values.push(value.into());
    }

    /// At or after `since` and before `until`.
    pub(super) fn and_times(&mut self, since: Option<Millis>, until: Option<Millis>) {
        if let Some(since) = since {
            self.and("ts >= ?", since);
        }
        if let Some(until) = until {
            self.and("ts < ?", until);
        }
    }

    /// A condition with as many numbers as the cursor must have.
    fn and_place(&mut self, condition: &str, cursor: &str) -> Result<(), StoreError> {
        let numbers: Vec<i64> =
            cursor.split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_| no_page())?;
        if numbers.len() != condition.matches('?').count() {
            return Err(no_page());
        }
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
        self.values.extend(numbers.into_iter().map(Value::from));
        Ok(())
    }

    /// The conditions that requests and their sums have in common.
    pub(super) fn and_group(&mut self, filter: &UsageFilter) {
        let UsageFilter { model, key, tag, upstream, .. } = filter;
        for (condition, value) in
            [("model = ?", model), ("key = ?", key), ("tag = ?", tag), ("upstream = ?", upstream)]
        {
            if let Some(value) = value {
                self.and(condition, value.clone());
            }
        }
    }

    /// All but the times.
    pub(super) fn and_row(&mut self, filter: &UsageFilter) {
        self.and_group(filter);
        if let Some(origin) = &filter.origin {
            self.and("origin = ?", origin.clone());
        }
        // The words that are not left out of an index say so, or it would not be used.
        if let Some(source) = filter.source {
            let rare = "source = ? AND source <> 'reported'";
            self.and(if source == Source::Reported { "source = ?" } else { rare }, word(source));
        }
        if let Some(outcome) = filter.outcome {
            let rare = "outcome = ? AND outcome <> 'completed'";
            let is_rare = outcome != Outcome::Completed;
            self.and(if is_rare { rare } else { "outcome = ?" }, word(outcome));
        }
    }

    fn page(&mut self, order: &str, limit: u32) {
        self.sql.push_str(" ORDER BY ");
        self.sql.push_str(order);
        self.sql.push_str(" LIMIT ?");
        self.values.push(i64::from(limit).into());
    }

    fn rows<T>(
        self,
        db: &Connection,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Fault> {
        let rows = db
            .prepare_cached(&self.sql)?
            .query_map(params_from_iter(self.values), read)?
            .collect::<Result<_, _>>()?;
        Ok(rows)
    }
}

/// A choice as a parameter.
fn word<T: serde::Serialize>(choice: T) -> Value {
    match Word(choice).to_sql() {
        Ok(rusqlite::types::ToSqlOutput::Owned(value)) => value,
        _ => Value::Null,
    }
}

fn no_page() -> StoreError {
    StoreError::NotFound("page with this cursor".into())
}

fn limit(page: &Page) -> u32 {
    page.limit.clamp(1, PAGE)
}

/// One row more than the page was read: it tells whether there is a next page.
fn cut<T>(mut data: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Rows<T> {
    let limit = limit as usize;
    let next = if data.len() > limit { data.get(limit - 1).map(cursor) } else { None };
    data.truncate(limit);
    Rows { data, next }
}

impl Account {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let balance = row.get("usable")?;
        Ok(Self {
            id: row.get("id")?,
            name: row.get("name")?,
            status: row.get::<_, Word<_>>("status")?.0,
            balance,
            held: Credits::ZERO,
            available: balance,
            in_flight: 0,
            mode: row.get::<_, Option<Word<_>>>("mode")?.map(|Word(mode)| mode),
            max_in_flight: row.get("max_in_flight")?,
            created_at: row.get("created_at")?,
        })
    }
}

impl Key {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get("id")?,
            account: row.get("account")?,
            name: row.get("name")?,
            tag: row.get("tag")?,
            models: row.get::<_, Json<_>>("models")?.0,
            rejection: row.get::<_, Word<_>>("rejection")?.0,
            limits: row.get::<_, Json<_>>("limits")?.0,
            last4: row.get("last4")?,
            created_at: row.get("created_at")?,
            expires_at: row.get("expires_at")?,
            revoked_at: row.get("revoked_at")?,
        })
    }
}

impl Entry {
    /// An entry about a lot refers to the lot, any other to its operation.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let amount = row.get("amount")?;
        let lot: Option<Count> = row.get("lot")?;
        let parts: Option<Json<Pairs>> = row.get("parts")?;
        let id: Option<String> = row.get("id")?;
        let lot = lot.map(|Count(number)| number);
        Ok(Self {
            seq: row.get::<_, Count>("seq")?.0,
            ts: row.get("ts")?,
            kind: row.get::<_, Word<_>>("kind")?.0,
            amount,
            balance_after: row.get("balance_after")?,
            reference: id.unwrap_or_else(|| format!("lot_{}", lot.unwrap_or_default())),
            note: row.get("note")?,
            undoes: row.get::<_, Option<Count>>("undoes")?.map(|Count(seq)| seq),
            parts: match (lot, parts) {
                (Some(0), _) => vec![Part { place: Place::Debt, amount }],
                (Some(number), _) => vec![Part { place: Place::Lot(number), amount }],
                (None, parts) => parts.map(|Json(pairs)| pairs.parts()).unwrap_or_default(),
            },
        })
    }
}

impl UsageRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let count = |name| row.get::<_, Count>(name).map(|count| count.0);
        let calls: Option<Json<_>> = row.get("calls")?;
        let flags: String = row.get("flags")?;
        Ok(Self {
            id: row.get("id")?,
            ts: row.get("ts")?,
            model: row.get("model")?,
            served_model: row.get("served_model")?,
            upstream: row.get("upstream")?,
            key: row.get("key")?,
            attribution: Attribution {
                run: row.get("run")?,
                agent: row.get("agent")?,
                session: row.get("session")?,
                origin: row.get("origin")?,
                tag: row.get("tag")?,
            },
            input_tokens: count("input")?,
            cached_input_tokens: count("cached")?,
            cache_creation_5m_tokens: count("cache_creation_5m")?,
            cache_creation_1h_tokens: count("cache_creation_1h")?,
            output_tokens: count("output")?,
            reasoning_tokens: count("reasoning")?,
            charge: row.get("charge")?,
            price_version: row.get("price_version")?,
            ttft_ms: row.get("ttft_ms")?,
            latency_ms: row.get("latency_ms")?,
            stream: row.get("stream")?,
            outcome: row.get::<_, Word<_>>("outcome")?.0,
            source: row.get::<_, Word<_>>("source")?.0,
            http_status: row.get("http_status")?,
            calls: calls.map(|calls| calls.0).unwrap_or_default(),
            flags: flags.split(',').filter(|flag| !flag.is_empty()).map(Into::into).collect(),
        })
    }
}

impl Flight {
    /// Of the columns `account, id, key, model, admitted_at`.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            account: row.get("account")?,
            key: row.get("key")?,
            request: Candidate { id: row.get("id")?, model: row.get("model")? },
            admitted_at: row.get("admitted_at")?,
        })
    }
}
