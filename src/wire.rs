//! The formats spoken with clients and upstreams: the only code that knows JSON shapes.
//!
//! [`request`] reads what a client sends and writes what goes upstream; [`attribution`]
//! says who it is for; [`http1`] takes a reply out of its framing; [`meter`] reads what a reply used while its bytes pass; [`estimate`]
//! counts where nothing was reported.

pub mod attribution;
pub mod estimate;
pub mod hello;
pub mod http1;
pub mod json;
pub mod meter;
pub mod refusal;
pub mod request;
pub mod sse;
pub mod usage;

/// What a client may POST to, each with a meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages`
    Messages,
    /// `/v1/messages/count_tokens`
    CountTokens,
    /// `/v1beta/models/{model}:generateContent`
    Generate,
    /// `/v1beta/models/{model}:streamGenerateContent`
    StreamGenerate,
}

/// The families of formats, which are also the kinds of upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Chat completions, completions, embeddings and Responses.
    Openai,
    /// Messages.
    Anthropic,
    /// `generateContent`.
    Gemini,
}

impl Endpoint {
    /// The kind of upstream that speaks this endpoint.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Chat | Self::Completions | Self::Embeddings | Self::Responses => Kind::Openai,
            Self::Messages | Self::CountTokens => Kind::Anthropic,
            Self::Generate | Self::StreamGenerate => Kind::Gemini,
        }
    }
}
