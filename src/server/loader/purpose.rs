//! What a loaded model is for, in serving's words.

use std::path::Path;
use std::sync::Arc;

use roundhouse_models::{Asked, GgufText, ModelPlan, ScoreFunction as Scores};
use roundhouse_serving::{
    AnswerStyle, EmbeddingPrompts, GenerationDefaults, Labels, Purpose, ScoreFunction, TextCodec,
    Vocabulary,
};
use roundhouse_types::{Bytes, Failure, ModelKind};

/// Reads the tokenizer. Encoders' inputs are cut to what one step takes.
pub(crate) fn open_text(dir: &Path, plan: &ModelPlan) -> Result<TextCodec, Failure> {
    let codec = match &plan.gguf {
        None => TextCodec::open(dir)?,
        Some(tokenizer) => {
            let text = roundhouse_models::gguf_text(dir, &tokenizer.file)?;
            TextCodec::from_vocabulary(vocabulary(text))?
        }
    };
    match cut(plan) {
        None => Ok(codec),
        Some(context) => Ok(codec.truncated_to(context)?),
    }
}

/// The tokens to which texts are cut; `None`: they are never cut.
pub(super) fn cut(plan: &ModelPlan) -> Option<usize> {
    match plan.kind {
        ModelKind::Generative => None,
        // What is planned as a model of our own is never a handler or an adapter.
        ModelKind::Embedding
        | ModelKind::Classification
        | ModelKind::TokenClassification
        | ModelKind::FillMask
        | ModelKind::QuestionAnswering
        | ModelKind::Handler
        | ModelKind::External
        | ModelKind::Adapter => Some(plan.context.min(plan.step_tokens)),
    }
}

/// What the text side of a model may take beyond what reading it took.
pub(crate) fn room_for_forms(plan: &ModelPlan, text: &TextCodec) -> Bytes {
    match plan.kind {
        ModelKind::Generative => text.room_for_forms(),
        ModelKind::Embedding
        | ModelKind::Classification
        | ModelKind::TokenClassification
        | ModelKind::FillMask
        | ModelKind::QuestionAnswering
        | ModelKind::Handler
        | ModelKind::External
        | ModelKind::Adapter => Bytes::ZERO,
    }
}

/// The same in serving's words.
fn vocabulary(text: GgufText) -> Vocabulary {
    Vocabulary {
        model: text.model,
        pre: text.pre,
        tokens: text.tokens,
        scores: text.scores,
        kinds: text.kinds,
        merges: text.merges,
        special: text.special,
        add_bos: text.add_bos,
        add_eos: text.add_eos,
        add_space_prefix: text.add_space_prefix,
        templates: text.templates,
    }
}

/// How its answers look, as its author asks for it.
pub(crate) fn style(asked: &Asked) -> AnswerStyle {
    AnswerStyle { tgi: asked.tgi.unwrap_or(false), events: asked.events.unwrap_or(false) }
}

/// What requests may ask of the model.
pub(crate) fn of(plan: &ModelPlan) -> Purpose {
    match plan.kind {
        ModelKind::Generative => Purpose::Generative {
            eos_tokens: plan.eos_tokens.clone(),
            defaults: defaults(&plan.generation_defaults),
        },
        ModelKind::Embedding => Purpose::Embedding {
            normalize: plan.normalize,
            prompts: EmbeddingPrompts {
                texts: plan.prompts.texts.clone(),
                default: plan.prompts.default.clone(),
            },
        },
        ModelKind::TokenClassification => Purpose::TokenClassification(labels(plan)),
        ModelKind::FillMask => Purpose::FillMask,
        ModelKind::QuestionAnswering => Purpose::QuestionAnswering,
        ModelKind::Classification
        | ModelKind::Handler
        | ModelKind::External
        | ModelKind::Adapter => Purpose::Classification(labels(plan)),
    }
}

fn defaults(of: &roundhouse_models::GenerationDefaults) -> GenerationDefaults {
    GenerationDefaults {
        do_sample: of.do_sample,
        temperature: of.temperature,
        top_p: of.top_p,
        top_k: of.top_k,
        min_p: of.min_p,
        repetition_penalty: of.repetition_penalty,
    }
}

fn labels(plan: &ModelPlan) -> Labels {
    let Some(labels) = &plan.labels else {
        return Labels { names: Vec::new(), scores: ScoreFunction::Softmax };
    };
    Labels {
        names: labels.names.iter().map(|name| Arc::from(name.as_str())).collect(),
        scores: match labels.function {
            Scores::Softmax => ScoreFunction::Softmax,
            Scores::Sigmoid => ScoreFunction::Sigmoid,
            Scores::Identity => ScoreFunction::Identity,
        },
    }
}
