//! How a container stands, for those who operate it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::Error;
use crate::backend::{Backend, State};
use roundhouse_types::Failure;

/// A container at one moment. It informs, and decides nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// How it is.
    pub condition: Condition,
    /// Where it answers; absent while it does not run.
    pub address: Option<String>,
    /// Its first process, where we have started it.
    pub process: Option<u32>,
    /// How often it was started again after its end.
    pub restarts: u64,
    /// Requests under way.
    pub in_flight: usize,
    /// The most that may be.
    pub max_in_flight: usize,
    /// What went wrong last, however long ago.
    pub last: Option<LastFailure>,
}

/// How a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It says that it is well.
    Healthy,
    /// It was not asked yet, or is not to be asked.
    Unchecked,
    /// Its process runs, which is all that is looked at.
    Running,
    /// Its last health check failed; it is asked all the same.
    Unhealthy,
    /// It failed so often that it is not asked for a while.
    LeftAlone,
    /// One request tries whether it answers again.
    Tried,
    /// Its process is not healthy yet.
    Starting,
    /// Its process is not there, and is started again after a pause.
    Down,
    /// It has left its device and can be woken.
    Asleep,
}

impl Condition {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unchecked => "unchecked",
            Self::Running => "running",
            Self::Unhealthy => "unhealthy",
            Self::LeftAlone => "left_alone",
            Self::Tried => "tried",
            Self::Starting => "starting",
            Self::Down => "down",
            Self::Asleep => "asleep",
        }
    }
}

/// What went wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastFailure {
    /// What, with its causes.
    pub message: Arc<str>,
    /// When.
    pub at: SystemTime,
}

impl LastFailure {
    pub(crate) fn now(message: impl Into<Arc<str>>) -> Self {
        Self { message: message.into(), at: SystemTime::now() }
    }
}

/// What went wrong last at one container. Owned by its backend.
#[derive(Debug, Default)]
pub(crate) struct Remembered(Mutex<Option<LastFailure>>);

impl Remembered {
    /// Remembers a fault; that a client left is none.
    pub(crate) fn note(&self, error: &Error) {
        if matches!(error, Error::Unsent { .. } | Error::LeftAlone { .. }) {
            return;
        }
        let last = LastFailure::now(Failure::from(error.clone()).message());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }

    fn get(&self) -> Option<LastFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Backend {
    /// How it stands now.
    pub fn seen(&self) -> Seen {
        let condition = match (self.state(), self.is_healthy()) {
            (State::Open, _) => Condition::LeftAlone,
            (State::Trying, _) => Condition::Tried,
            (State::Closed, Some(true)) => Condition::Healthy,
            (State::Closed, Some(false)) => Condition::Unhealthy,
            (State::Closed, None) => Condition::Unchecked,
        };
        Seen {
            condition,
            address: Some(self.config().url.to_string()),
            process: None,
            restarts: 0,
            in_flight: self.in_flight(),
            max_in_flight: self.config().max_in_flight,
            last: self.remembered().get(),
        }
    }
}
