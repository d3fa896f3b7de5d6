//! Who and what a request is for, as far as the client says.
//!
//! Headers name the run, agent, session and tag. OpenClaw sends none by itself but says
//! the same in a line of its prompt, and its heartbeats and scheduled jobs are known by how
//! the live prompt begins. All of it is the client's word: it sorts costs, it never
//! authorises. Of the prompt nothing is kept but these tags.

use std::ops::Range;
use std::sync::LazyLock;

use http::HeaderMap;
use memchr::memmem;

use super::Endpoint;
use super::json::{Member, Value};
use crate::store::Attribution;

/// How OpenClaw's heartbeat prompts begin: that of 2026.8 and later, and the one before.
pub const HEARTBEAT_PROMPTS: [&str; 2] = [
    "Follow the heartbeat monitor scratch context when provided.",
    "Read HEARTBEAT.md if it exists",
];

/// The headers that say something; where several say the same, the first of them counts.
/// Of `NUMBERED` the value is followed by `:` and a number.
const HEADERS: [&str; 10] = [
    "traceparent",
    "x-farebox-tag",
    // Agents: OpenClaw and n8n by configuration, ClawRouter, Claude Code.
    "x-agent",
    "x-clawrouter-agent-id",
    "x-claude-code-agent-id",
    // Sessions: OpenAI's SDKs, Codex, ClawRouter, Claude Code.
    "session_id",
    "x-session-affinity",
    "session-id",
    "x-clawrouter-session-id",
    "x-claude-code-session-id",
];
const AGENT: Range<usize> = 2..5;
const SESSION: Range<usize> = 5..10;
const NUMBERED: Range<usize> = 5..7;

/// The line of an OpenClaw prompt that names agent and session.
const RUNTIME_LINE: &str = "Runtime: agent=";

static RUNTIME: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new(RUNTIME_LINE));

/// How the message begins that OpenClaw sends behind the live prompt.
const INTERNAL_CONTEXT: &str = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>";

/// The longest tag, in characters.
const TAG_CHARS: usize = 128;

/// How far the runtime line is read, in bytes as written, and the live prompt, in characters.
const LOOK: usize = 1024;

/// What the headers say.
pub fn from_headers(headers: &HeaderMap) -> Attribution {
    // One look at each header, of which there are fewer than names.
    let mut found = [None; HEADERS.len()];
    for (name, value) in headers {
        let known = HEADERS.iter().position(|known| *known == name.as_str());
        if let Some(known) = known.filter(|known| found[*known].is_none()) {
            found[known] = std::str::from_utf8(value.as_bytes()).ok();
        }
    }
    let first = |places: Range<usize>| found[places].iter().copied().flatten().next();
    let numbered = first(NUMBERED).and_then(|value| value.split(':').next());
    Attribution {
        run: found[0].and_then(trace_id),
        agent: first(AGENT).and_then(tag),
        session: numbered.or_else(|| first(SESSION)).and_then(tag),
        origin: None,
        tag: found[1].and_then(tag),
    }
}

/// What the body says: agent, session and origin, by OpenClaw's conventions.
///
/// `heartbeats` are the beginnings of heartbeat prompts. Old heartbeats stay in the history
/// of a session, so only the live prompt counts, and only its beginning.
pub fn from_body(endpoint: Endpoint, fields: &[Member<'_>], heartbeats: &[String]) -> Attribution {
    let talk = Talk::of(endpoint, fields);
    let live = talk.live_prompt();
    let first = talk.first_user();
    // In a conversation of one message the live prompt is the first.
    let last = live
        .map(|live| live.message)
        .filter(|live| !first.is_some_and(|first| std::ptr::eq(first.raw(), live.raw())));
    let runtime = [talk.system, talk.first_system(), first, last]
        .into_iter()
        .flatten()
        .find_map(|value| runtime_line(value.raw()));
    let (agent, session) = runtime.map_or((None, None), |line| {
        let session = part(line, "session=").or_else(|| part(line, "sessionId="));
        (part(line, "Runtime: agent=").and_then(tag), session.and_then(tag))
    });
    let openclaw = runtime.is_some() || live.is_some_and(|live| live.internal_context);
    let isolated = session.as_deref().is_some_and(|session| session.ends_with(":heartbeat"));
    let live = live.map(|live| live.text);
    let begins =
        |prompt: &String| !prompt.is_empty() && live.is_some_and(|text| starts_with(text, prompt));
    let origin = if isolated || heartbeats.iter().any(begins) {
        Some("heartbeat")
    } else if live.is_some_and(is_cron) {
        Some("cron")
    } else {
        openclaw.then_some("user")
    };
    Attribution { agent, session, origin: origin.map(Into::into), ..Attribution::default() }
}

/// Both together. A header is set on purpose, so it wins over what a prompt says.
pub fn merge(headers: Attribution, body: Attribution) -> Attribution {
    Attribution {
        run: headers.run.or(body.run),
        agent: headers.agent.or(body.agent),
        session: headers.session.or(body.session),
        origin: headers.origin.or(body.origin),
        tag: headers.tag.or(body.tag),
    }
}

/// The conversation of a request, in any of the formats.
struct Talk<'a> {
    /// The system prompt, where it has a field of its own.
    system: Option<Value<'a>>,
    /// The messages, system messages among them, oldest first.
    messages: Vec<Value<'a>>,
}

