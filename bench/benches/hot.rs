//! The pure code that every request or chunk passes: `cargo bench --features store`.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use farebox::wire::meter::{Edit, Meter, read_whole};
use farebox::wire::request::{IncludeUsage, Settings, read};
use farebox::wire::{Endpoint, http1};

/// A chunk as providers send them, of about 300 bytes.
const CHUNK: &str = "data: {\"id\":\"chatcmpl-0000000000000000000000000000\",\"object\":\"chat.completion.chunk\",\
    \"created\":1760000000,\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\",\
    \"system_fingerprint\":\"fp_0000000000\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\
    \"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n";

const WHOLE: &str = "{\"id\":\"chatcmpl-0\",\"object\":\"chat.completion\",\"model\":\"gpt-4o-mini-2024-07-18\",\
    \"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"CONTENT\",\"refusal\":null},\
    \"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1280,\"completion_tokens\":300,\
    \"total_tokens\":1580,\"prompt_tokens_details\":{\"cached_tokens\":1024,\"audio_tokens\":0},\
    \"completion_tokens_details\":{\"reasoning_tokens\":0}},\"service_tier\":\"default\"}";

/// A conversation of about so many bytes, with the escapes that code brings.
fn prompt(bytes: usize) -> Bytes {
    let line = "fn main() {\\n\\tprintln!(\\\"caf\u{e9} {}\\\", 1);\\n}\\nThe tool returned 42 rows; next step: read the file. ";
    let mut body = String::from("{\"model\":\"gpt-4o-mini\",\"max_tokens\":512,\"messages\":[");
    while body.len() < bytes {
        let text = line.repeat((bytes / 100).clamp(1, 20));
        body.push_str(&format!("{{\"role\":\"user\",\"content\":\"{text}\"}},"));
    }
    body.pop();
    body.push_str("]}");
    body.into()
}

fn stream(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream");
    group.throughput(Throughput::Elements(1));
    let chunk = Bytes::from_static(CHUNK.as_bytes());
    for (name, edit) in [("chunk as it is", Edit::None), ("chunk, usage hidden", Edit::HideUsage)] {
        let mut meter = Meter::stream(Endpoint::Chat, edit);
        group.bench_function(name, |b| b.iter(|| black_box(meter.push(chunk.clone()))));
    }
    let framed = format!("{:x}\r\n{CHUNK}\r\n", CHUNK.len());
    let mut chunks = http1::Chunks::default();
    let mut out = Vec::with_capacity(1024);
    group.bench_function("chunk out of its framing", |b| {
        b.iter(|| {
            out.clear();
            chunks.take(framed.as_bytes(), &mut out).map(|taken| black_box(taken))
        })
    });
    group.finish();
}

fn gate(c: &mut Criterion) {
    let mut group = c.benchmark_group("request gate");
    let settings = Settings::default();
    for bytes in [600, 100_000, 1_000_000] {
        let body = prompt(bytes);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("{bytes} bytes"), |b| {
            b.iter(|| {
                let request = read(Endpoint::Chat, None, body.clone(), &settings);
                request.map(|request| request.upstream_body("gpt-4o-mini", IncludeUsage::Ask))
            })
        });
    }
    group.finish();
}

fn usage(c: &mut Criterion) {
    let body = WHOLE.replace("CONTENT", &"The quick brown fox. ".repeat(60));
    let mut group = c.benchmark_group("usage");
    group.throughput(Throughput::Elements(1));
    group.bench_function("of a whole reply", |b| {
        b.iter(|| read_whole(Endpoint::Chat, black_box(body.as_bytes())))
    });
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_000000000000\r\n\
        x-ratelimit-remaining-requests: 29999\r\ndate: Wed, 21 Oct 2026 07:28:00 GMT\r\ncontent-length: 1500\r\n\r\n";
    group.bench_function("head of a reply", |b| b.iter(|| http1::head(black_box(head))));
    group.finish();
}

criterion_group!(benches, stream, gate, usage);
criterion_main!(benches);
