//! Copies of artefacts in the host's memory, and every byte of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, Footprint, ModelId, ModelKind, SharedPart, Version,
};

use super::ledger::{Freeing, Ledger};
use super::sharing::with_shared;
use super::state::Resident;
use crate::decision::Departure;
use crate::loader::HostCopy;

/// What the one account is called in its ledger: the host's memory.
const HOST: DeviceId = DeviceId::Cpu;

/// Copies of artefacts that left a device with a memory of its own, and their account.
/// Owned by the table.
///
/// A copy is promised its room before the unload that makes it, charged from the end of
/// that unload, and charged until its discard is confirmed. What several copies share is
/// charged once. What residents take where the host is a device as well is on that
/// device's account, not on this one.
#[derive(Debug)]
pub(super) struct Copies {
    ledger: Ledger,
    entries: BTreeMap<ArtefactId, Entry>,
}

/// One copy.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) stage: Stage,
    /// Why it leaves as soon as nobody holds it. No load is given it any more.
    pub(super) doomed: Option<Departure>,
    /// Loads that take it for their source, and unloads that may come back to it.
    pub(super) holds: u32,
    /// What was loaded of it when it left a device.
    pub(super) model: Unloaded,
    pub(super) last_used: Instant,
    /// Recency among all residents and copies.
    pub(super) used_sequence: u64,
    /// What it takes here, as far as it is there.
    pub(super) footprint: Footprint,
}

/// The stages of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// An unload is making it; its room is promised.
    Coming,
    There,
    /// The loader frees it; charged until that is confirmed.
    Leaving,
}

/// What a load from a copy need not be told by a fetch.
#[derive(Debug, Clone)]
pub(super) struct Unloaded {
    pub(super) kind: ModelKind,
    /// Whether cards do not compute it.
    pub(super) off_cards: bool,
    /// Of an adapter: what it was on, and alone can be on again.
    pub(super) base: Option<ArtefactId>,
    /// On its device.
    pub(super) footprint: Footprint,
    pub(super) shared: Vec<SharedPart>,
    /// How long it may be unused, where it has a time of its own.
    pub(super) idle_ttl: Option<Duration>,
}

impl Unloaded {
    pub(super) fn of(resident: &Resident) -> Self {
        let (kind, mut footprint) = (resident.kind, resident.footprint);
        footprint.kv = footprint.kv.saturating_sub(resident.grown());
        let (base, shared) = (resident.base.clone(), resident.shared.clone());
        let (off_cards, idle_ttl) = (resident.off_cards, resident.idle_ttl);
        Self { kind, off_cards, base, footprint, shared, idle_ttl }
    }
}

/// What of a footprint a copy takes: its weights and host parts.
pub(super) fn copied(footprint: &Footprint) -> Footprint {
    Footprint { weights: footprint.weights, host: footprint.host, ..Footprint::default() }
}

