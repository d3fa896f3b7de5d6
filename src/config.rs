//! Every setting: defaults, then the file, then `FAREBOX_…` variables.
//!
//! A key of the file at the top level, such as `first_byte_timeout`, is also read from the
//! variable of its name, `FAREBOX_FIRST_BYTE_TIMEOUT`. Secrets come from the environment or
//! from files alone, never from the configuration itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::alerts::mail::{Mailer, SmtpTls};
use crate::archive;
use crate::billing::Credits;
use crate::billing::limit::Mode;
use crate::key::Secret;
use crate::store::embedded::Synchronous;
use crate::store::journal::LONGEST_REPLAY;
use crate::store::redis;
use crate::wire::attribution::HEARTBEAT_PROMPTS;

pub mod upstream;

pub use upstream::Upstream;

/// Settings of the server. A test keeps `config/default.toml` equal to these defaults.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients send requests.
    pub listen: SocketAddr,
    /// Where the control plane answers: admin API, health and metrics. Loopback unless
    /// `admin_public` says otherwise.
    pub admin_listen: SocketAddr,
    /// Allows `admin_listen` to be an address that other machines can reach.
    pub admin_public: bool,
    /// Host names besides loopback ones that the control plane answers to.
    pub admin_hosts: Vec<String>,
    /// How browsers reach the control plane, such as `https://bill.example.com/farebox`: its path
    /// is where the billing pages are. Empty: the address it listens on.
    pub admin_url: String,
    /// Where balances live: the path of a database file, or the address of a Redis or Valkey
    /// that several Farebox share (`redis://…`).
    pub store: String,
    /// Where the first start leaves keys that cannot be shown. Empty: beside the database, or
    /// `farebox-data` where balances are in Redis.
    pub data_dir: PathBuf,
    /// When a debit is on disk: `full` survives power loss, `normal` the end of the process.
    pub synchronous: Synchronous,
    /// Where debits are kept that a shared store has not taken: a folder of this process
    /// alone, on a disk of this machine. Empty: the folder `journal` beside the admin key;
    /// `off`: nowhere.
    pub journal: String,
    /// How far back everything is sent again to a shared store that was restarted or replaced.
    /// Longer than a replica may lag; at most six days, as ids are remembered for seven.
    #[serde(with = "humantime_serde")]
    pub journal_replay: Duration,
    /// The certificate authority of a Redis that has its own, as PEM; empty for public ones.
    pub redis_ca_file: PathBuf,
    /// What the names of all keys in Redis begin with.
    pub redis_prefix: String,
    /// Longest wait for a connection to Redis.
    #[serde(with = "humantime_serde")]
    pub redis_connect_timeout: Duration,
    /// Longest wait for an answer of Redis; a debit may take four times as long.
    #[serde(with = "humantime_serde")]
    pub redis_command_timeout: Duration,
    /// Replicas that must have a debit before it is acknowledged.
    pub redis_wait: u32,
    /// How long a running request keeps its place and its hold after its process has died.
    #[serde(with = "humantime_serde")]
    pub redis_lease: Duration,
    /// Starts also on a Redis that may lose balances.
    pub redis_allow_unsafe: bool,
    /// `FAREBOX_REDIS_PASSWORD`, for an address without one.
    #[serde(skip)]
    pub redis_password: Option<Secret>,
    /// How long entries and requests stay in the store, such as `400d`; older ones are moved to
    /// files in `archive`. `0s`: for ever.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// The folder of entries and requests that left the store; empty for `archive` beside it.
    pub archive: PathBuf,
    /// The price table; empty for the one built in.
    pub pricing: PathBuf,
    /// Where users add credits; named in the refusal of a request. Empty: the operator is.
    pub billing_url: String,

    /// When requests are admitted: `lenient` (while the balance is above zero), `one_request`
    /// (while it is above what is held) or `strict` (if the most that the request can cost
    /// fits). An account may have another.
    pub admission: Mode,
    /// Bytes of a request that are taken for one token of its input, where it is not known yet.
    /// With 1 no text has more tokens.
    pub bytes_per_token: u64,
    /// Requests of one account that may run at once. An account may have another number.
    pub max_in_flight: u32,
    /// Choices that one request may ask for (`n`).
    pub max_choices: u64,
    /// Calls of `count_tokens` per key and minute; they are free.
    pub count_tokens_per_minute: u32,
    /// Wrong keys from one address per minute, until it must wait for the rest of that minute,
    /// right keys too. Behind a reverse proxy all clients share its address: set it higher.
    pub auth_failures_per_minute: u32,

    /// Open client connections.
    pub max_connections: u32,
    /// Open client connections from one address; loopback is exempt.
    pub max_connections_per_address: u32,
    /// Requests whose reply has not begun; above it new ones are refused at once.
    pub max_pending: usize,
    /// Largest request head.
    pub max_head_bytes: usize,
    /// Longest time from a new connection to the end of its first request's head.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// Longest time from one request to the end of the next one's head, on one connection.
    /// Longer than clients keep theirs, or they would send into connections that close.
    #[serde(with = "humantime_serde")]
    pub keep_alive_timeout: Duration,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// Longest pause while a request body arrives.
    #[serde(with = "humantime_serde")]
    pub body_idle_timeout: Duration,
    /// Longest time for a request body.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// Longest time that a client takes no byte of its reply.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,

    /// Longest wait for a connection to an upstream.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest wait for the upstream's first byte.
    #[serde(with = "humantime_serde")]
    pub first_byte_timeout: Duration,
    /// Longest pause inside an upstream's reply.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Longest reply.
    #[serde(with = "humantime_serde")]
    pub total_timeout: Duration,
    /// Largest reply that is not a stream.
    pub max_reply_bytes: usize,
    /// How long an upstream is read on after its client left, to learn what it charges.
    #[serde(with = "humantime_serde")]
    pub abort_drain: Duration,
    /// Replies that are read on at once; above it they are cut off and estimated.
    pub max_drains: usize,
    /// After SIGTERM: how long running requests may go on.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Beta features of Anthropic's API that clients may ask for; others are left out,
    /// because a beta can change the price.
    pub anthropic_betas: Vec<String>,

    /// How the prompts of heartbeats begin, so that what they cost can be shown.
    pub heartbeat_prompts: Vec<String>,

    /// Allows alerts to be posted to this machine and private networks, and without TLS.
    /// Whoever may set an account's alerts may then make Farebox call what is there.
    pub alert_private_addresses: bool,
    /// Pause after the first try of an alert that did not arrive; each pause is four times the
    /// one before, for five more tries.
    #[serde(with = "humantime_serde")]
    pub alert_retry: Duration,
    /// The mail server for alerts, such as `mail.example.com:587`; empty: none are mailed.
    pub smtp_server: String,
    /// `starttls`, `implicit` (encrypted from the first byte, port 465), or `none`, for a mail
    /// server on this machine.
    pub smtp_tls: SmtpTls,
    /// The name to sign in with; empty: without. The password is `FAREBOX_SMTP_PASSWORD`, or in
    /// the file that `FAREBOX_SMTP_PASSWORD_FILE` names.
    pub smtp_user: String,
    /// Who the mails are from, such as `Farebox <farebox@example.com>`.
    pub smtp_from: String,
    /// A certificate in PEM that the mail server may be known by, besides the public ones.
    pub smtp_ca_file: PathBuf,

    /// `text` for people, `json` for programs.
    pub log_format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,

    /// Upstreams besides those that their key alone switches on.
    #[serde(rename = "upstream", skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<Upstream>,
    /// The mail server's password, once read.
    #[serde(skip)]
    pub smtp_password: Option<Secret>,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Without its values: the address of the store may hold a password.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("store", &self.shown_store()).finish_non_exhaustive()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            admin_public: false,
            admin_hosts: Vec::new(),
            admin_url: String::new(),
            store: "farebox-data/farebox.db".into(),
            data_dir: PathBuf::new(),
            synchronous: Synchronous::Full,
            journal: String::new(),
            journal_replay: Duration::from_secs(600),
            redis_ca_file: PathBuf::new(),
            redis_prefix: "fbx".into(),
            redis_connect_timeout: Duration::from_millis(200),
            redis_command_timeout: Duration::from_millis(250),
            redis_wait: 0,
            redis_lease: Duration::from_secs(60),
            redis_allow_unsafe: false,
            redis_password: None,
            retention: Duration::ZERO,
            archive: PathBuf::new(),
            pricing: PathBuf::new(),
            billing_url: String::new(),
            admission: Mode::Lenient,
            bytes_per_token: 3,
            max_in_flight: 64,
            max_choices: 8,
            count_tokens_per_minute: 120,
            auth_failures_per_minute: 60,
            max_connections: 20_000,
            max_connections_per_address: 1024,
            max_pending: 10_000,
            max_head_bytes: 64 * 1024,
            head_timeout: Duration::from_secs(5),
            keep_alive_timeout: Duration::from_secs(120),
            max_body_bytes: 20 * 1024 * 1024,
            body_idle_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(120),
            total_timeout: Duration::from_secs(3600),
            max_reply_bytes: 64 * 1024 * 1024,
            abort_drain: Duration::from_secs(60),
            max_drains: 64,
            drain_timeout: Duration::from_secs(120),
            anthropic_betas: [
                "claude-code-20250219",
                "compact-2026-01-12",
                "context-management-2025-06-27",
                "extended-cache-ttl-2025-04-11",
                "fine-grained-tool-streaming-2025-05-14",
                "interleaved-thinking-2025-05-14",
                "output-128k-2025-02-19",
                "prompt-caching-2024-07-31",
                "structured-outputs-2025-11-13",
                "token-efficient-tools-2025-02-19",
            ]
            .map(String::from)
            .to_vec(),
            heartbeat_prompts: HEARTBEAT_PROMPTS.map(String::from).to_vec(),
            alert_private_addresses: false,
            alert_retry: Duration::from_secs(30),
            smtp_server: String::new(),
            smtp_tls: SmtpTls::Starttls,
            smtp_user: String::new(),
            smtp_from: String::new(),
            smtp_ca_file: PathBuf::new(),
            log_format: LogFormat::Text,
            log_level: "info".into(),
            upstreams: Vec::new(),
            smtp_password: None,
        }
    }
}

