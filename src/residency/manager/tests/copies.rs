//! Copies in the host's memory through the owner task.

use super::*;

/// One device of 100 bytes with a memory of its own.
fn hosted(host_budget: u64, loader: &Arc<ScriptedLoader>) -> Residency<String> {
    let config = Config { host_budget: Bytes(host_budget), ..Config::default() };
    let devices = vec![(DeviceId::Simulated(0), Bytes(100))];
    Residency::start(config, devices, Arc::clone(loader))
}

fn two() -> Arc<ScriptedLoader> {
    let fetched = Script { fetch: Duration::from_secs(2), ..Script::of(80) };
    ScriptedLoader::new([("a", fetched.clone()), ("b", fetched)])
}

/// A request is answered and ends; where its model was found.
async fn ask(residency: &Residency<String>, name: &str) -> Tier {
    residency.acquire(&model(name), soon()).await.unwrap().tier()
}

async fn charged(residency: &Residency<String>) -> (Bytes, usize) {
    let host = residency.snapshot().await.unwrap().host.expect("it has a budget");
    (host.charged_bytes, host.copies.len())
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_to_its_device_comes_from_the_hosts_memory() {
    let loader = two();
    let residency = hosted(200, &loader);
    for (name, tier) in [("a", Tier::Store), ("b", Tier::Store), ("a", Tier::Host)] {
        assert_eq!(ask(&residency, name).await, tier, "{name}");
    }
    assert_eq!((count(&loader.calls.fetches), count(&loader.calls.promotions)), (2, 1));
    assert_eq!(charged(&residency).await, (Bytes(160), 2));
    let decisions = residency.explain(&model("a")).await.unwrap().decisions;
    assert!(decisions.iter().any(|it| it.action == Action::Demoted { bytes: Bytes(80) }));
}

#[tokio::test(start_paused = true)]
async fn the_hosts_budget_may_change_while_the_server_runs() {
    let loader = two();
    let residency = hosted(0, &loader);
    assert!(residency.snapshot().await.unwrap().host.is_none());
    residency.set_host_budget(Bytes(100)).await.unwrap();
    ask(&residency, "a").await;
    ask(&residency, "b").await;
    assert_eq!(charged(&residency).await, (Bytes(80), 1));
    residency.set_host_budget(Bytes(50)).await.unwrap();
    assert_eq!(charged(&residency).await, (Bytes(80), 1), "until the host has it back");
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(charged(&residency).await, (Bytes::ZERO, 0));
    assert_eq!(ask(&residency, "a").await, Tier::Store);
}

#[tokio::test(start_paused = true)]
async fn a_discard_that_panics_is_over_and_one_that_is_slow_holds_up_the_end() {
    for discard_panics in [false, true] {
        let loader = two();
        let residency = hosted(100, &loader);
        ask(&residency, "a").await;
        ask(&residency, "b").await;
        loader.change("a", |script| {
            script.unload = Duration::from_secs(7);
            script.discard_panics = discard_panics;
        });
        let begun = tokio::time::Instant::now();
        residency.shutdown().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(7));
        assert_eq!(count(&loader.calls.discards), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unload_that_panics_leaves_no_copy() {
    let loader = two();
    let residency = hosted(100, &loader);
    ask(&residency, "a").await;
    loader.change("a", |script| script.unload_panics = true);
    ask(&residency, "b").await;
    let host = residency.snapshot().await.unwrap().host.unwrap();
    assert_eq!((host.charged_bytes, host.reserved_bytes), (Bytes::ZERO, Bytes::ZERO));
    assert_eq!(ask(&residency, "a").await, Tier::Store);
}
