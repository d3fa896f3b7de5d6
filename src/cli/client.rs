//! A client of the control plane. It never follows redirects and takes no proxy from the
//! environment, so the admin key goes to the address on the command line and nowhere else.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Url};
use serde::de::DeserializeOwned;

use super::failure::{Exit, Failure};
use crate::admin::error::ErrorBody;
use crate::key::Secret;
use crate::store::{Key, Rows};

/// Longest time for something long, and longest pause in it.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The control plane, as this command reaches it.
pub struct Client {
    http: reqwest::Client,
    url: Url,
    key: Secret,
}

/// A document of the control plane, as it was sent.
pub struct Answer(String);

impl Answer {
    /// The JSON text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The document as a value.
    ///
    /// # Errors
    ///
    /// When the server speaks another version of the API.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_str(&self.0).map_err(|error| {
            let message = format!("the answer cannot be read ({error}); is the server newer?");
            Failure::new(Exit::Failed, message).next("farebox --version")
        })
    }
}

/// Parameters of a query; those without a value are left out.
pub type Query<'a> = &'a [(&'a str, Option<String>)];

impl Client {
    /// A client of the control plane at `url`.
    ///
    /// # Errors
    ///
    /// When the URL cannot be one, or TLS cannot be set up.
    pub fn new(url: &Url, key: Secret, timeout: Duration) -> Result<Self, Failure> {
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            let message = format!("--url {url}: not an http or https address");
            return Err(Failure::new(Exit::Usage, message));
        }
        // Fails only if it was done before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if url.scheme() == "http" {
            // An image without certificates must not fail where none are needed.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|e| Failure::new(Exit::Failed, chain(&e)))?;
        Ok(Self { http, url: url.clone(), key })
    }

    /// Reads a document.
    ///
    /// # Errors
    ///
    /// As the server says, or that it does not answer.
    pub async fn get(&self, path: &[&str], query: Query<'_>) -> Result<Answer, Failure> {
        self.send(self.request(Method::GET, path, query)).await
    }

    /// Reads something long, such as a file: the caller takes it piece by piece, or waits for
    /// what takes the server as long. Only the wait for each piece has a limit then.
    ///
    /// # Errors
    ///
    /// As the server says, or that it does not answer.
    pub async fn download(&self, path: &[&str], query: Query<'_>) -> Result<Download, Failure> {
        let request = self.request(Method::GET, path, query).timeout(LONGEST);
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return Ok(Download { response, from: self.url.clone() });
        }
        Err(self.refused(response).await)
    }

    /// Sends a document; `idempotency_key` where it changes money.
    ///
    /// # Errors
    ///
    /// As the server says, or that it does not answer.
    pub async fn post(
        &self,
        path: &[&str],
        body: &serde_json::Value,
        idempotency_key: Option<&str>,
    ) -> Result<Answer, Failure> {
        let mut request = self.request(Method::POST, path, &[]).json(body);
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        self.send(request).await
    }

    /// Changes what a path names.
    ///
    /// # Errors
    ///
    /// As the server says, or that it does not answer.
    pub async fn patch(&self, path: &[&str], body: &serde_json::Value) -> Result<Answer, Failure> {
        self.send(self.request(Method::PATCH, path, &[]).json(body)).await
    }

    /// Sends a document that the server works on for as long as it takes.
    ///
    /// # Errors
    ///
    /// As the server says, or that it does not answer.
    pub async fn post_long(
        &self,
        path: &[&str],
        body: &serde_json::Value,
    ) -> Result<Answer, Failure> {
        self.send(self.request(Method::POST, path, &[]).timeout(LONGEST).json(body)).await
    }

    /// Ends what a path names.
    ///
    /// # Errors
    ///
    /// As the server says, or that it does not answer.
    pub async fn delete(&self, path: &[&str]) -> Result<Answer, Failure> {
        self.send(self.request(Method::DELETE, path, &[])).await
    }

    /// The keys of an account.
    ///
    /// # Errors
    ///
    /// As the server says, or that it does not answer.
    pub async fn keys(&self, account: &str) -> Result<Vec<Key>, Failure> {
        let answer = self.get(&["accounts", account, "keys"], &[]).await?;
        Ok(answer.read::<Rows<Key>>()?.data)
    }

    fn request(&self, method: Method, path: &[&str], query: Query<'_>) -> RequestBuilder {
        let url = address(&self.url, path, query);
        self.http.request(method, url).bearer_auth(self.key.expose())
    }

    async fn send(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        response.text().await.map(Answer).map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let message = format!("no answer from {}: {}", self.url, chain(&error.without_url()));
        Failure::new(Exit::Unreachable, message)
            .next("farebox serve    (or give its address: --url, FAREBOX_URL)")
    }

    /// What an answer that is not a success says.
    async fn refused(&self, response: reqwest::Response) -> Failure {
        let status = response.status().as_u16();
        let text = match response.text().await {
            Ok(text) => text,
            Err(error) => return self.unreachable(error),
        };
        match serde_json::from_str::<ErrorBody>(&text) {
            Ok(body) => refusal(status, &body.error.code, &body.error.message),
            Err(_) => Failure::new(
                Exit::Failed,
                format!("{} answered {status} and not as Farebox's control plane does", self.url),
            )
            .next("farebox --url http://127.0.0.1:8081 account list"),
        }
    }
}

