//! What every command works with: the client, the account, and how to print.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use jiff::Zoned;
use jiff::tz::TimeZone;
use serde::de::DeserializeOwned;

use super::client::{Answer, Client};
use super::failure::{Exit, Failure};
use super::table::Style;
use super::{Global, Host};
use crate::key::Secret;
use crate::store::Millis;
use crate::time;

/// Columns of a terminal that does not say how many it has.
const TERMINAL_COLUMNS: usize = 80;

/// The account of the first start.
const DEFAULT_ACCOUNT: &str = "default";

/// What a command works with.
pub struct Context {
    /// The control plane.
    pub client: Client,
    /// The account that is meant.
    pub account: String,
    /// The one that was named, for commands that are else about all of them.
    pub asked_account: Option<String>,
    /// The time zone of dates and days.
    pub zone: TimeZone,
    /// Its name.
    pub zone_name: String,
    /// What the terminal can do.
    pub style: Style,
    json: bool,
    yes: bool,
}

impl Context {
    /// Reads the global options and finds the admin key.
    ///
    /// # Errors
    ///
    /// An unknown time zone, or no admin key.
    pub fn new(global: &Global, host: &Host) -> Result<Self, Failure> {
        let key = admin_key(global, host)?;
        let (zone, zone_name) = zone(global.tz.as_deref())?;
        if global.url.scheme() == "http" && !is_loopback(&global.url) {
            eprintln!("warning: the admin key goes to {} unencrypted", global.url);
        }
        Ok(Self {
            client: Client::new(&global.url, key, global.timeout)?,
            account: global.account.clone().unwrap_or_else(|| DEFAULT_ACCOUNT.to_owned()),
            asked_account: global.account.clone(),
            zone,
            zone_name,
            style: style(),
            json: global.json,
            yes: global.yes,
        })
    }

    /// The answer as it was sent for `--json`, or else as `render` shows it.
    ///
    /// # Errors
    ///
    /// An answer that cannot be read.
    pub fn show<T: DeserializeOwned>(
        &self,
        answer: &Answer,
        render: impl FnOnce(T) -> String,
    ) -> Result<String, Failure> {
        if self.json {
            return Ok(format!("{}\n", answer.text()));
        }
        Ok(render(answer.read()?))
    }

    /// Whether a program reads the output.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Says something beside the data.
    pub fn note(&self, text: &str) {
        if !self.json {
            eprintln!("{}", super::table::printable(text));
        }
    }

    /// Asks before something that cannot be taken back. Without a terminal there is nobody
    /// to ask, and the command is the answer.
    ///
    /// # Errors
    ///
    /// [`Exit::Refused`] unless the answer is yes.
    pub fn confirm(&self, question: &str) -> Result<(), Failure> {
        confirm(self.yes, question)
    }

    /// An instant on the clocks of the zone, to the second.
    pub fn clock(&self, at: Millis) -> String {
        time::in_zone(at, &self.zone).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// A day of the zone.
    pub fn day(&self, at: Millis) -> String {
        time::in_zone(at, &self.zone).strftime("%Y-%m-%d").to_string()
    }

    /// The heading over [`Context::moment`]s, with the zone as it is called now.
    pub fn moment_heading(&self) -> String {
        format!("TIME {}", time::in_zone(time::now(), &self.zone).strftime("%Z"))
    }

    /// An instant as short as it is plain: without the date today, without the year this year.
    pub fn moment(&self, at: Millis) -> String {
        moment(&time::in_zone(at, &self.zone), &time::in_zone(time::now(), &self.zone))
    }

    /// The id of the key that a text names by its id or its name.
    ///
    /// # Errors
    ///
    /// No such key, or several of the same name.
    pub async fn key_id(&self, text: &str) -> Result<String, Failure> {
        let keys = self.client.keys(&self.account).await?;
        if keys.iter().any(|key| key.id == text) {
            return Ok(text.to_owned());
        }
        let named: Vec<_> = keys.iter().filter(|key| key.name == text).collect();
        let valid: Vec<_> = named.iter().filter(|key| key.revoked_at.is_none()).collect();
        let list = format!("farebox key list --account {}", self.account);
        match (valid.as_slice(), named.as_slice()) {
            ([key], _) => Ok(key.id.clone()),
            ([], [key]) => Ok(key.id.clone()),
            ([], []) => {
                let message = format!("Account `{}` has no key `{text}`.", self.account);
                Err(Failure::new(Exit::NotFound, message).next(list))
            }
            _ => {
                let message = format!("Several keys are named `{text}`; name one by its id.");
                Err(Failure::new(Exit::Usage, message).next(list))
            }
        }
    }
}

/// As [`Context::confirm`].
///
/// # Errors
///
/// [`Exit::Refused`] unless the answer is yes.
pub fn confirm(is_sure: bool, question: &str) -> Result<(), Failure> {
    let is_asked = io::stdin().is_terminal() && io::stderr().is_terminal();
    if is_sure || !is_asked {
        return Ok(());
    }
    eprint!("{} [y/N] ", super::table::printable(question));
    // Nothing is lost if it cannot be flushed: the answer is then no.
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let _ = io::stdin().lock().read_line(&mut answer);
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Refused, "nothing was changed")),
    }
}

