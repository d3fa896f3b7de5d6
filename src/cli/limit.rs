//! Limits on the command line, and in tables.

use std::str::FromStr;

use clap::Args;
use serde_json::{Map, Value};

use crate::billing::Credits;
use crate::store::{Key, KeyUse, Spend};

/// A value to set, or `none` to take away what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting<T> {
    /// Takes it away.
    None,
    /// Sets it.
    To(T),
}

impl<T: FromStr> FromStr for Setting<T>
where
    T::Err: ToString,
{
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            text => text.parse().map(Self::To).map_err(|error: T::Err| error.to_string()),
        }
    }
}

impl<T: Into<Value>> From<Setting<T>> for Value {
    fn from(setting: Setting<T>) -> Self {
        match setting {
            Setting::None => Self::Null,
            Setting::To(value) => value.into(),
        }
    }
}

/// The limits of a key.
#[derive(Clone, Debug, Default, Args)]
pub struct LimitArgs {
    /// Credits that it may spend a day
    #[arg(long, value_name = "CREDITS")]
    daily: Option<Setting<Credits>>,
    /// Credits a week, from Monday
    #[arg(long, value_name = "CREDITS")]
    weekly: Option<Setting<Credits>>,
    /// Credits a calendar month
    #[arg(long, value_name = "CREDITS")]
    monthly: Option<Setting<Credits>>,
    /// Credits in all
    #[arg(long, value_name = "CREDITS")]
    total: Option<Setting<Credits>>,
    /// Time zone in which days, weeks and months begin, such as Europe/Vilnius (default: UTC)
    #[arg(long, value_name = "ZONE")]
    zone: Option<Setting<String>>,
    /// Requests a minute
    #[arg(long, value_name = "N")]
    rpm: Option<Setting<u64>>,
    /// Tokens a minute, input and output
    #[arg(long, value_name = "N")]
    tpm: Option<Setting<u64>>,
    /// Requests that may run at once
    #[arg(long, value_name = "N")]
    concurrency: Option<Setting<u32>>,
}

impl LimitArgs {
    /// As the control plane takes them.
    pub fn body(self) -> Value {
        let text = |cap: Option<Setting<Credits>>| {
            cap.map(|cap| match cap {
                Setting::None => Value::Null,
                Setting::To(cap) => cap.to_string().into(),
            })
        };
        let fields = [
            ("daily", text(self.daily)),
            ("weekly", text(self.weekly)),
            ("monthly", text(self.monthly)),
            ("total", text(self.total)),
            ("zone", self.zone.map(Into::into)),
            ("requests_per_minute", self.rpm.map(Into::into)),
            ("tokens_per_minute", self.tpm.map(Into::into)),
            ("max_in_flight", self.concurrency.map(Into::into)),
        ];
        let given = fields.into_iter().filter_map(|(name, value)| Some((name.into(), value?)));
        Value::Object(given.collect::<Map<_, _>>())
    }
}

/// The limits of a key in one cell, each with what is used of it: `daily 0.2/5, rpm 3/60`.
pub fn cell(key: &Key, in_use: Option<&KeyUse>) -> String {
    let Some(in_use) = in_use else { return "none".to_owned() };
    let mut parts = Vec::new();
    for name in ["daily", "weekly", "monthly", "total"] {
        if let Some(Spend { limit, used, .. }) = in_use.spend.get(name) {
            parts.push(format!("{name} {used}/{limit}"));
        }
    }
    if let (false, Some(zone)) = (in_use.spend.is_empty(), &key.limits.zone) {
        parts.push(format!("in {zone}"));
    }
    for (name, rate) in [("rpm", in_use.requests_per_minute), ("tpm", in_use.tokens_per_minute)] {
        if let Some(rate) = rate {
            parts.push(format!("{name} {}/{}", rate.used, rate.limit));
        }
    }
    if let Some(limit) = key.limits.max_in_flight {
        parts.push(format!("running {}/{limit}", in_use.in_flight));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn none_takes_a_limit_away_and_what_is_not_named_stays() {
        let limits = LimitArgs {
            daily: Some("5.50".parse().unwrap()),
            weekly: Some("none".parse().unwrap()),
            zone: Some("Europe/Vilnius".parse().unwrap()),
            rpm: Some("60".parse().unwrap()),
            ..LimitArgs::default()
        };
        assert_eq!(
            limits.body(),
            json!({
                "daily": "5.5", "weekly": null, "zone": "Europe/Vilnius",
                "requests_per_minute": 60,
            })
        );
        assert!("five".parse::<Setting<Credits>>().is_err());
        assert_eq!(LimitArgs::default().body(), json!({}));
    }
}
