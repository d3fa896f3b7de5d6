//! The journal's files, and the one thread that writes them.
//!
//! The thread takes all lines that wait, writes them as one frame, syncs once and answers each:
//! group commit. When the disk fails, lines are kept and written when it works again. Files are
//! segments, each named by the number of its first frame; one is deleted when nothing in it
//! waits any more and all of it is older than what may have to be sent again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{oneshot, watch};

use super::frame::{self, Tail};
use super::record::{Line, Operation, Written};
use crate::store::Millis;
use crate::store::home::{Reply, Round};
use crate::store::pace::Pace;

/// Lines of one frame.
const BATCH: usize = 512;
/// How long a line that nobody waits for may wait for one that somebody does.
const LAZY: Duration = Duration::from_millis(500);
/// How long the first waits for the others where many come. The store's answer, which is waited
/// for as well, takes longer then.
const SHARE: Duration = Duration::from_millis(3);
/// The first wait after a failed write; it doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// What files of the journal end in.
const EXTENSION: &str = "journal";

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long what the store has taken is kept, to be sent again after a failover.
    pub keep: Duration,
    /// Bytes after which a new segment begins.
    pub segment: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { keep: Duration::from_secs(600), segment: 16 << 20 }
    }
}

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the journal {0} is in use by another process: end that one, or give each process a \
         folder of its own (FAREBOX_JOURNAL)"
    )]
    Held(PathBuf),
    /// What was written before the last frame cannot be read.
    #[error(
        "the journal {path} is damaged at byte {at}: debits may be lost with it. Put back a copy \
         of the file, or move it away to start without what it holds"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: usize,
    },
    /// A newer program wrote it.
    #[error("the journal {0} was written by a newer version of farebox: run that version again")]
    Newer(PathBuf),
    /// The folder or a file cannot be made or read.
    #[error(
        "cannot open the journal {path} ({source}): check that its folder can be written, or set \
         FAREBOX_JOURNAL to another folder"
    )]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An operation of the journal, with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Its number.
    pub seq: u64,
    /// When it was made.
    pub at: Millis,
    /// What is to be done.
    pub operation: Operation,
}

/// What was found when a journal was opened.
#[derive(Debug, Default)]
pub struct Found {
    /// Operations that wait for the store, in order.
    pub pending: Vec<Numbered>,
    /// The history of the store that the journal knows.
    pub epoch: Option<String>,
    /// Above the number of every operation.
    pub next: u64,
    /// Bytes of a last frame that was not finished; none of it had been answered.
    pub unfinished: usize,
}

/// The way to the thread. When it is dropped, the thread ends after what waits.
pub struct Log {
    lines: mpsc::Sender<Message>,
    failure: watch::Receiver<Option<String>>,
    dir: PathBuf,
}

enum Message {
    Line(Written, Option<Reply<()>>),
    Close(oneshot::Sender<Result<(), String>>),
}

impl Log {
    /// Opens the journal in a folder, made if it is not there, and reads what it holds. Blocks.
    ///
    /// # Errors
    ///
    /// [`OpenError`], if another process holds it, it is damaged, or it cannot be written.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Found), OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        create_directory(dir).map_err(at(dir))?;
        let lock = lock(dir)?;
        let mut reading = Reading::default();
        let mut segments = VecDeque::new();
        let files = segment_files(dir).map_err(at(dir))?;
        let mut end = End { number: 0, length: 0 };
        for (n, (first, path)) in files.iter().enumerate() {
            let is_last = n + 1 == files.len();
            let bytes = fs::read(path).map_err(at(path))?;
            if n > 0 && *first != end.number {
                return Err(OpenError::Damaged { path: path.clone(), at: 0 });
            }
            let scan = frame::scan(&bytes, *first);
            match scan.tail {
                Tail::None => {}
                Tail::Unfinished if is_last => reading.found.unfinished = bytes.len() - scan.length,
                Tail::Unfinished | Tail::Damaged => {
                    return Err(OpenError::Damaged { path: path.clone(), at: scan.length });
                }
                Tail::Foreign => return Err(OpenError::Newer(path.clone())),
            }
            for payload in &scan.payloads {
                for line in lines(&bytes[payload.clone()]) {
                    let line = line.map_err(|_| OpenError::Newer(path.clone()))?;
                    reading.take(*first, line);
                }
            }
            end = End { number: first + scan.payloads.len() as u64, length: scan.length as u64 };
            let newest = reading.newest.get(first).copied().unwrap_or_default();
            segments.push_back(Segment { first: *first, path: path.clone(), newest });
        }
        let Reading { mut found, waiting, newest: _ } = reading;
        if found.unfinished > 0 {
            let path = &segments.back().expect("a file was read").path;
            keep_aside(path, end.length).map_err(at(path))?;
            tracing::warn!(
                path = %path.display(), bytes = found.unfinished,
                "the last write of the journal was not finished: nobody was answered from it"
            );
        }
        found.next = found.next.max(1);
        let open = waiting.values().map(|(segment, one)| (one.seq, *segment)).collect();
        found.pending = waiting.into_values().map(|(_, one)| one).collect();

