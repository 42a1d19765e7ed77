//! Containers and engines of the operator's, as operators are shown them.

use roundhouse_containers::Seen;
use roundhouse_residency::rfc3339;
use roundhouse_types::{DeviceId, EndpointName, ModelId};
use serde_json::{Value, json};

use crate::error::count;

/// Looks at all of them.
pub(crate) type ContainersFn = Box<dyn Fn() -> Vec<Shown> + Send + Sync>;

/// One container or engine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub(crate) endpoint: EndpointName,
    /// Its hostname; of an engine its target, of a container of many models the targets of its rule.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Where an engine is.
    pub(crate) device: Option<DeviceId>,
    /// Models in it, or adapters; absent where it holds none of ours.
    pub(crate) models: Option<usize>,
    pub(crate) seen: Seen,
}

/// What one is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It answers for its endpoint.
    Container,
    /// It holds models that are loaded into it.
    Models,
    /// It was started for one target.
    Engine,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Models => "models",
            Self::Engine => "engine",
        }
    }
}

impl Shown {
    /// It as an object.
    pub(super) fn row(&self) -> Value {
        let Self { endpoint, name, kind, device, models, seen } = self;
        json!({
            "endpoint": endpoint, "name": name, "kind": kind.as_str(), "device": device,
            "state": seen.condition.as_str(), "address": seen.address, "pid": seen.process,
            "restarts": seen.restarts, "in_flight": seen.in_flight,
            "max_in_flight": seen.max_in_flight, "models": models,
            "failure": seen.last.as_ref().map(|last| &*last.message),
            "failed_at": seen.last.as_ref().map(|last| rfc3339(last.at)),
        })
    }

    /// It as a row of an endpoint's models: what requests can name there.
    pub(super) fn as_model(&self) -> Value {
        let Self { endpoint, name, seen, .. } = self;
        json!({
            "endpoint": endpoint, "target": name, "bytes": null, "serves": null, "archive": false,
            "state": seen.condition.as_str(), "devices": [], "copy": false,
            "failure": seen.last.as_ref().map(|last| &*last.message), "container": self.row(),
        })
    }

    /// How it stands, in one sentence.
    pub(super) fn sentence(&self) -> String {
        let Seen { condition, address, process, restarts, in_flight, max_in_flight, last } =
            &self.seen;
        let (kind, condition) = (self.kind.as_str(), condition.as_str().replace('_', " "));
        let mut said = format!("{kind}, {condition}");
        if let Some(device) = self.device {
            said.push_str(&format!(" on {device}"));
        }
        if let Some(address) = address {
            said.push_str(&format!(", at {address}"));
        }
        if let Some(process) = process {
            let times = count(*restarts, "time");
            said.push_str(&format!(", process {process}, started again {times}"));
        }
        let most = count(*max_in_flight, "request");
        said.push_str(&format!(", {in_flight} of {most} under way"));
        if let Some(last) = last {
            let (message, at) = (&last.message, rfc3339(last.at));
            said.push_str(&format!("; failed last at {at}: {message}"));
        }
        said
    }
}

/// The engines of one model, on whatever devices.
pub(super) fn of_model(all: Vec<Shown>, model: &ModelId) -> Vec<Shown> {
    let is_its = |it: &Shown| {
        let Shown { endpoint, name, kind, .. } = it;
        *kind == Kind::Engine && *endpoint == model.endpoint && name == model.target.as_str()
    };
    all.into_iter().filter(is_its).collect()
}

/// The containers of one endpoint, in the order of their names.
pub(super) fn of_endpoint(all: Vec<Shown>, endpoint: &EndpointName) -> Vec<Shown> {
    let is_there = |it: &Shown| it.kind == Kind::Container && it.endpoint == *endpoint;
    all.into_iter().filter(is_there).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use roundhouse_containers::{Condition, LastFailure};

    use super::*;

    fn shown() -> Shown {
        Shown {
            endpoint: "pipe".parse().unwrap(),
            name: "first".into(),
            kind: Kind::Container,
            device: None,
            models: None,
            seen: Seen {
                condition: Condition::LeftAlone,
                address: Some("http://127.0.0.1:9".into()),
                process: Some(7),
                restarts: 2,
                in_flight: 1,
                max_in_flight: 8,
                last: Some(LastFailure {
                    message: "no connection".into(),
                    at: UNIX_EPOCH + Duration::from_secs(1),
                }),
            },
        }
    }

    #[test]
    fn a_container_is_shown_with_all_that_is_known_of_it() {
        let wanted = json!({
            "endpoint": "pipe", "name": "first", "kind": "container", "device": null,
            "state": "left_alone", "address": "http://127.0.0.1:9", "pid": 7, "restarts": 2,
            "in_flight": 1, "max_in_flight": 8, "models": null, "failure": "no connection",
            "failed_at": "1970-01-01T00:00:01.000Z",
        });
        assert_eq!(shown().row(), wanted);
        assert_eq!(
            shown().sentence(),
            "container, left alone, at http://127.0.0.1:9, process 7, started again 2 times, 1 of 8 \
             requests under way; failed last at 1970-01-01T00:00:01.000Z: no connection"
        );
    }

    #[test]
    fn an_endpoints_containers_and_a_models_engines_are_its_own() {
        let engine = Shown { kind: Kind::Engine, ..shown() };
        let other = Shown { endpoint: "other".parse().unwrap(), ..shown() };
        let all = vec![shown(), engine.clone(), other];
        assert_eq!(of_endpoint(all.clone(), &"pipe".parse().unwrap()), [shown()]);
        let (endpoint, target) = ("pipe".parse().unwrap(), "first".parse().unwrap());
        assert_eq!(of_model(all, &ModelId { endpoint, target }), [engine]);
    }
}
