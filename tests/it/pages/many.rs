//! Fills a Redis with a million requests for `bench/pages.py`, as the program would have written
//! them: `FAREBOX_FILL=redis://… cargo test --test it a_million_requests -- --ignored`.

use farebox::billing::ledger::Kind;
use farebox::store::Outcome;
use farebox::time;
use futures_util::future::join_all;

use crate::support::credits;
use crate::support::history::{DAY_MS, History};

const ROWS: i64 = 1_000_000;
/// Settled at the same instant.
const TOGETHER: i64 = 500;
const DAYS: i64 = 90;

#[tokio::test]
#[ignore = "fills a Redis that is named by hand"]
async fn a_million_requests_of_ninety_days_are_settled() {
    let url = std::env::var("FAREBOX_FILL").expect("FAREBOX_FILL names a Redis that is empty");
    let history = History::on(&url).await;
    let begin = time::now() - DAYS * DAY_MS;
    history.at(begin).account("a0", "A million requests").await;
    for key in ["key_0", "key_1", "key_2"] {
        history.key("a0", key, key, None).await;
    }
    history.grant("a0", Kind::Topup, "1000", "seed").await;
    for first in (0..ROWS).step_by(usize::try_from(TOGETHER).unwrap()) {
        history.at(begin + DAYS * DAY_MS / ROWS * first);
        let requests = (first..first + TOGETHER).map(|n| {
            let (key, model) = (format!("key_{}", n % 3), format!("m{}", n % 8));
            let mut request = history.request("a0", &key, &model, credits("0.000295"));
            request.attribution.tag = (n % 100_003 == 77).then(|| "rare".into());
            if n % 10_007 == 5 {
                request.outcome = Outcome::UpstreamCut;
            }
            history.settle(request)
        });
        join_all(requests).await;
    }
    history.close().await;
}
