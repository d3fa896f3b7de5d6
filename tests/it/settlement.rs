//! However a request ends, it is settled once, and by the one who answers for that end.

use serde_json::{Value, json};

use crate::support::account::{Account, UsageRow};
use crate::support::answer::Answer;
use crate::support::credits;
use crate::support::edits::{blocks, data_of};
use crate::support::forms::{self, Form};
use crate::support::http::Reply;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::script::{Cut, Gate, Script};
use crate::support::upstream::Upstream;

/// What a row says of the end, and who pays.
fn end(row: &UsageRow) -> (&str, &str) {
    (&row.outcome, &row.source)
}

/// The only request of an account, once it has ended; its books are in order.
async fn only_row(account: &Account) -> UsageRow {
    account.settled().await;
    let mut rows = account.usage().await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    let row = rows.remove(0);
    assert_eq!(account.check_books().await, row.charge);
    assert_eq!(account.balance().await, credits("100").checked_add(-row.charge).unwrap());
    row
}

async fn account(proxy: &Proxy) -> Account {
    proxy.account_with(credits("100")).await
}

/// What was delivered is charged by our own counts, by the usual rates.
fn assert_estimated(row: &UsageRow, form: &Form, with_output: bool) {
    assert_eq!(row.source, "estimated", "{form:?}: {row:?}");
    assert!((1..=20).contains(&row.input_tokens), "{form:?}: {row:?}");
    let output = if with_output { 1..=5 } else { 0..=0 };
    assert!(output.contains(&row.output_tokens), "{form:?}: {row:?}");
    assert_eq!(row.charge, charge(form.model, &row.counts()), "{form:?}");
}

/// The client is told in words and by the broken connection that this is not the whole.
fn assert_broken_off(reply: &Reply, form: &Form) {
    assert!(!reply.complete, "{form:?}: {reply:?}");
    assert!(reply.text().contains("Hello"), "{form:?}: {reply:?}");
    let last = blocks(&reply.body).pop().map(data_of).unwrap_or_default();
    let last: Value = serde_json::from_str(&last).unwrap_or_default();
    let is_error = last["error"].is_object() || last["type"] == "error";
    assert!(is_error, "{form:?}: {}", reply.text());
}

#[tokio::test]
async fn what_the_upstream_refuses_costs_nothing() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    for (theirs, ours) in [
        (400, 400),
        (401, 502),
        (403, 502),
        (404, 404),
        (408, 504),
        (422, 422),
        (429, 429),
        (500, 502),
        (503, 502),
        (529, 502),
    ] {
        for form in [forms::chat(), forms::chat().streamed(), forms::messages().streamed()] {
            let account = account(&proxy).await;
            upstream.next(Script::error(theirs, "some_error", "No."));
            assert_eq!(form.ask(&account).await.status, ours, "{theirs}");
            let row = only_row(&account).await;
            assert_eq!(end(&row), ("upstream_error", "none"), "{theirs}: {row:?}");
            assert_eq!(row.counts(), Counts::default());
            assert_eq!(row.http_status, ours);
        }
    }
}

#[tokio::test]
async fn an_error_in_a_reply_of_status_200_costs_nothing() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let error = json!({ "error": { "message": "No.", "type": "server_error", "code": null } });
    let anthropic = json!({ "type": "error", "error": { "type": "api_error", "message": "No." } });
    let event = |error: &Value| Script::events([(format!("data: {error}\n\n"), 0)]);
    let named = format!("event: error\ndata: {anthropic}\n\n");
    for (form, script) in [
        (forms::chat(), Script::json(&error)),
        (forms::chat().streamed(), Script::json(&error)),
        (forms::chat().streamed(), event(&error)),
        (forms::responses(), Script::json(&error)),
        (forms::messages(), Script::json(&anthropic)),
        (forms::messages().streamed(), Script::events([(named, 0)])),
    ] {
        let account = account(&proxy).await;
        upstream.next(script.clone());
        let reply = form.ask(&account).await.expect(200);
        assert_eq!(reply.body, script.body(), "the client gets it as it came");
        let row = only_row(&account).await;
        assert_eq!(end(&row), ("upstream_error", "none"), "{form:?}: {row:?}");
        assert_eq!(row.charge, credits("0"));
    }
}

