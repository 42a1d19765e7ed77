//! When the stages of the last loads were and where loads failed, for the traces of the requests that
//! waited for them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use roundhouse_gateway::{HaltedLoad, LoadStage};
use roundhouse_types::{ArtefactId, ErrorKind, Failure, ModelId};

use super::ModelLoader;
use super::stages::Stage;

/// Loads remembered; who waited for one is told of it when its answer ends.
const LOADS: usize = 256;

/// The last loads. Clones are the same; the loader adds, whoever traces reads.
#[derive(Clone, Default)]
pub(crate) struct RecentLoads(Arc<Mutex<Loads>>);

#[derive(Default)]
struct Loads {
    stood: VecDeque<(ArtefactId, Vec<LoadStage>)>,
    failed: VecDeque<(ModelId, HaltedLoad)>,
    /// By number, in the order of their begin.
    running: BTreeMap<u64, Begun>,
    next: u64,
}

/// A stage that is under way.
struct Begun {
    model: ModelId,
    stage: Stage,
    at: SystemTime,
}

/// A stage under way. Dropped, it is so no more.
pub(super) struct Running {
    recent: RecentLoads,
    number: u64,
}

impl RecentLoads {
    fn loads(&self) -> MutexGuard<'_, Loads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, id: &ArtefactId, stages: Vec<LoadStage>) {
        let stood = &mut self.loads().stood;
        if stood.len() == LOADS {
            stood.pop_front();
        }
        stood.push_back((id.clone(), stages));
    }

    /// A stage begins.
    pub(super) fn begin(&self, model: &ModelId, stage: Stage) -> Running {
        let mut loads = self.loads();
        let number = loads.next;
        loads.next += 1;
        let at = SystemTime::now();
        loads.running.insert(number, Begun { model: model.clone(), stage, at });
        Running { recent: self.clone(), number }
    }

    /// What is read by now has come to another stage.
    pub(super) fn reached(&self, model: &ModelId, stage: Stage) {
        let is_it = |begun: &&mut Begun| begun.model == *model && begun.stage == Stage::Read;
        if let Some(begun) = self.loads().running.values_mut().find(is_it) {
            (begun.stage, begun.at) = (stage, SystemTime::now());
        }
    }

    /// The stages of a version's loads, in the order of their ends; a version may be loaded more than
    /// once, on several devices or again.
    pub(crate) fn stages(&self, id: &ArtefactId) -> Vec<LoadStage> {
        let loads = self.loads();
        let of = loads.stood.iter().filter(|(loaded, _)| loaded == id);
        of.flat_map(|(_, stages)| stages.iter().copied()).collect()
    }

    /// Where a model's load has ended for a request that asked for it at a time and did not get it: where
    /// it failed meanwhile, or is now; else where it failed before, if that is why the request was
    /// refused.
    pub(crate) fn halted(
        &self,
        model: &ModelId,
        since: SystemTime,
        why: Option<ErrorKind>,
    ) -> Option<HaltedLoad> {
        let loads = self.loads();
        let of = || loads.failed.iter().rev().filter(|(of, _)| of == model).map(|(_, it)| it);
        if let Some(meanwhile) = of().find(|it| it.ended >= since) {
            return Some(meanwhile.clone());
        }
        if why.is_none_or(|why| [ErrorKind::NotReady, ErrorKind::TimedOut].contains(&why))
            && let Some(begun) = loads.running.values().rev().find(|begun| begun.model == *model)
        {
            let (began, ended) = (begun.at, SystemTime::now());
            return Some(HaltedLoad { name: begun.stage.as_str(), began, ended, failure: None });
        }
        let is_why = |it: &&HaltedLoad| it.failure.as_ref().map(Failure::kind) == why;
        of().find(is_why).cloned()
    }
}

impl Running {
    /// It has ended so.
    pub(super) fn ended<T>(self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.inspect_err(|failure| {
            let mut loads = self.recent.loads();
            let Some(begun) = loads.running.remove(&self.number) else { return };
            if loads.failed.len() == LOADS {
                loads.failed.pop_front();
            }
            let (name, ended) = (begun.stage.as_str(), SystemTime::now());
            let failure = Some(failure.clone());
            let halted = HaltedLoad { name, began: begun.at, ended, failure };
            loads.failed.push_back((begun.model, halted));
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.recent.loads().running.remove(&self.number);
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
    use std::time::Duration;

    use super::*;

    fn model(name: &str) -> ModelId {
        ModelId { endpoint: "ep".parse().unwrap(), target: name.parse().unwrap() }
    }

    #[test]
    fn only_the_last_loads_are_remembered() {
        let id = |name: &str| ArtefactId {
            model: model(name),
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

    #[test]
    fn where_a_load_has_ended_is_told_to_those_who_waited_for_it_or_are_refused_for_it() {
        let recent = RecentLoads::default();
        let begun = SystemTime::now();
        let name = |halted: Option<HaltedLoad>| halted.map(|it| (it.name, it.failure.is_some()));
        let running = recent.begin(&model("a"), Stage::Fetch);
        let not_ready = Some(ErrorKind::NotReady);
        assert_eq!(name(recent.halted(&model("a"), begun, not_ready)), Some(("fetch", false)));
        assert_eq!(name(recent.halted(&model("a"), begun, None)), Some(("fetch", false)));
        assert!(recent.halted(&model("b"), begun, not_ready).is_none());
        // A request that the model has answered badly did not wait for this.
        assert!(recent.halted(&model("a"), begun, Some(ErrorKind::InvalidInput)).is_none());
        assert!(running.ended(Ok(())).is_ok());
        assert!(recent.halted(&model("a"), begun, not_ready).is_none());

        let running = recent.begin(&model("a"), Stage::Read);
        recent.reached(&model("a"), Stage::Warm);
        let failure = Failure::new(ErrorKind::ModelInvalid, "a bad tensor");
        assert!(running.ended(Err::<(), _>(failure)).is_err());
        assert_eq!(name(recent.halted(&model("a"), begun, None)), Some(("warm", true)));
        let later = SystemTime::now() + Duration::from_secs(1);
        let refused = Some(ErrorKind::ModelInvalid);
        assert_eq!(name(recent.halted(&model("a"), later, refused)), Some(("warm", true)));
        assert!(recent.halted(&model("a"), later, Some(ErrorKind::Overloaded)).is_none());
        drop(recent.begin(&model("a"), Stage::Fetch));
        assert!(recent.halted(&model("a"), later, None).is_none(), "it was given up");
    }
}
