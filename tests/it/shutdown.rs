//! SIGTERM and SIGINT: no new work, what runs goes on to its end, and when patience ends
//! too, everything is settled from what is known.

use tokio::task::JoinHandle;

use crate::support::account::{Account, chat};
use crate::support::answer::Answer;
use crate::support::http::{Call, Reply, Stream};
use crate::support::prices::{Counts, charge};
use crate::support::proxy::{Proxy, Setup};
use crate::support::script::Gate;
use crate::support::upstream::Upstream;
use crate::support::{credits, figure, until};

/// Of every reply here.
const COUNTS: Counts = Counts::new(11, 7);

/// An upstream that says `Hello` and waits for the gate before it goes on.
async fn gated_upstream() -> (Upstream, Gate) {
    let gate = Gate::new();
    let held = gate.clone();
    let answer = Answer::text(["Hello", " world"]).counts(COUNTS);
    let upstream = Upstream::start().await;
    upstream.for_model("test", answer.clone().staged(move |script| script.gated_after(2, &held)));
    let held = gate.clone();
    upstream.for_model("other", answer.staged(move |script| script.gated_head(&held)));
    (upstream, gate)
}

fn patient(upstream: &Upstream, drain_timeout: &str) -> Setup {
    let drain_timeout = format!("\"{drain_timeout}\"");
    Setup::before(upstream)
        .setting("max_in_flight", "1000")
        .setting("drain_timeout", &drain_timeout)
}

/// Streams that are open when the signal comes.
fn many() -> usize {
    figure(100, 500)
}

/// Streams that are under way.
async fn open_streams(account: &Account, n: usize) -> Vec<Stream> {
    let mut streams = Vec::new();
    for _ in 0..n {
        let mut stream = account.stream_chat("Hi").await;
        stream.until("Hello").await;
        streams.push(stream);
    }
    streams
}

/// Waits until the program says that it is not ready and takes no connections.
async fn closing(proxy: &Proxy) {
    until("a closed door", || async {
        let ready = Call::get(format!("{}/readyz", proxy.admin_url())).try_send().await.ok()?;
        let refused = Call::get(format!("{}/v1/models", proxy.url())).try_send().await.is_err();
        (ready.status == 503 && refused).then_some(())
    })
    .await;
}

async fn read_all(streams: Vec<Stream>) -> Vec<Reply> {
    let mut replies = Vec::new();
    for stream in streams {
        replies.push(stream.rest().await);
    }
    replies
}

