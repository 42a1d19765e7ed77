//! What kind of model some files are, and exactly what it will take.

mod decoder;
mod encoder;
mod recognise;
mod unread;

use std::time::Duration;

use roundhouse_engine::KvSpec;
use roundhouse_types::{Bytes, Footprint, ModelKind};

use self::decoder::Decoding;
use self::recognise::{architecture, recognise};
use crate::Error;
use crate::config::decoder::{DecoderConfig, Texts};
use crate::config::encoder::families as encoders;
use crate::config::encoder::{EncoderConfig, HeadConfig, Spare};
use crate::config::families;
use crate::config::prompts::EmbeddingPrompts;
use crate::config::sentence::Sentence;
use crate::config::{self, GenerationDefaults, Head, Labels};
use crate::decoder::Answers;
use crate::encoder::Spelling;
use crate::files::Files;
use crate::footprint;
use crate::format::Formats;
use crate::gguf;
use crate::kv::KvDtype;
use crate::properties::{Asked, Properties};
use crate::settings::ModelSettings;
use crate::tensors::TensorTable;
use crate::weigh::WeightShare;

/// What the operator decides about every model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadSettings {
    /// The longest sequence served, in tokens; a model's own limit may be lower.
    pub context: usize,
    /// A KV pool grows until it holds this many sequences of that length, or more shorter ones.
    pub kv_sequences: usize,
    /// The most tokens one step may carry. An encoder's is at least one whole sequence.
    pub step_tokens: usize,
    /// The most sequences that share a step: each has a row of outputs.
    pub step_rows: usize,
    /// How projections and embeddings lie in memory.
    pub dtype: DtypeSetting,
    /// How projections and embeddings that files have as floats are quantised, unless a model's
    /// own settings say otherwise.
    pub quantize: Option<Quantize>,
    /// In which type keys and values are kept; `None`: f32 where weights are, else f16.
    pub kv_dtype: Option<KvDtype>,
    /// Whether models may go to cards: workspaces are then for the worse of the two.
    pub cards: bool,
    /// How long a model may be unused before it leaves; `None`: as long as there is room.
    pub idle_ttl: Option<Duration>,
    /// What is asked for where models ask for nothing themselves.
    pub preset: Asked,
}

impl Default for LoadSettings {
    fn default() -> Self {
        Self {
            // Long enough for most prompts; at 128 Ki a token (an 8B model) a sequence is 1 GiB.
            context: 8192,
            // No more than its floor: what does not fit is preempted, never refused.
            kv_sequences: 1,
            // Large enough that matmuls are compute-bound, small enough not to hold up decoding.
            step_tokens: 512,
            // The engine's own default.
            step_rows: 256,
            dtype: DtypeSetting::Auto,
            quantize: None,
            kv_dtype: None,
            cards: false,
            idle_ttl: None,
            preset: Asked::default(),
        }
    }
}

/// How projections and embeddings lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DtypeSetting {
    /// As they lie in the files.
    #[default]
    Auto,
    /// Four bytes a weight, whatever the files have.
    F32,
    /// Two bytes a weight, widened as it is used.
    F16,
    /// Two bytes a weight, and what is multiplied by weights is rounded to bf16, too: sums are of
    /// products of bf16s, and f32.
    Bf16,
}

impl DtypeSetting {
    /// What a setting of that name, ours or another server's, asks for.
    ///
    /// # Errors
    /// For any other name, with ours.
    pub fn named(name: &str) -> Result<Self, &'static str> {
        match name {
            "auto" => Ok(Self::Auto),
            "f32" | "fp32" | "float32" | "float" => Ok(Self::F32),
            "f16" | "fp16" | "float16" | "half" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            _ => Err("auto (as in the files), f32, f16 and bf16 are known"),
        }
    }
}

/// What weights are quantised to while they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantize {
    /// Blocks of 32 values in 34 bytes; rows that are no multiple of 32 get f16, or stay bf16.
    Q8_0,
    /// Blocks of 256 values in 144 bytes; rows that are no multiple of 256 get `q8_0`.
    Q4K,
}

impl Quantize {
    /// What a setting of that name asks for; `none` for nothing.
    ///
    /// # Errors
    /// For any other name, with those that there are.
    pub fn named(name: &str) -> Result<Option<Self>, &'static str> {
        match name {
            "none" => Ok(None),
            "q8_0" => Ok(Some(Self::Q8_0)),
            "q4_k" => Ok(Some(Self::Q4K)),
            _ => Err("none, q8_0 and q4_k are known"),
        }
    }

    /// As settings and reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }
}

/// A model that can be loaded, and what that takes.
#[derive(Debug, Clone)]
pub struct ModelPlan {
    /// What it does.
    pub kind: ModelKind,
    /// Its architecture by the name its files use.
    pub architecture: String,
    /// The bytes it will take, exact in weights and KV. Of KV it is the floor, what one sequence of
    /// the served context needs; [`kv`](Self::kv) tells how far the pool may grow.
    pub footprint: Footprint,
    /// Its weights by the number format of the files, largest first.
    pub weights: Vec<WeightShare>,
    /// The longest sequence served, in tokens.
    pub context: usize,
    /// Bytes of keys and values per token; zero for encoders.
    pub kv_token_bytes: Bytes,
    /// The type in which they are kept; `None` for encoders.
    pub kv_dtype: Option<KvDtype>,
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
    /// What an embedding model wants before its inputs.
    pub prompts: EmbeddingPrompts,
    /// Numbers per output vector: vocabulary, embedding or labels.
    pub output_width: usize,
    /// The most tokens one step may carry.
    pub step_tokens: usize,
    /// The tokenizer that a GGUF file holds; `None` where it lies in files of its own.
    pub gguf: Option<gguf::Tokenizer>,
    /// What weights are quantised to as far as their shapes allow, where that was asked for.
    pub quantize: Option<Quantize>,
    /// Of the weights to be quantised, those whose shape forbids it, and what each kind of them gets.
    pub fallbacks: Vec<String>,
    /// What it asks for in `serving.properties`, beside what the operator presets.
    pub asked: Asked,
    /// The keys of that file that nothing honours, a bounded list.
    pub unheeded: Vec<String>,
    /// Tensors of its files that nothing reads and that matter, in a sentence.
    pub unread: Option<String>,
    pub(crate) formats: Formats,
    pub(crate) family: Family,
}

