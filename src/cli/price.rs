//! `farebox price`: shows, checks and imports prices. It needs no server.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::table::{Align, Style, Table, count};
use crate::billing::price::entry::Markup;
use crate::billing::price::import::{Change, Format, Options, import, merge, plan};
use crate::billing::price::problem::{Problem, Severity, render};
use crate::billing::price::read::{File, read_file};
use crate::billing::price::{Model, PriceTable, Rates, Tier};
use crate::prices::{BUILT_IN, Prices};

/// Prices of models.
#[derive(Clone, Debug, Subcommand)]
pub enum PriceCommand {
    /// Lists the prices in force, markup included, in credits per million tokens
    List,
    /// Finds mistakes in a pricing.toml
    Check {
        /// The file; without it, the one in force
        file: Option<PathBuf>,
    },
    /// Takes prices over from LiteLLM's or OpenRouter's list; shows what would change
    ///
    /// Numbers are read exactly as they are written. What pricing.toml cannot state exactly
    /// is skipped, with the reason.
    Import {
        /// model_prices_and_context_window.json of LiteLLM, or OpenRouter's answer to /models
        file: PathBuf,
        /// Whose list it is; guessed if left out
        #[arg(long)]
        format: Option<ListFormat>,
        /// Models to take, `*` for anything; all of the built-in upstreams if left out
        #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "GLOB")]
        models: Vec<String>,
        /// Upstream of the entries; needed for providers that are not built in
        #[arg(long, value_name = "NAME")]
        upstream: Option<String>,
        /// Markup of the entries, such as 1.10
        #[arg(long, value_name = "FACTOR", value_parser = markup)]
        markup: Option<Markup>,
        /// Where the prices are from, as the entries then say
        #[arg(long, value_name = "TEXT")]
        source: Option<String>,
        /// Writes the changes into this pricing.toml, or makes one
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
}

/// Whose list of prices it is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ListFormat {
    /// LiteLLM's `model_prices_and_context_window.json`
    Litellm,
    /// OpenRouter's `/api/v1/models`
    Openrouter,
}

impl From<ListFormat> for Format {
    fn from(format: ListFormat) -> Self {
        match format {
            ListFormat::Litellm => Self::Litellm,
            ListFormat::Openrouter => Self::Openrouter,
        }
    }
}

/// All went well.
const OK: u8 = 0;
/// A file is not there, or cannot be written.
const FAILED: u8 = 1;
/// A file has errors.
const CONFIG: u8 = 3;

/// Runs a command against the prices in `pricing`, or the built-in ones. Data goes to `out`,
/// as JSON if `json`, tables in this style, messages to `err`. Returns the exit code.
///
/// # Errors
///
/// When `out` or `err` cannot be written to.
pub fn run(
    command: &PriceCommand,
    pricing: Option<&Path>,
    json: bool,
    style: Style,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    match command {
        PriceCommand::List => match Prices::load(pricing) {
            Ok(prices) => list(&prices.table(), json, style, out),
            Err(error) => {
                writeln!(err, "{error}")?;
                Ok(CONFIG)
            }
        },
        PriceCommand::Check { file } => check(file.as_deref().or(pricing), out, err),
        PriceCommand::Import { file, format, models, upstream, markup, source, write } => {
            let options = Options {
                format: format.map(Into::into),
                models: models.clone(),
                upstream: upstream.clone(),
                markup: *markup,
                source: source.clone(),
                today: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            };
            let list = match std::fs::read_to_string(file) {
                Ok(list) => list,
                Err(error) => {
                    writeln!(err, "error: cannot read {}: {error}", file.display())?;
                    return Ok(FAILED);
                }
            };
            let target = Target { pricing, write: write.as_deref() };
            run_import(&list, &options, &target, json, out, err)
        }
    }
}

/// What an import is compared with, and where it is written.
struct Target<'a> {
    pricing: Option<&'a Path>,
    write: Option<&'a Path>,
}

fn list(table: &PriceTable, json: bool, style: Style, out: &mut dyn Write) -> io::Result<u8> {
    if json {
        let models: Vec<_> = table.models.iter().map(|model| model_json(model)).collect();
        let document = json!({ "version": table.version, "data": models });
        writeln!(out, "{document:#}")?;
        return Ok(OK);
    }
    let mut shown = Table::new([
        ("MODEL", Align::Left),
        ("UPSTREAM", Align::Left),
        ("INPUT", Align::Right),
        ("CACHED", Align::Right),
        ("WRITTEN", Align::Right),
        ("OUTPUT", Align::Right),
        ("CONTEXT", Align::Right),
    ]);
    for model in &table.models {
        shown.row(row(model));
    }
    write!(out, "{}", shown.render(style))?;
    Ok(OK)
}

