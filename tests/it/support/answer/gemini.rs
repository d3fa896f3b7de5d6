//! Gemini's `generateContent`, whole, as events and as one array.

use serde_json::{Value, json};

use super::Answer;

/// Cached input counts inside the prompt, thoughts stand beside the candidates.
fn usage(answer: &Answer, output: u64) -> Value {
    let counts = &answer.counts;
    let thoughts = counts.reasoning.min(output);
    let mut usage = json!({
        "promptTokenCount": counts.all_input(),
        "candidatesTokenCount": output - thoughts,
        "totalTokenCount": counts.all_input() + output,
        "promptTokensDetails": [{ "modality": "TEXT", "tokenCount": counts.all_input() }]
    });
    if counts.cached > 0 {
        usage["cachedContentTokenCount"] = json!(counts.cached);
    }
    if thoughts > 0 {
        usage["thoughtsTokenCount"] = json!(thoughts);
    }
    usage
}

fn reply(answer: &Answer, model: &str, parts: &[Value], last: bool, output: u64) -> Value {
    let mut candidate = json!({ "content": { "role": "model", "parts": parts }, "index": 0 });
    if last {
        candidate["finishReason"] = json!("STOP");
    }
    let mut reply = json!({
        "candidates": [candidate], "modelVersion": model, "responseId": "scripted-response"
    });
    if answer.reports_usage {
        reply["usageMetadata"] = usage(answer, output);
        if let Some(tier) = &answer.service_tier {
            reply["usageMetadata"]["serviceTier"] = json!(tier);
        }
    }
    reply
}

fn calls(answer: &Answer) -> impl Iterator<Item = Value> {
    let call = |call: &super::ToolCall| json!({ "name": call.name, "args": call.arguments });
    answer.tools.iter().map(move |c| json!({ "functionCall": call(c) }))
}

pub fn whole(answer: &Answer, model: &str) -> Value {
    let mut parts = Vec::new();
    if !answer.pieces.is_empty() {
        parts.push(json!({ "text": answer.full_text() }));
    }
    parts.extend(calls(answer));
    reply(answer, model, &parts, true, answer.counts.output)
}

/// Every reply of a stream has the usage so far.
fn replies(answer: &Answer, model: &str) -> Vec<(Value, u64)> {
    let mut parts: Vec<(Value, u64)> = answer
        .deltas()
        .into_iter()
        .map(|(piece, tokens)| (json!({ "text": piece }), tokens))
        .collect();
    parts.extend(calls(answer).map(|call| (call, 0)));
    if let ([], Some(first)) = (&answer.pieces[..], parts.first_mut()) {
        first.1 = answer.counts.output;
    }
    let last = parts.len();
    let mut output = 0;
    let parts = parts.into_iter().zip(1..);
    parts
        .map(|((part, tokens), i)| {
            output += tokens;
            (reply(answer, model, &[part], i == last, output), tokens)
        })
        .collect()
}

pub fn events(answer: &Answer, model: &str) -> Vec<(String, u64)> {
    let replies = replies(answer, model).into_iter();
    replies.map(|(reply, tokens)| (format!("data: {reply}\r\n\r\n"), tokens)).collect()
}

pub fn array(answer: &Answer, model: &str) -> String {
    let replies: Vec<String> =
        replies(answer, model).iter().map(|(reply, _)| reply.to_string()).collect();
    format!("[{}\n]", replies.join("\n,\r\n"))
}
