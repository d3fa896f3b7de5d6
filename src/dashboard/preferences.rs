//! How an account's pages are shown: kept per account, so that all who look see the same.

use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::moment::Zone;
use super::number::Decimals;
use super::page::Post;
use super::{Failure, session};
use crate::admin::State;
use crate::store::{AccountId, Put, Scope, Store, StoreError};

/// The document's name, in the scope of the account.
pub const NAME: &str = "preferences";
/// The cookie of the browser's own zone.
const ZONE_COOKIE: &str = "farebox_zone";

/// What an account chose. A field that is missing has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Preferences {
    /// A zone by name; empty: the browser's.
    pub zone: String,
    /// Whether single keys and `g` sequences do something.
    pub no_shortcuts: bool,
    /// Decimals of amounts in prose and on cards; none: as many as fit the amount.
    pub decimals: Option<u8>,
}

impl Preferences {
    /// Those of an account.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn of(store: &dyn Store, account: &AccountId) -> Result<Self, StoreError> {
        let found = store.document(&Scope::Account(account.clone()), NAME).await?;
        Ok(found.and_then(|found| serde_json::from_str(&found.body).ok()).unwrap_or_default())
    }

    /// Keeps them, whatever they were before.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    pub async fn keep(&self, store: &dyn Store, account: &AccountId) -> Result<(), StoreError> {
        let scope = Scope::Account(account.clone());
        let body =
            serde_json::to_string(self).map_err(|e| StoreError::Unavailable(e.to_string()))?;
        loop {
            let found = store.document(&scope, NAME).await?;
            let put = Put {
                name: NAME.into(),
                body: Some(body.clone()),
                replaces: found.map(|found| found.version),
                expires_at: None,
            };
            match store.put_document(&scope, put).await {
                // Somebody else kept theirs meanwhile; the last one stays.
                Err(StoreError::Conflict(_)) => {}
                other => return other.map(drop),
            }
        }
    }

    /// How many decimals amounts in prose and on cards have.
    pub fn decimals(&self) -> Decimals {
        let chosen = self.decimals.filter(|places| Decimals::CHOICES.contains(places));
        chosen.map_or(Decimals::Fitting, Decimals::Fixed)
    }

    /// The zone of a request: the account's, else the browser's, else UTC.
    pub fn zone(&self, headers: &HeaderMap) -> Zone {
        let browser = session::cookie(headers, ZONE_COOKIE).map(|name| name.replace("%2F", "/"));
        Zone::named(&self.zone)
            .or_else(|| browser.and_then(|name| Zone::named(&name)))
            .unwrap_or_else(Zone::utc)
    }
}

/// What the menu of zones sends.
#[derive(Debug, Deserialize)]
pub struct ZoneForm {
    zone: String,
    next: String,
}

/// Sets the browser's zone by hand, and goes back.
///
/// # Errors
///
/// When there is no such zone.
pub async fn set_zone(
    Shared(state): Shared<State>,
    Post { form, .. }: Post<ZoneForm>,
) -> Result<Response, Failure> {
    let zone = Zone::named(&form.zone)
        .ok_or_else(|| Failure::Invalid(String::from("There is no such time zone.")))?;
    let secure = if state.site.is_secure() { "; Secure" } else { "" };
    let cookie =
        format!("{ZONE_COOKIE}={}; Path=/; SameSite=Strict; Max-Age=31536000{secure}", zone.name);
    let to = super::sign_in::safe_next(&state.site, Some(&form.next));
    let headers = [(header::SET_COOKIE, cookie), (header::LOCATION, to)];
    Ok((StatusCode::SEE_OTHER, headers).into_response())
}
