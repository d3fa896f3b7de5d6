//! Exports: the ledger or the requests of an account as one file, oldest row first, and beside
//! it metadata by which anyone can check it.
//!
//! [`Reading`] makes the bytes, wherever they are asked for: by the control plane, by the
//! billing pages, before old rows are trimmed. The same [`Export`] gives the same bytes as long
//! as `until` has passed, because rows are only ever added.
//!
//! CSV is that of RFC 4180 in UTF-8; a text that a spreadsheet would take for a formula has an
//! apostrophe in front. JSON lines are the objects of the control plane as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::billing::ledger::{Kind, Part, Place};
use crate::billing::{Credits, Total};
use crate::store::{
    AccountId, Entry, EntryFilter, Millis, Page, Rows, Store, StoreError, UsageFilter, UsageRow,
};
use crate::time;

pub mod check;

/// Rows that are read at once.
const PAGE_ROWS: u32 = 500;
/// Tells spreadsheets that a file is in UTF-8.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The shape of a file.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Comma-separated values with a line of names.
    #[default]
    Csv,
    /// One JSON object a line.
    Jsonl,
}

impl Format {
    /// The end of a file's name.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Jsonl => "jsonl",
        }
    }

    /// As in `Content-Type`.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8",
            Self::Jsonl => "application/jsonl; charset=utf-8",
        }
    }
}

/// Which rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Entries of the ledger, of one kind or of all.
    Ledger(Option<Kind>),
    /// Requests; the times of the filter are those of the export.
    Usage(UsageFilter),
}

/// A file to be made.
#[derive(Clone, Debug)]
pub struct Export {
    /// Whose rows.
    pub account: AccountId,
    /// Which.
    pub what: What,
    /// Not before.
    pub since: Option<Millis>,
    /// Before; not after now, or the file would not be the same the next time.
    pub until: Millis,
    /// The shape.
    pub format: Format,
    /// The clocks of the column `time`, and of the dates in the file's name.
    pub zone: TimeZone,
    /// Their name, such as `Europe/Berlin`.
    pub zone_name: String,
    /// Whether a CSV file begins with a byte order mark.
    pub bom: bool,
}

impl Export {
    /// Such as `usage_default_2026-09-01_2026-09-30_Europe-Berlin.csv`; the last day is the
    /// last one of which there is something.
    pub fn file_name(&self) -> String {
        let day = |at| time::in_zone(at, &self.zone).strftime("%Y-%m-%d").to_string();
        let rows = self.rows();
        let first = self.since.map_or_else(|| "start".to_owned(), day);
        let last = day(self.until.saturating_sub(1));
        let zone = self.zone_name.replace('/', "-");
        let end = self.format.extension();
        format!("{rows}_{}_{first}_{last}_{zone}.{end}", self.account)
    }

    fn rows(&self) -> &'static str {
        match self.what {
            What::Ledger(_) => "ledger",
            What::Usage(_) => "usage",
        }
    }

    /// What was asked for besides account and times.
    fn filters(&self) -> BTreeMap<String, String> {
        let word = |value: serde_json::Value| value.as_str().map(str::to_owned);
        let filters = match &self.what {
            What::Ledger(kind) => vec![("kind", kind.map(|kind| kind.name().to_owned()))],
            What::Usage(filter) => vec![
                ("model", filter.model.clone()),
                ("key", filter.key.clone()),
                ("tag", filter.tag.clone()),
                ("upstream", filter.upstream.clone()),
                ("origin", filter.origin.clone()),
                ("source", word(serde_json::json!(filter.source))),
                ("outcome", word(serde_json::json!(filter.outcome))),
            ],
        };
        let given = filters.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        given.collect()
    }
}

/// How many rows, and what they sum to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sum {
    /// Rows.
    pub count: u64,
    /// Of entries their amounts, of requests their charges.
    #[schema(value_type = String)]
    pub amount: Total,
}

impl Sum {
    fn add(&mut self, amount: Credits) {
        self.count += 1;
        self.amount += amount;
    }
}

/// What is in a file: `FILE.meta.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Meta {
    /// The file's name when it was made.
    pub file: String,
    /// `ledger` or `usage`.
    pub rows: String,
    /// Whose rows.
    pub account: String,
    /// The shape.
    pub format: Format,
    /// The names of the columns, in order; of JSON lines none.
    pub columns: Vec<String>,
    /// Not before; absent: from the beginning.
    #[serde(with = "crate::time::optional")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Millis>,
    /// Before.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub until: Millis,
    /// The clocks of the column `time`.
    pub time_zone: String,
    /// What was asked for besides account and times.
    pub filters: BTreeMap<String, String>,
    /// The first entry.
    pub first_seq: Option<u64>,
    /// The last entry.
    pub last_seq: Option<u64>,
    /// The balance before the first entry. Absent for a kind alone and for requests.
    #[schema(value_type = Option<String>)]
    pub opening_balance: Option<Credits>,
    /// The balance after the last entry: the opening one and the sum of the amounts.
    #[schema(value_type = Option<String>)]
    pub closing_balance: Option<Credits>,
    /// All rows.
    pub total: Sum,
    /// The rows of each kind of entry, or of each model.
    pub sums: BTreeMap<String, Sum>,
    /// The size of the file.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// A file that is being made.
