//! The control plane: JSON under `/admin/v1` on a listener of its own, for the operator.
//!
//! One list, [`ROUTES`], makes the router and the OpenAPI description. Every request passes
//! `guard`: its `Host` must be one of ours, which stops other sites' pages from reaching a
//! loopback listener through DNS, and what is below `/admin` needs the admin key. There are
//! no CORS headers and no cookies. Failures become replies in [`error`].

use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, on};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;

use crate::alerts::Alerts;
use crate::billing::price::PriceTable;
use crate::dashboard::Site;
use crate::key::{Class, KeyHash};
use crate::proxy::refused::Refusals;
use crate::store::Store;

pub mod accounts;
pub mod alerts;
pub mod audit;
pub mod credits;
pub mod error;
pub mod export;
pub mod extract;
pub mod health;
pub mod heartbeats;
pub mod keys;
pub mod ledger;
mod limits;
pub mod links;
pub mod lots;
pub mod openapi;
pub mod prices;
pub mod refusals;
pub mod store;
pub mod trial;
pub mod upstreams;
pub mod usage;

pub use error::Error;
use openapi::AdminKey;

/// What the control plane works on.
#[derive(Clone)]
pub struct State {
    /// Where balances live.
    pub store: Arc<dyn Store>,
    /// The price table of now.
    pub prices: Arc<dyn Fn() -> Arc<PriceTable> + Send + Sync>,
    /// How the upstreams are doing now.
    pub upstreams: Arc<dyn Fn() -> upstreams::Upstreams + Send + Sync>,
    /// Who is told when something has crossed its limit.
    pub alerts: Arc<Alerts>,
    /// What was refused before it was sent.
    pub refusals: Arc<Refusals>,
    /// Where people reach the billing pages.
    pub site: Arc<Site>,
    /// The hash of the one admin key.
    pub admin_key: KeyHash,
    /// All metrics in the text format of OpenMetrics.
    pub metrics_text: Arc<dyn Fn() -> String + Send + Sync>,
    /// Names that a `Host` header may give besides the loopback ones, without ports.
    pub hosts: Arc<[String]>,
    /// The folder of what was trimmed.
    pub archive: Arc<Path>,
    /// The process is ending: it is no longer ready.
    pub closing: CancellationToken,
}

/// A route of the control plane.
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path, `{…}` standing for one segment.
    pub path: &'static str,
    handler: fn(MethodFilter) -> MethodRouter<State>,
}

/// Makes the list of routes, and from the same lines the description of the API.
macro_rules! routes {
    ($($method:ident $path:literal => $module:ident::$handler:ident,)*) => {
        /// Every route of the control plane.
        pub const ROUTES: &[Route] = &[$(Route {
            method: Method::$method,
            path: $path,
            handler: |method| on(method, $module::$handler),
        },)*];

        /// What [`openapi`] serves.
        #[derive(OpenApi)]
        #[openapi(
            info(title = "Farebox control plane"),
            paths($($module::$handler),*),
            modifiers(&AdminKey)
        )]
        struct Description;
    };
}