/// The message that asks for this reply.
#[derive(Clone, Copy)]
struct Prompt<'a> {
    message: Value<'a>,
    /// Its first text.
    text: Value<'a>,
    /// OpenClaw's internal context follows it.
    internal_context: bool,
}

impl<'a> Talk<'a> {
    fn of(endpoint: Endpoint, fields: &[Member<'a>]) -> Self {
        let (system, messages): (&[&str], &str) = match endpoint {
            Endpoint::Chat | Endpoint::Completions | Endpoint::Embeddings => (&[], "messages"),
            Endpoint::Responses => (&["instructions"], "input"),
            Endpoint::Messages | Endpoint::CountTokens => (&["system"], "messages"),
            Endpoint::Generate | Endpoint::StreamGenerate => {
                (&["systemInstruction", "system_instruction"], "contents")
            }
        };
        let field = |name: &str| fields.iter().find(|field| field.key == name);
        Self {
            system: system.iter().find_map(|name| field(name)).map(|field| field.value),
            messages: field(messages)
                .and_then(|field| field.value.items())
                .into_iter()
                .flatten()
                .filter(|message| message.members().is_some())
                .collect(),
        }
    }

    fn first_system(&self) -> Option<Value<'a>> {
        self.messages.iter().copied().find(|message| has_role(*message, &["system", "developer"]))
    }

    fn first_user(&self) -> Option<Value<'a>> {
        self.messages.iter().copied().find(|message| has_role(*message, &["user"]))
    }

    /// The last message of the user that has text (results of tools have none), or the one
    /// before it if the last is OpenClaw's internal context.
    fn live_prompt(&self) -> Option<Prompt<'a>> {
        let mut prompts = self.messages.iter().rev().filter_map(|message| {
            let text = first_text(*message).filter(|_| has_role(*message, &["user"]))?;
            Some(Prompt { message: *message, text, internal_context: false })
        });
        let last = prompts.next()?;
        if starts_with(last.text, INTERNAL_CONTEXT) {
            return prompts.next().map(|prompt| Prompt { internal_context: true, ..prompt });
        }
        Some(last)
    }
}

fn has_role(message: Value<'_>, roles: &[&str]) -> bool {
    let role = message.get("role").and_then(Value::string);
    role.is_some_and(|role| roles.contains(&&*role))
}

/// The first text of a message: its content, or that of the first part that has text.
fn first_text(message: Value<'_>) -> Option<Value<'_>> {
    let content = message.get("content").or_else(|| message.get("parts"))?;
    if content.raw().starts_with('"') {
        return Some(content);
    }
    content.items()?.find_map(|part| part.get("text"))
}

/// The last runtime line in JSON text, as written there.
fn runtime_line(raw: &str) -> Option<&str> {
    // It is a line of its own: at the start of a text, or behind an escaped line end.
    let begins = |at: &usize| raw[..*at].ends_with('"') || raw[..*at].ends_with("\\n");
    // Searched forwards, which is many times as fast as backwards.
    let start = RUNTIME.find_iter(raw.as_bytes()).filter(begins).last()?;
    let line = &raw[start..raw.floor_char_boundary(start + LOOK)];
    line.split(['\\', '"']).next()
}

/// The value of one part of the runtime line: `Runtime: agent=… | session=… | …`.
fn part<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(" | ").find_map(|part| part.strip_prefix(name))
}

/// Whether a string begins so, decoded no further than that takes.
fn starts_with(text: Value<'_>, start: &str) -> bool {
    let mut chars = text.chars();
    start.chars().all(|expected| chars.next() == Some(expected))
}

/// Whether a prompt starts `[cron:<job id> <name>] `.
fn is_cron(prompt: Value<'_>) -> bool {
    const START: &str = "[cron:";
    if !starts_with(prompt, START) {
        return false;
    }
    let prompt: String = prompt.chars().take(LOOK).collect();
    let job = prompt.strip_prefix(START).and_then(|rest| rest.split_once("] "));
    job.and_then(|(job, _)| job.split_once(' ')).is_some_and(|(id, _)| !id.is_empty())
}

