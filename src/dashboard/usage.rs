//! One row a request, and how its cost comes about.

use std::collections::HashMap;

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use futures_util::future::try_join4;
use serde::Deserialize;

use super::explain::{self, Explained};
use super::moment::Instant;
use super::number::{Exact, duration, grouped};
use super::page::{Page, Shell};
use super::params::{Params, Range, Tab};
use super::{Failure, costs};
use crate::billing::Credits;
use crate::store::{
    self, Entry, EntryFilter, Group, Millis, Outcome, Rows, Source, StoreError, UsageFilter,
    UsageRow,
};
use order::{Head, Sort, find_rows, heads};
use refused::RefusedLine;

mod order;
mod refused;

/// Rows of a page.
const ROWS: u32 = 50;
const ROWS_MORE: [u32; 2] = [100, 500];
/// How far from its admission a request is looked for by its id alone: it ends later, and the
/// store's clock is not ours.
const LOOK_MS: Millis = 2 * 3_600_000;
/// Pages that are read to find it.
const LOOK_PAGES: usize = 20;

#[derive(Template)]
#[template(path = "usage.html")]
struct Usage {
    shell: Shell,
    tabs: Vec<Tab>,
    range: Range,
    filters: Vec<Select>,
    id: String,
    kept: Vec<(&'static str, String)>,
    is_filtered: bool,
    clear: String,
    rows: Vec<Line>,
    newest: String,
    is_first: bool,
    next: Option<String>,
    sizes: Vec<Tab>,
    above: String,
    heads: Vec<Head>,
    sort: Sort,
    /// Not all of the range was looked at.
    is_part: bool,
    refused: Option<RefusedLine>,
}

/// A filter that chooses from a list.
struct Select {
    name: &'static str,
    title: &'static str,
    all: &'static str,
    /// Value, name, whether it is chosen.
    options: Vec<(String, String, bool)>,
}

struct Line {
    id: String,
    href: String,
    at: Instant,
    model: String,
    served: String,
    key: String,
    tag: String,
    input: String,
    cached: String,
    written: String,
    output: String,
    reasoning: String,
    cost: Exact,
    first: String,
    whole: String,
    result: &'static str,
    tone: &'static str,
    source: &'static str,
    is_exact: bool,
}

#[derive(Template)]
#[template(path = "request.html")]
struct Request {
    shell: Shell,
    row: Line,
    zone: String,
    explained: Explained,
    status: u16,
    upstream: String,
    stream: bool,
    version: String,
    entry: Option<(u64, Exact)>,
    attribution: Vec<(&'static str, String)>,
    flags: Vec<String>,
    back: String,
}

/// The list.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn list(page: Page) -> Result<Response, Failure> {
    let params = Params::of(&page.path);
    if let Some(id) = params.get("id") {
        return by_id(page, id.to_owned(), None).await;
    }
    let range = Range::of(&page, &params);
    let names = costs::key_names(&page).await?;
    let limit = params.get("rows").and_then(|rows| rows.parse().ok());
    let limit = limit.filter(|rows| ROWS_MORE.contains(rows)).unwrap_or(ROWS);
    let cursor = params.get("cursor").map(str::to_owned);
    let is_first = cursor.is_none();
    let filter = filter(&range, &params);
    let sort = Sort::ALL.into_iter().find(|sort| params.get("sort") == Some(sort.word()));
    let sort = sort.unwrap_or(Sort::Time);
    let above = params.get("above").map(|text| text.parse::<Credits>()).transpose();
    let above = above.map_err(|error| Failure::Invalid(format!("“Cost above”: {error}.")))?;
    let found = find_rows(&page, filter, sort, above, store::Page { cursor, limit }).await;
    let (Rows { data, next }, is_part) = match found {
        Err(StoreError::NotFound(_)) => {
            return Err(Failure::NotFound("This place in the list is no longer there.".into()));
        }
        found => found?,
    };
    let filters = filters(&page, &range, &params, &names).await?;
    let usage = Usage {
        shell: page.shell("usage").await?,
        tabs: range.tabs(&params),
        is_filtered: above.is_some()
            || filters.iter().any(|filter| filter.options.iter().any(|option| option.2)),
        filters,
        id: String::new(),
        kept: ["range", "from", "to", "rows", "sort"]
            .into_iter()
            .filter_map(|name| Some((name, params.get(name)?.to_owned())))
            .collect(),
        clear: page.href("usage"),
        newest: data.first().map_or_else(String::new, |row| row.id.clone()),
        rows: lines(&page, data, &names),
        is_first,
        next: next.map(|cursor| {
            let query = params.with(&[]);
            let sign = if query.is_empty() { "?" } else { "&" };
            format!("{query}{sign}cursor={}", super::assets::encode(&cursor))
        }),
        sizes: [("", "50"), ("100", "100"), ("500", "500")]
            .map(|(key, title)| Tab {
                href: match params.with(&[("rows", key)]) {
                    query if query.is_empty() => "?".into(),
                    query => query,
                },
                title,
                is_current: limit.to_string() == title,
            })
            .into(),
        above: above.map(|above| above.to_string()).unwrap_or_default(),
        heads: heads(&params, sort),
        sort,
        is_part,
        refused: RefusedLine::of(&page, &range),
        range,
    };
    page.show(&usage)
}

fn filter(range: &Range, params: &Params) -> UsageFilter {
    let text = |name| params.get(name).map(str::to_owned);
    UsageFilter {
        since: Some(range.since),
        until: Some(range.until),
        model: text("model"),
        key: text("key"),
        tag: text("tag"),
        upstream: text("upstream"),
        origin: text("origin"),
        source: params.get("source").and_then(word),
        outcome: params.get("outcome").and_then(word),
    }
}

/// A choice by the word that the API has for it.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
}

