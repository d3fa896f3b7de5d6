//! Counts tokens where an upstream reported none, in whole numbers.
//!
//! The tokenizer is OpenAI's `o200k_base`; other families have no public one and are scaled
//! from it by factors that others measured. Text is tokenised up to a limit and scaled by
//! its bytes beyond that, so a hostile body costs no more than a large one.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::Endpoint;

/// Text that is tokenised, in bytes.
const MAX_TEXT_BYTES: usize = 256 << 10;

/// What the format adds to each message, and to the reply it asks for (OpenAI cookbook).
const TOKENS_PER_MESSAGE: u64 = 3;
const REPLY_PRIMER: u64 = 3;
/// What a list of tools adds to the text of its definitions.
const TOOLS_PREAMBLE: u64 = 9;
/// Base64 of audio or documents for one token, roughly.
const ATTACHMENT_BYTES_PER_TOKEN: u64 = 64;

/// The tokens of a text for a model.
pub fn tokens(model: &str, text: &str) -> u64 {
    scaled_tokens(model, text, text.len() as u64)
}

/// The tokens of output of which `text` is the beginning and that has `bytes` in all, as
/// [`super::meter::Meter::output_text`] gives them.
pub fn output_tokens(model: &str, text: &str, bytes: u64) -> u64 {
    scaled_tokens(model, text, bytes)
}

/// The tokens of the input that a request body asks an upstream to read.
pub fn input_tokens(endpoint: Endpoint, model: &str, body: &[u8]) -> u64 {
    let mut input = Input::default();
    let mut json = serde_json::Deserializer::from_slice(body);
    let seed = Walk { input: &mut input, place: Place::Root };
    if seed.deserialize(&mut json).is_err() {
        return tokens(model, &String::from_utf8_lossy(body)); // too deep: as text, which is more
    }
    let text = scaled_tokens(model, &input.text, input.text_bytes);
    let framed = match endpoint {
        Endpoint::Completions | Endpoint::Embeddings => 0,
        _ => TOKENS_PER_MESSAGE.saturating_mul(input.messages.max(1)) + REPLY_PRIMER,
    };
    let tools = if input.has_tools { TOOLS_PREAMBLE } else { 0 };
    text.saturating_add(framed)
        .saturating_add(tools)
        .saturating_add(input.token_ids)
        .saturating_add(input.images.saturating_mul(image_tokens(model)))
        .saturating_add(input.attachment_bytes / ATTACHMENT_BYTES_PER_TOKEN)
}

