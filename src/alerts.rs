//! Alerts: tells people by webhook or mail that something has crossed its limit, once a
//! crossing.
//!
//! Nothing here is on a request's way: a settlement only leaves its account's name behind,
//! and a task looks at what is committed. What was told and what is still to be delivered are
//! one document of the account, compared and set by version: whether a process dies, or
//! several look at once, a crossing is told once. A delivery is tried until the receiver has
//! taken it or its tries are used up. Should a process die between the receiver's word and its
//! own note, the receiver sees the same id twice.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use crate::billing::Credits;
use crate::billing::ledger::Kind;
use crate::config::Config;
use crate::store::{
    AccountId, Document, EntryFilter, Group, Millis, Page, Put, Scope, Status, Store, StoreError,
    UsageFilter,
};
use crate::time;

pub mod mail;
pub mod rules;
pub mod webhook;

use mail::Mailer;
use rules::{Alert, Facts, Rules, Told, decide};
use webhook::{Undelivered, Webhooks};

/// The document's name, in every scope.
const DOCUMENT: &str = "alerts";
/// How long what was left behind gathers before it is looked at.
const GATHER: Duration = Duration::from_millis(500);
/// How often every account is looked at, whether or not anything is known to have changed:
/// credits end by themselves, and other processes may have died.
const ROUND: Duration = Duration::from_secs(300);
/// Accounts that a round puts before the task at once.
const ROUND_STEP: u32 = 200;
/// How long a delivery is one process's own. Longer than a try can take.
const LEASE: Duration = Duration::from_secs(25);
/// Tries of one delivery: with a pause of 30 s at first, four times as long each time, they
/// reach over almost three hours.
const TRIES: u32 = 6;
/// Deliveries that run at once.
const AT_ONCE: usize = 16;
/// Deliveries that are remembered for the log.
const REMEMBERED: usize = 50;
/// Tests in a minute: the receiver need not be whoever asks for it.
const TESTS_A_MINUTE: usize = 5;
/// Debits of one page, and pages of one look.
const DEBITS: (u32, usize) = (50, 20);
const DAY_MS: Millis = 24 * 3600 * 1000;

/// What is kept of alerts, of an account or of the installation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// What is watched.
    pub rules: Rules,
    /// When they were set: what was before is not told.
    pub since: Millis,
    /// What webhooks are signed with.
    pub secret: Option<String>,
    /// What the account's own rules have told.
    told: Told,
    /// What the operator's rules have told of this account.
    told_operator: Told,
    /// The newest last.
    pub deliveries: Vec<Delivery>,
}

/// Whose rule it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The account's own.
    Account,
    /// The operator's, for all accounts.
    Operator,
}

/// How it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// A signed POST.
    Webhook,
    /// A mail.
    Email,
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is tried again.
    Pending,
    /// The receiver has taken it.
    Delivered,
    /// Its tries are used up.
    Failed,
}

/// An alert on its way to one receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    /// `alrt_…`, the same at every try.
    pub id: String,
    /// When the limit was seen to be crossed.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Millis,
    /// Whose rule it was.
    pub by: By,
    /// What is told.
    pub alert: Alert,
    /// How.
    pub channel: Channel,
    /// How far it is.
    pub state: DeliveryState,
    /// Tries so far.
    pub tries: u32,
    /// When it is tried next.
    #[serde(with = "crate::time::optional")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_try: Option<Millis>,
    /// Why the last try failed.
    pub problem: Option<String>,
}

/// Why rules were not set or a test not sent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AlertsError {
    /// A rule that means nothing or cannot be kept.
    #[error("`{field}` {problem}")]
    Invalid {
        /// The field of [`Rules`].
        field: &'static str,
        /// What is wrong with it, as the end of a sentence.
        problem: String,
    },
    /// The store does not answer, or the account is not there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The alerts of this process.
pub struct Alerts {
    store: Arc<dyn Store>,
    webhooks: Webhooks,
    mailer: Option<Mailer>,
    retry: Duration,
    left_behind: Mutex<HashSet<Scope>>,
    bell: Notify,
    /// Those whose next try this process waits for.
    waited_for: Mutex<HashMap<Scope, Millis>>,
    slots: Arc<Semaphore>,
}

