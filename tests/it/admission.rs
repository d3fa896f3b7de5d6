//! Who may send what, and how much at once.

use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::answer::Answer;
use crate::support::forms::{self, Form};
use crate::support::http::{Call, Stream};
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::script::{Cut, Gate, Script};
use crate::support::upstream::Upstream;
use crate::support::{credits, until};

/// A stream that has begun and goes on when the gate is opened.
async fn running(upstream: &Upstream, account: &Account, gate: &Gate) -> Stream {
    let held = gate.clone();
    upstream.next(Answer::default().staged(move |script| script.gated(&held)));
    gate.open(2);
    let mut stream = forms::chat().streamed().call(account).send().await;
    assert_eq!(stream.status, 200);
    stream.until("Hello").await;
    stream
}

#[tokio::test]
async fn so_many_run_at_once_and_no_more() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).setting("max_in_flight", "2").start().await;
    let account = proxy.account_with(credits("1")).await;
    let other = proxy.account_with(credits("1")).await;
    let gates = [Gate::new(), Gate::new(), Gate::new()];
    let first = running(&upstream, &account, &gates[0]).await;
    let second = running(&upstream, &account, &gates[1]).await;

    let refused = forms::chat().ask(&account).await.expect(429);
    assert_eq!(refused.code(), "too_many_concurrent_requests");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("x-should-retry"), None);
    assert_eq!(upstream.exchanges().len(), 2, "the upstream never saw it");
    // The limit is the account's: another key is in it, another account is not.
    let key = account.new_key(&json!({ "name": "second" })).await;
    forms::chat().ask(&account.with_key(&key)).await.expect(429);
    forms::chat().ask(&other).await.expect(200);

    // A place is free as soon as the client has the end of its reply …
    gates[0].open_all();
    first.rest().await.expect(200);
    let third = running(&upstream, &account, &gates[2]).await;
    forms::chat().ask(&account).await.expect(429);

    // … or when a reply was drained after its client left.
    drop(second);
    gates[1].open_all();
    until("a free place", || async { (account.view().await.in_flight == 1).then_some(()) }).await;
    forms::chat().ask(&account).await.expect(200);
    gates[2].open_all();
    third.rest().await.expect(200);

    // Failures give their place back, too.
    for script in [Script::error(500, "server_error", "No."), Script::leave(Cut::Fin)] {
        for _ in 0..3 {
            upstream.next(script.clone());
            forms::chat().ask(&account).await.expect(502);
        }
    }
    for _ in 0..3 {
        forms::chat().model("nothing").ask(&account).await.expect(404);
    }
    forms::chat().ask(&account).await.expect(200);
    assert_eq!(account.view().await.in_flight, 0);
    account.check_books().await;
}

#[tokio::test]
async fn of_many_at_once_exactly_the_default_of_64_are_admitted() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let gate = Gate::new();
    let held = gate.clone();
    upstream.always(Answer::default().staged(move |script| script.gated_head(&held)));
    let calls: Vec<_> = (0..80)
        .map(|_| {
            let account = account.clone();
            tokio::spawn(async move { forms::chat().ask(&account).await.status })
        })
        .collect();
    upstream.received(64).await;
    // Those that are refused are answered while the others wait.
    until("the refusals", || async {
        (calls.iter().filter(|call| call.is_finished()).count() == 16).then_some(())
    })
    .await;
    assert_eq!(account.view().await.in_flight, 64);
    gate.open_all();
    let mut statuses = Vec::new();
    for call in calls {
        statuses.push(call.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [[200; 64].as_slice(), &[429; 16]].concat());
    assert_eq!(upstream.exchanges().len(), 64);
    assert_eq!(account.usage().await.len(), 64);
    account.check_books().await;
}

