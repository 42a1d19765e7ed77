//! What becomes of an engine's places for adapters when it does not do as it is told.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use roundhouse_containers::driven::{
    AdapterRoutes, Adapters, Driven, Engine, EngineSpec, Fill, Start,
};
use roundhouse_types::{Bytes, ErrorKind, Failure, ModelId};

use super::Test;
use super::life::{PATIENCE, wait};

pub(crate) const TESTS: &[Test] = &[
    ("an_adapter_that_does_not_leave_keeps_its_place_until_it_does", clings),
    ("an_adapter_that_an_engine_has_already_is_loaded_anew", has_it_already),
    ("sglangs_name_for_a_model_has_no_adapters_name_in_it", no_colon),
];

async fn engine(word: &str, routes: AdapterRoutes, name: &str) -> Result<Arc<Engine>, Failure> {
    let exe = std::env::current_exe().unwrap();
    let command = [exe.to_str().unwrap(), "stand-in", "loras", word];
    let slots = NonZeroUsize::MIN;
    let spec = EngineSpec {
        command: command.map(str::to_owned).to_vec(),
        environment: BTreeMap::new(),
        memory: Bytes::ZERO,
        measure: false,
        own_processes: true,
        name: name.into(),
        health: "/health".into(),
        start_timeout: PATIENCE,
        stop_timeout: PATIENCE,
        invocations: None,
        sleep: None,
        adapters: Some(Adapters { routes, slots }),
        cache_salt: false,
    };
    let fill = Fill { model: String::new(), target: "a".into(), device: 0 };
    let engine = Engine::start(Start {
        spec: Arc::new(spec),
        rule: "of-tests".into(),
        exe,
        inherited: Vec::new(),
        fill,
        news: Arc::new(|_| {}),
    });
    engine.await.map(Arc::new)
}

async fn loaded(engine: &Arc<Engine>, name: &str) -> Result<Driven, Failure> {
    let seat = engine.seat().unwrap();
    let base = ModelId { endpoint: "e".parse().unwrap(), target: "a".parse().unwrap() };
    Driven::adapter(engine.clone(), base, seat, name.into(), Path::new("/x")).await
}

fn clings() {
    wait(async {
        let engine = engine("clings", AdapterRoutes::Vllm, "m").await.unwrap();
        let adapter = loaded(&engine, "one").await.unwrap();
        adapter.leave().await;
        assert!(engine.seat().is_none(), "it may still be in there");
        engine.reclaim().await;
        drop(engine.seat().unwrap());
        engine.stop().await;
    });
}

fn has_it_already() {
    wait(async {
        let engine = engine("", AdapterRoutes::Vllm, "m").await.unwrap();
        // Nobody saw how its load ended.
        drop(loaded(&engine, "one").await.unwrap());
        let adapter = loaded(&engine, "one").await.unwrap();
        adapter.leave().await;
        let refused = loaded(&engine, "refused").await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ModelInvalid);
        assert!(refused.message().contains("400"), "{refused}");
        assert!(refused.message().len() < 4096, "{}", refused.message().len());
        assert!(engine.seat().is_some());
        engine.stop().await;
    });
}

fn no_colon() {
    wait(async {
        let refused = engine("", AdapterRoutes::Sglang, "m:x").await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ModelInvalid);
        assert!(refused.message().contains("'m:x'"), "{refused}");
    });
}
