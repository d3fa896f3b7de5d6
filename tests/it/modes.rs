//! How far an account may fall below zero, by its mode; and what a key may use.

use farebox::billing::Credits;
use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::answer::Answer;
use crate::support::forms;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::script::Gate;
use crate::support::upstream::Upstream;
use crate::support::{credits, until};

/// The path of a new key, and the account signing with it.
async fn key_with(account: &Account, limits: Value) -> (String, Account) {
    let made = account.admin_call("/keys", &json!({ "name": "limited", "limits": limits }));
    let made = made.reply().await.expect(201).json();
    let path = format!("/keys/{}", made["id"].as_str().unwrap());
    assert_eq!(made["limits"], limits);
    (path, account.with_key(made["key"].as_str().unwrap()))
}

/// A chat that asks for at most so much output.
fn asking(output: u64) -> Value {
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    json!({ "model": "test", "messages": messages, "max_tokens": output })
}

struct Rush {
    statuses: Vec<u16>,
    /// The sum of what was charged.
    charged: Credits,
}

/// So many requests at once. None ends before each is either sent upstream or refused.
async fn rush(
    upstream: &Upstream,
    account: &Account,
    n: usize,
    admitted: usize,
    counts: Counts,
) -> Rush {
    let gate = Gate::new();
    let held = gate.clone();
    let answer = Answer::default().counts(counts);
    upstream.always(answer.staged(move |script| script.gated_head(&held)));
    let calls: Vec<_> = (0..n)
        .map(|_| {
            let account = account.clone();
            tokio::spawn(async move { account.post("/v1/chat/completions", &asking(10_000)).await })
        })
        .collect();
    upstream.received(admitted).await;
    until("the refusals", || async {
        (calls.iter().filter(|call| call.is_finished()).count() == n - admitted).then_some(())
    })
    .await;
    gate.open_all();
    let mut statuses = Vec::new();
    for call in calls {
        statuses.push(call.await.unwrap().status);
    }
    statuses.sort_unstable();
    let charged = account.check_books().await;
    Rush { statuses, charged }
}

fn times(amount: Credits, n: i64) -> Credits {
    Credits::from_nano(amount.nano() * n)
}

#[tokio::test]
async fn a_lenient_account_falls_by_no_more_than_its_places_at_the_dearest_request() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("0.000000001")).await;
    account.patch("", &json!({ "max_in_flight": 5 })).await.expect(200);
    let dearest = Counts::new(10, 10_000);
    let Rush { statuses, charged } = rush(&upstream, &account, 20, 5, dearest).await;
    assert_eq!(statuses, [[200; 5].as_slice(), &[429; 15]].concat());
    assert_eq!(charged, times(charge("test", &dearest), 5));
    assert_eq!(account.balance().await, credits("0.000000001") - charged);
    account.post("/v1/chat/completions", &asking(1)).await.expect(402);
}

#[tokio::test]
async fn an_account_of_one_request_falls_by_no_more_than_one() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).setting("admission", "\"one_request\"").start().await;
    let account = proxy.account_with(credits("0.1")).await;
    // Each holds 0.2 for its output alone, which is more than there is: one runs, and no other.
    let counts = Counts::new(10, 10_000);
    let Rush { statuses, charged } = rush(&upstream, &account, 20, 1, counts).await;
    assert_eq!(statuses, [[200; 1].as_slice(), &[402; 19]].concat());
    assert_eq!(charged, charge("test", &counts));
    assert_eq!(account.balance().await, credits("0.1") - charged);
    // Nothing is held for ever: with credits again the next one is served.
    account.topup(credits("1")).await;
    account.post("/v1/chat/completions", &asking(1)).await.expect(200);
}

#[tokio::test]
async fn a_strict_account_falls_by_no_more_than_requests_exceed_their_holds() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    account.patch("", &json!({ "mode": "strict" })).await.expect(200);
    // Each holds 0.2 for its output and a little for its input: four fit into 1.
    let within = Counts::new(10, 10_000);
    let Rush { statuses, charged } = rush(&upstream, &account, 20, 4, within).await;
    assert_eq!(statuses, [[200; 4].as_slice(), &[402; 16]].concat());
    assert_eq!(charged, times(charge("test", &within), 4));
    let left = credits("1") - charged;
    assert!(!left.is_negative() && account.balance().await == left);

    // The upstream gives more than was asked for: debited in full, not clipped.
    account.topup(credits("0.2")).await;
    let beyond = Counts::new(10, 30_000);
    let before = charged;
    let Rush { statuses, charged } = rush(&upstream, &account, 3, 1, beyond).await;
    assert_eq!(statuses, [200, 402, 402]);
    assert_eq!(charged - before, charge("test", &beyond));
    assert!(account.balance().await.is_negative());
    let view = account.view().await;
    assert_eq!((view.in_flight, view.available), (0, view.balance), "nothing is held any more");
}