/// The trace id of a `traceparent` (W3C Trace Context, 3.2).
fn trace_id(traceparent: &str) -> Option<String> {
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut parts = traceparent.trim().split('-');
    let (version, trace, parent) = (parts.next()?, parts.next()?, parts.next()?);
    let valid = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(parent, 16);
    let some = trace.bytes().any(|digit| digit != b'0');
    (valid && some).then(|| trace.to_owned())
}

/// A tag that is safe to store and show: bounded, without control characters, not empty.
fn tag(text: &str) -> Option<String> {
    let text: String = text.chars().filter(|c| !c.is_control()).take(TAG_CHARS).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::json::Document;

    /// What a captured request of a real client says in its headers and in its body.
    fn of_client(endpoint: Endpoint, case: &str) -> (Attribution, Attribution) {
        let path = format!("{}/tests/cases/clients/{case}.json", env!("CARGO_MANIFEST_DIR"));
        let case: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut headers = HeaderMap::new();
        for header in case["headers"].as_array().unwrap() {
            let name: http::HeaderName = header[0].as_str().unwrap().parse().unwrap();
            headers.append(name, header[1].as_str().unwrap().parse().unwrap());
        }
        (from_headers(&headers), body(endpoint, &case["body"]))
    }

    fn body(endpoint: Endpoint, body: &serde_json::Value) -> Attribution {
        let body = body.to_string();
        let document = Document::strict(body.as_bytes()).unwrap();
        let fields: Vec<_> = document.root().members().unwrap().collect();
        from_body(endpoint, &fields, &HEARTBEAT_PROMPTS.map(String::from))
    }

    fn origin(messages: serde_json::Value) -> Option<String> {
        body(Endpoint::Chat, &serde_json::json!({ "messages": messages })).origin
    }

    fn header(name: &'static str, value: &str) -> Attribution {
        from_headers(&HeaderMap::from_iter([(
            http::HeaderName::from_static(name),
            http::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        )]))
    }

    fn said(agent: &str, session: &str, origin: &str) -> Attribution {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Attribution {
            agent: some(agent),
            session: some(session),
            origin: some(origin),
            ..Attribution::default()
        }
    }

    #[test]
    fn openclaw_s_turns_are_told_apart_by_their_body() {
        let body = |endpoint, case| of_client(endpoint, case).1;
        let explicit = "agent:main:explicit:";
        assert_eq!(
            body(Endpoint::Chat, "openclaw-chat-toolcall-2"),
            said("main", &format!("{explicit}ef655850-8b5a-4c76-8d21-1e45faf8028c"), "user")
        );
        assert_eq!(
            body(Endpoint::Chat, "openclaw-heartbeat-main"),
            said("main", "agent:main:main", "heartbeat")
        );
        // The captures of these cut the runtime line, or its beginning, out.
        assert_eq!(body(Endpoint::Chat, "openclaw-heartbeat-isolated"), said("", "", "heartbeat"));
        assert_eq!(body(Endpoint::Responses, "openclaw-responses"), said("", "", "user"));
        assert_eq!(body(Endpoint::Messages, "openclaw-anthropic"), said("", "", "user"));
        assert_eq!(
            body(Endpoint::Chat, "openclaw-cron"),
            said("main", "agent:main:cron:4d0fa22e-f4c4-4ee8-afcb-fbc23979a828", "cron")
        );
    }

    #[test]
    fn a_client_that_says_nothing_is_attributed_to_nothing() {
        for case in ["openai-js-7-chat-stream-usage", "anthropic-py"] {
            let (headers, body) = of_client(Endpoint::Chat, case);
            assert_eq!(merge(headers, body), Attribution::default(), "{case}");
        }
    }

    #[test]
    fn headers_win_over_the_body() {
        let (headers, body) = of_client(Endpoint::Chat, "openclaw-chat-remote-compat");
        let merged = merge(headers, body);
        assert_eq!(merged.run.as_deref(), Some("9eded53dfb81b7e658312e2a98f65e9c"));
        assert_eq!(merged.agent.as_deref(), Some("ops"));
        assert_eq!(merged.session.as_deref(), Some("265cd0e8-7ecf-445c-b72c-5011e52ec3dc"));
        assert_eq!(merged.origin.as_deref(), Some("user"));
        let (headers, _) = of_client(Endpoint::Chat, "n8n-agent-chat-stream");
        assert_eq!(headers.agent.as_deref(), Some("oCDeBh7QfFimyrdl/26"));
    }

    #[test]
    fn every_known_header_counts() {
        for name in &HEADERS[AGENT] {
            assert_eq!(header(name, "ops").agent.as_deref(), Some("ops"), "{name}");
        }
        for name in &HEADERS[NUMBERED] {
            assert_eq!(header(name, "s-1:7").session.as_deref(), Some("s-1"), "{name}");
        }
        for name in &HEADERS[NUMBERED.end..SESSION.end] {
            assert_eq!(header(name, "agent:a").session.as_deref(), Some("agent:a"), "{name}");
        }
        assert_eq!(header("x-farebox-tag", "heartbeat").tag.as_deref(), Some("heartbeat"));
    }

    #[test]
    fn only_a_valid_traceparent_names_a_run() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let run = |value: String| header("traceparent", &value).run;
        assert_eq!(run(format!("00-{trace}-00f067aa0ba902b7-01")).as_deref(), Some(trace));
        let zeros = "0".repeat(32);
        for bad in [
            String::new(),
            trace.into(),
            format!("00-{trace}"),
            format!("00-{trace}-1-01"),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{zeros}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            format!("00-{trace}0-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(run(bad.clone()), None, "{bad}");
        }
    }

    #[test]
    fn a_tag_is_bounded_and_has_no_control_characters() {
        let long = header("x-agent", &"é".repeat(500)).agent.unwrap();
        assert_eq!(long.chars().count(), TAG_CHARS);
        assert_eq!(header("x-agent", " a\tb ").agent.as_deref(), Some("ab"));
        assert_eq!(header("x-agent", " \t ").agent, None);
        let line = format!("Runtime: agent={} | session=s", "a".repeat(2000));
        let said = body(
            Endpoint::Chat,
            &serde_json::json!({ "messages": [{ "role": "user", "content": line }] }),
        );
        assert_eq!(said.agent.unwrap().len(), TAG_CHARS);
    }

    #[test]
    fn only_the_start_of_the_live_prompt_makes_a_heartbeat_or_a_job() {
        let heartbeat = format!("{} And more.", HEARTBEAT_PROMPTS[0]);
        let user = |text: &str| serde_json::json!({ "role": "user", "content": text });
        let context = || user(&format!("{INTERNAL_CONTEXT}\nnone"));
        let answer = || serde_json::json!({ "role": "assistant", "content": "ok" });
        let is = |messages: Vec<serde_json::Value>, expected: Option<&str>| {
            assert_eq!(origin(messages.into()).as_deref(), expected);
        };
        is(vec![user(&heartbeat)], Some("heartbeat"));
        is(vec![user(&heartbeat), context()], Some("heartbeat"));
        is(vec![user(&heartbeat), answer(), user("hi"), context()], Some("user"));
        is(vec![user(&heartbeat), answer(), user("hi")], None);
        is(vec![user(&format!("[OpenClaw heartbeat poll] {heartbeat}"))], None);
        is(vec![user("[cron:4d0fa22e watch mail] Check mail"), context()], Some("cron"));
        is(vec![user("[cron:4d0fa22e] Check mail")], None);
        is(vec![user("Why [cron:4d0fa22e watch mail] now?")], None);
        // The result of a tool is a message of the user without text.
        let result = serde_json::json!({
            "role": "user",
            "content": [{ "type": "tool_result", "content": "hi" }],
        });
        is(vec![user(&heartbeat), answer(), result], Some("heartbeat"));
        is(vec![], None);
    }

    #[test]
    fn an_isolated_heartbeat_is_known_by_its_session_in_every_format() {
        let line = "Be brief.\nRuntime: agent=a | session=agent:a:heartbeat | host=h\nEnd.";
        let expected = said("a", "agent:a:heartbeat", "heartbeat");
        let bodies = [
            (
                Endpoint::Chat,
                serde_json::json!({ "messages": [{ "role": "system", "content": line }] }),
            ),
            (Endpoint::Responses, serde_json::json!({ "instructions": line, "input": "hi" })),
            (
                Endpoint::Messages,
                serde_json::json!({ "system": [{ "type": "text", "text": line }] }),
            ),
            (
                Endpoint::Generate,
                serde_json::json!({ "systemInstruction": { "parts": [{ "text": line }] } }),
            ),
            (
                Endpoint::StreamGenerate,
                serde_json::json!({ "contents": [{ "role": "user", "parts": [{ "text": line }] }] }),
            ),
        ];
        for (endpoint, request) in bodies {
            assert_eq!(body(endpoint, &request), expected, "{endpoint:?}");
        }
    }

    #[test]
    fn a_runtime_line_inside_other_text_says_nothing() {
        let text = "Explain what `Runtime: agent=main | session=s` means";
        let request = serde_json::json!({ "messages": [{ "role": "user", "content": text }] });
        assert_eq!(body(Endpoint::Chat, &request), Attribution::default());
    }
}
