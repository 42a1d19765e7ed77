use roundhouse_types::{ErrorKind, RetryHint};

use super::*;
use crate::testing::{Fault, Operation};
use crate::{Checksum, ChecksumAlgorithm};

#[tokio::test(start_paused = true)]
async fn a_folder_arrives_whole_with_its_digests_and_counters() {
    let f = Fixture::new(Bytes::mib(16));
    let weights = noise(1_234_567, 1);
    f.put("m/a/weights.bin", weights.clone());
    f.put("m/config.json", "{}");
    f.put("m/empty", "");
    let disk = f.open().await;
    let artefact = f.resolve("m").await;
    assert!(disk.get(&artefact.id).is_none());
    let progress = Progress::new();
    let cached = disk.fetch(&f.catalog, &artefact, &progress).await.unwrap();
    let wanted = [
        ("a/weights.bin".to_owned(), weights),
        ("config.json".to_owned(), b"{}".to_vec()),
        ("empty".to_owned(), Vec::new()),
    ];
    assert!(tree(cached.dir()) == wanted);
    let snapshot = progress.snapshot();
    assert_eq!(
        (snapshot.stage, snapshot.fetched, snapshot.total),
        (Stage::Done, artefact.bytes, artefact.bytes)
    );
    disk.verify(&artefact.id).await.unwrap();
    std::fs::write(cached.dir().join("config.json"), "[]").unwrap();
    assert!(matches!(disk.verify(&artefact.id).await, Err(Error::Corrupt { .. })));
    assert!(disk.get(&artefact.id).is_none(), "what does not match is not handed out");
}

#[tokio::test(start_paused = true)]
async fn concurrent_fetches_of_a_version_are_one() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/w.bin", noise(500_000, 1));
    let disk = f.open().await;
    let artefact = f.resolve("m").await;
    let progress = Progress::new();
    let fetches = (0..5).map(|_| disk.fetch(&f.catalog, &artefact, &progress));
    let outcomes = futures_util::future::join_all(fetches).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(once(f.faulty.delivered("m/w.bin")), 500_000);
}

