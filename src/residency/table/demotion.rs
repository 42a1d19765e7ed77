//! Host memory between device and disk: what stays there when a model leaves its device,
//! what loads from there, and what leaves for what.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::Instant;

use roundhouse_types::{ArtefactId, Bytes, ModelId, ModelKind, Version};

use super::Table;
use super::copies::{Entry, Stage, Unloaded, copied};
use super::event::{Effect, Key};
use super::state::{Fetch, Job, NextLook, State};
use crate::decision::{Action, Decided, Departure};
use crate::loader::HostCopy;

impl Table {
    /// A resident is about to be unloaded: whether it is to leave a copy. One whose room is
    /// not free now is not made, for a load waits for the device; but copies that are worth
    /// less leave, so that there is room for the next one.
    pub(super) fn demote(&mut self, key: &Key) -> bool {
        let artefact = &key.artefact;
        let Some(State::Draining(why)) = self.residents.get(key).map(|resident| resident.state)
        else {
            return false;
        };
        match self.at_bottom(key, why) {
            Departure::Evicted
            | Departure::Place
            | Departure::Idle
            | Departure::Shrunk
            | Departure::Base => {}
            // It lives: what died holds nothing of it, and may come back in the same version.
            Departure::Died if why == Departure::Base => {}
            // Nobody is to serve it from here again, or it has done harm.
            Departure::Superseded
            | Departure::Deleted
            | Departure::Requested
            | Departure::Outgrown
            | Departure::Died
            | Departure::Failed
            | Departure::Shutdown => {
                self.discard(artefact, why);
                return false;
            }
        }
        let Some(resident) = self.residents.get(key).filter(|_| self.may_demote(key)) else {
            return false;
        };
        let (model, used_sequence) = (Unloaded::of(resident), resident.used_sequence);
        let is_usable = self.copies.is_usable(artefact);
        if let Some(entry) = self.copies.get_mut(artefact) {
            if is_usable {
                (entry.model, entry.used_sequence) = (model, used_sequence);
                entry.holds += 1;
            }
            return is_usable;
        }
        let need = self.copies.need(&model);
        let free = self.copies.free();
        if need > free {
            let bytes = copied(&model.footprint).total();
            let worth = self.copy_worth(&artefact.model, bytes, used_sequence);
            self.clear_copies(need.saturating_sub(free), Some(worth), Departure::Evicted);
            return false;
        }
        let entry = Entry {
            stage: Stage::Coming,
            doomed: None,
            holds: 0,
            footprint: copied(&model.footprint),
            model,
            last_used: self.now,
            used_sequence,
        };
        self.copies.promise(artefact, entry);
        self.model_mut(&artefact.model).copies += 1;
        true
    }

    /// Whether a copy of a resident would be of use to anybody.
    fn may_demote(&self, key: &Key) -> bool {
        let (Some(resident), Some(entry)) =
            (self.residents.get(key), self.models.peek(&key.artefact.model))
        else {
            return false;
        };
        // A handler's state is in its processes. What is on another device can be copied from there.
        let is_elsewhere = |other: &Key| {
            let state = self.residents.get(other).map(|resident| resident.state);
            other != key && other.artefact == key.artefact && state != Some(State::Unloading)
        };
        !key.device.is_host()
            && resident.kind != ModelKind::Handler
            && copied(&resident.footprint).total() > Bytes::ZERO
            && entry.current.as_ref() == Some(&key.artefact.version)
            && self.finds_its_base(key)
            && !entry.residents.iter().any(is_elsewhere)
            && !self.stopping
    }

    /// The unload of a resident that was to be demoted has ended.
    pub(super) fn demoted(&mut self, artefact: &ArtefactId, copy: Option<HostCopy>) {
        let is_coming = self.copies.get(artefact).is_some_and(|entry| entry.stage == Stage::Coming);
        // Its time began with the unload.
        self.idle_copies = NextLook::Now;
        match copy {
            Some(copy) => {
                let bytes = copy.footprint.total();
                self.copies.charge(artefact, &copy);
                self.decide(Decided::of(artefact, None, Action::Demoted { bytes }));
            }
            None if is_coming => return self.copy_ended(artefact),
            None => self.discard(artefact, Departure::Failed),
        }
        if is_coming {
            self.leave_if_doomed(artefact);
        } else {
            self.release_copy(artefact);
        }
    }

