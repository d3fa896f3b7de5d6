//! The control plane over a real socket. What is tested here, in front of a store that is
//! away, must hold before any store is asked; [`stored`] has the rest.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::key;
use crate::store::AccountId;
use crate::store::embedded::{Embedded, Options};

mod stored;

/// An embedded store that is away: closed, and its disk is gone.
async fn away() -> Arc<dyn Store> {
    let disk = tempfile::tempdir().unwrap();
    let store = Embedded::open(&disk.path().join("farebox.db"), Options::default()).unwrap();
    store.close().await.unwrap();
    store
}

/// A control plane that listens, and its admin key.
struct Control {
    address: SocketAddr,
    key: String,
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap().to_owned()
    }
}

impl Control {
    async fn start() -> Self {
        Self::before(away().await).await
    }

    async fn before(store: Arc<dyn Store>) -> Self {
        let key = key::generate(Class::Admin).unwrap().expose().to_owned();
        let state = State {
            alerts: Arc::new(Alerts::new(&crate::config::Config::default(), Arc::clone(&store))),
            store,
            site: Arc::new(Site::new("http://127.0.0.1", "")),
            prices: Arc::new(|| {
                Arc::new(PriceTable { version: "v1".into(), ..Default::default() })
            }),
            refusals: Arc::default(),
            upstreams: Arc::new(|| upstreams::Upstreams { since: 0, data: Vec::new() }),
            admin_key: KeyHash::of(&key),
            metrics_text: Arc::new(|| "# EOF\n".to_owned()),
            hosts: Arc::new(["farebox.example".to_owned()]),
            archive: std::env::temp_dir().into(),
            closing: Default::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router(state)).await });
        Self { address, key }
    }

    /// Sends exactly this head, whose last header is ours, and this body.
    async fn raw(&self, head: &str, body: &str) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let request = format!("{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// Sends a request with the admin key.
    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let key = &self.key;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n{headers}"
        );
        self.raw(&head, body).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "", "").await
    }

    async fn post(&self, path: &str, body: &str) -> Reply {
        self.ask("POST", path, "Content-Type: application/json\r\n", body).await
    }
}

/// A path of the list with its segments filled in.
fn path_of(route: &Route) -> String {
    route.path.replace("{account}", "default").replace("{key}", "key_1")
}

#[tokio::test]
async fn the_description_lists_exactly_the_routes_that_are_served() {
    let description = Control::start().await.get("/admin/v1/openapi.json").await.json();
    let mut described = BTreeSet::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            described.insert((method.to_uppercase(), path.clone()));
        }
    }
    let served: BTreeSet<_> =
        ROUTES.iter().map(|r| (r.method.to_string(), r.path.to_owned())).collect();
    assert_eq!(described, served);
}

#[tokio::test]
async fn the_description_names_each_path_parameter_once_and_the_key_it_needs() {
    let description = Control::start().await.get("/admin/v1/openapi.json").await.json();
    for route in ROUTES {
        let method = route.method.as_str().to_lowercase();
        let operation = &description["paths"][route.path][&method];
        let mut named: Vec<_> = operation["parameters"].as_array().into_iter().flatten().collect();
        named.retain(|parameter| parameter["in"] == "path");
        assert_eq!(named.len(), route.path.matches('{').count(), "{}", route.path);
        let is_open = operation["security"] == serde_json::json!([{}]);
        assert_eq!(is_open, !route.path.starts_with("/admin"), "{}", route.path);
    }
    assert_eq!(description["security"][0]["admin_key"], serde_json::json!([]));
    let balance = &description["components"]["schemas"]["Account"]["properties"]["balance"];
    assert_eq!(balance["type"], "string");
}

