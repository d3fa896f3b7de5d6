//! Coming in and going out.

use askama::Template;
use axum::extract::{Path, Query, State as Shared};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{AppendHeaders, Html, IntoResponse, Response};
use serde::Deserialize;

use super::number::Exact;
use super::page::{Operator, Post, Shell, Visitor};
use super::session::{self, Session, Who};
use super::{Failure, ROUTES, Site, assets};
use crate::admin::State;
use crate::key::{Class, KeyHash};
use crate::store::{Account, Page};

/// Accounts of one page of the operator's list.
const ACCOUNTS: u32 = 100;

#[derive(Template)]
#[template(path = "sign_in.html")]
struct Form {
    base: String,
    css: String,
    js: String,
    icon: String,
    next: String,
    token: String,
    problem: &'static str,
    /// Of the session that is there already, which this one will replace.
    csrf: String,
}

#[derive(Template)]
#[template(path = "accounts.html")]
struct Accounts {
    shell: Shell,
    rows: Vec<(Account, Exact)>,
    more: Option<String>,
}

/// Where to go after signing in.
#[derive(Debug, Default, Deserialize)]
pub struct Next {
    next: Option<String>,
}

/// What the form sends: the admin key, or a sign-in code.
#[derive(Debug, Deserialize)]
pub struct Credentials {
    key: String,
    next: Option<String>,
}

/// The start: where whoever is signed in belongs.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn home(Shared(state): Shared<State>, Visitor(visitor): Visitor) -> Response {
    let to = match visitor.map(|session| session.who) {
        Some(who) => landing(&state.site, &who),
        None => format!("{}/sign-in", state.site.base),
    };
    (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response()
}

fn landing(site: &Site, who: &Who) -> String {
    match who {
        Who::Operator => format!("{}/billing", site.base),
        Who::Holder(account) => format!("{}/billing/{account}/wallet", site.base),
    }
}

/// The form.
///
/// # Errors
///
/// When the template fails, or the store cannot be read.
pub async fn form(
    Shared(state): Shared<State>,
    Visitor(visitor): Visitor,
    Query(Next { next }): Query<Next>,
) -> Result<Response, Failure> {
    show(&state, visitor, StatusCode::OK, next.unwrap_or_default(), String::new(), "")
}

/// A link that an operator handed out: asks before it is used up, since programs that look
/// into mail follow links too.
///
/// # Errors
///
/// When the template fails, or the store cannot be read.
pub async fn follow(
    Shared(state): Shared<State>,
    Visitor(visitor): Visitor,
    Path(token): Path<String>,
) -> Result<Response, Failure> {
    show(&state, visitor, StatusCode::OK, String::new(), token, "")
}

fn show(
    state: &State,
    visitor: Option<Session>,
    status: StatusCode,
    next: String,
    token: String,
    problem: &'static str,
) -> Result<Response, Failure> {
    let form = Form {
        base: state.site.base.clone(),
        css: assets::path(state, "app.css"),
        js: assets::path(state, "app.js"),
        icon: assets::path(state, "icon.svg"),
        next,
        token,
        problem,
        csrf: visitor.map(|session| session.csrf).unwrap_or_default(),
    };
    Ok((status, Html(form.render()?)).into_response())
}

/// Signs in.
///
/// # Errors
///
/// When the form came from elsewhere, or the store cannot be read or written.
pub async fn submit(
    Shared(state): Shared<State>,
    headers: HeaderMap,
    Post { form, session }: Post<Credentials>,
) -> Result<Response, Failure> {
    // Whoever was given a link may paste it whole.
    let key = form.key.trim();
    let key = key.split_once("/sign-in/").map_or(key, |(_, token)| token);
    let who = if KeyHash::of(key).matches(&state.admin_key) {
        Some(Who::Operator)
    } else {
        session::use_link(state.store.as_ref(), key).await?.map(Who::Holder)
    };
    let Some(who) = who else {
        tracing::warn!("a sign-in to the billing pages was refused");
        let problem = if key.starts_with(Class::Client.prefix()) {
            "This is a client key: it signs requests, it does not open these pages."
        } else if crate::key::looks_mistyped(key) {
            "The key was mistyped or cut: its last characters do not fit the rest."
        } else if key.starts_with(Class::Link.prefix()) {
            "This link was used or has expired. Ask for a new one."
        } else {
            "This is neither the admin key nor a sign-in code."
        };
        let next = form.next.unwrap_or_default();
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        return show(&state, session, status, next, String::new(), problem);
    };
    // Whoever was signed in here before is no more.
    Session::end(&state, &headers).await?;
    let asked = form.next.filter(|next| !next.is_empty()).or_else(|| session::next(&headers));
    let to = match asked.filter(|asked| may_open(&who, asked)) {
        Some(asked) => safe_next(&state.site, Some(&asked)),
        None => landing(&state.site, &who),
    };
    tracing::info!(who = ?who, "signed in to the billing pages");
    let token = Session::begin(&state, who).await?;
    let cookies =
        [session::set_cookie(&state.site, Some(&token)), session::set_next(&state.site, None)];
    let cookies = AppendHeaders(cookies.map(|cookie| (header::SET_COOKIE, cookie)));
    Ok((StatusCode::SEE_OTHER, cookies, [(header::LOCATION, to)]).into_response())
}

