//! Room: who is promised it, who starts, and what happens when the budget shrinks.

use roundhouse_types::{ArtefactId, Bytes, DeviceId, ModelKind};

use super::Table;
use super::event::{Effect, Key};
use super::state::{Fetch, Job, Purpose, Room, State};
use crate::decision::{Action, Decided, Departure, Obstacle, Stage};
use crate::error::Error;

/// Promises that others may get while a load with waiters is blocked; after that nobody
/// passes it. Enough to use the room it cannot use, few enough that it is not starved.
const OVERTAKEN_AT_MOST: u32 = 8;

/// What came of looking for room.
enum Outcome {
    Promised,
    Blocked(Obstacle),
    /// The load is over: it can never fit, or must not wait for room.
    Ended,
}

impl Table {
    /// Goes through the loads, those that are waited for first and in their order, and
    /// gives each what can be given: a promise, a fetch slot, its victims' room, a load slot.
    pub(super) fn make_room(&mut self) {
        if self.jobs.is_empty() || self.stopping {
            return;
        }
        let mut blocked: Vec<ArtefactId> = Vec::new();
        for artefact in self.jobs_in_order() {
            let Some(job) = self.jobs.get(&artefact) else {
                continue;
            };
            match job.room {
                Room::Wanted if job.footprint.is_some() => {
                    self.look_for_room(&artefact, &mut blocked);
                }
                Room::Promised { device } => self.review(&artefact, device),
                Room::Wanted | Room::Loading { .. } => {}
            }
            self.start_fetch(&artefact);
            self.start_load(&artefact);
        }
    }

    fn look_for_room(&mut self, artefact: &ArtefactId, blocked: &mut Vec<ArtefactId>) {
        let is_full = |job: &Job| job.overtaken >= OVERTAKEN_AT_MOST;
        let must_wait = blocked.iter().any(|first| self.jobs.get(first).is_some_and(is_full));
        let must_wait = must_wait && self.jobs.get(artefact).is_some_and(|job| job.evict);
        let outcome =
            if must_wait { Outcome::Blocked(Obstacle::InUse) } else { self.promise(artefact) };
        match outcome {
            Outcome::Promised => {
                for first in blocked.iter() {
                    if let Some(job) = self.jobs.get_mut(first) {
                        job.overtaken += 1;
                    }
                }
            }
            Outcome::Blocked(obstacle) => {
                self.note_obstacle(artefact, obstacle);
                // What only an operator can clear holds nobody else up.
                let is_first = matches!(obstacle, Obstacle::InUse | Obstacle::OverBudget);
                if is_first && self.is_wanted(artefact) {
                    blocked.push(artefact.clone());
                }
            }
            Outcome::Ended => {}
        }
    }

    /// Loads in the order in which they are served: by the first caller that waits, then
    /// those that nobody waits for, by age.
    pub(super) fn jobs_in_order(&self) -> Vec<ArtefactId> {
        let mut order: Vec<(bool, u64, &ArtefactId)> = self
            .jobs
            .iter()
            .map(|(artefact, job)| match self.first_waiter(artefact) {
                Some(sequence) => (false, sequence, artefact),
                None => (true, job.sequence, artefact),
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, _, artefact)| artefact.clone()).collect()
    }

    /// The arrival of the first caller that waits for this load.
    fn first_waiter(&self, artefact: &ArtefactId) -> Option<u64> {
        let entry = self.models.peek(&artefact.model)?;
        let aimed = entry.refreshers.iter().filter(|id| {
            let purpose = self.waiters.get(**id).map(|waiter| &waiter.purpose);
            matches!(purpose, Some(Purpose::Refresh { aimed: Some(aimed), .. }) if *aimed == artefact.version)
        });
        let first = entry.waiters.iter().take(1).chain(aimed);
        first.filter_map(|id| self.waiters.get(*id)).map(|waiter| waiter.sequence).min()
    }

    pub(super) fn is_wanted(&self, artefact: &ArtefactId) -> bool {
        self.first_waiter(artefact).is_some()
    }

