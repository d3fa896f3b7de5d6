//! A copy of everything in a file, and its way back into a store that is empty.
//!
//! The file is lines of JSON: what the keys hold, without the prefix; the last one counts them.
//! Of each account it is what was at one instant: one script reads all that changes, and what
//! was written of its history before is read afterwards, while requests go on. No operation is
//! about two accounts, so each may have an instant of its own. What runs is left out: a request
//! that ends later is settled all the same.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hours::LETTERS;
use super::names::Name;
use super::read::Order;
use super::reply::{self, Odd, Reply};
use super::rows::Item;
use super::{OpenError, Options, Redis, Shared};
use crate::billing::audit::{Tally, Violation};
use crate::key::hex;
use crate::store::audit::audit_all;
use crate::store::{AccountId, Millis, Page, StoreError};

/// The version of the file.
const VERSION: u32 = 1;
/// What stands in one line, and is read or written in one step.
const STEP: usize = 1000;
/// How often an account is read that is trimmed meanwhile, or whose abandoned requests come to
/// be settled.
const TRIES: u32 = 20;

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first.
    FareboxBackup {
        version: u32,
        at: Millis,
    },
    Hash {
        key: String,
        fields: Vec<(String, String)>,
    },
    Sorted {
        key: String,
        members: Vec<(String, Millis)>,
    },
    Stream {
        key: String,
        items: Vec<(String, Vec<String>)>,
    },
    /// Keys with a text each, and their end, if they have one.
    Texts(Vec<(String, String, Option<Millis>)>),
    /// The last: what came before it.
    End {
        accounts: u64,
        entries: u64,
        sha256: String,
    },
}

/// What a file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// Accounts.
    pub accounts: u64,
    /// Entries.
    pub entries: u64,
}

/// Why a copy was not put back.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The store cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no copy of ours, or not a whole one.
    #[error("{path} is no whole backup of a Redis: {why}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// There are balances already.
    #[error(
        "the store {0} is not empty: restore into an empty server, or under another redis_prefix"
    )]
    NotEmpty(String),
    /// What was put back does not add up, and is not served.
    #[error("the books in {path} do not add up: the store is left as it is, and nothing serves it")]
    Unsound {
        /// Which.
        path: PathBuf,
        /// What was looked at.
        tally: Box<Tally>,
        /// What does not add up.
        violations: Vec<Violation>,
    },
    /// The store went away.
    #[error("{0}: restore again, and it begins anew")]
    Store(#[from] StoreError),
}

/// Where lines go, counted; it can go back to where it was.
struct Out {
    file: BufWriter<File>,
    bytes: u64,
    hash: Sha256,
    holds: Holds,
}

type Mark = (u64, Sha256, Holds);

impl Out {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.hash.update(&text);
        self.bytes += text.len() as u64;
        self.file.write_all(&text)
    }

    fn mark(&self) -> Mark {
        (self.bytes, self.hash.clone(), self.holds)
    }

    fn back(&mut self, (bytes, hash, holds): Mark) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().set_len(bytes)?;
        self.file.seek(SeekFrom::Start(bytes))?;
        (self.bytes, self.hash, self.holds) = (bytes, hash, holds);
        Ok(())
    }

    fn hash(&mut self, key: &str, fields: Vec<(String, String)>) -> io::Result<()> {
        for fields in fields.chunks(STEP) {
            self.line(&Line::Hash { key: key.into(), fields: fields.to_vec() })?;
        }
        Ok(())
    }

    fn sorted(&mut self, key: &str, members: Vec<(String, Millis)>) -> io::Result<()> {
        for members in members.chunks(STEP) {
            self.line(&Line::Sorted { key: key.into(), members: members.to_vec() })?;
        }
        Ok(())
    }
}

fn cannot_write(error: io::Error) -> StoreError {
    StoreError::Unavailable(format!("no copy could be made: {error}"))
}

/// Names and values, one after the other.
fn pairs(mut list: Reply) -> Result<Vec<(String, String)>, Odd> {
    let mut pairs = Vec::new();
    while let Some(name) = list.next() {
        pairs.push((reply::text(name)?, list.text()?));
    }
    Ok(pairs)
}

fn scored(list: Reply) -> Result<Vec<(String, Millis)>, Odd> {
    pairs(list)?.into_iter().map(|(name, score)| Ok((name, reply::number(&score)?))).collect()
}

