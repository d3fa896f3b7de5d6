//! Reads what a reply used while its bytes pass, and makes the two documented edits.
//!
//! No copy of a stream is kept and no event is parsed that cannot carry usage. Chunks pass
//! as they came; where an edit is asked for, an unfinished event waits for its end.
//!
//! Elsewhere: framing (`sse`), what a report means (`usage`).

mod edit;
mod scan;

use std::borrow::Cow;

use bytes::Bytes;

use self::scan::Text;
use super::Endpoint;
use super::sse::{self, Event, Scanner};
use super::usage::object::Object;
use super::usage::{Place, Source, Tally};
use crate::billing::{Credits, Usage};

/// The flag for an event that was too large to be read.
const TOO_LARGE: &str = "event_too_large";

/// What is held back after the end of a stream; anything beyond it is dropped.
const MAX_HELD_BYTES: usize = 4 << 20;

/// What a reply says of itself, as far as it has been read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Counts that the upstream reported and that are complete. `None`: nothing reported.
    pub usage: Option<Usage>,
    /// Input counts that are exact although the output is not known, as after Anthropic's
    /// `message_start`; `output` in it is zero.
    pub input: Option<Usage>,
    /// Tokens of other models on the same request, each with the model's name.
    pub sub_usages: Vec<(String, Usage)>,
    /// The model that the reply names.
    pub model: Option<String>,
    /// The service tier that the reply names, in lower case.
    pub service_tier: Option<String>,
    /// What the upstream says it charges the operator, in US dollars, as decimal text.
    pub provider_cost: Option<String>,
    /// Where the upstream says it computed the reply, in lower case: `us` costs more (Anthropic).
    pub inference_geo: Option<String>,
    /// The cache writes are not split by lifetime: those asked for with one hour may be among
    /// them (Anthropic).
    pub cache_unsplit: bool,
    /// The id of a stored response (Responses).
    pub response_id: Option<String>,
    /// The reply is an error, or ended in one.
    pub failed: bool,
    /// Some output was delivered.
    pub output_seen: bool,
    /// What was odd: `usage_regressed`, `usage_invalid`, …
    pub flags: Vec<&'static str>,
}

/// Prices what has been read of a reply; `None` if it has no price.
pub type Pricing = Box<dyn Fn(&Reading) -> Option<Credits> + Send>;

/// What may be changed in a stream of chat or text completions. Nothing is ever changed in others.
pub enum Edit {
    /// Nothing.
    None,
    /// The usage chunk that we asked for and the client did not is left out.
    HideUsage,
    /// `usage.cost` is written into the final usage, which the client asked for; the function
    /// prices what has been read.
    AddCost(Pricing),
}

/// Reads one streamed reply.
pub struct Meter {
    endpoint: Endpoint,
    edit: Edit,
    scanner: Scanner,
    tally: Tally,
    text: Text,
    hold: Hold,
    held: Vec<u8>,
    /// The event that ended last was left out.
    left_out: bool,
}

/// Whether bytes are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    No,
    /// Until another event comes.
    MaybeLast,
    /// Until [`Meter::finish`].
    Last,
}

/// What goes to the client instead of an event.
enum Change {
    None,
    LeaveOut,
    Replace(Vec<u8>),
}

impl Meter {
    /// A meter for a reply of `endpoint` whose body is an event stream.
    pub fn stream(endpoint: Endpoint, edit: Edit) -> Self {
        let editable = matches!(endpoint, Endpoint::Chat | Endpoint::Completions);
        Self {
            endpoint,
            edit: if editable { edit } else { Edit::None },
            scanner: Scanner::default(),
            tally: Tally::new(endpoint),
            text: Text::default(),
            hold: Hold::No,
            held: Vec::new(),
            left_out: false,
        }
    }

