//! Books that were kept before a test began: written through the store itself, by a clock that
//! the test sets. The real program is then started on the file.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use farebox::billing::ledger::{Expiry, Kind};
use farebox::billing::{Credits, Usage};
use farebox::key::KeyHash;
use farebox::store::embedded::{Clock, Embedded, Options, Synchronous};
use farebox::store::redis::{self, Redis};
use farebox::store::{
    AccountId, Attribution, Grant, Key, KeyLimits, Outcome, Rejection, Settlement, Source, Store,
};

use super::credits;

pub const HOUR_MS: i64 = 3_600_000;
pub const DAY_MS: i64 = 24 * HOUR_MS;

/// A store that is being filled.
pub struct History {
    store: Arc<dyn Store>,
    clock: Arc<AtomicI64>,
    number: AtomicU64,
}

/// A store's clock that stands where the test set it.
fn reading(clock: &Arc<AtomicI64>) -> Clock {
    let clock = Arc::clone(clock);
    Arc::new(move || clock.load(Ordering::SeqCst))
}

impl History {
    /// A new store in a file.
    pub fn open(file: &Path) -> Self {
        let clock = Arc::new(AtomicI64::new(0));
        let options = Options {
            synchronous: Synchronous::Normal,
            clock: reading(&clock),
            ..Options::default()
        };
        let store = Embedded::open(file, options).unwrap();
        Self { store, clock, number: AtomicU64::default() }
    }

    /// A store in a Redis that has none yet.
    pub async fn on(url: &str) -> Self {
        let clock = Arc::new(AtomicI64::new(0));
        let options = redis::Options {
            clock: Some(reading(&clock)),
            command_timeout: super::PATIENCE,
            allow_unsafe: true,
            ..redis::Options::of(url)
        };
        let store = Redis::open(options).await.unwrap();
        Self { store, clock, number: AtomicU64::default() }
    }

    /// What happens next happens then, in milliseconds since 1970.
    pub fn at(&self, instant: i64) -> &Self {
        self.clock.store(instant, Ordering::SeqCst);
        self
    }

    fn now(&self) -> i64 {
        self.clock.load(Ordering::SeqCst)
    }

    fn next(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    pub async fn account(&self, id: &str, name: &str) {
        self.store.create_account(AccountId(id.into()), name.into()).await.unwrap();
    }

    pub async fn grant(&self, account: &str, kind: Kind, amount: &str, note: &str) {
        self.give(account, kind, amount, note, None).await;
    }

    /// Credits that end.
    pub async fn lot(&self, account: &str, kind: Kind, amount: &str, ends: i64) {
        self.give(account, kind, amount, "welcome", Some(Expiry::At(ends))).await;
    }

    async fn give(
        &self,
        account: &str,
        kind: Kind,
        amount: &str,
        note: &str,
        expires: Option<Expiry>,
    ) {
        let grant = Grant {
            account: AccountId(account.into()),
            kind,
            amount: credits(amount),
            expires,
            note: note.into(),
            id: format!("grant-{}", self.next()),
        };
        self.store.grant(grant).await.unwrap();
    }

    /// A key that nobody knows the secret of.
    pub async fn key(&self, account: &str, id: &str, name: &str, tag: Option<&str>) {
        let key = Key {
            id: id.into(),
            account: AccountId(account.into()),
            name: name.into(),
            tag: tag.map(str::to_owned),
            models: Vec::new(),
            rejection: Rejection::Limit,
            limits: KeyLimits::default(),
            last4: "a1B2".into(),
            created_at: self.now(),
            expires_at: None,
            revoked_at: None,
        };
        self.store.create_key(key, KeyHash::of(id)).await.unwrap();
    }

    /// A request as it is settled, to be changed at will.
    pub fn request(&self, account: &str, key: &str, model: &str, charge: Credits) -> Settlement {
        let at = u64::try_from(self.now()).unwrap();
        let id = ulid::Ulid::from_parts(at, u128::from(self.next()));
        Settlement {
            id: format!("req_{id}").to_lowercase(),
            account: AccountId(account.into()),
            key: key.into(),
            model: model.into(),
            served_model: None,
            upstream: "openai".into(),
            attribution: Attribution::default(),
            usage: Usage { input: 1_200, output: 350, ..Usage::default() },
            charge,
            price_version: String::new(),
            ttft_ms: Some(410),
            latency_ms: 2_300,
            stream: true,
            outcome: Outcome::Completed,
            source: Source::Reported,
            http_status: 200,
            flags: String::new(),
        }
    }

    pub async fn settle(&self, request: Settlement) {
        self.store.settle(request).await.unwrap();
    }

    pub async fn end_account(&self, account: &str) {
        let id = AccountId(account.into());
        self.store.close_account(&id, format!("close-{account}")).await.unwrap();
    }

    /// Everything is in the file, and the file is free.
    pub async fn close(self) {
        self.store.close().await.unwrap();
    }
}
