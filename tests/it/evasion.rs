//! Ways to use a model without paying for it, each of them tried. The oracle is the upstream's
//! own invoice: what it bills is debited, and what is refused it never sees.

use serde_json::{Value, json};

use crate::support::account::{Account, chat};
use crate::support::answer::{Answer, Dialect};
use crate::support::credits;
use crate::support::http::Call;
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

/// Batches, files, sockets, media, stored objects: each has costs that are not tokens of this
/// request, or hands out what belongs to others.
#[tokio::test]
async fn what_has_no_meter_has_no_route() {
    let (upstream, proxy, account) = start(Answer::default()).await;
    for path in [
        "/v1/batches",
        "/v1/batches/batch_1",
        "/v1/files",
        "/v1/files/file_1/content",
        "/v1/uploads",
        "/v1/realtime",
        "/v1/realtime/client_secrets",
        "/v1/realtime/sessions",
        "/v1/realtime/calls",
        "/v1/chatkit/sessions",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/v1/responses/resp_1/input_items",
        "/v1/responses/input_tokens",
        "/v1/responses/compact",
        "/v1/conversations",
        "/v1/conversations/conv_1/items",
        "/v1/chat/completions/chatcmpl_1",
        "/v1/vector_stores",
        "/v1/vector_stores/vs_1/search",
        "/v1/containers",
        "/v1/skills",
        "/v1/evals",
        "/v1/fine_tuning/jobs",
        "/v1/videos",
        "/v1/videos/video_1/content",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/moderations",
        "/v1/rerank",
        "/v1/assistants",
        "/v1/threads",
        "/v1/threads/runs",
        "/v1/organization/usage/completions",
        "/v1/organization/admin_api_keys",
        "/v1/messages/batches",
        "/v1/complete",
        "/v1/beta/messages",
        "/v1beta/models/gemini:countTokens",
        "/v1beta/models/gemini:embedContent",
        "/v1beta/models/gemini:batchGenerateContent",
        "/v1beta/cachedContents",
        "/v1beta/files",
        "/v1beta/openai/chat/completions",
        "/v1/proxy/chat/completions",
        "/openai/deployments/test/chat/completions",
        "/api/chat",
        "/config/update",
        "/key/generate",
    ] {
        for method in ["GET", "POST", "DELETE"] {
            let call = Call::new(method.parse().unwrap(), format!("{}{path}", proxy.url()));
            let call = call.bearer(&account.key).header("content-type", "application/json");
            let reply = call.body(chat("test", "Hi").to_string()).reply().await.expect(404);
            assert_eq!(reply.code(), "endpoint_not_enabled", "{method} {path}");
        }
    }
    let upgrade = Call::get(format!("{}/v1/realtime?model=test", proxy.url()))
        .bearer(&account.key)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket");
    upgrade.reply().await.expect(404);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn only_the_account_that_made_a_response_may_build_on_it() {
    let (upstream, proxy, owner) = start(Answer::default()).await;
    let other = proxy.account_with(credits("1")).await;
    let body = json!({ "model": "test", "input": "Hi" });
    let made = owner.post("/v1/responses", &body).await.expect(200).json();
    let id = made["id"].as_str().unwrap();
    let seen = upstream.exchanges().len();
    let mut texts = Vec::new();
    for (account, field, value) in [
        (&other, "previous_response_id", json!(id)),
        (&other, "previous_response_id", json!("resp_unknown")),
        (&other, "conversation", json!(id)),
        (&other, "conversation", json!({ "id": id })),
        (&owner, "previous_response_id", json!("resp_unknown")),
        (&owner, "conversation", json!("conv_unknown")),
    ] {
        let mut body = body.clone();
        body[field] = value;
        let reply = account.post("/v1/responses", &body).await.expect(404);
        assert_eq!(reply.code(), "object_not_found");
        let mut error = reply.json();
        error["request_id"] = json!("");
        texts.push(error.to_string().replace(id, "ID").replace("resp_unknown", "ID"));
    }
    // Foreign and unknown look alike.
    assert_eq!(texts[0], texts[1]);
    assert_eq!(upstream.exchanges().len(), seen);

    let mut body = body.clone();
    body["previous_response_id"] = json!(id);
    owner.post("/v1/responses", &body).await.expect(200);
    let background = json!({ "model": "test", "input": "Hi", "background": true });
    owner.post("/v1/responses", &background).await.expect(400);
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

#[tokio::test]
async fn an_encoded_body_is_not_read_past_but_refused() {
    let (upstream, _proxy, account) = start(Answer::default()).await;
    let body = chat("test", "Hi").to_string();
    let gzip = Script::whole("x", body.clone()).encoded("gzip").body();
    for encoding in ["gzip", "x-gzip", "deflate", "br", "zstd", "compress", "identity, gzip", "*"] {
        for body in [gzip.clone(), body.clone().into()] {
            let call = account.call(CHAT, &Value::Null).header("content-encoding", encoding);
            call.body(body).reply().await.expect(415);
        }
    }
    let call = account.call(CHAT, &Value::Null).header("content-encoding", "identity");
    call.body(body).reply().await.expect(200);
    assert_eq!(upstream.exchanges().len(), 1);
}

#[tokio::test]
async fn only_json_in_utf8_is_a_request() {
    let (upstream, proxy, account) = start(Answer::default()).await;
    let body = chat("test", "Hi").to_string();
    let post = |kinds: &[&str]| {
        let mut call = Call::new("POST".parse().unwrap(), format!("{}{CHAT}", proxy.url()))
            .bearer(&account.key);
        for kind in kinds {
            call = call.header("content-type", kind);
        }
        call.body(body.clone()).reply()
    };
    for kind in [
        "text/plain",
        "text/json",
        "application/jsonp",
        "application/json-seq",
        "application/problem+json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/json; charset=latin1",
        "application/json; charset=utf-8; charset=utf-16",
        "application/json; profile=x",
        "application/json, text/plain",
        "*/*",
        "",
    ] {
        let reply = post(&[kind]).await.expect(415);
        assert_eq!(reply.code(), "unsupported_media_type", "{kind}");
    }
    post(&[]).await.expect(415);
    post(&["application/json", "text/plain"]).await.expect(415);
    assert_eq!(upstream.connections(), 0);
    for kind in ["application/json", "Application/JSON", "application/json;charset=UTF-8"] {
        post(&[kind]).await.expect(200);
    }
}

/// Also what would replay an old answer, name another organisation or change the price.
#[tokio::test]
async fn no_header_of_a_client_goes_upstream() {
    let (upstream, _proxy, account) = start(Answer::default()).await;
    let headers = [
        "idempotency-key",
        "openai-organization",
        "openai-project",
        "openai-beta",
        "anthropic-dangerous-direct-browser-access",
        "api-key",
        "cookie",
        "proxy-authorization",
        "x-forwarded-for",
        "x-forwarded-host",
        "forwarded",
        "via",
        "x-real-ip",
        "x-stainless-lang",
        "http-referer",
        "x-title",
        "origin",
        "range",
        "if-none-match",
        "accept-language",
        "x-goog-user-project",
        "x-anything",
    ];
    for path in [CHAT, "/v1/responses", "/v1/messages"] {
        let model = if path == "/v1/messages" { "claude" } else { "test" };
        let mut body = chat(model, "Hi");
        body["max_tokens"] = json!(10);
        let mut call = account.call(path, &body).header("anthropic-beta", "fast-mode-2026-02-01");
        for name in headers {
            call = call.header(name, "client-canary");
        }
        call.header("accept-encoding", "gzip")
            .header("user-agent", "client-canary")
            .reply()
            .await
            .expect(200);
        let received = upstream.last().request;
        assert_eq!(received.header("accept-encoding"), Some("identity"));
        for (name, value) in &received.headers {
            assert!(!value.contains("canary") || value.contains("provider"), "{name}: {value}");
            assert!(!value.contains("fast-mode") && !value.contains(&account.key), "{name}");
        }
    }
}

#[tokio::test]
async fn lists_and_counts_are_answered_without_being_free_rides() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).setting("count_tokens_per_minute", "3").start().await;
    let account = proxy.default_account();
    for path in ["/v1/models", "/v1/models/test", "/models", "/v1/me"] {
        account.get(path).await.expect(200);
    }
    account.get("/v1/models/unpriced").await.expect(404);
    assert_eq!(upstream.connections(), 0);

    let body = json!({ "model": "claude", "messages": [{ "role": "user", "content": "Hi" }] });
    for _ in 0..3 {
        account.post("/v1/messages/count_tokens", &body).await.expect(200);
    }
    let limited = account.post("/v1/messages/count_tokens", &body).await.expect(429);
    assert!(limited.header("retry-after").is_some());
    assert_eq!(upstream.exchanges().len(), 3);
    assert_eq!(account.balance().await, credits("100"));
}

