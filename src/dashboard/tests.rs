//! What the pages say is what the ledger says, to the last digit, on the days on which clocks
//! change, in five time zones.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::body::Body;
use axum::http::{Request, header};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::alerts::Alerts;
use crate::billing::ledger::Kind;
use crate::billing::price::PriceTable;
use crate::billing::{Credits, Usage};
use crate::key::KeyHash;
use crate::store::embedded::{Embedded, Options};
use crate::store::{
    AccountId, Attribution, Grant, Group, Outcome, Page as Rows, Settlement, Source, Store,
    UsageFilter,
};
use crate::time;

const ZONES: [&str; 5] =
    ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Tongatapu"];
const HOUR_MS: i64 = 3_600_000;

fn settlement(number: i64, charge: i64) -> Settlement {
    Settlement {
        id: format!("req_{number}"),
        account: AccountId("a".into()),
        key: format!("key_{}", number % 3),
        model: format!("model-{}", number % 8),
        served_model: None,
        upstream: "up".into(),
        attribution: Attribution::default(),
        usage: Usage { input: 10, output: 5, ..Usage::default() },
        charge: Credits::from_nano(charge),
        price_version: "v1".into(),
        ttft_ms: Some(10),
        latency_ms: 20,
        stream: false,
        outcome: Outcome::Completed,
        source: Source::Reported,
        http_status: 200,
        flags: String::new(),
    }
}

/// Pages over a store, and a session of the operator.
struct Site {
    router: Router,
    cookie: String,
    store: Arc<dyn Store>,
    _disk: tempfile::TempDir,
}

impl Site {
    /// Requests over the days around both changes of the clock, of odd amounts.
    async fn new() -> Self {
        let disk = tempfile::tempdir().unwrap();
        let clock = Arc::new(AtomicI64::new(0));
        let seen = clock.clone();
        let options =
            Options { clock: Arc::new(move || seen.load(Ordering::SeqCst)), ..Options::default() };
        let store = Embedded::open(&disk.path().join("farebox.db"), options).unwrap();
        let id = AccountId("a".into());
        let start = time::parse("2026-03-27", &jiff::tz::TimeZone::UTC).unwrap();
        let autumn = time::parse("2026-10-23", &jiff::tz::TimeZone::UTC).unwrap();
        clock.store(start, Ordering::SeqCst);
        store.create_account(id.clone(), "A".into()).await.unwrap();
        let grant = Grant {
            account: id.clone(),
            kind: Kind::Topup,
            amount: "100".parse().unwrap(),
            expires: None,
            note: "n".into(),
            id: "g".into(),
        };
        store.grant(grant).await.unwrap();
        let mut number = 0;
        for from in [start, autumn] {
            for hour in 0..5 * 24 {
                number += 1;
                clock.store(from + hour * HOUR_MS + number * 7_919 % HOUR_MS, Ordering::SeqCst);
                store.settle(settlement(number, 1_000_003 * number + 1)).await.unwrap();
            }
        }
        let store: Arc<dyn Store> = store;
        let state = State {
            alerts: Arc::new(Alerts::new(&crate::config::Config::default(), Arc::clone(&store))),
            store: Arc::clone(&store),
            site: Arc::new(super::Site::new("http://127.0.0.1", "")),
            prices: Arc::new(|| Arc::new(PriceTable::default())),
            refusals: Arc::default(),
            upstreams: Arc::new(|| admin::upstreams::Upstreams { since: 0, data: Vec::new() }),
            admin_key: KeyHash::of("key"),
            metrics_text: Arc::new(String::new),
            hosts: Arc::new([]),
            archive: Arc::from(std::path::Path::new("")),
            closing: Default::default(),
        };
        let token = session::Session::begin(&state, session::Who::Operator).await.unwrap();
        Self { router: router(state), cookie: format!("farebox={token}"), store, _disk: disk }
    }

