//! What the ledger says, as far as it can be held against what this process uses.

use roundhouse_residency::{
    CopySnapshot, CopyState, LoadSnapshot, LoadState, ResidentSnapshot, ResidentState, Snapshot,
};
use roundhouse_types::{ArtefactId, Bytes, DeviceId, Footprint, ModelId, ModelKind};

use crate::loader::Touched;

/// Whether some of what a load was promised may be on its device already.
pub(super) fn arrives(load: &LoadSnapshot) -> bool {
    matches!(load.state, LoadState::Loading | LoadState::Arriving)
}

/// The ledger's sums at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Books {
    /// What residents are charged with, on all devices, and copies in the host's memory.
    pub(super) charged: Bytes,
    /// The part of it that other processes hold: handlers.
    pub(super) elsewhere: Bytes,
    /// The part of it that nobody has touched yet: KV blocks that were never written, and the
    /// workspaces of models between two steps; and host parts that are charged twice.
    pub(super) untouched: Bytes,
    /// Of what is untouched, what steps that run now may be using.
    pub(super) in_steps: Bytes,
    /// What loads on their way to a device that is no card were promised: any part of it may be there already,
    /// in this process or, where it is a handler that starts, in another.
    pub(super) arriving: Bytes,
    /// What residents that are being unloaded are charged with: any part may be gone already.
    pub(super) leaving: Bytes,
    /// What fetches under way may hold outside the ledger.
    pub(super) in_flight: Bytes,
    /// The current budget of all devices and of copies.
    pub(super) budget: Bytes,
}

impl Books {
    /// Reads them from the table. `touched` tells of a model of ours on a device what it has touched;
    /// `in_flight` is what all fetches together may hold in memory.
    pub(super) fn of(
        snapshot: &Snapshot,
        in_flight: Bytes,
        touched: &dyn Fn(&ArtefactId, DeviceId) -> Option<Touched>,
    ) -> Self {
        let mut books = Self::default();
        for found in &snapshot.devices {
            if found.id.is_card() {
                // Only host parts lie in the host's memory.
                for resident in &found.residents {
                    books.on_card(resident, &|id| touched(id, found.id));
                }
                continue;
            }
            books.charged += found.charged_bytes;
            books.budget += found.budget_bytes;
            for resident in &found.residents {
                books.resident(resident, &|id| touched(id, found.id));
            }
        }
        if let Some(host) = &snapshot.host {
            books.charged += host.charged_bytes;
            books.budget += host.budget_bytes;
            books.arriving += host.reserved_bytes;
            for copy in &host.copies {
                books.copy(copy, snapshot);
            }
        }
        for load in &snapshot.loads {
            if arrives(load) && !load.device.is_some_and(DeviceId::is_card) {
                books.arriving += load.reserved_bytes;
            }
            if matches!(load.state, LoadState::Fetching | LoadState::Arriving) {
                books.in_flight = in_flight;
            }
        }
        books
    }

    /// A copy and the residents that were loaded from it, or left it, on however many devices, hold
    /// their host parts together, and each is charged with them.
    fn copy(&mut self, copy: &CopySnapshot, snapshot: &Snapshot) {
        if copy.kind == ModelKind::External {
            // A process that sleeps.
            self.elsewhere += copy.bytes.total();
            return;
        }
        if copy.state == CopyState::Leaving {
            self.leaving += copy.bytes.total();
            return;
        }
        let residents = snapshot.devices.iter().flat_map(|device| &device.residents);
        let is_same = |resident: &ResidentSnapshot| {
            (&resident.endpoint, &resident.target, &resident.version)
                == (&copy.endpoint, &copy.target, &copy.version)
        };
        for _ in residents.filter(|resident| is_same(resident)) {
            self.untouched += copy.bytes.host;
        }
    }

    fn on_card(
        &mut self,
        resident: &ResidentSnapshot,
        touched: &dyn Fn(&ArtefactId) -> Option<Touched>,
    ) {
        let bytes = Footprint { host: resident.bytes.host, ..Footprint::default() };
        let here = ResidentSnapshot { bytes, ..resident.clone() };
        self.charged += bytes.total();
        self.resident(&here, touched);
    }

    pub(super) fn resident(
        &mut self,
        resident: &ResidentSnapshot,
        touched: &dyn Fn(&ArtefactId) -> Option<Touched>,
    ) {
        if matches!(resident.kind, ModelKind::Handler | ModelKind::External) {
            self.elsewhere += resident.bytes.total();
            return;
        }
        if resident.state == ResidentState::Unloading {
            self.leaving += resident.bytes.total();
            return;
        }
        let model =
            ModelId { endpoint: resident.endpoint.clone(), target: resident.target.clone() };
        let Some(touched) = touched(&ArtefactId { model, version: resident.version.clone() })
        else {
            return;
        };
        let reserved = resident.bytes.kv + resident.bytes.workspace;
        self.untouched += reserved.saturating_sub(touched.between_steps);
        self.untouched += touched.forms.min(resident.bytes.host);
        if touched.stepping {
            self.in_steps += resident.bytes.workspace;
        }
    }

    /// What this process should be using between steps, its `baseline` included.
    pub(super) fn expected(&self, baseline: Bytes) -> Bytes {
        let models = self.charged.saturating_sub(self.elsewhere).saturating_sub(self.untouched);
        baseline + models
    }

    /// By how much more than expected may be in use at this instant.
    pub(super) fn above(&self) -> Bytes {
        self.in_steps + self.arriving + self.in_flight
    }
}
