//! The door: which requests are understood as HTTP, and where they go.
//!
//! Paths match exactly, byte for byte: nothing is decoded, merged or removed, so no second
//! reader can take a path for another. Each path is served with `/v1` and without it.

use http::request::Parts;
use http::{Method, Version, header};

use super::error::Error;
use crate::wire::Endpoint;

/// What is served, for the reply to anything else.
pub const SERVED: [&str; 11] = [
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/responses",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "POST /v1beta/models/{model}:generateContent",
    "POST /v1beta/models/{model}:streamGenerateContent",
    "GET /v1/models",
    "GET /v1/models/{id}",
    "GET /v1/me",
];

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To an upstream; the model is named in the path of Gemini's endpoints alone.
    Call(Endpoint, Option<String>),
    /// The models that can be called.
    Models,
    /// One of them.
    Model(String),
    /// What the key's account has and spends.
    Me,
}

impl Route {
    /// The dialect of its errors.
    pub const fn endpoint(&self) -> Option<Endpoint> {
        match self {
            Self::Call(endpoint, _) => Some(*endpoint),
            Self::Models | Self::Model(_) | Self::Me => None,
        }
    }
}

/// Finds the route of a request by its path and its method alone.
///
/// # Errors
///
/// [`Error::NoSuchEndpoint`], [`Error::Method`].
pub fn route(head: &Parts) -> Result<Route, Error> {
    if head.method == Method::CONNECT {
        // Its target is no path. We are nobody's tunnel.
        return Err(Error::Method { allow: "GET, HEAD, POST" });
    }
    let route = find(head.uri.path()).ok_or(Error::NoSuchEndpoint)?;
    let (fits, allow) = match route {
        Route::Call(..) => (head.method == Method::POST, "POST"),
        // HEAD: hyper sends the head of what GET would answer.
        _ => (head.method == Method::GET || head.method == Method::HEAD, "GET, HEAD"),
    };
    if fits { Ok(route) } else { Err(Error::Method { allow }) }
}

fn find(path: &str) -> Option<Route> {
    let call = |endpoint| Some(Route::Call(endpoint, None));
    match path.strip_prefix("/v1").unwrap_or(path) {
        "/chat/completions" => return call(Endpoint::Chat),
        "/completions" => return call(Endpoint::Completions),
        "/embeddings" => return call(Endpoint::Embeddings),
        "/responses" => return call(Endpoint::Responses),
        "/messages" => return call(Endpoint::Messages),
        "/messages/count_tokens" => return call(Endpoint::CountTokens),
        "/models" => return Some(Route::Models),
        "/me" => return Some(Route::Me),
        _ => {}
    }
    if let Some(rest) =
        path.strip_prefix("/v1beta/models/").or_else(|| path.strip_prefix("/models/"))
        && let Some((model, action)) = rest.rsplit_once(':')
    {
        let endpoint = match action {
            "generateContent" => Some(Endpoint::Generate),
            "streamGenerateContent" => Some(Endpoint::StreamGenerate),
            _ => None,
        };
        if let Some(endpoint) = endpoint {
            return is_plain_id(model).then(|| Route::Call(endpoint, Some(model.to_owned())));
        }
    }
    // An id may hold slashes, as OpenRouter's do.
    let id = path.strip_prefix("/v1/models/").or_else(|| path.strip_prefix("/models/"))?;
    let plain = !id.is_empty() && id.split('/').all(is_plain_id);
    plain.then(|| Route::Model(id.to_owned()))
}

fn is_plain_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'@');
    !id.is_empty() && id.bytes().all(plain) && !id.starts_with('.')
}

