//! What tenants are promised of the disk and may take of it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use roundhouse_types::{ErrorKind, RetryHint};

use super::*;
use crate::testing::{Fault, Operation};

const MIB: usize = 1 << 20;
/// A version of one file of a mebibyte takes a little more than that.
const ONE: f64 = 1.02;

fn limits(of: &[(&str, f64, Option<f64>)]) -> BTreeMap<String, DiskLimits> {
    let bytes = |mebibytes: f64| Bytes((mebibytes * MIB as f64) as u64);
    let limits = of.iter().map(|(tenant, floor, ceiling)| {
        let limits = DiskLimits { floor: bytes(*floor), ceiling: ceiling.map(bytes) };
        ((*tenant).to_owned(), limits)
    });
    limits.collect()
}

async fn set(disk: &DiskCache, of: &[(&str, f64, Option<f64>)]) {
    let (ledger, limits) = (Arc::clone(&disk.inner.ledger), limits(of));
    ledger.set_limits(limits);
    tokio::task::spawn_blocking(move || ledger.keep_limits()).await.unwrap();
}

/// A store of models of a mebibyte each, all different.
fn fixture(size: Bytes, targets: &[&str]) -> Fixture {
    let f = Fixture::new(size);
    for (seed, target) in targets.iter().enumerate() {
        f.put(&format!("{target}/w.bin"), noise(MIB, seed as u64 + 1));
    }
    f
}

/// Which of these are whole on disk.
async fn there<'a>(f: &Fixture, disk: &DiskCache, targets: &[&'a str]) -> Vec<&'a str> {
    let mut there = Vec::new();
    for target in targets {
        if !disk.versions(&f.resolve(target).await.id.model).is_empty() {
            there.push(*target);
        }
    }
    there
}

#[tokio::test(start_paused = true)]
async fn above_its_ceiling_a_tenants_own_leave_and_nobody_elses() {
    let all = ["u/old", "t/a", "t/b", "t/c", "u/new"];
    let f = fixture(Bytes::mib(64), &all);
    let disk = f.open().await;
    set(&disk, &[("t", 0.0, Some(2.5))]).await;
    for target in all {
        f.fetch(&disk, target).await.unwrap();
        assert!(disk.tenant("t").bytes <= Bytes(5 * MIB as u64 / 2), "{:?}", disk.tenant("t"));
    }
    assert_eq!(there(&f, &disk, &all).await, ["u/old", "t/b", "t/c", "u/new"]);
    let shown = disk.tenants();
    assert_eq!(shown.len(), 1, "what nothing was said of is not listed");
    assert!(shown[0].bytes >= Bytes::mib(2) && shown[0] == disk.tenant("t"), "{shown:?}");
}

