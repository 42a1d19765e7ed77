//! Fetches that are held to their tenant's load bandwidth.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::time::Instant;

use super::*;

const KIB: usize = 1024;

fn payer(tenant: &str) -> Payer {
    Payer { tenant: tenant.into(), meter: None }
}

async fn fetch_for(f: &Fixture, disk: &DiskCache, tenant: &str, target: &str) -> Duration {
    let artefact = f.resolve(target).await;
    let began = Instant::now();
    let progress = Progress::new();
    disk.fetch_for(payer(tenant), &f.catalog, &artefact, &progress).await.unwrap();
    began.elapsed()
}

fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, contents.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

#[tokio::test(start_paused = true)]
async fn whatever_a_tenant_fetches_takes_its_time_and_others_take_none() {
    let f = Fixture::new(Bytes::mib(64));
    // A checkpoint, an adapter's small files, a handler.
    let weights = noise(600 * KIB, 1);
    f.put("folder/config.json", "{}");
    f.put("folder/weights.bin", weights.clone());
    f.put("adapter/small.txt", noise(100 * KIB, 2));
    f.put("adapter/adapter.bin", noise(500 * KIB, 3));
    f.put("handler/model.py", noise(KIB, 4));
    f.put("handler/data.bin", weights);
    let disk = f.open().await;
    let rate = Bytes::kib(100);
    disk.set_load_bandwidths(&BTreeMap::from([("slow".to_owned(), rate)]));
    for target in ["folder", "adapter", "handler"] {
        let took = fetch_for(&f, &disk, "slow", target).await;
        // A second's worth and a part may come at once, where nothing is owed.
        assert!(took >= Duration::from_secs(4), "{target}: {took:?}");
        assert!(took <= Duration::from_secs(8), "{target}: {took:?}");
        disk.purge(&f.resolve(target).await.id).await.unwrap();
        let took = fetch_for(&f, &disk, "other", target).await;
        assert!(took < Duration::from_millis(100), "{target}: {took:?}");
    }
}

/// By the real clock: what is unpacked as it comes waits on a thread, which holds a paused one.
#[tokio::test]
async fn an_archive_takes_its_time_as_well() {
    let f = Fixture::new(Bytes::mib(64));
    f.put("packed.tar", tar(&[("weights.bin", noise(600 * KIB, 1))]));
    let disk = f.open().await;
    disk.set_load_bandwidths(&BTreeMap::from([("slow".to_owned(), Bytes::kib(300))]));
    let took = fetch_for(&f, &disk, "slow", "packed.tar").await;
    assert!(took >= Duration::from_millis(500), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_under_way_keeps_to_what_is_said_later_and_tells_what_it_brings() {
    let f = Fixture::new(Bytes::mib(64));
    f.put("m/w.bin", noise(1000 * KIB, 1));
    let disk = f.open().await;
    let bandwidth = |bytes| BTreeMap::from([("slow".to_owned(), bytes)]);
    disk.set_load_bandwidths(&bandwidth(Bytes::kib(10)));
    let artefact = f.resolve("m").await;
    let brought = Arc::new(Mutex::new(0));
    let sum = Arc::clone(&brought);
    let meter = move |bytes: Bytes| *sum.lock().unwrap() += bytes.0;
    let payer = Payer { tenant: "slow".into(), meter: Some(Arc::new(meter)) };
    let began = Instant::now();
    let (cache, catalog) = (disk.clone(), &f.catalog);
    let progress = Progress::new();
    let fetch = cache.fetch_for(payer, catalog, &artefact, &progress);
    let change = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let before = *brought.lock().unwrap();
        assert!(before <= 10 * 11 * 1024 + 64 * 1024, "{before}");
        disk.set_load_bandwidths(&bandwidth(Bytes::mib(10)));
    };
    let (fetched, ()) = tokio::join!(fetch, change);
    fetched.unwrap();
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    assert_eq!(*brought.lock().unwrap(), 1000 * 1024);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_its_bandwidth_takes_no_memory_that_others_want() {
    let mut f = Fixture::new(Bytes::mib(64));
    // Room for two parts in memory: eight of the slow one's would fill it.
    (f.config.in_flight, f.config.concurrency) = (Bytes(200_000), 8);
    f.put("slow/w.bin", noise(1000 * KIB, 1));
    f.put("fast/w.bin", noise(1000 * KIB, 2));
    let disk = f.open().await;
    disk.set_load_bandwidths(&BTreeMap::from([("slow".to_owned(), Bytes::kib(100))]));
    let slow = fetch_for(&f, &disk, "slow", "slow");
    let fast = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        fetch_for(&f, &disk, "fast", "fast").await
    };
    let (slow, fast) = tokio::join!(slow, fast);
    assert!(slow > Duration::from_secs(8), "{slow:?}");
    assert!(fast < Duration::from_millis(100), "{fast:?}");
}