impl Alerts {
    /// Prepares the receivers; connects to nothing yet.
    pub fn new(config: &Config, store: Arc<dyn Store>) -> Self {
        // The settings were checked when they were read.
        let mailer = Mailer::new(config).unwrap_or_else(|problem| {
            tracing::error!("alerts are not mailed: {problem}");
            None
        });
        Self {
            store,
            webhooks: Webhooks::new(config.alert_private_addresses),
            mailer,
            retry: config.alert_retry,
            left_behind: Mutex::default(),
            bell: Notify::new(),
            waited_for: Mutex::default(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Something of an account has changed. Takes no time.
    pub fn touch(&self, account: &AccountId) {
        self.leave(Scope::Account(account.clone()));
    }

    /// Whether mail can be sent.
    pub const fn can_mail(&self) -> bool {
        self.mailer.is_some()
    }

    /// What is kept of alerts.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn kept(&self, scope: &Scope) -> Result<Kept, StoreError> {
        Ok(self.load(scope).await?.0)
    }

    /// Sets the rules, and answers the webhook's secret if it was made now: with the first
    /// webhook, or when a new one is asked for.
    ///
    /// # Errors
    ///
    /// [`AlertsError::Invalid`] for a rule that means nothing; when the store does not answer.
    pub async fn set(
        &self,
        scope: &Scope,
        rules: Rules,
        new_secret: bool,
    ) -> Result<(Kept, Option<String>), AlertsError> {
        self.check(&rules)?;
        let fresh = format!("whsec_{}", random_hex().map_err(StoreError::Unavailable)?);
        let now = time::now();
        let set = self.update(scope, |kept| {
            let is_new = rules.webhook.is_some() && (kept.secret.is_none() || new_secret);
            if is_new {
                kept.secret = Some(fresh.clone());
            }
            if kept.rules != rules {
                kept.rules = rules.clone();
                kept.since = now;
            }
            (kept.clone(), is_new.then(|| fresh.clone()))
        });
        let set = set.await?;
        self.leave(scope.clone());
        Ok(set)
    }

    /// Sends a test to every channel of the rules.
    ///
    /// # Errors
    ///
    /// Without a channel, or after too many tests; when the store does not answer.
    pub async fn test(&self, scope: &Scope) -> Result<Kept, AlertsError> {
        let now = time::now();
        let by = match scope {
            Scope::Installation => By::Operator,
            Scope::Account(_) => By::Account,
        };
        let sent = self.update(scope, |kept| {
            if !kept.rules.has_channel() {
                let problem = "is not set, and neither is `email`: set one first".to_owned();
                return Err(AlertsError::Invalid { field: "webhook", problem });
            }
            let is_recent =
                |delivery: &&Delivery| delivery.alert == Alert::Test && delivery.at > now - 60_000;
            if kept.deliveries.iter().filter(is_recent).count() >= TESTS_A_MINUTE {
                let problem = "was tested often just now: wait a minute".to_owned();
                return Err(AlertsError::Invalid { field: "test", problem });
            }
            let rules = kept.rules.clone();
            enqueue(&mut kept.deliveries, &rules, by, Alert::Test, now);
            Ok(kept.clone())
        });
        let kept = sent.await??;
        self.leave(scope.clone());
        Ok(kept)
    }

    /// Looks and delivers until the end of the process.
    pub async fn run(self: Arc<Self>, closing: CancellationToken) {
        let rounds = tokio::spawn({
            let alerts = Arc::clone(&self);
            async move { alerts.rounds().await }
        });
        loop {
            tokio::select! {
                () = closing.cancelled() => break,
                () = self.bell.notified() => {}
            }
            tokio::time::sleep(GATHER).await;
            self.look_at_all().await;
        }
        rounds.abort();
    }

    /// Puts every account before the task, again and again, a few at a time.
    async fn rounds(&self) {
        loop {
            let began = Instant::now();
            self.leave(Scope::Installation);
            let mut page = Page { cursor: None, limit: ROUND_STEP };
            loop {
                let Ok(rows) = self.store.accounts(page.clone()).await else { break };
                rows.data.iter().for_each(|account| self.touch(&account.id));
                while !lock(&self.left_behind).is_empty() {
                    tokio::time::sleep(GATHER).await;
                }
                match rows.next {
                    Some(cursor) => page.cursor = Some(cursor),
                    None => break,
                }
            }
            // Looking at everything never takes more than a small part of the time.
            tokio::time::sleep(ROUND.max(began.elapsed() * 20)).await;
        }
    }

    fn leave(&self, scope: Scope) {
        lock(&self.left_behind).insert(scope);
        self.bell.notify_one();
    }

    async fn look_at_all(self: &Arc<Self>) {
        let scopes = std::mem::take(&mut *lock(&self.left_behind));
        let operator = match self.kept(&Scope::Installation).await {
            Ok(operator) => operator,
            Err(error) => {
                tracing::warn!("alerts wait for the store: {error}");
                self.leave_again(scopes).await;
                return;
            }
        };
        let mut failed = HashSet::new();
        for scope in scopes {
            match self.look(&scope, &operator).await {
                // The account is gone, or never was.
                Ok(()) | Err(StoreError::NotFound(_)) => {}
                Err(error) => {
                    tracing::warn!("alerts of {scope:?} wait: {error}");
                    failed.insert(scope);
                }
            }
        }
        if !failed.is_empty() {
            self.leave_again(failed).await;
        }
    }

    /// What could not be looked at is looked at later.
    async fn leave_again(&self, scopes: HashSet<Scope>) {
        tokio::time::sleep(self.retry.min(Duration::from_secs(5))).await;
        lock(&self.left_behind).extend(scopes);
        self.bell.notify_one();
    }

    /// Finds what has crossed its limit, and delivers what is due.
    async fn look(self: &Arc<Self>, scope: &Scope, operator: &Kept) -> Result<(), StoreError> {
        let (mut kept, mut version) = self.load(scope).await?;
        if let Scope::Account(account) = scope {
            // Facts are read after the version that the answer replaces, so a process that was
            // slower than another one begins again.
            while let Some(next) = self.judge(account, &kept, operator).await? {
                match self.save(scope, &next, version).await {
                    Ok(()) => {
                        kept = next;
                        break;
                    }
                    Err(StoreError::Conflict(_)) => (kept, version) = self.load(scope).await?,
                    Err(error) => return Err(error),
                }
            }
        }
        self.deliver(scope, &kept, operator).await
    }

    /// What is to be kept from now on; none where nothing changed that must be remembered.
    async fn judge(
        &self,
        account: &AccountId,
        kept: &Kept,
        operator: &Kept,
    ) -> Result<Option<Kept>, StoreError> {
        if !kept.rules.is_on() && !operator.rules.is_on() {
            return Ok(None);
        }
        let row = self.store.account(account).await?;
        if row.status != Status::Open {
            return Ok(None);
        }
        let now = time::now();
        let mut next = kept.clone();
        for (by, set) in [(By::Account, kept), (By::Operator, operator)] {
            if !set.rules.is_on() {
                continue;
            }
            let told = match by {
                By::Account => &mut next.told,
                By::Operator => &mut next.told_operator,
            };
            let facts = self.facts(account, row.balance, set, told.debit, now).await?;
            let (after, alerts) = decide(&set.rules, told, &facts);
            *told = after;
            for alert in alerts {
                tracing::info!(account = %account, alert = alert.title(), "an alert is due");
                enqueue(&mut next.deliveries, &set.rules, by, alert, now);
            }
        }
        // The place of the newest debit is written now and then only: from an older one on, it
        // is looked for again.
        let mut same = next.clone();
        same.told.debit = recent(kept.told.debit, next.told.debit);
        same.told_operator.debit = recent(kept.told_operator.debit, next.told_operator.debit);
        Ok((same != *kept).then_some(next))
    }

    /// Reads what the rules ask for.
    async fn facts(
        &self,
        account: &AccountId,
        balance: Credits,
        set: &Kept,
        seen: Option<u64>,
        now: Millis,
    ) -> Result<Facts, StoreError> {
        let rules = &set.rules;
        let mut facts = Facts { balance, ..Facts::default() };
        if rules.daily_spend.is_some() {
            let zone = rules.tz.as_deref().and_then(|tz| TimeZone::get(tz).ok());
            let day = time::in_zone(now, &zone.unwrap_or(TimeZone::UTC));
            let begins = day.start_of_day().map_or(now, |start| start.timestamp().as_millisecond());
            let spent = self.spent(account, begins, now, None).await?;
            facts.day = Some((day.date().to_string(), spent));
        }
        if rules.heartbeat_percent.is_some() {
            let beats = self.spent(account, now - DAY_MS, now, Some("heartbeat")).await?;
            let all = self.spent(account, now - DAY_MS, now, None).await?;
            facts.heartbeats = Some((beats, all));
        }
        if rules.large_request.is_some() {
            facts.debits = self.debits(account, set.since, seen.unwrap_or(0)).await?;
        }
        Ok(facts)
    }

    async fn spent(
        &self,
        account: &AccountId,
        since: Millis,
        now: Millis,
        origin: Option<&str>,
    ) -> Result<Credits, StoreError> {
        let filter = UsageFilter {
            since: Some(since),
            until: Some(now + 1),
            origin: origin.map(Into::into),
            ..UsageFilter::default()
        };
        let rows = self.store.summary(account, filter, Group::Model, TimeZone::UTC).await?;
        Ok(rows.iter().fold(Credits::ZERO, |sum, row| sum + row.charge))
    }

    /// The debits after one that was seen, newest first.
    async fn debits(
        &self,
        account: &AccountId,
        since: Millis,
        seen: u64,
    ) -> Result<Vec<(u64, String, Credits)>, StoreError> {
        let filter =
            EntryFilter { kind: Some(Kind::DebitAi), since: Some(since), ..EntryFilter::default() };
        let (limit, pages) = DEBITS;
        let mut page = Page { cursor: None, limit };
        let mut debits = Vec::new();
        for _ in 0..pages {
            let rows = self.store.entries(account, filter.clone(), page.clone()).await?;
            for entry in rows.data {
                if entry.seq <= seen {
                    return Ok(debits);
                }
                debits.push((entry.seq, entry.reference, -entry.amount));
            }
            match rows.next {
                Some(cursor) => page.cursor = Some(cursor),
                None => return Ok(debits),
            }
        }
        tracing::warn!(account = %account, "too many debits at once: the oldest were not looked at");
        Ok(debits)
    }

    /// Claims what is due and sends it; sees to it that what is due later is looked at then.
    async fn deliver(
        self: &Arc<Self>,
        scope: &Scope,
        kept: &Kept,
        operator: &Kept,
    ) -> Result<(), StoreError> {
        let now = time::now();
        if kept.deliveries.iter().any(|delivery| delivery.is_due(now)) {
            let claim = |kept: &mut Kept| {
                let due = kept.deliveries.iter_mut().filter(|delivery| delivery.is_due(now));
                let claimed = due.map(|delivery| {
                    delivery.tries += 1;
                    delivery.next_try = Some(time::after(now, LEASE));
                    delivery.clone()
                });
                claimed.collect::<Vec<_>>()
            };
            for delivery in self.update(scope, claim).await? {
                let set = match (delivery.by, scope) {
                    (By::Operator, _) => operator,
                    (By::Account, _) => kept,
                };
                let try_it = Arc::clone(self).attempt(scope.clone(), delivery, set.clone());
                tokio::spawn(try_it);
            }
        }
        let later = kept.deliveries.iter().filter_map(|delivery| delivery.next_try);
        if let Some(at) = later.min() {
            self.look_again(scope, at, now);
        }
        Ok(())
    }

    /// Puts a scope before the task once a delivery of it is due.
    fn look_again(self: &Arc<Self>, scope: &Scope, at: Millis, now: Millis) {
        match lock(&self.waited_for).entry(scope.clone()) {
            Entry::Occupied(waited) if *waited.get() <= at => return,
            Entry::Occupied(mut waited) => _ = waited.insert(at),
            Entry::Vacant(free) => _ = free.insert(at),
        }
        let (alerts, scope) = (Arc::clone(self), scope.clone());
        let wait = Duration::from_millis(at.saturating_sub(now).max(0).unsigned_abs()).max(GATHER);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            {
                let mut waited_for = lock(&alerts.waited_for);
                if waited_for.get(&scope) == Some(&at) {
                    waited_for.remove(&scope);
                }
            }
            alerts.leave(scope);
        });
    }

