//! Copies of models in the host's memory: what a model leaves behind when it makes room on a
//! device with a memory of its own, so that its next load reads no file.
//!
//! A copy holds the weights in the format in which they lie on the device, equal content of
//! all copies once, and the model's host parts, which a resident of the same load and the
//! copy hold together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use metrics::{Unit, describe_histogram, histogram};
use roundhouse_models::{Cancel, DeviceMemory, ModelPlan, TensorPool, Weights};
use roundhouse_residency::{HostCopy, Loaded, Reporter};
use roundhouse_serving::{ServedModel, TextCodec};
use roundhouse_types::{ArtefactId, Bytes, DeviceId, ErrorKind, Failure, Footprint, RetryHint};
use tracing::{debug, warn};

use super::stages::{Stage, Stages};
use super::{ModelLoader, blocking, locked, named};
use crate::allocator;

/// Seconds that copying a model to the host's memory took.
const COPY_SECONDS: &str = "roundhouse_host_copy_seconds";

/// Registers the metric's help.
pub(super) fn describe() {
    let help = "Duration of copying a model's weights from its device to the host's memory.";
    describe_histogram!(COPY_SECONDS, Unit::Seconds, help);
}

/// What a loaded model has beside its runner and weights, in the host's memory.
#[derive(Clone)]
pub(super) struct HostParts {
    pub(super) plan: Arc<ModelPlan>,
    pub(super) text: Arc<TextCodec>,
    /// What they take.
    pub(super) bytes: Bytes,
}

/// What a copy of a loaded model is made of; its weights are on the device.
pub(super) struct Demotable {
    pub(super) weights: Weights,
    pub(super) parts: HostParts,
}

/// A model in the host's memory.
struct Copy {
    weights: Weights,
    parts: HostParts,
}

impl Copy {
    fn told(&self) -> HostCopy {
        let footprint = Footprint {
            weights: self.weights.bytes(),
            host: self.parts.bytes,
            ..Footprint::default()
        };
        HostCopy { footprint, shared: self.weights.shared() }
    }
}

/// All copies by version, from the end of an unload to their discarding. Only the loader's own
/// calls change them.
#[derive(Default)]
pub(super) struct HostCopies {
    pool: Arc<TensorPool>,
    copies: Mutex<BTreeMap<ArtefactId, Arc<Copy>>>,
}

impl HostCopies {
    /// What the weights that several may hold take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> Bytes {
        self.pool.bytes()
    }

    fn get(&self, id: &ArtefactId) -> Option<Arc<Copy>> {
        locked(&self.copies).get(id).cloned()
    }
}

impl ModelLoader {
    /// Frees what a model had on its device, after a copy of it was made where one is asked for
    /// and there is none yet.
    pub(super) async fn release(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        resident: Option<Demotable>,
        demote: bool,
    ) -> Option<HostCopy> {
        let before = self.copies.get(id).filter(|_| demote);
        let copies = demote && before.is_none();
        let (memory, pool) = (self.memory(device), Arc::clone(&self.copies.pool));
        let released = blocking(move || {
            let copied = match resident {
                Some(resident) if copies => Some(copied(&resident, &memory, &pool)),
                _ => None,
            };
            // What was freed is free for others, not kept for later.
            allocator::give_back();
            copied.transpose()
        });
        match released.await {
            Ok(Some(copy)) => {
                // A replica that left meanwhile may have made one as well.
                let mut copies = locked(&self.copies.copies);
                Some(copies.entry(id.clone()).or_insert_with(|| Arc::new(copy)).told())
            }
            Ok(None) => before.map(|copy| copy.told()),
            Err(failure) => {
                warn!(%failure, model = %id, "a model left no copy in the host's memory");
                None
            }
        }
    }

    /// Loads a model from its copy in the host's memory, which stays.
    pub(super) async fn promote(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        reporter: &Reporter,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let Some(copy) = self.copies.get(id) else {
            let message = format!("{id} has no copy in the host's memory");
            return Err(Failure::new(ErrorKind::Internal, message).with_retry(RetryHint::Later));
        };
        let parts = copy.parts.clone();
        let (memory, pool) = (self.memory(device), self.shares.pool(device));
        let (mut stages, began) = (Stages::default(), Instant::now());
        self.recent.reached(&id.model, Stage::Copy);
        let loaded = blocking(move || {
            let (plan, weights) = (&copy.parts.plan, &copy.weights);
            let pool = pool.as_deref();
            Ok(roundhouse_models::promote(plan, weights, &memory, pool, &Cancel::default())?)
        });
        let loaded = loaded.await.map_err(|failure| named(id, &failure))?;
        stages.set(Stage::Copy, began.elapsed());
        self.place(id, (device, reporter), loaded, parts, stages).await
    }

    /// Frees a copy.
    pub(super) async fn forget_copy(&self, id: &ArtefactId) {
        let copy = locked(&self.copies.copies).remove(id);
        let freed = blocking(move || {
            drop(copy);
            allocator::give_back();
            Ok(())
        });
        if let Err(failure) = freed.await {
            warn!(%failure, "freed memory was not handed back");
        }
        debug!(model = %id.model, version = %id.version, "copy in the host's memory discarded");
    }

    /// A device's memory, as the settings describe it.
    pub(super) fn memory(&self, device: DeviceId) -> DeviceMemory {
        self.memories.get(&device).cloned().unwrap_or_else(|| device.into())
    }
}

/// Copies a model to the host's memory. Blocking.
fn copied(from: &Demotable, memory: &DeviceMemory, pool: &TensorPool) -> Result<Copy, Failure> {
    let began = Instant::now();
    let weights = from.weights.to_host(memory, Some(pool), &Cancel::default())?;
    histogram!(COPY_SECONDS).record(began.elapsed());
    Ok(Copy { weights, parts: from.parts.clone() })
}
