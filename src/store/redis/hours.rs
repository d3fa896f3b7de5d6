//! Sums by the hour, as settlements keep them, and what is over in one piece.
//!
//! Ninety days may have fifty thousand sums of seven counts each: too many to ask for one by one
//! while somebody waits. Whoever first reads an hour or a day that is over leaves all its sums as
//! one text in [`Name::Over`], and that is what is read from then on. The counts stay where they
//! are: an audit compares the two, and a store without the texts loses nothing but time.
//!
//! Nothing is added to an hour that is over. Only an abandoned request that is settled after all
//! is taken out of its hour, which is rare: that script drops all texts and writes its id as
//! `version`, so that nobody leaves what was read before.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::{try_join, try_join_all};
use redis::Value;

use super::Shared;
use super::names::Name;
use super::reply::{self, Odd, Reply, number};
use super::summary::sum_of as of_one;
use crate::billing::Credits;
use crate::store::sums::{HOUR_MS, add};
use crate::store::{
    AccountId, Attribution, Millis, Outcome, Source, StoreError, SummaryRow, UsageFilter, UsageRow,
};

/// Sums that are read in one step.
const STEP: usize = 1000;
/// Days whose texts are read in one step.
const DAYS: usize = 16;
/// Hours whose rows are read at the same time.
const AT_ONCE: usize = 8;
/// Hours of a day.
const DAY: i64 = 24;
/// The names of the counts of an hour, each of which is left out while it is nothing.
pub(super) const LETTERS: [&str; 7] = ["r", "i", "c", "w", "o", "x", "e"];

/// What requests are summed by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kept {
    pub model: String,
    pub key: String,
    pub tag: String,
    pub upstream: String,
    /// Origin, source and outcome; where only the first is written, they are the usual ones. Sums
    /// that were kept by an earlier version have none of them.
    rest: Option<[String; 3]>,
}

/// The sum of one hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hour {
    /// Since 1970.
    pub hour: i64,
    pub of: Arc<Kept>,
    pub sum: SummaryRow,
}

/// Everything of one hour or day: by what, and for each hour its number and counts.
type Text<Name> = Vec<(Vec<Name>, Vec<[i64; 8]>)>;

/// The hours of an account that have sums.
struct Extent {
    hours: Range<i64>,
    /// That of what was written last.
    now: i64,
}

impl Kept {
    pub(super) fn read(name: &str) -> Result<Self, Odd> {
        Self::of(serde_json::from_str(name).map_err(|_| Odd)?)
    }

    fn of(names: Vec<String>) -> Result<Self, Odd> {
        let mut names = names.into_iter();
        let mut next = || names.next();
        let [Some(model), Some(key), Some(tag), Some(upstream)] = [next(), next(), next(), next()]
        else {
            return Err(Odd);
        };
        let rest = match [next(), next(), next()] {
            [Some(origin), Some(source), Some(outcome)] => Some([origin, source, outcome]),
            [Some(origin), None, None] => {
                Some([origin, Source::Reported.name().into(), Outcome::Completed.name().into()])
            }
            [None, None, None] => None,
            _ => return Err(Odd),
        };
        Ok(Self { model, key, tag, upstream, rest })
    }