impl ModelPlan {
    /// The shape of its KV pool; `None` for encoders.
    pub fn kv(&self) -> Option<KvSpec> {
        match &self.family {
            Family::Decoder { answers, .. } => answers.kv(),
            Family::Encoder { .. } => None,
        }
    }

    /// Where the tensors of those files lie, as its parameters are called.
    pub(crate) fn tensors(&self, files: &Files) -> Result<TensorTable, Error> {
        let mut table = TensorTable::new(files)?;
        if let Family::Decoder { config, prefix, .. } = &self.family {
            table.unstack(config, prefix)?;
        }
        Ok(table)
    }

    /// What the plan itself takes of what its files say: nothing of it is bounded but by them.
    pub fn remembered_bytes(&self) -> Bytes {
        let text = |text: &String| size_of::<String>() + text.capacity();
        let labels = self.labels.iter().flat_map(|labels| &labels.names).map(text);
        let tokenizer =
            self.gguf.iter().flat_map(|it| [&it.file, &it.model].into_iter().chain(&it.pre));
        // A name in a map takes about as much again.
        let stored = self.formats.stored.names().map(|name| 2 * text(name));
        let unheeded = self.unheeded.iter().chain(&self.unread).map(text);
        let prompts = self.prompts.texts.iter().map(|(name, it)| 2 * text(name) + text(it));
        let texts = labels.chain(tokenizer.map(text)).chain(stored).chain(unheeded);
        let texts: usize = texts.chain(prompts).sum();
        let tokens = self.eos_tokens.capacity() * size_of::<u32>();
        Bytes((size_of::<Self>() + text(&self.architecture) + texts + tokens) as u64)
    }
}

/// What the runner is built from.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one for each model")]
pub(crate) enum Family {
    Decoder {
        config: DecoderConfig,
        prefix: &'static str,
        answers: Answers,
    },
    Encoder {
        config: EncoderConfig,
        spelling: Spelling,
        sentence: Sentence,
        head: Option<HeadConfig>,
        /// What adapters may bring heads of their own with.
        spare: Option<Spare>,
    },
}

/// Finds out what the files are, checks that all weights are there in the right shapes,
/// and counts the bytes. Reads nothing but what it is given.
///
/// # Errors
/// When the kind is unknown or not served, a file is unsound, the configuration asks for
/// what is not computed, or a tensor is missing or of the wrong shape.
pub fn inspect(files: &Files, settings: &LoadSettings) -> Result<ModelPlan, Error> {
    let properties = Properties::read(files);
    let own = ModelSettings::read(files)?;
    let asked = own.asked.or(properties.asked).or(settings.preset);
    let mut plan = described(files, &asked.within(settings))?;
    own.check(plan.kind)?;
    plan.unheeded = properties.unheeded_by(plan.kind);
    plan.asked = asked;
    Ok(plan)
}

/// The same, within settings that hold already what the files ask for.
fn described(files: &Files, settings: &LoadSettings) -> Result<ModelPlan, Error> {
    recognise(files)?;
    if let Some(path) = gguf::chosen(files)? {
        return decoder::of_gguf(files, settings, &path);
    }
    let head = Head::read(files)?;
    let architecture = &architecture(&head)?;
    let has_modules = files.sizes.contains_key("modules.json");
    if let Some(found) = encoders::find(architecture, has_modules) {
        return encoder::plan(files, settings, architecture, found);
    }
    let (read, answers) =
        families::find(architecture).ok_or_else(|| families::refusal(architecture))?;
    let is_labelled = answers == families::Answers::Labels;
    let makes_vectors = answers == families::Answers::Vectors || (has_modules && !is_labelled);
    let json = config::keys(files)?;
    let model = Decoding {
        architecture: architecture.clone(),
        config: DecoderConfig { texts: Texts::read(&json), ..read(&json)? },
        sentence: makes_vectors.then(|| Sentence::read(files)).transpose()?,
        labels: is_labelled.then(|| config::labels(files)).transpose()?,
        eos_tokens: config::eos_tokens(files, &head)?,
        defaults: config::generation_defaults(files)?,
        host: host(files, footprint::BYTE_PAIRS)?,
        gguf: None,
    };
    decoder::plan(files, settings, model)
}

/// How a model's parameters are to lie in memory.
fn formats(settings: &LoadSettings, table: &TensorTable) -> Formats {
    let LoadSettings { dtype, quantize, .. } = *settings;
    Formats { dtype, quantize, stored: table.formats().into() }
}

fn host(files: &Files, cost: footprint::TokenizerCost) -> Result<Bytes, Error> {
    footprint::host(files.sizes.get("tokenizer.json").copied().unwrap_or(0), cost)
}
