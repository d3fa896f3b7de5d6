//! The gate: what a client asks for, as far as billing must know, and what goes upstream.
//!
//! One pass over the body. What goes upstream is written from what was read, so the
//! upstream cannot read another model, count or tool than the one that was priced.
//! Fields that we do not know pass as they came; those known to cost what cannot be
//! metered are refused.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;

use self::known::Known;
use super::json::{self, Document, Member};
use super::{Endpoint, Kind, attribution};
use crate::store::Attribution;

mod fields;
mod known;
#[cfg(test)]
mod properties;
mod tools;

/// How `"1h"` may be written in JSON.
const ONE_HOUR: [&str; 4] = ["\"1h\"", "\"1\\u0068\"", "\"\\u0031h\"", "\"\\u0031\\u0068\""];

/// Settings of the gate.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The most choices that one request may ask for.
    pub max_choices: u64,
    /// How the prompts of heartbeats begin, such as `Read HEARTBEAT.md if it exists`.
    pub heartbeat_prompts: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_choices: 8,
            heartbeat_prompts: attribution::HEARTBEAT_PROMPTS.map(Into::into).into(),
        }
    }
}

/// What becomes of `stream_options.include_usage` on the way upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeUsage {
    /// As the client wrote it.
    AsGiven,
    /// Usage is asked for in the stream.
    Ask,
    /// Left out: the upstream refuses the option.
    Omit,
}

/// A request that was understood.
#[derive(Clone)]
pub struct Request {
    /// The model that the client names (for Gemini, the one in the path).
    pub model: String,
    /// Whether a stream is asked for.
    pub stream: bool,
    /// Whether the client itself asked for usage in the stream.
    pub asks_usage: bool,
    /// The largest output asked for, in tokens, per choice.
    pub max_output: Option<u64>,
    /// Choices (`n`, `best_of`, `candidateCount`), at least 1.
    pub choices: u64,
    /// Prompts that are answered apart from each other (Completions), at least 1.
    pub prompts: u64,
    /// The service tier asked for, in lower case; `auto`, `default`, `standard` and the like are `None`.
    pub service_tier: Option<String>,
    /// Where the upstream is asked to compute (Anthropic); `global` is `None`.
    pub inference_geo: Option<String>,
    /// Fees that the request may cause: names of tools that the upstream runs, such as
    /// `web_search`, `code_interpreter`, `file_search`, `mcp`, `computer_use`, …; a tool
    /// that we do not know, by its own name. Sorted, each once.
    pub hosted_tools: Vec<String>,
    /// Audio output is asked for.
    pub audio_output: bool,
    /// Image output is asked for.
    pub image_output: bool,
    /// Responses: the object that this one builds on.
    pub previous_response: Option<String>,
    /// Responses: the conversation that it belongs to.
    pub conversation: Option<String>,
    /// A cache lifetime of one hour is asked for somewhere.
    pub asks_1h_cache: bool,
    /// Run, agent, session and origin, as far as the body says (client-controlled).
    pub attribution: Attribution,
    kind: Kind,
    /// The fields that go upstream: the name, and where its value stands in the body.
    fields: Vec<(Name, Range<usize>)>,
    /// The body has those fields and no other, and their names have no escapes.
    verbatim: bool,
    /// The client sent `stream_options`.
    has_options: bool,
    /// `stream_options` with usage asked for, if that is not what the client sent.
    usage_options: Option<String>,
    body: Bytes,
}

/// The name of a field: where it stands in the body, or what it says if it has escapes.
#[derive(Clone)]
enum Name {
    Plain(Range<usize>),
    Escaped(Box<str>),
}

/// Why a body was not understood. What the client reads; never any of its text but key names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not a JSON object that every reader reads alike.
    #[error("The body is not valid JSON: {reason} at byte {offset}.")]
    Json {
        /// What is wrong.
        reason: &'static str,
        /// Where.
        offset: usize,
    },
    /// A name stands twice, or beside a twin that differs in case.
    #[error("The key \"{key}\" is given more than once (at byte {offset}).")]
    DuplicateKey {
        /// The name.
        key: String,
        /// Where the second one begins.
        offset: usize,
    },
    /// A field that we act on has a value that we cannot act on.
    #[error("The parameter \"{parameter}\" {problem}.")]
    Parameter {
        /// Its path, such as `stream_options.include_usage`.
        parameter: String,
        /// Such as `must be true or false`.
        problem: String,
    },
    /// A parameter that is known to cost money that cannot be metered.
    #[error("The parameter \"{parameter}\" is not allowed: {why}.")]
    NotAllowed {
        /// Its path.
        parameter: String,
        /// The reason.
        why: &'static str,
    },
}