impl Copies {
    pub(super) fn new(budget: Bytes) -> Self {
        Self { ledger: Ledger::new(vec![(HOST, budget)]), entries: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn budget(&self) -> Bytes {
        self.ledger.budget(HOST)
    }

    pub(super) fn set_budget(&mut self, budget: Bytes) {
        self.ledger.set_budget(HOST, budget);
    }

    pub(super) fn charged(&self) -> Bytes {
        self.ledger.charged(HOST)
    }

    pub(super) fn reserved(&self) -> Bytes {
        self.ledger.reserved(HOST)
    }

    pub(super) fn free(&self) -> Bytes {
        self.ledger.free(HOST)
    }

    /// By how much the budget is exceeded: it shrank, or a copy takes more than it was promised.
    pub(super) fn over(&self) -> Bytes {
        self.ledger.over(HOST)
    }

    pub(super) fn get(&self, artefact: &ArtefactId) -> Option<&Entry> {
        self.entries.get(artefact)
    }

    pub(super) fn get_mut(&mut self, artefact: &ArtefactId) -> Option<&mut Entry> {
        self.entries.get_mut(artefact)
    }

    /// Those behind a name, in the order of names.
    pub(super) fn behind(
        &self,
        name: Option<&ArtefactId>,
    ) -> impl Iterator<Item = (&ArtefactId, &Entry)> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range::<ArtefactId, _>((from, Bound::Unbounded))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ArtefactId, &Entry)> {
        self.entries.iter()
    }

    /// Those of one model.
    pub(super) fn of_model(&self, model: &ModelId) -> impl Iterator<Item = (&ArtefactId, &Entry)> {
        // No version is before the empty one.
        let first = ArtefactId { model: model.clone(), version: Version::from_digest("") };
        let model = first.model.clone();
        let from = self.entries.range::<ArtefactId, _>(first..);
        from.take_while(move |(artefact, _)| artefact.model == model)
    }

    pub(super) fn artefacts(&self) -> Vec<ArtefactId> {
        self.entries.keys().cloned().collect()
    }

    /// Whether a load may take it for its source.
    pub(super) fn is_usable(&self, artefact: &ArtefactId) -> bool {
        let entry = self.entries.get(artefact);
        entry.is_some_and(|it| it.stage == Stage::There && it.doomed.is_none())
    }

    /// How many there are, those on their way away included.
    pub(super) fn count(&self) -> usize {
        // What is on its way here is charged when it is there.
        self.ledger.residents(HOST)
    }

    /// What one more copy would take beside the content that other copies hold.
    pub(super) fn need(&self, model: &Unloaded) -> Bytes {
        let there = self.ledger.there(HOST, &model.shared, &BTreeSet::new());
        copied(&model.footprint).total().saturating_sub(there)
    }

    /// Promises a copy its room, which must be free. It counts on what others hold.
    pub(super) fn promise(&mut self, artefact: &ArtefactId, entry: Entry) {
        let need = self.need(&entry.model);
        self.ledger.promise(HOST, artefact, need);
        self.ledger.count_on(HOST, artefact, &entry.model.shared, &BTreeSet::new());
        let before = self.entries.insert(artefact.clone(), entry);
        debug_assert!(before.is_none(), "{artefact} has one copy at most");
    }

    /// The promise becomes the charge; a copy that was there is charged with what it takes now.
    pub(super) fn charge(&mut self, artefact: &ArtefactId, copy: &HostCopy) {
        self.ledger.withdraw(HOST, artefact);
        let footprint = with_shared(copy.footprint, &copy.shared);
        self.ledger.recharge(HOST, artefact, &footprint, &copy.shared);
        if let Some(entry) = self.entries.get_mut(artefact) {
            entry.stage = Stage::There;
            entry.footprint = footprint;
        }
    }

    /// It is gone, or never came: takes it off the account and returns what that freed.
    pub(super) fn remove(&mut self, artefact: &ArtefactId) -> Bytes {
        self.entries.remove(artefact);
        self.ledger.withdraw(HOST, artefact);
        self.ledger.discharge(HOST, artefact)
    }

    /// For asking what discards free.
    pub(super) fn freeing(&self) -> Freeing<'_> {
        self.ledger.freeing(HOST)
    }

    /// What comes free when this one leaves alone.
    pub(super) fn freed_by(&self, artefact: &ArtefactId) -> Bytes {
        self.ledger.freed_by(HOST, [artefact])
    }

    /// The part of its bytes that other copies hold as well.
    pub(super) fn shared(&self, artefact: &ArtefactId) -> Bytes {
        self.ledger.shared(HOST, artefact)
    }

    /// A copy's bytes, those that several copies hold split among them.
    pub(super) fn share(&self, artefact: &ArtefactId) -> Bytes {
        self.ledger.share(HOST, artefact)
    }

    /// What is promised to one that is coming.
    #[cfg(any(debug_assertions, test))]
    pub(super) fn promised(&self, artefact: &ArtefactId) -> Bytes {
        self.ledger.promised(HOST, artefact)
    }

    /// What all of them hold together.
    #[cfg(debug_assertions)]
    pub(super) fn together(&self) -> Bytes {
        self.ledger.together(HOST, self.entries.keys(), &[])
    }
}
