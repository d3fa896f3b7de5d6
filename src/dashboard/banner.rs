//! The one thing that needs attention now, the most severe first.

use super::page::{Pace, Page};
use crate::billing::Credits;
use crate::store::{Group, Source, Status, StoreError, UsageFilter};

/// What stands above a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Banner {
    /// `bad` is read out at once, `warn` and `note` when there is time.
    pub tone: &'static str,
    /// The matter in a word or two.
    pub title: &'static str,
    /// A sentence.
    pub text: String,
    /// What to do about it: a name and an address.
    pub action: Option<(String, String)>,
}

impl Banner {
    /// That of an account.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn of(page: &Page, pace: Pace) -> Result<Option<Self>, StoreError> {
        let balance = page.account.balance;
        if page.account.status != Status::Open {
            return Ok(Some(ended(page.account.status)));
        }
        if let Some(used_up) = used_up(balance) {
            return Ok(Some(used_up));
        }
        if pace.is_low(balance) {
            return Ok(Some(Self {
                tone: "warn",
                title: "Low",
                text: format!("{} at the current pace.", capital(&pace.runway(balance))),
                action: Some(("See what uses it".into(), page.href("costs"))),
            }));
        }
        if page.state.store.ready().await.is_err() {
            return Ok(Some(Self {
                tone: "bad",
                title: "Ledger not writable",
                text: "Usage cannot be recorded, so new requests are refused.".into(),
                action: None,
            }));
        }
        estimated(page).await
    }
}

fn ended(status: Status) -> Banner {
    let text = match status {
        Status::Closing => "This account is being closed: what runs is still settled.",
        Status::Closed | Status::Open => "This account is closed. Its books stay as they are.",
    };
    Banner { tone: "note", title: "Closed", text: text.into(), action: None }
}

fn used_up(balance: Credits) -> Option<Banner> {
    if balance.is_positive() {
        return None;
    }
    let (title, text) = if balance.is_negative() {
        let shown = super::number::Amount(balance).text();
        (
            "Negative",
            format!(
                "Requests are paused. Your balance is {shown} credits. It must be above zero to \
                 resume."
            ),
        )
    } else {
        ("No credits", "Requests are paused: no credits left.".to_owned())
    };
    Some(Banner { tone: "bad", title, text, action: None })
}

/// More than a hundredth of today's cost is our own estimate.
async fn estimated(page: &Page) -> Result<Option<Banner>, StoreError> {
    let since = page.zone.days_before(page.now, 0);
    let filter = UsageFilter {
        since: Some(since),
        source: Some(Source::Estimated),
        ..UsageFilter::default()
    };
    let zone = page.zone.rules.clone();
    let sums = page.state.store.summary(&page.account.id, filter, Group::Model, zone).await?;
    let requests: u64 = sums.iter().map(|sum| sum.requests).sum();
    let cost: Credits = sums.iter().map(|sum| sum.charge).sum();
    if requests == 0 {
        return Ok(None);
    }
    let all = page.spent(since, page.now + 1).await?;
    let is_much = i128::from(cost.nano()) * 100 > i128::from(all.nano());
    let text = match requests {
        1 => "1 request today is priced by estimate.".to_owned(),
        _ => format!("{requests} requests today are priced by estimate."),
    };
    let action = Some(("Show them".into(), format!("{}?source=estimated", page.href("usage"))));
    Ok(is_much.then_some(Banner { tone: "note", title: "Estimated", text, action }))
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_nothing_pauses_requests_as_less_than_nothing_does() {
        let banner = |text: &str| used_up(text.parse().unwrap());
        assert_eq!(banner("0.000000001"), None);
        assert_eq!(banner("0").unwrap().title, "No credits");
        let negative = banner("-0.1").unwrap();
        assert!(negative.text.contains("−0.1 credits"), "{}", negative.text);
        assert_eq!(negative.tone, "bad");
    }
}
