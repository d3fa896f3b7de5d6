//! From settings to a running server, and back down.
//!
//! SIGTERM: not ready at once, no new connections, running requests go on for
//! `drain_timeout`, then their streams end with an error event and are settled from what is
//! known. A second SIGTERM ends that wait at once. SIGHUP reads the price table again.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use axum::ServiceExt as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::admin::upstreams::Upstreams;
use crate::archive::keep_trimmed;
use crate::billing::ledger::Kind;
use crate::config::{Config, Presets};
use crate::dashboard::{self, Site};
use crate::key::{self, Class, KeyHash, Secret};
use crate::prices::Prices;
use crate::proxy::{self, Context};
use crate::store::embedded::{Embedded, Options};
use crate::store::journal::{self, Journal};
use crate::store::redis::{self, Redis};
use crate::store::{AccountId, Grant, Key, KeyLimits, Page, Rejection, Store, StoreError};
use crate::{admin, telemetry, time};

/// The account of the first start, and of the key that `FAREBOX_CLIENT_KEY` presets.
const FIRST_ACCOUNT: &str = "default";

/// What a start needs besides the settings.
pub struct Start {
    /// Settings.
    pub config: Config,
    /// Keys and credits from the environment.
    pub presets: Presets,
    /// Where balances live.
    pub store: Arc<dyn Store>,
    /// What models cost.
    pub prices: Arc<Prices>,
}

/// A server that runs.
pub struct Running {
    /// What every request needs.
    pub ctx: Arc<Context>,
    /// Where it listens.
    pub url: String,
    /// Where its control plane listens.
    pub admin_url: String,
    /// The client key, if it was made now.
    pub client_key: Option<Secret>,
    closing: CancellationToken,
    /// Where people reach the billing pages.
    pub site: Arc<Site>,
    listeners: Vec<tokio::task::JoinHandle<()>>,
}

/// Taken from before anyone can know that the server runs: what is not taken ends the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn take() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one that asks for the end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves until told to end.
///
/// # Errors
///
/// Why it could not start, in one sentence, with the fix.
pub async fn run(config: Config, presets: Presets) -> anyhow::Result<()> {
    telemetry::start(&config);
    let signals = Signals::take()?;
    let prices = Arc::new(load_prices(&config)?);
    let mut store = match config.is_shared() {
        true => open_shared(&config, true).await?,
        false => open_store(&config).await?,
    };
    if config.is_shared() {
        store = with_journal(&config, store).await?;
    }
    let mut running = start(Start { config, presets, store, prices }).await?;
    println!("{}", banner(&running));
    if let Some(key) = running.client_key.take() {
        hand_over(&running.ctx.config, &key)?;
    }
    println!("listening on {}", running.url);
    println!("control plane on {}", running.admin_url);
    running.until_told(signals).await
}

/// Loads the price table.
///
/// # Errors
///
/// Every problem of the file, each at its line.
pub fn load_prices(config: &Config) -> anyhow::Result<Prices> {
    let path = Some(config.pricing.as_path()).filter(|path| !path.as_os_str().is_empty());
    Ok(Prices::load(path)?)
}

/// Opens where balances live: a database file, made with its folder on the first start, or
/// the Redis that others use too.
///
/// # Errors
///
/// When the folder cannot be written, or the file is held, damaged or too new; when Redis
/// cannot be reached, or must not be trusted with balances.
pub async fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    if config.is_shared() {
        return open_shared(config, false).await;
    }
    let options = Options { synchronous: config.synchronous, ..Options::default() };
    Ok(Embedded::open(config.store_path(), options)?)
}

/// Opens the Redis that others use too. One that may be away is waited for: until it is there
/// nothing is admitted.
async fn open_shared(config: &Config, may_be_away: bool) -> anyhow::Result<Arc<dyn Store>> {
    // The keys of the first start lie here, without a database beside them.
    std::fs::create_dir_all(config.data_dir()).with_context(|| {
        format!("{} cannot be made: check the folder", config.data_dir().display())
    })?;
    Ok(Redis::open(redis::Options { may_be_away, ..redis::Options::from(config) }).await?)
}

