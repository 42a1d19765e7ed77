//! What a decoder will take.

use roundhouse_types::{Bytes, Footprint, ModelKind};

use super::{Family, LoadSettings, ModelPlan, formats, unread};
use crate::Error;
use crate::config::decoder::DecoderConfig;
use crate::config::prompts::EmbeddingPrompts;
use crate::config::sentence::{Pooling, Sentence};
use crate::config::{CONFIG, GenerationDefaults, Labels};
use crate::decoder::{Answers, DecoderWeights};
use crate::files::Files;
use crate::footprint;
use crate::gguf;
use crate::kv::KvDtype;
use crate::properties::Asked;
use crate::tensors::TensorTable;
use crate::weigh::{total, weigh};

/// A decoder as its files describe it.
pub(super) struct Decoding {
    pub(super) architecture: String,
    pub(super) config: DecoderConfig,
    /// How it makes vectors, where it generates no text.
    pub(super) sentence: Option<Sentence>,
    /// Where it names those of a text.
    pub(super) labels: Option<Labels>,
    pub(super) eos_tokens: Vec<u32>,
    pub(super) defaults: GenerationDefaults,
    pub(super) host: Bytes,
    pub(super) gguf: Option<(gguf::Tokenizer, &'static gguf::Architecture)>,
}

/// What that GGUF file will take.
pub(super) fn of_gguf(
    files: &Files,
    settings: &LoadSettings,
    path: &str,
) -> Result<ModelPlan, Error> {
    let described = gguf::describe(files, path)?;
    let words = described.architecture;
    let model = Decoding {
        host: footprint::host(described.metadata_bytes, footprint::BYTE_PAIRS)?,
        architecture: words.name().into(),
        config: described.config,
        sentence: None,
        labels: None,
        eos_tokens: described.eos_tokens,
        defaults: GenerationDefaults::default(),
        gguf: Some((described.tokenizer, words)),
    };
    plan(files, settings, model).map_err(|error| words.in_its_words(error))
}

/// The first prefix under which the tensor of that name is there; if none, the usual one,
/// under which it will then be reported missing.
fn prefix(table: &TensorTable, prefixes: [&'static str; 2], name: &str) -> &'static str {
    let found = prefixes.iter().find(|prefix| table.get(&format!("{prefix}{name}")).is_some());
    found.unwrap_or(&prefixes[0])
}

/// What a decoder so described will take.
pub(super) fn plan(
    files: &Files,
    settings: &LoadSettings,
    model: Decoding,
) -> Result<ModelPlan, Error> {
    let Decoding { architecture, mut config, sentence, labels, .. } = model;
    let Decoding { eos_tokens, defaults, host, gguf, .. } = model;
    config.texts.labels = labels.as_ref().map(|labels| labels.names.len());
    if let Some(sentence) = &sentence {
        sentence.width(config.hidden)?;
        config.texts.dense.clone_from(&sentence.dense);
    }
    let reads_texts = sentence.is_some() || labels.is_some();
    if config.sees_behind && !reads_texts {
        let reason = "use_bidirectional_attention of a model that generates is not computed";
        return Err(Error::config(CONFIG, reason));
    }
    if config.tied && config.head_bias && !reads_texts {
        let reason = "tie_word_embeddings of a family whose head has a bias is not computed";
        return Err(Error::config(CONFIG, reason));
    }
    let mut table = TensorTable::new(files)?;
    let embeddings = format!("{}.weight", config.names.embeddings);
    let prefix = prefix(&table, config.names.prefixes, &embeddings);
    table.unstack(&config, prefix)?;
    let formats = formats(settings, &table);
    // Without logits there is no use for a head of its own.
    config.tied |= reads_texts;
    let (weights, fallbacks, left) =
        weigh(&table, &formats, |take| DecoderWeights::gather(&config, prefix, take).map(drop))?;
    let unread = unread::of_decoder(left, &config, prefix, reads_texts);
    if let Some((_, architecture)) = gguf {
        gguf::refuse_unused(&table, &config, architecture)?;
    }
    let context = settings.context.clamp(1, config.context);
    // Sequences of which nothing is kept are computed whole.
    let step_tokens = settings.step_tokens.max(if reads_texts { context } else { 1 });
    // A sequence has a block of its own.
    let kv_dtype = settings.kv_dtype.unwrap_or_else(|| KvDtype::suggested(&weights));
    let kv_token_bytes = footprint::kv_token(&config, kv_dtype)?;
    let kv = footprint::kv_spec(context, settings.kv_sequences, kv_token_bytes)?;
    let extents = config.extents();
    let shape = (&config, context, step_tokens);
    let (answers, floor, workspace) = match reads_texts {
        true => {
            let workspace = footprint::embedder_workspace(shape, settings.cards)?;
            let pooling = sentence.as_ref().map_or(Pooling::Last, |sentence| sentence.pooling);
            (Answers::Vectors(pooling), Bytes::ZERO, workspace)
        }
        false => {
            let rows = settings.step_rows.min(kv.blocks);
            let workspace = footprint::generator_workspace(shape, rows, settings.cards)?;
            (Answers::Tokens(kv, kv_dtype), footprint::kv_floor(&kv)?, workspace)
        }
    };
    let prompts = match &sentence {
        Some(sentence) => EmbeddingPrompts::read(files, sentence)?,
        None => EmbeddingPrompts::default(),
    };
    Ok(ModelPlan {
        kind: match (&labels, &sentence) {
            (Some(_), _) => ModelKind::Classification,
            (None, Some(_)) => ModelKind::Embedding,
            (None, None) => ModelKind::Generative,
        },
        architecture,
        footprint: Footprint {
            weights: total(&weights)?,
            kv: floor,
            workspace: workspace + footprint::beside(&formats, step_tokens, extents)?,
            host,
        },
        weights,
        context,
        kv_token_bytes: if reads_texts { Bytes::ZERO } else { kv_token_bytes },
        kv_dtype: (!reads_texts).then_some(kv_dtype),
        vocab: config.vocab,
        eos_tokens: if reads_texts { Vec::new() } else { eos_tokens },
        labels,
        generation_defaults: defaults,
        normalize: sentence.as_ref().is_some_and(|sentence| sentence.normalize),
        prompts,
        output_width: if reads_texts { config.texts.width(config.hidden) } else { config.vocab },
        step_tokens,
        gguf: gguf.map(|(tokenizer, _)| tokenizer),
        quantize: formats.quantize,
        fallbacks,
        asked: Asked::default(),
        unheeded: Vec::new(),
        unread,
        formats,
        family: Family::Decoder { config, prefix, answers },
    })
}
