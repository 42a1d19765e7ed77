//! The lane's signs of life, and what they say about it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use roundhouse_types::{DeviceId, Failure};

use crate::error::Error;

/// How a lane is.
#[derive(Debug, Clone)]
pub enum LaneHealth {
    /// It beats.
    Alive,
    /// It has not beaten for longer than it may: a step hangs or its thread is stopped.
    Wedged {
        /// Its last sign of life.
        since: Instant,
    },
    /// Its device failed; nothing runs on it any more and the process should end.
    Failed {
        /// What happened.
        failure: Failure,
    },
}

/// What the lane's thread publishes about itself. The thread writes; anybody reads.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    device: DeviceId,
    started: Instant,
    /// Milliseconds from `started` to the last beat.
    last: AtomicU64,
    failure: OnceLock<Failure>,
}

impl Heartbeat {
    /// A heart that beats for the first time now.
    pub(crate) fn new(device: DeviceId) -> Self {
        Self { device, started: Instant::now(), last: AtomicU64::new(0), failure: OnceLock::new() }
    }

    /// The lane's thread is alive.
    pub(crate) fn beat(&self) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
    }

    /// The device failed, for good; the first reason stays.
    pub(crate) fn fail(&self, reason: String) -> Failure {
        let error = Error::DeviceFailed { device: self.device.to_string(), reason };
        self.failure.get_or_init(|| error.into()).clone()
    }

    /// The failure, if the device has failed.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure.get().cloned()
    }

    /// Why the lane does not answer: its failure, else that it has ended.
    pub(crate) fn silence(&self) -> Failure {
        self.failure()
            .unwrap_or_else(|| Error::LaneEnded { device: self.device.to_string() }.into())
    }

    /// When it beat last, to the millisecond.
    pub(crate) fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// How the lane is at `now`.
    pub(crate) fn health(&self, now: Instant, wedged_after: Duration) -> LaneHealth {
        if let Some(failure) = self.failure() {
            return LaneHealth::Failed { failure };
        }
        let since = self.last();
        if now.saturating_duration_since(since) > wedged_after {
            return LaneHealth::Wedged { since };
        }
        LaneHealth::Alive
    }
}