/// Puts the journal before a store that may be away or lose its last writes, unless the
/// settings say otherwise; waits a moment for the store to have what the journal holds.
///
/// # Errors
///
/// When the folder cannot be written, or its files are held, damaged or too new.
pub async fn with_journal(
    config: &Config,
    store: Arc<dyn Store>,
) -> Result<Arc<dyn Store>, journal::OpenError> {
    let Some(dir) = config.journal_dir() else {
        tracing::warn!(
            "there is no journal: debits of running requests are lost if the store goes away, \
             and what the store itself loses in a failover is lost"
        );
        return Ok(store);
    };
    let options = journal::Options { dir, replay: config.journal_replay };
    let is_there = store.ready().await.is_ok();
    let journal = Journal::open(store, options)?;
    if is_there {
        journal.settled_within(JOURNAL_PATIENCE).await;
    }
    Ok(journal)
}

/// How long a start waits until requests are admitted; then they are refused for a while.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(10);

/// Opens both listeners.
///
/// # Errors
///
/// When an address is taken, or the first account and keys cannot be made.
pub async fn start(start: Start) -> anyhow::Result<Running> {
    let Start { config, presets, store, prices } = start;
    let listener = bind(config.listen, "FAREBOX_LISTEN").await?;
    let admin_listener = bind(config.admin_listen, "FAREBOX_ADMIN_LISTEN").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let admin_url = format!("http://{}", admin_listener.local_addr()?);
    let admin_key = admin_key(&config, &presets)?;
    let (client_key, is_late) = match first_account(store.as_ref(), &presets).await {
        Err(error) if config.is_shared() && is_away(&error) => (None, true),
        made => (made?, false),
    };

    let site = Site::new(
        if config.admin_url.is_empty() { &admin_url } else { &config.admin_url },
        &format!("{}/v1", reach(&url)),
    );
    let mut hosts = config.admin_hosts.clone();
    hosts.push(site.host().to_owned());
    let site = Arc::new(site);
    let (retention, archive) = (config.retention, config.archive_dir());
    let ctx = Arc::new(Context::new(config, Arc::clone(&store), Arc::clone(&prices)));
    let closing = CancellationToken::new();
    let admin_state = {
        let (ctx, prices) = (Arc::clone(&ctx), Arc::clone(&prices));
        admin::State {
            store,
            site: Arc::clone(&site),
            prices: Arc::new(move || prices.table()),
            alerts: Arc::clone(&ctx.alerts),
            refusals: Arc::clone(&ctx.refusals),
            upstreams: {
                let (ctx, since) = (Arc::clone(&ctx), time::now());
                Arc::new(move || Upstreams::of(&ctx, since))
            },
            admin_key: KeyHash::of(admin_key.expose()),
            metrics_text: Arc::new(move || ctx.metrics.text(ctx.store.backlog().as_ref())),
            hosts: hosts.into(),
            archive: archive.clone().into(),
            closing: closing.clone(),
        }
    };
    let admin = tokio::spawn(serve_admin(admin_listener, admin_state, ctx.stop.clone()));
    let inference = tokio::spawn({
        let listening = proxy::listen(Arc::clone(&ctx), listener, closing.clone());
        async move {
            if let Err(error) = listening.await {
                tracing::error!("the proxy ended: {error}");
            }
        }
    });
    tokio::spawn(keep_prices(Arc::clone(&ctx.store), Arc::clone(&prices), closing.clone()));
    tokio::spawn(Arc::clone(&ctx.alerts).run(closing.clone()));
    until(&closing, async move { prices.watch().await });
    if is_late {
        until(&closing, first_account_late(Arc::clone(&ctx), presets));
    }
    if !retention.is_zero() {
        until(&closing, keep_trimmed(Arc::clone(&ctx.store), retention, archive));
    }
    Ok(Running {
        ctx,
        url,
        admin_url,
        client_key,
        closing,
        site,
        listeners: vec![inference, admin],
    })
}

/// Serves the control plane and the pages until it is stopped.
async fn serve_admin(listener: TcpListener, state: admin::State, stop: CancellationToken) {
    let service = dashboard::service(state).into_make_service();
    let served = axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!("the control plane ended: {error}");
    }
}

/// Does something in the background, and drops it when the program begins to end.
fn until(closing: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(closing.clone().run_until_cancelled_owned(work));
}

/// Keeps every version of the price table that was ever in force, so that each charge can be
/// explained by the prices of its time.
async fn keep_prices(store: Arc<dyn Store>, prices: Arc<Prices>, closing: CancellationToken) {
    const LOOK: Duration = Duration::from_secs(2);
    let mut kept = String::new();
    loop {
        let table = prices.table();
        if table.version != kept && dashboard::explain::keep(store.as_ref(), &table).await.is_ok() {
            kept.clone_from(&table.version);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = closing.cancelled() => return,
        }
    }
}

