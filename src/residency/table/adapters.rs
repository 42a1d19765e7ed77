//! Adapters: models that are loaded onto another one, their base, and leave before it.
//!
//! An adapter's load has its base loaded for it, if that serves nowhere, and fetches meanwhile.
//! It looks for room only where its base serves or is being loaded, and begins when its base
//! serves there.

use roundhouse_types::{ArtefactId, Bytes, DeviceId, ErrorKind, Failure, ModelId};

use super::Table;
use super::event::Key;
use super::sharing::whole;
use super::state::{Job, Resident, Room, State};
use crate::config::tenant;
use crate::decision::{Action, Decided, Departure, Stage};
use crate::error::Error;

impl Table {
    /// What a load is the adapter of is known, or known otherwise than before. A base that is
    /// itself an adapter is refused by name.
    pub(super) fn base_known(&mut self, artefact: &ArtefactId, base: Option<ModelId>) {
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        if job.base == base {
            return;
        }
        if let Some(before) = std::mem::replace(&mut job.base, base.clone()) {
            self.take_back(artefact);
            self.awaits_no_more(artefact, &before);
            self.base_unneeded(&before);
        }
        let Some(base) = base else {
            return;
        };
        let model = artefact.model.clone();
        if base == model {
            let failure = Error::OwnBase { model }.into();
            return self.fail(artefact, &failure, Stage::Resolve);
        }
        self.refuse_chain(&model);
        if self.is_adapter(&base) {
            let failure = Error::ChainedBase { model, base }.into();
            return self.fail(artefact, &failure, Stage::Resolve);
        }
        // One that was wanted only as a base is not loaded any more.
        if !self.jobs.contains_key(artefact) {
            return;
        }
        self.bases.await_base(&base, artefact);
        self.model_mut(&base);
        self.touched.push(base);
    }

    /// Whether a model is, as it serves or else as it is being loaded, an adapter.
    fn is_adapter(&self, model: &ModelId) -> bool {
        if let Some(key) = self.ready(model) {
            return self.residents.get(key).is_some_and(|resident| resident.base.is_some());
        }
        let jobs = self.models.peek(model).into_iter().flat_map(|entry| &entry.jobs);
        jobs.filter_map(|id| self.jobs.get(id)).any(|job| job.base.is_some())
    }

    /// A model turned out to be an adapter: those that wait for it as their base cannot come.
    fn refuse_chain(&mut self, base: &ModelId) {
        if !self.bases.is_awaited(base) || !self.is_adapter(base) {
            return;
        }
        for adapter in self.awaiting(base) {
            let (model, base) = (adapter.model.clone(), base.clone());
            let failure = Error::ChainedBase { model, base }.into();
            self.fail(&adapter, &failure, Stage::Resolve);
        }
        self.base_unneeded(base);
    }

    /// The adapters on their way that need this base.
    fn awaiting(&self, base: &ModelId) -> Vec<ArtefactId> {
        self.bases.awaiting(base).cloned().collect()
    }

    /// Whether a load that requests wait for needs this base.
    pub(super) fn is_base_wanted(&self, base: &ModelId) -> bool {
        self.bases.awaiting(base).any(|adapter| self.is_wanted(adapter))
    }

    /// Whether a model has to be loaded, if it is not: requests wait for it, or adapters that
    /// had not asked for it before or that requests wait for.
    pub(super) fn is_sought(&self, model: &ModelId) -> bool {
        self.models.peek(model).is_some_and(|entry| !entry.waiters.is_empty())
            || self.bases.awaiting(model).any(|adapter| {
                self.jobs.get(adapter).is_some_and(|job| !job.asked_for_base)
                    || self.is_wanted(adapter)
            })
    }

    /// A base is asked for: whether others may leave for it.
    pub(super) fn ask_for_base(&mut self, base: &ModelId) -> bool {
        let mut evict = false;
        for adapter in self.awaiting(base) {
            let Some(job) = self.jobs.get_mut(&adapter) else {
                continue;
            };
            evict |= job.evict;
            if !std::mem::replace(&mut job.asked_for_base, true) {
                let action = Action::AwaitsBase { base: base.clone() };
                self.decide(Decided::of(&adapter, None, action));
            }
        }
        evict
    }

