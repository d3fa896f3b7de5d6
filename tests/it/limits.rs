//! What one client may take of the server: sizes, time, connections, attempts. Beyond each
//! limit there is an answer, and nothing stays behind.

use serde_json::{Value, json};

use crate::support::account::{Account, chat};
use crate::support::answer::Answer;
use crate::support::http::Call;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw::Raw;
use crate::support::script::{Gate, Script};
use crate::support::upstream::Upstream;
use crate::support::{credits, figure, until, within};

const CHAT: &str = "/v1/chat/completions";

async fn start(settings: &[(&str, &str)]) -> (Upstream, Proxy, Account) {
    let upstream = Upstream::start().await;
    let mut setup = Setup::before(&upstream);
    for (name, value) in settings {
        setup = setup.setting(name, value);
    }
    let proxy = setup.start().await;
    let account = proxy.account_with(credits("10")).await;
    (upstream, proxy, account)
}

fn head(key: &str, framing: &str) -> String {
    format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\n{framing}\r\n\r\n"
    )
}

/// A chat of exactly so many bytes.
fn chat_of(bytes: usize) -> String {
    let body = chat("test", "").to_string();
    let prompt = "a".repeat(bytes - body.len());
    chat("test", &prompt).to_string()
}

#[tokio::test]
async fn a_body_may_be_as_long_as_the_limit_and_not_longer() {
    let (upstream, proxy, account) = start(&[("max_body_bytes", "5000")]).await;
    for (bytes, status) in [(4999, 200), (5000, 200), (5001, 413), (100_000, 413)] {
        let body = chat_of(bytes);
        let reply = account.call(CHAT, &Value::Null).body(body.clone()).reply().await;
        assert_eq!(reply.status, status, "{bytes}");
        // In chunks nothing is declared; what arrives is counted.
        let mut raw = Raw::connect(&proxy.url()).await;
        raw.write(head(&account.key, "transfer-encoding: chunked")).await;
        for piece in body.as_bytes().chunks(700) {
            raw.write(format!("{:x}\r\n", piece.len())).await;
            raw.write(piece).await;
            raw.write("\r\n").await;
        }
        raw.write("0\r\n\r\n").await;
        let reply = raw.reply().await.unwrap();
        assert_eq!(reply.status, status, "{bytes} in chunks");
        if status == 413 {
            assert!(reply.text().contains("body_too_large"));
        }
    }
    // What is declared too long is refused before any of it is sent.
    for declared in ["5001", "9223372036854775807"] {
        let mut raw = Raw::connect(&proxy.url()).await;
        raw.write(head(&account.key, &format!("content-length: {declared}"))).await;
        assert_eq!(raw.reply().await.unwrap().status, 413, "{declared}");
        assert!(raw.closes().await);
    }
    // A small length beside chunks does not hide them.
    let mut raw = Raw::connect(&proxy.url()).await;
    let framing = "content-length: 10\r\ntransfer-encoding: chunked";
    let body = chat_of(6000);
    raw.write(head(&account.key, framing)).await;
    raw.write(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())).await;
    assert_eq!(raw.reply().await.unwrap().status, 413);
    assert_eq!(upstream.exchanges().len(), 4);
}

