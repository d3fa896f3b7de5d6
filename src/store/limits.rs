//! What is asked at admission, what it answers, and the limits of keys and accounts.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Key, Millis, Rejection};
use crate::billing::Credits;
pub use crate::billing::limit::{Mode, Period};

/// How a request asks to be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// For accounts without a mode of their own.
    pub mode: Mode,
    /// Requests of an account that may run at once, for accounts without a number of their own.
    pub max_in_flight: u32,
    /// The most that it can cost; `None`: that has no bound.
    pub most: Option<Credits>,
    /// The tokens it seems to use, counted against its key's limit until they are known.
    pub tokens: u64,
}

/// A request found worth serving: its place is held until `settle` or `release`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The balance it was admitted at.
    pub balance: Credits,
}

/// Why a request was not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Balance at or below zero.
    OutOfCredits {
        /// The balance now.
        balance: Credits,
    },
    /// There are credits, but they are held for requests that run, or the most that this one
    /// can cost is more than is available.
    HoldDoesNotFit {
        /// The balance now.
        balance: Credits,
        /// What is held of it.
        held: Credits,
        /// The most that the request can cost, where that decided.
        most: Option<Credits>,
    },
    /// In strict mode: what the request costs has no bound.
    Unbounded,
    /// Too many requests of the account run.
    TooManyInFlight {
        /// How many run.
        running: u32,
        /// How many may.
        limit: u32,
    },
    /// The account is closing or closed.
    NotOpen,
    /// The key was revoked or has expired since it was looked up.
    KeyEnded {
        /// Revoked, and not expired.
        revoked: bool,
    },
    /// A spend cap of the key is reached, or the hold does not fit under it.
    KeySpend {
        /// The cap's period.
        period: Period,
        /// The cap.
        cap: Credits,
        /// What the key's requests were charged in the period.
        spent: Credits,
        /// What is held for its requests that run.
        held: Credits,
        /// When the next period begins; never for a total.
        resets_at: Option<Millis>,
    },
    /// Too many requests of the key run.
    KeyInFlight {
        /// How many run.
        running: u32,
        /// How many may.
        limit: u32,
    },
    /// Too much of something in a minute.
    KeyRate {
        /// Of what.
        of: Measure,
        /// How much may.
        limit: u64,
        /// What is used of it now.
        used: u64,
        /// Milliseconds until this request would fit.
        wait_ms: u64,
    },
}

/// What a limit a minute counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Requests.
    Requests,
    /// Input and output, as asked for until it is known.
    Tokens,
}

/// What a key may spend, and how often it may be used. What is absent is not limited.
///
/// A cap counts what the key's requests were charged, by the time they were settled; a refund
/// gives credits back to the account, not to the cap. Caps do not end what runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeyLimits {
    /// Credits a day.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily: Option<Credits>,
    /// Credits a week, from Monday.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weekly: Option<Credits>,
    /// Credits a calendar month.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<Credits>,
    /// Credits over the key's life.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Credits>,
    /// The IANA time zone of days, weeks and months; UTC if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Requests a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute, input and output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Requests that may run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
}

impl KeyLimits {
    /// Its spend caps.
    pub fn caps(&self) -> impl Iterator<Item = (Period, Credits)> {
        let Self { daily, weekly, monthly, total, .. } = *self;
        let caps = [
            (Period::Day, daily),
            (Period::Week, weekly),
            (Period::Month, monthly),
            (Period::Total, total),
        ];
        caps.into_iter().filter_map(|(period, cap)| Some((period, cap?)))
    }

    /// Where its days begin. Zones are checked when they are set; one that is no longer known
    /// is taken for UTC.
    pub fn time_zone(&self) -> TimeZone {
        let zone = self.zone.as_deref().map(TimeZone::get);
        zone.and_then(Result::ok).unwrap_or(TimeZone::UTC)
    }
}

/// What is used of a key's limits: of each that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyUse {
    /// By the name of the cap: `daily`, `weekly`, `monthly`, `total`.
    pub spend: BTreeMap<String, Spend>,
    /// Credits held for its requests that run.
    #[schema(value_type = String)]
    pub held: Credits,
    /// Its requests that run.
    pub in_flight: u32,
    /// Requests a minute.
    pub requests_per_minute: Option<RateUse>,
    /// Tokens a minute.
    pub tokens_per_minute: Option<RateUse>,
}

