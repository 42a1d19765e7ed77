//! Loads that begin while their files are still coming, into room that is free.
//!
//! Such a load has the slot of its fetch, and none of the few for loads, until it ends. It ends
//! after its fetch, and fails with it. It can be stopped while its files are coming: the
//! fetch is abandoned, the load fails of that, and its room is free when it has.

use roundhouse_types::{ArtefactId, Bytes, DeviceId, Failure};

use super::Table;
use super::event::{Effect, Key};
use super::state::{Broken, Fetch, Job, Room};
use crate::decision::{Action, Decided, Stage};
use crate::error::Error;
use crate::loader::{Fetched, LoadSource};

impl Job {
    /// Whether it is on its way to the device while its files are on their way to disk.
    pub(super) fn is_arriving(&self) -> bool {
        self.arriving && matches!(self.fetch, Fetch::Running { .. })
    }

    /// Whether it was stopped and has not ended yet.
    fn is_stopping(&self) -> bool {
        self.arriving && self.broken.is_some()
    }
}

impl Table {
    /// What a load that has all its room can be loaded from now, if from anything.
    pub(super) fn source(&self, artefact: &ArtefactId, job: &Job) -> Option<LoadSource> {
        if job.is_whole() {
            let source = if job.from_copy { LoadSource::Host } else { LoadSource::Files };
            return self.is_load_slot_free(job).then_some(source);
        }
        let arrives = job.streams
            && job.base.is_none()
            && job.fetch_bytes > Bytes::ZERO
            && matches!(job.fetch, Fetch::Running { .. })
            // What it is tells which limits hold for it.
            && job.kind.is_some()
            && !job.starts_processes();
        // Where others leave for it, they do so late.
        (arrives && self.claimed(artefact).is_empty()).then_some(LoadSource::Arriving)
    }

    /// The fetch behind a load that has begun is over. What it was promised by the headers
    /// stays: the load goes by the same headers, and is measured when it ends.
    pub(super) fn arrived(&mut self, artefact: &ArtefactId, result: Result<Fetched, Failure>) {
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        let Fetch::Running { since } = job.fetch else {
            return;
        };
        job.fetch = Fetch::Whole { since, until: self.now };
        match result {
            Ok(fetched) => {
                job.kind = Some(fetched.kind);
                job.off_cards = fetched.off_cards;
                if let Some(base) = fetched.base {
                    // It is being loaded as what it is not.
                    let model = artefact.model.clone();
                    job.broken = Some(Broken::Failed(Error::LateBase { model, base }.into()));
                }
                self.note_arrived(artefact);
            }
            // Told when the load has ended, which it does now.
            Err(failure) => job.broken = Some(Broken::Failed(failure)),
        }
    }

    /// A load has ended well, so its fetch has too: the word of that is still on its way,
    /// and not needed any more.
    pub(super) fn arrived_unheard(&mut self, artefact: &ArtefactId) {
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        if let Fetch::Running { since } = job.fetch {
            job.fetch = Fetch::Whole { since, until: self.now };
            self.effects.push(Effect::AbandonFetch { artefact: artefact.clone() });
            self.note_arrived(artefact);
        }
    }

    fn note_arrived(&mut self, artefact: &ArtefactId) {
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        job.fetched_bytes = job.fetch_bytes;
        if let (Fetch::Whole { since, until }, None) = (job.fetch, &job.paced_for) {
            self.rates.fetched(job.fetch_bytes, until.saturating_duration_since(since));
        }
        self.decide(Decided::of(artefact, None, Action::Fetched));
    }

    /// Stops a load whose files are still coming. With a failure, that is told and remembered
    /// when it has ended; without, it was given up.
    pub(super) fn stop(&mut self, artefact: &ArtefactId, why: Option<Failure>) {
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        let Fetch::Running { since } = job.fetch else {
            return;
        };
        debug_assert!(job.arriving, "what is not on its way to the device is abandoned");
        job.fetch = Fetch::Whole { since, until: self.now };
        job.broken = Some(why.map_or(Broken::GivenUp, Broken::Failed));
        self.effects.push(Effect::AbandonFetch { artefact: artefact.clone() });
    }

