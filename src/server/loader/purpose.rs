//! What a loaded model is for, in serving's words.

use std::path::Path;
use std::sync::Arc;

use roundhouse_models::{AdapterPlan, Asked, GgufText, ModelPlan, ScoreFunction as Scores};
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

/// The tokens to which an adapter's texts are cut where its base's are not: it names labels, and its
/// base generates.
pub(super) fn cut_beside(adapter: &Purpose, base: &ModelPlan) -> Option<usize> {
    match (adapter, cut(base)) {
        (Purpose::Generative { .. }, _) | (_, Some(_)) => None,
        (_, None) => Some(base.context),
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
        ModelKind::TokenClassification => Purpose::TokenClassification(labels_of(plan)),
        ModelKind::FillMask => Purpose::FillMask,
        ModelKind::QuestionAnswering => Purpose::QuestionAnswering,
        ModelKind::Classification
        | ModelKind::Handler
        | ModelKind::External
        | ModelKind::Adapter => Purpose::Classification(labels_of(plan)),
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

/// What requests may ask of an adapter: what its own head answers, or of its base's.
pub(super) fn beside(adapter: &AdapterPlan, base: &ModelPlan) -> Purpose {
    match &adapter.answers {
        Some((ModelKind::TokenClassification, of)) => Purpose::TokenClassification(labels(of)),
        Some((_, of)) => Purpose::Classification(labels(of)),
        None => self::of(base),
    }
}

fn labels_of(plan: &ModelPlan) -> Labels {
    match &plan.labels {
        Some(of) => labels(of),
        None => Labels { names: Vec::new(), scores: ScoreFunction::Softmax },
    }
}

fn labels(labels: &roundhouse_models::Labels) -> Labels {
    Labels {
        names: labels.names.iter().map(|name| Arc::from(name.as_str())).collect(),
        scores: match labels.function {
            Scores::Softmax => ScoreFunction::Softmax,
            Scores::Sigmoid => ScoreFunction::Sigmoid,
            Scores::Identity => ScoreFunction::Identity,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use roundhouse_models::{LoadSettings, inspect, read_local};

    use super::*;

    #[test]
    fn an_adapter_with_a_head_of_its_own_is_for_what_that_answers() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests");
        let read = |folder: &str| read_local(&models.join(folder)).unwrap();
        let base = inspect(&read("references/encoder-bert"), &LoadSettings::default()).unwrap();
        let adapter = AdapterPlan::read(&read("encoder-heads/bert-bare")).unwrap();
        let purpose = beside(&adapter.on(&base).unwrap(), &base);
        assert!(matches!(of(&base), Purpose::Embedding { .. }));
        let Purpose::Classification(labels) = purpose else { panic!("{purpose:?}") };
        let names: Vec<&str> = labels.names.iter().map(|name| &**name).collect();
        assert_eq!(names, ["LABEL_0", "LABEL_1", "LABEL_2"]);
        assert_eq!(labels.scores, ScoreFunction::Softmax);
    }

    #[test]
    fn an_adapter_that_names_labels_has_its_texts_cut_where_its_base_generates() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests");
        let read = |folder: &str| read_local(&models.join(folder)).unwrap();
        let settings = LoadSettings { context: 64, ..LoadSettings::default() };
        for (base, adapter, cut) in [
            ("references/llama-mha", "decoder-heads/llama-labels", Some(64)),
            ("references/llama-mha", "adapters/llama-qv", None),
            ("references/encoder-bert", "encoder-heads/bert-bare", None),
        ] {
            let base = inspect(&read(base), &settings).unwrap();
            let adapter_plan = AdapterPlan::read(&read(adapter)).unwrap().on(&base).unwrap();
            let purpose = beside(&adapter_plan, &base);
            assert_eq!(cut_beside(&purpose, &base), cut, "{adapter}: {purpose:?}");
            let names_labels = matches!(purpose, Purpose::Classification(_));
            assert_eq!(names_labels, adapter != "adapters/llama-qv", "{adapter}");
        }
    }
}
