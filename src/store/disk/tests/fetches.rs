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
async fn a_small_version_costs_two_round_trips() {
    let trip = Duration::from_millis(100);
    let f = Fixture::far_away(Bytes::mib(16), trip);
    let header = br#"{"w":{"dtype":"F32","shape":[25],"data_offsets":[0,100]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    f.put("m/adapter_config.json", "{}");
    f.put("m/adapter_model.safetensors", [&length[..], header, &noise(100, 7)].concat());
    let disk = f.open().await;
    let began = Instant::now();
    f.fetch(&disk, "m").await.unwrap();
    assert_eq!(began.elapsed().as_millis() / trip.as_millis(), 2, "{:?}", began.elapsed());
    let requests =
        [Operation::List, Operation::Get, Operation::Head].map(|it| f.faulty.requests(it));
    assert_eq!(requests, [1, 2, 3], "lists, reads of the two files, heads of them and of the name");
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
