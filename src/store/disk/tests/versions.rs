//! Several versions of a model: which ones stay, and which one it is held at.

use super::*;

const MIB: usize = 1 << 20;

fn choice(version: &Version) -> Choice {
    let by = ChosenBy::Operator;
    Choice { version: version.clone(), by, since: SystemTime::UNIX_EPOCH }
}

/// Puts another version of a model into the store and fetches it.
async fn next(f: &Fixture, disk: &DiskCache, name: &str, seed: u64) -> Version {
    tokio::time::advance(Duration::from_secs(1)).await;
    f.put(&format!("{name}/w.bin"), noise(MIB, seed));
    f.fetch(disk, name).await.unwrap().id().version.clone()
}

fn on_disk(disk: &DiskCache, name: &str) -> Vec<Version> {
    disk.versions(&model(name)).into_iter().map(|found| found.version).collect()
}

#[tokio::test(start_paused = true)]
async fn the_version_before_the_newest_outlives_older_ones_and_a_held_one_outlives_all() {
    let f = Fixture::new(Bytes(7 * 512 * 1024));
    let disk = f.open().await;
    let first = next(&f, &disk, "a", 1).await;
    let second = next(&f, &disk, "a", 2).await;
    let other = next(&f, &disk, "b", 3).await;
    disk.choose(&model("a"), choice(&first)).await.unwrap();
    let third = next(&f, &disk, "a", 4).await;
    assert!(!on_disk(&disk, "a").contains(&second), "another was used after it, and one is held");
    assert_eq!(on_disk(&disk, "a").len(), 2);
    assert_eq!(on_disk(&disk, "b"), [other]);
    // With nothing old left, what was used longest ago leaves; not what is held.
    next(&f, &disk, "c", 5).await;
    assert!(on_disk(&disk, "b").is_empty());
    next(&f, &disk, "d", 6).await;
    assert_eq!(
        on_disk(&disk, "a"),
        std::slice::from_ref(&first),
        "{third} was used before what came last"
    );
    disk.unchoose(&model("a")).await.unwrap();
    next(&f, &disk, "e", 7).await;
    assert!(on_disk(&disk, "a").is_empty(), "{first} is held no more");
}

#[tokio::test(start_paused = true)]
async fn a_models_versions_are_its_own_whatever_others_are_called() {
    let f = Fixture::new(Bytes::mib(16));
    let disk = f.open().await;
    let mut known = Vec::new();
    for (seed, name) in ["a", "a-b", "a0", "Z", "b"].into_iter().enumerate() {
        known.push((name, next(&f, &disk, name, seed as u64).await));
    }
    let later = next(&f, &disk, "a", 9).await;
    for (name, version) in &known {
        let mut found = on_disk(&disk, name);
        found.retain(|it| *it != later);
        assert_eq!(found, std::slice::from_ref(version), "{name}");
        let latest = if *name == "a" { &later } else { version };
        assert_eq!(disk.latest(&model(name)).map(|id| id.version).as_ref(), Some(latest), "{name}");
    }
    assert_eq!(disk.latest(&model("a-")), None);
}

