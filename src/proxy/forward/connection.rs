//! One HTTP/1 connection to an upstream: a request goes out, its reply comes in.
//!
//! Both happen in the task that serves the client: no frame is handed from one task to
//! another, and while nothing comes no buffer is held. What the bytes mean is `wire::http1`'s.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http::Response;
use hyper::rt::{Read, ReadBuf, Write};

use super::connect::Io;
use super::pool::Pool;
use crate::wire::http1;

/// The most that is read at once, in bytes.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    /// Where bytes arrive. They leave it before anything else happens.
    static ARRIVALS: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// A connection, with the rest of a request that is not written yet.
pub struct Connection {
    /// Large where it is TLS, and a connection is handed around.
    io: Box<Io>,
    head: Bytes,
    body: Bytes,
    /// Something of the request was written, so the upstream may act on it.
    began: bool,
    /// What was written may still wait in the TLS layer.
    unflushed: bool,
}

/// Why a connection gave no reply.
#[derive(Debug)]
pub enum Broken {
    /// Nothing of the request was written.
    Unsent(io::Error),
    /// The upstream may have seen the request.
    Uncertain(io::Error),
}

/// The body of a reply.
pub struct Incoming {
    body: http1::Body,
    /// Came with the head.
    ahead: Bytes,
    /// `None` once it is given back or broken.
    connection: Option<Connection>,
    keeps_alive: bool,
    pool: Arc<Pool>,
}

impl Connection {
    /// A connection that has served nothing yet.
    pub fn new(io: Io) -> Self {
        Self {
            io: Box::new(io),
            head: Bytes::new(),
            body: Bytes::new(),
            began: false,
            unflushed: false,
        }
    }

    /// Whether an idle connection is still open. What an upstream sends unasked is no reply to
    /// anything, so it is given up too.
    pub fn is_idle(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut *self.io).poll_read(&mut cx, buffer.unfilled()).is_pending()
    }

    /// Sends a request and waits for the head of its reply, which may come before all of the
    /// request has gone.
    ///
    /// # Errors
    ///
    /// [`Broken`]. Dropped before it is ready, the connection is closed.
    pub fn exchange(
        mut self,
        head: Bytes,
        body: Bytes,
        pool: &Arc<Pool>,
    ) -> impl Future<Output = Result<Response<Incoming>, Broken>> {
        (self.head, self.body, self.began) = (head, body, false);
        async move {
            let mut before = Vec::new();
            let arrived = std::future::poll_fn(|cx| self.poll_head(cx, &mut before)).await?;
            let Arrived { head, ahead, is_clean } = arrived;
            let mut incoming = Incoming {
                body: head.body,
                ahead: ahead.into(),
                connection: Some(self),
                keeps_alive: head.keeps_alive && is_clean,
                pool: Arc::clone(pool),
            };
            incoming.give_back_if_over();
            let mut reply = Response::new(incoming);
            *reply.status_mut() = head.status;
            *reply.headers_mut() = head.headers;
            Ok(reply)
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        before: &mut Vec<u8>,
    ) -> Poll<Result<Arrived, Broken>> {
        // A peer that refuses a request may close its side and have answered all the same.
        let mut failed = match self.poll_send(cx) {
            Poll::Ready(Err(error)) if !self.began => {
                return Poll::Ready(Err(Broken::Unsent(error)));
            }
            Poll::Ready(Err(error)) => Some(error),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        };
        loop {
            let read = self.poll_read(cx, |arrived| read_head(before, arrived));
            let read = match (read, failed.take()) {
                (Poll::Pending, None) => return Poll::Pending,
                (Poll::Pending, Some(error)) => Err(error),
                (Poll::Ready(read), unsent) => {
                    failed = unsent;
                    read
                }
            };
            match read {
                Ok(Ok(Some(arrived))) => return Poll::Ready(Ok(arrived)),
                Ok(Ok(None)) => {}
                Ok(Err(error)) | Err(error) => return Poll::Ready(Err(Broken::Uncertain(error))),
            }
        }
    }

    /// Writes what is left of the request.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.head.has_remaining() || self.body.has_remaining() {
            let parts = [IoSlice::new(&self.head), IoSlice::new(&self.body)];
            let written = ready!(Pin::new(&mut *self.io).poll_write_vectored(cx, &parts))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            (self.began, self.unflushed) = (true, true);
            let of_head = written.min(self.head.len());
            self.head.advance(of_head);
            self.body.advance(written - of_head);
        }
        if self.unflushed {
            ready!(Pin::new(&mut *self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        // The memory of what is gone is given back.
        (self.head, self.body) = (Bytes::new(), Bytes::new());
        Poll::Ready(Ok(()))
    }

    fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        ARRIVALS.with_borrow_mut(|space| {
            let mut buffer = ReadBuf::new(space);
            ready!(Pin::new(&mut *self.io).poll_read(cx, buffer.unfilled()))?;
            Poll::Ready(Ok(take(buffer.filled())))
        })
    }

    fn is_sent(&self) -> bool {
        self.head.is_empty() && self.body.is_empty() && !self.unflushed
    }
}

