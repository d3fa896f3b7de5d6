//! Load generator for OpenAI chat completions: closed loop (--conns), open loop
//! (--conns and --rate), whole answers or SSE streams. Prints one JSON object.
//!
//! In the open loop, request i is due at start + i/rate and its latency counts
//! from then, also when no connection was free: no coordinated omission.

use bench::{Args, now_ns, runtime};
use bytes::{Bytes, BytesMut};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use memchr::{memchr, memmem};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

struct Stats {
    lat: Histogram<u64>,
    ttft: Histogram<u64>,
    gap: Histogram<u64>,
    transit: Histogram<u64>,
    /// How long refusals took: they come in time, or they are no help to a client.
    refused: Histogram<u64>,
    ok: u64,
    errors: u64,
    bytes: u64,
    chunks: u64,
    done: u64,
    prompt: u64,
    completion: u64,
    first_error: Option<String>,
}

impl Stats {
    fn new() -> Self {
        let h = || Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("bounds");
        Stats {
            lat: h(),
            ttft: h(),
            gap: h(),
            transit: h(),
            refused: h(),
            ok: 0,
            errors: 0,
            bytes: 0,
            chunks: 0,
            done: 0,
            prompt: 0,
            completion: 0,
            first_error: None,
        }
    }

    fn add(&mut self, o: &Stats) {
        for (a, b) in [
            (&mut self.lat, &o.lat),
            (&mut self.ttft, &o.ttft),
            (&mut self.gap, &o.gap),
            (&mut self.transit, &o.transit),
            (&mut self.refused, &o.refused),
        ] {
            a.add(b).expect("same bounds");
        }
        self.ok += o.ok;
        self.errors += o.errors;
        self.bytes += o.bytes;
        self.chunks += o.chunks;
        self.done += o.done;
        self.prompt += o.prompt;
        self.completion += o.completion;
        self.first_error = self.first_error.take().or(o.first_error.clone());
    }
}

fn quantiles(h: &Histogram<u64>) -> Value {
    if h.is_empty() {
        return Value::Null;
    }
    let us = |ns: f64| (ns / 100.0).round() / 10.0;
    let q = |q: f64| us(h.value_at_quantile(q) as f64);
    json!({"mean": us(h.mean()), "p50": q(0.5), "p90": q(0.9), "p99": q(0.99), "p999": q(0.999), "max": us(h.max() as f64)})
}

/// Finds "@<19 digits>@" in a byte stream that may be cut anywhere.
#[derive(Default)]
struct Stamps {
    on: bool,
    digits: u32,
    value: u64,
}

impl Stamps {
    fn scan(&mut self, mut b: &[u8], mut found: impl FnMut(u64)) {
        while !b.is_empty() {
            if !self.on {
                let Some(i) = memchr(b'@', b) else { return };
                b = &b[i + 1..];
                *self = Stamps { on: true, ..Stamps::default() };
                continue;
            }
            let c = b[0];
            b = &b[1..];
            match c {
                b'0'..=b'9' if self.digits < 19 => {
                    self.value = self.value * 10 + u64::from(c - b'0');
                    self.digits += 1;
                }
                b'@' if self.digits == 19 => {
                    found(self.value);
                    self.on = false;
                }
                b'@' => *self = Stamps { on: true, ..Stamps::default() },
                _ => self.on = false,
            }
        }
    }
}

fn number_after(b: &[u8], key: &[u8]) -> Option<u64> {
    let i = memmem::rfind(b, key)? + key.len();
    let digits = b[i..].trim_ascii_start();
    let n = digits.iter().position(|c| !c.is_ascii_digit()).unwrap_or(digits.len());
    std::str::from_utf8(&digits[..n]).ok()?.parse().ok()
}

struct Job {
    host: String,
    request: Box<dyn Fn() -> Request<Full<Bytes>> + Send + Sync>,
    stream: bool,
    timeout: Duration,
}

type Sender = SendRequest<Full<Bytes>>;

async fn connect(host: &str) -> Result<Sender, String> {
    let s = tokio::net::TcpStream::connect(host).await.map_err(|e| format!("connect: {e}"))?;
    s.set_nodelay(true).map_err(|e| e.to_string())?;
    let (send, conn) = handshake(TokioIo::new(s)).await.map_err(|e| format!("handshake: {e}"))?;
    tokio::spawn(async move {
        let _ = conn.await;
    });
    Ok(send)
}

