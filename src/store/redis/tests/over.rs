//! Sums of hours and days that are over stand in one text each: nobody can tell but by the time.

use jiff::tz::TimeZone;

use super::server::Value as Told;
use super::trims::run;
use super::*;
use crate::store::SummaryRow;

const DAY: Millis = 24 * HOUR_MS;

/// In a zone of whole hours and in one of quarters.
async fn sums(bench: &Bench, filter: UsageFilter) -> Vec<SummaryRow> {
    let mut sums = Vec::new();
    for zone in ["Europe/Berlin", "Asia/Kathmandu"] {
        for by in [Group::Model, Group::Key, Group::Tag, Group::Upstream, Group::Day, Group::Hour] {
            let zone = TimeZone::get(zone).unwrap();
            let rows = bench.store.summary(&account(), filter.clone(), by, zone).await;
            sums.extend(rows.unwrap());
        }
    }
    sums
}

/// A request every ninety minutes.
async fn days(requests: i64) -> Bench {
    let bench = Bench::with("100").await;
    for n in 0..requests {
        bench.set_clock(START + n * 90 * 60_000);
        let row = settlement(&format!("req_{n}"), "0.001");
        let model = format!("model-{}", n % 3);
        let outcome = [Outcome::Completed, Outcome::UpstreamCut][usize::from(n % 7 == 2)];
        bench.store.settle(Settlement { model, outcome, ..row }).await.unwrap();
    }
    bench
}

fn over(bench: &Bench) -> String {
    format!("{}:{{default}}:over", bench.prefix)
}

fn fields(bench: &Bench) -> Vec<String> {
    let Ok(Told::List(names)) = bench.server.run(&["HKEYS", &over(bench)]) else { panic!() };
    let text = |name| if let Told::Text(name) = name { name } else { panic!("{name:?}") };
    names.into_iter().map(text).collect()
}

#[tokio::test]
async fn what_is_over_is_left_as_texts_that_say_the_same_as_the_counts() {
    let bench = days(60).await;
    let cut = UsageFilter { outcome: Some(Outcome::UpstreamCut), ..UsageFilter::default() };
    let first = (sums(&bench, UsageFilter::default()).await, sums(&bench, cut.clone()).await);
    let left = fields(&bench);
    assert_eq!(left.iter().filter(|name| name.starts_with('d')).count(), 3, "{left:?}");
    assert!(left.iter().any(|name| name.starts_with('h')), "{left:?}");
    assert!(left.iter().any(|name| name.starts_with('c')), "{left:?}");
    let again = (sums(&bench, UsageFilter::default()).await, sums(&bench, cut.clone()).await);
    assert_eq!(again, first);
    bench.server.run(&["DEL", &over(&bench)]).unwrap();
    let without = (sums(&bench, UsageFilter::default()).await, sums(&bench, cut).await);
    assert_eq!(without, first);
    assert_eq!(run(&bench, None).await.1, []);
}

#[tokio::test]
async fn a_request_that_is_settled_days_late_leaves_the_sums_of_its_day() {
    let bench = days(10).await;
    bench.admit("req_late").await.unwrap();
    let bench = bench.reopened().await;
    eventually("it is listed", async || bench.usage().await.len() == 11).await;
    bench.set_clock(START + 3 * DAY);
    bench.settle("req_after", "0.001").await.unwrap();
    let abandoned = UsageFilter { outcome: Some(Outcome::Abandoned), ..UsageFilter::default() };
    let of = async |filter: UsageFilter| -> u64 {
        let all = bench.store.summary(&account(), filter, Group::Day, TimeZone::UTC).await.unwrap();
        all.iter().map(|sum| sum.requests).sum()
    };
    assert_eq!((of(abandoned.clone()).await, of(UsageFilter::default()).await), (1, 12));
    assert!(fields(&bench).iter().any(|name| name.starts_with('d')));
    bench.settle("req_late", "0.5").await.unwrap();
    assert_eq!((of(abandoned).await, of(UsageFilter::default()).await), (0, 12));
    assert_eq!(run(&bench, None).await.1, []);
}

/// They know model, key, tag and upstream: the rest is asked of the rows.
#[tokio::test]
async fn sums_that_an_earlier_version_kept_are_read() {
    let bench = days(40).await;
    let cut = UsageFilter { outcome: Some(Outcome::UpstreamCut), ..UsageFilter::default() };
    let before = (sums(&bench, UsageFilter::default()).await, sums(&bench, cut.clone()).await);
    let shorten = "
        local function old(name)
            local hour, model, key, tag, upstream = string.match(name,
                '^(%d+) %[(\"[^\"]*\"),(\"[^\"]*\"),(\"[^\"]*\"),(\"[^\"]*\"),')
            return hour .. ' [' .. table.concat({ model, key, tag, upstream }, ',') .. ']', hour
        end
        for at, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, 29)) do
            local shorter, hour = old(name)
            redis.call('ZREM', KEYS[1], name)
            redis.call('ZADD', KEYS[1], hour, shorter)
            for _, letter in ipairs({ 'r', 'i', 'c', 'w', 'o', 'x', 'e' }) do
                local count = redis.call('HGET', KEYS[2], letter .. name)
                redis.call('HDEL', KEYS[2], letter .. name)
                if count then redis.call('HINCRBY', KEYS[2], letter .. shorter, count) end
            end
        end";
    let of = |name| format!("{}:{{default}}:{name}", bench.prefix);
    bench.server.run(&["EVAL", shorten, "2", &of("hours"), &of("hourly")]).unwrap();
    bench.server.run(&["DEL", &over(&bench)]).unwrap();
    for _ in 0..2 {
        let after = (sums(&bench, UsageFilter::default()).await, sums(&bench, cut.clone()).await);
        assert_eq!(after, before);
    }
    let found = bench.store.usage(&account(), cut, ALL).await.unwrap().data;
    assert_eq!(found.len(), 6);
    assert_eq!(run(&bench, None).await.1, []);
}

#[tokio::test]
async fn an_audit_finds_a_text_that_is_not_what_its_counts_say() {
    let bench = days(40).await;
    sums(&bench, UsageFilter::default()).await;
    assert_eq!(run(&bench, None).await.1, []);
    let day = format!("d{}", START / DAY);
    for other in ["[]", r#"[[["m","key_1","","anthropic"],[[496728,1,12,0,0,3,1000000,0]]]]"#] {
        bench.server.run(&["HSET", &over(&bench), &day, other]).unwrap();
        assert!(!run(&bench, None).await.1.is_empty(), "{other}");
    }
}

#[tokio::test]
async fn a_server_that_can_write_nothing_more_still_tells_sums() {
    let bench = Bench::on(Arc::new(Server::start(&["--appendonly", "yes"]))).await;
    bench.store.create_account(account(), String::new()).await.unwrap();
    bench.store.settle(settlement("req_a", "0.001")).await.unwrap();
    bench.set_clock(START + 2 * DAY);
    bench.store.settle(settlement("req_b", "0.001")).await.unwrap();
    bench.server.set("maxmemory", "1");
    let told = sums(&bench, UsageFilter::default()).await;
    assert_eq!(told[0].requests, 2);
    assert_eq!(fields(&bench), Vec::<String>::new());
}