fn row(model: &Model) -> [String; 7] {
    let Rates { input, output, cached_input, cache_creation, .. } = &model.price.standard.rates;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    let rate = |rate: String| if model.price.free { "free".into() } else { rate };
    let upstreams: Vec<_> = model.upstreams.iter().map(|(name, _)| name.as_str()).collect();
    [
        model.name.clone(),
        upstreams.join(", "),
        rate(input.to_string()),
        or_dash(cached_input.map(|rate| rate.to_string())),
        or_dash(cache_creation.map(|rate| rate.to_string())),
        rate(output.to_string()),
        or_dash(model.context.map(count)),
    ]
}

fn model_json(model: &Model) -> serde_json::Value {
    let upstreams = model.upstreams.iter();
    let upstreams = upstreams.map(|(name, model)| json!({ "name": name, "model": model }));
    let tiers = model.price.tiers.iter().map(|(name, tier)| (name.clone(), tier_json(tier)));
    let mut object = tier_json(&model.price.standard);
    let more = json!({
        "name": model.name,
        "upstreams": upstreams.collect::<Vec<_>>(),
        "free": model.price.free,
        "tiers": tiers.collect::<serde_json::Map<_, _>>(),
        "fees": model.price.fees,
        "context": model.context,
        "max_output": model.max_output,
        "aliases": model.aliases,
        "serves": model.serves,
        "source": model.source,
        "date": model.date,
    });
    if let (Some(object), serde_json::Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    object
}

/// The rates and bands of a tier, as in `pricing.toml`.
fn tier_json(tier: &Tier) -> serde_json::Value {
    let mut object = rates_json(&tier.rates);
    let bands = tier.bands.iter().map(|band| {
        let mut object = rates_json(&band.rates);
        object.insert("above".into(), band.above.into());
        serde_json::Value::Object(object)
    });
    object.insert("bands".into(), bands.collect());
    serde_json::Value::Object(object)
}

fn rates_json(rates: &Rates) -> serde_json::Map<String, serde_json::Value> {
    let stated = rates.named().into_iter();
    stated.filter_map(|(key, rate)| Some((key.to_owned(), rate?.to_string().into()))).collect()
}

fn check(file: Option<&Path>, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let (name, text) = match read_text(file) {
        Ok(found) => found,
        Err((name, error)) => {
            writeln!(err, "error: cannot read {name}: {error}")?;
            return Ok(CONFIG);
        }
    };
    let result = PriceTable::read(&text);
    let problems = match &result {
        Ok((_, warnings)) => warnings,
        Err(problems) => problems,
    };
    write!(err, "{}", render(problems, &name, &text))?;
    let counts = counts(problems);
    match result {
        Ok((table, _)) => {
            writeln!(out, "{name}: {} models, {counts}", table.models.len())?;
            Ok(OK)
        }
        Err(_) => {
            writeln!(err, "{name}: {counts}")?;
            Ok(CONFIG)
        }
    }
}

/// How many problems there are of each kind, in words.
fn counts(problems: &[Problem]) -> String {
    let count = |severity, word: &str| {
        let count = problems.iter().filter(|problem| problem.severity == severity).count();
        format!("{count} {word}{}", if count == 1 { "" } else { "s" })
    };
    format!("{}, {}", count(Severity::Error, "error"), count(Severity::Warning, "warning"))
}

/// The name and the text of a file, or of the built-in prices.
fn read_text(file: Option<&Path>) -> Result<(String, String), (String, io::Error)> {
    let Some(file) = file else { return Ok(("built-in prices".into(), BUILT_IN.into())) };
    let name = file.display().to_string();
    match std::fs::read_to_string(file) {
        Ok(text) => Ok((name, text)),
        Err(error) => Err((name, error)),
    }
}

fn run_import(
    list: &str,
    options: &Options,
    target: &Target<'_>,
    json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    let import = match import(list, options) {
        Ok(import) => import,
        Err(error) => {
            writeln!(err, "error: {error}")?;
            return Ok(CONFIG);
        }
    };
    // What is written to need not be there yet.
    let (name, text) = match read_text(target.write.or(target.pricing)) {
        Err((name, error)) if error.kind() == io::ErrorKind::NotFound && target.write.is_some() => {
            (name, String::new())
        }
        Err((name, error)) => {
            writeln!(err, "error: cannot read {name}: {error}")?;
            return Ok(FAILED);
        }
        Ok(found) => found,
    };
    let (file, problems) =
        if text.trim().is_empty() { (File::default(), vec![]) } else { read_file(&text) };
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        write!(err, "{}", render(&problems, &name, &text))?;
        writeln!(err, "{name}: {}", counts(&problems))?;
        return Ok(CONFIG);
    }
    let changes = plan(&file, &import);
    preview(&changes, json, out)?;
    for (model, price) in &import.left_out {
        writeln!(err, "not taken over: {price} of {model}, which pricing.toml has no key for")?;
    }
    let Some(path) = target.write else {
        writeln!(err, "compared with {name}; nothing is written without --write FILE")?;
        return Ok(OK);
    };
    write_changes(path, &text, &changes, err)
}