#[tokio::test]
async fn nineteen_mebibytes_pass_by_default() {
    let (upstream, _proxy, account) = start(&[]).await;
    let body = chat_of(19 << 20);
    account.call(CHAT, &Value::Null).body(body.clone()).reply().await.expect(200);
    assert_eq!(upstream.last().request.body, body.as_bytes());
    let body = chat_of((20 << 20) + 1);
    account.call(CHAT, &Value::Null).body(body).reply().await.expect(413);
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let (upstream, _proxy, account) = start(&[]).await;
    let body = chat_of(10 << 20);
    for _ in 0..5 {
        let wrong = account.with_key("wrong").call(CHAT, &Value::Null).body(body.clone());
        wrong.reply().await.expect(401);
        account.call("/v1/no/such", &Value::Null).body(body.clone()).reply().await.expect(404);
        let encoded = account.call(CHAT, &Value::Null).header("content-encoding", "gzip");
        encoded.body(body.clone()).reply().await.expect(415);
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up() {
    let (upstream, proxy, account) = start(&[("body_idle_timeout", "\"300ms\"")]).await;
    let body = chat("test", "Hi").to_string();
    for (framing, part) in [
        (format!("content-length: {}", body.len()), &body[..10]),
        (format!("content-length: {}", body.len()), ""),
        ("transfer-encoding: chunked".into(), "a\r\n{\"model\":"),
        ("transfer-encoding: chunked".into(), ""),
    ] {
        let mut raw = Raw::connect(&proxy.url()).await;
        raw.write(head(&account.key, &framing)).await;
        raw.write(part).await;
        let reply = raw.reply().await.unwrap();
        assert_eq!(reply.status, 408, "{framing} {part}");
        assert!(raw.closes().await);
    }
    assert_eq!(upstream.connections(), 0);
    assert_eq!(account.view().await.in_flight, 0);
}

#[tokio::test]
async fn a_body_that_never_stops_coming_is_given_up() {
    let (upstream, proxy, account) = start(&[("body_timeout", "\"500ms\"")]).await;
    let mut raw = Raw::connect(&proxy.url()).await;
    raw.write(head(&account.key, "content-length: 1000000")).await;
    let reply = within("an answer to a dripping body", async {
        loop {
            raw.write("{").await;
            let soon = std::time::Duration::from_millis(50);
            if let Ok(reply) = tokio::time::timeout(soon, raw.reply()).await {
                break reply;
            }
        }
    })
    .await;
    assert_eq!(reply.unwrap().status, 408);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn json_is_read_to_a_depth_and_a_number_of_values_and_no_further() {
    let (upstream, _proxy, account) = start(&[]).await;
    let nested = |depth: usize| {
        // The document itself is the first level.
        let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
        format!("{{\"model\":\"test\",\"messages\":{open}{close}}}")
    };
    let objects = |depth: usize| {
        let (open, close) = ("{\"a\":".repeat(depth - 1), "}".repeat(depth - 1));
        format!("{{\"model\":\"test\",\"messages\":{open}1{close}}}")
    };
    for (body, status) in [
        (nested(64), 200),
        (nested(65), 400),
        (nested(1_000_000), 400),
        (objects(64), 200),
        (objects(65), 400),
        (objects(1_000_000), 400),
        ("[".repeat(5_000_000), 400),
        (format!("{{\"model\":\"test\",\"messages\":[{}1]}}", "1,".repeat(1_200_000)), 400),
    ] {
        let start = body[..40].to_owned();
        let reply = account.call(CHAT, &Value::Null).body(body).reply().await;
        assert_eq!(reply.status, status, "{start}: {}", reply.text());
    }
    assert_eq!(upstream.exchanges().len(), 2);
}

/// One request that has been sent upstream and waits there.
async fn waiting(upstream: &Upstream, account: &Account) -> (Gate, tokio::task::JoinHandle<u16>) {
    let gate = Gate::new();
    let held = gate.clone();
    upstream.next(Answer::default().staged(move |script| script.gated_head(&held)));
    let seen = upstream.exchanges().len();
    let call = account.call(CHAT, &chat("test", "Hi"));
    let running = tokio::spawn(async move { call.reply().await.status });
    upstream.received(seen + 1).await;
    (gate, running)
}

#[tokio::test]
async fn requests_beyond_what_may_wait_are_shed_at_once() {
    let (upstream, _proxy, account) = start(&[("max_pending", "2")]).await;
    let first = waiting(&upstream, &account).await;
    let second = waiting(&upstream, &account).await;
    for path in [CHAT, "/v1/messages"] {
        let shed = account.post(path, &chat("test", "Hi")).await.expect(503);
        assert_eq!(shed.code(), "overloaded");
        assert_eq!(shed.header("retry-after"), Some("1"));
        assert!(shed.header("x-request-id").is_some_and(|id| id.len() > 8), "{shed:?}");
    }
    for (gate, running) in [first, second] {
        gate.open_all();
        assert_eq!(running.await.unwrap(), 200);
    }
    account.chat("Hi").await.expect(200);
    account.settled().await;
    assert_eq!(account.usage().await.len(), 3);
    account.check_books().await;
}

#[tokio::test]
async fn an_account_has_its_own_limit_of_requests_at_once() {
    let (upstream, proxy, account) = start(&[("max_in_flight", "2")]).await;
    let first = waiting(&upstream, &account).await;
    let second = waiting(&upstream, &account).await;
    let refused = account.chat("Hi").await.expect(429);
    assert_eq!(refused.code(), "too_many_concurrent_requests");
    // Nobody else waits for it.
    let other = proxy.account_with(credits("1")).await;
    other.chat("Hi").await.expect(200);
    for (gate, running) in [first, second] {
        gate.open_all();
        assert_eq!(running.await.unwrap(), 200);
    }
    account.settled().await;
    account.chat("Hi").await.expect(200);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let (upstream, proxy, account) = start(&[("max_connections", "1")]).await;
    let (gate, running) = waiting(&upstream, &account).await;
    let mut next = Raw::connect(&proxy.url()).await;
    next.write(format!(
        "GET /v1/me HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        account.key
    ))
    .await;
    // The control plane has connections of its own.
    assert_eq!(account.view().await.in_flight, 1);
    assert!(!next.has_more().await, "it was served beyond the limit");
    gate.open_all();
    assert_eq!(running.await.unwrap(), 200);
    assert_eq!(next.reply().await.unwrap().status, 200);
}

/// A client that takes nothing is dropped, but its reply is read to the end and paid.
#[tokio::test]
async fn a_client_that_does_not_read_is_dropped_and_charged_for_the_whole_reply() {
    let (upstream, proxy, account) = start(&[("write_timeout", "\"500ms\"")]).await;
    // More than all buffers on the way hold.
    let piece = "a".repeat(64 * 1024);
    let answer = Answer::text(vec![piece; 800]).counts(Counts::new(10, 20_000));
    upstream.next(answer);
    let mut body = chat("test", "Hi");
    body["stream"] = json!(true);
    let body = body.to_string();
    let mut raw = Raw::connect(&proxy.url()).await;
    raw.write(head(&account.key, &format!("content-length: {}", body.len()))).await;
    raw.write(body).await;
    upstream.ended(1).await;
    account.settled().await;
    let row = account.last_usage().await;
    assert_eq!(row.charge, charge("test", &Counts::new(10, 20_000)), "{row:?}");
    assert_eq!((row.source.as_str(), row.outcome.as_str()), ("drained", "client_closed"));
    let received = raw.rest().await;
    assert!(!received.ends_with(b"0\r\n\r\n"), "it got the whole reply");
    account.check_books().await;
}

/// The address waits with all its keys, the right one too, until the minute is over.
#[tokio::test]
async fn an_address_that_tries_many_keys_has_to_wait() {
    let (upstream, proxy, account) = start(&[("auth_failures_per_minute", "5")]).await;
    for i in 0..5 {
        // Those that are right are not counted.
        account.get("/v1/me").await.expect(200);
        let wrong = account.with_key(&format!("wrong-{i}"));
        wrong.get("/v1/me").await.expect(401);
    }
    for key in ["wrong-6", &account.key] {
        let reply = account.with_key(key).chat("Hi").await.expect(429);
        let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
    }
    assert_eq!(upstream.connections(), 0);
    // The control plane is another door.
    let healthy = Call::get(format!("{}/healthz", proxy.admin_url())).reply().await;
    assert_eq!(healthy.status, 200);
}

/// What is refused holds no connection open and leaves nothing running.
#[tokio::test]
async fn many_that_are_slow_do_not_stop_one_that_is_not() {
    let settings = [("max_connections_per_address", "20000")];
    let (upstream, proxy, account) = start(&settings).await;
    let mut slow = Vec::new();
    for i in 0..figure(300, 10_000) {
        let mut raw = Raw::connect(&proxy.url()).await;
        let head = head(&account.key, "content-length: 1000");
        raw.write(&head[..head.len() - 1 - i % 40]).await;
        slow.push(raw);
    }
    for _ in 0..20 {
        account.chat("Hi").await.expect(200);
    }
    drop(slow);
    account.settled().await;
    assert_eq!(upstream.exchanges().len(), 20);
}

/// The end of one that was asked to end is clean, also when a client will not go away.
#[tokio::test]
async fn a_program_that_is_told_to_end_does_so_with_clients_still_connected() {
    let (upstream, mut proxy, account) = start(&[]).await;
    upstream.always(Script::silent());
    let mut idle = Raw::connect(&proxy.url()).await;
    idle.write("GET /v1/me HTTP/1.1\r\nhost: x\r\n\r\n").await;
    idle.reply().await.unwrap();
    let silent = Raw::connect(&proxy.url()).await;
    until("an idle account", || async { (account.view().await.in_flight == 0).then_some(()) })
        .await;
    let ended = proxy.terminate().await;
    assert!(ended.success(), "{ended}");
    assert!(!proxy.output().contains("panicked"));
    drop((idle, silent));
}