#[tokio::test]
async fn below_admin_every_route_takes_the_admin_key_and_nothing_else() {
    let control = Control::start().await;
    let client = key::generate(Class::Client).unwrap();
    let other = key::generate(Class::Admin).unwrap();
    let key = &control.key;
    let refused = [
        String::new(),
        "Authorization: \r\n".to_owned(),
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        format!("Authorization: {key}\r\n"),
        format!("Authorization: Basic {key}\r\n"),
        format!("Authorization: Bearer {key}x\r\n"),
        format!("Authorization: Bearer {}\r\n", &key[..key.len() - 1]),
        format!("Authorization: Bearer {}\r\n", key.to_lowercase()),
        format!("Authorization: Bearer {key} {key}\r\n"),
        format!("Authorization: Bearer {key}\r\nAuthorization: Bearer {key}\r\n"),
        format!("Authorization: Bearer {}\r\n", client.expose()),
        format!("Authorization: Bearer {}\r\n", other.expose()),
        format!("x-api-key: {key}\r\n"),
    ];
    for route in ROUTES.iter().filter(|route| route.path.starts_with("/admin")) {
        for headers in &refused {
            let (method, path) = (&route.method, path_of(route));
            let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}");
            let reply = control.raw(&head, "").await;
            assert_eq!(reply.status, 401, "{method} {path}");
            assert_eq!(reply.code(), "invalid_api_key");
            assert!(!reply.body.contains(key.as_str()));
        }
        let path = format!("{}?key={key}", path_of(route));
        let head = format!("{} {path} HTTP/1.1\r\nHost: localhost\r\n", route.method);
        assert_eq!(control.raw(&head, "").await.status, 401, "a key in the query");
    }
}

#[tokio::test]
async fn an_unknown_path_below_admin_does_not_tell_itself_without_the_key() {
    let control = Control::start().await;
    let head = "GET /admin/v2/anything HTTP/1.1\r\nHost: localhost\r\n";
    assert_eq!(control.raw(head, "").await.status, 401);
}

#[tokio::test]
async fn only_hosts_of_ours_are_answered() {
    let control = Control::start().await;
    let key = &control.key;
    let status = async |hosts: &str| {
        let head =
            format!("GET /admin/v1/prices HTTP/1.1\r\n{hosts}Authorization: Bearer {key}\r\n");
        control.raw(&head, "").await.status
    };
    for host in ["localhost", "LOCALHOST:8081", "127.0.0.1:1", "[::1]:8081", "farebox.example:9"] {
        assert_eq!(status(&format!("Host: {host}\r\n")).await, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "", "farebox.example.x"] {
        assert_eq!(status(&format!("Host: {host}\r\n")).await, 421, "{host}");
    }
    assert_eq!(status("Host: localhost\r\nHost: localhost\r\n").await, 421);
    let head = "GET /metrics HTTP/1.1\r\nHost: evil.example\r\n";
    assert_eq!(control.raw(head, "").await.code(), "host_not_allowed");
}

#[tokio::test]
async fn probes_are_answered_without_a_key_under_any_name() {
    let control = Control::start().await;
    let head = "GET /healthz HTTP/1.1\r\nHost: 10.1.2.3:8081\r\n";
    assert_eq!(control.raw(head, "").await.status, 200);
    let head = "GET /readyz HTTP/1.1\r\nHost: 10.1.2.3:8081\r\n";
    let reply = control.raw(head, "").await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "ledger_unavailable"));
    assert!(reply.head.contains("retry-after: 5"));
}

#[tokio::test]
async fn metrics_are_served_without_the_key() {
    let control = Control::start().await;
    let reply = control.raw("GET /metrics HTTP/1.1\r\nHost: localhost\r\n", "").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "# EOF\n"));
    assert!(reply.head.contains("content-type: application/openmetrics-text"));
}

#[tokio::test]
async fn an_unknown_path_is_answered_with_what_is_served() {
    let control = Control::start().await;
    for path in ["/", "/admin/v1", "/admin/v1/accounts/", "/v1/me"] {
        let reply = control.get(path).await;
        assert_eq!((reply.status, reply.code().as_str()), (404, "endpoint_not_enabled"), "{path}");
        assert!(reply.body.contains("POST /admin/v1/accounts/{account}/credits"));
    }
}

