//! The billing pages: rendered here, on the control plane's listener.
//!
//! A page is a handler that takes [`Page`] (who looks, at which account, in which time zone)
//! and answers [`Page::show`] with a template that extends `shell.html`. To add one: a line in
//! [`PAGES`] (the navigation) and a route in [`router`]. A form that changes something takes
//! [`Post`], which checks where it comes from. Reading works without script; the one script
//! (`assets/app.js`) adds what is live. Nothing is loaded from anywhere else, and the policy in
//! [`head`] forbids it.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::admin::{self, State};

pub mod accounts;
pub mod assets;
pub mod banner;
pub mod chart;
pub mod costs;
pub mod explain;
pub mod failure;
pub mod heartbeats;
pub mod keys;
pub mod live;
pub mod moment;
pub mod number;
pub mod page;
pub mod params;
pub mod preferences;
pub mod prices;
pub mod report;
pub mod session;
pub mod settings;
pub mod sign_in;
pub mod site;
pub mod snippet;
pub mod spending;
pub mod transactions;
pub mod upstreams;
pub mod usage;
pub mod wallet;

pub use failure::Failure;
pub use page::{Page, Post};
pub use site::Site;

/// A page of the navigation.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The last part of its address.
    pub slug: &'static str,
    /// Its name.
    pub title: &'static str,
    /// The second key of its shortcut, after `g`.
    pub key: char,
    /// Whose it is.
    pub of: Area,
}

/// Where a page stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// At `/billing/ACCOUNT/slug`, for its holder and for the operator.
    Account,
    /// At `/operator/slug`, for the operator alone.
    Operator,
}

/// The navigation, in order.
pub const PAGES: &[Entry] = &[
    account("wallet", "Wallet", 'w'),
    account("costs", "Cost by model", 'm'),
    account("spending", "Spending over time", 's'),
    account("usage", "Usage details", 'u'),
    account("transactions", "Transactions", 't'),
    account("heartbeats", "Heartbeats", 'h'),
    account("keys", "Keys", 'k'),
    account("settings", "Settings", 'e'),
    operator("accounts", "Accounts", 'a'),
    operator("prices", "Prices", 'p'),
    operator("upstreams", "Upstreams", 'x'),
    operator("alerts", "Alerts", 'l'),
];

const fn account(slug: &'static str, title: &'static str, key: char) -> Entry {
    Entry { slug, title, key, of: Area::Account }
}

const fn operator(slug: &'static str, title: &'static str, key: char) -> Entry {
    Entry { slug, title, key, of: Area::Operator }
}

/// All pages; what is none of them is left to the rest of the control plane.
pub fn router(state: State) -> Router {
    let pages = Router::new()
        .route("/", get(sign_in::home))
        .route("/sign-in", get(sign_in::form).post(sign_in::submit))
        .route("/sign-in/{token}", get(sign_in::follow))
        .route("/sign-out", post(sign_in::leave))
        .route("/zone", post(preferences::set_zone))
        .route("/csp", post(violation))
        .route("/assets/{name}", get(assets::serve))
        .route("/billing", get(sign_in::accounts))
        .route("/billing/{account}", get(wallet::home))
        .route("/billing/{account}/wallet", get(wallet::show))
        .route("/billing/{account}/costs", get(costs::show))
        .route("/billing/{account}/spending", get(spending::show))
        .route("/billing/{account}/usage", get(usage::list))
        .route("/billing/{account}/usage/{id}", get(usage::one))
        .route("/billing/{account}/transactions", get(transactions::show))
        .route("/billing/{account}/live", get(live::state))
        .route("/billing/{account}/heartbeats", get(heartbeats::show))
        .route("/billing/{account}/keys", get(keys::show).post(keys::create))
        .route("/billing/{account}/keys/end", post(keys::end))
        .route("/billing/{account}/keys/{key}", get(keys::one::show).post(keys::one::change))
        .route("/billing/{account}/keys/{key}/rotate", post(keys::one::rotate))
        .route("/billing/{account}/settings", get(settings::show))
        .route("/billing/{account}/settings/alerts", post(settings::set_alerts))
        .route("/billing/{account}/settings/alerts/test", post(settings::test_alerts))
        .route("/billing/{account}/settings/display", post(settings::set_display))
        .route("/billing/{account}/export/usage", get(settings::export_usage))
        .route("/billing/{account}/export/ledger", get(settings::export_ledger))
        .route("/billing/{account}/report", get(report::show))
        .route("/operator/accounts", get(accounts::list).post(accounts::create))
        .route("/operator/accounts/{account}", get(accounts::show))
        .route("/operator/accounts/{account}/change", post(accounts::change))
        .route("/operator/accounts/{account}/link", post(accounts::link))
        .route("/operator/prices", get(prices::show))
        .route("/operator/upstreams", get(upstreams::show))
        .route("/operator/alerts", get(settings::show_all))
        .route("/operator/alerts/alerts", post(settings::set_all))
        .route("/operator/alerts/alerts/test", post(settings::test_all))
        .layer(middleware::from_fn_with_state(state.clone(), guard))
        .with_state(state.clone());
    pages.fallback_service(admin::router(state))
}

/// The control plane with its pages, wherever a reverse proxy puts them.
pub fn service(
    state: State,
) -> tower::util::MapRequest<Router, impl FnMut(Request) -> Request + Clone> {
    let base = state.site.base.clone();
    let router = router(state);
    tower::ServiceBuilder::new()
        .map_request(move |request: Request| strip(&base, request))
        .service(router)
}

/// Takes the path under which a reverse proxy serves the pages off the request, if it left it
/// there.
pub fn strip(base: &str, mut request: Request) -> Request {
    let rest = request.uri().path_and_query().and_then(|path| path.as_str().strip_prefix(base));
    let Some(rest) =
        rest.filter(|rest| !base.is_empty() && (rest.is_empty() || rest.starts_with(['/', '?'])))
    else {
        return request;
    };
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    if let Ok(uri) = rest.parse() {
        *request.uri_mut() = uri;
    }
    request
}

/// On to another page, once a form has done its work: a reload does not send it again.
pub fn see(to: &str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response()
}

/// Refuses requests to other hosts, and gives every answer its headers.
async fn guard(Shared(state): Shared<State>, request: Request, next: Next) -> Response {
    let id = format!("req_{}", ulid::Ulid::generate().to_string().to_lowercase());
    let mut response = if admin::host_is_ours(&state.hosts, &request) {
        next.run(request).await
    } else {
        (StatusCode::MISDIRECTED_REQUEST, "This host name is not one of ours: see admin_hosts.\n")
            .into_response()
    };
    if let Some(failure) = response.extensions_mut().remove::<Arc<Failure>>() {
        response = failure.page(&state, &id);
    }
    head(response.headers_mut(), &state.site);
    response.headers_mut().insert("x-request-id", id.parse().expect("the id is ASCII"));
    response
}

/// What every answer says about itself.
fn head(headers: &mut HeaderMap, site: &Site) {
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
         connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; report-uri {}/csp",
        site.base
    );
    let policy = HeaderValue::from_str(&policy).expect("the base path is plain");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert_with(|| HeaderValue::from_static("no-store"));
}

/// A browser refused something by the policy. What it says is hostile text, so only its length
/// is bounded and it is logged as data.
async fn violation(body: axum::body::Bytes) -> StatusCode {
    let said = String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned();
    tracing::warn!(%said, "a page broke its content security policy");
    StatusCode::NO_CONTENT
}

#[cfg(test)]
mod tests;