async fn filters(
    page: &Page,
    range: &Range,
    params: &Params,
    names: &HashMap<String, String>,
) -> Result<Vec<Select>, StoreError> {
    let chosen = |name: &str, value: &str| params.get(name) == Some(value);
    let seen = async |name: &'static str, by: Group| -> Result<Vec<_>, StoreError> {
        let sums = page.sums(by, range.since, range.until, None).await?;
        let mut values: Vec<_> =
            sums.into_iter().map(|sum| sum.group).filter(|group| !group.is_empty()).collect();
        // What is asked for stands in the list, though there be nothing of it.
        if let Some(value) = params.get(name).filter(|value| !values.iter().any(|v| v == value)) {
            values.push(value.to_owned());
        }
        Ok(values
            .into_iter()
            .map(|value| {
                let shown = names.get(&value).filter(|_| by == Group::Key);
                let shown = shown.unwrap_or(&value).clone();
                let is_chosen = chosen(name, &value);
                (value, shown, is_chosen)
            })
            .collect())
    };
    let fixed = |name: &'static str, choices: &[(&str, &str)]| -> Vec<(String, String, bool)> {
        let option = |(value, shown): &(&str, &str)| {
            ((*value).to_owned(), (*shown).to_owned(), chosen(name, value))
        };
        choices.iter().map(option).collect()
    };
    let (models, keys, tags, upstreams) = try_join4(
        seen("model", Group::Model),
        seen("key", Group::Key),
        seen("tag", Group::Tag),
        seen("upstream", Group::Upstream),
    )
    .await?;
    Ok(vec![
        Select { name: "model", title: "Model", all: "All models", options: models },
        Select { name: "key", title: "Key", all: "All keys", options: keys },
        Select { name: "tag", title: "Tag", all: "All tags", options: tags },
        Select { name: "upstream", title: "Upstream", all: "All upstreams", options: upstreams },
        Select {
            name: "origin",
            title: "Origin",
            all: "All origins",
            options: fixed(
                "origin",
                &[("heartbeat", "Heartbeats"), ("cron", "Scheduled jobs"), ("user", "People")],
            ),
        },
        Select {
            name: "outcome",
            title: "Result",
            all: "All results",
            options: fixed(
                "outcome",
                &[
                    ("completed", "Ok"),
                    ("client_closed", "Stopped by client"),
                    ("upstream_error", "Upstream error"),
                    ("upstream_cut", "Cut by upstream"),
                    ("abandoned", "Lost in a crash"),
                ],
            ),
        },
        Select {
            name: "source",
            title: "Source of counts",
            all: "All sources",
            options: fixed(
                "source",
                &[
                    ("reported", "Reported"),
                    ("drained", "After disconnect"),
                    ("estimated", "Estimated"),
                    ("none", "Nothing used"),
                ],
            ),
        },
    ])
}

fn lines(page: &Page, rows: Vec<UsageRow>, names: &HashMap<String, String>) -> Vec<Line> {
    let costs = Exact::column(rows.iter().map(|row| row.charge));
    rows.into_iter().zip(costs).map(|(row, cost)| line(page, row, cost, names)).collect()
}

fn line(page: &Page, row: UsageRow, cost: Exact, names: &HashMap<String, String>) -> Line {
    let (result, tone) = result(row.outcome);
    Line {
        href: format!("{}/{}?at={}", page.href("usage"), row.id, row.ts),
        at: Instant::short(row.ts, page.now, &page.zone),
        served: row.served_model.unwrap_or_default(),
        key: names.get(&row.key).cloned().unwrap_or(row.key),
        tag: row.attribution.tag.unwrap_or_default(),
        input: grouped(row.input_tokens),
        cached: grouped(row.cached_input_tokens),
        written: grouped(row.cache_creation_5m_tokens.saturating_add(row.cache_creation_1h_tokens)),
        output: grouped(row.output_tokens),
        reasoning: match row.reasoning_tokens {
            0 => String::new(),
            some => grouped(some),
        },
        first: row.ttft_ms.map_or_else(|| "–".into(), duration),
        whole: duration(row.latency_ms),
        source: source(row.source),
        is_exact: row.source != Source::Estimated,
        id: row.id,
        model: row.model,
        cost,
        result,
        tone,
    }
}

