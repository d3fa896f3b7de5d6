//! The one pass that checks a document.

use std::borrow::Cow;
use std::ops::Range;

use super::{Document, Error, LONG_BYTES, escape, hexadecimal, plain_end, unescape};

/// Objects and arrays inside each other, the outermost one included.
const MAX_DEPTH: usize = 64;

/// The same in what upstreams say, where a refusal would lose their report.
const MAX_LENIENT_DEPTH: usize = 10_000;

/// Names and values in one strict document, itself included.
const MAX_TOKENS: usize = 1_000_000;

/// Ends that are noted: enough for any conversation, and little memory for a million vectors.
pub(super) const MAX_SPANS: usize = 1 << 16;

/// Up to here, names of one object are compared in pairs, which needs no memory.
const FEW_NAMES: usize = 16;

/// A name of an object that is being read.
struct Name<'a> {
    text: Cow<'a, str>,
    offset: usize,
}

/// An object or an array around the place that is being read.
#[derive(Clone, Copy)]
struct Container {
    is_object: bool,
    /// The place in [`Scanner::names`] where its names begin.
    first_name: usize,
    /// Its place in [`Scanner::spans`], if it is noted there.
    span: usize,
}

/// The one pass that checks a document, strictly or leniently.
pub(super) struct Scanner<'a, const STRICT: bool> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    tokens: usize,
    /// Names of the objects around `at`, outermost first; of strict documents alone.
    names: Vec<Name<'a>>,
    spans: Vec<Range<usize>>,
}

impl<'a, const STRICT: bool> Scanner<'a, STRICT> {
    pub(super) fn new(text: &'a str) -> Self {
        let spans = Vec::with_capacity(32);
        Self { text, bytes: text.as_bytes(), at: 0, tokens: 0, names: Vec::new(), spans }
    }

