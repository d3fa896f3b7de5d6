//! Posts alerts to the address that an account named, signed, so that the receiver knows that
//! they are ours and of now.
//!
//! The address is the word of whoever set the rule, so a connection goes to the public
//! internet alone unless the operator allows private networks; a redirect is not followed,
//! and of the answer nothing but its status is looked at.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Request, Uri};
use http_body_util::Full;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use sha2::Sha256;

use crate::net::{Guarded, is_link_local, is_public};

/// Longest wait for the receiver.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest address, in characters.
const URL_CHARS: usize = 500;

/// Posts alerts.
pub struct Webhooks {
    client: Client<HttpsConnector<HttpConnector<Guarded>>, Full<Bytes>>,
    allow_private: bool,
}

/// Why an alert did not arrive, in words that may be shown to whoever set the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// The address may not be called.
    #[error("{0}")]
    Refused(&'static str),
    /// There was no connection.
    #[error("the receiver could not be reached")]
    Unreachable,
    /// No answer in time.
    #[error("the receiver did not answer within 10 seconds")]
    Silent,
    /// It answered, but not with success.
    #[error("the receiver answered with status {0}")]
    Status(u16),
    /// The mail server refused the mail or could not be reached.
    #[error("{0}")]
    Mail(String),
}

impl Webhooks {
    /// Connects to nothing yet. With `allow_private` also to this machine and private networks,
    /// and without TLS.
    pub fn new(allow_private: bool) -> Self {
        let may_call: fn(IpAddr) -> bool =
            if allow_private { |ip| !is_link_local(ip) } else { is_public };
        let mut http = HttpConnector::new_with_resolver(Guarded::new(may_call));
        http.enforce_http(false);
        http.set_connect_timeout(Some(PATIENCE));
        let https = hyper_rustls::HttpsConnectorBuilder::new().with_webpki_roots();
        let https = if allow_private { https.https_or_http() } else { https.https_only() };
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            // Alerts are rare: a connection kept would only go stale.
            .pool_max_idle_per_host(0)
            .build(https.enable_http1().wrap_connector(http));
        Self { client, allow_private }
    }

    /// Whether an address may be set: the rest is known once its name is resolved.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as the end of a sentence.
    pub fn check(&self, url: &str) -> Result<Uri, &'static str> {
        if url.len() > URL_CHARS {
            return Err("must have at most 500 characters");
        }
        let uri: Uri = url.parse().map_err(|_| "must be an address such as https://host/path")?;
        let host = uri.host().ok_or("must be an address such as https://host/path")?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("must not hold a password");
        }
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if self.allow_private => {}
            _ => return Err("must begin with https://"),
        }
        // A number is called as it stands, without a look at the resolver.
        let number: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        let is_refused = |ip| if self.allow_private { is_link_local(ip) } else { !is_public(ip) };
        if number.is_some_and(is_refused) {
            return Err("must be an address of the public internet");
        }
        Ok(uri)
    }

    /// Posts a document.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], unless it is answered with success.
    pub async fn post(
        &self,
        url: &str,
        secret: &str,
        timestamp_s: i64,
        body: String,
    ) -> Result<(), Undelivered> {
        let uri = self.check(url).map_err(Undelivered::Refused)?;
        let mut request = Request::new(Full::new(Bytes::from(body.clone())));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let agent = concat!("farebox/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        headers.insert("x-farebox-timestamp", HeaderValue::from(timestamp_s));
        let signature = format!("v1={}", signature(secret, timestamp_s, &body));
        headers.insert("x-farebox-signature", signature.parse().expect("hex is ASCII"));
        match tokio::time::timeout(PATIENCE, self.client.request(request)).await {
            Ok(Ok(reply)) if reply.status().is_success() => Ok(()),
            Ok(Ok(reply)) => Err(Undelivered::Status(reply.status().as_u16())),
            Ok(Err(error)) => {
                tracing::debug!("a webhook was not reached: {error}");
                Err(Undelivered::Unreachable)
            }
            Err(_) => Err(Undelivered::Silent),
        }
    }
}

/// HMAC-SHA-256 of `timestamp.body` in hex: what the header `x-farebox-signature` says
/// behind `v1=`.
pub fn signature(secret: &str, timestamp_s: i64, body: &str) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key may have any length");
    mac.update(timestamp_s.to_string().as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's `hmac`.
    #[test]
    fn a_signature_is_the_hmac_of_timestamp_and_body() {
        assert_eq!(
            signature("whsec_test", 1_790_000_000, r#"{"id":"1"}"#),
            "63357835f228c6596e4efd334a9a9156a4a3e2a1cc1ac23c50c0e6aeb7934853"
        );
    }

    #[tokio::test]
    async fn an_address_is_https_public_and_without_a_password() {
        let strict = Webhooks::new(false);
        for url in
            ["https://example.com/hook", "https://1.1.1.1/x", "https://example.com:8443/a?b=c"]
        {
            assert!(strict.check(url).is_ok(), "{url}");
        }
        for url in [
            "http://example.com/",
            "ftp://example.com/",
            "example.com",
            "/hook",
            "",
            "https://",
            "https://user:secret@example.com/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://10.0.0.1/",
            "https://169.254.169.254/latest",
            "https://[::ffff:10.0.0.1]/",
            "https://192.168.0.1:8443/x",
        ] {
            assert!(strict.check(url).is_err(), "{url}");
        }
        let open = Webhooks::new(true);
        for url in ["http://127.0.0.1:9/", "https://192.168.0.1/", "http://localhost/x"] {
            assert!(open.check(url).is_ok(), "{url}");
        }
        for url in ["http://169.254.169.254/", "http://[fe80::1]/", "http://u:p@127.0.0.1/"] {
            assert!(open.check(url).is_err(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_not_called_unless_the_operator_allows_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!("https://localhost:{port}/");
        let sent = Webhooks::new(false).post(&url, "s", 0, String::new()).await;
        assert_eq!(sent, Err(Undelivered::Unreachable));
        let called = futures_now(listener.accept());
        assert!(called.await, "nobody may have called");
    }

    /// Whether a future is not ready when it is first looked at.
    async fn futures_now<T>(future: impl Future<Output = T>) -> bool {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending()))
            .await
    }
}
