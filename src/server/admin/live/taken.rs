//! Whether a reader takes what it is given: one that does not costs nobody a look at the state.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After so long with a frame that it does not take, a reader is taken for gone.
const STALLED: Duration = Duration::from_secs(30);

/// Since when a reader has had a frame that it has not asked to follow up; `None` while it waits.
#[derive(Debug, Default)]
pub(super) struct Taken(Mutex<Option<Instant>>);

impl Taken {
    /// It asks for the next frame.
    pub(super) fn waits(&self) {
        *self.given() = None;
    }

    /// It has the next frame.
    pub(super) fn is_given(&self) {
        *self.given() = Some(Instant::now());
    }

    /// Whether it waits, or may still be writing to its connection what it has.
    pub(super) fn goes_on(&self) -> bool {
        self.given().is_none_or(|given| given.elapsed() < STALLED)
    }

    fn given(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
