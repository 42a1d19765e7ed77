//! What the ledger says, as far as it can be held against what this process uses.

use roundhouse_residency::{ResidentSnapshot, ResidentState, Snapshot};
use roundhouse_types::{ArtefactId, Bytes, DeviceId, ModelId, ModelKind};

use crate::loader::Touched;

/// The ledger's sums at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Books {
    /// What residents are charged with, on all devices.
    pub(super) charged: Bytes,
    /// The part of it that other processes hold: handlers.
    pub(super) elsewhere: Bytes,
    /// The part of it that nobody has touched yet: KV blocks that were never written, and the
    /// workspaces of models between two steps.
    pub(super) untouched: Bytes,
    /// Of what is untouched, what steps that run now may be using.
    pub(super) in_steps: Bytes,
    /// What loads on their way to a device were promised: any part of it may be there already,
    /// in this process or, where it is a handler that starts, in another.
    pub(super) arriving: Bytes,
    /// What residents that are being unloaded are charged with: any part may be gone already.
    pub(super) leaving: Bytes,
    /// What fetches under way may hold outside the ledger.
    pub(super) in_flight: Bytes,
    /// The device's current budget.
    pub(super) budget: Bytes,
}

impl Books {
    /// Reads them from the table. `touched` tells of a loaded model of ours what it has touched;
    /// `in_flight` is what all fetches together may hold in memory.
    pub(super) fn of(
        snapshot: &Snapshot,
        device: DeviceId,
        in_flight: Bytes,
        touched: &dyn Fn(&ArtefactId) -> Option<Touched>,
    ) -> Self {
        let mut books = Self::default();
        for found in &snapshot.devices {
            books.charged += found.charged_bytes;
            if found.id == device {
                books.budget = found.budget_bytes;
            }
            for resident in &found.residents {
                books.resident(resident, touched);
            }
        }
        use roundhouse_residency::LoadState::{Arriving, Fetching, Loading};
        for load in &snapshot.loads {
            match load.state {
                Loading => books.arriving += load.reserved_bytes,
                Fetching => books.in_flight = in_flight,
                Arriving => {
                    books.arriving += load.reserved_bytes;
                    books.in_flight = in_flight;
                }
                _ => {}
            }
        }
        books
    }

    fn resident(
        &mut self,
        resident: &ResidentSnapshot,
        touched: &dyn Fn(&ArtefactId) -> Option<Touched>,
    ) {
        if resident.kind == ModelKind::Handler {
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
