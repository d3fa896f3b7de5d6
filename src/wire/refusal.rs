//! A refusal dressed as the assistant's answer, for keys of clients that show nothing else.

use serde_json::json;

use super::Endpoint;

/// Content type and body of a 200 reply whose only content is `text`; it used no tokens.
///
/// `None` where no assistant speaks: an empty answer of the right shape would be a lie.
pub fn message(
    endpoint: Endpoint,
    stream: bool,
    text: &str,
    id: &str,
) -> Option<(&'static str, String)> {
    let events = |events: &[serde_json::Value]| {
        let mut out = String::new();
        for event in events {
            if let Some(name) = event["type"].as_str() {
                out += &format!("event: {name}\n");
            }
            out += &format!("data: {event}\n\n");
        }
        out
    };
    Some(match (endpoint, stream) {
        (Endpoint::Chat, false) => (JSON, chat(text, id, false).to_string()),
        (Endpoint::Chat, true) => (EVENTS, events(&[chat(text, id, true)]) + "data: [DONE]\n\n"),
        (Endpoint::Completions, _) => {
            let body = json!({
                "id": id, "object": "text_completion", "created": 0, "model": "farebox",
                "choices": [{ "index": 0, "text": text, "logprobs": null, "finish_reason": "stop" }],
                "usage": { "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0 },
            });
            if stream {
                (EVENTS, events(&[body]) + "data: [DONE]\n\n")
            } else {
                (JSON, body.to_string())
            }
        }
        (Endpoint::Responses, false) => (JSON, response(text, id).to_string()),
        (Endpoint::Responses, true) => {
            let response = response(text, id);
            let item = response["output"][0].clone();
            (
                EVENTS,
                events(&[
                    json!({ "type": "response.created", "sequence_number": 0, "response": response }),
                    json!({ "type": "response.output_item.added", "sequence_number": 1,
                            "output_index": 0, "item": item }),
                    json!({ "type": "response.output_text.delta", "sequence_number": 2,
                            "item_id": item["id"], "output_index": 0, "content_index": 0, "delta": text }),
                    json!({ "type": "response.output_item.done", "sequence_number": 3,
                            "output_index": 0, "item": item }),
                    json!({ "type": "response.completed", "sequence_number": 4, "response": response }),
                ]),
            )
        }
        (Endpoint::Messages, false) => (JSON, anthropic(text, id).to_string()),
        (Endpoint::Messages, true) => {
            let mut start = anthropic("", id);
            start["content"] = json!([]);
            start["stop_reason"] = json!(null);
            (
                EVENTS,
                events(&[
                    json!({ "type": "message_start", "message": start }),
                    json!({ "type": "content_block_start", "index": 0,
                            "content_block": { "type": "text", "text": "" } }),
                    json!({ "type": "content_block_delta", "index": 0,
                            "delta": { "type": "text_delta", "text": text } }),
                    json!({ "type": "content_block_stop", "index": 0 }),
                    json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn", "stop_sequence": null },
                            "usage": { "output_tokens": 0 } }),
                    json!({ "type": "message_stop" }),
                ]),
            )
        }
        (Endpoint::Generate, _) => (JSON, gemini(text).to_string()),
        // A stream that is not asked for as events is one array.
        (Endpoint::StreamGenerate, false) => (JSON, json!([gemini(text)]).to_string()),
        (Endpoint::StreamGenerate, true) => (EVENTS, format!("data: {}\n\n", gemini(text))),
        (Endpoint::Embeddings | Endpoint::CountTokens, _) => return None,
    })
}

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream; charset=utf-8";

fn chat(text: &str, id: &str, chunk: bool) -> serde_json::Value {
    let (object, part) =
        if chunk { ("chat.completion.chunk", "delta") } else { ("chat.completion", "message") };
    let mut body = json!({
        "id": id, "object": object, "created": 0, "model": "farebox",
        "choices": [{ "index": 0, part: { "role": "assistant", "content": text },
                      "logprobs": null, "finish_reason": "stop" }],
    });
    if !chunk {
        body["usage"] = json!({ "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0 });
    }
    body
}

fn response(text: &str, id: &str) -> serde_json::Value {
    json!({
        "id": id, "object": "response", "created_at": 0, "status": "completed", "error": null,
        "incomplete_details": null, "instructions": null, "metadata": {}, "model": "farebox",
        "output": [{ "id": format!("msg_{id}"), "type": "message", "status": "completed",
                     "role": "assistant",
                     "content": [{ "type": "output_text", "text": text, "annotations": [] }] }],
        "parallel_tool_calls": true, "temperature": null, "tool_choice": "auto", "tools": [],
        "top_p": null,
        "usage": { "input_tokens": 0, "input_tokens_details": { "cached_tokens": 0 },
                   "output_tokens": 0, "output_tokens_details": { "reasoning_tokens": 0 },
                   "total_tokens": 0 },
    })
}

fn anthropic(text: &str, id: &str) -> serde_json::Value {
    json!({
        "id": id, "type": "message", "role": "assistant", "model": "farebox",
        "content": [{ "type": "text", "text": text }],
        "stop_reason": "end_turn", "stop_sequence": null,
        "usage": { "input_tokens": 0, "output_tokens": 0 },
    })
}

fn gemini(text: &str) -> serde_json::Value {
    json!({
        "candidates": [{ "content": { "role": "model", "parts": [{ "text": text }] },
                         "finishReason": "STOP", "index": 0 }],
        "usageMetadata": { "promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0 },
    })
}
