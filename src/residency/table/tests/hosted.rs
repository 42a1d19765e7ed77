//! The host's memory of a random world: what unloads leave there, loads take from there,
//! and discards free, by our own count.

use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::{ArtefactId, Bytes, Footprint, SharedPart};

use super::pools::settled;
use super::witness::distinct;
use super::world::{Dice, World};
use crate::loader::{HostCopy, LoadSource};
use crate::table::{Event, Key};

#[derive(Debug)]
pub(super) struct Host {
    budget: u64,
    excess: u64,
    /// What lies there until its discard is answered.
    pub(super) copies: BTreeMap<ArtefactId, HostCopy>,
    pub(super) discards: Vec<ArtefactId>,
    /// Where loads under way take their models from.
    pub(super) sources: BTreeMap<Key, LoadSource>,
    demotions: BTreeMap<Key, Demotion>,
    /// What residents took before the event that is being handled.
    footprints: BTreeMap<Key, Footprint>,
    /// What a model took on its device when it last left a copy.
    remembered: BTreeMap<ArtefactId, Footprint>,
}

/// An unload that is to leave a copy.
#[derive(Debug)]
struct Demotion {
    weights: Bytes,
    /// Content that was there when it began and stays there for it; nothing where a copy
    /// was there already.
    counted: Vec<SharedPart>,
    promised: u64,
}

impl Host {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            budget,
            excess: 0,
            copies: BTreeMap::new(),
            discards: Vec::new(),
            sources: BTreeMap::new(),
            demotions: BTreeMap::new(),
            footprints: BTreeMap::new(),
            remembered: BTreeMap::new(),
        }
    }

    fn parts(&self) -> impl Iterator<Item = SharedPart> {
        let held = self.copies.values().flat_map(|copy| copy.shared.clone());
        held.chain(self.demotions.values().flat_map(|demotion| demotion.counted.clone()))
    }
}

impl World {
    /// A load from a copy finds exactly its own there, and nobody is about to free it.
    pub(super) fn check_source(&mut self, key: &Key, source: LoadSource) {
        let artefact = &key.artefact;
        if source == LoadSource::Host {
            assert!(self.host.copies.contains_key(artefact), "{artefact} has no copy");
            assert!(!self.host.discards.contains(artefact), "the copy of {artefact} leaves");
            assert!(!self.fetches.contains(artefact), "{artefact} needs no fetch");
        }
        self.host.sources.insert(key.clone(), source);
    }

    pub(super) fn begin_demotion(&mut self, key: &Key) {
        let artefact = &key.artefact;
        assert!(!key.device.is_host(), "{artefact} is in the host's memory already");
        assert!(!self.host.discards.contains(artefact), "the copy of {artefact} leaves");
        // A measure of the same event may be older or younger than the decision to unload.
        let after = settled(&self.table.residents[key]);
        let before = self.host.footprints.get(key).copied().unwrap_or(after);
        let (mut counted, mut promised) = (Vec::new(), 0);
        if !self.host.copies.contains_key(artefact) {
            counted = self.contents(artefact);
            let there: BTreeSet<_> = self.host.parts().map(|part| part.content).collect();
            counted.retain(|part| there.contains(&part.content));
            let counted: Bytes = counted.iter().map(|part| part.bytes).sum();
            let needs = [before, after].map(|takes| takes.weights.saturating_sub(counted));
            let is_promised = self.table.copies.promised(artefact);
            assert!(needs.contains(&is_promised), "{artefact} is promised what its copy takes");
            promised = is_promised.0;
        }
        let decided_by = self.table.copies.get(artefact).map(|entry| entry.model.footprint);
        let footprint = decided_by.expect("it has a copy, or will have");
        assert!([before, after].contains(&footprint), "{artefact} took {footprint:?}");
        self.host.remembered.insert(artefact.clone(), footprint);
        let weights = footprint.weights;
        self.host.demotions.insert(key.clone(), Demotion { weights, counted, promised });
    }

