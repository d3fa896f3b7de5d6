//! Recorded and derived replies of many providers, each with the counts that it must give:
//! read whole, in pieces of every kind, and passed on byte by byte unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use farebox::billing::Usage;
use farebox::wire::meter::{Edit, Meter, Reading, read_whole, whole_text};
use farebox::wire::sse::looks_like_events;
use farebox::wire::{Endpoint, estimate};
use proptest::prelude::*;
use serde_json::Value;

/// Cases in shapes that no endpoint here has.
const NOT_SERVED: [&str; 16] = [
    "bedrock-converse-json",
    "bedrock-converse-json-ttl-details",
    "cohere-v2-json-floats",
    "cohere-v2-sse-message-end",
    "gemini-interactions-json",
    "ollama-native-ndjson",
    "ollama-native-prompt-count-omitted",
    "openai-images-json-gpt-image",
    "openai-images-json-no-usage",
    "openai-images-sse-completed",
    "openai-moderations-json",
    "openai-speech-sse-done",
    "openai-transcription-json-duration",
    "openai-transcription-json-tokens",
    "openai-transcription-sse-done",
    "qwen-native-sse-no-space",
];

struct Case {
    name: String,
    endpoint: Endpoint,
    is_stream: bool,
    body: Bytes,
    chunking: Vec<usize>,
    expect: Value,
    extra: Value,
}

/// What a meter found.
struct Found {
    reading: Reading,
    text: (String, u64),
}

fn endpoint(path: &str) -> Option<Endpoint> {
    let path = path.split('?').next()?;
    let ends = |suffix: &str| path.ends_with(suffix);
    Some(match () {
        () if ends("/chat/completions") => Endpoint::Chat,
        () if ends("/completions") => Endpoint::Completions,
        () if ends("/embeddings") => Endpoint::Embeddings,
        () if ends("/responses") || path.contains("/responses/") => Endpoint::Responses,
        () if ends("/messages") || path.contains("/invoke") => Endpoint::Messages,
        () if ends(":generateContent") => Endpoint::Generate,
        () if ends(":streamGenerateContent") => Endpoint::StreamGenerate,
        () => return None,
    })
}

/// Every case, with the names of those that are not served.
fn cases() -> (Vec<Case>, Vec<String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/usage");
    let mut served = Vec::new();
    let mut others = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let case: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let name = case["name"].as_str().unwrap().to_owned();
        let Some(endpoint) = endpoint(case["endpoint"].as_str().unwrap()) else {
            others.push(name);
            continue;
        };
        let body = case["body"].as_str().unwrap().to_owned();
        let content_type = case["response_headers"]["content-type"].as_str();
        let chunking = match &case["harness"]["chunking"] {
            Value::String(_) => vec![1],
            Value::Array(sizes) => sizes.iter().map(|n| n.as_u64().unwrap() as usize).collect(),
            _ => vec![64],
        };
        served.push(Case {
            name,
            endpoint,
            is_stream: looks_like_events(content_type, body.as_bytes()),
            body: body.into(),
            chunking,
            expect: case["expect"].clone(),
            extra: case["expect_extra"].clone(),
        });
    }
    others.sort();
    (served, others)
}

/// Meters a case cut into pieces of these sizes, again and again, and checks that every byte
/// comes out once and in order.
fn meter(case: &Case, sizes: &[usize]) -> Found {
    if !case.is_stream {
        let reading = read_whole(case.endpoint, &case.body).expect("every case is a reply");
        return Found { reading, text: whole_text(case.endpoint, &case.body) };
    }
    let mut meter = Meter::stream(case.endpoint, Edit::None);
    let out = drive(&mut meter, &case.body, sizes);
    assert_eq!(out, case.body, "{}: bytes out are bytes in", case.name);
    Found { reading: meter.reading().clone(), text: meter.output_text() }
}

fn drive(meter: &mut Meter, body: &Bytes, sizes: &[usize]) -> Bytes {
    let mut out = Vec::new();
    let mut at = 0;
    for size in sizes.iter().cycle() {
        if at == body.len() {
            break;
        }
        let end = body.len().min(at + size);
        out.extend_from_slice(&meter.push(body.slice(at..end)));
        at = end;
    }
    out.extend_from_slice(&meter.finish());
    out.into()
}

fn check(case: &Case, found: &Found) {
    let name = &case.name;
    let reading = &found.reading;
    let expected = |field: &str| case.expect[field].as_u64();
    let fields = |usage: &Usage| {
        BTreeMap::from([
            ("input_tokens", usage.input),
            ("cached_input_tokens", usage.cached),
            ("cache_creation_5m_tokens", usage.cache_creation_5m),
            ("cache_creation_1h_tokens", usage.cache_creation_1h),
            ("output_tokens", usage.output),
            ("reasoning_tokens", usage.reasoning),
        ])
    };
    let usage = if case.expect["estimated"] == true {
        assert_eq!(reading.usage, None, "{name}: usage is estimated");
        if expected("input_tokens").is_some() {
            reading.input.clone().expect(name)
        } else {
            assert_eq!(reading.input, None, "{name}: input is estimated");
            Usage::default()
        }
    } else if expected("input_tokens") == Some(0) && expected("output_tokens") == Some(0) {
        let usage = reading.usage.clone();
        assert!(usage.is_some() || !reading.output_seen, "{name}: nothing is billed");
        usage.unwrap_or_default()
    } else {
        reading.usage.clone().expect(name)
    };
    for (field, count) in fields(&usage) {
        if let Some(expected) =
            expected(field).filter(|_| !(field == "output_tokens" && reading.usage.is_none()))
        {
            assert_eq!(count, expected, "{name}: {field}");
        }
    }
    check_extra(case, found, &usage);
}

