//! Requests whose callers do not wait, as the gateway hands them on and gets them back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use roundhouse_tenancy::Caller;
use roundhouse_types::{EndpointName, Failure};

/// Takes a request whose caller does not wait; it is on disk for good when this returns.
pub type DeferFn =
    Arc<dyn Fn(Deferral) -> BoxFuture<'static, Result<Deferred, Failure>> + Send + Sync>;

/// A request whose caller does not wait for the answer.
#[derive(Debug, Clone)]
pub struct Deferral {
    /// The endpoint asked.
    pub endpoint: EndpointName,
    /// Who asks.
    pub caller: Caller,
    /// What the caller calls the request.
    pub inference_id: Option<String>,
    /// What the model is given.
    pub input: DeferredInput,
    /// Headers of the request that the model is sent later, names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// What the input is written in.
    pub content_type: Option<String>,
    /// How long it may wait for its turn.
    pub ttl: Duration,
    /// How long its answer may take.
    pub timeout: Duration,
    /// Folders between the endpoint's prefix and the object's name.
    pub extension: Option<String>,
    /// The object's name.
    pub filename: Option<String>,
}

/// What the model is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeferredInput {
    /// The object at this URI.
    At(String),
    /// These bytes.
    Inline(Bytes),
}

/// What the caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deferred {
    /// What the request is called.
    pub inference_id: String,
    /// Where its answer will be.
    pub output: String,
    /// Where its failure will be.
    pub failure: String,
}

/// A deferred request whose turn it is.
#[derive(Debug, Clone)]
pub struct Due {
    /// The endpoint asked.
    pub endpoint: EndpointName,
    /// On whose behalf.
    pub caller: Caller,
    /// As they were handed on.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The whole input.
    pub body: Bytes,
    /// The most bytes that the answer may have.
    pub most: u64,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// It was answered.
    Answered {
        /// What the answer is written in.
        content_type: Option<String>,
        /// All of it.
        body: Bytes,
    },
    /// It cannot be.
    Failed {
        /// As a container would say it.
        status: u16,
        /// What the error is written in.
        content_type: Option<String>,
        /// The model's words, or ours.
        body: Bytes,
    },
    /// It was not its turn yet.
    NotNow {
        /// What it waits for.
        why: String,
        /// When to try again, where that is known.
        after: Option<Duration>,
    },
}
