//! The command line, as people and scripts use it: what it prints, and its exit codes.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::account::chat;
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{credits, within};

/// The program in a folder of its own, with no environment but what is given.
struct Shell(TempDir);

impl Shell {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.dir().join(name), text).unwrap();
    }

    fn command(&self, args: &[&str], env: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farebox"));
        command.args(args).current_dir(self.dir()).stdin(Stdio::null());
        command.env_clear().envs(["PATH"].map(|name| (name, std::env::var(name).unwrap())));
        command.env("FAREBOX_LISTEN", "127.0.0.1:0").env("FAREBOX_ADMIN_LISTEN", "127.0.0.1:0");
        command.envs(env.iter().copied());
        command
    }

    fn run(&self, args: &[&str], env: &[(&str, &str)]) -> Done {
        Done::of(&self.command(args, env).output().unwrap())
    }
}

/// A command that has ended.
#[derive(Debug)]
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().expect("it was not killed"),
            out: String::from_utf8(output.stdout.clone()).unwrap(),
            err: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    /// Fails the test unless it ended with this code, and its message has these texts.
    #[track_caller]
    fn fails(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.starts_with("error: "), "{}", self.err);
        assert!(self.out.is_empty() || code == 1 || code == 7, "{}", self.out);
        for text in texts {
            assert!(self.err.contains(text), "no {text:?} in: {}", self.err);
        }
        assert!(!self.err.contains('\u{fffd}'), "{}", self.err);
    }
}

async fn cli(proxy: &Proxy, args: &[&str]) -> Done {
    Done::of(&proxy.cli(args).await)
}

/// What a command prints when it goes well.
async fn prints(proxy: &Proxy, args: &[&str]) -> String {
    let done = cli(proxy, args).await;
    assert_eq!(done.code, 0, "{args:?}: {done:?}");
    done.out
}

async fn json(proxy: &Proxy, args: &[&str]) -> Value {
    let args: Vec<_> = args.iter().chain(&["--json"]).copied().collect();
    serde_json::from_str(&prints(proxy, &args).await).unwrap()
}

#[tokio::test]
async fn a_server_that_is_idle_ends_well_when_it_is_told_to() {
    let upstream = Upstream::start().await;
    let mut proxy = Proxy::before(&upstream).await;
    assert!(proxy.terminate().await.success(), "{}", proxy.output());
}

#[tokio::test]
async fn balance_ledger_and_usage_show_what_a_request_did() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    proxy.default_account().post("/v1/chat/completions", &chat("test", "Hi")).await.expect(200);
    let row = proxy.default_account().last_usage().await;

    assert_eq!(
        prints(&proxy, &["balance"]).await,
        "default  99.99986 credits  (available 99.99986, held 0, 0 in flight)\n"
    );
    let ledger = prints(&proxy, &["ledger", "--tz", "UTC"]).await;
    let lines: Vec<_> = ledger.lines().collect();
    assert!(lines[0].starts_with("SEQ  TIME UTC "), "{ledger}");
    assert!(lines[0].contains("KIND         AMOUNT    BALANCE  REF "), "{ledger}");
    assert!(lines[1].starts_with("  2  ") && lines[1].ends_with(&row.id), "{ledger}");
    assert!(lines[1].contains("  debit_ai   -0.00014   99.99986  "), "{ledger}");
    assert!(lines[2].contains("topup     100.00000  100.00000  initial-credits"), "{ledger}");
    let only = prints(&proxy, &["ledger", "list", "--kind", "topup"]).await;
    assert_eq!(only.lines().count(), 2, "{only}");

    let usage = prints(&proxy, &["usage", "summary", "--last", "1h", "--by", "model"]).await;
    let lines: Vec<_> = usage.lines().skip(1).collect();
    assert_eq!(lines[0], "MODEL  REQ  INPUT  CACHED  WRITTEN  OUTPUT  CREDITS  SHARE");
    assert_eq!(lines[1], "test     1     10       0        0       2  0.00014  100 %");
    assert_eq!(lines[3], "total    1     10       0        0       2  0.00014");
    for by in ["key", "tag", "day"] {
        assert!(prints(&proxy, &["usage", "--by", by]).await.contains("0.00014"), "{by}");
    }
    let list = prints(&proxy, &["usage", "list", "--tz", "UTC", "--model", "test"]).await;
    assert!(list.starts_with("TIME UTC ") && list.contains(" MODEL  INPUT"), "{list}");
    assert_eq!(list.lines().count(), 2);
    let none = prints(&proxy, &["usage", "list", "--source", "estimated"]).await;
    assert_eq!(none.lines().count(), 1, "{none}");

    let document = json(&proxy, &["usage", "list"]).await;
    assert_eq!(document["data"][0]["id"], row.id);
    let first = json(&proxy, &["ledger", "list", "--limit", "1"]).await;
    assert_eq!(first["data"][0]["seq"], 2);
    assert!(first["next"].is_string(), "{first}");
    assert_eq!(json(&proxy, &["balance"]).await["balance"], "99.99986");
    assert_eq!(json(&proxy, &["usage", "summary"]).await["total"]["requests"], 1);
}

