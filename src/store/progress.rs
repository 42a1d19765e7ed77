//! How far a fetch is, readable while it runs.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use roundhouse_types::Bytes;

/// What a fetch is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for room on disk or for another fetch of the same version.
    Waiting,
    /// Bytes are arriving.
    Fetching,
    /// Checksums and digests are being computed.
    Verifying,
    /// Whole on disk.
    Done,
}

/// A fetch's counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgressSnapshot {
    /// What is being done.
    pub stage: Stage,
    /// Bytes of the artefact's objects that are on disk.
    pub fetched: Bytes,
    /// Bytes of the artefact's objects.
    pub total: Bytes,
}

/// A handle to the counters of a fetch. Joining a fetch that is under way shows
/// that fetch's counters. Clones show the same.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    shown: Arc<Mutex<Arc<Counters>>>,
}

impl Progress {
    /// A handle that shows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counters now. They inform; nothing may depend on them.
    pub fn snapshot(&self) -> ProgressSnapshot {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).snapshot()
    }

    pub(crate) fn show(&self, counters: Arc<Counters>) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// The counters themselves, written by the fetch that owns them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    stage: AtomicU8,
    fetched: AtomicU64,
    total: AtomicU64,
}

impl Counters {
    pub(crate) fn new(total: u64) -> Arc<Self> {
        let counters = Self::default();
        counters.total.store(total, Ordering::Relaxed);
        Arc::new(counters)
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    fn snapshot(&self) -> ProgressSnapshot {
        let stage = match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Waiting,
            1 => Stage::Fetching,
            2 => Stage::Verifying,
            _ => Stage::Done,
        };
        ProgressSnapshot {
            stage,
            fetched: Bytes(self.fetched.load(Ordering::Relaxed)),
            total: Bytes(self.total.load(Ordering::Relaxed)),
        }
    }
}