/// What came of a reply with the end of its head.
struct Arrived {
    /// The head, with its body as it stands then.
    head: http1::Head,
    /// The bytes of the body that came along.
    ahead: Vec<u8>,
    /// Nothing else came along.
    is_clean: bool,
}

/// Reads the head in what arrived; `before` keeps what is not enough.
fn read_head(before: &mut Vec<u8>, arrived: &[u8]) -> io::Result<Option<Arrived>> {
    if arrived.is_empty() {
        return Err(closed());
    }
    let is_first = before.is_empty();
    let all = if is_first {
        arrived
    } else {
        before.extend_from_slice(arrived);
        before.as_slice()
    };
    let Some((mut head, length)) = http1::head(all).map_err(io::Error::other)? else {
        if is_first {
            before.extend_from_slice(arrived);
        }
        return Ok(None);
    };
    let rest = &all[length..];
    let mut ahead = Vec::with_capacity(rest.len());
    let taken = head.body.take(rest, &mut ahead).map_err(io::Error::other)?;
    Ok(Some(Arrived { head, ahead, is_clean: taken == rest.len() }))
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before the reply did")
}

impl Incoming {
    /// The next bytes; `None` at the end that the head promised.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.ahead.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.ahead))));
        }
        loop {
            if self.body.is_over() {
                return Poll::Ready(None);
            }
            let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
            if !connection.is_sent() && matches!(connection.poll_send(cx), Poll::Ready(Err(_))) {
                // It wants no more of the request; its reply may come all the same.
                (connection.head, connection.body) = (Bytes::new(), Bytes::new());
                (connection.unflushed, self.keeps_alive) = (false, false);
            }
            let body = &mut self.body;
            let read = ready!(connection.poll_read(cx, |arrived| {
                if arrived.is_empty() {
                    return Ok(None);
                }
                let mut data = Vec::with_capacity(arrived.len());
                let taken = body.take(arrived, &mut data).map_err(io::Error::other)?;
                Ok(Some((data, taken == arrived.len())))
            }));
            match read.and_then(|read| read) {
                Ok(Some((data, is_clean))) => {
                    self.keeps_alive &= is_clean;
                    self.give_back_if_over();
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(data.into())));
                    }
                }
                Ok(None) => {
                    self.connection = None;
                    return Poll::Ready(match self.body {
                        http1::Body::UntilClose => None,
                        _ => Some(Err(closed())),
                    });
                }
                Err(error) => {
                    self.connection = None;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    /// The connection may serve another request once this reply is over.
    fn give_back_if_over(&mut self) {
        if self.body.is_over()
            && let Some(connection) = self.connection.take()
            && self.keeps_alive
            && connection.is_sent()
        {
            self.pool.put(connection);
        }
    }
}
