//! One request to an engine, and its answer.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use roundhouse_types::{Failure, TenantName};

/// Where a client sent its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// SageMaker's operations: any body.
    Invocations,
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v1/responses`.
    Responses,
    /// `/tokenize`.
    Tokenize,
    /// `/detokenize`.
    Detokenize,
    /// `/decode`.
    Decode,
}

impl Route {
    /// The path of a route that asks a tokenizer alone. Not every engine has them, and nobody's are
    /// called alike all through.
    pub fn of_tokenizer(self) -> Option<&'static str> {
        match self {
            Self::Tokenize => Some("/tokenize"),
            Self::Detokenize => Some("/detokenize"),
            Self::Decode => Some("/decode"),
            Self::Invocations
            | Self::Chat
            | Self::Completions
            | Self::Embeddings
            | Self::Responses => None,
        }
    }
}

/// What an engine is asked.
#[derive(Debug, Clone)]
pub struct Call {
    /// Where it was sent.
    pub route: Route,
    /// What the body is written in, where the client said so.
    pub content_type: Option<String>,
    /// What the answer shall be written in, where the client said so.
    pub accept: Option<String>,
    /// SageMaker's headers; engines with routes of their own are not told them.
    pub headers: Vec<(String, String)>,
    /// The request's id.
    pub request_id: String,
    /// The tenant that asks, where tenants' prompts are kept apart in the engine's cache. Absent where
    /// they are not, and where nobody said who asks.
    pub prefixes_of: Option<TenantName>,
    /// Its place in a trace, as headers say it.
    pub trace: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
}

/// An engine's answer, once it has begun.
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// What its body is written in, where the engine said so.
    pub content_type: Option<String>,
    /// SageMaker's headers in it.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Pieces,
}

/// An answer's body as it comes; a failure is the last. Dropping it ends the request.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// Why a call has no answer.
#[derive(Debug, Clone)]
pub enum CallError {
    /// The engine was gone before it heard of it. Another may be asked.
    NotBegun(Failure),
    /// It was refused, or it began and failed.
    Failed(Failure),
}
