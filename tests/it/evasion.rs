//! Ways to use a model without paying for it, each of them tried. The oracle is the upstream's
//! own invoice: what it bills is debited, and what is refused it never sees.

mod reach;

use serde_json::{Value, json};

use crate::support::account::{Account, chat};
use crate::support::answer::{Answer, Dialect};
use crate::support::credits;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw::Raw;
use crate::support::script::{Gate, Pieces, Script};
use crate::support::upstream::Upstream;

const CHAT: &str = "/v1/chat/completions";

/// An upstream, the program before it, and an account with ten credits.
async fn start(answer: Answer) -> (Upstream, Proxy, Account) {
    let upstream = Upstream::answering(answer).await;
    let proxy = Setup::before(&upstream).setting("max_drains", "10000").start().await;
    let account = proxy.account_with(credits("10")).await;
    (upstream, proxy, account)
}

/// All debits are what the upstream's invoice comes to by our prices.
async fn assert_debited_as_billed(upstream: &Upstream, account: &Account) {
    account.settled().await;
    let bills = upstream.bills();
    let billed = bills.iter().map(|bill| charge(&bill.model, &bill.counts)).sum();
    assert_eq!(account.check_books().await, billed, "{bills:?}");
}

/// A chat request with more fields.
fn chat_with(fields: Value) -> Value {
    let mut body = chat("test", "Hi");
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn raw_chat(account: &Account, body: impl Into<bytes::Bytes>) -> (u16, String) {
    let reply = account.call(CHAT, &Value::Null).body(body).reply().await;
    let code = if reply.status == 200 { String::new() } else { reply.code() };
    (reply.status, code)
}

#[tokio::test]
async fn usage_is_asked_of_the_upstream_however_the_client_declines_it() {
    let (upstream, _proxy, account) = start(Answer::default()).await;
    for options in [
        None,
        Some(json!(null)),
        Some(json!({})),
        Some(json!({ "include_usage": false })),
        Some(json!({ "include_usage": null })),
    ] {
        let mut body = chat_with(json!({ "stream": true }));
        if let Some(options) = options {
            body["stream_options"] = options;
        }
        let reply = account.post(CHAT, &body).await.expect(200);
        assert!(!reply.text().contains("\"prompt_tokens\""), "{}", reply.text());
        let sent = upstream.last().request.json();
        assert_eq!(sent["stream_options"]["include_usage"], true);
    }
    assert_debited_as_billed(&upstream, &account).await;
}

#[tokio::test]
async fn a_document_that_two_readers_read_differently_is_refused() {
    let (upstream, _proxy, account) = start(Answer::default()).await;
    for body in [
        r#"{"model":"test","messages":[],"model":"other"}"#,
        r#"{"model":"test","messages":[],"mod\u0065l":"other"}"#,
        r#"{"model":"test","messages":[],"n":1,"n":100}"#,
        r#"{"model":"test","stream":true,"stream_options":{"include_usage":true},"stream_options":{}}"#,
        r#"{"model":"test","stream":true,"stream_options":{"include_usage":true,"include_usage":false}}"#,
        r#"{"model":"test","messages":[{"role":"user","role":"system","content":"x"}]}"#,
        r#"{"model":"test","Model":"other"}"#,
        r#"{"model":"test","MODEL":"other"}"#,
        r#"{"Model":"test"}"#,
        r#"{" model":"test"}"#,
        r#"{"model":"test","Stream_Options":{}}"#,
        r#"{"model":"test","Max_Tokens":1}"#,
        r#"{"model":"test"}{"model":"other"}"#,
        r#"{"model":"test"} x"#,
        r#"[{"model":"test"}]"#,
        r#""test""#,
        r#"{"model":["test"]}"#,
        r#"{"model":{"a":"test"}}"#,
        r#"{"model":null}"#,
        r#"{"model":"test","n":NaN}"#,
        r#"{"model":"test",}"#,
        r#"{"model":"test"/**/}"#,
        r#"{'model':'test'}"#,
        r#"{"model":"test\ud800"}"#,
        "\u{feff}{\"model\":\"test\"}",
        "{\"model\":\"test\"}\0",
        "{\"model\":\"te\nst\"}",
        "",
    ] {
        let (status, code) = raw_chat(&account, body.to_owned()).await;
        assert_eq!(status, 400, "{body}: {code}");
    }
    let document = r#"{"model":"test"}"#;
    let big_endian: Vec<u8> = document.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let little_endian: Vec<u8> = document.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let latin1 = b"{\"model\":\"test\",\"user\":\"\xe9\"}".to_vec();
    let overlong = b"{\"model\":\"test\",\"user\":\"\xc0\xaf\"}".to_vec();
    for body in [big_endian, little_endian, latin1, overlong] {
        assert_eq!(raw_chat(&account, body).await, (400, "invalid_json".into()));
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_model_without_a_price_is_never_called() {
    let (upstream, _proxy, account) = start(Answer::default()).await;
    for model in [
        "test-2",
        "tes",
        "test ",
        " test",
        "TEST",
        "test\0",
        "test-latest",
        "test-2026-11-01",
        "openai/test",
        "ft:test:org::1",
        "test:free",
        "test,other",
        "../other",
        "*",
        "te\u{0455}t",
        "toString",
    ] {
        let reply = account.post(CHAT, &chat(model, "Hi")).await.expect(404);
        assert_eq!(reply.code(), "model_not_found", "{model}");
    }
    for path in ["/v1beta/models/gemini-2:generateContent", "/v1beta/models/Gemini:generateContent"]
    {
        account.post(path, &json!({ "contents": [] })).await.expect(404);
    }
    let body = json!({ "contents": [], "model": "models/dear" });
    account.post("/v1beta/models/gemini:generateContent", &body).await.expect(400);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn an_alias_costs_what_the_model_behind_it_costs() {
    let upstream = Upstream::start().await;
    let alias = "[models.dear]\nupstream = \"openai\"\nupstream_model = \"real\"\n\
                 aliases = [\"pet\"]\ninput = \"1000\"\noutput = \"2000\"\n";
    let proxy = Setup::before(&upstream).prices(alias).start().await;
    let account = proxy.default_account();
    for name in ["dear", "pet"] {
        account.post(CHAT, &chat(name, "Hi")).await.expect(200);
        account.settled().await;
        let row = account.last_usage().await;
        // Ten tokens in, two out.
        assert_eq!((row.model.as_str(), row.charge), ("dear", credits("0.014")));
        assert_eq!(upstream.last().request.model(), "real");
    }
    account.post(CHAT, &chat("real", "Hi")).await.expect(404);
}

#[tokio::test]
async fn an_upstream_that_answers_as_another_model_is_noted() {
    let (_upstream, _proxy, account) = start(Answer::default().served_by("surprise-9")).await;
    account.chat("Hi").await.expect(200);
    account.settled().await;
    let row = account.last_usage().await;
    assert_eq!(row.served_model.as_deref(), Some("surprise-9"));
    assert!(row.flags.contains(&"served_model".into()), "{row:?}");
    assert_eq!(row.charge, charge("test", &Counts::new(10, 2)));
}

/// Whether before the usage, after the first byte or before it.
#[tokio::test]
async fn leaving_after_any_piece_does_not_make_a_reply_cheaper() {
    let (upstream, _proxy, account) = start(Answer::default()).await;
    let gate = Gate::new();
    let answer = Answer::text(["a", "b", "c", "d"]);
    let pieces = {
        let asked =
            chat_with(json!({ "stream": true, "stream_options": { "include_usage": true } }));
        let request = crate::support::upstream::Received {
            path: CHAT.into(),
            body: asked.to_string().into(),
            ..Default::default()
        };
        answer.script(Dialect::Chat, &request).pieces()
    };
    for k in 0..pieces {
        let held = gate.clone();
        upstream.next(answer.clone().staged(move |script| script.gated(&held)));
        let seen = upstream.exchanges().len();
        let body = chat_with(json!({ "stream": true }));
        let call = account.call(CHAT, &body);
        let sent = tokio::spawn(call.send());
        upstream.received(seen + 1).await;
        gate.open(k);
        if k == 0 {
            sent.abort();
        } else {
            let mut stream = sent.await.unwrap();
            // The hidden usage chunk and the end are held back.
            stream.events(k.min(answer.pieces.len())).await;
            drop(stream);
        }
        gate.open(pieces - k);
        account.settled().await;
        let row = account.last_usage().await;
        assert_eq!(row.charge, charge("test", &answer.counts), "left after {k} pieces: {row:?}");
    }
    assert_debited_as_billed(&upstream, &account).await;
}

/// The ways in which a client can be gone.
#[tokio::test]
async fn every_way_to_hang_up_is_settled_as_billed() {
    let (upstream, proxy, account) = start(Answer::default()).await;
    let body = chat_with(json!({ "stream": true })).to_string();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        account.key,
        body.len()
    );
    for after_head in [false, true] {
        for end in ["close", "reset", "half-close", "half-close and wait", "silence"] {
            let gate = Gate::new();
            let held = gate.clone();
            upstream.next(Answer::default().staged(move |script| script.gated(&held)));
            let seen = upstream.exchanges().len();
            let mut raw = Raw::connect(&proxy.url()).await;
            raw.write(&request).await;
            upstream.received(seen + 1).await;
            if after_head {
                gate.open(1);
                raw.until("data: ").await;
            }
            let mut kept = None;
            match end {
                "close" => drop(raw),
                "reset" => raw.reset(),
                "half-close" => raw.half_close().await,
                "half-close and wait" => {
                    raw.half_close().await;
                    kept = Some(raw);
                }
                _ => kept = Some(raw),
            }
            gate.open_all();
            account.settled().await;
            let row = account.last_usage().await;
            assert_eq!(row.charge, charge("test", &Counts::new(10, 2)), "{end}: {row:?}");
            drop(kept);
        }
    }
    assert_debited_as_billed(&upstream, &account).await;
}

#[tokio::test]
async fn choices_are_bounded_and_all_of_them_are_billed() {
    let counts = Counts::new(10, 80);
    let (upstream, _proxy, account) = start(Answer::default().counts(counts)).await;
    for field in ["n", "best_of", "num_choices"] {
        for value in
            [json!(9), json!(0), json!(-1), json!(1.5), json!("8"), json!(1e30), json!([1])]
        {
            let mut fields = json!({});
            fields[field] = value;
            let body = chat_with(fields);
            let reply = account.post(CHAT, &body).await.expect(400);
            assert_eq!(reply.json()["error"]["param"], *field, "{body}");
        }
    }
    let gemini = "/v1beta/models/gemini:generateContent";
    let body = json!({ "contents": [], "generationConfig": { "candidateCount": 9 } });
    account.post(gemini, &body).await.expect(400);
    assert_eq!(upstream.connections(), 0);

    account.post(CHAT, &chat_with(json!({ "n": 8 }))).await.expect(200);
    let many = json!({ "model": "test", "input": ["a", "b", "c"] });
    account.post("/v1/embeddings", &many).await.expect(200);
    assert_debited_as_billed(&upstream, &account).await;
}

#[tokio::test]
async fn limits_on_output_that_disagree_are_refused() {
    let (upstream, _proxy, account) = start(Answer::default()).await;
    for fields in [
        json!({ "max_tokens": 1, "max_completion_tokens": 100_000 }),
        json!({ "max_tokens": 1, "max_output_tokens": 2 }),
        json!({ "max_tokens": -1 }),
        json!({ "max_tokens": "10" }),
        json!({ "max_tokens": 1.5 }),
    ] {
        account.post(CHAT, &chat_with(fields)).await.expect(400);
    }
    assert_eq!(upstream.connections(), 0);
    let agreed = json!({ "max_tokens": 5, "max_completion_tokens": 5 });
    account.post(CHAT, &chat_with(agreed)).await.expect(200);
}

/// What counts inside what differs between dialects; the debit is the invoice in each.
#[tokio::test]
async fn cached_and_reasoning_tokens_are_counted_once_in_every_dialect() {
    let counts = Counts { cached: 400, reasoning: 30, ..Counts::new(1000, 70) };
    let (upstream, _proxy, account) = start(Answer::default().counts(counts)).await;
    let message = json!([{ "role": "user", "content": "Hi" }]);
    let contents = json!({ "contents": [{ "role": "user", "parts": [{ "text": "Hi" }] }] });
    for stream in [false, true] {
        for (path, model, body) in [
            (CHAT, "test", json!({ "model": "test", "messages": message })),
            ("/v1/completions", "test", json!({ "model": "test", "prompt": "Hi" })),
            ("/v1/responses", "test", json!({ "model": "test", "input": "Hi" })),
            ("/v1/messages", "claude", {
                json!({ "model": "claude", "messages": message, "max_tokens": 100 })
            }),
            ("/v1beta/models/gemini:generateContent", "gemini", contents.clone()),
        ] {
            let mut body = body;
            if model == "gemini" && stream {
                let path = "/v1beta/models/gemini:streamGenerateContent?alt=sse";
                account.post(path, &body).await.expect(200);
            } else {
                body["stream"] = json!(stream);
                account.post(path, &body).await.expect(200);
            }
            account.settled().await;
            let row = account.last_usage().await;
            assert_eq!(row.charge, charge(model, &counts), "{path} {stream}: {row:?}");
            let reported = Counts { reasoning: row.reasoning_tokens, ..counts };
            assert_eq!(row.counts(), reported, "{path} {stream}");
        }
    }
    assert_debited_as_billed(&upstream, &account).await;
}

/// A model can be told to write anything, so nothing that it writes is a report.
#[tokio::test]
async fn text_that_looks_like_usage_or_like_an_event_is_text() {
    let lies = [
        "\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0}",
        "{\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0}}",
        "\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0}}\n\n",
        "\r\n\r\nevent: message_stop\r\ndata: {\"type\":\"message_stop\"}\r\n\r\n",
        "\r\rdata: [DONE]\r\r",
        "\\\",\"usage\":{\"total_tokens\":0}",
    ];
    let tool = json!({ "usage": { "prompt_tokens": 0, "completion_tokens": 0 }, "text": lies });
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("10")).await;
    let message = json!([{ "role": "user", "content": lies.concat() }]);
    for answer in [Answer::text(lies), Answer::tool("report", tool)] {
        let answer = answer.counts(Counts::new(500, 60));
        for stream in [false, true] {
            for pieces in [Pieces::Whole, Pieces::Sizes(vec![1]), Pieces::Sizes(vec![2, 3])] {
                let staged = answer.clone().staged(move |script| script.in_pieces(&pieces));
                upstream.always(staged);
                for (path, body) in [
                    (CHAT, json!({ "model": "test", "messages": message, "usage": null })),
                    ("/v1/responses", json!({ "model": "test", "input": lies.concat() })),
                    ("/v1/messages", {
                        json!({ "model": "claude", "messages": message, "max_tokens": 100 })
                    }),
                ] {
                    let mut body = body;
                    body["stream"] = json!(stream);
                    account.post(path, &body).await.expect(200);
                }
            }
        }
    }
    assert_debited_as_billed(&upstream, &account).await;
}

#[tokio::test]
async fn of_several_reports_in_one_stream_the_last_one_counts() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    let chunk = |input: u64, output: u64, reason: Value| {
        let usage = json!({
            "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output
        });
        let choice = json!({ "index": 0, "delta": { "content": "x" }, "finish_reason": reason });
        let event =
            json!({ "object": "chat.completion.chunk", "choices": [choice], "usage": usage });
        (format!("data: {event}\n\n"), 1)
    };
    let events = vec![
        chunk(100, 1, Value::Null),
        chunk(100, 2, Value::Null),
        chunk(100, 3, json!("stop")),
        (String::from("data: [DONE]\n\n"), 0),
    ];
    upstream.next(Script::events(events));
    account.post(CHAT, &chat_with(json!({ "stream": true }))).await.expect(200);
    account.settled().await;
    assert_eq!(account.last_usage().await.charge, charge("test", &Counts::new(100, 3)));
}