/// The id of a key by its name.
async fn key_id(proxy: &Proxy, account: &Account, name: &str) -> String {
    let url = format!("{}/admin/v1/accounts/{}/keys", proxy.admin_url(), account.id);
    let keys = Call::get(url).bearer(proxy.admin_key()).reply().await.expect(200).json();
    let keys = keys["data"].as_array().unwrap().clone();
    let key = keys.into_iter().find(|key| key["name"] == name).expect("a key of that name");
    key["id"].as_str().unwrap().into()
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_and_what_runs_is_finished_and_billed() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let doomed = account.with_key(&account.new_key(&json!({ "name": "doomed" })).await);
    let gate = Gate::new();
    let stream = running(&upstream, &doomed, &gate).await;

    let id = key_id(&proxy, &account, "doomed").await;
    let url = format!("{}/admin/v1/accounts/{}/keys/{id}", proxy.admin_url(), account.id);
    let revoke = Call::new(http::Method::DELETE, url).bearer(proxy.admin_key());
    revoke.reply().await.expect(200);

    let refused = forms::chat().ask(&doomed).await.expect(401);
    assert_eq!(refused.code(), "invalid_api_key");
    assert!(refused.text().contains("was revoked"), "{}", refused.text());
    assert!(!refused.text().contains(&doomed.key));
    doomed.get("/v1/models").await.expect(401);
    forms::chat().ask(&account).await.expect(200);

    gate.open_all();
    let reply = stream.rest().await.expect(200);
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
    let rows = account.usage().await;
    let row = rows.iter().find(|row| row.key == id).expect("what the revoked key used");
    assert_eq!(row.source, "reported");
    assert_eq!(row.charge, charge("test", &Counts::new(10, 2)));
}

#[tokio::test]
async fn a_key_ends_when_it_expires() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let short = account.new_key(&json!({ "name": "short", "expires_at": "1s" })).await;
    let short = account.with_key(&short);
    let refused = until("its end", || async {
        let reply = short.get("/v1/me").await;
        (reply.status != 200).then_some(reply)
    })
    .await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "invalid_api_key"));
    assert!(refused.text().contains("has expired"), "{}", refused.text());
    let long = account.new_key(&json!({ "name": "long", "expires_at": "1d" })).await;
    forms::chat().ask(&account.with_key(&long)).await.expect(200);
}

#[tokio::test]
async fn a_key_calls_and_sees_the_models_of_its_list_only() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let key = json!({ "name": "narrow", "models": ["test", "claude-opus-*"] });
    let narrow = account.with_key(&account.new_key(&key).await);
    forms::chat().ask(&narrow).await.expect(200);
    forms::messages().model("claude-opus-4-8").ask(&narrow).await.expect(200);
    for form in [forms::chat().model("other"), forms::messages(), forms::all()[4].clone()] {
        let refused = form.ask(&narrow).await.expect(403);
        assert!(refused.text().contains("test, claude-opus-*"), "{}", refused.text());
    }
    let refused = forms::chat().model("other").ask(&narrow).await;
    assert_eq!(refused.code(), "model_not_allowed");
    let list = narrow.get("/v1/models").await.expect(200).json();
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["test", "claude-opus-4-7", "claude-opus-4-8"]);
    narrow.get("/v1/models/other").await.expect(404);
    assert_eq!(upstream.exchanges().len(), 2);
}

#[tokio::test]
async fn an_unknown_model_is_404_with_the_nearest_and_one_served_elsewhere_says_where() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    for name in ["tset", "test ", "Test", "openai/test", "test-latest"] {
        let form = Form { model: "test", ..forms::chat() }.with("model", json!(name));
        let reply = form.ask(&account).await.expect(404);
        assert_eq!(reply.code(), "model_not_found", "{name:?}");
        assert_eq!(reply.json()["error"]["param"], "model");
    }
    let reply = forms::chat().model("claude-opus-4-9").ask(&account).await.expect(404);
    assert!(reply.text().contains("Nearest are: claude-opus-4-"), "{}", reply.text());

    // An OpenAI model has no Messages, and Gemini's own path takes Gemini's models.
    for form in [forms::messages().model("test"), forms::responses().model("claude")] {
        let reply = form.ask(&account).await.expect(404);
        assert!(reply.text().contains("not served at this endpoint"), "{}", reply.text());
        assert!(reply.text().contains("/v1/chat/completions"), "{}", reply.text());
    }
    assert!(upstream.exchanges().is_empty());
    assert!(account.usage().await.is_empty());
}

