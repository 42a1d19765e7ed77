//! Loads that begin while their files are still coming, through the owner.

use super::*;

fn streaming(bytes: u64, seconds: u64) -> Script {
    let fetch = Duration::from_secs(seconds);
    Script { fetch, streams: true, ..Script::of(bytes) }
}

#[tokio::test(start_paused = true)]
async fn a_load_runs_beside_its_fetch_and_is_ready_after_it() {
    let loader = ScriptedLoader::new([("a", streaming(40, 20))]);
    let residency = start(100, &loader, Config::default());
    let other = residency.clone();
    let waiting =
        tokio::spawn(
            async move { other.acquire(&model("a"), within(Duration::from_secs(60))).await },
        );
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(count(&loader.calls.loads), 1, "it reads while the fetch runs");
    let device = residency.snapshot().await.unwrap().devices.remove(0);
    assert_eq!((device.charged_bytes, device.reserved_bytes), (Bytes::ZERO, Bytes(40)));
    let lease = waiting.await.unwrap().unwrap();
    assert_eq!(lease.tier(), Tier::Store);
    assert_eq!(lease.load_wait(), Duration::from_millis(20_050), "nothing of it is counted twice");
    assert_eq!((count(&loader.calls.fetches), count(&loader.calls.loads)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn one_that_nobody_waits_for_makes_room_and_comes_again_when_it_is_asked_for() {
    let loader = ScriptedLoader::new([("a", streaming(60, 300)), ("b", streaming(50, 1))]);
    let residency = start(100, &loader, Config::default());
    let gave_up = residency.acquire(&model("a"), within(Duration::from_secs(2))).await;
    assert_eq!(gave_up.unwrap_err().kind(), ErrorKind::NotReady);
    let lease = residency.acquire(&model("b"), soon()).await.unwrap();
    assert_eq!(count(&loader.calls.loads), 2);
    let snapshot = residency.snapshot().await.unwrap();
    assert!(snapshot.loads.is_empty(), "it was stopped: {:?}", snapshot.loads);
    drop(lease);
    loader.change("a", |script| script.fetch = Duration::from_secs(1));
    residency.acquire(&model("a"), soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_load_that_fails_ends_its_fetch_and_a_shutdown_ends_both() {
    let broken = Failure::new(ErrorKind::ModelInvalid, "a bad tensor");
    let script = Script { load_fails: Some(broken), ..streaming(40, 2) };
    let loader = ScriptedLoader::new([("a", script), ("b", streaming(40, 300))]);
    let residency = start(100, &loader, Config::default());
    let failure = residency.acquire(&model("a"), soon()).await.unwrap_err();
    assert_eq!(failure.message(), "a bad tensor");
    let other = residency.clone();
    let waiting = tokio::spawn(async move { other.acquire(&model("b"), soon()).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(count(&loader.calls.loads), 2);
    residency.shutdown().await;
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Overloaded);
}
