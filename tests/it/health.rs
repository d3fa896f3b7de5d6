//! What the operator is told of the upstreams, as requests have found them.

use serde_json::Value;

use crate::support::answer::Answer;
use crate::support::credits;
use crate::support::forms;
use crate::support::http::Call;
use crate::support::proxy::{PROVIDER_KEY, Proxy, Setup};
use crate::support::script::{Cut, Script};
use crate::support::upstream::Upstream;

/// `both` is served by the upstreams `first` and `second`, in this order.
fn setup(first: &Upstream, second: &Upstream) -> Setup {
    Setup::bare()
        .upstream("first", "openai", &format!("{}/v1", first.url()), "")
        .upstream("second", "openai", &format!("{}/v1", second.url()), "")
        .prices(
            "[models.both]\nupstream = [\"first\", \"second\"]\ninput = \"10\"\noutput = \"20\"\n",
        )
}

async fn health(proxy: &Proxy, name: &str) -> Value {
    let url = format!("{}/admin/v1/upstreams", proxy.admin_url());
    let reply = Call::get(url).bearer(proxy.admin_key()).reply().await.expect(200);
    let upstreams = reply.json()["data"].as_array().unwrap().clone();
    upstreams.into_iter().find(|upstream| upstream["name"] == name).unwrap()
}

#[tokio::test]
async fn each_upstream_is_counted_by_what_it_did_also_where_another_helped_out() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let proxy = setup(&first, &second).start().await;
    let account = proxy.account_with(credits("5")).await;
    assert_eq!(health(&proxy, "first").await["condition"], "unused");

    let ask = || forms::chat().model("both");
    first.next(Script::error(503, "server_error", &format!("no capacity for {PROVIDER_KEY}")));
    ask().ask(&account).await.expect(200);
    let told = health(&proxy, "first").await;
    assert_eq!((&told["total"]["requests"], &told["total"]["failures"]), (&1.into(), &1.into()));
    assert_eq!(told["condition"], "failing");
    assert_eq!(
        (&told["last_failure"]["trouble"], &told["last_failure"]["status"]),
        (&"failed".into(), &503.into())
    );
    assert!(!told.to_string().contains("capacity"), "our words, not theirs: {told}");
    let told = health(&proxy, "second").await;
    assert_eq!(
        (&told["condition"], &told["last_hour"]["requests"]),
        (&"working".into(), &1.into())
    );
    assert!(told["total"]["slowest_latency_ms"].is_u64() && told["last_success"].is_string());

    // What the client did wrong is no trouble of the upstream.
    first.next(Script::error(400, "invalid_request_error", "No."));
    ask().ask(&account).await.expect(400);
    assert_eq!(health(&proxy, "first").await["total"]["failures"], 1);
    first.next(Script::error(401, "authentication_error", "Bad key."));
    ask().ask(&account).await.expect(502);
    assert_eq!(health(&proxy, "first").await["last_failure"]["trouble"], "refused");
}

#[tokio::test]
async fn a_reply_that_breaks_off_is_one_request_that_failed() {
    let answer = Answer::text(["Hello", " world"]).staged(|script| script.cut_at(400, Cut::Fin));
    let upstream = Upstream::answering(answer).await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.account_with(credits("5")).await;
    let reply = forms::chat().streamed().ask(&account).await;
    assert!(!reply.complete || reply.text().contains("error"), "{}", reply.text());
    account.settled().await;
    let told = health(&proxy, "openai").await;
    assert_eq!((&told["total"]["requests"], &told["total"]["failures"]), (&1.into(), &1.into()));
    assert_eq!(told["last_failure"]["trouble"], "cut_off");

    let metrics = Call::get(format!("{}/metrics", proxy.admin_url())).reply().await.text();
    let line = "farebox_upstream_failures_total{upstream=\"openai\",trouble=\"cut_off\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    assert!(
        metrics.contains("farebox_upstream_requests_total{upstream=\"openai\"} 1"),
        "{metrics}"
    );
    let shown = proxy.cli(&["upstream", "list"]).await;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("1 (1)") && shown.contains("broke a reply off"), "{shown}");
}
