//! The prices in force: read from `pricing.toml`, and read again when it changes.
//!
//! A new table replaces the old one whole, or not at all. A running request keeps the
//! `Arc` of the model that it was admitted with, and so its price.

use std::collections::HashMap;
use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::{info, warn};

use crate::billing::price::problem::{Problem, Severity, render};
use crate::billing::price::{Model, PriceTable};

/// The table that is part of the program, for when no file is given.
pub const BUILT_IN: &str = include_str!("../pricing.toml");

/// How often the file is looked at. Polled, because watches get lost on mounts and on
/// files that are replaced.
const POLL: Duration = Duration::from_secs(2);
/// The priority ("nice") of a thread that nobody waits for.
const POLITE: i32 = 10;

/// The prices in force.
#[derive(Debug)]
pub struct Prices {
    path: Option<PathBuf>,
    /// The file as it was just before it was first read.
    loaded: Stamp,
    table: ArcSwap<PriceTable>,
    /// Held while the file is read again, so that who read it last is in force.
    reloading: Mutex<()>,
}

/// Why there are no new prices. Its text is for the operator, over several lines.
#[derive(Debug, thiserror::Error)]
pub enum PricesError {
    /// The file cannot be read.
    #[error("cannot read the prices in {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file has errors; `problems` tells all of them, each with its line.
    #[error("{problems}{errors} in {}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Rendered.
        problems: String,
        /// How many.
        errors: Count,
    },
}

/// A number of errors, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub usize);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} error{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// Names of models whose entry a reload changed in any way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// New ones.
    pub added: Vec<String>,
    /// Those that can no longer be called.
    pub removed: Vec<String>,
    /// Those with another price, upstream, limit or alias.
    pub changed: Vec<String>,
}

impl Prices {
    /// Reads the prices of a file, or the ones that are built in.
    ///
    /// # Errors
    ///
    /// [`PricesError`].
    pub fn load(path: Option<&Path>) -> Result<Self, PricesError> {
        let loaded = path.and_then(|path| stamp(std::fs::metadata(path)));
        let table = ArcSwap::from_pointee(read(path)?);
        let path = path.map(Path::to_owned);
        Ok(Self { path, loaded, table, reloading: Mutex::default() })
    }

    /// The table in force now.
    pub fn table(&self) -> Arc<PriceTable> {
        self.table.load_full()
    }

    /// Reads the file again, and puts its prices in force if it has no error.
    ///
    /// # Errors
    ///
    /// [`PricesError`]; the old prices then stay in force.
    pub fn reload(&self) -> Result<Difference, PricesError> {
        let _reloading = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Arc::new(read(self.path.as_deref())?);
        let old = self.table.swap(Arc::clone(&new));
        Ok(Difference::between(&old, &new))
    }

    /// Reloads whenever the file has changed, for as long as it is polled; errors are logged.
    pub async fn watch(self: &Arc<Self>) {
        self.watch_every(POLL).await;
    }

    async fn watch_every(self: &Arc<Self>, pause: Duration) {
        let Some(path) = &self.path else { return };
        let mut watched = Watched { loaded: self.loaded, last: self.loaded };
        loop {
            tokio::time::sleep(pause).await;
            if watched.look(stamp(tokio::fs::metadata(path).await)) {
                self.reload_and_log();
            }
        }
    }

    /// Reloads, as on SIGHUP, and logs what became of it. Returns at once: thousands of prices
    /// are read on a thread that gives way to those that serve.
    pub fn reload_and_log(self: &Arc<Self>) {
        let prices = Arc::clone(self);
        let reload = move || {
            // Of this thread alone. Without it only the reading is less polite.
            let _ = rustix::process::setpriority_process(None, POLITE);
            match prices.reload() {
                Ok(Difference { added, removed, changed }) => info!(
                    version = %prices.table().version,
                    added = %Names(&added),
                    removed = %Names(&removed),
                    changed = %Names(&changed),
                    "prices read again",
                ),
                Err(error) => warn!("prices stay as they were: {error}"),
            }
        };
        if let Err(error) = thread::Builder::new().name("prices".into()).spawn(reload) {
            warn!("prices stay as they were, for want of a thread: {error}");
        }
    }
}

