//! What stands on which base: adapters that are on a device, and those on their way there.

use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::{ArtefactId, ModelId};

use super::event::Key;

/// Who counts on which base. Owned by the table.
///
/// A base with dependents is not unloaded: an adapter is among them from the moment that it is
/// promised room beside its base until its own unload is confirmed, or its load failed.
#[derive(Debug, Default)]
pub(super) struct Bases {
    /// Adapters that are on their way, by the model that they adapt.
    awaited: BTreeMap<ModelId, BTreeSet<ArtefactId>>,
    dependents: BTreeMap<Key, Dependents>,
    /// Bases that lost a dependent, until it was looked whether they can go.
    loosened: Vec<Key>,
}

/// What stands on one base, or is to stand on one that is being loaded.
#[derive(Debug, Default)]
struct Dependents {
    residents: BTreeSet<ArtefactId>,
    /// Those that were promised room, or are on their way to the device.
    loads: BTreeSet<ArtefactId>,
    /// How many of the residents are an operator's to keep.
    kept: usize,
}

impl Bases {
    /// An adapter is on its way that needs this base.
    pub(super) fn await_base(&mut self, base: &ModelId, adapter: &ArtefactId) {
        self.awaited.entry(base.clone()).or_default().insert(adapter.clone());
    }

    /// It is not on its way any more.
    pub(super) fn forget(&mut self, base: &ModelId, adapter: &ArtefactId) {
        if let Some(adapters) = self.awaited.get_mut(base) {
            adapters.remove(adapter);
            if adapters.is_empty() {
                self.awaited.remove(base);
            }
        }
    }

    /// The adapters on their way that need this base.
    pub(super) fn awaiting(&self, base: &ModelId) -> impl Iterator<Item = &ArtefactId> {
        // Without adapters it is asked for each model, and costs nothing.
        let adapters = (!self.awaited.is_empty()).then(|| self.awaited.get(base));
        adapters.flatten().into_iter().flatten()
    }

    /// All models that adapters on their way need.
    pub(super) fn awaited(&self) -> impl Iterator<Item = (&ModelId, &BTreeSet<ArtefactId>)> {
        self.awaited.iter()
    }

    pub(super) fn is_awaited(&self, base: &ModelId) -> bool {
        self.awaited.contains_key(base)
    }

    /// A load counts on this base from now on.
    pub(super) fn promised(&mut self, base: Key, adapter: &ArtefactId) {
        self.dependents.entry(base).or_default().loads.insert(adapter.clone());
    }

    /// It does not any more.
    pub(super) fn withdrawn(&mut self, base: Key, adapter: &ArtefactId) {
        if let Some(dependents) = self.dependents.get_mut(&base) {
            dependents.loads.remove(adapter);
        }
        self.loosen(base);
    }

    /// An adapter is on this base.
    pub(super) fn came(&mut self, base: &Key, adapter: &ArtefactId, kept: bool) {
        let dependents = self.dependents.entry(base.clone()).or_default();
        dependents.residents.insert(adapter.clone());
        dependents.kept += usize::from(kept);
    }

    /// An adapter was unloaded.
    pub(super) fn left(&mut self, base: Key, adapter: &ArtefactId, kept: bool) {
        if let Some(dependents) = self.dependents.get_mut(&base) {
            dependents.residents.remove(adapter);
            dependents.kept -= usize::from(kept);
        }
        self.loosen(base);
    }

    /// An adapter on this base is kept from now on, or no longer.
    pub(super) fn keep_changed(&mut self, base: &Key, kept: bool) {
        if let Some(dependents) = self.dependents.get_mut(base) {
            match kept {
                true => dependents.kept += 1,
                false => dependents.kept -= 1,
            }
        }
    }

    fn loosen(&mut self, base: Key) {
        let is_free = |it: &Dependents| it.residents.is_empty() && it.loads.is_empty();
        if self.dependents.get(&base).is_some_and(is_free) {
            self.dependents.remove(&base);
        }
        self.loosened.push(base);
    }

    /// The next base to look at.
    pub(super) fn next_loosened(&mut self) -> Option<Key> {
        self.loosened.pop()
    }

    /// Whether anything is, or is about to be, on this base.
    pub(super) fn is_used(&self, base: &Key) -> bool {
        self.dependents.contains_key(base)
    }

    /// How many adapters are on this base.
    pub(super) fn count(&self, base: &Key) -> usize {
        self.dependents.get(base).map_or(0, |dependents| dependents.residents.len())
    }

    /// Whether one of the adapters on this base is kept.
    pub(super) fn is_kept(&self, base: &Key) -> bool {
        self.dependents.get(base).is_some_and(|dependents| dependents.kept > 0)
    }

    /// The adapters on this base.
    pub(super) fn residents(&self, base: &Key) -> impl Iterator<Item = Key> {
        let adapters = self.dependents.get(base).map(|it| &it.residents);
        let device = base.device;
        adapters.into_iter().flatten().map(move |it| Key { artefact: it.clone(), device })
    }

    /// The loads that count on this base.
    pub(super) fn loads(&self, base: &Key) -> impl Iterator<Item = &ArtefactId> {
        self.dependents.get(base).into_iter().flat_map(|dependents| &dependents.loads)
    }

    /// All bases that something is on, or about to be.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.dependents.keys()
    }
}