impl Shared {
    /// A copy in a file that has no name any more.
    pub(super) async fn backup(&self) -> Result<File, StoreError> {
        let file = unnamed(&self.scratch).map_err(cannot_write)?;
        let file = BufWriter::new(file);
        let mut out = Out { file, bytes: 0, hash: Sha256::new(), holds: Holds::default() };
        let at = self.now().await?;
        out.line(&Line::FareboxBackup { version: VERSION, at }).map_err(cannot_write)?;
        let mut keys = std::collections::HashSet::new();
        let mut cursor = None;
        loop {
            let ids = self.list_accounts(&Page { cursor, limit: 500 }).await?;
            for account in &ids.data {
                self.copy_account(account, &mut out, &mut keys).await?;
            }
            match ids.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        self.copy_rest(&mut out, &keys).await?;
        let sha256 = hex(&out.hash.clone().finalize());
        let Holds { accounts, entries } = out.holds;
        out.line(&Line::End { accounts, entries, sha256 }).map_err(cannot_write)?;
        let mut file = out.file.into_inner().map_err(|error| cannot_write(error.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(cannot_write)?;
        Ok(file)
    }

    async fn copy_account(
        &self,
        account: &AccountId,
        out: &mut Out,
        keys: &mut std::collections::HashSet<String>,
    ) -> Result<(), StoreError> {
        for _ in 0..TRIES {
            let mark = out.mark();
            if self.copy_once(account, out, keys).await? {
                return Ok(());
            }
            out.back(mark).map_err(cannot_write)?;
        }
        Err(StoreError::Unavailable(format!("{account} is trimmed now: try again later")))
    }

    /// False, if what was read is not of one instant.
    async fn copy_once(
        &self,
        account: &AccountId,
        out: &mut Out,
        keys: &mut std::collections::HashSet<String>,
    ) -> Result<bool, StoreError> {
        let call = self.call(&self.scripts.snapshot, account, &[]);
        let mut answer = Reply::of(self.link.patient_run(&call).await?)?;
        if answer.text()? != "ok" {
            // It is listed before it is made.
            return Ok(true);
        }
        let (seq, last, hour): (u64, String, i64) =
            (answer.number()?, answer.text()?, answer.number()?);
        let bare = |name| {
            let key = self.names.of(account, name);
            self.names.bare(&key).unwrap_or_default().to_owned()
        };
        const HASHES: [Name; 9] = [
            Name::Account,
            Name::Lots,
            Name::Operations,
            Name::Undone,
            Name::Lost,
            Name::Keys,
            Name::Terms,
            Name::Spent,
            Name::Trimmed,
        ];
        let mut hashes = answer.list()?;
        let (mut lost, mut step) = (Vec::new(), None);
        for name in HASHES {
            let mut fields = pairs(hashes.list()?)?;
            match name {
                // What runs is left out, and what is held for it.
                Name::Account => {
                    let held = fields.iter_mut().filter(|(field, _)| field == "held");
                    held.for_each(|(_, held)| *held = "0".into());
                }
                Name::Lost => lost = fields.iter().map(|(id, _)| id.clone()).collect(),
                Name::Keys => keys.extend(fields.iter().map(|(id, _)| format!("{account} {id}"))),
                Name::Trimmed => step = fields.iter().find(|(f, _)| f == "step").cloned(),
                _ => {}
            }
            out.hash(&bare(name), fields).map_err(cannot_write)?;
        }
        out.sorted(&bare(Name::LotOrder), scored(answer.list()?)?).map_err(cannot_write)?;
        out.sorted(&bare(Name::Hours), scored(answer.list()?)?).map_err(cannot_write)?;
        out.hash(&bare(Name::Hourly), pairs(answer.list()?)?).map_err(cannot_write)?;
        self.copy_hours(account, hour, out).await?;
        out.holds.entries += self.copy_entries(account, seq, out).await?;
        self.copy_requests(account, &last, out).await?;
        // Last, so that a copy which was cut off is not found.
        let listed = |score| vec![(account.to_string(), score)];
        out.sorted("accounts", listed(0)).map_err(cannot_write)?;
        out.sorted("due", listed(0)).map_err(cannot_write)?;
        out.holds.accounts += 1;
        self.is_still(account, &lost, step.map(|(_, step)| step)).await
    }

    /// Whether no trim and no late settlement has changed what lies behind an instant.
    async fn is_still(
        &self,
        account: &AccountId,
        lost: &[String],
        step: Option<String>,
    ) -> Result<bool, StoreError> {
        let mut cmd = redis::cmd("HKEYS");
        cmd.arg(self.names.of(account, Name::Lost));
        let now: std::collections::HashSet<String> = Reply::of(self.link.patient(&cmd).await?)?
            .map(reply::text)
            .collect::<Result<_, _>>()?;
        let trimmed = self.checkpoint(account).await?.0;
        let was = step.map_or(Ok(0), |step| reply::number(&step))?;
        Ok(trimmed == was && lost.iter().all(|id| now.contains(id)))
    }

    /// The sums of hours that have ended.
    async fn copy_hours(
        &self,
        account: &AccountId,
        hour: i64,
        out: &mut Out,
    ) -> Result<(), StoreError> {
        let [hours, hourly] = [Name::Hours, Name::Hourly].map(|name| self.names.of(account, name));
        let mut skip = 0;
        loop {
            let mut cmd = redis::cmd("ZRANGEBYSCORE");
            cmd.arg(&hours).arg("-inf").arg(format!("({hour}")).arg("LIMIT").arg(skip).arg(STEP);
            let names: Vec<_> = Reply::of(self.link.patient(&cmd).await?)?
                .map(reply::text)
                .collect::<Result<_, _>>()?;
            if names.is_empty() {
                return Ok(());
            }
            skip += names.len();
            let fields =
                names.iter().flat_map(|name| LETTERS.map(|letter| format!("{letter}{name}")));
            let fields: Vec<String> = fields.collect();
            let mut cmd = redis::cmd("HMGET");
            cmd.arg(&hourly).arg(&fields);
            let counts = Reply::of(self.link.patient(&cmd).await?)?;
            let counts = fields.into_iter().zip(counts);
            let sums = counts
                .map(|(field, count)| Ok(reply::maybe(count)?.map(|count| (field, count))))
                .filter_map(Result::transpose)
                .collect::<Result<Vec<_>, Odd>>()?;
            let names = names.into_iter().map(|name| {
                let hour = name.split(' ').next().ok_or(Odd)?;
                Ok((name.clone(), reply::number(hour)?))
            });
            let names = names.collect::<Result<Vec<_>, Odd>>()?;
            out.sorted(self.names.bare(&hours).ok_or(Odd)?, names).map_err(cannot_write)?;
            out.hash(self.names.bare(&hourly).ok_or(Odd)?, sums).map_err(cannot_write)?;
        }
    }

    /// The ledger up to an entry, and which of it are no debits.
    async fn copy_entries(
        &self,
        account: &AccountId,
        seq: u64,
        out: &mut Out,
    ) -> Result<u64, StoreError> {
        let key = self.names.of(account, Name::Entries);
        let others = self.names.of(account, Name::Others);
        let (mut low, high) = (String::from("-"), format!("{seq}-0"));
        let mut count = 0;
        if seq == 0 {
            return Ok(0);
        }
        loop {
            let items = self.stream(&key, (low, high.clone()), Order::OldestFirst, STEP).await?;
            let Some(last) = items.last() else { return Ok(count) };
            low = format!("({}", last.id);
            count += items.len() as u64;
            let mut rare = Vec::new();
            for item in &items {
                let entry = item.clone().entry()?;
                if entry.kind != crate::billing::ledger::Kind::DebitAi {
                    let seq = Millis::try_from(entry.seq).map_err(|_| Odd)?;
                    rare.push((seq.to_string(), seq));
                }
            }
            let items = items.into_iter().map(Item::parts).collect();
            let line = Line::Stream { key: self.names.bare(&key).ok_or(Odd)?.into(), items };
            out.line(&line).map_err(cannot_write)?;
            out.sorted(self.names.bare(&others).ok_or(Odd)?, rare).map_err(cannot_write)?;
        }
    }

    /// The requests up to a place, and what is remembered of them.
    async fn copy_requests(
        &self,
        account: &AccountId,
        last: &str,
        out: &mut Out,
    ) -> Result<(), StoreError> {
        let key = self.names.of(account, Name::Usage);
        let remember = Millis::try_from(self.remember.as_millis()).unwrap_or(Millis::MAX);
        let remembered = self.now().await? - remember;
        let mut low = String::from("-");
        if last.is_empty() {
            return Ok(());
        }
        loop {
            let range = (low, last.to_owned());
            let items = self.stream(&key, range, Order::OldestFirst, STEP).await?;
            let Some(newest) = items.last() else { return Ok(()) };
            low = format!("({}", newest.id);
            let mut rows = Vec::new();
            for item in &items {
                let row = item.clone().usage()?;
                if row.ts > remembered {
                    rows.push(row);
                }
            }
            let items = items.into_iter().map(Item::parts).collect();
            let line = Line::Stream { key: self.names.bare(&key).ok_or(Odd)?.into(), items };
            out.line(&line).map_err(cannot_write)?;
            if rows.is_empty() {
                continue;
            }
            let keys: Vec<_> =
                rows.iter().map(|row| self.names.request(account, &row.id)).collect();
            let mut cmd = redis::cmd("MGET");
            cmd.arg(&keys);
            let mut texts = Vec::new();
            let done = Reply::of(self.link.patient(&cmd).await?)?;
            for ((key, row), done) in keys.iter().zip(&rows).zip(done) {
                let Some(done) = reply::maybe(done)? else { continue };
                let key = self.names.bare(key).ok_or(Odd)?.to_owned();
                texts.push((key, done, Some(row.ts.saturating_add(remember))));
            }
            out.line(&Line::Texts(texts)).map_err(cannot_write)?;
        }
    }

    /// Whose each secret is, what is known of objects at upstreams, and documents.
    async fn copy_rest(
        &self,
        out: &mut Out,
        keys: &std::collections::HashSet<String>,
    ) -> Result<(), StoreError> {
        for (pattern, are_ends) in [("key:*", false), ("{*}:own:*", true)] {
            for names in self.link.keys_like(&self.names.whole(pattern)).await?.chunks(STEP) {
                let texts = names.iter().map(async |name| -> Result<_, StoreError> {
                    let mut cmd = redis::cmd("GET");
                    cmd.arg(name);
                    let text = reply::maybe(self.link.patient(&cmd).await?)?;
                    let Some(text) = text.filter(|text| are_ends || keys.contains(text)) else {
                        return Ok(None);
                    };
                    // Of an object its end is all that is known.
                    let ends = if are_ends { Some(reply::number(&text)?) } else { None };
                    Ok(Some((self.names.bare(name).ok_or(Odd)?.to_owned(), text, ends)))
                });
                let texts = try_join_all(texts).await?.into_iter().flatten().collect();
                out.line(&Line::Texts(texts)).map_err(cannot_write)?;
            }
        }
        for pattern in ["doc:*", "{*}:doc:*"] {
            for name in self.link.keys_like(&self.names.whole(pattern)).await? {
                let mut cmd = redis::cmd("HGETALL");
                cmd.arg(&name);
                let fields = pairs(Reply::of(self.link.patient(&cmd).await?)?)?;
                out.hash(self.names.bare(&name).ok_or(Odd)?, fields).map_err(cannot_write)?;
            }
        }
        Ok(())
    }
}

/// A file that is gone once it is closed.
fn unnamed(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!("backup-{}", ulid::Ulid::generate()));
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Whether a file says that it is a copy of a Redis.
pub fn is_copy(file: &Path) -> bool {
    let mut start = [0; 18];
    let read = File::open(file).and_then(|mut file| io::Read::read_exact(&mut file, &mut start));
    read.is_ok() && start == *br#"{"farebox_backup":"#
}

/// Reads a whole copy, and checks that it is one.
///
/// # Errors
///
/// [`CopyError::Damaged`], or a file that cannot be read.
pub fn check(path: &Path) -> Result<Holds, CopyError> {
    let mut hash = Sha256::new();
    let mut end = None;
    each_line(path, |text, line| {
        let damaged = |why: &str| Err(damaged(path, why));
        match line {
            _ if end.is_some() => return damaged("something follows its end"),
            Line::FareboxBackup { version, .. } if version != VERSION => {
                return damaged("it is of another version of farebox");
            }
            Line::End { accounts, entries, sha256 } => {
                if hex(&hash.clone().finalize()) != sha256 {
                    return damaged("it was changed");
                }
                end = Some(Holds { accounts, entries });
            }
            _ => {}
        }
        hash.update(text);
        Ok(())
    })?;
    end.ok_or_else(|| damaged(path, "its end is missing"))
}

fn damaged(path: &Path, why: &str) -> CopyError {
    CopyError::Damaged { path: path.into(), why: why.into() }
}

fn each_line(
    path: &Path,
    mut each: impl FnMut(&[u8], Line) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    let io = |source| CopyError::Io { path: path.into(), source };
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let mut text = Vec::new();
    while file.read_until(b'\n', &mut text).map_err(io)? > 0 {
        let line = serde_json::from_slice(&text);
        each(&text, line.map_err(|_| damaged(path, "a line cannot be read"))?)?;
        text.clear();
    }
    Ok(())
}

/// Puts a copy into a store that is empty, or in which that was begun and cut off. Its books
/// are checked; until then no Farebox starts on it.
///
/// # Errors
///
/// [`CopyError`].
pub async fn restore(path: &Path, options: Options) -> Result<Tally, CopyError> {
    check(path)?;
    let store = Redis::connect(options, None).await?;
    let shared = &store.shared;
    let is_there = async |key: String| -> Result<bool, StoreError> {
        let mut cmd = redis::cmd("EXISTS");
        cmd.arg(key);
        Ok(shared.link.patient(&cmd).await? == redis::Value::Int(1))
    };
    let marker = shared.names.restoring();
    if is_there(marker.clone()).await? {
        shared.remove_all(&marker).await?;
    } else if is_there(shared.names.accounts()).await? {
        return Err(CopyError::NotEmpty(shared.location.clone()));
    }
    shared.set(&marker, "1", None).await?;
    let (lines, mut read) = tokio::sync::mpsc::channel(4);
    let from = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        each_line(&from, |_, line| {
            let gone = |_| damaged(&from, "it was not read to its end");
            lines.blocking_send(line).map_err(gone)
        })
    });
    while let Some(line) = read.recv().await {
        shared.load(line).await?;
    }
    let panicked = |error: tokio::task::JoinError| damaged(path, &error.to_string());
    reading.await.map_err(panicked)??;
    let (tally, violations) = audit_all(store.clone()).await?;
    if tally.problems() > 0 {
        let tally = Box::new(tally);
        return Err(CopyError::Unsound { path: path.into(), tally, violations });
    }
    // Journals see another history than before, and send what this one lacks.
    shared.set(&shared.names.generation(), &ulid::Ulid::generate().to_string(), None).await?;
    let mut cmd = redis::cmd("DEL");
    cmd.arg(&marker);
    shared.link.patient(&cmd).await.map_err(StoreError::from)?;
    shared.link.close();
    Ok(tally)
}

impl Shared {
    /// Removes what a restore that was cut off has written, but for its marker.
    async fn remove_all(&self, marker: &str) -> Result<(), StoreError> {
        let keys = self.link.keys_like(&self.names.whole("*")).await?;
        for keys in keys.chunks(STEP) {
            let removed = keys.iter().filter(|key| *key != marker).map(async |key| {
                let mut cmd = redis::cmd("UNLINK");
                cmd.arg(key);
                self.link.patient(&cmd).await
            });
            try_join_all(removed).await?;
        }
        Ok(())
    }

