//! What is remembered of a version beside its files, also over restarts: which store named it last, and
//! when, and when it was loaded last. By it another version answers where the one to serve cannot be had:
//! the right one, and none that the store of now does not know.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use roundhouse_types::{ArtefactId, EndpointName, ModelId, TargetName};
use tracing::warn;

use super::DiskCache;
use super::held::Held;
use super::layout::{LOADED, NAMED};
use super::ledger::{Ledger, State, off_thread};
use super::manifest::Manifest;
use crate::{Artefact, Origin};

/// What notes say of a version. Owned by the ledger.
#[derive(Debug)]
pub(super) struct Notes {
    /// When it was fetched, or a store came back to it later.
    named_at: SystemTime,
    /// Where it was fetched from, or who named it since; absent where neither was written down.
    origin: Option<Origin>,
    /// When it was loaded last, unless the store deleted the model since.
    loaded_at: Option<SystemTime>,
}

impl Notes {
    /// Reads what stands beside the files. Blocks.
    pub(super) fn read(folder: &Path, manifest: &Manifest) -> Self {
        let time = |name: &str| fs::metadata(folder.join(name)).and_then(|it| it.modified()).ok();
        let named_at = time(NAMED).map_or(manifest.fetched_at, |at| at.max(manifest.fetched_at));
        let named_by = fs::read_to_string(folder.join(NAMED)).ok().filter(|text| !text.is_empty());
        let origin = named_by.map(Origin).or_else(|| manifest.origin.clone());
        Self { named_at, origin, loaded_at: time(LOADED) }
    }

    fn is_from(&self, origin: &Origin) -> bool {
        self.origin.as_ref() == Some(origin)
    }
}

impl State {
    /// Of a model's versions from one place the one that comes last in this order; none without one.
    fn last_from<T: Ord>(
        &self,
        model: &ModelId,
        origin: Option<&Origin>,
        by: impl Fn(&Notes) -> Option<T>,
    ) -> Option<Arc<Held>> {
        let from = |notes: &Notes| origin.is_none_or(|origin| notes.is_from(origin));
        let whole = self.of_model(model).filter(|whole| from(&whole.notes));
        let known = whole.filter_map(|whole| Some((by(&whole.notes)?, whole)));
        known.max_by(|a, b| a.0.cmp(&b.0)).map(|(_, whole)| Arc::clone(&whole.held))
    }
}

impl Ledger {
    /// Has what is on disk say of a version what memory says by then. Blocks.
    fn note(&self, id: &ArtefactId) {
        let _turn = self.noting.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = {
            let state = self.lock();
            let Some(whole) = state.whole.get(id) else { return };
            let (manifest, notes) = (&whole.held.manifest, &whole.notes);
            let is_named = notes.named_at > manifest.fetched_at || notes.origin != manifest.origin;
            let origin = notes.origin.as_ref().map_or("", |origin| &origin.0).to_owned();
            let named = is_named.then_some((notes.named_at, origin));
            (whole.held.folder.clone(), named, notes.loaded_at)
        };
        let (folder, named, loaded_at) = noted;
        let written = match named {
            Some((at, origin)) => write(&folder.join(NAMED), &origin, at),
            // Its manifest says it, and no note of before may say another.
            None => remove(&folder.join(NAMED)),
        };
        let written = written.and_then(|()| match loaded_at {
            Some(at) => write(&folder.join(LOADED), "", at),
            None => remove(&folder.join(LOADED)),
        });
        if let Err(error) = written {
            // Without it another version may answer after a restart, or none.
            warn!(%error, artefact = %id, "what is known of a version was not noted");
        }
    }

    /// Has what is on disk say of versions what memory says by then. Blocks.
    fn note_all(&self, ids: &[ArtefactId]) {
        ids.iter().for_each(|id| self.note(id));
    }

    /// Forgets that versions were loaded of models that such places have no more. Blocks.
    pub(super) fn forget_loads(&self, of: impl Fn(&ModelId, &Origin) -> bool) {
        let mut forgotten = Vec::new();
        for (id, whole) in &mut self.lock().whole {
            let is_gone = whole.notes.origin.as_ref().is_some_and(|origin| of(&id.model, origin));
            if whole.notes.loaded_at.is_some() && is_gone {
                whole.notes.loaded_at = None;
                forgotten.push(id.clone());
            }
        }
        self.note_all(&forgotten);
    }
}

impl DiskCache {
    /// The version of a model that was fetched last, or that a store came back to, and is
    /// whole on disk, whichever store that was.
    pub fn latest(&self, model: &ModelId) -> Option<ArtefactId> {
        let latest = self.inner.ledger.lock().last_from(model, None, |it| Some(it.named_at))?;
        Some(latest.manifest.artefact.id.clone())
    }

    /// The same of those that this place had: for answering while its store is down.
    pub fn latest_from(&self, model: &ModelId, origin: &Origin) -> Option<ArtefactId> {
        self.latest_artefact(model, origin).map(|artefact| artefact.id)
    }

    /// The same as the store had it.
    pub fn latest_artefact(&self, model: &ModelId, origin: &Origin) -> Option<Artefact> {
        let state = self.inner.ledger.lock();
        let latest = state.last_from(model, Some(origin), |it| Some(it.named_at))?;
        Some(latest.manifest.artefact.clone())
    }

