//! What background runs would have cost otherwise: on another model, in a session of their
//! own, less often. Computed from an account's own sums and the price table.
//!
//! An estimate, because it takes the tokens as they were: another model would have answered
//! in other words. What depends on one request (bands for long inputs) is taken at the mean
//! request of each model. Fees, tiers and parts with rates of their own are left out.

use super::price::{Model, Price, Tier, charge};
use super::{Credits, Usage};

/// Input of a light heartbeat in a session of its own, where the account has none to measure:
/// OpenClaw 2026.9 was seen to send 43 kB, most of it tools and system prompt.
pub const ISOLATED_INPUT_TOKENS: u64 = 11_000;

/// The runs of one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Requests.
    pub requests: u64,
    /// Input outside any cache, of all together.
    pub input: u64,
    /// Input read from a cache.
    pub cached: u64,
    /// Input written to a cache.
    pub cache_creation: u64,
    /// Output.
    pub output: u64,
    /// What they were charged.
    pub charge: Credits,
}

impl Runs {
    fn all_input(&self) -> u64 {
        self.input.saturating_add(self.cached).saturating_add(self.cache_creation)
    }

    /// The same runs with at most `tokens` of input each, none of it from a cache.
    fn isolated(&self, tokens: u64) -> Self {
        let most = self.requests.saturating_mul(tokens);
        if self.all_input() <= most {
            return self.clone();
        }
        Self { input: most, cached: 0, cache_creation: 0, ..self.clone() }
    }
}

/// What the runs of several models would have cost on `model`, with at most `isolated` tokens
/// of input each if that is given. None where that model cannot serve them, or the sum is
/// beyond belief.
pub fn repriced(runs: &[Runs], model: &Model, isolated: Option<u64>) -> Option<Credits> {
    let mut sum = Credits::ZERO;
    for runs in runs.iter().filter(|runs| runs.requests > 0) {
        let runs = isolated.map_or_else(|| runs.clone(), |tokens| runs.isolated(tokens));
        let mean_input = runs.all_input() / runs.requests;
        if model.context.is_some_and(|context| mean_input >= context) {
            return None;
        }
        // The band of the mean request, and no other by the size of the sum.
        let rates = model.price.standard.rates(mean_input).clone();
        let price = Price { standard: Tier { rates, bands: Vec::new() }, ..Price::default() };
        let usage = Usage {
            input: runs.input,
            cached: runs.cached,
            cache_creation_5m: runs.cache_creation,
            output: runs.output,
            ..Usage::default()
        };
        sum = sum.checked_add(charge(&usage, &price, None).ok()?)?;
    }
    Some(sum)
}

/// Whether a model may be suggested for background runs: it costs something, and it answers.
pub fn is_candidate(model: &Model) -> bool {
    !model.price.free && model.price.standard.rates.output.0 > 0
}

/// The runs of one model, and its entry in the price table of now.
pub type Priced<'a> = (Runs, Option<&'a Model>);

/// What the runs would have cost in a session of their own, on the models they were on.
/// A model that has left the price table keeps its charge.
pub fn isolated(runs: &[Priced<'_>], tokens: u64) -> Credits {
    let one = |(runs, model): &Priced<'_>| {
        let isolated =
            model.and_then(|model| repriced(std::slice::from_ref(runs), model, Some(tokens)));
        isolated.map_or(runs.charge, |charge| charge.min(runs.charge))
    };
    runs.iter().map(one).fold(Credits::ZERO, |sum, charge| sum + charge)
}

/// What they would have cost at intervals of `to` instead of `from`, of the same unit.
/// Nothing else changes: a longer pause may let a cache go cold, which this leaves out.
pub fn less_often(charge: Credits, from: u64, to: u64) -> Credits {
    if to == 0 || to <= from {
        return charge;
    }
    let nano = i128::from(charge.nano()) * i128::from(from) / i128::from(to);
    // Smaller than `charge`, so it fits.
    Credits::from_nano(i64::try_from(nano).unwrap_or(i64::MAX))
}

/// The usual pause between runs, from when each began: the median, which a night or an outage
/// does not move.
pub fn usual_pause(mut starts_ms: Vec<i64>) -> Option<i64> {
    starts_ms.sort_unstable();
    let mut pauses: Vec<i64> = starts_ms.windows(2).map(|pair| pair[1] - pair[0]).collect();
    pauses.sort_unstable();
    pauses.get(pauses.len() / 2).copied().filter(|_| pauses.len() >= 2)
}

