//! Meters a reply while it streams to the client.
//!
//! Frames pass unchanged, as they come. Only the last one waits, until the debit is
//! committed: a complete reply is a paid one. If the client hangs up, the reply moves to a
//! task that reads on, because the connection does not own the meter.
//!
//! Elsewhere: prices (`billing::price`), formats (`wire`), who pays (`settle`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Context;
use super::body::Decoder;
use super::error::Error;
use super::forward::Incoming;
use super::settle::{Bill, End, Ending, Settling};
use crate::wire::Endpoint;
use crate::wire::meter::Meter;

/// After the terminal event an upstream may take so long to close; a client waits for its end.
const GRACE: Duration = Duration::from_millis(500);
/// The same after an event that only may be the last, as in Gemini's streams.
const LONG_GRACE: Duration = Duration::from_secs(5);

/// A reply on its way, not at its end yet.
pub struct Stream {
    /// From the upstream.
    pub body: Upstream,
    /// Reads it.
    pub meter: Meter,
    /// What it will settle.
    pub bill: Bill,
    /// Its dialect.
    pub endpoint: Endpoint,
    /// Longest pause.
    pub idle_timeout: Duration,
    /// When it has lasted too long.
    pub deadline: Instant,
    /// The status that the client got.
    pub status: u16,
}

impl Stream {
    /// How long the upstream may be silent now, and whether the reply is whole if it is longer.
    fn pause(&self) -> (Duration, bool) {
        let grace = match (self.meter.is_terminal(), self.meter.may_be_over()) {
            (true, _) => Some(GRACE),
            (false, true) => Some(LONG_GRACE),
            (false, false) => None,
        };
        (grace.unwrap_or(self.idle_timeout).min(self.idle_timeout), grace.is_some())
    }
}

/// A body from an upstream, with an encoding undone that we did not ask for.
pub struct Upstream {
    body: Incoming,
    decoder: Option<Decoder>,
    /// Read ahead, to find out what the body is.
    ahead: Option<Bytes>,
}

/// Why no more comes from an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It ended as it should.
    End,
    /// It was cut off, or is not what it says.
    Cut,
}

impl Upstream {
    /// A body, and the decoder of its encoding if it has one.
    pub const fn new(body: Incoming, decoder: Option<Decoder>) -> Self {
        Self { body, decoder, ahead: None }
    }

    /// Puts bytes back that were read.
    pub fn unread(&mut self, bytes: Bytes) {
        self.ahead = Some(bytes);
    }

    /// The next bytes.
    pub fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<Bytes, Stop>> {
        if let Some(bytes) = self.ahead.take() {
            return Poll::Ready(Ok(bytes));
        }
        loop {
            let bytes = match ready!(self.body.poll_data(cx)) {
                None => return Poll::Ready(Err(Stop::End)),
                Some(Err(_)) => return Poll::Ready(Err(Stop::Cut)),
                Some(Ok(bytes)) => bytes,
            };
            let bytes = match &mut self.decoder {
                None => bytes,
                Some(decoder) => match decoder.push(&bytes) {
                    Ok(bytes) => bytes,
                    Err(_) => return Poll::Ready(Err(Stop::Cut)),
                },
            };
            if !bytes.is_empty() {
                return Poll::Ready(Ok(bytes));
            }
        }
    }

    /// The next bytes.
    pub async fn next(&mut self) -> Result<Bytes, Stop> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }
}

/// The body that the client reads.
pub struct Tap {
    ctx: Arc<Context>,
    state: State,
    /// Set for the earliest moment at which something could be overdue.
    timer: Pin<Box<Sleep>>,
    heard: Instant,
    /// Wakes the connection when the process stops. Polled once: the task that polls a body
    /// stays the same.
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    registered: bool,
}

enum State {
    /// Frames pass.
    Streaming(Box<Stream>),
    /// The debit is being committed; then the last bytes go.
    Settling(Settling, Last),
    /// What was said last is on its way out.
    Breaking,
    /// Nothing is left but to break the connection off.
    Broken,
    /// Done.
    Ended,
}

/// What the client gets once the debit is committed.
struct Last {
    bytes: Bytes,
    /// The reply is not whole, and the connection says so too.
    broken: bool,
    endpoint: Endpoint,
    request_id: String,
}

impl Tap {
    /// Lets a reply pass.
    pub fn new(ctx: &Arc<Context>, stream: Stream) -> Self {
        let now = Instant::now();
        Self {
            ctx: Arc::clone(ctx),
            timer: Box::pin(tokio::time::sleep_until(now + stream.idle_timeout)),
            heard: now,
            stopping: Box::pin(ctx.stop.clone().cancelled_owned()),
            registered: false,
            state: State::Streaming(Box::new(stream)),
        }
    }

