//! Reads what a reply used while its bytes pass, and makes the two documented edits.
//!
//! No copy of a stream is kept and no event is parsed that cannot carry usage.

use bytes::Bytes;

use super::Endpoint;
use crate::billing::{Credits, Usage};

/// What a reply says of itself, as far as it has been read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Counts that the upstream reported and that are complete. `None`: nothing reported.
    pub usage: Option<Usage>,
    /// Input counts that are exact although the output is not known, as after Anthropic's
    /// `message_start`; `output` in it is zero.
    pub input: Option<Usage>,
    /// Tokens of other models on the same request, each with the model's name.
    pub sub_usages: Vec<(String, Usage)>,
    /// The model that the reply names.
    pub model: Option<String>,
    /// The service tier that the reply names, in lower case.
    pub service_tier: Option<String>,
    /// What the upstream says it charges the operator, in US dollars, as decimal text.
    pub provider_cost: Option<String>,
    /// The id of a stored response (Responses).
    pub response_id: Option<String>,
    /// The reply is an error, or ended in one.
    pub failed: bool,
    /// Some output was delivered.
    pub output_seen: bool,
    /// What was odd: `usage_regressed`, `usage_invalid`, …
    pub flags: Vec<&'static str>,
}

/// What may be changed in a stream of chat or text completions. Nothing is ever changed in others.
pub enum Edit {
    /// Nothing.
    None,
    /// The usage chunk that we asked for and the client did not is left out.
    HideUsage,
    /// `usage.cost` is written into the final usage, which the client asked for; the function
    /// prices what has been read.
    AddCost(Box<dyn Fn(&Reading) -> Option<Credits> + Send>),
}

/// Reads one reply.
pub struct Meter {
    _endpoint: Endpoint,
}

impl Meter {
    /// A meter for a reply of `endpoint` whose body is an event stream.
    pub fn stream(endpoint: Endpoint, _edit: Edit) -> Self {
        Self { _endpoint: endpoint }
    }

    /// Takes the next bytes of the body and returns those that may go to the client now.
    ///
    /// From the terminal event on (`[DONE]`, `message_stop`, `response.completed`, …)
    /// everything is held back until [`Meter::finish`], because a client takes it for the end.
    pub fn push(&mut self, bytes: Bytes) -> Bytes {
        bytes
    }

    /// The terminal event has been seen; what follows is at most trailing bytes.
    pub fn is_terminal(&self) -> bool {
        false
    }

    /// The body has ended or no more will be read: reads an unterminated last event, and
    /// returns the bytes held back.
    pub fn finish(&mut self) -> Bytes {
        Bytes::new()
    }

    /// What has been read so far.
    pub fn reading(&self) -> &Reading {
        unreachable!()
    }

    /// The delivered output as text, as far as it is kept for an estimate (bounded), and how
    /// many bytes of output there were in all.
    pub fn output_text(&self) -> (String, u64) {
        (String::new(), 0)
    }
}

/// Reads a reply that came whole.
pub fn read_whole(_endpoint: Endpoint, _body: &[u8]) -> Reading {
    Reading::default()
}
