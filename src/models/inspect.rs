//! What kind of model some files are, and exactly what it will take.

use roundhouse_types::{Bytes, Footprint, ModelKind};
use safetensors::Dtype;
use serde::Serialize;

use crate::Error;
use crate::config::bert::BertConfig;
use crate::config::decoder::DecoderConfig;
use crate::config::families;
use crate::config::sentence::{Pooling, Sentence};
use crate::config::{self, CONFIG, GenerationDefaults, Head, Labels};
use crate::decoder::DecoderWeights;
use crate::encoder::{EncoderWeights, Names};
use crate::files::{Files, SHARD_INDEX, SINGLE};
use crate::footprint;
use crate::reader::{Format, Parameter};
use crate::tensors::TensorTable;

/// What the operator decides about every model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadSettings {
    /// The longest sequence served, in tokens; a model's own limit may be lower.
    pub context: usize,
    /// The KV pool holds this many sequences of that length, or more shorter ones.
    pub kv_sequences: usize,
    /// The most tokens one step may carry. An encoder's is at least one whole sequence.
    pub step_tokens: usize,
    /// The most sequences that share a step: each has a row of outputs.
    pub step_rows: usize,
    /// How projections and embeddings lie in memory.
    pub dtype: DtypeSetting,
}

impl Default for LoadSettings {
    fn default() -> Self {
        Self {
            // Long enough for most prompts; at 128 Ki a token (an 8B model) a sequence is 1 GiB.
            context: 8192,
            // The floor: what does not fit is preempted, never refused.
            kv_sequences: 1,
            // Large enough that matmuls are compute-bound, small enough not to hold up decoding.
            step_tokens: 512,
            // The engine's own default.
            step_rows: 256,
            dtype: DtypeSetting::Auto,
        }
    }
}

/// How projections and embeddings lie in memory, whatever the files have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DtypeSetting {
    /// What the device computes fastest: f32 on the CPU.
    #[default]
    Auto,
    /// Four bytes a weight.
    F32,
    /// Two bytes a weight, widened as it is used: half the memory, slower on the CPU.
    F16,
}

/// A model that can be loaded, and what that takes.
#[derive(Debug, Clone)]
pub struct ModelPlan {
    /// What it does.
    pub kind: ModelKind,
    /// Its architecture by the name its files use.
    pub architecture: String,
    /// The bytes it will take, exact in weights and KV.
    pub footprint: Footprint,
    /// Its weights by the number format of the files, largest first.
    pub weights: Vec<WeightShare>,
    /// The longest sequence served, in tokens.
    pub context: usize,
    /// Bytes of keys and values per token; zero for encoders.
    pub kv_token_bytes: Bytes,
    /// Token ids are below this.
    pub vocab: usize,
    /// Tokens that end a sequence; empty for encoders.
    pub eos_tokens: Vec<u32>,
    /// A classifier's labels.
    pub labels: Option<Labels>,
    /// How its authors would sample.
    pub generation_defaults: GenerationDefaults,
    /// Whether the artefact wants its embeddings scaled to length 1. The runner does not do it:
    /// its vectors are as they were pooled.
    pub normalize: bool,
    /// Numbers per output vector: vocabulary, embedding or labels.
    pub output_width: usize,
    /// The most tokens one step may carry.
    pub step_tokens: usize,
    pub(crate) format: Format,
    pub(crate) family: Family,
}

/// The weights that the files hold in one number format and memory in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WeightShare {
    /// The format in the files: `f32`, `f16` or `bf16`.
    pub file_dtype: &'static str,
    /// The format in memory: `f32` or `f16`.
    pub memory_dtype: &'static str,
    /// Bytes in the files. What the model does not use is not in it.
    pub file_bytes: Bytes,
    /// Bytes in memory.
    pub bytes: Bytes,
}