    /// The base that a load could count on there: one that serves and stays, or, where it serves
    /// nowhere, one that is on its way to that device.
    pub(super) fn ground(&self, base: &ModelId, device: DeviceId) -> Option<ArtefactId> {
        let mut serving = self.all_ready(base).peekable();
        if serving.peek().is_some() {
            let mut here = serving.filter(|(key, _)| key.device == device);
            let is_base = |it: &Resident| it.claimed_by.is_none() && it.base.is_none();
            let stays = here.find(|(_, resident)| is_base(resident));
            return stays.map(|(key, _)| key.artefact.clone());
        }
        let entry = self.models.peek(base)?;
        let is_coming = |id: &&ArtefactId| {
            let job = self.jobs.get(*id);
            job.is_some_and(|job| {
                job.is_loading() && job.device() == Some(device) && job.broken.is_none()
            })
        };
        entry.jobs.iter().rev().find(is_coming).cloned()
    }

    /// Whether a load may go onto a device as far as its base is concerned.
    pub(super) fn may_stand(&self, artefact: &ArtefactId, device: DeviceId) -> bool {
        let base = self.jobs.get(artefact).and_then(|job| job.base.as_ref());
        base.is_none_or(|base| self.ground(base, device).is_some())
    }

    /// Whether a load waits for its base before room can be looked for.
    pub(super) fn lacks_ground(&self, job: &Job) -> bool {
        let Some(base) = &job.base else {
            return false;
        };
        !self.ledger.devices().any(|device| self.ground(base, device).is_some())
    }

    /// Whether a load's base serves nowhere.
    pub(super) fn lacks_ready_base(&self, job: &Job) -> bool {
        job.base.as_ref().is_some_and(|base| self.ready(base).is_none())
    }

    /// Whether what a load is promised room beside is, or will be, there: always, where it is no
    /// adapter.
    pub(super) fn has_ground(&self, artefact: &ArtefactId) -> bool {
        let Some(job) = self.jobs.get(artefact) else {
            return false;
        };
        let (Some(base), Some(device)) = (&job.base, job.device()) else {
            return true;
        };
        job.onto.is_some() && self.ground(base, device) == job.onto
    }

    /// Whether the base that a promised load counts on serves, so that it may begin.
    pub(super) fn is_grounded(&self, job: &Job) -> bool {
        if job.base.is_none() {
            return true;
        }
        let key = job.onto.clone().zip(job.device());
        let key = key.map(|(artefact, device)| Key { artefact, device });
        let resident = key.and_then(|key| self.residents.get(&key));
        resident.is_some_and(|resident| resident.state == State::Ready)
    }

    /// Whether it may serve as far as its base is concerned.
    pub(super) fn may_serve(&self, key: &Key) -> bool {
        let base = self.base_of(key).and_then(|base| self.residents.get(&base));
        self.base_of(key).is_none() || base.is_some_and(|it| it.state == State::Ready)
    }

    /// What an adapter is on.
    pub(super) fn base_of(&self, key: &Key) -> Option<Key> {
        let artefact = self.residents.get(key)?.base.clone()?;
        Some(Key { artefact, device: key.device })
    }

    /// What a model's residents are on, as far as they are adapters.
    pub(super) fn bases_of(&self, model: &ModelId) -> Vec<Key> {
        let residents = self.models.peek(model).into_iter().flat_map(|entry| &entry.residents);
        residents.filter_map(|key| self.base_of(key)).collect()
    }

    /// A load is promised room: from now on it counts on its base there.
    pub(super) fn stand_on(&mut self, artefact: &ArtefactId, device: DeviceId) {
        let base = self.jobs.get(artefact).and_then(|job| job.base.clone());
        let Some(onto) = base.and_then(|base| self.ground(&base, device)) else {
            return;
        };
        self.bases.promised(Key { artefact: onto.clone(), device }, artefact);
        if let Some(job) = self.jobs.get_mut(artefact) {
            job.onto = Some(onto);
        }
    }

    /// A load whose room was on this device counts on its base there no more.
    pub(super) fn step_off(&mut self, artefact: &ArtefactId, onto: ArtefactId, device: DeviceId) {
        let base = Key { artefact: onto, device };
        self.used_until_now(&base);
        self.bases.withdrawn(base, artefact);
    }

    /// A base that lost an adapter was in use until now.
    pub(super) fn used_until_now(&mut self, base: &Key) {
        let now = self.now;
        if let Some(resident) = self.residents.get_mut(base) {
            resident.last_used = now;
        }
    }

    /// An adapter is on its way no more: so long its base was in use.
    pub(super) fn awaits_no_more(&mut self, artefact: &ArtefactId, base: &ModelId) {
        self.bases.forget(base, artefact);
        let serving = self.ready_keys(base);
        serving.iter().for_each(|key| self.used_until_now(key));
    }

