//! That a ledger adds up: not what one page shows of it, but all of it.
//!
//! Each look at the transactions reads on from where the last one ended: every entry must have
//! the next number, and the balance of the one before plus its amount. How far that went is kept
//! with the account. Beside it stands the last audit of all its books, which reads everything
//! again and checks all that an audit knows.

use askama::Template;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};

use super::moment::Instant;
use super::number::grouped;
use super::page::{Page, Post};
use super::{Failure, see};
use crate::billing::Credits;
use crate::store::audit::{Event, audit};
use crate::store::{self, Entry, EntryFilter, Millis, Put, Scope, StoreError};

/// The document's name, in the scope of the account.
const NAME: &str = "ledger-proof";
/// Entries that are read at once, and how often that is done in one look.
const STEP: (u32, usize) = (500, 10);
/// What was read is written down this often, or when it was much.
const KEEP_MS: Millis = 60_000;
/// An audit that is younger is not repeated.
const AGAIN_MS: Millis = 10_000;
/// Events of an audit that wait.
const EVENTS: usize = 64;

/// Audits that run: one at a time, for it reads everything.
static RUNNING: Semaphore = Semaphore::const_new(1);

/// What is known of a ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    /// The first entry and the last one that were read; 0: none.
    first: u64,
    last: u64,
    /// The time of the last one, and the balance after it.
    ts: Millis,
    balance: Credits,
    /// When it was read.
    at: Millis,
    /// What did not follow from what was before it.
    broken: Option<u64>,
    audit: Option<Audited>,
}

/// The last audit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Audited {
    at: Millis,
    entries: u64,
    requests: u64,
    violations: u64,
    /// The first thing that was found.
    first: Option<String>,
}

/// The line of the page.
#[derive(Template)]
#[template(path = "proof.html")]
pub struct Proof {
    first: String,
    last: String,
    at: Option<Instant>,
    /// Whether there are entries that were not read yet.
    is_part: bool,
    broken: Option<u64>,
    audit: Option<AuditLine>,
}

struct AuditLine {
    at: Instant,
    entries: String,
    requests: String,
    violations: u64,
    first: String,
}

impl Proof {
    /// Reads on, and says how far it is.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn of(page: &Page) -> Result<Self, StoreError> {
        let (mut known, version) = read(page).await?;
        let before = known.clone();
        let is_whole = read_on(page, &mut known).await?;
        let grew = known.last - before.last;
        let is_news = known.broken != before.broken || grew >= u64::from(STEP.0);
        if is_news || (grew > 0 && page.now - before.at >= KEEP_MS) {
            known.at = page.now;
            // Another look wrote at the same time, or the store is away: it is read again then.
            keep(page, &known, version).await.ok();
        }
        Ok(Self {
            first: grouped(known.first),
            last: grouped(known.last),
            at: (known.last > 0).then(|| Instant::ago(page.now, page.now, &page.zone)),
            is_part: !is_whole,
            broken: known.broken,
            audit: known.audit.map(|audit| AuditLine {
                at: Instant::ago(audit.at, page.now, &page.zone),
                entries: grouped(audit.entries),
                requests: grouped(audit.requests),
                violations: audit.violations,
                first: audit.first.unwrap_or_default(),
            }),
        })
    }
}

/// When the books were audited last, and how many faults were found.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn audited(page: &Page) -> Result<Option<(Millis, u64)>, StoreError> {
    let (known, _) = read(page).await?;
    Ok(known.audit.map(|audit| (audit.at, audit.violations)))
}

async fn read(page: &Page) -> Result<(Known, Option<u64>), StoreError> {
    let scope = Scope::Account(page.account.id.clone());
    let found = page.state.store.document(&scope, NAME).await?;
    let known = found.as_ref().and_then(|found| serde_json::from_str(&found.body).ok());
    Ok((known.unwrap_or_default(), found.map(|found| found.version)))
}

async fn keep(page: &Page, known: &Known, replaces: Option<u64>) -> Result<(), StoreError> {
    let body = serde_json::to_string(known).map_err(|e| StoreError::Unavailable(e.to_string()))?;
    let put = Put { name: NAME.into(), body: Some(body), replaces, expires_at: None };
    let scope = Scope::Account(page.account.id.clone());
    page.state.store.put_document(&scope, put).await.map(drop)
}