    fn of_row(row: &UsageRow) -> Self {
        let Attribution { tag, origin, .. } = &row.attribution;
        let origin = origin.clone().unwrap_or_default();
        Self {
            model: row.model.clone(),
            key: row.key.clone(),
            tag: tag.clone().unwrap_or_default(),
            upstream: row.upstream.clone(),
            rest: Some([origin, row.source.name().into(), row.outcome.name().into()]),
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let Self { model, key, tag, upstream, rest } = self;
        [model, key, tag, upstream].into_iter().chain(rest.iter().flatten()).map(String::as_str)
    }

    /// Whether its requests are asked for, their times aside; nothing, if only rows can tell.
    pub(super) fn is_asked(&self, filter: &UsageFilter) -> Option<bool> {
        let UsageFilter { since: _, until: _, model, key, tag, upstream, origin, source, outcome } =
            filter;
        let same =
            |asked: &Option<String>, is: &str| asked.as_ref().is_none_or(|asked| asked == is);
        // Nobody can ask for requests without a tag: the empty one stands for them.
        let is_kept = same(model, &self.model)
            && same(key, &self.key)
            && same(tag, &self.tag)
            && same(upstream, &self.upstream);
        if !is_kept {
            return Some(false);
        }
        if origin.is_none() && source.is_none() && outcome.is_none() {
            return Some(true);
        }
        let [its_origin, its_source, its_outcome] = self.rest.as_ref()?;
        let is_source = |source: Source| source.name() == its_source;
        let is_outcome = |outcome: Outcome| outcome.name() == its_outcome;
        let is_origin = |asked: &String| !asked.is_empty() && asked == its_origin;
        Some(
            origin.as_ref().is_none_or(is_origin)
                && source.is_none_or(is_source)
                && outcome.is_none_or(is_outcome),
        )
    }
}

impl Shared {
    /// The sums of whole hours, of what is wanted. In no order.
    pub(super) async fn hours(
        &self,
        account: &AccountId,
        hours: Range<i64>,
        wanted: impl Fn(&Kept) -> bool + Send + Sync,
    ) -> Result<Vec<Hour>, StoreError> {
        let mut found = Vec::new();
        let Some(Extent { hours: there, now }) = self.extent_of_hours(account).await? else {
            return Ok(found);
        };
        let hours = hours.start.max(there.start)..hours.end.min(there.end);
        if hours.is_empty() {
            return Ok(found);
        }
        let is_wanted = |one: &Hour| hours.contains(&one.hour) && wanted(&one.of);
        let days: Vec<_> =
            (hours.start.div_euclid(DAY)..=(hours.end - 1).div_euclid(DAY)).collect();
        for days in days.chunks(DAYS) {
            let (version, texts) = self.texts(account, 'd', days).await?;
            for (day, text) in days.iter().zip(texts) {
                let all = day * DAY..(day + 1) * DAY;
                match text {
                    Some(text) => unpack(&text, is_wanted, &mut found)?,
                    None if is_over(all.end, now) => {
                        let sums = self.counts(account, all.clone()).await?;
                        let hours = all.map(|hour| (format!("h{hour}"), String::new()));
                        let whole = (format!("d{day}"), pack(&sums)?);
                        // A full server refuses the first write, or none.
                        let whole = std::iter::once(whole);
                        self.leave(account, &version, whole.chain(hours)).await?;
                        found.extend(sums.into_iter().filter(is_wanted));
                    }
                    None => {
                        let part = all.start.max(hours.start)..all.end.min(hours.end);
                        let sums = self.open_day(account, part, now).await?;
                        found.extend(sums.into_iter().filter(is_wanted));
                    }
                }
            }
        }
        Ok(found)
    }

    /// What of some hours is from before an instant within each. That of hours that are over is
    /// left as texts too: a zone of half hours has such an hour in every day.
    pub(super) async fn first_parts(
        &self,
        account: &AccountId,
        cuts: &BTreeMap<i64, Millis>,
    ) -> Result<Vec<Hour>, StoreError> {
        let mut found = Vec::new();
        let now = match self.extent_of_hours(account).await? {
            Some(Extent { now, .. }) if !cuts.is_empty() => now,
            _ => return Ok(found),
        };
        let instants: Vec<_> = cuts.values().copied().collect();
        let (version, texts) = self.texts(account, 'c', &instants).await?;
        let mut missing = Vec::new();
        for ((hour, cut), text) in cuts.iter().zip(texts) {
            match text {
                Some(text) => unpack(&text, |_| true, &mut found)?,
                None => missing.push((*hour, *cut)),
            }
        }
        for some in missing.chunks(AT_ONCE) {
            let parts = some.iter().map(async |(hour, cut)| {
                let mut sums: BTreeMap<Kept, SummaryRow> = BTreeMap::new();
                self.each_row(account, hour * HOUR_MS..*cut, |row| {
                    add(sums.entry(Kept::of_row(row)).or_default(), &of_one(row));
                })
                .await?;
                let hour = |(of, sum)| Hour { hour: *hour, of: Arc::new(of), sum };
                Ok::<_, StoreError>(sums.into_iter().map(hour).collect::<Vec<_>>())
            });
            let parts = try_join_all(parts).await?;
            let mut over = Vec::new();
            for ((hour, cut), part) in some.iter().zip(&parts) {
                if is_over(hour + 1, now) {
                    over.push((format!("c{cut}"), pack(part)?));
                }
            }
            self.leave(account, &version, over.into_iter()).await?;
            found.extend(parts.into_iter().flatten());
        }
        Ok(found)
    }

    /// The sums of hours of a day that is not over.
    async fn open_day(
        &self,
        account: &AccountId,
        hours: Range<i64>,
        now: i64,
    ) -> Result<Vec<Hour>, StoreError> {
        let mut found = Vec::new();
        let hours: Vec<_> = hours.collect();
        let (version, texts) = self.texts(account, 'h', &hours).await?;
        let mut missing = Vec::new();
        for (hour, text) in hours.into_iter().zip(texts) {
            match text {
                Some(text) => unpack(&text, |_| true, &mut found)?,
                None => missing.push(hour),
            }
        }
        let (Some(first), Some(last)) = (missing.first(), missing.last()) else {
            return Ok(found);
        };
        let mut sums = self.counts(account, *first..last + 1).await?;
        sums.retain(|one| missing.contains(&one.hour));
        let mut over = Vec::new();
        for hour in missing.into_iter().filter(|hour| is_over(hour + 1, now)) {
            let of_it: Vec<_> = sums.iter().filter(|one| one.hour == hour).cloned().collect();
            over.push((format!("h{hour}"), pack(&of_it)?));
        }
        self.leave(account, &version, over.into_iter()).await?;
        found.append(&mut sums);
        Ok(found)
    }