fn scaled_tokens(model: &str, text: &str, bytes: u64) -> u64 {
    let kept = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
    if kept.is_empty() {
        return bytes.div_ceil(4);
    }
    let counted = bpe_openai::o200k_base().count(kept) as u128;
    let all = u128::from(bytes.max(text.len() as u64));
    let percent = u128::from(percent_of_o200k(model));
    let scaled = (counted * all * percent).div_ceil(kept.len() as u128 * 100);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// How many tokens a family's tokenizer makes of what is 100 tokens for `o200k_base`:
/// Claude 118, from Opus 4.7 on 153 (sammcj/ingest #65), Gemini 120 (repomix #476).
fn percent_of_o200k(model: &str) -> u64 {
    let model = model.to_ascii_lowercase();
    if model.contains("claude") {
        if version(&model) >= (4, 7) { 153 } else { 118 }
    } else if model.contains("gemini") {
        120
    } else {
        100
    }
}

/// The first version in a model's name: `4.7` and `4-7` are (4, 7). Dates are no versions.
fn version(model: &str) -> (u64, u64) {
    let mut parts = model
        .split(|c: char| !c.is_ascii_alphanumeric())
        .map(|part| if part.len() <= 2 { part.parse::<u64>().ok() } else { None })
        .skip_while(Option::is_none);
    let major = parts.next().flatten().unwrap_or(0);
    let minor = parts.next().flatten().unwrap_or(0);
    (major, minor)
}

/// One image whose size is not known: four tiles, by the families' documents.
fn image_tokens(model: &str) -> u64 {
    let model = model.to_ascii_lowercase();
    let is = |name: &str| model.contains(name);
    match () {
        () if is("claude") => 1600,
        () if is("gemini") => 1120,
        () if is("4o-mini") => 2833 + 4 * 5667,
        () if is("gpt-5") => 70 + 4 * 140,
        () if is("o1") || is("o3") => 75 + 4 * 150,
        () => 85 + 4 * 170,
    }
}

/// What a request gives a model to read.
#[derive(Default)]
struct Input {
    /// The beginning of the text, up to the limit.
    text: String,
    text_bytes: u64,
    messages: u64,
    images: u64,
    attachment_bytes: u64,
    /// Input that comes as numbers of tokens already.
    token_ids: u64,
    has_tools: bool,
}

impl Input {
    fn add_text(&mut self, text: &str) {
        self.text_bytes = self.text_bytes.saturating_add(text.len() as u64 + 1);
        let room = MAX_TEXT_BYTES.saturating_sub(self.text.len());
        self.text.push_str(&text[..text.floor_char_boundary(room)]);
        self.text.push('\n');
    }
}

/// Where in a request a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The request itself.
    Root,
    /// Text for the model, at any depth.
    Text,
    /// Tool definitions, whose names are read by the model too.
    Tools,
    /// Token ids or text: `input` and `prompt`.
    Ids,
    /// An image.
    Image,
    /// Encoded data.
    Attachment,
    /// Nothing that a model reads.
    Nothing,
}

/// Walks over a request and notes what is input.
struct Walk<'a> {
    input: &'a mut Input,
    place: Place,
}

