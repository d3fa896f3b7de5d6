//! `farebox demo`: the whole server in front of a simulated provider, with an hour of traffic
//! in its books and more to come, so that everything can be tried without a key.
//!
//! The traffic is real: requests over HTTP through the running proxy. Only the clock of the
//! store is not, until the hour is played.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::keys::CreatedKey;
use crate::admin::links::Link;
use crate::billing::Credits;
use crate::cli::client::Client as ControlPlane;
use crate::cli::failure::shell_word;
use crate::config::{Config, Presets, Upstream};
use crate::key::{self, Class, Secret};
use crate::prices::Prices;
use crate::server::{self, Running, Start};
use crate::store::embedded::{Clock, Embedded, Options, Synchronous};
use crate::store::{AccountId, Millis};
use crate::wire::Kind;
use crate::{telemetry, time};
use provider::Provider;
use traffic::{Client, Reads, Turn};

mod provider;
mod traffic;
mod words;

const ACCOUNT: &str = "default";
/// Used up in the middle of the hour, so that a refusal and a top-up are in it.
const FIRST_CREDITS: Credits = Credits::from_nano(200_000_000);
const TOPUP: &str = "10";
const HOUR_MS: Millis = 3_600_000;
/// How long the user takes to notice and the operator to add credits.
const TOPUP_AFTER_MS: Millis = 40_000;

/// How a demonstration is run.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct DemoArgs {
    /// Keep the files in this folder, which must be new or empty (default: a temporary one)
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Where clients send requests (default: 127.0.0.1:8080, or a free port)
    #[arg(long, env = "FAREBOX_LISTEN", hide_env_values = true, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where the control plane answers (default: 127.0.0.1:8081, or a free port)
    #[arg(long, env = "FAREBOX_ADMIN_LISTEN", hide_env_values = true, value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
}

/// Runs it until Ctrl-C or SIGTERM; then nothing is left of it.
///
/// # Errors
///
/// Why it could not start, in one sentence.
pub async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let folder = Folder::new(args.keep)?;
    let provider = Provider::start().await.context("no port for the simulated provider")?;
    let config = config(args.listen, args.admin_listen, &folder.path, &provider.url);
    telemetry::start(&config);
    let past = Past::begin();
    let options =
        Options { synchronous: config.synchronous, clock: past.clock(), ..Options::default() };
    let store = Embedded::open(config.store_path(), options)?;
    let prices = Arc::new(Prices::load(None)?);
    let admin_key = key::generate(Class::Admin)?;
    let presets = Presets {
        admin_key: Some(admin_key.clone()),
        client_key: None,
        initial_credits: Some(FIRST_CREDITS),
    };
    let running = server::start(Start { config, presets, store, prices }).await?;
    let demo = Demo::new(&running, &admin_key, provider, past).await?;
    let outcome = tokio::select! {
        // Ends with a failure alone.
        failed = demo.play(&folder) => failed,
        told = told() => told,
    };
    // Whoever read what was printed may be gone.
    writeln!(std::io::stdout(), "\nending").ok();
    let ended = running.end(async { drop(told().await) }).await;
    outcome.and(ended)
}

/// Waits for SIGTERM or Ctrl-C.
async fn told() -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn config(
    listen: Option<SocketAddr>,
    admin_listen: Option<SocketAddr>,
    folder: &Path,
    provider: &str,
) -> Config {
    let upstream = |name, kind, path| Upstream::new(name, kind, &format!("{provider}{path}"), None);
    let mut xai = upstream("xai", Kind::Openai, "/v1");
    // As servers that cannot report the usage of streams: those replies are estimated.
    xai.include_usage = false;
    Config {
        listen: listen.unwrap_or_else(|| free(8080)),
        admin_listen: admin_listen.unwrap_or_else(|| free(8081)),
        store: folder.join("farebox.db").display().to_string(),
        synchronous: Synchronous::Normal,
        drain_timeout: Duration::from_secs(3),
        log_level: "warn".into(),
        upstreams: vec![
            upstream("openai", Kind::Openai, "/v1"),
            upstream("anthropic", Kind::Anthropic, ""),
            upstream("gemini", Kind::Gemini, ""),
            xai,
        ],
        ..Config::default()
    }
}