/// Every name that has ever moved a gateway's connection elsewhere.
#[tokio::test]
async fn nothing_that_a_client_sends_moves_a_connection() {
    let (upstream, _proxy, account) = start(Answer::default()).await;
    let elsewhere = Upstream::start().await;
    let url = elsewhere.url();
    let host = url.replace("http://", "");
    let fields = [
        "api_base",
        "base_url",
        "baseURL",
        "base",
        "url",
        "uri",
        "endpoint",
        "host",
        "hostname",
        "custom_host",
        "api_host",
        "api_url",
        "target",
        "target_url",
        "upstream",
        "upstream_url",
        "provider",
        "custom_llm_provider",
        "api_key",
        "api_type",
        "api_version",
        "azure_endpoint",
        "aws_bedrock_runtime_endpoint",
        "vertex_location",
        "proxy",
        "http_proxy",
        "https_proxy",
        "proxies",
        "webhook",
        "webhook_url",
        "callback",
        "callback_url",
        "redirect",
        "redirect_uri",
        "fallbacks",
        "context_window_fallbacks",
        "route",
        "routes",
        "litellm_params",
        "metadata",
        "extra_headers",
        "headers",
        "extra_body",
        "config",
        "server_url",
        "gateway",
    ];
    for field in fields {
        for value in
            [json!(url), json!({ "api_base": url, "url": url, "host": host }), json!([url])]
        {
            let mut extra = json!({});
            extra[field] = value;
            account.post(CHAT, &chat_with(extra)).await;
        }
    }
    let headers = [
        "x-portkey-custom-host",
        "x-portkey-provider",
        "x-portkey-config",
        "x-litellm-api-base",
        "x-api-base",
        "x-base-url",
        "x-target-url",
        "x-upstream",
        "x-forwarded-host",
        "x-forwarded-server",
        "x-forwarded-proto",
        "x-host",
        "x-original-url",
        "x-rewrite-url",
        "x-http-host-override",
        "x-real-host",
        "forwarded",
        "helicone-target-url",
        "helicone-openai-api-base",
        "openai-base-url",
        "cf-aig-target",
        "x-custom-host",
        "x-envoy-original-path",
        "x-http-method-override",
        "destination",
        "location",
        "referer",
        "origin",
        "alt-svc",
        "proxy",
    ];
    for name in headers {
        for value in [&url, &host] {
            let call = account.call(CHAT, &chat("test", "Hi")).header(name, value);
            call.reply().await.expect(200);
        }
    }
    for location in ["/v1", "/v1/chat/completions", ""] {
        let moved =
            Script::whole("text/html", "moved").header("location", &format!("{url}{location}"));
        for status in [301, 302, 303, 307, 308] {
            upstream.next(moved.clone().status(status));
            account.chat("Hi").await.expect(502);
        }
    }
    assert_eq!(elsewhere.connections(), 0);
    assert_debited_as_billed(&upstream, &account).await;
}