#[tokio::test(start_paused = true)]
async fn limits_are_in_force_at_once_and_those_of_before_take_nothing_any_more() {
    let f = fixture(Bytes::mib(64), &["t/a", "t/b"]);
    let disk = f.open().await;
    for target in ["t/a", "t/b"] {
        f.fetch(&disk, target).await.unwrap();
    }
    let ledger = Arc::clone(&disk.inner.ledger);
    let holders = Arc::strong_count(&ledger);
    // Nobody leaves while this is held: what the first ones ask for is done after the second came.
    let turn = ledger.no_evictions();
    disk.set_disk_limits(limits(&[("t", 0.0, Some(1.5))]));
    assert_eq!(disk.tenants()[0].limits.ceiling, Some(Bytes(3 * MIB as u64 / 2)));
    disk.set_disk_limits(limits(&[("t", 0.0, Some(8.0))]));
    assert_eq!(disk.tenants()[0].limits.ceiling, Some(Bytes::mib(8)));
    drop(turn);
    let done = Arc::clone(&ledger);
    tokio::task::spawn_blocking(move || done.keep_limits()).await.unwrap();
    // Both tasks have let the ledger go.
    while Arc::strong_count(&ledger) > holders {
        tokio::task::yield_now().await;
    }
    assert_eq!(there(&f, &disk, &["t/a", "t/b"]).await, ["t/a", "t/b"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_larger_than_its_tenants_ceiling_is_refused_by_name_and_evicts_nobody() {
    let f = fixture(Bytes::mib(64), &["t/a"]);
    f.put("t/large/w.bin", noise(3 * MIB, 9));
    let disk = f.open().await;
    set(&disk, &[("t", 0.0, Some(2.5))]).await;
    f.fetch(&disk, "t/a").await.unwrap();
    let error = f.fetch(&disk, "t/large").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::TooLarge, RetryHint::Never));
    assert!(error.to_string().contains("tenant 't' may have 2.5 MiB there"), "{error}");
    assert_eq!(there(&f, &disk, &["t/a"]).await, ["t/a"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_stays_and_its_tenant_is_told_to_come_again() {
    let f = fixture(Bytes::mib(64), &["t/a", "t/b", "t/c", "u/a"]);
    let disk = f.open().await;
    set(&disk, &[("t", 0.0, Some(2.5))]).await;
    let held = [f.fetch(&disk, "t/a").await.unwrap(), f.fetch(&disk, "t/b").await.unwrap()];
    let error = f.fetch(&disk, "t/c").await.unwrap_err();
    assert!(matches!(error, Error::DiskCeilingBusy { .. }), "{error}");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::StoreUnavailable, RetryHint::Later));
    f.fetch(&disk, "u/a").await.unwrap();
    drop(held);
    f.fetch(&disk, "t/c").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_scan_takes_nothing_below_another_tenants_floor() {
    let scan = ["scan/0", "scan/1", "scan/2", "scan/3", "scan/4", "scan/5"];
    let calm = ["calm/a", "calm/b", "calm/c"];
    let all: Vec<&str> = calm.into_iter().chain(scan).collect();
    for (floor, stays) in [(0.0, 0), (1.5 * ONE, 2), (2.5 * ONE, 3), (9.0, 3)] {
        let f = fixture(Bytes(9 * MIB as u64 / 2), &all);
        let disk = f.open().await;
        set(&disk, &[("calm", floor, None)]).await;
        for target in calm {
            f.fetch(&disk, target).await.unwrap();
        }
        for target in scan {
            f.fetch(&disk, target).await.unwrap();
        }
        // What is beyond the floor leaves, the least recently used first.
        let left = there(&f, &disk, &calm).await;
        assert_eq!(left, calm[calm.len() - stays..], "with a floor of {floor} MiB");
        // Its own fetches may put its own away.
        for target in calm {
            f.fetch(&disk, target).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_finds_all_of_the_disk_promised_to_others_is_told_so() {
    let f = fixture(Bytes(5 * MIB as u64 / 2), &["calm/a", "calm/b", "scan/0"]);
    let disk = f.open().await;
    set(&disk, &[("calm", 2.2, None)]).await;
    for target in ["calm/a", "calm/b"] {
        f.fetch(&disk, target).await.unwrap();
    }
    let error = f.fetch(&disk, "scan/0").await.unwrap_err();
    assert!(matches!(error, Error::DiskPromised { .. }), "{error}");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::StoreUnavailable, RetryHint::Later));
    set(&disk, &[]).await;
    f.fetch(&disk, "scan/0").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_ceiling_that_is_lowered_is_kept_to_at_once() {
    let all = ["t/a", "t/b", "t/c", "u/a"];
    let f = fixture(Bytes::mib(64), &all);
    let disk = f.open().await;
    for target in all {
        f.fetch(&disk, target).await.unwrap();
    }
    set(&disk, &[("t", 0.0, Some(1.5))]).await;
    assert_eq!(there(&f, &disk, &all).await, ["t/c", "u/a"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_fetch_is_promised_and_has_left_counts_for_its_tenant() {
    let f = fixture(Bytes::mib(64), &["t/a", "t/b"]);
    let disk = f.open().await;
    set(&disk, &[("t", 0.0, Some(1.5))]).await;
    for _ in 0..6 {
        f.faulty.plan(Operation::Get, "t/a/w.bin", Fault::BreakAfter(u64::MAX));
    }
    f.faulty.plan(Operation::Get, "t/a/w.bin", Fault::Hang);
    f.abandon(&disk, "t/a").await;
    while disk.tenant("t").bytes > Bytes(MIB as u64 * 9 / 10) {
        // Its room is given back by a task of its own.
        tokio::task::yield_now().await;
    }
    let left = disk.tenant("t").bytes;
    assert!(left >= Bytes(MIB as u64 / 2), "{left}");
    f.fetch(&disk, "t/b").await.unwrap();
    assert!(disk.tenant("t").bytes <= Bytes(3 * MIB as u64 / 2));
    assert!(disk.inner.ledger.partials(&f.resolve("t/a").await.id.model).is_empty(), "it left");
}

/// Whoever fetches: nobody else goes below its floor, and nobody above its ceiling.
async fn keeps_its_promises(fetches: Vec<(usize, usize)>) {
    const TENANTS: [(&str, f64, Option<f64>); 3] =
        [("a", 2.2, Some(4.0)), ("b", 1.2, None), ("c", 0.0, Some(2.5))];
    let targets: Vec<String> = TENANTS
        .iter()
        .flat_map(|(tenant, ..)| (0..5).map(move |index| format!("{tenant}/{index}")))
        .collect();
    let named: Vec<&str> = targets.iter().map(String::as_str).collect();
    let f = fixture(Bytes(13 * MIB as u64 / 2), &named);
    let disk = f.open().await;
    set(&disk, &TENANTS).await;
    let bytes = |tenant: usize| disk.tenant(TENANTS[tenant].0).bytes;
    for (tenant, index) in fetches {
        let before: Vec<Bytes> = (0..3).map(bytes).collect();
        let target = format!("{}/{index}", TENANTS[tenant].0);
        f.fetch(&disk, &target).await.unwrap();
        for other in 0..3 {
            let limits = disk.tenant(TENANTS[other].0).limits;
            let held = before[other].min(limits.floor);
            assert!(other == tenant || bytes(other) >= held, "{target} took from {other}");
            assert!(limits.ceiling.is_none_or(|ceiling| bytes(other) <= ceiling), "{target}");
        }
        assert!(disk.usage().used <= disk.usage().budget);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn floors_and_ceilings_hold_whoever_fetches(
        fetches in prop::collection::vec((0_usize..3, 0_usize..5), 1..24)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(keeps_its_promises(fetches));
    }
}
