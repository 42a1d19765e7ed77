//! What loaded models share in memory, and with whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use roundhouse_models::{Digests, Sharing, TensorPool, known_parts};
use roundhouse_store::CachedArtefact;
use roundhouse_types::{ArtefactId, DeviceId, SharedPart};
use tracing::warn;

use super::load::tenant;
use super::plan::Plan;
use crate::config::ShareTensors;

/// What a version's parameters hold, beside its files in the disk cache.
const NOTE: &str = "roundhouse-digests.json";

/// The shared buffers of all devices, and the rule by which they are shared.
pub(super) struct Shares {
    rule: ShareTensors,
    pools: BTreeMap<DeviceId, Arc<TensorPool>>,
}

impl Shares {
    pub(super) fn new(rule: ShareTensors, devices: impl Iterator<Item = DeviceId>) -> Self {
        Self { rule, pools: devices.map(|device| (device, Arc::default())).collect() }
    }

    /// With whom a load shares; `None`: with nobody.
    pub(super) fn of(&self, id: &ArtefactId, device: DeviceId, known: Digests) -> Option<Sharing> {
        let pool = Arc::clone(self.pools.get(&device)?);
        Some(Sharing { pool, scope: self.scope(id)?, known })
    }

    /// The shared buffers of a device, where anything is shared.
    pub(super) fn pool(&self, device: DeviceId) -> Option<Arc<TensorPool>> {
        self.pools.get(&device).filter(|_| self.rule != ShareTensors::Off).cloned()
    }

    /// The shared parts of a load, as far as an earlier one noted what the files hold.
    /// Blocking.
    pub(super) fn known(
        &self,
        id: &ArtefactId,
        plan: &Plan,
        cached: &CachedArtefact,
    ) -> Vec<SharedPart> {
        match (plan, self.scope(id)) {
            (Plan::Model(plan), Some(scope)) => known_parts(plan, &noted(cached), &scope),
            (Plan::Model(_) | Plan::Handler(_), _) => Vec::new(),
        }
    }

    fn scope(&self, id: &ArtefactId) -> Option<String> {
        match self.rule {
            ShareTensors::All => Some(String::new()),
            ShareTensors::Tenant => Some(tenant(id)),
            ShareTensors::Off => None,
        }
    }
}

/// What an earlier load of this version found in its files. Blocking.
pub(super) fn noted(cached: &CachedArtefact) -> Digests {
    let version = &cached.id().version;
    cached.note(NOTE).map(|text| Digests::from_json(&text, version)).unwrap_or_default()
}

/// Notes what a load found for the next one, where that is news. Blocking.
pub(super) fn note(id: &ArtefactId, cached: &CachedArtefact, before: &Digests, found: &Digests) {
    if before == found {
        return;
    }
    // Without it, the next load is promised all of its bytes and reads them.
    if let Err(error) = cached.write_note(NOTE, &found.to_json(&cached.id().version)) {
        warn!(%error, model = %id, "what a model's files hold could not be noted");
    }
}
