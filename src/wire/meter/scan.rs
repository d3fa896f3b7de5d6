//! One pass over the names in an event, without parsing it: is it worth reading, and what
//! text does it bring?
//!
//! Quotes inside JSON strings are escaped, so model text cannot pass for a name. A name that
//! stands deeper than expected costs a parse and no more: the parse reads fixed paths.

use std::ops::Range;

use memchr::{memchr, memchr2};

use super::Reading;
use crate::wire::Endpoint;

/// Output text that is kept for an estimate, in bytes.
pub const MAX_TEXT_BYTES: usize = 64 << 10;

/// The longest beginning of events that is remembered, in bytes.
const MAX_PREFIX_BYTES: usize = 1 << 10;

/// Output as it came, still escaped as in JSON.
#[derive(Debug, Default)]
pub struct Text {
    kept: Vec<u8>,
    /// Bytes beyond those kept.
    beyond: u64,
    /// How events begin, up to their output: a stream repeats it in every event, and what
    /// has been looked over once need not be again.
    prefix: Vec<u8>,
}

impl Text {
    fn add(&mut self, escaped: &[u8]) {
        let (kept, beyond) = escaped.split_at(escaped.len().min(MAX_TEXT_BYTES - self.kept.len()));
        self.kept.extend_from_slice(kept);
        self.beyond = self.beyond.saturating_add(beyond.len() as u64);
    }

    fn remember(&mut self, prefix: &[u8]) {
        self.prefix.clear();
        if prefix.len() <= MAX_PREFIX_BYTES {
            self.prefix.extend_from_slice(prefix);
        }
    }

    /// There was none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.beyond == 0
    }

    /// The text kept, and how many bytes there were in all. It stays escaped where the limit
    /// cut an escape in two, which makes an estimate a little higher.
    pub fn unescaped(&self) -> (String, u64) {
        let escaped = String::from_utf8_lossy(&self.kept).into_owned();
        let text = serde_json::from_str(&format!("\"{escaped}\"")).unwrap_or(escaped);
        let bytes = (text.len() as u64).saturating_add(self.beyond);
        (text, bytes)
    }
}

/// The names in a JSON text: where each lies, without quotes, and where its value begins.
struct Names<'a> {
    text: &'a [u8],
    at: usize,
}

impl Iterator for Names<'_> {
    type Item = (Range<usize>, usize);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let name = string(self.text, self.at)?;
            self.at = name.end + 1;
            let colon = skip_space(self.text, self.at);
            if self.text.get(colon) == Some(&b':') {
                self.at = skip_space(self.text, colon + 1);
                return Some((name, self.at));
            }
        }
    }
}

/// Where the next string lies, without its quotes.
fn string(text: &[u8], from: usize) -> Option<Range<usize>> {
    let start = from + memchr(b'"', text.get(from..)?)? + 1;
    let mut at = start;
    loop {
        let offset = memchr2(b'"', b'\\', text.get(at..)?)?;
        at += offset;
        if text[at] == b'"' {
            return Some(start..at);
        }
        at += 2;
    }
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// How values begin.
type Marks = &'static [&'static [u8]];

const ERROR: Marks = &[b"\"error\""];
const ERROR_OR_STOP: Marks = &[b"\"error\"", b"\"message_stop\""];

/// What a name says about its event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Unless its value is `null`, the event is worth reading.
    Report,
    /// The event is worth reading if the value is not the model that is known.
    Model,
    /// The event is worth reading if the value is not the tier that is known.
    Tier,
    /// The event is worth reading if there is a value.
    Finish,
    /// The event is worth reading if the value is one of these.
    Mark(Marks),
    /// A string value is output.
    Text,
    /// A string value is output, unless the event has given the same under another name.
    Reasoning,
    /// What follows repeats reasoning.
    Repeats,
    /// Output that is not text.
    Media,
    /// Nothing.
    Other,
}

fn role(endpoint: Endpoint, name: &[u8]) -> Role {
    use Endpoint::{
        Chat, Completions, CountTokens, Embeddings, Generate, Messages, Responses, StreamGenerate,
    };
    match (endpoint, name) {
        (_, b"error") => Role::Report,
        (Chat | Completions | Embeddings, _) => match name {
            b"usage" | b"timings" => Role::Report,
            b"model" => Role::Model,
            b"service_tier" => Role::Tier,
            b"finish_reason" => Role::Finish,
            b"object" | b"type" => Role::Mark(ERROR),
            b"text" => Role::Text,
            b"content" | b"refusal" | b"arguments" | b"name" | b"input" if endpoint == Chat => {
                Role::Text
            }
            b"reasoning_content" | b"reasoning" | b"thinking" if endpoint == Chat => {
                Role::Reasoning
            }
            b"reasoning_details" => Role::Repeats,
            b"audio" | b"images" => Role::Media,
            _ => Role::Other,
        },
        (Responses, b"response") => Role::Report,
        (Responses, b"delta") => Role::Text,
        (Responses, b"type") => Role::Mark(ERROR),
        (Responses, b"partial_image_b64") => Role::Media,
        (Messages | CountTokens, b"usage") => Role::Report,
        (Messages | CountTokens, b"type") => Role::Mark(ERROR_OR_STOP),
        (Messages | CountTokens, b"text" | b"thinking" | b"partial_json" | b"name") => Role::Text,
        (Generate | StreamGenerate, _) => match name {
            b"usageMetadata" | b"groundingMetadata" | b"finishReason" | b"promptFeedback" => {
                Role::Report
            }
            b"text" | b"name" | b"code" => Role::Text,
            b"inlineData" => Role::Media,
            _ => Role::Other,
        },
        _ => Role::Other,
    }
}

