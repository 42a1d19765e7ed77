//! A loaded model as requests use it.

use std::sync::{Arc, Mutex, PoisonError};

use roundhouse_containers::driven::Driven;
use roundhouse_containers::multi_model::ContainedModel;
use roundhouse_engine::{Attached, EngineHandle, Placed};
use roundhouse_types::{ModelId, ModelKind};
use roundhouse_workers::Group;

use crate::text::TextCodec;
use crate::{AnswerStyle, EmbeddingPrompts};

/// A loaded model. Residency owns it; requests lease it.
pub enum ServedModel {
    /// One of our own, on a lane.
    Engine(EngineModel),
    /// Python processes that run the artefact's own script.
    Handler(Group),
    /// An engine that the operator has started by command, or an adapter that is in one.
    External(Driven),
    /// In a container of the operator's that holds many models.
    Contained(ContainedModel),
}

impl ServedModel {
    /// What kind of model it is.
    pub fn kind(&self) -> ModelKind {
        match self {
            Self::Engine(model) => model.kind(),
            Self::Handler(_) => ModelKind::Handler,
            Self::External(driven) if driven.base().is_some() => ModelKind::Adapter,
            Self::External(_) | Self::Contained(_) => ModelKind::External,
        }
    }

    /// How its answers look where a request leaves it open; a handler's and an engine's are their own.
    pub fn style(&self) -> AnswerStyle {
        match self {
            Self::Engine(model) => model.style,
            Self::Handler(_) | Self::External(_) | Self::Contained(_) => AnswerStyle::default(),
        }
    }

    /// Takes it off its device; resolves when its memory is free. What it still does ends with
    /// an error. If dropped before ready, the removal goes on.
    pub async fn remove(&self) {
        match self {
            Self::Engine(model) => model.remove().await,
            Self::Handler(group) => group.stop().await,
            Self::External(driven) => driven.leave().await,
            Self::Contained(model) => model.leave().await,
        }
    }
}

/// A model of our own: its text side, the way to its engine, and what it is for.
pub struct EngineModel {
    text: Arc<TextCodec>,
    engine: EngineHandle,
    purpose: Purpose,
    /// Of an adapter: the model that it is attached to.
    base: Option<ModelId>,
    style: AnswerStyle,
    /// Taken by the removal.
    place: Mutex<Option<Place>>,
}

/// Where a model of our own computes.
enum Place {
    /// On an engine of its own.
    Engine(Placed),
    /// On its base's.
    Beside(Attached),
}

/// What a model is for, with what only such models have.
#[derive(Debug, Clone, PartialEq)]
pub enum Purpose {
    /// It continues prompts.
    Generative {
        /// Tokens that end a sequence, from the artefact's configuration. The tokenizer's own
        /// `eos_token` is added to them.
        eos_tokens: Vec<u32>,
        /// Sampling as the artefact's `generation_config.json` has it.
        defaults: GenerationDefaults,
    },
    /// It answers with one vector per text.
    Embedding {
        /// Whether vectors are brought to length 1 unless a request says otherwise. The engine's
        /// own vectors are not.
        normalize: bool,
        /// What goes before its inputs.
        prompts: EmbeddingPrompts,
    },
    /// It answers with labels and scores.
    Classification(Labels),
    /// It answers each token with labels and scores.
    TokenClassification(Labels),
    /// It answers a place in a text with a score for each token of its vocabulary.
    FillMask,
    /// It answers each token with two numbers: how well an answer begins there, and ends.
    QuestionAnswering,
}

/// Sampling defaults of an artefact; absent where it says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether to sample at all; otherwise greedy.
    pub do_sample: Option<bool>,
    /// The temperature.
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// The k likeliest.
    pub top_k: Option<usize>,
    /// Relative floor.
    pub min_p: Option<f32>,
    /// Over prompt and completion.
    pub repetition_penalty: Option<f32>,
}

/// A classifier's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Their names, in the order of the logits.
    pub names: Vec<Arc<str>>,
    /// What becomes of the logits.
    pub scores: ScoreFunction,
}

/// How class logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreFunction {
    /// One label is right.
    Softmax,
    /// Each label is right or not.
    Sigmoid,
    /// The numbers are the answer (regression).
    Identity,
}

impl EngineModel {
    /// Puts a placed engine together with its text side. For encoders `text` is to be
    /// [truncated](TextCodec::truncated_to) to what one step of the engine takes, before the
    /// engine is placed: that can fail, this cannot. A copy of the model in another memory may
    /// hold the text side, too.
    pub fn new(text: impl Into<Arc<TextCodec>>, placed: Placed, purpose: Purpose) -> Self {
        let handle = placed.handle.clone();
        Self::of(text.into(), handle, purpose, None, Place::Engine(placed))
    }

    /// An adapter that is attached to the engine of `base`. What it is for is mostly its base's
    /// purpose; `text` is its base's, too, or its own.
    pub fn attached(
        text: impl Into<Arc<TextCodec>>,
        attached: Attached,
        purpose: Purpose,
        base: ModelId,
    ) -> Self {
        let handle = attached.handle.clone();
        Self::of(text.into(), handle, purpose, Some(base), Place::Beside(attached))
    }

    fn of(
        text: Arc<TextCodec>,
        engine: EngineHandle,
        mut purpose: Purpose,
        base: Option<ModelId>,
        place: Place,
    ) -> Self {
        if let (Purpose::Generative { eos_tokens, .. }, Some(eos)) =
            (&mut purpose, text.eos_token())
            && !eos_tokens.contains(&eos)
        {
            eos_tokens.push(eos);
        }
        let style = AnswerStyle::default();
        Self { text, engine, purpose, base, style, place: Mutex::new(Some(place)) }
    }

    /// The same, answering in this style.
    #[must_use]
    pub fn answering(self, style: AnswerStyle) -> Self {
        Self { style, ..self }
    }

    /// Of an adapter: the model that it is attached to.
    pub fn base(&self) -> Option<&ModelId> {
        self.base.as_ref()
    }

    /// What kind of model it is.
    pub fn kind(&self) -> ModelKind {
        match self.purpose {
            Purpose::Generative { .. } => ModelKind::Generative,
            Purpose::Embedding { .. } => ModelKind::Embedding,
            Purpose::Classification(_) => ModelKind::Classification,
            Purpose::TokenClassification(_) => ModelKind::TokenClassification,
            Purpose::FillMask => ModelKind::FillMask,
            Purpose::QuestionAnswering => ModelKind::QuestionAnswering,
        }
    }

    /// Its tokenizer and template.
    pub fn text(&self) -> &TextCodec {
        &self.text
    }

    /// Submits work to it.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// What it is for.
    pub fn purpose(&self) -> &Purpose {
        &self.purpose
    }

    /// Takes the engine off its lane, or the adapter off its base's engine; resolves when its memory
    /// is free.
    /// Sequences still running end with an error. A second call finds nothing to do. If dropped
    /// before ready, the removal goes on.
    pub async fn remove(&self) {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
        match place {
            Some(Place::Engine(placed)) => placed.remove().await,
            Some(Place::Beside(attached)) => attached.detach().await,
            None => {}
        }
    }
}
