//! Loads under way: what fetches and loads bring, and how they end.

use std::time::Duration;

use roundhouse_types::{ArtefactId, Bytes, Failure, ModelId, Tier};

use super::Table;
use super::event::{Effect, Key};
use super::residents::Listed;
use super::sharing::with_shared;
use super::state::{Arrival, Broken, Fetch, Job, Purpose, Resident, Room, State, Trouble};
use crate::decision::{Action, Decided, Departure, Stage};
use crate::error::Error;
use crate::loader::{Fetched, HostCopy, Loaded};

impl Table {
    pub(super) fn progressed(&mut self, artefact: &ArtefactId, bytes: Bytes) {
        if let Some(job) = self.jobs.get_mut(artefact) {
            job.fetched_bytes = bytes;
        }
    }

    pub(super) fn fetch_ended(&mut self, artefact: &ArtefactId, result: Result<Fetched, Failure>) {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        let Fetch::Running { since } = job.fetch else {
            return;
        };
        if job.arriving {
            return self.arrived(artefact, result);
        }
        // What no later fetch takes says nothing of this one's pace, nor of what a reload costs.
        let once = result.as_ref().map_or(Duration::ZERO, |fetched| fetched.once);
        let since = (since + once).min(now);
        job.fetch = Fetch::Whole { since, until: now };
        match result {
            Ok(fetched) => {
                job.fetched_bytes = job.fetch_bytes;
                job.kind = Some(fetched.kind);
                job.off_cards = fetched.off_cards;
                let bytes = job.fetch_bytes;
                let is_foreseen =
                    job.footprint.is_none_or(|f| f.total() == fetched.footprint.total())
                        && job.shared == fetched.shared;
                let mut devices = job.kin().among(self.ledger.devices());
                let may_stay = job.device().is_none_or(|on| devices.any(|device| device == on));
                job.footprint = Some(fetched.footprint);
                job.shared = fetched.shared;
                if job.paced_for.is_none() {
                    self.rates.fetched(bytes, now.saturating_duration_since(since));
                }
                self.decide(Decided::of(artefact, None, Action::Fetched));
                self.base_known(artefact, fetched.base);
                // What was promised by a header that turned out otherwise is promised anew.
                if !is_foreseen || !may_stay {
                    self.take_back(artefact);
                }
            }
            Err(failure) => self.fail(artefact, &failure, Stage::Fetch),
        }
    }

    pub(super) fn load_ended(&mut self, key: &Key, result: Result<Loaded<()>, Failure>) {
        let artefact = &key.artefact;
        let Some(job) = self.jobs.get(artefact) else {
            return;
        };
        let Room::Loading { device, since } = job.room else {
            return;
        };
        debug_assert_eq!(device, key.device, "{artefact} was to load there");
        match result {
            Ok(loaded) => {
                self.arrived_unheard(artefact);
                let brought = self.need(artefact, device);
                let mut job = self.end_job(artefact).expect("it was there");
                // One that waited for its files tells nothing of how fast a load is.
                if !job.arriving {
                    let took =
                        self.now.saturating_duration_since(since).saturating_sub(loaded.once);
                    self.rates.loaded(job.from_copy, brought, took);
                }
                if let Some(Broken::Failed(failure)) = job.broken.take().filter(|_| !job.late) {
                    job.died.get_or_insert(failure);
                }
                self.settle_resident(key, &job, loaded);
                self.cover_promises(device);
                match job.died.as_ref().filter(|_| !self.stopping) {
                    None => self.begin_service(key, &job),
                    Some(failure) => self.stillborn(key, failure),
                }
            }
            Err(failure) => {
                if job.from_copy {
                    // The next attempt is made from the files.
                    self.discard(artefact, Departure::Failed);
                }
                self.load_failed(key, &failure);
            }
        }
    }

