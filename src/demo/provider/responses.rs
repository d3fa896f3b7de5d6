//! OpenAI's Responses.

use serde_json::{Value, json};

use super::{Answer, created, named};

/// Cached input counts inside `input_tokens`, reasoning inside `output_tokens`.
fn usage(answer: &Answer) -> Value {
    let usage = &answer.usage;
    let input = usage.input + usage.cached + usage.cache_creation_5m;
    json!({
        "input_tokens": input,
        "input_tokens_details": { "cached_tokens": usage.cached },
        "output_tokens": usage.output,
        "output_tokens_details": { "reasoning_tokens": usage.reasoning },
        "total_tokens": input + usage.output
    })
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

/// The one item of the output: a message, or the call of a function.
fn item(answer: &Answer, is_done: bool) -> Value {
    let number = answer.number;
    let status = if is_done { "completed" } else { "in_progress" };
    match &answer.call {
        None => {
            let content = if is_done { vec![text_part(&answer.text())] } else { Vec::new() };
            json!({
                "id": format!("msg_demo{number:08}"), "type": "message", "role": "assistant",
                "status": status, "content": content
            })
        }
        Some(call) => {
            let arguments = if is_done { call.arguments.to_string() } else { String::new() };
            json!({
                "id": format!("fc_demo{number:08}"), "type": "function_call", "status": status,
                "call_id": format!("call_demo{number:08}"), "name": call.name,
                "arguments": arguments
            })
        }
    }
}

fn response(answer: &Answer, status: &str, output: &[Value], usage: Value) -> Value {
    json!({
        "id": format!("resp_demo{:08}", answer.number), "object": "response",
        "created_at": created(), "status": status, "background": false, "error": null,
        "incomplete_details": null, "instructions": null, "max_output_tokens": null,
        "metadata": {}, "model": answer.model, "output": output, "parallel_tool_calls": true,
        "previous_response_id": null, "reasoning": { "effort": null, "summary": null },
        "service_tier": "default", "store": true, "temperature": 1.0,
        "text": { "format": { "type": "text" } }, "tool_choice": "auto", "tools": [],
        "top_p": 1.0, "truncation": "disabled", "usage": usage, "user": null
    })
}

pub fn whole(answer: &Answer) -> Value {
    response(answer, "completed", &[item(answer, true)], usage(answer))
}

pub fn events(answer: &Answer) -> Vec<String> {
    let mut events: Vec<Value> = Vec::new();
    let mut push = |kind: &str, mut event: Value| {
        event["type"] = json!(kind);
        event["sequence_number"] = json!(events.len());
        events.push(event);
    };
    let started = response(answer, "in_progress", &[], Value::Null);
    let done = item(answer, true);
    push("response.created", json!({ "response": started }));
    push("response.in_progress", json!({ "response": started }));
    push("response.output_item.added", json!({ "output_index": 0, "item": item(answer, false) }));
    let at = |name: &str, value: Value| {
        let mut event = json!({ "item_id": done["id"], "output_index": 0 });
        if answer.call.is_none() {
            event["content_index"] = json!(0);
        }
        event[name] = value;
        event
    };
    if answer.call.is_some() {
        let arguments = &done["arguments"];
        push("response.function_call_arguments.delta", at("delta", arguments.clone()));
        push("response.function_call_arguments.done", at("arguments", arguments.clone()));
    } else {
        push("response.content_part.added", at("part", text_part("")));
        for piece in &answer.pieces {
            push("response.output_text.delta", at("delta", json!(piece)));
        }
        push("response.output_text.done", at("text", json!(answer.text())));
        push("response.content_part.done", at("part", text_part(&answer.text())));
    }
    push("response.output_item.done", json!({ "output_index": 0, "item": done }));
    push("response.completed", json!({ "response": whole(answer) }));
    events.iter().map(named).collect()
}
