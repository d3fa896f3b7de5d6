//! JSON objects read one level at a time, with counts that never pass through a float.
//!
//! Only the paths that are asked for are opened, so text inside a reply is never taken for
//! a count. Where a name stands twice the last one holds, as for every `JSON.parse`.

use std::borrow::Cow;
use std::ops::Range;
use std::rc::Rc;

use rust_decimal::Decimal;

use crate::wire::json::Document;

/// More members than any object that is read here has.
const MAX_MEMBERS: usize = 4096;

/// The largest count that every JSON reader reads alike.
const MAX_COUNT: u64 = 1 << 53;

/// A number where a count should stand that cannot be one: negative, a fraction, too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// A JSON object: its names, and where their values stand in the document, which was checked as
/// a whole.
#[derive(Debug, Default)]
pub struct Object<'a> {
    members: Vec<(Cow<'a, str>, Range<usize>)>,
    /// `None` for an object that is nowhere.
    document: Option<Rc<Document<'a>>>,
}

impl<'a> Object<'a> {
    /// Reads one object. `None`: the text is something else.
    pub fn parse(text: &'a str) -> Option<Self> {
        let document = Document::lenient(text).ok()?;
        let place = document.root_range();
        Self::within(&Rc::new(document), place)
    }

    /// Reads a text that is one object, or a list of which those that are objects count.
    pub fn all(text: &'a str) -> Vec<Self> {
        let Ok(document) = Document::lenient(text).map(Rc::new) else { return Vec::new() };
        let root = document.root_range();
        match Self::within(&document, root.clone()) {
            Some(object) => vec![object],
            None => {
                items(&document, root).filter_map(|item| Self::within(&document, item)).collect()
            }
        }
    }

    /// Reads an object that stands at a place of a document; `None`: it is something else.
    fn within(document: &Rc<Document<'a>>, place: Range<usize>) -> Option<Self> {
        if !document.text(place.clone()).starts_with('{') {
            return None;
        }
        // Nearly all that is read has fewer.
        let mut members = Vec::with_capacity(16);
        let mut at = place.start + 1;
        while let Some((name, value)) = document.member(at) {
            at = value.end;
            if members.len() == MAX_MEMBERS {
                return None;
            }
            members.push((name, value));
        }
        Some(Self { members, document: Some(Rc::clone(document)) })
    }

    /// Names and the texts of their values, as they come.
    pub fn members(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.members.iter().filter_map(|(name, place)| {
            let document = self.document.as_ref()?;
            Some((name.as_ref(), document.text(place.clone())))
        })
    }

    /// Where a value stands that is neither missing nor `null`.
    fn find(&self, name: &str) -> Option<(&Rc<Document<'a>>, Range<usize>)> {
        let (_, place) = self.members.iter().rev().find(|(key, _)| key == name)?;
        let document = self.document.as_ref()?;
        (document.text(place.clone()) != "null").then(|| (document, place.clone()))
    }

    /// The text of a value that is neither missing nor `null`.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.find(name).map(|(document, place)| document.text(place))
    }

    /// Whether there is such a value, and it is not `null`.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A value that is an object.
    pub fn object(&self, name: &str) -> Option<Object<'a>> {
        let (document, place) = self.find(name)?;
        Object::within(document, place)
    }

    /// The first of these values that is an object; an empty one if none is.
    pub fn any_object(&self, names: &[&str]) -> Object<'a> {
        names.iter().find_map(|name| self.object(name)).unwrap_or_default()
    }

    /// The objects of a value that is an array.
    pub fn objects(&self, name: &str) -> Vec<Object<'a>> {
        let found = self.find(name).into_iter();
        found
            .flat_map(|(document, place)| {
                items(document, place).filter_map(|item| Object::within(document, item))
            })
            .collect()
    }

    /// The texts of the items of a value that is an array.
    pub fn items(&self, name: &str) -> Option<Vec<&'a str>> {
        let (document, place) = self.find(name)?;
        let is_list = document.text(place.clone()).starts_with('[');
        is_list.then(|| items(document, place).map(|item| document.text(item)).collect())
    }

    /// A value that is a string.
    pub fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        let text = self.get(name)?;
        let plain = text.strip_prefix('"')?.strip_suffix('"')?;
        if plain.contains('\\') {
            return serde_json::from_str::<String>(text).ok().map(Cow::Owned);
        }
        Some(Cow::Borrowed(plain))
    }

    /// A count. Missing and `null` are `None`: not the same as zero.
    pub fn count(&self, name: &str) -> Result<Option<u64>, Invalid> {
        self.get(name).map(count).transpose()
    }

    /// The first of these counts that is there.
    pub fn any_count(&self, names: &[&str]) -> Result<Option<u64>, Invalid> {
        for name in names {
            if let Some(count) = self.count(name)? {
                return Ok(Some(count));
            }
        }
        Ok(None)
    }
}