    /// What the loader answers when an unload has ended.
    pub(super) fn leave_copy(&mut self, key: &Key, dice: &mut Dice) -> Option<HostCopy> {
        let demotion = self.host.demotions.remove(key)?;
        if dice.one_in(6) {
            return None;
        }
        if let Some(copy) = self.host.copies.get(&key.artefact) {
            return Some(copy.clone());
        }
        let shared = self.contents(&key.artefact);
        let least: Bytes = shared.iter().map(|part| part.bytes).sum();
        let weights = match dice.below(8) {
            0 => demotion.weights + Bytes(4),
            1 => demotion.weights.saturating_sub(Bytes(3)),
            _ => demotion.weights,
        };
        let footprint = Footprint { weights: weights.max(least), ..Footprint::default() };
        let copy = HostCopy { footprint, shared };
        self.host.copies.insert(key.artefact.clone(), copy.clone());
        Some(copy)
    }

    pub(super) fn begin_discard(&mut self, artefact: ArtefactId) {
        assert!(self.host.copies.contains_key(&artefact), "only what is there is discarded");
        assert!(!self.host.discards.contains(&artefact), "{artefact} is discarded once");
        let loads = self.host.sources.iter();
        let held = loads.filter(|(_, source)| **source == LoadSource::Host).map(|(key, _)| key);
        let mut held = held.chain(self.host.demotions.keys());
        assert!(held.all(|key| key.artefact != artefact), "the copy of {artefact} is in use");
        self.host.discards.push(artefact);
    }

    pub(super) fn answer_discard(&mut self, dice: &mut Dice) {
        if !self.host.discards.is_empty() {
            let index = dice.below(self.host.discards.len());
            let artefact = self.host.discards.swap_remove(index);
            self.host.copies.remove(&artefact).expect("it was there");
            self.tell(Event::Discarded { artefact });
        }
    }

    pub(super) fn change_host_budget(&mut self, dice: &mut Dice) {
        self.host.budget = dice.below(150) as u64;
        self.tell(Event::HostBudgetChanged { budget: Bytes(self.host.budget) });
    }

    /// Where a resolve does not say what a model takes, its copy remembers.
    pub(super) fn foresee_from_copy(&mut self, artefact: &ArtefactId, is_quarantined: bool) {
        let fits = |takes: &&Footprint| self.table.never_fits(artefact, takes.total()).is_none();
        let remembered = self.host.remembered.get(artefact).filter(fits).copied();
        let is_usable = self.table.copies.is_usable(artefact) && !is_quarantined;
        if let Some(footprint) = remembered.filter(|_| is_usable) {
            self.foreseen.insert(artefact.clone(), footprint);
        }
    }

    /// Budgets shrink, and a copy may take more than it was promised.
    pub(super) fn may_exceed_host(event: &Event) -> bool {
        matches!(event, Event::HostBudgetChanged { .. } | Event::Unloaded { copy: Some(_), .. })
    }

    /// Invariants 1 and 5 of the host's account, by our own count.
    pub(super) fn check_host(&mut self, may_exceed: bool) {
        let host = &self.host;
        let level = self.table.levels().host;
        assert_eq!(level.copies, host.copies.len(), "what lies there is known");
        let own = |copy: &HostCopy| {
            let shared: Bytes = copy.shared.iter().map(|part| part.bytes).sum();
            (copy.footprint.total().saturating_sub(shared)).0
        };
        let there = host.copies.values().map(own).sum::<u64>() + distinct(host.parts());
        assert_eq!(level.charged.0, there, "invariant 5: what is there is charged, once");
        let promised: u64 = host.demotions.values().map(|demotion| demotion.promised).sum();
        assert_eq!(level.reserved.0, promised, "invariant 1: demotions are promised room");
        assert_eq!(level.budget.0, host.budget);
        let excess = (there + promised).saturating_sub(host.budget);
        assert!(may_exceed || excess <= host.excess, "invariant 1: {excess} above the budget");
        self.host.excess = excess;
        let residents = self.table.residents.iter();
        self.host.footprints = residents.map(|(key, it)| (key.clone(), settled(it))).collect();
    }
}
