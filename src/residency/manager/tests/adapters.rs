use super::*;

#[tokio::test(start_paused = true)]
async fn an_adapter_is_loaded_onto_its_base_and_lets_go_of_it_before_that_is_unloaded() {
    let loader = ScriptedLoader::new([("b", Script::of(40)), ("x", Script::on("b", 10))]);
    let devices = vec![(DeviceId::Cpu, Bytes(100))];
    let residency = Residency::start(Config::default(), devices, Arc::clone(&loader));
    let lease = residency.acquire(&model("x"), soon()).await.unwrap();
    assert_eq!((count(&loader.calls.loads), lease.as_str()), (2, "x"));
    let unload = tokio::spawn({
        let residency = residency.clone();
        async move { residency.unload(&model("b")).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(count(&loader.calls.unloads), 0, "a request runs on what is on it");
    drop(lease);
    let report = unload.await.unwrap().unwrap();
    assert_eq!(report.adapters.len(), 1);
    assert_eq!(count(&loader.calls.unloads), 2);
    residency.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_adapter_whose_load_panics_lets_go_of_its_base() {
    let panics = Script { load_panics: true, ..Script::on("b", 10) };
    let loader = ScriptedLoader::new([("b", Script::of(40)), ("x", panics)]);
    let devices = vec![(DeviceId::Cpu, Bytes(100))];
    let residency = Residency::start(Config::default(), devices, Arc::clone(&loader));
    let failure = residency.acquire(&model("x"), soon()).await.unwrap_err();
    assert!(failure.message().contains("panicked"), "{failure}");
    // The loader asserts that nobody else holds what it unloads.
    assert!(residency.unload(&model("b")).await.unwrap().adapters.is_empty());
}
