//! Reference cases and steps over them.

use std::path::{Path, PathBuf};

use roundhouse_engine::{BlockId, ModelRunner, Row, StepPlan};
use roundhouse_models::{
    Cancel, DeviceMemory, LoadSettings, LoadedRunner, ModelPlan, inspect, load, read_local,
};
use roundhouse_types::DeviceId;
use serde::Deserialize;

/// Every case whose folder name starts so.
pub(crate) fn cases(prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(references())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no reference case is called {prefix}*");
    names
}

/// Every case of a decoder whose weights are floats in safetensors.
pub(crate) fn decoders() -> Vec<String> {
    let others = ["bert", "encoder", "gguf", "mxfp4"];
    let is_one = |name: &String| !others.iter().any(|other| name.starts_with(other));
    cases("").into_iter().filter(is_one).collect()
}

/// The settings under which a decoder's reference was computed, with room for [`scattered`].
pub(crate) fn served(case: &LlamaCase) -> LoadSettings {
    let context = case.context.unwrap_or(128);
    LoadSettings { context, kv_sequences: 160 * 16 / context, ..settings() }
}

pub(crate) fn references() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/references")
}

pub(crate) fn dir(case: &str) -> PathBuf {
    references().join(case)
}

pub(crate) fn settings() -> LoadSettings {
    LoadSettings { kv_sequences: 20, ..LoadSettings::default() }
}

pub(crate) fn plan(case: &str, settings: &LoadSettings) -> ModelPlan {
    inspect(&read_local(&dir(case)).unwrap(), settings).unwrap()
}

pub(crate) fn open(case: &str, settings: &LoadSettings) -> LoadedRunner {
    open_in(&DeviceId::Cpu.into(), case, settings)
}

pub(crate) fn open_in(memory: &DeviceMemory, case: &str, settings: &LoadSettings) -> LoadedRunner {
    load(&dir(case), &plan(case, settings), memory.clone(), &Cancel::new()).unwrap()
}

/// A copy of a folder whose safetensors have other names of tensors, each as long as before.
pub(crate) fn renamed(from: &Path, names: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let mut content = std::fs::read(&path).unwrap();
        if path.extension().is_some_and(|it| it == "safetensors") {
            let header = 8 + u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
            let mut text = String::from_utf8(content[8..header].to_vec()).unwrap();
            names.iter().for_each(|(old, new)| text = text.replace(old, new));
            content.splice(8..header, text.into_bytes());
        }
        std::fs::write(folder.path().join(path.file_name().unwrap()), content).unwrap();
    }
    folder
}

pub(crate) fn expected<T: for<'de> Deserialize<'de>>(case: &str) -> T {
    serde_json::from_slice(&std::fs::read(dir(case).join("expected.json")).unwrap()).unwrap()
}

/// What a decoder of any family is held to.
#[derive(Deserialize)]
pub(crate) struct LlamaCase {
    /// The served context, where it is not the model's own.
    #[serde(default)]
    pub(crate) context: Option<usize>,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) every_position: EveryPosition,
}

#[derive(Deserialize)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    pub(crate) last_logits: Vec<f32>,
    pub(crate) greedy: Greedy,
}

#[derive(Deserialize)]
pub(crate) struct Greedy {
    pub(crate) ids: Vec<u32>,
    pub(crate) margins: Vec<f32>,
}

#[derive(Deserialize)]
pub(crate) struct EveryPosition {
    pub(crate) prompt: usize,
    pub(crate) logits: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
pub(crate) struct BertCase {
    pub(crate) inputs: Vec<Input>,
    #[serde(default)]
    pub(crate) labels: Vec<String>,
    #[serde(default)]
    pub(crate) activation: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Input {
    pub(crate) ids: Vec<u32>,
    pub(crate) type_ids: Vec<u32>,
    #[serde(default)]
    pub(crate) embedding: Vec<f32>,
    #[serde(default)]
    pub(crate) logits: Vec<f32>,
}

/// Blocks for the `index`th sequence that lie apart and out of order: 13 and 160 have no
/// common factor, so ten blocks each for sixteen sequences never meet in a pool of 160.
pub(crate) fn scattered(index: usize) -> Vec<BlockId> {
    (0..10).map(|at| BlockId(((index * 10 + at) * 13 % 160) as u32)).collect()
}

/// A row that wants an output.
pub(crate) fn row(index: usize, position: usize, tokens: &[u32]) -> Row {
    Row { position, blocks: scattered(index), ..whole(tokens) }
}

/// A row of an encoder.
pub(crate) fn whole(tokens: &[u32]) -> Row {
    Row { tokens: tokens.to_vec(), output: true, ..Row::default() }
}

pub(crate) fn step(runner: &mut dyn ModelRunner, rows: Vec<Row>) -> Vec<Vec<f32>> {
    runner.forward(&StepPlan { rows }).unwrap().rows
}

/// The largest difference between two vectors of equal length.
pub(crate) fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The largest number's index, the first of equals.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}