#[tokio::test(start_paused = true)]
async fn broken_and_stalled_reads_go_on_behind_the_last_byte() {
    let f = Fixture::new(Bytes::mib(16));
    let weights = noise(1_000_000, 2);
    f.put("m/w.bin", weights.clone());
    for fault in [Fault::BreakAfter(70_001), Fault::StallAfter(3), Fault::BreakAfter(0)] {
        f.faulty.plan(Operation::Get, "w.bin", fault);
    }
    let down = Error::Throttled { store: "memory".into(), key: "m/w.bin".into() };
    f.faulty.plan(Operation::Get, "w.bin", Fault::Fail(down));
    let disk = f.open().await;
    let cached = f.fetch(&disk, "m").await.unwrap();
    assert!(std::fs::read(cached.dir().join("w.bin")).unwrap() == weights);
    assert_eq!(once(f.faulty.delivered("m/w.bin")), 1_000_000);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_fetch_goes_on_where_it_was_also_in_the_next_process() {
    let f = Fixture::new(Bytes::mib(16));
    let weights = noise(1_000_000, 3);
    f.put("m/w.bin", weights.clone());
    let disk = f.open().await;
    // The parts are of 100,000 bytes; the sixth read never answers.
    for _ in 0..5 {
        f.faulty.plan(Operation::Get, "w.bin", Fault::BreakAfter(u64::MAX));
    }
    f.faulty.plan(Operation::Get, "w.bin", Fault::Hang);
    f.abandon(&disk, "m").await;
    drop(disk);
    let disk = f.open().await;
    assert!(disk.usage().partial.0 >= 500_000 && disk.usage().artefacts == 0);
    let cached = f.fetch(&disk, "m").await.unwrap();
    assert!(std::fs::read(cached.dir().join("w.bin")).unwrap() == weights);
    assert_eq!(once(f.faulty.delivered("m/w.bin")), 1_000_000);
    assert_eq!(disk.usage().partial, Bytes::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_file_replaced_while_it_is_fetched_never_mixes() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/w.bin", noise(1_000_000, 4));
    let disk = f.open().await;
    for _ in 0..3 {
        f.faulty.plan(Operation::Get, "w.bin", Fault::BreakAfter(u64::MAX));
    }
    f.faulty.plan(Operation::Get, "w.bin", Fault::Hang);
    let old = f.resolve("m").await;
    f.abandon(&disk, "m").await;
    let new = noise(1_000_000, 5);
    f.put("m/w.bin", new.clone());
    let error = disk.fetch(&f.catalog, &old, &Progress::new()).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::NotReady, RetryHint::After(Duration::ZERO))
    );
    assert!(disk.get(&old.id).is_none());
    let cached = f.fetch(&disk, "m").await.unwrap();
    assert_ne!(cached.id(), &old.id);
    assert!(std::fs::read(cached.dir().join("w.bin")).unwrap() == new);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_ignores_the_pin_is_found_out_by_its_tag() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/w.bin", noise(1_000_000, 4));
    let disk = f.open().await;
    f.faulty.plan(Operation::Get, "w.bin", Fault::OtherEtag("other".into()));
    let error = f.fetch(&disk, "m").await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_turned_byte_is_found_by_the_store_s_checksum_and_nothing_is_kept() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/w.bin", "123456789");
    let checksum =
        Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, base64: "rosUhgp5mIg=".into() };
    f.memory.set_checksum("m/w.bin", checksum);
    let disk = f.open().await;
    f.faulty.plan(Operation::Get, "w.bin", Fault::FlipByte);
    let error = f.fetch(&disk, "m").await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    f.fetch(&disk, "m").await.unwrap();
    assert_eq!(disk.usage().partial, Bytes::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_down_is_told_and_the_ranges_stay() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/w.bin", noise(300_000, 6));
    let disk = f.open().await;
    f.faulty.plan(Operation::Get, "w.bin", Fault::BreakAfter(u64::MAX));
    for _ in 0..6 {
        f.faulty.plan(Operation::Get, "w.bin", Fault::BreakAfter(0));
    }
    let error = f.fetch(&disk, "m").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    f.fetch(&disk, "m").await.unwrap();
    assert_eq!(once(f.faulty.delivered("m/w.bin")), 300_000);
}

