//! Pages and sums: complete, in order, and exact.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::*;

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn millis(text: &str) -> Millis {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

/// Requests of several models, keys, upstreams, tags and origins, `step` apart.
async fn busy(count: usize, start: Millis, step: Millis) -> Bench {
    let bench = Bench::with("100").await;
    for i in 0..count {
        bench.set_clock(start + Millis::try_from(i).unwrap() * step);
        let one_of = |names: &[&str]| names[i % names.len()].to_owned();
        let row = Settlement {
            model: one_of(&["sonnet", "opus", "flash"]),
            key: one_of(&["key_1", "key_2"]),
            upstream: one_of(&["anthropic", "anthropic", "router", "anthropic", "anthropic"]),
            attribution: Attribution {
                tag: [None, Some("night".into())][i % 2].clone(),
                origin: [Some("user".into()), Some("heartbeat".into()), None][i % 3].clone(),
                ..Attribution::default()
            },
            usage: Usage { input: i as u64, cached: 7, output: 3, ..Usage::default() },
            source: [Source::Reported, Source::Estimated, Source::Drained, Source::None][i % 4],
            outcome: [Outcome::Completed, Outcome::ClientClosed][i % 2],
            ..settlement(&format!("req_{i:05}"), &format!("0.00000{}1", i % 10))
        };
        bench.store.settle(row).await.unwrap();
    }
    bench
}

async fn pages<T, F>(limit: u32, mut page: impl FnMut(Page) -> F) -> Vec<T>
where
    F: Future<Output = Result<Rows<T>, StoreError>>,
{
    let mut all = Vec::new();
    let mut cursor = None;
    loop {
        let Rows { data, next } = page(Page { cursor, limit }).await.unwrap();
        assert!(data.len() <= limit as usize);
        all.extend(data);
        match next {
            Some(next) => cursor = Some(next),
            None => return all,
        }
    }
}

#[tokio::test]
async fn pages_join_to_the_whole_list_with_every_filter() {
    // Several rows share a millisecond, so that the cursor must look at more than the time.
    let bench = busy(60, START, 0).await;
    let store = &bench.store;
    let rows = bench.usage().await;
    let filters = [
        UsageFilter::default(),
        UsageFilter { model: Some("opus".into()), ..UsageFilter::default() },
        UsageFilter { key: Some("key_2".into()), ..UsageFilter::default() },
        UsageFilter { tag: Some("night".into()), ..UsageFilter::default() },
        UsageFilter { origin: Some("heartbeat".into()), ..UsageFilter::default() },
        UsageFilter { source: Some(Source::Reported), ..UsageFilter::default() },
        UsageFilter { source: Some(Source::Estimated), ..UsageFilter::default() },
        UsageFilter { outcome: Some(Outcome::ClientClosed), ..UsageFilter::default() },
        UsageFilter { outcome: Some(Outcome::Completed), ..UsageFilter::default() },
    ];
    for filter in filters {
        let fits = |row: &&UsageRow| {
            filter.model.as_ref().is_none_or(|model| *model == row.model)
                && filter.key.as_ref().is_none_or(|key| *key == row.key)
                && (filter.tag.is_none() || filter.tag == row.attribution.tag)
                && (filter.origin.is_none() || filter.origin == row.attribution.origin)
                && filter.source.is_none_or(|source| source == row.source)
                && filter.outcome.is_none_or(|outcome| outcome == row.outcome)
        };
        let expected: Vec<_> = rows.iter().filter(fits).cloned().collect();
        let paged = pages(7, |page| store.usage(&account(), filter.clone(), page)).await;
        assert!(!expected.is_empty());
        assert_eq!(paged, expected, "{filter:?}");
        let mut upwards =
            pages(7, |page| store.usage_oldest_first(&account(), filter.clone(), page)).await;
        upwards.reverse();
        assert_eq!(upwards, expected, "{filter:?}");
    }
}

/// The sums tell in which hours to look.
#[tokio::test]
async fn what_a_filter_asks_for_is_found_hours_apart_with_every_range_and_cursor() {
    let step = 17 * 60_000;
    let bench = busy(60, START + 123, step).await;
    let rows = bench.usage().await;
    let some = |name: &str| Some(name.to_owned());
    for filter in [
        UsageFilter { model: some("opus"), ..UsageFilter::default() },
        UsageFilter { key: some("key_2"), tag: some("night"), ..UsageFilter::default() },
        UsageFilter { key: some("key_1"), tag: some("night"), ..UsageFilter::default() },
        UsageFilter { model: some("none"), ..UsageFilter::default() },
        UsageFilter { upstream: some("router"), ..UsageFilter::default() },
        UsageFilter { upstream: some("router"), model: some("opus"), ..Default::default() },
        UsageFilter { model: some("flash"), source: Some(Source::Drained), ..Default::default() },
        UsageFilter { model: some("flash"), source: Some(Source::Reported), ..Default::default() },
    ] {
        for (since, until) in [
            (None, None),
            (Some(START + 123 + 9 * step), Some(START + 123 + 31 * step)),
            (Some(START + HOUR_MS), Some(START + 2 * HOUR_MS)),
            (Some(START + 5), Some(START + 6)),
            (None, Some(START + 4 * HOUR_MS)),
        ] {
            let filter = UsageFilter { since, until, ..filter.clone() };
            let fits = |row: &&UsageRow| {
                filter.model.as_ref().is_none_or(|model| *model == row.model)
                    && filter.key.as_ref().is_none_or(|key| *key == row.key)
                    && (filter.tag.is_none() || filter.tag == row.attribution.tag)
                    && filter.upstream.as_ref().is_none_or(|upstream| *upstream == row.upstream)
                    && filter.source.is_none_or(|source| source == row.source)
                    && since.is_none_or(|since| row.ts >= since)
                    && until.is_none_or(|until| row.ts < until)
            };
            let expected: Vec<_> = rows.iter().filter(fits).cloned().collect();
            let page = |page| bench.store.usage(&account(), filter.clone(), page);
            assert_eq!(pages(3, page).await, expected, "{filter:?}");
            let page = |page| bench.store.usage_oldest_first(&account(), filter.clone(), page);
            let oldest_first: Vec<_> = expected.into_iter().rev().collect();
            assert_eq!(pages(3, page).await, oldest_first, "{filter:?}");
        }
    }
}

#[tokio::test]
async fn a_list_in_pages_of_its_own_length_ends_without_an_empty_page() {
    let bench = busy(14, START, 1).await;
    let page = Page { cursor: None, limit: 14 };
    let rows = bench.store.usage(&account(), UsageFilter::default(), page).await.unwrap();
    assert_eq!((rows.data.len(), rows.next), (14, None));
}

#[tokio::test]
async fn the_ledger_is_found_by_time_and_by_kind() {
    let bench = busy(40, START + 1000, 10).await;
    bench.grant(Kind::Adjust, "fix", "1").await.unwrap();
    let store = &bench.store;
    let all = bench.entries().await;
    assert_eq!(all.len(), 42);
    for kind in [None, Some(Kind::Topup), Some(Kind::DebitAi), Some(Kind::Adjust)] {
        for since in [None, Some(START + 1100), Some(START + 1105), Some(START + 9999)] {
            for until in [None, Some(START), Some(START + 1200), Some(START + 9999)] {
                let filter = EntryFilter { kind, since, until };
                let expected: Vec<_> = all
                    .iter()
                    .filter(|entry| kind.is_none_or(|kind| kind == entry.kind))
                    .filter(|entry| since.is_none_or(|since| entry.ts >= since))
                    .filter(|entry| until.is_none_or(|until| entry.ts < until))
                    .cloned()
                    .collect();
                let paged = pages(5, |page| store.entries(&account(), filter.clone(), page)).await;
                assert_eq!(paged, expected, "{filter:?}");
            }
        }
    }
}

#[tokio::test]
async fn accounts_come_by_id() {
    let bench = Bench::empty().await;
    for id in ["c", "a", "e", "b", "d"] {
        bench.store.create_account(AccountId(id.into()), String::new()).await.unwrap();
    }
    let all = pages(2, |page| bench.store.accounts(page)).await;
    let ids: Vec<_> = all.iter().map(|account| account.id.to_string()).collect();
    assert_eq!(ids, ["a", "b", "c", "d", "e"]);
}

#[tokio::test]
async fn a_cursor_that_is_none_of_ours_is_refused() {
    let bench = Bench::new().await;
    let page = Page { cursor: Some("x'; DROP TABLE usage".into()), limit: 5 };
    let usage = bench.store.usage(&account(), UsageFilter::default(), page.clone()).await;
    assert!(matches!(usage, Err(StoreError::NotFound(_))));
    let entries = bench.store.entries(&account(), EntryFilter::default(), page).await;
    assert!(matches!(entries, Err(StoreError::NotFound(_))));
}

/// Sums as they would be worked out from the rows by hand.
fn by_hand(rows: &[UsageRow], by: Group, zone: &TimeZone) -> Vec<SummaryRow> {
    let mut sums = std::collections::BTreeMap::<String, SummaryRow>::new();
    for row in rows {
        let moment = Timestamp::from_millisecond(row.ts).unwrap();
        let group = match by {
            Group::Model => row.model.clone(),
            Group::Key => row.key.clone(),
            Group::Tag => row.attribution.tag.clone().unwrap_or_default(),
            Group::Upstream => row.upstream.clone(),
            Group::Day => zone.to_datetime(moment).date().to_string(),
            Group::Hour => crate::time::rfc3339(row.ts / HOUR_MS * HOUR_MS),
        };
        let sum = sums.entry(group.clone()).or_default();
        sum.group = group;
        sum.requests += 1;
        sum.input_tokens += row.input_tokens;
        sum.cached_input_tokens += row.cached_input_tokens;
        sum.cache_creation_tokens += row.cache_creation_5m_tokens + row.cache_creation_1h_tokens;
        sum.output_tokens += row.output_tokens;
        sum.charge += row.charge;
        sum.estimated += u64::from(row.source == Source::Estimated);
    }
    let mut sums: Vec<_> = sums.into_values().collect();
    if !matches!(by, Group::Day | Group::Hour) {
        sums.sort_by_key(|sum| std::cmp::Reverse(sum.charge));
    }
    sums
}

/// Across the end of summer time in Europe, a day of 25 hours, a row every 23 minutes.
#[tokio::test]
async fn sums_equal_their_rows_in_every_zone_grouping_and_range() {
    let start = millis("2026-10-24T10:07:31Z");
    let bench = busy(200, start, 23 * 60_000).await;
    let rows = bench.usage().await;
    assert_eq!(rows.len(), 200);
    let zones = ["UTC", "Europe/Berlin", "Asia/Kolkata", "Pacific/Chatham", "Pacific/Auckland"];
    let ranges = [
        (None, None),
        (Some(millis("2026-10-25T00:00:00Z")), Some(millis("2026-10-26T00:00:00Z"))),
        (Some(millis("2026-10-24T22:00:00Z")), Some(millis("2026-10-25T23:00:00Z"))),
        (Some(start + 1_234_567), Some(start + 98_765_432)),
        (Some(start + 1000), Some(start + 600_000)),
        (Some(start + 5), None),
        (None, Some(start)),
        (Some(i64::MIN), Some(i64::MAX)),
        (Some(start + 10), Some(start)),
    ];
    let filters = [
        UsageFilter::default(),
        UsageFilter { tag: Some("night".into()), ..UsageFilter::default() },
        UsageFilter { model: Some("opus".into()), key: Some("key_1".into()), ..Default::default() },
        UsageFilter { origin: Some("user".into()), ..UsageFilter::default() },
        UsageFilter { upstream: Some("router".into()), ..UsageFilter::default() },
        UsageFilter { source: Some(Source::Estimated), ..UsageFilter::default() },
        UsageFilter { outcome: Some(Outcome::ClientClosed), ..UsageFilter::default() },
    ];
    for (since, until) in ranges {
        for filter in &filters {
            let filter = UsageFilter { since, until, ..filter.clone() };
            let chosen: Vec<_> = rows
                .iter()
                .filter(|row| since.is_none_or(|since| row.ts >= since))
                .filter(|row| until.is_none_or(|until| row.ts < until))
                .filter(|row| filter.model.as_ref().is_none_or(|model| *model == row.model))
                .filter(|row| filter.key.as_ref().is_none_or(|key| *key == row.key))
                .filter(|row| filter.tag.is_none() || filter.tag == row.attribution.tag)
                .filter(|row| filter.origin.is_none() || filter.origin == row.attribution.origin)
                .filter(|row| filter.upstream.as_ref().is_none_or(|it| *it == row.upstream))
                .filter(|row| filter.source.is_none_or(|source| source == row.source))
                .filter(|row| filter.outcome.is_none_or(|outcome| outcome == row.outcome))
                .cloned()
                .collect();
            for by in
                [Group::Model, Group::Key, Group::Tag, Group::Upstream, Group::Day, Group::Hour]
            {
                for name in zones {
                    let sums =
                        bench.store.summary(&account(), filter.clone(), by, zone(name)).await;
                    let expected = by_hand(&chosen, by, &zone(name));
                    assert_eq!(sums.unwrap(), expected, "{filter:?} {by:?} {name}");
                }
            }
        }
    }
}

/// Seventy groups an hour, so that what a store reads at once ends within an hour.
#[tokio::test]
async fn sums_of_many_groups_in_many_hours_miss_none_and_count_none_twice() {
    let bench = Bench::with("100").await;
    for i in 0..1_400_i64 {
        bench.set_clock(START + i / 70 * HOUR_MS);
        let model = format!("model-{}", i % 70);
        let row = Settlement { model, ..settlement(&format!("req_{i:05}"), "0.000001") };
        bench.store.settle(row).await.unwrap();
    }
    let sums = bench.store.summary(&account(), UsageFilter::default(), Group::Model, TimeZone::UTC);
    let sums = sums.await.unwrap();
    assert_eq!(sums.len(), 70);
    assert!(sums.iter().all(|sum| sum.requests == 20), "{sums:?}");
}

#[tokio::test]
async fn the_longest_day_of_the_year_is_one_day() {
    let bench = busy(25, millis("2026-10-24T22:30:00Z"), HOUR_MS).await;
    let days = |name| {
        let filter = UsageFilter::default();
        let sums = bench.store.summary(&account(), filter, Group::Day, zone(name));
        async { sums.await.unwrap().into_iter().map(|d| (d.group, d.requests)).collect::<Vec<_>>() }
    };
    assert_eq!(days("Europe/Berlin").await, [("2026-10-25".to_owned(), 25)]);
    let utc = [("2026-10-24".to_owned(), 2), ("2026-10-25".to_owned(), 23)];
    assert_eq!(days("UTC").await, utc);
}
