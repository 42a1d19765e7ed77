//! The models of ours that are on a lane: how much of their memory they have touched, and what
//! copies of them are made of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use roundhouse_engine::EngineHandle;
use roundhouse_serving::TextCodec;
use roundhouse_types::{ArtefactId, Bytes, DeviceId};

use super::host::Demotable;
use super::locked;

/// How much of its KV pool, its workspace and its text side a model has touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Touched {
    /// What stays allocated between steps.
    pub(crate) between_steps: Bytes,
    /// Whether a step may run now, which takes of the workspace what it needs.
    pub(crate) stepping: bool,
    /// What its host part has for answers of given forms, of which none has been asked for.
    pub(crate) forms: Bytes,
}

/// One of them.
pub(super) struct Placed {
    pub(super) engine: EngineHandle,
    /// Absent where it takes no more than it took when it was read.
    pub(super) text: Option<Arc<TextCodec>>,
    /// Absent where the device's memory is the host's.
    pub(super) demotable: Option<Demotable>,
}

/// By version and device, from the end of their load to the beginning of their unload.
#[derive(Default)]
pub(super) struct PlacedModels(Mutex<BTreeMap<(ArtefactId, DeviceId), Placed>>);

impl PlacedModels {
    pub(super) fn add(&self, id: &ArtefactId, device: DeviceId, placed: Placed) {
        locked(&self.0).insert((id.clone(), device), placed);
    }

    pub(super) fn remove(&self, id: &ArtefactId, device: DeviceId) -> Option<Demotable> {
        locked(&self.0).remove(&(id.clone(), device))?.demotable
    }

    pub(super) fn touched(&self, id: &ArtefactId, device: DeviceId) -> Option<Touched> {
        let placed = locked(&self.0);
        let Placed { engine, text, .. } = placed.get(&(id.clone(), device))?;
        Some(Touched {
            between_steps: engine.touched(),
            stepping: engine.load().running > 0,
            forms: text.as_ref().map_or(Bytes::ZERO, |text| text.untouched_room()),
        })
    }
}
