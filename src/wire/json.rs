//! Strict JSON: one check of a whole document, then cheap views into it.
//!
//! [`object`] checks every byte once: UTF-8, grammar, escapes, depth, size, and that no
//! object gives a name twice, however the name is escaped. Parsers differ in which of two
//! equal names they take, and that difference would let a request be priced as one thing
//! and run as another. [`Value`]s of a checked document are slices of it: nothing is
//! copied or allocated for values that nobody reads.

use std::borrow::Cow;

use memchr::memchr2;

/// Objects and arrays inside each other, the outermost one included.
pub const MAX_DEPTH: usize = 64;

/// Names and values in one document.
pub const MAX_TOKENS: usize = 1_000_000;

/// Up to here, names of one object are compared in pairs, which needs no memory.
const FEW_NAMES: usize = 16;

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

/// One value of a checked document, as it is written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    raw: &'a str,
}

/// One field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name, unescaped; borrowed if it is written without escapes.
    pub key: Cow<'a, str>,
    /// The value.
    pub value: Value<'a>,
}

/// Checks a document that must be an object, and returns its fields in order.
///
/// # Errors
///
/// [`Error`], with the offset of the first thing wrong; a duplicate name is noticed at the
/// end of its object.
pub fn object(document: &[u8]) -> Result<Vec<Field<'_>>, Error> {
    if document.starts_with(b"\xef\xbb\xbf") {
        return Err(Error::Syntax { reason: "a byte order mark", offset: 0 });
    }
    let text = std::str::from_utf8(document).map_err(|error| Error::Syntax {
        reason: "the text is not UTF-8",
        offset: error.valid_up_to(),
    })?;
    let mut scanner = Scanner { text, bytes: document, at: 0, tokens: 0, names: Vec::new() };
    scanner.document()
}

impl<'a> Value<'a> {
    /// The value as it is written, without the space around it.
    pub fn raw(self) -> &'a str {
        self.raw
    }

    /// Whether it is `null`.
    pub fn is_null(self) -> bool {
        self.raw == "null"
    }

    /// The boolean, if it is one.
    pub fn boolean(self) -> Option<bool> {
        match self.raw {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// The number, if it is written as a whole one without sign, fraction or exponent:
    /// of `1e2` and `100.0` parsers think differently.
    pub fn unsigned(self) -> Option<u64> {
        self.raw.parse().ok()
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
    pub fn fields(self) -> Option<Fields<'a>> {
        self.raw.starts_with('{').then_some(Fields { text: self.raw, at: 1 })
    }

    /// The items, if it is an array.
    pub fn items(self) -> Option<Items<'a>> {
        self.raw.starts_with('[').then_some(Items { text: self.raw, at: 1 })
    }

    /// The field of this name, if it is an object that has it.
    pub fn get(self, name: &str) -> Option<Value<'a>> {
        self.fields()?.find(|field| field.key == name).map(|field| field.value)
    }

    /// What stands between the quotes.
    fn quoted(self) -> Option<&'a str> {
        self.raw.strip_prefix('"')?.strip_suffix('"')
    }
}

/// The fields of an object, in order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let bytes = self.text.as_bytes();
        let key = gap(bytes, self.at);
        if bytes[key] == b'}' {
            self.at = key;
            return None;
        }
        let key_end = pass(bytes, key);
        let value = gap(bytes, key_end);
        self.at = pass(bytes, value);
        Some(Field {
            key: unescape(&self.text[key + 1..key_end - 1]),
            value: Value { raw: &self.text[value..self.at] },
        })
    }
}

/// The items of an array, in order.
#[derive(Clone, Debug)]
pub struct Items<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Items<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let bytes = self.text.as_bytes();
        let start = gap(bytes, self.at);
        if bytes[start] == b']' {
            self.at = start;
            return None;
        }
        self.at = pass(bytes, start);
        Some(Value { raw: &self.text[start..self.at] })
    }
}

/// Where the next name, value or closing bracket of a checked document begins.
fn gap(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes[at], b' ' | b'\n' | b'\r' | b'\t' | b',' | b':') {
        at += 1;
    }
    at
}

/// Where a value of a checked document ends.
fn pass(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    loop {
        match bytes[at] {
            b'"' => at = pass_string(bytes, at),
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            _ if depth > 0 => at += 1,
            _ => return pass_scalar(bytes, at),
        }
        if depth == 0 {
            return at;
        }
    }
}

