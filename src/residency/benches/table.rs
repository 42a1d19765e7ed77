//! What a request on a resident costs the table, and what a known model takes.

#![expect(missing_docs, reason = "the group that criterion makes is public")]
#![expect(clippy::print_stdout, reason = "a measurement's result")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use roundhouse_residency::testing::BusyTable;

/// Models that are known, by failures or as residents.
const KNOWN: usize = 10_000;

fn hot(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("acquire and release on a resident");
    for residents in [10, 100, 1_000, 10_000] {
        let mut table = BusyTable::new(KNOWN, residents);
        let mut turn = 0;
        group.bench_function(BenchmarkId::from_parameter(residents), |bench| {
            bench.iter(|| {
                turn += 7919;
                table.acquire_and_release(turn);
            });
        });
    }
    group.finish();
}

/// By the growth of resident memory: coarse, but of everything.
fn memory(_: &mut Criterion) {
    let before = resident_pages();
    let table = BusyTable::new(20 * KNOWN, 1);
    let bytes = resident_pages().saturating_sub(before) * 4096;
    println!("memory of a known model: {} B", bytes / (20 * KNOWN));
    drop(table);
}

fn resident_pages() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default()
}

criterion_group!(benches, memory, hot);
criterion_main!(benches);
