//! Whether a Redis can be trusted with money, looked at before it is.

use redis::Value;

use super::OpenError;
use super::address::Address;
use super::link::{Away, Conn, Link};
use super::reply;

/// The oldest versions that have what the scripts use.
const REDIS: u32 = 7;
const VALKEY: u32 = 8;

/// What is looked at before a server is used for the first time.
pub(super) struct Vet {
    pub address: Address,
    /// It is used although it is unfit.
    pub anyway: bool,
    /// The key that is there while a copy is put back; none for who does that.
    pub restoring: Option<String>,
    /// The key that says which processes have begun a new file.
    pub files: String,
}

/// Why a server is not used.
pub(super) enum Unready {
    /// It does not answer, or not now.
    Away(String),
    /// It must not be used as it is.
    Unfit(OpenError),
}

impl From<Away> for Unready {
    fn from(Away(why): Away) -> Self {
        Self::Away(why)
    }
}

impl Vet {
    /// Looks at every master, and says all that is wrong at once.
    pub(super) async fn look(&self, link: &Link, conn: &mut Conn) -> Result<(), Unready> {
        let mut info = redis::cmd("INFO");
        info.arg("everything");
        let infos = link.ask_each_master(conn, &info).await?;
        let infos: Vec<_> = infos.iter().map(text).collect();
        // What it says of its settings then is not how it is set.
        if infos.iter().any(|info| field(info, "loading") == Some("1")) {
            return Err(Unready::Away(format!("the store {} is loading its file", self.address)));
        }
        self.check(&infos).map_err(Unready::Unfit)?;
        let Some(restoring) = &self.restoring else { return Ok(()) };
        let mut get = redis::cmd("GET");
        get.arg(restoring);
        match reply::maybe(link.ask_patiently(conn, &get).await?) {
            Ok(None) => Ok(()),
            _ => Err(Unready::Unfit(OpenError(format!(
                "a backup was not wholly restored into {}: run farebox store restore again",
                self.address
            )))),
        }
    }

    fn check(&self, infos: &[String]) -> Result<(), OpenError> {
        let Self { address, anyway, .. } = self;
        check(infos, address, *anyway)
    }
}

/// All that is wrong with the servers of a store.
///
/// # Errors
///
/// [`OpenError`], unless `anyway`: then it is only logged.
fn check(infos: &[String], address: &Address, anyway: bool) -> Result<(), OpenError> {
    let mut problems = Vec::new();
    if address.is_remote() && !address.has_password() {
        problems.push(String::from(
            "it is on another machine and asks for no password: set one with an ACL user or \
             requirepass, and give it in FAREBOX_REDIS_PASSWORD",
        ));
    }
    for info in infos {
        for problem in problems_of(info) {
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let list = problems.join("\n  - ");
    if anyway {
        tracing::warn!("the store {address} is used although\n  - {list}");
        return Ok(());
    }
    Err(OpenError(format!(
        "the store {address} is not fit to keep balances:\n  - {list}\n(redis_allow_unsafe = true, \
         or FAREBOX_REDIS_ALLOW_UNSAFE, starts all the same)"
    )))
}

pub(super) fn text(answer: &Value) -> String {
    match answer {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => text.clone(),
        _ => String::new(),
    }
}

/// A field of `INFO`.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
}

/// What is wrong by what a server tells about itself.
pub(super) fn problems_of(info: &str) -> Vec<String> {
    let value = |name: &str| field(info, name);
    let major = |version: &str| version.split('.').next().and_then(|n| n.parse::<u32>().ok());
    let mut problems = Vec::new();
    let is_old = match (value("valkey_version"), value("redis_version")) {
        (Some(version), _) => major(version).is_none_or(|major| major < VALKEY),
        (None, Some(version)) => major(version).is_none_or(|major| major < REDIS),
        (None, None) => true,
    };
    if is_old {
        problems.push(format!(
            "its version is {}: use Redis {REDIS} or Valkey {VALKEY}, or a newer one",
            value("valkey_version").or_else(|| value("redis_version")).unwrap_or("unknown")
        ));
    }
    if value("role") != Some("master") {
        problems.push(String::from(
            "it is a replica, which takes no debits: give the address of the master, or of the \
             sentinels",
        ));
    }
    if value("aof_enabled") != Some("1") {
        problems.push(String::from(
            "it does not keep an append-only file, so debits would be lost when it ends: set \
             appendonly yes and appendfsync always",
        ));
    }
    if let Some(policy) = value("maxmemory_policy").filter(|policy| *policy != "noeviction") {
        problems.push(format!(
            "when its memory is full it throws keys away (maxmemory-policy {policy}), balances \
             among them: set maxmemory-policy noeviction"
        ));
    }
    problems
}

/// A word for the history of a set of masters.
pub(super) fn epoch_of(infos: &[Value]) -> String {
    let mut words: Vec<_> = infos
        .iter()
        .map(|info| {
            let info = text(info);
            let of = |name: &str| field(&info, name).unwrap_or_default().to_owned();
            format!("{}.{}", of("run_id"), of("master_replid"))
        })
        .collect();
    words.sort_unstable();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIT: &str = "redis_version:7.0.15\r\nrole:master\r\naof_enabled:1\r\n\
                       maxmemory_policy:noeviction\r\n";

    #[test]
    fn each_way_of_being_unfit_is_named_with_its_remedy() {
        assert_eq!(problems_of(FIT), Vec::<String>::new());
        let valkey = format!("{FIT}valkey_version:8.0.1\r\n");
        assert_eq!(problems_of(&valkey), Vec::<String>::new());
        for (from, to, said) in [
            ("7.0.15", "6.2.6", "version is 6.2.6"),
            ("role:master", "role:slave", "replica"),
            ("aof_enabled:1", "aof_enabled:0", "appendonly yes"),
            ("noeviction", "allkeys-lru", "maxmemory-policy noeviction"),
        ] {
            let problems = problems_of(&FIT.replace(from, to));
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(said), "{problems:?}");
        }
        let old = format!("{FIT}valkey_version:7.2.5\r\n");
        assert!(problems_of(&old)[0].contains("7.2.5"));
    }
}