    /// Whether a version is whole on disk, and this place had it when a store named it last.
    pub fn is_from(&self, id: &ArtefactId, origin: &Origin) -> bool {
        self.inner.ledger.lock().whole.get(id).is_some_and(|whole| whole.notes.is_from(origin))
    }

    /// The store names this version now, which lies there. Where a version of the model that came to
    /// the disk later was taken back, or another store named it before, that is remembered, also over
    /// restarts. Does not block.
    pub fn named(&self, id: &ArtefactId, origin: &Origin) {
        self.is_there(&id.model, origin);
        let last = self.inner.ledger.lock().last_from(&id.model, None, |it| Some(it.named_at));
        let last = last.map(|held| held.manifest.artefact.id.clone()).filter(|last| last != id);
        let after = last.and_then(|last| self.noted(&last, |notes| Some(notes.named_at)));
        self.change(id, |notes| {
            let is_news = after.is_some() || !notes.is_from(origin);
            if let Some(after) = after {
                notes.named_at = now_after(after);
            }
            notes.origin = Some(origin.clone());
            is_news
        });
    }

    /// The version of a model that was loaded last of those that this place had and are whole on disk,
    /// unless the store deleted the model since.
    pub fn last_loaded(&self, model: &ModelId, origin: &Origin) -> Option<ArtefactId> {
        let state = self.inner.ledger.lock();
        let last = state.last_from(model, Some(origin), |it| it.loaded_at)?;
        Some(last.manifest.artefact.id.clone())
    }

    /// A version was loaded that is whole on disk. Remembered, also over restarts, until the store
    /// deletes the model. Does not block.
    pub fn loaded(&self, id: &ArtefactId) {
        let last = self.inner.ledger.lock().last_from(&id.model, None, |it| it.loaded_at);
        let last = last.filter(|held| held.manifest.artefact.id != *id);
        let after =
            last.and_then(|held| self.noted(&held.manifest.artefact.id, |notes| notes.loaded_at));
        self.change(id, |notes| {
            if notes.loaded_at.is_some_and(|at| after.is_none_or(|other| at > other)) {
                return false;
            }
            notes.loaded_at = Some(after.map_or_else(SystemTime::now, now_after));
            true
        });
    }

    fn noted<T>(&self, id: &ArtefactId, what: impl FnOnce(&Notes) -> Option<T>) -> Option<T> {
        what(&self.inner.ledger.lock().whole.get(id)?.notes)
    }

    /// Takes versions of an endpoint of which it was not written down where they came from for those of
    /// the places that its targets have now.
    pub(crate) fn adopt(
        &self,
        endpoint: &EndpointName,
        origin: impl Fn(&TargetName) -> Option<Origin>,
    ) {
        let adopted: Vec<ArtefactId> = {
            let mut state = self.inner.ledger.lock();
            let theirs = state.whole.iter_mut().filter(|(id, whole)| {
                id.model.endpoint == *endpoint && whole.notes.origin.is_none()
            });
            let adopted = theirs.filter_map(|(id, whole)| {
                whole.notes.origin = origin(&id.model.target);
                whole.notes.origin.is_some().then(|| id.clone())
            });
            adopted.collect()
        };
        if !adopted.is_empty() {
            let ledger = Arc::clone(&self.inner.ledger);
            off_thread(move || ledger.note_all(&adopted));
        }
    }

    /// Forgets that versions of a model were loaded that this place had.
    pub(super) fn forget_loads(&self, model: &ModelId, origin: &Origin) {
        let forgotten: Vec<ArtefactId> = {
            let mut state = self.inner.ledger.lock();
            let theirs = state.of_model(model).filter(|whole| whole.notes.is_from(origin));
            let theirs: Vec<ArtefactId> =
                theirs.map(|it| it.held.manifest.artefact.id.clone()).collect();
            let mut is_news = |id: &ArtefactId| {
                state.whole.get_mut(id).is_some_and(|whole| whole.notes.loaded_at.take().is_some())
            };
            theirs.into_iter().filter(|id| is_news(id)).collect()
        };
        if !forgotten.is_empty() {
            let ledger = Arc::clone(&self.inner.ledger);
            off_thread(move || ledger.note_all(&forgotten));
        }
    }

    /// Changes what is known of a version that is whole, and has it written down where that is news.
    fn change(&self, id: &ArtefactId, change: impl FnOnce(&mut Notes) -> bool) {
        let is_news = {
            let mut state = self.inner.ledger.lock();
            state.whole.get_mut(id).is_some_and(|whole| change(&mut whole.notes))
        };
        if is_news {
            let (ledger, id) = (Arc::clone(&self.inner.ledger), id.clone());
            off_thread(move || ledger.note(&id));
        }
    }
}

/// Now, but behind another time: a clock that was set back must not leave an older version in front.
fn now_after(other: SystemTime) -> SystemTime {
    SystemTime::now().max(other + Duration::from_millis(1))
}

/// Writes a note so that readers find the one before or this one.
fn write(path: &Path, text: &str, at: SystemTime) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    File::options().write(true).open(&new)?.set_modified(at)?;
    fs::rename(&new, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
