//! The models of ours that are on a lane: how much of their memory they have touched, what
//! adapters of them and copies of them are made of; and the adapters beside them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{Unit, describe_gauge, gauge};
use roundhouse_engine::EngineHandle;
use roundhouse_models::AdapterBase;
use roundhouse_serving::TextCodec;
use roundhouse_types::{ArtefactId, Bytes, DeviceId, ModelId, Version};

use super::facts::Facts;
use super::host::{Demotable, HostParts};
use super::locked;

/// Adapters on a device.
const ADAPTERS: &str = "roundhouse_adapters_resident";

/// Registers the metric's help.
pub(super) fn describe() {
    describe_gauge!(
        ADAPTERS,
        Unit::Count,
        "Adapters that are loaded, on all devices together; those on disk are roundhouse_store_disk_adapters."
    );
}

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

/// What adapters of a loaded model need of it. Keeps none of its weights.
#[derive(Clone)]
pub(super) struct Beside {
    pub(super) engine: EngineHandle,
    pub(super) base: AdapterBase,
    pub(super) parts: HostParts,
}

/// One of them.
pub(super) struct Placed {
    pub(super) beside: Beside,
    /// Absent where it takes no more than it took when it was read.
    pub(super) text: Option<Arc<TextCodec>>,
    /// Absent where the device's memory is the host's.
    pub(super) demotable: Option<Demotable>,
}

/// By version and device, from the end of their load to the beginning of their unload.
#[derive(Default)]
pub(super) struct PlacedModels {
    models: Mutex<BTreeMap<(ArtefactId, DeviceId), Placed>>,
    adapters: Mutex<BTreeMap<ModelId, Adapted>>,
}

/// Loads of an adapter that are on a device, and what they are on.
struct Adapted {
    base: ModelId,
    loads: Vec<(Version, DeviceId, Option<Demotable>)>,
}

impl PlacedModels {
    pub(super) fn add(&self, id: &ArtefactId, device: DeviceId, placed: Placed) {
        locked(&self.models).insert((id.clone(), device), placed);
    }

    pub(super) fn add_adapter(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        base: ModelId,
        demotable: Option<Demotable>,
    ) {
        let mut adapters = locked(&self.adapters);
        let adapted = adapters
            .entry(id.model.clone())
            .or_insert_with(|| Adapted { base: base.clone(), loads: Vec::new() });
        adapted.base = base;
        adapted.loads.push((id.version.clone(), device, demotable));
        gauge!(ADAPTERS).increment(1.0);
    }

    /// Forgets a model or an adapter; returns what a copy of it can be made of.
    pub(super) fn remove(&self, id: &ArtefactId, device: DeviceId) -> Option<Demotable> {
        if let Some(placed) = locked(&self.models).remove(&(id.clone(), device)) {
            return placed.demotable;
        }
        let mut adapters = locked(&self.adapters);
        let adapted = adapters.get_mut(&id.model)?;
        let is_it =
            |(version, on, _): &(Version, DeviceId, _)| (version, *on) == (&id.version, device);
        let at = adapted.loads.iter().position(is_it)?;
        let (_, _, demotable) = adapted.loads.swap_remove(at);
        gauge!(ADAPTERS).decrement(1.0);
        if adapted.loads.is_empty() {
            adapters.remove(&id.model);
        }
        demotable
    }

    /// A loaded model as adapters need it.
    pub(super) fn base(&self, id: &ArtefactId, device: DeviceId) -> Option<Beside> {
        Some(locked(&self.models).get(&(id.clone(), device))?.beside.clone())
    }

    /// All loaded adapters, with the models that they are on.
    pub(super) fn adapters(&self) -> Vec<(ModelId, ModelId)> {
        let adapters = locked(&self.adapters);
        adapters.iter().map(|(adapter, on)| (adapter.clone(), on.base.clone())).collect()
    }

    /// The model that a loaded adapter is on.
    pub(super) fn adapted(&self, model: &ModelId) -> Option<ModelId> {
        Some(locked(&self.adapters).get(model)?.base.clone())
    }

    /// What is known of a loaded model; of its base where it is an adapter.
    pub(super) fn facts(&self, model: &ModelId) -> Option<Facts> {
        let base = self.adapted(model);
        let model = base.as_ref().unwrap_or(model);
        let placed = locked(&self.models);
        let (_, Placed { beside, .. }) = placed.iter().find(|((id, _), _)| id.model == *model)?;
        Some(Facts::of(&beside.parts.plan, &beside.engine))
    }

    /// The same of one load.
    pub(super) fn facts_of(&self, id: &ArtefactId, device: DeviceId) -> Option<Facts> {
        let placed = locked(&self.models);
        let Placed { beside, .. } = placed.get(&(id.clone(), device))?;
        Some(Facts::of(&beside.parts.plan, &beside.engine))
    }

    pub(super) fn touched(&self, id: &ArtefactId, device: DeviceId) -> Option<Touched> {
        let placed = locked(&self.models);
        let Placed { beside, text, .. } = placed.get(&(id.clone(), device))?;
        let engine = &beside.engine;
        Some(Touched {
            between_steps: engine.touched(),
            stepping: engine.load().running > 0,
            forms: text.as_ref().map_or(Bytes::ZERO, |text| text.untouched_room()),
        })
    }
}