#[tokio::test]
async fn accounts_and_keys_are_kept_apart() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let (rich, poor) =
        (proxy.account_with(credits("1")).await, proxy.account_with(credits("0")).await);
    let second = rich.with_key(&rich.new_key(&json!({ "name": "second" })).await);
    forms::chat().ask(&rich).await.expect(200);
    forms::chat().ask(&second).await.expect(200);
    forms::chat().ask(&poor).await.expect(402);
    let keys = [key_id(&proxy, &rich, "test").await, key_id(&proxy, &rich, "second").await];
    let rows: Vec<String> = rich.usage().await.into_iter().map(|row| row.key).collect();
    assert_eq!(rows, keys);
    assert!(poor.usage().await.is_empty() && poor.ledger().await.is_empty());
    let by_key = rich.summary("by=key").await;
    assert_eq!(by_key["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn whom_a_request_was_for_stands_in_its_row() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let tagged = account.new_key(&json!({ "name": "beat", "tag": "heartbeat" })).await;
    let tagged = account.with_key(&tagged);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let call = |account: &Account| {
        let call = forms::chat().call(account);
        call.header("traceparent", &format!("00-{trace}-b7ad6b7169203331-01"))
            .header("x-agent", "ops")
            .header("session_id", "s-1:4")
    };
    call(&account).header("x-farebox-tag", "night shift").reply().await.expect(200);
    let row = account.last_usage().await;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!((row.run, row.agent, row.session), (some(trace), some("ops"), some("s-1")));
    assert_eq!((row.tag, row.origin), (some("night shift"), None));

    // A key's own tag; one of background work says the origin, too.
    call(&tagged).reply().await.expect(200);
    let row = account.last_usage().await;
    assert_eq!((row.tag, row.origin), (some("heartbeat"), some("heartbeat")));
    call(&tagged).header("x-farebox-tag", "mine").reply().await.expect(200);
    assert_eq!(account.last_usage().await.tag, some("mine"));

    let by_tag = account.summary("by=tag").await;
    assert_eq!(by_tag["data"].as_array().unwrap().len(), 3);
    // None of it goes on to the upstream.
    let headers = upstream.last().request.headers;
    assert!(headers.iter().all(|(name, _)| name != "traceparent" && !name.starts_with("x-")));
}

#[tokio::test]
async fn openclaw_s_and_n8n_s_own_requests_are_served_and_attributed() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let main = Some("main");
    for (case, agent, session, origin) in [
        ("openclaw-heartbeat-main", main, Some("agent:main:main"), Some("heartbeat")),
        ("openclaw-heartbeat-isolated", None, None, Some("heartbeat")),
        (
            "openclaw-cron",
            main,
            Some("agent:main:cron:4d0fa22e-f4c4-4ee8-afcb-fbc23979a828"),
            Some("cron"),
        ),
        (
            "openclaw-chat-toolcall-2",
            main,
            Some("agent:main:explicit:ef655850-8b5a-4c76-8d21-1e45faf8028c"),
            Some("user"),
        ),
        (
            "openclaw-chat-remote-compat",
            Some("ops"),
            Some("265cd0e8-7ecf-445c-b72c-5011e52ec3dc"),
            Some("user"),
        ),
        ("openclaw-responses", None, None, Some("user")),
        ("openclaw-anthropic", None, None, Some("user")),
        ("n8n-agent-anthropic", None, None, None),
        // Set by an expression in n8n: workflow and execution.
        ("n8n-agent-chat-stream", Some("oCDeBh7QfFimyrdl/26"), None, None),
        ("n8n-agent-responses", None, None, None),
        ("n8n-openai-node-v2", None, None, None),
        ("openai-js-7-chat-stream-usage", None, None, None),
        ("openai-py-responses", None, None, None),
        ("anthropic-py", None, None, None),
    ] {
        client(case, &account).reply().await.expect(200);
        let row = account.last_usage().await;
        let found = (row.agent.as_deref(), row.session.as_deref(), row.origin.as_deref());
        assert_eq!(found, (agent, session, origin), "{case}");
        let traced = case.starts_with("openclaw");
        assert_eq!(row.run.is_some(), traced, "{case}");
        assert_eq!(row.source, "reported", "{case}");
    }
}

/// A captured request, with our key and a model of the tests' list.
fn client(case: &str, account: &Account) -> Call {
    let path = format!("{}/tests/cases/clients/{case}.json", env!("CARGO_MANIFEST_DIR"));
    let mut case: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let path = case["path"].as_str().unwrap().to_owned();
    let model = if path.contains("/messages") { "claude" } else { "test" };
    case["body"]["model"] = json!(model);
    let call = Call::post(account.url(&path), &case["body"]);
    let ours = "host content-length content-type connection authorization x-api-key";
    let headers = case["headers"].as_array().unwrap().iter();
    let headers = headers.map(|header| (header[0].as_str().unwrap(), header[1].as_str().unwrap()));
    headers
        .filter(|(name, _)| !ours.split(' ').any(|own| own.eq_ignore_ascii_case(name)))
        .fold(call, |call, (name, value)| call.header(name, value))
        .bearer(&account.key)
}