pub struct Reading {
    store: Arc<dyn Store>,
    export: Export,
    meta: Meta,
    hash: Sha256,
    next: Next,
}

enum Next {
    /// The line of names comes first.
    Head,
    /// The page after this cursor.
    Rows(Option<String>),
    End,
}

impl Reading {
    /// Begins; nothing is read yet.
    pub fn new(store: Arc<dyn Store>, export: Export) -> Self {
        let columns: &[&str] = match (&export.what, export.format) {
            (_, Format::Jsonl) => &[],
            (What::Ledger(_), Format::Csv) => &LEDGER_COLUMNS,
            (What::Usage(_), Format::Csv) => &USAGE_COLUMNS,
        };
        let meta = Meta {
            file: export.file_name(),
            rows: export.rows().to_owned(),
            account: export.account.to_string(),
            format: export.format,
            columns: columns.iter().map(|&name| name.to_owned()).collect(),
            since: export.since,
            until: export.until,
            time_zone: export.zone_name.clone(),
            filters: export.filters(),
            first_seq: None,
            last_seq: None,
            opening_balance: None,
            closing_balance: None,
            total: Sum::default(),
            sums: BTreeMap::new(),
            bytes: 0,
            sha256: String::new(),
        };
        Self { store, export, meta, hash: Sha256::new(), next: Next::Head }
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    ///
    /// Those of the store; what came before is then not the whole file.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let bytes = loop {
            let bytes = match std::mem::replace(&mut self.next, Next::End) {
                Next::Head => {
                    self.next = Next::Rows(None);
                    self.head()
                }
                Next::Rows(cursor) => self.rows(cursor).await?,
                Next::End => return Ok(None),
            };
            if !bytes.is_empty() {
                break bytes;
            }
        };
        self.hash.update(&bytes);
        self.meta.bytes += bytes.len() as u64;
        Ok(Some(bytes.into()))
    }

    /// Reads what is left, and answers what the whole file is.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn meta(mut self) -> Result<Meta, StoreError> {
        while self.next().await?.is_some() {}
        let is_whole_ledger = self.export.what == What::Ledger(None);
        if is_whole_ledger && self.meta.opening_balance.is_none() {
            let before = match self.export.since {
                Some(since) => self.balance_before(since).await?,
                None => Credits::ZERO,
            };
            (self.meta.opening_balance, self.meta.closing_balance) = (Some(before), Some(before));
        }
        self.meta.sha256 = hex(&self.hash.finalize());
        Ok(self.meta)
    }

    async fn balance_before(&self, since: Millis) -> Result<Credits, StoreError> {
        let filter = EntryFilter { kind: None, since: None, until: Some(since) };
        let page = Page { cursor: None, limit: 1 };
        let last = self.store.entries(&self.export.account, filter, page).await?.data.pop();
        Ok(last.map_or(Credits::ZERO, |entry| entry.balance_after))
    }

    fn head(&self) -> Vec<u8> {
        if self.export.format == Format::Jsonl {
            return Vec::new();
        }
        let mark = if self.export.bom { BYTE_ORDER_MARK } else { "" };
        let line = csv([self.meta.columns.iter().map(String::as_str)]);
        [mark.as_bytes(), &line].concat()
    }

    /// The lines of the next page.
    async fn rows(&mut self, cursor: Option<String>) -> Result<Vec<u8>, StoreError> {
        let Export { account, what, since, until, format, zone, .. } = &self.export;
        let page = Page { cursor, limit: PAGE_ROWS };
        let (bytes, next) = match what {
            What::Ledger(kind) => {
                let filter = EntryFilter { kind: *kind, since: *since, until: Some(*until) };
                let Rows { data, next } =
                    self.store.entries_oldest_first(account, filter, page).await?;
                for entry in &data {
                    count_entry(&mut self.meta, entry, kind.is_none());
                }
                let bytes = match format {
                    Format::Csv => csv(data.iter().map(|entry| ledger_record(entry, zone))),
                    Format::Jsonl => lines(&data),
                };
                (bytes, next)
            }
            What::Usage(filter) => {
                let filter = UsageFilter { since: *since, until: Some(*until), ..filter.clone() };
                let Rows { data, next } =
                    self.store.usage_oldest_first(account, filter, page).await?;
                for row in &data {
                    self.meta.total.add(row.charge);
                    let model = match format {
                        Format::Csv => plain(&row.model),
                        Format::Jsonl => row.model.clone(),
                    };
                    self.meta.sums.entry(model).or_default().add(row.charge);
                }
                let bytes = match format {
                    Format::Csv => csv(data.iter().map(|row| usage_record(row, zone))),
                    Format::Jsonl => lines(&data),
                };
                (bytes, next)
            }
        };
        if let Some(cursor) = next {
            self.next = Next::Rows(Some(cursor));
        }
        Ok(bytes)
    }
}

