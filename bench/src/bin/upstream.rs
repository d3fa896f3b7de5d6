//! A fake OpenAI chat-completions server.
//!
//! POST */chat/completions  answers whole, or as SSE if the body has "stream":true
//! PUT  /config?chunks=..&delay_us=..&ttft_us=..&body=..&burst=..  changes what it answers
//! DELETE /connections      closes them all once idle
//! GET  /stats              what it served since the last DELETE /stats
//!
//! Every content delta carries "@<19 digits: send time in ns>@", so that the
//! load generator can tell how long a chunk was on its way, whatever the proxy
//! in between does to the JSON around it.

use bench::{Args, now_ns, runtime};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

static CHUNKS: AtomicU64 = AtomicU64::new(200);
static DELAY_US: AtomicU64 = AtomicU64::new(0);
static TTFT_US: AtomicU64 = AtomicU64::new(0);
static BODY: AtomicU64 = AtomicU64::new(1500);
static BURST: AtomicU64 = AtomicU64::new(1);

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static STREAMS: AtomicU64 = AtomicU64::new(0);
static STREAMS_WHOLE: AtomicU64 = AtomicU64::new(0);
static SENT_CHUNKS: AtomicU64 = AtomicU64::new(0);
static BYTES_IN: AtomicU64 = AtomicU64::new(0);
static PROMPT: AtomicU64 = AtomicU64::new(0);
static COMPLETION: AtomicU64 = AtomicU64::new(0);
static OPEN: AtomicU64 = AtomicU64::new(0);
static MAX_OPEN: AtomicU64 = AtomicU64::new(0);

/// Wakes every connection to close once it is idle: proxies keep thousands of them after a run of slow streams.
static HANG_UP: Notify = Notify::const_new();

const CONFIG: [(&str, &AtomicU64); 5] = [
    ("chunks", &CHUNKS),
    ("delay_us", &DELAY_US),
    ("ttft_us", &TTFT_US),
    ("body", &BODY),
    ("burst", &BURST),
];
const STATS: [(&str, &AtomicU64); 9] = [
    ("requests", &REQUESTS),
    ("streams", &STREAMS),
    ("streams_whole", &STREAMS_WHOLE),
    ("chunks", &SENT_CHUNKS),
    ("bytes_in", &BYTES_IN),
    ("prompt_tokens", &PROMPT),
    ("completion_tokens", &COMPLETION),
    ("connections", &OPEN),
    ("max_connections", &MAX_OPEN),
];

const PROMPT_TOKENS: u64 = 1280;
const HEAD: &str = r#"{"id":"chatcmpl-Bench0000000000000000000000000","object":"chat.completion.chunk","created":1760000000,"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_bench000000","#;

fn usage(completion: u64) -> String {
    format!(
        r#"{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{completion},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":1024,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}}"#,
        PROMPT_TOKENS + completion
    )
}

fn whole(size: usize) -> (String, u64) {
    let completion = (size / 5) as u64;
    let make = |pad: usize| {
        let text: String =
            "The quick brown fox jumps over the lazy dog. ".chars().cycle().take(pad).collect();
        format!(
            r#"{{"id":"chatcmpl-Bench0000000000000000000000000","object":"chat.completion","created":1760000000,"model":"gpt-4o-mini-2024-07-18","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{},"service_tier":"default","system_fingerprint":"fp_bench000000"}}"#,
            usage(completion)
        )
    };
    let bare = make(0).len();
    (make(size.saturating_sub(bare)), completion)
}

