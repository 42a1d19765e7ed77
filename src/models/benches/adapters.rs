//! Steps of rows with distinct adapters beside the base alone and beside what the machine allows.
//!
//! `cargo bench -p roundhouse-models --bench adapters [-- ROUNDS]`. The decoder has the shape of a
//! model of 135 M parameters in f32, each adapter rank 16 on all projections in bf16. A step must
//! read the base once and each distinct adapter once, and multiply what it reads with every row:
//! the bound is the larger of those bytes over the bandwidth with which all threads read a buffer
//! of the base's size, and those multiplications over the rate of a large matmul, both measured
//! between the steps of the same run. Steps of the base, of distinct adapters, and of one adapter
//! for all rows alternate; medians, and the shortest.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot run should say so loudly")]
#![expect(clippy::print_stdout, reason = "a table for people")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use roundhouse_engine::{AdapterId, BlockId, Row, StepPlan};
use roundhouse_models::{
    AdapterPlan, Cancel, Folder, LoadSettings, LoadedRunner, inspect, load, load_adapter,
    read_local,
};
use roundhouse_types::DeviceId;

#[expect(dead_code, reason = "its encoders are for other measurements")]
#[path = "../tests/random/mod.rs"]
mod random;

#[path = "../tests/low_rank/mod.rs"]
mod low_rank;

const SHAPE: random::Llama = random::Llama {
    hidden: 576,
    intermediate: 1536,
    layers: 30,
    heads: 9,
    kv_heads: 3,
    vocab: 49_152,
    context: 512,
};
const RANK: usize = 16;
const MOST: u32 = 32;

/// A base with so many adapters, and the bytes of one.
fn open(adapters: u32) -> (LoadedRunner, u64) {
    let (base, adapter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    random::llama(base.path(), SHAPE);
    let shapes = [SHAPE.hidden, SHAPE.hidden / SHAPE.heads * SHAPE.kv_heads, SHAPE.intermediate];
    let modules: Vec<_> = low_rank::projections(SHAPE.layers, shapes).collect();
    low_rank::write(adapter.path(), RANK, 0.02, &modules);
    let settings = LoadSettings { kv_sequences: 4, context: 512, ..LoadSettings::default() };
    let plan = inspect(&read_local(base.path()).unwrap(), &settings).unwrap();
    let mut loaded = load(base.path(), &plan, DeviceId::Cpu, &Cancel::new()).unwrap();
    let plan = AdapterPlan::read(&read_local(adapter.path()).unwrap()).unwrap();
    let files = Folder::new(adapter.path());
    let mut bytes = 0;
    for id in 0..u64::from(adapters) {
        let adapter = load_adapter(&files, &plan, &loaded.base, &Cancel::new()).unwrap();
        bytes = adapter.footprint.weights.0;
        loaded.runner.attach(AdapterId(id), adapter.weights).unwrap();
    }
    (loaded, bytes)
}

/// Whose rows a step computes.
#[derive(Clone, Copy)]
enum Rows {
    Base,
    /// Each row has an adapter of its own.
    Distinct,
    /// All rows have the same adapter.
    Same,
}

impl Rows {
    fn adapter(self, row: u32) -> Option<AdapterId> {
        match self {
            Self::Base => None,
            Self::Distinct => Some(AdapterId(u64::from(row))),
            Self::Same => Some(AdapterId(0)),
        }
    }
}

/// One decode of so many sequences.
fn plan(rows: u32, of: Rows) -> StepPlan {
    let row = |index: u32| Row {
        tokens: vec![index * 31 % 8000],
        position: 16,
        blocks: vec![BlockId(index * 2), BlockId(index * 2 + 1)],
        adapter: of.adapter(index),
        output: true,
        ..Row::default()
    };
    StepPlan { rows: (0..rows).map(row).collect() }
}

fn time(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

/// Reads a buffer once with all threads.
fn read(buffer: &[f32]) {
    let sum = |chunk: &[f32]| {
        let mut lanes = [0.0f32; 64];
        for part in chunk.as_chunks::<64>().0 {
            for (lane, number) in lanes.iter_mut().zip(part) {
                *lane += number;
            }
        }
        lanes.iter().sum::<f32>()
    };
    black_box(buffer.par_chunks(1 << 18).map(sum).sum::<f32>());
}

/// The middle and the shortest.
fn summed(times: &mut [Duration]) -> [f64; 2] {
    times.sort_unstable();
    [times[times.len() / 2], times[0]].map(|time| time.as_secs_f64())
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(15);
    let (mut loaded, adapter_bytes) = open(MOST);
    let base_bytes = loaded.footprint.weights.0;
    let buffer = vec![1.0f32; base_bytes as usize / 4];
    let square = Tensor::full(0.5f32, (1024, 1024), &Device::Cpu).unwrap();
    println!("base {base_bytes} bytes, an adapter {adapter_bytes} bytes");
    println!("| rows | | step ms | bytes bound ms | flop bound ms | of the bound | shortest |");
    println!("|---|---|---|---|---|---|---|");
    for rows in [1, 8, MOST] {
        let kinds = [Rows::Base, Rows::Distinct, Rows::Same];
        let plans = kinds.map(|kind| plan(rows, kind));
        let mut steps = [Vec::new(), Vec::new(), Vec::new()];
        let [mut reads, mut matmuls] = [Vec::new(), Vec::new()];
        for round in 0..rounds + 1 {
            let read = time(|| read(&buffer));
            let matmul = time(|| drop(black_box(square.matmul(&square).unwrap())));
            let taken = [0, 1, 2]
                .map(|kind| time(|| drop(black_box(loaded.runner.forward(&plans[kind]).unwrap()))));
            if round > 0 {
                reads.push(read);
                matmuls.push(matmul);
                steps.iter_mut().zip(taken).for_each(|(times, time)| times.push(time));
            }
        }
        let bandwidth = summed(&mut reads).map(|seconds| base_bytes as f64 / seconds);
        let flops = summed(&mut matmuls).map(|seconds| 2.0 * 1024f64.powi(3) / seconds);
        for (kind, name) in ["base", "distinct", "same"].into_iter().enumerate() {
            let adapters = [0, u64::from(rows), 1][kind] * adapter_bytes;
            let bytes = (base_bytes + adapters) as f64;
            // Each row is multiplied with the base and with one adapter of two bytes a number.
            let each =
                base_bytes as f64 / 4.0 + if kind > 0 { adapter_bytes as f64 / 2.0 } else { 0.0 };
            let products = 2.0 * f64::from(rows) * each;
            let taken = summed(&mut steps[kind]);
            let bounds = [0, 1].map(|at| [bytes / bandwidth[at], products / flops[at]]);
            let of = [0, 1].map(|at: usize| bounds[at][0].max(bounds[at][1]) / taken[at]);
            let [[byte, flop], _] = bounds.map(|bounds| bounds.map(|seconds| seconds * 1e3));
            println!(
                "| {rows} | {name} | {:.2} | {byte:.2} | {flop:.2} | {:.2} | {:.2} ms, {:.2} |",
                taken[0] * 1e3,
                of[0],
                taken[1] * 1e3,
                of[1]
            );
        }
    }
}
