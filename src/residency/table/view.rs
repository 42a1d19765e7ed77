//! What others may see of the table. It informs; it gates nothing.

use std::cmp::Reverse;

use roundhouse_types::{ArtefactId, Bytes, DeviceId, ErrorKind, Footprint, ModelId, ModelKind};

use super::Table;
use super::copies::{Entry, Stage};
use super::elastic::Flow;
use super::event::Key;
use super::state::{Fetch, Resident, Room, State, Unfit};
use crate::holdings::{DeviceHoldings, Held, Holdings, HostHoldings};
use crate::snapshot::{
    Clocks, CopySnapshot, CopyState, DeviceSnapshot, FailedSnapshot, FailedState, HostSnapshot,
    LoadSnapshot, LoadState, ResidentSnapshot, ResidentState, Snapshot, UnfitSnapshot,
};

/// Failures that a snapshot lists at most.
const FAILED_SHOWN: usize = 256;
/// Models that failed which looks can find, those that serve again among them.
const FAILED_NOTED: usize = 4 * FAILED_SHOWN;
/// Residents or copies that one part of a look visits at most: some 0.1 ms of the table's owner,
/// whom requests wait for meanwhile.
pub(crate) const PART: usize = 64;

/// What the gauges show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Levels {
    pub(crate) devices: Vec<DeviceLevel>,
    pub(crate) host: HostLevel,
    /// What KV pools were granted and gave back, all in all.
    pub(crate) pools: Flow,
    pub(crate) waiters: usize,
    /// Models of which the store holds a version that waits for an operator's word.
    pub(crate) offers: usize,
    /// Models of which a version failed in whose place another one answers, or would.
    pub(crate) unfit: usize,
}

/// The levels of the copies in the host's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostLevel {
    pub(crate) budget: Bytes,
    pub(crate) charged: Bytes,
    pub(crate) reserved: Bytes,
    pub(crate) copies: usize,
}

/// One device's levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceLevel {
    pub(crate) id: DeviceId,
    pub(crate) budget: Bytes,
    pub(crate) charged: Bytes,
    pub(crate) reserved: Bytes,
    pub(crate) residents: usize,
}

impl Table {
    pub(crate) fn levels(&self) -> Levels {
        let level = |id| DeviceLevel {
            id,
            budget: self.ledger.budget(id),
            charged: self.ledger.charged(id),
            reserved: self.ledger.reserved(id),
            residents: self.ledger.residents(id),
        };
        Levels {
            devices: self.ledger.devices().map(level).collect(),
            host: HostLevel {
                budget: self.copies.budget(),
                charged: self.copies.charged(),
                reserved: self.copies.reserved(),
                copies: self.copies.count(),
            },
            pools: self.flow,
            waiters: self.waiters.len(),
            offers: self.offers,
            unfit: self.unfit.len(),
        }
    }

    /// All devices.
    pub(crate) fn devices(&self) -> impl Iterator<Item = DeviceId> + use<> {
        self.ledger.devices()
    }

    /// What residents may take on all devices.
    pub(crate) fn budget(&self) -> Bytes {
        self.ledger.devices().map(|device| self.ledger.budget(device)).sum()
    }

    pub(crate) fn snapshot(&self, clocks: &Clocks) -> Snapshot {
        let mut snapshot = self.outline(clocks);
        for device in &mut snapshot.devices {
            let here = self.residents.iter().filter(|(key, _)| key.device == device.id);
            device.residents =
                here.map(|(key, resident)| self.resident_snapshot(key, resident, clocks)).collect();
        }
        if let Some(host) = &mut snapshot.host {
            let copies = self.copies.iter();
            host.copies =
                copies.filter_map(|(id, it)| self.copy_snapshot(id, it, clocks)).collect();
        }
        snapshot
    }

    /// The same of one model's residents and copies alone.
    pub(crate) fn snapshot_of(&self, model: &ModelId, clocks: &Clocks) -> Snapshot {
        let mut snapshot = self.outline(clocks);
        let keys = self.models.peek(model).into_iter().flat_map(|entry| &entry.residents);
        for (key, resident) in keys.filter_map(|key| Some((key, self.residents.get(key)?))) {
            let mut devices = snapshot.devices.iter_mut();
            if let Some(device) = devices.find(|device| device.id == key.device) {
                device.residents.push(self.resident_snapshot(key, resident, clocks));
            }
        }
        if let Some(host) = &mut snapshot.host {
            let copies = self.copies.of_model(model);
            host.copies =
                copies.filter_map(|(id, it)| self.copy_snapshot(id, it, clocks)).collect();
        }
        let idle = Some(model).filter(|model| self.ready(model).is_none());
        snapshot.unfit =
            idle.and_then(|model| self.unfit_snapshot(model, clocks)).into_iter().collect();
        snapshot
    }

