//! The tests' own tools keep their promises: a test is worth no more than they are.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::account::chat;
use crate::support::answer::Answer;
use crate::support::edits::{blocks, differs_by_cost_only, without_usage_chunk};
use crate::support::http::Call;
use crate::support::prices::{Counts, charge};
use crate::support::raw::Raw;
use crate::support::redis::{Cluster, DURABLE, Redis, run_at};
use crate::support::relay::Relay;
use crate::support::script::{Cut, Gate, Pieces, Script};
use crate::support::upstream::{Ending, Upstream};
use crate::support::{credits, within};

/// The usage of a reply: of a whole one, or of the last event that has any.
fn usage_of(events: &[Value]) -> Value {
    let usage = |event: &Value| {
        let paths = ["/usage", "/response/usage", "/usageMetadata"]
            .map(|path| event.pointer(path).cloned());
        paths.into_iter().flatten().find(Value::is_object)
    };
    events.iter().filter_map(usage).next_back().unwrap_or(Value::Null)
}

#[tokio::test]
async fn every_dialect_reports_what_is_billed_whole_and_streamed() {
    let counts = Counts { cached: 5, reasoning: 2, ..Counts::new(10, 7) };
    let answer = Answer::text(["a", "b", "c"]).counts(counts);
    let upstream = Upstream::answering(answer).await;
    let gemini = "/v1beta/models/gemini";
    for (path, output) in [
        ("/v1/chat/completions", "/completion_tokens"),
        ("/v1/completions", "/completion_tokens"),
        ("/v1/responses", "/output_tokens"),
        ("/v1/messages", "/output_tokens"),
        (&format!("{gemini}:generateContent"), "/totalTokenCount"),
        (&format!("{gemini}:streamGenerateContent?alt=sse"), "/totalTokenCount"),
    ] {
        for stream in [false, true] {
            let mut body = chat("test", "Hi");
            body["stream"] = json!(stream);
            body["stream_options"] = json!({ "include_usage": true });
            let url = format!("{}{path}", upstream.url());
            let reply = Call::post(url, &body).reply().await.expect(200);
            let events = match serde_json::from_slice(&reply.body) {
                Ok(json) => vec![json],
                Err(_) => reply.events(),
            };
            let expected = if output == "/totalTokenCount" { 22 } else { 7 };
            assert_eq!(usage_of(&events).pointer(output), Some(&json!(expected)), "{path}");
            assert_eq!(upstream.bills().pop().unwrap().counts, counts, "{path}");
        }
    }
}

#[tokio::test]
async fn a_gate_holds_each_piece_back_until_it_is_opened() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream =
        Upstream::answering(Answer::default().staged(move |script| script.gated(&held))).await;
    let mut body = chat("test", "Hi");
    body["stream"] = json!(true);
    let url = format!("{}/v1/chat/completions", upstream.url());
    let mut stream = Call::post(url, &body).send().await;
    gate.open(2);
    stream.until("Hello").await;
    assert!(!stream.text().contains("world"));
    gate.open_all();
    let reply = stream.rest().await;
    assert!(reply.complete && reply.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_client_that_leaves_is_billed_for_what_was_made() {
    let gate = Gate::new();
    let held = gate.clone();
    let answer = Answer::text(["Hello", " world"]).counts(Counts::new(10, 6));
    let upstream = Upstream::answering(answer.staged(move |script| script.gated(&held))).await;
    let mut body = chat("test", "Hi");
    body["stream"] = json!(true);
    let url = format!("{}/v1/chat/completions", upstream.url());
    let mut stream = Call::post(url, &body).resetting().send().await;
    gate.open(2);
    stream.until("Hello").await;
    drop(stream);
    upstream.ended(1).await;
    assert_eq!(upstream.last().ending, Some(Ending::Left));
    assert_eq!(upstream.last().bill.unwrap().counts, Counts::new(10, 3));
}

#[tokio::test]
async fn a_cut_reply_is_seen_as_cut_at_that_byte() {
    let upstream = Upstream::start().await;
    for cut in [Cut::Fin, Cut::Reset] {
        for script in [Script::whole("text/plain", "0123456789"), Script::events([])] {
            let script = script.in_pieces(&Pieces::Sizes(vec![1])).cut_at(4, cut);
            let length = script.body().len();
            upstream.next(script);
            let reply = Call::get(format!("{}/any", upstream.url())).reply().await;
            assert_eq!((reply.body.len(), reply.complete), (length, false), "{cut:?}");
        }
    }
}

#[tokio::test]
async fn replies_are_encoded_closed_and_garbled_as_scripted() {
    let upstream = Upstream::start().await;
    let url = format!("{}/any", upstream.url());
    upstream.next(Script::whole("text/plain", "old").http10());
    let reply = Call::get(&url).reply().await;
    assert_eq!((reply.text().as_str(), reply.complete), ("old", true));

    upstream.next(Script::whole("text/plain", "packed").encoded("gzip"));
    let reply = Call::get(&url).reply().await;
    assert_eq!(reply.header("content-encoding"), Some("gzip"));
    assert!(reply.complete && reply.body.starts_with(&[0x1f, 0x8b]));

    for script in [Script::raw("what\r\n\r\n"), Script::leave(Cut::Fin), Script::leave(Cut::Reset)]
    {
        upstream.next(script);
        assert!(within("a failure", Call::get(&url).try_send()).await.is_err());
    }
}

#[tokio::test]
async fn a_raw_client_reads_what_is_on_the_wire() {
    let upstream = Upstream::start().await;
    let mut raw = Raw::connect(&upstream.url()).await;
    let get = "GET /any HTTP/1.1\r\nhost: x\r\n\r\n";
    for chunked in [true, false] {
        let script = Script::whole("text/plain", "0123456789").in_pieces(&Pieces::Sizes(vec![3]));
        upstream.next(if chunked { script.chunked() } else { script });
        raw.write(get).await;
        let reply = raw.reply().await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, "0123456789"));
    }
    upstream.next(Script::leave(Cut::Fin));
    assert!(!raw.still_serves(get).await);
    assert!(raw.closes().await);
    assert_eq!(upstream.exchanges().len(), 3);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_event_stream_is_cut_behind_its_blank_lines() {
    let stream = b": hi\r\n\r\ndata: 1\n\ndata: 2\rid: 7\r\rdata: un";
    let expected: [&[u8]; 4] =
        [b": hi\r\n\r\n", b"data: 1\n\n", b"data: 2\rid: 7\r\r", b"data: un"];
    assert_eq!(blocks(stream), expected);
}

