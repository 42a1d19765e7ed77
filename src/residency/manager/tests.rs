//! The owner task with paused time and a scripted loader.

mod adapters;
mod arriving;
mod chaos;
mod copies;
mod looks;
mod regret;
mod replicas;
mod reports;
mod versions;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use roundhouse_types::{Bytes, DeviceId, ErrorKind, Failure, RetryHint, Tier};
use tokio::task::JoinSet;

use crate::testing::{Script, ScriptedLoader, model, version};
use crate::{Action, Config, LoadOptions, Residency, ResidentState};

fn start(budget: u64, loader: &Arc<ScriptedLoader>, config: Config) -> Residency<String> {
    Residency::start(config, vec![(DeviceId::Cpu, Bytes(budget))], Arc::clone(loader))
}

fn within(time: Duration) -> Instant {
    tokio::time::Instant::now().into_std() + time
}

fn soon() -> Instant {
    within(Duration::from_secs(10))
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn many_requests_share_one_load_and_a_resident_answers_at_once() {
    let loader = ScriptedLoader::new([("a", Script::of(40))]);
    let residency = start(100, &loader, Config::default());
    let mut requests = JoinSet::new();
    for _ in 0..20 {
        let residency = residency.clone();
        requests.spawn(async move { residency.acquire(&model("a"), soon()).await });
    }
    for lease in requests.join_all().await {
        let lease = lease.unwrap();
        assert_eq!((&*lease, lease.tier()), (&"a".to_string(), Tier::Disk));
        assert_eq!(lease.load_wait(), Duration::from_millis(50));
    }
    let lease = residency.acquire(&model("a"), soon()).await.unwrap();
    assert_eq!((lease.tier(), lease.load_wait()), (Tier::Device, Duration::ZERO));
    assert_eq!(count(&loader.calls.loads), 1);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_waiter_does_not_cancel_a_shared_load() {
    let script = Script { fetch: Duration::from_secs(2), ..Script::of(40) };
    let loader = ScriptedLoader::new([("a", script)]);
    let residency = start(100, &loader, Config::default());
    let other = residency.clone();
    let waiting = tokio::spawn(async move { other.acquire(&model("a"), soon()).await });
    let name = model("a");
    let gave_up = residency.acquire(&name, soon());
    assert!(tokio::time::timeout(Duration::from_secs(1), gave_up).await.is_err());
    let lease = waiting.await.unwrap().unwrap();
    assert_eq!(lease.tier(), Tier::Store);
    assert_eq!((count(&loader.calls.fetches), count(&loader.calls.loads)), (1, 1));
    assert_eq!(residency.snapshot().await.unwrap().waiters, 0);
}

#[tokio::test(start_paused = true)]
async fn a_load_outlives_its_waiters_and_says_how_far_it_is() {
    let script = Script { fetch: Duration::from_secs(90), ..Script::of(40) };
    let loader = ScriptedLoader::new([("a", script)]);
    let residency = start(100, &loader, Config::default());
    let hold = within(Duration::from_secs(55));
    let failure = residency.acquire(&model("a"), hold).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::NotReady);
    assert!(failure.message().contains("20 B of 40 B"), "{failure}");
    let loading = residency.snapshot().await.unwrap().loads;
    assert_eq!(loading.len(), 1, "the load goes on");
    let hold = within(Duration::from_secs(55));
    let lease = residency.acquire(&model("a"), hold).await.unwrap();
    assert_eq!(lease.version(), &version(1));
    assert_eq!(count(&loader.calls.fetches), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_load_is_its_failure_and_gives_the_room_back() {
    let script = Script { load_panics: true, ..Script::of(80) };
    let loader = ScriptedLoader::new([("a", script), ("b", Script::of(80))]);
    let residency = start(100, &loader, Config::default());
    let failure = residency.acquire(&model("a"), soon()).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::Internal);
    let device = residency.snapshot().await.unwrap().devices.remove(0);
    assert_eq!((device.charged_bytes, device.reserved_bytes), (Bytes::ZERO, Bytes::ZERO));
    residency.acquire(&model("b"), soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn failures_are_remembered_with_growing_pauses() {
    let broken = Failure::new(ErrorKind::ModelInvalid, "a bad tensor");
    let script = Script { load_fails: Some(broken), ..Script::of(40) };
    let loader = ScriptedLoader::new([("a", script)]);
    let residency = start(100, &loader, Config::default());
    for pause in [1, 2, 4, 8] {
        let before = count(&loader.calls.loads);
        residency.acquire(&model("a"), soon()).await.unwrap_err();
        let told = residency.acquire(&model("a"), soon()).await.unwrap_err();
        assert_eq!(told.retry(), RetryHint::After(Duration::from_secs(pause)));
        assert_eq!(count(&loader.calls.loads), before + 1, "the pause spares the loader");
        tokio::time::advance(Duration::from_secs(pause)).await;
    }
    let failed = residency.snapshot().await.unwrap().failed;
    assert_eq!((failed.len(), failed[0].attempts), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_while_its_model_drains_lets_it_unload() {
    let loader = ScriptedLoader::new([("a", Script::of(80)), ("b", Script::of(80))]);
    let residency = start(100, &loader, Config::default());
    let lease = residency.acquire(&model("a"), soon()).await.unwrap();
    let other = residency.clone();
    let waiting = tokio::spawn(async move { other.acquire(&model("b"), soon()).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let snapshot = residency.snapshot().await.unwrap();
    let resident = &snapshot.devices[0].residents[0];
    assert_eq!((resident.state, resident.leases), (ResidentState::Draining, 1));
    assert_eq!(count(&loader.calls.unloads), 0);
    drop(lease);
    let lease = waiting.await.unwrap().unwrap();
    assert!(lease.queue_wait() >= Duration::from_secs(1));
    let decisions = residency.explain(&model("a")).await.unwrap().decisions;
    assert!(decisions.iter().any(|d| matches!(d.action, Action::Draining { leases: 1, .. })));
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_refused_with_the_numbers_and_evicts_nobody() {
    let loader = ScriptedLoader::new([("a", Script::of(80)), ("big", Script::of(101))]);
    let residency = start(100, &loader, Config::default());
    drop(residency.acquire(&model("a"), soon()).await.unwrap());
    let failure = residency.acquire(&model("big"), soon()).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::TooLarge);
    assert!(failure.message().contains("101 B") && failure.message().contains("100 B"));
    assert!(residency.snapshot().await.unwrap().ready(&model("a")).is_some());
    assert_eq!(count(&loader.calls.fetches), 1, "only the one that fits was fetched");
}

#[tokio::test(start_paused = true)]
async fn a_load_without_eviction_says_that_there_is_no_room_now() {
    let loader = ScriptedLoader::new([("a", Script::of(80)), ("b", Script::of(80))]);
    let residency = start(100, &loader, Config::default());
    let options = LoadOptions { evict: false, force: false };
    assert_eq!(residency.load(&model("a"), options).await.unwrap().tier, Tier::Disk);
    assert_eq!(residency.load(&model("a"), options).await.unwrap().tier, Tier::Device);
    let failure = residency.load(&model("b"), options).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::TooLarge);
    let missing = residency.acquire_loaded(&model("b")).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::ModelNotFound);
    residency.unload(&model("a")).await.unwrap();
    assert_eq!(count(&loader.calls.unloads), 1, "answered when the memory is free");
    residency.load(&model("b"), options).await.unwrap();
    residency.acquire_loaded(&model("b")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_quarantined_version_is_loaded_only_by_force() {
    let script = Script { quarantined: true, ..Script::of(40) };
    let loader = ScriptedLoader::new([("a", script)]);
    let residency = start(100, &loader, Config::default());
    let failure = residency.acquire(&model("a"), soon()).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::ModelInvalid);
    assert_eq!(count(&loader.calls.fetches), 0);
    let options = LoadOptions { evict: true, force: true };
    residency.load(&model("a"), options).await.unwrap();
    residency.acquire(&model("a"), soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_version_takes_over_when_it_is_ready_and_the_old_one_ends_with_its_leases() {
    let loader = ScriptedLoader::new([("a", Script::of(40))]);
    let residency = start(100, &loader, Config::default());
    let old = residency.acquire(&model("a"), soon()).await.unwrap();
    loader.change("a", |script| script.version = 2);
    tokio::time::advance(Duration::from_secs(31)).await;
    let same = residency.acquire(&model("a"), soon()).await.unwrap();
    assert_eq!(same.version(), &version(1), "the check runs beside the request");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let new = residency.acquire(&model("a"), soon()).await.unwrap();
    assert_eq!((new.version(), old.version()), (&version(2), &version(1)));
    assert_eq!(count(&loader.calls.unloads), 0);
    drop((old, same));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(count(&loader.calls.unloads), 1);
}

#[tokio::test(start_paused = true)]
async fn with_the_store_down_residents_go_on_and_a_refresh_says_so() {
    let loader = ScriptedLoader::new([("a", Script::of(40))]);
    let residency = start(100, &loader, Config::default());
    drop(residency.acquire(&model("a"), soon()).await.unwrap());
    let down = Failure::new(ErrorKind::StoreUnavailable, "connection refused");
    loader.change("a", |script| script.resolve_fails = Some(down));
    tokio::time::advance(Duration::from_secs(31)).await;
    drop(residency.acquire(&model("a"), soon()).await.unwrap());
    let failure = residency.refresh(&model("a")).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::StoreUnavailable);
    assert_eq!(residency.acquire(&model("a"), soon()).await.unwrap().tier(), Tier::Device);
}

#[tokio::test(start_paused = true)]
async fn sixty_four_clients_over_ten_models_with_room_for_three_are_all_served_in_time() {
    const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let loader = ScriptedLoader::new(NAMES.map(|name| (name, Script::of(30))));
    let residency = start(100, &loader, Config::default());
    let mut clients = JoinSet::new();
    for client in 0..64 {
        let residency = residency.clone();
        clients.spawn(async move {
            let mut longest = Duration::ZERO;
            for turn in 0..40 {
                let name = NAMES[(client * 7 + turn * (client % 9 + 1)) % NAMES.len()];
                let begun = tokio::time::Instant::now();
                let lease = residency.acquire(&model(name), soon()).await.unwrap();
                longest = longest.max(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(lease);
            }
            longest
        });
    }
    let longest = clients.join_all().await.into_iter().max().unwrap();
    assert!(longest < Duration::from_secs(2), "the longest wait was {longest:?}");
}

#[tokio::test(start_paused = true)]
async fn shutdown_refuses_who_waits_and_ends_when_the_last_lease_does() {
    let slow = Script { fetch: Duration::from_secs(60), ..Script::of(40) };
    let loader = ScriptedLoader::new([("a", Script::of(40)), ("slow", slow)]);
    let residency = start(100, &loader, Config::default());
    let lease = residency.acquire(&model("a"), soon()).await.unwrap();
    let other = residency.clone();
    let hold = within(Duration::from_secs(55));
    let waiting = tokio::spawn(async move { other.acquire(&model("slow"), hold).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let other = residency.clone();
    let closing = tokio::spawn(async move { other.shutdown().await });
    let refused = waiting.await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!closing.is_finished(), "a lease is held");
    drop(lease);
    closing.await.unwrap();
    assert_eq!(count(&loader.calls.unloads), 1);
    let late = residency.acquire(&model("a"), soon()).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Overloaded);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_has_the_shape_of_the_admin_page() {
    let loader = ScriptedLoader::new([("a", Script::of(40))]);
    let residency = start(100, &loader, Config::default());
    let mut events = residency.events();
    residency.keep(&model("a")).await.unwrap();
    let _lease = residency.acquire(&model("a"), soon()).await.unwrap();
    let page = serde_json::to_value(residency.snapshot().await.unwrap()).unwrap();
    let device = &page["devices"][0];
    assert_eq!(device["id"], "cpu");
    assert_eq!((&device["charged_bytes"], &device["over_bytes"]), (&40.into(), &0.into()));
    let resident = &device["residents"][0];
    assert_eq!(resident["bytes"]["weights"], 40);
    assert_eq!((&resident["kept"], &resident["leases"]), (&true.into(), &1.into()));
    assert_eq!((&resident["state"], &resident["target"]), (&"ready".into(), &"a".into()));
    let first = serde_json::to_value(events.recv().await.unwrap()).unwrap();
    assert_eq!((&first["action"], &first["target"]), (&"keep".into(), &"a".into()));
}
