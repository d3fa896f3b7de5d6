//! Recorded replies with bytes, numbers, lines and heads spoilt: none makes the program panic,
//! credits anybody or is lost, and each client gets an answer.

use tokio::task::JoinSet;

use super::{assert_unharmed, body_for, start};
use crate::support::random::Random;
use crate::support::script::{Cut, Script};
use crate::support::upstream::Play;
use crate::support::{credits, figure};

const PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/messages", "/v1/responses"];

/// Numbers, JSON and framing that nobody should send.
const INSERTS: [&str; 24] = [
    "-1",
    "-0",
    "9223372036854775808",
    "18446744073709551616",
    "1e308",
    "1e999",
    "0.1",
    "\"5\"",
    "null",
    "true",
    "{}",
    "[]",
    "[[[[[[[[",
    "}",
    "\"",
    "\\",
    "\u{feff}",
    "\r",
    "\n\n",
    "\r\n\r\n",
    "data: [DONE]\n\n",
    "event: error\n",
    "\"usage\":{\"prompt_tokens\":-7},",
    ": comment\n",
];

/// Head lines that mean something between an upstream and a proxy.
const HEADS: [(&str, &str); 10] = [
    ("location", "http://127.0.0.1:1/"),
    ("set-cookie", "a=b"),
    ("content-encoding", "gzip"),
    ("content-encoding", "identity"),
    ("content-encoding", "no-such"),
    ("transfer-encoding", "chunked"),
    ("content-length", "3"),
    ("content-type", "text/html"),
    ("connection", "upgrade"),
    ("upgrade", "h2c"),
];

fn spoilt(path: &str, stream: bool, random: &mut Random) -> Script {
    let usage = match path {
        "/v1/chat/completions" => r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}"#,
        _ => r#"{"input_tokens":10,"output_tokens":5}"#,
    };
    let script = super::reply_with(path, usage, stream);
    let mut body = script.body().to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(body.len() + 1);
        match random.below(5) {
            0 if at < body.len() => body[at] ^= 1 << random.below(8),
            1 => body.truncate(at),
            2 => {
                let copy = body[at..(at + random.below(80)).min(body.len())].to_vec();
                body.splice(at..at, copy);
            }
            3 => {
                // In the place of a number.
                let digit = body[at..].iter().position(u8::is_ascii_digit).map(|n| at + n);
                let at = digit.unwrap_or(at);
                let until = body[at..].iter().position(|byte| !byte.is_ascii_digit());
                let insert = random.of(&INSERTS).bytes();
                body.splice(at..at + until.unwrap_or_default(), insert);
            }
            _ => {
                body.splice(at..at, random.of(&INSERTS).bytes());
            }
        }
    }
    let kind = if stream { "text/event-stream" } else { "application/json" };
    let mut spoilt = Script::whole(kind, body);
    if stream || random.below(4) == 0 {
        spoilt = spoilt.chunked();
    }
    if random.below(3) == 0 {
        let (name, value) = random.of(&HEADS);
        spoilt = spoilt.header(name, value);
    }
    if random.below(6) == 0 {
        spoilt = spoilt.status(*random.of(&[201, 204, 301, 400, 401, 404, 429, 500, 503, 999]));
    }
    match random.below(12) {
        0 => spoilt.cut_at(random.below(200), Cut::Reset),
        1 => spoilt.cut_at(random.below(200), Cut::Fin),
        _ => spoilt,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoilt_reply_breaks_nothing_credits_nobody_and_is_answered() {
    let (upstream, proxy, _) = start().await;
    // Absurd counts that are believed must not end the test by an empty balance.
    let account = proxy.account_with(credits("1000000")).await;
    upstream.choose(|request| {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        let (_, seed) = text.split_once("seed ")?;
        let seed = seed.split('.').next()?.parse().ok()?;
        let path = PATHS.iter().find(|path| request.path.ends_with(&path[3..]))?;
        let stream = request.json()["stream"] == true;
        Some(Play::Script(spoilt(path, stream, &mut Random::new(seed))))
    });
    let mut running = JoinSet::new();
    let total = figure(500, 5_000);
    for seed in 1..=total {
        if running.len() >= 40 {
            running.join_next().await.unwrap().unwrap();
        }
        let path = PATHS[seed % PATHS.len()];
        let body = body_for(path, seed % 2 == 0).to_string();
        let body = body.replace("Say hello.", &format!("seed {seed}."));
        let call = account.call(path, &serde_json::from_str(&body).unwrap());
        running.spawn(async move {
            let reply = call.try_send().await.expect("a head for every request");
            reply.rest().await;
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    account.settled().await;
    for row in account.usage().await {
        assert!(row.charge.nano() >= 0, "a credit: {row:?}");
    }
    assert_unharmed(&upstream, &proxy, &account).await;
    println!("{total} spoilt replies were answered");
}
