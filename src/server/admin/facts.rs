//! What residents serve, beside what they take.

use roundhouse_residency::Snapshot;
use roundhouse_types::{ArtefactId, Failure, ModelId};
use serde_json::Value;

use super::unsayable;
use crate::loader::{Facts, ModelLoader};

/// What is known of each resident, in the order of the snapshot.
pub(super) fn of(snapshot: &Snapshot, loader: &ModelLoader) -> Vec<Option<Facts>> {
    let devices = snapshot.devices.iter();
    let residents = devices.flat_map(|found| found.residents.iter().map(move |it| (found.id, it)));
    let facts = residents.map(|(device, resident)| {
        let (endpoint, target) = (resident.endpoint.clone(), resident.target.clone());
        let model = ModelId { endpoint, target };
        loader.facts_of(&ArtefactId { model, version: resident.version.clone() }, device)
    });
    facts.collect()
}

/// Adds it to the snapshot as it is shown.
pub(super) fn show(shown: &mut Value, facts: Vec<Option<Facts>>) -> Result<(), Failure> {
    let devices = shown["devices"].as_array_mut().into_iter().flatten();
    let residents = devices.flat_map(|found| found["residents"].as_array_mut()).flatten();
    for (resident, facts) in residents.zip(facts) {
        resident["serves"] = serde_json::to_value(facts).map_err(unsayable)?;
    }
    Ok(())
}
