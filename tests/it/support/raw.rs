//! A client that writes bytes: for requests that no library would send.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// One connection.
pub struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A reply as it stood on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReply {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    /// Without chunked framing.
    pub body: Vec<u8>,
}

impl RawReply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Raw {
    /// Connects to an address such as `http://127.0.0.1:4711`.
    pub async fn connect(url: &str) -> Self {
        let addr: SocketAddr = url.trim_start_matches("http://").parse().unwrap();
        let stream = within("a connection", TcpStream::connect(addr)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// Writes bytes. A server that has already hung up is seen when reading.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within("a write", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Closes our half and leaves the other open.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Leaves with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// The next reply; `None` if the connection ends without one.
    pub async fn reply(&mut self) -> Option<RawReply> {
        within("a raw reply", self.read_reply()).await
    }

    /// Whether anything has come, or comes within a moment.
    pub async fn has_more(&mut self) -> bool {
        let moment = std::time::Duration::from_millis(100);
        !self.buffer.is_empty() || tokio::time::timeout(moment, self.more()).await.is_ok()
    }

    /// Reads until what has come contains this text.
    pub async fn until(&mut self, text: &str) {
        while memchr::memmem::find(&self.buffer, text.as_bytes()).is_none() {
            assert!(within("more of a raw reply", self.more()).await, "it ended before {text:?}");
        }
    }

    /// Reads so many pieces, as they come, or to the end.
    pub async fn pieces(&mut self, n: usize) {
        for _ in 0..n {
            if !within("a piece of a raw reply", self.more()).await {
                break;
            }
        }
    }

    /// Whether the server closes the connection, with nothing more to say.
    pub async fn closes(&mut self) -> bool {
        self.buffer.is_empty() && !within("the end of a connection", self.more()).await
    }

    /// Whether the connection takes another request: sends it and looks for a reply.
    pub async fn still_serves(&mut self, request: &str) -> bool {
        self.write(request).await;
        self.reply().await.is_some()
    }

    /// Everything until the server closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        within("the end of a connection", async { while self.more().await {} }).await;
        std::mem::take(&mut self.buffer)
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..))
    }

    async fn read_reply(&mut self) -> Option<RawReply> {
        let head = self.take_until(b"\r\n\r\n").await?;
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut reply = RawReply { status, headers, body: Vec::new() };
        if status / 100 == 1 || status == 204 {
            return Some(reply);
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = String::from_utf8(self.take_until(b"\r\n").await?).unwrap();
                let size = usize::from_str_radix(line.trim(), 16).unwrap();
                let chunk = self.take(size).await?;
                self.take_until(b"\r\n").await?;
                if size == 0 {
                    return Some(reply);
                }
                reply.body.extend_from_slice(&chunk);
            }
        }
        match reply.header("content-length") {
            Some(length) => reply.body = self.take(length.parse().unwrap()).await?,
            None => {
                while self.more().await {}
                reply.body = std::mem::take(&mut self.buffer);
            }
        }
        Some(reply)
    }

    async fn take_until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, end) {
                let rest = self.buffer.split_off(at + end.len());
                return Some(std::mem::replace(&mut self.buffer, rest));
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.more().await {
                return None;
            }
        }
        let rest = self.buffer.split_off(length);
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}
