//! A provider that no model stands behind: it speaks the formats of all kinds of upstream,
//! remembers prompts as prompt caches do, and takes its time between the pieces of a reply.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use http_body::Frame;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Sleep;

use super::words;
use crate::billing::Usage;
use crate::wire::Endpoint;

mod chat;
mod gemini;
mod messages;
mod responses;

/// The largest body that is read.
const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
/// How long a reply that is not streamed, and the first piece of a stream, are thought about.
const THINKING: Duration = Duration::from_millis(300);
/// Prompt caches know nothing shorter, and count in steps.
const SHORTEST_CACHED: u64 = 1024;
const CACHED_STEP: u64 = 128;

/// A provider that listens on a port of its own.
pub struct Provider {
    /// Where.
    pub url: String,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// No pauses: an hour has to be played in seconds.
    hurries: AtomicBool,
    replies: AtomicU64,
    /// Tokens of the prompts that are remembered, by how they begin.
    cache: Mutex<HashMap<u64, u64>>,
}

impl Provider {
    /// Starts it on a free port of this machine; it ends with the process.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let inner = Arc::new(Inner::default());
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&inner));
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!("the simulated provider ended: {error}");
            }
        });
        Ok(Self { url, inner })
    }

    /// Whether replies come without pauses from now on.
    pub fn hurry(&self, hurries: bool) {
        self.inner.hurries.store(hurries, Ordering::Relaxed);
    }
}

/// A reply before it has a format.
struct Answer {
    /// Counts replies, and so makes their ids.
    number: u64,
    model: String,
    /// Streamed one by one.
    pieces: Vec<String>,
    call: Option<Call>,
    usage: Usage,
}

/// A function that the model wants to be called.
struct Call {
    name: String,
    arguments: Value,
}

impl Answer {
    fn text(&self) -> String {
        self.pieces.concat()
    }
}

/// Seconds since 1970, as replies state them.
fn created() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// An event without a name.
fn data(json: &Value) -> String {
    format!("data: {json}\n\n")
}

/// An event named by the `type` of its data.
fn named(json: &Value) -> String {
    format!("event: {}\ndata: {json}\n\n", json["type"].as_str().unwrap_or_default())
}

/// Which format a path asks for.
fn endpoint(path: &str) -> Option<Endpoint> {
    let ends = [
        ("/chat/completions", Endpoint::Chat),
        ("/completions", Endpoint::Completions),
        ("/embeddings", Endpoint::Embeddings),
        ("/responses", Endpoint::Responses),
        ("/messages", Endpoint::Messages),
        ("/messages/count_tokens", Endpoint::CountTokens),
        (":generateContent", Endpoint::Generate),
        (":streamGenerateContent", Endpoint::StreamGenerate),
    ];
    ends.iter().find(|(end, _)| path.ends_with(end)).map(|(_, endpoint)| *endpoint)
}

async fn answer(State(inner): State<Arc<Inner>>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let Some(endpoint) = endpoint(head.uri.path()) else {
        return refusal(StatusCode::NOT_FOUND, "there is nothing at this path");
    };
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return refusal(StatusCode::BAD_REQUEST, "the body did not arrive");
    };
    let Ok(asked) = serde_json::from_slice::<Value>(&body) else {
        return refusal(StatusCode::BAD_REQUEST, "the body is not JSON");
    };
    let model = match asked["model"].as_str() {
        Some(model) => model.to_owned(),
        None => model_of_path(head.uri.path()),
    };
    let number = inner.replies.fetch_add(1, Ordering::Relaxed) + 1;
    let answer = inner.think(endpoint, &asked, body.len() as u64, number, model);
    let stream = asked["stream"] == true;
    let chunks = match endpoint {
        Endpoint::Chat if stream => chat::events(&answer, &asked),
        Endpoint::Completions if stream => chat::text_events(&answer, &asked),
        Endpoint::Responses if stream => responses::events(&answer),
        Endpoint::Messages if stream => messages::events(&answer),
        Endpoint::StreamGenerate if head.uri.query() == Some("alt=sse") => gemini::events(&answer),
        Endpoint::StreamGenerate => gemini::array(&answer),
        Endpoint::Chat => vec![chat::whole(&answer).to_string()],
        Endpoint::Completions => vec![chat::text_whole(&answer).to_string()],
        Endpoint::Embeddings => vec![chat::embeddings(&answer, &asked).to_string()],
        Endpoint::Responses => vec![responses::whole(&answer).to_string()],
        Endpoint::Messages => vec![messages::whole(&answer).to_string()],
        Endpoint::CountTokens => vec![json!({ "input_tokens": answer.usage.input }).to_string()],
        Endpoint::Generate => vec![gemini::whole(&answer).to_string()],
    };
    let is_events = chunks.first().is_some_and(|chunk| chunk.starts_with(['d', 'e']));
    let kind = if is_events { "text/event-stream; charset=utf-8" } else { "application/json" };
    let hurries = inner.hurries.load(Ordering::Relaxed);
    let body = Paced { chunks: chunks.into_iter(), wait: None, is_first: true, hurries };
    ([(header::CONTENT_TYPE, kind)], Body::new(body)).into_response()
}

fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    let error = json!({ "error": { "message": message, "type": "invalid_request_error" } });
    (status, axum::Json(error)).into_response()
}

/// `…/models/MODEL:method`
fn model_of_path(path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or_default();
    last.split(':').next().unwrap_or_default().to_owned()
}

impl Inner {
    fn think(
        &self,
        endpoint: Endpoint,
        asked: &Value,
        bytes: u64,
        number: u64,
        model: String,
    ) -> Answer {
        let talk = Talk::of(asked);
        let mut usage = self.remember(endpoint, asked, &talk, bytes, &model);
        let prompt = talk.prompt();
        let call = call(asked, &prompt);
        let text = if call.is_some() { String::new() } else { words::reply(&prompt) };
        let pieces = pieces(&text);
        let written =
            call.as_ref().map_or(text.len(), |call| call.arguments.to_string().len() + 40);
        usage.output = tokens(written as u64);
        if ["gpt-5", "gpt-6", "o3", "gemini", "grok"].iter().any(|name| model.contains(name)) {
            usage.reasoning = usage.output * 3 / 2;
            usage.output += usage.reasoning;
        }
        Answer { number, model, pieces, call, usage }
    }

    /// The input of a request, by what of it was seen before. Everything but the last message
    /// is remembered; Messages only if it is asked to, and then writing it has a price.
    fn remember(
        &self,
        endpoint: Endpoint,
        asked: &Value,
        talk: &Talk<'_>,
        bytes: u64,
        model: &str,
    ) -> Usage {
        let total = tokens(bytes);
        let by_request = endpoint == Endpoint::Messages;
        let wanted = !by_request || asked.to_string().contains("\"cache_control\"");
        let last = talk.messages.last().map_or(bytes, |message| message.to_string().len() as u64);
        let stable = tokens(bytes.saturating_sub(last)) / CACHED_STEP * CACHED_STEP;
        if stable < SHORTEST_CACHED || !wanted {
            return Usage { input: total, ..Usage::default() };
        }
        let mut hasher = DefaultHasher::new();
        (model, talk.system.to_string(), talk.messages.first().map(Value::to_string))
            .hash(&mut hasher);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let known = cache.entry(hasher.finish()).or_default();
        let cached = stable.min(*known);
        let written = if by_request { stable - cached } else { 0 };
        *known = stable.max(*known);
        Usage {
            input: total - cached - written,
            cached,
            cache_creation_5m: written,
            ..Usage::default()
        }
    }
}

/// About four bytes are a token.
const fn tokens(bytes: u64) -> u64 {
    bytes.div_ceil(4)
}

/// Two words at a time.
fn pieces(text: &str) -> Vec<String> {
    let words: Vec<_> = text.split_inclusive(' ').collect();
    words.chunks(2).map(<[&str]>::concat).collect()
}

/// The conversation of a request in any format.
struct Talk<'a> {
    system: &'a Value,
    messages: &'a [Value],
}

impl<'a> Talk<'a> {
    fn of(asked: &'a Value) -> Self {
        let field = |names: [&str; 3]| {
            names.iter().map(|name| &asked[*name]).find(|v| !v.is_null()).unwrap_or(&Value::Null)
        };
        let messages = field(["messages", "input", "contents"]);
        Self {
            system: field(["system", "instructions", "systemInstruction"]),
            messages: match messages {
                Value::Array(messages) => messages,
                Value::Null => std::slice::from_ref(&asked["prompt"]),
                text => std::slice::from_ref(text),
            },
        }
    }

    /// The text of the last message; empty if it is the result of a tool.
    fn prompt(&self) -> String {
        let last = self.messages.last().unwrap_or(&Value::Null);
        let content = ["content", "parts"].iter().map(|name| &last[*name]).find(|v| !v.is_null());
        let text = match content.unwrap_or(last) {
            Value::String(text) => text,
            Value::Array(parts) => {
                parts.iter().find_map(|part| part["text"].as_str()).unwrap_or_default()
            }
            _ => "",
        };
        if last["role"] == "tool" { String::new() } else { text.to_owned() }
    }
}