/// What the runner is built from.
#[derive(Debug, Clone)]
pub(crate) enum Family {
    Decoder { config: DecoderConfig, prefix: &'static str, blocks: usize },
    Encoder { config: BertConfig, names: Names, pooling: Pooling, labels: Option<usize> },
}

/// What would have been recognised.
const EXPECTED: &str = "config.json with safetensors weights of a decoder, BertModel \
     or BertForSequenceClassification, or a Python handler's code/inference.py, model.joblib, \
     model.pkl, xgboost-model or one .pt or .pth";

/// Finds out what the files are, checks that all weights are there in the right shapes,
/// and counts the bytes. Reads nothing but what it is given.
///
/// # Errors
/// When the kind is unknown or not served, a file is unsound, the configuration asks for
/// what is not computed, or a tensor is missing or of the wrong shape.
pub fn inspect(files: &Files, settings: &LoadSettings) -> Result<ModelPlan, Error> {
    recognise(files)?;
    let head = Head::read(files)?;
    let names = head.architectures.as_deref().unwrap_or_default();
    let [architecture] = names else {
        let reason = format!(
            "it names {} architectures (model_type {}); one is expected",
            names.len(),
            head.model_type.as_deref().unwrap_or("absent")
        );
        return Err(Error::config(CONFIG, reason));
    };
    let has_modules = files.sizes.contains_key("modules.json");
    match architecture.as_str() {
        "BertModel" => encoder(files, settings, architecture, false),
        "BertForSequenceClassification" => encoder(files, settings, architecture, true),
        // Encoders fine-tuned from these keep the name; without modules they are no embedders.
        "BertForMaskedLM" | "BertForPreTraining" if has_modules => {
            encoder(files, settings, architecture, false)
        }
        other => match families::find(other) {
            Some(read) => decoder(files, settings, &head, (architecture, read)),
            None => Err(families::refusal(other)),
        },
    }
}

/// Refuses folders that are something else, by what they are.
fn recognise(files: &Files) -> Result<(), Error> {
    let has = |name: &str| files.sizes.contains_key(name);
    let ending = |ending: &str| files.sizes.keys().find(|path| path.ends_with(ending));
    let refuse = |what: String, advice| Err(Error::NotServed { what, advice });
    if has("adapter_config.json") {
        return refuse("a LoRA adapter (adapter_config.json) is".into(), "");
    }
    if has("model_index.json") {
        return refuse("an image pipeline (model_index.json) is".into(), "");
    }
    if has("code/inference.py") {
        return refuse("a Python handler (code/inference.py) is".into(), "");
    }
    if !has(CONFIG) {
        if let Some(path) = ending(".gguf") {
            return refuse(format!("a GGUF file ({path}) is"), "; use the safetensors checkpoint");
        }
        return Err(Error::UnknownKind { expected: EXPECTED, found: found(files) });
    }
    if has(SINGLE) || has(SHARD_INDEX) {
        return Ok(());
    }
    for suffix in [".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"] {
        if let Some(path) = ending(suffix) {
            let what = format!("a checkpoint without safetensors (it has {path}) is");
            return refuse(what, "; convert it to safetensors");
        }
    }
    Err(Error::UnknownKind { expected: EXPECTED, found: found(files) })
}

/// The first few names, and how many more there are.
fn found(files: &Files) -> String {
    const SHOWN: usize = 12;
    const LENGTH: usize = 80;
    let cut = |name: &String| -> String { name.chars().take(LENGTH).collect() };
    let names: Vec<String> = files.sizes.keys().take(SHOWN).map(cut).collect();
    match files.sizes.len() {
        0 => "no files".into(),
        count if count > SHOWN => format!("{} and {} more", names.join(", "), count - SHOWN),
        _ => names.join(", "),
    }
}

fn format(setting: DtypeSetting) -> Format {
    match setting {
        DtypeSetting::Auto | DtypeSetting::F32 => Format::F32,
        DtypeSetting::F16 => Format::F16,
    }
}

/// The first prefix under which the tensor of that name is there; if none, the usual one,
/// under which it will then be reported missing.
fn prefix(table: &TensorTable, prefixes: [&'static str; 2], name: &str) -> &'static str {
    let found = prefixes.iter().find(|prefix| table.get(&format!("{prefix}{name}")).is_some());
    found.unwrap_or(&prefixes[0])
}

fn decoder(
    files: &Files,
    settings: &LoadSettings,
    head: &Head,
    (architecture, read): (&str, families::Read),
) -> Result<ModelPlan, Error> {
    let config = read(&config::parse(files, CONFIG)?)?;
    let table = TensorTable::new(files)?;
    let embeddings = format!("{}.weight", config.names.embeddings);
    let prefix = prefix(&table, config.names.prefixes, &embeddings);
    let format = format(settings.dtype);
    let weights =
        weigh(&table, format, |take| DecoderWeights::gather(&config, prefix, take).map(drop))?;
    let context = settings.context.clamp(1, config.context);
    let step_tokens = settings.step_tokens.max(1);
    let blocks = footprint::kv_blocks(context, settings.kv_sequences)?;
    // A sequence has a block of its own.
    let rows = settings.step_rows.min(blocks);
    let kv_token_bytes = footprint::kv_token(&config)?;
    Ok(ModelPlan {
        kind: ModelKind::Generative,
        architecture: architecture.into(),
        footprint: Footprint {
            weights: total(&weights)?,
            kv: footprint::kv(kv_token_bytes, blocks)?,
            workspace: footprint::decoder_workspace(&config, context, step_tokens, rows)?,
            host: host(files, footprint::BYTE_PAIRS)?,
        },
        weights,
        context,
        kv_token_bytes,
        vocab: config.vocab,
        eos_tokens: config::eos_tokens(files, head)?,
        labels: None,
        generation_defaults: config::generation_defaults(files)?,
        normalize: false,
        output_width: config.vocab,
        step_tokens,
        format,
        family: Family::Decoder { config, prefix, blocks },
    })
}

fn encoder(
    files: &Files,
    settings: &LoadSettings,
    architecture: &str,
    classifies: bool,
) -> Result<ModelPlan, Error> {
    let config = BertConfig::read(files)?;
    let (labels, sentence) = match classifies {
        true => (Some(config::labels(files)?), Sentence::NONE),
        false => (None, Sentence::read(files)?),
    };
    let table = TensorTable::new(files)?;
    let prefix = prefix(&table, ["", "bert."], "embeddings.word_embeddings.weight");
    let names = Names::find(&table, prefix);
    let format = format(settings.dtype);
    let label_count = labels.as_ref().map(|labels| labels.names.len());
    let weights = weigh(&table, format, |take| {
        EncoderWeights::gather(&config, names, label_count, take).map(drop)
    })?;
    let context = settings.context.clamp(1, config.context);
    let step_tokens = settings.step_tokens.max(context);
    Ok(ModelPlan {
        kind: if classifies { ModelKind::Classification } else { ModelKind::Embedding },
        architecture: architecture.into(),
        footprint: Footprint {
            weights: total(&weights)?,
            kv: Bytes::ZERO,
            workspace: footprint::encoder_workspace(&config, step_tokens)?,
            host: host(files, footprint::WORD_PIECES)?,
        },
        weights,
        context,
        kv_token_bytes: Bytes::ZERO,
        vocab: config.vocab,
        eos_tokens: Vec::new(),
        labels,
        generation_defaults: GenerationDefaults::default(),
        normalize: sentence.normalize,
        output_width: label_count.unwrap_or(config.hidden),
        step_tokens,
        format,
        family: Family::Encoder { config, names, pooling: sentence.pooling, labels: label_count },
    })
}

/// Walks a model's parameters as a load would, and adds up their bytes by number format.
fn weigh(
    table: &TensorTable,
    format: Format,
    gather: impl FnOnce(&mut dyn FnMut(Parameter) -> Result<(), Error>) -> Result<(), Error>,
) -> Result<Vec<WeightShare>, Error> {
    let mut shares: Vec<WeightShare> = Vec::new();
    gather(&mut |parameter| {
        let (parts, bytes) = parameter.locate(table, format)?;
        let lies_as = if parameter.columns.is_some() { format } else { Format::F32 };
        let memory_dtype = match lies_as {
            Format::F32 => "f32",
            Format::F16 => "f16",
        };
        let mut counted = Bytes::ZERO;
        for part in parts {
            let values: u64 = part.shape.iter().map(|&size| size as u64).product();
            let (file_dtype, width) = match part.dtype {
                Dtype::F32 => ("f32", 4),
                Dtype::BF16 => ("bf16", 2),
                _ => ("f16", 2),
            };
            let overflow = || Error::Overflow { part: "weights" };
            let in_memory = Bytes(values).checked_mul(lies_as.bytes()).ok_or_else(overflow)?;
            let in_file = Bytes(values).checked_mul(width).ok_or_else(overflow)?;
            counted = counted.checked_add(in_memory).ok_or_else(overflow)?;
            let same = |share: &&mut WeightShare| {
                share.file_dtype == file_dtype && share.memory_dtype == memory_dtype
            };
            match shares.iter_mut().find(same) {
                Some(share) => {
                    share.file_bytes =
                        share.file_bytes.checked_add(in_file).ok_or_else(overflow)?;
                    share.bytes = share.bytes.checked_add(in_memory).ok_or_else(overflow)?;
                }
                None => shares.push(WeightShare {
                    file_dtype,
                    memory_dtype,
                    file_bytes: in_file,
                    bytes: in_memory,
                }),
            }
        }
        debug_assert_eq!(counted, bytes, "parts of a parameter add up to it");
        Ok(())
    })?;
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    Ok(shares)
}

fn total(shares: &[WeightShare]) -> Result<Bytes, Error> {
    let add = |sum: Bytes, share: &WeightShare| sum.checked_add(share.bytes);
    shares.iter().try_fold(Bytes::ZERO, add).ok_or(Error::Overflow { part: "weights" })
}

fn host(files: &Files, cost: footprint::TokenizerCost) -> Result<Bytes, Error> {
    footprint::host(files.sizes.get("tokenizer.json").copied().unwrap_or(0), cost)
}
