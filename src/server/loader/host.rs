//! Copies of models in the host's memory: what a model leaves behind when it makes room on a
//! device with a memory of its own, so that its next load reads no file.
//!
//! A copy holds the weights in the format in which they lie on the device, equal content of
//! all copies once, and the model's host parts, which a resident of the same load and the
//! copy hold together. An adapter's serves beside the version of its base that it was loaded for;
//! beside another one its files are read again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metrics::{Unit, describe_histogram, histogram};
use roundhouse_models::{AdapterWeights, Cancel, DeviceMemory, ModelPlan, TensorPool, Weights};
use roundhouse_residency::{HostCopy, Loaded};
use roundhouse_serving::{AdapterText, Purpose, ServedModel, TextCodec};
use roundhouse_types::{ArtefactId, Bytes, DeviceId, ErrorKind, Failure, Footprint, RetryHint};
use tracing::{debug, warn};

use super::load::Onto;
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

/// What an adapter has beside its base. Holds nothing of that.
#[derive(Clone)]
pub(super) struct AdapterParts {
    pub(super) weights: AdapterWeights,
    pub(super) text: AdapterText,
    /// What requests may ask of it.
    pub(super) purpose: Purpose,
    /// What texts of its own take, in use beside its base.
    pub(super) taken: Bytes,
    /// How long it may be unused, where its own settings say so.
    pub(super) idle_ttl: Option<Duration>,
    /// The base that it was loaded for: what was computed of that one's weights is in its own.
    pub(super) on: ArtefactId,
    /// Whether its files cannot have changed under its version.
    pub(super) is_verified: bool,
}

/// What was loaded, on its device or in the host's memory: what a copy is made of, and the copy.
pub(super) enum Demotable {
    Model { weights: Weights, parts: HostParts },
    Adapter(AdapterParts),
}

impl Demotable {
    /// Of a copy: what it takes.
    fn told(&self) -> HostCopy {
        match self {
            Self::Model { weights, parts } => {
                let (weights, shared) = (weights.bytes(), weights.shared());
                let footprint = Footprint { weights, host: parts.bytes, ..Footprint::default() };
                HostCopy { footprint, shared }
            }
            Self::Adapter(parts) => {
                let footprint = parts.weights.footprint();
                let host = footprint.host + parts.taken;
                let footprint = Footprint { host, workspace: Bytes::ZERO, ..footprint };
                HostCopy { footprint, shared: Vec::new() }
            }
        }
    }

    /// Whether a copy made of this one is as good as the other. One of an adapter for another
    /// version of its base is not.
    fn is_like(&self, copy: &Self) -> bool {
        match (self, copy) {
            (Self::Adapter(one), Self::Adapter(other)) => one.on == other.on,
            (Self::Model { .. }, Self::Model { .. }) => true,
            _ => false,
        }
    }
}

/// All copies by version, from the end of an unload to their discarding. Only the loader's own
/// calls change them.
#[derive(Default)]
pub(super) struct HostCopies {
    pool: Arc<TensorPool>,
    copies: Mutex<BTreeMap<ArtefactId, Arc<Demotable>>>,
}

impl HostCopies {
    /// What the weights that several may hold take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> Bytes {
        self.pool.bytes()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        locked(&self.copies).is_empty()
    }

    fn get(&self, id: &ArtefactId) -> Option<Arc<Demotable>> {
        locked(&self.copies).get(id).cloned()
    }

    /// Takes a copy in, unless one as good is there. Tells of the one that stays, and returns the other
    /// one, which is to be freed.
    fn put(&self, id: &ArtefactId, copy: Demotable) -> (HostCopy, Option<Arc<Demotable>>) {
        let (told, copy) = (copy.told(), Arc::new(copy));
        let mut copies = locked(&self.copies);
        if let Some(held) = copies.get(id).filter(|held| copy.is_like(held)) {
            return (held.told(), Some(copy));
        }
        (told, copies.insert(id.clone(), copy))
    }
}

