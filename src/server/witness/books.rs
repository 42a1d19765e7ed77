//! What the ledger says, as far as it can be held against what this process uses.

use std::collections::HashMap;

use roundhouse_residency::{CopyState, Held, Holdings, LoadSnapshot, LoadState, ResidentState};
use roundhouse_types::{ArtefactId, Bytes, DeviceId, Footprint, ModelKind};

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
        holdings: &Holdings,
        in_flight: Bytes,
        touched: &dyn Fn(&ArtefactId, DeviceId) -> Option<Touched>,
    ) -> Self {
        let mut books = Self::default();
        for found in &holdings.devices {
            let touched = |id: &_| touched(id, found.id);
            if found.id.is_card() {
                // Only host parts lie in the host's memory.
                books.charged += found.adapters.host;
                for resident in &found.residents {
                    let bytes = Footprint { host: resident.bytes.host, ..Footprint::default() };
                    books.charged += bytes.total();
                    books.resident(resident, bytes, &touched);
                }
                continue;
            }
            books.charged += found.charged;
            books.budget += found.budget;
            for resident in &found.residents {
                books.resident(resident, resident.bytes, &touched);
            }
        }
        books.charged += holdings.host.charged;
        books.budget += holdings.host.budget;
        books.arriving += holdings.host.reserved;
        books.copies(holdings);
        for load in &holdings.loads {
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
    /// their host parts together, and each is charged with them. Adapters leave no copies.
    fn copies(&mut self, holdings: &Holdings) {
        if holdings.host.copies.is_empty() {
            return;
        }
        let mut loaded: HashMap<&ArtefactId, u64> = HashMap::new();
        for resident in holdings.devices.iter().flat_map(|device| &device.residents) {
            *loaded.entry(&resident.artefact).or_default() += 1;
        }
        for copy in &holdings.host.copies {
            match (copy.kind, copy.state) {
                // A process that sleeps.
                (ModelKind::External, _) => self.elsewhere += copy.bytes.total(),
                (_, CopyState::Leaving) => self.leaving += copy.bytes.total(),
                (_, CopyState::Ready) => {
                    let times = loaded.get(&copy.artefact).copied().unwrap_or_default();
                    self.untouched += Bytes(copy.bytes.host.0 * times);
                }
            }
        }
    }

    /// Counts one of which `bytes` lie in the memory that is looked at.
    pub(super) fn resident(
        &mut self,
        resident: &Held<ResidentState>,
        bytes: Footprint,
        touched: &dyn Fn(&ArtefactId) -> Option<Touched>,
    ) {
        match resident.kind {
            ModelKind::Handler | ModelKind::External => self.elsewhere += bytes.total(),
            _ if resident.state == ResidentState::Unloading => self.leaving += bytes.total(),
            _ => {
                let Some(touched) = touched(&resident.artefact) else { return };
                let reserved = bytes.kv + bytes.workspace;
                self.untouched += reserved.saturating_sub(touched.between_steps);
                self.untouched += touched.forms.min(bytes.host);
                if touched.stepping {
                    self.in_steps += bytes.workspace;
                }
            }
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
