//! The words of refusals that are about money.
//!
//! Agents sort errors by their text. Every odd word does work in OpenClaw: "Usage limit" makes
//! it send one request and keep no lock, "daily", "weekly" or "monthly limit" with "quota" makes
//! it show the text verbatim. Words of billing, such as "top up" or "credit balance", would lock
//! the provider for minutes, top-up or not; "try again in" reads as a wait.

use std::fmt;

use http::StatusCode;
use serde_json::{Value, json};

use crate::billing::Credits;
use crate::store::{Millis, Period, Rejection};
use crate::time;

/// A request that was refused for money.
#[derive(Debug)]
pub struct Refusal {
    pub why: Why,
    pub account: String,
    /// Where credits can be added; may be empty.
    pub billing_url: String,
    /// As the key says.
    pub style: Rejection,
}

/// What is used up.
#[derive(Debug)]
pub enum Why {
    /// The balance.
    Empty { balance: Credits },
    /// Too much of it is held for what runs, beside the most that this request can cost.
    Held { balance: Credits, held: Credits, most: Option<Credits> },
    /// What a cap of the key leaves.
    Cap { period: Period, cap: Credits, spent: Credits, held: Credits, resets_at: Option<Millis> },
}

impl Refusal {
    /// Status, `type` and `code` of the OpenAI error object.
    pub fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        const INVALID: &str = "invalid_request_error";
        match (&self.why, self.style) {
            (Why::Empty { .. } | Why::Held { .. }, Rejection::BadRequest) => {
                (StatusCode::BAD_REQUEST, INVALID, "insufficient_credits")
            }
            (Why::Empty { .. } | Why::Held { .. }, _) => {
                (StatusCode::PAYMENT_REQUIRED, "insufficient_credits", "insufficient_credits")
            }
            (Why::Cap { .. }, Rejection::BadRequest) => {
                (StatusCode::BAD_REQUEST, INVALID, "key_limit_reached")
            }
            (Why::Cap { .. }, _) => {
                (StatusCode::PAYMENT_REQUIRED, "key_limit_reached", "key_limit_reached")
            }
        }
    }

    /// The name of the limit that was hit, where it is one of the key's.
    pub const fn parameter(&self) -> Option<&'static str> {
        match self.why {
            Why::Cap { period, .. } => Some(period.cap()),
            Why::Empty { .. } | Why::Held { .. } => None,
        }
    }

    /// The numbers behind the words.
    pub fn details(&self) -> Value {
        match &self.why {
            Why::Empty { balance } => json!({ "balance": balance, "account": self.account }),
            Why::Held { balance, held, most } => json!({
                "balance": balance, "held": held, "most": most, "account": self.account,
            }),
            Why::Cap { period, cap, spent, held, resets_at } => json!({
                "limit": period.cap(), "value": cap, "used": spent, "held": held,
                "resets_at": resets_at.map(time::rfc3339), "account": self.account,
            }),
        }
    }

    fn add_credits(&self) -> String {
        let url = &self.billing_url;
        match (url.as_str(), self.style) {
            ("", Rejection::Billing) => String::from("Ask the operator to top up."),
            (_, Rejection::Billing) => format!("Top up at {url}."),
            ("", _) => String::from("Ask the operator to add credits and send again;"),
            _ => format!("Add credits at {url} and send again;"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let add = self.add_credits();
        if let Why::Empty { balance } = self.why {
            return match self.style {
                Rejection::Limit | Rejection::Message => write!(
                    f,
                    "Usage limit reached: prepaid credits are used up (balance {balance}). {add} \
                     requests resume at once. (Prepaid quota, not a monthly limit.)"
                ),
                Rejection::Billing => write!(
                    f,
                    "Insufficient credits: the balance is {balance}. {add} Requests then resume."
                ),
                Rejection::BadRequest => write!(
                    f,
                    "The request was not sent: this account's prepaid amount is used up \
                     ({balance}). {add} requests resume at once."
                ),
            };
        }
        f.write_str(match self.style {
            Rejection::Limit | Rejection::Message => "Usage limit reached: ",
            Rejection::Billing => "Insufficient credits: ",
            Rejection::BadRequest => "The request was not sent: ",
        })?;
        let mut quota = " (Prepaid quota, not a monthly limit.)";
        match self.why {
            Why::Empty { .. } => {}
            Why::Held { balance, held, most: None } => write!(
                f,
                "the prepaid credits are held for requests that run (balance {balance}, held \
                 {held}). Send again when they have ended."
            )?,
            Why::Held { balance, held, most: Some(most) } => write!(
                f,
                "this request may cost {most}, which is not free (balance {balance}, held \
                 {held}). Ask for less output, or for more credits."
            )?,
            Why::Cap { period, cap, spent, held, resets_at } => {
                let name = period.cap();
                write!(
                    f,
                    "this key's {name} limit of {cap} credits has no room for this request (spent \
                     {spent}, held {held}). "
                )?;
                match resets_at {
                    Some(at) => {
                        quota = " (Prepaid quota.)";
                        let at = jiff::Timestamp::from_millisecond(at).unwrap_or_default();
                        write!(f, "It begins anew at {at}, or ask the operator for more.")?;
                    }
                    None => f.write_str("Ask the operator for more.")?,
                }
            }
        }
        match self.style {
            Rejection::Limit | Rejection::Message => f.write_str(quota),
            Rejection::Billing | Rejection::BadRequest => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    fn every_reason() -> Vec<Why> {
        let (balance, held) = (credits("-12.345678901"), credits("123.456789012"));
        let cap = |period, resets_at| Why::Cap {
            period,
            cap: credits("1000.000000001"),
            spent: credits("1234.567890123"),
            held,
            resets_at,
        };
        vec![
            Why::Empty { balance },
            Why::Held { balance, held, most: None },
            Why::Held { balance, held, most: Some(held) },
            cap(Period::Day, Some(1_788_220_800_000)),
            cap(Period::Week, Some(1_788_220_800_000)),
            cap(Period::Month, Some(1_788_220_800_000)),
            cap(Period::Total, None),
        ]
    }

    /// The patterns by which OpenClaw sorts and shows errors (its `message-patterns` and
    /// `user-copy`, as shipped in 2026.9.6).
    #[test]
    fn a_refusal_is_read_as_a_limit_and_shown_verbatim() {
        let urls = ["", "https://credits.example.org/billing"];
        for (why, url) in
            urls.into_iter().flat_map(|url| every_reason().into_iter().map(move |why| (why, url)))
        {
            let account = "default".into();
            let refusal =
                Refusal { why, account, billing_url: url.into(), style: Rejection::Limit };
            let text = refusal.to_string().to_lowercase();
            for billing_word in [
                "insufficient credits",
                "insufficient quota",
                "credit balance",
                "plans & billing",
                "insufficient balance",
                "add more credits",
                "top up",
                "payment required",
                "available balance",
                "spend limit",
                "try again in",
            ] {
                assert!(!text.contains(billing_word), "{billing_word}: {text}");
            }
            assert!(text.contains("usage limit"), "{text}");
            let window = ["daily limit", "weekly limit", "monthly limit"];
            assert!(window.iter().any(|word| text.contains(word)), "{text}");
            assert!(text.contains("quota"), "{text}");
            assert!(text.len() <= 300, "{}: {text}", text.len());
        }
    }

    #[test]
    fn a_cap_that_is_reached_names_itself_and_when_it_begins_anew() {
        let why = Why::Cap {
            period: Period::Day,
            cap: credits("5"),
            spent: credits("5.02"),
            held: Credits::ZERO,
            resets_at: Some(1_788_220_800_000),
        };
        let (account, billing_url) = (String::from("default"), String::new());
        let refusal = Refusal { why, account, billing_url, style: Rejection::Limit };
        assert_eq!(
            refusal.to_string(),
            "Usage limit reached: this key's daily limit of 5 credits has no room for this \
             request (spent 5.02, held 0). It begins anew at 2026-09-01T00:00:00Z, or ask the \
             operator for more. (Prepaid quota.)"
        );
        assert_eq!(refusal.parameter(), Some("daily"));
        assert_eq!(refusal.details()["resets_at"], "2026-09-01T00:00:00.000Z");
        let (status, _, code) = refusal.parts();
        assert_eq!((status.as_u16(), code), (402, "key_limit_reached"));
    }
}