impl Walk<'_> {
    /// The place of a member of an object here.
    fn below(&self, name: &str) -> Place {
        match (self.place, name) {
            (Place::Root, "input" | "prompt") => Place::Ids,
            (Place::Root, "messages" | "system" | "instructions" | "contents" | "suffix") => {
                Place::Text
            }
            (Place::Root, "systemInstruction" | "system_instruction") => Place::Text,
            (Place::Root, "tools" | "functions") => Place::Tools,
            (Place::Root, "response_format" | "output_config") => Place::Tools,
            (Place::Root | Place::Nothing, _) => Place::Nothing,
            (Place::Tools, _) => Place::Tools,
            (_, "image_url" | "inlineData" | "inline_data" | "fileData" | "file_data") => {
                Place::Image
            }
            (Place::Text | Place::Ids, "input_audio" | "file") => Place::Attachment,
            (Place::Text | Place::Ids, "source") => Place::Image,
            (
                Place::Text | Place::Ids,
                "role" | "type" | "id" | "tool_call_id" | "tool_use_id" | "call_id" | "status"
                | "signature" | "encrypted_content" | "thoughtSignature" | "cache_control"
                | "detail",
            ) => Place::Nothing,
            (Place::Ids, _) => Place::Text,
            (place, _) => place,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // An image is one object; what is in it may be text after all (Anthropic's `source`).
        if self.place == Place::Image {
            self.input.images += 1;
            return skip_members(map);
        }
        while let Some(name) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            let place = self.below(&name);
            match (self.place, name.as_ref()) {
                (Place::Text | Place::Ids, "role") => self.input.messages += 1,
                (Place::Root, "tools" | "functions") => self.input.has_tools = true,
                (Place::Tools, name) => self.input.add_text(name),
                _ => {}
            }
            map.next_value_seed(Walk { input: &mut *self.input, place })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Walk { input: &mut *self.input, place: self.place })?.is_some()
        {
        }
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        match self.place {
            Place::Root | Place::Nothing => {}
            Place::Image => self.input.images += 1,
            _ if value.starts_with("data:image/") => self.input.images += 1,
            Place::Attachment => {
                let bytes = &mut self.input.attachment_bytes;
                *bytes = bytes.saturating_add(value.len() as u64);
            }
            _ if value.starts_with("data:") => {
                let bytes = &mut self.input.attachment_bytes;
                *bytes = bytes.saturating_add(value.len() as u64);
            }
            Place::Text | Place::Tools | Place::Ids => self.input.add_text(value),
        }
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        match self.place {
            Place::Ids => self.input.token_ids += 1,
            Place::Text | Place::Tools => self.input.text_bytes += 2,
            _ => {}
        }
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

fn skip_members<'de, A: MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    use serde::de::IgnoredAny;
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_scaled_from_one_tokenizer() {
        let text = "The quick brown fox jumps over the lazy dog.";
        assert_eq!(tokens("gpt-4.1", text), 10);
        assert_eq!(tokens("claude-sonnet-4.5", text), 12);
        assert_eq!(tokens("claude-opus-4-7", text), 16);
        assert_eq!(tokens("gemini-3-flash", text), 12);
        assert_eq!(tokens("gpt-4.1", ""), 0);
    }

    #[test]
    fn a_date_in_a_name_is_no_version() {
        assert_eq!(version("claude-sonnet-4-5-20250929"), (4, 5));
        assert_eq!(version("claude-sonnet-4-20250514"), (4, 0));
        assert_eq!(version("anthropic.claude-3-5-haiku-20241022-v1:0"), (3, 5));
        assert_eq!(version("claude-opus-5"), (5, 0));
    }

    #[test]
    fn text_beyond_the_limit_is_scaled_by_its_bytes() {
        let once = "one two three four five six seven eight\n".repeat(MAX_TEXT_BYTES / 40);
        let many = once.repeat(3);
        let ratio = tokens("m", &many) * 10 / tokens("m", &once);
        assert!((29..=31).contains(&ratio), "{ratio}");
        assert_eq!(output_tokens("m", "one two", 14), 2 * tokens("m", "one two"));
    }

    fn chat(body: &str) -> u64 {
        input_tokens(Endpoint::Chat, "gpt-4.1", body.as_bytes())
    }

    #[test]
    fn messages_and_tools_are_input_and_settings_are_not() {
        let bare = r#"{"messages":[{"role":"user","content":"Hi"}]}"#;
        let more = r#"{"model":"long-name-of-a-model","temperature":1,"metadata":{"a":"b c d"},
            "messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}]}"#;
        assert_eq!(chat(bare), chat(more));
        let with_tool = r#"{"messages":[{"role":"user","content":"Hi"}],"tools":[{"type":"function",
            "function":{"name":"get_weather","description":"The weather of a city"}}]}"#;
        assert!(chat(with_tool) > chat(bare) + TOOLS_PREAMBLE + 8);
    }

    #[test]
    fn encoded_images_are_never_read_as_text() {
        let image = format!("data:image/png;base64,{}", "iVBORw0KGgo".repeat(50_000));
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":[
                {{"type":"image_url","image_url":{{"url":"{image}"}}}}]}}]}}"#
        );
        assert_eq!(chat(&body), 85 + 4 * 170 + TOKENS_PER_MESSAGE + REPLY_PRIMER);
    }

    #[test]
    fn inputs_of_every_endpoint_are_found() {
        let count = |endpoint, body: &str| input_tokens(endpoint, "m", body.as_bytes());
        assert_eq!(count(Endpoint::Embeddings, r#"{"input":[1,2,3]}"#), 3);
        assert_eq!(count(Endpoint::Completions, r#"{"prompt":"one two"}"#), 3);
        assert!(count(Endpoint::Responses, r#"{"input":"one two","instructions":"x"}"#) >= 9);
        assert!(count(Endpoint::Messages, r#"{"system":"x","messages":[]}"#) >= 7);
        let gemini = r#"{"contents":[{"role":"user","parts":[{"text":"one two"}]}]}"#;
        assert!(count(Endpoint::Generate, gemini) >= 8);
    }

    #[test]
    fn a_body_that_is_too_deep_is_counted_as_text() {
        let deep = "[".repeat(100_000);
        assert!(chat(&format!("{{\"messages\":{deep}")) > 0);
    }
}