fn count_entry(meta: &mut Meta, entry: &Entry, all_kinds: bool) {
    meta.first_seq.get_or_insert(entry.seq);
    meta.last_seq = Some(entry.seq);
    if all_kinds {
        meta.opening_balance.get_or_insert(entry.balance_after - entry.amount);
        meta.closing_balance = Some(entry.balance_after);
    }
    meta.total.add(entry.amount);
    meta.sums.entry(entry.kind.name().to_owned()).or_default().add(entry.amount);
}

const LEDGER_COLUMNS: [&str; 10] = [
    "seq",
    "time",
    "time_utc",
    "kind",
    "amount",
    "balance_after",
    "ref",
    "note",
    "undoes",
    "parts",
];

fn ledger_record(entry: &Entry, zone: &TimeZone) -> [String; LEDGER_COLUMNS.len()] {
    [
        entry.seq.to_string(),
        local(entry.ts, zone),
        time::rfc3339(entry.ts),
        entry.kind.name().to_owned(),
        entry.amount.to_string(),
        entry.balance_after.to_string(),
        plain(&entry.reference),
        plain(entry.note.as_deref().unwrap_or_default()),
        entry.undoes.map(|seq| seq.to_string()).unwrap_or_default(),
        entry.parts.iter().map(part).collect::<Vec<_>>().join("; "),
    ]
}

/// Such as `lot 2 -0.5`, `debt -0.1`.
fn part(part: &Part) -> String {
    match part.place {
        Place::Debt => format!("debt {}", part.amount),
        Place::Lot(number) => format!("lot {number} {}", part.amount),
    }
}

const USAGE_COLUMNS: [&str; 28] = [
    "id",
    "time",
    "time_utc",
    "model",
    "served_model",
    "upstream",
    "key",
    "tag",
    "run",
    "agent",
    "session",
    "origin",
    "input_tokens",
    "cached_input_tokens",
    "cache_creation_5m_tokens",
    "cache_creation_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "charge",
    "price_version",
    "ttft_ms",
    "latency_ms",
    "stream",
    "outcome",
    "source",
    "http_status",
    "calls",
    "flags",
];

fn usage_record(row: &UsageRow, zone: &TimeZone) -> [String; USAGE_COLUMNS.len()] {
    let optional = |text: &Option<String>| plain(text.as_deref().unwrap_or_default());
    let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let calls = row.calls.iter().map(|(name, count)| format!("{name} {count}"));
    [
        plain(&row.id),
        local(row.ts, zone),
        time::rfc3339(row.ts),
        plain(&row.model),
        optional(&row.served_model),
        plain(&row.upstream),
        plain(&row.key),
        optional(&row.attribution.tag),
        optional(&row.attribution.run),
        optional(&row.attribution.agent),
        optional(&row.attribution.session),
        optional(&row.attribution.origin),
        row.input_tokens.to_string(),
        row.cached_input_tokens.to_string(),
        row.cache_creation_5m_tokens.to_string(),
        row.cache_creation_1h_tokens.to_string(),
        row.output_tokens.to_string(),
        row.reasoning_tokens.to_string(),
        row.charge.to_string(),
        plain(&row.price_version),
        row.ttft_ms.map(|ms| ms.to_string()).unwrap_or_default(),
        row.latency_ms.to_string(),
        row.stream.to_string(),
        word(serde_json::json!(row.outcome)),
        word(serde_json::json!(row.source)),
        row.http_status.to_string(),
        plain(&calls.collect::<Vec<_>>().join("; ")),
        plain(&row.flags.join("; ")),
    ]
}

/// An instant on the clocks of a zone, with its offset: `2026-09-21T10:15:00.250+02:00`.
fn local(at: Millis, zone: &TimeZone) -> String {
    time::in_zone(at, zone).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
}

/// A text that no spreadsheet takes for a formula. Plain numbers stay numbers.
fn plain(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    if is_formula && text.parse::<Total>().is_err() { format!("'{text}") } else { text.to_owned() }
}

fn csv<R, F>(records: impl IntoIterator<Item = R>) -> Vec<u8>
where
    R: IntoIterator<Item = F>,
    F: AsRef<[u8]>,
{
    let mut csv =
        csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    for record in records {
        csv.write_record(record).expect("memory takes every record, and all have all columns");
    }
    csv.into_inner().expect("memory takes every byte")
}

fn lines<T: Serialize>(rows: &[T]) -> Vec<u8> {
    let mut lines = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut lines, row).expect("rows are plain data");
        lines.push(b'\n');
    }
    lines
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