#[tokio::test]
async fn a_strict_account_asks_for_a_bound() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).setting("admission", "\"strict\"").start().await;
    let account = proxy.account_with(credits("1")).await;
    let refused = forms::chat().ask(&account).await.expect(400);
    assert_eq!(refused.code(), "max_tokens_required");
    assert_eq!(refused.json()["error"]["param"], "max_tokens");
    let too_much = account.post("/v1/chat/completions", &asking(50_000)).await.expect(402);
    assert_eq!(too_much.code(), "insufficient_credits");
    let details = &too_much.json()["error"]["details"];
    assert_eq!((&details["balance"], &details["held"]), (&json!("1"), &json!("0")));
    let most: Credits = details["most"].as_str().unwrap().parse().unwrap();
    assert!(most > credits("1") && most < credits("1.01"), "{most}");
    assert!(upstream.exchanges().is_empty(), "the upstream never saw them");
    // What has no output needs no bound.
    let input = json!({ "model": "test", "input": "Hi" });
    account.post("/v1/embeddings", &input).await.expect(200);
    account.post("/v1/chat/completions", &asking(100)).await.expect(200);
    let me = account.get("/v1/me").await.expect(200).json();
    assert_eq!(me["limits"]["admission"], "strict");
}

#[tokio::test]
async fn a_spend_cap_of_a_key_ends_at_its_sum_and_not_before_and_survives_a_restart() {
    let upstream = Upstream::start().await;
    let mut proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("10")).await;
    let cost = charge("test", &Counts::new(10, 2));
    let cap = times(cost, 2).to_string();
    let limits = json!({ "total": cap, "zone": "Europe/Vilnius" });
    let (path, limited) = key_with(&account, limits).await;
    for _ in 0..2 {
        forms::chat().ask(&limited).await.expect(200);
    }
    proxy.terminate().await;
    proxy.restart().await;

    let refused = forms::chat().ask(&limited).await.expect(402);
    assert_eq!(refused.code(), "key_limit_reached");
    assert_eq!(refused.header("retry-after"), None, "agents would sit it out");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    let error = &refused.json()["error"];
    assert_eq!(error["param"], "total");
    assert_eq!((&error["details"]["used"], &error["details"]["value"]), (&json!(cap), &json!(cap)));
    forms::messages().ask(&limited).await.expect(402);
    // Other keys of the account go on, and its own key shows what is used.
    forms::chat().ask(&account).await.expect(200);
    let me = limited.get("/v1/me").await.expect(200).json();
    assert_eq!(me["key"]["use"]["spend"]["total"]["used"], json!(cap));
    assert_eq!(me["key"]["limits"]["zone"], "Europe/Vilnius");

    // A larger cap is in force at once.
    let more = times(cost, 3).to_string();
    let changed = account.patch(&path, &json!({ "limits": { "total": more } })).await;
    let changed = changed.expect(200).json();
    assert_eq!(changed["limits"], json!({ "total": more, "zone": "Europe/Vilnius" }));
    assert_eq!(changed["use"]["spend"]["total"]["used"], json!(cap));
    forms::chat().ask(&limited).await.expect(200);
    forms::chat().ask(&limited).await.expect(402);
}