#[tokio::test]
async fn an_error_event_after_output_leaves_the_output_charged() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let with_error = |event: &'static str| {
        // The last two events of either dialect would end it.
        Answer::text(["Hello", " world"]).counts(Counts::new(10, 40)).staged(move |script| {
            let body = script.body();
            let all = blocks(&body);
            let start = all.iter().take_while(|block| !is_end(block)).copied();
            let start = start.map(|block| (String::from_utf8_lossy(block).into_owned(), 0));
            Script::events(start.chain([(event.to_owned(), 0)]))
        })
    };

    let account_ = account(&proxy).await;
    upstream.next(with_error("data: {\"error\":{\"message\":\"Too much.\",\"code\":503}}\n\n"));
    let form = forms::chat().streamed();
    let reply = form.ask(&account_).await.expect(200);
    assert!(reply.text().ends_with("\"code\":503}}\n\n"), "{}", reply.text());
    let row = only_row(&account_).await;
    assert_eq!(end(&row), ("upstream_cut", "estimated"), "{row:?}");
    assert_estimated(&row, &form, true);

    let account_ = account(&proxy).await;
    upstream.next(with_error(
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
    ));
    let form = forms::messages().streamed();
    form.ask(&account_).await.expect(200);
    let row = only_row(&account_).await;
    assert_eq!(end(&row), ("upstream_cut", "estimated"), "{row:?}");
    assert_eq!(row.input_tokens, 10, "the input was reported before");
    assert_estimated(&row, &form, true);
}

/// Whether an event is one of those after all output.
fn is_end(block: &[u8]) -> bool {
    let data = data_of(block);
    ["\"finish_reason\":\"", "\"message_delta\"", "\"content_block_stop\""]
        .iter()
        .any(|end| data.contains(end))
}

#[tokio::test]
async fn a_client_that_left_pays_what_the_upstream_reports_in_the_end() {
    let counts = Counts { cached: 3, ..Counts::new(10, 7) };
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    for form in forms::all() {
        let account = account(&proxy).await;
        let gate = Gate::new();
        let held = gate.clone();
        let answer = Answer::text(["Hello", " world", "!"]).counts(counts);
        upstream.next(answer.staged(move |script| script.gated(&held)));
        let n = upstream.exchanges().len() + 1;
        let mut raw = form.send_raw(&proxy, &account).await;
        upstream.received(n).await;
        gate.open(1);
        // The end of our half is the end for the proxy too: it closes the rest.
        raw.half_close().await;
        raw.rest().await;
        gate.open_all();
        let row = only_row(&account).await;
        assert_eq!(end(&row), ("client_closed", "drained"), "{form:?}: {row:?}");
        assert_eq!(row.counts(), counts, "{form:?}");
        assert_eq!(row.charge, charge(form.model, &counts));
    }
}

#[tokio::test]
async fn a_client_that_left_pays_an_estimate_where_nobody_waits_for_the_upstream() {
    let upstream = Upstream::start().await;
    for (setting, value) in [("max_drains", "0"), ("abort_drain", "\"50ms\"")] {
        let proxy = Setup::before(&upstream).setting(setting, value).start().await;
        for form in forms::streams() {
            let account = account(&proxy).await;
            upstream.next(
                Answer::text(["Hello", " world"])
                    .staged(|script| script.clone().stall_after(stall_at(&script))),
            );
            let mut stream = form.call(&account).send().await;
            stream.until("Hello").await;
            drop(stream);
            let row = only_row(&account).await;
            if form.model == "gemini" {
                // It reports with every event, and the last report is what is known.
                assert_eq!(end(&row), ("client_closed", "drained"), "{row:?}");
                assert_eq!(row.counts(), Counts::new(10, 1));
                continue;
            }
            assert_eq!(end(&row), ("client_closed", "estimated"), "{form:?}: {row:?}");
            assert!(row.flags.is_empty(), "nothing was odd: {row:?}");
            if form.model == "claude" {
                assert_eq!(row.input_tokens, 10, "the upstream said so: {row:?}");
            }
            assert_estimated(&row, &form, true);
        }
        // The upstream was not left running.
        upstream.ended(upstream.exchanges().len()).await;
    }
}