/// Refuses what two readers of the same bytes could read differently.
///
/// hyper has refused much before: differing content-lengths, folded headers, transfer-encoding
/// on HTTP/1.0. What it lets through is refused here.
///
/// # Errors
///
/// [`Error::MalformedHttp`], which closes the connection; [`Error::ApiKey`] for a key in the
/// query; [`Error::MediaType`] for a body that is not plain JSON.
pub fn inspect(head: &Parts, route: &Route) -> Result<(), Error> {
    let headers = &head.headers;
    if head.version <= Version::HTTP_11 {
        match headers.get_all(header::HOST).iter().count() {
            0 if head.version == Version::HTTP_11 => {
                return Err(Error::MalformedHttp("The Host header is missing."));
            }
            0 | 1 => {}
            _ => return Err(Error::MalformedHttp("There is more than one Host header.")),
        }
        if head.uri.authority().is_some() {
            return Err(Error::MalformedHttp("The target of the request is a whole URL."));
        }
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if encodings.next().is_some_and(|value| value != "chunked") || encodings.next().is_some() {
        return Err(Error::MalformedHttp("The transfer-encoding is not exactly \"chunked\"."));
    }
    // Java's client offers h2c on plain HTTP; staying with HTTP/1.1 is a valid answer to it.
    if headers.get_all(header::UPGRADE).iter().any(|value| value != "h2c") {
        return Err(Error::MalformedHttp("Upgrades of the connection are not served."));
    }
    inspect_query(head.uri.query(), route)?;
    if matches!(route, Route::Call(..)) && !is_plain_json(head) {
        return Err(Error::MediaType);
    }
    Ok(())
}

/// The few queries that SDKs send; everything else is unknown to the meter.
fn inspect_query(query: Option<&str>, route: &Route) -> Result<(), Error> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(()) };
    if query.split('&').any(|pair| pair.starts_with("key=") || pair.starts_with("api_key=")) {
        return Err(Error::ApiKey(
            "Keys in the query are not read, because logs keep them. Send the key in a header."
                .into(),
        ));
    }
    let known = match route {
        Route::Call(Endpoint::Messages | Endpoint::CountTokens, _) => query == "beta=true",
        Route::Call(Endpoint::StreamGenerate, _) => query == "alt=sse",
        Route::Call(..) => false,
        Route::Models | Route::Model(_) | Route::Me => true,
    };
    if known { Ok(()) } else { Err(Error::NoSuchEndpoint) }
}

fn is_plain_json(head: &Parts) -> bool {
    let mut types = head.headers.get_all(header::CONTENT_TYPE).iter();
    let is_json = types.next().and_then(|value| value.to_str().ok()).is_some_and(|value| {
        let (kind, parameter) = value.split_once(';').unwrap_or((value, ""));
        let parameter = parameter.trim().to_ascii_lowercase();
        kind.trim().eq_ignore_ascii_case("application/json")
            && matches!(parameter.as_str(), "" | "charset=utf-8" | "charset=\"utf-8\"")
    });
    let encoded = head.headers.get_all(header::CONTENT_ENCODING).iter().any(|e| e != "identity");
    is_json && types.next().is_none() && !encoded
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_served_with_v1_and_without() {
        for path in [
            "/chat/completions",
            "/completions",
            "/embeddings",
            "/responses",
            "/messages",
            "/messages/count_tokens",
            "/models",
            "/me",
            "/models/gpt-4.1",
        ] {
            assert!(find(path).is_some(), "{path}");
            assert_eq!(find(path), find(&format!("/v1{path}")), "{path}");
        }
        assert_eq!(
            find("/v1beta/models/gemini-3-flash:streamGenerateContent"),
            Some(Route::Call(Endpoint::StreamGenerate, Some("gemini-3-flash".into())))
        );
        assert_eq!(find("/v1/models/a/b"), Some(Route::Model("a/b".into())));
    }

    #[test]
    fn a_path_that_only_resembles_one_is_not_served() {
        for path in [
            "/",
            "/v1",
            "/v1/",
            "/V1/models",
            "/v1/Models",
            "/v1/models/",
            "//v1/models",
            "/v1//models",
            "/v1/chat/completions/",
            "/v1/chat/completions;x",
            "/v1/../v1/me",
            "/v1/%6de",
            "/v1/v1/me",
            "/v1/models/..",
            "/v1/models/a/../b",
            "/v1/models/%2e",
            "/v1/models/a b",
            "/v1beta/models/x",
            "/v1beta/models/x:countTokens",
            "/v1beta/models/a/b:generateContent",
            "/v1/audio/speech",
            "/v1/batches",
            "/v1/files",
            "/v1/realtime",
            "/v1/responses/resp_1",
            "/admin/v1/accounts",
            "/v1/images/generations",
            "/v1/responses/compact",
            "/v1beta/models/:generateContent",
        ] {
            assert_eq!(find(path), None, "{path}");
        }
    }
}