    /// The texts of days (`d`) or hours (`h`), and the version that they are of.
    async fn texts(
        &self,
        account: &AccountId,
        what: char,
        which: &[i64],
    ) -> Result<(String, Vec<Option<String>>), StoreError> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.names.of(account, Name::Over)).arg("version");
        for one in which {
            cmd.arg(format!("{what}{one}"));
        }
        let mut answer = Reply::of(self.link.patient(&cmd).await?)?;
        let version = reply::maybe(answer.value()?)?.unwrap_or_else(|| "0".into());
        Ok((version, answer.map(reply::maybe).collect::<Result<_, _>>()?))
    }

    /// Leaves texts for whoever reads next, and drops those that are empty.
    async fn leave(
        &self,
        account: &AccountId,
        version: &str,
        texts: impl Iterator<Item = (String, String)>,
    ) -> Result<(), StoreError> {
        let mut call = self.scripts.over.call(&self.names, account, &[]).arg(version);
        let mut are_there = false;
        for (name, text) in texts {
            are_there = true;
            call.push(name);
            call.push(text);
        }
        if are_there {
            self.link.patient_run(&call).await?;
        }
        Ok(())
    }

    /// The sums of whole hours by their counts, in order; and once more what stands in a text
    /// that is not what its counts say, so that one of the two cannot be that of the requests.
    pub(super) async fn counts_and_texts(
        &self,
        account: &AccountId,
        hours: Range<i64>,
    ) -> Result<Vec<Hour>, StoreError> {
        let days: Vec<_> =
            (hours.start.div_euclid(DAY)..=(hours.end - 1).div_euclid(DAY)).collect();
        let all: Vec<_> = hours.clone().collect();
        let (version, of_days) = self.texts(account, 'd', &days).await?;
        let (_, of_hours) = self.texts(account, 'h', &all).await?;
        let mut found = self.counts(account, hours.clone()).await?;
        let day = |day: i64| day * DAY..(day + 1) * DAY;
        let texts = days.into_iter().map(day).zip(of_days);
        let texts = texts.chain(all.into_iter().map(|hour| hour..hour + 1).zip(of_hours));
        let mut odd = Vec::new();
        for (over, text) in texts {
            let Some(text) = text else { continue };
            let is_in = |one: &Hour| over.contains(&one.hour) && hours.contains(&one.hour);
            let mut said = Vec::new();
            unpack(&text, |one| hours.contains(&one.hour), &mut said)?;
            let mut kept: Vec<_> = found.iter().filter(|one| is_in(one)).cloned().collect();
            said.sort_by(order);
            kept.sort_by(order);
            if said != kept {
                odd.append(if said.is_empty() { &mut kept } else { &mut said });
            }
        }
        // Something was taken out meanwhile: the texts were of before, or are gone.
        if self.texts(account, 'd', &[]).await?.0 == version {
            found.append(&mut odd);
        }
        found.sort_by(order);
        Ok(found)
    }

    async fn extent_of_hours(&self, account: &AccountId) -> Result<Option<Extent>, StoreError> {
        let at = async |place: i64| {
            let mut cmd = redis::cmd("ZRANGE");
            cmd.arg(self.names.of(account, Name::Hours)).arg(place).arg(place);
            self.link.patient(&cmd).await
        };
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.names.of(account, Name::Account)).arg("ts");
        // All three are on the way at once.
        let edges = try_join(at(0), at(-1));
        let ((first, last), ts) = try_join(edges, self.link.patient(&cmd)).await?;
        let hour = |edge: Value| Reply::of(edge)?.next().map(hour_of).transpose();
        let (Some((first, _)), Some((last, _))) = (hour(first)?, hour(last)?) else {
            return Ok(None);
        };
        let now: i64 = number(&reply::text(ts)?)?;
        Ok(Some(Extent { hours: first..last + 1, now: now.div_euclid(HOUR_MS) }))
    }

    /// The first hour that has sums.
    pub(super) async fn first_hour(&self, account: &AccountId) -> Result<Option<i64>, StoreError> {
        Ok(self.extent_of_hours(account).await?.map(|there| there.hours.start))
    }

    /// The sums of whole hours by their counts.
    pub(super) async fn counts(
        &self,
        account: &AccountId,
        hours: Range<i64>,
    ) -> Result<Vec<Hour>, StoreError> {
        let mut found = Vec::new();
        // The place in the list: an hour, and how much of it was read. Redis walks to it, so it
        // must not be counted from the start of the range.
        let (mut from, mut skip) = (hours.start, 0);
        loop {
            let mut cmd = redis::cmd("ZRANGEBYSCORE");
            cmd.arg(self.names.of(account, Name::Hours)).arg(from);
            cmd.arg(format!("({}", hours.end)).arg("LIMIT").arg(skip).arg(STEP);
            let names: Vec<_> = Reply::of(self.link.patient(&cmd).await?)?
                .map(reply::text)
                .collect::<Result<_, _>>()?;
            let is_last = names.len() < STEP;
            for name in &names {
                let (hour, _) = split(name)?;
                if hour != from {
                    (from, skip) = (hour, 0);
                }
                skip += 1;
            }
            self.count(account, names, &mut found).await?;
            if is_last {
                return Ok(found);
            }
        }
    }

    async fn count(
        &self,
        account: &AccountId,
        names: Vec<String>,
        found: &mut Vec<Hour>,
    ) -> Result<(), StoreError> {
        if names.is_empty() {
            return Ok(());
        }
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.names.of(account, Name::Hourly));
        for name in &names {
            for letter in LETTERS {
                cmd.arg(format!("{letter}{name}"));
            }
        }
        let mut answer = Reply::of(self.link.patient(&cmd).await?)?;
        for name in names {
            let mut counts = [0; 7];
            for count in &mut counts {
                let text = reply::maybe(answer.value()?)?;
                *count = text.map_or(Ok(0), |text| number(&text))?;
            }
            let (hour, of) = split(&name)?;
            let sum = sum_of(counts);
            if sum.requests > 0 {
                found.push(Hour { hour, of: Arc::new(Kept::read(of)?), sum });
            }
        }
        Ok(())
    }
}

