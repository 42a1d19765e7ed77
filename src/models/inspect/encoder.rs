//! What an encoder will take.

use roundhouse_types::{Bytes, Footprint, ModelKind};

use super::{Family, LoadSettings, ModelPlan, formats, host, unread};
use crate::Error;
use crate::config::encoder::families::{Answers, Found};
use crate::config::prompts::EmbeddingPrompts;
use crate::config::sentence::Sentence;
use crate::config::{self, GenerationDefaults};
use crate::encoder::{EncoderWeights, Parts, Spelling};
use crate::files::Files;
use crate::footprint;
use crate::properties::Asked;
use crate::tensors::TensorTable;
use crate::weigh::{total, weigh};

/// What an encoder so named will take.
pub(super) fn plan(
    files: &Files,
    settings: &LoadSettings,
    architecture: &str,
    found: Found,
) -> Result<ModelPlan, Error> {
    let json = config::keys(files)?;
    let config = found.config(&json)?;
    let (head, labels) = found.head(files, &json, &config)?;
    let (kind, sentence) = match found.answers {
        Answers::Vector => (ModelKind::Embedding, Sentence::read(files)?),
        Answers::Classes => (ModelKind::Classification, Sentence::NONE),
        Answers::TokenClasses => (ModelKind::TokenClassification, Sentence::NONE),
        Answers::Words => (ModelKind::FillMask, Sentence::NONE),
        Answers::Places => (ModelKind::QuestionAnswering, Sentence::NONE),
    };
    let prompts = match kind {
        ModelKind::Embedding => EmbeddingPrompts::read(files, &sentence)?,
        _ => EmbeddingPrompts::default(),
    };
    let table = TensorTable::new(files)?;
    let spelling = Spelling::find(&table, &config, head.as_ref());
    let formats = formats(settings, &table);
    let has_modules = files.sizes.contains_key("modules.json");
    let has_pooler = |name: &str| {
        !has_modules && table.get(&format!("{}{name}.weight", spelling.prefix)).is_some()
    };
    let spare = found.spare(&json, &config, has_pooler);
    let dense = sentence.dense.as_slice();
    let pooler = spare.as_ref().and_then(|spare| spare.pooler.as_ref());
    let parts = Parts { config: &config, spelling, head: head.as_ref(), dense, pooler };
    let (weights, fallbacks, left) =
        weigh(&table, &formats, |take| EncoderWeights::gather(parts, take).map(drop))?;
    let unread = unread::of_encoder(left, spelling.prefix, head.is_some());
    let context = settings.context.clamp(1, config.context);
    let step_tokens = settings.step_tokens.max(context);
    let [narrowest, widest] = extremes([config.hidden, config.embedding, config.intermediate]);
    let width = match &head {
        Some(head) => head.width,
        None => sentence.width(config.hidden)?,
    };
    let tallest = config.up_width().max(3 * config.hidden).max(width);
    Ok(ModelPlan {
        kind,
        architecture: architecture.into(),
        footprint: Footprint {
            weights: total(&weights)?,
            kv: Bytes::ZERO,
            workspace: footprint::encoder_workspace(&config, head.as_ref(), context, step_tokens)?
                + footprint::beside(&formats, step_tokens, [narrowest, widest, tallest])?,
            host: host(files, footprint::WORD_PIECES)?,
        },
        weights,
        context,
        kv_token_bytes: Bytes::ZERO,
        kv_dtype: None,
        vocab: config.vocab,
        eos_tokens: Vec::new(),
        labels,
        generation_defaults: GenerationDefaults::default(),
        normalize: sentence.normalize,
        prompts,
        output_width: width,
        step_tokens,
        gguf: None,
        quantize: formats.quantize,
        fallbacks,
        asked: Asked::default(),
        unheeded: Vec::new(),
        unread,
        formats,
        family: Family::Encoder { config, spelling, sentence, head, spare },
    })
}

/// The least and the most of some widths.
fn extremes<const N: usize>(widths: [usize; N]) -> [usize; 2] {
    let least = widths.iter().copied().min();
    [least.unwrap_or(1), widths.into_iter().max().unwrap_or(1)]
}
