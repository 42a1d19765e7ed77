//! What can go wrong with containers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use roundhouse_types::{Bytes, ErrorKind, Failure, RetryHint, count};
use thiserror::Error;

/// A fault of a container, of the way to it, or of a request to it. Each names its container.
#[derive(Debug, Clone, Error)]
pub enum Error {
    /// No connection could be made.
    #[error("no connection to container {container}")]
    Unreachable {
        /// Which.
        container: Arc<str>,
        /// Why.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The connection ended, or what came through it was not HTTP, before the answer began.
    #[error("container {container} broke off before it answered")]
    BrokeOff {
        /// Which.
        container: Arc<str>,
        /// How.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The answer's body ended before its end: a reset, or less than the content length said.
    #[error("container {container} broke its answer off")]
    Cut {
        /// Which.
        container: Arc<str>,
        /// How.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Its answer did not begin in time.
    #[error("container {container} did not begin to answer within {limit:?}")]
    Silent {
        /// Which.
        container: Arc<str>,
        /// The time it had.
        limit: Duration,
    },
    /// Its answer stood still.
    #[error("container {container} sent nothing of its answer for {limit:?}")]
    Stalled {
        /// Which.
        container: Arc<str>,
        /// The longest silence.
        limit: Duration,
    },
    /// The request's own time was over.
    #[error("container {container} had not answered when the invocation's time was over")]
    TimedOut {
        /// Which.
        container: Arc<str>,
    },
    /// The answer is larger than what is taken.
    #[error("the answer of container {container} is larger than {limit}")]
    AnswerTooLarge {
        /// Which.
        container: Arc<str>,
        /// What is taken.
        limit: Bytes,
    },
    /// The client's body could not be read to its end.
    #[error("the request's body for container {container} ended early")]
    Unsent {
        /// Which.
        container: Arc<str>,
        /// Why.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// It failed so often that it is left alone for a while.
    #[error("container {container} failed repeatedly and is tried again in {}", told(*after))]
    LeftAlone {
        /// Which.
        container: Arc<str>,
        /// When it is tried again.
        after: Duration,
    },
    /// As many requests as it may have are under way.
    #[error("container {container} has {} under way, which is its limit", count(*.limit, "request"))]
    Full {
        /// Which.
        container: Arc<str>,
        /// Its limit.
        limit: usize,
    },
    /// A tenant has its share of the requests that may be under way.
    #[error(
        "container {container} has {} under way, and the rest of its {limit} places is for other tenants",
        count(*.taken, "request")
    )]
    Shared {
        /// Which.
        container: Arc<str>,
        /// Those under way, of all tenants.
        taken: usize,
        /// Its limit.
        limit: usize,
    },
    /// Its command runs, but it is not healthy yet.
    #[error("container {container} is starting")]
    Starting {
        /// Which.
        container: Arc<str>,
    },
    /// Its process is not there.
    #[error("container {container} is down: {how}")]
    Down {
        /// Which.
        container: Arc<str>,
        /// How its process ended, or why it does not start.
        how: String,
        /// When it is started again.
        after: Duration,
    },
    /// Its process could not be started.
    #[error("the command of container {container} cannot be started")]
    Spawn {
        /// Which.
        container: Arc<str>,
        /// Why.
        source: Arc<io::Error>,
    },
    /// Its process ended before it was healthy.
    #[error("the command of container {container} {how} before it was healthy")]
    DiedAtStart {
        /// Which.
        container: Arc<str>,
        /// By what: an exit status, a signal.
        how: String,
        /// The last lines that it printed: for the operator, and no part of the message.
        said: String,
    },
    /// Its process was not healthy in time, and was ended.
    #[error("container {container} was not healthy within {limit:?} of its start")]
    NeverHealthy {
        /// Which.
        container: Arc<str>,
        /// The time it had.
        limit: Duration,
        /// The last lines that it printed: for the operator, and no part of the message.
        said: String,
    },
    /// What answered at its port was none of its processes.
    #[error(
        "at port {port}, where container {container} is to listen, {who} answers: none of its \
         processes (own_processes = false is for one that somebody else runs)"
    )]
    Stranger {
        /// Which.
        container: Arc<str>,
        /// The port of this machine.
        port: u16,
        /// Whose it is.
        who: String,
        /// The last lines that its own processes printed: for the operator, and no part of the message.
        said: String,
    },
    /// A health check was answered, but not with success.
    #[error("container {container} answers its health check with status {status}")]
    Unwell {
        /// Which.
        container: Arc<str>,
        /// What it answered.
        status: u16,
    },
}

/// A wait in seconds with one digit: nobody reads nanoseconds.
fn told(wait: Duration) -> String {
    format!("{:.1} s", wait.as_secs_f64().max(0.1))
}

impl Error {
    /// What the client is told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Silent { .. } | Self::Stalled { .. } | Self::TimedOut { .. } => {
                ErrorKind::TimedOut
            }
            Self::LeftAlone { .. } | Self::Full { .. } | Self::Shared { .. } => {
                ErrorKind::Overloaded
            }
            Self::Starting { .. } => ErrorKind::NotReady,
            Self::Unsent { .. } => ErrorKind::InvalidInput,
            Self::Unreachable { .. }
            | Self::BrokeOff { .. }
            | Self::Cut { .. }
            | Self::AnswerTooLarge { .. }
            | Self::Down { .. }
            | Self::Spawn { .. }
            | Self::DiedAtStart { .. }
            | Self::NeverHealthy { .. }
            | Self::Stranger { .. }
            | Self::Unwell { .. } => ErrorKind::ModelFailed,
        }
    }

    /// Whether the same call may succeed later, and when.
    pub fn retry(&self) -> RetryHint {
        match self {
            Self::LeftAlone { after, .. } | Self::Down { after, .. } => RetryHint::After(*after),
            Self::AnswerTooLarge { .. } | Self::Unsent { .. } => RetryHint::Never,
            _ => RetryHint::Later,
        }
    }
}

impl From<Error> for Failure {
    /// A container that is not there has answered with no status: zero, as SageMaker says it.
    fn from(error: Error) -> Self {
        let failure = Self::from_error(error.kind(), &error).with_retry(error.retry());
        match error.kind() {
            ErrorKind::ModelFailed => failure.with_status(0),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_seconds() {
        let after = Duration::from_nanos(285_791_507);
        let error = Error::LeftAlone { container: "a".into(), after };
        assert_eq!(error.to_string(), "container a failed repeatedly and is tried again in 0.3 s");
    }
}
