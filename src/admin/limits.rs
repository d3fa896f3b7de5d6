//! Limits of accounts and keys, as they are written and changed.

use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::Error;
use crate::billing::Credits;
use crate::billing::limit::Bucket;
use crate::store::{Change, KeyLimits, LimitsChange};

/// Most requests at once that anyone may be given.
const PLACES: u32 = 1_000_000;

/// A field of a change: absent leaves what is there, `null` takes it away.
///
/// # Errors
///
/// Those of the value.
pub fn nullable<'de, D, T>(deserializer: D) -> Result<Change<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// What is to change of a key's limits. `null` takes a limit away; what is absent stays.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NewLimits {
    /// Credits a day.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    daily: Change<Option<Credits>>,
    /// Credits a week, from Monday.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    weekly: Change<Option<Credits>>,
    /// Credits a calendar month.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    monthly: Change<Option<Credits>>,
    /// Credits over the key's life.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    total: Change<Option<Credits>>,
    /// The IANA time zone of days, weeks and months, such as `Europe/Vilnius`; UTC if absent.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    zone: Change<Option<String>>,
    /// Requests a minute.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    requests_per_minute: Change<Option<u64>>,
    /// Tokens a minute, input and output.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    tokens_per_minute: Change<Option<u64>>,
    /// Requests that may run at once.
    #[serde(deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    max_in_flight: Change<Option<u32>>,
}

impl NewLimits {
    /// The change, if it makes sense.
    ///
    /// # Errors
    ///
    /// A limit that nobody can mean, or a time zone that nobody knows.
    pub fn change(self) -> Result<LimitsChange, Error> {
        let Self { daily, weekly, monthly, total, zone, .. } = self;
        Ok(LimitsChange {
            daily: cap("limits.daily", daily)?,
            weekly: cap("limits.weekly", weekly)?,
            monthly: cap("limits.monthly", monthly)?,
            total: cap("limits.total", total)?,
            zone: known(zone)?,
            requests_per_minute: rate("limits.requests_per_minute", self.requests_per_minute)?,
            tokens_per_minute: rate("limits.tokens_per_minute", self.tokens_per_minute)?,
            max_in_flight: places("limits.max_in_flight", self.max_in_flight)?,
        })
    }

    /// The limits of a new key.
    ///
    /// # Errors
    ///
    /// As [`Self::change`].
    pub fn of_new_key(self) -> Result<KeyLimits, Error> {
        let mut limits = KeyLimits::default();
        self.change()?.apply(&mut limits);
        Ok(limits)
    }
}

fn cap(
    param: &'static str,
    cap: Change<Option<Credits>>,
) -> Result<Change<Option<Credits>>, Error> {
    if cap.flatten().is_some_and(Credits::is_negative) {
        let problem = format!("must be 0 to {} credits", Credits::LIMIT);
        return Err(Error::InvalidParameter { param, problem });
    }
    Ok(cap)
}

fn rate(param: &'static str, rate: Change<Option<u64>>) -> Result<Change<Option<u64>>, Error> {
    if rate.flatten().is_some_and(|rate| !(1..=Bucket::LIMIT).contains(&rate)) {
        let problem = format!("must be 1 to {}", Bucket::LIMIT);
        return Err(Error::InvalidParameter { param, problem });
    }
    Ok(rate)
}

/// A number of requests that may run at once.
///
/// # Errors
///
/// When nobody can mean it.
pub fn places(
    param: &'static str,
    places: Change<Option<u32>>,
) -> Result<Change<Option<u32>>, Error> {
    if places.flatten().is_some_and(|places| !(1..=PLACES).contains(&places)) {
        let problem = format!("must be 1 to {PLACES}");
        return Err(Error::InvalidParameter { param, problem });
    }
    Ok(places)
}

fn known(zone: Change<Option<String>>) -> Result<Change<Option<String>>, Error> {
    match zone.as_ref().and_then(Option::as_deref) {
        Some(name) if TimeZone::get(name).is_err() => {
            let param = "limits.zone";
            let problem = "must be an IANA time zone such as Europe/Vilnius".to_owned();
            Err(Error::InvalidParameter { param, problem })
        }
        _ => Ok(zone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<LimitsChange, Error> {
        serde_json::from_str::<NewLimits>(json).unwrap().change()
    }

    #[test]
    fn absent_leaves_null_takes_away_and_a_value_sets() {
        let change =
            read(r#"{ "daily": "5", "weekly": null, "requests_per_minute": 60 }"#).unwrap();
        let expected = LimitsChange {
            daily: Some(Some("5".parse().unwrap())),
            weekly: Some(None),
            requests_per_minute: Some(Some(60)),
            ..LimitsChange::default()
        };
        assert_eq!(change, expected);
        assert_eq!(read("{}").unwrap(), LimitsChange::default());
    }

    #[test]
    fn what_nobody_can_mean_is_refused() {
        for json in [
            r#"{ "daily": "-1" }"#,
            r#"{ "requests_per_minute": 0 }"#,
            r#"{ "tokens_per_minute": 100000000001 }"#,
            r#"{ "max_in_flight": 0 }"#,
            r#"{ "zone": "Europe/Vilna" }"#,
            r#"{ "zone": "" }"#,
        ] {
            assert!(matches!(read(json), Err(Error::InvalidParameter { .. })), "{json}");
        }
        for json in [
            r#"{ "daily": 5 }"#,
            r#"{ "total": "9000001" }"#,
            r#"{ "dayly": "5" }"#,
            r#"{ "max_in_flight": -1 }"#,
        ] {
            assert!(serde_json::from_str::<NewLimits>(json).is_err(), "{json}");
        }
    }
}
