//! When the stages of the last loads were, for the traces of the requests that waited for them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use roundhouse_gateway::LoadStage;
use roundhouse_types::ArtefactId;

use super::ModelLoader;

/// Loads remembered; who waited for one is told of it when its answer ends.
const LOADS: usize = 256;

/// The last loads. Clones are the same; the loader adds, whoever traces reads.
#[derive(Clone, Default)]
pub(crate) struct RecentLoads(Arc<Mutex<VecDeque<(ArtefactId, Vec<LoadStage>)>>>);

impl RecentLoads {
    pub(super) fn add(&self, id: &ArtefactId, stages: Vec<LoadStage>) {
        let mut loads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if loads.len() == LOADS {
            loads.pop_front();
        }
        loads.push_back((id.clone(), stages));
    }

    /// The stages of a version's loads, in the order of their ends; a version may be loaded more than
    /// once, on several devices or again.
    pub(crate) fn stages(&self, id: &ArtefactId) -> Vec<LoadStage> {
        let loads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = loads.iter().filter(|(loaded, _)| loaded == id);
        of.flat_map(|(_, stages)| stages.iter().copied()).collect()
    }
}

impl ModelLoader {
    /// The stages of the last loads.
    pub(crate) fn recent(&self) -> RecentLoads {
        self.recent.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use roundhouse_types::ModelId;

    use super::*;

    #[test]
    fn only_the_last_loads_are_remembered() {
        let id = |name: &str| ArtefactId {
            model: ModelId { endpoint: "ep".parse().unwrap(), target: name.parse().unwrap() },
            version: roundhouse_types::Version::from_digest("0123abcd"),
        };
        let now = SystemTime::now();
        let stage = |name| LoadStage { name, began: now, ended: now };
        let recent = RecentLoads::default();
        recent.add(&id("first"), vec![stage("read")]);
        recent.add(&id("again"), vec![stage("read")]);
        recent.add(&id("again"), vec![stage("copy")]);
        assert_eq!(recent.stages(&id("again")), [stage("read"), stage("copy")]);
        for _ in 2..LOADS {
            recent.add(&id("other"), Vec::new());
        }
        assert_eq!(recent.stages(&id("first")), []);
        assert_eq!(recent.stages(&id("again")).len(), 2);
    }
}
