//! What an account chose: alerts with their log, the time zone, and what can be taken out.

use askama::Template;
use axum::extract::State as Shared;
use axum::response::Response;
use jiff::civil::Date;
use serde::Deserialize;

use super::Failure;
use super::moment::{Instant, Zone};
use super::number::Decimals;
use super::page::{Operator, Page, Post, Shell};
use super::preferences::Preferences;
use crate::admin::State;
use crate::admin::export::{self, LedgerExportQuery, UsageExportQuery};
use crate::admin::extract::{Params, Target};
use crate::alerts::rules::Rules;
use crate::alerts::{By, Channel, Delivery, DeliveryState, Kept};
use crate::billing::Credits;
use crate::store::{AccountId, Millis, Scope, StoreError};

/// Deliveries that are shown.
const SHOWN: usize = 20;

#[derive(Template)]
#[template(path = "settings.html")]
struct Settings {
    shell: Shell,
    alerts: AlertsForm,
    log: Vec<Told>,
    zone: String,
    shortcuts: bool,
    /// The choices, and which is taken.
    decimals: Vec<(u8, bool)>,
    month: String,
    /// The first day of the month, and the one after today.
    days: (Date, Date),
    zones: Vec<String>,
    about: Vec<(&'static str, String)>,
    here: String,
    export: String,
    report: String,
}

#[derive(Template)]
#[template(path = "operator_alerts.html")]
struct OperatorAlerts {
    shell: Shell,
    alerts: AlertsForm,
    log: Vec<Told>,
    here: String,
}

/// The form of alerts, filled in.
pub struct AlertsForm {
    low_balance: String,
    used_up: bool,
    large_request: String,
    daily_spend: String,
    heartbeat_percent: String,
    webhook: String,
    email: String,
    can_mail: bool,
    has_secret: bool,
    has_channel: bool,
    /// The webhook's secret, if it was made by this very click.
    secret: Option<String>,
}

/// A line of the log.
struct Told {
    at: Instant,
    title: &'static str,
    text: String,
    by: &'static str,
    channel: &'static str,
    state: &'static str,
    tone: &'static str,
    detail: String,
}

/// The page.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn show(page: Page) -> Result<Response, Failure> {
    let kept = page.state.alerts.kept(&scope(&page.account.id)).await?;
    settings(&page, kept, None).await
}

async fn settings(page: &Page, kept: Kept, secret: Option<String>) -> Result<Response, Failure> {
    let is_operator = page.session.who == super::session::Who::Operator;
    let mine = |delivery: &&Delivery| is_operator || delivery.by == By::Account;
    let log = kept.deliveries.iter().rev().filter(mine).take(SHOWN);
    let today = page.zone.date(page.now);
    let template = Settings {
        log: log.map(|one| Told::of(one, &page.account.id.0, page.now, &page.zone)).collect(),
        alerts: AlertsForm::of(&page.state, &kept, secret),
        zone: page.preferences.zone.clone(),
        shortcuts: !page.preferences.no_shortcuts,
        decimals: Decimals::CHOICES
            .map(|places| (places, page.preferences.decimals == Some(places)))
            .collect(),
        days: (today.first_of_month(), today.tomorrow().unwrap_or(today)),
        zones: jiff::tz::db().available().map(|name| name.as_str().to_owned()).collect(),
        about: about(page).await?,
        month: page.zone.date(page.now).strftime("%Y-%m").to_string(),
        here: page.href("settings"),
        export: page.href("export"),
        report: page.href("report"),
        shell: page.shell("settings").await?,
    };
    page.show(&template)
}

/// What runs here, and how it was found last.
async fn about(page: &Page) -> Result<Vec<(&'static str, String)>, Failure> {
    let store = &page.state.store;
    let mut about = vec![("Farebox", env!("CARGO_PKG_VERSION").to_owned())];
    match store.status().await {
        Ok(status) => {
            about.push(("Store", status.kind));
            let kept = match status.trimmed_before {
                Some(at) => format!("from {} on", page.zone.date(at)),
                None => "all".to_owned(),
            };
            about.push(("Ledger and requests kept", kept));
        }
        // A store that does not say.
        Err(StoreError::Conflict(_)) => about.push(("Store", "shared".to_owned())),
        Err(error) => return Err(error.into()),
    }
    let audited = super::proof::audited(page).await?;
    let audited = match audited {
        Some((at, 0)) => format!("{} {}, nothing amiss", page.zone.date(at), page.zone.clock(at)),
        Some((at, faults)) => {
            format!("{} {}, {faults} faults", page.zone.date(at), page.zone.clock(at))
        }
        None => "never: start one on Transactions".to_owned(),
    };
    about.push(("Last audit of the books", audited));
    about.push(("Prices", (page.state.prices)().version.clone()));
    Ok(about)
}

