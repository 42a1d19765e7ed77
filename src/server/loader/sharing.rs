//! What models share in memory and on disk, and with whom.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use roundhouse_models::{Digests, Error, ModelFiles, ModelPlan, Sharing, TensorPool, known_parts};
use roundhouse_store::{CachedArtefact, DiskCache, Piece};
use roundhouse_types::{ArtefactId, Bytes, DeviceId, SharedPart};
use tracing::{info, warn};

use super::load::tenant;
use super::plan::Plan;
use crate::config::ShareTensors;

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

    /// The shared parts of a load. Blocking.
    pub(super) fn known(
        &self,
        id: &ArtefactId,
        plan: &Plan,
        cached: &CachedArtefact,
    ) -> Vec<SharedPart> {
        match (plan, self.scope(id)) {
            (Plan::Model(plan), Some(scope)) => known_parts(plan, &contents(cached, plan), &scope),
            (Plan::Contained(rule), _) => super::contained::process(rule),
            (Plan::Model(_) | Plan::Handler(_) | Plan::External(_) | Plan::Adapter(_), _) => {
                Vec::new()
            }
        }
    }

    /// Has a loaded model's files held once with those of others. That nobody waits for.
    pub(super) fn on_disk(&self, id: &ArtefactId, cache: &DiskCache) {
        let Some(scope) = self.scope(id) else { return };
        let (id, cache) = (id.clone(), cache.clone());
        tokio::spawn(async move {
            match cache.share(&id, &scope).await {
                Ok(Bytes::ZERO) => {}
                Ok(bytes) => info!(artefact = %id, %bytes, "shared on disk"),
                Err(error) => warn!(artefact = %id, %error, "could not be shared on disk"),
            }
        });
    }

    fn scope(&self, id: &ArtefactId) -> Option<String> {
        match self.rule {
            ShareTensors::All => Some(String::new()),
            ShareTensors::Tenant => Some(tenant(id)),
            ShareTensors::Off => None,
        }
    }
}

/// A version's files in the disk cache, wherever it has their bytes.
pub(super) struct Stored<'a>(pub(super) &'a CachedArtefact);

impl ModelFiles for Stored<'_> {
    fn sizes(&self) -> Result<BTreeMap<String, u64>, Error> {
        Ok(self.0.files().iter().map(|file| (file.path.clone(), file.size)).collect())
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(path, offset, buffer)
    }
}

/// What a version's parameters hold, by what its fetch found of its files. Blocking.
pub(super) fn contents(cached: &CachedArtefact, plan: &ModelPlan) -> Digests {
    let mut tensors: HashMap<(&str, u64), &Piece> = HashMap::new();
    for file in cached.files() {
        let mut at = 0;
        for piece in &file.pieces {
            tensors.insert((&file.path, at), piece);
            at += piece.bytes;
        }
    }
    let tensor = |path: &str, start, bytes| {
        let piece = tensors.get(&(path, start)).filter(|piece| piece.bytes == bytes);
        piece.map(|piece| piece.digest.0)
    };
    // A load says what is wrong with files that cannot be understood.
    Digests::of(plan, &Stored(cached), &tensor).unwrap_or_default()
}
