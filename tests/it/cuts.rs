//! An upstream that breaks off, goes silent or garbles its stream at any byte: who pays what
//! follows from what had been said by then, and the books add up.

use std::collections::HashMap;

use farebox::billing::Credits;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::account::{Account, UsageRow, chat};
use crate::support::edits::{blocks, data_of};
use crate::support::http::Reply;
use crate::support::prices::{Audio, Counts, rates, round};
use crate::support::proxy::Setup;
use crate::support::script::{Cut, Script};
use crate::support::upstream::{Play, Upstream};
use crate::support::{credits, figure, is_soak};

/// Requests at once: stalls cost time, and this makes them cost it together.
const AT_ONCE: usize = 240;
/// No JSON and no text, whatever stands around it.
const GARBAGE: &[u8] = b"\xff\x00\"{";

/// Streams of chat completions by their files.
const OTHERS: [&str; 16] = [
    "azure-sse-prompt-filter-first",
    "fireworks-sse-unasked-usage",
    "groq-sse-both-usages",
    "mistral-sse-usage-in-finish-chunk",
    "moonshot-sse-usage-in-choice",
    "openai-chat-sse-usage-after-finish",
    "sse-bom",
    "sse-comments-ids-retry",
    "sse-crlf",
    "sse-done-with-trailing-space",
    "sse-http10-close-delimited",
    "sse-no-space-after-colon",
    "sse-split-mid-usage",
    "sse-split-utf8-bytewise",
    "vllm-sse-continuous-usage",
    "zhipu-sse-usage-in-finish-chunk",
];

/// A recorded stream and what it reports.
struct Recorded {
    file: &'static str,
    path: &'static str,
    model: &'static str,
    body: Vec<u8>,
    counts: Counts,
    /// What the whole reply costs.
    charge: Credits,
}

/// What happens at a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Fin,
    Reset,
    Stall,
    Garbage,
}

/// What is known of a reply by some byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Nothing,
    Output,
    Usage,
    End,
}

#[derive(Deserialize)]
struct File {
    body: String,
    expect: Expect,
}

#[derive(Deserialize)]
struct Expect {
    input_tokens: u64,
    cached_input_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
}

