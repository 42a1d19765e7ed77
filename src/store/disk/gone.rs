//! The models that the store holds no more while versions of them are still on disk: those are
//! no stand-ins when the store is down, also after a restart.
//!
//! One small file per such model, named after it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roundhouse_types::{ArtefactId, ModelId, Version};
use tracing::warn;

use super::DiskCache;
use super::layout::{entries, folder_name};
use super::ledger::off_thread;
use crate::Error;

/// Models that are remembered, each by an empty file. More are forgotten at the next start.
const MAX_GONE: usize = 100_000;

/// Which models are gone, by the names of their files.
#[derive(Debug)]
pub(super) struct Gone {
    folder: PathBuf,
    names: Mutex<HashSet<String>>,
    /// Files follow what is in memory one at a time.
    writing: Mutex<()>,
}

impl Gone {
    /// Reads what was remembered. Blocks.
    pub(super) fn open(folder: PathBuf) -> Result<Self, Error> {
        let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        let names = entries(&folder)?.into_iter().filter_map(name).take(MAX_GONE).collect();
        Ok(Self { folder, names: Mutex::new(names), writing: Mutex::default() })
    }

    fn names(&self) -> MutexGuard<'_, HashSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the file of that name be there or not, as memory says by then.
    fn write(&self, name: &str) {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.folder.join(name);
        let is_gone = self.names().contains(name);
        let written = match is_gone {
            true => File::create(&path).map(drop),
            false => forget(&path),
        };
        if let Err(error) = written {
            let file = path.display();
            warn!(%error, %file, is_gone, "whether the store holds a model was not noted");
        }
    }
}

fn forget(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn name(model: &ModelId) -> String {
    folder_name(&ArtefactId { model: model.clone(), version: Version::from_digest("") })
}

impl DiskCache {
    /// The store names this version now. Where a version of the model that came to the disk
    /// later was taken back, that is remembered, also over restarts.
    pub fn named(&self, id: &ArtefactId) {
        self.is_there(&id.model);
        let Some((note, at)) = self.inner.ledger.name(id) else { return };
        // Without it another version answers after a restart, while the store is down.
        off_thread(move || {
            let noted = File::create(&note).and_then(|file| file.set_modified(at));
            if let Err(error) = noted {
                warn!(%error, file = %note.display(), "a version's name was not noted");
            }
        });
    }

    /// The store holds the model no more. Remembered, also over restarts, until
    /// [`DiskCache::named`] says otherwise. Does not block.
    pub fn gone(&self, model: &ModelId) {
        let name = name(model);
        let mut names = self.inner.gone.names();
        if names.len() < MAX_GONE && names.insert(name.clone()) {
            self.note(name);
        }
    }

    /// Whether the store was last known to hold the model no more.
    pub fn is_gone(&self, model: &ModelId) -> bool {
        self.inner.gone.names().contains(&name(model))
    }

    fn is_there(&self, model: &ModelId) {
        let name = name(model);
        if self.inner.gone.names().remove(&name) {
            self.note(name);
        }
    }

    fn note(&self, name: String) {
        let gone = Arc::clone(&self.inner.gone);
        off_thread(move || gone.write(&name));
    }
}