/// Where the items of an array stand; none if it is no array.
fn items<'d>(
    document: &'d Document<'_>,
    place: Range<usize>,
) -> impl Iterator<Item = Range<usize>> + 'd {
    let is_list = document.text(place.clone()).starts_with('[');
    let mut at = place.start + 1;
    std::iter::from_fn(move || {
        let item = is_list.then(|| document.item(at)).flatten()?;
        at = item.end;
        Some(item)
    })
}

/// A whole number of tokens, written as `12`, `12.0`, `1.2e1` or `"12"`.
fn count(text: &str) -> Result<u64, Invalid> {
    // As they are nearly always written: digits alone, fewer than a number of `MAX_COUNT` has.
    if text.len() < 16 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| Invalid);
    }
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let number = decimal(quoted.unwrap_or(text).trim()).ok_or(Invalid)?.normalize();
    if number.scale() != 0 {
        return Err(Invalid);
    }
    let count = u64::try_from(number).map_err(|_| Invalid)?;
    if count > MAX_COUNT { Err(Invalid) } else { Ok(count) }
}

/// A JSON number as plain decimal text, such as `0.00008` for `8e-05`.
pub fn decimal_text(text: &str) -> Option<String> {
    decimal(text).map(|number| number.normalize().to_string())
}

fn decimal(text: &str) -> Option<Decimal> {
    if text.contains(['e', 'E']) {
        Decimal::from_scientific(text).ok()
    } else {
        Decimal::from_str_exact(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_whole_numbers_however_they_are_written() {
        for (text, expected) in [
            ("12", 12),
            ("12.0", 12),
            ("1.2e1", 12),
            ("\"12\"", 12),
            ("0", 0),
            ("-0", 0),
            ("9007199254740992", 1 << 53),
        ] {
            assert_eq!(count(text), Ok(expected), "{text}");
        }
        for text in [
            "-1",
            "1.5",
            "1e-1",
            "\"\"",
            "\"x\"",
            "NaN",
            "true",
            "{}",
            "9007199254740993",
            "1e300",
            "99999999999999999999999999999999999",
        ] {
            assert_eq!(count(text), Err(Invalid), "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_no_object_however_deep_the_mistake() {
        for text in [
            "",
            "[]",
            "{}x",
            "{\"a\":}",
            "{\"a\":[1,]}",
            "{\"a\":{\"b\":\"\\x\"}}",
            "{\"a\":\"\n\"}",
            "{a:1}",
            "{\"a\":1,}",
            "{\"a\":tru}",
            "{\"a\":[}]}",
            "{\"a\":1",
        ] {
            assert!(Object::parse(text).is_none(), "{text}");
        }
        assert!(Object::parse(" {\"a\":[{}, 1 ,{\"b\":2}]} ").unwrap().objects("a").len() == 2);
    }

    #[test]
    fn half_a_surrogate_pair_in_a_name_makes_it_another_name() {
        let object =
            Object::parse(r#"{"usage\ud800":1,"\udc00usage":2,"a\ud800\u0041":3}"#).unwrap();
        assert_eq!(
            object.members().map(|(name, _)| name).collect::<Vec<_>>(),
            ["usage\u{fffd}", "\u{fffd}usage", "a\u{fffd}A"]
        );
        assert!(!object.has("usage"));
    }

    #[test]
    fn missing_and_null_are_not_zero() {
        let object = Object::parse(r#"{"a":null,"b":0}"#).unwrap();
        assert_eq!(object.count("a"), Ok(None));
        assert_eq!(object.count("b"), Ok(Some(0)));
        assert_eq!(object.count("c"), Ok(None));
    }

    #[test]
    fn the_last_of_two_equal_names_holds() {
        let object = Object::parse(r#"{"a":1,"\u0061":2}"#).unwrap();
        assert_eq!(object.count("a"), Ok(Some(2)));
    }

    #[test]
    fn costs_are_plain_decimals() {
        assert_eq!(decimal_text("8e-05").as_deref(), Some("0.00008"));
        assert_eq!(decimal_text("0.00950").as_deref(), Some("0.0095"));
        assert_eq!(decimal_text("0").as_deref(), Some("0"));
        assert_eq!(decimal_text("{}"), None);
    }
}
