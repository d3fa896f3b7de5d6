//! What each endpoint promises beside its reply: ids, charges, lists, limits, owners.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::answer::Answer;
use crate::support::credits;
use crate::support::forms;
use crate::support::http::{Call, Reply};
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;

async fn start() -> (Upstream, Proxy, Account) {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    (upstream, proxy, account)
}

#[tokio::test]
async fn every_reply_has_an_id_of_its_own_which_the_usage_row_shares() {
    let (upstream, _proxy, account) = start().await;
    let mut ids = HashSet::new();
    for form in forms::all() {
        let reply = form.ask(&account).await.expect(200);
        let id = reply.header("x-request-id").expect("an id").to_owned();
        assert_eq!(id, account.last_usage().await.id, "{form:?}");
        let anthropic = (form.model == "claude").then_some(id.as_str());
        assert_eq!(reply.header("request-id"), anthropic, "{form:?}");
        assert!(id.starts_with("req_") && ids.insert(id));
    }
    // Refusals, lists and what is not there have one, too.
    let stranger = account.with_key("sk-unknown");
    let mut replies = vec![
        forms::chat().ask(&stranger).await.expect(401),
        forms::messages().ask(&stranger).await.expect(401),
        account.get("/v1/models").await.expect(200),
        account.get("/v1/me").await.expect(200),
        account.get("/nowhere").await.expect(404),
        account.get("/v1/chat/completions").await.expect(405),
        account.post("/v1/messages/count_tokens", &forms::messages().body).await.expect(200),
        account.post("/v1/chat/completions", &json!([])).await.expect(400),
    ];
    upstream.next(crate::support::script::Script::error(500, "server_error", "No."));
    replies.push(forms::chat().ask(&account).await.expect(502));
    for reply in replies {
        let id = reply.header("x-request-id").unwrap_or_else(|| panic!("no id: {reply:?}"));
        assert!(ids.insert(id.to_owned()));
        let told = reply.json()["request_id"].clone();
        assert!(told == Value::Null || told == id, "{reply:?}");
    }
}

#[tokio::test]
async fn a_reply_that_is_no_stream_says_what_it_cost_and_what_is_left() {
    let (_upstream, _proxy, account) = start().await;
    let cost = charge("test", &Counts::new(10, 2));
    for form in forms::all() {
        let before = account.balance().await;
        let reply = form.ask(&account).await.expect(200);
        let told = [reply.header("x-farebox-charge"), reply.header("x-farebox-balance")]
            .map(|value| value.map(|amount| amount.parse().expect("a decimal number")));
        let left = before.checked_add(-cost).unwrap();
        let expected = if form.stream { [None, None] } else { [Some(cost), Some(left)] };
        assert_eq!(told, expected, "{form:?}");
        assert_eq!(account.balance().await, left, "{form:?}");
    }
}

#[tokio::test]
async fn each_path_is_served_without_v1_too_and_all_else_is_404_with_a_list() {
    let (upstream, _proxy, account) = start().await;
    for form in forms::all() {
        let path = form.path.strip_prefix("/v1beta").or_else(|| form.path.strip_prefix("/v1"));
        account.post(path.unwrap(), &form.body).await.expect(200);
    }
    let before = upstream.exchanges().len();
    for path in ["/v1/files", "/v1/realtime", "/v1/images/generations", "/", "/v1/responses/x"] {
        let reply = account.post(path, &forms::chat().body).await.expect(404);
        assert_eq!(reply.code(), "endpoint_not_enabled", "{path}");
        assert!(reply.text().contains("POST /v1/chat/completions"), "{path}");
    }
    assert_eq!(upstream.exchanges().len(), before);
}

#[tokio::test]
async fn counting_tokens_is_free_and_limited_by_the_minute() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).setting("count_tokens_per_minute", "3").start().await;
    let account = proxy.account_with(credits("1")).await;
    let other = proxy.account_with(credits("1")).await;
    let count =
        |account: &Account| account.call("/v1/messages/count_tokens", &forms::messages().body);
    for _ in 0..3 {
        let reply = count(&account).reply().await.expect(200);
        assert_eq!(reply.json(), json!({ "input_tokens": 10 }));
    }
    let refused = count(&account).reply().await.expect(429);
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&wait));
    assert_eq!(upstream.exchanges().len(), 3);
    count(&other).reply().await.expect(200);
    // What is free leaves no trace in the books, and the limit is only on counting.
    assert_eq!(account.balance().await, credits("1"));
    assert!(account.usage().await.is_empty());
    forms::messages().ask(&account).await.expect(200);
}