/// The port of this machine, or any that is free if something else listens there.
fn free(port: u16) -> SocketAddr {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    match std::net::TcpListener::bind(address) {
        Ok(_) => address,
        Err(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
    }
}

/// Where the files are. A temporary folder goes with the demonstration.
struct Folder {
    path: PathBuf,
    is_kept: bool,
}

impl Folder {
    fn new(keep: Option<PathBuf>) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let is_kept = keep.is_some();
        let path = keep.unwrap_or_else(|| {
            std::env::temp_dir().join(format!("farebox-demo-{}", ulid::Ulid::generate()))
        });
        std::fs::DirBuilder::new()
            .recursive(is_kept)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("{} cannot be made: name another folder", path.display()))?;
        if std::fs::read_dir(&path)?.next().is_some() {
            bail!("{} holds files already: name a new folder", path.display());
        }
        Ok(Self { path, is_kept })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.is_kept
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
    }
}

/// The store's clock: it stands an hour ago, goes as the hour is played, and is then right.
struct Past {
    began: Millis,
    /// Zero once the past is over.
    now: Arc<AtomicI64>,
}

impl Past {
    fn begin() -> Self {
        let began = time::now() - HOUR_MS;
        Self { began, now: Arc::new(AtomicI64::new(began)) }
    }

    fn clock(&self) -> Clock {
        let now = Arc::clone(&self.now);
        Arc::new(move || match now.load(Ordering::Relaxed) {
            0 => time::now(),
            past => past,
        })
    }

    fn is_at(&self, after_ms: Millis) {
        self.now.fetch_max(self.began + after_ms, Ordering::Relaxed);
    }

    fn is_over(&self) {
        self.now.store(0, Ordering::Relaxed);
    }
}

/// What the server did with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Played {
    Answered,
    Refused,
}

/// Clients and operator of a server that runs.
struct Demo<'a> {
    running: &'a Running,
    provider: Provider,
    past: Past,
    http: reqwest::Client,
    control_plane: ControlPlane,
    admin_key: &'a Secret,
    keys: Vec<(Client, String)>,
}

impl<'a> Demo<'a> {
    async fn new(
        running: &'a Running,
        admin_key: &'a Secret,
        provider: Provider,
        past: Past,
    ) -> anyhow::Result<Self> {
        let patience = Duration::from_secs(30);
        let url = running.admin_url.parse()?;
        let control_plane =
            ControlPlane::new(&url, admin_key.clone(), patience).map_err(|why| anyhow!("{why}"))?;
        let http = reqwest::Client::builder()
            .tls_certs_only([])
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let mut keys = Vec::new();
        for client in Client::ALL {
            // The agent's own requests are known by its prompts.
            let tag = (client != Client::OpenClaw).then(|| client.name());
            let key = json!({ "name": client.name(), "tag": tag });
            let made = control_plane.post(&["accounts", ACCOUNT, "keys"], &key, None).await;
            let made = made.and_then(|answer| answer.read::<CreatedKey>());
            keys.push((client, made.map_err(|why| anyhow!("{why}"))?.key));
        }
        Ok(Self { running, provider, past, http, control_plane, admin_key, keys })
    }

    /// The hour that was, then the same again as time goes. Ends with a failure alone.
    async fn play(&self, folder: &Folder) -> anyhow::Result<()> {
        let hour = traffic::hour();
        println!("playing an hour of traffic: {} requests …", hour.len());
        for turn in &hour {
            self.replay(turn).await?;
        }
        self.provider.hurry(false);
        self.past.is_over();
        let pages = self.link().await?;
        println!("{}", self.guide(hour.len(), folder, &pages));
        println!("listening on {}", self.running.url);
        println!("control plane on {}", self.running.admin_url);
        loop {
            let began = tokio::time::Instant::now();
            for turn in &hour {
                tokio::time::sleep_until(began + Duration::from_secs(turn.after_s)).await;
                // What fails from now on is the user's own doing, and in the log.
                self.send(turn).await.ok();
            }
            tokio::time::sleep_until(began + Duration::from_secs(3600)).await;
        }
    }

