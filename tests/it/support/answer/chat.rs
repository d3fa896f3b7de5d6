//! Chat completions, text completions and embeddings.

use serde_json::{Value, json};

use super::{Answer, data};
use crate::support::upstream::Received;

const ID: &str = "chatcmpl-Scripted00000000000000000";

/// Cached input and cache writes count inside `prompt_tokens`, reasoning inside `completion_tokens`.
fn usage(answer: &Answer) -> Value {
    let counts = &answer.counts;
    let creation = counts.cache_creation_5m + counts.cache_creation_1h;
    json!({
        "prompt_tokens": counts.all_input(),
        "completion_tokens": counts.output,
        "total_tokens": counts.all_input() + counts.output,
        "prompt_tokens_details": {
            "cached_tokens": counts.cached, "cache_write_tokens": creation, "audio_tokens": 0
        },
        "completion_tokens_details": {
            "reasoning_tokens": counts.reasoning, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0
        }
    })
}

fn object(answer: &Answer, model: &str, kind: &str, choices: &Value) -> Value {
    let mut object = json!({
        "id": ID, "object": kind, "created": 1_795_000_000, "model": model,
        "system_fingerprint": "fp_scripted", "choices": choices
    });
    if let Some(tier) = &answer.service_tier {
        object["service_tier"] = json!(tier);
    }
    object
}

fn tool_calls(answer: &Answer) -> Vec<Value> {
    let calls = answer.tools.iter().enumerate();
    calls
        .map(|(i, call)| {
            json!({
                "index": i, "id": format!("call_scripted{i}"), "type": "function",
                "function": { "name": call.name, "arguments": call.arguments.to_string() }
            })
        })
        .collect()
}

fn finish(answer: &Answer) -> &'static str {
    if answer.tools.is_empty() { "stop" } else { "tool_calls" }
}

pub fn whole(answer: &Answer, model: &str) -> Value {
    let mut message = json!({ "role": "assistant", "content": null, "refusal": null });
    if !answer.pieces.is_empty() {
        message["content"] = json!(answer.full_text());
    }
    if !answer.tools.is_empty() {
        message["tool_calls"] = json!(tool_calls(answer));
    }
    let choice = json!({
        "index": 0, "message": message, "logprobs": null, "finish_reason": finish(answer)
    });
    let mut reply = object(answer, model, "chat.completion", &json!([choice]));
    if answer.reports_usage {
        reply["usage"] = usage(answer);
    }
    reply
}

pub fn events(answer: &Answer, model: &str, request: &Received) -> Vec<(String, u64)> {
    let asked = asks_usage(request);
    let chunk = |delta: Value, finish: Value| {
        let choice =
            json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish });
        let mut chunk = object(answer, model, "chat.completion.chunk", &json!([choice]));
        if asked {
            chunk["usage"] = Value::Null;
        }
        data(&chunk)
    };
    let role = json!({ "role": "assistant", "content": "", "refusal": null });
    let mut events = vec![(chunk(role, Value::Null), 0)];
    for (piece, tokens) in answer.deltas() {
        events.push((chunk(json!({ "content": piece }), Value::Null), tokens));
    }
    let mut left = if answer.pieces.is_empty() { answer.counts.output } else { 0 };
    for call in tool_calls(answer) {
        // The name comes first, the arguments bit by bit.
        let mut start = call.clone();
        start["function"]["arguments"] = json!("");
        events.push((chunk(json!({ "tool_calls": [start] }), Value::Null), 0));
        let arguments = call["function"]["arguments"].as_str().expect("text");
        let (a, b) = arguments.split_at(arguments.len() / 2);
        for part in [a, b] {
            let delta = json!({ "index": call["index"], "function": { "arguments": part } });
            events.push((chunk(json!({ "tool_calls": [delta] }), Value::Null), left));
            left = 0;
        }
    }
    events.push((chunk(json!({}), json!(finish(answer))), 0));
    push_end(answer, model, "chat.completion.chunk", asked, &mut events);
    events
}

pub fn text_whole(answer: &Answer, model: &str) -> Value {
    let choice = json!({
        "index": 0, "text": answer.full_text(), "logprobs": null, "finish_reason": "stop"
    });
    let mut reply = object(answer, model, "text_completion", &json!([choice]));
    if answer.reports_usage {
        reply["usage"] = usage(answer);
    }
    reply
}

pub fn text_events(answer: &Answer, model: &str, request: &Received) -> Vec<(String, u64)> {
    let asked = asks_usage(request);
    let chunk = |text: &str, finish: Value| {
        let choice = json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": finish });
        let mut chunk = object(answer, model, "text_completion", &json!([choice]));
        if asked {
            chunk["usage"] = Value::Null;
        }
        data(&chunk)
    };
    let mut events: Vec<_> = answer
        .deltas()
        .into_iter()
        .map(|(piece, tokens)| (chunk(piece, Value::Null), tokens))
        .collect();
    events.push((chunk("", json!("stop")), 0));
    push_end(answer, model, "text_completion", asked, &mut events);
    events
}

/// One vector of four numbers for every input, as numbers or base64 as asked.
pub fn embeddings(answer: &Answer, model: &str, request: &Received) -> Value {
    let asked = request.json();
    let inputs = match &asked["input"] {
        Value::Array(inputs) if inputs.iter().all(|i| !i.is_number()) => inputs.len(),
        _ => 1,
    };
    let vector = match asked["encoding_format"].as_str() {
        Some("base64") => json!("AACAPwAAAAAAAAAAAAAAAA=="),
        _ => json!([1.0, 0.0, 0.0, 0.0]),
    };
    let data: Vec<Value> = (0..inputs)
        .map(|i| json!({ "object": "embedding", "index": i, "embedding": vector }))
        .collect();
    let mut reply = json!({ "object": "list", "model": model, "data": data });
    if answer.reports_usage {
        let input = answer.counts.all_input();
        reply["usage"] = json!({ "prompt_tokens": input, "total_tokens": input });
    }
    reply
}

/// The extra chunk comes only if it was asked for.
fn push_end(
    answer: &Answer,
    model: &str,
    kind: &str,
    asked: bool,
    events: &mut Vec<(String, u64)>,
) {
    if asked && answer.reports_usage {
        let mut chunk = object(answer, model, kind, &json!([]));
        chunk["usage"] = usage(answer);
        events.push((data(&chunk), 0));
    }
    events.push(("data: [DONE]\n\n".into(), 0));
}

fn asks_usage(request: &Received) -> bool {
    request.json()["stream_options"]["include_usage"] == Value::Bool(true)
}
