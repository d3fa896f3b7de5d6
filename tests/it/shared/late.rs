//! Requests that outlive their leases: whoever comes first lists them as abandoned, and the
//! process that runs them settles them all the same.

use crate::support::answer::Answer;
use crate::support::figure;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::script::Gate;
use crate::support::until;
use crate::support::upstream::Upstream;

use super::{debits, on, readiness, verify};

const COUNTS: Counts = Counts::new(11, 7);
const STREAMS: usize = 6;

async fn abandoned(proxy: &Proxy) -> usize {
    let rows = proxy.default_account().usage().await;
    rows.iter().filter(|row| row.outcome == "abandoned").count()
}

/// Something in the account is due within a minute: the end of a lease, once it was renewed.
fn is_due(redis: &Redis) -> bool {
    let script = "return redis.call('ZSCORE', KEYS[1], 'default') - 1000 * redis.call('TIME')[1]";
    let due = redis.run(&["EVAL", script, "1", "fbx:due"]);
    due.is_ok_and(|due| due.text().parse::<i64>().unwrap() < 60_000)
}

/// The process stands still for longer than its leases, and another lists its requests; in every
/// second round Redis dies in between, with what it was told last in no sync.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_listed_as_abandoned_and_settled_late_have_one_row_and_one_debit() {
    let rounds = figure(2, 20);
    let gate = Gate::new();
    let held = gate.clone();
    let answer = Answer::text(["Hello", " world"]).counts(COUNTS);
    let upstream = Upstream::start().await;
    upstream.for_model("test", answer.staged(move |script| script.gated_after(2, &held)));
    let policy = ["--maxmemory-policy", "noeviction"];
    let mut redis =
        Redis::start(&[&["--appendonly", "yes", "--appendfsync", "no"], &policy[..]].concat());
    let setup = || on(&redis.url(), &upstream).env("FAREBOX_REDIS_LEASE", "3s");
    let (runs, sweeps) = (setup().start().await, setup().start().await);
    let account = runs.default_account();
    for round in 0..rounds {
        readiness(&runs, true).await;
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let mut stream = account.stream_chat("Hi").await;
            stream.until("Hello").await;
            streams.push(stream);
        }
        until("others know that there is something to look at", || async {
            is_due(&redis).then_some(())
        })
        .await;
        runs.signal("STOP");
        until("all are listed as abandoned", || async {
            (abandoned(&sweeps).await == STREAMS).then_some(())
        })
        .await;
        if round % 2 == 1 {
            redis.kill();
        }
        gate.open(STREAMS);
        runs.signal("CONT");
        for stream in streams {
            let reply = stream.rest().await;
            assert!(reply.complete && reply.text().contains("[DONE]"), "{reply:?}");
        }
        if round % 2 == 1 {
            redis.restart();
        }
        until("none is listed as abandoned", || async {
            (super::is_ready(&sweeps).await && abandoned(&sweeps).await == 0).then_some(())
        })
        .await;
    }
    readiness(&runs, true).await;
    account.settled().await;
    account.check_books().await;
    let debits = debits(&account).await;
    assert_eq!(debits.len(), rounds * STREAMS, "each once");
    assert!(debits.values().all(|debits| *debits == [charge("test", &COUNTS)]));
    assert_eq!(account.usage().await.len(), rounds * STREAMS);
    verify(&runs).await;
    println!("{} requests listed as abandoned and settled late, one debit each", debits.len());
}
