//! What heartbeats cost, however they are recognised, and what they would cost otherwise.

use serde_json::{Value, json};

use crate::support::account::{Account, chat};
use crate::support::answer::Answer;
use crate::support::http::Call;
use crate::support::prices::Counts;
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{credits, within};

/// How OpenClaw's heartbeat begins.
const PROMPT: &str = "Follow the heartbeat monitor scratch context when provided. Recurring tasks";

/// `dear` and `light` beside the tests' prices; a request is 20 000 tokens in and 100 out.
async fn start() -> (Upstream, Proxy) {
    let answer = Answer::default().counts(Counts::new(20_000, 100));
    let upstream = Upstream::answering(answer).await;
    let model = |name: &str, input: &str, output: &str| {
        format!(
            "[models.{name}]\nupstream = \"openai\"\ninput = \"{input}\"\noutput = \"{output}\"\n"
        )
    };
    let prices =
        model("dear", "10", "20") + &model("light", "1", "2") + &model("vectors", "0.1", "0");
    let setup = Setup::before(&upstream).prices(&prices);
    (upstream, setup.start().await)
}

async fn heartbeats(proxy: &Proxy, account: &Account) -> Value {
    account.settled().await;
    let url = format!("{}/admin/v1/accounts/{}/usage/heartbeats", proxy.admin_url(), account.id);
    let call = Call::get(url).bearer(proxy.admin_key());
    within("heartbeats", call.reply()).await.expect(200).json()
}

#[tokio::test]
async fn heartbeats_are_one_share_whether_by_key_header_or_prompt() {
    let (_upstream, proxy) = start().await;
    let account = proxy.account_with(credits("10")).await;
    let none = heartbeats(&proxy, &account).await;
    assert_eq!((&none["otherwise"], &none["share_percent"]), (&Value::Null, &Value::Null));

    account.chat("Hi").await.expect(200);
    let keyed = account.new_key(&json!({ "name": "hb", "tag": "heartbeat" })).await;
    let body = chat("dear", "Hi");
    account.with_key(&keyed).post("/v1/chat/completions", &body).await.expect(200);
    let tagged = account.call("/v1/chat/completions", &body).header("x-farebox-tag", "heartbeat");
    tagged.reply().await.expect(200);
    account.post("/v1/chat/completions", &chat("dear", PROMPT)).await.expect(200);
    let old = json!({ "model": "dear", "messages": [
        { "role": "user", "content": PROMPT }, { "role": "assistant", "content": "NO_REPLY" },
        { "role": "user", "content": "What is new?" } ] });
    account.post("/v1/chat/completions", &old).await.expect(200);

    let told = heartbeats(&proxy, &account).await;
    let requests = |at: usize| told["by_origin"][at]["requests"].as_u64().unwrap();
    assert_eq!([requests(0), requests(1), requests(2)], [3, 0, 2], "{told}");
    assert_eq!(told["total"]["requests"], 5);
    // 20 000 × 10 / 1 M + 100 × 20 / 1 M each.
    assert_eq!(told["by_origin"][0]["charge"], "0.606");
    let sum: u64 = (0..3).map(requests).sum();
    assert_eq!(Some(sum), told["total"]["requests"].as_u64());
    assert_eq!(told["share_percent"], 60);
}

#[tokio::test]
async fn what_heartbeats_would_cost_otherwise_follows_from_the_price_table() {
    let (_upstream, proxy) = start().await;
    let account = proxy.account_with(credits("10")).await;
    let key = json!({ "name": "hb", "tag": "heartbeat", "models": ["dear", "light", "vectors"] });
    let beats = account.with_key(&account.new_key(&key).await);
    for _ in 0..2 {
        beats.post("/v1/chat/completions", &chat("dear", "Hi")).await.expect(200);
    }
    let otherwise = heartbeats(&proxy, &account).await["otherwise"].clone();
    assert_eq!(otherwise["half_as_often"], "0.202");
    assert_eq!(otherwise["isolated_is_measured"], false);
    // Two with 11 000 tokens of input each.
    assert_eq!(otherwise["isolated"], "0.224");
    let light = json!({ "model": "light", "charge": "0.0404", "isolated": "0.0224" });
    assert_eq!(otherwise["lighter"], json!([light]), "what answers, and what the key may call");

    let shown = proxy.cli(&["usage", "heartbeats", "--account", &account.id]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    for line in ["heartbeat", "half as often", "on light, in a session of their own", "0.0224"] {
        assert!(shown.contains(line), "no {line:?} in: {shown}");
    }
}
