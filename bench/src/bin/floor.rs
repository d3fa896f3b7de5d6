//! The least a metering proxy on hyper can do, to see what each part of the work costs here.
//! Not a product: no auth, no retries, one upstream.
//!
//!   --client hyper|reqwest   who talks to the upstream; or `splice`: bytes both ways, no HTTP at all
//!   --mode shared|percore    one work-stealing runtime, or one runtime and one listener per thread
//!   --request none|typed|value   stream the request body through, or collect it and parse it
//!   --meter 0|1              look for the usage in the answer
//!   --coalesce BYTES         join frames that are ready at the same moment, up to so many bytes

use bench::{Args, runtime};
use bytes::{Bytes, BytesMut};
use http_body_util::{
    BodyExt, Full,
    combinators::{BoxBody, UnsyncBoxBody},
};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use memchr::memmem;
use serde::Deserialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

type Error = Box<dyn std::error::Error + Send + Sync>;
type In = BoxBody<Bytes, Error>;
type Out = UnsyncBoxBody<Bytes, Error>;

static TOKENS: AtomicU64 = AtomicU64::new(0);

#[derive(Deserialize)]
#[allow(dead_code)]
struct Asked<'a> {
    #[serde(borrow)]
    model: std::borrow::Cow<'a, str>,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    max_tokens: Option<u64>,
}

enum Upstream {
    Hyper(Client<HttpConnector, In>),
    Reqwest(reqwest::Client),
}

struct App {
    base: String,
    upstream: Upstream,
    request: String,
    meter: bool,
    join: usize,
}

/// Passes frames on and keeps the last bytes, where the usage is.
struct Metered<B> {
    inner: B,
    tail: Vec<u8>,
    join: usize,
    ended: bool,
}

impl<B> Metered<B> {
    fn see(&mut self, d: &[u8]) {
        if !self.tail.is_empty() || memmem::find(d, br#""usage":{"#).is_some() {
            self.tail.extend_from_slice(d);
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Metered<B>
where
    B::Error: Into<Error>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut first: Option<Bytes> = None;
        let mut joined = BytesMut::new();
        while !self.ended && joined.len() <= self.join {
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Pending if first.is_none() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Some(Err(e.into()))),
                Poll::Ready(Some(Ok(f))) => match f.into_data() {
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    Ok(d) => {
                        self.see(&d);
                        if self.join == 0 {
                            return Poll::Ready(Some(Ok(Frame::data(d))));
                        }
                        match &first {
                            None => first = Some(d),
                            Some(one) => {
                                if joined.is_empty() {
                                    joined.reserve(self.join + 1024);
                                    joined.extend_from_slice(one);
                                }
                                joined.extend_from_slice(&d);
                            }
                        }
                    }
                },
            }
        }
        let data = if joined.is_empty() { first } else { Some(joined.freeze()) };
        Poll::Ready(data.map(|d| Ok(Frame::data(d))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B> Drop for Metered<B> {
    fn drop(&mut self) {
        if let Some(i) = memmem::rfind(&self.tail, br#""total_tokens":"#) {
            let n: u64 = self.tail[i + 15..]
                .iter()
                .take_while(|c| c.is_ascii_digit())
                .fold(0, |n, c| n * 10 + u64::from(c - b'0'));
            TOKENS.fetch_add(n, Relaxed);
        }
    }
}

async fn forward(app: Arc<App>, req: Request<Incoming>) -> Result<Response<Out>, Error> {
    let (mut head, body) = req.into_parts();
    let body: In = if app.request == "none" {
        body.map_err(Into::into).boxed()
    } else {
        let b = body.collect().await?.to_bytes();
        if app.request == "typed" {
            let asked: Asked = serde_json::from_slice(&b)?;
            std::hint::black_box(asked.model.len());
        } else {
            let asked: serde_json::Value = serde_json::from_slice(&b)?;
            std::hint::black_box(asked["model"].as_str());
        }
        Full::new(b).map_err(|e: Infallible| match e {}).boxed()
    };
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let uri = format!("{}{path}", app.base);
    head.headers.remove(header::HOST);
    head.headers.remove(header::CONNECTION);
    head.headers
        .insert(header::AUTHORIZATION, header::HeaderValue::from_static("Bearer sk-upstream"));
    match &app.upstream {
        Upstream::Hyper(c) => {
            head.uri = Uri::try_from(uri)?;
            let (head, body) = c.request(Request::from_parts(head, body)).await?.into_parts();
            Ok(Response::from_parts(head, finish(&app, body)))
        }
        Upstream::Reqwest(c) => {
            let r = c
                .request(head.method, uri)
                .headers(head.headers)
                .body(reqwest::Body::wrap(body))
                .send()
                .await?;
            let (head, body) = hyper::http::Response::<reqwest::Body>::from(r).into_parts();
            Ok(Response::from_parts(head, finish(&app, body)))
        }
    }
}

fn finish<B>(app: &App, body: B) -> Out
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Error>,
{
    if app.meter {
        Metered { inner: body, tail: Vec::new(), join: app.join, ended: false }.boxed_unsync()
    } else {
        body.map_err(Into::into).boxed_unsync()
    }
}

async fn answer(app: Arc<App>, req: Request<Incoming>) -> Result<Response<Out>, Infallible> {
    Ok(forward(app, req).await.unwrap_or_else(|e| {
        let body = Full::new(Bytes::from(format!("{{\"error\":{{\"message\":\"{e}\"}}}}")));
        let mut r = Response::new(body.map_err(|e: Infallible| match e {}).boxed_unsync());
        *r.status_mut() = StatusCode::BAD_GATEWAY;
        r
    }))
}

async fn serve(args: Arc<Args>) -> Result<(), Error> {
    let addr: std::net::SocketAddr = args.get("listen", "127.0.0.1:8190".to_string()).parse()?;
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(addr)?;
    let listener = socket.listen(8192)?;
    let splice = args.get("client", "hyper".to_string()) == "splice";
    let upstream = if args.get("client", "hyper".to_string()) == "reqwest" {
        Upstream::Reqwest(reqwest::Client::builder().tcp_nodelay(true).no_proxy().build()?)
    } else {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Upstream::Hyper(Client::builder(TokioExecutor::new()).build(connector))
    };
    let app = Arc::new(App {
        base: args.get("upstream", "http://127.0.0.1:9100".to_string()),
        upstream,
        request: args.get("request", "none".to_string()),
        meter: args.get("meter", 0u8) == 1,
        join: args.get("coalesce", 0),
    });
    loop {
        let (s, _) = listener.accept().await?;
        s.set_nodelay(true)?;
        if splice {
            let to = app.base.trim_start_matches("http://").to_string();
            tokio::spawn(async move {
                let (mut a, mut b) = (s, tokio::net::TcpStream::connect(to).await?);
                b.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut a, &mut b).await
            });
            continue;
        }
        let app = app.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |r| answer(app.clone(), r));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(s), service)
                .await;
        });
    }
}

fn main() {
    let args = Arc::new(Args::parse());
    let threads = args.get("threads", 2);
    if args.get("mode", "shared".to_string()) == "percore" {
        let all: Vec<_> = (0..threads)
            .map(|_| {
                let args = args.clone();
                std::thread::spawn(move || runtime(1).block_on(serve(args)).expect("serve"))
            })
            .collect();
        all.into_iter().for_each(|t| t.join().expect("thread"));
    } else {
        runtime(threads).block_on(serve(args)).expect("serve");
    }
}
