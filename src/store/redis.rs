//! The shared store: balances in Redis or Valkey, one server, a replicated one or a cluster,
//! for any number of Farebox processes.
//!
//! Every operation is a script (`redis/lua`, one file each) that runs in one step on the keys of
//! one account. The rules are those of `billing`; the scripts are their second implementation.
//! The clock is the server's. Requests of an account that come at the same time go in one
//! script (`lane`), over one connection with a breaker in front (`link`).
//!
//! Whether a command that got no answer was carried out is unknown. Nothing is repeated here:
//! who asked repeats it with the same id, and it happens once.

use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Account, AccountChange, AccountId, Admission, Admitted, Answer, Candidate, Document, Entry,
    EntryFilter, Grant, Granted, Group, Key, KeyChange, KeyUse, LotFilter, LotRow, Millis, Page,
    Put, Refused, Rows, Scope, Settled, Settlement, Store, StoreError, StoreStatus, SummaryRow,
    Undo, UsageFilter, UsageRow,
};
use tokio::sync::mpsc;

use crate::billing::audit::Record;
use crate::config::Config;
use crate::key::{KeyHash, Secret};
use address::Address;
use flights::Running;
use lane::Lanes;
use lent::Lent;
use link::{Link, Timeouts};
use names::{Name, Names};
use read::Order;
use reply::{Reply, no_account};
use script::{Call, Script, Scripts};
use send::answered;
use settle::{Admit, Settle};

mod address;
mod audit;
mod changes;
mod check;
pub mod copy;
mod flights;
mod hours;
mod keys;
mod lane;
mod lent;
mod link;
mod names;
mod read;
mod reply;
mod rows;
mod script;
mod send;
mod settle;
mod status;
mod summary;
mod tasks;
#[cfg(test)]
mod tests;
mod torn;
mod trim;

pub use address::{is_redis, without_secrets};

/// How long the maker of an object is remembered.
const OWNED_MS: Millis = 30 * 24 * 3_600_000;

/// Why a store cannot be used: what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);

/// Where a store takes the time from, if not from the server.
pub type Clock = Arc<dyn Fn() -> Millis + Send + Sync>;

/// How a store is opened.
#[derive(Clone)]
pub struct Options {
    /// `redis://…`, `rediss://…`, `redis+unix://…`, `redis+sentinel://…` or `redis+cluster://…`.
    pub url: String,
    /// Stands in for a password that the URL lacks.
    pub password: Option<Secret>,
    /// The certificate authority of a private server, as PEM.
    pub ca_file: Option<PathBuf>,
    /// What every key begins with.
    pub prefix: String,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer that a request waits for.
    pub command_timeout: Duration,
    /// Replicas that must have a debit before it is acknowledged.
    pub wait: u32,
    /// How long a place is lent to a request; it is lent on while the request runs.
    pub lease: Duration,
    /// How long the ids of settlements are remembered.
    pub remember: Duration,
    /// Where a copy lies while it is made.
    pub scratch: PathBuf,
    /// Uses a server that is found unfit.
    pub allow_unsafe: bool,
    /// Opens also while nobody answers, and is not ready until somebody does.
    pub may_be_away: bool,
    /// Tests set the time; it may step back.
    pub clock: Option<Clock>,
}

impl Options {
    /// The defaults, for a server.
    pub fn of(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            password: None,
            ca_file: None,
            prefix: "fbx".into(),
            connect_timeout: Duration::from_millis(200),
            command_timeout: Duration::from_millis(250),
            wait: 0,
            lease: Duration::from_secs(60),
            remember: Duration::from_secs(7 * 86_400),
            scratch: std::env::temp_dir(),
            allow_unsafe: false,
            may_be_away: false,
            clock: None,
        }
    }
}

impl From<&Config> for Options {
    fn from(config: &Config) -> Self {
        let ca_file = &config.redis_ca_file;
        Self {
            password: config.redis_password.clone(),
            ca_file: Some(ca_file.clone()).filter(|path| !path.as_os_str().is_empty()),
            prefix: config.redis_prefix.clone(),
            connect_timeout: config.redis_connect_timeout,
            command_timeout: config.redis_command_timeout,
            wait: config.redis_wait,
            lease: config.redis_lease,
            scratch: config.data_dir().to_owned(),
            allow_unsafe: config.redis_allow_unsafe,
            ..Self::of(&config.store)
        }
    }
}

