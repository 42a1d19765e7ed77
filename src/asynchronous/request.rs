//! What is asked, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use roundhouse_types::{EndpointName, TenantName};

/// A request whose caller does not wait for the answer.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The endpoint asked.
    pub endpoint: EndpointName,
    /// On whose behalf; absent where nobody is asked who they are.
    pub tenant: Option<TenantName>,
    /// By which of the tenant's credentials: its id, never a secret.
    pub credential: Option<Arc<str>>,
    /// What the caller calls the request; absent: it is given a name.
    pub inference_id: Option<String>,
    /// What the model is given.
    pub input: Input,
    /// Headers of the request that the model is sent, names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// What the input is written in, for those who are told.
    pub content_type: Option<String>,
    /// How long it may wait for its turn.
    pub ttl: Duration,
    /// How long its answer may take.
    pub timeout: Duration,
    /// Folders between the endpoint's prefix and the object's name.
    pub extension: Option<String>,
    /// The object's name; absent: one that no other has.
    pub filename: Option<String>,
}

/// What the model is given.
#[derive(Debug, Clone)]
pub enum Input {
    /// The object at this URI.
    At(String),
    /// These bytes.
    Inline(Bytes),
}

/// What the caller of an accepted request is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// What the request is called.
    pub inference_id: String,
    /// Where its answer will be, if it has one.
    pub output: String,
    /// Where its failure will be, if it fails.
    pub failure: String,
}

/// A request whose turn it is.
#[derive(Debug, Clone)]
pub struct Run {
    /// The endpoint asked.
    pub endpoint: EndpointName,
    /// On whose behalf.
    pub tenant: Option<TenantName>,
    /// By which credential it was sent.
    pub credential: Option<Arc<str>>,
    /// As they were submitted.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The whole input.
    pub body: Bytes,
    /// The most bytes that the answer may have.
    pub most: u64,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ran {
    /// The model answered.
    Answered {
        /// What the answer is written in.
        content_type: Option<String>,
        /// All of it.
        body: Bytes,
    },
    /// It cannot be answered.
    Failed {
        /// As a container would say it.
        status: u16,
        /// What the error is written in.
        content_type: Option<String>,
        /// What the model or we said.
        body: Bytes,
    },
    /// It was not its turn yet: limits, load, a store that is away.
    NotNow {
        /// What it waits for.
        why: String,
        /// When to try again, where somebody said so.
        after: Option<Duration>,
    },
}

/// Answers one request. Dropping the future cancels it.
pub type RunFn = Arc<dyn Fn(Run) -> BoxFuture<'static, Ran> + Send + Sync>;
