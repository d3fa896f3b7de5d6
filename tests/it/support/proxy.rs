//! The program under test: a process with its own ports, files and environment.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farebox::billing::Credits;
use farebox::key::{Class, generate};
use serde_json::json;
use tempfile::TempDir;

use super::account::Account;
use super::http::Call;
use super::upstream::Upstream;
use super::{credits, prices, until};

/// What must never come out anywhere.
pub const PROVIDER_KEY: &str = "sk-provider-canary-5f2b9c81d3e7";

const PROGRAM: &str = env!("CARGO_BIN_EXE_farebox");

/// Everything that is chosen before a start.
pub struct Setup {
    settings: Vec<(String, String)>,
    upstreams: Vec<(String, String)>,
    pricing: String,
    env: Vec<(String, String)>,
    launcher: Vec<String>,
}

impl Setup {
    /// An upstream of each kind at this address, the tests' prices, 100 credits on `default`.
    pub fn before(upstream: &Upstream) -> Self {
        Self::bare()
            .upstream("openai", "openai", &format!("{}/v1", upstream.url()), "")
            .upstream("anthropic", "anthropic", &upstream.url(), "")
            .upstream("gemini", "gemini", &upstream.url(), "")
    }

    /// No upstream yet.
    pub fn bare() -> Self {
        Self {
            settings: Vec::new(),
            upstreams: Vec::new(),
            pricing: prices::toml(),
            env: vec![("FAREBOX_INITIAL_CREDITS".into(), "100".into())],
            launcher: Vec::new(),
        }
    }

    /// A line of the config: the value in TOML, such as `"\"2s\""` or `"8"`.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Sets an upstream, in place of one of that name; `more` are further lines.
    pub fn upstream(mut self, name: &str, kind: &str, base_url: &str, more: &str) -> Self {
        let entry = format!(
            "[[upstream]]\nname = \"{name}\"\nkind = \"{kind}\"\nbase_url = \"{base_url}\"\n\
             api_key_env = \"CANARY_PROVIDER_KEY\"\n{more}\n"
        );
        self.upstreams.retain(|(n, _)| n != name);
        self.upstreams.push((name.into(), entry));
        self
    }

    /// More models, as TOML.
    pub fn prices(mut self, toml: &str) -> Self {
        self.pricing += toml;
        self
    }

    /// Sets a variable, in place of one of that name.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts the program by a shell: the script runs it, in its own place, by
    /// `exec "$0" "$@"`. Its directory is `$HOME`.
    pub fn by_shell(mut self, command: &[&str], script: &str) -> Self {
        self.launcher = command.iter().map(|&word| word.into()).collect();
        self.launcher.extend(["sh".into(), "-c".into(), script.into()]);
        self
    }

    /// Starts the program and waits until it listens.
    pub async fn start(self) -> Proxy {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("farebox.toml"), self.config()).unwrap();
        std::fs::write(dir.path().join("pricing.toml"), &self.pricing).unwrap();
        let (admin_key, client_key) = (new_key(Class::Admin), new_key(Class::Client));
        let mut env: Vec<(String, String)> = vec![
            ("FAREBOX_LISTEN".into(), "127.0.0.1:0".into()),
            ("FAREBOX_ADMIN_LISTEN".into(), "127.0.0.1:0".into()),
            ("FAREBOX_CONFIG".into(), path(&dir, "farebox.toml")),
            ("FAREBOX_PRICING".into(), path(&dir, "pricing.toml")),
            ("FAREBOX_STORE".into(), path(&dir, "farebox.db")),
            ("FAREBOX_ADMIN_KEY".into(), admin_key.clone()),
            ("FAREBOX_CLIENT_KEY".into(), client_key.clone()),
            ("FAREBOX_LOG_FORMAT".into(), "json".into()),
            ("CANARY_PROVIDER_KEY".into(), PROVIDER_KEY.into()),
            ("RUST_BACKTRACE".into(), "1".into()),
            // A durable write is tested on its own; elsewhere it would only take time.
            ("FAREBOX_SYNCHRONOUS".into(), "normal".into()),
        ];
        for (name, value) in self.env {
            env.retain(|(n, _)| *n != name);
            env.push((name, value));
        }
        let shared = Shared { admin_key, urls: Mutex::default() };
        let output = Arc::new(Mutex::new(String::new()));
        let mut proxy = Proxy {
            dir,
            env,
            launcher: self.launcher,
            client_key,
            shared: Arc::new(shared),
            output,
            child: None,
        };
        proxy.spawn().await;
        proxy
    }

    fn config(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.settings {
            writeln!(text, "{name} = {value}").unwrap();
        }
        for (_, upstream) in &self.upstreams {
            text.push_str(upstream);
        }
        text
    }
}

fn path(dir: &TempDir, file: &str) -> String {
    dir.path().join(file).to_str().unwrap().into()
}

fn new_key(class: Class) -> String {
    generate(class).unwrap().expose().into()
}

/// Where the two listeners are now; accounts keep it across a restart.
pub struct Shared {
    pub admin_key: String,
    urls: Mutex<(String, String)>,
}

impl Shared {
    pub fn url(&self) -> String {
        self.urls.lock().unwrap().0.clone()
    }

    pub fn admin_url(&self) -> String {
        self.urls.lock().unwrap().1.clone()
    }
}

