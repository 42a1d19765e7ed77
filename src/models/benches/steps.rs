//! Whole steps of a decoder and an encoder of usual proportions: where the time of a token goes.
//!
//! The decoder has the layers of a 135M-parameter model, eight of its thirty; the encoder is
//! a small sentence model. Random weights, read from a file as any other.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot run should say so loudly")]
#![expect(missing_docs, reason = "the group that criterion makes is public")]

use candle_core::DType;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use roundhouse_engine::{BlockId, ModelRunner, Row, StepPlan};
use roundhouse_models::{Cancel, DtypeSetting, LoadSettings, Quantize, inspect, load, read_local};
use roundhouse_types::DeviceId;

#[path = "../tests/random/mod.rs"]
mod random;

use random::{Bert, Llama};

const CONTEXT: usize = 2048;
const BLOCKS: u32 = CONTEXT as u32 / 16;

/// The weights as they were written, in the types that half of checkpoints have, and in bf16 with
/// activations rounded as well.
const TYPES: [(&str, DType, DtypeSetting); 4] = [
    ("f32", DType::F32, DtypeSetting::Auto),
    ("f16", DType::F16, DtypeSetting::Auto),
    ("bf16", DType::BF16, DtypeSetting::Auto),
    ("rounded", DType::BF16, DtypeSetting::Bf16),
];

fn open(dir: &std::path::Path, settings: LoadSettings) -> Box<dyn ModelRunner> {
    let settings = LoadSettings { kv_sequences: 32, ..settings };
    let plan = inspect(&read_local(dir).unwrap(), &settings).unwrap();
    load(dir, &plan, DeviceId::Cpu, &Cancel::new()).unwrap().runner
}

fn row(sequence: u32, position: usize, tokens: usize) -> Row {
    Row {
        tokens: (0..tokens as u32).map(|token| token * 31 % 8000).collect(),
        position,
        blocks: (sequence * BLOCKS..(sequence + 1) * BLOCKS).map(BlockId).collect(),
        output: true,
        ..Row::default()
    }
}

fn decoder(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let shape = Llama {
        hidden: 576,
        intermediate: 1536,
        layers: 8,
        heads: 9,
        kv_heads: 3,
        vocab: 8192,
        context: CONTEXT,
    };
    for (name, stored, dtype) in TYPES {
        random::llama(folder.path(), shape);
        random::narrow(folder.path(), stored);
        let settings = LoadSettings { dtype, ..LoadSettings::default() };
        let mut runner = open(folder.path(), settings);
        let mut group = criterion.benchmark_group(format!("decoder-{name}"));
        group.sample_size(10);
        for (sequences, position) in
            [(1, 16), (1, 2000), (4, 16), (8, 16), (9, 16), (16, 16), (32, 16), (16, 2000)]
        {
            let plan =
                StepPlan { rows: (0..sequences).map(|index| row(index, position, 1)).collect() };
            group.throughput(Throughput::Elements(u64::from(sequences)));
            let id = BenchmarkId::new("decode", format!("{sequences}x{position}"));
            group.bench_function(id, |bencher| bencher.iter(|| runner.forward(&plan).unwrap()));
        }
        for (tokens, position) in [(512, 0), (512, 1500)] {
            let plan = StepPlan { rows: vec![row(0, position, tokens)] };
            group.throughput(Throughput::Elements(tokens as u64));
            let id = BenchmarkId::new("prefill", format!("{tokens}at{position}"));
            group.bench_function(id, |bencher| bencher.iter(|| runner.forward(&plan).unwrap()));
        }
        group.finish();
    }
}

/// The same weights in every format: rows that blocks of 256 divide, 81 M parameters, more than
/// the second cache holds of any.
fn formats(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let shape = Llama {
        hidden: 1024,
        intermediate: 2816,
        layers: 6,
        heads: 16,
        kv_heads: 4,
        vocab: 8192,
        context: CONTEXT,
    };
    let floats = TYPES.map(|(name, stored, dtype)| (name, stored, dtype, None));
    let blocks = [("q8_0", Quantize::Q8_0), ("q4_k", Quantize::Q4K)]
        .map(|(name, quantize)| (name, DType::F32, DtypeSetting::Auto, Some(quantize)));
    for (name, stored, dtype, quantize) in floats.into_iter().chain(blocks) {
        random::llama(folder.path(), shape);
        random::narrow(folder.path(), stored);
        let settings = LoadSettings { dtype, quantize, ..LoadSettings::default() };
        let mut runner = open(folder.path(), settings);
        let mut group = criterion.benchmark_group(format!("formats-{name}"));
        group.sample_size(10);
        for (sequences, tokens) in [(1, 1), (8, 1), (32, 1), (1, 512)] {
            let rows = (0..sequences).map(|index| row(index, 0, tokens)).collect();
            let plan = StepPlan { rows };
            group.throughput(Throughput::Elements(u64::from(sequences) * tokens as u64));
            let id = BenchmarkId::new("step", format!("{sequences}x{tokens}"));
            group.bench_function(id, |bencher| bencher.iter(|| runner.forward(&plan).unwrap()));
        }
        group.finish();
    }
}

fn encoder(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let shape =
        Bert { hidden: 384, intermediate: 1536, layers: 6, heads: 12, vocab: 8192, context: 512 };
    random::bert(folder.path(), shape);
    for (name, dtype) in [("encoder", DtypeSetting::Auto), ("encoder-rounded", DtypeSetting::Bf16)]
    {
        let mut runner = open(folder.path(), LoadSettings { dtype, ..LoadSettings::default() });
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10);
        for (sequences, tokens) in [(1, 16), (1, 512), (16, 32)] {
            let row = Row { blocks: Vec::new(), ..row(0, 0, tokens) };
            let plan = StepPlan { rows: vec![row; sequences] };
            group.throughput(Throughput::Elements((sequences * tokens) as u64));
            let id = BenchmarkId::new("encode", format!("{sequences}x{tokens}"));
            group.bench_function(id, |bencher| bencher.iter(|| runner.forward(&plan).unwrap()));
        }
        group.finish();
    }
}

criterion_group!(benches, decoder, formats, encoder);
criterion_main!(benches);