    /// One try of a delivery, and the note of how it went.
    async fn attempt(self: Arc<Self>, scope: Scope, delivery: Delivery, set: Kept) {
        let sent = {
            let _slot = self.slots.acquire().await;
            self.send(&scope, &delivery, &set).await
        };
        let now = time::now();
        let pause =
            self.retry.saturating_mul(4_u32.saturating_pow(delivery.tries.saturating_sub(1)));
        let note = |kept: &mut Kept| {
            let Some(known) = kept.deliveries.iter_mut().find(|known| known.id == delivery.id)
            else {
                return;
            };
            known.problem = sent.as_ref().err().map(ToString::to_string);
            (known.state, known.next_try) = match &sent {
                Ok(()) => (DeliveryState::Delivered, None),
                Err(Undelivered::Refused(_)) => (DeliveryState::Failed, None),
                Err(_) if known.tries >= TRIES => (DeliveryState::Failed, None),
                Err(_) => (DeliveryState::Pending, Some(time::after(now, pause))),
            };
        };
        match &sent {
            Ok(()) => tracing::info!(alert = delivery.id, "an alert was delivered"),
            Err(why) => {
                tracing::warn!(alert = delivery.id, tries = delivery.tries, "not delivered: {why}");
            }
        }
        // Without this note it would be sent again, so a store that is away is waited for as
        // long as nobody else takes the delivery up.
        let patience = Instant::now() + LEASE / 2;
        while let Err(error) = self.update(&scope, note).await {
            if matches!(error, StoreError::NotFound(_)) || Instant::now() > patience {
                tracing::error!(alert = delivery.id, "what became of it is not noted: {error}");
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.leave(scope);
    }

    async fn send(
        &self,
        scope: &Scope,
        delivery: &Delivery,
        set: &Kept,
    ) -> Result<(), Undelivered> {
        let account = match scope {
            Scope::Account(account) => account.0.as_ref(),
            Scope::Installation => "all accounts",
        };
        let text = delivery.alert.text(account);
        match delivery.channel {
            Channel::Webhook => {
                let url = set.rules.webhook.as_deref();
                let (Some(url), Some(secret)) = (url, set.secret.as_deref()) else {
                    return Err(Undelivered::Refused("the webhook is no longer set"));
                };
                let body = payload(scope, delivery, text);
                self.webhooks.post(url, secret, time::now() / 1000, body).await
            }
            Channel::Email => {
                let Some(to) = set.rules.email.as_deref() else {
                    return Err(Undelivered::Refused("the mail address is no longer set"));
                };
                let Some(mailer) = &self.mailer else {
                    return Err(Undelivered::Refused("no mail server is set up"));
                };
                let subject = format!("Farebox: {} ({account})", delivery.alert.title());
                let at = time::rfc3339(delivery.at);
                let text = format!("{text}\n\n{at}\n{}\n", delivery.id);
                mailer.send(to, &delivery.id, &subject, text).await
            }
        }
    }

    fn check(&self, rules: &Rules) -> Result<(), AlertsError> {
        let invalid =
            |field, problem: &str| Err(AlertsError::Invalid { field, problem: problem.to_owned() });
        for (field, amount) in [
            ("low_balance", rules.low_balance),
            ("large_request", rules.large_request),
            ("daily_spend", rules.daily_spend),
        ] {
            if amount.is_some_and(|amount| !amount.is_positive()) {
                return invalid(field, "must be above zero");
            }
        }
        if rules.heartbeat_percent.is_some_and(|percent| !(1..=99).contains(&percent)) {
            return invalid("heartbeat_percent", "must be 1 to 99");
        }
        if rules.tz.as_deref().is_some_and(|tz| TimeZone::get(tz).is_err()) {
            return invalid("tz", "must be a time zone such as Europe/Berlin");
        }
        if let Some(Err(problem)) = rules.webhook.as_deref().map(|url| self.webhooks.check(url)) {
            return invalid("webhook", problem);
        }
        match rules.email.as_deref() {
            Some(_) if !self.can_mail() => {
                invalid("email", "cannot be used: the operator has set up no mail server")
            }
            Some(email) if !mail::is_address(email) => invalid("email", "must be one mail address"),
            _ => Ok(()),
        }
    }

    async fn load(&self, scope: &Scope) -> Result<(Kept, Option<u64>), StoreError> {
        let Some(Document { body, version }) = self.store.document(scope, DOCUMENT).await? else {
            return Ok((Kept::default(), None));
        };
        let kept = serde_json::from_str(&body).map_err(|error| {
            StoreError::Unavailable(format!("what is kept of alerts cannot be read: {error}"))
        })?;
        Ok((kept, Some(version)))
    }

    async fn save(
        &self,
        scope: &Scope,
        kept: &Kept,
        replaces: Option<u64>,
    ) -> Result<(), StoreError> {
        let body = serde_json::to_string(kept)
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let put = Put { name: DOCUMENT.into(), body: Some(body), replaces, expires_at: None };
        self.store.put_document(scope, put).await.map(drop)
    }

    /// Changes what is kept, whoever else changes it at the same time.
    async fn update<T>(
        &self,
        scope: &Scope,
        change: impl Fn(&mut Kept) -> T,
    ) -> Result<T, StoreError> {
        loop {
            let (before, version) = self.load(scope).await?;
            let mut kept = before.clone();
            let answer = change(&mut kept);
            if kept == before {
                return Ok(answer);
            }
            match self.save(scope, &kept, version).await {
                Ok(()) => return Ok(answer),
                // Somebody else came first, and so has got on.
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Delivery {
    fn is_due(&self, now: Millis) -> bool {
        self.state == DeliveryState::Pending && self.next_try.is_none_or(|at| at <= now)
    }
}

/// Adds an alert for each channel, and forgets the oldest that are done.
fn enqueue(deliveries: &mut Vec<Delivery>, rules: &Rules, by: By, alert: Alert, now: Millis) {
    let channels = [
        rules.webhook.as_ref().map(|_| Channel::Webhook),
        rules.email.as_ref().map(|_| Channel::Email),
    ];
    for channel in channels.into_iter().flatten() {
        deliveries.push(Delivery {
            id: format!("alrt_{}", ulid::Ulid::generate().to_string().to_lowercase()),
            at: now,
            by,
            alert: alert.clone(),
            channel,
            state: DeliveryState::Pending,
            tries: 0,
            next_try: Some(now),
            problem: None,
        });
    }
    while deliveries.len() > REMEMBERED {
        // One that waits is only given up where all of them wait.
        let done = deliveries.iter().position(|known| known.state != DeliveryState::Pending);
        let gone = deliveries.remove(done.unwrap_or(0));
        if done.is_none() {
            tracing::error!(alert = gone.id, "given up: too many alerts wait for their receiver");
        }
    }
}

/// What is posted. Its fields are documented in the README.
fn payload(scope: &Scope, delivery: &Delivery, message: String) -> String {
    let mut body = serde_json::json!(delivery.alert);
    body["id"] = delivery.id.clone().into();
    body["at"] = time::rfc3339(delivery.at).into();
    body["rule_of"] = serde_json::json!(delivery.by);
    body["message"] = message.into();
    if let Scope::Account(account) = scope {
        body["account"] = account.0.as_ref().into();
    }
    body.to_string()
}

/// The old place, where the new one is not far.
fn recent(old: Option<u64>, new: Option<u64>) -> Option<u64> {
    match (old, new) {
        (Some(old), Some(new)) if new.saturating_sub(old) < u64::from(DEBITS.0) => Some(old),
        _ => new,
    }
}

fn random_hex() -> Result<String, String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| format!("no randomness: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A set is whole whatever panicked while it was locked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
