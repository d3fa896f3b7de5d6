//! What every page begins with: who looks, at which account, in which time zone; and the shell
//! around it.

use askama::Template;
use axum::extract::{FromRequest, FromRequestParts, Path, RawForm, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::banner::Banner;
use super::moment::Zone;
use super::number::Amount;
use super::preferences::Preferences;
use super::session::{self, Session, Who};
use super::{Area, Failure, PAGES, assets, failure};
use crate::admin::{self, State};
use crate::billing::Credits;
use crate::store::{Account, AccountId, Group, Millis, StoreError, UsageFilter};
use crate::time;

const DAY_MS: Millis = 24 * 3_600_000;
/// What the pace of now is taken from.
const PACE_MS: Millis = 7 * DAY_MS;
/// Below this there is no pace to speak of.
const PACE_LEAST_MS: Millis = 30 * 60_000;
/// Two days of credits or less are low.
const LOW_MS: i128 = 2 * DAY_MS as i128;

/// A page about one account that the viewer may see.
pub struct Page {
    /// Everything.
    pub state: State,
    /// Who looks.
    pub session: Session,
    /// The account, as it was when the request came.
    pub account: Account,
    /// How its pages are shown.
    pub preferences: Preferences,
    /// The time zone of days and times.
    pub zone: Zone,
    /// When the request came.
    pub now: Millis,
    /// The path and query, without the base path.
    pub path: String,
    theme: &'static str,
}

/// A page for the operator alone, about no account.
pub struct Operator {
    /// Everything.
    pub state: State,
    /// Who looks.
    pub session: Session,
    /// The time zone of days and times.
    pub zone: Zone,
    /// When the request came.
    pub now: Millis,
    /// The path and query, without the base path.
    pub path: String,
    theme: &'static str,
}

/// What stands around a page; templates call it `shell`.
pub struct Shell {
    /// The path before every page.
    pub base: String,
    /// The title of the page.
    pub title: String,
    /// The script.
    pub js: String,
    /// The styles.
    pub css: String,
    /// The icon.
    pub icon: String,
    /// What forms send with them.
    pub csrf: String,
    /// Whether the operator looks.
    pub is_operator: bool,
    /// Pages of the account.
    pub pages: Vec<Link>,
    /// Pages of the operator.
    pub operator_pages: Vec<Link>,
    /// The account, and what is left of its credits.
    pub account: Option<Left>,
    /// The one thing that needs attention.
    pub banner: Option<Banner>,
    /// The time zone's name.
    pub zone: String,
    /// Whether the browser may say which zone it is in.
    pub zone_is_fixed: bool,
    /// The path to come back to.
    pub path: String,
    /// When this was read, RFC 3339.
    pub at: String,
    /// `system`, `light` or `dark`.
    pub theme: &'static str,
    /// Whether keys are shortcuts.
    pub shortcuts: bool,
}

impl Shell {
    /// The area of the zone, such as `Europe/`, which a narrow window leaves out.
    pub fn zone_area(&self) -> &str {
        &self.zone[..self.zone.len() - self.zone_place().len()]
    }

    /// Its place, such as `Berlin`.
    pub fn zone_place(&self) -> &str {
        self.zone.rsplit('/').next().unwrap_or(&self.zone)
    }
}

/// A line of the navigation.
pub struct Link {
    /// Where it leads.
    pub href: String,
    /// Its name.
    pub title: &'static str,
    /// The last part of its address.
    pub slug: &'static str,
    /// The second key of its shortcut.
    pub key: char,
    /// Whether it is the page that is shown.
    pub is_current: bool,
}

/// An account's credits at a glance.
pub struct Left {
    /// Its id.
    pub id: AccountId,
    /// Its name.
    pub name: String,
    /// Its balance.
    pub balance: Amount,
    /// How long that lasts, such as `≈ 9 days left`; empty if nothing is used.
    pub runway: String,
    /// Whether it is low, used up, or neither.
    pub tone: &'static str,
    /// Changes when anything about the account does.
    pub version: String,
}

/// How fast credits are used, and how long they last at this pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Used in `over_ms`.
    pub used: Credits,
    /// What it was measured over.
    pub over_ms: Millis,
}