/// Names in a line of the log, which thousands would flood.
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(20)];
        write!(f, "{}", shown.join(", "))?;
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl Difference {
    fn between(old: &PriceTable, new: &PriceTable) -> Self {
        let by_name = |table: &PriceTable| -> HashMap<String, Arc<Model>> {
            table.models.iter().map(|model| (model.name.clone(), Arc::clone(model))).collect()
        };
        let (mut before, mut difference) = (by_name(old), Self::default());
        for model in &new.models {
            match before.remove(&model.name) {
                None => difference.added.push(model.name.clone()),
                Some(before) if before != *model => difference.changed.push(model.name.clone()),
                Some(_) => {}
            }
        }
        let removed = old.models.iter().filter(|model| before.contains_key(&model.name));
        difference.removed = removed.map(|model| model.name.clone()).collect();
        difference
    }
}

/// Reads a file, or the built-in table. Warnings are logged.
fn read(path: Option<&Path>) -> Result<PriceTable, PricesError> {
    let Some(path) = path else { return parse(BUILT_IN, Path::new("pricing.toml")) };
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| PricesError::Unreadable { path: path.into(), source })?;
    parse(&text, path)
}

/// Reads the text of a file, of which only the name is needed here. Warnings are logged.
fn parse(text: &str, file: &Path) -> Result<PriceTable, PricesError> {
    let shown = |problems: &[Problem]| render(problems, &file.display().to_string(), text);
    match PriceTable::read(text) {
        Ok((table, warnings)) => {
            for warning in warnings {
                warn!("{}", shown(&[warning]).trim_end());
            }
            Ok(table)
        }
        Err(problems) => {
            let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
            let errors = Count(errors.count());
            Err(PricesError::Invalid { file: file.into(), problems: shown(&problems), errors })
        }
    }
}

/// What tells one state of a file from another: time of change, length and inode. The inode
/// shows a file that was replaced, the others one that was written to.
type Stamp = Option<(i64, i64, u64, u64)>;

fn stamp(data: io::Result<Metadata>) -> Stamp {
    let data = data.ok()?;
    Some((data.mtime(), data.mtime_nsec(), data.len(), data.ino()))
}

/// The states in which a file was seen.
struct Watched {
    loaded: Stamp,
    last: Stamp,
}

impl Watched {
    /// Takes in how the file looks now, and tells whether to load it: it is not as it was
    /// loaded, and has stayed the same between two looks, so nobody is writing to it.
    fn look(&mut self, now: Stamp) -> bool {
        let is_settled = now == self.last;
        self.last = now;
        let is_new = now.is_some() && now != self.loaded;
        if is_new && is_settled {
            self.loaded = now;
        }
        is_new && is_settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::price::{Rate, Rates, Tier};

    const GROK: &str = "[models.grok]\nupstream = \"xai\"\ninput = \"3\"\noutput = \"15\"\n";
    const GPT: &str = "[models.gpt]\nupstream = \"openai\"\ninput = \"2\"\noutput = \"8\"\n";

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pricing.toml");
        std::fs::write(&path, text).unwrap();
        (directory, path)
    }

    fn input(model: &Model) -> String {
        model.price.standard.rates.input.to_string()
    }

    #[test]
    fn a_reload_tells_what_changed_and_a_running_request_keeps_its_price() {
        let (_directory, path) = file(&format!("{GROK}{GPT}"));
        let prices = Prices::load(Some(&path)).unwrap();
        let admitted = Arc::clone(prices.table().find("grok").unwrap());

        std::fs::write(&path, GROK.replace("\"3\"", "\"4\"") + &GPT.replace("gpt", "new")).unwrap();
        let difference = prices.reload().unwrap();
        assert_eq!(difference.added, ["new"]);
        assert_eq!(difference.removed, ["gpt"]);
        assert_eq!(difference.changed, ["grok"]);
        assert_eq!(input(&admitted), "3");
        assert_eq!(input(prices.table().find("grok").unwrap()), "4");
        assert_eq!(prices.reload().unwrap(), Difference::default());
    }

    #[test]
    fn a_line_of_the_log_names_twenty_models_and_counts_the_rest() {
        let names = |count: usize| (1..=count).map(|n| format!("m{n}")).collect::<Vec<_>>();
        assert_eq!(Names(&names(0)).to_string(), "");
        assert_eq!(Names(&names(3)).to_string(), "m1, m2, m3");
        assert!(Names(&names(20)).to_string().ends_with(", m20"));
        assert!(Names(&names(4500)).to_string().ends_with(", m20 and 4480 more"));
    }

