//! What a request on a resident costs the table, and what a known model takes.

#![expect(missing_docs, reason = "the group that criterion makes is public")]
#![expect(clippy::print_stdout, reason = "a measurement's result")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use roundhouse_residency::testing::{BusyTable, Script, ScriptedLoader, model};
use roundhouse_residency::{Config, LoadOptions, Residency};
use roundhouse_types::{Bytes, DeviceId};
use tokio::runtime::{Builder, Runtime};

/// Models that are known, by failures or as residents.
const KNOWN: usize = 10_000;
/// Requests between two readings of the clock.
const BATCH: usize = 128;
/// Between the residents that two requests in a row ask for: no two are near each other.
const STRIDE: usize = 7919;

/// Which part of a request is measured.
#[derive(Clone, Copy)]
enum Part {
    Acquire,
    Release,
    Both,
}

fn hot(criterion: &mut Criterion) {
    let parts = [
        ("acquire a resident", Part::Acquire),
        ("release it", Part::Release),
        ("acquire and release", Part::Both),
    ];
    for (name, part) in parts {
        let mut group = criterion.benchmark_group(name);
        for residents in [10, 100, 1_000, 10_000] {
            let mut table = BusyTable::new(KNOWN, residents);
            let mut turn = 0;
            group.bench_function(BenchmarkId::from_parameter(residents), |bench| {
                bench.iter_custom(|iterations| measure(&mut table, &mut turn, part, iterations));
            });
        }
        group.finish();
    }
}

/// A request on an adapter, of so many on one base.
fn adapters(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("acquire and release an adapter");
    for adapters in [10, 10_000] {
        let mut table = BusyTable::with_adapters(adapters);
        let mut turn = 0;
        group.bench_function(BenchmarkId::from_parameter(adapters), |bench| {
            bench.iter_custom(|iterations| measure(&mut table, &mut turn, Part::Both, iterations));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("load an adapter in the place of another");
    for adapters in [100, 1_000, 10_000] {
        let mut table = BusyTable::with_adapters(adapters);
        group.bench_function(BenchmarkId::from_parameter(adapters), |bench| {
            bench.iter(|| table.replace());
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("the same beside a floor and below a ceiling");
    for adapters in [100, 1_000, 10_000] {
        let mut table = BusyTable::with_limits(adapters);
        group.bench_function(BenchmarkId::from_parameter(adapters), |bench| {
            bench.iter(|| table.replace());
        });
    }
    group.finish();
}

/// A request on a resident among ten thousand, while other models are on their way.
fn hot_beside_loads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("acquire and release beside loads");
    for loads in [1, 10, 100] {
        let mut table = BusyTable::new(KNOWN, KNOWN);
        table.begin_loads(loads);
        let mut turn = 0;
        group.bench_function(BenchmarkId::from_parameter(loads), |bench| {
            bench.iter_custom(|iterations| measure(&mut table, &mut turn, Part::Both, iterations));
        });
    }
    group.finish();
}

/// How long this part of so many requests takes.
fn measure(table: &mut BusyTable, turn: &mut usize, part: Part, iterations: u64) -> Duration {
    let mut measured = Duration::ZERO;
    let mut left = usize::try_from(iterations).expect("as many as a machine can count");
    while left > 0 {
        let batch = left.min(BATCH);
        left -= batch;
        let mut next = || {
            *turn += STRIDE;
            *turn
        };
        let requests: Vec<_> = (0..batch).map(|_| table.request(next())).collect();
        let begin = Instant::now();
        let granted: Vec<_> = requests.into_iter().map(|request| table.acquire(request)).collect();
        let acquired = Instant::now();
        granted.into_iter().for_each(|granted| table.release(granted));
        measured += match part {
            Part::Acquire => acquired - begin,
            Part::Release => acquired.elapsed(),
            Part::Both => begin.elapsed(),
        };
    }
    measured
}

/// A request on a resident as everybody makes it: a message to the task that owns the table, its
/// answer, and the message that the lease ended.
fn through_the_owner(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("acquire and release through the owner");
    for residents in [10, 10_000] {
        let (runtime, residency, names) = loaded(residents);
        let mut turn = 0;
        group.bench_function(BenchmarkId::from_parameter(residents), |bench| {
            bench.iter(|| {
                turn += STRIDE;
                let model = model(names[turn % residents]);
                runtime.block_on(async {
                    let soon = tokio::time::Instant::now().into_std() + Duration::from_secs(1);
                    drop(residency.acquire(&model, soon).await.expect("it is loaded"));
                });
            });
        });
    }
    group.finish();
}

/// What a reader of the state holds up: all of it at once, or a part.
fn looks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("look through the owner");
    for residents in [1_000, 10_000] {
        let (runtime, residency, _) = loaded(residents);
        let id = |what: &str| BenchmarkId::new(what, residents);
        group.bench_function(id("whole"), |bench| {
            bench.iter(|| runtime.block_on(residency.snapshot()).expect("it runs"));
        });
        group.bench_function(id("holdings"), |bench| {
            bench.iter(|| runtime.block_on(residency.holdings()).expect("it runs"));
        });
        group.bench_function(id("outline"), |bench| {
            bench.iter(|| runtime.block_on(residency.outline()).expect("it runs"));
        });
        group.bench_function(id("part"), |bench| {
            bench.iter(|| runtime.block_on(residency.residents(None)).expect("it runs"));
        });
    }
    group.finish();
}

/// An owner with so many residents. With time paused, scripted loads take none.
fn loaded(residents: usize) -> (Runtime, Residency<String>, Vec<&'static str>) {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime for one thread");
    let names: Vec<&'static str> =
        (0..residents).map(|index| &*format!("models/variant-{index}").leak()).collect();
    let loader = ScriptedLoader::new(names.iter().map(|name| (*name, Script::of(10))));
    let residency = runtime.block_on(async {
        let config = Config { max_loads: residents, ..Config::default() };
        let device = (DeviceId::Cpu, Bytes(residents as u64 * 10));
        let residency = Residency::start(config, vec![device], loader);
        for name in &names {
            let loaded = residency.load(&model(name), LoadOptions::default()).await;
            loaded.expect("there is room for all");
        }
        residency
    });
    (runtime, residency, names)
}

/// By the growth of resident memory: coarse, but of everything.
fn memory(_: &mut Criterion) {
    let before = resident_pages();
    let table = BusyTable::new(20 * KNOWN, 1);
    let bytes = resident_pages().saturating_sub(before) * 4096;
    println!("memory of a known model: {} B", bytes / (20 * KNOWN));
    drop(table);
    let before = resident_pages();
    let table = BusyTable::with_adapters(20 * KNOWN);
    let bytes = resident_pages().saturating_sub(before) * 4096;
    println!("memory of a resident adapter: {} B", bytes / (20 * KNOWN));
    drop(table);
}

fn resident_pages() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default()
}

criterion_group!(benches, memory, hot, adapters, hot_beside_loads, through_the_owner, looks);
criterion_main!(benches);