/// A running program. It is killed with its test.
pub struct Proxy {
    dir: TempDir,
    env: Vec<(String, String)>,
    launcher: Vec<String>,
    /// The key of the account `default`.
    pub client_key: String,
    shared: Arc<Shared>,
    output: Arc<Mutex<String>>,
    child: Option<Child>,
}

impl Proxy {
    /// The usual setup, started.
    pub async fn before(upstream: &Upstream) -> Self {
        Setup::before(upstream).start().await
    }

    /// Base URL of the inference listener, without `/v1`.
    pub fn url(&self) -> String {
        self.shared.url()
    }

    /// Base URL of the control plane.
    pub fn admin_url(&self) -> String {
        self.shared.admin_url()
    }

    pub fn admin_key(&self) -> &str {
        &self.shared.admin_key
    }

    /// Where its files are: `farebox.toml`, `pricing.toml`, `farebox.db`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The store's file.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("farebox.db")
    }

    /// Everything it has printed, of all its lives.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The account that the first start makes.
    pub fn default_account(&self) -> Account {
        Account::new(self.shared.clone(), "default", &self.client_key)
    }

    /// A new account with a key and these credits.
    pub async fn account_with(&self, amount: Credits) -> Account {
        let made = self.admin_post("/accounts", &json!({ "name": "a test" })).await.json();
        let id = made["id"].as_str().expect("an account has an id").to_owned();
        let mut account = Account::new(self.shared.clone(), &id, "");
        account.key = account.new_key(&json!({ "name": "test" })).await;
        if amount != credits("0") {
            account.topup(amount).await;
        }
        account
    }

    /// A request to the control plane that succeeds.
    pub async fn admin_post(&self, path: &str, body: &serde_json::Value) -> super::http::Reply {
        let url = format!("{}/admin/v1{path}", self.admin_url());
        let reply = Call::post(url, body).bearer(self.admin_key()).reply().await;
        assert!(reply.status / 100 == 2 && reply.complete, "{path}: {reply:?}");
        reply
    }

    /// Runs a command of the program against this one.
    pub async fn cli(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        command.env("FAREBOX_URL", self.admin_url());
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        super::within("a command", run).await.unwrap()
    }

    /// Sends a signal by name, such as `HUP` or `STOP`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Kills it at once: nothing is flushed, nothing is drained.
    pub async fn kill(&mut self) {
        self.child.as_mut().expect("it runs").kill().unwrap();
        self.exit().await;
    }

    /// Asks it to end and waits until it has.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.exit().await
    }

    /// Waits for its end.
    pub async fn exit(&mut self) -> ExitStatus {
        let child = Mutex::new(self.child.take().expect("it runs"));
        until("the end of the program", || async { child.lock().unwrap().try_wait().unwrap() })
            .await
    }

    /// Starts it again, on the same files and on new ports.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        self.spawn().await;
    }

    /// What orchestrators are told.
    pub async fn readyz(&self) -> super::http::Reply {
        Call::get(format!("{}/readyz", self.admin_url())).reply().await
    }

    /// Starts the program by another one, which is given its words, and waits for its end.
    pub async fn serve_by(&self, launcher: &[&str]) -> Output {
        let mut command = Command::new(launcher[0]);
        command.args(&launcher[1..]).arg(PROGRAM);
        let mut command = self.prepared(command, &["serve"]);
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        super::within("the end of the program", run).await.unwrap()
    }

    /// The program with what its settings and this proxy need.
    pub fn command(&self, args: &[&str]) -> Command {
        self.prepared(Command::new(PROGRAM), args)
    }

    fn prepared(&self, mut command: Command, args: &[&str]) -> Command {
        command.args(args).env_clear().envs(self.env.iter().cloned());
        for name in ["PATH", "LLVM_PROFILE_FILE"] {
            if let Ok(value) = std::env::var(name) {
                command.env(name, value);
            }
        }
        command.env("HOME", self.dir.path()).current_dir(self.dir.path());
        command
    }

    async fn spawn(&mut self) {
        let printed_before = self.output().len();
        let mut command = match self.launcher.split_first() {
            None => Command::new(PROGRAM),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(PROGRAM);
                command
            }
        };
        command = self.prepared(command, &["serve"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        collect(child.stdout.take().unwrap(), self.output.clone());
        collect(child.stderr.take().unwrap(), self.output.clone());
        let child = Mutex::new(child);
        let urls = until("the program's ports", || async {
            let output = self.output()[printed_before..].to_owned();
            if let Some(status) = child.lock().unwrap().try_wait().unwrap() {
                // The last lines may still be on their way.
                std::thread::sleep(Duration::from_millis(100));
                panic!("the program ended at once ({status}): {}", self.output());
            }
            Some((after(&output, "listening on ")?, after(&output, "control plane on ")?))
        })
        .await;
        *self.shared.urls.lock().unwrap() = urls;
        self.child = Some(child.into_inner().unwrap());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; a test that cares has looked.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("what the program printed:\n{}", self.output());
        }
    }
}

/// The address that follows a text, to the end of its line.
fn after(output: &str, text: &str) -> Option<String> {
    let (_, rest) = output.split_once(&format!("{text}http://"))?;
    let (addr, _) = rest.split_once('\n')?;
    Some(format!("http://{}", addr.trim()))
}

/// Keeps what a process prints.
fn collect(pipe: impl Read + Send + 'static, output: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            output.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
}
