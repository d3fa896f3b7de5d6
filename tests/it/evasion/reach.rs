//! What a request may reach: the paths that have a meter, the objects of its own account, and
//! no host but those of the configuration.

use serde_json::{Value, json};

use super::{CHAT, assert_debited_as_billed, chat_with, start};
use crate::support::account::chat;
use crate::support::answer::Answer;
use crate::support::credits;
use crate::support::http::Call;
use crate::support::proxy::Setup;
use crate::support::script::Script;
use crate::support::upstream::Upstream;

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
