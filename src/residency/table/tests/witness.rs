//! What the world sees of the table, held against the invariants by our own count.

use std::collections::BTreeMap;

use roundhouse_types::{ArtefactId, ContentId, DeviceId, ModelId, ModelKind, SharedPart};

use super::world::{Wish, World};
use crate::decision::{Action, Decided, Departure};
use crate::loader::LoadSource;
use crate::table::sharing::with_shared;
use crate::table::state::{Room, State};
use crate::table::{Effect, Event, Key, WaiterId};

impl World {
    /// Tells the table and holds its effects against the invariants.
    pub(super) fn tell(&mut self, event: Event) {
        let may_exceed_host = Self::may_exceed_host(&event);
        let may_exceed = match &event {
            Event::BudgetChanged { .. } | Event::Loaded { .. } => true,
            Event::Measured { key, footprint } => {
                let known = self.table.residents.get(key);
                known.is_some_and(|known| {
                    let mut takes = with_shared(*footprint, &known.shared);
                    // What a pool takes is agreed with it.
                    takes.kv = if known.pool.is_some() { known.footprint.kv } else { takes.kv };
                    takes.total() > known.footprint.total()
                })
            }
            _ => false,
        };
        let unloaded_keeps = match &event {
            Event::UnloadRequested { model, .. } => Some(model.clone()),
            _ => None,
        };
        let effects = self.table.on(event, self.now);
        for effect in effects {
            self.perform(effect);
        }
        self.check_dead();
        self.check_pools();
        if let Some(model) = unloaded_keeps
            && !self.table.is_kept(&model)
        {
            self.kept.remove(&model);
        }
        self.check_accounts(may_exceed);
        self.check_host(may_exceed_host);
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Resolve { model, refresh } => {
                let is_asked = self.resolves.iter().any(|(other, _)| *other == model);
                assert!(!is_asked, "one question per model at a time");
                self.resolves.push((model, refresh));
            }
            Effect::Fetch { artefact, .. } => {
                assert!(!self.fetches.contains(&artefact), "invariant 3: {artefact} fetched twice");
                if let Some(footprint) = self.foreseen.get(&artefact) {
                    self.assert_can_fit(&artefact, footprint.total().0);
                }
                self.fetches.push(artefact);
            }
            Effect::AbandonFetch { artefact } => {
                let index = self.fetches.iter().position(|other| *other == artefact);
                self.fetches.remove(index.expect("only a fetch under way is abandoned"));
                self.break_load(&artefact);
            }
            Effect::Load { key, source, base } => {
                self.check_source(&key, source);
                self.check_base(&key, source, base);
                self.begin_load(key, source);
            }
            Effect::Discard { artefact } => self.begin_discard(artefact),
            Effect::Unload { key, demote } => {
                assert!(!self.leases.contains(&key), "invariant 2: {} is leased", key.artefact);
                assert!(!self.unloads.contains(&key), "{} is unloaded once", key.artefact);
                assert!(self.loaded.contains_key(&key), "only what is loaded is unloaded");
                let on_it = self.onto.iter().find(|(_, base)| **base == key);
                assert_eq!(on_it, None, "invariant 9: {} leaves before its adapters", key.artefact);
                if demote {
                    self.begin_demotion(&key);
                }
                self.unloads.push(key);
            }
            Effect::OrderKv { key, order } => self.order_pool(&key, order),
            Effect::Grant(grant) => {
                let (model, wish) = self.answered(grant.waiter);
                assert_eq!((wish, &model), (Wish::Lease, &grant.key.artefact.model));
                assert!(self.loaded.contains_key(&grant.key), "a lease is on a resident");
                assert!(!self.unloads.contains(&grant.key), "invariant 2: it is being unloaded");
                assert!(!self.dead.contains(&grant.key), "the dead take no leases");
                self.granted.insert(grant.waiter);
                self.leases.push(grant.key);
            }
            Effect::Refuse { waiter, failure } => {
                self.answered(waiter);
                self.refused.insert(waiter, failure.kind());
                self.note_largest(waiter);
            }
            Effect::Report { waiter, .. } => {
                assert_eq!(self.answered(waiter).1, Wish::Other);
            }
            Effect::Decided(decided) => self.check_decision(&decided),
        }
    }

    /// An adapter is loaded onto its base, which serves on that device; nothing else has one.
    fn check_base(&mut self, key: &Key, source: LoadSource, base: Option<ArtefactId>) {
        let expected = self.base(&key.artefact);
        assert_eq!(base.as_ref().map(|base| &base.model), expected.as_ref(), "{}", key.artefact);
        let Some(artefact) = base else {
            return;
        };
        assert_eq!(self.base(&artefact), None, "{artefact} is no base");
        assert_ne!(source, LoadSource::Arriving, "{} waits for its base", key.artefact);
        let base = Key { artefact, device: key.device };
        assert!(self.loaded.contains_key(&base), "invariant 9: {} is not there", base.artefact);
        assert!(!self.unloads.contains(&base), "invariant 9: {} is leaving", base.artefact);
        assert!(!self.dead.contains(&base), "{} is dead", base.artefact);
        self.onto.insert(key.clone(), base);
    }

    /// What the largest resident takes now: a base may have grown.
    fn note_largest(&mut self, refused: WaiterId) {
        let largest = self.loaded.values().copied().max().unwrap_or_default();
        self.largest.insert(refused, largest);
    }

    fn answered(&mut self, waiter: WaiterId) -> (ModelId, Wish) {
        self.pending.remove(&waiter).expect("invariant 4: a waiter is answered exactly once")
    }

    /// The fetch behind a load is over without having brought everything.
    pub(super) fn break_load(&mut self, artefact: &ArtefactId) {
        let behind = self.arriving.iter().filter(|(key, _)| key.artefact == *artefact);
        let behind: Vec<Key> = behind.map(|(key, _)| key.clone()).collect();
        for key in behind {
            self.arriving.insert(key, false);
        }
    }

    fn begin_load(&mut self, key: Key, source: LoadSource) {
        if source == LoadSource::Arriving {
            assert!(self.fetches.contains(&key.artefact), "{} does not arrive", key.artefact);
            self.arriving.insert(key.clone(), true);
        }
        let twice = self.loads.keys().find(|other| other.artefact == key.artefact);
        assert_eq!(twice, None, "invariant 3: one load per version at a time");
        assert!(!self.loaded.contains_key(&key), "invariant 3: {} is there", key.artefact);
        let serving = self.serving(&key.artefact.model);
        if serving.iter().any(|other| other.artefact == key.artefact) {
            let most = self.config.replicas.map_or(0, |replicas| replicas.at_most);
            assert!(serving.len() < most, "{} is on {} devices", key.artefact, serving.len());
        }
        let whole = self.foreseen[&key.artefact].total().0;
        let counts_on = |part: &SharedPart| {
            self.table.ledger.counts_on(key.device, &key.artefact, part.content)
        };
        let (there, bringing): (Vec<_>, Vec<_>) =
            self.contents(&key.artefact).into_iter().partition(counts_on);
        self.bringing.insert(key.clone(), bringing);
        self.loads.insert(key.clone(), whole);
        let used = self.used(key.device, there);
        let budget = self.budgets[&key.device];
        assert!(used <= budget, "invariant 1: {used} of {budget} with {}", key.artefact);
        let is_handler = |key: &&Key| Self::kind(&key.artefact.model) == ModelKind::Handler;
        let handlers = self.loads.keys().filter(is_handler).count();
        assert!(handlers <= self.config.max_handler_loads, "loads of handlers are bounded");
        let others = self.loads.len() - handlers - self.arriving.len();
        assert!(others <= self.config.max_loads, "loads from disk are bounded");
    }

    /// The residents that serve a model.
    fn serving(&self, model: &ModelId) -> Vec<&Key> {
        let is_serving = |key: &&Key| {
            key.artefact.model == *model && self.table.residents[*key].state == State::Ready
        };
        self.loaded.keys().filter(is_serving).collect()
    }

    /// Whether its version goes on serving when this one leaves.
    fn is_spare(&self, key: &Key) -> bool {
        let goes_on = |other: &&Key| {
            other.artefact == key.artefact && self.table.residents[*other].claimed_by.is_none()
        };
        self.serving(&key.artefact.model).into_iter().any(|other| other != key && goes_on(&other))
    }

    /// Nobody has to wait for a replica, nor does anybody of more worth leave for it.
    fn check_leaves_for_replica(&self, key: &Key, claim: &ArtefactId) {
        let others = self.table.jobs.iter().filter(|(artefact, _)| *artefact != claim);
        for (artefact, job) in others {
            assert!(!matches!(job.room, Room::Wanted), "{artefact} waits while {claim} evicts");
        }
        assert!(!self.leases.contains(key), "{} is used and leaves for a replica", key.artefact);
        if self.is_spare(key) {
            return;
        }
        // Rounded to hundredths and milliseconds: half of one either way.
        let cost = |model: &ModelId, rounded: f64| {
            let demand = self.table.demand(model);
            let uses = (demand.uses_percent as f64 + rounded) / 100.0;
            uses * ((demand.reload_ms as f64 + rounded) / 1000.0).max(0.001)
        };
        let parts = self.serving(&claim.model).len() + 1;
        let (lost, won) = (cost(&key.artefact.model, -0.5), cost(&claim.model, 0.5) / parts as f64);
        assert!(lost < won, "{} leaves for a replica of {claim}: {lost} > {won}", key.artefact);
    }

    /// What is on a device or on its way there, by our own count. Content that a load finds
    /// there is there once; what a load brings itself may be there a second time until it ends.
    fn used(&self, device: DeviceId, there: Vec<SharedPart>) -> u64 {
        let all = || self.loaded.iter().chain(&self.loads).filter(|(key, _)| key.device == device);
        let own: u64 = all().map(|(key, bytes)| self.own(key, *bytes)).sum();
        let bringing = self.bringing.iter().filter(|(key, _)| key.device == device);
        let brought: u64 = bringing.flat_map(|(_, parts)| parts).map(|part| part.bytes.0).sum();
        let loaded = self.loaded.keys().filter(|key| key.device == device);
        let held = loaded.flat_map(|key| self.contents(&key.artefact));
        own + brought + distinct(held.chain(there))
    }

    /// What nobody else holds of it.
    fn own(&self, key: &Key, whole: u64) -> u64 {
        whole - self.contents(&key.artefact).iter().map(|part| part.bytes.0).sum::<u64>()
    }

    fn check_decision(&self, decided: &Decided) {
        let Action::Draining { why: Departure::Evicted, for_artefact, .. } = &decided.action else {
            return;
        };
        let claim = for_artefact.as_ref().expect("evictions are for somebody");
        let is_kept = self.kept.contains(&decided.model) && self.table.is_kept(&decided.model);
        let artefact = ArtefactId {
            model: decided.model.clone(),
            version: decided.version.clone().expect("a resident has a version"),
        };
        let key = Key { artefact, device: decided.device.expect("a resident has a device") };
        let may_leave = !is_kept || decided.model == claim.model || self.is_spare(&key);
        assert!(may_leave, "a kept model is no victim, but for a replica of it");
        if self.table.jobs.get(claim).is_some_and(|job| self.table.is_replica(claim, job)) {
            self.check_leaves_for_replica(&key, claim);
        }
        let need = self.foreseen[claim].total().0;
        self.assert_can_fit(claim, need);
        // Of its own tenant those on other devices leave as well, for the ceiling.
        let goes_to = self.table.jobs.get(claim).and_then(|job| job.device());
        let device = goes_to.or(decided.device).expect("a resident has a device");
        let kept = self.loaded.iter().filter(|(key, _)| {
            key.device == device
                && key.artefact.model != claim.model
                && self.table.is_kept(&key.artefact.model)
                && self.table.residents[*key].state == State::Ready
                && !self.is_spare(key)
        });
        let kept: Vec<(&Key, &u64)> = kept.collect();
        let own: u64 = kept.iter().map(|(key, bytes)| self.own(key, **bytes)).sum();
        let common = self.contents(claim);
        let need = need - common.iter().map(|part| part.bytes.0).sum::<u64>();
        let held = kept.iter().flat_map(|(key, _)| self.contents(&key.artefact));
        let least = own + need + distinct(held.chain(common));
        let budget = self.budgets[&device];
        assert!(least <= budget, "invariant 7: {claim} and what is kept take {least} of {budget}");
    }

    fn assert_can_fit(&self, artefact: &ArtefactId, need: u64) {
        let largest = *self.budgets.values().max().unwrap();
        assert!(need <= largest, "invariant 6: {artefact} can never fit");
    }

    /// Who is dead leaves when its last lease ends and nothing is on it any more.
    fn check_dead(&self) {
        for key in self.dead.iter().filter(|key| self.loaded.contains_key(*key)) {
            let is_held = self.leases.contains(key) || self.onto.values().any(|base| base == key);
            assert_ne!(is_held, self.unloads.contains(key), "{} is dead", key.artefact);
        }
    }

    /// Invariants 1 and 5, by our own count of what is on each device.
    fn check_accounts(&mut self, may_exceed: bool) {
        for level in self.table.levels().devices {
            let here = || self.loaded.iter().filter(|(key, _)| key.device == level.id);
            let own: u64 = here().map(|(key, bytes)| self.own(key, *bytes)).sum();
            let held: Vec<SharedPart> =
                here().flat_map(|(key, _)| self.contents(&key.artefact)).collect();
            let jobs = self.table.jobs.iter().filter(|(_, job)| job.device() == Some(level.id));
            let counted: Vec<SharedPart> = jobs
                .flat_map(|(artefact, job)| job.shared.iter().map(move |part| (artefact, part)))
                .filter(|(id, part)| self.table.ledger.counts_on(level.id, id, part.content))
                .map(|(_, part)| *part)
                .collect();
            let there = own + distinct(held.into_iter().chain(counted));
            assert_eq!(level.charged.0, there, "invariant 5: what is there is charged, once");
            let loads = self.loads.iter().filter(|(key, _)| key.device == level.id);
            let own: u64 = loads.map(|(key, bytes)| self.own(key, *bytes)).sum();
            let bringing = self.bringing.iter().filter(|(key, _)| key.device == level.id);
            let brought: u64 = bringing.flat_map(|(_, parts)| parts).map(|part| part.bytes.0).sum();
            assert!(level.reserved.0 >= own + brought, "invariant 1: loads are promised room");
            let sum = level.charged.0 + level.reserved.0;
            let excess = sum.saturating_sub(self.budgets[&level.id]);
            let before = self.excess.insert(level.id, excess).unwrap();
            assert!(may_exceed || excess <= before, "invariant 1: {sum} on {}", level.id);
        }
    }
}

/// The bytes of parts that are there once, however many hold them.
pub(super) fn distinct(parts: impl Iterator<Item = SharedPart>) -> u64 {
    let by_content: BTreeMap<ContentId, u64> =
        parts.map(|part| (part.content, part.bytes.0)).collect();
    by_content.into_values().sum()
}
