//! Whether a file is still what its metadata says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{BYTE_ORDER_MARK, Format, Meta, Sum, hex};
use crate::billing::{Credits, Total};

/// What keeps a file from being checked at all.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file or its metadata cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The metadata are none.
    #[error("{path} is no metadata of an export: {source}")]
    Meta {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Where the metadata of a file are.
pub fn meta_path(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".meta.json");
    path.into()
}

/// Reads a file again, and answers its metadata and everything that contradicts them.
///
/// # Errors
///
/// [`CheckError`], if one of the two cannot be read.
pub fn check(file: &Path) -> Result<(Meta, Vec<String>), CheckError> {
    let path = meta_path(file);
    let text =
        std::fs::read(&path).map_err(|source| CheckError::Io { path: path.clone(), source })?;
    let meta: Meta =
        serde_json::from_slice(&text).map_err(|source| CheckError::Meta { path, source })?;

    let io = |source| CheckError::Io { path: file.into(), source };
    let mut bytes = Hashing { inner: File::open(file).map_err(io)?, hash: Sha256::new(), bytes: 0 };
    let mut found = Found { balance: meta.opening_balance, ..Found::default() };
    let mut problems = Vec::new();
    if let Err(problem) = found.read(&meta, &mut bytes) {
        problems.push(problem);
    }
    // Whatever was not read for its rows counts all the same.
    io::copy(&mut bytes, &mut io::sink()).map_err(io)?;
    if bytes.bytes != meta.bytes || hex(&bytes.hash.finalize()) != meta.sha256 {
        problems.push("its bytes are not those that were exported (SHA-256)".to_owned());
    }
    found.compare(&meta, &mut problems);
    Ok((meta, problems))
}

/// Counts and hashes what passes.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

/// What the rows say themselves. Entries have an amount, requests a charge.
#[derive(Deserialize)]
struct Row {
    seq: Option<u64>,
    kind: Option<String>,
    amount: Option<Credits>,
    balance_after: Option<Credits>,
    model: Option<String>,
    charge: Option<Credits>,
}

#[derive(Default)]
struct Found {
    total: Sum,
    sums: BTreeMap<String, Sum>,
    first_seq: Option<u64>,
    last_seq: Option<u64>,
    balance: Option<Credits>,
    problems: Vec<String>,
}

impl Found {
    fn read(&mut self, meta: &Meta, bytes: impl Read) -> Result<(), String> {
        let mut bytes = BufReader::new(bytes);
        let unreadable =
            |line: u64, why: &dyn std::fmt::Display| format!("line {line} cannot be read: {why}");
        match meta.format {
            Format::Csv => {
                let begin = bytes.fill_buf().map_err(|error| unreadable(1, &error))?;
                if begin.starts_with(BYTE_ORDER_MARK.as_bytes()) {
                    bytes.consume(BYTE_ORDER_MARK.len());
                }
                let mut csv = csv::Reader::from_reader(bytes);
                for (line, row) in (2..).zip(csv.deserialize()) {
                    self.add(row.map_err(|error| unreadable(line, &error))?);
                }
            }
            Format::Jsonl => {
                for (number, line) in (1..).zip(bytes.lines()) {
                    let line = line.map_err(|error| unreadable(number, &error))?;
                    let row = serde_json::from_str(&line);
                    self.add(row.map_err(|error| unreadable(number, &error))?);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, row: Row) {
        let Row { seq, kind, amount, balance_after, model, charge } = row;
        let amount = amount.or(charge).unwrap_or(Credits::ZERO);
        self.total.add(amount);
        self.sums.entry(kind.or(model).unwrap_or_default()).or_default().add(amount);
        let Some(seq) = seq else { return };
        if let (Some(before), Some(after)) = (self.balance, balance_after) {
            if self.last_seq.is_some_and(|last| last + 1 != seq) {
                self.problems.push(format!("entry {seq} does not follow the one before it"));
            }
            if before + amount != after {
                self.problems.push(format!(
                    "the balance after entry {seq} is not the one before it and its amount"
                ));
            }
            self.balance = Some(after);
        }
        self.first_seq.get_or_insert(seq);
        self.last_seq = Some(seq);
    }

    fn compare(self, meta: &Meta, problems: &mut Vec<String>) {
        problems.extend(self.problems.into_iter().take(20));
        let mut differs = |what: &str, found: String, said: String| {
            if found != said {
                problems.push(format!("{what}: the file has {found}, its metadata say {said}"));
            }
        };
        differs("rows", self.total.count.to_string(), meta.total.count.to_string());
        differs("sum", self.total.amount.to_string(), meta.total.amount.to_string());
        let seq = |seq: Option<u64>| seq.map_or_else(|| "none".into(), |seq| seq.to_string());
        differs("first entry", seq(self.first_seq), seq(meta.first_seq));
        differs("last entry", seq(self.last_seq), seq(meta.last_seq));
        let names =
            self.sums.keys().chain(meta.sums.keys()).collect::<std::collections::BTreeSet<_>>();
        let sum = |sums: &BTreeMap<String, Sum>, name: &str| {
            let Sum { count, amount } = sums.get(name).copied().unwrap_or_default();
            format!("{count} rows, {amount}")
        };
        for name in names {
            differs(name, sum(&self.sums, name), sum(&meta.sums, name));
        }
        if let (Some(opening), Some(closing)) = (meta.opening_balance, meta.closing_balance) {
            let sum = Total::from(opening) + meta.total.amount;
            differs("closing balance", sum.to_string(), closing.to_string());
        }
    }
}
