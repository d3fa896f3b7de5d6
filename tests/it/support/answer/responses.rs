//! OpenAI's Responses.

use serde_json::{Value, json};

use super::{Answer, named};

const ID: &str = "resp_scripted00000000000000000000";
const MESSAGE: &str = "msg_scripted000000000000000000000";

/// Cached input and cache writes count inside `input_tokens`, reasoning inside `output_tokens`.
fn usage(answer: &Answer) -> Value {
    let counts = &answer.counts;
    let creation = counts.cache_creation_5m + counts.cache_creation_1h;
    json!({
        "input_tokens": counts.all_input(),
        "input_tokens_details": { "cached_tokens": counts.cached, "cache_write_tokens": creation },
        "output_tokens": counts.output,
        "output_tokens_details": { "reasoning_tokens": counts.reasoning },
        "total_tokens": counts.all_input() + counts.output
    })
}

fn message(status: &str, content: &[Value]) -> Value {
    json!({
        "id": MESSAGE, "type": "message", "role": "assistant", "status": status, "content": content
    })
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn call(answer: &Answer, i: usize, status: &str) -> Value {
    let call = &answer.tools[i];
    let arguments = if status == "completed" { call.arguments.to_string() } else { String::new() };
    json!({
        "id": format!("fc_scripted{i}"), "type": "function_call", "status": status,
        "call_id": format!("call_scripted{i}"), "name": call.name, "arguments": arguments
    })
}

fn output(answer: &Answer) -> Vec<Value> {
    let mut items = Vec::new();
    if !answer.pieces.is_empty() {
        items.push(message("completed", &[text_part(&answer.full_text())]));
    }
    items.extend((0..answer.tools.len()).map(|i| call(answer, i, "completed")));
    items
}

fn response(answer: &Answer, model: &str, status: &str, output: &[Value], usage: Value) -> Value {
    json!({
        "id": ID, "object": "response", "created_at": 1_795_000_000, "status": status,
        "background": false, "error": null, "incomplete_details": null, "instructions": null,
        "max_output_tokens": null, "metadata": {}, "model": model, "output": output,
        "parallel_tool_calls": true, "previous_response_id": null,
        "reasoning": { "effort": null, "summary": null },
        "service_tier": answer.service_tier.as_deref().unwrap_or("default"), "store": true,
        "temperature": 1.0, "text": { "format": { "type": "text" } }, "tool_choice": "auto",
        "tools": [], "top_p": 1.0, "truncation": "disabled", "usage": usage, "user": null
    })
}

pub fn whole(answer: &Answer, model: &str) -> Value {
    let usage = if answer.reports_usage { usage(answer) } else { Value::Null };
    response(answer, model, "completed", &output(answer), usage)
}

pub fn events(answer: &Answer, model: &str) -> Vec<(String, u64)> {
    let mut events = Vec::new();
    let mut push = |kind: &str, mut event: Value, tokens: u64| {
        event["type"] = json!(kind);
        event["sequence_number"] = json!(events.len());
        events.push((named(&event), tokens));
    };
    let started = response(answer, model, "in_progress", &[], Value::Null);
    push("response.created", json!({ "response": started }), 0);
    push("response.in_progress", json!({ "response": started }), 0);
    if !answer.pieces.is_empty() {
        let item = message("in_progress", &[]);
        push("response.output_item.added", json!({ "output_index": 0, "item": item }), 0);
        let at = json!({ "item_id": MESSAGE, "output_index": 0, "content_index": 0 });
        let with = |name: &str, value: Value| {
            let mut event = at.clone();
            event[name] = value;
            event
        };
        push("response.content_part.added", with("part", text_part("")), 0);
        for (piece, tokens) in answer.deltas() {
            let mut delta = with("delta", json!(piece));
            delta["logprobs"] = json!([]);
            push("response.output_text.delta", delta, tokens);
        }
        let text = answer.full_text();
        let mut done = with("text", json!(text));
        done["logprobs"] = json!([]);
        push("response.output_text.done", done, 0);
        push("response.content_part.done", with("part", text_part(&text)), 0);
        let item = message("completed", &[text_part(&text)]);
        push("response.output_item.done", json!({ "output_index": 0, "item": item }), 0);
    }
    let first = usize::from(!answer.pieces.is_empty());
    let mut left = if first == 0 { answer.counts.output } else { 0 };
    for i in 0..answer.tools.len() {
        let at = first + i;
        let item = call(answer, i, "in_progress");
        push("response.output_item.added", json!({ "output_index": at, "item": item }), 0);
        let item = call(answer, i, "completed");
        let delta =
            json!({ "item_id": item["id"], "output_index": at, "delta": item["arguments"] });
        push("response.function_call_arguments.delta", delta, left);
        left = 0;
        let done =
            json!({ "item_id": item["id"], "output_index": at, "arguments": item["arguments"] });
        push("response.function_call_arguments.done", done, 0);
        push("response.output_item.done", json!({ "output_index": at, "item": item }), 0);
    }
    push("response.completed", json!({ "response": whole(answer, model) }), 0);
    events
}