    /// Promises a load its whole footprint, what is free at once and the rest by victims,
    /// or nothing at all.
    fn promise(&mut self, artefact: &ArtefactId) -> Outcome {
        let Some(job) = self.jobs.get(artefact) else {
            return Outcome::Ended;
        };
        let (need, evict) = (need(job), job.evict);
        if need > self.ledger.largest_budget() {
            let (model, budget) = (artefact.model.clone(), self.ledger.largest_budget());
            let failure = Error::TooLarge { model, need, budget }.into();
            self.fail(artefact, &failure, Stage::Room);
            return Outcome::Ended;
        }
        debug_assert!(self.resident_of(artefact).is_none(), "invariant 3: {artefact} is there");
        let mut devices: Vec<DeviceId> =
            self.ledger.devices().filter(|device| need <= self.ledger.budget(*device)).collect();
        devices.retain(|device| self.ledger.over(*device) == Bytes::ZERO);
        devices.sort_by_key(|device| std::cmp::Reverse(self.ledger.free(*device)));
        if let Some(device) = devices.first().copied()
            && self.ledger.free(device) >= need
        {
            self.accept(artefact, device, need, Vec::new());
            return Outcome::Promised;
        }
        if !evict {
            self.refuse_without_eviction(artefact, need);
            return Outcome::Ended;
        }
        let is_wanted = self.is_wanted(artefact);
        for device in &devices {
            let missing = need.saturating_sub(self.ledger.free(*device));
            if let Some(victims) = self.victims(*device, &[artefact], missing, is_wanted) {
                self.accept(artefact, *device, need, victims);
                return Outcome::Promised;
            }
        }
        if is_wanted
            && devices.iter().any(|device| self.take_back_unwanted(artefact, *device, need))
        {
            return self.promise(artefact);
        }
        Outcome::Blocked(self.obstacle(artefact, need))
    }

    /// Takes back promises of loads that nobody waits for, if that makes room. Their
    /// fetches go on.
    fn take_back_unwanted(&mut self, artefact: &ArtefactId, device: DeviceId, need: Bytes) -> bool {
        // Promises are few where loads that wait for room are many: only those are ordered.
        let mut unwanted: Vec<(u64, &ArtefactId)> = self
            .jobs
            .iter()
            .filter(|(_, job)| matches!(job.room, Room::Promised { device: d } if d == device))
            .filter(|(other, _)| !self.is_wanted(other))
            .map(|(other, job)| (job.sequence, other))
            .collect();
        unwanted.sort_unstable();
        let order: Vec<ArtefactId> = unwanted.into_iter().map(|(_, other)| other.clone()).collect();
        let mut free = self.ledger.free(device);
        let mut claims = vec![artefact];
        for other in order.iter().rev() {
            free += self.ledger.promised(device, other);
            claims.push(other);
            let missing = need.saturating_sub(free);
            if self.victims(device, &claims, missing, true).is_some() {
                let given: Vec<ArtefactId> = claims[1..].iter().map(|c| (*c).clone()).collect();
                given.iter().for_each(|other| self.take_back(other));
                return true;
            }
        }
        false
    }

    fn refuse_without_eviction(&mut self, artefact: &ArtefactId, need: Bytes) {
        let free = self.ledger.devices().map(|device| self.ledger.free(device)).max();
        let (model, free) = (artefact.model.clone(), free.unwrap_or_default());
        let failure = Error::NoRoomNow { model, need, free }.into();
        self.end_job(artefact);
        // Not remembered: whoever asked makes room and asks again.
        self.refuse_job(artefact, &failure);
    }

    fn obstacle(&self, artefact: &ArtefactId, need: Bytes) -> Obstacle {
        let is_open = |device: &DeviceId| {
            let kept = self.residents.keys().filter(|key| {
                key.device == *device
                    && key.artefact.model != artefact.model
                    && self.is_kept(&key.artefact.model)
            });
            let kept = self.ledger.freed_by(*device, kept.map(|key| &key.artefact));
            need <= self.ledger.budget(*device).saturating_sub(kept)
        };
        let mut open = self.ledger.devices().filter(is_open).peekable();
        if open.peek().is_none() {
            Obstacle::Kept
        } else if open.all(|device| self.ledger.over(device) > Bytes::ZERO) {
            Obstacle::OverBudget
        } else {
            Obstacle::InUse
        }
    }

    fn note_obstacle(&mut self, artefact: &ArtefactId, by: Obstacle) {
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        if job.obstacle.replace(by) != Some(by) {
            let bytes = need(job);
            self.decide(Decided::of(artefact, None, Action::Blocked { bytes, by }));
        }
    }

    fn accept(&mut self, artefact: &ArtefactId, device: DeviceId, need: Bytes, victims: Vec<Key>) {
        let free = self.ledger.free(device).min(need);
        self.ledger.promise(device, artefact, free);
        for key in &victims {
            self.claim(key, artefact);
        }
        if let Some(job) = self.jobs.get_mut(artefact) {
            job.room = Room::Promised { device };
            job.obstacle = None;
        }
        let victims = victims.into_iter().map(|key| key.artefact).collect();
        let action = Action::Promised { bytes: need, victims };
        self.decide(Decided::of(artefact, Some(device), action));
        self.review(artefact, device);
    }