#[tokio::test]
async fn embeddings_are_charged_by_their_input() {
    let (upstream, _proxy, account) = start().await;
    upstream.always(Answer::default().counts(Counts::new(1000, 0)));
    for input in [json!("Hi"), json!(["Hi", "there"]), json!([1, 2, 3]), json!([[1], [2]])] {
        let body = json!({ "model": "test", "input": input, "encoding_format": "base64" });
        let reply = account.post("/v1/embeddings", &body).await.expect(200);
        assert_eq!(reply.header("x-farebox-charge"), Some("0.01"));
        assert_eq!(reply.body, upstream.last().sent);
        assert_eq!(upstream.last().request.body, body.to_string());
        assert_eq!(account.last_usage().await.counts(), Counts::new(1000, 0));
    }
}

#[tokio::test]
async fn models_are_listed_with_their_prices_per_token_as_decimal_strings() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream)
        .prices(
            "[models.elsewhere]\nupstream = \"nobody\"\ninput = \"1\"\noutput = \"1\"\n\
             [models.gift]\nupstream = \"openai\"\nfree = true\n\
             [models.\"vendor/slash\"]\nupstream = \"openai\"\ninput = \"3.3\"\noutput = \"16.5\"\n\
             context = 200000\nmax_output = 64000\naliases = [\"slash\"]\n",
        )
        .start()
        .await;
    let account = proxy.default_account();
    let list = account.get("/v1/models").await.expect(200).json();
    assert_eq!((&list["object"], &list["has_more"]), (&json!("list"), &json!(false)));
    let ids: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert!(ids.contains(&"test") && ids.contains(&"vendor/slash"), "{ids:?}");
    assert!(!ids.contains(&"elsewhere"), "what cannot be called is not listed: {ids:?}");

    let one = account.get("/v1/models/vendor/slash").await.expect(200).json();
    assert_eq!(one["object"], "model");
    assert_eq!(one["owned_by"], "openai");
    assert_eq!(one["context_length"], 200_000);
    assert_eq!(one["top_provider"]["max_completion_tokens"], 64_000);
    assert_eq!(one["pricing"], json!({ "prompt": "0.0000033", "completion": "0.0000165" }));
    assert_eq!(account.get("/v1/models/slash").await.expect(200).json()["id"], "vendor/slash");

    let gift = account.get("/v1/models/gift").await.expect(200).json();
    assert_eq!(gift["pricing"], json!({ "prompt": "0", "completion": "0" }));
    let test = account.get("/v1/models/test").await.expect(200).json();
    assert_eq!(test["pricing"]["input_cache_read"], "0.000001");
    assert_eq!(test["pricing"]["web_search"], "0.01");
    for path in ["/v1/models/elsewhere", "/v1/models/tset"] {
        assert_eq!(account.get(path).await.expect(404).code(), "model_not_found");
    }
    assert!(upstream.exchanges().is_empty());
}

#[tokio::test]
async fn me_tells_balance_spending_and_limits() {
    let upstream = Upstream::answering(Answer::default().counts(Counts::new(1000, 1000))).await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let key = json!({ "name": "nightly", "tag": "cron", "models": ["te*"] });
    let key = account.with_key(&account.new_key(&key).await);
    for _ in 0..3 {
        forms::chat().ask(&key).await.expect(200);
    }
    let me = key.get("/v1/me").await.expect(200).json();
    assert_eq!(me["account"], account.id.as_str());
    assert_eq!(me["status"], "open");
    for (name, value) in [("balance", "0.91"), ("held", "0"), ("available", "0.91")] {
        assert_eq!(me[name], value, "{name}");
    }
    let spend = json!({ "today": "0.09", "last_7_days": "0.09", "last_30_days": "0.09" });
    // At midnight in UTC the day may have changed since.
    assert!(me["spend"] == spend || me["spend"]["last_7_days"] == "0.09", "{me}");
    assert_eq!((&me["key"]["name"], &me["key"]["tag"]), (&json!("nightly"), &json!("cron")));
    assert_eq!(me["key"]["models"], json!(["te*"]));
    assert_eq!(me["limits"]["max_in_flight"], 64);
    assert_eq!(me["limits"]["in_flight"], 0);
}

