//! Keys open what they are for and nothing else, and no secret, prompt or reply is ever found
//! where it does not belong.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::account::{Account, chat};
use crate::support::answer::Answer;
use crate::support::http::{Call, Reply};
use crate::support::proxy::{PROVIDER_KEY, Proxy, Setup};
use crate::support::raw::Raw;
use crate::support::script::{Cut, Gate, Script};
use crate::support::upstream::Upstream;
use crate::support::{credits, until};

const CHAT: &str = "/v1/chat/completions";

/// Every route of the inference listener.
const ROUTES: [(&str, &str); 13] = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1beta/models/gemini:generateContent"),
    ("POST", "/v1beta/models/gemini:streamGenerateContent"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/test"),
    ("GET", "/v1/models/unknown"),
    ("GET", "/v1/me"),
    ("POST", "/chat/completions"),
];

/// Every route of the control plane that needs its key.
const ADMIN_ROUTES: [(&str, &str); 14] = [
    ("POST", "/admin/v1/accounts"),
    ("GET", "/admin/v1/accounts"),
    ("GET", "/admin/v1/accounts/default"),
    ("POST", "/admin/v1/accounts/default/keys"),
    ("GET", "/admin/v1/accounts/default/keys"),
    ("DELETE", "/admin/v1/accounts/default/keys/key_1"),
    ("POST", "/admin/v1/accounts/default/credits"),
    ("GET", "/admin/v1/accounts/default/ledger"),
    ("GET", "/admin/v1/accounts/default/usage"),
    ("GET", "/admin/v1/accounts/default/usage/summary"),
    ("GET", "/admin/v1/prices"),
    ("GET", "/admin/v1/openapi.json"),
    ("GET", "/admin/v1/accounts/unknown"),
    ("GET", "/admin/v1/no/such/route"),
];

/// Ways to be nobody: the headers of each.
fn bad_credentials(proxy: &Proxy, revoked: &str, expired: &str) -> Vec<Vec<(String, String)>> {
    let good = &proxy.client_key;
    let cut = &good[..good.len() - 1];
    let mut flipped = good.clone().into_bytes();
    let middle = flipped.len() / 2;
    flipped[middle] = if flipped[middle] == b'a' { b'b' } else { b'a' };
    let flipped = String::from_utf8(flipped).unwrap();
    let long = "k".repeat(20_000);
    let bearer = |key: &str| vec![("authorization".to_owned(), format!("Bearer {key}"))];
    let named = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let hash = sha256_hex(good);
    vec![
        vec![],
        named("authorization", ""),
        named("authorization", "Bearer"),
        named("authorization", "Bearer "),
        named("authorization", good),
        named("authorization", &format!("Basic {good}")),
        named("authorization", &format!("Token {good}")),
        named("x-api-key", ""),
        named("api-key", good),
        named("cookie", &format!("key={good}")),
        bearer("null"),
        bearer("sk-1234"),
        bearer("fbx_live_"),
        bearer(cut),
        bearer(&format!("{good}x")),
        bearer(&format!("{good} {good}")),
        bearer(&good.to_uppercase()),
        bearer(&flipped),
        bearer(&hash),
        bearer(&long),
        bearer("' OR 1=1 --"),
        bearer("%"),
        bearer("../../etc/passwd"),
        bearer(proxy.admin_key()),
        bearer(PROVIDER_KEY),
        bearer(revoked),
        bearer(expired),
        [bearer(good), named("x-api-key", "another")].concat(),
        [bearer(good), bearer("another")].concat(),
        [bearer("another"), bearer(good)].concat(),
        [named("x-api-key", good), named("x-api-key", "another")].concat(),
        [named("x-goog-api-key", "another"), named("x-api-key", good)].concat(),
    ]
}

