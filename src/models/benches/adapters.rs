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
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use half::bf16;
use rayon::prelude::*;
use roundhouse_engine::{AdapterId, BlockId, Row, StepPlan};
use roundhouse_models::{
    AdapterPlan, Cancel, Folder, LoadSettings, LoadedRunner, inspect, load, load_adapter,
    read_local,
};
use roundhouse_types::DeviceId;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

#[expect(dead_code, reason = "its encoders are for other measurements")]
#[path = "../tests/random/mod.rs"]
mod random;

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

/// The modules of a layer: name, inputs, outputs.
fn modules() -> [(&'static str, usize, usize); 7] {
    let (hidden, inner) = (SHAPE.hidden, SHAPE.intermediate);
    let keys = hidden / SHAPE.heads * SHAPE.kv_heads;
    [
        ("self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", hidden, keys),
        ("self_attn.v_proj", hidden, keys),
        ("self_attn.o_proj", hidden, hidden),
        ("mlp.gate_proj", hidden, inner),
        ("mlp.up_proj", hidden, inner),
        ("mlp.down_proj", inner, hidden),
    ]
}

/// Writes an adapter of small numbers.
fn write_adapter(dir: &Path) {
    let mut tensors = Vec::new();
    for layer in 0..SHAPE.layers {
        for (module, inputs, outputs) in modules() {
            let name = format!("base_model.model.model.layers.{layer}.{module}");
            tensors.push((format!("{name}.lora_A.weight"), vec![RANK, inputs]));
            tensors.push((format!("{name}.lora_B.weight"), vec![outputs, RANK]));
        }
    }
    let number = |at: usize| bf16::from_f32(0.02 * ((at * 7919 % 1009) as f32 / 504.0 - 1.0));
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| {
            (0..shape.iter().product()).flat_map(|at| number(at).to_le_bytes()).collect()
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), data).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("adapter_model.safetensors"), bytes).unwrap();
    let names: Vec<&str> = modules().iter().map(|(name, ..)| *name).collect();
    let config = json!({
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": names
    });
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
}

/// A base with so many adapters, and the bytes of one.
fn open(adapters: u32) -> (LoadedRunner, u64) {
    let (base, adapter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    random::llama(base.path(), SHAPE);
    write_adapter(adapter.path());
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
