//! JSON: one check of a whole document, then cheap views into it.
//!
//! [`Document::strict`] checks every byte once: UTF-8, grammar, escapes, depth, size, and that
//! no object gives a name twice, however the name is escaped. Parsers differ in which of two
//! equal names they take, and that difference would let a request be priced as one thing
//! and run as another. [`Document::lenient`] takes whatever is JSON, for what upstreams say.
//!
//! [`Value`]s of a checked document are slices of it: nothing is copied or allocated for values
//! that nobody reads. The check notes where objects, arrays and long strings end, so that no
//! view has to look through them again.

use std::borrow::Cow;
use std::ops::Range;

use scanner::Scanner;

mod scanner;

/// Strings beyond this length are passed by what the check noted, in bytes.
const LONG_BYTES: usize = 64;

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It is not JSON, or more of it than we take.
    Syntax {
        /// What is wrong.
        reason: &'static str,
        /// The byte where it is wrong.
        offset: usize,
    },
    /// An object gives a name twice.
    DuplicateKey {
        /// The name, unescaped.
        key: String,
        /// The byte where the second one begins.
        offset: usize,
    },
}

/// A checked document.
#[derive(Debug, PartialEq, Eq)]
pub struct Document<'a> {
    text: &'a str,
    /// Where objects, arrays and long strings stand, in the order of their beginnings. Of a
    /// document with very many, the first.
    spans: Vec<Range<usize>>,
}

/// One value of a checked document, as it is written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    document: &'a Document<'a>,
    start: usize,
    end: usize,
}

/// One field of an object inside a checked document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The name, unescaped; borrowed if it is written without escapes.
    pub key: Cow<'a, str>,
    /// The value.
    pub value: Value<'a>,
}

impl<'a> Document<'a> {
    /// Checks a document that must be an object.
    ///
    /// # Errors
    ///
    /// [`Error`], with the offset of the first thing wrong; a duplicate name is noticed at the
    /// end of its object.
    pub fn strict(document: &'a [u8]) -> Result<Self, Error> {
        if document.starts_with(b"\xef\xbb\xbf") {
            return Err(Error::Syntax { reason: "a byte order mark", offset: 0 });
        }
        // Many times as fast as the standard library's check where not all is ASCII.
        let text = simdutf8::compat::from_utf8(document).map_err(|error| Error::Syntax {
            reason: "the text is not UTF-8",
            offset: error.valid_up_to(),
        })?;
        Scanner::<true>::new(text).document()
    }

    /// Checks a text that may be any value: names may stand twice, and half a surrogate pair is
    /// let pass.
    ///
    /// # Errors
    ///
    /// [`Error::Syntax`].
    pub fn lenient(text: &'a str) -> Result<Self, Error> {
        Scanner::<false>::new(text).document()
    }

    /// The whole of it.
    pub fn root(&'a self) -> Value<'a> {
        let Range { start, end } = self.root_range();
        Value { document: self, start, end }
    }

    /// Where its value stands, without the space around it.
    pub fn root_range(&self) -> Range<usize> {
        let start = gap(self.text.as_bytes(), 0);
        start..self.pass(start)
    }

    /// The text between two places.
    pub fn text(&self, place: Range<usize>) -> &'a str {
        &self.text[place]
    }

    /// The member of an object that comes at or after `at`, which is inside the object and not
    /// inside a member: its name, and where its value stands.
    pub fn member(&self, at: usize) -> Option<(Cow<'a, str>, Range<usize>)> {
        let bytes = self.text.as_bytes();
        let key = gap(bytes, at);
        if bytes[key] == b'}' {
            return None;
        }
        let (key_end, escaped) = self.pass_string(key);
        let quoted = &self.text[key + 1..key_end - 1];
        let name = if escaped { unescape(quoted) } else { Cow::Borrowed(quoted) };
        let value = gap(bytes, key_end);
        Some((name, value..self.pass(value)))
    }

