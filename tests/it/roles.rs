//! Who may call what: every role at every route with every verb, the routes as the program has
//! them.

use farebox::{admin, dashboard};
use http::Method;
use serde_json::json;

use crate::support::account::chat;
use crate::support::answer::Answer;
use crate::support::credits;
use crate::support::http::{Call, Reply};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;

const VERBS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// What the proxy serves, and the one verb that it takes.
const CALLS: [(Method, &str); 12] = [
    (Method::POST, "/v1/chat/completions"),
    (Method::POST, "/chat/completions"),
    (Method::POST, "/v1/completions"),
    (Method::POST, "/v1/embeddings"),
    (Method::POST, "/v1/responses"),
    (Method::POST, "/v1/messages"),
    (Method::POST, "/v1/messages/count_tokens"),
    (Method::POST, "/v1beta/models/test:generateContent"),
    (Method::POST, "/v1beta/models/test:streamGenerateContent"),
    (Method::GET, "/v1/models"),
    (Method::GET, "/v1/models/test"),
    (Method::GET, "/v1/me"),
];

/// Somebody, by what a request of theirs carries.
struct Role {
    name: &'static str,
    header: Option<(&'static str, String)>,
    /// What forms of a session must send.
    csrf: String,
}

impl Role {
    fn nobody() -> Self {
        Self { name: "nobody", header: None, csrf: String::new() }
    }

    fn bearer(name: &'static str, key: &str) -> Self {
        let header = Some(("authorization", format!("Bearer {key}")));
        Self { name, header, csrf: String::new() }
    }

    /// Signs in by a form, as a browser does.
    async fn session(name: &'static str, proxy: &Proxy, form: &str, page: &str) -> Self {
        let call = Call::form(format!("{}/sign-in", proxy.admin_url()), form);
        let reply = call.header("sec-fetch-site", "same-origin").reply().await.expect(303);
        let cookie = reply.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let mut role = Self { name, header: Some(("cookie", cookie)), csrf: String::new() };
        let page = role.call(Call::get(format!("{}{page}", proxy.admin_url()))).await.expect(200);
        let (_, rest) = page.text().split_once("name=\"csrf\" value=\"").map(own).unwrap();
        role.csrf = rest.split('"').next().unwrap().to_owned();
        role
    }

    async fn holder(name: &'static str, proxy: &Proxy, account: &str) -> Self {
        let path = format!("/accounts/{account}/sign-in-links");
        let made = proxy.admin_post(&path, &json!({})).await.json();
        let token = made["url"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        Self::session(name, proxy, &format!("key={token}"), &format!("/billing/{account}/keys"))
            .await
    }

    async fn call(&self, call: Call) -> Reply {
        match &self.header {
            Some((name, value)) => call.header(name, value).reply().await,
            None => call.reply().await,
        }
    }
}

fn own((a, b): (&str, &str)) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

/// A program with two accounts that have a key and a request each, and everybody there is.
struct Stage {
    proxy: Proxy,
    request: String,
    key: String,
    roles: Vec<Role>,
}

impl Stage {
    async fn set() -> Self {
        let upstream = Upstream::answering(Answer::default()).await;
        let proxy = Setup::before(&upstream).start().await;
        let own = proxy.default_account();
        let reply = own.post("/v1/chat/completions", &chat("test", "Hi")).await.expect(200);
        let request = reply.header("x-request-id").unwrap().to_owned();
        let other = proxy.account_with(credits("1")).await;
        let revoked = own.new_key(&json!({"name": "revoked"})).await;
        let keys = format!("{}/admin/v1/accounts/default/keys", proxy.admin_url());
        let listed = Call::get(&keys).bearer(proxy.admin_key()).reply().await.json();
        let of_name = |name: &str| {
            let keys = listed["data"].as_array().unwrap();
            let key = keys.iter().find(|key| key["name"] == name).unwrap();
            key["id"].as_str().unwrap().to_owned()
        };
        let delete = Call::new(Method::DELETE, format!("{keys}/{}", of_name("revoked")));
        delete.bearer(proxy.admin_key()).reply().await.expect(200);
        let key = listed["data"][0]["id"].as_str().unwrap().to_owned();
        let forged = Role {
            name: "forged session",
            header: Some(("cookie", format!("farebox_session={}", "x".repeat(43)))),
            csrf: "x".into(),
        };
        let operator = format!("key={}", proxy.admin_key());
        let roles = vec![
            Role::nobody(),
            Role::bearer("client key", &own.key),
            Role::bearer("revoked key", &revoked),
            Role::bearer("wrong key", "sk-nothing"),
            Role::bearer("admin key", proxy.admin_key()),
            forged,
            Role::holder("holder", &proxy, "default").await,
            Role::holder("other holder", &proxy, &other.id).await,
            Role::session("operator", &proxy, &operator, "/operator/accounts").await,
        ];
        Self { proxy, request, key, roles }
    }

    /// A path with something real in each place.
    fn path(&self, route: &str, account: &str) -> String {
        let path = route.replace("{account}", account).replace("{id}", &self.request);
        path.replace("{key}", &self.key)
            .replace("{token}", "no-such-token")
            .replace("{name}", "none")
    }

