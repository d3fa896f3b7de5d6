//! Several upstreams for a model, and what of an upstream's words and headers reaches a client.

use tokio::net::TcpListener;

use crate::support::account::Account;
use crate::support::answer::Answer;
use crate::support::credits;
use crate::support::forms::{self, Form};
use crate::support::proxy::{PROVIDER_KEY, Proxy, Setup};
use crate::support::script::{Cut, Gate, Script};
use crate::support::upstream::Upstream;

/// `both` is served by the upstreams `first` and `second`, in this order.
fn setup(first: &str, second: &Upstream) -> Setup {
    Setup::bare()
        .upstream("first", "openai", &format!("{first}/v1"), "")
        .upstream("second", "openai", &format!("{}/v1", second.url()), "")
        .prices(
            "[models.both]\nupstream = [\"first\", \"second\"]\n\
             upstream_model = [\"ours\", \"vendor/theirs\"]\ninput = \"10\"\noutput = \"20\"\n",
        )
}

fn ask_both() -> Form {
    forms::chat().model("both")
}

async fn start(setup: Setup) -> (Proxy, Account) {
    let proxy = setup.start().await;
    let account = proxy.account_with(credits("1")).await;
    (proxy, account)
}

#[tokio::test]
async fn the_next_upstream_is_tried_when_the_first_cannot_be_reached() {
    // A port that nobody listens on any more.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let second = Upstream::start().await;
    let (_proxy, account) = start(setup(&nobody, &second)).await;
    ask_both().ask(&account).await.expect(200);
    let row = account.last_usage().await;
    assert_eq!((row.upstream.as_str(), row.source.as_str()), ("second", "reported"));
    assert_eq!(second.last().request.model(), "vendor/theirs");
}

#[tokio::test]
async fn the_next_upstream_is_tried_when_the_first_is_busy_or_fails() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let (_proxy, account) = start(setup(&first.url(), &second)).await;
    for status in [408, 429, 500, 502, 503, 504, 529] {
        for form in [ask_both(), ask_both().streamed()] {
            let before = second.exchanges().len();
            first.next(Script::error(status, "server_error", "Not now."));
            form.ask(&account).await.expect(200);
            assert_eq!(second.exchanges().len(), before + 1, "{status}");
            assert_eq!(first.last().request.model(), "ours");
            let row = account.last_usage().await;
            assert_eq!((row.upstream.as_str(), row.outcome.as_str()), ("second", "completed"));
        }
    }
    assert_eq!(account.usage().await.len(), 14, "one row for each request");
    account.check_books().await;
}

#[tokio::test]
async fn an_upstream_that_answers_is_the_only_one_asked() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let (_proxy, account) = start(setup(&first.url(), &second)).await;
    ask_both().ask(&account).await.expect(200);
    for (status, ours) in [(400, 400), (401, 502), (402, 502), (403, 502), (404, 404), (422, 422)] {
        first.next(Script::error(status, "some_error", "No."));
        ask_both().ask(&account).await.expect(ours);
    }
    assert!(second.exchanges().is_empty());
}

#[tokio::test]
async fn nothing_is_repeated_after_an_uncertain_failure() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let setup = setup(&first.url(), &second).setting("first_byte_timeout", "\"2s\"");
    let (_proxy, account) = start(setup).await;
    for (script, status) in [
        (Script::leave(Cut::Fin), 502),
        (Script::leave(Cut::Reset), 502),
        (Script::raw("what\r\n\r\n"), 502),
        (Script::silent(), 504),
    ] {
        // With a connection of its own, and with one that was used before.
        for used in [false, true] {
            if used {
                ask_both().ask(&account).await.expect(200);
            }
            let before = first.exchanges().len();
            first.next(script.clone());
            ask_both().ask(&account).await.expect(status);
            assert_eq!(first.exchanges().len(), before + 1, "{script:?}");
        }
    }
    assert!(second.exchanges().is_empty(), "it may have been billed: no other is asked");
}

#[tokio::test]
async fn no_other_upstream_is_asked_for_a_client_that_left() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let (proxy, account) = start(setup(&first.url(), &second)).await;
    let gate = Gate::new();
    first.next(Script::error(503, "server_error", "Not now.").gated_head(&gate));
    let mut raw = ask_both().send_raw(&proxy, &account).await;
    first.received(1).await;
    raw.half_close().await;
    assert!(raw.closes().await);
    gate.open_all();
    account.settled().await;
    let row = account.last_usage().await;
    assert_eq!((row.upstream.as_str(), row.source.as_str()), ("first", "none"));
    assert!(second.exchanges().is_empty(), "it would be billed for nobody");
}

#[tokio::test]
async fn nothing_is_repeated_once_the_reply_has_begun() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let (_proxy, account) = start(setup(&first.url(), &second)).await;
    for form in [ask_both(), ask_both().streamed()] {
        for pieces in [0, 1] {
            first.next(Answer::default().staged(move |script| {
                let script = script.chunked();
                if pieces == 0 { script.cut_at(0, Cut::Fin) } else { script.cut_at(9, Cut::Fin) }
            }));
            let reply = form.ask(&account).await;
            assert!(reply.status == 502 || !reply.complete, "{reply:?}");
        }
    }
    assert!(second.exchanges().is_empty());
}

