//! Chat completions, text completions and embeddings.

use serde_json::{Value, json};

use super::{Answer, created, data};

/// A third of the values of a unit vector of 1536 is this, the others are zero.
const UNIT: f64 = 0.04419417;
/// Three of them as base64 of 32-bit floats.
const UNIT_BASE64: &str = "8wQ1PQAAAAAAAAAA";

/// Cached input counts inside `prompt_tokens`, reasoning inside `completion_tokens`.
fn usage(answer: &Answer) -> Value {
    let usage = &answer.usage;
    let input = usage.input + usage.cached + usage.cache_creation_5m;
    json!({
        "prompt_tokens": input,
        "completion_tokens": usage.output,
        "total_tokens": input + usage.output,
        "prompt_tokens_details": { "cached_tokens": usage.cached, "audio_tokens": 0 },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0
        }
    })
}

fn object(answer: &Answer, kind: &str, choices: Value) -> Value {
    json!({
        "id": format!("chatcmpl-demo{:08}", answer.number), "object": kind, "created": created(),
        "model": answer.model, "choices": choices
    })
}

fn tool_calls(answer: &Answer) -> Option<Value> {
    answer.call.as_ref().map(|call| {
        let function = json!({ "name": call.name, "arguments": call.arguments.to_string() });
        let id = format!("call_demo{:08}", answer.number);
        json!([{ "index": 0, "id": id, "type": "function", "function": function }])
    })
}

fn finish(answer: &Answer) -> &'static str {
    if answer.call.is_some() { "tool_calls" } else { "stop" }
}

pub fn whole(answer: &Answer) -> Value {
    let mut message = json!({ "role": "assistant", "content": answer.text(), "refusal": null });
    if let Some(calls) = tool_calls(answer) {
        message["content"] = Value::Null;
        message["tool_calls"] = calls;
    }
    let choice = json!({ "index": 0, "message": message, "finish_reason": finish(answer) });
    let mut reply = object(answer, "chat.completion", json!([choice]));
    reply["usage"] = usage(answer);
    reply
}

pub fn events(answer: &Answer, asked: &Value) -> Vec<String> {
    let chunk = |delta: Value, finish: Value| {
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
        data(&object(answer, "chat.completion.chunk", json!([choice])))
    };
    let mut events = vec![chunk(json!({ "role": "assistant", "content": "" }), Value::Null)];
    events
        .extend(answer.pieces.iter().map(|piece| chunk(json!({ "content": piece }), Value::Null)));
    if let Some(calls) = tool_calls(answer) {
        events.push(chunk(json!({ "tool_calls": calls }), Value::Null));
    }
    events.push(chunk(json!({}), json!(finish(answer))));
    push_end(answer, "chat.completion.chunk", asked, &mut events);
    events
}

pub fn text_whole(answer: &Answer) -> Value {
    let choice = json!({ "index": 0, "text": answer.text(), "finish_reason": "stop" });
    let mut reply = object(answer, "text_completion", json!([choice]));
    reply["usage"] = usage(answer);
    reply
}

pub fn text_events(answer: &Answer, asked: &Value) -> Vec<String> {
    let chunk = |text: &str, finish: Value| {
        let choice = json!({ "index": 0, "text": text, "finish_reason": finish });
        data(&object(answer, "text_completion", json!([choice])))
    };
    let mut events: Vec<_> = answer.pieces.iter().map(|p| chunk(p, Value::Null)).collect();
    events.push(chunk("", json!("stop")));
    push_end(answer, "text_completion", asked, &mut events);
    events
}

/// The extra chunk comes only if it was asked for.
fn push_end(answer: &Answer, kind: &str, asked: &Value, events: &mut Vec<String>) {
    if asked["stream_options"]["include_usage"] == true {
        let mut chunk = object(answer, kind, json!([]));
        chunk["usage"] = usage(answer);
        events.push(data(&chunk));
    }
    events.push("data: [DONE]\n\n".into());
}

/// The same vector for every input, as numbers or base64 as asked.
pub fn embeddings(answer: &Answer, asked: &Value) -> Value {
    let inputs = asked["input"].as_array().filter(|inputs| inputs.iter().all(|i| !i.is_number()));
    let vector = match asked["encoding_format"].as_str() {
        Some("base64") => json!(UNIT_BASE64.repeat(512)),
        _ => json!([UNIT, 0.0, 0.0].repeat(512)),
    };
    let data: Vec<Value> = (0..inputs.map_or(1, Vec::len))
        .map(|i| json!({ "object": "embedding", "index": i, "embedding": vector }))
        .collect();
    let input = answer.usage.input + answer.usage.cached;
    json!({
        "object": "list", "model": answer.model, "data": data,
        "usage": { "prompt_tokens": input, "total_tokens": input }
    })
}