    /// Where the item of an array stands that comes at or after `at`, as for [`Self::member`].
    pub fn item(&self, at: usize) -> Option<Range<usize>> {
        let bytes = self.text.as_bytes();
        let start = gap(bytes, at);
        (bytes[start] != b']').then(|| start..self.pass(start))
    }

    /// Where a value ends.
    fn pass(&self, start: usize) -> usize {
        let bytes = self.text.as_bytes();
        match bytes[start] {
            b'"' => self.pass_string(start).0,
            b'{' | b'[' => self.noted(start).unwrap_or_else(|| pass_nested(bytes, start)),
            _ => pass_scalar(bytes, start),
        }
    }

    /// Where a string ends whose quote is at `start`, and whether there may be escapes in it.
    fn pass_string(&self, start: usize) -> (usize, bool) {
        let bytes = self.text.as_bytes();
        let near = &bytes[..bytes.len().min(start + LONG_BYTES)];
        let at = plain_end(near, start + 1);
        if near.get(at) == Some(&b'"') {
            return (at + 1, false);
        }
        (self.noted(start).unwrap_or_else(|| string_end(bytes, at)), true)
    }

    /// Where the check has seen end what begins at `start`.
    fn noted(&self, start: usize) -> Option<usize> {
        let found = self.spans.binary_search_by(|span| span.start.cmp(&start));
        found.ok().map(|found| self.spans[found].end)
    }
}

impl<'a> Value<'a> {
    /// The value as it is written, without the space around it.
    pub fn raw(self) -> &'a str {
        &self.document.text[self.start..self.end]
    }

    /// The byte with which it begins: what it is.
    fn first(self) -> u8 {
        self.document.text.as_bytes()[self.start]
    }

    /// Whether it is `null`.
    pub fn is_null(self) -> bool {
        self.first() == b'n'
    }

    /// The boolean, if it is one.
    pub fn boolean(self) -> Option<bool> {
        match self.first() {
            b't' => Some(true),
            b'f' => Some(false),
            _ => None,
        }
    }

    /// The number, if it is written as a whole one without sign, fraction or exponent:
    /// of `1e2` and `100.0` parsers think differently.
    pub fn unsigned(self) -> Option<u64> {
        self.raw().parse().ok()
    }

    /// The string, if it is one; borrowed if it is written without escapes.
    pub fn string(self) -> Option<Cow<'a, str>> {
        self.quoted().map(unescape)
    }

    /// The characters of the string, decoded as they are asked for; none if it is no string.
    pub fn chars(self) -> impl Iterator<Item = char> + 'a {
        Chars { text: self.quoted().unwrap_or_default(), at: 0 }
    }

    /// The fields, if it is an object.
    pub fn members(self) -> Option<Members<'a>> {
        let Self { document, start, .. } = self;
        (self.first() == b'{').then_some(Members { document, at: start + 1 })
    }

    /// The items, if it is an array.
    pub fn items(self) -> Option<Items<'a>> {
        let Self { document, start, .. } = self;
        (self.first() == b'[').then_some(Items { document, at: start + 1 })
    }

    /// The field of this name, if it is an object that has it.
    pub fn get(self, name: &str) -> Option<Value<'a>> {
        self.members()?.find(|member| member.key == name).map(|member| member.value)
    }

    /// What stands between the quotes.
    fn quoted(self) -> Option<&'a str> {
        self.raw().strip_prefix('"')?.strip_suffix('"')
    }
}

/// The fields of an object, in order.
#[derive(Clone, Debug)]
pub struct Members<'a> {
    document: &'a Document<'a>,
    at: usize,
}

impl<'a> Iterator for Members<'a> {
    type Item = Member<'a>;

    fn next(&mut self) -> Option<Member<'a>> {
        let (key, Range { start, end }) = self.document.member(self.at)?;
        self.at = end;
        Some(Member { key, value: Value { document: self.document, start, end } })
    }
}