    /// A load has ended with a failure: its own, or what broke it before.
    pub(super) fn load_failed(&mut self, key: &Key, failure: &Failure) {
        let artefact = &key.artefact;
        let broken = self.jobs.get_mut(artefact).and_then(|job| job.broken.take());
        match broken {
            None => self.fail(artefact, failure, Stage::Load),
            Some(Broken::Failed(first)) => self.fail(artefact, &first, Stage::Fetch),
            Some(Broken::GivenUp) => {
                if self.jobs.get(artefact).is_some_and(|job| job.replica) {
                    self.look_again_later(&artefact.model);
                }
                self.abandoned(artefact);
                // Who came while it was being stopped waits for a new load.
                self.ask_again(artefact);
            }
        }
        self.gone(key);
    }

    /// Stops loads that nobody waits for if that makes room for one that somebody waits for.
    /// Their room comes when they have ended. True where it will do, together with residents
    /// that may leave. Not `busy`: with idle ones alone, and nothing else that was promised.
    pub(super) fn stop_unwanted(
        &mut self,
        artefact: &ArtefactId,
        device: DeviceId,
        busy: bool,
    ) -> bool {
        // What it will count on is not freed by any victim.
        self.count_on_shared(artefact, device);
        let stopped = self.to_stop(artefact, device, busy);
        self.ledger.withdraw(device, artefact);
        let is_enough = stopped.is_some();
        stopped.into_iter().flatten().for_each(|other| self.stop(&other, None));
        is_enough
    }

    /// Whom to stop so that there is room; nobody where those that were stopped before will do.
    fn to_stop(
        &self,
        artefact: &ArtefactId,
        device: DeviceId,
        busy: bool,
    ) -> Option<Vec<ArtefactId>> {
        let is_promised =
            |job: &Job| matches!(job.room, Room::Promised { device: d } if d == device);
        let unwanted = self.jobs.iter().filter(|(other, job)| {
            job.device() == Some(device) && (job.is_stopping() || !self.is_wanted(other))
        });
        let (mut coming, mut stoppable, mut claims) = (Bytes::ZERO, Vec::new(), vec![artefact]);
        for (other, job) in unwanted {
            let bytes = self.ledger.promised(device, other);
            if job.is_arriving() {
                stoppable.push((job.sequence, other, bytes));
            } else if job.is_stopping() {
                // One that is late may hang.
                coming += if busy || !job.late { bytes } else { Bytes::ZERO };
            } else if busy && is_promised(job) {
                coming += bytes;
                claims.push(other);
            }
        }
        stoppable.sort_unstable();
        let need = self.need(artefact, device).saturating_sub(self.ledger.free(device));
        let suffices = |coming: Bytes| {
            self.victims(device, &claims, need.saturating_sub(coming), busy).is_some()
        };
        let mut chosen: Vec<ArtefactId> = Vec::new();
        while !suffices(coming) {
            let (_, youngest, bytes) = stoppable.pop()?;
            chosen.push(youngest.clone());
            coming += bytes;
        }
        Some(chosen)
    }

    /// Stops loads that nobody waits for while the budget is exceeded, and says by how much
    /// it will be when those that were stopped have ended.
    pub(super) fn stop_overboard(&mut self, device: DeviceId, over: Bytes) -> Bytes {
        let here = self.jobs.iter().filter(|(_, job)| job.device() == Some(device));
        let (stopping, others): (Vec<_>, Vec<_>) = here.partition(|(_, job)| job.is_stopping());
        let coming: Bytes =
            stopping.iter().map(|(other, _)| self.ledger.promised(device, other)).sum();
        let mut left = over.saturating_sub(coming);
        let unwanted = others.iter().filter(|(id, job)| job.is_arriving() && !self.is_wanted(id));
        let mut unwanted: Vec<(u64, ArtefactId)> =
            unwanted.map(|(id, job)| (job.sequence, (*id).clone())).collect();
        unwanted.sort_unstable();
        while left > Bytes::ZERO
            && let Some((_, youngest)) = unwanted.pop()
        {
            left = left.saturating_sub(self.ledger.promised(device, &youngest));
            self.stop(&youngest, None);
        }
        left
    }
}
