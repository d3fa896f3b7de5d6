//! The billing pages: rendered here, on the control plane's listener.
//!
//! A page is a handler that takes [`Page`] (who looks, at which account, in which time zone)
//! and answers [`Page::show`] with a template that extends `shell.html`. To add one: a line in
//! [`PAGES`] (the navigation) and one in [`ROUTES`]. A form that changes something takes
//! [`Post`], which checks where it comes from. Reading works without script; the one script
//! (`assets/app.js`) adds what is live. Nothing is loaded from anywhere else, and the policy in
//! [`head`] forbids it.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};

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
pub mod proof;
pub mod report;
pub mod session;
pub mod settings;
pub mod sign_in;
pub mod since;
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

/// Makes the list of routes and the router, from the same lines.
macro_rules! routes {
    ($($method:ident $path:literal => $handler:path,)*) => {
        /// Every route of the pages: its verb and its path, `{…}` standing for one segment.
        pub const ROUTES: &[(Method, &str)] = &[$((Method::$method, $path),)*];

        fn routes() -> Router<State> {
            Router::new()$(.route($path, on(MethodFilter::$method, $handler)))*
        }
    };
}

routes! {
    GET "/" => sign_in::home,
    GET "/sign-in" => sign_in::form,
    POST "/sign-in" => sign_in::submit,
    GET "/sign-in/{token}" => sign_in::follow,
    POST "/sign-out" => sign_in::leave,
    POST "/zone" => preferences::set_zone,
    POST "/csp" => violation,
    GET "/assets/{name}" => assets::serve,
    GET "/billing" => sign_in::accounts,
    GET "/billing/{account}" => wallet::home,
    GET "/billing/{account}/wallet" => wallet::show,
    GET "/billing/{account}/costs" => costs::show,
    GET "/billing/{account}/spending" => spending::show,
    GET "/billing/{account}/usage" => usage::list,
    GET "/billing/{account}/usage/{id}" => usage::one,
    GET "/billing/{account}/transactions" => transactions::show,
    POST "/billing/{account}/transactions/verify" => proof::verify,
    GET "/billing/{account}/live" => live::state,
    GET "/billing/{account}/heartbeats" => heartbeats::show,
    GET "/billing/{account}/keys" => keys::show,
    POST "/billing/{account}/keys" => keys::create,
    POST "/billing/{account}/keys/end" => keys::end,
    GET "/billing/{account}/keys/{key}" => keys::one::show,
    POST "/billing/{account}/keys/{key}" => keys::one::change,
    POST "/billing/{account}/keys/{key}/rotate" => keys::one::rotate,
    POST "/billing/{account}/keys/{key}/test" => keys::one::try_out,
    GET "/billing/{account}/settings" => settings::show,
    POST "/billing/{account}/settings/alerts" => settings::set_alerts,
    POST "/billing/{account}/settings/alerts/test" => settings::test_alerts,
    POST "/billing/{account}/settings/display" => settings::set_display,
    GET "/billing/{account}/export/usage" => settings::export_usage,
    GET "/billing/{account}/export/ledger" => settings::export_ledger,
    GET "/billing/{account}/report" => report::show,
    GET "/operator/accounts" => accounts::list,
    POST "/operator/accounts" => accounts::create,
    GET "/operator/accounts/{account}" => accounts::show,
    POST "/operator/accounts/{account}/change" => accounts::change,
    POST "/operator/accounts/{account}/link" => accounts::link,
    GET "/operator/prices" => prices::show,
    GET "/operator/upstreams" => upstreams::show,
    GET "/operator/alerts" => settings::show_all,
    POST "/operator/alerts/alerts" => settings::set_all,
    POST "/operator/alerts/alerts/test" => settings::test_all,
}

/// All pages; what is none of them is left to the rest of the control plane.
pub fn router(state: State) -> Router {
    let pages = routes()
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
