//! Finds the events of an event stream (HTML standard, 9.2) in bytes cut anywhere.
//!
//! Events that lie within one chunk are slices of it. Only an unfinished event at the end
//! of a chunk is copied, into a buffer with a limit.

use std::borrow::Cow;

use memchr::memchr2;

/// The largest event that is put together from several chunks, in bytes.
pub const MAX_EVENT_BYTES: usize = 4 << 20;

/// What a finished event leaves allocated for the next one, in bytes.
const KEPT_CAPACITY: usize = 64 << 10;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Cuts a stream into events.
#[derive(Debug, Default)]
pub struct Scanner {
    /// The unfinished event, as far as earlier chunks brought it.
    carry: Vec<u8>,
    /// `carry` is an event that has been returned.
    returned: bool,
    /// The unfinished event is larger than [`MAX_EVENT_BYTES`] and is no longer kept.
    given_up: bool,
    /// The current line has bytes.
    in_line: bool,
    /// The last byte was CR, so a LF belongs to it.
    after_cr: bool,
}

/// One event, with the blank line that ends it.
#[derive(Debug)]
pub struct Found<'a> {
    /// Its bytes; none if it was too large to keep.
    pub raw: &'a [u8],
    /// Where it ends in the chunk.
    pub end: usize,
    /// It began in an earlier chunk.
    pub carried: bool,
    /// It was too large to keep.
    pub given_up: bool,
}

impl Scanner {
    /// How many bytes of a new chunk still belong to the event before it: the LF of a CRLF
    /// that was cut in two.
    pub fn begin(&mut self, chunk: &[u8]) -> usize {
        self.forget_returned();
        let between = self.carry.is_empty() && !self.in_line && !self.given_up;
        if between && self.after_cr && chunk.first() == Some(&b'\n') {
            self.after_cr = false;
            return 1;
        }
        0
    }

    /// The next event that ends in `chunk`, looked for from `at` on, which is where the one
    /// before it ended. `None`: the rest of the chunk has been copied and may be forgotten.
    pub fn next<'a>(&'a mut self, chunk: &'a [u8], at: usize) -> Option<Found<'a>> {
        self.forget_returned();
        let carried = !self.carry.is_empty() || self.given_up;
        let Some(end) = self.end_of_event(chunk, at) else {
            self.keep(&chunk[at..]);
            return None;
        };
        let given_up = std::mem::take(&mut self.given_up);
        if given_up || !carried {
            let raw = if given_up { &[][..] } else { &chunk[at..end] };
            return Some(Found { raw, end, carried, given_up });
        }
        self.carry.extend_from_slice(&chunk[at..end]);
        self.returned = true;
        Some(Found { raw: &self.carry, end, carried, given_up })
    }

    /// The unfinished event, as far as it has come.
    pub fn unfinished(&self) -> &[u8] {
        if self.returned { &[] } else { &self.carry }
    }

    /// The unfinished event ends with a whole line.
    pub fn at_line_start(&self) -> bool {
        !self.in_line
    }

    /// The event that became too large just now: its bytes are no longer kept here.
    pub fn give_up(&mut self) -> Option<Vec<u8>> {
        if self.returned || self.carry.len() <= MAX_EVENT_BYTES {
            return None;
        }
        self.given_up = true;
        Some(std::mem::take(&mut self.carry))
    }

    /// The unfinished event is too large and is passing by.
    pub fn is_passing(&self) -> bool {
        self.given_up
    }

    fn keep(&mut self, rest: &[u8]) {
        if !self.given_up {
            self.carry.extend_from_slice(rest);
        }
    }

    fn forget_returned(&mut self) {
        if std::mem::take(&mut self.returned) {
            self.carry.clear();
            self.carry.shrink_to(KEPT_CAPACITY);
        }
    }

    /// The offset after the blank line that ends the event.
    fn end_of_event(&mut self, chunk: &[u8], mut at: usize) -> Option<usize> {
        loop {
            if self.after_cr && at < chunk.len() {
                self.after_cr = false;
                at += usize::from(chunk[at] == b'\n');
            }
            let rest = &chunk[at..];
            let Some(length) = memchr2(b'\r', b'\n', rest) else {
                self.in_line |= !rest.is_empty();
                return None;
            };
            let blank = length == 0 && !self.in_line;
            at += length + 1;
            if rest[length] == b'\r' {
                match chunk.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            self.in_line = false;
            if blank {
                return Some(at);
            }
        }
    }
}

/// The fields of an event that matter to a meter.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Event<'a> {
    /// The value of `event:`.
    pub name: &'a [u8],
    /// The values of `data:`, joined with LF. Borrowed if there is only one.
    pub data: Cow<'a, [u8]>,
}