#[tokio::test(start_paused = true)]
async fn a_small_version_costs_two_round_trips_and_one_that_is_like_its_siblings_one() {
    let trip = Duration::from_millis(100);
    let f = Fixture::far_away(Bytes::mib(64), trip);
    let header = br#"{"w":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    let disk = f.open().await;
    let _ = f.catalog.clone().with_disk(disk.clone());
    let mut before = [0; 3];
    // The last one has other files, which are not there to be asked for before they are listed.
    let versions = [
        ("a/m", 2, [1, 2, 3]),
        ("a/n", 2, [1, 2, 3]),
        ("a/o", 1, [1, 2, 3]),
        ("a/p", 2, [1, 4, 5]),
    ];
    for (name, trips, wanted) in versions {
        let config = if name == "a/p" { "config.json" } else { "adapter_config.json" };
        f.put(&format!("{name}/{config}"), "{}");
        let weights = [&length[..], header, &noise(4_000_000, name.len() as u64)].concat();
        f.put(&format!("{name}/adapter_model.safetensors"), weights.clone());
        let began = Instant::now();
        let cached = f.fetch(&disk, name).await.unwrap();
        assert!(std::fs::read(cached.dir().join("adapter_model.safetensors")).unwrap() == weights);
        let took = began.elapsed();
        assert_eq!(took.as_millis() / trip.as_millis(), trips, "{name}: {took:?}");
        let now =
            [Operation::List, Operation::Get, Operation::Head].map(|it| f.faulty.requests(it));
        let asked: Vec<_> = now.iter().zip(before).map(|(now, before)| now - before).collect();
        assert_eq!(asked, wanted, "{name}: lists, reads of files, heads of them and of the name");
        before = now;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guess_that_brought_other_bytes_than_the_listed_ones_is_not_believed() {
    let f = Fixture::far_away(Bytes::mib(64), Duration::from_millis(100));
    let disk = f.open().await;
    let _ = f.catalog.clone().with_disk(disk.clone());
    for sibling in ["a/m", "a/n"] {
        f.put(&format!("{sibling}/w.bin"), "sibling");
        f.fetch(&disk, sibling).await.unwrap();
    }
    let down = Error::Unavailable { store: "memory".into(), key: "w.bin".into(), cause: "".into() };
    let other = Fault::OtherEtag("of before".into());
    let faults = [other, Fault::BreakAfter(1), Fault::FlipByte, Fault::Hang, Fault::Fail(down)];
    for (number, fault) in faults.into_iter().enumerate() {
        let target = format!("a/{number}");
        let key = format!("{target}/w.bin");
        f.put(&key, "123456789");
        let checksum =
            Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, base64: "rosUhgp5mIg=".into() };
        f.memory.set_checksum(&key, checksum);
        let is_turned = matches!(fault, Fault::FlipByte);
        f.faulty.plan(Operation::Get, &key, fault);
        if is_turned {
            let error = f.fetch(&disk, &target).await.unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        }
        let cached = f.fetch(&disk, &target).await.unwrap();
        assert_eq!(std::fs::read(cached.dir().join("w.bin")).unwrap(), b"123456789", "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_in_memory_that_fail_their_checksum_are_read_again() {
    let f = Fixture::new(Bytes::mib(16));
    f.put("m/config.json", "123456789");
    let checksum =
        Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, base64: "rosUhgp5mIg=".into() };
    f.memory.set_checksum("m/config.json", checksum);
    let disk = f.open().await;
    f.faulty.plan(Operation::Get, "config.json", Fault::FlipByte);
    let error = f.fetch(&disk, "m").await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    f.fetch(&disk, "m").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_guessed_where_it_is_wrong_again_and_again_or_fetches_are_paced() {
    let f = Fixture::far_away(Bytes::mib(64), Duration::from_millis(100));
    let disk = f.open().await;
    let _ = f.catalog.clone().with_disk(disk.clone());
    let put = |name: &str| f.put(&format!("{name}/w.bin"), noise(300_000, 1));
    let cold = async |name: String| {
        let before = f.faulty.requests(Operation::Get);
        let target = name.parse().unwrap();
        let _ = f.catalog.resolve(&target, crate::Freshness::Fresh).await;
        f.faulty.requests(Operation::Get) - before
    };
    for sibling in ["a/m", "a/n", "m", "n"] {
        put(sibling);
        f.fetch(&disk, sibling).await.unwrap();
    }
    for miss in 0..8 {
        assert_eq!(cold(format!("a/none{miss}")).await, 1, "{miss}");
    }
    assert_eq!(cold("a/none".into()).await, 0, "eight were wrong");
    assert_eq!(cold("none".into()).await, 0, "what is directly in the mount has no siblings");
    put("a/o");
    f.fetch(&disk, "a/o").await.unwrap();
    assert_eq!(cold("a/other".into()).await, 1, "one settled since");
    disk.set_load_bandwidths(&[("t".to_owned(), Bytes::mib(1))].into());
    assert_eq!(cold("a/another".into()).await, 0, "what is brought early escapes the pace");
}

#[tokio::test(start_paused = true)]
async fn a_guess_that_hangs_holds_up_nobody_whom_it_is_not_for() {
    let trip = Duration::from_millis(100);
    let f = Fixture::far_away(Bytes::mib(64), trip);
    let disk = f.open().await;
    let _ = f.catalog.clone().with_disk(disk.clone());
    for sibling in ["a/m", "a/n"] {
        f.put(&format!("{sibling}/w.bin"), "sibling");
        f.fetch(&disk, sibling).await.unwrap();
    }
    f.faulty.plan(Operation::Get, "a/none/w.bin", Fault::Hang);
    let began = Instant::now();
    let target = "a/none".parse().unwrap();
    let error = f.catalog.resolve(&target, crate::Freshness::Fresh).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelNotFound);
    assert!(began.elapsed() < 2 * trip, "{:?}", began.elapsed());
}
