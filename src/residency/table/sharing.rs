//! What loads need of a device where residents share content with them.

use std::collections::BTreeSet;

use roundhouse_types::{ArtefactId, Bytes, ContentId, DeviceId, Footprint, SharedPart};

use super::Table;
use super::state::{Job, Room};

impl Table {
    /// What a load takes of a device, as far as it is known: all of it, less the content
    /// that it counts on there. Where it is promised no room yet: less what it would count on.
    pub(super) fn need(&self, artefact: &ArtefactId, device: DeviceId) -> Bytes {
        let Some(job) = self.jobs.get(artefact) else {
            return Bytes::ZERO;
        };
        if job.device() == Some(device) {
            return whole(job).saturating_sub(self.ledger.counted(device, artefact));
        }
        if job.shared.is_empty() {
            return whole(job);
        }
        let except = self.spoken_for(artefact, device);
        let there = self.ledger.there(device, &job.shared, &except);
        whole(job).saturating_sub(there)
    }

    /// The least that a load needs of any device.
    pub(super) fn least_need(&self, artefact: &ArtefactId) -> Bytes {
        let needs = self.ledger.devices().map(|device| self.need(artefact, device));
        needs.min().unwrap_or_default()
    }

    /// What a load adds to what its tenant has: what it shares is split among the holders.
    pub(super) fn share_of_load(&self, artefact: &ArtefactId) -> Bytes {
        let Some(job) = self.jobs.get(artefact) else {
            return Bytes::ZERO;
        };
        let on = |device| self.need(artefact, device) + self.ledger.split(device, &job.shared);
        match job.device() {
            Some(device) => on(device),
            // Not less than it will be once a device is chosen, or its ceiling would take the
            // promise back.
            None => self.ledger.devices().map(on).max().unwrap_or_default(),
        }
    }

    /// From now on a load counts on the content that it finds on a device: it stays charged
    /// until the load ends, whoever leaves.
    pub(super) fn count_on_shared(&mut self, artefact: &ArtefactId, device: DeviceId) {
        let except = match self.jobs.get(artefact) {
            Some(job) if !job.shared.is_empty() => self.spoken_for(artefact, device),
            _ => return,
        };
        if let Some(job) = self.jobs.get(artefact) {
            self.ledger.count_on(device, artefact, &job.shared, &except);
        }
    }

    /// As [`Table::count_on_shared`] for a load whose room is promised: what it need not
    /// bring any more is free for others.
    pub(super) fn count_on_more(&mut self, artefact: &ArtefactId, device: DeviceId) {
        self.count_on_shared(artefact, device);
        let need = self.need(artefact, device);
        if self.ledger.limit(device, artefact, need) > Bytes::ZERO {
            self.touched.push(artefact.model.clone());
        }
    }

    /// Content that the victims of other loads are to free: those loads count on its room,
    /// so this one cannot count on the content.
    fn spoken_for(&self, artefact: &ArtefactId, device: DeviceId) -> BTreeSet<ContentId> {
        let others = self.residents.claims().filter(|(claim, _)| *claim != artefact);
        let freed = others.flat_map(|(_, keys)| {
            let here = keys.iter().filter(|key| key.device == device);
            self.ledger.content_freed_by(device, here.map(|key| &key.artefact))
        });
        freed.collect()
    }

    /// A load that ended holds content that another's victims were to free. What it was
    /// promised for that is free now, and goes to the other before anybody else gets it.
    pub(super) fn cover_promises(&mut self, device: DeviceId) {
        let is_promised =
            |job: &Job| matches!(job.room, Room::Promised { device: d } if d == device);
        let promised = self.jobs.iter().filter(|(_, job)| is_promised(job));
        let promised: Vec<ArtefactId> = promised.map(|(artefact, _)| artefact.clone()).collect();
        for artefact in promised {
            let mut victims = self.claimed(&artefact);
            victims.retain(|key| key.device == device);
            let coming = self.ledger.freed_by(device, victims.iter().map(|key| &key.artefact));
            let covered = self.ledger.promised(device, &artefact) + coming;
            let missing = self.need(&artefact, device).saturating_sub(covered);
            let bytes = missing.min(self.ledger.free(device));
            if bytes > Bytes::ZERO {
                self.ledger.promise(device, &artefact, bytes);
            }
        }
    }
}

/// What a load takes on its device, content that others hold as well included.
pub(super) fn whole(job: &Job) -> Bytes {
    job.footprint.map(|footprint| footprint.total()).unwrap_or_default()
}

/// A measured footprint, not below what is shared: that is there for as long as a resident
/// holds it, whatever was measured.
pub(super) fn with_shared(mut footprint: Footprint, shared: &[SharedPart]) -> Footprint {
    let shared: Bytes = shared.iter().map(|part| part.bytes).sum();
    footprint.weights = footprint.weights.max(shared);
    footprint
}