    /// The next frame for the client.
    pub fn poll_frame(
        &mut self,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            match &mut self.state {
                State::Streaming(stream) => match stream.body.poll(cx) {
                    Poll::Ready(Ok(bytes)) => {
                        self.heard = Instant::now();
                        // An upstream that is never silent is stopped here.
                        if self.heard >= stream.deadline {
                            self.settle(Ending::Upstream, Some(Error::UpstreamTimeout));
                            continue;
                        }
                        stream.bill.first_byte();
                        let bytes = stream.meter.push(bytes);
                        if !bytes.is_empty() {
                            return Poll::Ready(Some(Ok(Frame::data(bytes))));
                        }
                    }
                    Poll::Ready(Err(Stop::End)) => self.settle(Ending::Whole, None),
                    // What is cut off after the event that ends a reply was whole.
                    Poll::Ready(Err(Stop::Cut)) if stream.meter.is_terminal() => {
                        self.settle(Ending::Whole, None);
                    }
                    Poll::Ready(Err(Stop::Cut)) => {
                        self.settle(Ending::Upstream, Some(Error::UpstreamCut));
                    }
                    Poll::Pending => {
                        let (ending, error) = ready!(self.poll_overdue(cx));
                        self.settle(ending, error);
                    }
                },
                State::Settling(settling, last) => {
                    let settled = ready!(Pin::new(settling).poll(cx));
                    let mut bytes = std::mem::take(&mut last.bytes);
                    let mut broken = last.broken;
                    if let Err(error) = settled {
                        bytes = error.event(last.endpoint, &last.request_id).into();
                        broken = true;
                    }
                    self.state = if broken { State::Breaking } else { State::Ended };
                    if !bytes.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
                State::Breaking => {
                    // hyper writes out what it has when there is nothing more for now, and
                    // drops it when the body fails.
                    self.state = State::Broken;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Broken => {
                    self.state = State::Ended;
                    return Poll::Ready(Some(Err(Error::UpstreamCut)));
                }
                State::Ended => return Poll::Ready(None),
            }
        }
    }

    /// Ready when the stream ends for want of time, or because the process stops.
    fn poll_overdue(&mut self, cx: &mut TaskContext<'_>) -> Poll<(Ending, Option<Error>)> {
        let first = !std::mem::replace(&mut self.registered, true);
        if self.ctx.stop.is_cancelled() || (first && self.stopping.as_mut().poll(cx).is_ready()) {
            return Poll::Ready((Ending::Ours, Some(Error::Draining)));
        }
        let State::Streaming(stream) = &self.state else { return Poll::Pending };
        let (pause, done) = stream.pause();
        let overdue = (self.heard + pause).min(stream.deadline);
        if Instant::now() < overdue {
            // The timer is moved when it fires or must fire earlier, not with each frame.
            if self.timer.deadline() <= overdue && self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.timer.as_mut().reset(overdue);
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(if done {
            (Ending::Whole, None)
        } else {
            (Ending::Upstream, Some(Error::UpstreamTimeout))
        })
    }

    /// From streaming to settling: `error` is what the client is told instead of an end.
    fn settle(&mut self, ending: Ending, error: Option<Error>) {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let State::Streaming(mut stream) = state else { return };
        let broken = error.is_some();
        let bytes = match error {
            None => stream.meter.finish(),
            Some(error) => {
                let event = error.event(stream.endpoint, stream.bill.id());
                let (held, between_events) = stream.meter.cut();
                let event = if between_events { event } else { String::new() };
                [held.as_ref(), event.as_bytes()].concat().into()
            }
        };
        let last = Last {
            bytes,
            broken,
            endpoint: stream.endpoint,
            request_id: stream.bill.id().to_owned(),
        };

        self.state = State::Settling(settle(*stream, ending), last);
    }
}

/// Settles a stream that will not be read any further.
fn settle(stream: Stream, ending: Ending) -> Settling {
    let Stream { meter, bill, status, .. } = stream;
    // Only an estimate reads it.
    let output = match meter.reading().usage {
        Some(_) => (String::new(), 0),
        None => meter.output_text(),
    };
    bill.settle(End { ending, reading: meter.into_reading(), output, status })
}

/// The client is gone. Reading on takes a task of its own, if there is room for one.
impl Drop for Tap {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let State::Streaming(stream) = state else { return };
        stream.bill.client().left();
        let ctx = Arc::clone(&self.ctx);
        self.ctx.spawn(async move {
            let id = stream.bill.id().to_owned();
            if let Err(error) = drain(&ctx, *stream).await {
                tracing::error!(request.id = id, "not settled yet: {error}");
            }
        });
    }
}

/// Reads a reply on to its end without a client, within limits; then settles.
async fn drain(ctx: &Context, mut stream: Stream) -> Result<(), Error> {
    let slot = ctx.drains.try_acquire();
    let ending = match &slot {
        Err(_) => Ending::Ours,
        Ok(_) => {
            let end = read_to_end(&mut stream);
            tokio::select! {
                ending = tokio::time::timeout(ctx.config.abort_drain, end) => {
                    ending.unwrap_or(Ending::Ours)
                }
                () = ctx.stop.cancelled() => Ending::Ours,
            }
        }
    };
    drop(slot);
    stream.meter.finish();
    settle(stream, ending).await.map(|_| ())
}

async fn read_to_end(stream: &mut Stream) -> Ending {
    loop {
        let (pause, done) = stream.pause();
        match tokio::time::timeout(pause, stream.body.next()).await {
            Ok(Ok(bytes)) => {
                stream.bill.first_byte();
                stream.meter.push(bytes);
            }
            Ok(Err(Stop::End)) => return Ending::Whole,
            Ok(Err(Stop::Cut)) if stream.meter.is_terminal() => return Ending::Whole,
            Err(_) if done => return Ending::Whole,
            Ok(Err(Stop::Cut)) | Err(_) => return Ending::Upstream,
        }
    }
}
