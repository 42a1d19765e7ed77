//! Who is on a device, by artefact and device, and whose room is promised to which load.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use roundhouse_types::ArtefactId;

use super::event::Key;
use super::state::Resident;

/// The residents of all devices. A request looks one up three times, so it is found by a hash of
/// its name rather than by comparing its name with others'; and every look for victims walks
/// over all of them, so they lie side by side.
///
/// Walks go in an order that the events before have made, and nothing else: the same events
/// always lead to the same decisions.
#[derive(Debug, Default)]
pub(super) struct Residents {
    by_key: IndexMap<Key, Resident, lru::DefaultHasher>,
    /// The other way round of `Resident::claimed_by`: each event asks, of each load.
    by_claim: BTreeMap<ArtefactId, BTreeSet<Key>>,
}

impl Residents {
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Resident> {
        self.by_key.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Resident> {
        self.by_key.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: Key, resident: Resident) -> Option<Resident> {
        self.by_key.insert(key, resident)
    }

    /// Takes one out; the last one takes its place in the order.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Resident> {
        let resident = self.by_key.swap_remove(key)?;
        if let Some(claim) = &resident.claimed_by {
            self.forget_claim(claim, key);
        }
        Some(resident)
    }

    /// The room of a resident is promised to this load.
    pub(super) fn claim(&mut self, key: &Key, claim: &ArtefactId) {
        let Some(resident) = self.by_key.get_mut(key) else {
            return;
        };
        if let Some(by) = &resident.claimed_by {
            debug_assert_eq!(by, claim, "a victim serves one claim");
            return;
        }
        resident.claimed_by = Some(claim.clone());
        self.by_claim.entry(claim.clone()).or_default().insert(key.clone());
    }

    /// The room of a resident is promised to nobody.
    pub(super) fn unclaim(&mut self, key: &Key) -> Option<&mut Resident> {
        if let Some(claim) = self.by_key.get_mut(key)?.claimed_by.take() {
            self.forget_claim(&claim, key);
        }
        self.by_key.get_mut(key)
    }

    /// The residents whose room is promised to this load.
    pub(super) fn claimed(&self, claim: &ArtefactId) -> impl Iterator<Item = &Key> {
        self.by_claim.get(claim).into_iter().flatten()
    }

    /// All loads that residents' room is promised to, with those residents.
    pub(super) fn claims(&self) -> impl Iterator<Item = (&ArtefactId, &BTreeSet<Key>)> {
        self.by_claim.iter()
    }

    fn forget_claim(&mut self, claim: &ArtefactId, key: &Key) {
        if let Some(keys) = self.by_claim.get_mut(claim) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_claim.remove(claim);
            }
        }
    }

    pub(super) fn iter(&self) -> indexmap::map::Iter<'_, Key, Resident> {
        self.by_key.iter()
    }

    pub(super) fn keys(&self) -> indexmap::map::Keys<'_, Key, Resident> {
        self.by_key.keys()
    }

    pub(super) fn values(&self) -> indexmap::map::Values<'_, Key, Resident> {
        self.by_key.values()
    }
}

impl<'a> IntoIterator for &'a Residents {
    type Item = (&'a Key, &'a Resident);
    type IntoIter = indexmap::map::Iter<'a, Key, Resident>;

    fn into_iter(self) -> Self::IntoIter {
        self.by_key.iter()
    }
}

#[cfg(test)]
impl std::ops::Index<&Key> for Residents {
    type Output = Resident;

    fn index(&self, key: &Key) -> &Resident {
        &self.by_key[key]
    }
}