/// The items of an array, in order.
#[derive(Clone, Debug)]
pub struct Items<'a> {
    document: &'a Document<'a>,
    at: usize,
}

impl<'a> Iterator for Items<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let Range { start, end } = self.document.item(self.at)?;
        self.at = end;
        Some(Value { document: self.document, start, end })
    }
}

/// Where the next name, value or closing bracket of a checked document begins.
fn gap(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes[at], b' ' | b'\n' | b'\r' | b'\t' | b',' | b':') {
        at += 1;
    }
    at
}

/// Where an object or an array of a checked document ends.
fn pass_nested(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    loop {
        match bytes[at] {
            b'"' => at = string_end(bytes, at + 1),
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth -= 1;
                at += 1;
                if depth == 0 {
                    return at;
                }
            }
            _ => at = pass_plain(bytes, at + 1),
        }
    }
}

/// The next byte from `at` on that begins a string, or begins or ends an object or an array.
#[inline]
fn pass_plain(bytes: &[u8], at: usize) -> usize {
    const IS_MARK: [bool; 256] = {
        let mut marks = [false; 256];
        let mut n = 0;
        while n < 5 {
            marks[b"\"{}[]"[n] as usize] = true;
            n += 1;
        }
        marks
    };
    let plain = bytes[at..].iter().position(|byte| IS_MARK[usize::from(*byte)]);
    plain.map_or(bytes.len(), |length| at + length)
}

/// Where a string of a checked document ends; `at` is in it, and not inside an escape.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    // It has no control characters, so only quotes and backslashes are looked for. Most strings
    // are shorter than what a search for them is worth.
    const SHORT: usize = 16;
    let short = bytes.len().min(at + SHORT);
    while at < short {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    while let Some(found) = memchr::memchr2(b'"', b'\\', &bytes[at..]) {
        at += found;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// Which of eight bytes is the first quote, backslash or control character; 8: none.
#[inline]
fn first_mark(word: u64) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    // The high bit of each byte that is below `than` and below 0x80; above the first such byte
    // it may be wrong (Mycroft's test).
    let below = |word: u64, than: u64| word.wrapping_sub(ONES * than) & !word & HIGH;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let found = below(word, 0x20) | equal(b'"') | equal(b'\\');
    found.trailing_zeros() as usize / 8
}

/// The first byte from `at` on that is a quote, a backslash or a control character: where the
/// plain text of a string ends.
#[inline]
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let found = first_mark(u64::from_le_bytes(*word));
        if found < 8 {
            return at + found;
        }
        at += 8;
    }
    let ends = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(ends).unwrap_or(rest.len())
}

/// Where a number or a literal of a checked document ends.
fn pass_scalar(bytes: &[u8], start: usize) -> usize {
    let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t');
    bytes[start..].iter().position(ends).map_or(bytes.len(), |length| start + length)
}

/// The characters of what stands between the quotes of a checked string.
struct Chars<'a> {
    text: &'a str,
    at: usize,
}

impl Iterator for Chars<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let next = self.text[self.at..].chars().next()?;
        if next == '\\' {
            // Half a surrogate pair passes other checks than that of `object`.
            let half = (char::REPLACEMENT_CHARACTER, (self.at + 6).min(self.text.len()));
            let (decoded, end) = escape(self.text.as_bytes(), self.at).unwrap_or(half);
            self.at = end;
            return Some(decoded);
        }
        self.at += next.len_utf8();
        Some(next)
    }
}

/// The text of what stands between the quotes of a checked string.
fn unescape(quoted: &str) -> Cow<'_, str> {
    if quoted.contains('\\') {
        Cow::Owned(Chars { text: quoted, at: 0 }.collect())
    } else {
        Cow::Borrowed(quoted)
    }
}

