//! One question in each form that is served, so that a promise can be checked in all of them.

use serde_json::{Value, json};

use super::account::Account;
use super::http::{Call, Reply};
use super::proxy::Proxy;
use super::raw::Raw;

/// A request that asks for text.
#[derive(Clone, Debug)]
pub struct Form {
    pub path: &'static str,
    pub body: Value,
    pub model: &'static str,
    /// The reply comes as events.
    pub stream: bool,
}

/// Every form of question that has text for an answer.
pub fn all() -> Vec<Form> {
    let whole = [
        chat(),
        form("/v1/completions", "test", json!({ "prompt": "Hi" })),
        form("/v1/responses", "test", json!({ "input": "Hi" })),
        messages(),
        form("/v1beta/models/gemini:generateContent", "gemini", gemini()),
        // Without `alt=sse` the stream is one JSON array.
        form("/v1beta/models/gemini:streamGenerateContent", "gemini", gemini()),
    ];
    whole.into_iter().chain(streams()).collect()
}

/// Those that are answered by events.
pub fn streams() -> Vec<Form> {
    let events = "/v1beta/models/gemini:streamGenerateContent?alt=sse";
    vec![
        chat().streamed(),
        form("/v1/completions", "test", json!({ "prompt": "Hi" })).streamed(),
        form("/v1/responses", "test", json!({ "input": "Hi" })).streamed(),
        messages().streamed(),
        Form { stream: true, ..form(events, "gemini", gemini()) },
    ]
}

/// A chat completion, whole.
pub fn chat() -> Form {
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    form("/v1/chat/completions", "test", json!({ "messages": messages }))
}

/// A message of Anthropic's, whole.
pub fn messages() -> Form {
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    form("/v1/messages", "claude", json!({ "max_tokens": 1000, "messages": messages }))
}

/// A response, whole.
pub fn responses() -> Form {
    form("/v1/responses", "test", json!({ "input": "Hi" }))
}

fn gemini() -> Value {
    json!({ "contents": [{ "role": "user", "parts": [{ "text": "Hi" }] }] })
}

fn form(path: &'static str, model: &'static str, mut body: Value) -> Form {
    if !path.contains("/models/") {
        body["model"] = json!(model);
    }
    Form { path, body, model, stream: false }
}

impl Form {
    /// The same question, answered by events.
    pub fn streamed(mut self) -> Self {
        self.body["stream"] = json!(true);
        self.stream = true;
        self
    }

    /// With one field set.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.body[name] = value;
        self
    }

    /// About another model.
    pub fn model(mut self, name: &'static str) -> Self {
        self.model = name;
        self.with("model", json!(name))
    }

    /// The request, signed by an account.
    pub fn call(&self, account: &Account) -> Call {
        account.call(self.path, &self.body)
    }

    /// Asks and reads the whole reply.
    pub async fn ask(&self, account: &Account) -> Reply {
        self.call(account).reply().await
    }

    /// Sends the request over a connection that the test reads, or closes, by itself.
    pub async fn send_raw(&self, proxy: &Proxy, account: &Account) -> Raw {
        let (path, key, body) = (self.path, &account.key, self.body.to_string());
        let mut raw = Raw::connect(&proxy.url()).await;
        raw.write(format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
        raw
    }
}
