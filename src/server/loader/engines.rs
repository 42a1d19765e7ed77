//! Engines and containers as operators are shown them.

use roundhouse_containers::driven::Engine;
use roundhouse_containers::{Condition, Seen};
use roundhouse_serving::{Invocation, Request};
use roundhouse_types::{ArtefactId, DeviceId, Failure};

use super::external::Engines;
use super::{ModelLoader, locked};
use crate::admin::{Kind, Shown};

/// An engine that is being started; dropped when it is, or is not to be any more.
pub(super) struct Starting<'a> {
    engines: &'a Engines,
    key: (ArtefactId, DeviceId),
}

impl<'a> Starting<'a> {
    pub(super) fn mark(engines: &'a Engines, id: &ArtefactId, device: DeviceId) -> Self {
        let key = (id.clone(), device);
        locked(&engines.starting).insert(key.clone());
        Self { engines, key }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        locked(&self.engines.starting).remove(&self.key);
    }
}

impl ModelLoader {
    /// Why the engine of a target would refuse a request, where that is known before one is started.
    /// `own_prefixes`: whether tenants' prompts are kept apart.
    pub(crate) fn refusal(&self, invocation: &Invocation, own_prefixes: bool) -> Option<Failure> {
        let Request::Raw(raw) = &invocation.request else { return None };
        let keeps_apart = own_prefixes && invocation.caller.tenant.is_some();
        let spec = self.engines.started(&invocation.model)?;
        spec.refusal(raw.route, keeps_apart, &raw.body.body)
    }

    /// The engines that start, serve or sleep, and the containers that hold models of ours.
    pub(crate) fn engines_seen(&self) -> Vec<Shown> {
        let mut all = self.engines.containers.seen();
        for (id, device) in locked(&self.engines.starting).iter() {
            all.push(shown(id, *device, None, starting()));
        }
        for ((id, device), awake) in locked(&self.engines.awake).iter() {
            if let Some(engine) = awake.engine.upgrade() {
                all.push(shown(id, *device, engine.adapters_in(), engine.seen()));
            }
        }
        for (id, sleeper) in locked(&self.engines.asleep).iter() {
            let engine: &Engine = &sleeper.engine;
            let seen = Seen { condition: Condition::Asleep, ..engine.seen() };
            all.push(shown(id, sleeper.device, engine.adapters_in(), seen));
        }
        all
    }
}

fn shown(id: &ArtefactId, device: DeviceId, models: Option<usize>, seen: Seen) -> Shown {
    let (endpoint, name) = (id.model.endpoint.clone(), id.model.target.to_string());
    Shown { endpoint, name, kind: Kind::Engine, device: Some(device), models, seen }
}

/// What can be said of one that has no process yet.
fn starting() -> Seen {
    Seen {
        condition: Condition::Starting,
        address: None,
        process: None,
        restarts: 0,
        in_flight: 0,
        max_in_flight: 0,
        last: None,
    }
}
