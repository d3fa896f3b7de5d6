//! Prices in force: when they change, where they step, and what has none is refused.

use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::answer::{Answer, responses};
use crate::support::forms::{self, Form};
use crate::support::prices::{self, Counts, FLEX, PRIORITY, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::script::{Gate, Script};
use crate::support::upstream::{Received, Upstream};
use crate::support::{credits, until};

/// The tests' list, all of it at this factor.
fn list_at(markup: &str) -> String {
    format!("markup = \"{markup}\"\n{}", prices::toml())
}

fn replace_prices(proxy: &Proxy, text: &str) {
    // Put in place whole, as editors do.
    let (new, file) = (proxy.dir().join("pricing.new"), proxy.dir().join("pricing.toml"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Waits until the list shows this price for the input of `test`.
async fn in_force(account: &Account, prompt: &str) {
    until("new prices", || async {
        let model = account.get("/v1/models/test").await.expect(200).json();
        (model["pricing"]["prompt"] == prompt).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_runs_keeps_the_price_it_was_admitted_at() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let plain = charge("test", &Counts::new(10, 2));
    let doubled = plain.checked_add(plain).unwrap();
    // By a signal, and then by the change of the file alone.
    for (factor, prompt, before, after) in
        [("2", "0.00002", plain, doubled), ("1", "0.00001", doubled, plain)]
    {
        let gate = Gate::new();
        let held = gate.clone();
        upstream.next(Answer::default().staged(move |script| script.gated(&held)));
        gate.open(2);
        let mut stream = forms::chat()
            .streamed()
            .with("stream_options", json!({ "include_usage": true }))
            .call(&account)
            .send()
            .await;
        stream.until("Hello").await;

        replace_prices(&proxy, &list_at(factor));
        if factor == "2" {
            proxy.signal("HUP");
        }
        in_force(&account, prompt).await;
        gate.open_all();
        let reply = stream.rest().await.expect(200);
        assert!(reply.text().contains(&format!("\"cost\":{before}")), "{}", reply.text());
        assert_eq!(account.last_usage().await.charge, before);
        forms::chat().ask(&account).await.expect(200);
        assert_eq!(account.last_usage().await.charge, after);
    }
}

#[tokio::test]
async fn a_list_with_a_mistake_leaves_the_old_prices_in_force() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    for (n, bad) in [
        format!("{}\n[models.extra]\nupstream = \"openai\"\n", list_at("2")),
        format!("{}\nprice = 1\n", list_at("2")),
        "not TOML at all [".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        replace_prices(&proxy, bad);
        proxy.signal("HUP");
        until("a warning", || async {
            let warnings = proxy.output().matches("prices stay as they were").count();
            (warnings > n).then_some(())
        })
        .await;
        forms::chat().ask(&account).await.expect(200);
        assert_eq!(account.last_usage().await.charge, charge("test", &Counts::new(10, 2)));
    }
    replace_prices(&proxy, &list_at("2"));
    proxy.signal("HUP");
    in_force(&account, "0.00002").await;
}

#[tokio::test]
async fn a_model_that_is_taken_from_the_list_can_no_longer_be_called() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream)
        .prices("[models.leaving]\nupstream = \"openai\"\ninput = \"1\"\noutput = \"1\"\n")
        .start()
        .await;
    let account = proxy.account_with(credits("1")).await;
    let form = forms::chat().model("leaving");
    form.ask(&account).await.expect(200);
    replace_prices(&proxy, &list_at("2"));
    proxy.signal("HUP");
    in_force(&account, "0.00002").await;
    assert_eq!(form.ask(&account).await.expect(404).code(), "model_not_found");
}

const SPECIAL: &str = r#"
[models.banded]
upstream = "openai"
input = "1"
output = "2"
cached_input = "0.5"
[[models.banded.bands]]
above = 1000
input = "10"
output = "20"

[models.marked]
upstream = "openai"
input = "1.5"
output = "3"
markup = "1.10"

[models.gift]
upstream = "openai"
free = true

[models.plain]
upstream = "openai"
input = "10"
output = "20"
"#;

async fn special() -> (Upstream, Proxy, Account) {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).prices(SPECIAL).start().await;
    let account = proxy.account_with(credits("1")).await;
    (upstream, proxy, account)
}

/// What a reply with these counts is charged.
async fn charged(upstream: &Upstream, account: &Account, form: &Form, counts: Counts) -> String {
    upstream.next(Answer::default().counts(counts));
    form.ask(account).await.expect(200);
    account.last_usage().await.charge.to_string()
}

#[tokio::test]
async fn a_band_holds_for_the_whole_request_from_one_token_above_its_edge() {
    let (upstream, _proxy, account) = special().await;
    let form = forms::chat().model("banded");
    let cached = |input| Counts { cached: 600, ..Counts::new(input, 100) };
    for (counts, expected) in [
        (Counts::new(999, 100), "0.001199"),
        (Counts::new(1000, 100), "0.0012"),
        (Counts::new(1001, 100), "0.01201"),
        // Every class of input counts, and a band inherits the rates it does not state.
        (cached(400), "0.0009"),
        (cached(401), "0.00631"),
    ] {
        assert_eq!(charged(&upstream, &account, &form, counts).await, expected, "{counts:?}");
    }
}

#[tokio::test]
async fn a_markup_is_a_factor_and_a_gift_is_free() {
    let (upstream, _proxy, account) = special().await;
    let counts = Counts::new(1000, 100);
    let marked = charged(&upstream, &account, &forms::chat().model("marked"), counts).await;
    assert_eq!(marked, "0.00198");
    let gift = charged(&upstream, &account, &forms::chat().model("gift"), counts).await;
    assert_eq!(gift, "0");
    let row = account.last_usage().await;
    assert_eq!((row.counts(), row.source.as_str()), (counts, "reported"));
    assert_eq!(account.check_books().await, credits("0.00198"));
}

#[tokio::test]
async fn a_charge_is_rounded_half_up_once() {
    let (upstream, _proxy, account) = special().await;
    let fine = forms::chat().model("fine");
    for (tokens, nano) in [(1, "0.000000038"), (2, "0.000000075"), (3, "0.000000113")] {
        let counts = Counts::new(tokens, 0);
        assert_eq!(charged(&upstream, &account, &fine, counts).await, nano);
        assert_eq!(charge("fine", &counts), credits(nano));
    }
}

#[tokio::test]
async fn the_tier_of_the_reply_sets_the_rates_and_not_the_one_asked_for() {
    let (upstream, _proxy, account) = special().await;
    let counts = Counts { cached: 5, ..Counts::new(1000, 100) };
    let by = |rates: prices::Rates| prices::round(rates.pico(&counts, prices::Audio::default()));
    for (asked, served, expected) in [
        ("priority", "priority", by(PRIORITY)),
        ("priority", "default", charge("test", &counts)),
        ("flex", "flex", by(FLEX)),
        ("auto", "priority", by(PRIORITY)),
        ("default", "default", charge("test", &counts)),
    ] {
        for form in [forms::chat(), forms::chat().streamed(), forms::responses()] {
            upstream.next(Answer::default().counts(counts).tier(served));
            form.with("service_tier", json!(asked)).ask(&account).await.expect(200);
            let row = account.last_usage().await;
            assert_eq!(row.charge, expected, "{asked} → {served}");
            assert_eq!(row.flags, [""; 0]);
        }
    }
}

#[tokio::test]
async fn what_the_reply_says_of_itself_that_was_not_asked_for_is_marked() {
    let (upstream, _proxy, account) = special().await;
    let expected = charge("test", &Counts::new(10, 2));
    for form in [forms::chat(), forms::chat().streamed(), forms::responses().streamed()] {
        upstream.next(Answer::default().tier("scale"));
        form.ask(&account).await.expect(200);
        let row = account.last_usage().await;
        assert_eq!((row.charge, row.flags), (expected, vec!["unpriced_tier".to_owned()]));

        upstream.next(Answer::default().served_by("other"));
        form.ask(&account).await.expect(200);
        let row = account.last_usage().await;
        assert_eq!((row.charge, row.flags), (expected, vec!["served_model".to_owned()]));
        assert_eq!((row.model.as_str(), row.served_model.as_deref()), ("test", Some("other")));

        // A dated version is the model itself.
        upstream.next(Answer::default().served_by("test-2026-11-21"));
        form.ask(&account).await.expect(200);
        let row = account.last_usage().await;
        assert_eq!((row.flags, row.served_model), (vec![], None));
    }
}

/// A refusal that names the parameter; the upstream must not see the request.
async fn refused(account: &Account, form: Form, parameter: &str, says: &str) {
    let reply = form.ask(account).await.expect(400);
    assert_eq!(reply.code(), "parameter_not_allowed", "{form:?}");
    assert_eq!(reply.json()["error"]["param"], parameter, "{form:?}");
    assert!(reply.text().contains(says), "{}", reply.text());
}

#[tokio::test]
async fn what_costs_money_and_has_no_price_is_refused() {
    let (upstream, _proxy, account) = special().await;
    let plain = || forms::chat().model("plain");
    let tool = |kind: &str| json!([{ "type": kind }]);
    refused(&account, plain().with("service_tier", json!("priority")), "service_tier", "priority")
        .await;
    let scale = forms::chat().with("service_tier", json!("scale"));
    refused(&account, scale, "service_tier", "scale").await;
    let code = forms::responses().with("tools", tool("code_interpreter"));
    refused(&account, code, "tools", "code_interpreter").await;
    let search = forms::responses().model("plain").with("tools", tool("web_search"));
    refused(&account, search, "tools", "web_search").await;
    refused(&account, plain().with("web_search_options", json!({})), "tools", "web_search").await;
    let audio = plain().with("modalities", json!(["text", "audio"]));
    refused(&account, audio, "modalities", "audio").await;
    assert!(upstream.exchanges().is_empty() && account.usage().await.is_empty());

    let audio = json!({ "voice": "alloy", "format": "wav" });
    let spoken = forms::chat().with("modalities", json!(["text", "audio"])).with("audio", audio);
    spoken.ask(&account).await.expect(200);
    // What the client runs itself needs no fee.
    let function = json!([{ "type": "function", "function": { "name": "ls" } }]);
    plain().with("tools", function).ask(&account).await.expect(200);
}

#[tokio::test]
async fn a_tool_that_the_upstream_runs_is_charged_by_the_call() {
    let (upstream, _proxy, account) = special().await;
    for calls in [0_u64, 1, 3] {
        for form in [forms::responses(), forms::responses().streamed()] {
            let form = form.with("tools", json!([{ "type": "web_search" }]));
            upstream.choose(move |request| Some(searching(request, calls).into()));
            form.ask(&account).await.expect(200);
            let row = account.last_usage().await;
            let tokens = charge("test", &Counts::new(10, 2)).nano();
            let fees = credits("0.01").nano() * i64::try_from(calls).unwrap();
            assert_eq!(row.charge.nano(), tokens + fees, "{row:?}");
            assert_eq!(row.calls.get("web_search").copied().unwrap_or_default(), calls);
        }
    }
    account.check_books().await;
}

/// The usual response, before which the upstream searched the web.
fn searching(request: &Received, calls: u64) -> Script {
    let answer = Answer::default();
    let mut whole = responses::whole(&answer, &request.model());
    let output = whole["output"].as_array_mut().unwrap();
    for i in 0..calls {
        let action = json!({ "type": "search", "query": "weather" });
        output.push(json!({
            "type": "web_search_call", "id": format!("ws_{i}"), "status": "completed",
            "action": action
        }));
    }
    if request.json()["stream"] != Value::Bool(true) {
        return Script::json(&whole);
    }
    let mut events = responses::events(&answer, &request.model());
    let last = json!({ "type": "response.completed", "sequence_number": 99, "response": whole });
    *events.last_mut().unwrap() = (format!("event: response.completed\ndata: {last}\n\n"), 0);
    Script::events(events)
}
