//! The command line: a server, and a client of its control plane.
//!
//! Data goes to stdout, messages to stderr; `--json` prints the document of the control
//! plane as it was sent. Money changes by the control plane alone, here too. One file a
//! noun; exit codes are in [`failure`].

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::demo::DemoArgs;
use crate::time::parse_duration;

mod account;
pub mod client;
mod context;
mod credit;
mod export;
pub mod failure;
mod key;
mod ledger;
mod limit;
pub mod price;
mod span;
pub mod store;
pub mod table;
mod upstream;
mod usage;
mod verify;

use context::Context;
use failure::{Exit, Failure};

const EXAMPLES: &str = "\
Examples:
  farebox                    serve, set up by the environment
  farebox account create team-a --name \"Team A\"
  farebox key create --name openclaw --models 'claude-*,gemini-3-flash'
  farebox credit add 20 --note \"invoice 17\" --idempotency-key inv17
  farebox credit lots
  farebox usage summary --last 7d --by model
  farebox usage heartbeats --last 1d
  farebox ledger list --json
  farebox ledger verify
  farebox store backup farebox-backup.db
  farebox ledger export --last 30d -o september.csv

Exit codes: 0 ok, 1 failed, 2 usage, 3 config, 4 auth, 5 not found,
            6 refused, 7 unreachable, 8 integrity";

/// OpenAI-compatible metering reverse proxy: exact prepaid billing for AI agents.
#[derive(Debug, Parser)]
#[command(name = "farebox", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The configuration file
    #[arg(
        long,
        global = true,
        env = "FAREBOX_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub config: Option<PathBuf>,
    /// The control plane
    #[arg(
        long,
        global = true,
        env = "FAREBOX_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8081"
    )]
    pub url: reqwest::Url,
    /// A file with the admin key; else FAREBOX_ADMIN_KEY, else admin-key beside the store
    #[arg(
        long,
        global = true,
        env = "FAREBOX_ADMIN_KEY_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub admin_key_file: Option<PathBuf>,
    /// The account that is meant (default: default)
    #[arg(long, global = true, value_name = "ID")]
    pub account: Option<String>,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    /// The time zone of dates and days, such as Europe/Berlin (default: the system's)
    #[arg(long, global = true, value_name = "ZONE")]
    pub tz: Option<String>,
    /// Do not ask
    #[arg(long, short = 'y', global = true)]
    pub yes: bool,
    /// Longest wait for an answer, such as 10s
    #[arg(long, global = true, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one in the process")]
enum Command {
    #[command(flatten)]
    Local(Local),
    #[command(flatten)]
    Remote(Remote),
    /// Prices: list those in force, check a file, import a list
    #[command(subcommand)]
    Price(price::PriceCommand),
    /// The store: how it does, its backup, and its way back
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  farebox completions bash")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What runs in this process instead of asking a Farebox that runs.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Local {
    /// Meter, price and forward requests (the default)
    Serve,
    /// Check configuration, prices, upstreams and store, for CI too
    Check,
    /// Try everything with a built-in provider, without a key
    #[command(after_help = "Example:\n  farebox demo")]
    Demo(DemoArgs),
}

/// What asks the control plane of a Farebox that runs.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one in the process")]
enum Remote {
    /// Accounts: who pays
    #[command(subcommand)]
    Account(account::AccountCommand),
    /// Keys: what clients sign their requests with
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Credits: change a balance
    #[command(subcommand)]
    Credit(credit::CreditCommand),
    /// What an account can still spend
    Balance,
    /// What requests used and cost
    Usage(usage::UsageArgs),
    /// Every change of a balance
    Ledger(ledger::LedgerArgs),
    /// Upstreams: how the providers are doing
    #[command(subcommand)]
    Upstream(upstream::UpstreamCommand),
}

/// What the command line needs of the program around it.
pub struct Host {
    /// Runs what is local, by the configuration file if one is named.
    pub run: fn(Local, Option<&Path>) -> ExitCode,
    /// Where that configuration keeps the store.
    pub store: fn(Option<&Path>) -> Option<store::Place>,
    /// Its price table; none for the one built in.
    pub pricing: fn(Option<&Path>) -> Option<PathBuf>,
}

/// A page of a list.
#[derive(Args, Clone, Debug)]
struct PageArgs {
    /// Rows, 1-500
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Where the page before ended, as it said
    #[arg(long)]
    cursor: Option<String>,
}

impl PageArgs {
    fn query(&self) -> Vec<(&'static str, Option<String>)> {
        vec![("limit", Some(self.limit.to_string())), ("cursor", self.cursor.clone())]
    }

    /// Says how to see the next page.
    fn note_next(&self, context: &Context, command: &str, next: Option<&str>) {
        if let Some(cursor) = next {
            let cursor = failure::shell_word(cursor);
            context.note(&format!("more: {command} … --limit {} --cursor {cursor}", self.limit));
        }
    }
}