    async fn set(&self, key: &str, text: &str, lasts: Option<Millis>) -> Result<(), StoreError> {
        let mut cmd = redis::cmd("SET");
        cmd.arg(key).arg(text);
        if let Some(lasts) = lasts {
            cmd.arg("PX").arg(lasts);
        }
        self.link.patient(&cmd).await?;
        Ok(())
    }

    async fn load(&self, line: Line) -> Result<(), StoreError> {
        match line {
            Line::FareboxBackup { .. } | Line::End { .. } => {}
            Line::Hash { key, fields } => {
                let mut cmd = redis::cmd("HSET");
                cmd.arg(self.names.whole(&key));
                for (field, value) in &fields {
                    cmd.arg(field).arg(value);
                }
                self.link.patient(&cmd).await?;
                // A document may have an end.
                let ends = fields.iter().find(|(field, _)| field == "expires_at");
                let is_document = key.starts_with("doc:") || key.contains("}:doc:");
                // Where tests set the clock, the server's own would end it too soon.
                let may_end = is_document && self.clock.is_none();
                if let Some((_, ends)) = ends.filter(|(_, ends)| may_end && !ends.is_empty()) {
                    let mut cmd = redis::cmd("PEXPIREAT");
                    cmd.arg(self.names.whole(&key)).arg(ends);
                    self.link.patient(&cmd).await?;
                }
            }
            Line::Sorted { key, members } => {
                let mut cmd = redis::cmd("ZADD");
                cmd.arg(self.names.whole(&key));
                for (member, score) in &members {
                    cmd.arg(score).arg(member);
                }
                self.link.patient(&cmd).await?;
            }
            Line::Stream { key, items } => {
                let mut call = self.scripts.load.call_on(vec![self.names.whole(&key)]);
                for (id, values) in &items {
                    call.push(id);
                    call.push(values.len().to_string());
                    values.iter().for_each(|value| call.push(value));
                }
                self.link.patient_run(&call).await?;
            }
            Line::Texts(texts) => {
                let now = self.now().await?;
                let alive = texts.iter().filter(|(.., ends)| ends.is_none_or(|ends| ends > now));
                let set = alive.map(async |(key, text, ends)| {
                    let lasts = ends.map(|ends| ends - now);
                    self.set(&self.names.whole(key), text, lasts).await
                });
                try_join_all(set).await?;
            }
        }
        Ok(())
    }
}