/// Where a string of a checked document ends, whose quote is at `start`.
fn pass_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(found) = memchr2(b'"', b'\\', &bytes[at..]) {
        at += found;
        if bytes[at] == b'"' {
            break;
        }
        at += 2;
    }
    at + 1
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
            let (decoded, end) = escape(self.text.as_bytes(), self.at).ok()?;
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

/// A name of an object that is being read.
struct Name<'a> {
    text: Cow<'a, str>,
    offset: usize,
}

/// What surrounds the place that is being read.
#[derive(Clone, Copy)]
enum Container {
    Array,
    /// With the place in [`Scanner::names`] where its names begin.
    Object {
        first_name: usize,
    },
}

/// The one pass that checks a document.
struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    tokens: usize,
    /// Names of the objects around `at`, outermost first.
    names: Vec<Name<'a>>,
}

impl<'a> Scanner<'a> {
    fn document(&mut self) -> Result<Vec<Field<'a>>, Error> {
        self.space();
        self.expect(b'{', "an object was expected")?;
        self.space();
        let mut fields = Vec::with_capacity(16);
        let mut names = Vec::with_capacity(16);
        if self.peek() != Some(b'}') {
            loop {
                let name = self.name()?;
                let start = self.at;
                self.value()?;
                let value = Value { raw: &self.text[start..self.at] };
                fields.push(Field { key: name.text.clone(), value });
                names.push(name);
                self.space();
                if self.peek() != Some(b',') {
                    break;
                }
                self.at += 1;
                self.space();
            }
        }
        self.expect(b'}', "a comma or the end of the object was expected")?;
        distinct(&mut names)?;
        self.space();
        match self.peek() {
            None => Ok(fields),
            Some(_) => Err(self.wrong("something follows the document")),
        }
    }

    /// Checks one value with everything in it, and stands behind it. Never recurses.
    fn value(&mut self) -> Result<(), Error> {
        let mut around = [Container::Array; MAX_DEPTH];
        // The object of `document` is around all of them.
        let mut depth = 1;
        loop {
            self.token()?;
            let opened = match self.peek() {
                Some(b'{') => Some(Container::Object { first_name: self.names.len() }),
                Some(b'[') => Some(Container::Array),
                Some(b'"') => self.string().map(|_| None)?,
                Some(b'-' | b'0'..=b'9') => self.number().map(|()| None)?,
                Some(_) => self.literal().map(|()| None)?,
                None => return Err(self.wrong("the document ends too early")),
            };
            if let Some(container) = opened {
                if depth == MAX_DEPTH {
                    return Err(self.wrong("more than 64 levels"));
                }
                around[depth] = container;
                depth += 1;
                self.at += 1;
                self.space();
                match (container, self.peek()) {
                    // An empty one ends below, like any other.
                    (Container::Array, Some(b']')) | (Container::Object { .. }, Some(b'}')) => {}
                    (Container::Array, _) => continue,
                    (Container::Object { .. }, _) => {
                        let name = self.name()?;
                        self.names.push(name);
                        continue;
                    }
                }
            }
            // A value has ended here, and with it all containers that end here.
            loop {
                if depth == 1 {
                    return Ok(());
                }
                self.space();
                match (around[depth - 1], self.peek()) {
                    (Container::Array, Some(b',')) => {
                        self.at += 1;
                        self.space();
                        break;
                    }
                    (Container::Object { .. }, Some(b',')) => {
                        self.at += 1;
                        self.space();
                        let name = self.name()?;
                        self.names.push(name);
                        break;
                    }
                    (Container::Array, Some(b']')) => {}
                    (Container::Object { first_name }, Some(b'}')) => {
                        distinct(&mut self.names[first_name..])?;
                        self.names.truncate(first_name);
                    }
                    _ => return Err(self.wrong("a comma or a closing bracket was expected")),
                }
                self.at += 1;
                depth -= 1;
            }
        }
    }

    /// Checks a name and its colon, and stands before the value.
    fn name(&mut self) -> Result<Name<'a>, Error> {
        self.token()?;
        if self.peek() != Some(b'"') {
            return Err(self.wrong("a name in quotes was expected"));
        }
        let offset = self.at;
        let quoted = self.string()?;
        self.space();
        self.expect(b':', "a colon was expected")?;
        self.space();
        Ok(Name { text: unescape(quoted), offset })
    }

    /// Checks a string whose quote is next, and returns what stands between the quotes.
    fn string(&mut self) -> Result<&'a str, Error> {
        let start = self.at + 1;
        let mut at = start;
        loop {
            match memchr2(b'"', b'\\', &self.bytes[at..]) {
                None => return Err(self.wrong("a string does not end")),
                Some(found) if self.bytes[at + found] == b'"' => {
                    at += found;
                    break;
                }
                Some(found) => at = escape(self.bytes, at + found)?.1,
            }
        }
        let quoted = &self.bytes[start..at];
        // Without an early end, so that the compiler makes vector code of it.
        if quoted.iter().fold(false, |found, byte| found | (*byte < 0x20)) {
            let found = quoted.iter().position(|byte| *byte < 0x20).unwrap_or_default();
            let reason = "a control character in a string";
            return Err(Error::Syntax { reason, offset: start + found });
        }
        self.at = at + 1;
        Ok(&self.text[start..at])
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
        if self.tokens > MAX_TOKENS {
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

    fn expect(&mut self, byte: u8, reason: &'static str) -> Result<(), Error> {
        if self.peek() != Some(byte) {
            return Err(self.wrong(reason));
        }
        self.at += 1;
        Ok(())
    }

    fn wrong(&self, reason: &'static str) -> Error {
        Error::Syntax { reason, offset: self.at }
    }
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
    use super::*;
    use proptest::prelude::*;

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

    /// The value of the field `v` of a document.
    fn value(document: &str) -> Value<'_> {
        object(document.as_bytes()).unwrap()[0].value
    }

    #[test]
    fn fields_come_in_order_and_raw() {
        let fields = object(br#" { "b" : [1, 2] ,"a":"x\ny","c\u0064":{ } } "#).unwrap();
        let pairs: Vec<_> = fields.iter().map(|f| (&*f.key, f.value.raw())).collect();
        assert_eq!(pairs, [("b", "[1, 2]"), ("a", r#""x\ny""#), ("cd", "{ }")]);
        assert_eq!(object(b"{}"), Ok(vec![]));
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
        // The name and the array are two.
        let numbers = |count: usize| format!(r#"{{"a":[{}0]}}"#, "0,".repeat(count - 1));
        assert!(object(numbers(MAX_TOKENS - 2).as_bytes()).is_ok());
        assert_eq!(
            syntax(numbers(MAX_TOKENS - 1).as_bytes()).0,
            "more than 1,000,000 names and values"
        );
    }

    #[test]
    fn values_are_read_only_as_what_they_are() {
        assert_eq!(
            value(r#"{"v":"\ud83d\ude00\u0041\/\b\f\n\r\t\"\\é"}"#).string().unwrap(),
            "😀A/\u{8}\u{c}\n\r\t\"\\é"
        );
        assert!(matches!(value(r#"{"v":"plain"}"#).string(), Some(Cow::Borrowed("plain"))));
        assert_eq!(value(r#"{"v":1}"#).string(), None);
        assert_eq!(value(r#"{"v":"true"}"#).boolean(), None);
        assert_eq!(value(r#"{"v":false}"#).boolean(), Some(false));
        assert_eq!(value(r#"{"v":18446744073709551615}"#).unsigned(), Some(u64::MAX));
        for other in ["18446744073709551616", "-1", "-0", "1.0", "1e2", "\"1\"", "null", "true"] {
            assert_eq!(value(&format!(r#"{{"v":{other}}}"#)).unsigned(), None, "{other}");
        }
        assert!(value(r#"{"v":null}"#).is_null());
    }

    #[test]
    fn nested_values_are_found_among_text_that_looks_like_structure() {
        let document = r#"{"v":{"a":"}]\"{[" , "b":[{"c":[1 , -2.5e3,"]"]},null],"t":true}}"#;
        let value = value(document);
        assert_eq!(value.get("t").unwrap().boolean(), Some(true));
        let items: Vec<_> = value.get("b").unwrap().items().unwrap().map(Value::raw).collect();
        assert_eq!(items, [r#"{"c":[1 , -2.5e3,"]"]}"#, "null"]);
        assert_eq!(value.get("b").unwrap().fields().map(Iterator::count), None);
        assert_eq!(value.get("absent"), None);
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
        } else if let Some(fields) = value.fields() {
            fields.map(|field| (field.key.into_owned(), rebuilt(field.value))).collect()
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
            prop_assert_eq!(rebuilt(value(&text)), tree);
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

        /// No bytes make it panic.
        #[test]
        fn arbitrary_bytes_are_an_answer_and_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(fields) = object(&bytes) {
                for field in fields {
                    rebuilt(field.value);
                }
            }
        }
    }
}