    async fn page(&self, zone: &str, path: &str) -> String {
        let request = Request::get(format!("/billing/a/{path}"))
            .header(header::HOST, "127.0.0.1")
            .header(header::COOKIE, format!("{}; farebox_zone={zone}", self.cookie))
            .body(Body::empty())
            .unwrap();
        let reply = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(reply.status(), 200, "{path}");
        let bytes = reply.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }
}

/// The exact amounts of a part of a page, in their order.
fn amounts(page: &str, from: &str, to: &str) -> Vec<Credits> {
    let part = page.split_once(from).unwrap_or_else(|| panic!("no {from:?}")).1;
    let part = part.split_once(to).map_or(part, |(part, _)| part);
    let values = part.split("<data class=\"amount\" value=\"").skip(1);
    values.map(|value| value.split('"').next().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn pages_say_what_the_ledger_says_in_every_zone_on_days_when_clocks_change() {
    let site = Site::new().await;
    let id = AccountId("a".into());
    for zone in ZONES {
        let rules = jiff::tz::TimeZone::get(zone).unwrap();
        for (from, to) in [
            ("2026-03-28", "2026-03-30"),
            ("2026-10-24", "2026-10-26"),
            ("2026-10-25", "2026-10-25"),
        ] {
            let since = time::parse(from, &rules).unwrap();
            let last: jiff::civil::Date = to.parse().unwrap();
            let until = time::parse(&last.tomorrow().unwrap().to_string(), &rules).unwrap();
            let filter =
                UsageFilter { since: Some(since), until: Some(until), ..UsageFilter::default() };
            let all = Rows { cursor: None, limit: 500 };
            let rows = site.store.usage(&id, filter.clone(), all).await.unwrap().data;
            let charged: Credits = rows.iter().map(|row| row.charge).sum();
            assert!(charged.is_positive());
            let days = site.store.summary(&id, filter, Group::Day, rules.clone()).await.unwrap();
            assert_eq!(days.iter().map(|day| day.charge).sum::<Credits>(), charged);

            let query = format!("from={from}&to={to}");
            for by in ["model", "key", "tag", "upstream"] {
                let page = site.page(zone, &format!("costs?by={by}&{query}")).await;
                let cost = |part: Vec<Credits>| -> Credits { part.into_iter().step_by(2).sum() };
                assert_eq!(cost(amounts(&page, "<tbody>", "</tbody>")), charged, "{zone} {by}");
                assert_eq!(cost(amounts(&page, "<tfoot>", "</tfoot>")), charged, "{zone} {by}");
            }
            let page = site.page(zone, &format!("spending?{query}")).await;
            // The total, and below each model its own.
            let sums = amounts(&page, "<tfoot>", "</tfoot>");
            let (total, models) = sums.split_first().unwrap();
            assert_eq!((*total, models.iter().copied().sum()), (charged, charged), "{zone}");
            // Each day or hour stands with its total and the totals of its models: twice.
            let bars: Credits = amounts(&page, "<tbody>", "</tbody>").into_iter().sum();
            assert_eq!(bars, charged + charged, "{zone}");

            let page = site.page(zone, &format!("usage?rows=500&{query}")).await;
            let listed: Vec<_> = rows.iter().map(|row| row.charge).collect();
            assert_eq!(amounts(&page, "<tbody>", "</tbody>"), listed, "{zone}");

            let page = site.page(zone, &format!("transactions?{query}")).await;
            let sums = amounts(&page, "id=\"sums\"", "</section>");
            assert_eq!(sums[0] + sums[1], sums[2], "{zone}");
            assert_eq!(sums[1], -charged, "{zone}");
            for view in ["hour", "day"] {
                let page = site.page(zone, &format!("transactions?view={view}&{query}")).await;
                let used: Credits =
                    amounts(&page, "<tbody>", "</tbody>").chunks(3).map(|row| row[0]).sum();
                assert_eq!(used, -charged, "{zone} {view}");
            }
        }
    }
}
