//! Alerts reach people by webhook and by mail, once a crossing, whatever fails in between.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::account::{Account, chat};
use crate::support::answer::Answer;
use crate::support::http::{Call, Reply};
use crate::support::mailbox::{Mailbox, Tls};
use crate::support::prices::Counts;
use crate::support::proxy::{Proxy, Setup};
use crate::support::script::{Cut, Script};
use crate::support::upstream::{Exchange, Upstream};
use crate::support::{credits, until};

/// Charges 0.2 credits a request by the model `test`, and alerts may go to this machine.
fn setup(upstream: &Upstream, retry: &str) -> Setup {
    Setup::before(upstream)
        .setting("alert_private_addresses", "true")
        .setting("alert_retry", &format!("\"{retry}\""))
}

async fn provider() -> Upstream {
    Upstream::answering(Answer::default().counts(Counts::new(10_000, 5_000))).await
}

/// A receiver of webhooks.
async fn receiver() -> Upstream {
    Upstream::answering(Script::whole("text/plain", "")).await
}

async fn put(proxy: &Proxy, path: &str, rules: Value) -> Reply {
    let url = format!("{}/admin/v1{path}", proxy.admin_url());
    let mut call = Call::new(hyper::Method::PUT, url).header("content-type", "application/json");
    call = call.body(json!({ "rules": rules }).to_string());
    call.bearer(proxy.admin_key()).reply().await
}

async fn set(proxy: &Proxy, account: &Account, rules: Value) -> Value {
    put(proxy, &format!("/accounts/{}/alerts", account.id), rules).await.expect(200).json()
}

/// The account's deliveries, newest first, once this many have ended one way or the other.
async fn ended(proxy: &Proxy, account: &Account, n: usize) -> Vec<Value> {
    until("the end of deliveries", || async {
        let url = format!("{}/admin/v1/accounts/{}/alerts", proxy.admin_url(), account.id);
        let view = Call::get(url).bearer(proxy.admin_key()).reply().await.expect(200).json();
        let deliveries = view["deliveries"].as_array().unwrap().clone();
        let ended = deliveries.iter().filter(|d| d["state"] != "pending").count();
        (ended >= n).then_some(deliveries)
    })
    .await
}

async fn try_out(proxy: &Proxy, account: &Account) -> Reply {
    let url = format!("{}/admin/v1/accounts/{}/alerts/test", proxy.admin_url(), account.id);
    Call::post(url, &json!({})).bearer(proxy.admin_key()).reply().await
}

fn kinds(exchanges: &[Exchange]) -> Vec<String> {
    exchanges.iter().map(|e| e.request.json()["type"].as_str().unwrap().to_owned()).collect()
}

async fn spend(account: &Account, requests: usize) {
    for _ in 0..requests {
        account.chat("Hi").await.expect(200);
    }
}

#[tokio::test]
async fn a_crossing_is_told_once_signed_and_told_again_after_a_top_up() {
    let (provider, receiver) = (provider().await, receiver().await);
    let proxy = setup(&provider, "50ms").start().await;
    let account = proxy.account_with(credits("1")).await;
    let url = format!("{}/hook", receiver.url());
    let rules = json!({ "low_balance": "0.7", "used_up": true, "webhook": url });
    let secret = set(&proxy, &account, rules.clone()).await["secret"].as_str().unwrap().to_owned();
    // It is shown once.
    assert!(set(&proxy, &account, rules).await["secret"].is_null());

    spend(&account, 2).await;
    receiver.ended(1).await;
    spend(&account, 3).await;
    receiver.ended(2).await;
    let seen = receiver.exchanges();
    assert_eq!(kinds(&seen), ["low_balance", "used_up"]);
    let told = seen[0].request.json();
    assert_eq!((&told["balance"], &told["limit"]), (&json!("0.6"), &json!("0.7")));
    assert_eq!(told["account"], account.id.as_str());
    assert_ne!(told["id"], seen[1].request.json()["id"]);
    for exchange in &seen {
        let request = &exchange.request;
        let stamp = request.header("x-farebox-timestamp").unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(format!("{stamp}.").as_bytes());
        mac.update(&request.body);
        let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(request.header("x-farebox-signature"), Some(format!("v1={hex}").as_str()));
    }

    account.topup(credits("1")).await;
    // A test is delivered by a look, which has then seen the new balance.
    try_out(&proxy, &account).await.expect(200);
    receiver.ended(3).await;
    spend(&account, 2).await;
    receiver.ended(4).await;
    assert_eq!(kinds(&receiver.exchanges())[2..], ["test", "low_balance"]);
    let deliveries = ended(&proxy, &account, 4).await;
    assert!(deliveries.iter().all(|d| d["state"] == "delivered" && d["tries"] == 1));
    account.check_books().await;
}