/// What is used of a spend cap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Spend {
    /// The cap.
    #[schema(value_type = String)]
    pub limit: Credits,
    /// Spent in the period.
    #[schema(value_type = String)]
    pub used: Credits,
    /// When the next period begins.
    #[serde(with = "crate::time::optional")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub resets_at: Option<Millis>,
}

/// What is used of a limit a minute. It flows out steadily, all of it in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RateUse {
    /// The limit.
    pub limit: u64,
    /// Used now.
    pub used: u64,
}

/// A new value, or none to leave what is there.
pub type Change<T> = Option<T>;

/// What is to change of an account. The inner `None` is the configured default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountChange {
    /// Its name.
    pub name: Change<String>,
    /// Its mode.
    pub mode: Change<Option<Mode>>,
    /// Requests that may run at once.
    pub max_in_flight: Change<Option<u32>>,
}

/// What is to change of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyChange {
    /// Its name.
    pub name: Change<String>,
    /// Its tag.
    pub tag: Change<Option<String>>,
    /// Models it may call.
    pub models: Change<Vec<String>>,
    /// How requests are refused.
    pub rejection: Change<Rejection>,
    /// When it stops being valid.
    pub expires_at: Change<Option<Millis>>,
    /// Its limits, one by one.
    pub limits: LimitsChange,
}

/// What is to change of a key's limits. The inner `None` takes a limit away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitsChange {
    /// Credits a day.
    pub daily: Change<Option<Credits>>,
    /// Credits a week.
    pub weekly: Change<Option<Credits>>,
    /// Credits a month.
    pub monthly: Change<Option<Credits>>,
    /// Credits over the key's life.
    pub total: Change<Option<Credits>>,
    /// The time zone.
    pub zone: Change<Option<String>>,
    /// Requests a minute.
    pub requests_per_minute: Change<Option<u64>>,
    /// Tokens a minute.
    pub tokens_per_minute: Change<Option<u64>>,
    /// Requests that may run at once.
    pub max_in_flight: Change<Option<u32>>,
}

impl KeyChange {
    /// The change that makes any key like this one, but for what never changes.
    pub fn to(key: &Key) -> Self {
        let Key { name, tag, models, rejection, limits, expires_at, .. } = key.clone();
        let KeyLimits {
            daily,
            weekly,
            monthly,
            total,
            zone,
            requests_per_minute,
            tokens_per_minute,
            max_in_flight,
        } = limits;
        Self {
            name: Some(name),
            tag: Some(tag),
            models: Some(models),
            rejection: Some(rejection),
            expires_at: Some(expires_at),
            limits: LimitsChange {
                daily: Some(daily),
                weekly: Some(weekly),
                monthly: Some(monthly),
                total: Some(total),
                zone: Some(zone),
                requests_per_minute: Some(requests_per_minute),
                tokens_per_minute: Some(tokens_per_minute),
                max_in_flight: Some(max_in_flight),
            },
        }
    }

    /// Makes the changes; what is not named stays.
    pub fn apply(self, key: &mut Key) {
        set(&mut key.name, self.name);
        set(&mut key.tag, self.tag);
        set(&mut key.models, self.models);
        set(&mut key.rejection, self.rejection);
        set(&mut key.expires_at, self.expires_at);
        self.limits.apply(&mut key.limits);
    }
}

impl LimitsChange {
    /// Makes the changes; what is not named stays.
    pub fn apply(self, limits: &mut KeyLimits) {
        set(&mut limits.daily, self.daily);
        set(&mut limits.weekly, self.weekly);
        set(&mut limits.monthly, self.monthly);
        set(&mut limits.total, self.total);
        set(&mut limits.zone, self.zone);
        set(&mut limits.requests_per_minute, self.requests_per_minute);
        set(&mut limits.tokens_per_minute, self.tokens_per_minute);
        set(&mut limits.max_in_flight, self.max_in_flight);
    }
}

fn set<T>(place: &mut T, change: Change<T>) {
    if let Some(value) = change {
        *place = value;
    }
}
