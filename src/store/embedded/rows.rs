//! Usage rows and their sums, also of requests that nobody settled.

use std::sync::LazyLock;

use rusqlite::{Connection, named_params, params};

use super::HOUR_MS;
use super::books::{Books, Record};
use super::live::Flight;
use super::sql::{Count, Fault, Json, Word};
use crate::billing::{Credits, Usage};
use crate::store::{AccountId, Attribution, Millis, Outcome, Settlement, Source};

/// Writes the record of a request and adds it to the sums.
pub(super) fn insert_usage(
    db: &Connection,
    record: &Record<'_>,
    row: &Settlement,
    ts: Millis,
) -> rusqlite::Result<()> {
    let Settlement { attribution, usage, .. } = row;
    let mut insert = db.prepare_cached(&INSERT)?;
    let mut at = record.bind(&mut insert)?;
    // By position, in the order of the columns: names would cost a fifth of the settlement.
    macro_rules! bind {
        ($($value:expr),* $(,)?) => {$(
            at += 1;
            insert.raw_bind_parameter(at, $value)?;
        )*};
    }
    bind![
        &row.key,
        &row.model,
        &row.served_model,
        &row.upstream,
        &attribution.run,
        &attribution.agent,
        &attribution.session,
        &attribution.origin,
        &attribution.tag,
        Count(usage.input),
        Count(usage.cached),
        Count(usage.cache_creation_5m),
        Count(usage.cache_creation_1h),
        Count(usage.output),
        Count(usage.reasoning),
        Count(usage.input_audio),
        Count(usage.input_image),
        Count(usage.cached_audio),
        Count(usage.output_audio),
        Count(usage.output_image),
        (!usage.calls.is_empty()).then_some(Json(&usage.calls)),
        &row.price_version,
        row.ttft_ms,
        row.latency_ms,
        row.stream,
        Word(row.outcome),
        Word(row.source),
        row.http_status,
        &row.flags,
    ];
    insert.raw_execute()?;
    add_to_sums(db, row, ts)
}

static INSERT: LazyLock<String> = LazyLock::new(|| {
    let columns = "key, model, served_model, upstream, run, agent, session, origin, tag,
        input, cached, cache_creation_5m, cache_creation_1h, output, reasoning,
        input_audio, input_image, cached_audio, output_audio, output_image, calls,
        price_version, ttft_ms, latency_ms, stream, outcome, source, http_status, flags";
    let count = Record::COLUMNS.split(',').chain(columns.split(',')).count();
    let values = vec!["?"; count].join(", ");
    format!("INSERT INTO record ({}, {columns}) VALUES ({values})", Record::COLUMNS)
});

fn add_to_sums(db: &Connection, row: &Settlement, ts: Millis) -> rusqlite::Result<()> {
    let Settlement { attribution, usage, .. } = row;
    let cache_creation =
        Count(usage.cache_creation_5m).column() + Count(usage.cache_creation_1h).column();
    db.prepare_cached(
        "INSERT INTO usage_hour (account, hour, model, key, tag, requests,
             input, cached, cache_creation, output, charge, estimated)
         VALUES (:account, :hour, :model, :key, :tag, 1,
             :input, :cached, :cache_creation, :output, :charge, :estimated)
         ON CONFLICT DO UPDATE SET
             requests = requests + 1,
             input = input + excluded.input,
             cached = cached + excluded.cached,
             cache_creation = cache_creation + excluded.cache_creation,
             output = output + excluded.output,
             charge = charge + excluded.charge,
             estimated = estimated + excluded.estimated",
    )?
    .execute(named_params! {
        ":account": row.account,
        ":hour": ts.div_euclid(HOUR_MS),
        ":model": row.model,
        ":key": row.key,
        ":tag": attribution.tag.as_deref().unwrap_or_default(),
        ":input": Count(usage.input),
        ":cached": Count(usage.cached),
        ":cache_creation": cache_creation,
        ":output": Count(usage.output),
        ":charge": row.charge,
        ":estimated": row.source == Source::Estimated,
    })
    .map(drop)
}

/// Lists the requests that the last process left behind, as usage rows without a charge.
///
/// A settlement that comes late is debited all the same, and its row takes their place.
pub(super) fn abandon_flights(db: &Connection, now: Millis) -> Result<usize, Fault> {
    let flights: Vec<Flight> = db
        .prepare("SELECT account, id, key, model, admitted_at FROM flight")?
        .query_map([], Flight::read)?
        .collect::<Result<_, _>>()?;
    for Flight { account, request, admitted_at } in &flights {
        let mut books = Books::open(db, account, now)?;
        let ts = books.ts;
        let ran_ms = ts.saturating_sub(*admitted_at);
        let row = Settlement {
            id: request.id.clone(),
            account: account.clone(),
            key: request.key.clone(),
            model: request.model.clone(),
            served_model: None,
            upstream: String::new(),
            attribution: Attribution::default(),
            usage: Usage::default(),
            charge: Credits::ZERO,
            price_version: String::new(),
            ttft_ms: None,
            latency_ms: u32::try_from(ran_ms.max(0)).unwrap_or(u32::MAX),
            stream: false,
            outcome: Outcome::Abandoned,
            source: Source::None,
            http_status: 0,
            flags: String::new(),
        };
        let record = books.no_entry(&request.id, None);
        insert_usage(db, &record, &row, ts)?;
        books.write(db)?;
    }
    db.execute("DELETE FROM flight", [])?;
    Ok(flights.len())
}

/// Takes back what [`abandon_flights`] wrote about a request.
pub(super) fn remove_abandoned(
    db: &Connection,
    account: &AccountId,
    id: &str,
) -> rusqlite::Result<()> {
    let (ts, key, model): (Millis, String, String) = db.query_row(
        "DELETE FROM record WHERE id = ? AND outcome = 'abandoned'
             AND account = (SELECT n FROM account WHERE account.id = ?) RETURNING ts, key, model",
        params![id, account],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let hour = ts.div_euclid(HOUR_MS);
    let sums = "account = ? AND hour = ? AND model = ? AND key = ? AND tag = ''";
    db.execute(
        &format!("UPDATE usage_hour SET requests = requests - 1 WHERE {sums}"),
        params![account, hour, model, key],
    )?;
    db.execute(
        &format!("DELETE FROM usage_hour WHERE {sums} AND requests = 0"),
        params![account, hour, model, key],
    )?;
    Ok(())
}
