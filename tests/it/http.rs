//! HTTP as hostile clients write it: each odd request has its status, leaves the connection
//! as it says, and reaches the upstream not at all or as one well-formed request.

mod http2;
mod spoilt;

use crate::support::credits;
use crate::support::http::Call;
use crate::support::proxy::{PROVIDER_KEY, Proxy, Setup};
use crate::support::raw::Raw;
use crate::support::upstream::{Received, Upstream};

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Open,
    Closed,
}

use After::{Closed, Open};

const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"model":"test","messages":[{"role":"user","content":"Hi"}]}"#;

/// A request: its first line, the headers `base` and `more`, then the body as it stands.
fn request(key: &str, line: &str, base: &str, more: &str, body: &str) -> String {
    format!(
        "{line}\r\n{base}authorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         {more}\r\n{body}"
    )
}

fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

/// Exactly what the proxy sends, and nothing of what the client's headers say.
fn assert_well_formed(received: &Received, client_key: &str) {
    assert_eq!((received.method.as_str(), received.path.as_str()), ("POST", CHAT));
    assert!(received.complete);
    assert_eq!(received.json()["model"], "test", "{received:?}");
    let length = received.body.len().to_string();
    assert_eq!(received.header("content-length"), Some(length.as_str()), "{received:?}");
    let bearer = format!("Bearer {PROVIDER_KEY}");
    assert_eq!(received.header("authorization"), Some(bearer.as_str()));
    let expected = [
        "accept",
        "accept-encoding",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "user-agent",
    ];
    for (name, value) in &received.headers {
        let name = name.to_ascii_lowercase();
        assert!(expected.contains(&name.as_str()), "{name} went upstream");
        assert!(!value.contains(client_key), "{name} holds the client's key");
    }
}

/// The head of a request with a body that has this framing.
fn framed(key: &str, framing: &str, body: &str) -> String {
    request(key, &format!("POST {CHAT} HTTP/1.1"), "host: x\r\n", framing, body)
}

/// Requests that are understood: what is sent, and what becomes of the connection.
fn understood(key: &str) -> Vec<(&'static str, String, After)> {
    let length = format!("content-length: {}\r\n", BODY.len());
    let with = |more: &str| framed(key, &format!("{length}{more}"), BODY);
    let te = "transfer-encoding: chunked\r\n";
    let old = |base: &str, more: &str| {
        let more = format!("{length}{more}");
        request(key, &format!("POST {CHAT} HTTP/1.0"), base, &more, BODY)
    };
    vec![
        ("a length", with(""), Open),
        ("chunks", framed(key, te, &chunked(BODY)), Open),
        ("length before chunks", framed(key, &format!("{length}{te}"), &chunked(BODY)), Closed),
        ("chunks before length", framed(key, &format!("{te}{length}"), &chunked(BODY)), Closed),
        (
            "a lying length before chunks",
            { framed(key, &format!("content-length: 3\r\n{te}"), &chunked(BODY)) },
            Closed,
        ),
        ("the same length twice", with(&length), Open),
        ("bare line feeds", with("").replace("\r\n", "\n"), Open),
        ("an underscore", with("x_host: evil\r\nhost_: evil\r\n"), Open),
        (
            "an offer of h2c",
            {
                with(
                    "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n",
                )
            },
            Open,
        ),
        ("a charset", with("").replace("/json", "/json; charset=utf-8"), Open),
        (
            "hop-by-hop headers",
            { with("connection: x-secret\r\nx-secret: 1\r\nkeep-alive: 5\r\nte: trailers\r\n") },
            Open,
        ),
        ("a wish to close", with("connection: close\r\n"), Closed),
        (
            "trailers",
            framed(key, te, &chunked(BODY).replace("0\r\n\r\n", "0\r\nhost: y\r\n\r\n")),
            { Open },
        ),
        (
            "an extension of a chunk",
            { framed(key, te, &format!("{:x};a=b\r\n{BODY}\r\n0\r\n\r\n", BODY.len())) },
            Open,
        ),
        ("HTTP/1.0", old("host: x\r\n", ""), Closed),
        ("HTTP/1.0 without a host", old("", ""), Closed),
        ("HTTP/1.0 that stays", old("", "connection: keep-alive\r\n"), Open),
        ("no /v1", with("").replacen("/v1", "", 1), Open),
        ("blank lines first", format!("\r\n\r\n{}", with("")), Open),
        ("an unknown header", with("x-forwarded-host: evil\r\nforwarded: host=evil\r\n"), Open),
        ("many spaces", with("").replacen("host: x", "host:   x  ", 1), Open),
        ("names in capitals", { with("").replacen("content-type", "CONTENT-TYPE", 1) }, Open),
    ]
}

