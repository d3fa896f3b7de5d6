//! No page is found by looking at rows that are not on it.

use rusqlite::params_from_iter;

use super::*;
use crate::store::embedded::read::{Order, Select, entries_page, usage_page};

#[tokio::test]
async fn no_page_is_found_by_a_scan_or_sorted() {
    let bench = Bench::new().await;
    let db = read_only(&bench.path());
    let usage = |filter: UsageFilter, cursor: Option<&str>| {
        let page = Page { cursor: cursor.map(Into::into), limit: 50 };
        [Order::NewestFirst, Order::OldestFirst]
            .map(|order| usage_page(&account(), &filter, &page, order, 51).unwrap())
    };
    let some = || Some("x".to_owned());
    let filters = [
        (UsageFilter::default(), "PRIMARY KEY (account=?"),
        (UsageFilter { origin: some(), ..UsageFilter::default() }, "record_origin"),
        (
            UsageFilter { source: Some(Source::Estimated), ..UsageFilter::default() },
            "record_source",
        ),
        (
            UsageFilter { outcome: Some(Outcome::Abandoned), ..UsageFilter::default() },
            "record_outcome",
        ),
    ];
    let mut selects: Vec<(Select, &str)> = Vec::new();
    for (filter, index) in filters {
        let ranged = UsageFilter { since: Some(1), until: Some(2), ..filter.clone() };
        let all = [usage(ranged, None), usage(filter.clone(), Some("5.1.0")), usage(filter, None)];
        selects.extend(all.into_iter().flatten().map(|select| (select, index)));
    }
    let by_time = "PRIMARY KEY (account=? AND ts>? AND ts<?)";
    let kinds =
        [(None, by_time), (Some(Kind::DebitAi), by_time), (Some(Kind::Topup), "record_kind")];
    for (kind, index) in kinds {
        for cursor in [None, Some("5.1")] {
            let filter = EntryFilter { kind, since: Some(1), until: Some(9) };
            let page = Page { cursor: cursor.map(Into::into), limit: 50 };
            for order in [Order::NewestFirst, Order::OldestFirst] {
                let select = entries_page(&account(), &filter, &page, order, 51).unwrap();
                selects.push((select, index));
            }
        }
    }
    for (Select { sql, values }, index) in selects {
        let plan: Vec<String> = db
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap()
            .query_map(params_from_iter(values), |row| row.get("detail"))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        // The second looks up by which number records name the account.
        assert_eq!(plan.iter().filter(|step| step.starts_with("SEARCH")).count(), 2, "{plan:?}");
        let sorts = |step: &String| step.starts_with("SCAN") || step.starts_with("USE TEMP");
        assert!(!plan.iter().any(sorts), "{sql}: {plan:?}");
        assert!(plan[0].starts_with("SEARCH") && plan[0].contains(index), "{sql}: {plan:?}");
    }
}
