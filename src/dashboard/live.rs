//! Whether anything changed: asked every few seconds by pages that are looked at.

use axum::Json;
use serde::Serialize;

use super::{Failure, Page};
use crate::store::{self, Account, EntryFilter, Store, StoreError, UsageFilter};

/// The state of an account, as a word that changes with it.
#[derive(Debug, Serialize)]
pub struct State {
    version: String,
}

/// Answers the word alone; a page that has another reads itself again.
///
/// # Errors
///
/// When nobody is signed in, or the store cannot be read.
pub async fn state(page: Page) -> Result<Json<State>, Failure> {
    let version = version(page.state.store.as_ref(), &page.account).await?;
    Ok(Json(State { version }))
}

/// Changes with the balance, with what runs, and with every entry and request.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn version(store: &dyn Store, account: &Account) -> Result<String, StoreError> {
    let newest = || store::Page { cursor: None, limit: 1 };
    let entries = store.entries(&account.id, EntryFilter::default(), newest()).await?;
    let usage = store.usage(&account.id, UsageFilter::default(), newest()).await?;
    let seq = entries.data.first().map_or(0, |entry| entry.seq);
    let request = usage.data.first().map_or("", |row| row.id.as_str());
    Ok(format!("{seq}.{}.{}.{request}", account.balance.nano(), account.in_flight))
}