async fn bind(address: std::net::SocketAddr, variable: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow!("cannot listen on {address} ({error}): set {variable} to an address that is free")
    })
}

impl Running {
    /// Serves until SIGTERM or SIGINT; then ends in the way that this file's head says.
    ///
    /// # Errors
    ///
    /// When the store cannot be closed.
    async fn until_told(self, mut signals: Signals) -> anyhow::Result<()> {
        loop {
            let Signals { terminate, interrupt, hangup } = &mut signals;
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => self.ctx.prices.reload_and_log(),
            }
        }
        tracing::info!("ending: running requests may go on; a second signal ends them");
        self.end(signals.end()).await
    }

    /// Ends: waits for what runs, at most `drain_timeout` or until `hurry`.
    ///
    /// # Errors
    ///
    /// When the store cannot be closed.
    pub async fn end(mut self, hurry: impl Future<Output = ()>) -> anyhow::Result<()> {
        self.closing.cancel();
        let inference = self.listeners.remove(0);
        let tasks = self.ctx.tasks.clone();
        tasks.close();
        let patience = self.ctx.config.drain_timeout;
        {
            let mut finished = std::pin::pin!(async {
                inference.await.ok();
                tasks.wait().await;
            });
            let is_finished = tokio::select! {
                () = &mut finished => true,
                () = tokio::time::sleep(patience) => false,
                () = hurry => false,
            };
            // From here on nothing waits for an upstream any more.
            self.ctx.stop.cancel();
            if !is_finished {
                tokio::time::timeout(Duration::from_secs(10), finished).await.ok();
            }
        }
        for listener in self.listeners {
            listener.abort();
        }
        self.ctx.store.close().await.context("the ledger could not be closed")
    }
}

/// The admin key: the preset, else the one of the file beside the store, made on the first
/// start. The file is readable by its owner alone, and is what the command line signs with.
fn admin_key(config: &Config, presets: &Presets) -> anyhow::Result<Secret> {
    if let Some(key) = &presets.admin_key {
        return Ok(key.clone());
    }
    let path = admin_key_path(config);
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().len() >= 8 => Ok(Secret::new(text.trim())),
        Ok(_) => bail!("{} holds no key: delete it, and a new one is made", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = key::generate(Class::Admin)?;
            write_private(&path, key.expose())?;
            Ok(key)
        }
        Err(error) => bail!("{} cannot be read ({error}): check its owner", path.display()),
    }
}

/// Where the admin key is kept.
pub fn admin_key_path(config: &Config) -> PathBuf {
    config.data_dir().join("admin-key")
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("{} cannot be written: check the folder", path.display()))?;
    writeln!(file, "{text}")?;
    Ok(file.sync_all()?)
}

