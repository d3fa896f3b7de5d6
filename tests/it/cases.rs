//! What providers really send, through the whole running proxy: every recorded reply gives
//! the right classes and the right debit, in whatever pieces it comes, and reaches the client
//! unchanged but for the documented edits.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::account::{Account, UsageRow};
use crate::support::answer::Dialect;
use crate::support::edits::{broke_off_cleanly, differs_by_cost_only, without_usage_chunk};
use crate::support::http::Reply;
use crate::support::prices::{self, Audio, Counts, WEB_SEARCH_FEE, pico_of};
use crate::support::proxy::Setup;
use crate::support::script::{Cut, Pieces, Script};
use crate::support::upstream::Upstream;

/// A file of `tests/cases/usage`.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    endpoint: String,
    stream: bool,
    #[serde(default = "ok")]
    status: u16,
    response_headers: std::collections::BTreeMap<String, String>,
    body: String,
    #[serde(default)]
    request: Value,
    #[serde(default)]
    harness: Harness,
    expect: Expect,
    #[serde(default)]
    expect_extra: Value,
}

fn ok() -> u16 {
    200
}

#[derive(Debug, Default, Deserialize)]
struct Harness {
    #[serde(default)]
    chunking: Value,
    encode: Option<String>,
    close: Option<String>,
    http_version: Option<String>,
    #[serde(default)]
    truncated: bool,
}

/// Counts in classes that do not overlap; `None` where they depend on the estimator.
#[derive(Debug, Deserialize)]
struct Expect {
    input_tokens: Option<u64>,
    cached_input_tokens: Option<u64>,
    cache_creation_5m_tokens: Option<u64>,
    cache_creation_1h_tokens: Option<u64>,
    output_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
    estimated: bool,
}

/// Whether the client asks for usage in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Usage {
    Asked,
    NotAsked,
}