#[tokio::test]
async fn accounts_are_made_listed_and_shown() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let made = cli(&proxy, &["account", "create", "team-a", "--name", "Team A"]).await;
    assert!(made.out.lines().nth(1).unwrap().starts_with("team-a   Team A        0"), "{made:?}");
    assert_eq!(made.err, "next: farebox key create --account team-a --name NAME\n");
    let again = cli(&proxy, &["account", "create", "team-a"]).await;
    again.fails(6, &["the account team-a exists", "\n next: farebox account list"]);
    assert_eq!(prints(&proxy, &["account", "list"]).await.lines().count(), 3);
    let rows = json(&proxy, &["account", "show", "team-a"]).await;
    assert_eq!(rows["name"], "Team A");
    let missing = cli(&proxy, &["account", "show", "nope"]).await;
    missing.fails(5, &["There is no account `nope`.", "\n next: farebox account list"]);
    cli(&proxy, &["account", "create", "Bad Id"]).await.fails(2, &["`id` must be", "\n next: "]);
}

#[tokio::test]
async fn a_key_is_printed_once_works_and_ends_when_it_is_revoked() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let made = cli(&proxy, &["key", "create", "--name", "n8n", "--tag", "flow"]).await;
    let key = made.out.trim();
    assert!(key.starts_with("fbx_live_") && made.out.lines().count() == 1, "{made:?}");
    assert!(made.err.contains("shown only this once"));
    let client = proxy.default_account().with_key(key);
    client.chat("Hi").await.expect(200);
    assert_eq!(client.last_usage().await.tag.as_deref(), Some("flow"));

    let list = prints(&proxy, &["key", "list"]).await;
    assert!(!list.contains(key) && list.contains(&format!("…{}", &key[key.len() - 4..])), "{list}");
    assert!(prints(&proxy, &["key", "revoke", "n8n"]).await.contains("revoked"));
    client.chat("Hi").await.expect(401);
    let missing = cli(&proxy, &["key", "revoke", "other"]).await;
    missing.fails(5, &["has no key `other`", "\n next: farebox key list --account default"]);
    let bad = cli(&proxy, &["key", "create", "--name", "x", "--expires", "yesterday"]).await;
    bad.fails(2, &["RFC 3339"]);
}