#[test]
fn only_the_usage_chunk_may_be_hidden_and_only_the_cost_added() {
    let head = "data: {\"choices\":[{\"index\":0}],\"usage\":null}\n\n";
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n";
    let costed = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"cost\":0.00001}}\n\n";
    let twisted = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"cost\":0.00001}}\n\n";
    let done = "data: [DONE]\n\n";
    let whole = [head, usage, done].concat();
    assert_eq!(without_usage_chunk(whole.as_bytes()), [head, done].concat().as_bytes());

    let charged = credits("0.00001");
    let differs = |last: &str, charge| {
        let client = [head, last, done].concat();
        differs_by_cost_only(whole.as_bytes(), client.as_bytes(), charge).is_err()
    };
    assert!(!differs(costed, charged));
    assert!(differs(costed, credits("0.00002")));
    assert!(differs(twisted, charged));
    assert!(differs(usage, charged));
}

#[test]
fn the_tests_price_what_they_expect_by_hand() {
    let counts =
        Counts { cached: 2, cache_creation_5m: 4, cache_creation_1h: 2, ..Counts::new(1000, 100) };
    // 0.01 + 0.000002 + 0.00005 + 0.00003 + 0.002
    assert_eq!(charge("test", &counts), credits("0.012082"));
    assert_eq!(charge("fine", &Counts::new(3, 0)), credits("0.000000113"));
}

#[test]
fn a_redis_server_is_killed_paused_and_replaced_by_its_replica() {
    let mut redis = Redis::start(DURABLE);
    let relay = Relay::to(redis.port());
    let run = |command: &[&str]| run_at(relay.port(), command);
    run(&["SET", "balance", "7"]).unwrap();
    redis.kill();
    assert!(run(&["GET", "balance"]).is_err());
    redis.restart();
    assert_eq!(run(&["GET", "balance"]).unwrap().text(), "7");

    let replica = redis.replica(DURABLE);
    redis.kill();
    replica.promote();
    relay.switch(replica.port());
    assert_eq!(run(&["INCR", "balance"]).unwrap().text(), "8");
    replica.pause();
    replica.resume();
    assert_eq!(replica.run(&["GET", "balance"]).unwrap().text(), "8");
}

#[test]
fn a_relay_loses_replies_to_commands_that_were_carried_out() {
    let redis = Redis::start(&[]);
    let relay = Relay::to(redis.port());
    let run = |command: &[&str]| run_at(relay.port(), command);
    relay.lose_one_reply_in(1);
    assert!(run(&["INCR", "count"]).is_err());
    relay.lose_one_reply_in(0);
    assert_eq!(run(&["INCR", "count"]).unwrap().text(), "2");
    relay.delay(Duration::from_millis(1));
    assert_eq!(run(&["INCR", "count"]).unwrap().text(), "3");
    relay.refuse(true);
    assert!(run(&["INCR", "count"]).is_err());
    assert_eq!(redis.run(&["GET", "count"]).unwrap().text(), "3");
}

#[test]
fn six_redis_servers_make_a_cluster() {
    let cluster = Cluster::start(DURABLE);
    let key = |node: &Redis| node.run(&["SET", "balance", "7"]);
    assert_eq!(cluster.nodes.iter().filter(|node| key(node).is_ok()).count(), 1);
    assert!(cluster.url().starts_with("redis+cluster://127.0.0.1:"));
}