    #[test]
    fn a_file_with_an_error_changes_no_price() {
        let (_directory, path) = file(GROK);
        let prices = Prices::load(Some(&path)).unwrap();
        std::fs::write(&path, format!("{GPT}{}", GROK.replace("\"15\"", "15"))).unwrap();
        let told = prices.reload().unwrap_err().to_string();
        assert!(told.contains("pricing.toml:8:10\n"), "{told}");
        assert!(told.ends_with(&format!("1 error in {}", path.display())), "{told}");
        assert!(prices.table().find("gpt").is_none());

        std::fs::remove_file(&path).unwrap();
        assert!(matches!(prices.reload(), Err(PricesError::Unreadable { .. })));
        assert_eq!(input(prices.table().find("grok").unwrap()), "3");
    }

    #[test]
    fn a_file_is_loaded_once_it_has_changed_and_nobody_writes_to_it() {
        let state = |n: u64| Some((0, 0, n, 0));
        let mut watched = Watched { loaded: state(1), last: state(1) };
        let looks = [
            (state(1), false),
            (state(2), false), // changed
            (state(3), false), // still being written
            (state(3), true),
            (state(3), false),
            (None, false), // being replaced
            (None, false),
            (state(3), false),
            (state(4), false),
            (state(4), true),
        ];
        for (at, (now, expected)) in looks.into_iter().enumerate() {
            assert_eq!(watched.look(now), expected, "look {at}");
        }
    }

    #[tokio::test]
    async fn a_watched_file_is_read_again_when_it_changes() {
        let (_directory, path) = file(GROK);
        let prices = Arc::new(Prices::load(Some(&path)).unwrap());
        // Also a change between loading and watching is seen.
        std::fs::write(&path, format!("{GROK}{GPT}")).unwrap();
        let watching = Arc::clone(&prices);
        let pause = Duration::from_millis(1);
        let watch = tokio::spawn(async move { watching.watch_every(pause).await });
        while prices.table().find("gpt").is_none() {
            tokio::time::sleep(pause).await;
        }
        watch.abort();
    }

    #[test]
    fn the_built_in_prices_are_in_force_without_a_file() {
        let prices = Prices::load(None).unwrap();
        assert!(prices.table().find("claude-sonnet-4.5").is_some());
        assert_eq!(prices.reload().unwrap(), Difference::default());
    }

    #[test]
    fn the_built_in_prices_have_no_problem() {
        let (table, warnings) = PriceTable::read(BUILT_IN).unwrap();
        assert_eq!(render(&warnings, "pricing.toml", BUILT_IN), "");
        for model in &table.models {
            assert!(model.source.is_some() && model.date.is_some(), "{}", model.name);
        }
    }

    /// Nano-credits per token of input, output, cache creation and cached input.
    type Published = (&'static str, i64, i64, Option<i64>, Option<i64>);

    #[test]
    fn six_models_cost_exactly_what_was_published() {
        let published: [Published; 6] = [
            ("claude-sonnet-4.5", 3_300, 16_500, Some(4_125), Some(330)),
            ("claude-opus-4.6", 5_500, 27_500, Some(6_750), Some(550)),
            ("claude-opus-4", 15_000, 75_000, Some(18_750), Some(1_500)),
            ("gemini-3-flash", 500, 3_000, None, Some(50)),
            ("gpt-4.1", 2_200, 8_800, None, Some(550)),
            ("grok-4", 3_000, 15_000, None, Some(750)),
        ];
        let (table, _) = PriceTable::read(BUILT_IN).unwrap();
        for (name, input, output, cache_creation, cached_input) in published {
            let nano = |nano: i64| Rate(nano * 1000);
            let rates = Rates {
                input: nano(input),
                output: nano(output),
                cache_creation: cache_creation.map(nano),
                cached_input: cached_input.map(nano),
                ..Rates::default()
            };
            let price = &table.find(name).unwrap().price;
            assert_eq!(price.standard, Tier { rates, bands: vec![] }, "{name}");
            assert_eq!(price.tiers.len(), 0, "{name}");
        }
    }

    #[test]
    fn the_providers_own_names_of_published_models_have_no_second_price() {
        let (table, _) = PriceTable::read(BUILT_IN).unwrap();
        for (id, name) in [
            ("claude-sonnet-4-5", "claude-sonnet-4.5"),
            ("claude-opus-4-6", "claude-opus-4.6"),
            ("gemini-3-flash-preview", "gemini-3-flash"),
        ] {
            assert_eq!(table.find(id).unwrap().name, name);
        }
        let sonnet = table.by_upstream("anthropic", "claude-sonnet-4-5").unwrap();
        assert_eq!(sonnet.name, "claude-sonnet-4.5");
        assert_eq!(table.by_upstream("openai", "claude-sonnet-4-5"), None);
    }
}