#[tokio::test]
async fn a_reply_without_a_client_takes_one_drain_from_its_head_to_its_end() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).setting("max_drains", "1").start().await;
    for n in 1..=20 {
        let account = account(&proxy).await;
        let gate = Gate::new();
        let held = gate.clone();
        upstream.next(Answer::default().staged(move |script| script.gated_head(&held)));
        let mut raw = forms::chat().streamed().send_raw(&proxy, &account).await;
        upstream.received(n).await;
        raw.half_close().await;
        assert!(raw.closes().await);
        gate.open_all();
        let row = only_row(&account).await;
        assert_eq!(end(&row), ("client_closed", "drained"), "{row:?}");
    }
}

/// So many pieces that `Hello` is among them and the end is not.
fn stall_at(script: &Script) -> usize {
    let body = script.body();
    let at = blocks(&body).iter().position(|block| data_of(block).contains("Hello"));
    at.expect("a piece of text") + 1
}

#[tokio::test]
async fn a_client_that_left_before_the_first_byte_pays_for_its_prompt() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).setting("max_drains", "0").start().await;
    for form in forms::all() {
        let account = account(&proxy).await;
        upstream.next(Script::silent());
        let n = upstream.exchanges().len() + 1;
        let mut raw = form.send_raw(&proxy, &account).await;
        upstream.received(n).await;
        raw.half_close().await;
        assert!(raw.closes().await);
        let row = only_row(&account).await;
        assert_eq!(end(&row), ("client_closed", "estimated"), "{form:?}: {row:?}");
        assert_eq!(row.http_status, 499);
        assert_estimated(&row, &form, false);
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_paid_for_what_was_delivered() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    for form in forms::streams() {
        for cut in [Cut::Fin, Cut::Reset] {
            let account = account(&proxy).await;
            upstream.next(
                Answer::text(["Hello", " world"])
                    .staged(move |script| script.clone().cut_after(stall_at(&script), cut)),
            );
            let reply = form.ask(&account).await;
            assert_broken_off(&reply, &form);
            let row = only_row(&account).await;
            if form.model == "gemini" {
                assert_eq!(end(&row), ("upstream_cut", "reported"), "{row:?}");
                assert_eq!(row.counts(), Counts::new(10, 1));
                continue;
            }
            assert_eq!(end(&row), ("upstream_cut", "estimated"), "{form:?}: {row:?}");
            assert_estimated(&row, &form, true);
        }
    }
}

#[tokio::test]
async fn an_upstream_that_fails_before_its_first_byte_costs_nothing() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    for script in [
        Script::leave(Cut::Fin),
        Script::leave(Cut::Reset),
        Script::raw("what\r\n\r\n"),
        Script::events([("data: {}\n\n".into(), 0)]).cut_at(0, Cut::Fin),
        // A reply that is not a stream is passed on whole or not at all.
        Script::json(&json!({ "choices": [] })).cut_at(9, Cut::Fin),
    ] {
        for form in [forms::chat(), forms::messages().streamed()] {
            let account = account(&proxy).await;
            upstream.next(script.clone());
            let reply = form.ask(&account).await.expect(502);
            assert!(reply.json()["error"]["message"].is_string());
            assert_upstream_fault(&only_row(&account).await, 502);
        }
    }
}

#[tokio::test]
async fn an_upstream_that_hangs_before_its_first_byte_costs_nothing() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream)
        .setting("first_byte_timeout", "\"1s\"")
        .setting("idle_timeout", "\"1s\"")
        .start()
        .await;
    let body = Script::json(&json!({ "choices": [] }));
    for script in [Script::silent(), body.clone().stall_at(0), body.stall_at(9)] {
        let account = account(&proxy).await;
        upstream.next(script);
        let reply = forms::chat().ask(&account).await.expect(504);
        assert_eq!(reply.code(), "upstream_timeout");
        assert_upstream_fault(&only_row(&account).await, 504);
    }
}

