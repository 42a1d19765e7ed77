//! How the models of an endpoint stand, for the list of all of them.

use std::collections::BTreeMap;

use roundhouse_residency::{CopyState, ResidentState, Snapshot};
use roundhouse_types::{DeviceId, EndpointName, TargetName};
use serde_json::{Value, json};

/// One model's state, wherever it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Standing {
    /// Of its resident that serves, else of its load, else of what leaves, else of its last
    /// failure; nothing where it is only in the store.
    pub(super) state: Option<Value>,
    /// The devices that it is on, those that it leaves included.
    pub(super) devices: Vec<DeviceId>,
    /// Whether a load may begin from its copy in the host's memory.
    pub(super) copy: bool,
    /// Why its last attempt, or another version than the one that serves, failed, while that is
    /// remembered.
    pub(super) failure: Option<String>,
}

/// All models of an endpoint that have a state.
pub(super) fn of(endpoint: &EndpointName, snapshot: &Snapshot) -> BTreeMap<TargetName, Standing> {
    let mut models: BTreeMap<TargetName, Standing> = BTreeMap::new();
    // The later says more.
    for failed in snapshot.failed.iter().filter(|it| it.endpoint == *endpoint) {
        let model = models.entry(failed.target.clone()).or_default();
        (model.state, model.failure) = (Some(json!(failed.state)), Some(failed.message.clone()));
    }
    for (model, unfit) in snapshot.unfit.iter().filter(|(it, _)| it.endpoint == *endpoint) {
        let model = models.entry(model.target.clone()).or_default();
        model.failure.get_or_insert_with(|| unfit.reason.clone());
    }
    let residents = || {
        let all = snapshot
            .devices
            .iter()
            .flat_map(|device| device.residents.iter().map(|resident| (device.id, resident)));
        all.filter(|(_, resident)| resident.endpoint == *endpoint)
    };
    for (device, resident) in residents() {
        let model = models.entry(resident.target.clone()).or_default();
        model.state = Some(json!(resident.state));
        if !model.devices.contains(&device) {
            model.devices.push(device);
        }
    }
    for load in snapshot.loads.iter().filter(|it| it.endpoint == *endpoint) {
        models.entry(load.target.clone()).or_default().state = Some(json!(load.state));
    }
    for (_, resident) in residents().filter(|(_, it)| it.state == ResidentState::Ready) {
        let model = models.entry(resident.target.clone()).or_default();
        model.state = Some(json!(resident.state));
        // It serves, and another version of it does not.
        if let Some(unfit) = &resident.unfit {
            model.failure = Some(unfit.reason.clone());
        }
    }
    let copies = snapshot.host.iter().flat_map(|host| &host.copies);
    for copy in copies.filter(|it| it.endpoint == *endpoint && it.state == CopyState::Ready) {
        models.entry(copy.target.clone()).or_default().copy = true;
    }
    models
}
