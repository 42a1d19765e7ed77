//! The BERT encoder: packed ragged rows, no padding; sentence vectors or class logits.

use std::any::Any;

use candle_core::{Result, Tensor};
use candle_nn::ops::layer_norm;
use roundhouse_engine::{AdapterId, ModelRunner, RunnerError, RunnerSpec, StepOutput, StepPlan};
use roundhouse_types::Bytes;

use crate::activation::with_floats;
use crate::adapter::{Adapters, Groups, Mix, Site};
use crate::attention::{self, Span};
use crate::config::bert::BertConfig;
use crate::config::sentence::Pooling;
use crate::linear::{self, Linear};
use crate::packed::Packed;
use crate::pooling;
use crate::reader::Parameter;
use crate::tensors::TensorTable;

type Outcome<T, E> = std::result::Result<T, E>;
type Take<'a, T, E> = dyn FnMut(Parameter) -> Outcome<T, E> + 'a;

/// How this checkpoint spells the tensors' names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    /// Before every name but the classifier's: `bert.` or nothing.
    prefix: &'static str,
    /// A norm's scale: `weight`, or `gamma` in old checkpoints.
    scale: &'static str,
    /// A norm's shift: `bias`, or `beta` in old checkpoints.
    shift: &'static str,
}

impl Names {
    /// Finds out whether norms are spelt the old way.
    pub(crate) fn find(table: &TensorTable, prefix: &'static str) -> Self {
        let old = table.get(&format!("{prefix}embeddings.LayerNorm.gamma")).is_some();
        let (scale, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        Self { prefix, scale, shift }
    }

    /// Before every name but the classifier's.
    pub(crate) fn prefix(self) -> &'static str {
        self.prefix
    }

    /// What a norm's shift is called.
    pub(crate) fn shift(self) -> &'static str {
        self.shift
    }
}

/// A layer norm's parameters.
#[derive(Debug)]
struct Norm<T> {
    scale: T,
    shift: T,
}

impl<T> Norm<T> {
    fn gather<E>(
        config: &BertConfig,
        names: Names,
        name: &str,
        take: &mut Take<'_, T, E>,
    ) -> Outcome<Self, E> {
        let Names { prefix, scale, shift } = names;
        Ok(Self {
            scale: take(Parameter::vector(format!("{prefix}{name}.{scale}"), config.hidden))?,
            shift: take(Parameter::vector(format!("{prefix}{name}.{shift}"), config.hidden))?,
        })
    }
}

/// An encoder's parameters; see [`crate::decoder::DecoderWeights`] for `T`.
#[derive(Debug)]
pub(crate) struct EncoderWeights<T> {
    /// `[vocab, hidden]`, `[positions, hidden]`, `[token types, hidden]`.
    words: T,
    positions: T,
    token_types: T,
    norm: Norm<T>,
    layers: Vec<Layer<T>>,
    classifier: Option<Classifier<T>>,
}

#[derive(Debug)]
struct Layer<T> {
    /// Queries, keys and values in one.
    qkv: Linear<T>,
    attention_out: Linear<T>,
    attention_norm: Norm<T>,
    up: Linear<T>,
    down: Linear<T>,
    norm: Norm<T>,
}

#[derive(Debug)]
struct Classifier<T> {
    /// The pooler's projection of the first token.
    pooler: Linear<T>,
    classes: Linear<T>,
}