async fn once(
    job: &Job,
    conn: &mut Option<Sender>,
    t0: Instant,
    st: &Mutex<Stats>,
) -> Result<(), String> {
    let mut send = match conn.take() {
        Some(s) if !s.is_closed() => s,
        _ => connect(&job.host).await?,
    };
    send.ready().await.map_err(|e| format!("ready: {e}"))?;
    let sent = Instant::now();
    let resp = send.send_request((job.request)()).await.map_err(|e| format!("send: {e}"))?;
    let status = resp.status();
    let mut body = resp.into_body();
    let mut tail = BytesMut::new();
    let mut stamps = Stamps::default();
    let (mut bytes, mut chunks) = (0u64, 0u64);
    let mut last: Option<Instant> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| format!("body: {e}"))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        bytes += data.len() as u64;
        if job.stream && status.is_success() {
            let now = Instant::now();
            let wall = now_ns();
            let mut s = st.lock().expect("lock");
            if last.is_none() {
                let _ = s.ttft.record((now - t0).as_nanos() as u64);
            }
            stamps.scan(data, |sent| {
                chunks += 1;
                let _ = s.transit.record(wall.saturating_sub(sent).max(1));
                if let Some(l) = last {
                    let _ = s.gap.record((now - l).as_nanos().max(1) as u64);
                }
                last = Some(now);
            });
            last = last.or(Some(now));
            if tail.len() > 16384 {
                tail = BytesMut::from(&tail[tail.len() - 2048..]);
            }
        }
        tail.extend_from_slice(data);
    }
    let took = t0.elapsed();
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        st.lock().expect("lock").refused.record(sent.elapsed().as_nanos() as u64).ok();
        if !send.is_closed() {
            *conn = Some(send);
        }
        return Ok(());
    }
    if !status.is_success() {
        let text: String = String::from_utf8_lossy(&tail).chars().take(300).collect();
        return Err(format!("status {}: {text}", status.as_u16()));
    }
    let done = !job.stream || memmem::rfind(&tail, b"[DONE]").is_some();
    let mut s = st.lock().expect("lock");
    let _ = s.lat.record(took.as_nanos() as u64);
    s.ok += 1;
    s.done += u64::from(done);
    s.bytes += bytes;
    s.chunks += chunks;
    s.prompt += number_after(&tail, br#""prompt_tokens":"#).unwrap_or(0);
    s.completion += number_after(&tail, br#""completion_tokens":"#).unwrap_or(0);
    drop(s);
    if status == StatusCode::OK && !send.is_closed() {
        *conn = Some(send);
    }
    Ok(())
}

async fn timed(job: &Job, conn: &mut Option<Sender>, t0: Instant, st: &Mutex<Stats>) {
    let r = match tokio::time::timeout(job.timeout, once(job, conn, t0, st)).await {
        Ok(r) => r,
        Err(_) => Err("timeout".into()),
    };
    if let Err(e) = r {
        *conn = None;
        {
            let mut s = st.lock().expect("lock");
            s.errors += 1;
            s.first_error.get_or_insert(e);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A chat history of about `size` bytes, with the escapes that code and tool output bring.
fn prompt(model: &str, size: usize, stream: bool) -> Bytes {
    let line = "fn main() {\n\tprintln!(\"caf\u{e9} \\\"quoted\\\" {}\", 1);\n}\nThe tool returned 42 rows; next step: read the file. ";
    let mut messages = vec![json!({"role": "system", "content": "You are a helpful assistant."})];
    let mut left = size.saturating_sub(300);
    let mut i = 0;
    while left > 0 || i == 0 {
        let text: String = line.chars().cycle().take(left.clamp(20, 2000)).collect();
        let used = serde_json::to_string(&text).map_or(0, |s| s.len()) + 36;
        messages
            .push(json!({"role": if i % 2 == 0 { "user" } else { "assistant" }, "content": text}));
        left = left.saturating_sub(used);
        i += 1;
    }
    if i % 2 == 0 {
        messages.push(json!({"role": "user", "content": "go on"}));
    }
    let mut v =
        json!({"model": model, "messages": messages, "max_tokens": 512, "temperature": 0.2});
    if stream {
        v["stream"] = true.into();
        v["stream_options"] = json!({"include_usage": true});
    }
    v.to_string().into()
}

/// Worker body: pull due times until the channel closes (open loop), or run back to back.
struct Plan {
    start: Instant,
    end: Instant,
    budget: AtomicU64,
    due: Option<async_channel::Receiver<Instant>>,
}

async fn worker(job: Arc<Job>, plan: Arc<Plan>, st: Arc<Mutex<Stats>>, delay: Duration) {
    let mut conn = None;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    loop {
        let t0 = match &plan.due {
            Some(rx) => match rx.recv().await {
                Ok(t) => t,
                Err(_) => return,
            },
            None => {
                let now = Instant::now();
                let more = plan.budget.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok();
                if now >= plan.end || !more {
                    return;
                }
                now
            }
        };
        timed(&job, &mut conn, t0, &st).await;
    }
}

fn main() {
    let args = Args::parse();
    let url: String = args.get("url", "http://127.0.0.1:9100/v1/chat/completions".into());
    let rest = url.strip_prefix("http://").expect("--url http://host:port/path");
    let (host, path) = rest.split_at(rest.find('/').expect("path"));
    let (host, path) = (host.to_string(), path.to_string());
    let stream = args.get("stream", 0u8) == 1;
    let conns: usize = args.get("conns", 1);
    let rate: f64 = args.get("rate", 0.0);
    let seconds: f64 = args.get("seconds", 5.0);
    let requests: u64 = args.get("requests", u64::MAX);
    let ramp = Duration::from_millis(args.get("ramp-ms", 0));
    let body =
        prompt(&args.get("model", "gpt-4o-mini".to_string()), args.get("prompt", 600), stream);
    let headers: Vec<(String, String)> = args
        .all("header")
        .map(|h| {
            h.split_once('=')
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .expect("--header name=value")
        })
        .collect();
    let request = {
        let (host, path) = (host.clone(), path.clone());
        move || {
            let mut r = Request::post(&path)
                .header(header::HOST, &host)
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::USER_AGENT, "bench-load");
            for (k, v) in &headers {
                r = r.header(k, v);
            }
            r.body(Full::new(body.clone())).expect("request")
        }
    };
    let job = Arc::new(Job {
        host,
        request: Box::new(request),
        stream,
        timeout: Duration::from_secs(args.get("timeout", 60)),
    });
    let shards: Vec<_> = (0..conns.min(16)).map(|_| Arc::new(Mutex::new(Stats::new()))).collect();
    let start = Instant::now() + Duration::from_millis(20);
    let end = start + Duration::from_secs_f64(seconds);

    let mut due = None;
    let mut dispatcher = None;
    if rate > 0.0 {
        let (tx, rx) = async_channel::unbounded();
        due = Some(rx);
        dispatcher = Some(std::thread::spawn(move || {
            let n = ((seconds * rate) as u64).min(requests);
            for i in 0..n {
                let at = start + Duration::from_secs_f64(i as f64 / rate);
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                if tx.send_blocking(at).is_err() {
                    return;
                }
            }
        }));
    }
    let plan = Arc::new(Plan { start, end, budget: AtomicU64::new(requests), due });
    runtime(args.get("threads", 1)).block_on(async {
        let mut tasks = Vec::with_capacity(conns);
        for i in 0..conns {
            let delay = ramp.mul_f64(i as f64 / conns as f64);
            let st = shards[i % shards.len()].clone();
            tasks.push(tokio::spawn(worker(job.clone(), plan.clone(), st, delay)));
        }
        for t in tasks {
            let _ = t.await;
        }
    });
    if let Some(d) = dispatcher {
        let _ = d.join();
    }
    let took = plan.start.elapsed().as_secs_f64();
    let mut s = Stats::new();
    shards.iter().for_each(|x| s.add(&x.lock().expect("lock")));
    let out = json!({
        "seconds": took,
        "ok": s.ok,
        "errors": s.errors,
        "refused": s.refused.len(),
        "refused_us": quantiles(&s.refused),
        "first_error": s.first_error,
        "rps": s.ok as f64 / took,
        "bytes": s.bytes,
        "chunks": s.chunks,
        "chunks_per_s": s.chunks as f64 / took,
        "done": s.done,
        "prompt_tokens": s.prompt,
        "completion_tokens": s.completion,
        "latency_us": quantiles(&s.lat),
        "ttft_us": quantiles(&s.ttft),
        "gap_us": quantiles(&s.gap),
        "transit_us": quantiles(&s.transit),
    });
    println!("{out}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_survive_any_cut() {
        let text = b"data: {\"x\":\" @1795220475093548924@ token\"}\n\nfoo@bar @@1795220475093548925@ @12@";
        for cut in 0..text.len() {
            let mut s = Stamps::default();
            let mut seen = Vec::new();
            s.scan(&text[..cut], |v| seen.push(v));
            s.scan(&text[cut..], |v| seen.push(v));
            assert_eq!(seen, [1795220475093548924, 1795220475093548925], "cut at {cut}");
        }
    }

    #[test]
    fn last_number_wins() {
        let b = br#"{"usage":null} {"usage":{"prompt_tokens": 12,"completion_tokens":34}}"#;
        assert_eq!(number_after(b, br#""prompt_tokens":"#), Some(12));
        assert_eq!(number_after(b, br#""completion_tokens":"#), Some(34));
        assert_eq!(number_after(b, br#""absent":"#), None);
    }

    #[test]
    fn prompt_has_about_the_asked_size() {
        for size in [600, 100_000, 1_000_000] {
            let n = prompt("m", size, true).len();
            assert!(n.abs_diff(size) < size / 10 + 100, "{size}: {n}");
        }
    }
}