        let file = match segments.back() {
            Some(last) => open_segment(&last.path, end.length).map_err(at(&last.path))?,
            None => {
                let (segment, file) = new_segment(dir, 0).map_err(at(dir))?;
                segments.push_back(segment);
                file
            }
        };
        let (lines, messages) = mpsc::channel();
        let (failing, failure) = watch::channel(None);
        let writer = Writer {
            _lock: lock,
            dir: dir.to_owned(),
            options,
            file,
            end,
            segments,
            open,
            epoch: found.epoch.clone(),
            messages,
            waiting: VecDeque::new(),
            failing,
            retry: None,
            pace: Pace::new(),
        };
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run())
            .map_err(at(dir))?;
        Ok((Self { lines, failure, dir: dir.to_owned() }, found))
    }

    /// Hands a line over; answered once it is on disk. A failure of the disk only delays that.
    pub fn append<O: Serialize>(&self, line: Line<O>) -> oneshot::Receiver<()> {
        let (reply, receiver) = Reply::new();
        // The thread only ends when it is told to; then nobody is answered any more.
        let _ = self.lines.send(Message::Line(line.write(), Some(reply)));
        receiver
    }

    /// Hands over a line that nobody waits for.
    pub fn note<O: Serialize>(&self, line: Line<O>) {
        let _ = self.lines.send(Message::Line(line.write(), None));
    }

    /// Why it cannot be written now, if so; tells of changes.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failure.clone()
    }

    /// Reads the operations made at or after an instant from the files, segment by segment and
    /// in order, while the thread goes on. Blocks.
    ///
    /// # Errors
    ///
    /// When a file cannot be read; `found` fails when nobody wants more.
    pub fn read_since(
        &self,
        since: Millis,
        mut found: impl FnMut(Vec<Numbered>) -> io::Result<()>,
    ) -> io::Result<()> {
        for (first, path) in segment_files(&self.dir)? {
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                // Deleted meanwhile: all of it is older.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // What is being written now is not whole yet, and waits for the store anyway.
            let payloads = frame::scan(&bytes, first).payloads;
            let mut batch = Vec::new();
            for line in payloads.into_iter().flat_map(|payload| lines(&bytes[payload])) {
                if let Line::Operation { seq, at, operation, .. } = line?
                    && at >= since
                {
                    batch.push(Numbered { seq, at, operation });
                }
            }
            found(batch)?;
        }
        Ok(())
    }

    /// Writes what waits, and ends.
    pub fn close(&self) -> oneshot::Receiver<Result<(), String>> {
        let (reply, receiver) = oneshot::channel();
        if let Err(mpsc::SendError(Message::Close(reply))) = self.lines.send(Message::Close(reply))
        {
            // Closing twice is closing once; nobody waits where this fails.
            let _ = reply.send(Ok(()));
        }
        receiver
    }
}

/// What the lines read so far come to.
#[derive(Default)]
struct Reading {
    found: Found,
    waiting: BTreeMap<u64, (u64, Numbered)>,
    newest: HashMap<u64, Millis>,
}

impl Reading {
    fn take(&mut self, segment: u64, line: Line) {
        match line {
            Line::Operation { seq, at, taken, operation } => {
                self.found.next = self.found.next.max(seq + 1);
                let newest = self.newest.entry(segment).or_default();
                *newest = at.max(*newest);
                if !taken {
                    self.waiting.insert(seq, (segment, Numbered { seq, at, operation }));
                }
            }
            Line::Ended(seqs) => {
                for seq in seqs {
                    self.waiting.remove(&seq);
                }
            }
            Line::Epoch(epoch) => self.found.epoch = Some(epoch),
            Line::Closed => {}
        }
    }
}