impl<T> EncoderWeights<T> {
    /// Takes every parameter, in the order of the computation. `labels`: a classifier's number.
    pub(crate) fn gather<E>(
        config: &BertConfig,
        names: Names,
        labels: Option<usize>,
        take: &mut Take<'_, T, E>,
    ) -> Outcome<Self, E> {
        let (prefix, hidden) = (names.prefix, config.hidden);
        let mut table = |name: &str, rows: usize| {
            take(Parameter::matrix(format!("{prefix}embeddings.{name}.weight"), rows, hidden))
        };
        let words = table("word_embeddings", config.vocab)?;
        let positions = table("position_embeddings", config.context)?;
        let token_types = table("token_type_embeddings", config.token_types)?;
        let norm = Norm::gather(config, names, "embeddings.LayerNorm", take)?;
        let layers = (0..config.layers)
            .map(|index| Layer::gather(config, names, index, take))
            .collect::<Outcome<_, E>>()?;
        let classifier = match labels {
            None => None,
            Some(labels) => {
                let pooler = [(format!("{prefix}pooler.dense"), hidden)];
                Some(Classifier {
                    pooler: Linear::gather(take, &pooler, hidden, true)?,
                    classes: Linear::gather(take, &[("classifier".into(), labels)], hidden, true)?,
                })
            }
        };
        Ok(Self { words, positions, token_types, norm, layers, classifier })
    }
}

impl<T> Layer<T> {
    fn gather<E>(
        config: &BertConfig,
        names: Names,
        index: usize,
        take: &mut Take<'_, T, E>,
    ) -> Outcome<Self, E> {
        let (hidden, intermediate) = (config.hidden, config.intermediate);
        let layer = format!("encoder.layer.{index}");
        let module = |name: &str, rows: usize| (format!("{}{layer}.{name}", names.prefix), rows);
        let qkv =
            ["query", "key", "value"].map(|name| module(&format!("attention.self.{name}"), hidden));
        let out = [module("attention.output.dense", hidden)];
        let up = [module("intermediate.dense", intermediate)];
        let down = [module("output.dense", hidden)];
        let attention_norm = format!("{layer}.attention.output.LayerNorm");
        Ok(Self {
            qkv: Linear::gather(take, &qkv, hidden, true)?,
            attention_out: Linear::gather(take, &out, hidden, true)?,
            attention_norm: Norm::gather(config, names, &attention_norm, take)?,
            up: Linear::gather(take, &up, hidden, true)?,
            down: Linear::gather(take, &down, intermediate, true)?,
            norm: Norm::gather(config, names, &format!("{layer}.output.LayerNorm"), take)?,
        })
    }
}

/// A loaded encoder.
#[derive(Debug)]
pub(crate) struct Encoder {
    config: BertConfig,
    spec: RunnerSpec,
    /// How an embedder makes one vector of a sequence; classifiers have their own pooler.
    pooling: Pooling,
    weights: EncoderWeights<Tensor>,
    adapters: Adapters,
}

impl Encoder {
    pub(crate) fn new(
        config: BertConfig,
        weights: EncoderWeights<Tensor>,
        pooling: Pooling,
        spec: RunnerSpec,
        adapters: Adapters,
    ) -> Self {
        Self { config, spec, pooling, weights, adapters }
    }