    /// All that somebody without the right could have changed.
    async fn state(&self) -> String {
        let mut state = String::new();
        for path in ["accounts", "accounts/default/keys", "accounts/default/ledger", "alerts"] {
            let call = Call::get(format!("{}/admin/v1/{path}", self.proxy.admin_url()));
            state += &call.bearer(self.proxy.admin_key()).reply().await.expect(200).text();
        }
        state
    }
}

fn with_body(verb: &Method, url: &str) -> Call {
    match *verb {
        Method::GET | Method::DELETE => Call::new(verb.clone(), url),
        _ => Call::new(verb.clone(), url).header("content-type", "application/json").body("{}"),
    }
}

#[tokio::test]
async fn the_proxy_serves_client_keys_alone_and_each_route_by_its_one_verb() {
    let stage = Stage::set().await;
    let before = stage.state().await;
    let mut cells = 0;
    for role in &stage.roles {
        for (verb, path) in &CALLS {
            for tried in &VERBS {
                let call = with_body(tried, &format!("{}{path}", stage.proxy.url()));
                let status = role.call(call).await.status;
                let cell = format!("{} {tried} {path}: {status}", role.name);
                match (tried == verb, role.name) {
                    (false, _) => assert_eq!(status, 405, "{cell}"),
                    (true, "client key") => assert!(![401, 403, 405].contains(&status), "{cell}"),
                    (true, _) => assert_eq!(status, 401, "{cell}"),
                }
                cells += 1;
            }
        }
        for route in admin::ROUTES {
            let url = format!("{}{}", stage.proxy.url(), stage.path(route.path, "default"));
            let status = role.call(with_body(&route.method, &url)).await.status;
            assert_eq!(status, 404, "{} {} {}", role.name, route.method, route.path);
            cells += 1;
        }
    }
    assert_eq!(stage.state().await, before);
    println!("{cells} cells");
}

#[tokio::test]
async fn the_control_plane_serves_the_admin_key_alone() {
    let stage = Stage::set().await;
    // What the admin key may do is done to an account that nothing else looks at.
    let scrap = stage.proxy.account_with(credits("1")).await;
    let before = stage.state().await;
    let mut cells = 0;
    for role in &stage.roles {
        for route in admin::ROUTES {
            for tried in &VERBS {
                let is_route = admin::ROUTES
                    .iter()
                    .any(|other| other.path == route.path && other.method == *tried);
                let path = stage.path(route.path, &scrap.id);
                let call = with_body(tried, &format!("{}{path}", stage.proxy.admin_url()));
                let status = role.call(call).await.status;
                let cell = format!("{} {tried} {}: {status}", role.name, route.path);
                let is_open = !route.path.starts_with("/admin/");
                match (is_open || role.name == "admin key", is_route) {
                    (true, false) => assert_eq!(status, 405, "{cell}"),
                    (true, true) => {
                        assert!(status < 500 && ![401, 403, 405].contains(&status), "{cell}");
                    }
                    (false, _) => assert_eq!(status, 401, "{cell}"),
                }
                cells += 1;
            }
        }
        if role.name == "client key" {
            assert_eq!(stage.state().await, before);
        }
    }
    println!("{cells} cells");
}

#[tokio::test]
async fn a_page_is_for_the_operator_or_the_holder_of_its_account_alone() {
    let stage = Stage::set().await;
    let before = stage.state().await;
    let mut cells = 0;
    for role in &stage.roles {
        for (verb, route) in dashboard::ROUTES {
            for tried in &VERBS {
                let path = stage.path(route, "default");
                let status = visit(&stage, role, tried, &path).await;
                let cell = format!("{} {tried} {route}: {status}", role.name);
                let is_route =
                    dashboard::ROUTES.iter().any(|(verb, other)| other == route && verb == tried);
                if is_route {
                    assert!(is_right(role, tried, route, status), "{cell}");
                } else {
                    assert_eq!(status, 405, "{cell}");
                }
                assert!(VERBS.contains(verb));
                cells += 1;
            }
        }
    }
    assert_eq!(stage.state().await, before, "no form had the words of its session");
    println!("{cells} cells");
}

/// Asks as a browser on our own page would, but without the token of the session's forms.
async fn visit(stage: &Stage, role: &Role, verb: &Method, path: &str) -> u16 {
    let url = format!("{}{path}", stage.proxy.admin_url());
    let call = match *verb {
        Method::POST => Call::form(url, "key=&token="),
        _ => Call::new(verb.clone(), url),
    };
    role.call(call.header("sec-fetch-site", "same-origin")).await.status
}

/// Whether a status is what a role is due at a route.
fn is_right(role: &Role, verb: &Method, route: &str, status: u16) -> bool {
    let is_of_account = route.starts_with("/billing/");
    let has_session = ["holder", "other holder", "operator"].contains(&role.name);
    let may = match role.name {
        "operator" => true,
        "holder" => !route.starts_with("/operator"),
        "other holder" => !is_of_account && !route.starts_with("/operator"),
        _ => false,
    };
    let is_open = !is_of_account && route != "/billing" && !route.starts_with("/operator");
    match (is_open, may, verb == Method::POST) {
        // Signing in and out, styles, and what a browser reports.
        (true, ..) => status < 500,
        // Without the token every form is refused, its page shown to those it is for.
        (false, true, true) => status == 403,
        (false, true, false) => [200, 303].contains(&status),
        (false, false, false) if has_session => status == 404,
        (false, false, true) if has_session => [403, 404].contains(&status),
        (false, false, _) => [303, 401, 403].contains(&status),
    }
}
