//! The workspace formulas against the allocator: a step never needs more than was charged.
//!
//! One test only: the counters are the process's.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail and tell as tests do"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::DType;
use roundhouse_engine::{BlockId, ModelRunner, Row, StepPlan, Want};
use roundhouse_models::{Cancel, DeviceMemory, LoadSettings, Quantize, inspect, load, read_local};
use roundhouse_types::DeviceId;

mod families;
mod random;

use random::{Bert, Llama};

/// The system's allocator with the live bytes and their peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn add(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const VOCAB: usize = 3000;
const STEP_TOKENS: usize = 256;

/// Bytes above the present that a step needs at its peak.
fn peak(runner: &mut dyn ModelRunner, rows: Vec<Row>) -> usize {
    let plan = StepPlan { rows };
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let output = runner.forward(&plan).expect("the plan is sound");
    assert!(output.rows.iter().flatten().all(|number| number.is_finite()));
    PEAK.load(Ordering::Relaxed) - before
}

fn rows(lengths: &[usize], blocks: bool) -> Vec<Row> {
    let mut next = 0;
    let row = |&length: &usize| {
        let count = if blocks { length.div_ceil(16) as u32 } else { 0 };
        let row = Row {
            tokens: (0..length as u32).map(|token| token * 7 % VOCAB as u32).collect(),
            position: 0,
            blocks: (next..next + count).map(BlockId).collect(),
            output: true,
            // What takes most: a vector for each token, where nothing is kept.
            want: if blocks { Want::Pooled } else { Want::Each },
            ..Row::default()
        };
        next += count;
        row
    };
    lengths.iter().map(row).collect()
}

/// A name, how it is quantised, and what writes such a model to a folder.
type Kind = (&'static str, Option<Quantize>, fn(&Path));

const DECODER: Llama = Llama {
    hidden: 256,
    intermediate: 704,
    layers: 2,
    heads: 8,
    kv_heads: 2,
    vocab: VOCAB,
    context: 512,
};

fn bert(dir: &Path) {
    let shape = Bert {
        hidden: 256,
        intermediate: 1024,
        layers: 2,
        heads: 4,
        vocab: VOCAB,
        context: STEP_TOKENS,
    };
    random::bert(dir, shape);
}

/// The decoder without its head, to make vectors.
fn embedder(dir: &Path) {
    random::llama(dir, Llama { context: STEP_TOKENS, ..DECODER });
    let path = dir.join("config.json");
    let config = std::fs::read_to_string(&path).expect("it was just written");
    std::fs::write(path, config.replace("LlamaForCausalLM", "LlamaModel"))
        .expect("the folder is the test's");
}

/// The same decoder with weights in bf16.
fn halves(dir: &Path) {
    random::llama(dir, DECODER);
    random::narrow(dir, DType::BF16);
}

/// The same with weights in f16.
fn f16s(dir: &Path) {
    random::llama(dir, DECODER);
    random::narrow(dir, DType::F16);
}

#[test]
fn no_step_needs_more_than_its_charged_workspace() {
    let settings =
        LoadSettings { kv_sequences: 8, step_tokens: STEP_TOKENS, ..LoadSettings::default() };
    let kinds: [Kind; 22] = [
        ("llama", None, |dir| random::llama(dir, DECODER)),
        ("llama of whole pages", None, |dir| {
            random::llama(dir, Llama { intermediate: 1024, ..DECODER })
        }),
        ("llama", Some(Quantize::Q8_0), |dir| random::llama(dir, DECODER)),
        ("llama", Some(Quantize::Q4K), |dir| random::llama(dir, DECODER)),
        ("llama in bf16", None, halves),
        ("llama in f16", None, f16s),
        ("gemma3", None, |dir| families::gemma3(dir, DECODER)),
        ("mixtral", None, |dir| families::mixtral(dir, DECODER)),
        ("mixtral", Some(Quantize::Q8_0), |dir| families::mixtral(dir, DECODER)),
        ("gpt_oss", None, |dir| families::gpt_oss(dir, DECODER)),
        ("gpt2", None, |dir| families::gpt2(dir, DECODER)),
        ("olmo", None, |dir| families::olmo(dir, DECODER)),
        ("cohere", None, |dir| families::cohere(dir, DECODER)),
        ("qwen2_moe", None, |dir| families::qwen2_moe(dir, DECODER)),
        ("gpt_neox", None, |dir| families::gpt_neox(dir, DECODER)),
        ("bert", None, bert),
        ("bert", Some(Quantize::Q8_0), bert),
        ("modernbert", None, |dir| families::modernbert(dir, DECODER)),
        ("modernbert", Some(Quantize::Q8_0), |dir| families::modernbert(dir, DECODER)),
        ("deberta", None, |dir| families::deberta(dir, DECODER)),
        ("llama for vectors", None, embedder),
        ("llama for vectors", Some(Quantize::Q8_0), embedder),
    ];
    let host = DeviceMemory::from(DeviceId::Cpu);
    for (kind, quantize, make) in kinds {
        holds((kind, make), LoadSettings { quantize, ..settings }, &host);
    }
    // As it is on cards. Halves are left out: the host widens them to multiply, which cards do not.
    let settings = LoadSettings { cards: true, ..settings };
    let card = DeviceMemory::rehearsal(DeviceId::Simulated(0));
    let left_out = ["bert", "modernbert", "deberta", "llama in bf16", "llama in f16"];
    for (kind, quantize, make) in kinds {
        if quantize.is_none() && !left_out.contains(&kind) {
            holds((kind, make), settings, &card);
        }
    }
}

/// Steps of many shapes of such a model against what its plan charges.
fn holds((kind, make): (&str, fn(&Path)), settings: LoadSettings, memory: &DeviceMemory) {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let plan = inspect(&read_local(folder.path()).unwrap(), &settings).unwrap();
    let before = LIVE.load(Ordering::Relaxed);
    let loaded = load(folder.path(), &plan, memory.clone(), &Cancel::new()).unwrap();
    let resident = LIVE.load(Ordering::Relaxed) - before;
    let mut runner = loaded.runner;
    let weights = plan.footprint.weights.as_usize();
    let kind = format!("{kind} on {}", memory.id());
    assert!(resident >= weights, "{kind}: {resident} live, {weights} of weights");

    // The matmul kernels' packing buffers and the KV chunks stay once they were used; the
    // first are the threads', the second are charged as KV.
    let shapes = [vec![STEP_TOKENS], vec![1; STEP_TOKENS], vec![2; 128], vec![37; 6], vec![1]];
    for lengths in &shapes {
        peak(&mut *runner, rows(lengths, plan.kv().is_some()));
    }
    // Rope tables were allocated with the weights and are charged as workspace.
    let tables = resident - weights;
    let charged = plan.footprint.workspace.as_usize();
    for lengths in &shapes {
        let peak = peak(&mut *runner, rows(lengths, plan.kv().is_some()));
        println!("{kind} {} rows: peak {peak}, tables {tables}, charged {charged}", lengths.len());
        assert!(
            peak + tables <= charged,
            "{kind}, {} rows: {peak} + {tables} > {charged}",
            lengths.len()
        );
    }
}
