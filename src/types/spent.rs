//! What one request takes of a device, counted where it is taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What one request has taken so far. Clones count together: whoever computes adds, whoever
/// accounts reads, at any time, also when the request was cut short. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Spent(Arc<Counts>);

impl PartialEq for Spent {
    /// Whether they count together.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Spent {}

#[derive(Debug, Default)]
struct Counts {
    /// Nanoseconds.
    compute: AtomicU64,
    tokens_in: AtomicU64,
}

impl Spent {
    /// Adds time in which a device computed for it: its part of steps that it shared.
    pub fn computed(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.compute.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Adds tokens that were given to a model to read.
    pub fn read(&self, tokens: usize) {
        self.0.tokens_in.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// How long devices computed for it.
    pub fn compute(&self) -> Duration {
        Duration::from_nanos(self.0.compute.load(Ordering::Relaxed))
    }

    /// How many tokens models were given to read.
    pub fn tokens_in(&self) -> u64 {
        self.0.tokens_in.load(Ordering::Relaxed)
    }
}