/// What the environment presets, for containers.
#[derive(Clone, Debug, Default)]
pub struct Presets {
    /// `FAREBOX_ADMIN_KEY`
    pub admin_key: Option<Secret>,
    /// `FAREBOX_CLIENT_KEY`, of the account `default`.
    pub client_key: Option<Secret>,
    /// `FAREBOX_INITIAL_CREDITS`, granted once to the account `default`.
    pub initial_credits: Option<Credits>,
}

/// Why the server does not start. All problems at once, one a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// The environment, as a function, so that tests need not change that of the process.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of the process. An empty variable counts as absent.
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Config {
    /// Reads the file named by `FAREBOX_CONFIG`, or `farebox.toml` where that exists, then
    /// the variables, then the secrets of the upstreams.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every problem found, each with its place.
    pub fn load(env: Env) -> Result<Self, ConfigError> {
        let path = match env("FAREBOX_CONFIG") {
            Some(path) => Some(PathBuf::from(path)),
            None => Some(PathBuf::from("farebox.toml")).filter(|path| path.exists()),
        };
        let (text, name) = match &path {
            Some(path) => (read_file(path)?, path.display().to_string()),
            None => (String::new(), String::from("farebox.toml")),
        };
        Self::read(&text, &name, env)
    }

    /// Reads a configuration from its text; `name` is the file's, for messages.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn read(text: &str, name: &str, env: Env) -> Result<Self, ConfigError> {
        // Once for itself: only then does an error point at its line.
        if let Err(error) = toml::from_str::<Self>(text) {
            let text = error.to_string();
            // A list of every name there is would bury the one that is wrong.
            let (text, _) = text.split_once(", expected one of").unwrap_or((&text, ""));
            let mut message = format!("{name}: {}", text.trim_end());
            if let Some(hint) = hint(error.message()) {
                message.push('\n');
                message.push_str(hint);
            }
            return Err(ConfigError(vec![message]));
        }
        let mut table: toml::Table =
            text.parse().map_err(|e: toml::de::Error| ConfigError(vec![e.to_string()]))?;
        let mut problems = Vec::new();
        overlay(&mut table, env, &mut problems);
        let mut config: Self = match table.try_into() {
            Ok(config) => config,
            Err(error) => {
                problems.push(format!("{name} with its variables: {}", error.message()));
                return Err(ConfigError(problems));
            }
        };
        config.complete(env, &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }

    /// Adds the built-in upstreams, reads secrets and checks what types cannot.
    fn complete(&mut self, env: Env, problems: &mut Vec<String>) {
        upstream::add_built_in(&mut self.upstreams, env);
        let mut names = BTreeMap::new();
        for upstream in &mut self.upstreams {
            if names.insert(upstream.name.clone(), ()).is_some() {
                problems.push(format!("upstream \"{}\" is given twice: rename one", upstream.name));
            }
            upstream.complete(env, problems);
        }
        match secret(env, "FAREBOX_SMTP_PASSWORD") {
            Ok(password) => self.smtp_password = password,
            Err(problem) => problems.push(problem),
        }
        if let Err(problem) = Mailer::new(self) {
            problems.push(problem);
        }
        if self.store.contains("://") && !self.is_shared() {
            problems.push(format!(
                "store \"{}\" is neither a path nor redis://, rediss://, redis+unix://, \
                 redis+sentinel:// or redis+cluster://",
                self.store.split("://").next().unwrap_or_default()
            ));
        }
        match secret(env, "FAREBOX_REDIS_PASSWORD") {
            Ok(password) => self.redis_password = password,
            Err(why) => problems.push(why),
        }
        // Three renewals must fit, each with its time to fail.
        if self.redis_lease < 12 * self.redis_command_timeout {
            problems.push(String::from(
                "redis_lease is shorter than twelve times redis_command_timeout, so running \
                 requests would lose their places: make it longer",
            ));
        }
        if !self.admin_listen.ip().is_loopback() && !self.admin_public {
            problems.push(format!(
                "admin_listen is {}, which other machines may reach: keep it on 127.0.0.1, or \
                 set admin_public = true (FAREBOX_ADMIN_PUBLIC) behind something that encrypts",
                self.admin_listen
            ));
        }
        if !self.admin_url.is_empty() && !is_site(&self.admin_url) {
            problems.push(format!(
                "admin_url \"{}\" is not the address of a site: give one such as \
                 https://bill.example.com/farebox",
                self.admin_url
            ));
        }
        if self.log_level.parse::<tracing::Level>().is_err() {
            problems.push(format!(
                "log_level \"{}\" is unknown: use error, warn, info, debug or trace",
                self.log_level
            ));
        }
        if self.journal_replay > LONGEST_REPLAY {
            problems.push(
                "journal_replay is longer than six days, but ids are remembered for seven: \
                 give 6days or less"
                    .into(),
            );
        }
        if !self.retention.is_zero() && self.retention < archive::YOUNGEST {
            problems.push("retention is less than 31 days: give at least 31days".into());
        }
        for (name, zero) in [
            ("max_in_flight", self.max_in_flight == 0),
            ("bytes_per_token", self.bytes_per_token == 0),
            ("max_choices", self.max_choices == 0),
            ("max_connections", self.max_connections == 0),
            ("max_pending", self.max_pending == 0),
        ] {
            if zero {
                problems.push(format!("{name} is 0, so nothing would be served: give at least 1"));
            }
        }
    }

    /// Whether balances are in a Redis that others use too.
    pub fn is_shared(&self) -> bool {
        redis::is_redis(&self.store)
    }

    /// Where balances live, without a password.
    pub fn shown_store(&self) -> String {
        redis::without_secrets(&self.store)
    }

    /// The path of the database file.
    pub fn store_path(&self) -> &Path {
        Path::new(&self.store)
    }

    /// The folder of the journal; none if there is to be none.
    pub fn journal_dir(&self) -> Option<PathBuf> {
        match self.journal.as_str() {
            "off" => None,
            "" => Some(self.data_dir().join("journal")),
            dir => Some(dir.into()),
        }
    }

    /// Where entries and requests go that leave the store.
    pub fn archive_dir(&self) -> PathBuf {
        if self.archive.as_os_str().is_empty() {
            self.data_dir().join("archive")
        } else {
            self.archive.clone()
        }
    }

    /// Beside the database: where the first start leaves keys that cannot be shown.
    pub fn data_dir(&self) -> &Path {
        if !self.data_dir.as_os_str().is_empty() {
            return &self.data_dir;
        }
        if self.is_shared() {
            return Path::new("farebox-data");
        }
        match self.store_path().parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}

impl Presets {
    /// Reads the presets; each also as `…_FILE`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when a preset cannot be read or is not what it should be.
    pub fn load(env: Env) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut key = |name: &str| match secret(env, name) {
            Ok(key) => {
                if key.as_ref().is_some_and(|key| key.expose().len() < 8) {
                    problems.push(format!("{name} is shorter than 8 characters: make it longer"));
                }
                key
            }
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        let admin_key = key("FAREBOX_ADMIN_KEY");
        let client_key = key("FAREBOX_CLIENT_KEY");
        let initial_credits = match env("FAREBOX_INITIAL_CREDITS").map(|text| text.parse()) {
            None => None,
            Some(Ok(amount)) if Credits::is_negative(amount) => {
                problems.push("FAREBOX_INITIAL_CREDITS is negative: give 0 or more".into());
                None
            }
            Some(Ok(amount)) => Some(amount),
            Some(Err(error)) => {
                problems.push(format!("FAREBOX_INITIAL_CREDITS is {error}"));
                None
            }
        };
        if admin_key.is_some() && admin_key == client_key {
            problems.push("FAREBOX_ADMIN_KEY and FAREBOX_CLIENT_KEY are the same: use two".into());
        }
        if problems.is_empty() {
            Ok(Self { admin_key, client_key, initial_credits })
        } else {
            Err(ConfigError(problems))
        }
    }
}

/// A secret from the variable `name`, or from the file that `name_FILE` names.
fn secret(env: Env, name: &str) -> Result<Option<Secret>, String> {
    if let Some(value) = env(name) {
        return Ok(Some(Secret::new(value.trim())));
    }
    match env(&format!("{name}_FILE")) {
        None => Ok(None),
        Some(path) => secret_file(&path).map(Some).map_err(|why| format!("{name}_FILE: {why}")),
    }
}

fn secret_file(path: &str) -> Result<Secret, String> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Err(format!("{path} is empty: put the key into it")),
        Ok(text) => Ok(Secret::new(text.trim())),
        Err(error) => Err(format!("{path} cannot be read ({error}): check the path")),
    }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| {
        ConfigError(vec![format!(
            "the configuration {} cannot be read ({error}): check FAREBOX_CONFIG",
            path.display()
        )])
    })
}