    /// Requests wait for an adapter on its way: its base is loaded if it is not, and others may
    /// leave for it where they may for the adapter.
    pub(super) fn base_wanted(&mut self, base: &ModelId, evict: bool) {
        let Some(entry) = self.models.peek_mut(base) else {
            return;
        };
        if let Some(resolving) = &mut entry.resolving {
            resolving.evict |= evict;
            resolving.load = true;
        }
        for artefact in &entry.jobs {
            if let Some(job) = self.jobs.get_mut(artefact) {
                job.evict |= evict;
            }
        }
        self.touched.push(base.clone());
    }

    /// A base will not be there: loads that were promised room beside it look anew.
    pub(super) fn take_back_adapters(&mut self, base: &Key) {
        let loads: Vec<ArtefactId> = self.bases.loads(base).cloned().collect();
        // What is on its way to the device runs to its end, and then leaves.
        loads.iter().for_each(|adapter| self.take_back(adapter));
    }

    /// A base takes no new leases: its adapters leave before it.
    pub(super) fn drain_adapters(&mut self, base: &Key, why: Departure) {
        self.take_back_adapters(base);
        let why = match why {
            // They are victims of the same load.
            Departure::Evicted => return,
            Departure::Shrunk | Departure::Shutdown => why,
            _ => Departure::Base,
        };
        for adapter in self.bases.residents(base).collect::<Vec<_>>() {
            self.drain(&adapter, why, None);
        }
    }

    /// A base serves again: so do the adapters that were leaving with it.
    pub(super) fn revive_adapters(&mut self, base: &Key) {
        for adapter in self.bases.residents(base).collect::<Vec<_>>() {
            let state = self.residents.get(&adapter).map(|resident| resident.state);
            if state == Some(State::Draining(Departure::Base)) {
                self.revive(&adapter);
            }
        }
    }

    /// Bases that lost an adapter: one that leaves is unloaded after the last of them.
    pub(super) fn see_loosened(&mut self) {
        while let Some(base) = self.bases.next_loosened() {
            let resident = self.residents.get(&base);
            if resident.is_some_and(|it| it.leases == 0 && matches!(it.state, State::Draining(_))) {
                self.unload_if_free(&base);
            }
        }
    }

    /// No adapter needs a base that nobody else waits for: it is given up, unless it is on its
    /// way to a device.
    fn base_unneeded(&mut self, base: &ModelId) {
        let jobs = self.models.peek(base).map(|entry| entry.jobs.clone());
        for artefact in jobs.into_iter().flatten() {
            let is_begun = self.jobs.get(&artefact).is_some_and(Job::is_loading);
            if !is_begun && !self.bases.is_awaited(base) && !self.is_wanted(&artefact) {
                self.abandon(&artefact);
            }
        }
    }

    /// A base could not be had: its adapters that wait for it are told. It is not theirs, so
    /// nothing of it is remembered.
    pub(super) fn refuse_adapters(&mut self, base: &ModelId, failure: &Failure) {
        for adapter in self.awaiting(base) {
            if self.jobs.get(&adapter).is_none_or(Job::is_loading) {
                continue;
            }
            let (model, base) = (adapter.model.clone(), base.clone());
            let (kind, retry) = (failure.kind(), failure.retry());
            // Where it was looked for is not for those who ask the adapter.
            let reason = match kind {
                ErrorKind::ModelNotFound => "it is not there".to_owned(),
                _ => failure.message().to_owned(),
            };
            let failure: Failure = Error::BaseFailed { model, base, reason, kind, retry }.into();
            self.end_job(&adapter);
            self.refuse_job(&adapter, &failure);
        }
    }

    /// What a base takes, as far as it is known: as it serves, or as it is to be loaded.
    fn base_bytes(&self, base: &ModelId) -> Option<Bytes> {
        if let Some(resident) = self.ready(base).and_then(|key| self.residents.get(key)) {
            return Some(resident.footprint.total());
        }
        let jobs = &self.models.peek(base)?.jobs;
        let footprint = jobs.iter().rev().find_map(|id| self.jobs.get(id)?.footprint);
        footprint.map(|footprint| footprint.total())
    }

