//! The decoder: one forward per step over the packed rows of all sequences. What it computes
//! is data ([`DecoderConfig`]); families differ in nothing else.

use std::any::Any;

use candle_core::{Device, Result, Tensor, bail};
use roundhouse_engine::{
    AdapterId, HeadSpec, KvSpec, ModelRunner, Row, RunnerError, RunnerSpec, StepOutput, StepPlan,
};
use roundhouse_types::Bytes;

use crate::activation::{self, with_floats};
use crate::adapter::{Adapters, ExpertSites, Groups, Mix, Site};
use crate::attention::{self, Causal, Scores, Sight, Span};
use crate::config::decoder::DecoderConfig;
use crate::config::sentence::Pooling;
use crate::in_place;
use crate::kv::{KvDtype, KvPool};
use crate::linear::{self, Linear};
use crate::norm;
use crate::packed::Packed;
use crate::rope::Rope;
use crate::threads;

mod experts;
pub(crate) mod portable;
mod texts;
mod weights;

pub(crate) use portable::Portable;
pub(crate) use weights::DecoderWeights;

use weights::{FeedForward, Layer};

/// What a decoder answers with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answers {
    /// Logits of the next token; keys and values of sequences are kept in such a pool.
    Tokens(KvSpec, KvDtype),
    /// Vectors or labels of whole sequences, of which nothing is kept.
    Vectors(Pooling),
}

impl Answers {
    /// The shapes of a runner that answers so.
    fn spec(self, config: &DecoderConfig, context: usize, step_tokens: usize) -> RunnerSpec {
        let output_width = match self {
            Self::Tokens(..) => config.vocab,
            Self::Vectors(_) => config.texts.width(config.hidden),
        };
        RunnerSpec { output_width, context, step_tokens, kv: self.kv() }
    }

    /// The pool, where there is one.
    pub(crate) fn kv(self) -> Option<KvSpec> {
        match self {
            Self::Tokens(kv, _) => Some(kv),
            Self::Vectors(_) => None,
        }
    }
}

/// A loaded decoder, with its KV pool if it generates.
#[derive(Debug)]
pub(crate) struct Decoder {
    config: DecoderConfig,
    spec: RunnerSpec,
    embeddings: Tensor,
    positions: Option<Tensor>,
    layers: Vec<Layer<Tensor>>,
    /// For each layer that norms queries and keys, the weights of both.
    head_norms: Vec<[Vec<f32>; 2]>,
    /// For each layer that has them, the sinks of all heads.
    sinks: Vec<Vec<f32>>,
    norm: norm::Norm,
    head: Linear,
    /// Projections of pooled vectors.
    dense: Vec<Linear>,
    ropes: Vec<Rope>,
    pool: Option<KvPool>,
    answers: Answers,
    adapters: Adapters,
}

impl Decoder {
    pub(crate) fn new(
        config: DecoderConfig,
        weights: DecoderWeights<Tensor>,
        (context, step_tokens, answers): (usize, usize, Answers),
        adapters: Adapters,
    ) -> Result<Self> {
        let weights = weights.ready(&config)?;
        let (head_norms, sinks) = (weights.head_norms()?, weights.sinks()?);
        let DecoderWeights { embeddings, positions, layers, norm, head, rope_factors, dense } =
            weights;
        let head = head.unwrap_or_else(|| Linear { weight: embeddings.clone(), bias: None });
        let spec = answers.spec(&config, context, step_tokens);
        let factors = match &rope_factors {
            Some(factors) => factors.to_vec1()?,
            None => Vec::new(),
        };
        let ropes = config.ropes.iter().map(|rope| Rope::divided(rope, &factors, context));
        let ropes = ropes.collect();
        let pool = match answers {
            Answers::Tokens(kv, dtype) => {
                Some(KvPool::new(config.heads, config.layers, &kv, dtype))
            }
            Answers::Vectors(_) => None,
        };
        Ok(Self {
            config,
            spec,
            embeddings,
            positions,
            layers,
            head_norms,
            sinks,
            norm,
            head,
            dense,
            ropes,
            pool,
            answers,
            adapters,
        })
    }

    /// Bytes of the chunks that the KV pool always has.
    pub(crate) fn kv_floor_bytes(&self) -> u64 {
        self.pool.as_ref().map_or(0, KvPool::floor_bytes)
    }