impl Pace {
    /// Milliseconds until a balance is used up; none if nothing is used or left.
    pub fn lasts_ms(self, balance: Credits) -> Option<i128> {
        let can = balance.is_positive() && self.used.is_positive() && self.over_ms >= PACE_LEAST_MS;
        can.then(|| {
            i128::from(balance.nano()) * i128::from(self.over_ms) / i128::from(self.used.nano())
        })
    }

    /// What is used in a time at this pace, in nano-credits.
    pub fn burns_in(self, ms: Millis) -> i128 {
        if self.over_ms < PACE_LEAST_MS {
            return 0;
        }
        i128::from(self.used.nano()) * i128::from(ms.max(0)) / i128::from(self.over_ms)
    }

    /// Whether a balance is gone in two days.
    pub fn is_low(self, balance: Credits) -> bool {
        self.lasts_ms(balance).is_some_and(|ms| ms < LOW_MS)
    }

    /// What it was measured over, such as `of the last 7 days`; of a younger account, its life.
    pub fn span(self) -> String {
        let hours = self.over_ms / (DAY_MS / 24);
        match hours {
            _ if self.over_ms >= PACE_MS => "of the last 7 days".into(),
            0 | 1 => "of its first hour".into(),
            2..48 => format!("of its first {hours} hours"),
            _ => format!("of its first {} days", hours / 24),
        }
    }

    /// Such as `≈ 9 days left`.
    pub fn runway(self, balance: Credits) -> String {
        let Some(ms) = self.lasts_ms(balance) else { return String::new() };
        let hour = i128::from(DAY_MS / 24);
        match ms / hour {
            0 => "less than an hour left".into(),
            1 => "≈ 1 hour left".into(),
            hours @ 2..48 => format!("≈ {hours} hours left"),
            hours @ 48..8784 => format!("≈ {} days left", hours / 24),
            _ => "more than a year left".into(),
        }
    }
}

#[derive(Deserialize)]
struct Segments {
    account: Option<String>,
}

impl FromRequestParts<State> for Page {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Failure> {
        let path = path_of(parts);
        let session = signed_in(parts, state, &path).await?;
        let Path(Segments { account }) =
            <Path<Segments> as FromRequestParts<State>>::from_request_parts(parts, state)
                .await
                .map_err(|_| Failure::NotFound("There is no such account.".into()))?;
        let id = account.filter(|id| admin::accounts::is_id(id));
        let id = AccountId(id.unwrap_or_default().into());
        // The same words for an account that is another's and for none.
        let nobody = || Failure::NotFound("There is no such account, or it is not yours.".into());
        if matches!(&session.who, Who::Holder(own) if *own != id) {
            return Err(nobody());
        }
        let account = state.store.account(&id).await.map_err(|error| match error {
            StoreError::NotFound(_) => nobody(),
            other => other.into(),
        })?;
        let preferences = Preferences::of(state.store.as_ref(), &id).await?;
        let zone = preferences.zone(&parts.headers);
        let theme = theme(&parts.headers);
        let now = time::now();
        failure::UNREADABLE.told(false, now);
        Ok(Self { state: state.clone(), session, account, preferences, zone, now, path, theme })
    }
}

impl FromRequestParts<State> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Failure> {
        let path = path_of(parts);
        let session = signed_in(parts, state, &path).await?;
        if session.who != Who::Operator {
            return Err(Failure::NotFound("There is no such page, or it is not yours.".into()));
        }
        let zone = Preferences::default().zone(&parts.headers);
        let theme = theme(&parts.headers);
        Ok(Self { state: state.clone(), session, zone, now: time::now(), path, theme })
    }
}

/// Who is signed in, if anybody is.
pub struct Visitor(pub Option<Session>);

impl FromRequestParts<State> for Visitor {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Failure> {
        Ok(Self(Session::of(state, &parts.headers).await?))
    }
}

async fn signed_in(parts: &Parts, state: &State, path: &str) -> Result<Session, Failure> {
    if let Some(session) = Session::of(state, &parts.headers).await? {
        return Ok(session);
    }
    let next = path.to_owned();
    // A strict cookie does not come along with a link from elsewhere; it does from ourselves.
    let site = parts.headers.get("sec-fetch-site").and_then(|site| site.to_str().ok());
    Err(match site {
        Some("cross-site" | "same-site") => Failure::CrossSite { next },
        _ => Failure::SignedOut { next },
    })
}