impl From<json::Error> for Invalid {
    fn from(error: json::Error) -> Self {
        match error {
            json::Error::Syntax { reason, offset } => Self::Json { reason, offset },
            json::Error::DuplicateKey { key, offset } => {
                Self::DuplicateKey { key: known::bounded(&key), offset }
            }
        }
    }
}

/// Reads a body. `path_model` is the model of a Gemini path.
///
/// # Errors
///
/// [`Invalid`], for the client.
pub fn read(
    endpoint: Endpoint,
    path_model: Option<&str>,
    body: Bytes,
    settings: &Settings,
) -> Result<Request, Invalid> {
    let kind = endpoint.kind();
    let names: &[_] = match kind {
        Kind::Openai => &fields::OPENAI,
        Kind::Anthropic => &fields::ANTHROPIC,
        Kind::Gemini => &fields::GEMINI,
    };
    let document = Document::strict(&body)?;
    let given: Vec<_> = document.root().members().into_iter().flatten().collect();
    let top = Known::of("", given.iter().map(|field| (&field.key, field.value)), names)?;
    fields::refuse_unmetered(endpoint, &top)?;
    let generation = match kind {
        Kind::Gemini => {
            Some(top.object("generationConfig", "generationConfig", &fields::GENERATION)?)
        }
        Kind::Openai | Kind::Anthropic => None,
    };
    let limits = generation.as_ref().unwrap_or(&top);
    let stream = match endpoint {
        Endpoint::StreamGenerate => true,
        Endpoint::Generate => false,
        _ => top.flag("stream")?.unwrap_or(false),
    };
    let options = top.object("stream_options", "stream_options", &["include_usage"])?;
    let include_usage = options.flag("include_usage")?.unwrap_or(false);
    let openrouter_usage = top.object("usage", "usage", &["include"])?.flag("include")?;
    let output = fields::modalities(limits)?;
    // In Gemini's format the path names the model, and a field beside it could only differ.
    let kept = |field: &&Member<'_>| kind != Kind::Gemini || field.key != "model";
    let kept: Vec<_> = given.iter().filter(kept).collect();
    Ok(Request {
        model: fields::model(kind, &top, path_model)?,
        stream,
        asks_usage: include_usage || openrouter_usage.unwrap_or(false),
        max_output: fields::max_output(limits)?,
        choices: fields::choices(limits, settings.max_choices)?,
        prompts: match endpoint {
            Endpoint::Completions => fields::prompts(&top),
            _ => 1,
        },
        service_tier: fields::service_tier(&top)?,
        inference_geo: fields::inference_geo(&top)?,
        hosted_tools: tools::hosted(kind, &top)?,
        audio_output: output.audio || top.get("audio").is_some(),
        image_output: output.image,
        previous_response: top.text("previous_response_id")?.map(Cow::into_owned),
        conversation: fields::conversation(&top)?,
        asks_1h_cache: kind == Kind::Anthropic
            && ONE_HOUR.iter().any(|hour| memchr::memmem::find(&body, hour.as_bytes()).is_some()),
        attribution: attribution::from_body(endpoint, &given, &settings.heartbeat_prompts),
        kind,
        verbatim: kept.len() == given.len()
            && kept.iter().all(|field| matches!(field.key, Cow::Borrowed(_))),
        fields: kept
            .iter()
            .map(|field| {
                let name = match &field.key {
                    Cow::Borrowed(key) => Name::Plain(place(&body, key)),
                    Cow::Owned(key) => Name::Escaped(key.as_str().into()),
                };
                (name, place(&body, field.value.raw()))
            })
            .collect(),
        has_options: given.iter().any(|field| field.key == "stream_options"),
        usage_options: match endpoint {
            Endpoint::Chat | Endpoint::Completions if stream && !include_usage => {
                Some(with_usage(&top)?)
            }
            _ => None,
        },
        body,
    })
}

