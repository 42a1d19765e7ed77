//! What operators ask for: load, unload, refresh, keep, another budget, the end.

use std::collections::BTreeSet;
use std::time::Instant;

use roundhouse_types::{ArtefactId, Bytes, DeviceId, ErrorKind, ModelId, Tier, Version};

use super::Table;
use super::event::{
    Effect, Key, LeftWith, LoadOptions, LoadReport, Report, UnloadReport, WaiterId,
};
use super::state::{Job, Purpose, Room};
use crate::decision::{Action, Decided, Departure};
use crate::error::Error;

impl Table {
    pub(super) fn operator_load(
        &mut self,
        waiter: WaiterId,
        model: &ModelId,
        hold_until: Instant,
        options: LoadOptions,
    ) {
        if self.stopping {
            return self.refuse_caller(waiter, model, &Error::ShuttingDown.into());
        }
        if let Some(key) = self.ready(model) {
            let (version, device) = (key.artefact.version.clone(), key.device);
            let report = Report::Loaded(LoadReport { version, device, tier: Tier::Device });
            return self.effects.push(Effect::Report { waiter, report });
        }
        if options.force {
            let entry = self.model_mut(model);
            (entry.trouble, entry.deaths) = (None, 0);
        } else if let Some(failure) = self.trouble_stands(model) {
            return self.refuse_caller(waiter, model, &failure);
        }
        self.enqueue(waiter, model, hold_until, Purpose::Load(options));
    }

    pub(super) fn operator_refresh(
        &mut self,
        waiter: WaiterId,
        model: &ModelId,
        hold_until: Instant,
    ) {
        if self.stopping {
            return self.refuse_caller(waiter, model, &Error::ShuttingDown.into());
        }
        let purpose = Purpose::Refresh { asked: false, aimed: None };
        if self.admit(waiter, model, hold_until, purpose) {
            self.model_mut(model).refreshers.insert(waiter);
            self.touched.push(model.clone());
        }
    }

    /// Drains what is loaded of a model. What is on its way to a device is unloaded on
    /// arrival, what is not yet on its way is given up, unless requests wait for it.
    pub(super) fn operator_unload(
        &mut self,
        waiter: WaiterId,
        model: &ModelId,
        hold_until: Instant,
    ) {
        if self.stopping {
            return self.refuse_caller(waiter, model, &Error::ShuttingDown.into());
        }
        let mut keys: BTreeSet<Key> = BTreeSet::new();
        let mut unwanted: Vec<ArtefactId> = Vec::new();
        if let Some(entry) = self.models.peek(model) {
            keys.extend(entry.residents.iter().cloned());
            unwanted.extend(entry.jobs.iter().filter(|job| !self.is_wanted(job)).cloned());
        }
        for artefact in unwanted {
            if self.jobs.get(&artefact).is_some_and(Job::is_arriving) {
                self.stop(&artefact, None);
            }
            match self.jobs.get_mut(&artefact) {
                Some(Job { room: Room::Loading { device, .. }, discard, .. }) => {
                    *discard = true;
                    keys.insert(Key { artefact, device: *device });
                }
                _ => self.abandon(&artefact),
            }
        }
        let copies = self.copies_to_leave(model);
        if keys.is_empty() && copies.is_empty() {
            let failure = Error::NotLoaded { model: model.clone() }.into();
            return self.refuse_caller(waiter, model, &failure);
        }
        let leaving: Vec<Key> = keys.iter().cloned().collect();
        let artefacts = keys.iter().map(|key| &key.artefact).chain(&copies);
        let versions: BTreeSet<&Version> = artefacts.map(|artefact| &artefact.version).collect();
        let versions = versions.into_iter().cloned().collect();
        // One that is on several devices leaves each of them, and is named once.
        let adapters = keys.iter().flat_map(|key| self.bases.residents(key));
        let adapters: BTreeSet<ArtefactId> = adapters.map(|key| key.artefact).collect();
        let adapters = adapters.into_iter().map(|artefact| {
            let kept = self.is_kept(&artefact.model);
            LeftWith { artefact, kept }
        });
        let adapters = adapters.collect();
        let purpose = Purpose::Unload { keys, copies, versions, adapters };
        if !self.admit(waiter, model, hold_until, purpose) {
            return;
        }
        self.set_kept(model, false);
        self.model_mut(model).unloaders.insert(waiter);
        for key in leaving {
            self.drain(&key, Departure::Requested, None);
        }
        self.discard_others(model, None, Departure::Requested);
    }

