//! An adapter's weights by themselves, so that they can be copied to the host's memory and from there
//! to a device that has its base again.

use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::Instant;

use roundhouse_types::{Bytes, Footprint};

use super::layout::{Index, Numbers};
use super::load::{AdapterBase, LoadedAdapter};
use super::modules::Modules;
use super::plan::footprint;
use super::step::Adapter;
use crate::Error;
use crate::device::DeviceMemory;
use crate::reader::Cancel;

/// What a runner computes an adapter's rows with, or a copy of that. What was computed of the base's
/// weights is in it, and nothing of the base is held by it. Its buffers are free when neither this nor
/// a runner holds them.
#[derive(Debug, Clone)]
pub struct AdapterWeights {
    adapter: Arc<Adapter>,
    /// Of the modules that it was loaded for.
    print: u64,
}

impl AdapterWeights {
    /// What they take.
    pub fn footprint(&self) -> Footprint {
        footprint(Bytes(self.adapter.numbers.bytes()), &self.adapter.index)
    }

    /// Copies them from `device` to the host's memory. Blocking.
    ///
    /// # Errors
    /// When it was cancelled.
    pub fn to_host(&self, device: &DeviceMemory, cancel: &Cancel) -> Result<Self, Error> {
        cancel.check()?;
        let Adapter { index, numbers, .. } = &*self.adapter;
        let copy = Adapter { base: Weak::new(), index: index.clone(), numbers: numbers.clone() };
        device.was_emptied(Bytes(copy.numbers.bytes()));
        Ok(Self { adapter: Arc::new(copy), print: self.print })
    }
}

/// Loads an adapter for a loaded model from a copy in the host's memory, which stays. No file is read.
/// The model must be of the version that the adapter was loaded for: of its weights nothing is computed
/// again. Blocking.
///
/// # Errors
/// When the copy is of an adapter of a model with other modules, or it was cancelled.
pub fn promote_adapter(
    copy: &AdapterWeights,
    base: &AdapterBase,
    device: &DeviceMemory,
    cancel: &Cancel,
) -> Result<LoadedAdapter, Error> {
    let started = Instant::now();
    cancel.check()?;
    if copy.print != base.modules.print() {
        return Err(super::config::weights("it was loaded for a model of another shape".into()));
    }
    let Adapter { index, numbers, .. } = &*copy.adapter;
    device.was_filled(Bytes(numbers.bytes()));
    Ok(LoadedAdapter::of(index.clone(), numbers.clone(), &base.modules, started))
}

impl LoadedAdapter {
    pub(super) fn of(
        index: Index,
        numbers: Numbers,
        base: &Arc<Modules>,
        started: Instant,
    ) -> Self {
        let adapter = Arc::new(Adapter { base: Arc::downgrade(base), index, numbers });
        let weights: Box<dyn Any + Send> = Box::new(Arc::clone(&adapter));
        let kept = AdapterWeights { adapter, print: base.print() };
        Self { weights, footprint: kept.footprint(), kept, read: started.elapsed() }
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_types::DeviceId;

    use super::*;
    use crate::adapter::BaseWeights;

    #[test]
    fn a_copy_holds_nothing_of_its_base_and_knows_the_shape_that_it_is_for() {
        let modules = |layers| Arc::new(Modules::none(layers));
        let memory: DeviceMemory = DeviceId::Simulated(0).into();
        let before = modules(2);
        let loaded = LoadedAdapter::of(Index::default(), Numbers::new(1), &before, Instant::now());
        let copy = loaded.kept.to_host(&memory, &Cancel::default()).unwrap();
        assert_eq!(copy.footprint(), loaded.footprint);
        drop(loaded);
        assert_eq!(Arc::strong_count(&before), 1);
        drop(before);
        let weights = Arc::new(BaseWeights::of(&[]));
        for (layers, fits) in [(2, true), (3, false)] {
            let base = AdapterBase::new(modules(layers), &weights);
            let promoted = promote_adapter(&copy, &base, &memory, &Cancel::default());
            assert_eq!(promoted.is_ok(), fits, "{layers} layers");
        }
    }
}
