//! What the world sees of the table, held against the invariants by our own count.

use roundhouse_types::{ArtefactId, DeviceId, ModelId, ModelKind};

use super::world::{Wish, World};
use crate::decision::{Action, Decided, Departure};
use crate::table::state::State;
use crate::table::{Effect, Event, Key, WaiterId};

impl World {
    /// Tells the table and holds its effects against the invariants.
    pub(super) fn tell(&mut self, event: Event) {
        let may_exceed = match &event {
            Event::BudgetChanged { .. } | Event::Loaded { .. } => true,
            Event::Measured { key, footprint } => {
                let known = self.table.residents.get(key);
                known.is_some_and(|known| footprint.total() > known.footprint.total())
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
        if let Some(model) = unloaded_keeps
            && !self.table.is_kept(&model)
        {
            self.kept.remove(&model);
        }
        self.check_accounts(may_exceed);
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Resolve { model, refresh } => {
                let is_asked = self.resolves.iter().any(|(other, _)| *other == model);
                assert!(!is_asked, "one question per model at a time");
                self.resolves.push((model, refresh));
            }
            Effect::Fetch { artefact } => {
                assert!(!self.fetches.contains(&artefact), "invariant 3: {artefact} fetched twice");
                if let Some(footprint) = self.foreseen.get(&artefact) {
                    self.assert_can_fit(&artefact, footprint.total().0);
                }
                self.fetches.push(artefact);
            }
            Effect::AbandonFetch { artefact } => {
                let index = self.fetches.iter().position(|other| *other == artefact);
                self.fetches.remove(index.expect("only a fetch under way is abandoned"));
            }
            Effect::Load { key } => self.begin_load(key),
            Effect::Unload { key } => {
                assert!(!self.leases.contains(&key), "invariant 2: {} is leased", key.artefact);
                assert!(!self.unloads.contains(&key), "{} is unloaded once", key.artefact);
                assert!(self.loaded.contains_key(&key), "only what is loaded is unloaded");
                self.unloads.push(key);
            }
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
            }
            Effect::Report { waiter, .. } => {
                assert_eq!(self.answered(waiter).1, Wish::Other);
            }
            Effect::Decided(decided) => self.check_decision(&decided),
        }
    }

    fn answered(&mut self, waiter: WaiterId) -> (ModelId, Wish) {
        self.pending.remove(&waiter).expect("invariant 4: a waiter is answered exactly once")
    }

    fn begin_load(&mut self, key: Key) {
        let is_same = |other: &&Key| other.artefact == key.artefact;
        let twice = self.loads.keys().chain(self.loaded.keys()).find(is_same);
        assert_eq!(twice, None, "invariant 3: one load per version and device");
        let need = self.foreseen[&key.artefact].total().0;
        let used = self.used(key.device) + need;
        let budget = self.budgets[&key.device];
        assert!(used <= budget, "invariant 1: {used} of {budget} with {}", key.artefact);
        self.loads.insert(key, need);
        let is_handler = |key: &&Key| Self::kind(&key.artefact.model) == ModelKind::Handler;
        let handlers = self.loads.keys().filter(is_handler).count();
        assert!(handlers <= self.config.max_handler_loads, "loads of handlers are bounded");
        assert!(self.loads.len() - handlers <= self.config.max_loads, "loads are bounded");
    }

    /// What is on a device or on its way there, by our own count.
    fn used(&self, device: DeviceId) -> u64 {
        let all = self.loaded.iter().chain(&self.loads);
        all.filter(|(key, _)| key.device == device).map(|(_, bytes)| bytes).sum()
    }

    fn check_decision(&self, decided: &Decided) {
        let Action::Draining { why: Departure::Evicted, for_artefact, .. } = &decided.action else {
            return;
        };
        let claim = for_artefact.as_ref().expect("evictions are for somebody");
        let is_kept = self.kept.contains(&decided.model) && self.table.is_kept(&decided.model);
        assert!(!is_kept || decided.model == claim.model, "a kept model is no victim");
        let need = self.foreseen[claim].total().0;
        self.assert_can_fit(claim, need);
        let device = decided.device.expect("a resident has a device");
        let kept = self.loaded.iter().filter(|(key, _)| {
            key.device == device
                && key.artefact.model != claim.model
                && self.table.is_kept(&key.artefact.model)
                && self.table.residents[*key].state == State::Ready
        });
        let kept: u64 = kept.map(|(_, bytes)| bytes).sum();
        let room = self.budgets[&device].saturating_sub(kept);
        assert!(need <= room, "invariant 7: {need} for {claim} cannot come of {room}");
    }

    fn assert_can_fit(&self, artefact: &ArtefactId, need: u64) {
        let largest = *self.budgets.values().max().unwrap();
        assert!(need <= largest, "invariant 6: {artefact} can never fit");
    }

    /// Who is dead leaves when its last lease ends.
    fn check_dead(&self) {
        for key in self.dead.iter().filter(|key| self.loaded.contains_key(*key)) {
            let is_held = self.leases.contains(key);
            assert_ne!(is_held, self.unloads.contains(key), "{} is dead", key.artefact);
        }
    }

    /// Invariants 1 and 5, by our own count of what is on each device.
    fn check_accounts(&mut self, may_exceed: bool) {
        for level in self.table.levels().devices {
            let on_device = self.loaded.iter().filter(|(key, _)| key.device == level.id);
            let on_device: u64 = on_device.map(|(_, bytes)| bytes).sum();
            assert_eq!(level.charged.0, on_device, "invariant 5: what is there is charged");
            let on_the_way: u64 =
                self.loads.iter().filter(|(key, _)| key.device == level.id).map(|(_, b)| b).sum();
            assert!(level.reserved.0 >= on_the_way, "invariant 1: loads are promised their room");
            let sum = level.charged.0 + level.reserved.0;
            let excess = sum.saturating_sub(self.budgets[&level.id]);
            let before = self.excess.insert(level.id, excess).unwrap();
            assert!(may_exceed || excess <= before, "invariant 1: {sum} on {}", level.id);
        }
    }
}