/// What the form of alerts sends. A box that is not ticked is not sent.
#[derive(Debug, Deserialize)]
pub struct AlertsSent {
    #[serde(default)]
    low_balance: String,
    used_up: Option<String>,
    #[serde(default)]
    large_request: String,
    #[serde(default)]
    daily_spend: String,
    #[serde(default)]
    heartbeat_percent: String,
    #[serde(default)]
    webhook: String,
    #[serde(default)]
    email: String,
    new_secret: Option<String>,
}

/// Sets an account's alerts. Shows the webhook's secret if it was made now, this once.
///
/// # Errors
///
/// A field that means nothing.
pub async fn set_alerts(
    page: Page,
    Post { form, .. }: Post<AlertsSent>,
) -> Result<Response, Failure> {
    let new_secret = form.new_secret.is_some();
    let rules = form.rules(Some(page.zone.name.clone()))?;
    let (kept, secret) = page.state.alerts.set(&scope(&page.account.id), rules, new_secret).await?;
    match secret {
        Some(_) => settings(&page, kept, secret).await,
        None => Ok(super::see(&format!("{}#alerts", page.href("settings")))),
    }
}

/// What a button alone sends.
#[derive(Debug, Deserialize)]
pub struct Click {}

/// Sends a test of an account's alerts.
///
/// # Errors
///
/// Without a channel, or after too many tests.
pub async fn test_alerts(page: Page, _: Post<Click>) -> Result<Response, Failure> {
    page.state.alerts.test(&scope(&page.account.id)).await?;
    Ok(super::see(&format!("{}#alerts-log", page.href("settings"))))
}

/// What the form of the display sends.
#[derive(Debug, Deserialize)]
pub struct DisplaySent {
    #[serde(default)]
    zone: String,
    #[serde(default)]
    decimals: String,
    shortcuts: Option<String>,
}

/// Sets how the account's pages are shown.
///
/// # Errors
///
/// When there is no such time zone, or no such number of decimals.
pub async fn set_display(
    page: Page,
    Post { form, .. }: Post<DisplaySent>,
) -> Result<Response, Failure> {
    let zone = form.zone.trim().to_owned();
    if !zone.is_empty() && Zone::named(&zone).is_none() {
        return Err(Failure::Invalid(
            "There is no such time zone: write one such as Europe/Berlin.".into(),
        ));
    }
    let decimals =
        match form.decimals.trim() {
            "" => None,
            text => Some(text.parse().ok().filter(|n| Decimals::CHOICES.contains(n)).ok_or_else(
                || Failure::Invalid("The decimals must be a whole number from 2 to 9.".into()),
            )?),
        };
    let chosen = Preferences { zone, decimals, no_shortcuts: form.shortcuts.is_none() };
    chosen.keep(page.state.store.as_ref(), &page.account.id).await?;
    Ok(super::see(&page.href("settings")))
}

/// The operator's alerts, for all accounts.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn show_all(page: Operator) -> Result<Response, Failure> {
    let kept = page.state.alerts.kept(&Scope::Installation).await?;
    operator(&page, kept, None)
}

fn operator(page: &Operator, kept: Kept, secret: Option<String>) -> Result<Response, Failure> {
    let log = kept.deliveries.iter().rev().take(SHOWN);
    let template = OperatorAlerts {
        log: log.map(|one| Told::of(one, "all accounts", page.now, &page.zone)).collect(),
        alerts: AlertsForm::of(&page.state, &kept, secret),
        here: format!("{}/operator/alerts", page.state.site.base),
        shell: page.shell("alerts"),
    };
    page.show(&template)
}

/// Sets the operator's alerts.
///
/// # Errors
///
/// A field that means nothing.
pub async fn set_all(
    page: Operator,
    Post { form, .. }: Post<AlertsSent>,
) -> Result<Response, Failure> {
    let new_secret = form.new_secret.is_some();
    let rules = form.rules(Some(page.zone.name.clone()))?;
    let (kept, secret) = page.state.alerts.set(&Scope::Installation, rules, new_secret).await?;
    match secret {
        Some(_) => operator(&page, kept, secret),
        None => Ok(super::see(&format!("{}/operator/alerts", page.state.site.base))),
    }
}

