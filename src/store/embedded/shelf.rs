//! What the writer keeps from one operation to the next: the books of the accounts used
//! lately, and what a batch is to write once rather than with every debit.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Deref;

use foldhash::HashMap;
use rusqlite::Connection;

use super::books::Kept;
use super::rows::Sums;
use crate::store::AccountId;

/// Accounts kept before all are forgotten.
const ACCOUNTS: usize = 4_096;

/// The books of accounts, true as of the last commit; within a step, as of now.
#[derive(Default)]
pub(super) struct Shelf {
    accounts: HashMap<AccountId, Kept>,
    /// Accounts that changed in this step, each once.
    changed: Vec<AccountId>,
    sums: Sums,
    /// Requests that have a row in `flight`, and those of them that end in this step.
    noted: HashSet<(AccountId, String)>,
    ending: Vec<(AccountId, String)>,
}

/// One transaction of the writer. It derefs to the connection, in which what [`Step::keep`]
/// and [`Step::sum`] were given is missing until the end of the step.
pub(super) struct Step<'a> {
    db: &'a Connection,
    shelf: RefCell<&'a mut Shelf>,
}

impl<'a> Step<'a> {
    pub(super) fn new(db: &'a Connection, shelf: &'a mut Shelf) -> Self {
        Self { db, shelf: RefCell::new(shelf) }
    }

    /// An account, if it is kept.
    pub(super) fn kept(&self, account: &AccountId) -> Option<Kept> {
        self.shelf.borrow().accounts.get(account).cloned()
    }

    /// Keeps an account as it is now, to be written at the end of the step.
    pub(super) fn keep(&self, account: &AccountId, mut kept: Kept) {
        let mut shelf = self.shelf.borrow_mut();
        if !kept.is_changed {
            kept.is_changed = true;
            shelf.changed.push(account.clone());
        }
        match shelf.accounts.get_mut(account) {
            Some(place) => *place = kept,
            None => drop(shelf.accounts.insert(account.clone(), kept)),
        }
    }

    /// The sums that this step adds to.
    pub(super) fn sum(&self, add: impl FnOnce(&mut Sums)) {
        add(&mut self.shelf.borrow_mut().sums);
    }

    /// A request has a row in `flight`.
    pub(super) fn noted(&self, account: &AccountId, request: &str) {
        self.shelf.borrow_mut().noted.insert((account.clone(), request.into()));
    }

    /// Whether a request that ends now has a row in `flight`.
    pub(super) fn ends(&self, account: &AccountId, request: &str) -> bool {
        let mut shelf = self.shelf.borrow_mut();
        if shelf.noted.is_empty() {
            return false;
        }
        let flight = (account.clone(), request.to_owned());
        let has_row = shelf.noted.contains(&flight);
        if has_row {
            shelf.ending.push(flight);
        }
        has_row
    }

    /// Writes what was kept back.
    pub(super) fn finish(self) -> rusqlite::Result<()> {
        let Shelf { accounts, changed, sums, .. } = &mut **self.shelf.borrow_mut();
        for account in changed.drain(..) {
            if let Some(kept) = accounts.get_mut(&account) {
                kept.write(self.db, &account)?;
            }
        }
        sums.write(self.db)
    }
}

impl Deref for Step<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.db
    }
}

impl Shelf {
    /// The step was committed.
    pub(super) fn committed(&mut self) {
        for flight in self.ending.drain(..) {
            self.noted.remove(&flight);
        }
        if self.accounts.len() > ACCOUNTS {
            self.accounts.clear();
        }
    }

    /// The step was not committed: what is kept is no longer true.
    pub(super) fn rolled_back(&mut self) {
        self.accounts.clear();
        self.changed.clear();
        self.sums.clear();
        self.ending.clear();
    }
}
