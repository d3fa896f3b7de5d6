//! Usage rows and their sums, also of requests that nobody settled.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::HOUR_MS;
use super::books::{Books, Record};
use super::live::Flight;
use super::shelf::Step;
use super::sql::{Count, Fault};
use crate::billing::{Credits, Usage};
use crate::store::{AccountId, Attribution, Millis, Outcome, Settlement, Source};

/// Writes the record of a request and adds it to the sums. False, and nothing is written: its
/// id was used before.
pub(super) fn insert_usage(
    db: &Step<'_>,
    record: &Record<'_>,
    row: &Settlement,
    ts: Millis,
) -> rusqlite::Result<bool> {
    let is_new = record.insert(db, Some(row))?;
    if is_new {
        db.sum(|sums| sums.add(row, ts));
    }
    Ok(is_new)
}

/// What a step is still to add to `usage_hour`: one write a use rather than one a request.
#[derive(Default)]
pub(super) struct Sums(HashMap<AccountId, Vec<Sum>>);

/// What was used in an hour: a row of `usage_hour`, or what is added to it.
struct Sum {
    hour: i64,
    model: String,
    key: String,
    tag: String,
    upstream: String,
    requests: i64,
    input: i64,
    cached: i64,
    cache_creation: i64,
    output: i64,
    charge: Credits,
    estimated: i64,
}

impl Sums {
    fn add(&mut self, row: &Settlement, ts: Millis) {
        let Settlement { attribution, usage, .. } = row;
        let hour = ts.div_euclid(HOUR_MS);
        let tag = attribution.tag.as_deref().unwrap_or_default();
        let sums = match self.0.get_mut(&row.account) {
            Some(sums) => sums,
            None => self.0.entry(row.account.clone()).or_default(),
        };
        let is_same = |sum: &Sum| {
            sum.hour == hour
                && sum.model == row.model
                && sum.key == row.key
                && sum.tag == tag
                && sum.upstream == row.upstream
        };
        let at = sums.iter().position(is_same).unwrap_or_else(|| {
            sums.push(Sum::of(hour, row, tag));
            sums.len() - 1
        });
        let sum = &mut sums[at];
        sum.requests += 1;
        sum.input += Count(usage.input).column();
        sum.cached += Count(usage.cached).column();
        sum.cache_creation +=
            Count(usage.cache_creation_5m).column() + Count(usage.cache_creation_1h).column();
        sum.output += Count(usage.output).column();
        sum.charge += row.charge;
        sum.estimated += i64::from(row.source == Source::Estimated);
    }

    /// Adds all to the rows.
    pub(super) fn write(&mut self, db: &Connection) -> rusqlite::Result<()> {
        for (account, sums) in self.0.drain() {
            for sum in sums {
                sum.write(db, &account)?;
            }
        }
        Ok(())
    }

    /// Forgets what was not written.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Sum {
    fn of(hour: i64, row: &Settlement, tag: &str) -> Self {
        Self {
            hour,
            model: row.model.clone(),
            key: row.key.clone(),
            tag: tag.to_owned(),
            upstream: row.upstream.clone(),
            requests: 0,
            input: 0,
            cached: 0,
            cache_creation: 0,
            output: 0,
            charge: Credits::ZERO,
            estimated: 0,
        }
    }

    fn write(&self, db: &Connection, account: &AccountId) -> rusqlite::Result<()> {
        db.prepare_cached(
            "INSERT INTO usage_hour (account, hour, model, key, tag, upstream, requests,
                 input, cached, cache_creation, output, charge, estimated)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET
                 requests = requests + excluded.requests,
                 input = input + excluded.input,
                 cached = cached + excluded.cached,
                 cache_creation = cache_creation + excluded.cache_creation,
                 output = output + excluded.output,
                 charge = charge + excluded.charge,
                 estimated = estimated + excluded.estimated",
        )?
        .execute(params![
            account,
            self.hour,
            self.model,
            self.key,
            self.tag,
            self.upstream,
            self.requests,
            self.input,
            self.cached,
            self.cache_creation,
            self.output,
            self.charge,
            self.estimated,
        ])
        .map(drop)
    }
}

/// Lists the requests that the last process left behind, as usage rows without a charge.
///
/// A settlement that comes late is debited all the same, and its row takes their place.
pub(super) fn abandon_flights(db: &Step<'_>, now: Millis) -> Result<usize, Fault> {
    let flights: Vec<Flight> = db
        .prepare("SELECT account, id, key, model, admitted_at FROM flight")?
        .query_map([], Flight::read)?
        .collect::<Result<_, _>>()?;
    for Flight { account, key, request, admitted_at } in &flights {
        let mut books = Books::open(db, account, now)?;
        let ts = books.kept.ts;
        let ran_ms = ts.saturating_sub(*admitted_at);
        let row = Settlement {
            id: request.id.clone(),
            account: account.clone(),
            key: key.clone(),
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
        // Always new; but a file that cannot be opened any more would be worse than a row too few.
        if insert_usage(db, &record, &row, ts)? {
            books.write(db)?;
        }
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
    let sums = "account = ? AND hour = ? AND model = ? AND key = ? AND tag = '' AND upstream = ''";
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
