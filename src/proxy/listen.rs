//! The listener of the proxy: connections, their limits, and how they end.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::worker::{Accepted, Load, Workers};
use super::{Context, serve, shed};
use crate::config::Config;

/// How long clients may take for the end of their replies when the process stops.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Accepts connections until `closing`, then lets those that are open come to their end.
///
/// # Errors
///
/// When the threads that serve them cannot be started.
pub async fn listen(
    ctx: Arc<Context>,
    listener: TcpListener,
    closing: CancellationToken,
) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(ctx.config.max_connections as usize));
    let addresses = Arc::new(Addresses::default());
    let workers = Workers::start(&ctx)?;
    loop {
        // No more are accepted than can be served: the others wait in the kernel's queue.
        let permit = tokio::select! {
            permit = Arc::clone(&connections).acquire_owned() => permit,
            () = closing.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => break,
        };
        let (Ok(permit), Ok((stream, peer))) = (permit, accepted) else {
            // Out of file handles: give those that are open time to end.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let peer = peer.ip().to_canonical();
        let Some(place) = addresses.take(peer, ctx.config.max_connections_per_address) else {
            continue;
        };
        stream.set_nodelay(true).ok();
        if let Ok(stream) = stream.into_std() {
            workers.deal(Accepted { stream, peer, counted: (permit, place) });
        }
    }
    drop(listener);
    workers.end().await;
    Ok(())
}

/// Serves the connections of one worker, until no more can come and all have ended.
pub async fn serve_all(
    ctx: &Arc<Context>,
    mut accepted: mpsc::UnboundedReceiver<(Accepted, Load)>,
) {
    let graceful = GracefulShutdown::new();
    let mut running = JoinSet::new();
    loop {
        let next = tokio::select! {
            next = accepted.recv() => next,
            Some(_) = running.join_next(), if !running.is_empty() => continue,
        };
        let Some((Accepted { stream, peer, counted }, load)) = next else { break };
        let Ok(stream) = TcpStream::from_std(stream) else { continue };
        let asked = Arc::new(AtomicBool::new(false));
        let io = Timed::new(TokioIo::new(stream), &ctx.config, Arc::clone(&asked));
        let serving = Arc::clone(ctx);
        let service = service_fn(move |request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            let ctx = Arc::clone(&serving);
            async move {
                // So many wait for their reply to begin, and more are refused at once.
                let Ok(_waiting) = ctx.pending.try_acquire() else { return Ok(shed(&ctx)) };
                // A box that goes with the request: hyper keeps the room of this future for as
                // long as the connection lasts, and thousands of streams are just waiting.
                Ok::<_, Infallible>(Box::pin(serve(Arc::clone(&ctx), request, peer)).await)
            }
        });
        let connection = builder(ctx).serve_connection(io, service).into_owned();
        let connection = graceful.watch(connection);
        running.spawn(async move {
            // How a connection ends is the client's business; what it used is settled elsewhere.
            connection.await.ok();
            drop((counted, load));
        });
    }
    let mut ended = std::pin::pin!(graceful.shutdown());
    tokio::select! {
        () = &mut ended => {}
        () = ctx.stop.cancelled() => {
            // Every reply ends now; their last words go out to those who take them.
            tokio::time::timeout(LAST_WORDS, ended).await.ok();
        }
    }
    // What is still here is dropped, and its bill settles itself.
    running.shutdown().await;
}

fn builder(ctx: &Context) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper counts the pause before a head in; the first one has a limit of its own.
        .header_read_timeout(ctx.config.keep_alive_timeout)
        .max_buf_size(ctx.config.max_head_bytes.max(8192))
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .max_pending_accept_reset_streams(20)
        .max_header_list_size(u32::try_from(ctx.config.max_head_bytes).unwrap_or(u32::MAX));
    builder
}

/// Connections from each address.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, u32>>);

/// Counts a connection of an address until it ends.
pub struct Place {
    addresses: Arc<Addresses>,
    ip: IpAddr,
}

impl Addresses {
    fn take(self: &Arc<Self>, ip: IpAddr, limit: u32) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let count = counts.entry(ip).or_insert(0);
        if *count >= limit && !ip.is_loopback() {
            return None;
        }
        *count += 1;
        Some(Place { addresses: Arc::clone(self), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

/// A connection whose client must do its part: bring a first request in time, and take the
/// bytes of its replies. One that takes none for too long is dropped, and its reply is drained.
struct Timed {
    io: TokioIo<TcpStream>,
    /// Set with the first request. Until then hyper's own limit does not cover a client that
    /// is silent, or that begins HTTP/2 and asks for nothing.
    asked: Arc<AtomicBool>,
    /// The end of the wait for it.
    opening: Pin<Box<Sleep>>,
    write_timeout: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    fn new(io: TokioIo<TcpStream>, config: &Config, asked: Arc<AtomicBool>) -> Self {
        Self {
            io,
            asked,
            opening: Box::pin(tokio::time::sleep(config.head_timeout)),
            write_timeout: config.write_timeout,
            waiting: None,
        }
    }

    fn check(
        &mut self,
        cx: &mut TaskContext<'_>,
        wrote: &Poll<io::Result<usize>>,
    ) -> Poll<io::Error> {
        if wrote.is_ready() {
            self.waiting = None;
            return Poll::Pending;
        }
        let timeout = self.write_timeout;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(io::Error::from(io::ErrorKind::TimedOut))
    }
}

impl Read for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if read.is_pending()
            && !self.asked.load(Ordering::Relaxed)
            && self.opening.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl Write for Timed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write(cx, bytes);
        match self.check(cx, &wrote) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => wrote,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        match self.check(cx, &wrote) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => wrote,
        }
    }
}