const fn result(outcome: Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Completed => ("Ok", "good"),
        Outcome::ClientClosed => ("Stopped by client", "plain"),
        Outcome::UpstreamError => ("Upstream error", "bad"),
        Outcome::UpstreamCut => ("Cut by upstream", "bad"),
        Outcome::Abandoned => ("Lost in a crash", "bad"),
    }
}

const fn source(source: Source) -> &'static str {
    match source {
        Source::Reported => "reported",
        Source::Drained => "after disconnect",
        Source::Estimated => "estimated",
        Source::None => "nothing used",
    }
}

/// Where a request is looked for.
#[derive(Debug, Default, Deserialize)]
pub struct Place {
    at: Option<Millis>,
}

/// The path of a request's page.
#[derive(Debug, Deserialize)]
pub struct Target {
    id: String,
}

/// One request.
///
/// # Errors
///
/// When there is no such request, or the store cannot be read.
pub async fn one(
    page: Page,
    Path(Target { id }): Path<Target>,
    axum::extract::Query(Place { at }): axum::extract::Query<Place>,
) -> Result<Response, Failure> {
    by_id(page, id, at).await
}

async fn by_id(page: Page, id: String, at: Option<Millis>) -> Result<Response, Failure> {
    let id = id.trim().to_owned();
    let row = find(&page, &id, at)
        .await?
        .ok_or_else(|| Failure::NotFound("This account has no request with this id.".to_owned()))?;
    let entry = entry_of(&page, &row).await?;
    let names = costs::key_names(&page).await?;
    let explained = explain::of(&page.state, &row).await?;
    let Attributed(attribution) = Attributed::of(&row);
    let request = Request {
        shell: page.shell("usage").await?,
        zone: page.zone.name.clone(),
        explained,
        status: row.http_status,
        upstream: row.upstream.clone(),
        stream: row.stream,
        version: row.price_version.clone(),
        entry: entry.map(|entry| (entry.seq, Exact::one(entry.balance_after))),
        attribution,
        flags: row.flags.clone(),
        back: page.href("usage"),
        row: {
            let cost = Exact::one(row.charge);
            line(&page, row, cost, &names)
        },
    };
    page.show(&request)
}

struct Attributed(Vec<(&'static str, String)>);

impl Attributed {
    fn of(row: &UsageRow) -> Self {
        let given = &row.attribution;
        let all = [
            ("Agent", &given.agent),
            ("Session", &given.session),
            ("Origin", &given.origin),
            ("Run", &given.run),
        ];
        Self(all.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect())
    }
}

/// A request by its id: at the time that its link names, or in the hours after the time that is
/// in the id itself.
async fn find(page: &Page, id: &str, at: Option<Millis>) -> Result<Option<UsageRow>, StoreError> {
    let (since, until) = match at {
        Some(at) => (at, at.saturating_add(1)),
        None => match admitted(id) {
            Some(at) => (at - LOOK_MS, at + LOOK_MS),
            None => return Ok(None),
        },
    };
    let mut cursor = None;
    for _ in 0..LOOK_PAGES {
        let filter =
            UsageFilter { since: Some(since), until: Some(until), ..UsageFilter::default() };
        let place = store::Page { cursor, limit: 500 };
        let rows = page.state.store.usage(&page.account.id, filter, place).await?;
        if let Some(row) = rows.data.into_iter().find(|row| row.id == id) {
            return Ok(Some(row));
        }
        cursor = rows.next;
        if cursor.is_none() {
            break;
        }
    }
    Ok(None)
}

/// When a request was admitted, by its id.
fn admitted(id: &str) -> Option<Millis> {
    let ulid = ulid::Ulid::from_string(&id.strip_prefix("req_")?.to_uppercase()).ok()?;
    Millis::try_from(ulid.timestamp_ms()).ok()
}

/// The entry of the ledger that a request made.
async fn entry_of(page: &Page, row: &UsageRow) -> Result<Option<Entry>, StoreError> {
    let filter = EntryFilter {
        since: Some(row.ts),
        until: Some(row.ts.saturating_add(1)),
        ..EntryFilter::default()
    };
    let some = store::Page { cursor: None, limit: 500 };
    let entries = page.state.store.entries(&page.account.id, filter, some).await?;
    Ok(entries.data.into_iter().find(|entry| entry.reference == row.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_request_is_in_its_id() {
        let id = format!("req_{}", ulid::Ulid::from_parts(1_789_978_500_250, 7)).to_lowercase();
        assert_eq!(admitted(&id), Some(1_789_978_500_250));
        for other in ["", "req_", "req_nonsense", "key_01"] {
            assert_eq!(admitted(other), None);
        }
    }
}
