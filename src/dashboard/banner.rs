//! The one thing that needs attention now, the most severe first.
//!
//! The order: an account that has ended; what stops requests (no credits, debits that the store
//! does not take, a ledger that cannot be written); what will stop them (few credits, credits that
//! end unused); what goes wrong beside (an upstream, alerts that do not arrive); what is only to be
//! known (the share of heartbeats, estimates). The first that holds is shown, alone.

use super::number::{Decimals, percent};
use super::page::{Pace, Page};
use super::session::Who;
use super::since::Since;
use crate::admin::heartbeats::HEARTBEAT;
use crate::alerts::{By, Delivery, DeliveryState, Kept};
use crate::billing::Credits;
use crate::proxy::health::Condition;
use crate::store::{
    self, Backlog, Group, LotFilter, LotRow, Millis, Scope, Source, Status, StoreError, UsageFilter,
};

const DAY_MS: Millis = 24 * 3_600_000;
/// Credits that end sooner are spoken of, if they will not be used by then.
const ENDS_SOON_MS: Millis = 14 * DAY_MS;
/// Lots that are looked at for it.
const LOTS: u32 = 20;
/// Heartbeats above this share of a day's spend are spoken of, unless an alert says another.
const HEARTBEAT_PERCENT: u8 = 50;
/// Fewer heartbeats in a day are no habit.
const HEARTBEATS: u64 = 5;

