//! HTTP/2 with prior knowledge.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

use super::CHAT;
use crate::support::account::chat;
use crate::support::answer::Answer;
use crate::support::prices::charge;
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{credits, within};

type Sender = SendRequest<Full<Bytes>>;

async fn connect(proxy: &Proxy) -> Sender {
    let addr = proxy.url().replace("http://", "");
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

fn request(proxy: &Proxy, key: &str, body: &serde_json::Value) -> Request<Full<Bytes>> {
    Request::post(format!("{}{CHAT}", proxy.url()))
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(Full::new(body.to_string().into()))
        .unwrap()
}

async fn text(reply: Response<Incoming>) -> String {
    let body = within("a body", reply.into_body().collect()).await.unwrap();
    String::from_utf8(body.to_bytes().into()).unwrap()
}

#[tokio::test]
async fn streams_of_one_connection_have_each_their_own_key() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let first = proxy.account_with(credits("1")).await;
    let second = proxy.account_with(credits("1")).await;
    let mut sender = connect(&proxy).await;
    let mut body = chat("test", "Hi");
    body["stream"] = json!(true);
    let streamed = sender.send_request(request(&proxy, &first.key, &body));
    let whole = sender.send_request(request(&proxy, &second.key, &chat("test", "Hi")));
    let wrong = sender.send_request(request(&proxy, "wrong", &body));
    let (streamed, whole, wrong) =
        within("replies", async { tokio::join!(streamed, whole, wrong) }).await;
    assert_eq!(wrong.unwrap().status(), 401);
    assert!(text(whole.unwrap()).await.contains("Hello world"));
    assert!(text(streamed.unwrap()).await.ends_with("data: [DONE]\n\n"));
    for account in [first, second] {
        account.settled().await;
        assert_eq!(account.usage().await.len(), 1);
        account.check_books().await;
    }
}

/// Every connection of the proxy's clients has ended: whatever was sent on them has begun.
async fn ended(proxy: &Proxy) {
    let port: u16 = proxy.url().rsplit(':').next().unwrap().parse().unwrap();
    let ours = format!("0100007F:{port:04X}");
    loop {
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let mut fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // All but those that listen, or only wait for late packets.
        if !fields.any(|field| field[1] == ours && !matches!(field[3], "0A" | "06")) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Streams that are opened and reset as fast as it goes are settled as the upstream
/// bills them, and leave no place taken.
#[tokio::test]
async fn rapid_resets_leave_nothing_unsettled() {
    let upstream = Upstream::answering(Answer::text(["a", "b", "c"])).await;
    let proxy = Setup::before(&upstream).setting("max_drains", "10000").start().await;
    let account = proxy.account_with(credits("1")).await;
    let mut body = chat("test", "Hi");
    for stream in [false, true] {
        body["stream"] = json!(stream);
        for round in 0..6 {
            let mut sender = connect(&proxy).await;
            for i in 0..40 {
                // A server may well have enough of this and close.
                let Ok(()) = sender.ready().await else { break };
                let reply = sender.send_request(request(&proxy, &account.key, &body));
                let reply = tokio::spawn(reply);
                if (i + round) % 3 == 0 {
                    tokio::task::yield_now().await;
                }
                reply.abort();
            }
        }
    }
    within("the end of all connections", ended(&proxy)).await;
    account.settled().await;
    let bills = upstream.bills();
    let billed = bills.iter().map(|bill| charge("test", &bill.counts)).sum();
    assert_eq!(account.check_books().await, billed, "{} bills", bills.len());
    account.chat("Hi").await.expect(200);
    assert!(!proxy.output().contains("panicked"));
}

#[tokio::test]
async fn more_streams_than_may_run_at_once_are_all_served() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).setting("max_in_flight", "1000").start().await;
    let account = proxy.account_with(credits("1")).await;
    let mut sender = connect(&proxy).await;
    let mut replies = tokio::task::JoinSet::new();
    for _ in 0..250 {
        within("room for a stream", sender.ready()).await.unwrap();
        let reply = sender.send_request(request(&proxy, &account.key, &chat("test", "Hi")));
        replies.spawn(async move { text(reply.await.unwrap()).await });
    }
    while let Some(text) = within("a reply", replies.join_next()).await {
        assert!(text.unwrap().contains("Hello world"));
    }
    account.settled().await;
    assert_eq!(account.usage().await.len(), 250);
    account.check_books().await;
}

#[tokio::test]
async fn a_flood_of_headers_ends_with_its_stream_or_connection() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    let mut sender = connect(&proxy).await;
    let mut flood = request(&proxy, &account.key, &chat("test", "Hi"));
    for i in 0..400 {
        let name: http::HeaderName = format!("x-{i}").parse().unwrap();
        flood.headers_mut().insert(name, "a".repeat(1000).parse().unwrap());
    }
    if let Ok(reply) = within("an end", sender.send_request(flood)).await {
        assert_eq!(reply.status(), 431);
    }
    assert_eq!(upstream.connections(), 0);
    let mut next = connect(&proxy).await;
    let reply = next.send_request(request(&proxy, &account.key, &chat("test", "Hi"))).await;
    assert_eq!(reply.unwrap().status(), 200);
}