/// A store in Redis or Valkey.
pub struct Redis {
    shared: Arc<Shared>,
}

/// What tasks hold too.
struct Shared {
    link: Arc<Link>,
    /// Where it is, without a password.
    location: String,
    /// Where a copy lies while it is made.
    scratch: PathBuf,
    names: Names,
    scripts: Scripts,
    clock: Option<Clock>,
    lease: Duration,
    remember: Duration,
    running: Running,
    lent: Lent,
    keys: keys::Cache,
    settles: Arc<Lanes<Settle, Settled>>,
    admits: Arc<Lanes<Admit, Result<Admitted, Refused>>>,
    releases: Arc<Lanes<String, ()>>,
}

impl Redis {
    /// Connects, looks whether the server is fit, and begins to renew leases and to sweep.
    ///
    /// # Errors
    ///
    /// [`OpenError`], when it cannot be reached, or must not be trusted with money.
    pub async fn open(options: Options) -> Result<Arc<Self>, OpenError> {
        let restoring = Names::new(&options.prefix).restoring();
        let store = Self::connect(options, Some(restoring)).await?;
        tasks::start(&store.shared);
        Ok(store)
    }

    /// Connects, and looks whether the server is fit; and whole, if `restoring` is the name of
    /// the key that says otherwise.
    async fn connect(options: Options, restoring: Option<String>) -> Result<Arc<Self>, OpenError> {
        let Options { url, password, ca_file, prefix, wait, lease, remember, clock, .. } = options;
        let Options { scratch, allow_unsafe, may_be_away, .. } = options;
        let timeouts =
            Timeouts { connect: options.connect_timeout, command: options.command_timeout };
        let address = Address::read(&url, password.as_ref(), ca_file.as_deref())?;
        let location = address.to_string();
        let names = Names::new(&prefix);
        let files = names.files();
        let vet = check::Vet { address, anyway: allow_unsafe, restoring, files };
        let link = Link::open(vet, timeouts, wait, names.probe(), may_be_away).await?;
        let is_asked = clock.is_some();
        let shared = Arc::new(Shared {
            link,
            location,
            scratch,
            names,
            scripts: Scripts::new(),
            clock,
            lease,
            remember,
            running: Running::default(),
            lent: Lent::new(is_asked),
            keys: keys::Cache::default(),
            settles: Arc::default(),
            admits: Arc::default(),
            releases: Arc::default(),
        });
        Ok(Arc::new(Self { shared }))
    }
}

impl Shared {
    /// Gives the place of a request back; nobody waits for it.
    fn send_release(self: &Arc<Self>, account: &AccountId, request: &str) {
        self.running.end(account, request);
        let shared = self.clone();
        drop(self.releases.submit(account, request.to_owned(), move |account, requests| {
            let shared = shared.clone();
            async move { shared.send_releases(&account, requests).await }
        }));
    }

    /// The first argument of a script: the time, where tests set it.
    fn clock(&self) -> String {
        self.clock.as_ref().map(|clock| clock().to_string()).unwrap_or_default()
    }

    /// The store's time.
    async fn now(&self) -> Result<Millis, StoreError> {
        match &self.clock {
            Some(clock) => Ok(clock()),
            None => Ok(keys::millis(self.link.quick(&::redis::cmd("TIME")).await?)?),
        }
    }

