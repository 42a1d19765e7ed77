use super::*;

#[tokio::test(start_paused = true)]
async fn a_model_that_many_use_for_long_serves_from_two_devices_and_is_no_regret() {
    let loader = ScriptedLoader::new([("hot", Script::of(40)), ("other", Script::of(40))]);
    let devices = [DeviceId::Simulated(0), DeviceId::Simulated(1)].map(|id| (id, Bytes(100)));
    let residency = Residency::start(Config::default(), devices.to_vec(), Arc::clone(&loader));
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let residency = residency.clone();
        clients.spawn(async move {
            for _ in 0..40 {
                let lease = residency.acquire(&model("hot"), soon()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(250)).await;
                drop(lease);
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(8_100)).await;
    let snapshot = residency.snapshot().await.unwrap();
    let leases: Vec<u32> =
        snapshot.devices.iter().flat_map(|it| &it.residents).map(|it| it.leases).collect();
    assert_eq!(leases, vec![10, 10], "twenty requests, spread over both devices");
    clients.join_all().await;
    assert_eq!(count(&loader.calls.loads), 2);
    let decisions = residency.explain(&model("hot")).await.unwrap().decisions;
    let replications =
        decisions.iter().filter(|it| matches!(it.action, Action::Replicating { .. }));
    assert_eq!(replications.count(), 1);

    // One leaves: for the optimum, and for who asks, the model was there all the time.
    tokio::time::sleep(Duration::from_secs(20)).await;
    residency.set_budget(DeviceId::Simulated(0), Bytes(10)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(count(&loader.calls.unloads), 1);
    assert_eq!(residency.acquire(&model("hot"), soon()).await.unwrap().tier(), Tier::Device);
    drop(residency.acquire(&model("other"), soon()).await.unwrap());
    tokio::time::resume();
    let regret = residency.regret().await.unwrap();
    assert_eq!((regret.requests, regret.loads), (802, 2), "one load of each");
    assert_eq!(regret.optimal_loads.upper, 2);
}
