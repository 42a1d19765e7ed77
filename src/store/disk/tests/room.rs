use roundhouse_types::ErrorKind;

use super::super::digest::FileDigester;
use super::super::fetch::land;
use super::super::flight::Flight;
use super::super::layout::FILES;
use super::*;
use crate::testing::{Fault, Operation};

const MIB: usize = 1 << 20;

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_leaves_and_nothing_that_is_held() {
    let f = Fixture::new(Bytes(5 * 512 * 1024));
    for name in ["a", "b", "c", "d"] {
        f.put(&format!("{name}/w.bin"), noise(MIB, 1));
    }
    let disk = f.open().await;
    let a = f.fetch(&disk, "a").await.unwrap();
    let b = f.fetch(&disk, "b").await.unwrap().id().clone();
    let a_id = a.id().clone();
    f.fetch(&disk, "c").await.unwrap();
    assert!(disk.get(&a_id).is_some() && disk.get(&b).is_none(), "a is held, b was older than c");
    let c = f.fetch(&disk, "c").await.unwrap();
    let error = f.fetch(&disk, "d").await.unwrap_err();
    assert!(matches!(error, Error::DiskBusy { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    drop((a, c));
    f.fetch(&disk, "d").await.unwrap();
    assert!(disk.get(&a_id).is_none() || disk.usage().artefacts == 2);
    assert!(disk.usage().used <= disk.usage().budget);
    assert!(measure(&f.config.dir).unwrap() <= disk.usage().budget.0);
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_refused_and_evicts_nobody() {
    let f = Fixture::new(Bytes::mib(2));
    f.put("a/w.bin", noise(MIB, 1));
    f.put("big/w.bin", noise(3 * MIB, 1));
    let disk = f.open().await;
    let a = f.fetch(&disk, "a").await.unwrap().id().clone();
    let error = f.fetch(&disk, "big").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("on disk"), "{error}");
    assert!(disk.get(&a).is_some());
    assert!(f.faulty.delivered("big/w.bin").is_empty());
}

#[tokio::test(start_paused = true)]
async fn abandoned_fetches_count_and_leave_too() {
    let f = Fixture::new(Bytes(5 * 512 * 1024));
    f.put("a/w.bin", noise(2 * MIB, 1));
    f.put("b/w.bin", noise(2 * MIB, 2));
    let disk = f.open().await;
    for _ in 0..15 {
        f.faulty.plan(Operation::Get, "a/w.bin", Fault::BreakAfter(u64::MAX));
    }
    f.faulty.plan(Operation::Get, "a/w.bin", Fault::Hang);
    f.abandon(&disk, "a").await;
    while disk.usage().partial.0 > 1_900_000 {
        // Its room is given back by a task of its own.
        tokio::task::yield_now().await;
    }
    assert!(disk.usage().partial.0 >= 1_500_000);
    f.fetch(&disk, "b").await.unwrap();
    assert_eq!(disk.usage().partial, Bytes::ZERO);
    assert!(entries(&f.config.dir.join("partial")).unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_purged_version_is_not_handed_out_and_goes_with_its_last_holder() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("a/w.bin", noise(MIB, 1));
    let disk = f.open().await;
    let held = f.fetch(&disk, "a").await.unwrap();
    let dir = held.dir().to_owned();
    disk.purge(held.id()).await.unwrap();
    assert!(disk.get(held.id()).is_none() && dir.join("w.bin").exists());
    let again = f.fetch(&disk, "a").await.unwrap();
    assert_ne!(again.dir(), dir);
    drop(held);
    while dir.exists() || disk.usage().used.0 > 2 * MIB as u64 {
        tokio::task::yield_now().await;
    }
    assert!(again.dir().join("w.bin").exists());
}

#[tokio::test(start_paused = true)]
async fn a_version_whose_files_cannot_be_looked_at_at_last_keeps_no_promised_room() {
    const PROMISED: u64 = 1 << 20;
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/w.bin", noise(1000, 1));
    let disk = f.open().await;
    let artefact = f.resolve("m").await;
    let turn = Arc::new(tokio::sync::Mutex::new(())).lock_owned().await;
    let ledger = Arc::clone(&disk.inner.ledger);
    let flight = Flight::new(ledger, artefact.id.clone(), turn);
    flight.grow(PROMISED).unwrap();
    std::fs::create_dir_all(flight.folder.join(FILES)).unwrap();
    let gone = FileDigester::new("w.bin", 0, None).finish().unwrap();
    assert!(land(&flight, &artefact, &origin("a"), vec![gone]).is_err());
    assert!(disk.usage().partial.0 >= PROMISED);
    drop(flight);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while disk.usage().partial.0 >= PROMISED {
        assert!(std::time::Instant::now() < deadline, "its room is still promised");
        tokio::task::yield_now().await;
    }
    assert!(disk.get(&artefact.id).is_none());
}