    fn compute(&mut self, plan: &StepPlan, packed: &Packed<'_>, mix: &Mix) -> Result<StepOutput> {
        let groups = &mix.tokens;
        let x = self.embed(packed, groups)?;
        for index in 0..self.layers.len() {
            let mixed = self.attend(index, &x, &packed.spans, groups)?;
            if self.config.parallel {
                let fed = self.feed_forward(index, &x, groups)?;
                in_place::add(&x, &mixed)?;
                in_place::add(&x, &fed)?;
            } else {
                in_place::add(&x, &mixed)?;
                drop(mixed);
                in_place::add(&x, &self.feed_forward(index, &x, groups)?)?;
            }
        }
        if packed.outputs.is_empty() {
            return Ok(StepOutput::default());
        }
        if let Answers::Vectors(pooling) = self.answers {
            return self.texts(plan, packed, (&x, mix), pooling);
        }
        let own = self.of_own_heads(packed, (&x, mix))?;
        let places = packed.places(plan, |output| own[output].is_none());
        let vectors = match places.is_empty() {
            true => Vec::new(),
            false => {
                let x = self.read_at(places, &x, &mix.outputs)?;
                // [vectors, vocab]
                self.head.forward(&x, (&mix.outputs, Site::head(self.layers.len())))?.to_vec2()?
            }
        };
        Ok(answered(plan, own, vectors, &self.config))
    }

    /// What a head reads of the last layer's `x` at some places, by which `groups` are.
    fn read_at(&self, places: Vec<u32>, x: &Tensor, groups: &Groups) -> Result<Tensor> {
        let x = x.index_select(&Tensor::new(places, &Device::Cpu)?, 0)?;
        let x = self.norm.forward(&x, &self.config)?;
        groups.shift(Site::norm(self.layers.len()), &x)?;
        Ok(x)
    }

    /// What the first layer reads: `[tokens, hidden]`.
    fn embed(&self, packed: &Packed<'_>, groups: &Groups) -> Result<Tensor> {
        let mut x = linear::rows(&self.embeddings, &packed.tokens)?;
        groups.embed(&packed.tokens, &x)?;
        if let Some(scale) = self.config.embedding_scale {
            x = (x * f64::from(scale))?;
        }
        if let Some(table) = &self.positions {
            let before = self.config.positions_before as u32;
            let places: Vec<u32> = packed.positions().iter().map(|place| before + place).collect();
            in_place::add(&x, &linear::rows(table, &places)?)?;
        }
        Ok(x)
    }