    /// The promise becomes the measured charge.
    fn settle_resident(&mut self, key: &Key, job: &Job, loaded: Loaded<()>) {
        let Loaded { footprint, shared, once, idle_ttl, .. } = loaded;
        let footprint = with_shared(footprint, &shared);
        let holdings = self.ledger.holdings(&footprint, &shared);
        self.ledger.charge(key.device, &key.artefact, holdings);
        let (now, sequence) = (self.now, self.next_sequence());
        let fetch = match job.fetch {
            Fetch::Whole { since, until } => (since, until),
            Fetch::Queued | Fetch::Running { .. } => (now, now),
        };
        let load_began = match job.room {
            // Where the two overlap, what comes after the fetch counts.
            Room::Loading { since, .. } if job.arriving => since.max(fetch.1),
            Room::Loading { since, .. } => since,
            Room::Wanted | Room::Promised { .. } => now,
        };
        let tier = match job.fetch_bytes {
            _ if job.from_copy => Tier::Host,
            Bytes::ZERO => Tier::Disk,
            _ => Tier::Store,
        };
        let resident = Resident {
            kind: job.kind.expect("every fetch tells the kind, and every copy knows it"),
            off_cards: job.off_cards,
            base: job.onto.clone(),
            footprint,
            shared,
            state: State::Ready,
            pool: None,
            leases: 0,
            last_used: now,
            used_sequence: sequence,
            worth: 0.0,
            ready_at: now,
            ready_sequence: sequence,
            demotes: false,
            claimed_by: None,
            arrival: Arrival { tier, fetch, load: (load_began, now) },
            idle_ttl,
            listed: Listed::default(),
        };
        let arrival = resident.arrival;
        self.residents.insert(key.clone(), resident);
        let is_kept = self.is_kept(&key.artefact.model);
        if let Some(base) = self.base_of(key) {
            self.bases.came(&base, &key.artefact, is_kept);
        }
        let entry = self.model_mut(&key.artefact.model);
        entry.asked = false;
        entry.residents.push(key.clone());
        if self.devices_of(&key.artefact) > 1 {
            self.residents.note_several(&key.artefact, true);
        }
        self.own_idle = self.own_idle.into_iter().chain(idle_ttl).min();
        if is_kept || idle_ttl.is_some() {
            // The one that was held may have been unused for long, and this one may leave sooner
            // than any.
            self.idle_from = None;
        }
        let fetched = arrival.fetch.1.saturating_duration_since(arrival.fetch.0).as_secs_f64();
        let fetch = self.unpaced_seconds(job, fetched);
        self.learn_reload(&key.artefact.model, arrival, fetch, once);
        self.used(key);
        self.touched.push(key.artefact.model.clone());
    }

    /// The loaded model serves from now on, and older versions of it leave.
    fn begin_service(&mut self, key: &Key, job: &Job) {
        if let Some(serving) = self.overtaken_by(key) {
            return self.retire(key, &serving);
        }
        let before = self.ready_but(key);
        let is_replica = self.has_twin(key);
        let model = &key.artefact.model;
        let entry = self.model_mut(model);
        // Beside one that serves it says nothing about a version that failed.
        let of_another =
            |trouble: &Trouble| trouble.version.as_ref() != Some(&key.artefact.version);
        if !(is_replica && entry.trouble.as_ref().is_some_and(of_another)) {
            entry.trouble = None;
        }
        self.fit_again(model, Some(&key.artefact.version));
        let entry = self.model_mut(model);
        let is_older = |other: &&Key| other.artefact != key.artefact;
        let older: Vec<Key> = entry.residents.iter().filter(is_older).cloned().collect();
        let bytes = self.residents.get(key).map(|resident| resident.footprint.total());
        let bytes = bytes.unwrap_or_default();
        self.decide(Decided::of(&key.artefact, Some(key.device), Action::Ready { bytes }));
        if let Some(before) = before {
            self.switched(key, before);
        }
        for old in older {
            self.drain(&old, Departure::Superseded, None);
        }
        self.discard_for_others(model);
        self.replicated(model);
        self.answer_aimed(key);
        if self.stopping {
            self.drain(key, Departure::Shutdown, None);
        } else if !self.may_serve(key) {
            self.drain(key, Departure::Base, None);
        } else if job.discard && !self.is_sought(model) {
            self.drain(key, Departure::Requested, None);
        }
    }

