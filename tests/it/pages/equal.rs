//! The pages, the API, both forms of the export, the command line and the ledger say the same,
//! to the last digit: over random histories, in time zones with whole and half hours, on the
//! days on which their clocks change, for random filters.

use std::collections::BTreeMap;

use farebox::billing::ledger::Kind;
use farebox::billing::{Credits, Usage};
use farebox::store::{Outcome, Settlement, Source};
use farebox::time::rfc3339;
use jiff::ToSpan;
use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::history::{DAY_MS, History};
use crate::support::http::{Call, Reply};
use crate::support::proxy::{Proxy, Setup};
use crate::support::random::Random;
use crate::support::redis::Redis;
use crate::support::{credits, figure, is_soak};

/// Zones by the whole hour and by the half, north and south; Lord Howe moves by half an hour.
const ZONES: [&str; 5] = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "America/St_Johns",
];
/// The days on which clocks change in one of them.
const CHANGES: [Date; 6] = [
    date(2025, 10, 5),
    date(2025, 10, 26),
    date(2025, 11, 2),
    date(2026, 3, 8),
    date(2026, 3, 29),
    date(2026, 4, 5),
];
const MODELS: [&str; 5] = ["gpt-5.4", "claude-sonnet-4.5", "gemini-3-flash", "a/b:free", "=SUM(1)"];
const KEYS: [&str; 3] = ["key_one", "key_two", "key_three"];
const TAGS: [&str; 3] = ["", "heartbeat", "n8n & co"];
const ORIGINS: [&str; 3] = ["", "user", "cron"];
const UPSTREAMS: [&str; 3] = ["openai", "router", "a/b & c"];
const SOURCES: [Source; 4] = [Source::Reported, Source::Drained, Source::Estimated, Source::None];
const OUTCOMES: [Outcome; 4] =
    [Outcome::Completed, Outcome::ClientClosed, Outcome::UpstreamError, Outcome::UpstreamCut];
/// Requests around each change of a clock.
const ROWS: usize = 60;

/// What was settled, and when: the books that everything is compared with.
type Books = Vec<(i64, Settlement)>;

/// Requests of odd amounts in the days around each change of a clock.
async fn write(history: History, random: &mut Random) -> Books {
    let begin = midnight(CHANGES[0], &TimeZone::UTC) - 10 * DAY_MS;
    history.at(begin).account("books", "Books").await;
    for key in KEYS {
        history.key("books", key, key, None).await;
    }
    history.grant("books", Kind::Topup, "5000", "first").await;
    let mut books = Books::new();
    for change in CHANGES {
        let from = midnight(change, &TimeZone::UTC) - 2 * DAY_MS;
        let mut times: Vec<_> = (0..ROWS)
            .map(|_| from + i64::try_from(random.below(4 * 24 * 3_600_000)).unwrap())
            .collect();
        // Some stand exactly on a midnight or right before it.
        for zone in ZONES {
            let midnight = midnight(change, &TimeZone::get(zone).unwrap());
            times.extend([midnight - 1, midnight]);
        }
        times.sort_unstable();
        times.dedup();
        for at in times {
            history.at(at);
            let charge = i64::try_from(random.below(2_000_000_000)).unwrap();
            let (key, model) = (*random.of(&KEYS), *random.of(&MODELS));
            let mut request = history.request("books", key, model, Credits::from_nano(charge));
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            request.attribution.tag = some(random.of::<&str>(&TAGS));
            request.attribution.origin = some(random.of::<&str>(&ORIGINS));
            request.upstream = (*random.of(&UPSTREAMS)).to_owned();
            request.source = *random.of(&SOURCES);
            request.outcome = *random.of(&OUTCOMES);
            if request.source == Source::None {
                (request.charge, request.usage) = (Credits::default(), Usage::default());
            }
            history.settle(request.clone()).await;
            books.push((at, request));
        }
    }
    history.close().await;
    books
}