/// Requests that are refused: what is sent, the status, and what becomes of the connection.
fn refused(key: &str) -> Vec<(String, String, u16, After)> {
    let length = format!("content-length: {}\r\n", BODY.len());
    let post = format!("POST {CHAT} HTTP/1.1");
    let with = |more: &str| framed(key, &format!("{length}{more}"), BODY);
    let mut all = Vec::new();
    let mut add = |name: &str, request: String, status, after| {
        all.push((name.to_owned(), request, status, after));
    };
    for value in ["gzip, chunked", "chunked, chunked", "chunked, gzip", "identity", "Chunked", "x"]
    {
        let header = format!("transfer-encoding: {value}\r\n");
        add(&header, framed(key, &header, &chunked(BODY)), 400, Closed);
    }
    let twice = "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n";
    add("chunked twice", framed(key, twice, &chunked(BODY)), 400, Closed);
    for value in
        ["2, 2", "+2", "-2", "0x2", "2 2", "", "99999999999999999999", "2\r\ncontent-length: 3"]
    {
        let header = format!("content-length: {value}\r\n");
        add(&header, framed(key, &header, BODY), 400, Closed);
    }
    for (name, header) in [
        ("a folded header", "x-a: 1\r\n folded\r\n"),
        ("a space before the colon", "x-a : 1\r\n"),
        ("a NUL in a value", "x-a: 1\0\r\n"),
        ("a NUL in a name", "x\0a: 1\r\n"),
        ("a lone carriage return", "x-a: 1\r2\r\n"),
        ("a header without a colon", "x-a\r\n"),
        ("two hosts", "host: y\r\n"),
        ("the same host twice", "host: x\r\n"),
        ("a websocket", "connection: Upgrade\r\nupgrade: websocket\r\n"),
        ("h2c and a websocket", "connection: Upgrade\r\nupgrade: h2c, websocket\r\n"),
        ("an upgrade to TLS", "connection: Upgrade\r\nupgrade: TLS/1.0\r\n"),
    ] {
        add(name, with(header), 400, Closed);
    }
    let line = |line: &str| with("").replacen(&post, line, 1);
    add("no host", with("").replacen("host: x\r\n", "", 1), 400, Closed);
    let old = line(&format!("POST {CHAT} HTTP/1.0"));
    add(
        "chunks in HTTP/1.0",
        old.replacen("content-length", "transfer-encoding: chunked\r\nx", 1),
        400,
        Closed,
    );
    for target in ["http://169.254.169.254", "http://x", "https://x", "http://x:80"] {
        add(target, line(&format!("POST {target}{CHAT} HTTP/1.1")), 400, Closed);
    }
    for bad in [
        "POST /v1/chat/completions HTTP/3.7",
        "POST /v1/chat/completions HTTQ/1.1",
        "POST  /v1/chat/completions  HTTP/1.1",
        "POST /v1/chat/com pletions HTTP/1.1",
        "POST /v1/chat/com\0pletions HTTP/1.1",
        "P\0ST /v1/chat/completions HTTP/1.1",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}",
        "hello",
    ] {
        add(&format!("{bad:?}"), line(bad), 400, Closed);
    }
    let many: String = (0..120).map(|i| format!("x-{i}: 1\r\n")).collect();
    add("too many headers", with(&many), 431, Closed);
    let huge = format!("x-huge: {}\r\n", "a".repeat(200_000));
    add("a huge header", with(&huge), 431, Closed);
    for path in [
        "//v1/chat/completions",
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "/v1/../v1/chat/completions",
        "/v1/./chat/completions",
        "/v1/chat%2fcompletions",
        "/v1/ch%61t/completions",
        "/v1/chat/completions%00",
        "/v1/chat/completions;x=1",
        "/v1/chat\\completions",
        "/V1/chat/completions",
        "/v1/Chat/completions",
        "/v1/v1/chat/completions",
        "/v1/chat/completions?model=other",
        "/v2/chat/completions",
        "/admin/v1/accounts",
        "/metrics",
        "/",
    ] {
        add(path, line(&format!("POST {path} HTTP/1.1")), 404, Open);
    }
    for target in ["x:443", "169.254.169.254:80"] {
        let connect = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
        add(&format!("CONNECT {target}"), connect, 405, Open);
    }
    add("OPTIONS *", String::from("OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n"), 404, Open);
    add("a method in small letters", line(&format!("post {CHAT} HTTP/1.1")), 405, Open);
    for size in ["FFFFFFFFFFFFFFFFF", "-1", "x", "0x3c", " 3c"] {
        let te = "transfer-encoding: chunked\r\n";
        let body = format!("{size}\r\n{BODY}\r\n0\r\n\r\n");
        add(&format!("a chunk of {size}"), framed(key, te, &body), 408, Closed);
    }
    all
}

