//! Who is on a device, by artefact and device, and whose room is promised to which load.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use indexmap::IndexMap;
use roundhouse_types::{ArtefactId, DeviceId};

use super::event::Key;
use super::state::{Resident, State};

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
    /// Those that serve and that no request holds, by device and worth, as far as they were
    /// listed: of ten thousand that may leave, those that do are found without a walk.
    idle: BTreeMap<DeviceId, BTreeMap<Rank, Key>>,
    /// All others that were listed.
    others: BTreeSet<Key>,
    /// Those that may have changed since they were listed, each once. A request only adds to it.
    changed: Vec<Key>,
    /// Artefacts that are on several devices.
    several: BTreeSet<ArtefactId>,
    /// All of them by name: a look that takes them part by part finds each once, whoever comes and
    /// leaves between two parts.
    names: BTreeSet<Key>,
}

/// Where an idle resident stands: by its worth, then by its last use.
type Rank = (u64, u64);

/// Where a resident is listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Listed {
    /// Among the idle ones, or else, where it is listed at all, among the others.
    rank: Option<Rank>,
    is_changed: bool,
}

fn rank(resident: &Resident) -> Option<Rank> {
    // Of numbers that are not negative the bits have the same order.
    let rank = (resident.worth.to_bits(), resident.used_sequence);
    (resident.state == State::Ready && resident.leases == 0).then_some(rank)
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
        let resident = self.by_key.get_mut(key)?;
        if !std::mem::replace(&mut resident.listed.is_changed, true) {
            self.changed.push(key.clone());
        }
        Some(resident)
    }

    pub(super) fn insert(&mut self, key: Key, mut resident: Resident) {
        resident.listed = Listed { rank: None, is_changed: true };
        self.changed.push(key.clone());
        self.names.insert(key.clone());
        self.by_key.insert(key, resident);
    }

    /// Those behind a name, in the order of names.
    pub(super) fn behind(&self, name: Option<&Key>) -> impl Iterator<Item = (&Key, &Resident)> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.names.range::<Key, _>((from, Bound::Unbounded));
        names.filter_map(|name| self.by_key.get_key_value(name))
    }

    /// Lists those that have changed where they belong now.
    pub(super) fn list(&mut self) {
        for key in std::mem::take(&mut self.changed) {
            let Some(resident) = self.by_key.get_mut(&key) else {
                continue;
            };
            let now = Listed { rank: rank(resident), is_changed: false };
            let before = std::mem::replace(&mut resident.listed, now);
            if let Some(rank) = before.rank.filter(|_| before.rank != now.rank) {
                self.idle.entry(key.device).or_default().remove(&rank);
            }
            match now.rank {
                None => _ = self.others.insert(key),
                Some(rank) => {
                    self.others.remove(&key);
                    self.idle.entry(key.device).or_default().insert(rank, key);
                }
            }
        }
    }

    /// Those that serve and that no request holds, the one of least worth first.
    pub(super) fn idle(&self, device: DeviceId) -> impl Iterator<Item = &Key> {
        debug_assert!(self.changed.is_empty(), "whoever looks for victims has them listed first");
        self.idle.get(&device).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether it is listed among those.
    pub(super) fn is_idle(&self, key: &Key) -> bool {
        self.by_key.get(key).is_some_and(|resident| resident.listed.rank.is_some())
    }

    /// The key as it is held here.
    pub(super) fn key(&self, key: &Key) -> Option<&Key> {
        self.by_key.get_key_value(key).map(|(key, _)| key)
    }

    /// All others.
    pub(super) fn others(&self) -> impl Iterator<Item = &Key> {
        self.others.iter()
    }

    /// Those that may be anything but idle: the others that are listed, and what changed since.
    pub(super) fn unlike_idle(&self) -> impl Iterator<Item = &Key> {
        self.others.iter().chain(&self.changed)
    }

    /// Notes whether an artefact is on several devices.
    pub(super) fn note_several(&mut self, artefact: &ArtefactId, is_on_several: bool) {
        if is_on_several {
            self.several.insert(artefact.clone());
        } else {
            self.several.remove(artefact);
        }
    }

    /// The artefacts that are on several devices.
    pub(super) fn several(&self) -> impl Iterator<Item = &ArtefactId> {
        self.several.iter()
    }

    /// Whether all that have not changed are listed where they belong.
    #[cfg(debug_assertions)]
    pub(super) fn is_listed(&self) -> bool {
        let listed = self.by_key.iter().filter(|(_, resident)| !resident.listed.is_changed);
        let count = self.idle.values().map(BTreeMap::len).sum::<usize>() + self.others.len();
        count <= self.by_key.len()
            && listed.into_iter().all(|(key, resident)| match rank(resident) {
                None => self.others.contains(key),
                Some(rank) => self.idle.get(&key.device).and_then(|it| it.get(&rank)) == Some(key),
            })
    }

    /// Takes one out; the last one takes its place in the order.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Resident> {
        let resident = self.by_key.swap_remove(key)?;
        self.names.remove(key);
        if let Some(claim) = &resident.claimed_by {
            self.forget_claim(claim, key);
        }
        match resident.listed.rank {
            None => _ = self.others.remove(key),
            Some(rank) => _ = self.idle.entry(key.device).or_default().remove(&rank),
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
