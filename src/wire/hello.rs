//! A short question in the dialect of chat completions, and what was answered: what a key is
//! tried out with.

use serde_json::{Value, json};

/// What an answer may take in tokens: enough for a model that reasons first.
const ANSWER_TOKENS: u32 = 64;

/// The body of a request that asks a model to say hello.
pub fn question(model: &str) -> Value {
    json!({
        "model": model,
        "max_completion_tokens": ANSWER_TOKENS,
        "messages": [{ "role": "user", "content": "Say hello." }],
    })
}

/// The text of the reply, if it has any.
pub fn answer(reply: &Value) -> Option<&str> {
    let text = reply["choices"][0]["message"]["content"].as_str()?.trim();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_without_text_says_nothing() {
        let of = |content: Value| {
            let reply = json!({ "choices": [{ "message": { "content": content } }] });
            answer(&reply).map(str::to_owned)
        };
        assert_eq!(of(json!(" Hello. ")).as_deref(), Some("Hello."));
        for nothing in [json!(""), json!(" \n"), json!(null), json!(7)] {
            assert_eq!(of(nothing), None);
        }
        assert_eq!(answer(&json!({ "choices": [] })), None);
        assert_eq!(answer(&Value::Null), None);
    }
}
