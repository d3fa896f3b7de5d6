//! A provider's reply before it has a dialect: some text, tool calls, counts.
//!
//! [`Answer::script`] writes it as the endpoint of the request would: with the ids, events
//! and fields that real SDKs look at.

pub mod chat;
pub mod gemini;
pub mod messages;
pub mod responses;

use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::prices::Counts;
use super::script::Script;
use super::upstream::Received;

/// The forms in which an upstream is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Chat,
    Completions,
    Embeddings,
    Responses,
    Messages,
    CountTokens,
    Generate,
    /// Gemini's stream: events with `alt=sse`, else one JSON array.
    StreamGenerate,
}

impl Dialect {
    /// The dialect of a path.
    pub fn of(request: &Received) -> Option<Self> {
        Self::of_path(&request.path)
    }

    /// The dialect of a path, whatever stands before its last part.
    pub fn of_path(path: &str) -> Option<Self> {
        let path = path.split('?').next().unwrap_or_default();
        let dialects = [
            ("/chat/completions", Self::Chat),
            ("/completions", Self::Completions),
            ("/embeddings", Self::Embeddings),
            ("/responses", Self::Responses),
            ("/messages", Self::Messages),
            ("/messages/count_tokens", Self::CountTokens),
            (":generateContent", Self::Generate),
            (":streamGenerateContent", Self::StreamGenerate),
        ];
        dialects.iter().find(|(end, _)| path.ends_with(end)).map(|(_, dialect)| *dialect)
    }
}

/// A function that the model calls.
#[derive(Clone, Debug)]
pub struct ToolCall {
    pub name: String,
    pub arguments: Value,
}

type Stage = Arc<dyn Fn(Script) -> Script + Send + Sync>;

/// What is answered, in whatever dialect it is asked.
#[derive(Clone)]
pub struct Answer {
    /// Streamed one by one.
    pub pieces: Vec<String>,
    pub tools: Vec<ToolCall>,
    pub counts: Counts,
    /// False: the provider forgets to report usage. It bills all the same.
    pub reports_usage: bool,
    /// The model that the reply names; else the one asked for.
    pub served_model: Option<String>,
    pub service_tier: Option<String>,
    stage: Option<Stage>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

impl Default for Answer {
    fn default() -> Self {
        Self::text(["Hello", " world"])
    }
}

impl Answer {
    /// Text in these pieces, for ten tokens of input and one of output a piece.
    pub fn text<S: Into<String>>(pieces: impl IntoIterator<Item = S>) -> Self {
        let pieces: Vec<String> = pieces.into_iter().map(Into::into).collect();
        let counts = Counts::new(10, pieces.len() as u64);
        Self {
            pieces,
            tools: Vec::new(),
            counts,
            reports_usage: true,
            served_model: None,
            service_tier: None,
            stage: None,
        }
    }

    /// A call of a tool, and no text.
    pub fn tool(name: &str, arguments: Value) -> Self {
        let mut answer = Self::text(Vec::<String>::new());
        answer.counts.output = 12;
        answer.tools.push(ToolCall { name: name.into(), arguments });
        answer
    }

    pub fn counts(mut self, counts: Counts) -> Self {
        self.counts = counts;
        self
    }

    pub fn without_usage(mut self) -> Self {
        self.reports_usage = false;
        self
    }

    pub fn served_by(mut self, model: &str) -> Self {
        self.served_model = Some(model.into());
        self
    }

    pub fn tier(mut self, tier: &str) -> Self {
        self.service_tier = Some(tier.into());
        self
    }

    /// Changes how the reply is played: slower, in other pieces, cut.
    pub fn staged(mut self, stage: impl Fn(Script) -> Script + Send + Sync + 'static) -> Self {
        self.stage = Some(Arc::new(stage));
        self
    }

    /// The reply in a dialect, with what it costs the operator.
    pub fn script(&self, dialect: Dialect, request: &Received) -> Script {
        let model = self.served_model.clone().unwrap_or_else(|| request.model());
        let stream = request.json()["stream"] == Value::Bool(true);
        let bill = match dialect {
            Dialect::CountTokens => None,
            Dialect::Embeddings => Some(Counts::new(self.counts.all_input(), 0)),
            _ => Some(self.counts),
        };
        let script = match (dialect, stream) {
            (Dialect::Chat, false) => Script::json(&chat::whole(self, &model)),
            (Dialect::Chat, true) => Script::events(chat::events(self, &model, request)),
            (Dialect::Completions, false) => Script::json(&chat::text_whole(self, &model)),
            (Dialect::Completions, true) => {
                Script::events(chat::text_events(self, &model, request))
            }
            (Dialect::Embeddings, _) => Script::json(&chat::embeddings(self, &model, request)),
            (Dialect::Responses, false) => Script::json(&responses::whole(self, &model)),
            (Dialect::Responses, true) => Script::events(responses::events(self, &model)),
            (Dialect::Messages, false) => Script::json(&messages::whole(self, &model)),
            (Dialect::Messages, true) => Script::events(messages::events(self, &model)),
            (Dialect::CountTokens, _) => {
                Script::json(&json!({ "input_tokens": self.counts.input }))
            }
            (Dialect::Generate, _) => Script::json(&gemini::whole(self, &model)),
            (Dialect::StreamGenerate, _) if request.path.contains("alt=sse") => {
                Script::events(gemini::events(self, &model))
            }
            (Dialect::StreamGenerate, _) => {
                Script::whole("application/json", gemini::array(self, &model)).chunked()
            }
        };
        let script = match bill {
            Some(counts) => script.billing(&model, counts),
            None => script,
        };
        match &self.stage {
            Some(stage) => stage(script),
            None => script,
        }
    }

    /// The pieces with their tokens, which add up to the output of the counts.
    fn deltas(&self) -> Vec<(&str, u64)> {
        let n = self.pieces.len() as u64;
        let pieces = self.pieces.iter().zip(1..);
        pieces
            .map(|(piece, i)| {
                let rest = if i == n { self.counts.output % n } else { 0 };
                (piece.as_str(), self.counts.output / n + rest)
            })
            .collect()
    }

    fn full_text(&self) -> String {
        self.pieces.concat()
    }
}

/// An event without a name.
fn data(json: &Value) -> String {
    format!("data: {json}\n\n")
}

/// An event named by the `type` of its data.
fn named(json: &Value) -> String {
    format!("event: {}\ndata: {json}\n\n", json["type"].as_str().expect("a type"))
}