    /// Takes the next bytes of the body and returns those that may go to the client now.
    ///
    /// From the terminal event on (`[DONE]`, `message_stop`, `response.completed`, …)
    /// everything is held back until [`Meter::finish`], because a client takes it for the end.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let mut out = Outgoing::new(&chunk, self.hold != Hold::No);
        let mut at = self.scanner.begin(&chunk);
        if self.left_out {
            out.skip_to(at);
        }
        let waits = self.waits();
        while let Some(found) = self.scanner.next(&chunk, at) {
            let (start, end) = (at, found.end);
            at = end;
            if found.given_up {
                self.tally.reading.set_flag(TOO_LARGE, true);
                self.left_out = false;
                continue;
            }
            let event = sse::parse(found.raw);
            let (place, was_read) = observe(self.endpoint, &event, &mut self.tally, &mut self.text);
            let change = if was_read {
                change(&self.edit, found.raw, &event, &self.tally)
            } else {
                Change::None
            };
            if self.hold == Hold::MaybeLast && !event.data.is_empty() {
                self.hold = Hold::No;
                out.release(std::mem::take(&mut self.held));
            }
            if place != Place::Amid && self.hold != Hold::Last {
                self.hold = if place == Place::Last { Hold::Last } else { Hold::MaybeLast };
                out.hold_from(start);
            }
            self.left_out = matches!(change, Change::LeaveOut);
            match change {
                Change::None if found.carried && waits => out.insert(start, found.raw, end),
                Change::None => {}
                Change::LeaveOut => out.insert(start, &[], end),
                Change::Replace(bytes) => out.insert(start, &bytes, end),
            }
        }
        if let Some(event) = self.scanner.give_up() {
            if waits {
                out.insert(at, &event, chunk.len());
            }
        } else if waits && !self.scanner.is_passing() {
            out.stop_at(at);
        } else if self.hold == Hold::No && self.line_ends_stream() {
            // A client that reads by the line does not wait for the blank one.
            self.hold = Hold::Last;
            out.hold_from(at);
        }
        if out.is_chunk() {
            return chunk;
        }
        let (now, held) = out.finish();
        let room = MAX_HELD_BYTES.saturating_sub(self.held.len());
        self.held.extend_from_slice(&held[..held.len().min(room)]);
        now
    }

    /// The terminal event has been seen; what follows is at most trailing bytes.
    pub fn is_terminal(&self) -> bool {
        self.hold == Hold::Last
    }

    /// An event that may be the last one is held back: the end is due soon, or more events.
    pub fn may_be_over(&self) -> bool {
        self.hold == Hold::MaybeLast
    }

    /// The body has ended or no more will be read: reads an unterminated last event, and
    /// returns the bytes held back.
    pub fn finish(&mut self) -> Bytes {
        self.end(true)
    }

    /// The body was cut off: reads what came of its last event, and returns the bytes held
    /// back, but for half an event that waited for its rest. `false`: the client has half an
    /// event, so that no other may follow.
    pub fn cut(&mut self) -> (Bytes, bool) {
        let nothing_open = self.scanner.unfinished().is_empty() && !self.scanner.is_passing();
        let between_events = nothing_open || self.waits();
        (self.end(false), between_events)
    }

    fn end(&mut self, with_unfinished: bool) -> Bytes {
        let scanner = std::mem::take(&mut self.scanner);
        if scanner.is_passing() {
            self.tally.reading.set_flag(TOO_LARGE, true);
        }
        let raw = scanner.unfinished();
        let event = sse::parse(raw);
        let was = self.tally.reading.clone();
        observe(self.endpoint, &event, &mut self.tally, &mut self.text);
        if !event.data.is_empty() && !is_whole(&event.data) {
            // Cut inside its JSON it is no report, and no mistake of the upstream's either.
            let Reading { output_seen, failed, .. } = self.tally.reading;
            self.tally.reading = Reading { output_seen, failed, ..was };
        }
        let mut out = std::mem::take(&mut self.held);
        if self.waits() && with_unfinished {
            match change(&self.edit, raw, &event, &self.tally) {
                Change::None => out.extend_from_slice(raw),
                Change::LeaveOut => {}
                Change::Replace(bytes) => out.extend_from_slice(&bytes),
            }
        }
        out.into()
    }

    /// What has been read.
    pub fn into_reading(self) -> Reading {
        self.tally.reading
    }

    /// What has been read so far.
    pub fn reading(&self) -> &Reading {
        &self.tally.reading
    }

    /// The delivered output as text, as far as it is kept for an estimate (bounded), and how
    /// many bytes of output there were in all.
    pub fn output_text(&self) -> (String, u64) {
        self.text.unescaped()
    }

    /// An unfinished event waits for its end, because it may have to be changed.
    fn waits(&self) -> bool {
        !matches!(self.edit, Edit::None)
    }

    /// The unfinished event is all there but for its blank line, and ends the stream.
    fn line_ends_stream(&self) -> bool {
        let raw = self.scanner.unfinished();
        if raw.is_empty() || !self.scanner.at_line_start() {
            return false;
        }
        let event = sse::parse(raw);
        let mut tally = Tally::new(self.endpoint);
        observe(self.endpoint, &event, &mut tally, &mut Text::default()).0 == Place::Last
    }
}

