//! What others may see of the table. It informs; it gates nothing.

use roundhouse_types::{Bytes, DeviceId, ErrorKind};

use super::Table;
use super::copies::Stage;
use super::elastic::Flow;
use super::state::{Fetch, Room, State};
use crate::snapshot::{
    Clocks, CopySnapshot, CopyState, DeviceSnapshot, FailedSnapshot, FailedState, HostSnapshot,
    LoadSnapshot, LoadState, ResidentSnapshot, ResidentState, Snapshot,
};

/// Failures that a snapshot lists at most.
const FAILED_SHOWN: usize = 256;

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
        }
    }

    /// What residents may take on all devices.
    pub(crate) fn budget(&self) -> Bytes {
        self.ledger.devices().map(|device| self.ledger.budget(device)).sum()
    }

    pub(crate) fn snapshot(&self, clocks: &Clocks) -> Snapshot {
        let device = |id| DeviceSnapshot {
            id,
            budget_bytes: self.ledger.budget(id),
            charged_bytes: self.ledger.charged(id),
            reserved_bytes: self.ledger.reserved(id),
            over_bytes: self.ledger.over(id),
            residents: self.resident_snapshots(id, clocks),
        };
        Snapshot {
            devices: self.ledger.devices().map(device).collect(),
            host: self.host_snapshot(clocks),
            waiters: self.waiters.len(),
            loads: self.load_snapshots(),
            failed: self.failed_snapshots(clocks),
        }
    }

    fn resident_snapshots(&self, device: DeviceId, clocks: &Clocks) -> Vec<ResidentSnapshot> {
        let here = self.residents.iter().filter(|(key, _)| key.device == device);
        here.map(|(key, resident)| ResidentSnapshot {
            endpoint: key.artefact.model.endpoint.clone(),
            target: key.artefact.model.target.clone(),
            version: key.artefact.version.clone(),
            kind: resident.kind,
            base: resident.base.clone(),
            adapters: self.bases.count(key),
            state: match resident.state {
                State::Ready => ResidentState::Ready,
                State::Draining(_) => ResidentState::Draining,
                State::Unloading => ResidentState::Unloading,
            },
            bytes: resident.footprint,
            shared_bytes: self.ledger.shared(device, &key.artefact),
            share_bytes: self.ledger.share(device, &key.artefact),
            leases: resident.leases,
            kept: self.is_kept(&key.artefact.model),
            offered: self.models.peek(&key.artefact.model).and_then(|it| it.offered.clone()),
            last_used: clocks.rfc3339(resident.last_used),
        })
        .collect()
    }

    fn host_snapshot(&self, clocks: &Clocks) -> Option<HostSnapshot> {
        if self.copies.budget() == Bytes::ZERO && self.copies.is_empty() {
            return None;
        }
        let there = self.copies.iter().filter(|(_, entry)| entry.stage != Stage::Coming);
        let copies = there.map(|(artefact, entry)| CopySnapshot {
            endpoint: artefact.model.endpoint.clone(),
            target: artefact.model.target.clone(),
            version: artefact.version.clone(),
            kind: entry.model.kind,
            state: match entry.stage {
                Stage::There if entry.doomed.is_none() => CopyState::Ready,
                Stage::Coming | Stage::There | Stage::Leaving => CopyState::Leaving,
            },
            bytes: entry.footprint,
            shared_bytes: self.copies.shared(artefact),
            share_bytes: self.copies.share(artefact),
            in_use: self.jobs.get(artefact).is_some_and(|job| job.from_copy),
            last_used: clocks.rfc3339(entry.last_used),
        });
        Some(HostSnapshot {
            budget_bytes: self.copies.budget(),
            charged_bytes: self.copies.charged(),
            reserved_bytes: self.copies.reserved(),
            over_bytes: self.copies.over(),
            copies: copies.collect(),
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
            replica: self.serves(artefact),
        })
        .collect()
    }

    /// The latest failures. Names that the store does not know are left out: anybody can
    /// make up as many as they like.
    fn failed_snapshots(&self, clocks: &Clocks) -> Vec<FailedSnapshot> {
        let failed = self.models.iter().filter_map(|(id, model)| {
            let trouble = model.trouble.as_ref()?;
            (trouble.failure.kind() != ErrorKind::ModelNotFound).then(|| FailedSnapshot {
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
            })
        });
        failed.take(FAILED_SHOWN).collect()
    }
}
