//! The audit of a store: account by account, while it serves.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::{AccountId, Page, Store, StoreError};
use crate::billing::audit::{Audit, Invariant, Record, Tally, Violation};
use crate::billing::ledger::LedgerError;

/// Accounts whose ids are read at once.
const ACCOUNTS: u32 = 500;
/// Batches of records that wait.
const BATCHES: usize = 4;
/// How many records are looked at between two reports of progress.
const PROGRESS: u64 = 200_000;
/// How often an account is read whose history changes meanwhile, and how long to wait between.
const TRIES: u32 = 60;
const WAIT: Duration = Duration::from_secs(1);

/// What an audit says as it goes; [`Event::Done`] is the last, and without it nothing is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Something does not add up. At most ten of each invariant and account are told.
    Violation(Violation),
    /// It goes on.
    Progress {
        /// Accounts that are done.
        accounts: u64,
        /// Entries, requests and all else that was looked at.
        records: u64,
    },
    /// The end: everything that was looked at.
    Done(Box<Tally>),
    /// It cannot go on.
    Failed {
        /// Why.
        message: String,
    },
}

/// Audits one account or all, and says what it finds. Ends early if nobody listens.
pub async fn audit(store: Arc<dyn Store>, account: Option<AccountId>, events: mpsc::Sender<Event>) {
    let mut run = Run { store, events, tally: Tally::default(), records: 0, told: 0 };
    let last = match run.all(account).await {
        Ok(()) => Event::Done(Box::new(run.tally)),
        Err(error) => Event::Failed { message: error.to_string() },
    };
    // Nobody may listen any more.
    let _ = run.events.send(last).await;
}

/// Audits all accounts to the end: what was looked at, and what does not add up.
///
/// # Errors
///
/// A store that cannot be read to its end.
pub async fn audit_all(store: Arc<dyn Store>) -> Result<(Tally, Vec<Violation>), StoreError> {
    let (sender, mut events) = mpsc::channel(64);
    let auditing = audit(store, None, sender);
    let listening = async {
        let mut violations = Vec::new();
        let mut why = String::new();
        while let Some(event) = events.recv().await {
            match event {
                Event::Violation(violation) => violations.push(violation),
                Event::Progress { .. } => {}
                Event::Done(tally) => return Ok((*tally, violations)),
                Event::Failed { message } => why = message,
            }
        }
        Err(StoreError::Unavailable(why))
    };
    let (found, ()) = tokio::join!(listening, auditing);
    found
}

struct Run {
    store: Arc<dyn Store>,
    events: mpsc::Sender<Event>,
    tally: Tally,
    records: u64,
    /// How many records there were when progress was last told.
    told: u64,
}

impl Run {
    async fn all(&mut self, account: Option<AccountId>) -> Result<(), StoreError> {
        if let Some(account) = account {
            return self.one(&account).await;
        }
        let mut cursor = None;
        loop {
            let page = Page { cursor, limit: ACCOUNTS };
            let accounts = self.store.audited_accounts(page).await?;
            for account in &accounts.data {
                self.one(account).await?;
                if self.events.is_closed() {
                    return Ok(());
                }
            }
            match accounts.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        if let Some(violation) = self.tally.close() {
            self.tell(Event::Violation(violation)).await;
        }
        Ok(())
    }

    /// One account; again, if it was trimmed meanwhile or a request was settled late.
    async fn one(&mut self, account: &AccountId) -> Result<(), StoreError> {
        let mut tries = 1;
        loop {
            match self.read_one(account).await {
                Err(StoreError::Conflict(_)) if tries < TRIES => tries += 1,
                other => return other,
            }
            tokio::time::sleep(WAIT).await;
        }
    }

    async fn read_one(&mut self, account: &AccountId) -> Result<(), StoreError> {
        let (sender, mut records) = mpsc::channel::<Vec<Record>>(BATCHES);
        let store = self.store.clone();
        let reading = store.read_books(account, sender);
        let mut audit = Audit::of(&account.0);
        let taking = async {
            while let Some(batch) = records.recv().await {
                self.records += batch.len() as u64;
                batch.into_iter().for_each(|record| audit.take(record));
                self.tell_progress().await;
            }
        };
        let (read, ()) = tokio::join!(reading, taking);
        let (tally, violations) = match read {
            Ok(()) => audit.finish(),
            Err(StoreError::Ledger(LedgerError::Unsound)) => unreadable(account),
            Err(error) => return Err(error),
        };
        self.tally.add(&tally);
        for violation in violations {
            self.tell(Event::Violation(violation)).await;
        }
        self.tell_progress().await;
        Ok(())
    }

    async fn tell_progress(&mut self) {
        if self.records >= self.told + PROGRESS {
            self.told = self.records;
            let (accounts, records) = (self.tally.accounts, self.records);
            self.tell(Event::Progress { accounts, records }).await;
        }
    }

    async fn tell(&self, event: Event) {
        // Nobody may listen any more; the loop over the accounts ends then.
        let _ = self.events.send(event).await;
    }
}

/// Something is written that nobody of us writes.
fn unreadable(account: &AccountId) -> (Tally, Vec<Violation>) {
    let mut tally = Tally { accounts: 1, ..Tally::default() };
    let invariant = Invariant::I5;
    tally.violations[invariant as usize] = 1;
    let sentence = "the books have a word or a number that has no meaning".to_owned();
    let account = Some(account.to_string());
    (tally, vec![Violation { account, invariant, sentence }])
}