/// Runs the command line of this process.
pub fn run(host: &Host) -> ExitCode {
    let Cli { global, command } = Cli::parse();
    match command.unwrap_or(Command::Local(Local::Serve)) {
        Command::Local(local) => (host.run)(local, global.config.as_deref()),
        // A file is checked where it is; nobody has to be asked.
        Command::Remote(Remote::Ledger(args)) if args.is_local() => finish(args.run_here()),
        Command::Remote(remote) => {
            let answer = Context::new(&global, host).and_then(|context| ask(&context, remote));
            finish(answer)
        }
        Command::Store(command) => {
            let store = (host.store)(global.config.as_deref());
            let context = Context::new(&global, host);
            finish(command.run(&context, &global, store.as_ref()))
        }
        Command::Price(command) => {
            let pricing = (host.pricing)(global.config.as_deref());
            let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
            match price::run(
                &command,
                pricing.as_deref(),
                global.json,
                context::style(),
                &mut out,
                &mut err,
            ) {
                Ok(code) => code.into(),
                // A reader that has seen enough, such as `head`, is no failure.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
                Err(error) => finish(Err(Failure::new(Exit::Failed, error.to_string()))),
            }
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "farebox", &mut script);
            finish(Ok(String::from_utf8_lossy(&script).into_owned()))
        }
    }
}

/// Runs what waits for answers.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    Ok(runtime.block_on(work))
}

fn ask(context: &Context, remote: Remote) -> Result<String, Failure> {
    block_on(async {
        match remote {
            Remote::Account(command) => account::run(context, command).await,
            Remote::Key(command) => key::run(context, command).await,
            Remote::Credit(command) => credit::run(context, command).await,
            Remote::Balance => account::balance(context).await,
            Remote::Usage(args) => usage::run(context, args).await,
            Remote::Ledger(args) => ledger::run(context, args).await,
            Remote::Upstream(command) => upstream::run(context, command).await,
        }
    })?
}

/// Prints what a command found, or why it failed.
fn finish(answer: Result<String, Failure>) -> ExitCode {
    match answer {
        Ok(text) => {
            let mut out = std::io::stdout().lock();
            // A reader that has seen enough, such as `head`, is no failure.
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    eprintln!("{}", Failure::new(Exit::Failed, error.to_string()));
                    Exit::Failed.into()
                }
                _ => ExitCode::SUCCESS,
            }
        }
        Err(failure) => {
            let exit = failure.exit;
            let failure = match (exit, &failure.next) {
                (Exit::Usage, None) => failure.next("farebox --help"),
                _ => failure,
            };
            eprintln!("{failure}");
            exit.into()
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "not such as 10s or 2m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_example_of_the_help_is_a_command() {
        fn examples(command: &clap::Command, found: &mut Vec<String>) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            found.extend(
                help.lines().map(str::trim).filter(|l| l.starts_with("farebox ")).map(String::from),
            );
            command.get_subcommands().for_each(|sub| examples(sub, found));
        }
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() > 10, "{found:?}");
        for example in found {
            // Explanations stand apart by at least three spaces.
            let line = example.split("   ").next().unwrap();
            let parsed = Cli::try_parse_from(words(line));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    /// Splits at spaces outside quotes.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quote = None;
        for c in line.chars() {
            match (quote, c) {
                (None, ' ') => words.push(String::new()),
                (None, '"' | '\'') => quote = Some(c),
                (Some(open), c) if c == open => quote = None,
                (_, c) => words.last_mut().unwrap().push(c),
            }
        }
        words
    }

    #[test]
    fn no_command_means_serve_and_options_may_stand_anywhere() {
        let cli = Cli::try_parse_from(["farebox", "--config", "a.toml"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.global.config.as_deref(), Some(Path::new("a.toml")));
        let cli = Cli::try_parse_from(["farebox", "balance", "--json", "--account", "a"]).unwrap();
        assert!(cli.global.json);
        assert_eq!(cli.global.account.as_deref(), Some("a"));
    }

    #[test]
    fn a_change_of_money_without_a_note_is_not_a_command() {
        for verb in ["add", "deduct"] {
            assert!(Cli::try_parse_from(["farebox", "credit", verb, "5"]).is_err());
            let with_note = ["farebox", "credit", verb, "5", "--note", "why"];
            assert!(Cli::try_parse_from(with_note).is_ok());
        }
    }

    #[test]
    fn what_is_undone_needs_a_note_and_only_promotional_credits_take_an_expiry() {
        let parses = |line: &str| Cli::try_parse_from(words(line)).is_ok();
        for verb in ["refund req_1", "reverse inv17"] {
            assert!(!parses(&format!("farebox credit {verb}")));
            assert!(!parses(&format!("farebox credit {verb} --note x --amount 0")));
            assert!(parses(&format!("farebox credit {verb} --note x --amount 0.1")));
        }
        assert!(!parses("farebox credit add 5 --note x --expires 30d"));
        assert!(parses("farebox credit add 5 --note x --promotional"));
        assert!(!parses("farebox account close"));
    }

    #[test]
    fn the_admin_key_is_never_an_argument() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("--admin-key-file"));
        assert!(Cli::try_parse_from(["farebox", "--admin-key", "x", "balance"]).is_err());
    }
}