/// The character that the backslash at `at` begins, and where its escape ends.
fn escape(bytes: &[u8], at: usize) -> Result<(char, usize), Error> {
    let plain = match bytes.get(at + 1) {
        Some(b'u') => return unicode_escape(bytes, at),
        Some(&(b'"' | b'\\' | b'/')) => bytes[at + 1],
        Some(b'b') => b'\x08',
        Some(b'f') => b'\x0c',
        Some(b'n') => b'\n',
        Some(b'r') => b'\r',
        Some(b't') => b'\t',
        _ => return Err(Error::Syntax { reason: "an escape that JSON does not have", offset: at }),
    };
    Ok((char::from(plain), at + 2))
}

/// The character of a `\uXXXX`, or of two of them that are a surrogate pair.
fn unicode_escape(bytes: &[u8], at: usize) -> Result<(char, usize), Error> {
    let high = hexadecimal(bytes, at + 2)
        .ok_or(Error::Syntax { reason: "an escape without four hexadecimal digits", offset: at })?;
    if let Some(character) = char::from_u32(high) {
        return Ok((character, at + 6));
    }
    let low = match bytes.get(at + 6..at + 8) {
        Some(b"\\u") if high < 0xdc00 => hexadecimal(bytes, at + 8),
        _ => None,
    };
    match low {
        Some(low @ 0xdc00..=0xdfff) => {
            let pair = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            let character = char::from_u32(pair).expect("a surrogate pair is a character");
            Ok((character, at + 12))
        }
        _ => Err(Error::Syntax { reason: "half of a surrogate pair", offset: at }),
    }
}