/// Since when the ledger cannot be written, as pages found it.
static UNWRITABLE: Since = Since::never();

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
        let decimals = page.preferences.decimals();
        if page.account.status != Status::Open {
            return Ok(Some(ended(page.account.status)));
        }
        if let Some(used_up) = used_up(balance, decimals) {
            return Ok(Some(Self { action: add_credits(page), ..used_up }));
        }
        if let Some(stopped) = unwritable(page).await {
            return Ok(Some(stopped));
        }
        let kept = page.state.alerts.kept(&Scope::Account(page.account.id.clone())).await;
        let kept = kept.unwrap_or_default();
        if let Some(low) = low(balance, pace, kept.rules.low_balance, decimals) {
            let action = Some(("See what uses it".into(), page.href("costs")));
            return Ok(Some(Self { action, ..low }));
        }
        if let Some(ends) = ending(page, pace).await? {
            return Ok(Some(ends));
        }
        if let Some(failing) = failing_upstream(page).await? {
            return Ok(Some(failing));
        }
        if let Some(lost) = undelivered(&kept, page.session.who == Who::Operator) {
            let action = Some(("Settings".into(), format!("{}#alerts", page.href("settings"))));
            return Ok(Some(Self { action, ..lost }));
        }
        if let Some(heartbeats) = heartbeats(page, kept.rules.heartbeat_percent).await? {
            return Ok(Some(heartbeats));
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

fn used_up(balance: Credits, decimals: Decimals) -> Option<Banner> {
    if balance.is_positive() {
        return None;
    }
    let (title, text) = if balance.is_negative() {
        let shown = decimals.show(balance).text();
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

/// Where the operator adds credits.
fn add_credits(page: &Page) -> Option<(String, String)> {
    let to = format!("{}/operator/accounts/{}#add", page.state.site.base, page.account.id);
    (page.session.who == Who::Operator).then(|| ("Add credits".into(), to))
}

/// Nothing can be recorded, or debits wait to be.
async fn unwritable(page: &Page) -> Option<Banner> {
    let backlog = page.state.store.backlog().unwrap_or_default();
    let ready = page.state.store.ready().await;
    let since = UNWRITABLE.told(ready.is_err(), page.now);
    if let Some(waiting) = waiting(&backlog, since.is_some(), |at| page.zone.clock(at)) {
        return Some(waiting);
    }
    if let Some(since) = since {
        let since = page.zone.clock(since);
        let text = format!(
            "Usage cannot be recorded, so new requests are refused. Noticed at {since}; nothing \
             that was debited is lost."
        );
        return Some(Banner { tone: "bad", title: "Ledger not writable", text, action: None });
    }
    None
}

/// Debits wait for the store, which takes nothing now if it `is_stuck`.
fn waiting(backlog: &Backlog, is_stuck: bool, clock: impl Fn(Millis) -> String) -> Option<Banner> {
    if backlog.pending == 0 {
        return None;
    }
    let (debits, wait) = if backlog.pending == 1 { ("debit", "waits") } else { ("debits", "wait") };
    let since = backlog.oldest.map(|at| format!(" since {}", clock(at))).unwrap_or_default();
    let (them, are) = if backlog.pending == 1 { ("it", "it is") } else { ("them", "they are") };
    let (tone, refused) = match is_stuck {
        true => ("bad", " New requests are refused until then."),
        false => ("warn", ""),
    };
    let text = format!(
        "{} {debits} {wait} for the store{since}, kept on disk: the balance falls by {them} as \
         soon as {are} booked.{refused}",
        backlog.pending
    );
    Some(Banner { tone, title: "Debits pending", text, action: None })
}

/// Little is left, by the pace or by the account's own alert.
fn low(balance: Credits, pace: Pace, below: Option<Credits>, decimals: Decimals) -> Option<Banner> {
    let runway = pace.runway(balance);
    let is_below = below.is_some_and(|below| balance < below);
    if !pace.is_low(balance) && !is_below {
        return None;
    }
    let mut text = match below.filter(|_| is_below) {
        Some(below) => format!("Less than {} credits are left.", decimals.show(below).text()),
        None => String::new(),
    };
    if !runway.is_empty() {
        let space = if text.is_empty() { "" } else { " " };
        text.push_str(&format!("{space}{} at the current pace.", capital(&runway)));
    }
    Some(Banner { tone: "warn", title: "Low", text, action: None })
}

/// Credits end soon that will not be used by then at the pace of now.
async fn ending(page: &Page, pace: Pace) -> Result<Option<Banner>, StoreError> {
    let some = store::Page { cursor: None, limit: LOTS };
    let lots = page.state.store.lots(&page.account.id, LotFilter::Usable, some).await?;
    let Some((ends_at, lost)) = unused(&lots.data, pace, page.now) else { return Ok(None) };
    let text = format!(
        "About {} credits end on {} without being used, at the current pace.",
        page.amount(lost).text(),
        super::moment::day(page.zone.date(ends_at))
    );
    let action = Some(("See them".into(), format!("{}#lots", page.href("wallet"))));
    Ok(Some(Banner { tone: "warn", title: "Credits end soon", text, action }))
}

/// What of the lots that end soon is left when they do, and when the first of those ends.
fn unused(lots: &[LotRow], pace: Pace, now: Millis) -> Option<(Millis, Credits)> {
    let mut first = None;
    // What is used goes to the soonest first, so it is taken off lot by lot.
    let (mut burnt, mut lost) = (0_i128, 0_i128);
    for LotRow { lot, .. } in lots.iter().filter(|row| row.lot.expires_at < now + ENDS_SOON_MS) {
        let can = pace.burns_in(lot.expires_at - now) - burnt;
        let left = i128::from(lot.remaining.nano());
        let used = can.clamp(0, left);
        burnt += used;
        if left > used {
            lost += left - used;
            first = first.or(Some(lot.expires_at));
        }
    }
    let lost = Credits::from_nano(i64::try_from(lost).unwrap_or(i64::MAX));
    // A thousandth of a credit is nobody's worry.
    first.filter(|_| lost.nano() >= 1_000_000).map(|first| (first, lost))
}

/// An upstream fails that answered this account lately.
async fn failing_upstream(page: &Page) -> Result<Option<Banner>, StoreError> {
    let upstreams = (page.state.upstreams)().data;
    let failing: Vec<_> = upstreams
        .into_iter()
        .filter(|upstream| upstream.health.condition == Condition::Failing)
        .collect();
    if failing.is_empty() {
        return Ok(None);
    }
    let used = page.sums(Group::Upstream, page.now - DAY_MS, page.now + 1, None).await?;
    let Some(one) = failing.iter().find(|one| used.iter().any(|sum| sum.group == one.name)) else {
        return Ok(None);
    };
    let since = match &one.health.last_failure {
        Some(last) => format!(" Last at {}.", page.zone.clock(last.at)),
        None => String::new(),
    };
    let text = format!("{} is failing; failed requests are not charged.{since}", one.name);
    let action = match page.session.who {
        Who::Operator => {
            Some(("Details".into(), format!("{}/operator/upstreams", page.state.site.base)))
        }
        Who::Holder(_) => None,
    };
    Ok(Some(Banner { tone: "warn", title: "Upstream down", text, action }))
}

/// The newest alert did not arrive.
fn undelivered(kept: &Kept, is_operator: bool) -> Option<Banner> {
    let mine = |delivery: &&Delivery| is_operator || delivery.by == By::Account;
    let tried = kept.deliveries.iter().rev().filter(mine).find(|delivery| delivery.tries > 0)?;
    let how = match tried.state {
        DeliveryState::Delivered => return None,
        DeliveryState::Pending if tried.tries < 2 => return None,
        DeliveryState::Pending => "it is tried again",
        DeliveryState::Failed => "it was given up",
    };
    let why = tried.problem.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
    let text = format!("The last alert could not be delivered{why}; {how}.");
    Some(Banner { tone: "warn", title: "Alerts do not arrive", text, action: None })
}

/// Heartbeats are much of a day's spend.
async fn heartbeats(page: &Page, above: Option<u8>) -> Result<Option<Banner>, StoreError> {
    let (since, until) = (page.now - DAY_MS, page.now + 1);
    let filter = UsageFilter {
        since: Some(since),
        until: Some(until),
        origin: Some(HEARTBEAT.into()),
        ..UsageFilter::default()
    };
    let zone = page.zone.rules.clone();
    let beats = page.state.store.summary(&page.account.id, filter, Group::Model, zone).await?;
    let requests: u64 = beats.iter().map(|sum| sum.requests).sum();
    if requests < HEARTBEATS {
        return Ok(None);
    }
    let cost: Credits = beats.iter().map(|sum| sum.charge).sum();
    let all = page.spent(since, until).await?;
    let above = i128::from(above.unwrap_or(HEARTBEAT_PERCENT));
    if i128::from(cost.nano()) * 100 <= i128::from(all.nano()) * above {
        return Ok(None);
    }
    let text = format!(
        "{} of the last 24 hours went to {requests} heartbeats, while nothing happened.",
        percent(cost, all)
    );
    let action = Some(("How to lower it".into(), page.href("heartbeats")));
    Ok(Some(Banner { tone: "note", title: "Heartbeats", text, action }))
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
    let action =
        Some(("Show them".into(), format!("{}?range=24h&source=estimated", page.href("usage"))));
    Ok(is_much.then_some(Banner { tone: "note", title: "Estimated", text, action }))
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::ledger::{Class, Lot};

    #[test]
    fn exactly_nothing_pauses_requests_as_less_than_nothing_does() {
        let banner = |text: &str| used_up(text.parse().unwrap(), Decimals::Fitting);
        assert_eq!(banner("0.000000001"), None);
        assert_eq!(banner("0").unwrap().title, "No credits");
        let negative = banner("-0.1").unwrap();
        assert!(negative.text.contains("−0.1 credits"), "{}", negative.text);
        assert_eq!(negative.tone, "bad");
    }

    fn pace(used: &str) -> Pace {
        Pace { used: used.parse().unwrap(), over_ms: 7 * DAY_MS }
    }

    #[test]
    fn low_is_two_days_of_pace_or_less_than_the_alert_of_the_account() {
        let of = |balance: &str, below: Option<&str>| {
            let below = below.map(|text| text.parse().unwrap());
            low(balance.parse().unwrap(), pace("7"), below, Decimals::Fitting)
                .map(|banner| banner.text)
        };
        assert_eq!(of("9", None), None);
        assert_eq!(of("9", Some("9")), None);
        assert_eq!(of("1.5", None).unwrap(), "≈ 36 hours left at the current pace.");
        let both = of("9", Some("10")).unwrap();
        assert_eq!(both, "Less than 10 credits are left. ≈ 9 days left at the current pace.");
    }

    #[test]
    fn credits_that_end_are_spoken_of_only_if_they_will_not_be_used() {
        let lot = |n: u64, left: &str, days: i64| LotRow {
            lot: Lot {
                number: n,
                class: Class::Promo,
                effective_at: 0,
                expires_at: days * DAY_MS,
                granted: left.parse().unwrap(),
                remaining: left.parse().unwrap(),
                used: Credits::ZERO,
                expired: Credits::ZERO,
                to_debt: Credits::ZERO,
                forfeited: Credits::ZERO,
                reversed: Credits::ZERO,
            },
            source: String::new(),
        };
        let lots = [lot(1, "2", 3), lot(2, "4", 5), lot(3, "100", 300)];
        // A credit a day: two by the third day, and three more by the fifth.
        assert_eq!(unused(&lots, pace("7"), 0), Some((5 * DAY_MS, "1".parse().unwrap())));
        assert_eq!(unused(&lots, pace("70"), 0), None);
        assert_eq!(unused(&lots, pace("0"), 0), Some((3 * DAY_MS, "6".parse().unwrap())));
    }

    #[test]
    fn what_waits_is_counted_and_dated() {
        let told = |pending, oldest| {
            let backlog = Backlog { pending, oldest, ..Backlog::default() };
            waiting(&backlog, pending > 2, |at| format!("<{at}>")).map(|banner| banner.text)
        };
        assert_eq!(told(0, None), None);
        assert!(told(1, Some(7)).unwrap().starts_with("1 debit waits for the store since <7>,"));
        let stuck = told(3, None).unwrap();
        assert!(
            stuck.starts_with("3 debits wait for the store, kept on disk: the balance falls by")
        );
        assert!(stuck.ends_with("booked. New requests are refused until then."), "{stuck}");
    }
}
