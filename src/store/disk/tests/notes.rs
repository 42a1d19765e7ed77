//! What is remembered of versions: which store had them, and which one was loaded last.

use super::*;

/// Another store, with a catalogue of the same endpoint over it.
fn store(name: &str) -> (Arc<MemoryStore>, Catalog) {
    let memory = Arc::new(MemoryStore::new(name));
    let stores: Vec<(_, Arc<dyn ArtifactStore>)> = vec![(None, memory.clone())];
    let catalog = Catalog::over("ep".parse().unwrap(), stores, CatalogConfig::default());
    (memory, catalog.unwrap())
}

fn elsewhere() -> Origin {
    Origin("other/a".into())
}

/// Opens the cache anew until what was written on another thread is there.
async fn reopened(
    f: &Fixture,
    disk: DiskCache,
    is_there: impl Fn(&DiskCache) -> bool,
) -> DiskCache {
    drop(disk);
    let until = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let disk = f.open().await;
        if is_there(&disk) {
            return disk;
        }
        assert!(std::time::Instant::now() < until, "it was not noted");
        drop(disk);
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_version_is_of_the_store_that_named_it_last_also_after_a_restart() {
    let f = Fixture::new(Bytes::mib(16));
    let disk = f.open().await;
    f.put("a/w.bin", noise(100, 1));
    let id = f.fetch(&disk, "a").await.unwrap().id().clone();
    let of = |disk: &DiskCache, origin: &Origin| {
        let latest = disk.latest_from(&id.model, origin);
        assert_eq!(latest.as_ref() == Some(&id), disk.is_from(&id, origin));
        assert_eq!(latest.is_some(), disk.latest_artefact(&id.model, origin).is_some());
        latest.is_some()
    };
    assert!(of(&disk, &origin("a")) && !of(&disk, &elsewhere()));
    drop(disk);
    let disk = f.open().await;
    assert!(of(&disk, &origin("a")) && !of(&disk, &elsewhere()), "its manifest says so");
    disk.named(&id, &elsewhere());
    assert!(!of(&disk, &origin("a")) && of(&disk, &elsewhere()), "the other has the same objects");
    let disk = reopened(&f, disk, |disk| disk.is_from(&id, &elsewhere())).await;
    assert!(!of(&disk, &origin("a")));
    assert_eq!(disk.latest(&id.model).as_ref(), Some(&id), "whichever store it was");
    disk.named(&id, &origin("a"));
    let disk = reopened(&f, disk, |disk| disk.is_from(&id, &origin("a"))).await;
    assert!(!of(&disk, &elsewhere()), "it is the first one's again");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_the_store_comes_back_to_is_the_last_though_the_clock_was_set_back() {
    let f = Fixture::new(Bytes::mib(16));
    let disk = f.open().await;
    let mut ids = Vec::new();
    for seed in 1..3 {
        tokio::time::advance(Duration::from_secs(1)).await;
        f.put("a/w.bin", noise(100, seed));
        ids.push(f.fetch(&disk, "a").await.unwrap().id().clone());
    }
    // The second came an hour from now.
    let ahead = std::time::SystemTime::now() + Duration::from_secs(3600);
    drop(disk);
    for folder in entries(&f.config.dir.join("artefacts/ep")).unwrap() {
        let text = std::fs::read_to_string(folder.join(MANIFEST)).unwrap();
        if text.contains(ids[1].version.as_str()) {
            std::fs::File::create(folder.join(NAMED)).unwrap().set_modified(ahead).unwrap();
        }
    }
    let disk = f.open().await;
    assert_eq!(disk.latest(&model("a")).as_ref(), Some(&ids[1]));
    disk.named(&ids[0], &origin("a"));
    assert_eq!(disk.latest(&model("a")).as_ref(), Some(&ids[0]));
    disk.named(&ids[0], &origin("a"));
    assert_eq!(disk.latest_from(&model("a"), &origin("a")).as_ref(), Some(&ids[0]));
}

#[tokio::test(start_paused = true)]
async fn manifests_of_before_are_of_the_first_store_that_the_endpoint_has_and_no_later_one() {
    let f = Fixture::new(Bytes::mib(16));
    let disk = f.open().await;
    f.put("a/w.bin", noise(100, 1));
    let id = f.fetch(&disk, "a").await.unwrap().id().clone();
    drop(disk);
    let folder = entries(&f.config.dir.join("artefacts/ep")).unwrap().remove(0);
    let path = folder.join(MANIFEST);
    let text = std::fs::read_to_string(&path).unwrap();
    let without = text.replace(r#""origin":"memory/a","#, "");
    assert_ne!(text, without, "{text}");
    std::fs::write(&path, without).unwrap();

    let disk = f.open().await;
    assert!(!disk.is_from(&id, &origin("a")));
    let _ = store("memory").1.with_disk(disk.clone());
    assert!(disk.is_from(&id, &origin("a")), "as before the upgrade");
    let _ = store("other").1.with_disk(disk.clone());
    assert!(disk.is_from(&id, &origin("a")) && !disk.is_from(&id, &elsewhere()));
    let disk = reopened(&f, disk, |disk| disk.is_from(&id, &origin("a"))).await;
    let _ = store("other").1.with_disk(disk.clone());
    assert!(!disk.is_from(&id, &elsewhere()), "nor after a restart with other settings");
}

#[tokio::test(start_paused = true)]
async fn while_a_folder_of_another_store_is_written_no_version_of_the_former_answers() {
    let f = Fixture::new(Bytes::mib(16));
    let disk = f.open().await;
    f.put("a/w.bin", noise(100, 1));
    let former = f.fetch(&disk, "a").await.unwrap().id().clone();
    let (memory, catalog) = store("other");
    let catalog = catalog.with_disk(disk.clone());
    memory.put("a/w.bin", noise(101, 2));
    let target = "a".parse().unwrap();
    let begun = Instant::now();
    let named = catalog.resolve(&target, Freshness::Fresh).await.unwrap();
    assert_ne!(named.id, former);
    assert_eq!(begun.elapsed(), CatalogConfig::default().settle, "it is new, and no update");
}

#[tokio::test(start_paused = true)]
async fn what_was_loaded_last_is_known_after_a_restart_until_the_store_deletes_the_model() {
    let f = Fixture::new(Bytes::mib(16));
    let disk = f.open().await;
    let mut ids = Vec::new();
    for seed in 1..4 {
        tokio::time::advance(Duration::from_secs(1)).await;
        f.put("a/w.bin", noise(100, seed));
        ids.push(f.fetch(&disk, "a").await.unwrap().id().clone());
    }
    let last = |disk: &DiskCache| disk.last_loaded(&model("a"), &origin("a"));
    assert_eq!(last(&disk), None);
    for id in [&ids[0], &ids[1], &ids[0]] {
        disk.loaded(id);
        assert_eq!(last(&disk).as_ref(), Some(id));
    }
    assert_eq!(disk.last_loaded(&model("a"), &elsewhere()), None);
    let disk = reopened(&f, disk, |disk| last(disk).as_ref() == Some(&ids[0])).await;
    disk.purge(&ids[0]).await.unwrap();
    assert_eq!(last(&disk).as_ref(), Some(&ids[1]), "the one before it");
    disk.gone(&model("a"), &elsewhere());
    assert_eq!(last(&disk).as_ref(), Some(&ids[1]), "another store has its own word");
    disk.gone(&model("a"), &origin("a"));
    assert_eq!(last(&disk), None);
    let disk = reopened(&f, disk, |disk| disk.is_gone(&model("a"), &origin("a"))).await;
    disk.named(&ids[2], &origin("a"));
    assert_eq!(last(&disk), None, "what comes later begins anew");
    let disk = reopened(&f, disk, |disk| !disk.is_gone(&model("a"), &origin("a"))).await;
    assert_eq!(last(&disk), None);
    disk.loaded(&ids[2]);
    assert_eq!(last(&disk).as_ref(), Some(&ids[2]));
}
