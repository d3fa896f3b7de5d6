//! `farebox ledger export`, `farebox usage export` and the check of what they wrote.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use sha2::{Digest, Sha256};

use super::client::Download;
use super::context::Context;
use super::failure::{Exit, Failure, shell_word};
use super::span::SpanArgs;
use super::table::printable;
use crate::admin::export::UNTIL_HEADER;
use crate::export::check::{CheckError, check, meta_path};
use crate::export::{Format, Meta, hex};
use crate::time;

/// What to write, and where.
#[derive(Args, Debug)]
pub struct ExportArgs {
    #[command(flatten)]
    span: SpanArgs,
    /// csv or jsonl
    #[arg(long, value_enum, default_value = "csv", hide_possible_values = true)]
    format: Format,
    /// The file; without it the rows go to stdout, and no metadata are written
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Begin CSV with a byte order mark, for spreadsheets
    #[arg(long)]
    bom: bool,
}

/// Downloads rows, `ledger` or `usage`, with further filters.
///
/// # Errors
///
/// As the control plane says, or a file that cannot be written.
pub async fn run(
    context: &Context,
    rows: &str,
    args: &ExportArgs,
    mut query: Vec<(&'static str, Option<String>)>,
) -> Result<String, Failure> {
    let span = args.span.read(time::now(), &context.zone)?;
    query.extend([
        ("format", Some(args.format.extension().to_owned())),
        ("since", span.since.map(time::rfc3339)),
        ("tz", Some(context.zone_name.clone())),
        ("bom", args.bom.then(|| "true".to_owned())),
    ]);
    let until = ("until", span.until.map(time::rfc3339));
    let asked: Vec<_> = query.iter().cloned().chain([until]).collect();
    let path = ["accounts", &context.account, rows, "export"];
    let mut download = context.client.download(&path, &asked).await?;
    let Some(file) = &args.output else {
        write_out(&mut download, &mut io::stdout().lock()).await?;
        return Ok(String::new());
    };

    // Now is another now for the second question.
    query.push(("until", Some(download.header(UNTIL_HEADER))));
    let part = beside(file, ".part");
    let sha256 = save(&mut download, &part).await.inspect_err(|_| {
        // What is left of it is no export.
        let _ = fs::remove_file(&part);
    })?;
    let path = ["accounts", &context.account, rows, "export", "meta"];
    let answer = context.client.download(&path, &query).await?.document().await?;
    let meta: Meta = answer.read()?;
    if meta.sha256 != sha256 {
        let _ = fs::remove_file(&part);
        let message = "what arrived is not what the server counts: rows were added meanwhile, or \
            the connection is broken";
        let again =
            format!("farebox {rows} export … -o {}", shell_word(&file.display().to_string()));
        return Err(Failure::new(Exit::Integrity, message).next(again));
    }
    let failed = |error| cannot_write(file, &error);
    write_private(&meta_path(file), answer.text().as_bytes()).map_err(failed)?;
    fs::rename(&part, file).map_err(failed)?;
    if context.is_json() {
        return Ok(format!("{}\n", answer.text()));
    }
    let balances = match (meta.opening_balance, meta.closing_balance) {
        (Some(opening), Some(closing)) => format!(", {opening} → {closing} credits"),
        _ => String::new(),
    };
    let file = printable(&file.display().to_string());
    Ok(format!("{file}  {} rows, sum {}{balances}\n", meta.total.count, meta.total.amount))
}

/// Checks a file against its metadata.
///
/// # Errors
///
/// What contradicts them, or that one of the two cannot be read.
pub fn verify(file: &Path) -> Result<String, Failure> {
    let (meta, problems) = check(file).map_err(|error| match &error {
        CheckError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Failure::new(Exit::NotFound, error.to_string())
        }
        _ => Failure::new(Exit::Failed, error.to_string()),
    })?;
    let name = printable(&file.display().to_string());
    if problems.is_empty() {
        return Ok(format!(
            "{name}  {} rows, sum {}: as exported\n",
            meta.total.count, meta.total.amount
        ));
    }
    let message = format!("{name} is not what was exported:\n  {}", problems.join("\n  "));
    Err(Failure::new(Exit::Integrity, message).next(format!("farebox {} export …", meta.rows)))
}

async fn write_out(download: &mut Download, out: &mut impl Write) -> Result<(), Failure> {
    while let Some(piece) = download.next().await? {
        match out.write_all(&piece) {
            // A reader that has seen enough, such as `head`, is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::new(Exit::Failed, error.to_string())),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Writes what arrives; its SHA-256.
async fn save(download: &mut Download, file: &Path) -> Result<String, Failure> {
    let failed = |error| cannot_write(file, &error);
    let mut out = io::BufWriter::new(create_private(file).map_err(failed)?);
    let mut hash = Sha256::new();
    while let Some(piece) = download.next().await? {
        hash.update(&piece);
        out.write_all(&piece).map_err(failed)?;
    }
    let out = out.into_inner().map_err(|error| failed(error.into_error()))?;
    out.sync_all().map_err(failed)?;
    Ok(hex(&hash.finalize()))
}

pub(super) fn cannot_write(file: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot write {}: {error}", file.display()))
}

fn write_private(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create_private(file)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A file that its owner alone reads: it says who spent what.
pub(super) fn create_private(file: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).create(true).truncate(true).open(file)
}

pub(super) fn beside(file: &Path, end: &str) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(end);
    path.into()
}
