//! Streams: wherever a client leaves, it pays what the upstream bills; and usage is always
//! asked for, whatever the client asks.

use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::answer::Answer;
use crate::support::edits::{differs_by_cost_only, without_usage_chunk};
use crate::support::forms::{self, Form};
use crate::support::http::Call;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::script::{Cut, Gate};
use crate::support::upstream::Upstream;
use crate::support::{credits, within};

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Close,
    Reset,
}

#[tokio::test]
async fn whoever_hangs_up_after_any_chunk_pays_what_the_upstream_bills_once() {
    let counts = Counts { cached: 4, ..Counts::new(10, 8) };
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("100")).await;
    for form in forms::streams() {
        let answer = Answer::text(["Once", " upon", " a", " time"]).counts(counts);
        for leave in [Leave::Close, Leave::Reset] {
            let mut k = 0;
            while leave_after(k, leave, &form, &answer, &upstream, &account).await {
                k += 1;
            }
            assert!(k > 3, "{form:?} has more than {k} chunks");
        }
    }
    let bills = upstream.bills();
    let rows = account.usage().await;
    assert_eq!(rows.len(), bills.len(), "each request is charged, and once");
    for (row, bill) in rows.iter().zip(&bills) {
        assert_eq!(row.counts(), bill.counts, "{row:?}");
        assert!(matches!(row.source.as_str(), "reported" | "drained"), "{row:?}");
        assert_eq!(row.charge, charge(&row.model, &counts));
    }
    account.check_books().await;
}

/// Asks, leaves after `k` chunks, and waits for the debit. False: there are no more than `k`.
async fn leave_after(
    k: usize,
    leave: Leave,
    form: &Form,
    answer: &Answer,
    upstream: &Upstream,
    account: &Account,
) -> bool {
    let gate = Gate::new();
    let held = gate.clone();
    let pieces = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = pieces.clone();
    upstream.next(answer.clone().staged(move |script| {
        counted.store(script.pieces(), std::sync::atomic::Ordering::Relaxed);
        script.gated(&held)
    }));
    let n = upstream.exchanges().len() + 1;
    let call = form.call(account);
    let call = if let Leave::Reset = leave { call.resetting() } else { call };
    let sending = tokio::spawn(call.try_send());
    upstream.received(n).await;
    gate.open(k);
    upstream.when("chunks", |all| sent_events(&all[n - 1].sent) >= k).await;
    if k == 0 {
        sending.abort();
        // The connection is gone when the task is.
        assert!(within("the client's end", sending).await.is_err());
    } else {
        let mut stream = within("a reply", sending).await.unwrap().unwrap();
        // The last event is held back until it is paid for, and one may be hidden.
        let seen = k.saturating_sub(2).max(1);
        stream.events(seen).await;
        drop(stream);
    }
    gate.open_all();
    account.settled().await;
    upstream.ended(n).await;
    k < pieces.load(std::sync::atomic::Ordering::Relaxed)
}

fn sent_events(sent: &[u8]) -> usize {
    crate::support::edits::blocks(sent).len()
}

/// What the upstream got as `stream_options`.
fn options_upstream(upstream: &Upstream) -> Value {
    upstream.last().request.json()["stream_options"].clone()
}

#[tokio::test]
async fn usage_is_always_asked_of_the_upstream_and_hidden_from_who_did_not_ask() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    for form in [&forms::streams()[0], &forms::streams()[1]] {
        for options in [
            None,
            Some(Value::Null),
            Some(json!({})),
            Some(json!({ "include_usage": false })),
            Some(json!({ "include_usage": null })),
            Some(json!({ "include_obfuscation": false, "include_usage": false })),
        ] {
            let mut form = form.clone();
            if let Some(options) = &options {
                form = form.with("stream_options", options.clone());
            }
            let reply = form.ask(&account).await.expect(200);
            let mut expected = options.filter(Value::is_object).unwrap_or(json!({}));
            expected["include_usage"] = json!(true);
            assert_eq!(options_upstream(&upstream), expected);
            let sent = upstream.last().sent;
            assert_eq!(reply.body, without_usage_chunk(&sent), "{}", reply.text());
            assert_ne!(reply.body, sent, "there was a chunk to hide");
            assert_eq!(account.last_usage().await.source, "reported");
        }
    }
}

#[tokio::test]
async fn who_asks_for_usage_gets_it_with_the_cost() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let expected = charge("test", &Counts::new(10, 2));
    for form in [&forms::streams()[0], &forms::streams()[1]] {
        let asks = [
            ("stream_options", json!({ "include_usage": true })),
            // As OpenRouter's clients ask.
            ("usage", json!({ "include": true })),
        ];
        for (name, value) in asks {
            let reply = form.clone().with(name, value).ask(&account).await.expect(200);
            assert_eq!(options_upstream(&upstream), json!({ "include_usage": true }));
            differs_by_cost_only(&upstream.last().sent, &reply.body, expected).unwrap();
            assert_eq!(account.last_usage().await.charge, expected);
        }
    }
}