#[tokio::test]
async fn credits_are_booked_once_and_never_below_zero_by_accident() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let add = ["credit", "add", "20", "--note", "invoice 17", "--idempotency-key", "inv17"];
    assert_eq!(prints(&proxy, &add).await, "default  100 → 120 credits  (+20, entry 2)\n");
    let again = prints(&proxy, &add).await;
    assert!(again.contains("booked before as entry 2, nothing changed now"), "{again}");
    let other = ["credit", "add", "21", "--note", "invoice 17", "--idempotency-key", "inv17"];
    cli(&proxy, &other).await.fails(6, &["used with other content", "\n next: farebox ledger"]);

    let deduct = ["credit", "deduct", "120.5", "--note", "it's back"];
    let refused = cli(&proxy, &deduct).await;
    refused.fails(6, &["would leave it at -0.5", r"--note 'it'\''s back' --allow-negative"]);
    assert_eq!(proxy.default_account().balance().await, credits("120"));
    let done = prints(&proxy, &[&deduct[..], &["--allow-negative"]].concat()).await;
    assert_eq!(done, "default  120 → -0.5 credits  (-120.5, entry 3)\n");
    let balance = cli(&proxy, &["balance"]).await;
    assert!(balance.err.contains("requests are refused") && balance.err.contains("\nnext: "));

    for wrong in ["0", "-1", "1e3", "five", "0.0000000001"] {
        let done = cli(&proxy, &["credit", "add", wrong, "--note", "x"]).await;
        done.fails(2, &["<AMOUNT>"]);
    }
    assert_eq!(cli(&proxy, &["credit", "add", "1"]).await.code, 2, "a note is needed");
    proxy.default_account().check_books().await;
}

#[tokio::test]
async fn given_credits_burn_first_and_charges_and_payments_are_taken_back_in_full() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let gift = ["credit", "add", "1", "--promotional", "--expires", "30d", "--note", "welcome"];
    assert_eq!(prints(&proxy, &gift).await, "default  100 → 101 credits  (+1, entry 2)\n");
    let account = proxy.default_account();
    account.chat("Hi").await.expect(200);
    let request = account.last_usage().await.id;
    let lots = prints(&proxy, &["credit", "lots", "--tz", "UTC"]).await;
    let lines: Vec<_> = lots.lines().collect();
    assert!(lines[0].starts_with("LOT  KIND        LEFT   OF     USED  LOST"), "{lots}");
    assert!(lines[1].starts_with("  2  promo    0.99986    1  0.00014"), "{lots}");
    assert!(lines[2].starts_with("  1  usage  100.00000  100  0.00000"), "{lots}");

    let refund = ["credit", "refund", &request, "--note", "it was cut"];
    let done = prints(&proxy, &refund).await;
    assert_eq!(done, "default  100.99986 → 101 credits  (+0.00014, entry 4)\n");
    cli(&proxy, &refund).await.fails(6, &["no more than 0 credits", "\n next: farebox ledger"]);
    let entry = &json(&proxy, &["ledger", "--limit", "1"]).await["data"][0];
    assert_eq!((&entry["kind"], &entry["undoes"]), (&"refund".into(), &3.into()));
    assert_eq!(
        (&entry["parts"][0]["lot"], &entry["parts"][0]["amount"]),
        (&2.into(), &"0.00014".into())
    );

    let reverse = ["credit", "reverse", "initial-credits", "--note", "chargeback"];
    let done = prints(&proxy, &reverse).await;
    assert_eq!(done, "default  101 → 1 credits  (-100, entry 5)\n");
    cli(&proxy, &["credit", "refund", "req_no", "--note", "x"]).await.fails(5, &["req_no"]);
    let past = ["credit", "add", "1", "--promotional", "--expires", "2020-01-01", "--note", "x"];
    cli(&proxy, &past).await.fails(2, &["`expires` must lie in the future"]);
    account.check_books().await;
}

