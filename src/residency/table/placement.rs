//! Where a load goes: which devices can take it, and where that costs least.

use std::cmp::{Ordering, Reverse};

use roundhouse_types::{ArtefactId, Bytes, DeviceId, ModelKind};

use super::Table;
use super::event::Key;
use super::sharing::whole;
use super::state::{Job, Kin, State};
use crate::config::Policy;

/// What it costs that a set of residents leaves; less is better.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Price {
    /// Whether somebody uses one of them: the load would wait for those requests.
    is_in_use: bool,
    /// By policy: the seconds of reloading that the demand for them stands for, or the latest
    /// use of any.
    worth: f64,
}

/// Those of these devices that a model of a kind may go to, which cards compute or do not.
pub fn may_go(kind: ModelKind, off_cards: bool, devices: &[DeviceId]) -> Vec<DeviceId> {
    Kin::of(kind, off_cards).among(devices.iter().copied()).collect()
}

impl Table {
    /// The devices that a load may go to at all.
    pub(super) fn devices_for(&self, kin: Kin) -> impl Iterator<Item = DeviceId> + use<> {
        kin.among(self.ledger.devices())
    }

    /// The devices that could take a load: with a budget that is large enough and not exceeded,
    /// and without a resident of that very artefact. First those where it fits what is free,
    /// the most left over first; then those where the least is missing.
    pub(super) fn hosts(&self, artefact: &ArtefactId) -> Vec<DeviceId> {
        let Some(job) = self.jobs.get(artefact) else {
            return Vec::new();
        };
        let hosts = self.free_of(artefact, job.kin(), whole(job));
        let hosts = hosts.filter(|device| self.may_stand(artefact, *device));
        let mut hosts: Vec<DeviceId> = hosts.collect();
        hosts.sort_by_cached_key(|device| {
            let (free, need) = (self.ledger.free(*device), self.need(artefact, *device));
            let left = free.saturating_sub(need);
            (need.saturating_sub(free), Reverse(left), self.loads_under_way(*device))
        });
        hosts
    }

    /// The devices with a budget for so many bytes that is not exceeded, where the artefact may
    /// go and is not resident.
    pub(super) fn free_of(
        &self,
        artefact: &ArtefactId,
        kin: Kin,
        bytes: Bytes,
    ) -> impl Iterator<Item = DeviceId> {
        self.devices_for(kin).filter(move |device| {
            bytes <= self.ledger.budget(*device)
                && self.ledger.over(*device) == Bytes::ZERO
                && !self.is_on(artefact, *device)
        })
    }

    /// Whether the artefact is on this device, in whatever state.
    pub(super) fn is_on(&self, artefact: &ArtefactId, device: DeviceId) -> bool {
        let Some(entry) = self.models.peek(&artefact.model) else {
            return false;
        };
        entry.residents.iter().any(|key| key.device == device && key.artefact == *artefact)
    }

    /// Of these devices the one whose victims are worth least, with them; among equals one with
    /// few loads under way. Only sets that `is_good` finds so. The load goes on counting on what
    /// is there, so that it does not leave before its room is promised.
    pub(super) fn cheapest(
        &mut self,
        artefact: &ArtefactId,
        devices: &[DeviceId],
        busy: bool,
        is_good: impl Fn(&Self, &[Key]) -> bool,
    ) -> Option<(DeviceId, Vec<Key>)> {
        let mut best: Option<((Price, usize), DeviceId, Vec<Key>)> = None;
        for device in devices {
            let missing = self.need(artefact, *device).saturating_sub(self.ledger.free(*device));
            // What it will count on is not freed by any victim.
            self.count_on_shared(artefact, *device);
            let victims = self.victims(*device, &[artefact], missing, busy);
            let Some(victims) = victims.filter(|victims| is_good(self, victims)) else {
                self.ledger.withdraw(*device, artefact);
                continue;
            };
            let price = (self.price(&victims), self.loads_under_way(*device));
            let is_better = best.as_ref().is_none_or(|(least, _, _)| {
                price.partial_cmp(least).unwrap_or(Ordering::Equal) == Ordering::Less
            });
            let other = if is_better {
                best.replace((price, *device, victims)).map(|(_, before, _)| before)
            } else {
                Some(*device)
            };
            if let Some(other) = other {
                self.ledger.withdraw(other, artefact);
            }
        }
        best.map(|(_, device, victims)| (device, victims))
    }

    /// What the leaving of these costs. Who leaves anyway costs nothing, nor does one whose
    /// version goes on serving elsewhere.
    fn price(&self, victims: &[Key]) -> Price {
        let mut price = Price { is_in_use: false, worth: 0.0 };
        for key in victims {
            let Some(resident) = self.residents.get(key) else {
                continue;
            };
            price.is_in_use |= resident.leases > 0;
            if resident.state != State::Ready || self.has_twin(key) {
                continue;
            }
            match self.config.policy {
                Policy::GreedyDual => price.worth += self.reload_cost(&key.artefact.model),
                Policy::LeastRecentlyUsed => price.worth = price.worth.max(resident.worth),
            }
        }
        price
    }

    /// Loads that this device has promised room to.
    fn loads_under_way(&self, device: DeviceId) -> usize {
        let here = |job: &&Job| job.device() == Some(device);
        self.jobs.values().filter(here).count()
    }
}