/// Reads the fields of an event.
pub fn parse(raw: &[u8]) -> Event<'_> {
    let mut event = Event::default();
    let mut data_lines = 0;
    let mut rest = raw.strip_prefix(BOM).unwrap_or(raw);
    while !rest.is_empty() {
        let end = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        if let Some(value) = field(line, b"data") {
            data_lines += 1;
            if data_lines == 1 {
                event.data = Cow::Borrowed(value);
            } else {
                let data = event.data.to_mut();
                data.push(b'\n');
                data.extend_from_slice(value);
            }
        } else if let Some(value) = field(line, b"event") {
            event.name = value;
        }
    }
    event
}

/// The value of a line `name:value` or `name: value`; a name alone has an empty one.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

/// Whether a reply is an event stream, by its `content-type` and how its body begins.
///
/// Some upstreams answer a request for a stream with one JSON body, whatever they call it.
pub fn looks_like_events(content_type: Option<&str>, first_bytes: &[u8]) -> bool {
    let bytes = first_bytes.strip_prefix(BOM).unwrap_or(first_bytes).trim_ascii_start();
    if matches!(bytes.first(), Some(b'{' | b'[')) {
        return false;
    }
    let fields: [&[u8]; 5] = [b"data:", b"event:", b":", b"id:", b"retry:"];
    let named = content_type.is_some_and(|value| {
        value.trim_start().to_ascii_lowercase().starts_with("text/event-stream")
    });
    named || fields.iter().any(|field| bytes.starts_with(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The data of every event, with the stream cut at these places.
    fn events(stream: &[u8], cuts: &[usize]) -> Vec<String> {
        let mut scanner = Scanner::default();
        let mut found = Vec::new();
        let mut start = 0;
        for &cut in cuts.iter().chain([&stream.len()]) {
            let cut = cut.clamp(start, stream.len());
            let chunk = &stream[start..cut];
            start = cut;
            let mut at = scanner.begin(chunk);
            while let Some(event) = scanner.next(chunk, at) {
                at = event.end;
                found.push(event.raw.to_vec());
            }
        }
        found.push(scanner.unfinished().to_vec());
        found
            .iter()
            .map(|raw| String::from_utf8(parse(raw).data.to_vec()).unwrap())
            .filter(|data| !data.is_empty())
            .collect()
    }

    #[test]
    fn every_line_ending_ends_a_line() {
        for end in ["\n", "\r\n", "\r"] {
            let stream = ["data: a", "", ": comment", "event: x", "data:b", "data:  c", "", ""]
                .join(end)
                + "data: last";
            for size in 1..8 {
                let cuts: Vec<_> = (0..stream.len()).step_by(size).collect();
                assert_eq!(
                    events(stream.as_bytes(), &cuts),
                    ["a", "b\n c", "last"],
                    "{end:?} in pieces of {size}"
                );
            }
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_field() {
        assert_eq!(parse(b"\xef\xbb\xbfdata: x\n\n").data.as_ref(), b"x");
    }

    #[test]
    fn an_event_beyond_the_limit_is_let_go_and_the_next_one_is_found() {
        let mut scanner = Scanner::default();
        let large = vec![b'x'; MAX_EVENT_BYTES + 1];
        assert!(scanner.next(&large, 0).is_none());
        assert_eq!(scanner.give_up().map(|bytes| bytes.len()), Some(large.len()));
        let rest = b"x\n\ndata: y\n\n";
        let passed = scanner.next(rest, 0).unwrap();
        assert!(passed.given_up && passed.raw.is_empty());
        let end = passed.end;
        assert_eq!(parse(scanner.next(rest, end).unwrap().raw).data.as_ref(), b"y");
    }

    #[test]
    fn the_first_byte_decides_where_the_content_type_is_wrong() {
        let events = Some("Text/Event-Stream; charset=utf-8");
        assert!(looks_like_events(events, b""));
        assert!(looks_like_events(events, b"data: {}\n\n"));
        assert!(!looks_like_events(events, b"\n\n {\"id\":1}"));
        assert!(!looks_like_events(Some("application/json"), b"[{}]"));
        assert!(looks_like_events(None, b"\xef\xbb\xbfdata:{}"));
        assert!(!looks_like_events(None, b"<html>"));
    }

    proptest! {
        #[test]
        fn where_a_stream_is_cut_changes_nothing(
            stream in "(data: ?[a-z\\n\\r]{0,9}|:|event: e|\n|\r|\r\n){0,12}",
            mut cuts in proptest::collection::vec(0..80usize, 0..8),
        ) {
            cuts.sort_unstable();
            prop_assert_eq!(events(stream.as_bytes(), &cuts), events(stream.as_bytes(), &[]));
        }
    }
}