/// A part of a whole in percent, rounded half up; none of nothing.
pub fn percent(part: Credits, whole: Credits) -> Option<u64> {
    let (part, whole) = (i128::from(part.nano()), i128::from(whole.nano()));
    if whole <= 0 {
        return None;
    }
    u64::try_from((part * 200 + whole) / (whole * 2)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::price::PriceTable;
    use proptest::prelude::*;

    const TABLE: &str = "
        [models.dear]
        upstream = \"a\"
        input = \"5.5\"
        cached_input = \"0.55\"
        cache_creation = \"6.75\"
        output = \"27.5\"
        [models.light]
        upstream = \"b\"
        input = \"0.5\"
        output = \"3\"
        context = 150000
        [models.banded]
        upstream = \"b\"
        input = \"1\"
        output = \"1\"
        bands = [{ above = 50000, input = \"2\", output = \"2\" }]
        [models.embedding]
        upstream = \"b\"
        input = \"0.02\"
        output = \"0\"
    ";

    fn table() -> PriceTable {
        PriceTable::read(TABLE).unwrap().0
    }

    /// The runs of a day: 48, 100 thousand tokens of context each, 100 tokens of output.
    fn day() -> Runs {
        Runs {
            requests: 48,
            input: 4_800_000,
            output: 4_800,
            charge: "26.532".parse().unwrap(),
            ..Runs::default()
        }
    }

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    #[test]
    fn a_day_of_heartbeats_costs_on_another_model_what_its_rates_say() {
        let table = table();
        let on = |model: &str, isolated| repriced(&[day()], table.find(model).unwrap(), isolated);
        assert_eq!(on("dear", None), Some(credits("26.532")));
        assert_eq!(on("light", None), Some(credits("2.4144")));
        assert_eq!(on("dear", Some(4_000)), Some(credits("1.188")));
        assert_eq!(on("light", Some(4_000)), Some(credits("0.1104")));
    }

    #[test]
    fn a_run_that_is_small_already_is_not_made_larger_by_isolation() {
        let table = table();
        let small = Runs { requests: 2, input: 100, cached: 50, ..Runs::default() };
        let light = table.find("light").unwrap();
        let as_is = repriced(std::slice::from_ref(&small), light, None);
        assert_eq!(repriced(&[small], light, Some(4_000)), as_is);
    }

    #[test]
    fn the_band_is_that_of_one_request_and_not_of_the_sum() {
        let table = table();
        let banded = table.find("banded").unwrap();
        let runs = |each: u64| Runs { requests: 10, input: each * 10, ..Runs::default() };
        assert_eq!(repriced(&[runs(50_000)], banded, None), Some(credits("0.5")));
        assert_eq!(repriced(&[runs(50_001)], banded, None), Some(credits("1.00002")));
    }

    #[test]
    fn a_model_whose_context_is_too_small_or_that_does_not_answer_is_not_suggested() {
        let table = table();
        let runs = Runs { requests: 1, input: 200_000, ..Runs::default() };
        assert_eq!(repriced(&[runs], table.find("light").unwrap(), None), None);
        assert!(!is_candidate(table.find("embedding").unwrap()));
        assert!(is_candidate(table.find("light").unwrap()));
    }

    #[test]
    fn half_as_often_costs_half_and_more_often_changes_nothing() {
        assert_eq!(less_often(credits("26.532"), 30, 60), credits("13.266"));
        assert_eq!(less_often(credits("1"), 30, 30), credits("1"));
        assert_eq!(less_often(credits("1"), 60, 30), credits("1"));
        assert_eq!(less_often(credits("1"), 30, 0), credits("1"));
    }

    #[test]
    fn the_usual_pause_is_not_moved_by_a_night() {
        let minutes = |list: &[i64]| list.iter().map(|m| m * 60_000).collect::<Vec<_>>();
        assert_eq!(usual_pause(minutes(&[0, 30, 60, 90, 570, 600])), Some(30 * 60_000));
        assert_eq!(usual_pause(minutes(&[0, 30])), None);
        assert_eq!(usual_pause(Vec::new()), None);
    }

    #[test]
    fn a_model_that_left_the_table_keeps_its_charge_and_isolation_never_costs_more() {
        let table = table();
        let gone = (day(), None);
        assert_eq!(isolated(&[gone], 4_000), credits("26.532"));
        let dear = table.find("dear").map(AsRef::as_ref);
        assert_eq!(isolated(&[(day(), dear)], 4_000), credits("1.188"));
        // Paid almost nothing, because its input came from a cache.
        let cached = Runs { cached: 4_800_000, input: 0, charge: credits("0.5"), ..day() };
        assert_eq!(isolated(&[(cached, dear)], 90_000), credits("0.5"));
    }

    proptest! {
        /// On the model that they were on, runs without bands cost what they were charged:
        /// to the rounding of each.
        #[test]
        fn repricing_on_the_same_model_is_what_was_charged(
            requests in proptest::collection::vec(
                (0_u64..200_000, 0_u64..200_000, 0_u64..50_000, 0_u64..20_000), 1..40),
        ) {
            let table = table();
            let dear = table.find("dear").unwrap();
            let mut runs = Runs::default();
            for (input, cached, written, output) in &requests {
                let usage = Usage {
                    input: *input,
                    cached: *cached,
                    cache_creation_5m: *written,
                    output: *output,
                    ..Usage::default()
                };
                runs.requests += 1;
                runs.input += input;
                runs.cached += cached;
                runs.cache_creation += written;
                runs.output += output;
                runs.charge += charge(&usage, &dear.price, None).unwrap();
            }
            let again = repriced(std::slice::from_ref(&runs), dear, None).unwrap();
            let apart = (again.nano() - runs.charge.nano()).abs();
            prop_assert!(apart <= requests.len() as i64, "{apart}");
        }
    }
}