    /// The model was loaded and died before anybody could use it: it takes nothing over
    /// from an older version that serves, and is unloaded.
    fn stillborn(&mut self, key: &Key, failure: &Failure) {
        self.died(key, failure);
        self.refuse_aimed(&key.artefact, failure);
    }

    /// Tells operators that the version their refresh found serves now.
    fn answer_aimed(&mut self, key: &Key) {
        let version = &key.artefact.version;
        let refreshers = self.models.peek(&key.artefact.model).map(|m| m.refreshers.clone());
        for id in refreshers.into_iter().flatten() {
            let purpose = self.waiters.get(id).map(|waiter| &waiter.purpose);
            if matches!(purpose, Some(Purpose::Refresh { aimed: Some(aimed), .. }) if aimed == version)
            {
                self.report_refreshed(id, version, true);
            }
        }
    }

    /// The device has its memory back; what a load was promised of it passes to that load.
    pub(super) fn unloaded(&mut self, key: &Key, copy: Option<HostCopy>) {
        let Some(resident) = self.residents.get(key) else {
            return;
        };
        debug_assert_eq!(resident.state, State::Unloading, "{} was to be unloaded", key.artefact);
        debug_assert_eq!(resident.leases, 0, "invariant 2: {} is leased", key.artefact);
        let claim = resident.claimed_by.clone();
        let base = self.base_of(key);
        let bytes = self.ledger.discharge(key.device, &key.artefact);
        let resident = self.residents.remove(key);
        self.pool_left(key, resident.as_ref());
        if let Some(claim) = claim {
            self.top_up(&claim, bytes);
        }
        self.decide(Decided::of(&key.artefact, Some(key.device), Action::Unloaded { bytes }));
        if let Some(entry) = self.models.peek_mut(&key.artefact.model) {
            entry.residents.retain(|other| other != key);
        }
        if self.devices_of(&key.artefact) < 2 {
            self.residents.note_several(&key.artefact, false);
        }
        if resident.is_some_and(|resident| resident.demotes) {
            self.demoted(&key.artefact, copy);
        }
        if let Some(base) = base {
            self.used_until_now(&base);
            self.bases.left(base, &key.artefact, self.is_kept(&key.artefact.model));
        }
        self.gone(key);
        self.ask_again(&key.artefact);
        self.touched.push(key.artefact.model.clone());
    }

    /// Ends a load with a failure, which every waiter is told and which is remembered.
    pub(super) fn fail(&mut self, artefact: &ArtefactId, failure: &Failure, stage: Stage) {
        if self.end_job(artefact).is_none() {
            return;
        }
        let model = &artefact.model;
        if self.stopping {
            return;
        }
        if self.is_past(artefact) {
            self.decide_failed(model, Some(&artefact.version), failure, stage, Duration::ZERO);
        } else if !self.replica_failed(artefact, failure, stage) {
            self.trouble(model, Some(&artefact.version), failure, false, stage);
        }
        self.refuse_job(artefact, failure);
    }

    /// Answers those who waited for a load that is over.
    pub(super) fn refuse_job(&mut self, artefact: &ArtefactId, failure: &Failure) {
        self.refuse_aimed(artefact, failure);
        self.refuse_unserved(&artefact.model, failure);
    }