#[tokio::test]
async fn a_closed_account_loses_what_is_left_and_is_served_no_more() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let closed = prints(&proxy, &["account", "close", "default"]).await;
    assert!(closed.lines().nth(1).unwrap().contains("closed"), "{closed}");
    let account = proxy.default_account();
    assert_eq!(account.balance().await, credits("0"));
    let refused = account.chat("Hi").await;
    assert!((400..500).contains(&refused.status), "{refused:?}");
    let ledger = prints(&proxy, &["ledger", "--kind", "forfeit"]).await;
    assert!(ledger.lines().nth(1).unwrap().contains("forfeit    -100        0  lot_1"), "{ledger}");
    cli(&proxy, &["credit", "add", "1", "--note", "x"]).await.fails(6, &["closed"]);
    prints(&proxy, &["account", "close", "default"]).await;
    account.check_books().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_command_is_told_by_its_exit_code() {
    let upstream = Upstream::start().await;
    let mut proxy = Proxy::before(&upstream).await;
    for args in [
        &["balnce"][..],
        &["usage", "--last", "3x"],
        &["usage", "--tz", "Mars"],
        &["usage", "--by", "modle"],
        &["usage", "--source", "foo"],
        &["--url", "ftp://host", "balance"],
        &["--timeout", "soon", "balance"],
    ] {
        cli(&proxy, args).await.fails(2, &[]);
    }
    std::fs::write(proxy.dir().join("wrong-key"), "another-key").unwrap();
    let wrong = cli(&proxy, &["--admin-key-file", "wrong-key", "balance"]).await;
    wrong.fails(4, &["not the admin key", "\n next: farebox --admin-key-file FILE"]);
    let missing = cli(&proxy, &["--admin-key-file", "no-file", "balance"]).await;
    missing.fails(4, &["no-file", "\n next: "]);
    cli(&proxy, &["--account", "nope", "balance"]).await.fails(5, &["`nope`", "\n next: "]);
    proxy.terminate().await;
    cli(&proxy, &["balance"]).await.fails(7, &["no answer from", "\n next: farebox serve"]);
    // Whether it was booked is unknown: the same command again books it once.
    let add = cli(&proxy, &["credit", "add", "1", "--note", "x"]).await;
    add.fails(7, &["\n next: farebox credit add --account default 1 --note x --idempotency-key"]);
    Shell::new().run(&["balance"], &[]).fails(4, &["FAREBOX_ADMIN_KEY", "\n next: "]);
}

#[test]
fn every_command_explains_itself_in_eighty_columns() {
    let shell = Shell::new();
    let commands = "|serve|check|demo|account|account create|account list|account show|key|\
                    key create|key list|key revoke|credit|credit add|credit deduct|balance|usage|\
                    usage list|usage summary|ledger|ledger list|price|price list|price check|\
                    price import|completions";
    for command in commands.split('|') {
        let args: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let help = shell.run(&args, &[("COLUMNS", "80"), ("FAREBOX_ADMIN_KEY", "canary-key")]);
        assert!(help.code == 0 && help.out.contains("Usage: farebox"), "{command}: {help:?}");
        assert!(!help.out.contains("canary-key"));
    }
    let help = shell.run(&["--help"], &[]).out;
    assert!(help.contains("Exit codes: 0 ok") && help.contains("farebox credit add 20"), "{help}");
    assert!(shell.run(&["--version"], &[]).out.starts_with("farebox 0."));
    for name in ["bash", "zsh", "fish"] {
        assert!(shell.run(&["completions", name], &[]).out.contains("farebox"));
    }
}

#[test]
fn check_points_at_what_is_wrong_with_the_settings() {
    let shell = Shell::new();
    shell.file("bad.toml", "max_in_flight = 3\nmax_in_fligth = 4\n");
    let bad = shell.run(&["check", "--config", "bad.toml"], &[]);
    bad.fails(3, &["bad.toml: ", "line 2, column 1", "2 | max_in_fligth = 4\n", "default.toml"]);
    assert!(
        bad.err.lines().count() < 10 && bad.err.lines().all(|line| line.len() < 100),
        "{bad:?}"
    );
    let serve = shell.run(&["serve", "--config", "bad.toml"], &[]);
    serve.fails(3, &["line 2", "The server was not started.", "\n next: farebox check"]);

    shell.file(
        "upstream.toml",
        "[[upstream]]\nname = \"x\"\nkind = \"openai\"\nbase_url = \"http://example.com/v1\"\n\
         api_key_env = \"NOPE\"\n",
    );
    let both = shell.run(&["check", "--config", "upstream.toml"], &[]);
    both.fails(3, &["base_url must be https", "the variable NOPE is empty"]);
    shell.run(&["check", "--config", "none.toml"], &[]).fails(3, &["none.toml cannot be read"]);
    let weak = shell.run(&["check"], &[("FAREBOX_ADMIN_KEY", "short")]);
    weak.fails(3, &["FAREBOX_ADMIN_KEY is shorter than 8"]);
    let typed = shell.run(&["check"], &[("FAREBOX_MAX_IN_FLIGHT", "many")]);
    typed.fails(3, &["FAREBOX_MAX_IN_FLIGHT cannot be read"]);
}