/// Reads a reply that came whole: one JSON object, or Gemini's array of them. `None`: it is
/// neither, so it is no reply.
pub fn read_whole(endpoint: Endpoint, body: &[u8]) -> Option<Reading> {
    let body = text_of(body);
    let mut tally = Tally::new(endpoint);
    let roots = objects(&body);
    if roots.is_empty() {
        return None;
    }
    for root in &roots {
        tally.read(root, Source::Whole);
    }
    let mut reading = tally.reading;
    reading.output_seen = reading.usage.as_ref().is_some_and(|usage| usage.output > 0)
        || !collect(endpoint, &roots).is_empty();
    Some(reading)
}

/// The output of a reply that came whole, as [`Meter::output_text`] gives that of a stream.
pub fn whole_text(endpoint: Endpoint, body: &[u8]) -> (String, u64) {
    collect(endpoint, &objects(&text_of(body))).unescaped()
}

/// The objects that a body consists of; none if it is not JSON.
fn objects(body: &str) -> Vec<Object<'_>> {
    Object::all(body.strip_prefix('\u{feff}').unwrap_or(body).trim())
}

fn collect(endpoint: Endpoint, roots: &[Object<'_>]) -> Text {
    let holder = match endpoint {
        Endpoint::Chat | Endpoint::Completions | Endpoint::Embeddings => "choices",
        Endpoint::Responses => "output",
        Endpoint::Messages | Endpoint::CountTokens => "content",
        Endpoint::Generate | Endpoint::StreamGenerate => "candidates",
    };
    let mut text = Text::default();
    for output in roots.iter().filter_map(|root| root.get(holder)) {
        scan::collect(endpoint, output.as_bytes(), &mut text);
    }
    text
}

/// Reads an event, if it is worth it. Returns where in the stream it stands, and whether it
/// was worth it: only then it may hold a usage.
fn observe(
    endpoint: Endpoint,
    event: &Event<'_>,
    tally: &mut Tally,
    text: &mut Text,
) -> (Place, bool) {
    let data = event.data.as_ref();
    if event.name == b"error" {
        tally.reading.failed = true;
    }
    if data.len() < 16 && data.trim_ascii() == b"[DONE]" {
        return (Place::Last, false);
    }
    let worth = scan::scan(endpoint, data, &mut tally.reading, text);
    let place = if worth {
        let data = text_of(data);
        if let Some(root) = Object::parse(&data) {
            tally.read(&root, Source::Event)
        } else {
            tally.distrust();
            Place::Amid
        }
    } else {
        Place::Amid
    };
    let place = match (endpoint, event.name) {
        (Endpoint::Messages, b"message_stop" | b"error") | (Endpoint::Responses, b"error") => {
            Place::Last
        }
        _ => place,
    };
    (place, worth)
}

/// The bytes as text. Almost all are UTF-8, and that is checked ten times faster than what
/// is not is mended.
fn text_of(bytes: &[u8]) -> Cow<'_, str> {
    simdutf8::basic::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

fn is_whole(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]" || Object::parse(&text_of(data)).is_some()
}