    fn attend(
        &mut self,
        index: usize,
        x: &Tensor,
        spans: &[Span<'_>],
        groups: &Groups,
    ) -> Result<Tensor> {
        let (layer, config) = (&self.layers[index], &self.config);
        let heads = config.heads;
        let norm = layer.attention_norm.as_ref();
        let normed =
            normed(norm.map(|norm| (norm, Site::attention_norm(index))), (x, config), groups)?;
        let qkv = layer.qkv.forward(&normed, (groups, Site::qkv(index)))?;
        let mut qkv = with_floats(&qkv, |numbers| match config.interleaved {
            true => heads.separated(numbers),
            false => numbers.to_vec(),
        })?;
        if let Some([queries, keys]) = self.head_norms.get(index) {
            let (width, first_key) = (heads.packed_width(), heads.query_width());
            let of_keys = first_key..first_key + heads.kv_width();
            norm::heads(&mut qkv, (width, 0..first_key), queries, config.norm_epsilon);
            norm::heads(&mut qkv, (width, of_keys), keys, config.norm_epsilon);
        }
        if let Some(limit) = config.qkv_limit {
            qkv.iter_mut().for_each(|number| *number = number.clamp(-limit, limit));
        }
        let kind = config.kind(index);
        let (scale, cap, window) = (config.query_scale, config.score_cap, kind.window);
        let sinks = self.sinks.get(index).map_or(&[][..], Vec::as_slice);
        let scores = Scores { scale, cap, window, sinks };
        let rope = kind.rope.map(|rope| &self.ropes[rope]);
        let out = match &mut self.pool {
            Some(pool) => {
                let causal = Causal { heads, scores, rope, layer: index };
                pool.attend(&causal, spans, &mut qkv)
            }
            None => {
                if let Some(rope) = rope {
                    attention::rotate(heads, rope, spans, &mut qkv);
                }
                let sight = match (config.sees_behind, kind.window) {
                    (false, window) => Sight::Before(window),
                    (true, None) => Sight::All,
                    (true, Some(window)) => Sight::Around(window - 1),
                };
                attention::whole_rows((heads, scores), sight, spans, &qkv)
            }
        };
        let out = Tensor::from_vec(out, (x.dim(0)?, heads.query_width()), x.device())?;
        let out = layer.attention_out.forward(&out, (groups, Site::attention_out(index)))?;
        result(layer.attention_result_norm.as_ref(), out, config)
    }

    fn feed_forward(&self, index: usize, x: &Tensor, groups: &Groups) -> Result<Tensor> {
        let (layer, config) = (&self.layers[index], &self.config);
        let norm = match (&layer.feed_forward_norm, &layer.attention_norm) {
            (Some(norm), _) => Some((norm, Site::feed_forward_norm(index))),
            (None, Some(norm)) => Some((norm, Site::attention_norm(index))),
            (None, None) => None,
        };
        let normed = normed(norm, (x, config), groups)?;
        let out = match (&layer.feed_forward, config.experts(index)) {
            (FeedForward::Sparse(experts), Some(of)) => {
                let sites = ExpertSites::of(config.layers, of.count, index);
                experts.forward(&normed, of, config.activation, (groups, sites))?
            }
            (FeedForward::Sparse(_), None) => bail!("layer {index} has experts unplanned for"),
            (FeedForward::Dense { up, down }, _) => {
                let up = up.forward(&normed, (groups, Site::up(index)))?;
                drop(normed);
                let activated = match config.gated {
                    true => {
                        let gated = config.activation.gate(&up)?;
                        // Its room is for what the next multiplication packs.
                        drop(up);
                        gated
                    }
                    false => config.activation.apply(up)?,
                };
                down.forward(&activated, (groups, Site::down(index)))?
            }
        };
        result(layer.feed_forward_result_norm.as_ref(), out, config)
    }
}

/// What a block reads of the residual stream.
fn normed(
    norm: Option<(&norm::Norm, Site)>,
    (x, config): (&Tensor, &DecoderConfig),
    groups: &Groups,
) -> Result<Tensor> {
    let Some((norm, site)) = norm else { return Ok(x.clone()) };
    let normed = norm.forward(x, config)?;
    groups.shift(site, &normed)?;
    Ok(normed)
}

/// What is added of what a block made.
fn result(norm: Option<&norm::Norm>, out: Tensor, config: &DecoderConfig) -> Result<Tensor> {
    let out = match norm {
        Some(norm) => norm.forward(&out, config)?,
        None => out,
    };
    if let Some(scale) = config.residual_scale {
        in_place::each(&out, |out| out.iter_mut().for_each(|number| *number *= scale))?;
    }
    Ok(out)
}

/// The rows' logits, of all that were wanted in their order; of some what adapters' own heads made
/// of them.
fn answered(
    plan: &StepPlan,
    own: Vec<Option<Vec<f32>>>,
    mut vectors: Vec<Vec<f32>>,
    config: &DecoderConfig,
) -> StepOutput {
    if let Some(scale) = config.logit_scale {
        vectors.iter_mut().flatten().for_each(|logit| *logit *= scale);
    }
    if let Some(cap) = config.logit_cap {
        vectors.iter_mut().for_each(|vector| activation::cap(vector, cap));
    }
    let mut vectors = vectors.into_iter();
    let mut of_row = |row: &Row| match row.vectors() {
        1 => vectors.next().unwrap_or_default(),
        count => vectors.by_ref().take(count).flatten().collect(),
    };
    let outputs = plan.rows.iter().filter(|row| row.output);
    let rows = outputs.zip(own).map(|(row, own)| own.unwrap_or_else(|| of_row(row)));
    StepOutput { rows: rows.collect() }
}

impl ModelRunner for Decoder {
    fn spec(&self) -> RunnerSpec {
        self.spec
    }

    fn forward(&mut self, plan: &StepPlan) -> std::result::Result<StepOutput, RunnerError> {
        let packed = Packed::check(plan, &self.spec, self.config.vocab)?;
        if packed.tokens.is_empty() {
            return Ok(StepOutput::default());
        }
        self.check_wants(plan)?;
        let mix = self.adapters.mix(plan, &packed)?;
        // What outlives the step is none of its memory.
        if let Some(pool) = &mut self.pool {
            packed.spans.iter().for_each(|span| pool.touch(span.blocks));
        }
        let computed = threads::step(|| self.compute(plan, &packed, &mix));
        computed.map_err(|error| RunnerError::Device(error.to_string()))
    }

    fn prepares_shapes(&self) -> bool {
        // Threads and their scratch are the process's, and warm since its start.
        false
    }

    fn touched(&self) -> Bytes {
        let pool = self.pool.as_ref().map_or(0, KvPool::touched);
        let fill = (self.config.norm_fill() * size_of::<f32>()) as u64;
        Bytes(pool + fill + self.ropes.iter().map(Rope::bytes).sum::<u64>())
    }

    fn give_back(&mut self, chunk: usize) -> Option<Box<dyn Any + Send>> {
        self.pool.as_mut()?.give_back(chunk)
    }

    fn attach(
        &mut self,
        id: AdapterId,
        weights: Box<dyn Any + Send>,
    ) -> std::result::Result<Option<HeadSpec>, RunnerError> {
        self.adapters.attach(id, weights)
    }

    fn detach(&mut self, id: AdapterId) -> Option<Box<dyn Any + Send>> {
        self.adapters.detach(id)
    }
}