    /// What lies in memory.
    pub(crate) fn holdings(&self) -> Holdings {
        let device = |id| {
            let (mut adapters, mut residents) = (Footprint::default(), Vec::new());
            for (key, it) in self.residents.iter().filter(|(key, _)| key.device == id) {
                let state = it.state.shown();
                if it.kind == ModelKind::Adapter && state != ResidentState::Unloading {
                    adapters += it.footprint;
                } else {
                    let (artefact, kind, bytes) = (key.artefact.clone(), it.kind, it.footprint);
                    residents.push(Held { artefact, kind, state, bytes });
                }
            }
            let (budget, charged) = (self.ledger.budget(id), self.ledger.charged(id));
            DeviceHoldings { id, budget, charged, adapters, residents }
        };
        let copies = self.copies.iter().filter(|(_, it)| it.stage != Stage::Coming);
        let copy = |(artefact, it): (&ArtefactId, &Entry)| Held {
            artefact: artefact.clone(),
            kind: it.model.kind,
            state: it.shown(),
            bytes: it.footprint,
        };
        Holdings {
            devices: self.ledger.devices().map(device).collect(),
            host: HostHoldings {
                budget: self.copies.budget(),
                charged: self.copies.charged(),
                reserved: self.copies.reserved(),
                copies: copies.map(copy).collect(),
            },
            loads: self.load_snapshots(),
        }
    }

    /// Whether a look at all of it takes no longer than one at a part.
    pub(crate) fn is_small(&self) -> bool {
        self.residents.iter().len() + self.copies.count() <= PART
    }

    /// The same without what there may be ten thousands of: no resident and no copy is visited.
    pub(crate) fn outline(&self, clocks: &Clocks) -> Snapshot {
        let device = |id| DeviceSnapshot {
            id,
            budget_bytes: self.ledger.budget(id),
            charged_bytes: self.ledger.charged(id),
            reserved_bytes: self.ledger.reserved(id),
            over_bytes: self.ledger.over(id),
            residents: Vec::new(),
        };
        Snapshot {
            devices: self.ledger.devices().map(device).collect(),
            host: self.host_outline(),
            waiters: self.waiters.len(),
            loads: self.load_snapshots(),
            failed: self.failed_snapshots(clocks),
            unfit: self.unfit_snapshots(clocks),
        }
    }

    /// The next residents in the order of names, and where they go on.
    pub(crate) fn residents_behind(
        &self,
        after: Option<&Key>,
        clocks: &Clocks,
    ) -> (Vec<(DeviceId, ResidentSnapshot)>, Option<Key>) {
        let mut last = None;
        let rows = self.residents.behind(after).take(PART).map(|(key, resident)| {
            last = Some(key);
            (key.device, self.resident_snapshot(key, resident, clocks))
        });
        let rows: Vec<_> = rows.collect();
        let rest = last.filter(|_| rows.len() == PART).cloned();
        (rows, rest)
    }

    /// The next copies in the order of names, and where they go on.
    pub(crate) fn copies_behind(
        &self,
        after: Option<&ArtefactId>,
        clocks: &Clocks,
    ) -> (Vec<CopySnapshot>, Option<ArtefactId>) {
        let visited: Vec<_> = self.copies.behind(after).take(PART).collect();
        let rest = visited.last().filter(|_| visited.len() == PART).map(|(id, _)| (*id).clone());
        let rows = visited.into_iter().filter_map(|(id, it)| self.copy_snapshot(id, it, clocks));
        (rows.collect(), rest)
    }

    fn resident_snapshot(
        &self,
        key: &Key,
        resident: &Resident,
        clocks: &Clocks,
    ) -> ResidentSnapshot {
        let device = key.device;
        let model = self.models.peek(&key.artefact.model);
        let unfit =
            model.and_then(|it| it.unfit.as_ref()).filter(|_| resident.state == State::Ready);
        ResidentSnapshot {
            endpoint: key.artefact.model.endpoint.clone(),
            target: key.artefact.model.target.clone(),
            version: key.artefact.version.clone(),
            kind: resident.kind,
            base: resident.base.clone(),
            adapters: self.bases.count(key),
            state: resident.state.shown(),
            bytes: resident.footprint,
            shared_bytes: self.ledger.shared(device, &key.artefact),
            share_bytes: self.ledger.share(device, &key.artefact),
            leases: resident.leases,
            kept: self.is_kept(&key.artefact.model),
            offered: model.and_then(|it| it.offered.clone()),
            unfit: unfit.map(|it| it.shown(clocks)),
            last_used: clocks.rfc3339(resident.last_used),
        }
    }

    fn host_outline(&self) -> Option<HostSnapshot> {
        if self.copies.budget() == Bytes::ZERO && self.copies.is_empty() {
            return None;
        }
        Some(HostSnapshot {
            budget_bytes: self.copies.budget(),
            charged_bytes: self.copies.charged(),
            reserved_bytes: self.copies.reserved(),
            over_bytes: self.copies.over(),
            copies: Vec::new(),
        })
    }

    /// A copy that is there; none of those on their way.
    fn copy_snapshot(
        &self,
        artefact: &ArtefactId,
        entry: &Entry,
        clocks: &Clocks,
    ) -> Option<CopySnapshot> {
        (entry.stage != Stage::Coming).then(|| CopySnapshot {
            endpoint: artefact.model.endpoint.clone(),
            target: artefact.model.target.clone(),
            version: artefact.version.clone(),
            kind: entry.model.kind,
            state: entry.shown(),
            bytes: entry.footprint,
            shared_bytes: self.copies.shared(artefact),
            share_bytes: self.copies.share(artefact),
            in_use: self.jobs.get(artefact).is_some_and(|job| job.from_copy),
            last_used: clocks.rfc3339(entry.last_used),
        })
    }