/// Shows nothing of what the client wrote but the model, so that no log can.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Request {
    /// The body for the upstream: every field as it came, with the upstream's name of the
    /// model, and with usage asked for in the stream as `include_usage` says.
    pub fn upstream_body(&self, upstream_model: &str, include_usage: IncludeUsage) -> Bytes {
        let model = match self.kind {
            Kind::Openai | Kind::Anthropic => {
                (upstream_model != self.model).then_some(upstream_model)
            }
            Kind::Gemini => None,
        };
        let asks = include_usage == IncludeUsage::Ask;
        let omits = include_usage == IncludeUsage::Omit && self.has_options;
        let mut options = self.usage_options.as_deref().filter(|_| asks);
        if self.verbatim && model.is_none() && options.is_none() && !omits {
            return self.body.clone();
        }
        let mut out = Vec::with_capacity(self.body.len() + 128);
        out.push(b'{');
        for (name, value) in &self.fields {
            let key = match name {
                Name::Plain(place) => std::str::from_utf8(&self.body[place.clone()]),
                Name::Escaped(key) => Ok(&**key),
            };
            let key = key.expect("the whole body was checked to be UTF-8");
            if omits && key == "stream_options" {
                continue;
            }
            write_key(&mut out, key);
            match (key, model) {
                ("model", Some(model)) => write_string(&mut out, model),
                ("stream_options", _) if options.is_some() => {
                    out.extend(options.take().unwrap_or_default().bytes());
                }
                _ => out.extend_from_slice(&self.body[value.clone()]),
            }
        }
        if let Some(options) = options {
            write_key(&mut out, "stream_options");
            out.extend_from_slice(options.as_bytes());
        }
        out.push(b'}');
        out.into()
    }

    /// The body as it came, for an estimate.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Whether there may be audio or images in the input, or be asked for: a body that has none
    /// of these words, also not spelt with escapes, has none of these.
    pub fn may_have_media(&self) -> bool {
        // One search each is faster than one for all: each is done in vectors.
        static WORDS: LazyLock<[Finder<'static>; 4]> =
            LazyLock::new(|| ["audio", "image", "video", "\\u00"].map(Finder::new));
        WORDS.iter().any(|word| word.find(&self.body).is_some())
    }
}

/// Where a part of a body stands in it.
fn place(body: &Bytes, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - body.as_ptr() as usize;
    start..start + part.len()
}

/// `stream_options` with usage asked for, and everything else in it as it came.
fn with_usage(top: &Known<'_>) -> Result<String, Invalid> {
    let mut out = b"{".to_vec();
    for member in top.members("stream_options")?.into_iter().flatten() {
        if member.key != "include_usage" {
            write_key(&mut out, &member.key);
            out.extend_from_slice(member.value.raw().as_bytes());
        }
    }
    write_key(&mut out, "include_usage");
    out.extend_from_slice(b"true}");
    Ok(String::from_utf8(out).expect("it is made of strings"))
}