/// Frees a copy, if there is one, and hands its memory back.
async fn free(copy: Option<Arc<Demotable>>) {
    let freed = blocking(move || {
        drop(copy);
        allocator::give_back();
        Ok(())
    });
    if let Err(failure) = freed.await {
        warn!(%failure, "freed memory was not handed back");
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
        let is_as_good =
            |copy: &Arc<Demotable>| resident.as_ref().is_none_or(|resident| resident.is_like(copy));
        let before = self.copies.get(id).filter(|copy| demote && is_as_good(copy));
        let copies = demote && before.is_none();
        let (memory, pool) = (self.memory(device), Arc::clone(&self.copies.pool));
        let released = blocking(move || {
            let copied = match resident {
                Some(resident) if copies => Some(copied(&resident, &memory, &pool)),
                other => {
                    drop(other);
                    None
                }
            };
            // What was freed is free for others, not kept for later.
            allocator::give_back();
            copied.transpose()
        });
        match released.await {
            Ok(Some(copy)) => {
                // A replica that left meanwhile may have made one as well.
                let (told, other) = self.copies.put(id, copy);
                if other.is_some() {
                    free(other).await;
                }
                Some(told)
            }
            Ok(None) => before.map(|copy| copy.told()),
            Err(failure) => {
                warn!(%failure, model = %id, "a model left no copy in the host's memory");
                None
            }
        }
    }

    /// Loads a model from its copy in the host's memory, which stays. `None` for an adapter whose copy is
    /// of no use beside the base that is there now: its files have to be read.
    pub(super) async fn promote(
        &self,
        id: &ArtefactId,
        onto: &Onto,
    ) -> Result<Option<Loaded<ServedModel>>, Failure> {
        let Some(copy) = self.copies.get(id) else {
            let message = format!("{id} has no copy in the host's memory");
            return Err(Failure::new(ErrorKind::Internal, message).with_retry(RetryHint::Later));
        };
        let parts = match &*copy {
            Demotable::Model { parts, .. } => parts.clone(),
            Demotable::Adapter(parts) => {
                let base = onto.base.as_ref().filter(|base| base.artefact == parts.on);
                let Some(base) = base else { return Ok(None) };
                return self.promote_adapter(id, parts, onto.device, base).await.map(Some);
            }
        };
        let (device, reporter) = (onto.device, &onto.reporter);
        let (memory, pool) = (self.memory(device), self.shares.pool(device));
        let (mut stages, began) = (Stages::default(), Instant::now());
        self.recent.reached(&id.model, Stage::Copy);
        let plan = Arc::clone(&parts.plan);
        let loaded = blocking(move || {
            let Demotable::Model { weights, .. } = &*copy else {
                return Err(Failure::new(ErrorKind::Internal, "a copy is an adapter's"));
            };
            let (plan, pool) = (&*plan, pool.as_deref());
            Ok(roundhouse_models::promote(plan, weights, &memory, pool, &Cancel::default())?)
        });
        let loaded = loaded.await.map_err(|failure| named(id, &failure))?;
        stages.set(Stage::Copy, began.elapsed());
        self.place(id, (device, reporter), loaded, parts, stages).await.map(Some)
    }

    /// Frees a copy.
    pub(super) async fn forget_copy(&self, id: &ArtefactId) {
        let copy = locked(&self.copies.copies).remove(id);
        free(copy).await;
        debug!(model = %id.model, version = %id.version, "copy in the host's memory discarded");
    }

    /// A device's memory, as the settings describe it.
    pub(super) fn memory(&self, device: DeviceId) -> DeviceMemory {
        self.memories.get(&device).cloned().unwrap_or_else(|| device.into())
    }
}

/// Copies a model to the host's memory. Blocking.
fn copied(
    from: &Demotable,
    memory: &DeviceMemory,
    pool: &TensorPool,
) -> Result<Demotable, Failure> {
    let (began, cancel) = (Instant::now(), Cancel::default());
    let copy = match from {
        Demotable::Model { weights, parts } => {
            let weights = weights.to_host(memory, Some(pool), &cancel)?;
            Demotable::Model { weights, parts: parts.clone() }
        }
        Demotable::Adapter(parts) => {
            let weights = parts.weights.to_host(memory, &cancel)?;
            Demotable::Adapter(AdapterParts { weights, ..parts.clone() })
        }
    };
    histogram!(COPY_SECONDS).record(began.elapsed());
    Ok(copy)
}
