//! A request's hold on a resident.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use roundhouse_types::{ArtefactId, DeviceId, Tier, Version};

use crate::manager::Dropped;
use crate::sync::UnboundedSender;
use crate::table::{Grant, Key};

/// A hold on a loaded model: it is not unloaded while one lives. Dropping it releases the
/// hold; that only sends and never blocks.
pub struct Lease<M> {
    /// Taken in `drop` alone, so that the model's reference is gone before the release is seen.
    model: Option<Arc<M>>,
    key: Key,
    tier: Tier,
    load_wait: Duration,
    queue_wait: Duration,
    dropped: UnboundedSender<Dropped>,
}

impl<M> Lease<M> {
    pub(crate) fn new(grant: Grant, model: Arc<M>, dropped: UnboundedSender<Dropped>) -> Self {
        Self {
            model: Some(model),
            key: grant.key,
            tier: grant.tier,
            load_wait: grant.load_wait,
            queue_wait: grant.queue_wait,
            dropped,
        }
    }

    /// The artefact that is held.
    pub fn artefact(&self) -> &ArtefactId {
        &self.key.artefact
    }

    /// The version that answers, for as long as the lease lives.
    pub fn version(&self) -> &Version {
        &self.key.artefact.version
    }

    /// The device it is on.
    pub fn device(&self) -> DeviceId {
        self.key.device
    }

    /// Where the model was found when it was asked for.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// How long a fetch or load ran while the request waited; zero for a resident.
    pub fn load_wait(&self) -> Duration {
        self.load_wait
    }

    /// How long it waited beside that: for the version, a slot, or room.
    pub fn queue_wait(&self) -> Duration {
        self.queue_wait
    }
}

impl<M> Deref for Lease<M> {
    type Target = M;

    fn deref(&self) -> &M {
        self.model.as_ref().expect("only drop takes the model")
    }
}

impl<M> fmt::Debug for Lease<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("artefact", &self.key.artefact).finish_non_exhaustive()
    }
}

impl<M> Drop for Lease<M> {
    fn drop(&mut self) {
        drop(self.model.take());
        // With the owner gone there is nobody left to tell.
        let _ = self.dropped.send(Dropped::Lease(self.key.clone()));
    }
}
