//! What an account is watched for, and when something has crossed its limit. Pure.
//!
//! An alert is told once a crossing: its rule is then silent until what it watches is clearly
//! back on the right side (ten percent beyond the limit), so that a value that hovers around
//! its limit does not tell the same thing all day.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::billing::Credits;
use crate::billing::compare::percent;

/// What is watched, and where it is told. A rule that is absent is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// The balance falls below this.
    #[schema(value_type = Option<String>)]
    pub low_balance: Option<Credits>,
    /// The balance is used up, so that requests are refused.
    pub used_up: bool,
    /// One request costs more than this.
    #[schema(value_type = Option<String>)]
    pub large_request: Option<Credits>,
    /// A day's requests cost more than this.
    #[schema(value_type = Option<String>)]
    pub daily_spend: Option<Credits>,
    /// Heartbeats are more than this many percent of what the last 24 hours cost.
    pub heartbeat_percent: Option<u8>,
    /// The time zone of days, such as `Europe/Berlin`; UTC if absent.
    pub tz: Option<String>,
    /// Where alerts are posted, signed.
    pub webhook: Option<String>,
    /// Where alerts are mailed.
    pub email: Option<String>,
}

impl Rules {
    /// Whether anything is watched and can be told.
    pub fn is_on(&self) -> bool {
        self.has_channel()
            && (self.used_up
                || self.low_balance.is_some()
                || self.large_request.is_some()
                || self.daily_spend.is_some()
                || self.heartbeat_percent.is_some())
    }

    /// Whether there is somewhere to tell it.
    pub const fn has_channel(&self) -> bool {
        self.webhook.is_some() || self.email.is_some()
    }
}

/// What was told and is not over, by rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Told {
    /// The balance is low.
    pub low_balance: bool,
    /// It is used up.
    pub used_up: bool,
    /// The day that cost too much.
    pub daily_spend: Option<String>,
    /// Heartbeats cost too much.
    pub heartbeats: bool,
    /// The newest debit that was looked at.
    pub debit: Option<u64>,
}

/// What is known of an account now. What no rule asks for is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its balance.
    pub balance: Credits,
    /// The day of the zone, and what it cost so far.
    pub day: Option<(String, Credits)>,
    /// Over the last 24 hours: what heartbeats cost, and what everything did.
    pub heartbeats: Option<(Credits, Credits)>,
    /// The newest debits: sequence number, request and charge (above zero), newest first.
    pub debits: Vec<(u64, String, Credits)>,
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Alert {
    /// The balance is below its limit.
    LowBalance {
        /// Now.
        #[schema(value_type = String)]
        balance: Credits,
        /// The limit.
        #[schema(value_type = String)]
        limit: Credits,
    },
    /// The balance is used up: requests are refused until it is above zero.
    UsedUp {
        /// Now.
        #[schema(value_type = String)]
        balance: Credits,
    },
    /// A request cost more than its limit.
    LargeRequest {
        /// The dearest such request since the last look.
        request: String,
        /// What it cost.
        #[schema(value_type = String)]
        charge: Credits,
        /// The limit.
        #[schema(value_type = String)]
        limit: Credits,
        /// How many there were.
        count: u64,
    },
    /// A day costs more than its limit.
    DailySpend {
        /// The day.
        day: String,
        /// What it cost so far.
        #[schema(value_type = String)]
        spent: Credits,
        /// The limit.
        #[schema(value_type = String)]
        limit: Credits,
    },
    /// Heartbeats are too large a part of what is spent.
    HeartbeatShare {
        /// Their part in percent, over the last 24 hours.
        percent: u64,
        /// The limit in percent.
        limit_percent: u8,
        /// What they cost.
        #[schema(value_type = String)]
        charge: Credits,
    },
    /// Somebody tries whether alerts arrive.
    Test,
}

impl Alert {
    /// In one or two sentences, for people.
    pub fn text(&self, account: &str) -> String {
        match self {
            Self::LowBalance { balance, limit } => format!(
                "The balance of {account} is {balance} credits, below the limit of {limit}. Add \
                 credits before it reaches zero, or requests will be refused."
            ),
            Self::UsedUp { balance } => format!(
                "The credits of {account} are used up: the balance is {balance}, and requests \
                 are refused until it is above zero."
            ),
            Self::LargeRequest { request, charge, limit, count: 1 } => format!(
                "A request of {account} cost {charge} credits, more than the limit of {limit}: \
                 {request}."
            ),
            Self::LargeRequest { request, charge, limit, count } => format!(
                "{count} requests of {account} cost more than the limit of {limit} credits each. \
                 The dearest cost {charge}: {request}."
            ),
            Self::DailySpend { day, spent, limit } => format!(
                "The requests of {account} on {day} have cost {spent} credits so far, more than \
                 the limit of {limit} for a day."
            ),
            Self::HeartbeatShare { percent, limit_percent, charge } => format!(
                "Heartbeats were {percent} % of what {account} spent in the last 24 hours \
                 ({charge} credits), more than the limit of {limit_percent} %."
            ),
            Self::Test => format!("This is a test: alerts of {account} arrive here."),
        }
    }

