//! A client that sends one request over a connection of its own and reads the reply frame by
//! frame, so that a test can leave at any point.

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::edits::{blocks, data_of};
use super::within;

/// A request to be sent.
pub struct Call {
    method: Method,
    url: String,
    headers: Vec<(String, String)>,
    body: Bytes,
    resets: bool,
}

impl Call {
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self { method, url: url.into(), headers: Vec::new(), body: Bytes::new(), resets: false }
    }

    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::GET, url)
    }

    pub fn post(url: impl Into<String>, body: &Value) -> Self {
        let call = Self::new(Method::POST, url).header("content-type", "application/json");
        call.body(body.to_string())
    }

    /// As a browser sends a form.
    pub fn form(url: impl Into<String>, fields: &str) -> Self {
        let kind = "application/x-www-form-urlencoded";
        Self::new(Method::POST, url).header("content-type", kind).body(fields.to_owned())
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn bearer(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Leaves with a reset of the connection instead of closing it.
    pub fn resetting(mut self) -> Self {
        self.resets = true;
        self
    }

    /// Sends the request and reads the head of the reply.
    pub async fn send(self) -> Stream {
        let what = format!("{} {}", self.method, self.url);
        within(&what, self.try_send()).await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Sends the request and reads the whole reply.
    pub async fn reply(self) -> Reply {
        self.send().await.rest().await
    }

    /// As [`Call::send`], where the connection itself may fail.
    pub async fn try_send(self) -> Result<Stream, Box<dyn std::error::Error + Send + Sync>> {
        let rest = self.url.strip_prefix("http://").expect("an http address");
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        if self.resets {
            stream.set_zero_linger()?;
        }
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = Connection(tokio::spawn(async move {
            // What went wrong is seen where the reply is read.
            let _ = connection.await;
        }));
        let path = if path.is_empty() { "/" } else { path };
        let mut request = Request::builder().method(self.method).uri(path).header("host", host);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let reply = sender.send_request(request.body(Full::new(self.body))?).await?;
        let (head, body) = reply.into_parts();
        Ok(Stream {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            received: Vec::new(),
            _connection: connection,
        })
    }
}

/// Ends the connection with the reply.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A reply that is being read. Dropping it hangs up.
pub struct Stream {
    pub status: u16,
    pub headers: HeaderMap,
    /// The body so far.
    pub received: Vec<u8>,
    body: Incoming,
    _connection: Connection,
}

impl Stream {
    /// The next piece of the body; `None` at its end, an error if it was cut.
    pub async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame = within("the next piece of a reply", self.body.frame()).await?;
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) => {
                    self.received.extend_from_slice(&data);
                    return Some(Ok(data));
                }
                Ok(Err(_trailers)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Reads until the body so far contains this text.
    pub async fn until(&mut self, text: &str) {
        while memchr::memmem::find(&self.received, text.as_bytes()).is_none() {
            match self.next().await {
                Some(Ok(_)) => {}
                end => panic!("the reply ended ({end:?}) before {text:?}: {}", self.text()),
            }
        }
    }

    /// Reads until so many events are complete, or the end.
    pub async fn events(&mut self, n: usize) {
        let ends = |block: &&&[u8]| block.ends_with(b"\n\n") || block.ends_with(b"\r\n\r\n");
        let complete = |received: &[u8]| blocks(received).iter().filter(ends).count();
        while complete(&self.received) < n {
            if !matches!(self.next().await, Some(Ok(_))) {
                return;
            }
        }
    }

    /// The body so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.received).into_owned()
    }

    /// Reads the rest.
    pub async fn rest(mut self) -> Reply {
        let complete = loop {
            match self.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => break false,
                None => break true,
            }
        };
        Reply { status: self.status, headers: self.headers, body: self.received, complete }
    }
}

/// A reply as far as it came.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// False if the body was cut.
    pub complete: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("no JSON ({error}) in a reply of status {}: {}", self.status, self.text())
        })
    }

    /// The code of an error in OpenAI's shape.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().into()
    }

    /// The data of the events that are JSON.
    pub fn events(&self) -> Vec<Value> {
        let blocks = blocks(&self.body).into_iter();
        blocks.filter_map(|block| serde_json::from_str(&data_of(block)).ok()).collect()
    }

    /// Fails the test unless the reply is whole and of this status.
    pub fn expect(self, status: u16) -> Self {
        assert!(self.status == status && self.complete, "not a whole {status}: {self:?}");
        self
    }
}