    /// Answers the operators whose refresh waits for this version.
    fn refuse_aimed(&mut self, artefact: &ArtefactId, failure: &Failure) {
        let refreshers = self.models.peek(&artefact.model).map(|entry| entry.refreshers.clone());
        for id in refreshers.into_iter().flatten() {
            let purpose = self.waiters.get(id).map(|waiter| &waiter.purpose);
            if matches!(purpose, Some(Purpose::Refresh { aimed: Some(aimed), .. }) if *aimed == artefact.version)
            {
                self.refuse(id, failure);
            }
        }
    }

    /// Answers those who wait for a model that neither serves nor is being loaded.
    pub(super) fn refuse_unserved(&mut self, model: &ModelId, failure: &Failure) {
        let others = self.models.peek(model).is_some_and(|entry| !entry.jobs.is_empty());
        if !others && self.ready(model).is_none() {
            self.refuse_waiters(model, failure);
        }
    }

    /// Gives up a load that is not on its way to the device yet.
    pub(super) fn abandon(&mut self, artefact: &ArtefactId) {
        debug_assert!(
            !self.jobs.get(artefact).is_some_and(Job::is_loading),
            "loads run to their end"
        );
        self.abandoned(artefact);
    }

    /// Takes a load off the table that was given up.
    pub(super) fn abandoned(&mut self, artefact: &ArtefactId) {
        if self.end_job(artefact).is_some() {
            self.decide(Decided::of(artefact, None, Action::Abandoned));
        }
    }

    /// Takes a load off the table: its promise is free again, its victims may stay.
    pub(super) fn end_job(&mut self, artefact: &ArtefactId) -> Option<Job> {
        let job = self.jobs.remove(artefact)?;
        if job.from_copy {
            self.release_copy(artefact);
        }
        if let Some(device) = job.device() {
            self.ledger.withdraw(device, artefact);
            self.unclaim_all(artefact);
            if let Some(onto) = job.onto.clone() {
                self.step_off(artefact, onto, device);
            }
        }
        if let Some(base) = &job.base {
            self.awaits_no_more(artefact, base);
        }
        if matches!(job.fetch, Fetch::Running { .. }) {
            self.effects.push(Effect::AbandonFetch { artefact: artefact.clone() });
        }
        if let Some(entry) = self.models.peek_mut(&artefact.model) {
            entry.jobs.retain(|other| other != artefact);
        }
        self.touched.push(artefact.model.clone());
        Some(job)
    }

    /// A load took longer than the load timeout.
    pub(super) fn load_timed_out(&mut self, artefact: &ArtefactId) {
        let model: &ModelId = &artefact.model;
        let (progress, _) = self.progress(model);
        let limit = self.config.load_timeout;
        let failure: Failure = Error::LoadTimedOut { model: model.clone(), progress, limit }.into();
        if !self.is_past(artefact) {
            // Also where nobody waits for it and it is given up in silence.
            self.failed_beside(model, Some(&artefact.version), &failure);
        }
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        let is_whole = job.is_whole();
        if job.is_arriving() {
            job.late = true;
            let why = self.is_wanted(artefact).then(|| failure.clone());
            self.stop(artefact, why);
            return self.refuse_late(artefact, &failure);
        }
        if job.is_loading() {
            // Its memory is in the loader's hands until it answers.
            job.late = true;
            return self.refuse_late(artefact, &failure);
        }
        if !self.is_wanted(artefact) {
            return self.abandon(artefact);
        }
        let stage = if is_whole { Stage::Room } else { Stage::Fetch };
        self.fail(artefact, &failure, stage);
    }

    /// Answers those who waited for a load that is late and goes on, unless another version
    /// is on its way to them.
    fn refuse_late(&mut self, artefact: &ArtefactId, failure: &Failure) {
        self.refuse_job(artefact, failure);
        let jobs = self.models.peek(&artefact.model).into_iter().flat_map(|entry| &entry.jobs);
        let mut jobs = jobs.filter_map(|id| self.jobs.get(id));
        if self.ready(&artefact.model).is_none() && jobs.all(|job| job.late) {
            self.refuse_waiters(&artefact.model, failure);
        }
    }
}