/// Reads some entries more. Whether it came to the end.
async fn read_on(page: &Page, known: &mut Known) -> Result<bool, StoreError> {
    let filter = EntryFilter { since: Some(known.ts), ..EntryFilter::default() };
    let mut from = store::Page { cursor: None, limit: STEP.0 };
    for _ in 0..STEP.1 {
        let store = &page.state.store;
        let rows =
            store.entries_oldest_first(&page.account.id, filter.clone(), from.clone()).await?;
        for entry in &rows.data {
            if known.broken.is_some() {
                return Ok(true);
            }
            known.take(entry);
        }
        match rows.next {
            Some(next) => from.cursor = Some(next),
            None => return Ok(true),
        }
    }
    Ok(false)
}

impl Known {
    /// Takes the next entry in, if it follows.
    fn take(&mut self, entry: &Entry) {
        if self.last > 0 && entry.seq <= self.last {
            return;
        }
        // What is before the first one that is kept was trimmed; before the very first is nothing.
        let (seq, balance) = match self.last {
            0 if entry.seq == 1 => (0, Credits::ZERO),
            0 => (entry.seq - 1, entry.balance_after - entry.amount),
            last => (last, self.balance),
        };
        let parts: Credits = entry.parts.iter().map(|part| part.amount).sum();
        if entry.seq != seq + 1
            || entry.balance_after != balance + entry.amount
            || parts != entry.amount
        {
            self.broken = Some(entry.seq);
            return;
        }
        if self.last == 0 {
            self.first = entry.seq;
        }
        (self.last, self.ts, self.balance) = (entry.seq, entry.ts, entry.balance_after);
    }
}

/// What a button alone sends.
#[derive(Debug, Deserialize)]
pub struct Click {}

/// Audits all books of the account, and goes back to the page, which says what was found.
///
/// # Errors
///
/// While another audit runs, or when the store cannot be read.
pub async fn verify(page: Page, _: Post<Click>) -> Result<Response, Failure> {
    let back = see(&page.href("transactions"));
    let (known, version) = read(&page).await?;
    if known.audit.as_ref().is_some_and(|audit| page.now - audit.at < AGAIN_MS) {
        return Ok(back);
    }
    let Ok(_permit) = RUNNING.try_acquire() else {
        return Err(Failure::Conflict(
            "The books of an account are being audited now: try again in a moment.".into(),
        ));
    };
    let mut found = Audited { at: page.now, ..Audited::default() };
    let (events, mut told) = mpsc::channel(EVENTS);
    tokio::spawn(audit(page.state.store.clone(), Some(page.account.id.clone()), events));
    while let Some(event) = told.recv().await {
        match event {
            Event::Violation(violation) => {
                found.first.get_or_insert(violation.sentence);
            }
            Event::Done(tally) => {
                found.entries = tally.entries;
                found.requests = tally.requests;
                found.violations = tally.violations.iter().sum();
                let known = Known { audit: Some(found), ..known };
                keep(&page, &known, version).await?;
                return Ok(back);
            }
            Event::Failed { message } => return Err(Failure::Unavailable(message)),
            Event::Progress { .. } => {}
        }
    }
    Err(Failure::Unavailable("the audit ended early".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::ledger::{Kind, Part, Place};

    fn entry(seq: u64, amount: i64, balance_after: i64) -> Entry {
        let amount = Credits::from_nano(amount);
        Entry {
            seq,
            ts: 0,
            kind: Kind::Topup,
            amount,
            balance_after: Credits::from_nano(balance_after),
            reference: String::new(),
            note: None,
            undoes: None,
            parts: vec![Part { place: Place::Debt, amount }],
        }
    }

    fn broken(entries: &[Entry]) -> (u64, u64, Option<u64>) {
        let mut known = Known::default();
        entries.iter().for_each(|entry| known.take(entry));
        (known.first, known.last, known.broken)
    }

    #[test]
    fn what_does_not_follow_from_the_entry_before_is_found() {
        let (one, two) = (entry(1, 5, 5), entry(2, -2, 3));
        assert_eq!(broken(&[one.clone(), two.clone()]), (1, 2, None));
        assert_eq!(broken(&[one.clone(), one.clone(), two]), (1, 2, None), "read again");
        assert_eq!(broken(&[one.clone(), entry(3, -2, 3)]), (1, 1, Some(3)));
        assert_eq!(broken(&[one.clone(), entry(2, -2, 4)]), (1, 1, Some(2)));
        assert_eq!(broken(&[entry(1, 5, 6)]), (0, 0, Some(1)));
        // What was trimmed does not count.
        assert_eq!(broken(&[entry(7, 5, 6), entry(8, 1, 7)]), (7, 8, None));
        let odd = Entry { parts: Vec::new(), ..entry(2, -2, 3) };
        assert_eq!(broken(&[one, odd]), (1, 1, Some(2)));
    }
}