/// The lines of a frame.
fn lines(payload: &[u8]) -> impl Iterator<Item = serde_json::Result<Line>> + '_ {
    payload.split(|byte| *byte == b'\n').filter(|text| !text.is_empty()).map(serde_json::from_slice)
}

/// Where the next frame goes.
#[derive(Clone, Copy)]
struct End {
    number: u64,
    length: u64,
}

struct Segment {
    first: u64,
    path: PathBuf,
    /// When the newest operation in it was made.
    newest: Millis,
}

type Waiting = (Written, Option<Reply<()>>);

struct Writer {
    _lock: File,
    dir: PathBuf,
    options: Options,
    file: File,
    end: End,
    segments: VecDeque<Segment>,
    /// Operations that wait for the store, and the first frame of the segment of each.
    open: HashMap<u64, u64>,
    epoch: Option<String>,
    messages: mpsc::Receiver<Message>,
    waiting: VecDeque<Waiting>,
    failing: watch::Sender<Option<String>>,
    retry: Option<(Instant, Duration)>,
    pace: Pace,
}

enum Gathered {
    Go,
    Close(oneshot::Sender<Result<(), String>>),
    Abandoned,
}

impl Writer {
    fn run(mut self) {
        let closing = loop {
            let gathered = self.gather();
            if matches!(gathered, Gathered::Go) {
                if self.retry.is_none_or(|(at, _)| at <= Instant::now()) {
                    self.write_some();
                }
                continue;
            }
            self.waiting.push_back((Line::<()>::Closed.write(), None));
            while !self.waiting.is_empty() && self.write_some() {}
            match gathered {
                Gathered::Close(reply) if self.waiting.is_empty() => break Some(reply),
                Gathered::Close(reply) => {
                    self.waiting.pop_back();
                    let why = self.failing.borrow().clone().unwrap_or_default();
                    let lines = self.waiting.len();
                    let _ = reply.send(Err(format!("{lines} lines cannot be written: {why}")));
                }
                Gathered::Abandoned => break None,
                Gathered::Go => {}
            }
        };
        // The lock goes before the answer: who has it may open the journal again.
        drop(self);
        if let Some(reply) = closing {
            let _ = reply.send(Ok(()));
        }
    }

    /// Waits for something to do, then takes what else has come.
    fn gather(&mut self) -> Gathered {
        let since = Instant::now();
        let mut is_urgent = self.waiting.iter().any(|(_, reply)| reply.is_some());
        loop {
            let wait = match self.retry {
                Some((at, _)) => at.saturating_duration_since(Instant::now()),
                None if is_urgent || self.waiting.len() >= BATCH => Duration::ZERO,
                None => LAZY.saturating_sub(since.elapsed()),
            };
            let next = match wait {
                Duration::ZERO => self.messages.try_recv().map_err(|error| match error {
                    mpsc::TryRecvError::Empty => RecvTimeoutError::Timeout,
                    mpsc::TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                }),
                wait => self.messages.recv_timeout(wait),
            };
            match next {
                Ok(Message::Line(line, reply)) => {
                    let is_first = !is_urgent && reply.is_some();
                    is_urgent |= is_first;
                    self.waiting.push_back((line, reply));
                    if is_first && self.pace.crowd() > 0 {
                        // Whoever comes meanwhile need not wake this thread.
                        thread::sleep(SHARE);
                    }
                }
                Ok(Message::Close(reply)) => return Gathered::Close(reply),
                Err(RecvTimeoutError::Timeout) => return Gathered::Go,
                Err(RecvTimeoutError::Disconnected) => return Gathered::Abandoned,
            }
            if is_urgent && self.waiting.len() >= BATCH && self.retry.is_none() {
                return Gathered::Go;
            }
        }
    }

    /// Writes the next frame and answers it. False if the disk does not take it.
    fn write_some(&mut self) -> bool {
        let size = self.waiting.len().min(BATCH);
        // After a failure an empty frame finds out whether the disk works again.
        if size == 0 && self.retry.is_none() {
            self.delete_old();
            return true;
        }
        match self.write(size) {
            Ok(()) => {
                if self.retry.take().is_some() {
                    tracing::info!("the journal can be written again");
                    self.failing.send_replace(None);
                }
                let awaited = |(_, reply): &&Waiting| reply.is_some();
                self.pace
                    .count(self.waiting.iter().take(size).filter(awaited).count(), Instant::now());
                let mut round = Round::default();
                for (line, reply) in self.waiting.drain(..size).collect::<Vec<_>>() {
                    self.note(&line.line);
                    reply.into_iter().for_each(|reply| round.give(reply, ()));
                }
                true
            }
            Err(error) => {
                if self.retry.is_none() {
                    tracing::error!(
                        %error,
                        "the journal cannot be written: nothing new is admitted until it can"
                    );
                }
                self.failing.send_replace(Some(error.to_string()));
                let wait = self.retry.map_or(FIRST_RETRY, |(_, wait)| (2 * wait).min(LAST_RETRY));
                self.retry = Some((Instant::now() + wait, wait));
                false
            }
        }
    }

