//! What can go wrong with handlers.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use roundhouse_types::{Bytes, ErrorKind, Failure, RetryHint};
use thiserror::Error;

/// A fault of a handler, of what it needs, or of a call to it.
#[derive(Debug, Error)]
pub enum Error {
    /// The machine or the user cannot confine handlers as `isolation = "required"` asks.
    #[error(
        "handlers cannot be isolated here ({missing}); allow what is missing, or set \
         handlers.isolation to best-effort where all handlers are trusted"
    )]
    NotIsolated {
        /// What is missing.
        missing: String,
    },
    /// The interpreter is not there or does not run.
    #[error("the Python interpreter {} does not run: {message}", python.display())]
    Interpreter {
        /// Which.
        python: PathBuf,
        /// What it said.
        message: String,
    },
    /// A folder or file of ours could not be written or read.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A worker process could not be started.
    #[error("a worker process could not be started")]
    Spawn(#[source] io::Error),
    /// The artefact's settings are not as they should be.
    #[error("roundhouse.toml: {0}")]
    Settings(String),
    /// The handler said why it cannot be loaded.
    #[error("the handler cannot be loaded: {0}")]
    Unloadable(String),
    /// It was not ready in time.
    #[error("the handler was not ready within {0:?}")]
    StartTimedOut(Duration),
    /// A worker ended.
    #[error("a worker of the handler {how}")]
    Died {
        /// By what: a signal, an exit status, a limit.
        how: String,
    },
    /// The handler raised.
    #[error("{message}")]
    Raised {
        /// The exception in one line.
        message: String,
        /// The status the handler gave it.
        status: u16,
    },
    /// A call ran longer than it may.
    #[error("the handler did not answer within its time limit of {0:?}; its worker was ended")]
    TimeLimit(Duration),
    /// The client of a stream did not read it.
    #[error("the client read nothing of the answer for {0:?}")]
    ClientStalled(Duration),
    /// The same request killed workers before.
    #[error("this request has killed its worker twice and is not tried again for some minutes")]
    Poisonous,
    /// Too many calls wait.
    #[error("{0} calls wait for this handler, which is the limit")]
    QueueFull(usize),
    /// The group is going or gone.
    #[error("the handler's workers are gone")]
    Gone,
    /// An answer is larger than allowed.
    #[error("the worker broke the protocol: {0}")]
    Garbled(&'static str),
    /// `requirements.txt` asks for what is not allowed, or could not be installed.
    #[error("requirements.txt: {0}")]
    Requirements(String),
    /// The environments' disk is full.
    #[error("the environment of {need} does not fit: {limit} are allowed for all")]
    EnvironmentTooLarge {
        /// Its size.
        need: Bytes,
        /// What is allowed.
        limit: Bytes,
    },
}

impl Error {
    /// A fault of one file.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { what, path: path.into(), source }
    }

    /// What the client is told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Settings(_)
            | Self::Unloadable(_)
            | Self::StartTimedOut(_)
            | Self::Requirements(_)
            | Self::EnvironmentTooLarge { .. } => ErrorKind::ModelInvalid,
            Self::Died { .. } | Self::Raised { .. } | Self::Garbled(_) | Self::Gone => {
                ErrorKind::ModelFailed
            }
            Self::Poisonous => ErrorKind::ModelFailed,
            Self::TimeLimit(_) | Self::ClientStalled(_) => ErrorKind::TimedOut,
            Self::QueueFull(_) => ErrorKind::Overloaded,
            Self::NotIsolated { .. }
            | Self::Interpreter { .. }
            | Self::File { .. }
            | Self::Spawn(_) => ErrorKind::Internal,
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> RetryHint {
        match self {
            Self::Died { .. }
            | Self::TimeLimit(_)
            | Self::QueueFull(_)
            | Self::Gone
            | Self::Garbled(_)
            | Self::Spawn(_)
            | Self::File { .. } => RetryHint::Later,
            _ => RetryHint::Never,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Self::from_error(error.kind(), &error).with_retry(error.retry());
        match error {
            Error::Raised { status, .. } => failure.with_status(status),
            _ => failure,
        }
    }
}
