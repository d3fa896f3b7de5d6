//! Anthropic's Messages.

use serde_json::{Value, json};

use super::{Answer, named};

/// Cached input and cache writes stand beside `input_tokens`.
fn usage(answer: &Answer, output: u64) -> Value {
    let usage = &answer.usage;
    json!({
        "input_tokens": usage.input,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": usage.cache_creation_5m,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_creation_5m, "ephemeral_1h_input_tokens": 0
        },
        "output_tokens": output,
        "service_tier": "standard"
    })
}

fn block(answer: &Answer) -> Value {
    match &answer.call {
        None => json!({ "type": "text", "text": answer.text() }),
        Some(call) => json!({
            "type": "tool_use", "id": format!("toolu_demo{:08}", answer.number),
            "name": call.name, "input": call.arguments
        }),
    }
}

fn stop_reason(answer: &Answer) -> &'static str {
    if answer.call.is_some() { "tool_use" } else { "end_turn" }
}

fn message(answer: &Answer, content: &[Value], stop_reason: Value, usage: Value) -> Value {
    json!({
        "id": format!("msg_demo{:08}", answer.number), "type": "message", "role": "assistant",
        "model": answer.model, "content": content, "stop_reason": stop_reason,
        "stop_sequence": null, "usage": usage
    })
}

pub fn whole(answer: &Answer) -> Value {
    let usage = usage(answer, answer.usage.output);
    message(answer, &[block(answer)], json!(stop_reason(answer)), usage)
}

/// The first event has the input and a placeholder for the output, the last but one the total.
pub fn events(answer: &Answer) -> Vec<String> {
    let start = message(answer, &[], Value::Null, usage(answer, 1));
    let mut block = block(answer);
    let delta = |delta: Value| json!({ "type": "content_block_delta", "index": 0, "delta": delta });
    let deltas: Vec<_> = match &answer.call {
        None => {
            block["text"] = json!("");
            let texts = answer.pieces.iter();
            texts.map(|text| delta(json!({ "type": "text_delta", "text": text }))).collect()
        }
        Some(call) => {
            block["input"] = json!({});
            let arguments = call.arguments.to_string();
            vec![delta(json!({ "type": "input_json_delta", "partial_json": arguments }))]
        }
    };
    let mut events = vec![
        json!({ "type": "message_start", "message": start }),
        json!({ "type": "content_block_start", "index": 0, "content_block": block }),
        json!({ "type": "ping" }),
    ];
    events.extend(deltas);
    events.extend([
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({
            "type": "message_delta",
            "delta": { "stop_reason": stop_reason(answer), "stop_sequence": null },
            "usage": { "output_tokens": answer.usage.output }
        }),
        json!({ "type": "message_stop" }),
    ]);
    events.iter().map(named).collect()
}