    fn compute(&self, packed: &Packed<'_>, mix: &Mix) -> Result<StepOutput> {
        let mut x = self.embed(packed, &mix.tokens)?;
        for index in 0..self.weights.layers.len() {
            x = self.layer(index, &x, &packed.spans, &mix.tokens)?;
        }
        if packed.outputs.is_empty() {
            return Ok(StepOutput::default());
        }
        let rows = match &self.weights.classifier {
            Some(classifier) => self.classify(classifier, &x, &packed.outputs, &mix.outputs)?,
            None => with_floats(&x, |hidden| {
                let width = self.config.hidden;
                let pool = |span: &Span<'_>| {
                    let rows = &hidden[span.first * width..(span.first + span.tokens) * width];
                    pooling::pool(self.pooling, rows, width)
                };
                packed.outputs.iter().map(pool).collect()
            })?,
        };
        Ok(StepOutput { rows })
    }

    /// Words, positions and the first token type, summed and normed.
    fn embed(&self, packed: &Packed<'_>, groups: &Groups) -> Result<Tensor> {
        let weights = &self.weights;
        let positions: Vec<u32> =
            packed.spans.iter().flat_map(|span| (0..span.tokens).map(|at| at as u32)).collect();
        let words = linear::rows(&weights.words, &packed.tokens)?;
        groups.embed(&packed.tokens, &words)?;
        let positions = linear::rows(&weights.positions, &positions)?;
        let first_type = linear::rows(&weights.token_types, &[0])?;
        let place = (groups, Site::norm(weights.layers.len()));
        self.norm(&weights.norm, &(words.broadcast_add(&first_type)? + positions)?, place)
    }

    fn layer(
        &self,
        index: usize,
        x: &Tensor,
        spans: &[Span<'_>],
        groups: &Groups,
    ) -> Result<Tensor> {
        let layer = &self.weights.layers[index];
        let qkv = layer.qkv.forward(x, (groups, Site::qkv(index)))?;
        let heads = self.config.heads;
        let mixed = with_floats(&qkv, |qkv| attention::bidirectional(heads, spans, qkv))?;
        let mixed = Tensor::from_vec(mixed, x.shape(), x.device())?;
        let out = layer.attention_out.forward(&mixed, (groups, Site::attention_out(index)))?;
        let place = (groups, Site::attention_norm(index));
        let x = self.norm(&layer.attention_norm, &(out + x)?, place)?;
        let up = layer.up.forward(&x, (groups, Site::up(index)))?;
        let inner = self.config.activation.forward(&up)?;
        drop(up);
        let out = layer.down.forward(&inner, (groups, Site::down(index)))?;
        self.norm(&layer.norm, &(out + x)?, (groups, Site::feed_forward_norm(index)))
    }

    fn norm(
        &self,
        norm: &Norm<Tensor>,
        x: &Tensor,
        (groups, site): (&Groups, Site),
    ) -> Result<Tensor> {
        let y = layer_norm(x, &norm.scale, &norm.shift, self.config.norm_epsilon)?;
        groups.shift(site, &y)?;
        Ok(y)
    }

    /// Class logits from each sequence's first token.
    fn classify(
        &self,
        classifier: &Classifier<Tensor>,
        x: &Tensor,
        outputs: &[Span<'_>],
        groups: &Groups,
    ) -> Result<Vec<Vec<f32>>> {
        let layers = self.weights.layers.len();
        let first: Vec<u32> = outputs.iter().map(|span| span.first as u32).collect();
        let first = x.index_select(&Tensor::new(first, x.device())?, 0)?;
        let pooled = classifier.pooler.forward(&first, (groups, Site::pooler(layers)))?.tanh()?;
        classifier.classes.forward(&pooled, (groups, Site::head(layers)))?.to_vec2()
    }
}

impl ModelRunner for Encoder {
    fn spec(&self) -> RunnerSpec {
        self.spec
    }

    fn forward(&mut self, plan: &StepPlan) -> Outcome<StepOutput, RunnerError> {
        let packed = Packed::check(plan, &self.spec, self.config.vocab)?;
        if packed.tokens.is_empty() {
            return Ok(StepOutput::default());
        }
        let mix = self.adapters.mix(plan, &packed)?;
        self.compute(&packed, &mix).map_err(|error| RunnerError::Device(error.to_string()))
    }

    /// An encoder keeps nothing between steps but its weights.
    fn prepares_shapes(&self) -> bool {
        // Threads and their scratch are the process's, and warm since its start.
        false
    }

    fn touched(&self) -> Bytes {
        Bytes::ZERO
    }

    fn give_back(&mut self, _: usize) -> Option<Box<dyn Any + Send>> {
        None
    }

    fn attach(&mut self, id: AdapterId, weights: Box<dyn Any + Send>) -> Outcome<(), RunnerError> {
        self.adapters.attach(id, weights)
    }

    fn detach(&mut self, id: AdapterId) -> Option<Box<dyn Any + Send>> {
        self.adapters.detach(id)
    }
}
