//! What operators say of endpoints.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use roundhouse_store::{Catalog, DiskCache};
use roundhouse_types::EndpointName;

use super::{Bases, LocalModels, ModelLoader};
use crate::config::{EngineRule, VersionRule};

/// Where an endpoint's models come from. Clones are the same.
#[derive(Clone)]
pub(crate) enum Source {
    /// An object store, through the disk cache.
    Store(Arc<Catalog>, DiskCache),
    /// Folders that someone else put on this machine, as in the container contract.
    Local(Arc<LocalModels>),
}

/// What operators say of endpoints.
pub(crate) struct Scope {
    /// Where their models come from.
    pub(crate) sources: BTreeMap<EndpointName, Source>,
    /// What they do when their stores change.
    pub(crate) rules: BTreeMap<EndpointName, VersionRule>,
    /// What their adapters build on.
    pub(crate) bases: Bases,
    /// Those that serve handlers.
    pub(crate) handlers: Vec<EndpointName>,
    /// Engines that are started for their targets.
    pub(crate) engines: BTreeMap<EndpointName, Vec<EngineRule>>,
    /// The folder that is ours alone, once there was a store.
    pub(crate) cache: Option<PathBuf>,
}

impl ModelLoader {
    /// Puts other sources in the place of those so far.
    pub(crate) fn set_sources(&self, sources: BTreeMap<EndpointName, Source>) {
        self.sources.set(sources);
    }

    /// Where models come from now.
    pub(crate) fn sources(&self) -> BTreeMap<EndpointName, Source> {
        (*self.sources.get()).clone()
    }
}
