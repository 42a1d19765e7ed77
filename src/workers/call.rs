//! One call to a handler and its answer.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use roundhouse_types::{Failure, Spent};
use serde::Serialize;
use tokio::sync::mpsc;

/// What a handler is asked. Its functions see the body as it came.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// What the body is written in, where the client said so.
    pub content_type: Option<String>,
    /// What the answer shall be written in, where the client said so.
    pub accept: Option<String>,
    /// What the handler's context shows beside.
    pub meta: Meta,
    /// The body.
    pub body: Bytes,
    /// Whether the client takes an answer in pieces.
    pub stream: bool,
    /// Where the time that its worker takes is added.
    pub spent: Spent,
}

/// What a handler's `context` argument shows of a request.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Meta {
    /// Request headers that a SageMaker container would see.
    pub headers: std::collections::BTreeMap<String, String>,
    /// The request's id.
    pub request_id: String,
    /// What the client sent as custom attributes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_attributes: Option<String>,
}

/// A handler's answer.
#[derive(Debug)]
pub struct Reply {
    /// 200 unless the handler set another.
    pub status: u16,
    /// What the body is written in; absent where the handler said nothing.
    pub content_type: Option<String>,
    /// Response headers that the handler set.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Body,
}

/// An answer's body.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Whole(Bytes),
    /// In the pieces that the handler yields.
    Chunks(Chunks),
}

/// The pieces of an answer as they come; a failure is the last. Dropping it tells the handler
/// to stop.
#[derive(Debug)]
pub struct Chunks(pub(crate) mpsc::Receiver<Result<Bytes, Failure>>);

impl Stream for Chunks {
    type Item = Result<Bytes, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone)]
pub enum CallError {
    /// No worker has begun it, and none of this group will. It may be tried elsewhere.
    NotBegun(Failure),
    /// It was refused, or it began and failed.
    Failed(Failure),
}