/// Whether no more can come to what ends with an hour. Not before another has gone by: by then no
/// failover to a replica that lags behind takes anything of it away.
fn is_over(end: i64, now: i64) -> bool {
    end < now
}

fn order(a: &Hour, b: &Hour) -> std::cmp::Ordering {
    (a.hour, &a.of).cmp(&(b.hour, &b.of))
}

fn hour_of(name: Value) -> Result<(i64, Kept), Odd> {
    let name = reply::text(name)?;
    let (hour, of) = split(&name)?;
    Ok((hour, Kept::read(of)?))
}

/// The name of sums: their hour, and by what.
pub(super) fn split(name: &str) -> Result<(i64, &str), Odd> {
    let (hour, of) = name.split_once(' ').ok_or(Odd)?;
    Ok((number(hour)?, of))
}

/// A sum, of its counts in the order of [`LETTERS`].
pub(super) fn sum_of(counts: [i64; 7]) -> SummaryRow {
    let [requests, input, cached, creation, output, charge, estimated] = counts;
    SummaryRow {
        group: String::new(),
        requests: requests.unsigned_abs(),
        input_tokens: input.unsigned_abs(),
        cached_input_tokens: cached.unsigned_abs(),
        cache_creation_tokens: creation.unsigned_abs(),
        output_tokens: output.unsigned_abs(),
        charge: Credits::from_nano(charge),
        estimated: estimated.unsigned_abs(),
    }
}

fn pack(sums: &[Hour]) -> Result<String, Odd> {
    let mut groups: BTreeMap<&Kept, Vec<[i64; 8]>> = BTreeMap::new();
    for Hour { hour, of, sum } in sums {
        let count = |count: u64| i64::try_from(count).map_err(|_| Odd);
        groups.entry(of).or_default().push([
            *hour,
            count(sum.requests)?,
            count(sum.input_tokens)?,
            count(sum.cached_input_tokens)?,
            count(sum.cache_creation_tokens)?,
            count(sum.output_tokens)?,
            sum.charge.nano(),
            count(sum.estimated)?,
        ]);
    }
    let text: Text<&str> =
        groups.into_iter().map(|(of, hours)| (of.names().collect(), hours)).collect();
    serde_json::to_string(&text).map_err(|_| Odd)
}

fn unpack(text: &str, is_wanted: impl Fn(&Hour) -> bool, found: &mut Vec<Hour>) -> Result<(), Odd> {
    let text: Text<String> = serde_json::from_str(text).map_err(|_| Odd)?;
    for (names, hours) in text {
        let of = Arc::new(Kept::of(names)?);
        for [hour, counts @ ..] in hours {
            let one = Hour { hour, of: Arc::clone(&of), sum: sum_of(counts) };
            if is_wanted(&one) {
                found.push(one);
            }
        }
    }
    Ok(())
}
