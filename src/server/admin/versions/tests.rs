use roundhouse_residency::{DeviceSnapshot, ResidentSnapshot};
use roundhouse_types::{DeviceId, Footprint, ModelKind};

use super::*;

/// A model whose version 1 serves, while this failed.
fn serving(model: &ModelId, unfit: UnfitSnapshot) -> Snapshot {
    let resident = ResidentSnapshot {
        endpoint: model.endpoint.clone(),
        target: model.target.clone(),
        version: Version::from_digest("1"),
        kind: ModelKind::Adapter,
        base: None,
        adapters: 0,
        state: ResidentState::Ready,
        bytes: Footprint::default(),
        shared_bytes: Bytes::ZERO,
        share_bytes: Bytes::ZERO,
        leases: 0,
        kept: false,
        offered: None,
        unfit: Some(unfit),
        last_used: String::new(),
    };
    let device = DeviceSnapshot {
        id: DeviceId::Cpu,
        budget_bytes: Bytes::ZERO,
        charged_bytes: Bytes::ZERO,
        reserved_bytes: Bytes::ZERO,
        over_bytes: Bytes::ZERO,
        residents: vec![resident],
    };
    let (loads, failed, unfit) = (vec![], vec![], vec![]);
    Snapshot { devices: vec![device], host: None, waiters: 0, loads, failed, unfit }
}

#[test]
fn a_failure_of_no_known_version_is_never_told_of_the_one_that_serves() {
    let model = ModelId { endpoint: "e".parse().unwrap(), target: "x".parse().unwrap() };
    let digests = ["1", "2"].map(Version::from_digest);
    // What failed, what the store holds, whose failure that is.
    let cases = [
        (None, Some(0), None),
        (None, Some(1), Some(1)),
        (None, None, None),
        (Some(1), Some(0), Some(1)),
    ];
    for (failed, in_store, blamed) in cases {
        let version = failed.map(|at: usize| digests[at].clone());
        let reason = "its base has 3 classes".to_owned();
        let unfit = UnfitSnapshot { version, reason, since: "noon".into() };
        let snapshot = serving(&model, unfit);
        let mut rows = BTreeMap::new();
        add_loaded(&mut rows, &model, &snapshot);
        let named = in_store.map(|at: usize| &digests[at]);
        let untold = add_failed(&mut rows, &model, &snapshot, named);
        let told: Vec<usize> = (0..digests.len())
            .filter(|at| rows.get(&digests[*at]).is_some_and(|row| row.failure.is_some()))
            .collect();
        assert_eq!(told, Vec::from_iter(blamed), "{failed:?} {in_store:?}");
        assert_eq!(untold.is_some(), named == Some(&digests[0]) && failed.is_none());
    }
}
