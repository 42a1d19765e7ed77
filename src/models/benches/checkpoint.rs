//! A checkpoint's tokens per second as a runner computes them, without a server: prompts of 512,
//! next tokens of 1, 8 and 32 sequences, and a chunk of 32 far behind in a long prompt.
//!
//! `cargo bench -p roundhouse-models --bench checkpoint -- FOLDER [f32|f16|q8_0|q4_k]`. Each line: the median of some steps by the clock, and the processor time of all
//! threads for one, which others on the machine disturb less.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot run should say so loudly")]
#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::path::Path;
use std::time::{Duration, Instant};

use roundhouse_engine::{BlockId, ModelRunner, Row, StepPlan};
use roundhouse_models::{Cancel, DtypeSetting, LoadSettings, Quantize, inspect, load, read_local};
use roundhouse_types::DeviceId;

const CONTEXT: usize = 8192;
/// Blocks of a short sequence; the long one's follow those of all short ones.
const SHORT: u32 = 64;
const SEQUENCES: u32 = 32;
/// Steps whose median is told: so many, fewer where they take long.
const ROUNDS: usize = 7;
const FEWEST: usize = 3;

fn settings(format: Option<&str>) -> LoadSettings {
    let settings = LoadSettings { context: CONTEXT, kv_sequences: 5, ..LoadSettings::default() };
    match format {
        None => settings,
        Some("f32") => LoadSettings { dtype: DtypeSetting::F32, ..settings },
        Some("f16") => LoadSettings { dtype: DtypeSetting::F16, ..settings },
        Some("q8_0") => LoadSettings { quantize: Some(Quantize::Q8_0), ..settings },
        Some("q4_k") => LoadSettings { quantize: Some(Quantize::Q4K), ..settings },
        Some(other) => panic!("no format is called {other}"),
    }
}

fn open(dir: &Path, format: Option<&str>) -> Box<dyn ModelRunner> {
    let plan = inspect(&read_local(dir).unwrap(), &settings(format)).unwrap();
    load(dir, &plan, DeviceId::Cpu, &Cancel::new()).unwrap().runner
}

fn row(blocks: std::ops::Range<u32>, position: usize, tokens: usize) -> Row {
    Row {
        tokens: (0..tokens as u32).map(|token| 300 + token * 31 % 8000).collect(),
        position,
        blocks: blocks.map(BlockId).collect(),
        output: true,
        ..Row::default()
    }
}

fn short(sequence: u32, position: usize, tokens: usize) -> Row {
    row(sequence * SHORT..(sequence + 1) * SHORT, position, tokens)
}

fn long(position: usize, tokens: usize) -> Row {
    let first = SEQUENCES * SHORT;
    row(first..first + CONTEXT as u32 / 16, position, tokens)
}

/// Processor seconds that all threads of this process have had.
fn processor() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let nanoseconds = threads.map(|thread| {
        let path = thread.unwrap().path().join("schedstat");
        let told = std::fs::read_to_string(path).unwrap_or_default();
        told.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or(0.0)
    });
    nanoseconds.sum::<f64>() * 1e-9
}

fn measure(runner: &mut dyn ModelRunner, what: &str, rows: Vec<Row>) {
    let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
    let plan = StepPlan { rows };
    runner.forward(&plan).unwrap();
    let (mut clocks, mut processors) = (Vec::new(), Vec::new());
    let began = Instant::now();
    let (enough, much) = (Duration::from_millis(1500), Duration::from_secs(20));
    while clocks.len() < FEWEST
        || (clocks.len() < ROUNDS && began.elapsed() < much)
        || began.elapsed() < enough
    {
        let (clock, before) = (Instant::now(), processor());
        runner.forward(&plan).unwrap();
        clocks.push(clock.elapsed().as_secs_f64());
        processors.push(processor() - before);
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (clock, processor) = (median(clocks), median(processors));
    println!(
        "{what:>16}: {:8.2} ms, {:8.1} tokens/s; processor {:8.2} ms",
        clock * 1e3,
        tokens as f64 / clock,
        processor * 1e3
    );
}

fn main() {
    // Cargo adds a flag of its own.
    let given: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let Some(path) = given.first() else {
        println!("no checkpoint was given");
        return;
    };
    let mut runner = open(Path::new(path), given.get(1).map(String::as_str));
    let runner = &mut *runner;
    for sequence in 0..SEQUENCES {
        let plan = StepPlan { rows: vec![short(sequence, 0, 16)] };
        runner.forward(&plan).unwrap();
    }
    measure(runner, "prefill 512", vec![short(0, 0, 512)]);
    for sequences in [1, 8, 32] {
        let rows = (0..sequences).map(|sequence| short(sequence, 16, 1)).collect();
        measure(runner, &format!("decode {sequences}"), rows);
    }
    for position in (0..4096).step_by(512) {
        runner.forward(&StepPlan { rows: vec![long(position, 512)] }).unwrap();
    }
    for tokens in [1, 32, 512] {
        measure(runner, &format!("{tokens} behind 4000"), vec![long(4000, tokens)]);
    }
}