#[tokio::test]
async fn a_response_that_would_be_fetched_later_is_refused() {
    let (upstream, _proxy, account) = start().await;
    let form = forms::responses();
    let refused = form.clone().with("background", json!(true)).ask(&account).await.expect(400);
    assert_eq!(refused.code(), "parameter_not_allowed");
    assert_eq!(refused.json()["error"]["param"], "background");
    assert!(upstream.exchanges().is_empty());
    form.with("background", json!(false)).ask(&account).await.expect(200);
}

#[tokio::test]
async fn only_the_account_that_made_a_response_may_build_on_it() {
    let (upstream, proxy, owner) = start().await;
    let stranger = proxy.account_with(credits("1")).await;
    let id = |reply: &Reply| {
        let id = reply.json()["id"].as_str().unwrap().to_owned();
        assert!(id.starts_with("resp_"));
        id
    };
    let next = |id: &str| forms::responses().with("previous_response_id", json!(id));
    let scripted = "resp_scripted00000000000000000000";
    next(scripted).ask(&owner).await.expect(404);
    assert!(upstream.exchanges().is_empty());

    // Known from a whole reply, and from nobody else's.
    let made = id(&forms::responses().ask(&owner).await.expect(200));
    assert_eq!(made, scripted);
    next(&made).ask(&owner).await.expect(200);
    next(&made).streamed().ask(&owner).await.expect(200);
    assert_eq!(upstream.last().request.json()["previous_response_id"], made.as_str());
    let foreign = next(&made).ask(&stranger).await.expect(404);
    let unknown = next("resp_unknown").ask(&stranger).await.expect(404);
    assert_eq!(
        (foreign.code(), unknown.code()),
        ("object_not_found".into(), "object_not_found".into())
    );
    let without_ids = |reply: &Reply, id: &str| {
        let mut json = reply.json();
        json["request_id"] = Value::Null;
        json.to_string().replace(id, "ID")
    };
    assert_eq!(without_ids(&foreign, &made), without_ids(&unknown, "resp_unknown"));
    assert_eq!(upstream.exchanges().len(), 3);

    // Another key of the same account may.
    let key = owner.new_key(&json!({ "name": "second" })).await;
    next(&made).ask(&owner.with_key(&key)).await.expect(200);

    let nothing = forms::responses().with("previous_response_id", Value::Null);
    nothing.with("conversation", Value::Null).ask(&stranger).await.expect(200);
    for conversation in [json!("conv_1"), json!({ "id": "conv_1" })] {
        let form = forms::responses().with("conversation", conversation);
        assert_eq!(form.ask(&owner).await.expect(404).code(), "object_not_found");
    }
}

#[tokio::test]
async fn the_id_of_a_streamed_response_is_remembered_across_a_restart() {
    let (_upstream, mut proxy, owner) = start().await;
    let reply = forms::responses().streamed().ask(&owner).await.expect(200);
    let id = reply.events()[0]["response"]["id"].clone();
    let next = forms::responses().with("previous_response_id", id);
    next.ask(&owner).await.expect(200);
    proxy.terminate().await;
    proxy.restart().await;
    next.ask(&owner).await.expect(200);
}

#[tokio::test]
async fn a_response_that_its_client_left_is_owned_all_the_same() {
    let (upstream, _proxy, owner) = start().await;
    let gate = crate::support::script::Gate::new();
    let held = gate.clone();
    upstream.next(Answer::default().staged(move |script| script.gated(&held)));
    gate.open(4);
    let mut stream = forms::responses().streamed().call(&owner).send().await;
    stream.events(2).await;
    drop(stream);
    gate.open_all();
    owner.settled().await;
    let id = json!("resp_scripted00000000000000000000");
    forms::responses().with("previous_response_id", id).ask(&owner).await.expect(200);
}