    /// Plays a request of the past. When credits are used up the operator adds some.
    async fn replay(&self, turn: &Turn) -> anyhow::Result<()> {
        let after_ms = Millis::try_from(turn.after_s)? * 1000;
        self.past.is_at(after_ms);
        // Who wants to leave early needs a reply that takes its time.
        self.provider.hurry(turn.reads == Reads::Everything);
        let mut played = self.send(turn).await?;
        if played == Played::Refused {
            self.past.is_at(after_ms + TOPUP_AFTER_MS);
            let path = ["accounts", ACCOUNT, "credits"];
            let credits = json!({ "kind": "topup", "amount": TOPUP, "note": "invoice 17" });
            let added = self.control_plane.post(&path, &credits, Some("inv17")).await;
            added.map_err(|why| anyhow!("{why}"))?;
            played = self.send(turn).await?;
        }
        if played == Played::Refused {
            bail!("a request of the demonstration was refused");
        }
        if turn.reads == Reads::OnePiece {
            self.settled().await?;
        }
        Ok(())
    }

    async fn send(&self, turn: &Turn) -> anyhow::Result<Played> {
        let key = self.keys.iter().find(|(client, _)| *client == turn.client);
        let (_, key) = key.context("every client has a key")?;
        let url = format!("{}{}", self.running.url, turn.path);
        let mut reply = self.http.post(url).bearer_auth(key).json(&turn.body).send().await?;
        match reply.status().as_u16() {
            200 => {}
            402 => return Ok(Played::Refused),
            status => bail!("{} answered {status}: {}", turn.path, reply.text().await?),
        }
        while reply.chunk().await?.is_some() {
            if turn.reads == Reads::OnePiece {
                break;
            }
        }
        Ok(Played::Answered)
    }

    /// Waits until nothing runs: a reply without its client is still read to its end.
    async fn settled(&self) -> anyhow::Result<()> {
        let account = AccountId(ACCOUNT.into());
        while self.running.ctx.store.account(&account).await?.in_flight > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// A link to the billing pages, for as long as anybody looks at a demonstration.
    async fn link(&self) -> anyhow::Result<String> {
        let path = ["accounts", ACCOUNT, "sign-in-links"];
        let link = json!({ "lasts": "30d", "reusable": true });
        let made = self.control_plane.post(&path, &link, None).await;
        let made = made.and_then(|answer| answer.read::<Link>());
        Ok(made.map_err(|why| anyhow!("{why}"))?.url)
    }

    /// What to try, to be pasted.
    fn guide(&self, requests: usize, folder: &Folder, pages: &str) -> String {
        let url = &self.running.url;
        let program = std::env::args().next().unwrap_or_else(|| "farebox".into());
        let farebox = shell_word(&program);
        let client_key = self.running.client_key.as_ref().map_or("", Secret::expose);
        let files = match folder.is_kept {
            true => "are kept",
            false => "are removed at the end",
        };
        format!(
            r#"
A whole Farebox runs, in front of a simulated provider. Its books hold the last
hour: {requests} requests by 3 keys, a refusal, a top-up. More come in as time goes.

  Base URL        {url}/v1
  Control plane   {admin_url}
  Billing pages   {pages}
  Files           in {path}, and {files}

Paste this into another terminal:

  export FAREBOX_URL={admin_url}
  export FAREBOX_ADMIN_KEY={admin_key}
  export KEY={client_key}

Ask something; the reply's headers say what it cost and what is left:

  curl -i {url}/v1/chat/completions \
    -H "authorization: Bearer $KEY" -H "content-type: application/json" \
    -d '{{"model": "claude-sonnet-4.5", "messages": [{{"role": "user", "content": "Hi"}}]}}'

The same as a stream, with its cost in the last event but one:

  curl -N {url}/v1/chat/completions \
    -H "authorization: Bearer $KEY" -H "content-type: application/json" \
    -d '{{"model": "gpt-5.4", "messages": [{{"role": "user", "content": "Hi"}}],
         "stream": true, "stream_options": {{"include_usage": true}}}}'

Look at the books:

  {farebox} balance
  {farebox} usage summary --last 1h --by model
  {farebox} usage list --limit 10
  {farebox} ledger list --limit 10

Use the credits up, ask again, and let it go on:

  {farebox} credit deduct 100 --note "a try" --allow-negative --yes
  {farebox} credit add 110 --note "a try"

Ctrl-C ends it.
"#,
            admin_url = self.running.admin_url,
            admin_key = self.admin_key.expose(),
            path = folder.path.display(),
        )
    }
}
