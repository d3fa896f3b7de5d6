//! Reads single values of the file, and keeps what is wrong with them.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::billing::price::Rate;
use crate::billing::price::check::meant;
use crate::billing::price::entry::Markup;
use crate::billing::price::problem::Problem;
use crate::billing::price::table::rate;

pub(super) type Key<'a> = Spanned<DeString<'a>>;
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// No model is believed to cost more for a million tokens.
const MAX_RATE: Rate = Rate(10_000_000_000);
/// Below this, input or output that is not free was meant per token: the cheapest on the
/// providers' lists cost 0.01 and more.
const MIN_RATE: Rate = Rate(1_000);

/// Reads values, and keeps what is wrong with them.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<Problem>,
}

impl Reader {
    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>, label: &str) {
        self.problems.push(Problem::error(span, message).label(label));
    }

    /// A value of another type than its key has.
    pub(super) fn wrong_type(&mut self, key: &str, value: &Value<'_>, wanted: &str) {
        let message = format!("`{key}` is {}, not {wanted}", type_name(value.get_ref()));
        self.error(value.span(), message, "");
    }

    /// An unknown key; returns the one that was probably meant.
    pub(super) fn unknown<'k>(
        &mut self,
        name: &str,
        key: &Key<'_>,
        known: impl IntoIterator<Item = &'k str>,
    ) -> Option<&'k str> {
        let meant = meant(name, known);
        let label = meant.map(|meant| format!("did you mean `{meant}`?")).unwrap_or_default();
        self.error(key.span(), format!("unknown key `{name}`"), &label);
        meant
    }

    /// The pairs of a table in the order of the file; none if it is not a table.
    pub(super) fn table<'t, 'a>(
        &mut self,
        key: &str,
        value: &'t Value<'a>,
    ) -> Vec<(&'t Key<'a>, &'t Value<'a>)> {
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table");
            return vec![];
        };
        in_order(table)
    }

    pub(super) fn text(&mut self, key: &str, value: &Value<'_>) -> Option<String> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value, "a text");
        }
        text.map(str::to_owned)
    }

    pub(super) fn boolean(&mut self, key: &str, value: &Value<'_>) -> bool {
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(key, value, "true or false");
            false
        })
    }

    pub(super) fn tokens(&mut self, key: &str, value: &Value<'_>) -> Option<u64> {
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, "a whole number of tokens");
            return None;
        };
        let tokens = u64::from_str_radix(integer.as_str(), integer.radix());
        let tokens = tokens.ok().filter(|tokens| *tokens > 0);
        if tokens.is_none() {
            self.error(value.span(), format!("`{key}` is not a number of tokens above 0"), "");
        }
        tokens
    }

    pub(super) fn date(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.text("date", value)?;
        if text.parse::<jiff::civil::Date>().is_err() || text.len() != "2026-11-21".len() {
            self.error(value.span(), "`date` is not a date", "write it as in \"2026-11-21\"");
            return None;
        }
        Some(text)
    }

    /// An id of a model or an upstream.
    pub(super) fn id(&mut self, id: &str, span: Range<usize>) {
        if id.is_empty() || id.chars().any(|c| c.is_whitespace() || c.is_control()) {
            self.error(
                span,
                format!("{id:?} is empty or has a space in it, and cannot be a name"),
                "",
            );
        }
    }

    /// A list of ids, with their places.
    pub(super) fn ids(&mut self, key: &str, value: &Value<'_>) -> (Vec<String>, Vec<Range<usize>>) {
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list of texts");
            return (vec![], vec![]);
        };
        let mut ids = (vec![], vec![]);
        for value in array {
            if let Some(id) = self.text(key, value) {
                self.id(&id, value.span());
                ids.0.push(id);
                ids.1.push(value.span());
            }
        }
        ids
    }

    /// An id or a list of them, at least one.
    pub(super) fn one_or_more(&mut self, key: &str, value: &Value<'_>) -> Vec<String> {
        if let Some(id) = value.get_ref().as_str() {
            self.id(id, value.span());
            return vec![id.to_owned()];
        }
        if value.get_ref().as_array().is_none() {
            self.wrong_type(key, value, "a text or a list of texts");
            return vec![];
        }
        let (ids, _) = self.ids(key, value);
        if ids.is_empty() {
            self.error(value.span(), format!("`{key}` is empty"), "");
        }
        ids
    }

    /// The text of a decimal number.
    pub(super) fn decimal<'v>(&mut self, key: &str, value: &'v Value<'_>) -> Option<&'v str> {
        let number = match value.get_ref() {
            DeValue::String(text) => return Some(text),
            DeValue::Float(float) => float.as_str(),
            DeValue::Integer(integer) => integer.as_str(),
            _ => {
                self.wrong_type(key, value, "a decimal number in quotes");
                return None;
            }
        };
        let message = format!("`{key}` is a bare number, and amounts are exact texts");
        self.error(value.span(), message, &format!("put it in quotes: \"{number}\""));
        None
    }

    /// A rate in credits per million tokens, within what is believed.
    pub(super) fn rate(&mut self, key: &str, value: &Value<'_>) -> Option<Rate> {
        let text = self.decimal(key, value)?;
        let Some(rate) = rate(text) else {
            let (message, label) = match text.split_once('.') {
                _ if text.starts_with('-') => (format!("`{key}` is negative"), ""),
                Some((whole, part)) if part.len() > 6 && digits(whole) && digits(part) => (
                    format!("`{key}` has more than six decimals"),
                    "rates are exact to six decimals per 1,000,000 tokens",
                ),
                _ => (format!("`{key}` is not a decimal number"), "write it as in \"3.3\""),
            };
            self.error(value.span(), message, label);
            return None;
        };
        let is_whole_class = key == "input" || key == "output";
        if rate > MAX_RATE {
            let message = format!("`{key}` is more than {MAX_RATE} credits, which is not believed");
            self.error(value.span(), message, "rates are per 1,000,000 tokens");
        } else if is_whole_class && Rate(0) < rate && rate < MIN_RATE {
            let message = format!("`{key}` looks like a price per token");
            self.error(value.span(), message, "rates are per 1,000,000 tokens");
        }
        Some(rate)
    }

    pub(super) fn markup(&mut self, value: &Value<'_>) -> Option<Markup> {
        let text = self.decimal("markup", value)?;
        let markup = Markup::read(text);
        if markup.is_none() {
            let message = "`markup` is not a factor above 0 and up to 1000";
            self.error(value.span(), message, "10 % more is \"1.10\"");
        }
        markup
    }
}

/// The pairs of a table in the order of the file.
pub(super) fn in_order<'t, 'a>(table: &'t DeTable<'a>) -> Vec<(&'t Key<'a>, &'t Value<'a>)> {
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    pairs
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a bare date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