fn sha256_hex(text: &str) -> String {
    farebox::key::KeyHash::of(text).0.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn call(base: &str, method: &str, path: &str) -> Call {
    let call = Call::new(method.parse().unwrap(), format!("{base}{path}"));
    match method {
        "POST" => call
            .header("content-type", "application/json")
            .body(r#"{"model":"test","messages":[],"max_tokens":1}"#),
        _ => call,
    }
}

/// The reply without what differs from request to request.
fn shape(reply: &Reply) -> (u16, Vec<String>, String) {
    let mut names: Vec<String> = reply.headers.keys().map(ToString::to_string).collect();
    names.sort();
    let mut body = reply.json();
    for path in ["/request_id", "/error/message", "/error/request_id"] {
        if let Some(field) = body.pointer_mut(path) {
            *field = Value::Null;
        }
    }
    (reply.status, names, body.to_string())
}

#[tokio::test]
async fn no_bad_credential_opens_any_route() {
    let upstream = Upstream::start().await;
    let proxy =
        Setup::before(&upstream).setting("auth_failures_per_minute", "1000000").start().await;
    let account = proxy.default_account();
    let revoked = account.new_key(&json!({ "name": "revoked" })).await;
    revoke(&proxy, "revoked").await;
    let soon = jiff::Timestamp::now() + std::time::Duration::from_millis(500);
    let expired = account.new_key(&json!({ "name": "old", "expires_at": soon })).await;
    until("the key to expire", || async {
        let reply = account.with_key(&expired).get("/v1/me").await;
        (reply.status == 401).then_some(())
    })
    .await;
    for (method, path) in ROUTES {
        let mut shapes = std::collections::BTreeSet::new();
        for credential in bad_credentials(&proxy, &revoked, &expired) {
            let mut call = call(&proxy.url(), method, path);
            for (name, value) in &credential {
                call = call.header(name, value);
            }
            let reply = call.reply().await;
            assert_eq!(reply.status, 401, "{method} {path} {credential:?}: {}", reply.text());
            shapes.insert(shape(&reply));
        }
        assert_eq!(shapes.len(), 1, "{method} {path}: {shapes:?}");
    }
    assert_eq!(upstream.connections(), 0);
    account.chat("Hi").await.expect(200);
}

/// Revokes the key of `default` with this name.
async fn revoke(proxy: &Proxy, name: &str) {
    let path = format!("{}/admin/v1/accounts/default/keys", proxy.admin_url());
    let keys = Call::get(&path).bearer(proxy.admin_key()).reply().await.expect(200).json();
    let keys = keys["data"].as_array().unwrap();
    let key = keys.iter().find(|key| key["name"] == name).unwrap();
    let path = format!("{path}/{}", key["id"].as_str().unwrap());
    let gone = Call::new("DELETE".parse().unwrap(), path).bearer(proxy.admin_key()).reply().await;
    assert_eq!(gone.status / 100, 2, "{gone:?}");
}

/// Logs and histories keep addresses.
#[tokio::test]
async fn a_key_in_the_query_opens_nothing() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let good = &proxy.client_key;
    for (method, path) in ROUTES {
        for parameter in ["key", "api_key"] {
            for with_header in [false, true] {
                let path = format!("{path}?{parameter}={good}");
                let mut call = call(&proxy.url(), method, &path);
                if with_header {
                    call = call.bearer(good);
                }
                let reply = call.reply().await;
                assert_eq!(reply.status, 401, "{method} {path}");
                assert!(!reply.text().contains(good.as_str()));
            }
        }
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn keys_of_one_listener_do_not_open_the_other() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let upper = proxy.admin_key().to_uppercase();
    for (method, path) in ADMIN_ROUTES {
        for key in ["", "wrong", &proxy.client_key, PROVIDER_KEY, &upper] {
            let reply = call(&proxy.admin_url(), method, path).bearer(key).reply().await;
            assert_eq!(reply.status, 401, "{method} {path} {key}");
            assert!(!reply.text().contains("default"), "{}", reply.text());
        }
        let twice = call(&proxy.admin_url(), method, path)
            .bearer(proxy.admin_key())
            .bearer(proxy.admin_key());
        twice.reply().await.expect(401);
        call(&proxy.admin_url(), method, path)
            .header("x-api-key", proxy.admin_key())
            .reply()
            .await
            .expect(401);
        let path = format!("{path}?key={}", proxy.admin_key());
        call(&proxy.admin_url(), method, &path).reply().await.expect(401);
    }
    for (method, path) in ROUTES {
        call(&proxy.url(), method, path).bearer(proxy.admin_key()).reply().await.expect(401);
    }
    let host = Call::get(format!("{}/metrics", proxy.admin_url())).header("host", "evil.example");
    assert!(host.reply().await.status / 100 == 4);
}

const PROMPT: &str = "prompt-canary-7c1d2e3f";
const REPLY: &str = "reply-canary-9a8b7c6d";

/// A chat about the canary, with it in every place that a client may write to.
fn secret_chat(stream: bool) -> Value {
    let mut body = chat("test", PROMPT);
    body["stream"] = json!(stream);
    body["user"] = json!(PROMPT);
    body["metadata"] = json!({ "note": PROMPT });
    body["tools"] = json!([{ "type": "function", "function": {
        "name": "f", "description": PROMPT, "parameters": { "type": "object" }
    } }]);
    body
}

/// A refusal in an upstream's own words, which quote the operator's key.
fn echo(status: u16) -> Script {
    let message = format!(
        "Incorrect API key provided: {PROVIDER_KEY}. Organization org-canary has exceeded its \
         quota for: {PROMPT}"
    );
    Script::error(status, "invalid_request_error", &message)
}

/// Good, bad, failing and broken traffic; what clients were told is kept.
async fn all_kinds_of_traffic(upstream: &Upstream, proxy: &Proxy, account: &Account) -> Vec<Reply> {
    let mut errors = Vec::new();
    let url = format!("{}{CHAT}", proxy.url());
    for stream in [false, true] {
        account.post(CHAT, &secret_chat(stream)).await.expect(200);
        for status in [400, 401, 403, 404, 407, 418, 422, 429, 500, 503] {
            upstream.next(echo(status));
            let reply = account.post(CHAT, &secret_chat(stream)).await;
            assert!(reply.status >= 400, "{status}");
            errors.push(reply);
        }
        for cut in [Cut::Fin, Cut::Reset] {
            upstream.next(Script::leave(cut));
            errors.push(account.post(CHAT, &secret_chat(stream)).await);
            let cut_reply =
                Answer::text([REPLY, REPLY]).staged(move |script| script.cut_at(150, cut));
            upstream.next(cut_reply);
            account.post(CHAT, &secret_chat(stream)).await;
        }
        upstream.next(Script::whole("text/html", format!("<b>{REPLY} {PROVIDER_KEY}</b>")));
        errors.push(account.post(CHAT, &secret_chat(stream)).await);
        upstream.next(Script::raw(format!("{REPLY} {PROVIDER_KEY}\r\n\r\n")));
        errors.push(account.post(CHAT, &secret_chat(stream)).await);
        let broken = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{REPLY}\n\n");
        upstream.next(Script::whole("text/event-stream", broken));
        account.post(CHAT, &secret_chat(stream)).await;
        let absurd = json!({ "usage": { "prompt_tokens": REPLY, "completion_tokens": -1 } });
        upstream.next(Script::json(&absurd));
        account.post(CHAT, &secret_chat(stream)).await;
    }
    for body in [
        format!("{{\"model\":\"test\",\"messages\":[\"{PROMPT}\""),
        format!("{{\"model\":\"test\",\"n\":\"{PROMPT}\"}}"),
        format!("{{\"model\":\"test\",\"stream\":\"{PROMPT}\"}}"),
        format!("{{\"model\":\"test\",\"service_tier\":[\"{PROMPT}\"]}}"),
        format!("{{\"model\":\"test\",\"messages\":[{{\"a\":\"{PROMPT}\",\"a\":1}}]}}"),
        PROMPT.to_owned(),
    ] {
        errors.push(account.call(CHAT, &Value::Null).body(body).reply().await.expect(400));
    }
    for key in [&*format!("{}x", account.key), PROVIDER_KEY, proxy.admin_key()] {
        errors.push(Call::post(&url, &secret_chat(false)).bearer(key).reply().await.expect(401));
    }
    let query = format!("{url}?key={}&prompt={PROMPT}", account.key);
    errors.push(Call::post(query, &secret_chat(false)).reply().await.expect(401));
    let other = Call::post(&url, &secret_chat(false)).bearer(&account.key);
    errors.push(other.header("content-encoding", PROMPT).reply().await.expect(415));
    let model = account.post(CHAT, &chat("unknown", PROMPT)).await.expect(404);
    errors.push(model);
    let empty = proxy.account_with(credits("0")).await;
    errors.push(empty.post(CHAT, &secret_chat(true)).await.expect(402));
    for (path, body) in [
        (
            "/v1/messages",
            json!({ "model": "claude", "max_tokens": 9, "messages": [
            { "role": "user", "content": PROMPT }
        ] }),
        ),
        ("/v1/responses", json!({ "model": "test", "input": PROMPT })),
        (
            "/v1beta/models/gemini:generateContent",
            json!({ "contents": [
            { "parts": [{ "text": PROMPT }] }
        ] }),
        ),
    ] {
        account.post(path, &body).await.expect(200);
        upstream.next(echo(401));
        errors.push(account.post(path, &body).await.expect(502));
    }
    // A client that leaves, and one that speaks no HTTP.
    let gate = Gate::new();
    let held = gate.clone();
    upstream.next(Answer::text([REPLY]).staged(move |script| script.gated(&held)));
    gate.open(1);
    let stream = account.call(CHAT, &secret_chat(true)).send().await;
    drop(stream);
    gate.open_all();
    let mut raw = Raw::connect(&proxy.url()).await;
    raw.write(format!("{PROMPT} {} {PROVIDER_KEY}\r\n\r\n", account.key)).await;
    raw.rest().await;
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut raw = Raw::connect(&proxy.url()).await;
    raw.write(format!("{preface}{PROMPT}{}", account.key)).await;
    raw.rest().await;
    // The control plane: refused, and asked for what it does not have.
    let admin = format!("{}/admin/v1/accounts", proxy.admin_url());
    for key in [&*account.key, "wrong", proxy.admin_key()] {
        for body in [json!({ "name": 1, "note": PROMPT }), json!({ "unknown": PROMPT })] {
            errors.push(Call::post(&admin, &body).bearer(key).reply().await);
        }
        errors.push(Call::get(format!("{admin}/nobody")).bearer(key).reply().await);
    }
    account.settled().await;
    errors
}

/// Every file below a folder.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn no_secret_prompt_or_reply_is_kept_or_shown_at_any_log_level() {
    let upstream = Upstream::answering(Answer::text([REPLY, REPLY])).await;
    let mut proxy = Setup::before(&upstream)
        .env("FAREBOX_LOG_LEVEL", "trace")
        .env("RUST_LOG", "trace")
        .setting("head_timeout", "\"1s\"")
        .start()
        .await;
    let account = proxy.account_with(credits("10")).await;
    let errors = all_kinds_of_traffic(&upstream, &proxy, &account).await;
    assert!(proxy.output().contains("\"level\":\"DEBUG\""), "{}", proxy.output());
    let provider = PROVIDER_KEY;
    let keys = [provider, &account.key, &proxy.client_key, proxy.admin_key()].map(String::from);
    let secrets = [keys.as_slice(), &[PROMPT.into(), REPLY.into(), "org-canary".into()]].concat();
    let assert_clean = |what: &str, bytes: &[u8]| {
        for secret in &secrets {
            let found = memchr::memmem::find(bytes, secret.as_bytes());
            assert_eq!(found, None, "{secret} is in {what}");
        }
    };
    for reply in &errors {
        assert_clean(&format!("an error: {}", reply.text()), &reply.body);
        for (name, value) in &reply.headers {
            assert_clean(name.as_str(), value.as_bytes());
        }
    }
    let metrics = Call::get(format!("{}/metrics", proxy.admin_url())).reply().await.expect(200);
    assert!(metrics.text().contains("farebox"));
    assert_clean("the metrics", &metrics.body);
    let rows = Call::get(format!("{}/admin/v1/accounts/{}/usage", proxy.admin_url(), account.id));
    let rows = rows.bearer(proxy.admin_key()).reply().await.expect(200);
    assert_clean("the usage", &rows.body);
    let written = |proxy: &Proxy| {
        let mut seen = 0;
        for path in files(proxy.dir()) {
            // What an operator's own preset wrote down for them is theirs.
            if path.ends_with("admin-key") {
                continue;
            }
            seen += 1;
            assert_clean(&path.display().to_string(), &std::fs::read(&path).unwrap());
        }
        assert!(seen >= 3, "{seen} files");
    };
    written(&proxy);
    let ended = proxy.terminate().await;
    assert!(ended.success(), "{ended}");
    written(&proxy);
    assert_clean("what it printed", proxy.output().as_bytes());
    assert!(!proxy.output().contains("panicked"));
}

/// What is in memory, keys and prompts among it, does not come to lie on a disk.
#[tokio::test]
async fn a_crash_leaves_no_core_behind() {
    let upstream = Upstream::start().await;
    let may_dump = r#"ulimit -c unlimited; exec "$0" "$@""#;
    let mut proxy = Setup::before(&upstream).by_shell(&[], may_dump).start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    proxy.default_account().chat("a prompt").await;
    proxy.signal("ABRT");
    assert!(!proxy.exit().await.success());
    for file in files(proxy.dir()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(!name.starts_with("core"), "{file:?}");
    }
}
