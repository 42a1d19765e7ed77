//! What can go wrong between a request and its object.

use std::io;
use std::path::{Path, PathBuf};

use roundhouse_types::{EndpointName, ErrorKind, Failure, RetryHint};
use thiserror::Error;

/// Every way in which this crate fails.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The endpoint takes no asynchronous requests.
    #[error("endpoint {0} takes no asynchronous requests: it has no [endpoint.async]")]
    NotAsynchronous(EndpointName),
    /// The request asks for what it may not.
    #[error("{0}")]
    Invalid(String),
    /// The queue holds as much as it may.
    #[error("the queue of endpoint {0} is full")]
    Full(EndpointName),
    /// The server is stopping.
    #[error("the server is stopping and takes no more requests")]
    Stopping,
    /// Another process works on the queue's folder.
    #[error("the queue '{}' is locked by another process", .0.display())]
    Locked(PathBuf),
    /// A file of the queue is not what was written.
    #[error("'{}' of the queue is damaged: {why}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file system failed.
    #[error("cannot {action} '{}'", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A store cannot be used.
    #[error(transparent)]
    Store(#[from] roundhouse_store::Error),
    /// Nobody can be told: the HTTP client cannot be made.
    #[error("no client for webhooks: {0}")]
    Client(String),
    /// A piece of our own work ended without an outcome.
    #[error("internal fault in the queue: {0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// What the client is told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAsynchronous(_) | Self::Invalid(_) => ErrorKind::InvalidRequest,
            Self::Full(_) | Self::Stopping => ErrorKind::Overloaded,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::Overloaded
            }
            Self::Store(error) => error.kind(),
            Self::Locked(_)
            | Self::Damaged { .. }
            | Self::Io { .. }
            | Self::Client(_)
            | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// Whether the same call may succeed later, and when.
    pub fn retry(&self) -> RetryHint {
        match self {
            Self::Full(_) | Self::Stopping | Self::Locked(_) | Self::Io { .. } => RetryHint::Later,
            Self::Store(error) => error.retry(),
            Self::NotAsynchronous(_)
            | Self::Invalid(_)
            | Self::Damaged { .. }
            | Self::Client(_)
            | Self::Internal(_) => RetryHint::Never,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.kind(), &error).with_retry(error.retry())
    }
}