fn midnight(day: Date, zone: &TimeZone) -> i64 {
    let begin = day.to_zoned(zone.clone()).unwrap();
    begin.timestamp().as_millisecond()
}

/// What one look asks for.
struct Question {
    zone: &'static str,
    from: Date,
    to: Date,
    filters: BTreeMap<&'static str, String>,
}

impl Question {
    fn random(random: &mut Random, zone: &'static str) -> Self {
        let middle = *random.of(&CHANGES);
        let from = middle - i64::try_from(random.below(4)).unwrap().days();
        // Mostly a few days, sometimes half a year, over several changes.
        let days = if random.below(4) == 0 { 200 } else { 4 };
        let to = from + i64::try_from(random.below(days)).unwrap().days();
        let mut filters = BTreeMap::new();
        let word = |value: Value| value.as_str().unwrap().to_owned();
        for (name, value) in [
            ("model", (*random.of(&MODELS)).to_owned()),
            ("key", (*random.of(&KEYS)).to_owned()),
            ("tag", TAGS[1 + random.below(2)].to_owned()),
            ("origin", ORIGINS[1 + random.below(2)].to_owned()),
            ("upstream", (*random.of(&UPSTREAMS)).to_owned()),
            ("source", word(serde_json::json!(random.of(&SOURCES)))),
            ("outcome", word(serde_json::json!(random.of(&OUTCOMES)))),
        ] {
            if random.below(4) == 0 {
                filters.insert(name, value);
            }
        }
        Self { zone, from, to, filters }
    }

    /// The instants that the days are, by the rules of the zone.
    fn span(&self) -> (i64, i64) {
        let rules = TimeZone::get(self.zone).unwrap();
        (midnight(self.from, &rules), midnight(self.to.tomorrow().unwrap(), &rules))
    }

    fn admits(&self, at: i64, row: &Settlement) -> bool {
        let (since, until) = self.span();
        let word = |value: Value| value.as_str().unwrap().to_owned();
        let is = |name: &str, value: Option<&str>| {
            self.filters.get(name).is_none_or(|asked| Some(asked.as_str()) == value)
        };
        (since..until).contains(&at)
            && is("model", Some(&row.model))
            && is("key", Some(&row.key))
            && is("tag", row.attribution.tag.as_deref())
            && is("origin", row.attribution.origin.as_deref())
            && is("upstream", Some(&row.upstream))
            && is("source", Some(&word(serde_json::json!(row.source))))
            && is("outcome", Some(&word(serde_json::json!(row.outcome))))
    }

    fn query(&self, more: &[(&str, &str)]) -> String {
        let filters = self.filters.iter().map(|(name, value)| (*name, value.as_str()));
        serde_urlencoded::to_string(filters.chain(more.iter().copied()).collect::<Vec<_>>())
            .unwrap()
    }
}

/// The operator, who looks at pages without a browser.
struct Reader<'a> {
    proxy: &'a Proxy,
    cookie: String,
}

impl<'a> Reader<'a> {
    async fn enter(proxy: &'a Proxy) -> Self {
        let form = format!("key={}", proxy.admin_key());
        let call = Call::form(format!("{}/sign-in", proxy.admin_url()), &form);
        let reply = call.header("sec-fetch-site", "same-origin").reply().await.expect(303);
        let cookie = reply.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        Self { proxy, cookie }
    }

    async fn page(&self, zone: &str, path: &str) -> Reply {
        let call = Call::get(format!("{}/billing/books/{path}", self.proxy.admin_url()));
        call.header("cookie", &format!("{}; farebox_zone={zone}", self.cookie))
            .reply()
            .await
            .expect(200)
    }

    async fn api(&self, path: &str) -> Value {
        let call = Call::get(format!("{}/admin/v1/accounts/books/{path}", self.proxy.admin_url()));
        call.bearer(self.proxy.admin_key()).reply().await.expect(200).json()
    }

