//! What loaders report of their models, through the owner task.

use super::*;

use roundhouse_types::{Footprint, KvReport};

use crate::Departure;

fn gone() -> Failure {
    Failure::new(ErrorKind::ModelFailed, "all 2 workers are gone")
}

fn takes(bytes: u64) -> Footprint {
    Footprint { weights: Bytes(bytes), ..Footprint::default() }
}

async fn charged(residency: &Residency<String>) -> Bytes {
    residency.snapshot().await.unwrap().devices[0].charged_bytes
}

#[tokio::test(start_paused = true)]
async fn a_death_before_the_end_of_the_load_was_seen_is_granted_to_nobody() {
    let loader = ScriptedLoader::new([("a", Script { dies: Some(gone()), ..Script::of(40) })]);
    let residency = start(100, &loader, Config::default());
    let other = residency.clone();
    let waiting = tokio::spawn(async move { other.acquire(&model("a"), soon()).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    loader.change("a", |script| script.dies = None);
    let lease = waiting.await.unwrap().unwrap();
    assert_eq!((count(&loader.calls.loads), count(&loader.calls.unloads)), (2, 1));
    let decisions = residency.explain(&model("a")).await.unwrap().decisions;
    let ready = decisions.iter().filter(|d| matches!(d.action, Action::Ready { .. })).count();
    assert_eq!(ready, 1, "the dead one never served");
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn a_measure_before_the_end_of_the_load_was_seen_is_what_is_charged() {
    let loader = ScriptedLoader::new([("a", Script { grows: Some(60), ..Script::of(40) })]);
    let residency = start(100, &loader, Config::default());
    let _lease = residency.acquire(&model("a"), soon()).await.unwrap();
    assert_eq!(charged(&residency).await, Bytes(60));
    let decisions = residency.explain(&model("a")).await.unwrap().decisions;
    assert!(decisions.iter().any(|d| d.action == Action::Ready { bytes: Bytes(60) }));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_dies_of_every_load_is_paused() {
    let loader = ScriptedLoader::new([("a", Script { dies: Some(gone()), ..Script::of(40) })]);
    let residency = start(100, &loader, Config::default());
    let failure = residency.acquire(&model("a"), soon()).await.unwrap_err();
    assert_eq!(failure.message(), "all 2 workers are gone");
    assert_eq!(count(&loader.calls.loads), 2, "a first death is not paused");
    let told = residency.acquire(&model("a"), soon()).await.unwrap_err();
    assert_eq!(told.retry(), RetryHint::After(Duration::from_secs(1)));
    assert_eq!(count(&loader.calls.loads), 2, "the second is");
    let failed = residency.snapshot().await.unwrap().failed;
    assert_eq!((failed.len(), failed[0].attempts), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_death_that_was_reported_before_a_request_came_is_seen_before_it() {
    let loader = ScriptedLoader::new([("a", Script::of(40))]);
    let residency = start(100, &loader, Config::default());
    drop(residency.acquire(&model("a"), soon()).await.unwrap());
    loader.reporter("a").died(gone());
    let lease = residency.acquire(&model("a"), soon()).await.unwrap();
    assert_eq!((lease.tier(), count(&loader.calls.loads)), (Tier::Disk, 2));
}

#[tokio::test(start_paused = true)]
async fn a_dead_model_leaves_with_its_last_lease_and_says_why() {
    let loader = ScriptedLoader::new([("a", Script::of(40))]);
    let residency = start(100, &loader, Config::default());
    let mut events = residency.events();
    let lease = residency.acquire(&model("a"), soon()).await.unwrap();
    loader.reporter("a").died(gone());
    let other = residency.clone();
    let waiting = tokio::spawn(async move { other.acquire(&model("a"), soon()).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(count(&loader.calls.unloads), 0, "a lease is held");
    assert_eq!(charged(&residency).await, Bytes(40));
    drop(lease);
    waiting.await.unwrap().unwrap();
    assert_eq!(count(&loader.calls.unloads), 1);
    let decisions = residency.explain(&model("a")).await.unwrap().decisions;
    assert!(decisions.iter().any(|d| d.message == "died: all 2 workers are gone"));
    let leaves = |a: &Action| matches!(a, Action::Draining { why: Departure::Died, .. });
    assert!(decisions.iter().any(|decision| leaves(&decision.action)));
    let mut published = Vec::new();
    while let Ok(event) = events.try_recv() {
        published.push(serde_json::to_value(event).unwrap());
    }
    let died = published.iter().find(|event| event["action"] == "died").unwrap();
    assert_eq!((&died["reason"], &died["deaths"]), (&"all 2 workers are gone".into(), &1.into()));
    assert!(published.iter().any(|event| event["why"] == "died"));
}

#[tokio::test(start_paused = true)]
async fn reports_about_an_earlier_load_of_the_same_artefact_are_ignored() {
    let loader = ScriptedLoader::new([("a", Script::of(40))]);
    let residency = start(100, &loader, Config::default());
    drop(residency.acquire(&model("a"), soon()).await.unwrap());
    let stale = loader.reporter("a");
    residency.unload(&model("a")).await.unwrap();
    stale.measured(takes(90));
    drop(residency.acquire(&model("a"), soon()).await.unwrap());
    stale.measured(takes(90));
    stale.died(gone());
    assert_eq!(charged(&residency).await, Bytes(40));
    assert_eq!(residency.acquire(&model("a"), soon()).await.unwrap().tier(), Tier::Device);
    loader.reporter("a").measured(takes(50));
    assert_eq!(charged(&residency).await, Bytes(50), "its own reporter is heard");
}

#[tokio::test(start_paused = true)]
async fn of_many_measures_the_latest_counts_until_the_memory_is_free() {
    let loader = ScriptedLoader::new([("a", Script::of(40)), ("b", Script::of(50))]);
    let residency = start(100, &loader, Config::default());
    let lease = residency.acquire(&model("a"), soon()).await.unwrap();
    let reporter = loader.reporter("a");
    for bytes in 0..=100 {
        reporter.measured(takes(bytes));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(charged(&residency).await, Bytes(100), "without any command");
    let other = residency.clone();
    let waiting = tokio::spawn(async move { other.acquire(&model("b"), soon()).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(count(&loader.calls.loads), 1, "there is no room");
    reporter.measured(takes(45));
    waiting.await.unwrap().unwrap();
    assert_eq!(charged(&residency).await, Bytes(95));
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn a_pool_hears_what_it_is_granted_and_is_squeezed_for_the_next_load() {
    let loader = ScriptedLoader::new([("a", Script::of(40)), ("b", Script::of(50))]);
    let residency = start(100, &loader, Config::default());
    let lease = residency.acquire(&model("a"), soon()).await.unwrap();
    let reporter = loader.reporter("a");
    let (heard, mut orders) = tokio::sync::mpsc::unbounded_channel();
    reporter.listen_for_kv(move |order| heard.send(order).unwrap());
    let say = |wanted, returned, obeyed| {
        let [chunk, wanted, returned] = [10, wanted, returned].map(Bytes);
        reporter.kv(KvReport { chunk, wanted, returned, obeyed });
    };
    say(30, 0, 0);
    let order = orders.recv().await.unwrap();
    assert_eq!((order.granted, order.tight), (Bytes(30), false));
    assert_eq!(charged(&residency).await, Bytes(70));
    let other = residency.clone();
    let loading = tokio::spawn(async move { other.acquire(&model("b"), soon()).await });
    let order = orders.recv().await.unwrap();
    assert!(order.tight && count(&loader.calls.loads) == 1);
    say(30, 20, order.number);
    drop(loading.await.unwrap().unwrap());
    assert_eq!(charged(&residency).await, Bytes(100));
    assert_eq!(count(&loader.calls.unloads), 0);
    drop(lease);
}