/// Puts variables over the table. A variable is read as the type that its default has;
/// upstreams as a TOML array of tables.
fn overlay(table: &mut toml::Table, env: Env, problems: &mut Vec<String>) {
    if let Some(text) = env("FAREBOX_UPSTREAM") {
        match toml::from_str::<toml::Table>(&format!("upstream = {text}")) {
            Ok(upstreams) => table.extend(upstreams),
            Err(error) => problems.push(format!(
                "FAREBOX_UPSTREAM cannot be read ({}): write it as \
                 [{{ name = \"x\", kind = \"openai\", base_url = \"https://…/v1\" }}]",
                error.message()
            )),
        }
    }
    let defaults = toml::Table::try_from(Config::default()).expect("the defaults are plain TOML");
    for (key, default) in defaults {
        let name = format!("FAREBOX_{}", key.to_uppercase());
        let Some(text) = env(&name) else { continue };
        let value = match default {
            toml::Value::Integer(_) => text.parse().ok().map(toml::Value::Integer),
            toml::Value::Boolean(_) => text.parse().ok().map(toml::Value::Boolean),
            toml::Value::Array(_) => Some(toml::Value::Array(
                text.split(',').map(|item| toml::Value::String(item.trim().into())).collect(),
            )),
            _ => Some(toml::Value::String(text)),
        };
        match value {
            Some(value) => {
                table.insert(key, value);
            }
            None => problems.push(format!("{name} cannot be read: it must look like {default}")),
        }
    }
}

