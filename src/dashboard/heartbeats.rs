//! What heartbeats cost and how to lower it: a card on the wallet, and a page of its own.

use askama::Template;
use axum::response::Response;

use super::Failure;
use super::number::{Amount, Exact, grouped, percent, short};
use super::page::{Page, Shell};
use super::snippet::openclaw_heartbeat;
use crate::admin::heartbeats::{self, Heartbeats};
use crate::store::Millis;

const DAY_MS: Millis = 24 * 3_600_000;

/// The card on the wallet: the last 24 hours.
pub struct Card {
    /// How many.
    pub runs: u64,
    /// What they cost.
    pub cost: Amount,
    /// Of everything that was spent, such as `71.3 %`.
    pub share: String,
    /// The cheapest other model, and what they would have cost there.
    pub lighter: Option<(String, Amount)>,
    /// And alone, with light context.
    pub alone: Option<Amount>,
    /// The page about them.
    pub more: String,
    /// Their rows.
    pub rows: String,
    /// Where an alert on them is set.
    pub alert: String,
}

impl Card {
    /// That of an account; none where there were no heartbeats.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn of(page: &Page) -> Result<Option<Self>, Failure> {
        let told = read(page, 1).await?;
        let Some(beats) = told.by_origin.first().filter(|beats| beats.requests > 0) else {
            return Ok(None);
        };
        let lighter = told.otherwise.as_ref().and_then(|other| other.lighter.first());
        // In a session of their own, where that saves anything beyond the lighter model.
        let (with, alone) = match (lighter, &told.otherwise) {
            (Some(lighter), _) => (lighter.charge, lighter.isolated),
            (None, Some(other)) => (beats.charge, other.isolated),
            (None, None) => (beats.charge, beats.charge),
        };
        let alone = (alone < with).then(|| page.amount(alone));
        Ok(Some(Self {
            runs: beats.requests,
            cost: page.amount(beats.charge),
            share: percent(beats.charge, told.total.charge),
            lighter: lighter.map(|one| (one.model.clone(), page.amount(one.charge))),
            alone,
            more: page.href("heartbeats"),
            rows: format!("{}?origin=heartbeat", page.href("usage")),
            alert: format!("{}#alerts", page.href("settings")),
        }))
    }
}

#[derive(Template)]
#[template(path = "heartbeats.html")]
struct Shown {
    shell: Shell,
    beats: Option<Beats>,
    block: String,
    rows: String,
    alert: String,
    keys: String,
}

struct Beats {
    cost: Amount,
    share: String,
    requests: String,
    each: String,
    every: String,
    origins: Vec<(String, String, String, Exact)>,
    ways: Vec<(String, Exact, String)>,
    size: String,
    is_measured: bool,
    /// They read no more than a session of their own would.
    is_small: bool,
}

/// The page: the last 7 days.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn show(page: Page) -> Result<Response, Failure> {
    let told = read(&page, 7).await?;
    let lighter = told.otherwise.as_ref().and_then(|other| other.lighter.first());
    let model = match lighter {
        Some(lighter) => lighter.model.clone(),
        None => super::keys::callable(&page.state).into_iter().next().unwrap_or_default(),
    };
    let base_url = &page.state.site.inference;
    let template = Shown {
        block: openclaw_heartbeat(base_url, "${FAREBOX_HB_KEY}", &model),
        beats: Beats::of(&page, &told),
        rows: format!("{}?origin=heartbeat", page.href("usage")),
        alert: format!("{}#alerts", page.href("settings")),
        keys: page.href("keys"),
        shell: page.shell("heartbeats").await?,
    };
    page.show(&template)
}

async fn read(page: &Page, days: i64) -> Result<Heartbeats, Failure> {
    let (since, until) = (page.now + 1 - days * DAY_MS, page.now + 1);
    Ok(heartbeats::heartbeats(&page.state, &page.account.id, since, until).await?)
}

impl Beats {
    fn of(page: &Page, told: &Heartbeats) -> Option<Self> {
        let beats = told.by_origin.first().filter(|beats| beats.requests > 0)?;
        let other = told.otherwise.as_ref()?;
        let input = beats.input_tokens + beats.cached_input_tokens + beats.cache_creation_tokens;
        let costs = Exact::column(told.by_origin.iter().map(|row| row.charge));
        let name = |group: &str| match group {
            "heartbeat" => "Heartbeats",
            "cron" => "Scheduled jobs",
            _ => "Everything else",
        };
        let origins = told.by_origin.iter().zip(costs).map(|(row, cost)| {
            let share = percent(row.charge, told.total.charge);
            (name(&row.group).to_owned(), grouped(row.requests), share, cost)
        });
        let mut ways = vec![
            ("As they are".to_owned(), beats.charge),
            ("Half as often".to_owned(), other.half_as_often),
        ];
        let is_small = other.isolated >= beats.charge;
        if !is_small {
            let way = "In a session of their own, with light context";
            ways.push((way.to_owned(), other.isolated));
        }
        for lighter in &other.lighter {
            ways.push((format!("On {}", lighter.model), lighter.charge));
        }
        if let Some(best) = other.lighter.first().filter(|best| best.isolated < best.charge) {
            ways.push((format!("On {}, in a session of their own", best.model), best.isolated));
        }
        let exact = Exact::column(ways.iter().map(|(_, charge)| *charge));
        let ways = ways.into_iter().zip(exact).map(|((way, charge), cost)| {
            let saved = if charge < beats.charge {
                format!("{} less", percent(beats.charge - charge, beats.charge))
            } else {
                String::new()
            };
            (way, cost, saved)
        });
        Some(Self {
            cost: page.amount(beats.charge),
            share: percent(beats.charge, told.total.charge),
            requests: grouped(beats.requests),
            each: short(input / beats.requests),
            every: told.every_minutes.map(heartbeats::every).unwrap_or_default(),
            origins: origins.collect(),
            ways: ways.collect(),
            size: short(other.isolated_input_tokens),
            is_measured: other.isolated_is_measured,
            is_small,
        })
    }
}
