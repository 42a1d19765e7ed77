use super::*;
use crate::testing::{Fault, Operation};

#[tokio::test(start_paused = true)]
async fn a_second_process_is_refused_and_other_formats_too() {
    let f = Fixture::new(Bytes::mib(16));
    let disk = f.open().await;
    let second = DiskCache::open(f.config.clone()).await;
    assert!(matches!(second, Err(Error::Locked(_))));
    drop(disk);
    std::fs::write(f.config.dir.join("format"), "roundhouse-disk-cache 3\n").unwrap();
    let error = DiskCache::open(f.config.clone()).await.err().unwrap();
    assert!(matches!(error, Error::Format { .. }), "{error}");
    let foreign = f.folder.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "x").unwrap();
    let error = DiskCache::open(CacheConfig::new(&foreign, Bytes::mib(1))).await.err().unwrap();
    assert!(matches!(error, Error::Format { .. }), "{error}");
    assert!(foreign.join("thesis.txt").exists());
}

#[tokio::test(start_paused = true)]
async fn a_restart_finds_what_is_whole_and_deletes_what_is_not() {
    let f = Fixture::new(Bytes::mib(16));
    for name in ["whole", "short", "gone", "nameless"] {
        f.put(&format!("{name}/w.bin"), noise(100_000, 1));
    }
    let disk = f.open().await;
    let mut ids = Vec::new();
    for name in ["whole", "short", "gone", "nameless"] {
        let cached = f.fetch(&disk, name).await.unwrap();
        match name {
            "short" => std::fs::write(cached.dir().join("w.bin"), "x").unwrap(),
            "gone" => std::fs::remove_file(cached.dir().join("w.bin")).unwrap(),
            "nameless" => {
                std::fs::write(cached.dir().parent().unwrap().join(MANIFEST), "{").unwrap();
            }
            _ => {}
        }
        ids.push(cached.id().clone());
    }
    std::fs::create_dir_all(f.config.dir.join("partial/unknown/files")).unwrap();
    std::fs::create_dir_all(f.config.dir.join("trash/7")).unwrap();
    drop(disk);
    let disk = f.open().await;
    let found: Vec<_> = ids.iter().map(|id| disk.get(id).is_some()).collect();
    assert_eq!(found, [true, false, false, false]);
    assert_eq!(disk.latest(&ids[0].model), Some(ids[0].clone()));
    assert!(entries(&f.config.dir.join("partial")).unwrap().is_empty());
    assert!(entries(&f.config.dir.join("trash")).unwrap().is_empty());
    let fetched = f.faulty.delivered("whole/w.bin").len();
    f.fetch(&disk, "whole").await.unwrap();
    assert_eq!(f.faulty.delivered("whole/w.bin").len(), fetched, "warm after a restart");
}

#[tokio::test(start_paused = true)]
async fn a_smaller_size_evicts_at_the_restart() {
    let mut f = Fixture::new(Bytes::mib(16));
    for name in ["a", "b", "c"] {
        f.put(&format!("{name}/w.bin"), noise(1 << 20, 1));
    }
    let disk = f.open().await;
    for name in ["a", "b", "c"] {
        f.fetch(&disk, name).await.unwrap();
    }
    drop(disk);
    f.config.size = Bytes(5 * 512 * 1024);
    let disk = f.open().await;
    assert_eq!(disk.usage().artefacts, 2);
    assert!(measure(&f.config.dir).unwrap() <= f.config.size.0);
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_any_two_steps_of_a_fetch_leaves_nothing_that_looks_whole() {
    let f = Fixture::new(Bytes::mib(16));
    let weights = noise(1_000_000, 3);
    f.put("m/w.bin", weights.clone());
    let mut disk = f.open().await;
    let id = f.resolve("m").await.id.clone();
    for answered in 0..10 {
        for _ in 0..answered.min(1) {
            f.faulty.plan(Operation::Get, "w.bin", Fault::BreakAfter(u64::MAX));
        }
        f.faulty.plan(Operation::Get, "w.bin", Fault::Hang);
        f.abandon(&disk, "m").await;
        drop(disk);
        disk = f.open().await;
        assert!(disk.get(&id).is_none());
        assert!(disk.usage().used <= disk.usage().budget);
    }
    let cached = f.fetch(&disk, "m").await.unwrap();
    assert!(std::fs::read(cached.dir().join("w.bin")).unwrap() == weights);
    assert_eq!(once(f.faulty.delivered("m/w.bin")), 1_000_000);
}

#[tokio::test(start_paused = true)]
async fn loads_that_the_process_did_not_survive_are_counted_until_one_ends() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/config.json", "{}");
    let id = f.resolve("m").await.id.clone();
    for deaths in 0..3 {
        let disk = f.open().await;
        assert_eq!(disk.attempts(&id), deaths);
        disk.begin_load(&id).await.unwrap();
    }
    let disk = f.open().await;
    disk.begin_load(&id).await.unwrap();
    disk.begin_load(&id).await.unwrap();
    disk.end_load(&id).await.unwrap();
    drop(disk);
    let disk = f.open().await;
    assert_eq!(disk.attempts(&id), 1, "one of two loads ended, the other died");
    disk.end_load(&id).await.unwrap();
    assert_eq!(disk.attempts(&id), 0);
    drop(disk);
    assert_eq!(f.open().await.attempts(&id), 0);
}