#[test]
fn check_points_at_what_is_wrong_with_the_prices() {
    let shell = Shell::new();
    shell.file("p.toml", "[models.\"a\"]\nupstream = \"openai\"\ninput = \"1\"\nouput = \"2\"\n");
    let texts = ["unknown key `ouput`", "p.toml:4:1", "did you mean `output`?"];
    for command in ["check", "serve"] {
        shell.run(&[command], &[("FAREBOX_PRICING", "p.toml")]).fails(3, &texts);
    }
    shell.run(&["price", "check", "p.toml"], &[]).fails(3, &texts);
    shell.run(&["check"], &[("FAREBOX_PRICING", "none.toml")]).fails(3, &["none.toml"]);
}

#[test]
fn check_tells_what_is_well_and_what_cannot_be_reached() {
    let shell = Shell::new();
    let well = shell.run(&["check"], &[]);
    assert_eq!(well.code, 0, "{well:?}");
    for text in ["settings   ok", "prices     ok: ", "upstreams  none", "store      ok: "] {
        assert!(well.out.contains(text), "{well:?}");
    }
    let port = {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        taken.local_addr().unwrap().port()
    };
    shell.file(
        "farebox.toml",
        &format!(
            "[[upstream]]\nname = \"x\"\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:{port}\"\n"
        ),
    );
    let done = shell.run(&["check"], &[]);
    done.fails(7, &["1 of the upstreams cannot be reached"]);
    assert!(done.out.contains("upstream   x: not reachable"), "{done:?}");
}

#[tokio::test]
async fn a_start_that_cannot_be_says_why_and_what_to_do() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let store = proxy.store();
    let held = [("FAREBOX_STORE", store.to_str().unwrap())];
    let shell = Shell::new();
    for command in ["serve", "check"] {
        let done = shell.run(&[command], &held);
        done.fails(1, &["in use by another process", "set FAREBOX_STORE"]);
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for variable in ["FAREBOX_LISTEN", "FAREBOX_ADMIN_LISTEN"] {
        let done = shell.run(&["serve"], &[(variable, &address)]);
        done.fails(1, &["cannot listen on", &address, &format!("set {variable}")]);
    }
    shell.file("a-file", "");
    let done = shell.run(&["serve"], &[("FAREBOX_STORE", "a-file/farebox.db")]);
    done.fails(1, &["cannot open the store a-file/farebox.db", "set FAREBOX_STORE"]);

    shell.file("foreign.db", &"not a database. ".repeat(100));
    let done = shell.run(&["serve"], &[("FAREBOX_STORE", "foreign.db")]);
    done.fails(1, &["foreign.db"]);
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let shell = Shell::new();
    assert_eq!(shell.run(&["check"], &[("FAREBOX_STORE", "new.db")]).code, 0);
    let path = shell.dir().join("new.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 9999).unwrap();
    let done = shell.run(&["serve"], &[("FAREBOX_STORE", "new.db")]);
    done.fails(1, &["new.db has schema 9999", "newer version"]);
}

#[tokio::test]
async fn the_first_start_makes_keys_in_private_files_and_the_second_none() {
    let upstream = Upstream::start().await;
    let setup = Setup::before(&upstream)
        .env("FAREBOX_ADMIN_KEY", "")
        .env("FAREBOX_CLIENT_KEY", "")
        .env("FAREBOX_INITIAL_CREDITS", "");
    let mut proxy = setup.start().await;
    let file = |name: &str| proxy.dir().join(name);
    let (admin, client) = (file("admin-key"), file("client-key"));
    for path in [&admin, &client] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        let key = std::fs::read_to_string(path).unwrap();
        assert!(!proxy.output().contains(key.trim()), "a log would keep it");
    }
    assert!(proxy.output().contains(client.to_str().unwrap()));
    // The command line finds the admin key beside the store.
    assert!(prints(&proxy, &["balance"]).await.starts_with("default  0 credits"));
    let key = std::fs::read_to_string(&client).unwrap();
    let client_account = proxy.default_account().with_key(key.trim());
    client_account.chat("Hi").await.expect(402);

    let admin_before = std::fs::read_to_string(&admin).unwrap();
    std::fs::remove_file(&client).unwrap();
    proxy.terminate().await;
    let before = proxy.output().len();
    proxy.restart().await;
    assert!(!proxy.output()[before..].contains("Client key"), "{}", proxy.output());
    assert!(!client.exists());
    assert_eq!(std::fs::read_to_string(&admin).unwrap(), admin_before);
    client_account.chat("Hi").await.expect(402);
    assert_eq!(prints(&proxy, &["key", "list"]).await.lines().count(), 2);
}