#[tokio::test]
async fn a_model_is_asked_for_by_any_of_its_names_and_billed_by_its_own() {
    let upstream = Upstream::start().await;
    let entry = |name: &str, upstream: &str| {
        format!(
            "[models.\"{name}\"]\nupstream = \"{upstream}\"\nupstream_model = \"vendor-{name}\"\n\
             aliases = [\"{name}-latest\"]\ninput = \"10\"\noutput = \"20\"\n"
        )
    };
    let models = ["openai", "anthropic", "gemini"].map(|kind| entry(&format!("our-{kind}"), kind));
    let proxy = Setup::before(&upstream).prices(&models.concat()).start().await;
    let account = proxy.account_with(credits("1")).await;
    let gemini = |model: &str, action: &str| {
        let body = forms::all()[4].body.clone();
        (format!("/v1beta/models/{model}:{action}"), body)
    };
    for name in ["our-gemini", "our-gemini-latest"] {
        for action in ["generateContent", "streamGenerateContent?alt=sse"] {
            let (path, body) = gemini(name, action);
            let reply = account.post(&path, &body).await.expect(200);
            assert!(reply.text().contains("vendor-our-gemini"));
            let received = upstream.last().request;
            assert_eq!(received.path, gemini("vendor-our-gemini", action).0);
            assert_eq!(received.json(), body);
            assert_eq!(account.last_usage().await.model, "our-gemini");
        }
    }
    // Models of every kind are served in chat completions, too.
    for kind in ["openai", "anthropic", "gemini"] {
        for name in [format!("our-{kind}"), format!("our-{kind}-latest")] {
            for form in [forms::chat(), forms::chat().streamed()] {
                form.with("model", json!(name)).ask(&account).await.expect(200);
                let received = upstream.last().request;
                assert_eq!(received.model(), format!("vendor-our-{kind}"));
                assert!(received.path.ends_with("/chat/completions"), "{}", received.path);
                assert!(received.header("authorization").unwrap().starts_with("Bearer "));
                let row = account.last_usage().await;
                assert_eq!((row.model, row.upstream), (format!("our-{kind}"), kind.to_owned()));
                assert_eq!(row.charge, charge("test", &Counts::new(10, 2)));
            }
        }
    }
}

#[tokio::test]
async fn errors_are_told_in_the_dialect_of_their_endpoint() {
    let (upstream, _proxy, account) = start().await;
    let stranger = account.with_key("sk-unknown");
    let (chat, messages, gemini) = (forms::chat(), forms::messages(), forms::all()[4].clone());
    let tiers = |form: &forms::Form, name: &str| form.clone().with(name, json!("scale"));
    upstream.always(crate::support::script::Script::error(500, "server_error", "No."));
    for (form, reply, status, kind) in [
        (&chat, chat.ask(&stranger).await, 401, "authentication_error"),
        (&messages, messages.ask(&stranger).await, 401, "authentication_error"),
        (&gemini, gemini.ask(&stranger).await, 401, "UNAUTHENTICATED"),
        (&chat, tiers(&chat, "service_tier").ask(&account).await, 400, "invalid_request_error"),
        (
            &messages,
            tiers(&messages, "service_tier").ask(&account).await,
            400,
            "invalid_request_error",
        ),
        (&gemini, tiers(&gemini, "serviceTier").ask(&account).await, 400, "INVALID_ARGUMENT"),
        (&chat, chat.clone().model("none").ask(&account).await, 404, "invalid_request_error"),
        (&messages, messages.clone().model("none").ask(&account).await, 404, "not_found_error"),
        (&chat, chat.ask(&account).await, 502, "api_error"),
        (&messages, messages.ask(&account).await, 502, "api_error"),
        (&gemini, gemini.ask(&account).await, 502, "INTERNAL"),
    ] {
        let body = reply.expect(status).json();
        let error = &body["error"];
        assert!(error["message"].as_str().is_some_and(|text| text.ends_with('.')), "{body}");
        match form.model {
            "claude" => {
                assert_eq!((&body["type"], &error["type"]), (&json!("error"), &json!(kind)))
            }
            "gemini" => {
                assert_eq!((&error["code"], &error["status"]), (&json!(status), &json!(kind)))
            }
            _ => assert!(error["type"] == kind && error["code"].is_string(), "{body}"),
        }
    }
}

#[tokio::test]
async fn a_key_is_taken_from_each_header_that_sdks_use() {
    let (_upstream, proxy, account) = start().await;
    for (form, header) in [
        (forms::messages(), "x-api-key"),
        (forms::all()[4].clone(), "x-goog-api-key"),
        (forms::chat(), "x-api-key"),
    ] {
        let url = format!("{}{}", proxy.url(), form.path);
        let call = Call::post(url, &form.body).header(header, &account.key);
        call.reply().await.expect(200);
    }
}