#[tokio::test]
async fn what_cannot_be_an_account_is_not_found_and_the_store_is_not_asked() {
    let control = Control::start().await;
    for id in ["", "Upper", "a%20b", "%00", "..", "%2e%2e", "a%2fb", "%C3%A4"] {
        let reply = control.get(&format!("/admin/v1/accounts/{id}/keys")).await;
        assert_eq!((reply.status, reply.code().as_str()), (404, "account_not_found"), "{id}");
    }
}

#[tokio::test]
async fn another_method_is_answered_with_those_that_are_allowed() {
    let reply = Control::start().await.ask("PUT", "/admin/v1/accounts", "", "").await;
    assert_eq!((reply.status, reply.code().as_str()), (405, "method_not_allowed"));
    let allow = reply.head.lines().find(|line| line.starts_with("allow:")).unwrap();
    assert!(allow.contains("post") && allow.contains("get"), "{allow}");
}

#[tokio::test]
async fn every_answer_has_an_id_and_is_never_stored() {
    let control = Control::start().await;
    for path in ["/admin/v1/prices", "/healthz", "/nowhere", "/admin/v1/accounts/default"] {
        let reply = control.get(path).await;
        let id = reply.head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
        assert!(id.starts_with("req_"), "{path}");
        assert!(reply.head.contains("cache-control: no-store"), "{path}");
        assert!(!reply.head.contains("access-control"), "{path}");
        if reply.status >= 400 {
            assert_eq!(reply.json()["error"]["request_id"], id, "{path}");
        }
    }
}

#[tokio::test]
async fn unknown_fields_and_values_of_another_type_are_refused() {
    let control = Control::start().await;
    for body in [
        r#"{"id":"a","balance":"5"}"#,
        r#"{"id":"a","role":"admin"}"#,
        r#"{"id":"a","id":"b"}"#,
        r#"{"id":7}"#,
        r#"{"id":"a"} trailing"#,
        r#"{"id":"a""#,
        "[]",
        "",
    ] {
        let reply = control.post("/admin/v1/accounts", body).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_json"), "{body}");
    }
    let reply = control.post("/admin/v1/accounts", r#"{"role":1}"#).await;
    assert!(reply.body.contains("unknown field `role`"), "{}", reply.body);
    let reply = control.post("/admin/v1/accounts", r#"{"id":"Not Valid"}"#).await;
    assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some("id")));
}

#[tokio::test]
async fn unknown_query_parameters_are_refused_and_named() {
    let control = Control::start().await;
    let reply = control.get("/admin/v1/accounts?offset=5").await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_query"));
    assert!(reply.body.contains("offset"), "{}", reply.body);
    for limit in ["0", "501"] {
        let reply = control.get(&format!("/admin/v1/accounts?limit={limit}")).await;
        assert_eq!(reply.json()["error"]["param"], "limit");
    }
    let reply = control.get("/admin/v1/accounts?limit=many").await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_query"));
}

#[tokio::test]
async fn a_body_is_json_by_its_own_word_and_short() {
    let control = Control::start().await;
    let reply =
        control.ask("POST", "/admin/v1/accounts", "Content-Type: text/plain\r\n", "{}").await;
    assert_eq!((reply.status, reply.code().as_str()), (415, "unsupported_media_type"));
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(64 * 1024));
    let reply = control.post("/admin/v1/accounts", &long).await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
}

#[tokio::test]
async fn a_store_that_is_away_is_said_without_its_inner_words() {
    let reply = Control::start().await.get("/admin/v1/accounts/default").await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "ledger_unavailable"));
    for inner in ["farebox.db", "database", "closed"] {
        assert!(!reply.body.contains(inner), "{}", reply.body);
    }
}

#[test]
fn an_amount_is_a_decimal_string_and_never_a_number() {
    let read = |body: &str| serde_json::from_str::<credits::NewGrant>(body);
    assert!(read(r#"{"kind":"usage","amount":"5"}"#).is_ok());
    for amount in ["5", "5.0", "\"1e3\"", "\"0.0000000001\"", "\"\"", "null"] {
        let body = format!(r#"{{"kind":"topup","amount":{amount}}}"#);
        assert!(read(&body).is_err(), "{amount}");
    }
    assert!(read(r#"{"kind":"debit_ai","amount":"5"}"#).is_err());
}
