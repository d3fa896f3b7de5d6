//! The fields of an object that we act on, each found by its exact name.
//!
//! Some readers match names whatever their case (Go), take `snake_case` for `camelCase`
//! (Protocol Buffers) or cut a name at a NUL. So a name that such a reader would take for
//! one that we act on is refused, and no upstream can read a field that we did not.

use std::borrow::Cow;

use super::Invalid;
use crate::wire::json::{Items, Members, Value};

/// The longest text of a field that we act on, in bytes.
const TEXT_BYTES: usize = 256;

/// Those fields of one object that we act on.
pub struct Known<'a> {
    /// The object's path, empty for the body.
    path: &'static str,
    found: Vec<(&'static str, Value<'a>)>,
}

impl<'a> Known<'a> {
    /// Looks for `names` among the fields of an object. A name in `camelCase` is also found
    /// in `snake_case`.
    pub fn of<K: AsRef<str>>(
        path: &'static str,
        fields: impl IntoIterator<Item = (K, Value<'a>)>,
        names: &[&'static str],
    ) -> Result<Self, Invalid> {
        let mut known = Self { path, found: Vec::new() };
        for (key, value) in fields {
            let key = key.as_ref();
            let folded = folded(key);
            let Some(name) = names.iter().copied().find(|name| resembles(&folded, name)) else {
                continue;
            };
            if key != name && !key.chars().eq(snake(name)) {
                return Err(known.problem(&bounded(key), format!("must be written \"{name}\"")));
            }
            if known.found.iter().any(|(found, _)| *found == name) {
                return Err(known.problem(name, "is given in two spellings"));
            }
            known.found.push((name, value));
        }
        Ok(known)
    }

    /// The value of a field; none if it is `null`.
    pub fn get(&self, name: &str) -> Option<Value<'a>> {
        let (_, value) = self.found.iter().find(|(found, _)| *found == name)?;
        (!value.is_null()).then_some(*value)
    }

    /// A boolean.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Invalid> {
        self.read(name, "must be true or false", Value::boolean)
    }

    /// A whole number.
    pub fn count(&self, name: &str) -> Result<Option<u64>, Invalid> {
        self.read(name, "must be a whole number, written in digits only", Value::unsigned)
    }

    /// A short string.
    pub fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, Invalid> {
        let short = |value: Value<'a>| value.string().filter(|text| text.len() <= TEXT_BYTES);
        self.read(name, "must be a string of at most 256 bytes", short)
    }

    /// The items of a list; none if it is absent.
    pub fn items(&self, name: &str) -> Result<impl Iterator<Item = Value<'a>> + use<'a>, Invalid> {
        let items = self.read(name, "must be a list", Value::items)?;
        Ok(items.into_iter().flat_map(|items: Items<'a>| items))
    }

    /// An object; an empty one if it is absent. `path` is its whole path.
    pub fn object(
        &self,
        name: &str,
        path: &'static str,
        names: &[&'static str],
    ) -> Result<Known<'a>, Invalid> {
        match self.members(name)? {
            Some(members) => Known::of(path, members.map(|m| (m.key, m.value)), names),
            None => Ok(Known { path, found: Vec::new() }),
        }
    }

    /// The members of an object.
    pub fn members(&self, name: &str) -> Result<Option<Members<'a>>, Invalid> {
        self.read(name, "must be an object", Value::members)
    }

    /// A field is not as it must be.
    pub fn problem(&self, name: &str, problem: impl Into<String>) -> Invalid {
        let dot = if self.path.is_empty() { "" } else { "." };
        let parameter = format!("{}{dot}{name}", self.path);
        Invalid::Parameter { parameter, problem: problem.into() }
    }

    fn read<T>(
        &self,
        name: &str,
        problem: &str,
        reader: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, Invalid> {
        match self.get(name) {
            Some(value) => reader(value).map(Some).ok_or_else(|| self.problem(name, problem)),
            None => Ok(None),
        }
    }
}

/// A name that a client chose, short and plain enough for a message.
pub fn bounded(key: &str) -> String {
    key.chars().filter(|letter| !letter.is_control()).take(64).collect()
}

/// What is left of a name for the least careful reader: of a plain one, all.
fn folded(key: &str) -> Cow<'_, str> {
    if key.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
        return Cow::Borrowed(key);
    }
    let key = key.split('\0').next().unwrap_or_default();
    key.chars().filter(|c| !c.is_whitespace() && !c.is_control()).map(fold).collect()
}