fn moment(at: &Zoned, now: &Zoned) -> String {
    let form = if at.date() == now.date() {
        "%H:%M:%S"
    } else if at.year() == now.year() {
        "%b %d %H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    at.strftime(form).to_string()
}

fn zone(name: Option<&str>) -> Result<(TimeZone, String), Failure> {
    if let Some(name) = name {
        return match TimeZone::get(name) {
            Ok(zone) => Ok((zone, name.to_owned())),
            Err(_) => {
                let message = format!("--tz {name}: not a time zone such as Europe/Berlin");
                Err(Failure::new(Exit::Usage, message))
            }
        };
    }
    let system = TimeZone::system();
    // The server is told the zone by its name, so one without a name is of no use.
    Ok(match system.iana_name().map(str::to_owned) {
        Some(name) => (system, name),
        None => (TimeZone::UTC, "UTC".to_owned()),
    })
}

/// What the terminal behind stdout can do.
pub fn style() -> Style {
    if !io::stdout().is_terminal() {
        return Style::default();
    }
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let columns = asked.or_else(|| Some(terminal_size::terminal_size()?.0.0.into()));
    Style { bold: !set("NO_COLOR") && !is_dumb, width: Some(columns.unwrap_or(TERMINAL_COLUMNS)) }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"))
}

/// The admin key: of the file that is named, else of the environment, else of the file that
/// the first start left beside the store.
fn admin_key(global: &Global, host: &Host) -> Result<Secret, Failure> {
    if let Some(path) = &global.admin_key_file {
        return read_key(path);
    }
    match std::env::var("FAREBOX_ADMIN_KEY") {
        Ok(key) if !key.trim().is_empty() => return Ok(Secret::new(key.trim())),
        _ => {}
    }
    let beside: Option<PathBuf> = (host.store)(global.config.as_deref())
        .map(|store| store.admin_key())
        .filter(|path| path.exists());
    match beside {
        Some(path) => read_key(&path),
        None => Err(Failure::new(
            Exit::Auth,
            "no admin key: set FAREBOX_ADMIN_KEY, or name a file with --admin-key-file",
        )
        .next("farebox --admin-key-file FILE account list")),
    }
}

fn read_key(path: &Path) -> Result<Secret, Failure> {
    let at = path.display();
    let failure = |why: &str| {
        Failure::new(Exit::Auth, format!("the admin key in {at}: {why}"))
            .next("farebox --admin-key-file FILE …    (or FAREBOX_ADMIN_KEY)")
    };
    let text = std::fs::read_to_string(path).map_err(|error| failure(&error.to_string()))?;
    match text.trim() {
        "" => Err(failure("the file is empty")),
        key => Ok(Secret::new(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_says_no_more_than_is_needed() {
        let at = |text: &str| text.parse::<Zoned>().unwrap();
        let now = at("2026-11-21T10:00:00+01:00[Europe/Berlin]");
        let shown = |text: &str| moment(&at(text), &now);
        assert_eq!(shown("2026-11-21T00:00:01+01:00[Europe/Berlin]"), "00:00:01");
        assert_eq!(shown("2026-11-20T23:59:59+01:00[Europe/Berlin]"), "Nov 20 23:59:59");
        assert_eq!(shown("2025-12-31T08:00:00+01:00[Europe/Berlin]"), "2025-12-31 08:00:00");
    }
}
