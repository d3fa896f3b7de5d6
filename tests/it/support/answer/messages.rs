//! Anthropic's Messages.

use serde_json::{Value, json};

use super::{Answer, named};

const ID: &str = "msg_01Scripted0000000000000";

/// Cached input and cache writes stand beside `input_tokens`.
fn usage(answer: &Answer, output: u64) -> Value {
    let counts = &answer.counts;
    json!({
        "input_tokens": counts.input,
        "cache_read_input_tokens": counts.cached,
        "cache_creation_input_tokens": counts.cache_creation_5m + counts.cache_creation_1h,
        "cache_creation": {
            "ephemeral_5m_input_tokens": counts.cache_creation_5m,
            "ephemeral_1h_input_tokens": counts.cache_creation_1h
        },
        "output_tokens": output,
        "service_tier": answer.service_tier.as_deref().unwrap_or("standard")
    })
}

fn blocks(answer: &Answer) -> Vec<Value> {
    let mut blocks = Vec::new();
    if !answer.pieces.is_empty() {
        blocks.push(json!({ "type": "text", "text": answer.full_text() }));
    }
    for (i, call) in answer.tools.iter().enumerate() {
        let id = format!("toolu_scripted{i}");
        blocks.push(
            json!({ "type": "tool_use", "id": id, "name": call.name, "input": call.arguments }),
        );
    }
    blocks
}

fn stop_reason(answer: &Answer) -> &'static str {
    if answer.tools.is_empty() { "end_turn" } else { "tool_use" }
}

fn message(model: &str, content: &[Value], stop_reason: Value) -> Value {
    json!({
        "id": ID, "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": stop_reason, "stop_sequence": null
    })
}

pub fn whole(answer: &Answer, model: &str) -> Value {
    let mut reply = message(model, &blocks(answer), json!(stop_reason(answer)));
    if answer.reports_usage {
        reply["usage"] = usage(answer, answer.counts.output);
    }
    reply
}

/// The first event has the input and a placeholder for the output, the last but one the total.
pub fn events(answer: &Answer, model: &str) -> Vec<(String, u64)> {
    let mut events = Vec::new();
    let mut push = |event: Value, tokens: u64| events.push((named(&event), tokens));

    let mut start = message(model, &[], Value::Null);
    if answer.reports_usage {
        start["usage"] = usage(answer, 1);
    }
    push(json!({ "type": "message_start", "message": start }), 0);
    push(json!({ "type": "ping" }), 0);
    let mut left = if answer.pieces.is_empty() { answer.counts.output } else { 0 };
    for (index, block) in blocks(answer).into_iter().enumerate() {
        let delta =
            |delta: Value| json!({ "type": "content_block_delta", "index": index, "delta": delta });
        let mut empty = block.clone();
        if block["type"] == "text" {
            empty["text"] = json!("");
        } else {
            empty["input"] = json!({});
        }
        push(json!({ "type": "content_block_start", "index": index, "content_block": empty }), 0);
        if block["type"] == "text" {
            for (piece, tokens) in answer.deltas() {
                push(delta(json!({ "type": "text_delta", "text": piece })), tokens);
            }
        } else {
            let arguments = block["input"].to_string();
            push(delta(json!({ "type": "input_json_delta", "partial_json": arguments })), left);
            left = 0;
        }
        push(json!({ "type": "content_block_stop", "index": index }), 0);
    }
    let stop = json!({ "stop_reason": stop_reason(answer), "stop_sequence": null });
    let mut end = json!({ "type": "message_delta", "delta": stop });
    if answer.reports_usage {
        end["usage"] = json!({ "output_tokens": answer.counts.output });
    }
    push(end, 0);
    push(json!({ "type": "message_stop" }), 0);
    events
}