    fn load_snapshots(&self) -> Vec<LoadSnapshot> {
        let order = self.jobs_in_order();
        let jobs = order.iter().filter_map(|artefact| Some((artefact, self.jobs.get(artefact)?)));
        jobs.map(|(artefact, job)| LoadSnapshot {
            endpoint: artefact.model.endpoint.clone(),
            target: artefact.model.target.clone(),
            version: artefact.version.clone(),
            state: match (job.fetch, job.room) {
                (Fetch::Queued, _) => LoadState::Queued,
                (Fetch::Running { .. }, Room::Loading { .. }) => LoadState::Arriving,
                (Fetch::Running { .. }, _) => LoadState::Fetching,
                (Fetch::Whole { .. }, Room::Wanted) => LoadState::WaitingForRoom,
                (Fetch::Whole { .. }, Room::Promised { .. }) => LoadState::WaitingToLoad,
                (Fetch::Whole { .. }, Room::Loading { .. }) => LoadState::Loading,
            },
            base: job.base.clone(),
            device: job.device(),
            fetch_bytes: job.fetch_bytes,
            fetched_bytes: job.fetched_bytes,
            footprint_bytes: job.footprint.map(|footprint| footprint.total()),
            reserved_bytes: job
                .device()
                .map(|device| self.ledger.promised(device, artefact))
                .unwrap_or_default(),
            waiters: self.models.peek(&artefact.model).map_or(0, |model| model.waiters.len()),
            paced_for: job.paced_for.clone().filter(|_| !job.is_whole()),
            replica: self.serves(artefact),
        })
        .collect()
    }

    /// What failed of models of which nothing serves.
    fn unfit_snapshots(&self, clocks: &Clocks) -> Vec<(ModelId, UnfitSnapshot)> {
        let idle = self.unfit.iter().filter(|model| self.ready(model).is_none());
        idle.take(FAILED_SHOWN).filter_map(|model| self.unfit_snapshot(model, clocks)).collect()
    }

    fn unfit_snapshot(&self, model: &ModelId, clocks: &Clocks) -> Option<(ModelId, UnfitSnapshot)> {
        let unfit = self.models.peek(model)?.unfit.as_ref()?;
        Some((model.clone(), unfit.shown(clocks)))
    }

    /// The latest failures. Names that the store does not know are left out: anybody can
    /// make up as many as they like.
    fn failed_snapshots(&self, clocks: &Clocks) -> Vec<FailedSnapshot> {
        let failed = self.failed.iter().filter_map(|id| {
            let trouble = self.models.peek(id)?.trouble.as_ref()?;
            (trouble.failure.kind() != ErrorKind::ModelNotFound).then_some((id, trouble))
        });
        let mut failed: Vec<_> = failed.collect();
        failed.sort_by_key(|(_, trouble)| Reverse(trouble.until));
        let latest = failed.into_iter().take(FAILED_SHOWN);
        let shown = latest.map(|(id, trouble)| FailedSnapshot {
            endpoint: id.endpoint.clone(),
            target: id.target.clone(),
            version: trouble.version.clone(),
            state: match trouble.quarantined {
                true => FailedState::Quarantined,
                false => FailedState::Failed,
            },
            message: trouble.failure.message().into(),
            attempts: trouble.attempts,
            retry_at: clocks.rfc3339(trouble.until),
        });
        shown.collect()
    }

    /// Remembers that a model failed, so that looks find it without a walk over all that are known.
    pub(super) fn note_failed(&mut self, model: &ModelId) {
        self.failed.insert(model.clone());
        if self.failed.len() <= FAILED_NOTED {
            return;
        }
        // Others serve again by now, or are forgotten.
        let failed = self.failed.iter().filter_map(|id| {
            let until = self.models.peek(id)?.trouble.as_ref()?.until;
            Some((Reverse(until), id.clone()))
        });
        let mut failed: Vec<_> = failed.collect();
        failed.sort();
        self.failed = failed.into_iter().take(FAILED_NOTED / 2).map(|(_, id)| id).collect();
    }
}

impl Unfit {
    fn shown(&self, clocks: &Clocks) -> UnfitSnapshot {
        UnfitSnapshot {
            version: self.version.clone(),
            reason: self.failure.message().to_owned(),
            since: clocks.rfc3339(self.since),
        }
    }
}

impl State {
    fn shown(&self) -> ResidentState {
        match self {
            Self::Ready => ResidentState::Ready,
            Self::Draining(_) => ResidentState::Draining,
            Self::Unloading => ResidentState::Unloading,
        }
    }
}

impl Entry {
    fn shown(&self) -> CopyState {
        match self.stage {
            Stage::There if self.doomed.is_none() => CopyState::Ready,
            Stage::Coming | Stage::There | Stage::Leaving => CopyState::Leaving,
        }
    }
}
