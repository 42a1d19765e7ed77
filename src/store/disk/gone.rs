//! The models that the store holds no more while versions of them are still on disk: those are
//! no stand-ins when the store is down, also after a restart. Each store's word is its own: of a model that
//! another one has, or had, versions may answer.
//!
//! One small file per such model, named after it, with the places that hold it no more. What has no version on disk needs none: such notes
//! are pruned, so that there are never many more of them than models on disk.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roundhouse_types::{ArtefactId, ModelId, Version};
use tracing::warn;

use super::DiskCache;
use super::layout::{entries, folder_name};
use super::ledger::{Ledger, off_thread};
use crate::{Error, Origin};

/// Notes that there may always be before it is looked which of them are still needed.
const PRUNED_AT_LEAST: usize = 64;

/// The places that hold a model no more; none that are written down stands for all.
type Places = BTreeSet<String>;

/// Which models are gone, by the names of their files.
#[derive(Debug)]
pub(super) struct Gone {
    folder: PathBuf,
    names: Mutex<HashMap<String, Places>>,
    /// With so many it is looked which are still needed: twice as many as were, last.
    prune_at: AtomicUsize,
    /// Files follow what is in memory one at a time.
    writing: Mutex<()>,
}

impl Gone {
    /// Reads what was remembered. Blocks.
    pub(super) fn open(folder: PathBuf) -> Result<Self, Error> {
        let read = |path: PathBuf| {
            let text = fs::read(&path).unwrap_or_default();
            let places = serde_json::from_slice(&text).unwrap_or_default();
            Some((path.file_name()?.to_str()?.to_owned(), places))
        };
        let names = entries(&folder)?.into_iter().filter_map(read).collect();
        let prune_at = AtomicUsize::new(PRUNED_AT_LEAST);
        Ok(Self { folder, names: Mutex::new(names), prune_at, writing: Mutex::default() })
    }

    /// Forgets whoever has no version on disk. Blocks.
    pub(super) fn prune(&self, ledger: &Ledger) {
        let on_disk: HashSet<String> = ledger.models().iter().map(name).collect();
        let forgotten: Vec<String> = {
            let mut names = self.names();
            let forgotten = names.keys().filter(|name| !on_disk.contains(*name)).cloned().collect();
            names.retain(|name, _| on_disk.contains(name));
            self.prune_at.store((2 * names.len()).max(PRUNED_AT_LEAST), Ordering::Relaxed);
            forgotten
        };
        forgotten.iter().for_each(|name| self.write(name));
    }

    /// Whether a place holds a model no more.
    pub(super) fn has(&self, model: &ModelId, origin: &Origin) -> bool {
        let names = self.names();
        let places = names.get(&name(model));
        places.is_some_and(|places| places.is_empty() || places.contains(&origin.0))
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, Places>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the file of that name be there or not, as memory says by then.
    fn write(&self, name: &str) {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.folder.join(name);
        let places = self.names().get(name).cloned();
        let is_gone = places.is_some();
        let text = places.map(|places| serde_json::to_vec(&places));
        let written = match text {
            // One that is cut off is read as of all places.
            Some(text) => text.map_err(Into::into).and_then(|text| fs::write(&path, text)),
            None => forget(&path),
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
    /// This place holds the model no more. Remembered, also over restarts, until
    /// [`DiskCache::named`] says otherwise or nothing of it is on disk; what was loaded of it is forgotten.
    /// Does not block.
    pub fn gone(&self, model: &ModelId, origin: &Origin) {
        self.forget_loads(model, origin);
        let name = name(model);
        let gone = &self.inner.gone;
        let many = {
            let mut names = gone.names();
            // A note without places is of all.
            let is_known = names.get(&name).is_some_and(|it| it.is_empty());
            if is_known || !names.entry(name.clone()).or_default().insert(origin.0.clone()) {
                return;
            }
            names.len() > gone.prune_at.load(Ordering::Relaxed)
        };
        self.note(name);
        if many {
            let (gone, ledger) = (Arc::clone(gone), Arc::clone(&self.inner.ledger));
            off_thread(move || gone.prune(&ledger));
        }
    }

    /// Whether this place was last known to hold the model no more.
    pub fn is_gone(&self, model: &ModelId, origin: &Origin) -> bool {
        self.inner.gone.has(model, origin)
    }

    pub(super) fn is_there(&self, model: &ModelId, origin: &Origin) {
        if !self.is_gone(model, origin) {
            return;
        }
        let name = name(model);
        {
            let mut names = self.inner.gone.names();
            let is_last = names.get_mut(&name).is_some_and(|places| {
                places.remove(&origin.0);
                places.is_empty()
            });
            if is_last {
                names.remove(&name);
            }
        }
        self.note(name);
    }

    fn note(&self, name: String) {
        let gone = Arc::clone(&self.inner.gone);
        off_thread(move || gone.write(&name));
    }
}

#[cfg(test)]
mod tests {
    use super::super::CacheConfig;
    use super::*;

    fn model(target: &str) -> ModelId {
        ModelId { endpoint: "e".parse().unwrap(), target: target.parse().unwrap() }
    }

    #[tokio::test]
    async fn notes_of_names_that_are_not_on_disk_are_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let config = CacheConfig::new(folder.path().join("cache"), roundhouse_types::Bytes::mib(1));
        let disk = DiskCache::open(config.clone()).await.unwrap();
        for number in 0..5000 {
            disk.gone(&model(&format!("made/up-{number}")), &Origin("store/a".into()));
        }
        let notes = || disk.inner.gone.names().len();
        let until = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
        while notes() > PRUNED_AT_LEAST + 1 && tokio::time::Instant::now() < until {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(notes() <= PRUNED_AT_LEAST + 1, "{}", notes());
        let gone = Arc::clone(&disk.inner.gone);
        let ledger = Arc::clone(&disk.inner.ledger);
        tokio::task::spawn_blocking(move || gone.prune(&ledger)).await.unwrap();
        assert_eq!(notes(), 0);
    }
}