#[tokio::test]
async fn every_case_is_metered_and_debited_exactly_in_whatever_pieces_it_comes() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).start().await;
    let account = proxy.account_with(crate::support::credits("100000")).await;
    let mut failures = Vec::new();
    let mut served = 0;
    for case in cases() {
        let Some(dialect) = dialect(&case) else {
            continue;
        };
        served += 1;
        for pieces in pieces(&case) {
            for usage in [Usage::Asked, Usage::NotAsked] {
                if usage == Usage::NotAsked && !is_edited(dialect, &case) {
                    continue;
                }
                if let Err(why) = run(&case, dialect, &pieces, usage, &upstream, &account).await {
                    failures.push(format!("{} ({pieces:?}, {usage:?}): {why}", case.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(served > 50, "only {served} cases were found");
    account.check_books().await;
}

/// The files, by name. Each names itself, so a failure leads to its file.
fn cases() -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/usage");
    let mut cases: Vec<Case> = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"))
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

/// The endpoint of ours whose shape the reply has; `None` for those that are not served.
fn dialect(case: &Case) -> Option<Dialect> {
    // Providers put other things before the last part; these are something else altogether.
    let elsewhere = ["/v2/chat", "/api/chat", "/v1/responses/"];
    if elsewhere.iter().any(|path| case.endpoint.starts_with(path)) {
        return None;
    }
    Dialect::of_path(&case.endpoint)
}

/// Whether the stream is one of those that may be edited.
fn is_edited(dialect: Dialect, case: &Case) -> bool {
    case.stream && matches!(dialect, Dialect::Chat | Dialect::Completions)
}

/// Whole, by seven bytes, by one, and as the case says.
fn pieces(case: &Case) -> Vec<Pieces> {
    let mut all = vec![Pieces::Whole, Pieces::Sizes(vec![7]), Pieces::Sizes(vec![1])];
    if let Value::Array(sizes) = &case.harness.chunking {
        let size = |size: &Value| usize::try_from(size.as_u64().unwrap()).unwrap();
        all.push(Pieces::Sizes(sizes.iter().map(size).collect()));
    }
    all
}

/// Sends one request through the proxy and compares everything.
async fn run(
    case: &Case,
    dialect: Dialect,
    pieces: &Pieces,
    usage: Usage,
    upstream: &Upstream,
    account: &Account,
) -> Result<(), String> {
    upstream.next(script(case, pieces));
    let before = account.balance().await;
    let (model, path, body) = request(case, dialect, usage);
    let reply = account.post(&path, &body).await;
    account.settled().await;
    let row = account.last_usage().await;
    let after = account.balance().await;
    let charge = check_row(case, &row, model)?;
    let debit = before.checked_add(-after).unwrap();
    same("the debit", &debit, &charge)?;
    same("the charge", &row.charge, &charge)?;
    if case.status == 200 {
        check_bytes(case, dialect, usage, &reply, &row)?;
    }
    Ok(())
}

/// The reply of the upstream, byte for byte as the case says.
fn script(case: &Case, pieces: &Pieces) -> Script {
    let content_type = &case.response_headers["content-type"];
    let mut script = Script::whole(content_type, case.body.clone()).status(case.status);
    for (name, value) in &case.response_headers {
        script = script.header(name, value);
    }
    if let Some(coding) = &case.harness.encode {
        script = script.encoded(coding);
    }
    if case.stream {
        script = script.chunked();
    }
    let length = script.body().len();
    script = script.in_pieces(pieces);
    match (case.harness.close.as_deref(), case.harness.http_version.as_deref()) {
        (_, Some("1.0")) => script.http10(),
        (Some("reset"), _) => script.cut_at(length, Cut::Reset),
        _ if case.harness.truncated => script.cut_at(length, Cut::Fin),
        _ => script,
    }
}

/// Our model, path and body for the request that the case's reply answers.
fn request(case: &Case, dialect: Dialect, usage: Usage) -> (&'static str, String, Value) {
    let model = match dialect {
        Dialect::Messages if !case.expect_extra["priced_model"].is_null() => "claude-fallback",
        Dialect::Messages | Dialect::CountTokens => "claude",
        Dialect::Generate | Dialect::StreamGenerate => "gemini",
        _ => "test",
    };
    let text = "Say something.";
    let messages = json!([{ "role": "user", "content": text }]);
    let (path, mut body) = match dialect {
        Dialect::Chat => ("/v1/chat/completions", json!({ "messages": messages })),
        Dialect::Completions => ("/v1/completions", json!({ "prompt": text })),
        Dialect::Embeddings => ("/v1/embeddings", json!({ "input": text })),
        Dialect::Responses => ("/v1/responses", json!({ "input": text })),
        Dialect::Messages => ("/v1/messages", json!({ "max_tokens": 1000, "messages": messages })),
        Dialect::CountTokens => ("/v1/messages/count_tokens", json!({ "messages": messages })),
        Dialect::Generate | Dialect::StreamGenerate => {
            let action = case.endpoint.rsplit(':').next().expect("an action");
            let path = format!("/v1beta/models/{model}:{action}");
            let contents = json!([{ "role": "user", "parts": [{ "text": text }] }]);
            return (model, path, json!({ "contents": contents }));
        }
    };
    if let Value::Object(request) = &case.request {
        for (name, value) in request {
            body[name] = value.clone();
        }
    }
    body["model"] = json!(model);
    let asked = case.request["stream"].as_bool().unwrap_or(case.stream);
    if asked {
        body["stream"] = json!(true);
        if usage == Usage::Asked && matches!(dialect, Dialect::Chat | Dialect::Completions) {
            body["stream_options"] = json!({ "include_usage": true });
        }
    }
    (model, path.into(), body)
}

/// Compares the row with what is expected and returns what it must cost.
fn check_row(
    case: &Case,
    row: &UsageRow,
    model: &str,
) -> Result<farebox::billing::Credits, String> {
    same("the model", &row.model.as_str(), &model)?;
    let (expect, extra) = (&case.expect, &case.expect_extra);
    for (what, expected, found) in [
        ("input", expect.input_tokens, row.input_tokens),
        ("cached input", expect.cached_input_tokens, row.cached_input_tokens),
        ("cache creation 5m", expect.cache_creation_5m_tokens, row.cache_creation_5m_tokens),
        ("cache creation 1h", expect.cache_creation_1h_tokens, row.cache_creation_1h_tokens),
        ("output", expect.output_tokens, row.output_tokens),
        ("reasoning", expect.reasoning_tokens, row.reasoning_tokens),
    ] {
        if let Some(expected) = expected {
            same(what, &found, &expected)?;
        }
    }
    let bound = |name: &str, else_: u64| extra[name].as_u64().unwrap_or(else_);
    let (min, max) = (bound("output_tokens_min", 0), bound("output_tokens_max", u64::MAX));
    if !(min..=max).contains(&row.output_tokens) {
        return Err(format!("output: {} is not within {min}..={max}", row.output_tokens));
    }
    if expect.input_tokens.is_none() && row.input_tokens == 0 {
        return Err("input: nothing was estimated".into());
    }
    for name in ["web_search_calls", "web_search_requests"] {
        if let Some(expected) = extra[name].as_u64() {
            same(name, &row.calls.get("web_search").copied().unwrap_or_default(), &expected)?;
        }
    }
    check_source(case, row)?;
    Ok(expected_charge(case, row, model))
}

fn check_source(case: &Case, row: &UsageRow) -> Result<(), String> {
    let unbilled = case.status != 200
        || case.expect_extra["billable"] == false
        || case.expect_extra["pending"] == true
        || case.expect_extra["stream_error"] == true;
    match (case.expect.estimated, unbilled && row.counts() == Counts::default()) {
        (true, _) => same("the source", &row.source.as_str(), &"estimated"),
        (false, true) => same("the source", &row.source.as_str(), &"none"),
        (false, false) => same("the source", &row.source.as_str(), &"reported"),
    }
}

/// Priced apart from the program, from the counts that were just found right.
fn expected_charge(case: &Case, row: &UsageRow, model: &str) -> farebox::billing::Credits {
    let extra = &case.expect_extra;
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    let cached = count(&extra["cached_audio_tokens"]);
    let audio = Audio {
        // Reported with what the cache held, which has a rate of its own.
        input: count(&extra["input_audio_tokens"]) - cached,
        cached,
        output: count(&extra["output_audio_tokens"]),
    };
    let priced = extra["priced_model"].as_str().unwrap_or(model);
    let rates = prices::rates(priced, extra["service_tier"].as_str());
    let mut pico = rates.pico(&row.counts(), audio);
    for sub in extra["sub_usages"].as_array().into_iter().flatten() {
        let counts = Counts::new(count(&sub["input_tokens"]), count(&sub["output_tokens"]));
        let model = sub["model"].as_str().expect("a sub-usage names its model");
        pico += prices::rates(model, None).pico(&counts, Audio::default());
    }
    let searches = row.calls.get("web_search").copied().unwrap_or_default();
    prices::round(pico + pico_of(WEB_SEARCH_FEE) * i128::from(searches))
}

/// The client's bytes are the upstream's, but for the documented edits.
fn check_bytes(
    case: &Case,
    dialect: Dialect,
    usage: Usage,
    reply: &Reply,
    row: &UsageRow,
) -> Result<(), String> {
    let sent = case.body.as_bytes();
    let got = decoded(reply);
    let cut = case.harness.truncated || case.harness.close.as_deref() == Some("reset");
    same("the reply is whole", &reply.complete, &!cut)?;
    if cut {
        let edited = is_edited(dialect, case);
        let sent = if usage == Usage::NotAsked { without_usage_chunk(sent) } else { sent.into() };
        return if broke_off_cleanly(&sent, &got, edited) { Ok(()) } else { Err(changed(&got)) };
    }
    if !case.stream {
        let header = reply.header("x-farebox-charge").unwrap_or_default();
        if case.request["stream"] != true {
            same("x-farebox-charge", &header, &row.charge.to_string().as_str())?;
        }
        return if got == sent { Ok(()) } else { Err(changed(&got)) };
    }
    match (is_edited(dialect, case), usage) {
        (true, Usage::NotAsked) if got == without_usage_chunk(sent) => Ok(()),
        // What failed has no final usage to write the cost into.
        (true, Usage::Asked) if case.expect_extra["stream_error"] == true && got == sent => Ok(()),
        (true, Usage::Asked) if row.source == "reported" => {
            differs_by_cost_only(sent, &got, row.charge)
        }
        (true, Usage::Asked) | (false, _) if got == sent => Ok(()),
        _ => Err(changed(&got)),
    }
}

fn changed(got: &[u8]) -> String {
    format!("the client's bytes are not the upstream's: {}", String::from_utf8_lossy(got))
}

/// The body as the client understands it.
fn decoded(reply: &Reply) -> Vec<u8> {
    let mut out = Vec::new();
    match reply.header("content-encoding") {
        Some("gzip") => {
            flate2::read::GzDecoder::new(&reply.body[..]).read_to_end(&mut out).unwrap();
        }
        Some("br") => {
            brotli::Decompressor::new(&reply.body[..], 4096).read_to_end(&mut out).unwrap();
        }
        Some("zstd") => out = zstd::decode_all(&reply.body[..]).unwrap(),
        _ => out.clone_from(&reply.body),
    }
    out
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?}, not {expected:?}")) }
}