/// The number that the four hexadecimal digits at `at` write.
fn hexadecimal(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.iter().try_fold(0, |number, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(number * 16 + digit)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strict(text: &str) -> Document<'_> {
        Document::strict(text.as_bytes()).unwrap()
    }

    /// What `read` makes of the only field of `{"v":…}`.
    fn read<T>(value: &str, read: impl Fn(Value<'_>) -> T) -> T {
        read(strict(&format!(r#"{{"v":{value}}}"#)).root().get("v").unwrap())
    }

    #[test]
    fn fields_come_in_order_and_raw() {
        let document = strict(r#" { "b" : [1, 2] ,"a":"x\ny","c\u0064":{ } } "#);
        let members: Vec<_> = document.root().members().unwrap().collect();
        let pairs: Vec<_> = members.iter().map(|m| (&*m.key, m.value.raw())).collect();
        assert_eq!(pairs, [("b", "[1, 2]"), ("a", r#""x\ny""#), ("cd", "{ }")]);
        assert_eq!(strict("{}").root().members().unwrap().count(), 0);
    }

    #[test]
    fn values_are_read_only_as_what_they_are() {
        let string = |value: &str| read(value, |value| value.string().map(Cow::into_owned));
        assert_eq!(
            string(r#""\ud83d\ude00\u0041\/\b\f\n\r\t\"\\é""#).unwrap(),
            "😀A/\u{8}\u{c}\n\r\t\"\\é"
        );
        let borrowed = |value: Value<'_>| matches!(value.string(), Some(Cow::Borrowed("plain")));
        assert!(read("\"plain\"", borrowed));
        assert_eq!(string("1"), None);
        assert_eq!(read("\"true\"", |value| value.boolean()), None);
        assert_eq!(read("false", |value| value.boolean()), Some(false));
        assert_eq!(read("true", |value| value.boolean()), Some(true));
        assert_eq!(read("18446744073709551615", |value| value.unsigned()), Some(u64::MAX));
        for other in ["18446744073709551616", "-1", "-0", "1.0", "1e2", "\"1\"", "null", "true"] {
            assert_eq!(read(other, |value| value.unsigned()), None, "{other}");
        }
        assert!(read("null", |value| value.is_null()));
    }

    #[test]
    fn nested_values_are_found_among_text_that_looks_like_structure() {
        let document =
            strict(r#"{"v":{"a":"}]\"{[" , "b":[{"c":[1 , -2.5e3,"]"]},null],"t":true}}"#);
        let value = document.root().get("v").unwrap();
        assert_eq!(value.get("t").unwrap().boolean(), Some(true));
        let items: Vec<_> = value.get("b").unwrap().items().unwrap().map(Value::raw).collect();
        assert_eq!(items, [r#"{"c":[1 , -2.5e3,"]"]}"#, "null"]);
        assert!(value.get("b").unwrap().members().is_none());
        assert_eq!(value.get("absent"), None);
    }

    #[test]
    fn beyond_what_the_check_notes_values_are_found_all_the_same() {
        let long = format!("\"{}\\\"\"", "a\\\\".repeat(100));
        let list = format!("[{}{long}]", "[{}],".repeat(scanner::MAX_SPANS));
        let text = format!(r#"{{"v":{list},"w":{{"x":{long}}}}}"#);
        let document = strict(&text);
        let value = document.root().get("v").unwrap();
        assert_eq!(value.items().unwrap().count(), scanner::MAX_SPANS + 1);
        assert_eq!(value.items().unwrap().last().unwrap().raw(), long);
        assert_eq!(document.root().get("w").unwrap().get("x").unwrap().raw(), long);
    }

    proptest! {
        #[test]
        fn plain_text_ends_where_a_byte_by_byte_reader_sees_it_end(
            mut bytes in prop::collection::vec(prop::sample::select(vec![b'a', b' ', 0x7f, 0x80, 0xc3, 0xff, b'!', b'#', b'[']), 0..300),
            ends in prop::collection::vec((0_usize..300, prop::sample::select(vec![b'"', b'\\', 0, 0x1f, b'\n'])), 0..3),
            from in 0_usize..300,
        ) {
            for (at, end) in ends {
                if at < bytes.len() {
                    bytes[at] = end;
                }
            }
            let from = from.min(bytes.len());
            let naive = bytes[from..].iter().position(|b| *b < 0x20 || matches!(b, b'"' | b'\\'));
            prop_assert_eq!(plain_end(&bytes, from), naive.map_or(bytes.len(), |at| from + at));
        }
    }

    /// Any JSON value, as a tree.
    fn tree() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".*".prop_map(Into::into),
        ];
        leaf.prop_recursive(6, 64, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..20).prop_map(Into::into),
                prop::collection::vec((".*", inner), 0..20)
                    .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    /// The tree that the views of this module show.
    fn rebuilt(value: Value<'_>) -> serde_json::Value {
        if let Some(items) = value.items() {
            items.map(rebuilt).collect::<Vec<_>>().into()
        } else if let Some(members) = value.members() {
            members.map(|member| (member.key.into_owned(), rebuilt(member.value))).collect()
        } else if let Some(string) = value.string() {
            assert!(value.chars().eq(string.chars()));
            string.into_owned().into()
        } else {
            serde_json::from_str(value.raw()).unwrap()
        }
    }

    proptest! {
        /// What is written is read back, compact or spread out.
        #[test]
        fn every_document_reads_as_what_was_written(tree in tree(), spread in any::<bool>()) {
            let document = serde_json::json!({ "v": tree });
            let text = if spread {
                serde_json::to_string_pretty(&document).unwrap()
            } else {
                document.to_string()
            };
            let document = Document::strict(text.as_bytes()).unwrap();
            prop_assert_eq!(rebuilt(document.root().get("v").unwrap()), tree);
            prop_assert_eq!(Document::lenient(&text).unwrap(), document);
        }

        /// No bytes make it panic.
        #[test]
        fn arbitrary_bytes_are_an_answer_and_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(document) = Document::strict(&bytes) {
                rebuilt(document.root());
            }
            if let Ok(document) = std::str::from_utf8(&bytes).map_err(drop).and_then(|text| {
                Document::lenient(text).map_err(drop)
            }) {
                rebuilt(document.root());
            }
        }
    }
}