    /// The costs of all requests that the pages list, from the first page to the last.
    async fn listed(&self, asked: &Question) -> Vec<Credits> {
        let (from, to) = (asked.from.to_string(), asked.to.to_string());
        let mut query = asked.query(&[("from", &from), ("to", &to), ("rows", "100")]);
        let mut all = Vec::new();
        loop {
            let page = self.page(asked.zone, &format!("usage?{query}")).await.text();
            all.extend(amounts(&page, "<tbody>", "</tbody>"));
            let Some((before, _)) = page.split_once("\" rel=\"next\"") else { return all };
            query = before
                .rsplit_once("href=\"?")
                .unwrap()
                .1
                .replace("&amp;", "&")
                .replace("&#38;", "&");
        }
    }
}

/// The exact amounts of a part of a page, in their order; none if there is no such part.
fn amounts(page: &str, from: &str, to: &str) -> Vec<Credits> {
    let Some((_, part)) = page.split_once(from) else { return Vec::new() };
    let part = part.split_once(to).map_or(part, |(part, _)| part);
    let values = part.split("<data class=\"amount\" value=\"").skip(1);
    values.map(|value| credits(value.split('"').next().unwrap())).collect()
}

/// The column of a CSV file that has this name.
fn column(bytes: &[u8], name: &str) -> Vec<String> {
    let mut file = csv::Reader::from_reader(bytes);
    let at = file.headers().unwrap().iter().position(|header| header == name).unwrap();
    file.records().map(|record| record.unwrap()[at].to_owned()).collect()
}

fn charges(rows: &[Value]) -> Vec<Credits> {
    rows.iter().map(|row| credits(row["charge"].as_str().unwrap())).collect()
}

/// Everything that can be asked gives the same answer to a question.
async fn compare(reader: &Reader<'_>, books: &Books, asked: &Question) {
    let what = format!("{} {}..={} {:?}", asked.zone, asked.from, asked.to, asked.filters);
    let rows: Vec<_> = books.iter().filter(|(at, row)| asked.admits(*at, row)).collect();
    let oldest_first: Vec<_> = rows.iter().map(|(_, row)| row.charge).collect();
    let newest_first: Vec<_> = oldest_first.iter().rev().copied().collect();
    let total: Credits = oldest_first.iter().copied().sum();
    let (since, until) = asked.span();
    let (since, until) = (rfc3339(since), rfc3339(until));
    let span = [("since", since.as_str()), ("until", until.as_str())];

    assert_eq!(reader.listed(asked).await, newest_first, "pages: {what}");
    let query = asked.query(&[span[0], span[1], ("limit", "500")]);
    let answer = reader.api(&format!("usage?{query}")).await;
    assert_eq!(charges(answer["data"].as_array().unwrap()), newest_first, "API: {what}");
    for by in ["model", "key", "upstream", "day"] {
        let query = asked.query(&[span[0], span[1], ("by", by), ("tz", asked.zone)]);
        let sums = reader.api(&format!("usage/summary?{query}")).await;
        let groups: Credits = charges(sums["data"].as_array().unwrap()).into_iter().sum();
        let all = credits(sums["total"]["charge"].as_str().unwrap());
        assert_eq!((groups, all), (total, total), "by {by}: {what}");
    }
    for format in ["csv", "jsonl"] {
        let query = asked.query(&[span[0], span[1], ("tz", asked.zone), ("format", format)]);
        let file = reader.page(asked.zone, &format!("export/usage?{query}")).await.body;
        let exported: Vec<_> = match format {
            "csv" => column(&file, "charge").iter().map(|charge| credits(charge)).collect(),
            _ => {
                let lines = std::str::from_utf8(&file).unwrap().lines();
                charges(&lines.map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>())
            }
        };
        assert_eq!(exported, oldest_first, "{format}: {what}");
        let mut args = vec!["usage", "export", "--account", "books", "--format", format];
        args.extend(["--tz", asked.zone, "--since", &since, "--until", &until]);
        let filters: Vec<_> =
            asked.filters.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        args.extend(filters.iter().map(String::as_str));
        let shell = reader.proxy.cli(&args).await;
        assert!(shell.status.success(), "{what}: {shell:?}");
        assert_eq!(shell.stdout, file, "command line: {what}");
    }
    if asked.filters.is_empty() {
        compare_ranges(reader, asked, total, &what).await;
    }
}

