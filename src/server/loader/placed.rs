//! The models of ours that are on a lane, and how much of their memory they have touched.

use std::collections::BTreeMap;
use std::sync::Mutex;

use roundhouse_engine::EngineHandle;
use roundhouse_types::{ArtefactId, Bytes};

use super::locked;

/// How much of its KV pool and workspace a model has touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Touched {
    /// What stays allocated between steps.
    pub(crate) between_steps: Bytes,
    /// Whether a step may run now, which takes of the workspace what it needs.
    pub(crate) stepping: bool,
}

/// Engines by version, from the end of their load to the beginning of their unload.
#[derive(Default)]
pub(super) struct PlacedModels(Mutex<BTreeMap<ArtefactId, EngineHandle>>);

impl PlacedModels {
    pub(super) fn add(&self, id: &ArtefactId, engine: EngineHandle) {
        locked(&self.0).insert(id.clone(), engine);
    }

    pub(super) fn remove(&self, id: &ArtefactId) {
        locked(&self.0).remove(id);
    }

    pub(super) fn touched(&self, id: &ArtefactId) -> Option<Touched> {
        let engine = locked(&self.0).get(id).cloned()?;
        Some(Touched { between_steps: engine.touched(), stepping: engine.load().running > 0 })
    }
}