/// Something long that arrives piece by piece.
pub struct Download {
    response: reqwest::Response,
    from: Url,
}

impl Download {
    /// A header of the answer; empty if it has none of this name.
    pub fn header(&self, name: &str) -> String {
        let value = self.response.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    }

    /// The next piece; none at the end.
    ///
    /// # Errors
    ///
    /// When it breaks off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let broken = |why: String| {
            let message = format!("the answer of {} broke off: {why}", self.from);
            Failure::new(Exit::Unreachable, message)
        };
        match tokio::time::timeout(LONGEST_PAUSE, self.response.chunk()).await {
            Ok(piece) => piece.map_err(|error| broken(chain(&error.without_url()))),
            Err(_) => Err(broken("nothing came for too long".to_owned())),
        }
    }

    /// All of it, as a document.
    ///
    /// # Errors
    ///
    /// When it breaks off.
    pub async fn document(mut self) -> Result<Answer, Failure> {
        let mut text = Vec::new();
        while let Some(piece) = self.next().await? {
            text.extend_from_slice(&piece);
        }
        Ok(Answer(String::from_utf8_lossy(&text).into_owned()))
    }
}

/// `url` with the segments of a path below `/admin/v1`, each escaped, and a query.
fn address(url: &Url, path: &[&str], query: Query<'_>) -> Url {
    let mut url = url.clone();
    url.path_segments_mut()
        .expect("http and https addresses have a path")
        .pop_if_empty()
        .extend(["admin", "v1"])
        .extend(path);
    let given = query.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    for (name, value) in given {
        url.query_pairs_mut().append_pair(name, value);
    }
    url
}

/// What an error of the control plane means for the exit code, and what to run then.
fn refusal(status: u16, code: &str, message: &str) -> Failure {
    let exit = match status {
        401 | 403 => Exit::Auth,
        404 => Exit::NotFound,
        409 | 422 => Exit::Refused,
        421 => Exit::Config,
        503 => Exit::Unreachable,
        400..500 => Exit::Usage,
        _ => Exit::Failed,
    };
    let failure = Failure::new(exit, message);
    match code {
        "invalid_api_key" => {
            failure.next("farebox --admin-key-file FILE …    (or FAREBOX_ADMIN_KEY)")
        }
        "account_not_found" => failure.next("farebox account list"),
        "key_not_found" => failure.next("farebox key list"),
        _ => failure,
    }
}

/// An error and what is behind it, which alone says why a connection failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_stays_one_segment_or_one_value() {
        let url: Url = "http://127.0.0.1:8081".parse().unwrap();
        let query = [("model", Some("a&b=c".to_owned())), ("tag", None)];
        let address = address(&url, &["accounts", "../x?y#z", "usage"], &query);
        assert_eq!(
            address.as_str(),
            "http://127.0.0.1:8081/admin/v1/accounts/..%2Fx%3Fy%23z/usage?model=a%26b%3Dc"
        );
    }

    #[test]
    fn a_base_address_may_have_a_path() {
        for url in ["https://host/farebox", "https://host/farebox/"] {
            let address = address(&url.parse().unwrap(), &["prices"], &[]);
            assert_eq!(address.as_str(), "https://host/farebox/admin/v1/prices");
        }
    }

    #[test]
    fn refusals_have_the_exit_codes_of_the_manual() {
        let exit = |status, code| refusal(status, code, "x").exit;
        assert_eq!(exit(400, "invalid_value"), Exit::Usage);
        assert_eq!(exit(401, "invalid_api_key"), Exit::Auth);
        assert_eq!(exit(404, "account_not_found"), Exit::NotFound);
        assert_eq!(exit(409, "conflict"), Exit::Refused);
        assert_eq!(exit(422, "amount_out_of_range"), Exit::Refused);
        assert_eq!(exit(500, "internal_error"), Exit::Failed);
        assert_eq!(exit(503, "ledger_unavailable"), Exit::Unreachable);
    }
}