    /// Refuses adapters that fit no device beside their base, before anybody leaves for either.
    pub(super) fn refuse_misfits(&mut self) {
        // One that was leaving when it was asked for may serve again.
        let chained: Vec<ModelId> = self.bases.awaited().map(|(base, _)| base.clone()).collect();
        chained.iter().for_each(|base| self.refuse_chain(base));
        let mut misfits: Vec<(ArtefactId, Failure)> = Vec::new();
        for (base, adapters) in self.bases.awaited() {
            let Some(base_need) = self.base_bytes(base) else {
                continue;
            };
            let left = self.left_beside(base, base_need);
            let most = left.iter().map(|(_, left)| *left).max().unwrap_or_default();
            for adapter in adapters {
                let job = self.jobs.get(adapter).filter(|job| matches!(job.room, Room::Wanted));
                let need = job.filter(|job| job.footprint.is_some()).map(whole);
                let ceiling = self.common_ceiling(adapter, base);
                let is_misfit = |need: &Bytes| {
                    *need > most || ceiling.is_some_and(|ceiling| *need + base_need > ceiling)
                };
                if let Some(need) = need.filter(is_misfit) {
                    misfits.push((adapter.clone(), self.misfit(adapter, need, base, base_need)));
                }
            }
        }
        for (adapter, failure) in misfits {
            let base = self.jobs.get(&adapter).and_then(|job| job.base.clone());
            if self.jobs.get(&adapter).is_some_and(|job| job.from_copy) {
                // What was copied had grown; loaded from its files it may take less.
                self.discard(&adapter, Departure::Failed);
                self.abandoned(&adapter);
                self.ask_again(&adapter);
                continue;
            }
            self.fail(&adapter, &failure, Stage::Room);
            base.iter().for_each(|base| self.base_unneeded(base));
        }
    }

    /// What an adapter and its base may take together, where they are one tenant's.
    fn common_ceiling(&self, adapter: &ArtefactId, base: &ModelId) -> Option<Bytes> {
        self.ceiling(base).filter(|_| tenant(base) == tenant(&adapter.model))
    }

    /// What a base leaves of the devices that it serves on, or of all where it serves nowhere.
    fn left_beside(&self, base: &ModelId, base_need: Bytes) -> Vec<(DeviceId, Bytes)> {
        let serves = self.ready(base).is_some();
        let is_there = |device| self.all_ready(base).any(|(key, _)| key.device == device);
        let devices = self.ledger.budgets().filter(|(device, ..)| !serves || is_there(*device));
        devices.map(|(device, budget, _)| (device, budget.saturating_sub(base_need))).collect()
    }

    fn misfit(
        &self,
        adapter: &ArtefactId,
        need: Bytes,
        base: &ModelId,
        base_need: Bytes,
    ) -> Failure {
        let ceiling = self.common_ceiling(adapter, base);
        let (model, base) = (adapter.model.clone(), base.clone());
        if let Some(ceiling) = ceiling.filter(|ceiling| need + base_need > *ceiling) {
            let tenant = tenant(&base).to_owned();
            return Error::CeilingBeside { model, need, base, base_need, tenant, ceiling }.into();
        }
        if self.ledger.budgets().all(|(_, _, most)| need + base_need > most) {
            let devices = self.ledger.budgets().map(|(device, _, most)| (device, most)).collect();
            return Error::TooLargeBeside { model, need, base, base_need, devices }.into();
        }
        let left = self.left_beside(&base, base_need);
        Error::LeftBeside { model, need, base, left }.into()
    }

    /// The devices that could take a load, and beside a base that serves nowhere yet one of the
    /// adapters that wait for it: the largest, else the smallest. With victims, those in use
    /// only with `busy`. Where requests wait for the base itself, it comes alone if need be.
    pub(super) fn hosts_beside(&self, artefact: &ArtefactId, busy: bool) -> Vec<DeviceId> {
        let mut hosts = self.hosts(artefact);
        let sizes = self.sizes_beside(artefact);
        if sizes.is_empty() {
            return hosts;
        }
        let missing = |device: DeviceId, beside: Bytes| {
            let need = self.need(artefact, device) + beside;
            need.saturating_sub(self.ledger.free(device))
        };
        let need = self.jobs.get(artefact).map(whole).unwrap_or_default();
        for beside in sizes {
            let fits = |device: &DeviceId| {
                need + beside <= self.ledger.budget(*device)
                    && self.victims(*device, &[artefact], missing(*device, beside), busy).is_some()
            };
            let mut both: Vec<DeviceId> = hosts.iter().copied().filter(fits).collect();
            if !both.is_empty() {
                both.sort_by_key(|device| missing(*device, beside));
                return both;
            }
        }
        let is_wanted = self.models.peek(&artefact.model).is_some_and(|it| !it.waiters.is_empty());
        hosts.retain(|_| is_wanted);
        hosts
    }

    /// What the adapters take that wait for a base to come, the largest and the smallest.
    fn sizes_beside(&self, base: &ArtefactId) -> Vec<Bytes> {
        let jobs = self.awaiting_load(base).map(|(_, job)| job);
        let sizes: Vec<Bytes> = jobs.filter(|job| job.footprint.is_some()).map(whole).collect();
        let mut both: Vec<Bytes> = sizes.iter().max().into_iter().copied().collect();
        both.extend(sizes.iter().min());
        both.dedup();
        both
    }
}