/// The SSE answer: role chunk, content chunks, stop chunk, usage chunk, [DONE].
struct Sse {
    next: u64,
    chunks: u64,
    burst: u64,
    in_burst: u64,
    delay: Duration,
    usage: bool,
    due: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Sse {
    fn event(&self) -> Option<Bytes> {
        let i = self.next;
        let mut b = BytesMut::with_capacity(384);
        b.put_slice(b"data: ");
        if i < self.chunks {
            b.put_slice(HEAD.as_bytes());
            let role = if i == 0 { r#""role":"assistant","# } else { "" };
            let text = format!(
                r#""choices":[{{"index":0,"delta":{{{role}"content":" @{}@ token"}},"logprobs":null,"finish_reason":null}}],"usage":null}}"#,
                now_ns()
            );
            b.put_slice(text.as_bytes());
            SENT_CHUNKS.fetch_add(1, Relaxed);
        } else if i == self.chunks {
            b.put_slice(HEAD.as_bytes());
            b.put_slice(br#""choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}"#);
        } else if i == self.chunks + 1 {
            if self.usage {
                b.put_slice(HEAD.as_bytes());
                b.put_slice(format!(r#""choices":[],"usage":{}}}"#, usage(self.chunks)).as_bytes());
                b.put_slice(b"\n\ndata: ");
                PROMPT.fetch_add(PROMPT_TOKENS, Relaxed);
                COMPLETION.fetch_add(self.chunks, Relaxed);
            }
            b.put_slice(b"[DONE]");
            STREAMS_WHOLE.fetch_add(1, Relaxed);
        } else {
            return None;
        }
        b.put_slice(b"\n\n");
        Some(b.freeze())
    }
}

impl Body for Sse {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let me = &mut *self;
        if me.waiting {
            if me.due.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            me.waiting = false;
            me.in_burst = 0;
        } else if me.delay.is_zero() && me.in_burst >= me.burst {
            // Pending once: hyper flushes what it has, so that each burst is a write of its own.
            me.in_burst = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(b) = me.event() else {
            return Poll::Ready(None);
        };
        me.next += 1;
        me.in_burst += 1;
        if !me.delay.is_zero() && me.in_burst >= me.burst && me.next <= me.chunks {
            let at = me.due.deadline() + me.delay;
            me.due.as_mut().reset(at);
            me.waiting = true;
        }
        Poll::Ready(Some(Ok(Frame::data(b))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

type Resp = Response<BoxBody<Bytes, Infallible>>;

fn full(status: StatusCode, s: impl Into<Bytes>) -> Resp {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .header("x-request-id", "req_bench0000000000000000000000000")
        .header("openai-processing-ms", "3")
        .header("x-ratelimit-remaining-requests", "29999")
        .header("x-ratelimit-remaining-tokens", "149999000")
        .body(Full::new(s.into()).boxed())
        .expect("response")
}

async fn chat(req: Request<Incoming>) -> Resp {
    let body = match req.into_body().collect().await {
        Ok(b) => b.to_bytes(),
        Err(_) => return full(StatusCode::BAD_REQUEST, r#"{"error":{"message":"cut body"}}"#),
    };
    BYTES_IN.fetch_add(body.len() as u64, Relaxed);
    REQUESTS.fetch_add(1, Relaxed);
    let flag = |name: &[u8]| {
        memmem::find(&body, name)
            .is_some_and(|i| body[i + name.len()..].trim_ascii_start().starts_with(b"true"))
    };
    let ttft = Duration::from_micros(TTFT_US.load(Relaxed));
    if flag(br#""stream":"#) {
        STREAMS.fetch_add(1, Relaxed);
        let delay = Duration::from_micros(DELAY_US.load(Relaxed));
        let sse = Sse {
            next: 0,
            chunks: CHUNKS.load(Relaxed),
            burst: BURST.load(Relaxed).max(1),
            in_burst: 0,
            delay,
            usage: flag(br#""include_usage":"#),
            due: Box::pin(tokio::time::sleep_until(Instant::now() + ttft)),
            waiting: !(ttft.is_zero() && delay.is_zero()),
        };
        return Response::builder()
            .header(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")
            .header("x-request-id", "req_bench0000000000000000000000000")
            .header("openai-processing-ms", "3")
            .body(sse.boxed())
            .expect("response");
    }
    if !ttft.is_zero() {
        tokio::time::sleep(ttft).await;
    }
    thread_local!(static WHOLE: std::cell::RefCell<(u64, Bytes, u64)> = const { std::cell::RefCell::new((0, Bytes::new(), 0)) });
    let size = BODY.load(Relaxed);
    let (bytes, completion) = WHOLE.with_borrow_mut(|w| {
        if w.0 != size {
            let (s, c) = whole(size as usize);
            *w = (size, s.into(), c);
        }
        (w.1.clone(), w.2)
    });
    PROMPT.fetch_add(PROMPT_TOKENS, Relaxed);
    COMPLETION.fetch_add(completion, Relaxed);
    full(StatusCode::OK, bytes)
}

fn table(t: &[(&str, &AtomicU64)]) -> String {
    let m: serde_json::Map<_, _> =
        t.iter().map(|(k, v)| (k.to_string(), v.load(Relaxed).into())).collect();
    serde_json::Value::Object(m).to_string()
}

async fn handle(req: Request<Incoming>) -> Result<Resp, Infallible> {
    let path = req.uri().path();
    Ok(match (req.method(), path) {
        (&Method::POST, p) if p.ends_with("/chat/completions") => chat(req).await,
        (&Method::PUT, "/config") => {
            for (k, v) in
                req.uri().query().unwrap_or("").split('&').filter_map(|p| p.split_once('='))
            {
                match (CONFIG.iter().find(|(n, _)| *n == k), v.parse()) {
                    (Some((_, a)), Ok(v)) => a.store(v, Relaxed),
                    _ => return Ok(full(StatusCode::BAD_REQUEST, "{}")),
                }
            }
            full(StatusCode::OK, table(&CONFIG))
        }
        (&Method::DELETE, "/connections") => {
            HANG_UP.notify_waiters();
            full(StatusCode::OK, "{}")
        }
        (&Method::GET, "/stats") => full(StatusCode::OK, table(&STATS)),
        (&Method::DELETE, "/stats") => {
            STATS[..7].iter().for_each(|(_, a)| a.store(0, Relaxed));
            MAX_OPEN.store(OPEN.load(Relaxed), Relaxed);
            full(StatusCode::OK, "{}")
        }
        (&Method::GET, _) => full(StatusCode::OK, r#"{"object":"list","data":[]}"#),
        _ => full(StatusCode::NOT_FOUND, r#"{"error":{"message":"no such path"}}"#),
    })
}

async fn serve(addr: String) -> std::io::Result<()> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr.parse().expect("--listen"))?;
    let listener = socket.listen(8192)?;
    loop {
        let Ok((s, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await; // out of descriptors
            continue;
        };
        s.set_nodelay(true)?;
        tokio::spawn(async move {
            let open = OPEN.fetch_add(1, Relaxed) + 1;
            MAX_OPEN.fetch_max(open, Relaxed);
            let service = hyper::service::service_fn(handle);
            let mut conn = pin!(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(s), service)
            );
            let mut asked = false;
            loop {
                tokio::select! {
                    _ = &mut conn => break,
                    () = HANG_UP.notified(), if !asked => {
                        asked = true;
                        conn.as_mut().graceful_shutdown();
                    }
                }
            }
            OPEN.fetch_sub(1, Relaxed);
        });
    }
}

fn main() {
    let args = Args::parse();
    for (k, a) in CONFIG {
        a.store(args.get(k, a.load(Relaxed)), Relaxed);
    }
    runtime(args.get("threads", 2))
        .block_on(serve(args.get("listen", "127.0.0.1:9100".to_string())))
        .expect("listen");
}