#[tokio::test(start_paused = true)]
async fn a_choice_survives_a_restart_and_a_write_that_was_cut_off_changes_nothing() {
    let f = Fixture::new(Bytes::mib(16));
    let disk = f.open().await;
    let version = next(&f, &disk, "a", 1).await;
    disk.choose(&model("a"), choice(&version)).await.unwrap();
    disk.choose(&model("b"), choice(&version)).await.unwrap();
    assert_eq!(disk.unchoose(&model("b")).await.unwrap(), Some(choice(&version)));
    drop(disk);
    let folder = f.config.dir.join("choices");
    let file = entries(&folder).unwrap().remove(0);
    std::fs::write(file.with_added_extension("new"), "{").unwrap();
    let disk = f.open().await;
    assert_eq!(disk.choice(&model("a")), Some(choice(&version)));
    assert_eq!(disk.choice(&model("b")), None);
    assert_eq!(entries(&folder).unwrap(), [file]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_among_the_choices_is_passed_over_and_the_others_count() {
    let f = Fixture::new(Bytes::mib(16));
    let disk = f.open().await;
    let version = next(&f, &disk, "a", 1).await;
    disk.choose(&model("a"), choice(&version)).await.unwrap();
    drop(disk);
    let folder = f.config.dir.join("choices");
    for name in ["folder.json", "folder.json.new"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    std::fs::write(folder.join("damaged.json"), "{").unwrap();
    let disk = f.open().await;
    assert_eq!(disk.choice(&model("a")), Some(choice(&version)));
    assert!(folder.join("folder.json").exists(), "it is nobody's to delete");
    assert!(!folder.join("damaged.json").exists());
}

#[tokio::test(start_paused = true)]
async fn purging_a_model_takes_every_version_and_says_what_each_took() {
    let f = Fixture::new(Bytes::mib(16));
    let disk = f.open().await;
    let first = next(&f, &disk, "a", 1).await;
    let id = ArtefactId { model: model("a"), version: first.clone() };
    let held = disk.get(&id).unwrap();
    let second = next(&f, &disk, "a", 2).await;
    next(&f, &disk, "b", 3).await;
    let mut purged = disk.purge_model(&model("a")).await.unwrap();
    purged.sort_by_key(|purged| !purged.in_use);
    assert_eq!([&purged[0].version, &purged[1].version], [&first, &second]);
    assert_eq!([purged[0].in_use, purged[1].in_use], [true, false]);
    assert!(purged.iter().all(|purged| purged.bytes.0 >= MIB as u64));
    assert!(on_disk(&disk, "a").is_empty() && on_disk(&disk, "b").len() == 1);
    assert!(held.dir().join("w.bin").exists(), "what somebody holds stays until he lets go");
    assert_eq!(disk.purge_model(&model("a")).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn the_version_that_the_store_came_back_to_is_the_latest_also_after_a_restart() {
    let f = Fixture::new(Bytes(64 << 20));
    let disk = f.open().await;
    let first = next(&f, &disk, "a", 1).await;
    let second = next(&f, &disk, "a", 2).await;
    let latest = |disk: &DiskCache| disk.latest(&model("a")).unwrap().version;
    let origin = origin("a");
    disk.named(&ArtefactId { model: model("a"), version: second.clone() }, &origin);
    assert_eq!(latest(&disk), second);
    disk.named(&ArtefactId { model: model("a"), version: first.clone() }, &origin);
    assert_eq!(latest(&disk), first);
    drop(disk);
    // The note is written on another thread.
    let disk = loop {
        let disk = f.open().await;
        if latest(&disk) == first {
            break disk;
        }
        drop(disk);
        tokio::task::yield_now().await;
    };
    let third = next(&f, &disk, "a", 3).await;
    assert_eq!(latest(&disk), third, "what is fetched later is later");
}

#[tokio::test(start_paused = true)]
async fn a_model_that_the_store_holds_no_more_is_known_after_a_restart_until_it_is_named_again() {
    let f = Fixture::new(Bytes(64 << 20));
    let disk = f.open().await;
    let version = next(&f, &disk, "a", 1).await;
    assert!(!disk.is_gone(&model("a"), &origin("a")));
    let reopened = async |disk: DiskCache, is_gone: bool| {
        drop(disk);
        // The note is written on another thread.
        loop {
            let disk = f.open().await;
            if disk.is_gone(&model("a"), &origin("a")) == is_gone {
                return disk;
            }
            drop(disk);
            tokio::task::yield_now().await;
        }
    };
    disk.gone(&model("a"), &origin("a"));
    let other = Origin("other/a".into());
    let is_gone = |target: &str, origin: &Origin| disk.is_gone(&model(target), origin);
    assert!(is_gone("a", &origin("a")) && !is_gone("b", &origin("b")));
    assert!(!is_gone("a", &other), "another store has its own word");
    let disk = reopened(disk, true).await;
    assert!(!disk.is_gone(&model("a"), &other));
    disk.named(&ArtefactId { model: model("a"), version: version.clone() }, &other);
    assert!(disk.is_gone(&model("a"), &origin("a")), "nor does it speak for this one");
    disk.named(&ArtefactId { model: model("a"), version }, &origin("a"));
    assert!(!disk.is_gone(&model("a"), &origin("a")));
    reopened(disk, false).await;
}