/// Looks over an event and collects its output. True: it is worth reading.
pub fn scan(endpoint: Endpoint, data: &[u8], reading: &mut Reading, text: &mut Text) -> bool {
    let mut worth = false;
    let mut reasoned = false;
    let mut repeats = false;
    let mut in_prefix = true;
    let known = if data.starts_with(&text.prefix) { text.prefix.len() } else { 0 };
    for (range, at) in (Names { text: data, at: known }) {
        let name = &data[range.clone()];
        let value = &data[at..];
        match role(endpoint, name) {
            Role::Other => {}
            Role::Report => worth |= !value.starts_with(b"null"),
            Role::Model => worth |= differs(value, reading.model.as_deref()),
            Role::Tier => worth |= differs(value, reading.service_tier.as_deref()),
            Role::Finish => worth |= differs(value, None),
            Role::Mark(marks) => worth |= marks.iter().any(|mark| value.starts_with(mark)),
            Role::Media => reading.output_seen |= !value.starts_with(b"null"),
            Role::Repeats => repeats = reasoned,
            Role::Text if repeats && name == b"text" => {}
            Role::Reasoning if reasoned => {}
            role @ (Role::Text | Role::Reasoning) => {
                let Some(output) = string_value(data, at) else { continue };
                reasoned |= role == Role::Reasoning && !output.is_empty();
                text.add(output);
                if std::mem::take(&mut in_prefix) && known == 0 {
                    text.remember(&data[..range.start - 1]);
                }
            }
        }
    }
    reading.output_seen |= !text.is_empty();
    if worth {
        text.prefix.clear(); // what is read may change what is worth reading
    }
    worth
}

/// The output of a whole reply, given the part of it that holds output.
pub fn collect(endpoint: Endpoint, output: &[u8], text: &mut Text) {
    for (name, at) in (Names { text: output, at: 0 }) {
        let name = &output[name];
        let is_output = match endpoint {
            Endpoint::Responses => {
                matches!(name, b"text" | b"refusal" | b"arguments" | b"name" | b"input" | b"code")
            }
            _ => matches!(role(endpoint, name), Role::Text | Role::Reasoning),
        };
        if let Some(value) = string_value(output, at).filter(|_| is_output) {
            text.add(value);
        }
    }
}

fn string_value(text: &[u8], at: usize) -> Option<&[u8]> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    string(text, at).map(|range| &text[range])
}

/// Whether a value is a string that names something, and not what is known.
fn differs(value: &[u8], known: Option<&str>) -> bool {
    if value.starts_with(b"null") || value.starts_with(b"\"\"") {
        return false;
    }
    let same = known.is_some_and(|known| {
        value
            .strip_prefix(b"\"")
            .and_then(|value| value.strip_prefix(known.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&b'"'))
    });
    !same
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(endpoint: Endpoint, data: &str) -> (bool, String) {
        let mut reading = Reading { model: Some("m".into()), ..Reading::default() };
        let mut text = Text::default();
        let worth = scan(endpoint, data.as_bytes(), &mut reading, &mut text);
        (worth, text.unescaped().0)
    }

    #[test]
    fn model_text_that_looks_like_a_report_is_text() {
        let data = r#"{"model":"m","choices":[{"delta":{"content":"{\"usage\":{\"a\":1}}\\"},
            "finish_reason":null}],"usage":null}"#;
        assert_eq!(scanned(Endpoint::Chat, data), (false, r#"{"usage":{"a":1}}\"#.into()));
    }

    #[test]
    fn a_report_is_found_however_it_is_spaced() {
        assert!(scanned(Endpoint::Chat, "{\"usage\" :\n {\"prompt_tokens\":1}}").0);
        assert!(scanned(Endpoint::Chat, r#"{"model":"other"}"#).0);
        assert!(!scanned(Endpoint::Chat, r#"{"model":""}"#).0);
    }

    #[test]
    fn reasoning_under_two_names_is_counted_once() {
        let data = r#"{"choices":[{"delta":{"reasoning":"why","reasoning_details":
            [{"type":"reasoning.text","text":"why"}]}}]}"#;
        assert_eq!(scanned(Endpoint::Chat, data).1, "why");
    }

    #[test]
    fn tool_calls_and_every_choice_are_output() {
        let data = r#"{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":
            {"tool_calls":[{"function":{"name":"f","arguments":"{\"x\":1}"}}]}}]}"#;
        assert_eq!(scanned(Endpoint::Chat, data).1, r#"af{"x":1}"#);
    }

    #[test]
    fn text_is_bounded_and_its_length_is_not() {
        let mut text = Text::default();
        text.add("\\n".repeat(MAX_TEXT_BYTES).as_bytes());
        text.add(b"more");
        let (kept, bytes) = text.unescaped();
        assert!(kept.len() <= MAX_TEXT_BYTES && kept.chars().all(|c| c == '\n'));
        assert!(bytes > MAX_TEXT_BYTES as u64);
    }
}
