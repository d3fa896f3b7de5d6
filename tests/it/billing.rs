//! Prepaid: the last request may overdraw, the next one is refused until there are credits.

use serde_json::{Value, json};

use crate::support::answer::{Answer, Dialect};
use crate::support::credits;
use crate::support::forms::{self, Form};
use crate::support::http::Reply;
use crate::support::prices::Counts;
use crate::support::proxy::Proxy;
use crate::support::upstream::{Play, Upstream};

/// 10,000 tokens in and 10,000 out: 0.1 + 0.2 credits by the tests' prices.
const THREE_TENTHS: Counts = Counts::new(10_000, 10_000);

/// An upstream whose every answer costs 0.3 credits.
async fn upstream_for_three_tenths() -> Upstream {
    let upstream = Upstream::answering(Answer::default().counts(THREE_TENTHS)).await;
    upstream.choose(|request| {
        // Embeddings have no output, so all of it is input.
        let embeds = Dialect::of(request) == Some(Dialect::Embeddings);
        embeds.then(|| Play::from(Answer::default().counts(Counts::new(30_000, 0))))
    });
    upstream
}

fn embeddings() -> Form {
    let body = json!({ "model": "test", "input": "Hi" });
    Form { path: "/v1/embeddings", body, model: "test", stream: false }
}

#[tokio::test]
async fn the_request_that_overdraws_is_answered_and_the_next_is_refused_until_a_topup() {
    let upstream = upstream_for_three_tenths().await;
    let proxy = Proxy::before(&upstream).await;
    for form in forms::all().into_iter().chain([embeddings()]) {
        let account = proxy.account_with(credits("0.2")).await;
        let before = upstream.exchanges().len();

        let reply = form.ask(&account).await.expect(200);
        if form.path != "/v1/embeddings" {
            assert!(reply.text().contains(" world"), "{form:?}: {reply:?}");
        }
        assert_eq!(account.balance().await, credits("-0.1"), "{form:?}");

        let refused = form.ask(&account).await.expect(402);
        assert!(refused.text().contains("Usage limit reached"), "{form:?}: {refused:?}");
        assert_eq!(upstream.exchanges().len(), before + 1, "the upstream saw the first only");
        assert_eq!(account.balance().await, credits("-0.1"), "a refusal costs nothing");

        account.topup(credits("5")).await;
        assert_eq!(account.balance().await, credits("4.9"));
        form.ask(&account).await.expect(200);
        assert_eq!(account.balance().await, credits("4.6"));
        assert_eq!(account.check_books().await, credits("0.6"));
    }
}

#[tokio::test]
async fn exactly_nothing_left_is_refused_and_the_smallest_credit_is_enough() {
    let upstream = upstream_for_three_tenths().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("0")).await;
    account.chat("Hi").await.expect(402);

    account.topup(credits("0.3")).await;
    account.chat("Hi").await.expect(200);
    assert_eq!(account.balance().await, credits("0"));
    account.chat("Hi").await.expect(402);

    account.topup(credits("0.000000001")).await;
    account.chat("Hi").await.expect(200);
    assert_eq!(account.balance().await, credits("-0.299999999"));
    account.chat("Hi").await.expect(402);

    account.topup(credits("0.299999999")).await;
    account.chat("Hi").await.expect(402);
    assert_eq!(upstream.exchanges().len(), 2);
}

#[tokio::test]
async fn what_is_free_of_charge_is_answered_at_a_negative_balance() {
    let upstream = upstream_for_three_tenths().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("0.1")).await;
    account.chat("Hi").await.expect(200);
    account.chat("Hi").await.expect(402);
    for path in ["/v1/models", "/v1/models/test", "/v1/me", "/models", "/me"] {
        account.get(path).await.expect(200);
    }
    assert_eq!(account.get("/v1/me").await.json()["balance"], "-0.2");
    let body = forms::messages().body;
    account.post("/v1/messages/count_tokens", &body).await.expect(200);
    assert_eq!(account.balance().await, credits("-0.2"));
}