#[tokio::test]
async fn a_key_is_rotated_with_an_overlap_or_at_once_and_tried_out() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let create = ["key", "create", "--name", "agent", "--tag", "cron", "--daily", "5"];
    let old = cli(&proxy, &create).await.out.trim().to_owned();
    let account = proxy.default_account();

    let rotated = cli(&proxy, &["key", "rotate", "agent", "--overlap", "7d"]).await;
    let new = rotated.out.trim();
    assert!(new.starts_with("fbx_live_") && new != old, "{rotated:?}");
    assert!(rotated.err.contains("is valid until ") && rotated.err.contains("only this once"));
    for key in [old.as_str(), new] {
        account.with_key(key).chat("Hi").await.expect(200);
    }
    let listed = json(&proxy, &["key", "list"]).await;
    let agents = listed["data"].as_array().unwrap().iter().filter(|key| key["name"] == "agent");
    let agents: Vec<_> = agents.cloned().collect();
    assert_eq!(agents.len(), 2);
    for key in &agents {
        assert_eq!((&key["tag"], &key["limits"]["daily"]), (&"cron".into(), &"5".into()), "{key}");
    }

    // By its id: there are two of this name. At once: the old one is refused from now on.
    let newer = agents.iter().find(|key| key["expires_at"].is_null()).unwrap();
    let id = newer["id"].as_str().unwrap();
    let newest = cli(&proxy, &["--yes", "key", "rotate", id, "--overlap", "0s"]).await;
    assert!(newest.err.contains("is revoked"), "{newest:?}");
    account.with_key(new).chat("Hi").await.expect(401);
    let newest = newest.out.trim();
    account.with_key(newest).chat("Hi").await.expect(200);

    let gone = cli(&proxy, &["key", "rotate", id]).await;
    gone.fails(5, &["has no key"]);
    let bad = cli(&proxy, &["key", "rotate", "agent", "--overlap", "soon"]).await;
    assert_ne!(bad.code, 0, "{bad:?}");

    // The secret comes by the environment, never by the command line.
    let listed = json(&proxy, &["key", "list"]).await;
    let keys = listed["data"].as_array().unwrap();
    let id = keys.iter().find(|key| newest.ends_with(key["last4"].as_str().unwrap())).unwrap();
    let id = id["id"].as_str().unwrap();
    let works = with_secret(&proxy, newest, &["key", "test", id]).await;
    assert!(works.code == 0 && works.out.contains("may call"), "{works:?}");
    let answered = with_secret(&proxy, newest, &["key", "test", id, "--model", "test"]).await;
    assert!(answered.out.contains("test answered") && answered.out.contains(" credits"));
    with_secret(&proxy, new, &["key", "test", id]).await.fails(2, &["not the secret of this key"]);
    with_secret(&proxy, "", &["key", "test", id]).await.fails(2, &["set FAREBOX_KEY"]);
}