/// On the first start: the account `default` with a key. Then, at each start, the presets.
async fn first_account(store: &dyn Store, presets: &Presets) -> anyhow::Result<Option<Secret>> {
    let id = AccountId(FIRST_ACCOUNT.into());
    let is_first = is_first_start(store, &id).await?;
    let presets_need_it = presets.client_key.is_some() || presets.initial_credits.is_some();
    let mut made = None;
    if is_first || presets_need_it {
        match store.create_account(id.clone(), FIRST_ACCOUNT.into()).await {
            Ok(_) | Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if is_first && presets.client_key.is_none() {
            let key = key::generate(Class::Client)?;
            keep_key(store, &id, "first", &key).await?;
            made = Some(key);
        }
    }
    if let Some(key) = &presets.client_key
        && store.key(&KeyHash::of(key.expose())).await?.is_none()
    {
        keep_key(store, &id, "preset", key).await?;
    }
    if let Some(amount) = presets.initial_credits.filter(|amount| amount.is_positive()) {
        let grant = Grant {
            account: id,
            kind: Kind::Topup,
            amount,
            expires: None,
            note: "initial credits".into(),
            id: "initial-credits".into(),
        };
        match store.grant(grant).await {
            Ok(_) => {}
            Err(StoreError::Conflict(_)) => tracing::warn!(
                "FAREBOX_INITIAL_CREDITS was granted before with another amount and is left alone"
            ),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(made)
}

/// Whether there is no account yet; or the first alone and without a key, because a start was
/// cut off, or its store went away, between the two.
async fn is_first_start(store: &dyn Store, first: &AccountId) -> Result<bool, StoreError> {
    let accounts = store.accounts(Page { cursor: None, limit: 2 }).await?.data;
    match accounts.as_slice() {
        [] => Ok(true),
        [only] if only.id == *first => Ok(store.keys(first).await?.is_empty()),
        _ => Ok(false),
    }
}

fn is_away(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StoreError::Unavailable(_)))
}

/// As [`first_account`], once the store is there.
async fn first_account_late(ctx: Arc<Context>, presets: Presets) {
    const LOOK: Duration = Duration::from_millis(250);
    loop {
        tokio::time::sleep(LOOK).await;
        if ctx.store.ready().await.is_err() {
            continue;
        }
        let made = match first_account(ctx.store.as_ref(), &presets).await {
            Err(error) if is_away(&error) => continue,
            made => made,
        };
        let handed_over = made.and_then(|key| match key {
            Some(key) => hand_over(&ctx.config, &key),
            None => Ok(()),
        });
        if let Err(error) = handed_over {
            tracing::error!("the first account could not be made: {error:#}");
        }
        return;
    }
}

async fn keep_key(
    store: &dyn Store,
    account: &AccountId,
    name: &str,
    key: &Secret,
) -> Result<Key, StoreError> {
    let record = Key {
        id: format!("key_{}", ulid::Ulid::generate().to_string().to_lowercase()),
        account: account.clone(),
        name: name.into(),
        tag: None,
        models: Vec::new(),
        rejection: Rejection::default(),
        limits: KeyLimits::default(),
        last4: key::last4(key.expose()),
        created_at: jiff::Timestamp::now().as_millisecond(),
        expires_at: None,
        revoked_at: None,
    };
    store.create_key(record, KeyHash::of(key.expose())).await
}

/// Shows the first client key once. Logs of containers are kept, so where nobody watches
/// only the path of a private file is shown.
fn hand_over(config: &Config, key: &Secret) -> anyhow::Result<()> {
    if std::io::stdout().is_terminal() {
        println!("  Client key (shown only once)  {}\n", key.expose());
    } else {
        let path = config.data_dir().join("client-key");
        write_private(&path, key.expose())?;
        println!("  Client key                    in {} (delete it once copied)\n", path.display());
    }
    Ok(())
}

/// An address that a client on this machine can use.
fn reach(url: &str) -> String {
    url.replace("//0.0.0.0:", "//localhost:").replace("//[::]:", "//localhost:")
}

/// What a person needs after the start.
pub fn banner(running: &Running) -> String {
    let config = &running.ctx.config;
    let table = running.ctx.prices.table();
    let priced = table.models.iter().filter(|model| running.ctx.is_callable(model)).count();
    let names: Vec<_> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    let upstreams = if names.is_empty() {
        "none: set OPENAI_API_KEY, or try `farebox demo`".to_owned()
    } else {
        format!("{} ({priced} priced models)", names.join(", "))
    };
    format!(
        "farebox {version}\n\n\
         \x20 Upstreams                     {upstreams}\n\
         \x20 Store                         {store}\n\
         \x20 Base URL for OpenClaw / n8n   {base}/v1\n\
         \x20 Control plane, billing pages  {admin}\n\
         \x20 Admin key                     {admin_key}\n\n\
         \x20 Next:  farebox key create --name openclaw\n\
         \x20        farebox credit add 10 --note trial\n",
        version = env!("CARGO_PKG_VERSION"),
        store = config.shown_store(),
        base = reach(&running.url),
        admin = running.site.url("/"),
        admin_key = admin_key_path(config).display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_first_start_that_was_cut_off_before_its_key_makes_it_and_no_other_does() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("farebox.db"), Options::default()).unwrap();
        let id = AccountId(FIRST_ACCOUNT.into());
        store.create_account(id.clone(), FIRST_ACCOUNT.into()).await.unwrap();
        let presets = Presets::default();
        let made = first_account(store.as_ref(), &presets).await.unwrap().expect("its key");
        let key = store.key(&KeyHash::of(made.expose())).await.unwrap().expect("it is known");
        assert!(first_account(store.as_ref(), &presets).await.unwrap().is_none());
        // One without keys, because they ended, is left so.
        store.revoke_key(&id, &key.id).await.unwrap();
        assert!(first_account(store.as_ref(), &presets).await.unwrap().is_none());
    }
}