fn check_extra(case: &Case, found: &Found, usage: &Usage) {
    let name = &case.name;
    let reading = &found.reading;
    let Some(extra) = case.extra.as_object() else { return };
    let model = reading.model.as_deref().unwrap_or("gpt-4.1");
    let output = estimate::output_tokens(model, &found.text.0, found.text.1);
    let calls = |call: &str| usage.calls.get(call).copied().unwrap_or(0);
    for (key, value) in extra {
        let count = value.as_u64().unwrap_or(0);
        let text = value.as_str();
        match key.as_str() {
            "output_tokens_min" => assert!(output >= count, "{name}: {output} ≥ {count}"),
            "output_tokens_max" => assert!(output <= count, "{name}: {output} ≤ {count}"),
            "service_tier" => assert_eq!(reading.service_tier.as_deref(), text, "{name}"),
            "inference_geo" => assert_eq!(reading.inference_geo.as_deref(), text, "{name}"),
            "provider_cost_usd" => assert_eq!(reading.provider_cost.as_deref(), text, "{name}"),
            "priced_model" => assert_eq!(reading.model.as_deref(), text, "{name}"),
            "idempotency_key" => assert_eq!(reading.response_id.as_deref(), text, "{name}"),
            "stream_error" => assert_eq!(Value::Bool(reading.failed), *value, "{name}"),
            "billable" => assert!(reading.failed && reading.usage.is_none(), "{name}"),
            "pending" => assert!(reading.failed && reading.usage.is_none(), "{name}"),
            "anomaly" => assert!(reading.flags.contains(&text.unwrap()), "{name}"),
            "web_search_requests" | "web_search_calls" | "search_queries" => {
                assert_eq!(calls("web_search"), count, "{name}: {key}");
            }
            "citation_tokens" => assert_eq!(calls("citation_token"), count, "{name}"),
            "input_audio_tokens" => {
                assert_eq!(usage.input_audio + usage.cached_audio, count, "{name}: {key}");
            }
            "cached_audio_tokens" => assert_eq!(usage.cached_audio, count, "{name}: {key}"),
            "output_audio_tokens" => assert_eq!(usage.output_audio, count, "{name}: {key}"),
            "input_image_tokens" => assert_eq!(usage.input_image, count, "{name}: {key}"),
            "output_image_tokens" => assert_eq!(usage.output_image, count, "{name}: {key}"),
            "sub_usages" => {
                let found: Vec<_> = reading
                    .sub_usages
                    .iter()
                    .map(|(model, usage)| (model.as_str(), usage.input, usage.output))
                    .collect();
                let expected: Vec<_> = value
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|sub| {
                        let count = |field: &str| sub[field].as_u64().unwrap();
                        (
                            sub["model"].as_str().unwrap(),
                            count("input_tokens"),
                            count("output_tokens"),
                        )
                    })
                    .collect();
                assert_eq!(found, expected, "{name}");
            }
            // Why a case is as it is, and what has no place in a reading.
            "reason" | "upstream_cost_usd" | "cache_type" => {}
            other => panic!("{name}: nothing checks {other}"),
        }
    }
}

#[test]
fn every_case_gives_its_counts_however_it_is_cut() {
    let (cases, _) = cases();
    assert!(!cases.is_empty());
    for case in &cases {
        for sizes in [&[usize::MAX][..], &[7], &[1], &case.chunking] {
            let sizes: Vec<_> =
                sizes.iter().map(|size| (*size).min(case.body.len().max(1))).collect();
            check(case, &meter(case, &sizes));
        }
    }
}

#[test]
fn no_case_is_skipped_unnoticed() {
    assert_eq!(cases().1, NOT_SERVED);
}

#[test]
fn repeating_every_event_of_a_case_changes_no_count() {
    let (cases, _) = cases();
    for case in cases.iter().filter(|case| case.is_stream && !case.body.contains(&b'\r')) {
        let body = std::str::from_utf8(&case.body).unwrap();
        let Some((_, _)) = body.split_once("\n\n") else { continue };
        let twice: String = body.split_inclusive("\n\n").flat_map(|event| [event, event]).collect();
        let mut once = Meter::stream(case.endpoint, Edit::None);
        let mut repeated = Meter::stream(case.endpoint, Edit::None);
        drive(&mut once, &case.body, &[case.body.len()]);
        drive(&mut repeated, &twice.into(), &[64]);
        assert_eq!(once.reading(), repeated.reading(), "{}", case.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn where_a_case_is_cut_changes_nothing(sizes in proptest::collection::vec(1..300usize, 1..20)) {
        for case in cases().0.iter().filter(|case| case.is_stream) {
            check(case, &meter(case, &sizes));
        }
    }

    #[test]
    fn a_body_that_is_anything_does_not_panic(
        body in "(data: |event: error|\\{|\\}|\\[|\\]|\"usage\"|:|,|\"choices\"|-?[0-9]{1,20}|\"|\\\\|\n|\r|null|\"cost\"|\"prompt_tokens\"){0,60}",
        size in 1..40usize,
    ) {
        let body = Bytes::from(body);
        for endpoint in [Endpoint::Chat, Endpoint::Responses, Endpoint::Messages, Endpoint::Generate] {
            read_whole(endpoint, &body);
            for edit in [Edit::None, Edit::HideUsage, Edit::AddCost(Box::new(|_| None))] {
                let hides = matches!(edit, Edit::HideUsage);
                let mut meter = Meter::stream(endpoint, edit);
                let out = drive(&mut meter, &body, &[size]);
                if !hides {
                    prop_assert_eq!(out, body.clone());
                }
            }
        }
    }
}
