//! Alerts: what is watched, where it is told, and what became of it. Of an account, and of
//! the operator for all accounts.

use axum::Json;
use axum::extract::State as Shared;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ErrorBody;
use super::extract::{Body, Target};
use super::{Error, State};
use crate::alerts::rules::Rules;
use crate::alerts::{AlertsError, Delivery, Kept};
use crate::store::Scope;

/// Alerts as they are set, and the latest ones.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AlertsView {
    /// What is watched, and where it is told.
    pub rules: Rules,
    /// Whether the operator has set up a mail server.
    pub mail: bool,
    /// What the webhook is signed with; only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// The latest alerts, newest first. Those of the operator's rules are with the account
    /// that they are about.
    pub deliveries: Vec<Delivery>,
}

/// Rules to be set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRules {
    /// What is watched from now on; a rule that is absent is off.
    rules: Rules,
    /// Makes another secret for the webhook; the old one ends at once.
    #[serde(default)]
    new_secret: bool,
}

/// What is watched of an account.
///
/// # Errors
///
/// No such account.
#[utoipa::path(
    get, path = "/admin/v1/accounts/{account}/alerts", tag = "alerts",
    params(("account" = String, Path, description = "Whose alerts")),
    responses(
        (status = 200, description = "Its alerts", body = AlertsView),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn show(Shared(state): Shared<State>, target: Target) -> Result<Json<AlertsView>, Error> {
    view(&state, &Scope::Account(target.account.id)).await
}

/// Sets what is watched of an account. All rules at once: one that is absent is off.
///
/// # Errors
///
/// No such account, or a rule that means nothing.
#[utoipa::path(
    put, path = "/admin/v1/accounts/{account}/alerts", tag = "alerts",
    params(("account" = String, Path, description = "Whose alerts")), request_body = NewRules,
    responses(
        (status = 200, description = "As they are now", body = AlertsView),
        (status = 400, description = "Not valid rules", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn set(
    Shared(state): Shared<State>,
    target: Target,
    Body(new): Body<NewRules>,
) -> Result<Json<AlertsView>, Error> {
    put(&state, &Scope::Account(target.account.id), new).await
}

/// Sends a test to every channel of an account's alerts; `deliveries` then tells of it.
///
/// # Errors
///
/// No such account, no channel, or five tests in the last minute.
#[utoipa::path(
    post, path = "/admin/v1/accounts/{account}/alerts/test", tag = "alerts",
    params(("account" = String, Path, description = "Whose alerts")),
    responses(
        (status = 200, description = "As they are now", body = AlertsView),
        (status = 400, description = "No channel, or too many tests", body = ErrorBody),
        (status = 404, description = "No such account", body = ErrorBody),
    )
)]
pub async fn test(Shared(state): Shared<State>, target: Target) -> Result<Json<AlertsView>, Error> {
    try_out(&state, &Scope::Account(target.account.id)).await
}

/// What the operator watches of all accounts.
///
/// # Errors
///
/// When the store cannot be read.
#[utoipa::path(
    get, path = "/admin/v1/alerts", tag = "alerts",
    responses((status = 200, description = "The alerts", body = AlertsView))
)]
pub async fn show_all(Shared(state): Shared<State>) -> Result<Json<AlertsView>, Error> {
    view(&state, &Scope::Installation).await
}

/// Sets what the operator watches of all accounts; each account crosses on its own.
///
/// # Errors
///
/// A rule that means nothing.
#[utoipa::path(
    put, path = "/admin/v1/alerts", tag = "alerts", request_body = NewRules,
    responses(
        (status = 200, description = "As they are now", body = AlertsView),
        (status = 400, description = "Not valid rules", body = ErrorBody),
    )
)]
pub async fn set_all(
    Shared(state): Shared<State>,
    Body(new): Body<NewRules>,
) -> Result<Json<AlertsView>, Error> {
    put(&state, &Scope::Installation, new).await
}

/// Sends a test to every channel of the operator's alerts.
///
/// # Errors
///
/// No channel, or five tests in the last minute.
#[utoipa::path(
    post, path = "/admin/v1/alerts/test", tag = "alerts",
    responses(
        (status = 200, description = "As they are now", body = AlertsView),
        (status = 400, description = "No channel, or too many tests", body = ErrorBody),
    )
)]
pub async fn test_all(Shared(state): Shared<State>) -> Result<Json<AlertsView>, Error> {
    try_out(&state, &Scope::Installation).await
}

async fn view(state: &State, scope: &Scope) -> Result<Json<AlertsView>, Error> {
    Ok(Json(AlertsView::of(state, state.alerts.kept(scope).await?, None)))
}

async fn put(state: &State, scope: &Scope, new: NewRules) -> Result<Json<AlertsView>, Error> {
    let (kept, secret) = state.alerts.set(scope, new.rules, new.new_secret).await?;
    tracing::info!(?scope, "alerts set");
    Ok(Json(AlertsView::of(state, kept, secret)))
}

async fn try_out(state: &State, scope: &Scope) -> Result<Json<AlertsView>, Error> {
    Ok(Json(AlertsView::of(state, state.alerts.test(scope).await?, None)))
}

impl AlertsView {
    fn of(state: &State, kept: Kept, secret: Option<String>) -> Self {
        let deliveries = kept.deliveries.into_iter().rev().collect();
        Self { rules: kept.rules, mail: state.alerts.can_mail(), secret, deliveries }
    }
}

impl From<AlertsError> for Error {
    fn from(error: AlertsError) -> Self {
        match error {
            AlertsError::Invalid { field, problem } => {
                Self::InvalidParameter { param: field, problem }
            }
            AlertsError::Store(error) => error.into(),
        }
    }
}