#[tokio::test]
async fn an_alert_is_tried_until_it_is_taken_also_by_the_next_process_and_then_no_more() {
    let (provider, receiver) = (provider().await, receiver().await);
    let mut proxy = setup(&provider, "2s").start().await;
    let account = proxy.account_with(credits("1")).await;
    let url = format!("{}/hook", receiver.url());
    receiver.always(Script::error(503, "busy", "Not now."));
    receiver.next(Script::leave(Cut::Reset));
    set(&proxy, &account, json!({ "low_balance": "5", "webhook": url })).await;
    until("the note of a try that failed", || async {
        let deliveries = ended(&proxy, &account, 0).await;
        deliveries.first().filter(|delivery| delivery["problem"].is_string()).map(drop)
    })
    .await;
    proxy.kill().await;
    receiver.always(Script::whole("text/plain", ""));
    proxy.restart().await;
    let delivered = ended(&proxy, &account, 1).await;
    assert_eq!((delivered.len(), &delivered[0]["state"]), (1, &json!("delivered")));
    let tried = receiver.exchanges();
    let ids: Vec<_> = tried.iter().map(|e| e.request.json()["id"].clone()).collect();
    assert!(ids.iter().all(|id| *id == delivered[0]["id"]), "{ids:?}");

    // Nothing has changed for the better, so neither a debit nor another start tells it again.
    let before = tried.len();
    proxy.kill().await;
    proxy.restart().await;
    spend(&account, 1).await;
    let mark = json!({ "low_balance": "5", "large_request": "0.1", "webhook": url });
    set(&proxy, &account, mark).await;
    spend(&account, 1).await;
    receiver.when("the alert after it", |seen| seen.len() > before).await;
    assert_eq!(kinds(&receiver.exchanges())[before..], ["large_request"]);
}

#[tokio::test]
async fn an_alert_that_nobody_takes_is_given_up_and_says_why() {
    let (provider, receiver) = (provider().await, receiver().await);
    let proxy = setup(&provider, "1ms").start().await;
    let account = proxy.account_with(credits("1")).await;
    let elsewhere = Upstream::start().await;
    let redirect = Script::whole("text/plain", "").status(302).header("location", &elsewhere.url());
    receiver.always(redirect);
    let rules = json!({ "low_balance": "5", "webhook": format!("{}/hook", receiver.url()) });
    set(&proxy, &account, rules).await;
    let deliveries = ended(&proxy, &account, 1).await;
    assert_eq!((&deliveries[0]["state"], &deliveries[0]["tries"]), (&json!("failed"), &json!(6)));
    assert_eq!(deliveries[0]["problem"], "the receiver answered with status 302");
    assert_eq!((receiver.exchanges().len(), elsewhere.connections()), (6, 0));
}

#[tokio::test]
async fn requests_days_and_heartbeats_above_their_limits_are_told() {
    let (provider, receiver) = (provider().await, receiver().await);
    let proxy = setup(&provider, "50ms").start().await;
    let account = proxy.account_with(credits("10")).await;
    spend(&account, 1).await;
    let rules = json!({
        "large_request": "0.15", "daily_spend": "0.5", "heartbeat_percent": 30,
        "tz": "Pacific/Auckland", "webhook": format!("{}/hook", receiver.url()),
    });
    set(&proxy, &account, rules).await;
    spend(&account, 1).await;
    receiver.ended(1).await;
    let told = receiver.exchanges()[0].request.json();
    let last = account.last_usage().await;
    assert_eq!((&told["type"], &told["count"]), (&json!("large_request"), &json!(1)), "{told}");
    assert_eq!((&told["request"], &told["charge"]), (&json!(last.id), &json!("0.2")));

    let beat = account.call("/v1/chat/completions", &chat("test", "Hi"));
    beat.header("x-farebox-tag", "heartbeat").reply().await.expect(200);
    // The day's spend, the share of heartbeats (a third), and the request itself.
    receiver.ended(4).await;
    let mut seen = kinds(&receiver.exchanges())[1..].to_vec();
    seen.sort();
    assert_eq!(seen, ["daily_spend", "heartbeat_share", "large_request"]);
}

#[tokio::test]
async fn the_operator_is_told_of_every_account_and_not_of_what_was_before() {
    let (provider, receiver) = (provider().await, receiver().await);
    let proxy = setup(&provider, "50ms").start().await;
    let (one, two) =
        (proxy.account_with(credits("5")).await, proxy.account_with(credits("5")).await);
    spend(&one, 3).await;
    one.settled().await;
    let rules = json!({ "large_request": "0.1", "webhook": format!("{}/all", receiver.url()) });
    put(&proxy, "/alerts", rules).await.expect(200);
    for account in [&two, &one] {
        let before = receiver.exchanges().len();
        spend(account, 1).await;
        receiver.ended(before + 1).await;
        let told = receiver.last().request.json();
        assert_eq!((&told["account"], &told["count"]), (&json!(account.id), &json!(1)), "{told}");
        assert_eq!(told["rule_of"], "operator");
    }
    assert_eq!(receiver.exchanges().len(), 2);
}