#[tokio::test]
async fn limits_a_minute_and_at_once_say_which_they_are_and_when_to_come_back() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("10")).await;
    let (path, limited) = key_with(&account, json!({ "requests_per_minute": 1 })).await;
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let limited = limited.clone();
            tokio::spawn(async move { forms::chat().ask(&limited).await })
        })
        .collect();
    let mut replies = Vec::new();
    for call in calls {
        replies.push(call.await.unwrap());
    }
    assert!(replies.iter().any(|reply| reply.status == 200));
    let refused = replies.into_iter().find(|reply| reply.status == 429).expect("a refusal");
    assert_eq!(refused.code(), "rate_limit_exceeded");
    assert_eq!(refused.json()["error"]["param"], "requests_per_minute");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&wait), "{wait}");
    assert_eq!(refused.header("x-should-retry"), None);

    let tokens = json!({ "limits": { "requests_per_minute": null, "tokens_per_minute": 100 } });
    account.patch(&path, &tokens).await.expect(200);
    // More tokens than flow out in an hour.
    upstream.next(Answer::default().counts(Counts::new(10, 10_000)));
    forms::chat().ask(&limited).await.expect(200);
    let refused = forms::chat().ask(&limited).await.expect(429);
    assert_eq!(refused.json()["error"]["param"], "tokens_per_minute");

    let places = json!({ "limits": { "tokens_per_minute": null, "max_in_flight": 1 } });
    account.patch(&path, &places).await.expect(200);
    let gate = Gate::new();
    let held = gate.clone();
    upstream.next(Answer::default().staged(move |script| script.gated_head(&held)));
    let first = tokio::spawn({
        let limited = limited.clone();
        async move { forms::chat().ask(&limited).await.status }
    });
    until("the first at the upstream", || async {
        (limited.view().await.in_flight == 1).then_some(())
    })
    .await;
    let refused = forms::chat().ask(&limited).await.expect(429);
    assert_eq!(refused.code(), "too_many_concurrent_requests");
    assert_eq!(refused.json()["error"]["param"], "max_in_flight");
    forms::chat().ask(&account).await.expect(200);
    gate.open_all();
    assert_eq!(first.await.unwrap(), 200);
    account.check_books().await;
}

#[tokio::test]
async fn a_change_that_nobody_can_mean_is_refused() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let (path, _) = key_with(&account, json!({ "daily": "5" })).await;
    for (below, body) in [
        ("", json!({ "mode": "generous" })),
        ("", json!({ "max_in_flight": 0 })),
        ("", json!({ "balance": "5" })),
        (&*path, json!({ "limits": { "zone": "Europe/Vilna" } })),
        (&*path, json!({ "limits": { "daily": "-1" } })),
        (&*path, json!({ "limits": { "hourly": "1" } })),
        (&*path, json!({ "account": "other" })),
        (&*path, json!({ "expires_at": "2020-01-01T00:00:00Z" })),
    ] {
        account.patch(below, &body).await.expect(400);
    }
    account.patch("/keys/key_none", &json!({ "name": "x" })).await.expect(404);
}

#[tokio::test]
async fn the_command_line_sets_modes_and_limits_and_shows_what_is_used() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("1")).await;
    let run = async |args: &[&str]| -> Value {
        let args: Vec<_> =
            args.iter().chain(&["--account", &*account.id, "--json"]).copied().collect();
        let ran = proxy.cli(&args).await;
        assert!(ran.status.success(), "{args:?}: {ran:?}");
        serde_json::from_slice(&ran.stdout).unwrap()
    };
    let set = run(&["account", "set", "--mode", "strict", "--max-in-flight", "8"]).await;
    assert_eq!((&set["mode"], &set["max_in_flight"]), (&json!("strict"), &json!(8)));
    let reset = run(&["account", "set", "--mode", "none", "--max-in-flight", "none"]).await;
    assert_eq!((&reset["mode"], &reset["max_in_flight"]), (&Value::Null, &Value::Null));

    let made = run(&["key", "create", "--name", "laptop", "--daily", "5", "--rpm", "60"]).await;
    assert_eq!(made["limits"], json!({ "daily": "5", "requests_per_minute": 60 }));
    let zone = "Europe/Vilnius";
    let args = ["key", "set", "laptop", "--rpm", "none", "--zone", zone, "--concurrency", "2"];
    let changed = run(&args).await;
    assert_eq!(changed["limits"], json!({ "daily": "5", "zone": zone, "max_in_flight": 2 }));
    forms::chat().ask(&account.with_key(made["key"].as_str().unwrap())).await.expect(200);
    let ran = proxy.cli(&["key", "list", "--account", &account.id]).await;
    let shown = String::from_utf8(ran.stdout).unwrap();
    let cost = charge("test", &Counts::new(10, 2));
    let limits = format!("daily {cost}/5, in {zone}, running 0/2");
    assert!(shown.contains(&limits), "{shown}");
}