/// What pages say of all requests of a time, and the ledger of the same.
async fn compare_ranges(reader: &Reader<'_>, asked: &Question, total: Credits, what: &str) {
    let query = format!("from={}&to={}", asked.from, asked.to);
    for by in ["model", "key", "tag", "upstream"] {
        let page = reader.page(asked.zone, &format!("costs?by={by}&{query}")).await.text();
        let sums = amounts(&page, "<tfoot>", "</tfoot>");
        assert_eq!(sums.first().copied().unwrap_or_default(), total, "costs by {by}: {what}");
    }
    let page = reader.page(asked.zone, &format!("spending?{query}")).await.text();
    let sums = amounts(&page, "<tfoot>", "</tfoot>");
    assert_eq!(sums.first().copied().unwrap_or_default(), total, "spending: {what}");
    let page = reader.page(asked.zone, &format!("transactions?{query}")).await.text();
    let sums = amounts(&page, "id=\"sums\"", "</section>");
    let grants = amounts_of_ledger(reader, asked, "topup").await;
    let debits = amounts_of_ledger(reader, asked, "debit_ai").await;
    assert_eq!(debits, -total, "ledger: {what}");
    assert_eq!((sums[0] + sums[1], sums[1]), (sums[2], grants + debits), "transactions: {what}");
}

async fn amounts_of_ledger(reader: &Reader<'_>, asked: &Question, kind: &str) -> Credits {
    let (since, until) = asked.span();
    let (since, until) = (rfc3339(since), rfc3339(until));
    let query = format!("since={since}&until={until}&kind={kind}&tz={}", asked.zone);
    let file = reader.page(asked.zone, &format!("export/ledger?{query}")).await.body;
    column(&file, "amount").iter().map(|amount| credits(amount)).sum()
}

#[tokio::test]
async fn pages_api_files_command_line_and_ledger_agree_to_the_last_digit() {
    let disk = TempDir::new().unwrap();
    let file = disk.path().join("books.db");
    agree(History::open(&file), file.to_str().unwrap(), figure(200, 5_000)).await;
}

/// Sums of days that are over, and of which only a part is asked, come another way there.
#[tokio::test]
async fn they_agree_on_a_redis_too() {
    let server = Redis::start(&["--appendonly", "yes", "--appendfsync", "no"]);
    let history = History::on(&server.url()).await;
    agree(history, &server.url(), figure(100, 5_000)).await;
}

async fn agree(history: History, store: &str, questions: usize) {
    let seed = if is_soak() { u64::try_from(farebox::time::now()).unwrap() } else { 1 };
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let books = write(history, &mut random).await;
    let proxy = Setup::bare()
        .env("FAREBOX_STORE", store)
        .env("FAREBOX_REDIS_ALLOW_UNSAFE", "true")
        .start()
        .await;
    let reader = Reader::enter(&proxy).await;
    let mut left = questions;
    while left > 0 {
        // One question in each zone at a time.
        let asked: Vec<_> = ZONES.iter().map(|zone| Question::random(&mut random, zone)).collect();
        let [a, b, c, d, e] = &asked[..] else { unreachable!("there are five zones") };
        tokio::join!(
            compare(&reader, &books, a),
            compare(&reader, &books, b),
            compare(&reader, &books, c),
            compare(&reader, &books, d),
            compare(&reader, &books, e)
        );
        left = left.saturating_sub(ZONES.len());
    }
}
