//! Clients that leave, many at once, at any piece of a reply and in any way a connection can
//! end: together they pay what the upstream bills, request by request.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::answer::Answer;
use crate::support::prices::{Counts, charge};
use crate::support::proxy::Setup;
use crate::support::raw::Raw;
use crate::support::upstream::{Play, Received, Upstream};
use crate::support::{figure, forms};

/// Requests that run at once; fewer than replies that are read on without a client.
const AT_ONCE: usize = 48;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Close,
    Reset,
    HalfClose,
    HalfCloseAndRead,
    Silence,
    CloseUnread,
}

const ENDS: [End; 6] =
    [End::Close, End::Reset, End::HalfClose, End::HalfCloseAndRead, End::Silence, End::CloseUnread];

/// What each request is billed differs, so that one cannot pass for another.
fn counts(n: u64) -> Counts {
    Counts { cached: n % 5, ..Counts::new(10 + n % 1013, 4 + n % 97) }
}

fn number(request: &Received) -> Option<u64> {
    let text = String::from_utf8_lossy(&request.body).into_owned();
    let (_, rest) = text.split_once("leaving ")?;
    rest.split('.').next()?.parse().ok()
}

/// Asks, reads some pieces, and leaves.
async fn leave(url: String, request: String, pieces: usize, end: End) {
    let mut raw = Raw::connect(&url).await;
    raw.write(request).await;
    if end != End::CloseUnread {
        raw.pieces(pieces).await;
    }
    match end {
        End::Close | End::CloseUnread => drop(raw),
        End::Reset => raw.reset(),
        End::HalfClose => {
            raw.half_close().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        End::HalfCloseAndRead => {
            raw.half_close().await;
            raw.rest().await;
        }
        End::Silence => tokio::time::sleep(Duration::from_millis(20)).await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_leave_in_whatever_way_each_request_is_charged_as_billed() {
    let total = figure(2_000, 100_000);
    let upstream = Upstream::start().await;
    upstream.choose(|request| {
        let n = number(request)?;
        let answer = Answer::text(["Once", " upon", " a", " time", " there", " was"]);
        let pause = Duration::from_millis(n % 3);
        let answer = answer.counts(counts(n)).staged(move |script| script.paced(pause));
        Some(Play::Answer(answer))
    });
    let proxy = Setup::before(&upstream)
        .env("FAREBOX_INITIAL_CREDITS", "1000000")
        .setting("max_in_flight", "1000")
        .setting("max_drains", "1000")
        .start()
        .await;
    let account = proxy.default_account();
    let forms = forms::streams();
    let mut running = JoinSet::new();
    for n in 0..total {
        if running.len() >= AT_ONCE {
            running.join_next().await.unwrap().unwrap();
        }
        let form = &forms[n % forms.len()];
        let body = form.body.to_string().replace("\"Hi\"", &format!("\"leaving {n}.\""));
        let request = format!(
            "POST {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            form.path,
            account.key,
            body.len()
        );
        let end = ENDS[n / forms.len() % ENDS.len()];
        let pieces = n / (forms.len() * ENDS.len()) % 9;
        running.spawn(leave(proxy.url(), request, pieces, end));
    }
    while let Some(left) = running.join_next().await {
        left.unwrap();
    }
    account.settled().await;
    upstream.when("the ends at the upstream", |all| all.iter().all(|e| e.ending.is_some())).await;

    let rows = account.usage().await;
    let exchanges = upstream.exchanges();
    assert_eq!(rows.len(), exchanges.len(), "a row for each request that was sent, and no other");
    let mut billed: HashMap<(String, u64), usize> = HashMap::new();
    for exchange in &exchanges {
        let counts = counts(number(&exchange.request).expect("one of ours"));
        let nano = charge(&exchange.request.model(), &counts).nano();
        *billed.entry((exchange.request.model(), nano.unsigned_abs())).or_default() += 1;
    }
    for row in &rows {
        assert!(matches!(row.source.as_str(), "reported" | "drained"), "{row:?}");
        let of_row = (row.model.clone(), row.charge.nano().unsigned_abs());
        let left = billed.get_mut(&of_row).unwrap_or_else(|| panic!("nobody billed this: {row:?}"));
        *left = left.checked_sub(1).unwrap_or_else(|| panic!("charged too often: {row:?}"));
    }
    assert!(rows.len() * 2 > total, "hardly any request got as far as the upstream");
    account.check_books().await;
    println!("{total} left: {} reached the upstream and were charged as billed", rows.len());
}