    /// A call of a script about one account, with the time as its first argument.
    fn call<'a>(&self, script: &'a Script, account: &AccountId, more: &[String]) -> Call<'a> {
        script.call(&self.names, account, more).arg(self.clock())
    }

    /// Makes an account. It is listed first: what is listed and not there is left out, but
    /// what is there and not listed would not be found.
    async fn make_account(&self, id: AccountId, name: String) -> Result<Account, StoreError> {
        let mut list = ::redis::cmd("ZADD");
        list.arg(self.names.accounts()).arg(0).arg(&*id.0);
        self.link.quick(&list).await?;
        let call = self.call(&self.scripts.create_account, &id, &[]).arg(&name);
        let mut answer = Reply::of(self.link.commit(&call).await?)?;
        if answer.text()? != "ok" {
            return Err(StoreError::Conflict(format!("the account {id} exists")));
        }
        self.read_account(&id).await
    }

    async fn configure(
        &self,
        id: &AccountId,
        change: AccountChange,
    ) -> Result<Account, StoreError> {
        let mut call = self.call(&self.scripts.configure, id, &[]);
        let mode = change.mode.map(|mode| mode.map(reply::word_of).unwrap_or_default());
        let max = change.max_in_flight.map(|max| max.map(|n| n.to_string()).unwrap_or_default());
        for (field, value) in [("name", change.name), ("mode", mode), ("max_in_flight", max)] {
            if let Some(value) = value {
                call.push(field);
                call.push(value);
            }
        }
        let mut answer = Reply::of(self.link.commit(&call).await?)?;
        if answer.text()? != "ok" {
            return Err(no_account(id));
        }
        self.outlive_belief(&answer.text()?).await;
        self.read_account(id).await
    }

    async fn text_of(&self, key: &str) -> Result<Option<String>, StoreError> {
        let mut cmd = ::redis::cmd("GET");
        cmd.arg(key);
        Ok(reply::maybe(self.link.patient(&cmd).await?)?)
    }

    async fn epoch(&self) -> Result<String, StoreError> {
        let mut info = ::redis::cmd("INFO");
        info.arg("everything");
        let mut epoch = check::epoch_of(&self.link.of_each_master(&info).await?);
        if let Some(generation) = self.text_of(&self.names.generation()).await? {
            epoch.push(' ');
            epoch.push_str(&generation);
        }
        Ok(epoch)
    }

    async fn document(&self, scope: &Scope, name: &str) -> Result<Option<Document>, StoreError> {
        let keys = vec![self.names.document(scope, name)];
        let call = self.scripts.document.call_on(keys).arg(self.clock());
        let mut answer = Reply::of(self.link.run(&call).await?)?;
        if answer.text()? != "ok" {
            return Ok(None);
        }
        Ok(Some(Document { body: answer.text()?, version: answer.number()? }))
    }

    async fn put_document(&self, scope: &Scope, put: Put) -> Result<u64, StoreError> {
        let Put { name, body, replaces, expires_at } = put;
        let mut keys = vec![self.names.document(scope, &name)];
        if let Scope::Account(account) = scope {
            keys.push(self.names.of(account, Name::Account));
        }
        let or_empty = |number: Option<String>| number.unwrap_or_default();
        let call = self.scripts.put_document.call_on(keys).arg(self.clock());
        let call = call.arg(or_empty(replaces.map(|version| version.to_string())));
        let call = call.arg(body.as_deref().unwrap_or_default());
        let call = call.arg(or_empty(expires_at.map(|at| at.to_string())));
        let call = call.arg(if body.is_none() { "1" } else { "0" });
        let mut answer = Reply::of(self.link.commit(&call).await?)?;
        match (answer.text()?.as_str(), scope) {
            ("ok", _) => Ok(answer.number()?),
            ("no_account", Scope::Account(account)) => Err(no_account(account)),
            _ => Err(StoreError::Conflict(format!("{name} was changed meanwhile"))),
        }
    }

    async fn own(&self, account: &AccountId, object: &str) -> Result<(), StoreError> {
        let key = [self.names.object(account, object)];
        let call = self.call(&self.scripts.own, account, &key).arg(OWNED_MS.to_string());
        self.link.commit(&call).await?;
        Ok(())
    }

    async fn owns(&self, account: &AccountId, object: &str) -> Result<bool, StoreError> {
        let key = [self.names.object(account, object)];
        let call = self.call(&self.scripts.owns, account, &key);
        Ok(Reply::of(self.link.run(&call).await?)?.text()? == "yes")
    }
}

