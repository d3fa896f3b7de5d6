//! The gate: what a client asks for, as far as billing must know, and what goes upstream.
//!
//! One pass over the body. What goes upstream is written from what was read, so the
//! upstream cannot read another model, count or tool than the one that was priced.

use bytes::Bytes;

use super::Endpoint;
use crate::store::Attribution;

/// A request that was understood.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model that the client names (for Gemini, the one in the path).
    pub model: String,
    /// Whether a stream is asked for.
    pub stream: bool,
    /// Whether the client itself asked for usage in the stream.
    pub asks_usage: bool,
    /// The largest output asked for, in tokens, per choice.
    pub max_output: Option<u64>,
    /// Choices (`n`, `best_of`, `candidateCount`), at least 1.
    pub choices: u64,
    /// The service tier asked for, in lower case; `auto`, `default`, `standard` and the like are `None`.
    pub service_tier: Option<String>,
    /// Fees that the request may cause: names of tools that the upstream runs, such as
    /// `web_search`, `code_interpreter`, `file_search`, `mcp`, `computer_use`, …
    pub hosted_tools: Vec<String>,
    /// Audio output is asked for.
    pub audio_output: bool,
    /// Image output is asked for.
    pub image_output: bool,
    /// Responses: the object that this one builds on.
    pub previous_response: Option<String>,
    /// Responses: the conversation that it belongs to.
    pub conversation: Option<String>,
    /// A cache lifetime of one hour is asked for somewhere.
    pub asks_1h_cache: bool,
    /// Run, agent, session and origin, as far as the body says (client-controlled).
    pub attribution: Attribution,
    body: Bytes,
}

/// Why a body was not understood. What the client reads; never any of its text but key names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not a JSON object that every reader reads alike.
    #[error("The body is not valid JSON: {reason} at byte {offset}.")]
    Json {
        /// What is wrong.
        reason: &'static str,
        /// Where.
        offset: usize,
    },
    /// A name stands twice, or beside a twin that differs in case.
    #[error("The key \"{key}\" is given more than once (at byte {offset}).")]
    DuplicateKey {
        /// The name.
        key: String,
        /// Where the second one begins.
        offset: usize,
    },
    /// A field that we act on has a value that we cannot act on.
    #[error("The parameter \"{parameter}\" {problem}.")]
    Parameter {
        /// Its path, such as `stream_options.include_usage`.
        parameter: String,
        /// Such as `must be true or false`.
        problem: String,
    },
    /// A parameter that is known to cost money that cannot be metered.
    #[error("The parameter \"{parameter}\" is not allowed: {why}.")]
    NotAllowed {
        /// Its path.
        parameter: String,
        /// The reason.
        why: &'static str,
    },
}

/// Reads a body. `path_model` is the model of a Gemini path.
///
/// # Errors
///
/// [`Invalid`], for the client.
pub fn read(
    _endpoint: Endpoint,
    _path_model: Option<&str>,
    _body: Bytes,
) -> Result<Request, Invalid> {
    unreachable!()
}

impl Request {
    /// The body for the upstream: every field as it came, with the upstream's name of the
    /// model, and with usage asked for in the stream if `include_usage`.
    pub fn upstream_body(&self, _upstream_model: &str, _include_usage: bool) -> Bytes {
        self.body.clone()
    }

    /// The body as it came, for an estimate.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}