/// The name of the next member of an object, and its colon.
fn write_key(out: &mut Vec<u8>, key: &str) {
    if !out.ends_with(b"{") {
        out.push(b',');
    }
    write_string(out, key);
    out.push(b':');
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("memory takes any string");
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read_text(endpoint: Endpoint, body: &str) -> Result<Request, Invalid> {
        let path = (endpoint.kind() == Kind::Gemini).then_some("gemini-x");
        read(endpoint, path, Bytes::copy_from_slice(body.as_bytes()), &Settings::default())
    }

    /// Reads a body, to which a model is given.
    pub fn read_json(endpoint: Endpoint, mut body: Value) -> Result<Request, Invalid> {
        if endpoint.kind() != Kind::Gemini {
            body["model"] = "m".into();
        }
        read_text(endpoint, &body.to_string())
    }

    /// The parameter that is to blame.
    pub fn blamed(endpoint: Endpoint, body: Value) -> String {
        match read_json(endpoint, body.clone()) {
            Err(Invalid::Parameter { parameter, .. } | Invalid::NotAllowed { parameter, .. }) => {
                parameter
            }
            other => panic!("{body} gave {other:?}"),
        }
    }

    fn upstream(request: &Request, model: &str, include_usage: bool) -> String {
        let include = if include_usage { IncludeUsage::Ask } else { IncludeUsage::AsGiven };
        String::from_utf8(request.upstream_body(model, include).into()).unwrap()
    }

    fn client(case: &str) -> Value {
        let path = format!("{}/tests/cases/clients/{case}.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap()["body"].take()
    }

    #[test]
    fn requests_of_real_clients_are_understood() {
        // Case, endpoint, stream, usage asked for, largest output.
        let cases = [
            ("openclaw-chat-remote", Endpoint::Chat, true, false, Some(4096)),
            ("openclaw-chat-remote-compat", Endpoint::Chat, true, true, Some(4096)),
            ("openclaw-chat-toolcall-2", Endpoint::Chat, true, false, Some(4096)),
            ("openclaw-responses", Endpoint::Responses, true, false, Some(4096)),
            ("openclaw-anthropic", Endpoint::Messages, true, false, Some(4096)),
            ("openclaw-cron", Endpoint::Chat, true, true, Some(4096)),
            ("n8n-agent-chat-stream", Endpoint::Chat, true, true, None),
            ("n8n-agent-responses", Endpoint::Responses, false, false, None),
            ("n8n-openai-node-v2", Endpoint::Responses, false, false, None),
            ("n8n-agent-anthropic", Endpoint::Messages, false, false, Some(4096)),
            ("openai-js-7-chat-stream-usage", Endpoint::Chat, true, true, None),
            ("openai-py-responses", Endpoint::Responses, false, false, None),
            ("anthropic-py", Endpoint::Messages, false, false, Some(16)),
        ];
        for (case, endpoint, stream, usage, max_output) in cases {
            let body = client(case);
            let request = read_text(endpoint, &body.to_string()).unwrap();
            assert_eq!(request.model, body["model"].as_str().unwrap(), "{case}");
            assert_eq!((request.stream, request.asks_usage), (stream, usage), "{case}");
            assert_eq!((request.max_output, request.choices), (max_output, 1), "{case}");
            assert!(request.hosted_tools.is_empty(), "{case}");

            let mut expected = body;
            expected["model"] = "other".into();
            let sent: Value = serde_json::from_str(&upstream(&request, "other", false)).unwrap();
            assert_eq!(sent, expected, "{case}");
        }
    }

    #[test]
    fn what_needs_no_change_goes_upstream_as_the_same_bytes() {
        let body = "{ \"model\" : \"m\",\n \"messages\": [ ], \"x\": 1.0e2, \"stream\": true, \"stream_options\": {\"include_usage\": true} }";
        let request = read_text(Endpoint::Chat, body).unwrap();
        assert_eq!(upstream(&request, "m", true), body);
        assert_eq!(request.upstream_body("m", IncludeUsage::Ask).as_ptr(), request.body().as_ptr());
    }

    #[test]
    fn only_the_model_and_the_usage_option_change_on_the_way() {
        let body = r#"{ "x\u0079": 1.0e2, "model":"m", "messages" : [ "\u0041" ],"stream":true}"#;
        let request = read_text(Endpoint::Chat, body).unwrap();
        assert_eq!(
            upstream(&request, "up\"stream", true),
            r#"{"xy":1.0e2,"model":"up\"stream","messages":[ "\u0041" ],"stream":true,"stream_options":{"include_usage":true}}"#
        );
        assert_eq!(
            upstream(&request, "m", false),
            r#"{"xy":1.0e2,"model":"m","messages":[ "\u0041" ],"stream":true}"#
        );
    }

    #[test]
    fn usage_is_asked_for_whatever_the_client_wrote() {
        let sent = |options: &str| {
            let body = format!(r#"{{"stream_options":{options},"model":"m","stream":true}}"#);
            let request = read_text(Endpoint::Chat, &body).unwrap();
            let sent: Value = serde_json::from_str(&upstream(&request, "m", true)).unwrap();
            (request.asks_usage, sent["stream_options"].to_string())
        };
        let asked = r#"{"include_usage":true}"#.to_owned();
        assert_eq!(sent("null"), (false, asked.clone()));
        assert_eq!(sent("{}"), (false, asked.clone()));
        assert_eq!(sent(r#"{"include_usage":false}"#), (false, asked.clone()));
        assert_eq!(sent(r#"{"include_usage":null}"#), (false, asked.clone()));
        assert_eq!(sent(r#"{"include_usage":true}"#), (true, asked));
        let other = r#"{"include_obfuscation":false,"include_usage":true}"#.to_owned();
        assert_eq!(sent(r#"{"include_usage":false,"include_obfuscation":false}"#), (false, other));
        for options in [r#""x""#, "[]", r#"{"include_usage":1}"#, r#"{"Include_Usage":true}"#] {
            let body = format!(r#"{{"stream_options":{options},"model":"m","stream":true}}"#);
            assert!(read_text(Endpoint::Chat, &body).is_err(), "{options}");
        }
    }

    #[test]
    fn usage_is_asked_for_only_where_a_stream_would_not_tell_it() {
        for (endpoint, stream) in
            [(Endpoint::Chat, false), (Endpoint::Responses, true), (Endpoint::Messages, true)]
        {
            let request = read_json(endpoint, json!({ "stream": stream })).unwrap();
            assert!(!upstream(&request, "m2", true).contains("stream_options"), "{endpoint:?}");
        }
        let asks = json!({ "stream": true, "usage": { "include": true } });
        let request = read_json(Endpoint::Chat, asks).unwrap();
        assert!(request.asks_usage);
        assert!(upstream(&request, "m", true).contains(r#""usage":{"include":true}"#));
    }

    #[test]
    fn a_model_is_a_string_taken_exactly() {
        let model = |model: &str| {
            read_text(Endpoint::Chat, &format!(r#"{{"model":{model}}}"#)).map(|it| it.model)
        };
        assert_eq!(model(r#"" gpt-4.1 ""#), Ok(" gpt-4.1 ".into()));
        assert_eq!(model(r#""gpt\u002d4.1""#), Ok("gpt-4.1".into()));
        assert_eq!(model(&format!("\"{}\"", "x".repeat(256))), Ok("x".repeat(256)));
        for bad in ["\"\"", "null", "1", "[\"m\"]", &format!("\"{}\"", "x".repeat(257))] {
            assert!(model(bad).is_err(), "{bad}");
        }
        assert!(read_text(Endpoint::Chat, "{}").is_err());
        assert!(read_text(Endpoint::Chat, r#"{"Model":"m"}"#).is_err());
        assert!(read_text(Endpoint::Chat, r#"{"model":"m","MODEL":"m"}"#).is_err());
        assert!(read_text(Endpoint::Chat, r#"{"model":"m","mode\u006c":"n"}"#).is_err());
    }

    #[test]
    fn gemini_s_model_is_the_one_of_the_path() {
        let request = read_json(Endpoint::StreamGenerate, json!({ "contents": [] })).unwrap();
        assert_eq!((request.model.as_str(), request.stream), ("gemini-x", true));
        assert_eq!(upstream(&request, "other", true), r#"{"contents":[]}"#);
        for same in ["gemini-x", "models/gemini-x"] {
            let body = json!({ "contents": [], "model": same });
            let request = read_json(Endpoint::Generate, body).unwrap();
            assert!(!request.stream);
            assert_eq!(upstream(&request, "other", true), r#"{"contents":[]}"#);
        }
        assert_eq!(blamed(Endpoint::Generate, json!({ "model": "gemini-dear" })), "model");
        let none = read(Endpoint::Generate, None, Bytes::from("{}"), &Settings::default());
        assert!(none.is_err());
    }

    #[test]
    fn an_hour_in_the_cache_is_seen_however_it_is_written() {
        let asks = |ttl: &str| {
            let body = format!(
                r#"{{"model":"m","system":[{{"cache_control":{{"type":"ephemeral","ttl":{ttl}}}}}]}}"#
            );
            let on = |endpoint| read_text(endpoint, &body).unwrap().asks_1h_cache;
            (on(Endpoint::Messages), on(Endpoint::Chat))
        };
        for hour in [r#""1h""#, r#""1\u0068""#, r#""\u0031h""#, r#""\u0031\u0068""#] {
            assert_eq!(asks(hour), (true, false), "{hour}");
        }
        assert_eq!(asks(r#""5m""#), (false, false));
    }

    #[test]
    fn a_logged_request_shows_no_prompt() {
        let request = read_json(Endpoint::Chat, json!({ "messages": ["canary"] })).unwrap();
        assert!(!format!("{request:?}").contains("canary"));
    }

    #[test]
    fn an_error_shows_no_more_of_a_body_than_a_bounded_name() {
        let key = "k".repeat(1000);
        let error = read_text(Endpoint::Chat, &format!(r#"{{"{key}":1,"{key}":2}}"#)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("The key \"{}\" is given more than once (at byte 1006).", "k".repeat(64))
        );
        let error = read_text(Endpoint::Chat, r#"{"model":"secret}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "The body is not valid JSON: a string does not end at byte 9."
        );
    }
}
