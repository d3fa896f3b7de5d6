//! The fields of a key: filled in for a form, and read from what the form sends.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::billing::Credits;
use crate::dashboard::Failure;
use crate::store::{Key, KeyLimits, Rejection};
use crate::time;

/// How requests are refused when credits are used up, in words.
const REJECTIONS: [(&str, &str); 4] = [
    ("limit", "402, in words that agents show"),
    ("billing", "402, plain billing words"),
    ("bad_request", "400, neutral words"),
    ("message", "200, as the assistant's answer"),
];

/// A form, filled in.
#[derive(Default)]
pub struct Fields {
    /// Its name.
    pub name: String,
    /// Its tag.
    pub tag: String,
    /// Between commas.
    pub models: String,
    /// RFC 3339.
    pub expires: String,
    /// Value, words, whether it is chosen.
    pub rejections: Vec<(&'static str, &'static str, bool)>,
    /// One field each.
    pub caps: Vec<Cap>,
    /// Where its days begin.
    pub zone: String,
    /// Whether anything is limited.
    pub is_limited: bool,
}

/// A field with a limit.
pub struct Cap {
    /// Its name in the API.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What stands behind the field.
    pub unit: &'static str,
    /// `decimal` or `numeric`.
    pub mode: &'static str,
    /// Empty: none.
    pub value: String,
}

impl Fields {
    /// Those of a key that is to be made.
    pub fn empty() -> Self {
        Self {
            rejections: rejections(Rejection::Limit),
            caps: caps(&KeyLimits::default()),
            ..Self::default()
        }
    }

    /// Those of a key that is there.
    pub fn of(key: &Key) -> Self {
        Self {
            name: key.name.clone(),
            tag: key.tag.clone().unwrap_or_default(),
            models: key.models.join(", "),
            expires: key.expires_at.map(time::rfc3339).unwrap_or_default(),
            rejections: rejections(key.rejection),
            caps: caps(&key.limits),
            zone: key.limits.zone.clone().unwrap_or_default(),
            is_limited: key.limits != KeyLimits::default(),
        }
    }
}

fn rejections(chosen: Rejection) -> Vec<(&'static str, &'static str, bool)> {
    let chosen = json!(chosen);
    REJECTIONS.map(|(value, name)| (value, name, chosen == value)).into()
}

fn caps(limits: &KeyLimits) -> Vec<Cap> {
    let credits = |name, title, cap: Option<Credits>| {
        let value = cap.map(|cap| cap.to_string()).unwrap_or_default();
        Cap { name, title, unit: "credits", mode: "decimal", value }
    };
    let count = |name, title, unit, limit: Option<u64>| {
        let value = limit.map(|limit| limit.to_string()).unwrap_or_default();
        Cap { name, title, unit, mode: "numeric", value }
    };
    let places = limits.max_in_flight.map(u64::from);
    vec![
        credits("daily", "Spend a day", limits.daily),
        credits("weekly", "Spend a week, from Monday", limits.weekly),
        credits("monthly", "Spend a calendar month", limits.monthly),
        credits("total", "Spend in all", limits.total),
        count("requests_per_minute", "Requests a minute", "a minute", limits.requests_per_minute),
        count("tokens_per_minute", "Tokens a minute", "a minute", limits.tokens_per_minute),
        count("max_in_flight", "Requests at once", "at once", places),
    ]
}

/// What a form of a key sends; every field of it, whatever was changed.
#[derive(Debug, Deserialize)]
pub struct Sent {
    name: String,
    #[serde(default)]
    tag: String,
    #[serde(default)]
    models: String,
    #[serde(default)]
    expires: String,
    #[serde(default)]
    rejection: String,
    #[serde(default)]
    daily: String,
    #[serde(default)]
    weekly: String,
    #[serde(default)]
    monthly: String,
    #[serde(default)]
    total: String,
    #[serde(default)]
    requests_per_minute: String,
    #[serde(default)]
    tokens_per_minute: String,
    #[serde(default)]
    max_in_flight: String,
    #[serde(default)]
    zone: String,
}

impl Sent {
    /// As the API takes it, for a new key, or for a change of `old`.
    ///
    /// # Errors
    ///
    /// A count that is none; the rest is the API's to judge.
    pub fn body(&self, old: Option<&Key>) -> Result<Value, Failure> {
        let set = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let count = |title: &str, text: &str| -> Result<Option<u64>, Failure> {
            let bad = |_| Failure::Invalid(format!("“{title}” must be a whole number."));
            set(text).map(|text| text.parse().map_err(bad)).transpose()
        };
        let models: Vec<&str> =
            self.models.split([',', '\n']).map(str::trim).filter(|m| !m.is_empty()).collect();
        let mut body = json!({ "name": self.name, "tag": set(&self.tag), "models": models,
            "limits": {
                "daily": set(&self.daily),
                "weekly": set(&self.weekly),
                "monthly": set(&self.monthly),
                "total": set(&self.total),
                "zone": set(&self.zone),
                "requests_per_minute": count("Requests a minute", &self.requests_per_minute)?,
                "tokens_per_minute": count("Tokens a minute", &self.tokens_per_minute)?,
                "max_in_flight": count("Requests at once", &self.max_in_flight)?,
            },
        });
        // An end that was not touched stays as it is, also one that has passed.
        let untouched = old.and_then(|key| key.expires_at).map(time::rfc3339);
        let expires = set(&self.expires);
        if old.is_none() || expires != untouched {
            body["expires_at"] = json!(expires);
        }
        if let Some(rejection) = set(&self.rejection) {
            body["rejection"] = json!(rejection);
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(form: &str) -> Sent {
        serde_urlencoded::from_str(form).unwrap()
    }

    #[test]
    fn an_empty_field_is_no_limit_and_a_count_is_whole() {
        let body = sent("name=a&daily=5&total=&max_in_flight=2").body(None).unwrap();
        assert_eq!(body["limits"]["daily"], "5");
        assert_eq!(body["limits"]["total"], Value::Null);
        assert_eq!(body["limits"]["max_in_flight"], 2);
        for bad in ["max_in_flight=two", "requests_per_minute=1.5", "tokens_per_minute=-1"] {
            let sent = sent(&format!("name=a&{bad}"));
            assert!(matches!(sent.body(None), Err(Failure::Invalid(_))), "{bad}");
        }
    }
}
