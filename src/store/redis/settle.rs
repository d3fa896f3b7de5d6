//! What a settlement and an admission send, and what they are answered.

use super::lent::Lending;
use super::reply::{Odd, Reply, refused};
use super::rows::{count, pack};
use super::script::Call;
use crate::billing::Credits;
use crate::billing::limit::Period;
use crate::key::hex;
use crate::store::fingerprint::of_settlement;
use crate::store::{
    AccountId, Admission, Admitted, Candidate, Key, Measure, Millis, Outcome, Refused, Settled,
    Settlement, Source, StoreError,
};

/// A settlement, ready to be sent.
pub(super) struct Settle {
    pub settlement: Settlement,
    print: String,
    row: String,
    /// By what sums are kept: see `hours::Kept`.
    group: String,
    /// When the periods of the key's caps end, where that was asked for.
    pub untils: String,
}

impl Settle {
    pub(super) fn new(settlement: Settlement) -> Self {
        Self {
            print: hex(&of_settlement(&settlement)),
            row: pack(&settlement),
            group: group_of(&settlement),
            untils: String::new(),
            settlement,
        }
    }

    /// Adds the arguments of one settlement.
    pub(super) fn push(&self, call: &mut Call<'_>) {
        let Settlement { id, key, charge, usage, outcome, source, .. } = &self.settlement;
        let creation = count(usage.cache_creation_5m) + count(usage.cache_creation_1h);
        call.push(id);
        call.push(&self.print);
        call.push_display(charge.nano());
        call.push(if *outcome == Outcome::Completed { "1" } else { "0" });
        call.push(key);
        call.push(&self.group);
        for number in [count(usage.input), count(usage.cached), creation, count(usage.output)] {
            call.push_display(number);
        }
        call.push(if *source == Source::Estimated { "1" } else { "0" });
        call.push(&self.row);
        call.push_display(count(usage.tokens()));
        call.push(&self.untils);
    }
}

/// By what sums are kept. Most requests are reported and completed: that goes without saying,
/// because it would be written with each count.
fn group_of(settlement: &Settlement) -> String {
    let Settlement { model, key, upstream, attribution, source, outcome, .. } = settlement;
    let [tag, origin] = [&attribution.tag, &attribution.origin];
    let [tag, origin] = [tag, origin].map(|text| text.as_deref().unwrap_or_default());
    let rest = [source.name(), outcome.name()];
    let is_usual = (source, outcome) == (&Source::Reported, &Outcome::Completed);
    let mut names = vec![model.as_str(), key, tag, upstream, origin];
    names.extend(rest.into_iter().filter(|_| !is_usual));
    serde_json::to_string(&names).expect("texts can be written")
}

/// What came of one operation of several.
pub(super) enum Came<T> {
    Of(T, Option<Lending>),
    /// Places that are lent ahead may be idle: whoever has them gives them back.
    Crowded,
    /// It must be asked again, with the ends of the periods around this instant.
    When(Millis),
}

/// Reads the answer to one settlement.
pub(super) fn settled(
    mut answer: Reply,
    account: &AccountId,
    id: &str,
) -> Result<Came<Settled>, StoreError> {
    let what = answer.text()?;
    let duplicate = match what.as_str() {
        "ok" => false,
        "duplicate" => true,
        "when" => return Ok(Came::When(answer.number()?)),
        word => return Err(refused(word, answer, account, id)),
    };
    let balance = Some(answer.credits()?);
    // What was settled before says nothing of now.
    let lending = if duplicate { None } else { Some(Lending::read(&answer.text()?)?) };
    Ok(Came::Of(Settled { balance, duplicate }, lending))
}

/// A request that asks for a place, ready to be sent.
pub(super) struct Admit {
    pub key: Key,
    pub request: Candidate,
    pub how: Admission,
    /// As in [`Settle`].
    pub untils: String,
}

impl Admit {
    /// Adds the arguments of one request.
    pub(super) fn push(&self, call: &mut Call<'_>) {
        let Admission { mode, max_in_flight, most, tokens } = self.how;
        call.push(&self.request.id);
        call.push(&self.key.id);
        call.push(&self.request.model);
        call.push(super::reply::word_of(mode));
        call.push_display(max_in_flight);
        call.push(most.map(|most| most.nano().to_string()).unwrap_or_default());
        call.push_display(tokens);
        call.push(&self.untils);
    }
}

/// Reads the answer to one request for a place.
pub(super) fn admitted(
    mut answer: Reply,
    asked: &Admit,
) -> Result<Came<Result<Admitted, Refused>>, StoreError> {
    let what = answer.text()?;
    let refused = match what.as_str() {
        "ok" => {
            let admitted = Admitted { balance: answer.credits()? };
            return Ok(Came::Of(Ok(admitted), Some(Lending::read(&answer.text()?)?)));
        }
        "crowded" => return Ok(Came::Crowded),
        "when" => return Ok(Came::When(answer.number()?)),
        "no_key" => return Err(StoreError::NotFound(format!("key {}", asked.key.id))),
        "not_open" => Refused::NotOpen,
        "credits" => Refused::OutOfCredits { balance: answer.credits()? },
        "unbounded" => Refused::Unbounded,
        "hold" => {
            let (balance, held) = (answer.credits()?, answer.credits()?);
            let most = asked.how.most.filter(|_| answer.text().is_ok_and(|mode| mode == "strict"));
            Refused::HoldDoesNotFit { balance, held, most }
        }
        "in_flight" => {
            Refused::TooManyInFlight { running: answer.number()?, limit: answer.number()? }
        }
        "ended" => Refused::KeyEnded { revoked: answer.text()? == "revoked" },
        "spend" => Refused::KeySpend {
            period: period(&answer.text()?)?,
            cap: answer.credits()?,
            spent: answer.credits()?,
            held: answer.credits()?,
            resets_at: answer.text()?.parse().ok(),
        },
        "key_in_flight" => {
            Refused::KeyInFlight { running: answer.number()?, limit: answer.number()? }
        }
        "rate" => Refused::KeyRate {
            of: match answer.text()?.as_str() {
                "requests" => Measure::Requests,
                _ => Measure::Tokens,
            },
            limit: answer.number()?,
            used: answer.number()?,
            wait_ms: answer.number()?,
        },
        _ => return Err(Odd.into()),
    };
    Ok(Came::Of(Err(refused), None))
}

fn period(cap: &str) -> Result<Period, Odd> {
    [Period::Day, Period::Week, Period::Month, Period::Total]
        .into_iter()
        .find(|period| period.cap() == cap)
        .ok_or(Odd)
}

/// What admission asks of a key: when it was revoked and expires, then its limits.
pub(super) fn terms_of(key: &Key) -> String {
    let limits = &key.limits;
    let cap = |cap: Option<Credits>| cap.map(Credits::nano);
    let terms = [
        key.revoked_at,
        key.expires_at,
        limits.max_in_flight.map(Into::into),
        limits.requests_per_minute.map(rate),
        limits.tokens_per_minute.map(rate),
        cap(limits.daily),
        cap(limits.weekly),
        cap(limits.monthly),
        cap(limits.total),
    ];
    terms.map(|term| term.map_or("-".into(), |term| term.to_string())).join(" ")
}

/// A limit a minute as it is counted: what is beyond is no limit.
fn rate(limit: u64) -> i64 {
    let limit = limit.min(crate::billing::limit::Bucket::LIMIT);
    i64::try_from(limit).unwrap_or(i64::MAX)
}