#[tokio::test]
async fn alerts_are_mailed_encrypted_and_again_when_the_server_has_no_time() {
    for (tls, word) in [(Tls::Starttls, "\"starttls\""), (Tls::Implicit, "\"implicit\"")] {
        let (provider, mailbox) = (provider().await, Mailbox::start(tls).await);
        let ca_file = mailbox.ca_file();
        let proxy = setup(&provider, "50ms")
            .setting("smtp_server", &format!("\"{}\"", mailbox.address()))
            .setting("smtp_tls", word)
            .setting("smtp_user", "\"farebox\"")
            .setting("smtp_from", "\"Farebox <farebox@example.com>\"")
            .setting("smtp_ca_file", &format!("\"{}\"", ca_file.display()))
            .env("FAREBOX_SMTP_PASSWORD", "smtp-canary-77")
            .start()
            .await;
        let account = proxy.account_with(credits("1")).await;
        mailbox.refuse(2);
        set(&proxy, &account, json!({ "low_balance": "5", "email": "ops@example.com" })).await;
        let mail = mailbox.received(1).await.pop().unwrap();
        let deliveries = ended(&proxy, &account, 1).await;
        assert_eq!((mailbox.attempts(), mailbox.mails().len()), (3, 1), "{tls:?}");
        assert_eq!(
            (&deliveries[0]["state"], &deliveries[0]["tries"]),
            (&json!("delivered"), &json!(3))
        );
        assert!(mail.encrypted && mail.auth.is_some(), "{mail:?}");
        assert!(mail.from.contains("<farebox@example.com>"), "{mail:?}");
        assert!(mail.to.contains("<ops@example.com>"), "{mail:?}");
        let id = deliveries[0]["id"].as_str().unwrap();
        // Long lines are broken by `=` at their end.
        let data = mail.data.replace("=\r\n", "");
        for text in ["Subject: Farebox: Low balance", "below the limit of 5", id] {
            assert!(data.contains(text), "no {text:?} in: {data}");
        }
        assert!(!proxy.output().contains("smtp-canary-77"));
    }
}

#[tokio::test]
async fn a_mail_server_that_cannot_be_trusted_gets_no_password() {
    let (provider, mailbox) = (provider().await, Mailbox::start(Tls::Starttls).await);
    let proxy = setup(&provider, "1ms")
        .setting("smtp_server", &format!("\"{}\"", mailbox.address()))
        .setting("smtp_user", "\"farebox\"")
        .setting("smtp_from", "\"farebox@example.com\"")
        .env("FAREBOX_SMTP_PASSWORD", "smtp-canary-78")
        .start()
        .await;
    let account = proxy.account_with(credits("1")).await;
    set(&proxy, &account, json!({ "low_balance": "5", "email": "ops@example.com" })).await;
    let deliveries = ended(&proxy, &account, 1).await;
    assert_eq!(deliveries[0]["state"], "failed");
    assert_eq!((mailbox.attempts(), mailbox.mails().len()), (0, 0));
}

#[tokio::test]
async fn an_address_inside_is_refused_unless_the_operator_allows_it() {
    let (provider, receiver) = (provider().await, receiver().await);
    let proxy = Proxy::before(&provider).await;
    let account = proxy.account_with(credits("1")).await;
    let path = format!("/accounts/{}/alerts", account.id);
    let port = receiver.url().rsplit_once(':').unwrap().1.to_owned();
    for url in [
        receiver.url(),
        format!("https://127.0.0.1:{port}/"),
        format!("https://[::1]:{port}/"),
        "https://10.0.0.8/hook".into(),
        "https://user:password@example.com/".into(),
        "file:///etc/passwd".into(),
    ] {
        let reply = put(&proxy, &path, json!({ "used_up": true, "webhook": url })).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_value"), "{url}");
    }
    // A name is looked at when it is called.
    let name = format!("https://localhost:{port}/hook");
    put(&proxy, &path, json!({ "low_balance": "5", "webhook": name })).await.expect(200);
    until("a first try", || async {
        let url = format!("{}/admin/v1{path}", proxy.admin_url());
        let view = Call::get(url).bearer(proxy.admin_key()).reply().await.expect(200).json();
        view["deliveries"][0]["problem"].as_str().map(str::to_owned)
    })
    .await;
    assert_eq!(receiver.connections(), 0);
    let email = put(&proxy, &path, json!({ "used_up": true, "email": "ops@example.com" })).await;
    assert!(email.expect(400).text().contains("mail server"));
}

#[tokio::test]
async fn a_test_is_sent_at_once_and_not_more_often_than_five_times_a_minute() {
    let (provider, receiver) = (provider().await, receiver().await);
    let proxy = setup(&provider, "50ms").start().await;
    let account = proxy.account_with(credits("1")).await;
    assert_eq!(try_out(&proxy, &account).await.status, 400, "no channel is set");
    set(&proxy, &account, json!({ "webhook": format!("{}/hook", receiver.url()) })).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(try_out(&proxy, &account).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 400]);
    receiver.ended(5).await;
    assert!(kinds(&receiver.exchanges()).iter().all(|kind| kind == "test"));
}
