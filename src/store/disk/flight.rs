//! One fetch's hold on the disk: its folder, its promised room, its turn.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use roundhouse_types::ArtefactId;
use tokio::sync::OwnedMutexGuard;
use tracing::{debug, warn};

use super::journal::Journal;
use super::layout::measure;
use super::ledger::{Ledger, off_thread};
use crate::Error;

/// Shared by everything that works for a fetch. When the last of it is gone, what was
/// fetched is recorded, the rest of the promised room is given back, and only then
/// may another fetch of the same version begin.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) id: ArtefactId,
    pub(super) folder: PathBuf,
    pub(super) ledger: Arc<Ledger>,
    pub(super) journal: OnceLock<Arc<Journal>>,
    promised: Mutex<u64>,
    /// What is on disk is worth nothing.
    discard: AtomicBool,
    landed: AtomicBool,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Flight {
    pub(super) fn new(ledger: Arc<Ledger>, id: ArtefactId, turn: OwnedMutexGuard<()>) -> Self {
        Self {
            folder: ledger.layout.partial(&id),
            id,
            ledger,
            journal: OnceLock::new(),
            promised: Mutex::new(0),
            discard: AtomicBool::new(false),
            landed: AtomicBool::new(false),
            turn: Some(turn),
        }
    }

    /// The files and their record.
    pub(super) fn journal(&self) -> Result<&Arc<Journal>, Error> {
        self.journal.get().ok_or_else(|| Error::Internal(format!("no journal of {}", self.id)))
    }

    /// Promises more room, evicting if need be. Blocks.
    pub(super) fn grow(&self, bytes: u64) -> Result<(), Error> {
        let had = self.promised();
        self.ledger.promise(&self.id, had, bytes)?;
        *self.promised.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
        Ok(())
    }

    /// Room that was promised so far.
    pub(super) fn promised(&self) -> u64 {
        *self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing of this fetch is to be kept.
    pub(super) fn discard(&self) {
        self.discard.store(true, Ordering::Release);
    }

    /// The files have become an artefact; the ledger has taken the room over.
    pub(super) fn landed(&self) {
        self.landed.store(true, Ordering::Release);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if *self.landed.get_mut() {
            return;
        }
        let (ledger, id, folder) =
            (Arc::clone(&self.ledger), self.id.clone(), std::mem::take(&mut self.folder));
        let promised = *self.promised.get_mut().unwrap_or_else(PoisonError::into_inner);
        let discard = *self.discard.get_mut();
        let (journal, turn) = (self.journal.take(), self.turn.take());
        off_thread(move || {
            if let Err(error) = end(&ledger, &id, folder, promised, discard, journal.as_deref()) {
                // Its room stays promised: the bytes may still be there.
                warn!(artefact = %id, error = %error, "an unfinished fetch could not be put away");
            }
            drop(turn);
        });
    }
}

fn end(
    ledger: &Ledger,
    id: &ArtefactId,
    folder: PathBuf,
    promised: u64,
    discard: bool,
    journal: Option<&Journal>,
) -> Result<(), Error> {
    if discard {
        ledger.layout.remove(&folder)?;
        ledger.release(id, promised);
        return Ok(());
    }
    if promised == 0 {
        // It got no room, so it touched nothing.
        return Ok(());
    }
    if let Some(Err(error)) = journal.map(Journal::flush) {
        debug!(artefact = %id, error = %error, "fetched ranges could not be recorded");
    }
    let bytes = measure(&folder)?;
    ledger.leave(id.clone(), folder, bytes.min(promised), promised);
    Ok(())
}