/// Runs a command with a client key in its environment.
async fn with_secret(proxy: &Proxy, secret: &str, args: &[&str]) -> Done {
    let mut command = proxy.command(args);
    command.env("FAREBOX_URL", proxy.admin_url()).env("FAREBOX_KEY", secret);
    command.stdin(Stdio::null());
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    Done::of(&within("a command", run).await.unwrap())
}

#[tokio::test]
async fn presets_are_applied_once_however_often_it_starts() {
    let upstream = Upstream::start().await;
    let mut proxy = Setup::before(&upstream).env("FAREBOX_INITIAL_CREDITS", "7").start().await;
    proxy.default_account().chat("Hi").await.expect(200);
    for _ in 0..2 {
        proxy.terminate().await;
        proxy.restart().await;
        proxy.default_account().chat("Hi").await.expect(200);
    }
    assert!(!proxy.dir().join("admin-key").exists() && !proxy.dir().join("client-key").exists());
    assert_eq!(prints(&proxy, &["key", "list"]).await.lines().count(), 2);
    let topups = json(&proxy, &["ledger", "list", "--kind", "topup"]).await;
    assert_eq!(topups["data"].as_array().unwrap().len(), 1);
    assert_eq!(proxy.default_account().balance().await, credits("6.99958"));
    proxy.default_account().check_books().await;
}

#[test]
fn prices_are_listed_checked_and_imported_into_a_file() {
    let shell = Shell::new();
    let list = shell.run(&["price", "list"], &[]).out;
    assert!(list.starts_with("MODEL  ") && list.contains("\nclaude-sonnet-4.5 "), "{list}");
    let json: Value =
        serde_json::from_str(&shell.run(&["price", "list", "--json"], &[]).out).unwrap();
    assert!(json["data"].as_array().unwrap().len() > 5);
    let check = shell.run(&["price", "check"], &[]);
    assert!(check.code == 0 && check.out.contains("0 errors"), "{check:?}");

    shell.file(
        "list.json",
        r#"{"new-model": {"litellm_provider": "openai", "mode": "chat",
            "input_cost_per_token": 1.1e-06, "output_cost_per_token": 4.4e-06,
            "max_input_tokens": 1000, "max_output_tokens": 100}}"#,
    );
    let preview = shell.run(&["price", "import", "list.json"], &[]);
    assert!(preview.code == 0 && preview.out.contains("new-model"), "{preview:?}");
    assert!(preview.err.contains("nothing is written without --write FILE"), "{preview:?}");
    let write = shell.run(&["price", "import", "list.json", "--write", "mine.toml"], &[]);
    assert_eq!(write.code, 0, "{write:?}");
    let text = std::fs::read_to_string(shell.dir().join("mine.toml")).unwrap();
    assert!(text.contains("input = \"1.1\"") && text.contains("output = \"4.4\""), "{text}");
    assert_eq!(shell.run(&["price", "check", "mine.toml"], &[]).code, 0);
    let own = shell.run(&["price", "list"], &[("FAREBOX_PRICING", "mine.toml")]).out;
    assert!(own.contains("\nnew-model ") && own.lines().count() == 2, "{own}");
    shell.run(&["price", "import", "none.json"], &[]).fails(1, &["cannot read none.json"]);
    shell.file("bad.json", "[1]");
    shell.run(&["price", "import", "bad.json"], &[]).fails(3, &[]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let shell = Shell::new();
    let mut command = shell.command(&["price", "list", "--json"], &[]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
}
