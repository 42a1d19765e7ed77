//! What can go wrong between a caller and its engine.

use std::time::Duration;

use roundhouse_types::{ErrorKind, Failure, RetryHint, count, count_that};

use crate::constraint::Unmet;

/// The crate's errors; they cross to other crates as [`Failure`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    /// Tokens to generate from an encoder, or from an adapter whose own head answers.
    #[error("this model answers with vectors and generates no text")]
    NotGenerative,
    /// Vectors from a generative model, or from an adapter of one that has no head of its own.
    #[error("this model generates text and answers with no vectors")]
    NotEncoder,
    /// Nothing to start from.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// A prompt that leaves no room for one new token.
    #[error("the prompt has {tokens} tokens, {} more than fit a context of {context}", .tokens - .most)]
    PromptTooLong { tokens: usize, most: usize, context: usize },
    /// An encoder input without tokens.
    #[error("input {index} has no tokens")]
    EmptyInput { index: usize },
    /// An encoder input that is longer than one row may be.
    #[error("input {index} has {tokens} tokens, {} more than the {most} that the model takes", .tokens - .most)]
    InputTooLong { index: usize, tokens: usize, most: usize },
    /// A place in an encoder input that it does not have.
    #[error("input {index} has {}, and none at place {place}", count(*.tokens, "token"))]
    NoSuchPlace { index: usize, place: usize, tokens: usize },
    /// More vectors than one answer may have.
    #[error(
        "the answers have {bytes} bytes together, more than the {most} of one call; send fewer inputs at a time, or ask for fewer of their tokens"
    )]
    ResultTooLarge { bytes: usize, most: usize },
    /// A parameter out of its range.
    #[error("{name} is {value}, and must be {range}")]
    Parameter { name: &'static str, value: String, range: &'static str },
    /// The waiting queue is full.
    #[error("{} for model {name} already", count_that(*.waiting, "sequence", ["waits", "wait"]))]
    QueueFull { name: String, waiting: usize, after: Duration },
    /// The runner cannot be served: its shapes contradict one another, or it refuses them.
    #[error("model {name} cannot be served: {reason}")]
    Unservable { name: String, reason: String },
    /// The model computed something that is not a number.
    #[error("the model's output at position {position} is not finite")]
    NotFinite { position: usize },
    /// The runner broke its contract.
    #[error("the model returned {got}, expected {wanted}")]
    WrongShape { got: String, wanted: String },
    /// What the answer must look like cannot be followed.
    #[error("what the answer must look like cannot be followed at position {position}")]
    Constrained { position: usize, source: Unmet },
    /// Stop tokens are masked and nothing else is left.
    #[error("min_tokens or a constraint leaves no token to choose at position {position}")]
    NothingToChoose { position: usize },
    /// The engine was taken off its lane.
    #[error("model {name} was unloaded before it answered")]
    Removed { name: String },
    /// The adapter was taken off its model.
    #[error("the adapter was unloaded before it answered")]
    Detached,
    /// A model does not take an adapter.
    #[error("model {name} cannot take the adapter: {reason}")]
    NotAttached { name: String, reason: String },
    /// The device failed.
    #[error("device {device} failed: {reason}")]
    DeviceFailed { device: String, reason: String },
    /// The lane's thread ended.
    #[error("lane of device {device} has ended")]
    LaneEnded { device: String },
}

impl Error {
    /// What the client is told.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::NotGenerative
            | Self::NotEncoder
            | Self::EmptyPrompt
            | Self::PromptTooLong { .. }
            | Self::EmptyInput { .. }
            | Self::InputTooLong { .. }
            | Self::NoSuchPlace { .. }
            | Self::ResultTooLarge { .. }
            | Self::Parameter { .. }
            | Self::Constrained { .. }
            | Self::NothingToChoose { .. } => ErrorKind::InvalidInput,
            Self::QueueFull { .. } => ErrorKind::Overloaded,
            Self::Unservable { .. } | Self::NotAttached { .. } => ErrorKind::ModelInvalid,
            Self::NotFinite { .. }
            | Self::WrongShape { .. }
            | Self::Removed { .. }
            | Self::Detached
            | Self::DeviceFailed { .. }
            | Self::LaneEnded { .. } => ErrorKind::ModelFailed,
        }
    }

    /// Whether the same call may succeed later.
    pub(crate) fn retry(&self) -> RetryHint {
        match self {
            Self::QueueFull { after, .. } => RetryHint::After(*after),
            Self::Removed { .. }
            | Self::Detached
            | Self::DeviceFailed { .. }
            | Self::LaneEnded { .. } => RetryHint::Later,
            Self::NotGenerative
            | Self::NotEncoder
            | Self::EmptyPrompt
            | Self::PromptTooLong { .. }
            | Self::EmptyInput { .. }
            | Self::InputTooLong { .. }
            | Self::NoSuchPlace { .. }
            | Self::ResultTooLarge { .. }
            | Self::Parameter { .. }
            | Self::Constrained { .. }
            | Self::NothingToChoose { .. }
            | Self::Unservable { .. }
            | Self::NotAttached { .. }
            | Self::NotFinite { .. }
            | Self::WrongShape { .. } => RetryHint::Never,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.kind(), &error).with_retry(error.retry())
    }
}