/// Whether some reader may take a name that is `folded` for `name`, which is ASCII.
fn resembles(folded: &str, name: &str) -> bool {
    let first = |text: &str| text.bytes().next().map(|byte| byte.to_ascii_lowercase());
    // Most names differ in their first letter.
    if first(folded) != first(name) {
        return false;
    }
    folded.eq_ignore_ascii_case(name)
        || (folded.len() > name.len() && folded.chars().eq(snake(name)))
}

/// A letter without its case, as Go's `encoding/json` folds names.
fn fold(letter: char) -> char {
    match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    }
}

/// `maxOutputTokens` as `max_output_tokens`.
fn snake(name: &str) -> impl Iterator<Item = char> + '_ {
    name.chars().flat_map(|letter| {
        let underscore = letter.is_ascii_uppercase().then_some('_');
        underscore.into_iter().chain([letter.to_ascii_lowercase()])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::json::Document;

    /// What `read` makes of the fields of a document that we act on.
    fn known<T>(
        document: &str,
        names: &[&'static str],
        read: impl FnOnce(&Known<'_>) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        let document = Document::strict(document.as_bytes()).unwrap();
        let fields = document.root().members().unwrap();
        read(&Known::of("here", fields.map(|field| (field.key, field.value)), names)?)
    }

    #[test]
    fn a_name_that_another_reader_would_take_for_ours_is_refused() {
        for key in [
            "Stream",
            "STREAM",
            " stream",
            "stream\\u0000x",
            "\\u017ftream",
            "stream\\r",
            "\\u0053tream",
        ] {
            let document = format!(r#"{{"{key}":true}}"#);
            match known(&document, &["stream"], |_| Ok(())).err() {
                Some(Invalid::Parameter { problem, .. }) => {
                    assert_eq!(problem, "must be written \"stream\"", "{key}");
                }
                other => panic!("{key} gave {other:?}"),
            }
        }
        for key in ["streams", "strea", "x-stream", "strëam", ""] {
            let document = format!(r#"{{"{key}":true}}"#);
            let found = known(&document, &["stream"], |known| Ok(known.get("stream").is_some()));
            assert_eq!(found, Ok(false), "{key}");
        }
    }

    #[test]
    fn camel_case_is_also_found_in_snake_case_but_not_both_at_once() {
        let names = ["maxOutputTokens"];
        let count = |document| known(document, &names, |it| it.count("maxOutputTokens"));
        assert_eq!(count(r#"{"maxOutputTokens":7}"#), Ok(Some(7)));
        assert_eq!(count(r#"{"max_output_tokens":7}"#), Ok(Some(7)));
        assert!(count(r#"{"max_output_tokens":7,"maxOutputTokens":7}"#).is_err());
        assert!(count(r#"{"Max_Output_Tokens":7}"#).is_err());
    }

    #[test]
    fn null_is_absent_and_another_type_is_an_error_that_names_the_path() {
        let names = ["a", "b", "c"];
        let document = r#"{"a":null,"b":1.0,"c":"x"}"#;
        assert_eq!(known(document, &names, |it| it.flag("a")), Ok(None));
        let text = known(document, &names, |it| it.text("c").map(|text| text.map(Cow::into_owned)));
        assert_eq!(text, Ok(Some("x".into())));
        let error = known(document, &names, |it| it.count("b")).unwrap_err().to_string();
        assert_eq!(
            error,
            "The parameter \"here.b\" must be a whole number, written in digits only."
        );
    }
}
