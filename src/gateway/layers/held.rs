//! What a body holds, and not for longer than its request may take.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// Dropped with its owner, or at an instant, even where nobody looks at the owner: a client that stops
/// reading leaves a body that is never polled again.
pub(super) struct Held<T> {
    held: Arc<Mutex<Option<T>>>,
    watchdog: AbortHandle,
}

impl<T: Send + 'static> Held<T> {
    /// `late` is done where the instant came first.
    pub(super) fn new(held: T, until: Instant, late: impl FnOnce() + Send + 'static) -> Self {
        let held = Arc::new(Mutex::new(Some(held)));
        let watched = Arc::downgrade(&held);
        let watching = tokio::spawn(async move {
            sleep_until(until).await;
            if let Some(held) = watched.upgrade() {
                take(&held);
                late();
            }
        });
        Self { held, watchdog: watching.abort_handle() }
    }
}

/// What is held is dropped outside the lock.
fn take<T>(held: &Mutex<Option<T>>) {
    let taken = held.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(taken);
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.watchdog.abort();
        take(&self.held);
    }
}