impl Recorded {
    fn read(file: &'static str, path: &'static str, model: &'static str) -> Self {
        let name = format!("{}/tests/cases/usage/{file}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(name).unwrap();
        let File { body, expect } = serde_json::from_str(&text).unwrap();
        let counts = Counts {
            cached: expect.cached_input_tokens,
            reasoning: expect.reasoning_tokens,
            ..Counts::new(expect.input_tokens, expect.output_tokens)
        };
        let tier = body.contains(r#""service_tier":"flex""#).then_some("flex");
        let charge = round(rates(model, tier).pico(&counts, Audio::default()));
        Self { file, path, model, body: body.into_bytes(), counts, charge }
    }

    /// One of each dialect; in a soak also how other providers put it.
    fn all() -> Vec<Self> {
        let gemini = "/v1beta/models/gemini:streamGenerateContent?alt=sse";
        let mut all = vec![
            Self::read("openai-chat-sse-include-usage", "/v1/chat/completions", "test"),
            Self::read("openai-completions-sse", "/v1/completions", "test"),
            Self::read("openai-responses-sse-completed", "/v1/responses", "test"),
            Self::read("anthropic-sse-basic-ping", "/v1/messages", "claude"),
            Self::read("gemini-sse-cumulative", gemini, "gemini"),
        ];
        if is_soak() {
            let chat = |file: &&'static str| Self::read(file, "/v1/chat/completions", "test");
            all.extend(OTHERS.iter().map(chat));
            let messages = |file| Self::read(file, "/v1/messages", "claude");
            all.push(messages("anthropic-sse-duplicate-message-start"));
            all.push(Self::read("gemini-sse-last-snapshot-drops-candidates", gemini, "gemini"));
            all.push(Self::read("gemini-sse-multi-step-reset", gemini, "gemini"));
        }
        all
    }

    fn is_gemini(&self) -> bool {
        self.model == "gemini"
    }

    /// Whether usage is reported with every event, so that an earlier report may be the last.
    fn reports_along(&self) -> bool {
        self.is_gemini() || self.file == "vllm-sse-continuous-usage"
    }

    fn request(&self, mark: &str) -> Value {
        if self.is_gemini() {
            return json!({ "contents": [{ "role": "user", "parts": [{ "text": mark }] }] });
        }
        let mut body = chat(self.model, mark);
        match self.path {
            "/v1/completions" => body = json!({ "model": self.model, "prompt": mark }),
            "/v1/responses" => body = json!({ "model": self.model, "input": mark }),
            "/v1/messages" => body["max_tokens"] = json!(100),
            _ => {}
        }
        body["stream"] = json!(true);
        // A chunk that is asked for passes, so that the bytes can be compared.
        if matches!(self.path, "/v1/completions" | "/v1/chat/completions") {
            body["stream_options"] = json!({ "include_usage": true });
        }
        body
    }

    fn script(&self, fault: Fault, at: usize) -> Script {
        let script = |body: Vec<u8>| Script::whole("text/event-stream", body).chunked();
        match fault {
            Fault::Fin => script(self.body.clone()).cut_at(at, Cut::Fin),
            Fault::Reset => script(self.body.clone()).cut_at(at, Cut::Reset),
            Fault::Stall => script(self.body.clone()).stall_at(at),
            Fault::Garbage => {
                let (head, tail) = self.body.split_at(at);
                script([head, GARBAGE, tail].concat())
            }
        }
    }

    /// What is known by a byte, read apart from the program: at least, and at most. What had
    /// come of an unfinished event may be counted or not.
    fn known_at(&self, at: usize) -> (Known, Known) {
        let (mut least, mut most) = (Known::Nothing, Known::Nothing);
        let mut end = 0;
        for block in blocks(&self.body) {
            let start = end;
            end += block.len();
            let known = known_of(&data_of(block));
            if end <= at {
                least = least.max(known);
                most = most.max(known);
            } else if start < at {
                // After its usage a reply may end with the name of its last event alone.
                let begun = if least == Known::Usage { known } else { known.min(Known::Output) };
                let so_far = known_of(&data_of(&self.body[start..at]));
                most = most.max(so_far).max(begun);
            }
        }
        (least, most)
    }
}

/// What an event says.
fn known_of(data: &str) -> Known {
    if data.trim() == "[DONE]" {
        return Known::End;
    }
    let Ok(event) = serde_json::from_str::<Value>(data) else { return Known::Nothing };
    let said = |path: &str| event.pointer(path).and_then(Value::as_str);
    let texts = ["/choices/0/delta/content", "/choices/0/text", "/delta/text", "/delta"];
    let texts = texts.iter().chain(&["/candidates/0/content/parts/0/text"]);
    let has_text = texts.copied().filter_map(said).any(|text| !text.is_empty());
    match said("/type") {
        Some("response.completed" | "message_stop") => return Known::End,
        Some("message_start") => return Known::Nothing,
        _ => {}
    }
    let usages = ["/usage", "/usageMetadata", "/choices/0/usage"];
    if usages.iter().any(|path| event.pointer(path).is_some_and(Value::is_object)) {
        return Known::Usage;
    }
    if has_text { Known::Output } else { Known::Nothing }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_byte_a_stream_breaks_at_the_charge_is_what_was_known_by_then() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream)
        .env("FAREBOX_INITIAL_CREDITS", "100000")
        .setting("max_in_flight", "1000")
        .setting("idle_timeout", "\"2s\"")
        .start()
        .await;
    let account = proxy.default_account();
    let recorded = Recorded::all();
    // Every so many bytes, and at the ends.
    let step = figure(7, 1);
    let mut runs: Vec<(usize, Fault, usize)> = Vec::new();
    for (which, recorded) in recorded.iter().enumerate() {
        for at in (0..recorded.body.len()).step_by(step).chain([recorded.body.len()]) {
            let faults = [Fault::Fin, Fault::Reset, Fault::Stall, Fault::Garbage];
            runs.extend(faults.map(|fault| (which, fault, at)));
        }
    }
    // Those that wait for a timeout wait together.
    runs.sort_by_key(|(_, fault, _)| *fault == Fault::Stall);
    upstream.choose({
        let scripts: HashMap<String, Script> = runs
            .iter()
            .map(|&(which, fault, at)| (mark(which, fault, at), recorded[which].script(fault, at)))
            .collect();
        move |request| {
            let text = String::from_utf8_lossy(&request.body).into_owned();
            let mark = text.split('"').find(|part| part.starts_with("mark "))?;
            scripts.get(mark).cloned().map(Play::Script)
        }
    });

    let mut replies = Vec::new();
    for runs in runs.chunks(AT_ONCE) {
        let asked = runs.iter().map(|&(which, fault, at)| {
            let recorded = &recorded[which];
            let body = recorded.request(&mark(which, fault, at));
            tokio::spawn(account.call(recorded.path, &body).reply())
        });
        for reply in asked.collect::<Vec<_>>() {
            replies.push(reply.await.unwrap());
        }
    }
    account.settled().await;
    check_all(&account, &recorded, &runs, &replies).await;
    account.check_books().await;
}

fn mark(which: usize, fault: Fault, at: usize) -> String {
    format!("mark {which} {fault:?} {at}")
}

async fn check_all(
    account: &Account,
    recorded: &[Recorded],
    runs: &[(usize, Fault, usize)],
    replies: &[Reply],
) {
    let rows = account.usage().await;
    assert_eq!(rows.len(), runs.len(), "one row a request");
    let rows: HashMap<_, _> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
    let mut failures = Vec::new();
    for (&(which, fault, at), reply) in runs.iter().zip(replies) {
        let recorded = &recorded[which];
        let id = reply.header("x-request-id").expect("a reply has an id");
        if let Err(why) = check(recorded, fault, at, reply, rows[id]) {
            let file = recorded.file;
            failures.push(format!("{file}, {fault:?} at {at}: {why}\n  {:?}", rows[id]));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

fn check(
    recorded: &Recorded,
    fault: Fault,
    at: usize,
    reply: &Reply,
    row: &UsageRow,
) -> Result<(), String> {
    let full = recorded.charge;
    let is = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    if fault == Fault::Garbage {
        let is_right = row.charge == full || (recorded.reports_along() && row.charge <= full);
        is(row.source != "reported" || is_right, "a garbled report was believed")?;
        return is(row.charge > credits("0"), "a garbled reply was free");
    }
    let (least, mut most) = recorded.known_at(at);
    // Gemini names no last event: silence after one that finishes the reply is its end.
    let finishes = recorded.body[..at].windows(14).any(|part| part == b"\"finishReason\"");
    if fault == Fault::Stall && recorded.is_gemini() && finishes {
        most = Known::End;
    }
    let found = match (row.outcome.as_str(), row.source.as_str(), reply.complete) {
        ("upstream_error", "none", whole) if row.charge == credits("0") => {
            is(whole == (reply.status >= 500), "neither refused nor broken off")?;
            Known::Nothing
        }
        ("upstream_cut", "estimated", false) if row.output_tokens > 0 => Known::Output,
        ("upstream_cut", "reported", false) => Known::Usage,
        ("completed", "reported", true) => Known::End,
        _ => return Err("no line of the table".into()),
    };
    is((least..=most).contains(&found), &format!("{found:?}, not {least:?} to {most:?}"))?;
    let is_final = !recorded.reports_along() || at + 4 >= recorded.body.len();
    if found >= Known::Usage && is_final {
        is(row.counts() == recorded.counts && row.charge == full, "not what was reported")?;
    }
    // A stream that is cut never costs more than the whole, but for the estimator's slack.
    is(row.charge <= full || row.source == "estimated", "more than the whole reply costs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_lasts_too_long_is_ended_even_if_its_client_is_what_makes_it_last() {
    let upstream = Upstream::start().await;
    let delta = json!({ "choices": [{ "index": 0, "delta": { "content": "a ".repeat(8192) } }] });
    let event = format!("data: {delta}\n\n");
    // More than a client takes that stops for a moment after each event.
    upstream.next(Script::events((0..10_000).map(|_| (event.clone(), 1))));
    let proxy = Setup::before(&upstream).setting("total_timeout", "\"1s\"").start().await;
    let account = proxy.default_account();
    let mut stream = account.stream_chat("Hi").await;
    let reading = tokio::spawn(async move {
        while let Some(Ok(_)) = stream.next().await {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    upstream.ended(1).await;
    reading.abort();
    account.settled().await;
    let row = account.last_usage().await;
    assert_eq!((row.outcome.as_str(), row.source.as_str()), ("upstream_cut", "estimated"));
    assert!(row.output_tokens > 0 && row.charge > credits("0"));
    account.check_books().await;
}