    /// In a few words, for a list or the subject of a mail.
    pub const fn title(&self) -> &'static str {
        match self {
            Self::LowBalance { .. } => "Low balance",
            Self::UsedUp { .. } => "Credits used up",
            Self::LargeRequest { .. } => "Large request",
            Self::DailySpend { .. } => "Daily spend above its limit",
            Self::HeartbeatShare { .. } => "Heartbeats above their limit",
            Self::Test => "Test",
        }
    }
}

/// What is to be told now, and what is then told.
pub fn decide(rules: &Rules, told: &Told, facts: &Facts) -> (Told, Vec<Alert>) {
    let mut alerts = Vec::new();
    let low_balance = rules.low_balance.is_some_and(|limit| {
        let is_low = facts.balance < limit;
        if is_low && !told.low_balance {
            alerts.push(Alert::LowBalance { balance: facts.balance, limit });
        }
        is_low || (told.low_balance && facts.balance < beyond(limit))
    });
    let used_up = rules.used_up && !facts.balance.is_positive();
    if used_up && !told.used_up {
        alerts.push(Alert::UsedUp { balance: facts.balance });
    }
    let daily_spend = daily_spend(rules, told, facts, &mut alerts);
    let heartbeats = heartbeats(rules, told, facts, &mut alerts);
    let debit = large_requests(rules, told, facts, &mut alerts);
    (Told { low_balance, used_up, daily_spend, heartbeats, debit }, alerts)
}

fn daily_spend(
    rules: &Rules,
    told: &Told,
    facts: &Facts,
    alerts: &mut Vec<Alert>,
) -> Option<String> {
    let (limit, (day, spent)) = (rules.daily_spend?, facts.day.clone()?);
    // Days only go on, also where the clocks of two processes do not agree on midnight.
    if told.daily_spend.as_ref().is_some_and(|last| *last >= day) || spent <= limit {
        return told.daily_spend.clone();
    }
    alerts.push(Alert::DailySpend { day: day.clone(), spent, limit });
    Some(day)
}

fn heartbeats(rules: &Rules, told: &Told, facts: &Facts, alerts: &mut Vec<Alert>) -> bool {
    let (Some(limit_percent), Some((charge, all))) = (rules.heartbeat_percent, facts.heartbeats)
    else {
        return false;
    };
    // In thousandths of a percent of a whole, so that hysteresis needs no fraction.
    let share = i128::from(charge.nano()) * 1000;
    let at =
        |thousandths: i128| i128::from(all.nano()) * i128::from(limit_percent) * thousandths / 100;
    let is_above = charge.is_positive() && share > at(1000);
    if is_above && !told.heartbeats {
        let percent = percent(charge, all).unwrap_or_default();
        alerts.push(Alert::HeartbeatShare { percent, limit_percent, charge });
    }
    is_above || (told.heartbeats && share > at(900))
}

/// The newest debit looked at.
fn large_requests(
    rules: &Rules,
    told: &Told,
    facts: &Facts,
    alerts: &mut Vec<Alert>,
) -> Option<u64> {
    let limit = rules.large_request?;
    let newest = facts.debits.first().map_or(0, |(seq, ..)| *seq);
    let seen = told.debit.unwrap_or(0);
    let large = facts.debits.iter().filter(|(seq, _, charge)| *seq > seen && *charge > limit);
    if let Some((_, request, charge)) = large.clone().max_by_key(|(_, _, charge)| *charge) {
        let count = large.count() as u64;
        alerts.push(Alert::LargeRequest {
            request: request.clone(),
            charge: *charge,
            limit,
            count,
        });
    }
    Some(newest.max(seen))
}