/// One error event at the end, and an end that no client takes for a good one.
fn assert_broken_off(reply: &Reply) {
    let text = reply.text();
    assert!(!reply.complete && !text.contains("[DONE]"), "{text}");
    let errors: Vec<_> =
        reply.events().into_iter().filter(|event| event["error"].is_object()).collect();
    assert_eq!(errors.len(), 1, "one error event: {text}");
    assert_eq!(errors[0]["error"]["code"], "draining");
    assert_eq!(reply.events().last(), errors.last());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_end_it_takes_no_more_and_lets_every_stream_come_to_its_end() {
    for signal in ["TERM", "INT"].repeat(figure(1, 30)) {
        let (upstream, gate) = gated_upstream().await;
        let mut proxy = patient(&upstream, "120s").start().await;
        let account = proxy.default_account();
        let streams = open_streams(&account, many()).await;
        proxy.signal(signal);
        closing(&proxy).await;
        assert_eq!(account.view().await.in_flight as usize, many(), "the control plane answers");
        gate.open_all();
        for reply in read_all(streams).await {
            assert!(reply.complete && reply.text().ends_with("data: [DONE]\n\n"), "{reply:?}");
        }
        assert_eq!(proxy.exit().await.code(), Some(0));

        proxy.restart().await;
        let usage = account.usage().await;
        assert_eq!(usage.len(), many());
        for row in usage {
            assert_eq!((row.outcome.as_str(), row.source.as_str()), ("completed", "reported"));
            assert_eq!(row.charge, charge("test", &COUNTS));
        }
        account.check_books().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_its_patience_ends_streams_are_broken_off_and_settled_from_what_is_known() {
    let (upstream, _gate) = gated_upstream().await;
    let mut proxy = patient(&upstream, "300ms").start().await;
    let account = proxy.default_account();
    let streams = open_streams(&account, many()).await;
    let waiting = waiting_for_its_head(&account, &upstream).await;
    proxy.signal("TERM");
    for reply in read_all(streams).await {
        assert_broken_off(&reply);
    }
    assert_refused(&waiting.await.unwrap());
    assert_eq!(proxy.exit().await.code(), Some(0));
    assert_all_settled(&mut proxy, &account).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once_and_still_settles() {
    for signals in [["TERM", "TERM"], ["INT", "TERM"], ["TERM", "INT"]].repeat(figure(1, 14)) {
        let (upstream, _gate) = gated_upstream().await;
        let mut proxy = patient(&upstream, "1h").start().await;
        let account = proxy.default_account();
        let streams = open_streams(&account, many()).await;
        let waiting = waiting_for_its_head(&account, &upstream).await;
        proxy.signal(signals[0]);
        closing(&proxy).await;
        proxy.signal(signals[1]);
        for reply in read_all(streams).await {
            assert_broken_off(&reply);
        }
        assert_refused(&waiting.await.unwrap());
        assert_eq!(proxy.exit().await.code(), Some(0));
        assert_all_settled(&mut proxy, &account).await;
    }
}

/// A request that has reached the upstream, which has not begun to answer.
async fn waiting_for_its_head(account: &Account, upstream: &Upstream) -> JoinHandle<Reply> {
    let before = upstream.exchanges().len();
    let call = account.call("/v1/chat/completions", &chat("other", "Hi"));
    let waiting = tokio::spawn(call.reply());
    upstream.received(before + 1).await;
    waiting
}

/// Told to come again, where another process may answer.
fn assert_refused(reply: &Reply) {
    assert_eq!((reply.status, reply.code().as_str()), (503, "draining"), "{reply:?}");
    assert_eq!(reply.header("retry-after"), Some("1"));
}

/// After a restart: every stream was charged for what was delivered, the request that
/// waited for what it sent, and nothing was left open.
async fn assert_all_settled(proxy: &mut Proxy, account: &Account) {
    proxy.restart().await;
    let usage = account.usage().await;
    assert_eq!(usage.len(), many() + 1);
    for row in &usage {
        assert_eq!(row.source, "estimated", "{row:?}");
        assert!(row.input_tokens > 0 && row.charge > credits("0"), "{row:?}");
        assert_eq!(row.output_tokens > 0, row.model == "test", "{row:?}");
    }
    account.check_books().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_read_on_without_a_client_are_waited_for() {
    let (upstream, gate) = gated_upstream().await;
    let mut proxy = patient(&upstream, "120s").start().await;
    let account = proxy.default_account();
    drop(open_streams(&account, 10).await);
    let whole = account.call("/v1/chat/completions", &chat("other", "Hi")).resetting();
    let whole = tokio::spawn(whole.try_send());
    upstream.received(11).await;
    whole.abort();
    proxy.signal("TERM");
    closing(&proxy).await;
    gate.open_all();
    assert_eq!(proxy.exit().await.code(), Some(0));

    proxy.restart().await;
    let usage = account.usage().await;
    assert_eq!(usage.len(), 11);
    for row in usage {
        assert_eq!((row.outcome.as_str(), row.source.as_str()), ("client_closed", "drained"));
        assert_eq!(row.charge, charge(&row.model, &COUNTS), "{row:?}");
    }
    account.check_books().await;
}

#[tokio::test]
async fn with_nothing_to_wait_for_it_ends_at_once_whatever_its_patience() {
    let upstream = Upstream::start().await;
    let mut proxy = patient(&upstream, "1h").start().await;
    let account = proxy.default_account();
    // A connection that is kept open between requests must not hold it up.
    let mut idle = crate::support::raw::Raw::connect(&proxy.url()).await;
    let key = &account.key;
    idle.write(format!("GET /v1/me HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"))
        .await;
    assert_eq!(idle.reply().await.map(|reply| reply.status), Some(200));
    assert_eq!(proxy.terminate().await.code(), Some(0));
    assert!(idle.closes().await);
}