/// What to do about an error of the TOML reader, where that is not plain from it.
fn hint(message: &str) -> Option<&'static str> {
    if message.contains("unknown field") {
        Some("Remove it, or use the name meant; config/default.toml lists every setting.")
    } else if message.contains("duration") || message.contains("time unit") {
        Some("Write a duration as \"30s\", \"5m\" or \"250ms\".")
    } else {
        None
    }
}

/// Whether a text is `http(s)://host`, with a plain path or none.
fn is_site(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/[]".contains(&b);
        !rest.is_empty() && !rest.starts_with('/') && rest.bytes().all(is_plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let vars: BTreeMap<String, String> =
            vars.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Config::read(text, "farebox.toml", &|name| vars.get(name).cloned())
    }

    #[test]
    fn what_retention_cannot_do_is_refused_at_the_start() {
        let refusal = |text: &str| read(text, &[]).unwrap_err().to_string();
        assert!(refusal("retention = \"30d\"").contains("at least 31days"));
        assert!(read("retention = \"31d\"", &[]).is_ok());
        let shared = "store = \"redis://127.0.0.1:1\"\nretention = \"400d\"";
        assert!(read(shared, &[]).is_ok());
    }

    #[test]
    fn the_default_file_states_the_defaults() {
        let text = include_str!("../config/default.toml");
        assert_eq!(toml::from_str::<Config>(text).unwrap(), Config::default());
        for key in toml::Table::try_from(Config::default()).unwrap().keys() {
            assert!(text.contains(&format!("\n{key} = ")), "{key} is not in config/default.toml");
        }
    }

    #[test]
    fn every_setting_can_come_from_a_variable() {
        let config = read(
            "max_in_flight = 3",
            &[
                ("FAREBOX_LISTEN", "127.0.0.1:0"),
                ("FAREBOX_MAX_IN_FLIGHT", "9"),
                ("FAREBOX_FIRST_BYTE_TIMEOUT", "2s"),
                ("FAREBOX_ANTHROPIC_BETAS", "a, b"),
                ("FAREBOX_SYNCHRONOUS", "normal"),
            ],
        )
        .unwrap();
        assert_eq!(config.listen.port(), 0);
        assert_eq!(config.max_in_flight, 9);
        assert_eq!(config.first_byte_timeout, Duration::from_secs(2));
        assert_eq!(config.anthropic_betas, ["a", "b"]);
        assert_eq!(config.synchronous, Synchronous::Normal);
    }

    #[test]
    fn upstreams_can_come_from_a_variable() {
        let text = "[{ name = \"x\", kind = \"openai\", base_url = \"http://127.0.0.1:9/v1\" }]";
        let config = read("", &[("FAREBOX_UPSTREAM", text)]).unwrap();
        assert_eq!(config.upstreams[0].name, "x");
        assert!(read("", &[("FAREBOX_UPSTREAM", "x")]).is_err());
    }

    #[test]
    fn an_unknown_key_is_an_error_that_points_at_its_line() {
        let error = read("max_in_flight = 3\nmax_in_fligth = 4\n", &[]).unwrap_err().to_string();
        assert!(error.contains("line 2, column 1"), "{error}");
        assert!(error.contains("max_in_fligth"), "{error}");
    }

    #[test]
    fn a_variable_that_cannot_be_read_is_named() {
        let error = read("", &[("FAREBOX_MAX_IN_FLIGHT", "many")]).unwrap_err().to_string();
        assert!(error.contains("FAREBOX_MAX_IN_FLIGHT"), "{error}");
    }

    #[test]
    fn a_control_plane_that_others_can_reach_needs_a_word() {
        assert!(read("admin_listen = \"0.0.0.0:8081\"", &[]).is_err());
        assert!(read("admin_listen = \"0.0.0.0:8081\"\nadmin_public = true", &[]).is_ok());
    }

    #[test]
    fn presets_are_read_and_weak_ones_refused() {
        let env = |name: &str| match name {
            "FAREBOX_ADMIN_KEY" => Some(String::from("admin-key-of-a-test")),
            "FAREBOX_INITIAL_CREDITS" => Some(String::from("12.5")),
            _ => None,
        };
        let presets = Presets::load(&env).unwrap();
        assert_eq!(presets.initial_credits, Some("12.5".parse().unwrap()));
        let weak = |name: &str| (name == "FAREBOX_ADMIN_KEY").then(|| String::from("x"));
        assert!(Presets::load(&weak).is_err());
    }
}