    /// An artefact is off its device, or never came to it: tells who waited for that.
    pub(super) fn gone(&mut self, key: &Key) {
        self.tell_unloaders(&key.artefact.model, |keys, _| keys.remove(key));
    }

    /// A copy is off the host's memory, or never came to it: likewise.
    pub(super) fn copy_gone(&mut self, artefact: &ArtefactId) {
        self.tell_unloaders(&artefact.model, |_, copies| copies.remove(artefact));
    }

    fn tell_unloaders(
        &mut self,
        model: &ModelId,
        strike: impl Fn(&mut BTreeSet<Key>, &mut BTreeSet<ArtefactId>) -> bool,
    ) {
        let unloaders = self.models.peek(model).map(|entry| entry.unloaders.clone());
        for id in unloaders.into_iter().flatten() {
            let Some(waiter) = self.waiters.get_mut(id) else {
                continue;
            };
            let Purpose::Unload { keys, copies, versions, adapters } = &mut waiter.purpose else {
                continue;
            };
            if strike(keys, copies) && keys.is_empty() && copies.is_empty() {
                let (versions, adapters) = (versions.clone(), adapters.clone());
                let report = Report::Unloaded(UnloadReport { versions, adapters });
                self.take_waiter(id);
                self.effects.push(Effect::Report { waiter: id, report });
            }
        }
    }

    pub(super) fn keep_changed(&mut self, model: &ModelId, kept: bool) {
        if self.set_kept(model, kept) {
            // One that was kept may have been unused for long.
            self.idle_from = None;
            self.decide(Decided::about(model, Action::Keep { kept }));
        }
    }

    /// Says whether that is news.
    fn set_kept(&mut self, model: &ModelId, kept: bool) -> bool {
        if self.is_kept(model) == kept {
            return false;
        }
        self.model_mut(model).kept = kept;
        match kept {
            true => self.kept.insert(model.clone()),
            false => self.kept.remove(model),
        };
        for base in self.bases_of(model) {
            self.bases.keep_changed(&base, kept);
        }
        true
    }

    pub(super) fn budget_changed(&mut self, device: DeviceId, budget: Bytes) {
        if !self.ledger.set_budget(device, budget) {
            return;
        }
        // What was too large may fit now.
        for (_, model) in self.models.iter_mut() {
            model.trouble.take_if(|trouble| trouble.failure.kind() == ErrorKind::TooLarge);
        }
    }

    /// Refuses all who wait for a model, gives up loads, and drains every resident.
    pub(super) fn shutdown(&mut self) {
        self.stopping = true;
        for id in self.waiters.ids() {
            let purpose = self.waiters.get(id).map(|waiter| &waiter.purpose);
            if !matches!(purpose, Some(Purpose::Unload { .. })) {
                self.refuse(id, &Error::ShuttingDown.into());
            }
        }
        for artefact in self.jobs_in_order() {
            // What is on its way to a device is unloaded when it arrives.
            match self.jobs.get(&artefact) {
                Some(job) if job.is_arriving() => self.stop(&artefact, None),
                Some(job) if !job.is_loading() => self.abandon(&artefact),
                _ => {}
            }
        }
        let keys: Vec<Key> = self.residents.keys().cloned().collect();
        for key in keys {
            self.drain(&key, Departure::Shutdown, None);
        }
        for artefact in self.copies.artefacts() {
            self.discard(&artefact, Departure::Shutdown);
        }
    }
}