#[tokio::test]
async fn what_is_understood_goes_upstream_as_one_request_of_our_own_making() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    let mut failures = Vec::new();
    for (name, request, after) in understood(&account.key) {
        let seen = upstream.exchanges().len();
        if let Err(why) = answered(&proxy, &request, 200, after).await {
            failures.push(format!("{name}: {why}"));
            continue;
        }
        let exchanges = upstream.exchanges();
        assert_eq!(exchanges.len(), seen + 1, "{name}");
        assert_well_formed(&exchanges[seen].request, &account.key);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    account.settled().await;
    account.check_books().await;
}

#[tokio::test]
async fn what_two_readers_could_read_differently_is_refused_and_reaches_no_upstream() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    let mut failures = Vec::new();
    for (name, request, status, after) in refused(&account.key) {
        if let Err(why) = answered(&proxy, &request, status, after).await {
            failures.push(format!("{name}: {why}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(upstream.connections(), 0);
    assert_eq!(account.view().await.in_flight, 0);
}

/// Sends a request and compares the status and what becomes of the connection.
async fn answered(proxy: &Proxy, request: &str, status: u16, after: After) -> Result<(), String> {
    let mut raw = Raw::connect(&proxy.url()).await;
    raw.write(request).await;
    let reply = raw.reply().await.ok_or("no reply")?;
    if reply.status != status {
        return Err(format!("{} {}", reply.status, reply.text()));
    }
    match after {
        Closed if raw.closes().await => Ok(()),
        Closed => Err("the connection stays open".into()),
        Open => {
            raw.write(get("/v1/me", &proxy.client_key)).await;
            match raw.reply().await {
                Some(reply) if reply.status == 200 => Ok(()),
                other => Err(format!("the next request got {other:?}")),
            }
        }
    }
}

fn get(path: &str, key: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n")
}

#[tokio::test]
async fn a_connection_that_brings_no_whole_head_is_closed() {
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).setting("head_timeout", "\"300ms\"").start().await;
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = format!("{preface}\0\0\0\u{4}\0\0\0\0\0");
    for half in
        ["", "P", "PRI * HT", "GET", "GET /v1/me HTTP/1.1\r\nhost: x\r\nauthoriz", &settings]
    {
        let mut raw = Raw::connect(&proxy.url()).await;
        raw.write(half).await;
        // Whatever is said before: it ends by itself.
        raw.rest().await;
    }
    assert_eq!(upstream.connections(), 0);
    proxy.default_account().chat("Hi").await.expect(200);
}

#[tokio::test]
async fn each_request_of_a_connection_has_the_identity_of_its_own_key() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let mut accounts = Vec::new();
    let mut requests = String::new();
    for _ in 0..3 {
        let account = proxy.account_with(credits("1")).await;
        let length = format!("content-length: {}\r\n", BODY.len());
        requests += &framed(&account.key, &length, BODY);
        accounts.push(account);
    }
    let mut raw = Raw::connect(&proxy.url()).await;
    raw.write(requests).await;
    for account in &accounts {
        assert_eq!(raw.reply().await.unwrap().status, 200);
        account.settled().await;
        assert_eq!(account.usage().await.len(), 1);
        account.check_books().await;
    }
    // And a request without a key has none.
    raw.write("GET /v1/me HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(raw.reply().await.unwrap().status, 401);
}

#[tokio::test]
async fn a_body_that_was_not_read_is_never_taken_for_a_request() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    let length = format!("content-length: {}\r\n", BODY.len());
    let inner = framed(&account.key, &length, BODY);
    let framing = format!("content-length: {}\r\n", inner.len());
    for outer in [
        framed("wrong", &framing, &inner),
        framed(&account.key, &framing, &inner).replacen(CHAT, "/v1/no/such", 1),
        framed(&account.key, &framing, &inner).replacen("/json", "/xml", 1),
        framed(&account.key, &framing, &inner).replacen("POST", "GET", 1),
        get("/v1/me", &account.key).replacen("host: x\r\n", &format!("host: x\r\n{framing}"), 1)
            + &inner,
    ] {
        let mut raw = Raw::connect(&proxy.url()).await;
        raw.write(&outer).await;
        assert!(raw.reply().await.is_some());
        raw.write(get("/v1/me", &account.key)).await;
        // Closed, or the answer to what was really asked.
        if let Some(next) = raw.reply().await {
            assert!(next.status == 200 && next.text().contains("\"account\""), "{next:?}");
        }
    }
    assert_eq!(upstream.exchanges().len(), 0);
}

#[tokio::test]
async fn a_path_takes_its_own_methods_only_and_names_them() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let key = &proxy.client_key;
    let call = |method: &str, path: &str| {
        Call::new(method.parse().unwrap(), format!("{}{path}", proxy.url())).bearer(key)
    };
    for path in [
        CHAT,
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1beta/models/gemini:generateContent",
        "/v1beta/models/gemini:streamGenerateContent",
    ] {
        for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"] {
            let reply = call(method, path).reply().await.expect(405);
            assert_eq!(reply.header("allow"), Some("POST"), "{method} {path}");
        }
    }
    for path in ["/v1/models", "/v1/models/test", "/v1/me"] {
        call("GET", path).reply().await.expect(200);
        let head = call("HEAD", path).reply().await.expect(200);
        assert!(head.body.is_empty());
        for method in ["POST", "OPTIONS", "PUT", "DELETE"] {
            let reply = call(method, path).reply().await.expect(405);
            assert_eq!(reply.header("allow"), Some("GET, HEAD"), "{method} {path}");
        }
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_client_that_waits_for_100_is_asked_for_its_body_once_its_key_is_known() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let framing = format!("expect: 100-continue\r\ncontent-length: {}\r\n", BODY.len());
    let mut raw = Raw::connect(&proxy.url()).await;
    raw.write(framed(&proxy.client_key, &framing, "")).await;
    assert_eq!(raw.reply().await.unwrap().status, 100);
    assert_eq!(upstream.connections(), 0);
    raw.write(BODY).await;
    assert_eq!(raw.reply().await.unwrap().status, 200);

    let mut raw = Raw::connect(&proxy.url()).await;
    raw.write(framed("wrong", &framing, "")).await;
    assert_eq!(raw.reply().await.unwrap().status, 401);
}

#[tokio::test]
async fn a_client_that_leaves_inside_its_body_uses_nothing() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    let length = format!("content-length: {}\r\n", BODY.len());
    let te = "transfer-encoding: chunked\r\n";
    for whole in [framed(&account.key, &length, BODY), framed(&account.key, te, &chunked(BODY))] {
        for missing in [1, 6, 20] {
            for reset in [false, true] {
                let mut raw = Raw::connect(&proxy.url()).await;
                raw.write(&whole[..whole.len() - missing]).await;
                if reset {
                    raw.reset();
                } else {
                    raw.half_close().await;
                    raw.rest().await;
                }
            }
        }
    }
    account.chat("Hi").await.expect(200);
    account.settled().await;
    assert_eq!(upstream.exchanges().len(), 1);
    assert_eq!(account.usage().await.len(), 1);
}