/// Writes the changed file, unless it would have errors.
fn write_changes(
    path: &Path,
    text: &str,
    changes: &[Change],
    err: &mut dyn Write,
) -> io::Result<u8> {
    let merged = match merge(text, changes) {
        Ok(merged) => merged,
        Err(error) => {
            writeln!(err, "error: {error}")?;
            return Ok(CONFIG);
        }
    };
    let name = path.display().to_string();
    if let Err(problems) = PriceTable::read(&merged) {
        write!(err, "{}", render(&problems, &name, &merged))?;
        writeln!(err, "nothing written: {name} would have {}", counts(&problems))?;
        return Ok(CONFIG);
    }
    match std::fs::write(path, merged) {
        Ok(()) => {
            writeln!(err, "{name} written")?;
            Ok(OK)
        }
        Err(error) => {
            writeln!(err, "error: cannot write {name}: {error}")?;
            Ok(FAILED)
        }
    }
}

fn preview(changes: &[Change], json: bool, out: &mut dyn Write) -> io::Result<()> {
    if json {
        let changes: Vec<_> = changes.iter().map(change_json).collect();
        return writeln!(out, "{:#}", json!({ "data": changes }));
    }
    let mut rows = vec![["MODEL", "CHANGE", "WHAT"].map(str::to_owned)];
    rows.extend(changes.iter().map(change_row));
    columns(&rows, out)?;
    let count = |word: &str| rows.iter().filter(|[_, kind, _]| kind == word).count();
    let counts = ["added", "changed", "unchanged", "skipped"].map(|w| format!("{} {w}", count(w)));
    writeln!(out, "{}", counts.join(", "))
}

fn change_row(change: &Change) -> [String; 3] {
    match change {
        Change::Added(entry) => {
            let facts = entry.facts().into_iter().filter(|(key, _)| !key.contains([' ', '.']));
            let facts: Vec<_> = facts.map(|(key, value)| format!("{key} {value}")).collect();
            [entry.name.clone(), "added".into(), facts.join(", ")]
        }
        Change::Changed(entry, differences) => {
            let differences = differences.iter();
            let differences = differences.map(|(key, old, new)| format!("{key} {old} → {new}"));
            [entry.name.clone(), "changed".into(), differences.collect::<Vec<_>>().join(", ")]
        }
        Change::Unchanged(name) => [name.clone(), "unchanged".into(), String::new()],
        Change::Skipped(name, why) => [name.clone(), "skipped".into(), why.clone()],
    }
}

fn change_json(change: &Change) -> serde_json::Value {
    match change {
        Change::Added(entry) => {
            json!({ "model": entry.name, "change": "added", "prices": entry.facts() })
        }
        Change::Changed(entry, differences) => {
            let differences = differences.iter();
            let differences =
                differences.map(|(key, old, new)| json!({ "key": key, "old": old, "new": new }));
            let differences: Vec<_> = differences.collect();
            json!({ "model": entry.name, "change": "changed", "differences": differences })
        }
        Change::Unchanged(name) => json!({ "model": name, "change": "unchanged" }),
        Change::Skipped(name, why) => json!({ "model": name, "change": "skipped", "reason": why }),
    }
}

/// Writes rows in columns that are two spaces apart.
fn columns<const N: usize>(rows: &[[String; N]], out: &mut dyn Write) -> io::Result<()> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn markup(text: &str) -> Result<Markup, String> {
    Markup::read(text).ok_or_else(|| "not a factor above 0 and up to 1000, such as 1.10".into())
}

#[cfg(test)]
mod tests;
