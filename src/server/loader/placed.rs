//! The models of ours that are on a lane: how much of their memory they have touched, and what
//! copies of them are made of.

use std::collections::BTreeMap;
use std::sync::Mutex;

use roundhouse_engine::EngineHandle;
use roundhouse_types::{ArtefactId, Bytes, DeviceId};

use super::host::Demotable;
use super::locked;

/// How much of its KV pool and workspace a model has touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Touched {
    /// What stays allocated between steps.
    pub(crate) between_steps: Bytes,
    /// Whether a step may run now, which takes of the workspace what it needs.
    pub(crate) stepping: bool,
}

/// One of them.
struct Placed {
    engine: EngineHandle,
    /// Absent where the device's memory is the host's.
    demotable: Option<Demotable>,
}

/// By version and device, from the end of their load to the beginning of their unload.
#[derive(Default)]
pub(super) struct PlacedModels(Mutex<BTreeMap<(ArtefactId, DeviceId), Placed>>);

impl PlacedModels {
    pub(super) fn add(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        engine: EngineHandle,
        demotable: Option<Demotable>,
    ) {
        locked(&self.0).insert((id.clone(), device), Placed { engine, demotable });
    }

    pub(super) fn remove(&self, id: &ArtefactId, device: DeviceId) -> Option<Demotable> {
        locked(&self.0).remove(&(id.clone(), device))?.demotable
    }

    pub(super) fn touched(&self, id: &ArtefactId, device: DeviceId) -> Option<Touched> {
        let engine = locked(&self.0).get(&(id.clone(), device))?.engine.clone();
        Some(Touched { between_steps: engine.touched(), stepping: engine.load().running > 0 })
    }
}