    fn write(&mut self, size: usize) -> io::Result<()> {
        if self.retry.is_some() {
            // What a failed write or sync left behind is not to be believed.
            self.file.set_len(self.end.length)?;
        }
        if self.end.length >= self.options.segment {
            let (segment, file) = new_segment(&self.dir, self.end.number)?;
            self.segments.push_back(segment);
            (self.file, self.end.length) = (file, 0);
            self.delete_old();
        }
        // Each segment names the history, as the ones before it are deleted.
        let epoch = self.epoch.clone().filter(|_| self.end.length == 0);
        let epoch = epoch.map(|epoch| Line::<()>::Epoch(epoch).write().text);
        let mut payload = epoch.unwrap_or_default();
        for (line, _) in self.waiting.iter().take(size) {
            payload.extend_from_slice(&line.text);
        }
        let mut bytes = Vec::with_capacity(frame::HEAD + payload.len());
        frame::write(self.end.number, &payload, &mut bytes);
        self.file.seek(SeekFrom::Start(self.end.length))?;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.end =
            End { number: self.end.number + 1, length: self.end.length + bytes.len() as u64 };
        Ok(())
    }

    /// Keeps in mind what a line that is on disk means.
    fn note(&mut self, line: &Line<()>) {
        match line {
            Line::Operation { seq, at, taken, .. } => {
                let segment = self.segments.back_mut().expect("it was written to one");
                segment.newest = segment.newest.max(*at);
                if !taken {
                    self.open.insert(*seq, segment.first);
                }
            }
            Line::Ended(seqs) => {
                for seq in seqs {
                    self.open.remove(seq);
                }
            }
            Line::Epoch(epoch) => self.epoch = Some(epoch.clone()),
            Line::Closed => {}
        }
    }

    /// Deletes the oldest segments, as long as nobody can need them.
    fn delete_old(&mut self) {
        let keep = Millis::try_from(self.options.keep.as_millis()).unwrap_or(Millis::MAX);
        let horizon = crate::time::now().saturating_sub(keep);
        while self.segments.len() > 1
            && let Some(oldest) = self.segments.front()
            && oldest.newest < horizon
            && !self.open.values().any(|segment| *segment == oldest.first)
        {
            if let Err(error) = fs::remove_file(&oldest.path) {
                tracing::warn!(path = %oldest.path.display(), %error, "an old journal stays");
                return;
            }
            self.segments.pop_front();
        }
    }
}

/// The files, by their first frame.
fn segment_files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number
            && path.extension().is_some_and(|extension| extension == EXTENSION)
        {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

fn new_segment(dir: &Path, first: u64) -> io::Result<(Segment, File)> {
    let path = dir.join(format!("{first:020}.{EXTENSION}"));
    let mut options = private();
    // One that an earlier try left behind holds nothing.
    let file = options.create(true).truncate(true).open(&path)?;
    // A new file must not lose its name with the power.
    File::open(dir)?.sync_all()?;
    Ok((Segment { first, path, newest: 0 }, file))
}

fn open_segment(path: &Path, length: u64) -> io::Result<File> {
    let file = private().open(path)?;
    file.set_len(length)?;
    file.sync_all()?;
    Ok(file)
}

/// Copies what follows the last whole frame beside the file, for whoever wants to look.
fn keep_aside(path: &Path, from: u64) -> io::Result<()> {
    let bytes = fs::read(path)?;
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
    let mut options = private();
    let mut copy = options.create(true).truncate(true).open(path.with_extension("unfinished"))?;
    copy.write_all(&bytes[from..])
}

/// Opens to write, for the owner alone.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true);
    options
}

fn create_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = private().create(true).truncate(false).open(&path);
    let file = file.map_err(|source| OpenError::Io { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Held(dir.into())),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}