/// Sends a test of the operator's alerts.
///
/// # Errors
///
/// Without a channel, or after too many tests.
pub async fn test_all(page: Operator, _: Post<Click>) -> Result<Response, Failure> {
    page.state.alerts.test(&Scope::Installation).await?;
    Ok(super::see(&format!("{}/operator/alerts#alerts-log", page.state.site.base)))
}

/// The ledger as a file, as the command line writes it.
///
/// # Errors
///
/// A filter that means nothing.
pub async fn export_ledger(
    page: Page,
    Params(query): Params<LedgerExportQuery>,
) -> Result<Response, Failure> {
    Ok(export::ledger(Shared(page.state.clone()), target(&page), Params(query)).await?)
}

/// The requests as a file, as the command line writes it.
///
/// # Errors
///
/// A filter that means nothing.
pub async fn export_usage(
    page: Page,
    Params(query): Params<UsageExportQuery>,
) -> Result<Response, Failure> {
    Ok(export::usage(Shared(page.state.clone()), target(&page), Params(query)).await?)
}

fn target(page: &Page) -> Target {
    Target { account: page.account.clone(), key: String::new() }
}

fn scope(account: &AccountId) -> Scope {
    Scope::Account(account.clone())
}

impl AlertsSent {
    /// The rules, their days in `tz`.
    fn rules(self, tz: Option<String>) -> Result<Rules, Failure> {
        let text = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let amount = |name: &str, sent: String| -> Result<Option<Credits>, Failure> {
            text(sent)
                .map(|sent| {
                    sent.parse().map_err(|error| Failure::Invalid(format!("“{name}”: {error}.")))
                })
                .transpose()
        };
        let percent = text(self.heartbeat_percent).map(|sent| {
            sent.parse::<u8>().map_err(|_| {
                Failure::Invalid("“Heartbeats above” must be whole percent, 1 to 99.".into())
            })
        });
        Ok(Rules {
            low_balance: amount("Balance below", self.low_balance)?,
            used_up: self.used_up.is_some(),
            large_request: amount("A request above", self.large_request)?,
            daily_spend: amount("A day above", self.daily_spend)?,
            heartbeat_percent: percent.transpose()?,
            tz,
            webhook: text(self.webhook),
            email: text(self.email),
        })
    }
}

impl AlertsForm {
    fn of(state: &State, kept: &Kept, secret: Option<String>) -> Self {
        let Kept { rules, secret: known, .. } = kept;
        let amount = |amount: Option<Credits>| amount.map(|a| a.to_string()).unwrap_or_default();
        Self {
            low_balance: amount(rules.low_balance),
            used_up: rules.used_up,
            large_request: amount(rules.large_request),
            daily_spend: amount(rules.daily_spend),
            heartbeat_percent: rules.heartbeat_percent.map(|p| p.to_string()).unwrap_or_default(),
            webhook: rules.webhook.clone().unwrap_or_default(),
            email: rules.email.clone().unwrap_or_default(),
            can_mail: state.alerts.can_mail(),
            has_secret: known.is_some(),
            has_channel: rules.has_channel(),
            secret,
        }
    }
}

impl Told {
    fn of(delivery: &Delivery, account: &str, now: Millis, zone: &Zone) -> Self {
        let (state, tone) = match delivery.state {
            DeliveryState::Pending if delivery.tries == 0 => ("On its way", "soft"),
            DeliveryState::Pending => ("Tried again", "warn"),
            DeliveryState::Delivered => ("Delivered", "good"),
            DeliveryState::Failed => ("Given up", "bad"),
        };
        let tries = match delivery.tries {
            0 | 1 => String::new(),
            n => format!("{n} tries"),
        };
        let detail = match (&delivery.problem, tries.is_empty()) {
            (Some(problem), true) => problem.clone(),
            (Some(problem), false) => format!("{tries}: {problem}"),
            (None, _) => tries,
        };
        Self {
            at: Instant::ago(delivery.at, now, zone),
            title: delivery.alert.title(),
            text: delivery.alert.text(account),
            by: match delivery.by {
                By::Account => "",
                By::Operator => "operator's rule",
            },
            channel: match delivery.channel {
                Channel::Webhook => "webhook",
                Channel::Email => "mail",
            },
            state,
            tone,
            detail,
        }
    }
}
