//! The invariants, as far as one look at the table can tell them. Debug builds take it
//! after every event.
#![cfg(debug_assertions)]

use roundhouse_types::{Bytes, ModelKind};

use super::Table;
use super::sharing::whole;
use super::state::{Model, Purpose, Room, State};
use crate::decision::Departure;

impl Table {
    pub(super) fn check(&self) {
        self.check_accounts();
        self.check_loads();
        self.check_residents();
        self.check_waiters();
    }

    fn check_accounts(&self) {
        for device in self.ledger.devices() {
            let residents = self.residents.keys().filter(|key| key.device == device);
            let loads = self.jobs.iter().filter(|(_, job)| job.device() == Some(device));
            let here = residents.map(|key| &key.artefact).chain(loads.map(|(id, _)| id));
            assert_eq!(
                self.ledger.charged(device),
                self.ledger.together(device, here, &[]),
                "invariant 5: {device} is charged for its residents, those that unload included, \
                 and for what loads count on"
            );
            let jobs = self.jobs.iter().filter(|(_, job)| job.device() == Some(device));
            let promised: Bytes = jobs.map(|(id, _)| self.ledger.promised(device, id)).sum();
            assert_eq!(self.ledger.reserved(device), promised, "promises on {device} have a load");
            if self.ledger.over(device) > Bytes::ZERO {
                let waits = |room| matches!(room, Room::Promised { device: d } if d == device);
                let promised: Bytes = self
                    .jobs
                    .iter()
                    .filter(|(_, job)| waits(job.room))
                    .map(|(id, _)| self.ledger.promised(device, id))
                    .sum();
                assert_eq!(promised, Bytes::ZERO, "invariant 1: nothing is granted on {device}");
            }
        }
    }

    fn check_loads(&self) {
        let loading = self.jobs.values().filter(|job| job.is_loading());
        let (arriving, loading): (Vec<_>, Vec<_>) = loading.partition(|job| job.arriving);
        assert!(
            arriving.len() <= 2 * self.config.max_fetches,
            "loads of what arrives are bounded by the slots of fetches"
        );
        let (handlers, others): (Vec<_>, Vec<_>) =
            loading.into_iter().partition(|job| job.kind == Some(ModelKind::Handler));
        assert!(handlers.len() <= self.config.max_handler_loads, "loads of handlers are bounded");
        assert!(others.len() <= self.config.max_loads, "other loads are bounded");
        for (artefact, job) in &self.jobs {
            let is_stillborn = job.died.is_some();
            assert!(!is_stillborn || job.is_loading(), "{artefact} died before it was there");
            let is_broken = job.broken.is_some();
            assert!(!job.arriving || job.is_loading(), "{artefact} has no room to arrive in");
            assert!(!is_broken || (job.arriving && job.is_whole()), "{artefact} is stopped twice");
            if job.arriving {
                assert!(self.claimed(artefact).is_empty(), "nobody leaves for {artefact}");
            }
            if job.footprint.is_some() && !job.is_loading() && !self.stopping {
                let largest = self.ledger.largest_budget();
                assert!(whole(job) <= largest, "invariant 6: {artefact} can never fit");
            }
            match job.room {
                Room::Wanted => {
                    assert!(
                        self.claimed(artefact).is_empty(),
                        "invariant 7: {artefact} has no room"
                    );
                }
                Room::Promised { device } => {
                    let victims = self.claimed(artefact);
                    let frees =
                        self.ledger.freed_by(device, victims.iter().map(|key| &key.artefact));
                    let covered = self.ledger.promised(device, artefact) + frees;
                    let need = self.need(artefact, device);
                    assert!(covered >= need, "invariant 7: {artefact} is not covered");
                }
                Room::Loading { device, .. } => {
                    let promised = self.ledger.promised(device, artefact);
                    let need = self.need(artefact, device);
                    assert!(promised >= need, "invariant 1: {artefact} loads unpromised");
                    assert!(self.resident_of(artefact).is_none(), "invariant 3: {artefact}");
                }
            }
        }
    }

    fn check_residents(&self) {
        for (key, resident) in &self.residents {
            if resident.state == State::Unloading {
                assert_eq!(resident.leases, 0, "invariant 2: {} is leased", key.artefact);
            }
            if matches!(resident.state, State::Draining(_)) {
                assert!(resident.leases > 0, "{} has nothing to wait for", key.artefact);
            }
            assert_eq!(
                self.ledger.together(key.device, [&key.artefact], &[]),
                resident.footprint.total(),
                "invariant 5: {} is charged for what it was last measured at",
                key.artefact
            );
            if let Some(claim) = &resident.claimed_by {
                let device = self.jobs.get(claim).and_then(|job| job.device());
                assert_eq!(device, Some(key.device), "{} is claimed in vain", key.artefact);
            } else {
                let evicted = State::Draining(Departure::Evicted);
                assert_ne!(
                    resident.state, evicted,
                    "invariant 7: {} leaves for nobody",
                    key.artefact
                );
            }
        }
    }

    fn check_waiters(&self) {
        let offers = self.models.iter().filter(|(_, model)| model.offered.is_some()).count();
        assert_eq!(self.offers, offers, "what waits for an operator's word is counted");
        let mut listed = 0;
        for (id, model) in self.models.iter() {
            listed += model.waiters.len() + model.refreshers.len() + model.unloaders.len();
            let is_ready = |key| self.residents.get(key).is_some_and(|r| r.state == State::Ready);
            let ready = model.residents.iter().filter(|key| is_ready(key)).count();
            assert!(ready <= 1, "{id} serves one version");
            assert!(
                model.waiters.is_empty() || (ready == 0 && has_prospect(model)),
                "invariant 4: nobody will answer those who wait for {id}"
            );
        }
        assert_eq!(listed, self.waiters.len(), "invariant 4: every waiter is on one list");
        for (id, waiter) in self.waiters.iter() {
            let model = self.models.peek(&waiter.model).expect("models with waiters stay");
            let is_listed = match waiter.purpose {
                Purpose::Request | Purpose::Load(_) => model.waiters.contains(id),
                Purpose::Refresh { .. } => model.refreshers.contains(id),
                Purpose::Unload { .. } => model.unloaders.contains(id),
            };
            assert!(is_listed, "invariant 4: {id:?} is on its model's list");
        }
    }
}

/// Whether something is under way that will answer a model's waiters.
fn has_prospect(model: &Model) -> bool {
    model.resolving.is_some() || !model.jobs.is_empty() || !model.residents.is_empty()
}