fn path_of(parts: &Parts) -> String {
    parts.uri.path_and_query().map_or_else(|| "/".into(), |path| path.as_str().to_owned())
}

fn theme(headers: &HeaderMap) -> &'static str {
    match session::cookie(headers, "farebox_theme") {
        Some("light") => "light",
        Some("dark") => "dark",
        _ => "system",
    }
}

impl Page {
    /// How fast the account's credits are used now.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn pace(&self) -> Result<Pace, StoreError> {
        let until = self.now + 1;
        let since = (until - PACE_MS).max(self.account.created_at);
        let used = self.spent(since, until).await?;
        Ok(Pace { used, over_ms: until - since })
    }

    /// What the requests of a time cost.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn spent(&self, since: Millis, until: Millis) -> Result<Credits, StoreError> {
        let filter =
            UsageFilter { since: Some(since), until: Some(until), ..UsageFilter::default() };
        let zone = self.zone.rules.clone();
        let sums = self.state.store.summary(&self.account.id, filter, Group::Model, zone).await?;
        Ok(sums.iter().map(|sum| sum.charge).sum())
    }

    /// An amount with as many decimals as the account chose.
    pub fn amount(&self, amount: Credits) -> Amount {
        self.preferences.decimals().show(amount)
    }

    /// The address of a page of this account.
    pub fn href(&self, slug: &str) -> String {
        format!("{}/billing/{}/{slug}", self.state.site.base, self.account.id)
    }

    /// What stands around the page `slug`.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn shell(&self, slug: &str) -> Result<Shell, Failure> {
        let pace = self.pace().await?;
        let balance = self.account.balance;
        let title = PAGES.iter().find(|entry| entry.slug == slug).map_or(slug, |entry| entry.title);
        let mut shell =
            shell(&self.state, &self.session, &self.zone, title, self.theme, &self.path);
        shell.pages = links(
            &format!("{}/billing/{}", self.state.site.base, self.account.id),
            Area::Account,
            slug,
        );
        shell.account = Some(Left {
            id: self.account.id.clone(),
            name: self.account.name.clone(),
            balance: self.amount(balance),
            runway: pace.runway(balance),
            tone: if !balance.is_positive() {
                "bad"
            } else if pace.is_low(balance) {
                "warn"
            } else {
                "good"
            },
            version: super::live::version(self.state.store.as_ref(), &self.account).await?,
        });
        shell.banner = Banner::of(self, pace).await?;
        shell.zone_is_fixed = !self.preferences.zone.is_empty();
        shell.shortcuts = !self.preferences.no_shortcuts;
        Ok(shell)
    }

    /// Renders a page.
    ///
    /// # Errors
    ///
    /// When the template fails.
    pub fn show<T: Template>(&self, template: &T) -> Result<Response, Failure> {
        Ok(Html(template.render()?).into_response())
    }
}

impl Operator {
    /// What stands around the page `slug`.
    pub fn shell(&self, slug: &str) -> Shell {
        let title =
            PAGES.iter().find(|entry| entry.slug == slug).map_or("Accounts", |entry| entry.title);
        let mut shell =
            shell(&self.state, &self.session, &self.zone, title, self.theme, &self.path);
        for link in &mut shell.operator_pages {
            link.is_current = link.slug == slug;
        }
        shell
    }

    /// Renders a page.
    ///
    /// # Errors
    ///
    /// When the template fails.
    pub fn show<T: Template>(&self, template: &T) -> Result<Response, Failure> {
        Ok(Html(template.render()?).into_response())
    }
}

fn shell(
    state: &State,
    session: &Session,
    zone: &Zone,
    title: &str,
    theme: &'static str,
    path: &str,
) -> Shell {
    let base = state.site.base.clone();
    let is_operator = session.who == Who::Operator;
    let operator_pages = match is_operator {
        true => links(&format!("{base}/operator"), Area::Operator, ""),
        false => Vec::new(),
    };
    Shell {
        title: title.to_owned(),
        js: assets::path(state, "app.js"),
        css: assets::path(state, "app.css"),
        icon: assets::path(state, "icon.svg"),
        csrf: session.csrf.clone(),
        is_operator,
        pages: Vec::new(),
        operator_pages,
        account: None,
        banner: None,
        zone: zone.name.clone(),
        zone_is_fixed: false,
        path: path.to_owned(),
        at: time::rfc3339(time::now()),
        theme,
        shortcuts: true,
        base,
    }
}