    /// Checks the document.
    pub(super) fn document(mut self) -> Result<Document<'a>, Error> {
        self.space();
        if STRICT && self.peek() != Some(b'{') {
            return Err(self.wrong("an object was expected"));
        }
        self.value()?;
        self.space();
        match self.peek() {
            None => Ok(Document { text: self.text, spans: self.spans }),
            Some(_) => Err(self.wrong("something follows the document")),
        }
    }

    /// Checks one value with everything in it, and stands behind it. Never recurses.
    fn value(&mut self) -> Result<(), Error> {
        let mut around: Vec<Container> = Vec::with_capacity(16);
        loop {
            self.token()?;
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    let container = self.open(open == b'{', around.len())?;
                    around.push(container);
                    // An empty one ends below, like any other.
                    let closing = if container.is_object { b'}' } else { b']' };
                    if self.peek() != Some(closing) {
                        if container.is_object {
                            self.name()?;
                        }
                        continue;
                    }
                }
                Some(b'"') => {
                    self.string()?;
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(_) => self.literal()?,
                None => return Err(self.wrong("the document ends too early")),
            }
            // A value has ended here, and with it all containers that end here.
            loop {
                let Some(&container) = around.last() else { return Ok(()) };
                self.space();
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.space();
                        if container.is_object {
                            self.name()?;
                        }
                        break;
                    }
                    Some(b'}') if container.is_object => {
                        if STRICT {
                            distinct(&mut self.names[container.first_name..])?;
                            self.names.truncate(container.first_name);
                        }
                    }
                    Some(b']') if !container.is_object => {}
                    _ => return Err(self.wrong("a comma or a closing bracket was expected")),
                }
                self.at += 1;
                if let Some(span) = self.spans.get_mut(container.span) {
                    span.end = self.at;
                }
                around.pop();
            }
        }
    }

    /// Begins an object or an array inside of so many others, and stands before what is in it.
    fn open(&mut self, is_object: bool, depth: usize) -> Result<Container, Error> {
        if STRICT && depth == MAX_DEPTH {
            return Err(self.wrong("more than 64 levels"));
        }
        if depth == MAX_LENIENT_DEPTH {
            return Err(self.wrong("more than 10,000 levels"));
        }
        let span = self.note(self.at, 0);
        self.at += 1;
        self.space();
        Ok(Container { is_object, first_name: self.names.len(), span })
    }

    /// Notes where something stands, and says where that is noted.
    fn note(&mut self, start: usize, end: usize) -> usize {
        if self.spans.len() == MAX_SPANS {
            return usize::MAX;
        }
        self.spans.push(start..end);
        self.spans.len() - 1
    }

    /// Checks a name and its colon, and stands before the value.
    fn name(&mut self) -> Result<(), Error> {
        self.token()?;
        if self.peek() != Some(b'"') {
            return Err(self.wrong("a name in quotes was expected"));
        }
        let offset = self.at;
        let (quoted, escaped) = self.string()?;
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.wrong("a colon was expected"));
        }
        self.at += 1;
        self.space();
        if STRICT {
            let text = if escaped { unescape(quoted) } else { Cow::Borrowed(quoted) };
            self.names.push(Name { text, offset });
        }
        Ok(())
    }

    /// Checks a string whose quote is next, and returns what stands between the quotes, and
    /// whether there are escapes in it.
    fn string(&mut self) -> Result<(&'a str, bool), Error> {
        // Most are short, and plain.
        const SHORT: usize = 32;
        let start = self.at + 1;
        let near = &self.bytes[..self.bytes.len().min(start + SHORT)];
        let at = plain_end(near, start);
        let (end, escaped) = match near.get(at) {
            Some(b'"') => (at, false),
            _ => self.long_string_end(at)?,
        };
        self.at = end + 1;
        if self.at - start > LONG_BYTES {
            self.note(start - 1, self.at);
        }
        Ok((&self.text[start..end], escaped))
    }

    /// Where the closing quote of a string stands, `at` being in it and not inside an escape, and
    /// whether there are escapes before it. Prompts are text with an escape every ten bytes or
    /// so: what is none of its business is found for a whole block at once.
    fn long_string_end(&self, mut at: usize) -> Result<(usize, bool), Error> {
        let mut escaped = false;
        while let Some(block) = self.bytes.get(at..).and_then(|rest| rest.first_chunk()) {
            let begin = at;
            at += block.len();
            let mut found = marks(block);
            while found != 0 {
                let mark = begin + found.trailing_zeros() as usize;
                if self.bytes[mark] == b'"' {
                    return Ok((mark, escaped));
                }
                let end = self.escape_end(mark)?;
                escaped = true;
                // What is escaped is no mark, also in the next block.
                let passed = u32::try_from(end - begin).unwrap_or(u32::MAX);
                found &= u64::MAX.checked_shl(passed).unwrap_or(0);
                at = at.max(end);
            }
        }
        loop {
            at = plain_end(self.bytes, at);
            match self.bytes.get(at) {
                None => return Err(self.wrong("a string does not end")),
                Some(b'"') => return Ok((at, escaped)),
                Some(_) => at = self.escape_end(at)?,
            }
            escaped = true;
        }
    }

    /// Where the escape ends that begins at a mark, which is no quote.
    fn escape_end(&self, at: usize) -> Result<usize, Error> {
        match (self.bytes[at], self.bytes.get(at + 1)) {
            // The common escapes need no decoding to be passed.
            (b'\\', Some(b'n' | b't' | b'r' | b'"' | b'\\' | b'/')) => Ok(at + 2),
            (b'\\', _) => self.rare_escape(at),
            _ => Err(Error::Syntax { reason: "a control character in a string", offset: at }),
        }
    }

    /// Where the escape at `at` ends.
    fn rare_escape(&self, at: usize) -> Result<usize, Error> {
        match escape(self.bytes, at) {
            Ok((_, end)) => Ok(end),
            // Half of a surrogate pair.
            Err(_)
                if !STRICT
                    && self.bytes.get(at + 1) == Some(&b'u')
                    && hexadecimal(self.bytes, at + 2).is_some() =>
            {
                Ok(at + 6)
            }
            Err(error) => Err(error),
        }
    }

    fn number(&mut self) -> Result<(), Error> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Error> {
        let length = self.bytes[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 {
            return Err(self.wrong("a digit was expected"));
        }
        self.at += length;
        Ok(())
    }

    fn literal(&mut self) -> Result<(), Error> {
        let rest = &self.bytes[self.at..];
        let literal =
            ["true", "false", "null"].iter().find(|text| rest.starts_with(text.as_bytes()));
        let literal = literal.ok_or_else(|| self.wrong("a value was expected"))?;
        self.at += literal.len();
        Ok(())
    }

    /// Counts a name or a value.
    fn token(&mut self) -> Result<(), Error> {
        self.tokens += 1;
        if STRICT && self.tokens > MAX_TOKENS {
            return Err(self.wrong("more than 1,000,000 names and values"));
        }
        Ok(())
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn wrong(&self, reason: &'static str) -> Error {
        Error::Syntax { reason, offset: self.at }
    }
}

/// Which of the bytes of a block are quotes, backslashes or control characters, a bit each.
fn marks(block: &[u8; 64]) -> u64 {
    // Of eight bytes that are 0 or 1, the highest byte of this product has each as a bit.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    // Without an early end, so that the compiler makes vector code of it.
    let is_mark =
        block.map(|byte| u8::from(byte < 0x20) | u8::from(byte == b'"') | u8::from(byte == b'\\'));
    let (words, _) = is_mark.as_chunks::<8>();
    words
        .iter()
        .rev()
        .fold(0, |marks, word| marks << 8 | u64::from_le_bytes(*word).wrapping_mul(GATHER) >> 56)
}

/// Refuses a name that stands twice among the names of one object. May reorder them.
fn distinct(names: &mut [Name<'_>]) -> Result<(), Error> {
    let twice = if names.len() <= FEW_NAMES {
        (1..names.len()).find(|&at| names[..at].iter().any(|name| name.text == names[at].text))
    } else {
        names.sort_unstable_by(|a, b| (&a.text, a.offset).cmp(&(&b.text, b.offset)));
        (1..names.len()).find(|&at| names[at - 1].text == names[at].text)
    };
    match twice {
        None => Ok(()),
        Some(at) => Err(Error::DuplicateKey {
            key: names[at].text.clone().into_owned(),
            offset: names[at].offset,
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(document: &[u8]) -> Result<Document<'_>, Error> {
        Document::strict(document)
    }

    fn syntax(document: &[u8]) -> (&'static str, usize) {
        match object(document) {
            Err(Error::Syntax { reason, offset }) => (reason, offset),
            other => panic!("{:?} gave {other:?}", String::from_utf8_lossy(document)),
        }
    }

    fn duplicate(document: &str) -> (String, usize) {
        match object(document.as_bytes()) {
            Err(Error::DuplicateKey { key, offset }) => (key, offset),
            other => panic!("{document} gave {other:?}"),
        }
    }

    #[test]
    fn what_other_parsers_would_let_pass_is_an_error_with_its_place() {
        let cases: &[(&[u8], usize)] = &[
            (b"\xef\xbb\xbf{}", 0),
            (b"\xff\xfe{\0}\0", 0),
            (b"{\"a\":\"\xc3\x28\"}", 6),
            (b"", 0),
            (b"[]", 0),
            (b"{} {}", 3),
            (b"{}\0", 2),
            (b"{\"a\":1,}", 7),
            (b"{\"a\":[1,]}", 8),
            (b"{\"a\":[,1]}", 6),
            (b"{,}", 1),
            (b"{\"a\" 1}", 5),
            (b"{\"a\":}", 5),
            (b"{a:1}", 1),
            (b"{'a':1}", 1),
            (b"{\"a\":NaN}", 5),
            (b"{\"a\":Infinity}", 5),
            (b"{\"a\":-Infinity}", 6),
            (b"{\"a\":tru}", 5),
            (b"{\"a\":nulll}", 9),
            (b"{\"a\":01}", 6),
            (b"{\"a\":+1}", 5),
            (b"{\"a\":1.}", 7),
            (b"{\"a\":.5}", 5),
            (b"{\"a\":1e}", 7),
            (b"{\"a\":0x10}", 6),
            (b"{\"a\":1/*x*/}", 6),
            (b"{\"a\":1}//x", 7),
            (b"{\"a\":\"\t\"}", 6),
            (b"{\"a\":\"\0\"}", 6),
            (b"{\"a\":\"x", 5),
            (b"{\"a\":\"x\\", 7),
            (b"{\"a\":\"\\x41\"}", 6),
            (b"{\"a\":\"\\u00g0\"}", 6),
            (b"{\"a\":\"\\u+123\"}", 6),
            (b"{\"a\":\"\\ud800\"}", 6),
            (b"{\"a\":\"\\udc00\\ud800\"}", 6),
            (b"{\"a\":\"\\ud800\\u0041\"}", 6),
            (b"{\"a\":[}", 6),
            (b"{\"a\":{]}", 6),
            (b"{\"a\":[1}", 7),
            (b"{\"a\":1", 6),
            (b"{\"a\":", 5),
            (b"{\x0b\"a\":1}", 1),
        ];
        for (document, offset) in cases {
            assert_eq!(syntax(document).1, *offset, "{:?}", String::from_utf8_lossy(document));
        }
    }

    #[test]
    fn a_name_given_twice_is_refused_at_every_level_however_it_is_written() {
        assert_eq!(duplicate(r#"{"model":1,"mod\u0065l":2}"#), ("model".into(), 11));
        assert_eq!(duplicate(r#"{"a":{"b":1,"\u0062":2}}"#), ("b".into(), 12));
        assert_eq!(duplicate(r#"{"a":[{"b":1},{"c":{},"c":[]}]}"#), ("c".into(), 22));
        let many: String = (0..40).map(|n| format!(r#""k{n}":{{"x":1}},"#)).collect();
        assert_eq!(duplicate(&format!(r#"{{"o":{{{many}"k7":0}}}}"#)).0, "k7");
        assert!(object(format!(r#"{{"o":{{{many}"K7":0}},"k7":1}}"#).as_bytes()).is_ok());
    }

    #[test]
    fn sixty_four_levels_pass_and_sixty_five_do_not() {
        let nested =
            |levels: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        assert!(object(nested(63).as_bytes()).is_ok());
        assert_eq!(syntax(nested(64).as_bytes()).0, "more than 64 levels");
        assert_eq!(syntax(format!(r#"{{"a":{}"#, "[".repeat(1_000_000)).as_bytes()).1, 68);
    }

    #[test]
    fn a_million_tokens_pass_and_one_more_does_not() {
        // The object, the name and the array are three.
        let numbers = |count: usize| format!(r#"{{"a":[{}0]}}"#, "0,".repeat(count - 1));
        assert!(object(numbers(MAX_TOKENS - 3).as_bytes()).is_ok());
        assert_eq!(
            syntax(numbers(MAX_TOKENS - 2).as_bytes()).0,
            "more than 1,000,000 names and values"
        );
    }

    proptest! {
        /// Wherever escapes stand in a long text, also across the ends of blocks.
        #[test]
        fn long_strings_are_read_as_another_strict_parser_reads_them(
            parts in prop::collection::vec(prop_oneof![
                8 => Just("plain text"), 4 => Just("a"), 4 => Just("\\n"), 4 => Just("\\\""),
                4 => Just("\\\\"), 2 => Just("\\u00e9"), 2 => Just("é"), 2 => Just("\\ud83d\\ude00"),
                1 => Just("\n"), 1 => Just("\\x"), 1 => Just("\\"), 1 => Just("\""),
            ], 0..60),
            spoilt in any::<bool>(),
        ) {
            let bad = ["\n", "\\x", "\\", "\""];
            let parts: Vec<_> = parts.into_iter().filter(|part| spoilt || !bad.contains(part)).collect();
            let text = format!("{{\"v\":\"{}\"}}", parts.concat());
            let ours = object(text.as_bytes());
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{} {:?} {:?}", text, ours, theirs);
            if let (Ok(ours), Ok(theirs)) = (&ours, &theirs) {
                let value = ours.root().get("v").unwrap().string();
                prop_assert_eq!(value.as_deref(), theirs["v"].as_str());
            }
        }

        #[test]
        fn marks_are_the_bytes_that_a_byte_by_byte_reader_stops_at(block in prop::array::uniform32(any::<u16>())) {
            let block: [u8; 64] = std::array::from_fn(|at| block[at / 2].to_le_bytes()[at % 2] % 0x60);
            for (at, byte) in block.into_iter().enumerate() {
                let is_mark = byte < 0x20 || byte == b'"' || byte == b'\\';
                prop_assert_eq!(marks(&block) >> at & 1 == 1, is_mark);
            }
        }

        /// Whatever passes is JSON to another strict parser too, and what it refuses we refuse.
        #[test]
        fn nothing_passes_that_another_strict_parser_refuses(
            document in prop::collection::vec(prop_oneof![
                Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("\""),
                Just("\"a\":"), Just("\"b\":"), Just("\\"), Just("\\u00"), Just("\\ud83d"), Just("\\ude00"),
                Just("1"), Just("-"), Just("0"), Just("."), Just("e"), Just("true"), Just("null"), Just(" "), Just("\n"), Just("é"),
            ], 0..24).prop_map(|parts| parts.concat()),
        ) {
            let document = format!("{{\"v\":{document}}}");
            let ours = object(document.as_bytes());
            let theirs = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&document);
            match (&ours, &theirs) {
                (Ok(_), Err(error)) => prop_assert!(error.to_string().contains("number out of range"), "{error}"),
                (Err(Error::Syntax { .. }), Ok(_)) => prop_assert!(false, "{document} {ours:?}"),
                _ => {}
            }
        }
    }
}
