//! Spoilt paths and headers: whatever is served has one reading.

use http::{HeaderName, HeaderValue, Request, Uri};

use super::{Route, inspect, route};
use mutate::{Seeds, run};

#[path = "../../../tests/fuzz/mutate.rs"]
mod mutate;

const WORDS: [&str; 36] = [
    "/",
    "//",
    "/v1",
    "/v1beta/models/",
    "/models/",
    "chat",
    "/completions",
    "/responses",
    "/messages",
    "/count_tokens",
    "/me",
    ":generateContent",
    ":streamGenerateContent",
    "?",
    "alt=sse",
    "beta=true",
    "key=x",
    "api_key=x",
    "&",
    "%2f",
    "%2e",
    "..",
    "/./",
    ";x",
    "\\",
    "#",
    "\u{e9}",
    "POST ",
    "GET ",
    "\ncontent-type: application/json",
    "\ntransfer-encoding: chunked",
    "\ntransfer-encoding: gzip",
    "\nhost: a",
    "\nupgrade: x",
    "; charset=utf-8",
    "\ncontent-encoding: gzip",
];

/// A request as the first line and the headers of a text say it.
fn request(text: &str) -> Option<Request<()>> {
    let mut lines = text.split('\n');
    let (method, target) = lines.next()?.split_once(' ')?;
    let mut request =
        Request::builder().method(method).uri(target.parse::<Uri>().ok()?).body(()).ok()?;
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        let name = name.parse::<HeaderName>().ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    Some(request)
}

#[test]
fn what_is_served_has_one_reading() {
    let seeds = Seeds::of("accept", Vec::new(), &WORDS);
    run("paths and headers", 50_000, &seeds, |text, _| {
        let Some(request) = std::str::from_utf8(text).ok().and_then(request) else { return };
        let (head, ()) = request.into_parts();
        let Ok(found) = route(&head) else { return };
        let path = head.uri.path();
        // Nothing in a path that is served means something else to whoever decodes or
        // normalises it.
        assert!(path.is_ascii() && !path.contains(['%', ';', '\\']), "{path}");
        assert!(!path.contains("//") && !path.contains("/.") && !path.ends_with('/'), "{path}");
        if inspect(&head, &found).is_err() {
            return;
        }
        assert_eq!(head.headers.get_all("host").iter().count(), 1);
        assert!(head.uri.authority().is_none());
        if let Route::Call(..) = found {
            assert_eq!(head.method, "POST");
            assert!(head.headers.get_all("content-encoding").iter().all(|e| e == "identity"));
            let kind = head.headers["content-type"].to_str().unwrap().to_ascii_lowercase();
            assert!(kind.trim().starts_with("application/json"), "{kind}");
            assert!(matches!(head.uri.query().unwrap_or_default(), "" | "alt=sse" | "beta=true"));
        }
    });
}