impl Store for Redis {
    fn create_account(&self, id: AccountId, name: String) -> Answer<'_, Account> {
        Box::pin(self.shared.make_account(id, name))
    }

    fn account(&self, id: &AccountId) -> Answer<'_, Account> {
        let id = id.clone();
        Box::pin(async move {
            self.shared.releases.quiet(&id).await;
            self.shared.tell_all(&id).await;
            self.shared.read_account(&id).await
        })
    }

    fn accounts(&self, page: Page) -> Answer<'_, Rows<Account>> {
        Box::pin(self.shared.read_accounts(page))
    }

    fn configure_account(&self, id: &AccountId, change: AccountChange) -> Answer<'_, Account> {
        let id = id.clone();
        Box::pin(async move { self.shared.configure(&id, change).await })
    }

    fn create_key(&self, key: Key, hash: KeyHash) -> Answer<'_, Key> {
        Box::pin(self.shared.make_key(key, hash))
    }

    fn key(&self, hash: &KeyHash) -> Answer<'_, Option<Arc<Key>>> {
        match self.shared.kept_key(hash) {
            Some(key) => Box::pin(ready(Ok(Some(key)))),
            None => Box::pin(self.shared.read_key(*hash)),
        }
    }

    fn keys(&self, account: &AccountId) -> Answer<'_, Vec<Key>> {
        let account = account.clone();
        Box::pin(async move { self.shared.read_keys(&account).await })
    }

    fn change_key(&self, account: &AccountId, id: &str, change: KeyChange) -> Answer<'_, Key> {
        let (account, id) = (account.clone(), id.to_owned());
        Box::pin(async move { self.shared.alter_key(&account, &id, Some(change)).await })
    }

    fn key_use(&self, account: &AccountId, id: &str) -> Answer<'_, KeyUse> {
        let (account, id) = (account.clone(), id.to_owned());
        Box::pin(async move { self.shared.read_key_use(&account, &id).await })
    }

    fn revoke_key(&self, account: &AccountId, id: &str) -> Answer<'_, Key> {
        let (account, id) = (account.clone(), id.to_owned());
        Box::pin(async move { self.shared.alter_key(&account, &id, None).await })
    }

    fn admit(
        &self,
        key: &Key,
        request: Candidate,
        how: Admission,
    ) -> Answer<'_, Result<Admitted, Refused>> {
        if self.shared.link.is_up()
            && let Some(balance) = self.shared.lent.take(key, &request, how)
        {
            return Box::pin(ready(Ok(Ok(Admitted { balance }))));
        }
        let (shared, account, id) = (self.shared.clone(), key.account.clone(), request.id.clone());
        let asked = Admit { key: key.clone(), request, how, untils: String::new() };
        Box::pin(async move {
            // A place that was given back before this is free.
            self.shared.releases.quiet(&account).await;
            let send = move |account, asked| {
                let shared = shared.clone();
                async move { shared.send_admits(&account, asked).await }
            };
            let admitted = answered(self.shared.admits.submit(&account, asked, send)).await;
            match &admitted {
                Ok(Ok(_)) => self.shared.running.begin(&account, &id),
                // It may have a place all the same.
                Err(StoreError::Unavailable(_)) => self.release(&account, &id),
                Ok(Err(_)) | Err(_) => {}
            }
            admitted
        })
    }

    fn release(&self, account: &AccountId, request: &str) {
        if !self.shared.lent.release(account, request) {
            self.shared.send_release(account, request);
        }
    }

    fn settle(&self, settlement: Settlement) -> Answer<'_, Settled> {
        let (shared, account) = (self.shared.clone(), settlement.account.clone());
        self.shared.running.end(&account, &settlement.id);
        self.shared.lent.ending(&account, &settlement.id);
        let asked = Settle::new(settlement);
        let answer = self.shared.settles.submit(&account, asked, move |account, asked| {
            let shared = shared.clone();
            async move { shared.send_settles(&account, asked).await }
        });
        Box::pin(answered(answer))
    }

    fn grant(&self, grant: Grant) -> Answer<'_, Granted> {
        Box::pin(self.shared.grant(grant))
    }

    fn refund(&self, refund: Undo) -> Answer<'_, Granted> {
        Box::pin(self.shared.refund(refund))
    }

    fn reverse(&self, reversal: Undo) -> Answer<'_, Granted> {
        Box::pin(self.shared.reverse(reversal))
    }

    fn close_account(&self, account: &AccountId, id: String) -> Answer<'_, Account> {
        let account = account.clone();
        Box::pin(async move {
            self.shared.close(&account, id).await?;
            self.shared.read_account(&account).await
        })
    }

    fn lots(&self, account: &AccountId, filter: LotFilter, page: Page) -> Answer<'_, Rows<LotRow>> {
        let account = account.clone();
        Box::pin(async move { self.shared.read_lots(&account, filter, &page).await })
    }

    fn entries(
        &self,
        account: &AccountId,
        filter: EntryFilter,
        page: Page,
    ) -> Answer<'_, Rows<Entry>> {
        let account = account.clone();
        Box::pin(async move {
            self.shared.read_entries(&account, filter, &page, Order::NewestFirst).await
        })
    }

    fn usage(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        page: Page,
    ) -> Answer<'_, Rows<UsageRow>> {
        let account = account.clone();
        Box::pin(async move {
            self.shared.read_usage(&account, filter, &page, Order::NewestFirst).await
        })
    }

    fn entries_oldest_first(
        &self,
        account: &AccountId,
        filter: EntryFilter,
        page: Page,
    ) -> Answer<'_, Rows<Entry>> {
        let account = account.clone();
        Box::pin(async move {
            self.shared.read_entries(&account, filter, &page, Order::OldestFirst).await
        })
    }

    fn usage_oldest_first(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        page: Page,
    ) -> Answer<'_, Rows<UsageRow>> {
        let account = account.clone();
        Box::pin(async move {
            self.shared.read_usage(&account, filter, &page, Order::OldestFirst).await
        })
    }

    fn summary(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        by: Group,
        zone: jiff::tz::TimeZone,
    ) -> Answer<'_, Vec<SummaryRow>> {
        let account = account.clone();
        Box::pin(async move { self.shared.sum(&account, &filter, by, &zone).await })
    }

    fn audited_accounts(&self, page: Page) -> Answer<'_, Rows<AccountId>> {
        Box::pin(async move { self.shared.list_accounts(&page).await })
    }

    fn read_books(
        &self,
        account: &AccountId,
        records: mpsc::Sender<Vec<Record>>,
    ) -> Answer<'_, ()> {
        let account = account.clone();
        Box::pin(async move { self.shared.read_all(&account, records).await })
    }

    fn trim(&self, account: &AccountId, before: Millis) -> Answer<'_, ()> {
        let account = account.clone();
        Box::pin(async move { self.shared.trim(&account, before).await })
    }

    fn status(&self) -> Answer<'_, StoreStatus> {
        Box::pin(self.shared.status())
    }

    fn backup(&self) -> Answer<'_, std::fs::File> {
        Box::pin(self.shared.backup())
    }

    fn document(&self, scope: &Scope, name: &str) -> Answer<'_, Option<Document>> {
        let (scope, name) = (scope.clone(), name.to_owned());
        Box::pin(async move { self.shared.document(&scope, &name).await })
    }

    fn put_document(&self, scope: &Scope, put: Put) -> Answer<'_, u64> {
        let scope = scope.clone();
        Box::pin(async move { self.shared.put_document(&scope, put).await })
    }

    fn own(&self, account: &AccountId, object: &str) -> Answer<'_, ()> {
        let (account, object) = (account.clone(), object.to_owned());
        Box::pin(async move { self.shared.own(&account, &object).await })
    }

    fn owns(&self, account: &AccountId, object: &str) -> Answer<'_, bool> {
        let (account, object) = (account.clone(), object.to_owned());
        Box::pin(async move { self.shared.owns(&account, &object).await })
    }

    fn epoch(&self) -> Answer<'_, String> {
        Box::pin(self.shared.epoch())
    }

    fn ready(&self) -> Answer<'_, ()> {
        Box::pin(async move { Ok(self.shared.link.ready().await?) })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            self.shared.settles.idle().await;
            self.shared.releases.idle().await;
            self.shared.give_all_back().await;
            self.shared.link.close();
            Ok(())
        })
    }
}
