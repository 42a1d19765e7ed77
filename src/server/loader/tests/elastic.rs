//! A loaded model's KV pool and what residency says to it.

use roundhouse_engine::LaneConfig;
use roundhouse_residency::testing::reporter;
use roundhouse_types::{KvOrder, KvReport, TargetName};

use super::*;

const DECODER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/models/support/aurora");

/// Waits until something is so.
async fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it stays as it is");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_loaded_model_takes_its_floor_and_hears_what_it_may_have_beyond() {
    let (endpoint, target): (EndpointName, TargetName) =
        ("ep".parse().unwrap(), "m".parse().unwrap());
    let models = Arc::new(LocalModels::default());
    let announced = Announced { url: String::new(), folder: DECODER.into() };
    assert!(models.announce(target.clone(), announced));
    let lane = Arc::new(Lane::start(DeviceId::Cpu, LaneConfig::default()).unwrap());
    let loader = ModelLoader::new(
        BTreeMap::from([(endpoint.clone(), Source::Local(models))]),
        BTreeMap::from([(DeviceId::Cpu, lane)]),
        LoadSettings { kv_sequences: 5, ..LoadSettings::default() },
        EngineConfig::default(),
        Handlers::default(),
    );
    let model = ModelId { endpoint, target };
    let version = loader.resolve(&model, true).await.unwrap().version;
    let id = ArtefactId { model: model.clone(), version };
    let (told, said) = reporter();
    let loaded = loader.load(&id, DeviceId::Cpu, LoadSource::Files, None, told).await.unwrap();
    let kv = || loader.facts(&model).and_then(|facts| facts.kv).expect("it generates");
    let (at_first, context) = (kv(), loader.facts(&model).unwrap().context);
    assert_eq!(at_first.floor, at_first.now);
    assert_eq!((at_first.floor.tokens, at_first.most.tokens), (context, 5 * context));
    let bytes = |tokens: usize| Bytes(tokens as u64 * at_first.token_bytes.0);
    assert_eq!(loaded.footprint.kv, bytes(context), "what is charged is the floor");

    let granted = bytes(2 * context);
    said.order_kv(KvOrder { granted, tight: false, number: 1 });
    until(|| kv().now.tokens == 3 * context).await;
    said.order_kv(KvOrder { granted, tight: true, number: 2 });
    let mut last = KvReport::default();
    until(|| {
        last = said.kv().unwrap_or(last);
        last.obeyed == 2
    })
    .await;
    assert_eq!((last.returned, kv().now), (granted, at_first.floor));
    assert!(loader.unload(&id, DeviceId::Cpu, Arc::new(loaded.model), false).await.is_none());
    assert_eq!(loader.facts(&model), None, "what is gone tells nothing");
}