fn assert_upstream_fault(row: &UsageRow, status: u16) {
    assert_eq!(end(row), ("upstream_error", "none"), "{row:?}");
    assert_eq!(row.flags, ["upstream_fault"]);
    assert_eq!((row.charge, row.http_status), (credits("0"), status));
}

#[tokio::test]
async fn a_stream_that_stalls_or_lasts_too_long_is_ended_and_charged_as_delivered() {
    let upstream = Upstream::start().await;
    for setting in ["idle_timeout", "total_timeout"] {
        let proxy = Setup::before(&upstream).setting(setting, "\"2s\"").start().await;
        for form in [forms::chat().streamed(), forms::messages().streamed()] {
            let account = account(&proxy).await;
            upstream.next(
                Answer::text(["Hello", " world"])
                    .staged(|script| script.clone().stall_after(stall_at(&script))),
            );
            let reply = form.ask(&account).await;
            assert_broken_off(&reply, &form);
            assert!(reply.text().contains("in time"), "{}", reply.text());
            let row = only_row(&account).await;
            assert_eq!(end(&row), ("upstream_cut", "estimated"), "{form:?}: {row:?}");
            assert_estimated(&row, &form, true);
        }
    }
}

#[tokio::test]
async fn a_whole_reply_without_usage_is_estimated_and_marked() {
    let upstream = Upstream::answering(Answer::default().without_usage()).await;
    let proxy = Proxy::before(&upstream).await;
    for form in forms::all() {
        let account = account(&proxy).await;
        let reply = form.ask(&account).await.expect(200);
        let row = only_row(&account).await;
        assert_eq!(end(&row), ("completed", "estimated"), "{form:?}: {row:?}");
        assert_eq!(row.flags, ["usage_missing"], "{form:?}");
        assert_estimated(&row, &form, true);
        let charged = row.charge.to_string();
        let told = (!form.stream).then_some(charged.as_str());
        assert_eq!(reply.header("x-farebox-charge"), told, "{form:?}");
    }
}

#[tokio::test]
async fn a_reported_zero_is_a_value_and_not_a_gap() {
    let upstream = Upstream::answering(Answer::default().counts(Counts::default())).await;
    let proxy = Proxy::before(&upstream).await;
    for form in forms::all() {
        let account = account(&proxy).await;
        form.ask(&account).await.expect(200);
        let row = only_row(&account).await;
        assert_eq!(end(&row), ("completed", "reported"), "{form:?}: {row:?}");
        assert_eq!((row.counts(), row.charge), (Counts::default(), credits("0")));
        let ledger = account.ledger().await;
        let entry = ledger.iter().find(|entry| entry.reference == row.id);
        assert_eq!(entry.map(|entry| entry.amount), Some(credits("0")), "{ledger:?}");
    }
}

#[tokio::test]
async fn a_client_that_left_pays_nothing_for_what_the_upstream_refuses() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    for status in [400, 500] {
        let account = account(&proxy).await;
        let gate = Gate::new();
        upstream.next(Script::error(status, "some_error", "No.").gated_head(&gate));
        let n = upstream.exchanges().len() + 1;
        let mut raw = forms::chat().send_raw(&proxy, &account).await;
        upstream.received(n).await;
        raw.half_close().await;
        assert!(raw.closes().await);
        gate.open_all();
        let row = only_row(&account).await;
        assert_eq!(end(&row), ("upstream_error", "none"), "{row:?}");
    }
}

#[tokio::test]
async fn requests_that_run_at_once_may_overdraw_together_and_the_next_is_refused() {
    let gate = Gate::new();
    let held = gate.clone();
    let answer = Answer::default().counts(Counts::new(10_000, 10_000));
    let upstream = Upstream::answering(answer.staged(move |script| script.gated_head(&held))).await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("0.000000001")).await;
    let form = forms::chat();
    let asking = || form.ask(&account);
    let (a, b, c, ()) = tokio::join!(asking(), asking(), asking(), async {
        upstream.received(3).await;
        gate.open_all();
    });
    for reply in [a, b, c] {
        reply.expect(200);
    }
    assert_eq!(account.balance().await, credits("-0.899999999"));
    forms::chat().ask(&account).await.expect(402);
    assert_eq!(account.check_books().await, credits("0.9"));
}