#[tokio::test]
async fn an_upstream_that_knows_no_stream_options_never_gets_any() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream)
        .upstream("openai", "openai", &format!("{}/v1", upstream.url()), "include_usage = false")
        .start()
        .await;
    let account = proxy.account_with(credits("1")).await;
    for options in [None, Some(json!({})), Some(json!({ "include_usage": true }))] {
        let mut form = forms::chat().streamed();
        if let Some(options) = options {
            form = form.with("stream_options", options);
        }
        let reply = form.ask(&account).await.expect(200);
        let request = upstream.last().request.json();
        assert_eq!(request.get("stream_options"), None, "{request}");
        assert_eq!(reply.body, upstream.last().sent);
    }
}

#[tokio::test]
async fn a_request_that_is_no_stream_gets_no_stream_options() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let streams = forms::streams();
    for form in [forms::chat(), forms::responses(), streams[2].clone(), streams[3].clone()] {
        form.ask(&account).await.expect(200);
        let request = upstream.last().request.json();
        assert_eq!(request, form.body, "nothing is added");
    }
}

#[tokio::test]
async fn frames_pass_as_they_come_and_are_not_gathered() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    for form in forms::streams() {
        let gate = Gate::new();
        let held = gate.clone();
        let answer = Answer::text(["Once", " upon", " a", " time"]);
        upstream.next(answer.staged(move |script| script.gated(&held)));
        let n = upstream.exchanges().len() + 1;
        let call = form.call(&account);
        let first = send_until("Once", n, &upstream, &gate);
        let (mut stream, ()) = tokio::join!(call.send(), first);
        for text in ["Once", " upon", " a"] {
            send_until(text, n, &upstream, &gate).await;
            stream.until(text).await;
        }
        gate.open_all();
        let reply = stream.rest().await.expect(200);
        assert!(reply.text().contains(" time"), "{form:?}");
        assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    }
}

/// Lets chunks pass until this text was sent, and no more.
async fn send_until(text: &str, n: usize, upstream: &Upstream, gate: &Gate) {
    upstream.received(n).await;
    let sent = || upstream.exchanges()[n - 1].sent.clone();
    while !String::from_utf8_lossy(&sent()).contains(&format!("\"{text}\"")) {
        let before = sent().len();
        gate.open(1);
        upstream.when("a chunk", |all| all[n - 1].sent.len() > before).await;
    }
}

#[tokio::test]
async fn an_upstream_that_answers_a_stream_by_json_is_passed_on_and_charged() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let whole = Call::post(format!("{}/v1/chat/completions", upstream.url()), &forms::chat().body);
    let json = whole.reply().await.expect(200).json();
    upstream.next(crate::support::script::Script::json(&json));
    let reply = forms::chat().streamed().ask(&account).await.expect(200);
    assert_eq!(reply.json(), json);
    assert_eq!(account.last_usage().await.counts(), Counts::new(10, 2));
}

/// What a client of each dialect takes for the end of a stream.
fn last_words(form: &Form) -> &'static str {
    match form.path {
        "/v1/responses" => "\"response.completed\"",
        "/v1/messages" => "\"message_stop\"",
        path if path.contains("Generate") => "\"STOP\"",
        _ => "[DONE]",
    }
}

#[tokio::test]
async fn a_client_that_has_the_last_event_has_paid() {
    let upstream = Upstream::start().await;
    // It sends the last event and then neither ends the reply nor the connection.
    upstream.always(Answer::default().staged(|script| {
        let pieces = script.pieces();
        script.stall_after(pieces)
    }));
    // Gemini's streams have no last word but the end of the reply.
    upstream.for_model("gemini", Answer::default());
    let proxy = Proxy::before(&upstream).await;
    for form in forms::streams() {
        let account = proxy.account_with(credits("1")).await;
        let mut stream = form.call(&account).send().await;
        stream.until(last_words(&form)).await;
        let cost = charge("test", &Counts::new(10, 2));
        let left = credits("1").checked_add(-cost).unwrap();
        assert_eq!(account.balance().await, left, "{form:?}");
        let reply = stream.rest().await;
        assert_eq!(reply.body, without_usage_chunk(&upstream.last().sent), "{form:?}");
    }
}

#[tokio::test]
async fn what_is_cut_off_after_the_last_event_was_whole() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    for form in forms::streams() {
        if form.model == "gemini" {
            // Its streams have no last word: an end of the connection could be a cut.
            continue;
        }
        for cut in [Cut::Fin, Cut::Reset] {
            upstream.next(Answer::default().staged(move |script| {
                let pieces = script.pieces();
                script.cut_after(pieces, cut)
            }));
            form.ask(&account).await.expect(200);
            let row = account.last_usage().await;
            let end = (row.outcome.as_str(), row.source.as_str());
            assert_eq!(end, ("completed", "reported"), "{form:?}");
        }
    }
}