/// A tenth beyond a limit.
fn beyond(limit: Credits) -> Credits {
    Credits::from_nano(limit.nano().saturating_add(limit.nano().abs() / 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    /// Which alerts a series of facts makes, one list a step.
    fn told_by(rules: &Rules, steps: impl IntoIterator<Item = Facts>) -> Vec<Vec<&'static str>> {
        let mut told = Told::default();
        let step = |facts: Facts| {
            let (next, alerts) = decide(rules, &told, &facts);
            told = next;
            alerts.iter().map(Alert::title).collect()
        };
        steps.into_iter().map(step).collect()
    }

    fn balances(list: &[&str]) -> Vec<Facts> {
        list.iter().map(|b| Facts { balance: credits(b), ..Facts::default() }).collect()
    }

    #[test]
    fn a_low_balance_is_told_once_until_it_is_clearly_back() {
        let rules = Rules { low_balance: Some(credits("5")), ..Rules::default() };
        let steps = balances(&["9", "5", "4.9", "4", "5.2", "4.9", "5.5", "4.9", "-1"]);
        let low = vec!["Low balance"];
        let none = Vec::new();
        let expected = [&none, &none, &low, &none, &none, &none, &none, &low, &none];
        assert_eq!(told_by(&rules, steps), expected.map(Clone::clone));
    }

    #[test]
    fn used_up_credits_are_told_at_zero_and_again_after_a_top_up() {
        let rules = Rules { used_up: true, ..Rules::default() };
        let steps = balances(&["0.1", "0", "-0.1", "5", "-2"]);
        let told: Vec<_> = told_by(&rules, steps).iter().map(Vec::len).collect();
        assert_eq!(told, [0, 1, 0, 0, 1]);
    }

    #[test]
    fn a_day_is_told_once_and_the_next_day_anew() {
        let rules = Rules { daily_spend: Some(credits("10")), ..Rules::default() };
        let day = |day: &str, spent: &str| Facts {
            day: Some((day.into(), credits(spent))),
            ..Facts::default()
        };
        let steps = [
            day("2026-11-20", "10"),
            day("2026-11-20", "10.000000001"),
            day("2026-11-20", "30"),
            // A refund the same day does not arm it again.
            day("2026-11-20", "9"),
            day("2026-11-20", "12"),
            day("2026-11-21", "0"),
            day("2026-11-21", "11"),
        ];
        let told: Vec<_> = told_by(&rules, steps).iter().map(Vec::len).collect();
        assert_eq!(told, [0, 1, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn the_share_of_heartbeats_is_told_above_its_limit_and_rearmed_a_tenth_below() {
        let rules = Rules { heartbeat_percent: Some(20), ..Rules::default() };
        let share = |beats: &str| Facts {
            heartbeats: Some((credits(beats), credits("10"))),
            ..Facts::default()
        };
        let steps = ["0", "2", "2.1", "1.9", "2.1", "1.8", "2.1"].map(share);
        let told: Vec<_> = told_by(&rules, steps).iter().map(Vec::len).collect();
        assert_eq!(told, [0, 0, 1, 0, 0, 0, 1]);
        let nothing = Facts { heartbeats: Some((credits("0"), credits("0"))), ..Facts::default() };
        assert!(decide(&rules, &Told::default(), &nothing).1.is_empty());
    }

    #[test]
    fn each_large_request_is_told_once() {
        let rules = Rules { large_request: Some(credits("1")), ..Rules::default() };
        let debits = |list: &[(u64, &str)]| Facts {
            debits: list.iter().map(|(n, c)| (*n, format!("req_{n}"), credits(c))).collect(),
            ..Facts::default()
        };
        let first = debits(&[(7, "9")]);
        let (told, alerts) = decide(&rules, &Told::default(), &first);
        assert_eq!((told.debit, alerts.len()), (Some(7), 1));
        let (told, alerts) = decide(&rules, &told, &debits(&[(9, "1"), (8, "0.5"), (7, "9")]));
        assert_eq!((told.debit, alerts), (Some(9), vec![]));
        let next = debits(&[(12, "3"), (11, "4"), (10, "1.000000001"), (9, "1")]);
        let (told, alerts) = decide(&rules, &told, &next);
        assert_eq!(
            alerts,
            [Alert::LargeRequest {
                request: "req_11".into(),
                charge: credits("4"),
                limit: credits("1"),
                count: 3
            }]
        );
        assert_eq!(decide(&rules, &told, &next).1, []);
    }

    #[test]
    fn a_rule_that_is_taken_away_and_set_again_tells_anew() {
        let low = Rules { low_balance: Some(credits("5")), ..Rules::default() };
        let facts = &balances(&["1"])[0];
        let (told, alerts) = decide(&low, &Told::default(), facts);
        assert_eq!(alerts.len(), 1);
        let (told, _) = decide(&Rules::default(), &told, facts);
        assert_eq!(told, Told::default());
        assert_eq!(decide(&low, &told, facts).1.len(), 1);
    }
}