    /// Holds a promise against the present: takes what has come free, chooses the victims
    /// anew (colder ones, none that is kept by now), and drains them once the files are on
    /// disk. A promise that is no longer covered is taken back.
    fn review(&mut self, artefact: &ArtefactId, device: DeviceId) {
        let Some(job) = self.jobs.get(artefact) else {
            return;
        };
        let is_whole = job.is_whole();
        let missing = need(job).saturating_sub(self.ledger.promised(device, artefact));
        let free = self.ledger.free(device).min(missing);
        if free > Bytes::ZERO {
            self.ledger.promise(device, artefact, free);
        }
        let missing = missing.saturating_sub(free);
        let is_wanted = self.is_wanted(artefact);
        let Some(victims) = self.victims(device, &[artefact], missing, is_wanted) else {
            self.take_back(artefact);
            return;
        };
        for key in self.claimed(artefact) {
            if !victims.contains(&key) {
                self.unclaim(&key);
            }
        }
        for key in &victims {
            self.claim(key, artefact);
            if is_whole {
                self.drain(key, Departure::Evicted, Some(artefact));
            }
        }
    }

    /// Ends a promise, not the load: it looks for room again.
    pub(super) fn take_back(&mut self, artefact: &ArtefactId) {
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        let Room::Promised { device } = job.room else {
            return;
        };
        job.room = Room::Wanted;
        self.ledger.withdraw(device, artefact);
        self.unclaim_all(artefact);
        self.decide(Decided::of(artefact, Some(device), Action::Withdrawn));
        // What it gave back may serve another load.
        self.touched.push(artefact.model.clone());
    }

    /// Bytes of a victim came free: they go to the load they were promised to.
    pub(super) fn top_up(&mut self, artefact: &ArtefactId, freed: Bytes) {
        let Some(job) = self.jobs.get(artefact) else {
            return;
        };
        let Room::Promised { device } = job.room else {
            return;
        };
        let missing = need(job).saturating_sub(self.ledger.promised(device, artefact));
        let bytes = missing.min(freed).min(self.ledger.free(device));
        self.ledger.promise(device, artefact, bytes);
    }

    fn start_fetch(&mut self, artefact: &ArtefactId) {
        let running = self.jobs.values().filter(|job| {
            matches!(job.fetch, Fetch::Running { .. }) && job.fetch_bytes > Bytes::ZERO
        });
        let is_slot_free = running.count() < self.config.max_fetches;
        let now = self.now;
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        let bytes = job.fetch_bytes;
        if !matches!(job.fetch, Fetch::Queued) || (bytes > Bytes::ZERO && !is_slot_free) {
            return;
        }
        job.fetch = Fetch::Running { since: now };
        self.effects.push(Effect::Fetch { artefact: artefact.clone() });
        if bytes > Bytes::ZERO {
            self.decide(Decided::of(artefact, None, Action::Fetching { bytes }));
        }
    }

    fn start_load(&mut self, artefact: &ArtefactId) {
        let is_handler = |job: &Job| job.kind == Some(ModelKind::Handler);
        let Some(job) = self.jobs.get(artefact) else {
            return;
        };
        // Whole files have told their kind, and only those are loaded.
        let kin = is_handler(job);
        let slots = if kin { self.config.max_handler_loads } else { self.config.max_loads };
        let loading =
            self.jobs.values().filter(|job| job.is_loading() && is_handler(job) == kin).count();
        let since = self.now;
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        let Room::Promised { device } = job.room else {
            return;
        };
        let is_covered = self.ledger.promised(device, artefact) >= need(job);
        if !job.is_whole() || !is_covered || loading >= slots {
            return;
        }
        job.room = Room::Loading { device, since };
        let key = Key { artefact: artefact.clone(), device };
        self.effects.push(Effect::Load { key });
        self.decide(Decided::of(artefact, Some(device), Action::Loading));
    }

    /// Where more is charged and promised than the budget allows: promises of loads that
    /// have not begun are taken back, then residents leave, idle ones first.
    pub(super) fn rebalance(&mut self) {
        for device in self.ledger.devices() {
            if self.ledger.over(device) > Bytes::ZERO {
                for artefact in self.jobs_in_order().iter().rev() {
                    let is_here = self.jobs.get(artefact).and_then(Job::device) == Some(device);
                    if is_here && self.ledger.over(device) > Bytes::ZERO {
                        self.take_back(artefact);
                    }
                }
            }
            let over = self.ledger.over(device);
            if over == Bytes::ZERO {
                self.revive_shrunk(device);
                continue;
            }
            for key in self.overboard(device, over) {
                self.drain(&key, Departure::Shrunk, None);
            }
        }
    }

    fn revive_shrunk(&mut self, device: DeviceId) {
        let shrunk = State::Draining(Departure::Shrunk);
        let keys: Vec<Key> = self
            .residents
            .iter()
            .filter(|(key, resident)| key.device == device && resident.state == shrunk)
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.revive(&key);
        }
    }
}

/// What a load takes on its device, as far as it is known.
pub(super) fn need(job: &Job) -> Bytes {
    job.footprint.map(|footprint| footprint.total()).unwrap_or_default()
}