fn links(base: &str, of: Area, slug: &str) -> Vec<Link> {
    let entries = PAGES.iter().filter(|entry| entry.of == of);
    entries
        .map(|entry| Link {
            href: format!("{base}/{}", entry.slug),
            title: entry.title,
            slug: entry.slug,
            key: entry.key,
            is_current: entry.slug == slug,
        })
        .collect()
}

/// A form of one of our own pages. It must come from our origin, and, if somebody is signed in,
/// with the token of their session in the field `csrf`.
pub struct Post<T> {
    /// Who sent it, if they are signed in.
    pub session: Option<Session>,
    /// What they sent.
    pub form: T,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    csrf: String,
}

impl<T: DeserializeOwned> FromRequest<State> for Post<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &State) -> Result<Self, Failure> {
        if !is_from_here(request.headers()) {
            return Err(Failure::Forged);
        }
        let session = Session::of(state, request.headers()).await?;
        let RawForm(bytes) = RawForm::from_request(request, state)
            .await
            .map_err(|_| Failure::Invalid("The form could not be read.".into()))?;
        if let Some(session) = &session {
            let token: Token = serde_urlencoded::from_bytes(&bytes)
                .map_err(|_| Failure::Invalid("The form could not be read.".into()))?;
            let same: bool =
                subtle::ConstantTimeEq::ct_eq(token.csrf.as_bytes(), session.csrf.as_bytes())
                    .into();
            if !same {
                return Err(Failure::Forged);
            }
        }
        let form = serde_urlencoded::from_bytes(&bytes)
            .map_err(|error| Failure::Invalid(format!("The form could not be read: {error}.")))?;
        Ok(Self { session, form })
    }
}

/// Whether a browser says that a request comes from a page of ours. Every browser says one of
/// the two.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return site == "same-origin";
    }
    let (Some(origin), Some(host)) = (text(header::ORIGIN.as_str()), text(header::HOST.as_str()))
    else {
        return false;
    };
    origin.split_once("://").is_some_and(|(_, named)| named == host)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: Millis = DAY_MS / 24;

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_left_lasts_as_long_as_the_pace_says() {
        let pace = Pace { used: credits("7"), over_ms: 7 * DAY_MS };
        assert_eq!(pace.runway(credits("9.5")), "≈ 9 days left");
        assert_eq!(pace.runway(credits("1.5")), "≈ 36 hours left");
        assert_eq!(pace.runway(credits("0.01")), "less than an hour left");
        assert_eq!(pace.runway(credits("0")), "");
        assert!(pace.is_low(credits("1.9")) && !pace.is_low(credits("2")));
        let idle = Pace { used: Credits::ZERO, over_ms: DAY_MS };
        assert_eq!(idle.runway(credits("5")), "");
        let spans = [HOUR_MS, 26 * HOUR_MS, 3 * DAY_MS, PACE_MS];
        let told = spans.map(|over_ms| Pace { used: Credits::ZERO, over_ms }.span());
        assert_eq!(
            told,
            [
                "of its first hour",
                "of its first 26 hours",
                "of its first 3 days",
                "of the last 7 days"
            ]
        );
    }

    #[test]
    fn a_form_of_another_site_is_known_by_what_browsers_say() {
        let from = |pairs: &[(&str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap());
            }
            is_from_here(&headers)
        };
        assert!(from(&[("sec-fetch-site", "same-origin")]));
        assert!(from(&[("origin", "http://127.0.0.1:8081"), ("host", "127.0.0.1:8081")]));
        for site in ["cross-site", "same-site", "none"] {
            assert!(!from(&[("sec-fetch-site", site), ("origin", "http://a"), ("host", "a")]));
        }
        assert!(!from(&[("origin", "http://evil.example"), ("host", "127.0.0.1:8081")]));
        assert!(!from(&[("origin", "null"), ("host", "127.0.0.1:8081")]));
        assert!(!from(&[("host", "127.0.0.1:8081")]));
    }
}
