//! Room: who is promised it, who starts, and what happens when the budget shrinks.

use roundhouse_types::{ArtefactId, Bytes, DeviceId, Failure};

use super::Table;
use super::event::{Effect, Key};
use super::order::Underway;
use super::sharing::whole;
use super::state::{Fetch, Job, Kin, Room, State};
use crate::config::tenant;
use crate::decision::{Action, Decided, Departure, Obstacle, Stage};
use crate::error::Error;
use crate::loader::LoadSource;

/// How often a load's promise may be taken back within one event before it stays without.
const WITHDRAWN_AT_MOST: u32 = 3;

/// What one walk over the loads has seen so far.
struct Walk {
    underway: Underway,
    /// The effects that were seen before or give nothing.
    seen: usize,
    /// Loads that wait for room, and whether it will come, where that was asked.
    blocked: Vec<(ArtefactId, Option<bool>)>,
    /// The least that could not be promised since something was last given, to handlers or
    /// other models, and why.
    least: Option<(Kin, Bytes, Obstacle)>,
    /// Whether a load with whole files waits for its turn.
    is_held_back: bool,
}

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
        self.give_up_replicas();
        self.refuse_misfits();
        let underway = self.underway();
        let seen = self.effects.len();
        let (blocked, least) = (Vec::new(), None);
        let mut walk = Walk { underway, seen, blocked, least, is_held_back: false };
        for artefact in self.jobs_in_order() {
            let Some(job) = self.jobs.get(&artefact) else {
                continue;
            };
            // Whatever is given shows as an effect.
            if std::mem::replace(&mut walk.seen, self.effects.len()) != self.effects.len() {
                (walk.underway, walk.least) = (self.underway(), None);
            }
            match job.room {
                Room::Wanted if job.footprint.is_some() => {
                    self.look_for_room(&artefact, &mut walk);
                }
                Room::Promised { device } => self.review(&artefact, device),
                Room::Wanted | Room::Loading { .. } => {}
            }
            self.start_fetch(&artefact, &walk.underway);
            self.start_load(&artefact);
        }
    }

    fn look_for_room(&mut self, artefact: &ArtefactId, walk: &mut Walk) {
        let Some(job) = self.jobs.get(artefact) else {
            return;
        };
        if let Some(failure) = self.never_fits(artefact, whole(job)) {
            return self.fail(artefact, &failure, Stage::Room);
        }
        if self.lacks_ground(job) {
            if let Some(job) = self.jobs.get_mut(artefact) {
                job.obstacle = Some(Obstacle::Base);
            }
            return;
        }
        let is_wanted = self.is_wanted(artefact);
        // Two loads that undo each other's promises: one of them looks again at the next event.
        if job.withdrawn.0 == self.events && job.withdrawn.1 >= WITHDRAWN_AT_MOST {
            return;
        }
        if !self.has_turn(artefact, job, &walk.underway) {
            walk.is_held_back |= job.is_whole() && is_wanted;
            return;
        }
        // A fetch takes nobody's room before a load that could use it sooner.
        if walk.is_held_back && job.evict && !job.is_whole() && !self.fits_free(artefact) {
            return;
        }
        let must_wait = job.evict && self.is_held_up(walk);
        let (kin, bytes) = (job.kin(), whole(job));
        let is_plain = job.evict && self.is_plain(artefact, job);
        let known =
            walk.least.filter(|(other, least, _)| is_plain && *other == kin && bytes >= *least);
        let outcome = match known {
            _ if must_wait => Outcome::Blocked(Obstacle::InUse),
            Some((_, _, obstacle)) => Outcome::Blocked(obstacle),
            None => self.promise(artefact, walk.underway.waiting),
        };
        let Outcome::Blocked(obstacle) = outcome else {
            return;
        };
        let before = self.effects.len();
        self.note_obstacle(artefact, obstacle);
        walk.seen += self.effects.len() - before;
        // What only an operator can clear holds nobody else up.
        let is_first = matches!(obstacle, Obstacle::Pools | Obstacle::InUse | Obstacle::OverBudget);
        if is_first && is_wanted {
            walk.blocked.push((artefact.clone(), known.map(|_| true)));
        }
        if is_plain && known.is_none() && !must_wait {
            walk.least = Some((kin, bytes, obstacle));
        }
    }

    /// Whether a load before was passed by often enough, and its room will come: a look over all
    /// residents, so it is asked of few, and once in a walk.
    fn is_held_up(&self, walk: &mut Walk) -> bool {
        let bound = self.config.collation.overtaken_at_most;
        walk.blocked.iter_mut().any(|(first, comes)| {
            self.jobs.get(first).is_some_and(|job| job.overtaken >= bound)
                && *comes.get_or_insert_with(|| self.could_come(first))
        })
    }

    /// Whether what a load can be promised depends on its size alone.
    fn is_plain(&self, artefact: &ArtefactId, job: &Job) -> bool {
        let has_residents =
            self.models.peek(&artefact.model).is_none_or(|entry| !entry.residents.is_empty());
        let is_alone = job.base.is_none() && !self.bases.is_awaited(&artefact.model);
        is_alone && self.config.tenants.is_empty() && job.shared.is_empty() && !has_residents
    }

    /// Why no room will ever do, where that is so.
    pub(super) fn never_fits(&self, artefact: &ArtefactId, need: Bytes) -> Option<Failure> {
        let model = artefact.model.clone();
        let may_take: Vec<DeviceId> = self.devices_for(self.kin(artefact)).collect();
        let devices = self.ledger.budgets().filter(|(device, _, _)| may_take.contains(device));
        let devices: Vec<(DeviceId, Bytes, Bytes)> = devices.collect();
        if devices.iter().all(|(_, _, most)| need > *most) {
            let devices = devices.into_iter().map(|(device, _, most)| (device, most)).collect();
            return Some(Error::TooLarge { model, need, devices }.into());
        }
        if devices.iter().all(|(_, budget, _)| need > *budget) {
            return Some(Error::Lowered { model, need, devices }.into());
        }
        let ceiling = self.ceiling(&model).filter(|ceiling| need > *ceiling)?;
        let tenant = tenant(&model).to_owned();
        Some(Error::AboveCeiling { model, need, tenant, ceiling }.into())
    }

    pub(super) fn kin(&self, artefact: &ArtefactId) -> Kin {
        self.jobs.get(artefact).map_or(Kin::Any, Job::kin)
    }

    /// Promises a load its whole footprint, what is free at once and the rest by victims,
    /// or nothing at all. `waiting`: loads that wait for requests to end.
    fn promise(&mut self, artefact: &ArtefactId, waiting: usize) -> Outcome {
        self.residents.list();
        let Some(job) = self.jobs.get(artefact) else {
            return Outcome::Ended;
        };
        let evict = job.evict;
        if self.is_replica(artefact, job) {
            return match self.place_replica(artefact) {
                Some((device, victims)) => {
                    self.accept(artefact, device, victims);
                    Outcome::Promised
                }
                None => {
                    self.give_up_replica(artefact);
                    Outcome::Ended
                }
            };
        }
        let is_wanted = self.is_wanted(artefact);
        // As many as can load at once may wait for leases to end; more would only take
        // residents out of service early.
        let may_wait = is_wanted && waiting < self.load_slots(job);
        let devices = self.hosts_beside(artefact, may_wait);
        let is_below_ceiling = self.above_ceiling(&[artefact]) == Bytes::ZERO;
        if let Some(device) = devices.first().copied()
            && self.ledger.free(device) >= self.need(artefact, device)
            && is_below_ceiling
        {
            self.accept(artefact, device, Vec::new());
            return Outcome::Promised;
        }
        // Before anybody leaves or is refused, what is free in others' KV pools comes back; unless
        // it would do no good.
        let is_helped = || {
            let stuck = [Obstacle::Ceiling, Obstacle::Floors, Obstacle::Kept];
            is_wanted && !stuck.contains(&self.obstacle(artefact))
        };
        if devices.iter().any(|device| self.awaits_pools(*device)) && is_helped() {
            return Outcome::Blocked(Obstacle::Pools);
        }
        if !evict {
            self.refuse_without_eviction(artefact);
            return Outcome::Ended;
        }
        // What nobody waits for goes before those that are in use.
        if may_wait && self.jobs.values().any(|job| job.arriving) {
            if let Some((device, victims)) = self.cheapest(artefact, &devices, false, |_, _| true) {
                self.accept(artefact, device, victims);
                return Outcome::Promised;
            }
            if devices.iter().any(|device| self.stop_unwanted(artefact, *device, false)) {
                return Outcome::Blocked(self.obstacle(artefact));
            }
        }
        if let Some((device, victims)) = self.cheapest(artefact, &devices, may_wait, |_, _| true) {
            self.accept(artefact, device, victims);
            return Outcome::Promised;
        }
        if may_wait && devices.iter().any(|device| self.take_back_unwanted(artefact, *device)) {
            let outcome = self.promise(artefact, waiting);
            // What it held meanwhile on a device that was not chosen after all.
            let chosen = self.jobs.get(artefact).and_then(Job::device);
            for device in self.ledger.devices().filter(|device| Some(*device) != chosen) {
                self.ledger.withdraw(device, artefact);
            }
            return outcome;
        }
        if may_wait {
            // Its room comes later, and is looked for again then.
            let _ = devices.iter().any(|device| self.stop_unwanted(artefact, *device, true));
        }
        Outcome::Blocked(self.obstacle(artefact))
    }

    /// Takes back promises of loads that nobody waits for, if that makes room. Their
    /// fetches go on.
    fn take_back_unwanted(&mut self, artefact: &ArtefactId, device: DeviceId) -> bool {
        // Held from here on, so that it does not leave with a promise that is taken back.
        self.count_on_shared(artefact, device);
        let need = self.need(artefact, device);
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
        self.ledger.withdraw(device, artefact);
        false
    }

    fn refuse_without_eviction(&mut self, artefact: &ArtefactId) {
        let need = self.least_need(artefact);
        let devices = self.devices_for(self.kin(artefact));
        let free = devices.map(|device| self.ledger.free(device)).max();
        let free =
            free.unwrap_or_default().min(need.saturating_sub(self.above_ceiling(&[artefact])));
        let model = artefact.model.clone();
        let failure = Error::NoRoomNow { model, need, free }.into();
        self.end_job(artefact);
        // Not remembered: whoever asked makes room and asks again.
        self.refuse_job(artefact, &failure);
    }

    fn accept(&mut self, artefact: &ArtefactId, device: DeviceId, victims: Vec<Key>) {
        self.count_on_shared(artefact, device);
        if let Some(job) = self.jobs.get_mut(artefact) {
            job.room = Room::Promised { device };
            job.obstacle = None;
        }
        self.stand_on(artefact, device);
        let need = self.need(artefact, device);
        let free = self.ledger.free(device).min(need);
        self.ledger.promise(device, artefact, free);
        for key in &victims {
            self.claim(key, artefact);
        }
        let victims = victims.into_iter().map(|key| key.artefact).collect();
        let action = Action::Promised { bytes: need, victims };
        self.decide(Decided::of(artefact, Some(device), action));
        self.review(artefact, device);
    }

    /// Holds a promise against the present: takes what has come free, chooses the victims
    /// anew (colder ones, none that is kept by now), and drains them once the files are on
    /// disk and the load could begin. A promise that is no longer covered is taken back.
    fn review(&mut self, artefact: &ArtefactId, device: DeviceId) {
        let Some(job) = self.jobs.get(artefact) else {
            return;
        };
        // A replica is no reason to go above a ceiling, nor that others leave because of one.
        let is_beyond =
            self.is_replica(artefact, job) && self.above_ceiling(&[artefact]) > Bytes::ZERO;
        if is_beyond || !self.has_ground(artefact) {
            return self.take_back(artefact);
        }
        let may_begin = job.is_whole() && self.is_load_slot_free(job) && self.is_grounded(job);
        self.count_on_more(artefact, device);
        let need = self.need(artefact, device);
        let missing = need.saturating_sub(self.ledger.promised(device, artefact));
        let free = self.ledger.free(device).min(missing);
        if free > Bytes::ZERO {
            self.ledger.promise(device, artefact, free);
        }
        let missing = missing.saturating_sub(free);
        let is_wanted = self.is_wanted(artefact);
        self.residents.list();
        let victims = self.victims(device, &[artefact], missing, is_wanted);
        let Some(victims) = victims.filter(|victims| self.may_leave_for(artefact, victims)) else {
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
            if may_begin {
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
        let onto = job.onto.take();
        let before = if job.withdrawn.0 == self.events { job.withdrawn.1 } else { 0 };
        job.withdrawn = (self.events, before + 1);
        self.ledger.withdraw(device, artefact);
        self.unclaim_all(artefact);
        if let Some(onto) = onto {
            self.step_off(artefact, onto, device);
        }
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
        let need = self.need(artefact, device);
        let missing = need.saturating_sub(self.ledger.promised(device, artefact));
        let bytes = missing.min(freed).min(self.ledger.free(device));
        self.ledger.promise(device, artefact, bytes);
    }

    fn start_fetch(&mut self, artefact: &ArtefactId, underway: &Underway) {
        let Some(job) = self.jobs.get(artefact) else {
            return;
        };
        let bytes = job.fetch_bytes;
        if !matches!(job.fetch, Fetch::Queued) {
            return;
        }
        if bytes > Bytes::ZERO && !self.may_fetch(artefact, job, underway) {
            return self.note_bandwidth(artefact);
        }
        let (since, payer) = (self.now, self.charge_fetch(artefact));
        if let Some(job) = self.jobs.get_mut(artefact) {
            job.fetch = Fetch::Running { since };
        }
        self.effects.push(Effect::Fetch { artefact: artefact.clone(), payer });
        if bytes > Bytes::ZERO {
            self.decide(Decided::of(artefact, None, Action::Fetching { bytes }));
        }
    }

    fn start_load(&mut self, artefact: &ArtefactId) {
        let Some(job) = self.jobs.get(artefact) else {
            return;
        };
        let Room::Promised { device } = job.room else {
            return;
        };
        let is_covered = self.ledger.promised(device, artefact) >= self.need(artefact, device);
        let may_begin = is_covered && self.is_grounded(job);
        let Some(source) = self.source(artefact, job).filter(|_| may_begin) else {
            return;
        };
        let base = job.onto.clone();
        let since = self.now;
        if let Some(job) = self.jobs.get_mut(artefact) {
            job.room = Room::Loading { device, since };
            job.arriving = source == LoadSource::Arriving;
        }
        let key = Key { artefact: artefact.clone(), device };
        self.effects.push(Effect::Load { key, source, base });
        self.take_turn(artefact);
        let ahead_of = self.overtake(artefact);
        let requests = self.requests(artefact);
        let action = Action::Loading { from: source, requests, ahead_of };
        self.decide(Decided::of(artefact, Some(device), action));
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
            let over = self.stop_overboard(device, over);
            for key in self.overboard(device, over) {
                self.drain(&key, Departure::Shrunk, None);
                self.shrunk.insert(device);
            }
        }
    }

    fn revive_shrunk(&mut self, device: DeviceId) {
        // Each event asks; it is seldom that there are any.
        if !self.shrunk.remove(&device) {
            return;
        }
        let shrunk = State::Draining(Departure::Shrunk);
        let keys: Vec<Key> = self
            .residents
            .iter()
            .filter(|(key, resident)| key.device == device && resident.state == shrunk)
            .map(|(key, _)| key.clone())
            .collect();
        for key in self.bases_first(keys) {
            self.revive(&key);
        }
    }
}
