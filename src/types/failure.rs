//! What went wrong, in the closed set of kinds that faces know how to say.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What a client is told. A closed set: `gateway` has one exhaustive table from
/// these to statuses, error types and bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The envelope is wrong: a missing or illegal target, an unknown endpoint, a bad header.
    InvalidRequest,
    /// The body is not what the model takes: not JSON, a wrong field, a prompt too long.
    InvalidInput,
    /// The body is larger than the limit.
    PayloadTooLarge,
    /// The body's media type is not one we read.
    UnsupportedMediaType,
    /// No such endpoint.
    EndpointNotFound,
    /// No such target in the store.
    ModelNotFound,
    /// The store refuses us: access or KMS denied, or the object is archived.
    StoreDenied,
    /// The artefact cannot be served: unknown kind, corrupt, truncated, unsupported.
    ModelInvalid,
    /// It can never fit the device's budget.
    TooLarge,
    /// Still fetching or loading when the hold time was over. The load goes on.
    NotReady,
    /// A queue is full, or the server is stopping.
    Overloaded,
    /// A quota is used up.
    Throttled,
    /// The store is down or misconfigured and the model is not on disk.
    StoreUnavailable,
    /// The model failed while it ran.
    ModelFailed,
    /// The model did not answer in time.
    TimedOut,
    /// A fault of ours.
    Internal,
}

impl ErrorKind {
    /// The kind's name in metrics and on the admin port.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidInput => "invalid_input",
            Self::PayloadTooLarge => "payload_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::EndpointNotFound => "endpoint_not_found",
            Self::ModelNotFound => "model_not_found",
            Self::StoreDenied => "store_denied",
            Self::ModelInvalid => "model_invalid",
            Self::TooLarge => "too_large",
            Self::NotReady => "not_ready",
            Self::Overloaded => "overloaded",
            Self::Throttled => "throttled",
            Self::StoreUnavailable => "store_unavailable",
            Self::ModelFailed => "model_failed",
            Self::TimedOut => "timed_out",
            Self::Internal => "internal",
        }
    }
}

/// Whether the same call may succeed later. Independent of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryHint {
    /// Not without a change.
    Never,
    /// Perhaps; nothing is known about when.
    Later,
    /// Not before this has passed.
    After(Duration),
}

/// What a kind leaves open and clients act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// The prompt, alone or with the tokens asked for, is longer than the model's context.
    ContextExceeded {
        /// The field that is to blame, as its client spells it.
        field: &'static str,
    },
    /// A field of the request is wrong.
    Field {
        /// Its path, as its client spells it.
        name: Arc<str>,
    },
    /// The model was named as an adapter of another model than its base.
    OtherBase {
        /// Whether it is an adapter at all.
        is_adapter: bool,
    },
}

/// A failure that many waiters may share: cheap to clone, source chain already in its text.
#[derive(Clone)]
pub struct Failure(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    retry: RetryHint,
    status: Option<u16>,
    detail: Option<Detail>,
    message: String,
}

/// Enough to say what and where: files say what they like, and failures are kept.
const MESSAGE_MAX: usize = 4096;

/// A message within [`MESSAGE_MAX`] bytes.
fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_MAX));
        message.push('…');
        message.shrink_to_fit();
    }
    message
}

impl Failure {
    /// A failure that will not go away by itself.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let (retry, message) = (RetryHint::Never, cut(message.into()));
        Self(Arc::new(Inner { kind, retry, status: None, detail: None, message }))
    }

    /// Takes an error and the chain of its sources.
    pub fn from_error(kind: ErrorKind, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Some libraries repeat their cause in their own text.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self::new(kind, message)
    }

    /// The same failure with another retry hint.
    #[must_use]
    pub fn with_retry(&self, retry: RetryHint) -> Self {
        Self(Arc::new(Inner { retry, ..Inner::clone(&self.0) }))
    }

    /// The same failure with the status that the model itself answered with.
    #[must_use]
    pub fn with_status(&self, status: u16) -> Self {
        Self(Arc::new(Inner { status: Some(status), ..Inner::clone(&self.0) }))
    }

    /// The same failure with what its kind leaves open.
    #[must_use]
    pub fn with_detail(&self, detail: Detail) -> Self {
        Self(Arc::new(Inner { detail: Some(detail), ..Inner::clone(&self.0) }))
    }

    /// What the client is told.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> RetryHint {
        self.0.retry
    }

    /// The status that the model itself answered with, where it is one that does.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// What its kind leaves open.
    pub fn detail(&self) -> Option<&Detail> {
        self.0.detail.as_ref()
    }

    /// What failed, with which id.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("kind", &self.0.kind)
            .field("retry", &self.0.retry)
            .field("status", &self.0.status)
            .field("message", &self.0.message)
            .finish()
    }
}

impl std::error::Error for Failure {}