/// The call of a tool, if one is forced or the prompt names it.
fn call(asked: &Value, prompt: &str) -> Option<Call> {
    let tools = asked["tools"].as_array()?;
    let declared = tools.iter().flat_map(|tool| match tool["functionDeclarations"].as_array() {
        Some(functions) => functions.iter().collect::<Vec<_>>(),
        None if tool["function"].is_object() => vec![&tool["function"]],
        None => vec![tool],
    });
    let choice = &asked["tool_choice"];
    let is_forced = choice == "required" || choice["type"] == "any";
    let forced =
        choice["name"].as_str().or_else(|| choice["function"]["name"].as_str()).unwrap_or_default();
    let mut named = declared.filter_map(|tool| Some((tool["name"].as_str()?, tool)));
    let (name, tool) = named.find(|(name, _)| {
        let is_asked = prompt.to_lowercase().contains(&name.to_lowercase());
        forced == *name || is_asked || (is_forced && !prompt.is_empty())
    })?;
    if prompt.is_empty() && forced != name {
        return None;
    }
    let schema = ["parameters", "input_schema"].iter().map(|n| &tool[*n]).find(|v| v.is_object());
    Some(Call {
        name: name.to_owned(),
        arguments: arguments(schema.unwrap_or(&Value::Null), prompt),
    })
}

/// Values for the properties that a schema requires.
fn arguments(schema: &Value, prompt: &str) -> Value {
    let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    let values = required.iter().filter_map(Value::as_str).map(|name| {
        let property = &schema["properties"][name];
        let value = match (property["enum"].get(0), property["type"].as_str()) {
            (Some(first), _) => first.clone(),
            (None, Some("integer" | "number")) => json!(1),
            (None, Some("boolean")) => json!(true),
            (None, Some("array")) => json!([]),
            (None, Some("object")) => json!({}),
            _ => json!(prompt.chars().take(60).collect::<String>()),
        };
        (name.to_owned(), value)
    });
    Value::Object(values.collect())
}

/// A body whose chunks come one by one.
struct Paced {
    chunks: std::vec::IntoIter<String>,
    wait: Option<Pin<Box<Sleep>>>,
    is_first: bool,
    hurries: bool,
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let Some(next) = this.chunks.as_slice().first() else { return Poll::Ready(None) };
        if !this.hurries {
            // 20–40 ms, not the same for every chunk.
            let pause = Duration::from_millis(20 + next.len() as u64 * 7 % 21);
            let pause = if this.is_first { THINKING } else { pause };
            let wait = this.wait.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            ready!(wait.as_mut().poll(cx));
            this.wait = None;
            this.is_first = false;
        }
        Poll::Ready(this.chunks.next().map(|chunk| Ok(Frame::data(chunk.into()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_called_if_the_prompt_names_it_and_not_after_its_result() {
        let tool = json!({
            "name": "get_weather",
            "parameters": {
                "properties": { "city": { "type": "string" }, "days": { "type": "integer" } },
                "required": ["city", "days"],
            },
        });
        for tools in [
            json!([{ "type": "function", "function": tool }]),
            json!([{ "functionDeclarations": [tool] }]),
            json!([tool]),
        ] {
            let asked = json!({ "tools": tools });
            let call = call(&asked, "Use get_weather for Oslo").unwrap();
            assert_eq!(call.name, "get_weather");
            assert_eq!(call.arguments["days"], 1);
            assert!(super::call(&asked, "Hi").is_none());
            assert!(super::call(&asked, "").is_none());
        }
    }

    #[test]
    fn a_prompt_that_was_seen_is_cached_and_every_token_counts_once() {
        let inner = Inner::default();
        let long = "All of it. ".repeat(1000);
        let body = |prompt: &str| {
            json!({
                "system": [{ "text": long, "cache_control": {} }],
                "messages": [{ "role": "user", "content": prompt }],
            })
        };
        let think = |prompt: &str| {
            let asked = body(prompt);
            let bytes = asked.to_string().len() as u64;
            let usage = inner.think(Endpoint::Messages, &asked, bytes, 1, "m".into()).usage;
            assert_eq!(usage.input + usage.cached + usage.cache_creation_5m, tokens(bytes));
            (usage.cached, usage.cache_creation_5m)
        };
        let (cached, written) = think("Hi");
        assert!(cached == 0 && written > 2000);
        assert_eq!(think("Hi"), (written, 0));
    }
}