#[tokio::test]
async fn when_all_upstreams_fail_the_last_failure_is_told() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let (_proxy, account) = start(setup(&first.url(), &second)).await;
    first.always(Script::error(500, "server_error", "canary-text"));
    second.always(Script::error(429, "rate_limit_error", "canary-text").header("retry-after", "7"));
    let reply = ask_both().ask(&account).await.expect(429);
    assert_eq!(reply.code(), "rate_limit_exceeded");
    assert_eq!(reply.header("retry-after"), Some("7"));
    assert!(!reply.text().contains("canary-text"));
    assert_eq!((first.exchanges().len(), second.exchanges().len()), (1, 1));
    let row = account.last_usage().await;
    assert_eq!((row.upstream.as_str(), row.http_status), ("second", 429));
}

#[tokio::test]
async fn a_refusal_of_our_own_key_or_quota_is_told_in_neutral_words() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    for (status, kind, text) in [
        (401, "invalid_api_key", "Incorrect API key provided: sk-pr*****3e7."),
        (402, "payment_required", "Payment required."),
        (403, "permission_error", "Your organization org-canary may not do this."),
        (400, "invalid_request_error", "Your credit balance is too low to access the API."),
        (429, "insufficient_quota", "You exceeded your current quota, check your plan."),
    ] {
        for form in [forms::chat(), forms::messages(), forms::all()[4].clone()] {
            upstream.next(Script::error(status, kind, text));
            let reply = form.ask(&account).await.expect(502);
            let told = reply.text();
            for word in ["sk-pr", "org-canary", "quota", "credit", "billing", "Payment", kind] {
                assert!(!told.contains(word), "{word}: {told}");
            }
            assert!(told.contains("misconfigured"), "{told}");
            assert_eq!(reply.header("x-should-retry"), Some("false"));
        }
    }
    assert!(!proxy.output().contains("sk-pr*"), "nor is it logged");
    assert!(proxy.output().contains("refused our key or its quota"), "the operator is told");
}

#[tokio::test]
async fn what_the_client_did_wrong_is_told_in_the_upstream_s_own_bytes() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let odd = "{ \"error\" : {\"message\":\"max_tokens is too large: 9\\u0030\",\"x\":[1.0]}}\n";
    for status in [400, 404, 409, 413, 415, 422] {
        for form in [forms::chat(), forms::messages().streamed()] {
            let script = Script::whole("application/problem+json", odd).status(status);
            upstream.next(script);
            let reply = form.ask(&account).await.expect(status);
            assert_eq!(reply.text(), odd);
            assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        }
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (upstream, elsewhere) = (Upstream::start().await, Upstream::start().await);
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("{}/v1/chat/completions", elsewhere.url());
        let script = Script::whole("text/plain", "").status(status).header("location", &location);
        upstream.next(script);
        let reply = forms::chat().ask(&account).await.expect(502);
        assert_eq!(reply.code(), "upstream_invalid_response");
        assert_eq!(reply.header("location"), None);
        assert_eq!(account.last_usage().await.charge, credits("0"));
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn of_the_upstream_s_headers_none_but_the_content_type_passes() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let dressed = |script: Script| {
        [
            "set-cookie",
            "openai-organization",
            "openai-project",
            "openai-processing-ms",
            "x-ratelimit-remaining-tokens",
            "anthropic-ratelimit-requests-limit",
            "anthropic-organization-id",
            "server",
            "alt-svc",
            "strict-transport-security",
            "request-id",
            "x-request-id",
            "cf-ray",
            "via",
        ]
        .iter()
        .fold(script, |script, name| script.header(name, "header-canary"))
    };
    for form in forms::all() {
        upstream.next(Answer::default().staged(dressed));
        let reply = form.ask(&account).await.expect(200);
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        for (name, value) in &reply.headers {
            assert_ne!(value, "header-canary", "{name}");
        }
    }
    upstream.next(dressed(Script::error(400, "invalid_request_error", "No.")));
    let reply = forms::chat().ask(&account).await.expect(400);
    assert!(reply.headers.values().all(|value| value != "header-canary"), "{reply:?}");
}

#[tokio::test]
async fn of_the_client_s_headers_none_but_those_of_the_api_reach_the_upstream() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    for form in forms::all() {
        let call = form.call(&account);
        let names = [
            "cookie",
            "openai-organization",
            "openai-project",
            "idempotency-key",
            "x-forwarded-for",
            "forwarded",
            "via",
            "x-stainless-lang",
            "api-key",
            "x-custom-host",
            "user-agent",
            "referer",
        ];
        let call = names.iter().fold(call, |call, name| call.header(name, "header-canary"));
        call.header("anthropic-version", "2023-06-01").reply().await.expect(200);
        let request = upstream.last().request;
        let mut seen: Vec<&str> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
        seen.sort_unstable();
        let credential = match form.model {
            "claude" => vec!["anthropic-version", "x-api-key"],
            "gemini" => vec!["x-goog-api-key"],
            _ => vec!["authorization"],
        };
        let rest = ["accept", "accept-encoding", "content-length", "content-type", "host"];
        let mut expected = [&credential[..], &rest, &["user-agent"]].concat();
        expected.sort_unstable();
        assert_eq!(seen, expected, "{form:?}");
        let key = request.header(credential.last().unwrap()).unwrap();
        assert_eq!(key.trim_start_matches("Bearer "), PROVIDER_KEY);
        assert_eq!(request.header("accept-encoding"), Some("identity"));
    }
}
