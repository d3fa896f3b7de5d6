//! Requests with bytes flipped, dropped and doubled: whatever they have become, each is refused
//! or forwarded well-formed, and none hangs.

use super::{BODY, chunked, framed};
use crate::support::figure;
use crate::support::proxy::Setup;
use crate::support::random::Random;
use crate::support::raw::Raw;
use crate::support::upstream::Upstream;

/// A request with one to three of its bytes, lines or numbers spoilt.
fn mutated(seed: u64, key: &str) -> Vec<u8> {
    let mut random = Random::new(seed);
    let length = format!("connection: close\r\ncontent-length: {}\r\n", BODY.len());
    let te = "connection: close\r\ntransfer-encoding: chunked\r\n";
    let mut bytes = match random.below(3) {
        0 => framed(key, te, &chunked(BODY)),
        _ => framed(key, &length, BODY),
    }
    .into_bytes();
    const INSERTS: &[&str] = &[
        "\r",
        "\n",
        "\r\n",
        "\r\n\r\n",
        "\0",
        " ",
        "\t",
        ":",
        ",",
        ";",
        "%",
        "..",
        "/",
        "\\",
        "\"",
        "}",
        "{",
        "é",
        "host: y\r\n",
        "content-length: 1\r\n",
        "transfer-encoding: chunked\r\n",
        "transfer-encoding: x\r\n",
        "content-encoding: gzip\r\n",
        "upgrade: websocket\r\n",
        "authorization: Bearer x\r\n",
        "expect: 100-continue\r\n",
        "GET /v1/me HTTP/1.1\r\nhost: x\r\n\r\n",
    ];
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => {
                bytes.remove(at);
            }
            2 => {
                let insert = random.of(INSERTS).as_bytes().to_vec();
                bytes.splice(at..at, insert);
            }
            3 => {
                // At the start of a line, where headers and chunks begin.
                let newlines = memchr::memchr_iter(b'\n', &bytes).map(|at| at + 1);
                let starts: Vec<usize> = std::iter::once(0).chain(newlines).collect();
                let at = *random.of(&starts);
                let insert = random.of(INSERTS).as_bytes().to_vec();
                bytes.splice(at..at, insert);
            }
            4 => {
                let to = (at + 1 + random.below(40)).min(bytes.len());
                let copy = bytes[at..to].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => bytes.truncate(at + 1),
        }
    }
    bytes
}

#[tokio::test]
async fn a_spoilt_request_is_refused_or_forwarded_well_formed_and_never_hangs() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream)
        .setting("head_timeout", "\"400ms\"")
        .setting("keep_alive_timeout", "\"400ms\"")
        .setting("body_idle_timeout", "\"400ms\"")
        .setting("auth_failures_per_minute", "1000000")
        .start()
        .await;
    let account = proxy.default_account();
    let mut running = tokio::task::JoinSet::new();
    for seed in 1..=figure(600, 5000) as u64 {
        if running.len() >= 40 {
            running.join_next().await.unwrap().unwrap();
        }
        let (url, key) = (proxy.url(), account.key.clone());
        running.spawn(async move {
            let request = mutated(seed, &key);
            let mut raw = Raw::connect(&url).await;
            raw.write(&request).await;
            let shown = || String::from_utf8_lossy(&request).into_owned();
            let mut interim = 0;
            // Several replies only where the mutation made several requests of one.
            while let Some(reply) = raw.reply().await {
                if reply.status == 100 {
                    interim += 1;
                    assert!(interim < 4, "seed {seed}: {}", shown());
                    continue;
                }
                let fits = reply.status == 200 || reply.status / 100 == 4;
                assert!(fits, "seed {seed}: {} for {}", reply.status, shown());
            }
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    for exchange in upstream.exchanges() {
        let received = &exchange.request;
        // The path and the body may have been spoilt into others that are served.
        assert!(received.path.starts_with("/v1/"), "{received:?}");
        assert!(received.complete && received.json().is_object(), "{received:?}");
        assert!(!received.headers.iter().any(|(_, value)| value.contains(&account.key)));
        assert!(received.header("transfer-encoding").is_none());
        assert!(received.header("content-length").is_some(), "{received:?}");
    }
    account.settled().await;
    account.check_books().await;
    assert!(!proxy.output().contains("panicked"), "{}", proxy.output());
    account.chat("Hi").await.expect(200);
}
