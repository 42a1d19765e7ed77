//! The files of a fetch under way, readable as they arrive.
//!
//! A fetch fills an [`Arrival`] in: first that its files are being written and where, at last
//! how it ended, also when it is dropped. Who reads behind it holds [`ArrivingFiles`].

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::held::Held;
use super::journal::Journal;
use super::{CachedArtefact, Outcome};
use crate::{Artefact, Error};

/// Between a fetch and those who read behind it.
#[derive(Debug)]
pub(super) struct Arrival {
    artefact: Artefact,
    phase: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Debug, Clone)]
enum Phase {
    /// The fetch waits for room on disk, or for another fetch of the same version.
    Waiting,
    /// Its files are in this folder, and the journal knows what they hold.
    Open(Arc<Journal>, PathBuf),
    /// It is over.
    Ended(Outcome),
}

impl Arrival {
    pub(super) fn new(artefact: &Artefact) -> Arc<Self> {
        let artefact = artefact.clone();
        Arc::new(Self { artefact, phase: Mutex::new(Phase::Waiting), changed: Condvar::new() })
    }

    /// The files are being written from now on.
    pub(super) fn open(&self, journal: Arc<Journal>, folder: PathBuf) {
        self.enter(Phase::Open(journal, folder));
    }

    fn enter(&self, next: Phase) {
        *self.lock() = next;
        self.changed.notify_all();
    }

    /// The phase, once it fits. Blocks until then: every fetch ends, or is dropped.
    fn wait(&self, fits: impl Fn(&Phase) -> bool) -> Phase {
        let mut phase = self.lock();
        while !fits(&phase) {
            phase = self.changed.wait(phase).unwrap_or_else(PoisonError::into_inner);
        }
        phase.clone()
    }

    /// The version, if it is whole and has given bytes back that others have as well: somebody
    /// else fetched it again meanwhile, found it whole, and offered it.
    fn borrower(&self) -> Option<Arc<Held>> {
        let held = match &*self.lock() {
            Phase::Ended(Ok(held)) => Arc::clone(held),
            Phase::Waiting | Phase::Open(..) | Phase::Ended(Err(_)) => return None,
        };
        held.borrows().then_some(held)
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends an arrival with the fetch that holds it, however that ends.
pub(super) struct Ending(Arc<Arrival>);

impl Ending {
    pub(super) fn of(arrival: &Arc<Arrival>) -> Self {
        Self(Arc::clone(arrival))
    }

    /// The fetch ran to its end.
    pub(super) fn with(self, outcome: &Outcome) {
        self.0.enter(Phase::Ended(outcome.clone()));
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !matches!(*self.0.lock(), Phase::Ended(_)) {
            let model = self.0.artefact.id.model.to_string();
            self.0.enter(Phase::Ended(Err(Error::Abandoned { model })));
        }
    }
}

/// The files of a fetch under way. What is read of them was not verified yet: whatever is made
/// of it must not be used before [`ArrivingFiles::whole`] says that the fetch ended well.
///
/// Holding this does not hold the fetch: when those who wait for it drop it, reads end
/// with [`Error::Abandoned`]. All of its methods block.
#[derive(Debug)]
pub struct ArrivingFiles {
    arrival: Arc<Arrival>,
    /// Opened once: a file keeps its descriptor when its folder is renamed.
    open: Mutex<HashMap<usize, Arc<File>>>,
}

impl ArrivingFiles {
    pub(super) fn new(arrival: Arc<Arrival>) -> Self {
        Self { arrival, open: Mutex::default() }
    }

    /// The version that arrives.
    pub fn artefact(&self) -> &Artefact {
        &self.arrival.artefact
    }

    /// Fills a buffer with a file's bytes from `offset` on, as soon as they are on disk.
    ///
    /// # Errors
    /// When the artefact has no such bytes, they cannot be read, or the fetch ends without
    /// them: then with its error.
    pub fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let index = self.index(path)?;
        let fault = |error| Error::io("read", path.as_ref(), error);
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.artefact().files[index].size {
            return Err(fault(io::ErrorKind::UnexpectedEof.into()));
        }
        let file = self.file(index)?;
        self.wait_for(index, offset..end)?;
        file.read_exact_at(buffer, offset).map_err(fault)?;
        match self.arrival.borrower() {
            // Where it borrows, its own file may have had holes already.
            Some(held) => held.read_at(path, offset, buffer).map_err(fault),
            None => Ok(()),
        }
    }

    /// Waits until these files are on disk, all of them, and says in which folder. It is
    /// renamed when the fetch ends; what is open by then stays readable.
    ///
    /// # Errors
    /// As [`ArrivingFiles::read_at`].
    pub fn folder_with<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a str>,
    ) -> Result<PathBuf, Error> {
        for path in paths {
            let index = self.index(path)?;
            self.wait_for(index, 0..self.artefact().files[index].size)?;
        }
        match self.begun() {
            Phase::Open(_, folder) => Ok(folder),
            Phase::Waiting | Phase::Ended(_) => Ok(self.whole()?.dir().to_owned()),
        }
    }

    /// Waits for the end of the fetch: the files, whole and verified.
    ///
    /// # Errors
    /// What the fetch failed with; [`Error::Abandoned`] when it was dropped.
    pub fn whole(&self) -> Result<CachedArtefact, Error> {
        match self.arrival.wait(|phase| matches!(phase, Phase::Ended(_))) {
            Phase::Ended(outcome) => outcome.map(CachedArtefact::new),
            Phase::Waiting | Phase::Open(..) => {
                Err(Error::Internal("a fetch ended without an outcome".into()))
            }
        }
    }

    /// Waits until a range is on disk; fails when the fetch ended without it.
    fn wait_for(&self, index: usize, range: Range<u64>) -> Result<(), Error> {
        match self.begun() {
            Phase::Open(journal, _) if journal.wait_for(index, range) => Ok(()),
            Phase::Waiting | Phase::Open(..) | Phase::Ended(_) => self.whole().map(drop),
        }
    }

    fn begun(&self) -> Phase {
        self.arrival.wait(|phase| !matches!(phase, Phase::Waiting))
    }

    fn index(&self, path: &str) -> Result<usize, Error> {
        let artefact = self.artefact();
        let found = artefact.files.binary_search_by(|file| file.path.as_str().cmp(path));
        let found = found.ok().filter(|_| artefact.archive.is_none());
        found.ok_or_else(|| Error::io("open", path.as_ref(), io::ErrorKind::NotFound.into()))
    }

    fn file(&self, index: usize) -> Result<Arc<File>, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&index) {
            return Ok(Arc::clone(file));
        }
        let name = &self.artefact().files[index].path;
        let opened = match self.begun() {
            Phase::Open(_, folder) => File::open(folder.join(name)),
            Phase::Waiting | Phase::Ended(_) => Err(io::ErrorKind::NotFound.into()),
        };
        let file = match opened {
            // Its folder was renamed meanwhile, or is being renamed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = self.whole()?.dir().join(name);
                File::open(&path).map_err(|error| Error::io("open", &path, error))?
            }
            opened => opened.map_err(|error| Error::io("open", name.as_ref(), error))?,
        };
        let file = Arc::new(file);
        open.insert(index, Arc::clone(&file));
        Ok(file)
    }
}