routes! {
    POST "/admin/v1/accounts" => accounts::create,
    GET "/admin/v1/accounts" => accounts::list,
    GET "/admin/v1/accounts/{account}" => accounts::show,
    PATCH "/admin/v1/accounts/{account}" => accounts::change,
    POST "/admin/v1/accounts/{account}/close" => accounts::close,
    POST "/admin/v1/accounts/{account}/keys" => keys::create,
    GET "/admin/v1/accounts/{account}/keys" => keys::list,
    PATCH "/admin/v1/accounts/{account}/keys/{key}" => keys::change,
    DELETE "/admin/v1/accounts/{account}/keys/{key}" => keys::revoke,
    POST "/admin/v1/accounts/{account}/keys/{key}/rotate" => keys::rotate,
    POST "/admin/v1/accounts/{account}/keys/{key}/test" => trial::run,
    POST "/admin/v1/accounts/{account}/credits" => credits::grant,
    POST "/admin/v1/accounts/{account}/refunds" => credits::refund,
    POST "/admin/v1/accounts/{account}/reversals" => credits::reverse,
    POST "/admin/v1/accounts/{account}/sign-in-links" => links::create,
    GET "/admin/v1/accounts/{account}/lots" => lots::list,
    GET "/admin/v1/accounts/{account}/ledger" => ledger::list,
    POST "/admin/v1/accounts/{account}/ledger/trim" => store::trim,
    GET "/admin/v1/accounts/{account}/ledger/export" => export::ledger,
    GET "/admin/v1/accounts/{account}/ledger/export/meta" => export::ledger_meta,
    GET "/admin/v1/accounts/{account}/usage" => usage::list,
    GET "/admin/v1/accounts/{account}/usage/export" => export::usage,
    GET "/admin/v1/accounts/{account}/usage/export/meta" => export::usage_meta,
    GET "/admin/v1/accounts/{account}/usage/summary" => usage::summary,
    GET "/admin/v1/accounts/{account}/refusals" => refusals::show,
    GET "/admin/v1/ledger/verify" => audit::verify,
    GET "/admin/v1/accounts/{account}/usage/heartbeats" => heartbeats::show,
    GET "/admin/v1/accounts/{account}/alerts" => alerts::show,
    PUT "/admin/v1/accounts/{account}/alerts" => alerts::set,
    POST "/admin/v1/accounts/{account}/alerts/test" => alerts::test,
    GET "/admin/v1/alerts" => alerts::show_all,
    PUT "/admin/v1/alerts" => alerts::set_all,
    POST "/admin/v1/alerts/test" => alerts::test_all,
    GET "/admin/v1/prices" => prices::list,
    GET "/admin/v1/upstreams" => upstreams::list,
    GET "/admin/v1/store" => store::status,
    GET "/admin/v1/store/backup" => store::backup,
    GET "/admin/v1/openapi.json" => openapi::describe,
    GET "/healthz" => health::live,
    GET "/readyz" => health::ready,
    GET "/metrics" => health::metrics,
}

/// The control plane as a service; the caller listens.
pub fn router(state: State) -> axum::Router {
    let mut router = axum::Router::new();
    for route in ROUTES {
        let method = MethodFilter::try_from(route.method.clone())
            .expect("the methods of the list are standard ones");
        router = router.route(route.path, (route.handler)(method));
    }
    router
        .fallback(|| async { Error::NoRoute })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .layer(middleware::from_fn_with_state(state.clone(), guard))
        .with_state(state)
}

/// Refuses what may not enter, and gives every answer its id and headers.
async fn guard(Shared(state): Shared<State>, request: Request, next: Next) -> Response {
    let id = format!("req_{}", ulid::Ulid::generate().to_string().to_lowercase());
    let mut response = match may_enter(&state, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => axum::response::IntoResponse::into_response(error),
    };
    error::complete(&mut response, &id);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("x-request-id", id.parse().expect("the id is ASCII"));
    response
}

fn may_enter(state: &State, request: &Request) -> Result<(), Error> {
    let path = request.uri().path();
    // Probes of orchestrators call by the address of the moment; they learn nothing.
    let is_probe = matches!(path, "/healthz" | "/readyz");
    if !is_probe && !host_is_ours(&state.hosts, request) {
        return Err(Error::HostNotAllowed);
    }
    // All that is not listed here needs the key, so a route added later is not open by chance.
    if is_probe || path == "/metrics" {
        return Ok(());
    }
    authenticate(&state.admin_key, request.headers())
}

/// Whether the request names a loopback host or one of the operator's, whatever the port.
pub(crate) fn host_is_ours(hosts: &[String], request: &Request) -> bool {
    let mut named = request.headers().get_all(header::HOST).iter();
    let host = match (request.uri().authority(), named.next(), named.next()) {
        (Some(authority), None, None) => authority.as_str(),
        (None, Some(host), None) => host.to_str().unwrap_or_default(),
        (Some(authority), Some(host), None) if host == authority.as_str() => authority.as_str(),
        _ => return false,
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    ["localhost", "127.0.0.1", "[::1]"]
        .into_iter()
        .chain(hosts.iter().map(String::as_str))
        .any(|ours| ours.eq_ignore_ascii_case(name))
}

fn authenticate(admin_key: &KeyHash, headers: &HeaderMap) -> Result<(), Error> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return Err(Error::Unauthorized("send `Authorization: Bearer` with the admin key"));
    };
    let key = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim())
        .ok_or(Error::Unauthorized("send `Authorization: Bearer` with the admin key"))?;
    if KeyHash::of(key).matches(admin_key) {
        return Ok(());
    }
    Err(Error::Unauthorized(if key.starts_with(Class::Client.prefix()) {
        "this is a client key; the control plane takes the admin key"
    } else if crate::key::looks_mistyped(key) {
        "the admin key was mistyped or cut: its last six characters do not fit the rest"
    } else {
        "this is not the admin key"
    }))
}

#[cfg(test)]
mod tests;