/// Whether a path is one of our pages: what a person may be brought back to.
pub fn is_page(path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let is_shown = |pattern: &str| {
        ["/billing", "/operator"].iter().any(|area| pattern.starts_with(area))
            && !pattern.contains("/export/")
            && !pattern.ends_with("/live")
    };
    let fits = |pattern: &str| {
        let (mut named, mut given) = (pattern.split('/'), path.split('/'));
        loop {
            match (named.next(), given.next()) {
                (None, None) => return true,
                (Some(name), Some(part)) if name == part => {}
                (Some(name), Some(part)) if name.starts_with('{') && !part.is_empty() => {}
                _ => return false,
            }
        }
    };
    ROUTES.iter().any(|(verb, pattern)| *verb == Method::GET && is_shown(pattern) && fits(pattern))
}

/// Whether whoever came in may be brought to a path: it is a page, and a holder's is one of
/// their own account.
fn may_open(who: &Who, path: &str) -> bool {
    let is_theirs = match who {
        Who::Operator => true,
        Who::Holder(account) => {
            path.strip_prefix("/billing/").and_then(|rest| rest.split(['/', '?']).next())
                == Some(&account.0)
        }
    };
    is_theirs && is_page(path)
}

/// What the button of every page sends.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

/// Signs out.
///
/// # Errors
///
/// When the form came from elsewhere, or the store cannot be written.
pub async fn leave(
    Shared(state): Shared<State>,
    headers: HeaderMap,
    _: Post<Nothing>,
) -> Result<Response, Failure> {
    Session::end(&state, &headers).await?;
    let cookie = session::set_cookie(&state.site, None);
    let to = format!("{}/sign-in", state.site.base);
    Ok((StatusCode::SEE_OTHER, [(header::SET_COOKIE, cookie), (header::LOCATION, to)])
        .into_response())
}

/// A path of ours that a form or an address asks to come back to; the start for any other.
pub fn safe_next(site: &Site, next: Option<&str>) -> String {
    let next = next.unwrap_or_default();
    // `//host` and `/\host` lead to other sites.
    let is_ours = next.starts_with('/')
        && !next[1..].starts_with(['/', '\\'])
        && next.bytes().all(|b| b.is_ascii_graphic());
    format!("{}{}", site.base, if is_ours { next } else { "/" })
}

/// Which accounts there are.
#[derive(Debug, Default, Deserialize)]
pub struct From {
    after: Option<String>,
}

/// The accounts, for the operator; whoever has but one is brought to it.
///
/// # Errors
///
/// When nobody is signed in, or the store cannot be read.
pub async fn accounts(
    Shared(state): Shared<State>,
    Visitor(visitor): Visitor,
    operator: Result<Operator, Failure>,
    Query(From { after }): Query<From>,
) -> Result<Response, Failure> {
    if let Some(Session { who: who @ Who::Holder(_), .. }) = &visitor {
        let to = landing(&state.site, who);
        return Ok((StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response());
    }
    let operator = operator?;
    let page = Page { cursor: after, limit: ACCOUNTS };
    let found = state.store.accounts(page).await?;
    let balances = Exact::column(found.data.iter().map(|account| account.balance));
    let rows = found.data.into_iter().zip(balances);
    let mut shell = operator.shell("");
    shell.title = "Accounts".into();
    operator.show(&Accounts { shell, rows: rows.collect(), more: found.next })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::AccountId;

    #[test]
    fn a_holder_is_brought_back_to_pages_of_their_own_account_alone() {
        let holder = Who::Holder(AccountId("a".into()));
        for page in [
            "/billing/a",
            "/billing/a/usage?range=7d&model=x",
            "/billing/a/usage/req_1?at=5",
            "/billing/a/keys/key_1",
            "/billing/a/report?month=2026-09",
        ] {
            assert!(may_open(&holder, page) && may_open(&Who::Operator, page), "{page}");
        }
        for elsewhere in [
            "/billing/b/wallet",
            "/billing",
            "/operator/accounts",
            "/billing/a/live",
            "/billing/a/export/usage?since=2026-01-01",
            "/billing/a/keys/key_1/rotate",
            "/billing/a/../b/wallet",
            "/billing//a/wallet",
            "//evil.example/billing/a/wallet",
            "https://evil.example/billing/a/wallet",
            "/sign-out",
            "/admin/v1/accounts",
            "",
        ] {
            assert!(!may_open(&holder, elsewhere), "{elsewhere}");
        }
        assert!(may_open(&Who::Operator, "/operator/prices"));
        assert!(!may_open(&Who::Operator, "/admin/v1/accounts"));
    }

    #[test]
    fn after_signing_in_nobody_is_sent_elsewhere() {
        let site = Site::new("https://a.example/x", "");
        assert_eq!(
            safe_next(&site, Some("/billing/a/usage?range=7")),
            "/x/billing/a/usage?range=7"
        );
        for bad in [
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "",
            "javascript:1",
            "/a\r\nb",
        ] {
            assert_eq!(safe_next(&site, Some(bad)), "/x/", "{bad}");
        }
    }
}
