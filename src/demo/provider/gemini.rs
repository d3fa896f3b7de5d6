//! Gemini's `generateContent`, whole, as events and as one array.

use serde_json::{Value, json};

use super::Answer;

/// Cached input counts inside the prompt, thoughts stand beside the candidates.
fn usage(answer: &Answer) -> Value {
    let usage = &answer.usage;
    let input = usage.input + usage.cached;
    let mut object = json!({
        "promptTokenCount": input,
        "candidatesTokenCount": usage.output - usage.reasoning,
        "totalTokenCount": input + usage.output
    });
    if usage.cached > 0 {
        object["cachedContentTokenCount"] = json!(usage.cached);
    }
    if usage.reasoning > 0 {
        object["thoughtsTokenCount"] = json!(usage.reasoning);
    }
    object
}

fn reply(answer: &Answer, parts: &[Value], is_last: bool) -> Value {
    let mut candidate = json!({ "content": { "role": "model", "parts": parts }, "index": 0 });
    if is_last {
        candidate["finishReason"] = json!("STOP");
    }
    let mut reply = json!({
        "candidates": [candidate], "modelVersion": answer.model,
        "responseId": format!("demo{:08}", answer.number)
    });
    if is_last {
        reply["usageMetadata"] = usage(answer);
    }
    reply
}

fn call(answer: &Answer) -> Option<Value> {
    let call = answer.call.as_ref()?;
    Some(json!({ "functionCall": { "name": call.name, "args": call.arguments } }))
}

pub fn whole(answer: &Answer) -> Value {
    let part = call(answer).unwrap_or_else(|| json!({ "text": answer.text() }));
    reply(answer, &[part], true)
}

fn replies(answer: &Answer) -> Vec<Value> {
    let texts = answer.pieces.iter().map(|piece| json!({ "text": piece }));
    let parts: Vec<Value> = texts.chain(call(answer)).collect();
    let last = parts.len();
    parts.into_iter().zip(1..).map(|(part, i)| reply(answer, &[part], i == last)).collect()
}

pub fn events(answer: &Answer) -> Vec<String> {
    replies(answer).iter().map(|reply| format!("data: {reply}\r\n\r\n")).collect()
}

pub fn array(answer: &Answer) -> Vec<String> {
    let replies = replies(answer);
    let before = std::iter::once("[").chain(std::iter::repeat(",\r\n"));
    let mut chunks: Vec<_> =
        replies.iter().zip(before).map(|(reply, before)| format!("{before}{reply}")).collect();
    chunks.push("]".into());
    chunks
}