/// What an edit makes of an event that has been read. Events that cannot hold a usage
/// object are not parsed for it.
fn change(edit: &Edit, raw: &[u8], event: &Event<'_>, tally: &Tally) -> Change {
    if matches!(edit, Edit::None) || memchr::memmem::find(&event.data, b"\"usage\"").is_none() {
        return Change::None;
    }
    let Ok(data) = std::str::from_utf8(&event.data) else { return Change::None };
    match edit {
        Edit::HideUsage if edit::is_usage_chunk(data) => Change::LeaveOut,
        Edit::AddCost(cost) => {
            add_cost(raw, event, data, &tally.reading, tally.is_finished(), cost)
                .map_or(Change::None, Change::Replace)
        }
        _ => Change::None,
    }
}

/// The event with its cost. `None` leaves it as it is: no final usage, no price, or data
/// on several lines, which is never seen with usage.
fn add_cost(
    raw: &[u8],
    event: &Event<'_>,
    data: &str,
    reading: &Reading,
    finished: bool,
    cost: &Pricing,
) -> Option<Vec<u8>> {
    let Cow::Borrowed(line) = event.data else { return None };
    let usage = edit::final_usage(data, finished)?;
    let edited = edit::with_cost(&data[usage.clone()], &cost(reading)?.to_string())?;
    let line_start = line.as_ptr() as usize - raw.as_ptr() as usize;
    let mut bytes = Vec::with_capacity(raw.len() + edited.len());
    bytes.extend_from_slice(&raw[..line_start + usage.start]);
    bytes.extend_from_slice(edited.as_bytes());
    bytes.extend_from_slice(&raw[line_start + usage.end..]);
    Some(bytes)
}

/// The bytes that leave for the client: the chunk itself, as long as nothing is changed.
struct Outgoing<'a> {
    chunk: &'a Bytes,
    /// Bytes of the chunk from here on have not been dealt with.
    at: usize,
    /// Bytes of the chunk from here on wait in the scanner.
    until: usize,
    /// What comes before them, if it is not simply the chunk.
    built: Vec<u8>,
    /// What is held back, by its offset in `built`.
    held_from: Option<usize>,
}

impl<'a> Outgoing<'a> {
    fn new(chunk: &'a Bytes, holding: bool) -> Self {
        Self {
            chunk,
            at: 0,
            until: chunk.len(),
            built: Vec::new(),
            held_from: holding.then_some(0),
        }
    }

    fn copy_to(&mut self, offset: usize) {
        self.built.extend_from_slice(&self.chunk[self.at..offset]);
        self.at = offset;
    }

    fn skip_to(&mut self, offset: usize) {
        self.at = offset;
    }

    /// `bytes` stand for the chunk from `start` to `end`.
    fn insert(&mut self, start: usize, bytes: &[u8], end: usize) {
        self.copy_to(start);
        self.built.extend_from_slice(bytes);
        self.at = end;
    }

    fn stop_at(&mut self, offset: usize) {
        self.until = offset;
    }

    fn hold_from(&mut self, offset: usize) {
        self.copy_to(offset);
        self.held_from.get_or_insert(self.built.len());
    }

    /// What was held back goes first.
    fn release(&mut self, mut held: Vec<u8>) {
        held.append(&mut self.built);
        self.built = held;
        self.held_from = None;
    }

    /// What goes now is the chunk, and nothing is held back.
    fn is_chunk(&self) -> bool {
        self.at == 0
            && self.until == self.chunk.len()
            && self.built.is_empty()
            && self.held_from.is_none()
    }

    /// What goes now, and what is held back.
    fn finish(mut self) -> (Bytes, Vec<u8>) {
        if self.built.is_empty() && self.held_from.is_none() {
            return (self.chunk.slice(self.at..self.until), Vec::new());
        }
        self.copy_to(self.until);
        let held = self.held_from.map_or_else(Vec::new, |offset| self.built.split_off(offset));
        (self.built.into(), held)
    }
}

#[cfg(test)]
mod tests;
