//! An upstream that lies, floods, or does not speak HTTP: nobody is credited, nothing panics,
//! the client gets a clear error or a broken stream, and the row says so.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::account::{Account, chat};
use crate::support::credits;
use crate::support::http::Reply;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::script::Script;
use crate::support::upstream::Upstream;

mod spoilt;

const CHAT: &str = "/v1/chat/completions";

/// Numbers that are no counts, as they stand in JSON; some are no JSON either.
const ABSURD: [&str; 18] = [
    "-1",
    "-0",
    "-9223372036854775808",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "1.5",
    "-1.5",
    "1e400",
    "1e-400",
    "\"10\"",
    "\"-10\"",
    "true",
    "[]",
    "{}",
    "NaN",
    "Infinity",
];

/// Events or a whole reply with this usage object; `None` where the endpoint has no stream.
fn reply_with(path: &str, usage: &str, stream: bool) -> Script {
    let text = "Hello world";
    let (whole, events) = match path {
        "/v1/messages" => (
            format!(
                r#"{{"id":"msg_1","type":"message","role":"assistant","model":"claude","content":[{{"type":"text","text":"{text}"}}],"stop_reason":"end_turn","usage":{usage}}}"#
            ),
            vec![
                format!(
                    r#"{{"type":"message_start","message":{{"id":"msg_1","type":"message","role":"assistant","model":"claude","content":[],"usage":{usage}}}}}"#
                ),
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#.into(),
                format!(
                    r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{text}"}}}}"#
                ),
                format!(
                    r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn"}},"usage":{usage}}}"#
                ),
                r#"{"type":"message_stop"}"#.into(),
            ],
        ),
        "/v1/responses" => {
            let response = |status: &str| {
                format!(
                    r#"{{"id":"resp_1","object":"response","status":"{status}","model":"test","output":[{{"type":"message","content":[{{"type":"output_text","text":"{text}"}}]}}],"usage":{usage}}}"#
                )
            };
            let done = response("completed");
            let events = vec![
                format!(r#"{{"type":"response.output_text.delta","delta":"{text}"}}"#),
                format!(r#"{{"type":"response.completed","response":{done}}}"#),
            ];
            (done, events)
        }
        _ => (
            format!(
                r#"{{"id":"c","object":"chat.completion","model":"test","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{usage}}}"#
            ),
            vec![
                format!(
                    r#"{{"object":"chat.completion.chunk","model":"test","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":"stop"}}]}}"#
                ),
                format!(
                    r#"{{"object":"chat.completion.chunk","model":"test","choices":[],"usage":{usage}}}"#
                ),
                "[DONE]".into(),
            ],
        ),
    };
    if stream {
        let named = |data: String| {
            let kind = serde_json::from_str::<Value>(&data).unwrap_or_default();
            let name = kind["type"].as_str().map_or(String::new(), |n| format!("event: {n}\n"));
            (format!("{name}data: {data}\n\n"), 1)
        };
        Script::events(events.into_iter().map(named))
    } else {
        Script::whole("application/json", whole)
    }
}

fn body_for(path: &str, stream: bool) -> Value {
    let mut body = chat(if path == "/v1/messages" { "claude" } else { "test" }, "Say hello.");
    body["stream"] = json!(stream);
    if path == "/v1/messages" {
        body["max_tokens"] = json!(100);
    }
    if path == "/v1/responses" {
        body = json!({ "model": "test", "input": "Say hello.", "stream": stream });
    }
    body
}

async fn start() -> (Upstream, Proxy, Account) {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("10")).await;
    (upstream, proxy, account)
}

/// The program lives, has not panicked, and its books are right.
async fn assert_unharmed(upstream: &Upstream, proxy: &Proxy, account: &Account) {
    upstream.always(crate::support::answer::Answer::default());
    account.chat("Hi").await.expect(200);
    account.settled().await;
    account.check_books().await;
    assert!(!proxy.output().contains("panicked"), "{}", proxy.output());
}

#[tokio::test]
async fn absurd_counts_neither_credit_nor_ruin_a_client() {
    let (upstream, proxy, account) = start().await;
    let mut failures = String::new();
    for path in [CHAT, "/v1/responses", "/v1/messages"] {
        for stream in [false, true] {
            for number in ABSURD {
                let (input, output) = match path {
                    CHAT => ("prompt_tokens", "completion_tokens"),
                    _ => ("input_tokens", "output_tokens"),
                };
                for (i, o) in [(number, "7"), ("7", number), (number, number)] {
                    let usage = format!(r#"{{"{input}":{i},"{output}":{o},"total_tokens":14}}"#);
                    upstream.next(reply_with(path, &usage, stream));
                    let before = account.balance().await;
                    let reply = account.post(path, &body_for(path, stream)).await;
                    account.settled().await;
                    let row = account.last_usage().await;
                    let debit = before.checked_add(-account.balance().await).unwrap();
                    let fair = row.charge >= credits("0") && row.charge < credits("0.01");
                    let told = reply.status == 200 || reply.status == 502;
                    if debit != row.charge || !fair || !told {
                        let at = format!("{path} {stream} {usage}");
                        writeln!(failures, "{at}: {} {debit} {row:?}", reply.status).unwrap();
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert_unharmed(&upstream, &proxy, &account).await;
}

/// Details that are larger than their total, or negative, never make the rest cheaper than
/// nothing.
#[tokio::test]
async fn parts_that_exceed_their_whole_do_not_credit() {
    let (upstream, proxy, account) = start().await;
    for details in [
        r#""prompt_tokens_details":{"cached_tokens":1000000}"#,
        r#""prompt_tokens_details":{"cached_tokens":-1000000}"#,
        r#""prompt_tokens_details":{"cache_write_tokens":1000000}"#,
        r#""prompt_tokens_details":{"audio_tokens":-5}"#,
        r#""completion_tokens_details":{"reasoning_tokens":1000000}"#,
        r#""completion_tokens_details":{"reasoning_tokens":-1000000}"#,
        r#""prompt_tokens_details":[]"#,
        r#""prompt_tokens_details":"x""#,
        r#""cost":-100"#,
    ] {
        for stream in [false, true] {
            let usage = format!(
                r#"{{"prompt_tokens":100,"completion_tokens":10,"total_tokens":110,{details}}}"#
            );
            upstream.next(reply_with(CHAT, &usage, stream));
            account.post(CHAT, &body_for(CHAT, stream)).await.expect(200);
            account.settled().await;
            let row = account.last_usage().await;
            let zero = credits("0");
            assert!(row.charge > zero && row.charge < credits("20"), "{details}: {row:?}");
        }
    }
    assert_unharmed(&upstream, &proxy, &account).await;
}

/// Another model's counts on the same request, beyond belief, make the request's own not free.
#[tokio::test]
async fn a_helper_model_beyond_belief_leaves_the_rest_at_its_price() {
    let (upstream, proxy, account) = start().await;
    let helper = r#"{"type":"advisor_message","model":"claude-opus-4-7","input_tokens":9007199254740991,"output_tokens":9007199254740991}"#;
    let own = r#"{"type":"message","input_tokens":100,"output_tokens":10}"#;
    let usage =
        format!(r#"{{"input_tokens":100,"output_tokens":10,"iterations":[{own},{helper}]}}"#);
    for stream in [false, true] {
        upstream.next(reply_with("/v1/messages", &usage, stream));
        account.post("/v1/messages", &body_for("/v1/messages", stream)).await.expect(200);
        account.settled().await;
        let row = account.last_usage().await;
        assert_eq!(row.charge, charge("claude", &Counts::new(100, 10)), "{row:?}");
        assert!(row.flags.iter().any(|flag| flag == "usage_invalid"), "{row:?}");
    }
    assert_unharmed(&upstream, &proxy, &account).await;
}

fn raw(head: &str, body: &str) -> Script {
    Script::raw(format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}"))
}

/// What is no reply at all: the client hears of it and nobody pays.
#[tokio::test]
async fn what_is_no_reply_is_told_as_such_and_costs_nothing() {
    let (upstream, proxy, account) = start().await;
    let json = "content-type: application/json\r\n";
    let chunked = format!("{json}transfer-encoding: chunked\r\n");
    let headers: String = (0..300).map(|i| format!("x-{i}: 1\r\n")).collect();
    let long = format!("x-long: {}\r\ncontent-length: 2\r\n", "a".repeat(2_000_000));
    let half = r#"{"id":"c","choices":["#;
    for (name, script, status) in [
        ("a page of HTML", Script::whole("text/html", "<html><h1>Welcome</h1></html>"), 502),
        ("HTML that says JSON", Script::whole("application/json", "<html></html>"), 502),
        ("nothing", Script::whole("application/json", ""), 502),
        ("bytes", Script::whole("application/octet-stream", vec![0xff_u8, 0, 1, 2, 0xfe]), 502),
        ("half a document", Script::whole("application/json", half), 502),
        ("no content", raw("", "").status(204), 502),
        ("a redirect", Script::whole("text/html", "x").status(301).header("location", "/x"), 502),
        ("not modified", Script::whole("text/html", "").status(304), 502),
        (
            "another protocol",
            {
                Script::raw(
                    "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
                )
            },
            502,
        ),
        ("not HTTP", Script::raw("220 smtp.example.org ESMTP\r\n"), 502),
        ("HTTP/0.9", Script::raw("<html></html>"), 502),
        ("zeros", Script::raw(vec![0_u8; 4096]), 502),
        ("a status of letters", Script::raw("HTTP/1.1 OK 200\r\n\r\n"), 502),
        ("a length that is too long", raw(&format!("{json}content-length: 100\r\n"), half), 502),
        (
            "two lengths",
            raw(&format!("{json}content-length: 2\r\ncontent-length: 3\r\n"), "{}"),
            502,
        ),
        ("a negative length", raw(&format!("{json}content-length: -2\r\n"), "{}"), 502),
        ("a chunk without a size", raw(&chunked, "ZZ\r\n{}\r\n0\r\n\r\n"), 502),
        ("a chunk too large to be", raw(&chunked, "fffffffffffffffff\r\n{}\r\n0\r\n\r\n"), 502),
        ("chunks without an end", raw(&chunked, "2\r\n{}\r\n"), 502),
        ("too many headers", raw(&format!("{headers}content-length: 2\r\n"), "{}"), 502),
        ("a huge header", raw(&long, "{}"), 502),
        ("an unknown encoding", Script::json(&json!({})).header("content-encoding", "lzma"), 502),
        ("a false encoding", Script::json(&json!({})).header("content-encoding", "gzip"), 502),
        ("a status beyond all", Script::json(&json!({})).status(999), 502),
        ("a teapot", Script::json(&json!({})).status(418), 502),
    ] {
        for stream in [false, true] {
            upstream.next(script.clone());
            let reply = account.post(CHAT, &body_for(CHAT, stream)).await;
            assert!(reply.complete && reply.status == status, "{name}: {reply:?}");
            let code = reply.code();
            assert!(code.starts_with("upstream_"), "{name}: {code}");
            account.settled().await;
            let row = account.last_usage().await;
            assert_eq!((row.charge, row.http_status), (credits("0"), status), "{name}: {row:?}");
            assert_eq!(row.outcome, "upstream_error", "{name}: {row:?}");
        }
    }
    assert_eq!(account.balance().await, credits("10"));
    assert_unharmed(&upstream, &proxy, &account).await;
}

#[tokio::test]
async fn interim_replies_and_headers_of_the_upstream_stay_there() {
    let (upstream, proxy, account) = start().await;
    let usage = r#"{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}"#;
    let body = reply_with(CHAT, usage, false).body();
    let body = String::from_utf8(body.into()).unwrap();
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(20);
    upstream.next(Script::raw(format!(
        "HTTP/1.1 100 Continue\r\n\r\n{early}HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )));
    let reply = account.chat("Hi").await.expect(200);
    assert_eq!(reply.text(), body);

    let mut script = reply_with(CHAT, usage, false);
    let dropped = [
        "set-cookie",
        "openai-organization",
        "openai-project",
        "openai-processing-ms",
        "x-ratelimit-remaining-tokens",
        "server",
        "alt-svc",
        "strict-transport-security",
        "access-control-allow-origin",
        "link",
        "location",
        "x-farebox-balance",
        "www-authenticate",
    ];
    for name in dropped {
        script = script.header(name, "upstream-canary");
    }
    upstream.next(script);
    let reply = account.chat("Hi").await.expect(200);
    for (name, value) in &reply.headers {
        let value = value.to_str().unwrap();
        assert!(!value.contains("canary"), "{name}: {value}");
        assert!(!dropped.contains(&name.as_str()) || name == "x-farebox-balance", "{name}");
    }
    account.settled().await;
    let row = account.last_usage().await;
    assert_eq!(row.charge, charge("test", &Counts::new(10, 2)));
    assert_unharmed(&upstream, &proxy, &account).await;
}

/// The largest resident size that a process has had, in KiB.
fn peak_kib(proxy: &Proxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A gibibyte of blanks: each encoding lets a part of it be repeated.
fn bomb(content_type: &str, encoding: &str) -> Script {
    let part = Script::whole("x", vec![b' '; 16 << 20]).encoded(encoding).body();
    Script::whole(content_type, part.repeat(64)).header("content-encoding", encoding)
}

#[tokio::test]
async fn a_compressed_bomb_does_not_go_off() {
    let (upstream, proxy, account) = start().await;
    for encoding in ["gzip", "zstd"] {
        for status in [200, 400, 500] {
            upstream.next(bomb("application/json", encoding).status(status));
            account.chat("Hi").await.expect(502);
        }
    }
    upstream.next(bomb("text/event-stream", "zstd"));
    let reply: Reply = account.post(CHAT, &body_for(CHAT, true)).await;
    assert!(reply.status == 502 || !reply.complete, "{}", reply.status);
    account.settled().await;
    assert!(account.last_usage().await.charge < credits("0.01"));
    // Far from the gibibyte: one reply may take 64 MiB, twice while it grows.
    assert!(peak_kib(&proxy) < 512 * 1024, "{} KiB", peak_kib(&proxy));
    assert_unharmed(&upstream, &proxy, &account).await;
}

#[tokio::test]
async fn a_reply_without_end_is_ended() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream)
        .setting("total_timeout", "\"1s\"")
        .setting("idle_timeout", "\"1s\"")
        .setting("max_reply_bytes", "1000000")
        .start()
        .await;
    // What floods in is estimated by its size.
    let account = proxy.account_with(credits("100000")).await;
    let piece = |text: &str| {
        let chunk = json!({ "choices": [{ "index": 0, "delta": { "content": text } }] });
        (format!("data: {chunk}\n\n"), 1)
    };
    // Slow drops, and as fast as it can be read.
    let drops = (0..2000).map(|_| piece("x"));
    let pause = std::time::Duration::from_millis(20);
    let flood = piece(&"y".repeat(60_000));
    for script in
        [Script::events(drops).paced(pause), Script::events((0..30_000).map(|_| flood.clone()))]
    {
        upstream.next(script);
        let mut stream = account.call(CHAT, &body_for(CHAT, true)).send().await;
        assert_eq!(stream.status, 200);
        let mut tail = Vec::new();
        let end = loop {
            match stream.next().await {
                Some(Ok(piece)) => {
                    stream.received.clear();
                    tail = piece.to_vec();
                }
                end => break end,
            }
        };
        let tail = String::from_utf8_lossy(&tail).into_owned();
        assert!(matches!(end, Some(Err(_))), "it ended as if it were whole: {tail}");
        account.settled().await;
        let row = account.last_usage().await;
        assert_eq!((row.outcome.as_str(), row.source.as_str()), ("upstream_cut", "estimated"));
    }
    // Whole replies, and refusals that never end.
    for (status, expected) in [(200, 502), (400, 502), (500, 502)] {
        let spaces = Bytes::from(vec![b' '; 60_000]);
        let mut script = Script::whole("application/json", "{").chunked().status(status);
        for _ in 0..1000 {
            script
                .steps
                .push(crate::support::script::Step::Send { bytes: spaces.clone(), tokens: 0 });
        }
        upstream.next(script);
        let reply = account.chat("Hi").await;
        assert_eq!(reply.status, expected, "{status}");
        upstream.next(
            Script::whole("application/json", vec![b' '; 1000])
                .in_pieces(&crate::support::script::Pieces::Sizes(vec![1]))
                .chunked()
                .status(status)
                .paced(std::time::Duration::from_millis(50)),
        );
        let reply = account.chat("Hi").await;
        assert!(matches!(reply.status, 502 | 504), "{status}: {}", reply.status);
    }
    assert_unharmed(&upstream, &proxy, &account).await;
}

#[tokio::test]
async fn a_giant_event_passes_and_what_it_said_is_estimated() {
    let (upstream, proxy, account) = start().await;
    let giant = format!(
        r#"{{"choices":[{{"index":0,"delta":{{"content":"{}"}}}}],"usage":{{"prompt_tokens":0,"completion_tokens":0}}}}"#,
        "z".repeat(6 << 20)
    );
    for end in ["\n\ndata: [DONE]\n\n", ""] {
        let events = vec![(format!("data: {giant}{end}"), 1)];
        upstream.next(Script::events(events));
        let reply = account.post(CHAT, &body_for(CHAT, true)).await;
        assert!(reply.body.len() > 6 << 20, "{}", reply.body.len());
        account.settled().await;
        let row = account.last_usage().await;
        assert!(row.charge > credits("0"), "{row:?}");
        assert_eq!(row.source, "estimated", "{row:?}");
        assert!(row.flags.contains(&"event_too_large".into()), "{row:?}");
    }
    assert_unharmed(&upstream, &proxy, &account).await;
}

#[tokio::test]
async fn events_that_are_garbage_pass_and_break_nothing() {
    let (upstream, proxy, account) = start().await;
    for garbage in [
        &b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\xfe\"}}]}\n\n"[..],
        b"data: {{{{{{\n\n",
        b"data: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n\n",
        b"data\n\ndata:\n\n:\n\n\n\n",
        b"\xef\xbb\xbfdata: {}\n\n",
        b"event: error\ndata: null\n\n",
        b"data: null\n\ndata: 1\n\ndata: \"usage\"\n\n",
        b"data: {\"usage\":null,\"usage\":{\"prompt_tokens\":-1}}\n\n",
        b"data: {\"choices\":{},\"usage\":[]}\n\n",
        b"id: 1\nretry: 99999999999999999999\nevent: x\n\n",
        b"\0\0\0\0\n\n",
    ] {
        for end in [&b"data: [DONE]\n\n"[..], b""] {
            let bytes = [garbage, end].concat();
            upstream.next(Script::whole("text/event-stream", bytes.clone()).chunked());
            let reply = account.post(CHAT, &body_for(CHAT, true)).await;
            assert_eq!(reply.status, 200);
            assert_eq!(reply.body, bytes, "{:?}", String::from_utf8_lossy(garbage));
            account.settled().await;
            let row = account.last_usage().await;
            let fair = row.charge >= credits("0") && row.charge < credits("0.01");
            assert!(fair && row.source != "reported", "{row:?}");
        }
    }
    let nested = format!("data: {}\n\n", "{\"usage\":".repeat(200_000));
    upstream.next(Script::whole("text/event-stream", nested).chunked());
    account.post(CHAT, &body_for(CHAT, true)).await;
    let nested = "[".repeat(500_000);
    upstream.next(Script::whole("application/json", nested));
    account.chat("Hi").await.expect(502);
    assert_unharmed(&upstream, &proxy, &account).await;
}