    /// A load whose artefact has a copy is whole: it needs no fetch, and holds the copy, which
    /// knows its base. One made beside another model than `base` is of no use.
    pub(super) fn take_copy(
        &mut self,
        artefact: &ArtefactId,
        base: &mut Option<ModelId>,
        job: &mut Job,
    ) {
        if !self.copies.is_usable(artefact) {
            return;
        }
        let made_on = self.copies.get(artefact).and_then(|entry| entry.model.base.as_ref());
        let made_on = made_on.map(|base| base.model.clone());
        if base.is_some() && *base != made_on {
            return self.discard(artefact, Departure::Base);
        }
        let remembered = self.copies.get(artefact).map(|entry| entry.model.footprint.total());
        // It had grown; a new load of the files may take less.
        let is_known = job.footprint.is_some();
        if !is_known && self.never_fits(artefact, remembered.unwrap_or_default()).is_some() {
            return;
        }
        let now = self.now;
        let Some(entry) = self.copies.get_mut(artefact) else {
            return;
        };
        *base = made_on;
        entry.holds += 1;
        job.from_copy = true;
        job.spared_bytes = std::mem::replace(&mut job.fetch_bytes, Bytes::ZERO);
        job.fetch = Fetch::Whole { since: now, until: now };
        job.kind = Some(entry.model.kind);
        job.off_cards = entry.model.off_cards;
        if !is_known {
            job.footprint = Some(entry.model.footprint);
            job.shared = entry.model.shared.clone();
        }
    }

    /// A load or unload that held a copy has ended.
    pub(super) fn release_copy(&mut self, artefact: &ArtefactId) {
        let now = self.now;
        let Some(entry) = self.copies.get_mut(artefact) else {
            debug_assert!(false, "{artefact} was held");
            return;
        };
        debug_assert!(entry.holds > 0, "the copy of {artefact} released more often than held");
        entry.holds = entry.holds.saturating_sub(1);
        entry.last_used = now;
        self.idle_copies = NextLook::Now;
        self.leave_if_doomed(artefact);
    }

    /// Has a copy leave as soon as nobody holds it.
    pub(super) fn discard(&mut self, artefact: &ArtefactId, why: Departure) {
        if let Some(entry) = self.copies.get_mut(artefact) {
            entry.doomed.get_or_insert(why);
            self.leave_if_doomed(artefact);
        }
    }

    /// Has a model's copies leave, except that of the version to serve, if it is named.
    pub(super) fn discard_others(
        &mut self,
        model: &ModelId,
        serving: Option<&Version>,
        why: Departure,
    ) {
        for artefact in self.copies_of(model) {
            if Some(&artefact.version) != serving {
                self.discard(&artefact, why);
            }
        }
    }

    fn copies_of(&self, model: &ModelId) -> Vec<ArtefactId> {
        if self.models.peek(model).is_none_or(|entry| entry.copies == 0) {
            return Vec::new();
        }
        self.copies.of_model(model).map(|(artefact, _)| artefact.clone()).collect()
    }

    /// The copies of a model that would leave without waiting for a load that requests wait for.
    pub(super) fn copies_to_leave(&self, model: &ModelId) -> BTreeSet<ArtefactId> {
        let is_loading =
            |artefact: &ArtefactId| self.jobs.get(artefact).is_some_and(|job| job.from_copy);
        let is_wanted = |artefact: &ArtefactId| is_loading(artefact) && self.is_wanted(artefact);
        self.copies_of(model).into_iter().filter(|artefact| !is_wanted(artefact)).collect()
    }

    fn leave_if_doomed(&mut self, artefact: &ArtefactId) {
        let bytes = self.copies.freed_by(artefact);
        let Some(entry) = self.copies.get_mut(artefact) else {
            return;
        };
        let Some(why) = entry.doomed.filter(|_| entry.holds == 0) else {
            return;
        };
        if entry.stage != Stage::There {
            return;
        }
        entry.stage = Stage::Leaving;
        self.effects.push(Effect::Discard { artefact: artefact.clone() });
        self.decide(Decided::of(artefact, None, Action::Discarded { why, bytes }));
    }

    /// The host has a copy's memory back.
    pub(super) fn discarded(&mut self, artefact: &ArtefactId) {
        if self.copies.get(artefact).is_some_and(|entry| entry.stage == Stage::Leaving) {
            self.copy_ended(artefact);
        }
    }

    fn copy_ended(&mut self, artefact: &ArtefactId) {
        self.copies.remove(artefact);
        if let Some(model) = self.models.peek_mut(&artefact.model) {
            model.copies = model.copies.saturating_sub(1);
        }
        self.copy_gone(artefact);
    }

