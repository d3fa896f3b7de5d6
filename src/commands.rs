//! What runs in this process: the server, the check of its settings, the demonstration.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::failure::{Exit, Failure};
use crate::cli::store::Place;
use crate::cli::{Host, Local};
use crate::config::{Config, Presets, process_env};
use crate::prices::PricesError;
use crate::server;
use crate::store::embedded::OpenError;
use crate::store::redis;

/// What the command line needs of the program.
pub const HOST: &Host = &Host { run, store, pricing };

fn run(local: Local, config: Option<&Path>) -> ExitCode {
    let done = match local {
        Local::Serve => serve(config),
        Local::Check => check(config),
        Local::Demo(args) => block_on(crate::demo::run(args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit.into()
        }
    }
}

/// Where a configuration keeps the store.
fn store(config: Option<&Path>) -> Option<Place> {
    let config = load(config).ok()?;
    Some(match config.is_shared() {
        true => Place::Shared(Box::new(redis::Options::from(&config))),
        false => Place::File(config.store_path().to_owned()),
    })
}

/// The price table of a configuration; none for the one built in.
fn pricing(config: Option<&Path>) -> Option<PathBuf> {
    load(config).ok().map(|config| config.pricing).filter(|path| !path.as_os_str().is_empty())
}

/// A core dump would hold provider keys and prompts, so none is written, whatever ends us.
fn leave_no_core() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        eprintln!("Core dumps cannot be turned off: {error}. Forbid them outside (ulimit -c 0).");
    }
}

fn load(path: Option<&Path>) -> Result<Config, Failure> {
    let env = |name: &str| match (name, path) {
        ("FAREBOX_CONFIG", Some(path)) => Some(path.display().to_string()),
        _ => process_env(name),
    };
    Config::load(&env).map_err(|error| Failure::new(Exit::Config, error.to_string()))
}

fn presets() -> Result<Presets, Failure> {
    Presets::load(&process_env).map_err(|error| Failure::new(Exit::Config, error.to_string()))
}

fn serve(config: Option<&Path>) -> Result<(), Failure> {
    leave_no_core();
    let started = load(config)
        .and_then(|config| Ok((config, presets()?)))
        .and_then(|(config, presets)| block_on(server::run(config, presets)));
    started.map_err(|mut failure| {
        if failure.exit == Exit::Config {
            failure.message.push_str("\nThe server was not started.");
            failure.next.get_or_insert_with(|| "farebox check".into());
        }
        failure
    })
}

/// What a failure means for the exit code.
fn failure(error: &anyhow::Error) -> Failure {
    if let Some(prices) = error.downcast_ref::<PricesError>() {
        return Failure::new(Exit::Config, format!("the prices cannot be used:\n{prices}"));
    }
    if let Some(store) = error.downcast_ref::<OpenError>() {
        // Its text names its source already.
        return Failure::new(Exit::Failed, store.to_string());
    }
    Failure::new(Exit::Failed, format!("{error:#}"))
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("no threads: {error}")))?;
    runtime.block_on(work).map_err(|error| failure(&error))
}

/// Checks what `serve` would read, and says what it found.
fn check(config: Option<&Path>) -> Result<(), Failure> {
    let config = load(config)?;
    presets()?;
    let prices = server::load_prices(&config).map_err(|error| failure(&error))?;
    let table = prices.table();
    println!("settings   ok");
    println!("prices     ok: {} models, version {}", table.models.len(), table.version);
    if config.upstreams.is_empty() {
        println!("upstreams  none: set OPENAI_API_KEY or another provider's key");
    }
    let mut unreachable = 0;
    for upstream in &config.upstreams {
        let models = table
            .models
            .iter()
            .filter(|model| model.upstreams.iter().any(|(name, _)| *name == upstream.name));
        let models = models.count();
        match reach(&upstream.base_url) {
            Ok(()) => println!("upstream   {}: reachable, {models} priced models", upstream.name),
            Err(why) => {
                unreachable += 1;
                println!(
                    "upstream   {}: not reachable ({why}), {models} priced models",
                    upstream.name
                );
            }
        }
    }
    let shown = config.shown_store();
    block_on(async move {
        let store = server::open_store(&config).await?;
        store.ready().await?;
        Ok(store.close().await?)
    })?;
    println!("store      ok: {shown}");
    match unreachable {
        0 => Ok(()),
        n => Err(Failure::new(
            Exit::Unreachable,
            format!("{n} of the upstreams cannot be reached: check base_url and the network"),
        )),
    }
}

/// Whether something listens at a URL's host. Nothing is sent, so nothing is billed.
fn reach(url: &str) -> Result<(), String> {
    use std::net::{TcpStream, ToSocketAddrs};
    let url: reqwest::Url = url.parse().map_err(|_| String::from("not a URL"))?;
    let host = url.host_str().ok_or("no host")?.trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().ok_or("no port")?;
    let addresses = (host.as_str(), port).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = String::from("the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, std::time::Duration::from_secs(3)) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}