#[tokio::test]
async fn a_refusal_says_what_helps_and_that_repeating_does_not() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("0")).await;
    for form in forms::all() {
        let reply = form.ask(&account).await.expect(402);
        assert_eq!(reply.header("x-should-retry"), Some("false"), "{form:?}");
        assert_eq!(reply.header("retry-after"), None, "{form:?}");
        assert_eq!(reply.header("content-type"), Some("application/json"), "{form:?}");
        let body = reply.json();
        let error = &body["error"];
        match form.model {
            "claude" => {
                assert_eq!(body["type"], "error");
                assert_eq!(error["type"], "billing_error");
            }
            "gemini" => {
                assert_eq!(error["code"], 402);
                assert_eq!(error["status"], "RESOURCE_EXHAUSTED");
            }
            _ => {
                assert_eq!(error["type"], "insufficient_credits");
                assert_eq!(error["code"], "insufficient_credits");
                assert_eq!(error["param"], Value::Null);
                let details = json!({ "balance": "0", "account": account.id });
                assert_eq!(error["details"], details);
            }
        }
        assert!(error["message"].as_str().unwrap().contains("balance 0"), "{body}");
        assert_eq!(Some(body["request_id"].as_str().unwrap()), reply.header("x-request-id"));
    }
    assert!(upstream.exchanges().is_empty());
}

#[tokio::test]
async fn each_key_is_refused_in_the_style_that_its_client_understands() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("0")).await;
    for (style, status, words) in [
        ("limit", 402, "Usage limit reached"),
        ("billing", 402, "Insufficient credits"),
        ("bad_request", 400, "The request was not sent"),
    ] {
        let key = account.new_key(&json!({ "name": style, "rejection": style })).await;
        let reply = forms::chat().ask(&account.with_key(&key)).await.expect(status);
        assert_eq!(reply.code(), "insufficient_credits", "{style}");
        assert!(reply.text().contains(words), "{style}: {}", reply.text());
        assert_eq!(reply.header("x-should-retry"), Some("false"), "{style}");
    }
}

#[tokio::test]
async fn the_style_message_refuses_by_an_answer_in_the_form_that_was_asked_for() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("0")).await;
    let key = account.new_key(&json!({ "name": "n8n", "rejection": "message" })).await;
    let account = account.with_key(&key);
    for form in forms::all() {
        let reply = form.ask(&account).await.expect(200);
        let is_events = reply.header("content-type").unwrap().starts_with("text/event-stream");
        assert_eq!(is_events, form.stream, "{form:?}: {reply:?}");
        assert!(said(&form, &reply).starts_with("Usage limit reached"), "{form:?}: {reply:?}");
    }
    // Nobody speaks in a list of numbers.
    embeddings().ask(&account).await.expect(402);
    assert!(upstream.exchanges().is_empty());
    assert!(account.usage().await.is_empty());
}

/// What the assistant says in a reply.
fn said(form: &Form, reply: &Reply) -> String {
    let texts: &[&str] = match (form.path, form.stream) {
        ("/v1/chat/completions", false) => &["/choices/0/message/content"],
        ("/v1/chat/completions", true) => &["/choices/0/delta/content"],
        ("/v1/completions", _) => &["/choices/0/text"],
        ("/v1/responses", false) => &["/output/0/content/0/text"],
        ("/v1/responses", true) => &["/delta"],
        ("/v1/messages", false) => &["/content/0/text"],
        ("/v1/messages", true) => &["/delta/text"],
        _ => &["/candidates/0/content/parts/0/text", "/0/candidates/0/content/parts/0/text"],
    };
    let events = if form.stream { reply.events() } else { vec![reply.json()] };
    let found = events.iter().flat_map(|event| texts.iter().map(|path| event.pointer(path)));
    found.flatten().filter_map(Value::as_str).collect()
}