    /// Copies leave while they take more than the host's budget.
    pub(super) fn rebalance_copies(&mut self) {
        let over = self.copies.over();
        if over > Bytes::ZERO {
            self.clear_copies(over, None, Departure::Shrunk);
        }
    }

    /// Has so many copies leave that `missing` bytes come free, those on their way away
    /// included. With `below` only such that are worth less, and the whole set or nobody.
    fn clear_copies(&mut self, missing: Bytes, below: Option<f64>, why: Departure) {
        let mut candidates: Vec<(bool, f64, u64, &ArtefactId)> = Vec::new();
        let mut freeing = self.copies.freeing();
        for (artefact, entry) in self.copies.iter() {
            if entry.doomed.is_some() {
                freeing.add(artefact);
            } else if entry.stage == Stage::There && entry.holds == 0 {
                let (bytes, used) = (entry.footprint.total(), entry.used_sequence);
                let worth = self.copy_worth(&artefact.model, bytes, used);
                let is_needed = !self.is_redundant(artefact);
                if !is_needed || below.is_none_or(|below| worth < below) {
                    candidates.push((is_needed, worth, used, artefact));
                }
            }
        }
        candidates.sort_unstable_by(|a, b| {
            let worth = a.1.partial_cmp(&b.1).unwrap_or(Ordering::Equal);
            a.0.cmp(&b.0).then(worth).then(a.2.cmp(&b.2)).then(a.3.cmp(b.3))
        });
        let mut chosen = Vec::new();
        for (_, _, _, artefact) in candidates {
            if freeing.bytes() >= missing {
                break;
            }
            freeing.add(artefact);
            chosen.push(artefact);
        }
        if below.is_some() && freeing.bytes() < missing {
            return;
        }
        // A large one chosen late may make smaller ones before it needless.
        let mut leaving = Vec::new();
        for artefact in chosen.into_iter().rev() {
            freeing.spare(artefact);
            if freeing.bytes() < missing {
                freeing.add(artefact);
                leaving.push(artefact.clone());
            }
        }
        for artefact in leaving.into_iter().rev() {
            self.discard(&artefact, why);
        }
    }

    /// Whether an artefact is on a device and stays there for now, so that its copy saves nobody
    /// a fetch and can be made again.
    fn is_redundant(&self, artefact: &ArtefactId) -> bool {
        let Some(model) = self.models.peek(&artefact.model) else {
            return false;
        };
        let mut there = model.residents.iter().filter(|key| key.artefact == *artefact);
        there.any(|key| self.residents.get(key).is_some_and(|r| r.state != State::Unloading))
    }

    /// When it is to be looked whether a copy leaves because nobody loads from it.
    pub(super) fn next_idle_copy(&self) -> Option<Instant> {
        match self.idle_copies {
            NextLook::Now => self.first_idle_copy(),
            NextLook::At(at) => Some(at),
            NextLook::Never => None,
        }
    }

    /// When the first copy leaves because nobody loads from it.
    pub(super) fn first_idle_copy(&self) -> Option<Instant> {
        self.shortest_idle()?;
        let idle =
            self.copies.iter().filter_map(|(artefact, it)| self.copy_idle_until(artefact, it));
        idle.min()
    }

    /// Copies that nobody loaded from for the idle time leave.
    pub(super) fn expire_copies(&mut self) {
        let is_due = match self.idle_copies {
            NextLook::Now => true,
            NextLook::At(at) => at <= self.now,
            NextLook::Never => false,
        };
        if !is_due || self.shortest_idle().is_none() {
            return;
        }
        let is_over = |(artefact, entry): &(&ArtefactId, &Entry)| {
            self.copy_idle_until(artefact, entry).is_some_and(|at| at <= self.now)
        };
        let idle = self.copies.iter().filter(is_over).map(|(artefact, _)| artefact.clone());
        for artefact in idle.collect::<Vec<_>>() {
            self.discard(&artefact, Departure::Idle);
        }
        self.idle_copies = self.first_idle_copy().map_or(NextLook::Never, NextLook::At);
    }

    fn copy_idle_until(&self, artefact: &ArtefactId, entry: &Entry) -> Option<Instant> {
        let is_idle = entry.stage == Stage::There && entry.doomed.is_none() && entry.holds == 0;
        // While the artefact serves on a device, the copy waits with it.
        let is_idle = is_idle && !self.is_redundant(artefact);
        let ttl = entry.model.idle_ttl.or(self.config.idle_ttl);
        ttl.filter(|_| is_idle).map(|ttl| entry.last_used + ttl)
    }
}
