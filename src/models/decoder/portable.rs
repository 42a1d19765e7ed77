//! The decoder by operations of tensors alone, wherever those are: what computes on a card.
//!
//! It takes the plans of the host's [`Decoder`](super::Decoder) and is held to the same references. Lists
//! of a step (tokens, positions, places of keys) go to the device once, logits of the rows that
//! want them come back; between the two nothing waits for the host, but routers of experts, whose
//! scores say what is computed next.
//!
//! The residual stream, norms, rotations, scores and softmax are f32. A projection whose weights
//! are halves rounds its inputs and its results to their type and adds up in f32, as cuBLAS does and other
//! servers have it, where the host's kernels round nothing: so halves differ from them.
//!
//! Every operation has a kernel in candle 0.11's CUDA backend, for the types that it is used with here:
//!
//! | operation | types | candle's kernel |
//! |---|---|---|
//! | `matmul` | f32, f16, bf16 | cuBLAS `gemm_strided_batched`, of one operand transposed too |
//! | `index_select` of rows and blocks | f32, f16, bf16 by u32 | `indexing`: `is_u32_*` |
//! | `scatter_set` | f32, f16, bf16 by u32 | `indexing`: `s_u32_*` |
//! | `index_add` | f32 by u32 | `indexing`: `ia_u32_f32` |
//! | `slice_set` | f32, f16, bf16 | `fill`: `copy2d_*` |
//! | `cat`, `contiguous` | f32, f16, bf16, u32 | `fill`: `copy2d_*`, `unary`: `ucopy_*` |
//! | `to_dtype` | f32, f16, bf16 | `cast`: `cast_*` |
//! | `+`, `*`, `minimum`, `maximum` | f32, u8 | `binary`: `badd`, `bmul`, `bminimum`, `bmaximum` |
//! | `lt`, `ge` | u32 | `binary`: `lt_u32`, `ge_u32` |
//! | `where_cond` | f32 by u8 | `ternary`: `where_u8_f32` |
//! | `affine` | f32 | `affine`: `affine_f32` |
//! | `tanh`, `silu`, `gelu`, `gelu_erf`, `relu` | f32 | `unary`: `utanh_f32` and so on |
//! | softmax, RMS and layer norm, rotation | f32 | `reduce`: `softmax`, `rmsnorm`, `layernorm`, `rope_thd` |

use std::any::Any;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::rotary_emb::rope_thd;
use roundhouse_engine::{
    AdapterId, BlockId, HeadSpec, KvSpec, ModelRunner, RunnerError, RunnerSpec, StepOutput,
    StepPlan, Want,
};
use roundhouse_types::Bytes;

use super::weights::{FeedForward, Layer};
use super::{Answers, DecoderWeights};
use crate::activation;
use crate::attention::{Heads, Span};
use crate::card;
use crate::config::decoder::DecoderConfig;
use crate::config::sentence::Pooling;
use crate::kv::{BLOCK_TOKENS, KvDtype};
use crate::linear::{self, Linear};
use crate::norm::Norm;
use crate::packed::Packed;
use crate::pooling;
use crate::rope::{Rope, RopeConfig};

mod kept;
mod places;
mod scores;
mod sparse;

use kept::Kept;
use places::{Bounds, Places};

pub(crate) use places::{MOST_KEYS, MOST_SCORES};

/// A decoder whose parameters and KV pool are tensors of one device.
#[derive(Debug)]
pub(crate) struct Portable {
    config: DecoderConfig,
    spec: RunnerSpec,
    device: Device,
    embeddings: Tensor,
    positions: Option<Tensor>,
    layers: Vec<Layer<Tensor>>,
    norm: Norm,
    head: Linear,
    /// Projections of pooled vectors.
    dense: Vec<Linear>,
    /// Cosines and sines, `[context, dims / 2]` each.
    ropes: Vec<[Tensor; 2]>,
    rope_bytes: u64,
    answers: Answers,
    /// Keys and values of sequences; absent where none are kept.
    kept: Option<Kept>,
}

impl Portable {
    pub(crate) fn new(
        config: DecoderConfig,
        weights: DecoderWeights<Tensor>,
        (context, step_tokens, answers): (usize, usize, Answers),
    ) -> Result<Self> {
        let DecoderWeights { embeddings, positions, layers, norm, head, rope_factors, dense } =
            weights.ready(&config)?;
        let device = embeddings.device().clone();
        let head = head.unwrap_or_else(|| Linear { weight: embeddings.clone(), bias: None });
        let spec = answers.spec(&config, context, step_tokens);
        let factors = match &rope_factors {
            Some(factors) => factors.to_vec1()?,
            None => Vec::new(),
        };
        let (mut ropes, mut rope_bytes) = (Vec::new(), 0);
        for rope in &config.ropes {
            let tables = Rope::divided(rope, &factors, context);
            rope_bytes += tables.bytes();
            ropes.push(tables.tensors(context, &device)?);
        }
        let shape = (config.heads, config.layers);
        let kept = match answers {
            Answers::Tokens(kv, dtype) => Some(Kept::new(shape, &kv, dtype, &device)),
            Answers::Vectors(_) => None,
        };
        Ok(Self {
            config,
            spec,
            device,
            embeddings,
            positions,
            layers,
            norm,
            head,
            dense,
            ropes,
            rope_bytes,
            answers,
            kept,
        })
    }

    /// Bytes of the chunks that the KV pool always has.
    pub(crate) fn kv_floor_bytes(&self) -> u64 {
        self.kept.as_ref().map_or(0, Kept::floor_bytes)
    }

    fn compute(&mut self, plan: &StepPlan, packed: &Packed<'_>) -> Result<StepOutput> {
        if let Some(kept) = &mut self.kept {
            kept.begin(&packed.spans)?;
        }
        match (self.answers, &self.kept) {
            (Answers::Tokens(..), Some(kept)) => {
                let x = self.mixed(packed, &packed.spans, Keys { kept, layers: true })?;
                self.logits(plan, packed, &x)
            }
            (Answers::Vectors(pooling), _) => {
                // Keys and values of whole sequences, of one layer at a time.
                let (kv, blocks) = own_blocks(&packed.spans);
                let pairs = packed.spans.iter().zip(&blocks);
                let spans = pairs.map(|(span, blocks)| Span { blocks, ..*span });
                let spans: Vec<Span<'_>> = spans.collect();
                let shape = (self.config.heads, 1);
                let mut kept = Kept::new(shape, &kv, KvDtype::F32, &self.device);
                kept.begin(&spans)?;
                let x = self.mixed(packed, &spans, Keys { kept: &kept, layers: false })?;
                self.vectors(plan, packed, &x, pooling)
            }
            (Answers::Tokens(..), None) => bail!("tokens are made of what is kept"),
        }
    }

    /// What the last layer gives for all tokens: `[tokens, hidden]`.
    fn mixed(&self, packed: &Packed<'_>, spans: &[Span<'_>], keys: Keys<'_>) -> Result<Tensor> {
        let step = self.prepare(packed, spans, keys.kept)?;
        let mut x = self.embed(&step)?;
        for index in 0..self.layers.len() {
            let mixed = self.attend(index, &x, (&step, keys))?;
            if self.config.parallel {
                let fed = self.feed_forward(index, &x)?;
                x = ((x + mixed)? + fed)?;
            } else {
                x = (x + mixed)?;
                x = (&x + self.feed_forward(index, &x)?)?;
            }
        }
        Ok(x)
    }

    /// The logits that rows want.
    fn logits(&self, plan: &StepPlan, packed: &Packed<'_>, x: &Tensor) -> Result<StepOutput> {
        if packed.outputs.is_empty() {
            return Ok(StepOutput::default());
        }
        let x = x.index_select(&Tensor::new(packed.places(plan, |_| true), &self.device)?, 0)?;
        let x = self.norm.forward(&x, &self.config)?;
        // [vectors, vocab]
        let vectors = project(&self.head, &x)?.to_vec2()?;
        let own = vec![None; packed.outputs.len()];
        Ok(super::answered(plan, own, vectors, &self.config))
    }

    /// The vectors that rows want.
    fn vectors(
        &self,
        plan: &StepPlan,
        packed: &Packed<'_>,
        x: &Tensor,
        pooling: Pooling,
    ) -> Result<StepOutput> {
        if packed.outputs.is_empty() {
            return Ok(StepOutput::default());
        }
        let x = self.norm.forward(x, &self.config)?;
        let outputs = plan.rows.iter().filter(|row| row.output).zip(&packed.outputs);
        let texts = &self.config.texts;
        if texts.labels.is_some() {
            let places: Vec<u32> =
                outputs.map(|(row, span)| super::texts::last(row, span, texts.padding)).collect();
            let read = x.index_select(&Tensor::new(places, &self.device)?, 0)?;
            return Ok(StepOutput { rows: project(&self.head, &read)?.to_vec2()? });
        }
        let x = x.flatten_all()?.to_vec1()?;
        let width = self.config.hidden;
        let of = (x.as_slice(), width);
        let rows = outputs.map(|(row, span)| pooling::wanted(pooling, &row.want, span, of));
        let mut rows: Vec<Vec<f32>> = rows.collect();
        if !self.dense.is_empty() {
            let mut x = Tensor::from_vec(rows.concat(), (rows.len(), width), &self.device)?;
            for (dense, linear) in texts.dense.iter().zip(&self.dense) {
                x = project(linear, &x)?;
                x = if dense.tanh { x.tanh()? } else { x };
            }
            rows = x.to_vec2()?;
        }
        Ok(StepOutput { rows })
    }

    /// What all layers of a step read, brought to the device.
    fn prepare(&self, packed: &Packed<'_>, spans: &[Span<'_>], kept: &Kept) -> Result<Step> {
        let positions = Tensor::new(packed.positions(), &self.device)?;
        let rotations = self.ropes.iter().map(|[cos, sin]| {
            Ok([cos.index_select(&positions, 0)?, sin.index_select(&positions, 0)?])
        });
        let mut windows: Vec<Option<usize>> =
            self.config.kinds.iter().map(|kind| kind.window).collect();
        windows.sort_unstable();
        windows.dedup();
        let bounds = Bounds { heads: self.config.heads, scores: MOST_SCORES, keys: MOST_KEYS };
        let places = Places::of(spans, &windows, bounds, (kept, &self.device))?;
        Ok(Step {
            tokens: Tensor::new(packed.tokens.as_slice(), &self.device)?,
            rotations: rotations.collect::<Result<_>>()?,
            positions,
            windows,
            places,
        })
    }

    /// What the first layer reads: `[tokens, hidden]`.
    fn embed(&self, step: &Step) -> Result<Tensor> {
        let rows = |table: &Tensor, at| table.index_select(at, 0)?.to_dtype(DType::F32);
        let mut x = rows(&self.embeddings, &step.tokens)?;
        if let Some(scale) = self.config.embedding_scale {
            x = (x * f64::from(scale))?;
        }
        if let Some(table) = &self.positions {
            let own = table.narrow(0, self.config.positions_before, self.config.context)?;
            x = (x + rows(&own, &step.positions)?)?;
        }
        Ok(x)
    }

    fn attend(
        &self,
        index: usize,
        x: &Tensor,
        (step, keys_of): (&Step, Keys<'_>),
    ) -> Result<Tensor> {
        let (layer, config) = (&self.layers[index], &self.config);
        let heads = config.heads;
        let qkv = match &layer.attention_norm {
            Some(norm) => project(&layer.qkv, &norm.forward(x, config)?)?,
            None => project(&layer.qkv, x)?,
        };
        // [tokens, heads, head_dim] each
        let [mut queries, mut keys, mut values] = separated(&qkv, config)?;
        drop(qkv);
        if let Some([of_queries, of_keys]) = &layer.head_norms {
            queries = of_queries.parts(&queries, config)?;
            keys = of_keys.parts(&keys, config)?;
        }
        if let Some(limit) = config.qkv_limit {
            let cut = |x: Tensor| x.clamp(-limit, limit);
            [queries, keys, values] = [cut(queries)?, cut(keys)?, cut(values)?];
        }
        let kind = config.kind(index);
        if let Some(rope) = kind.rope {
            let of = &config.ropes[rope];
            queries = rotate(&queries, of, &step.rotations[rope])?;
            keys = rotate(&keys, of, &step.rotations[rope])?;
        }
        let kept = keys_of.kept;
        let place = if keys_of.layers { index } else { 0 };
        kept.write(place, &step.places, &Tensor::cat(&[&keys, &values], 1)?)?;
        let queries = (queries * f64::from(config.query_scale))?;
        let window = step.windows.iter().position(|window| *window == kind.window);
        let Some(window) = window else { bail!("layer {index} has a window unplanned for") };
        let (cap, sinks) = (config.score_cap, layer.sinks.as_ref());
        let of = scores::Attention { heads, cap, sinks, layer: place, window };
        let out = scores::attend(of, &queries, &step.places, kept)?;
        let out = project(&layer.attention_out, &out)?;
        result(layer.attention_result_norm.as_ref(), out, config)
    }

    fn feed_forward(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        let (layer, config) = (&self.layers[index], &self.config);
        let norm = layer.feed_forward_norm.as_ref().or(layer.attention_norm.as_ref());
        let normed = match norm {
            Some(norm) => norm.forward(x, config)?,
            None => x.clone(),
        };
        let out = match (&layer.feed_forward, config.experts(index)) {
            (FeedForward::Sparse(experts), Some(of)) => {
                sparse::forward(experts, &normed, of, config.activation)?
            }
            (FeedForward::Sparse(_), None) => bail!("layer {index} has experts unplanned for"),
            (FeedForward::Dense { up, down }, _) => {
                let up = project(up, &normed)?;
                drop(normed);
                let activated = match config.gated {
                    true => gate(config.activation, &up)?,
                    false => config.activation.forward(&up)?,
                };
                drop(up);
                project(down, &activated)?
            }
        };
        result(layer.feed_forward_result_norm.as_ref(), out, config)
    }
}

/// What all layers of a step read.
struct Step {
    /// `[tokens]`, as are the positions.
    tokens: Tensor,
    positions: Tensor,
    /// Of each rotation the cosines and sines of the tokens, `[tokens, dims / 2]`.
    rotations: Vec<[Tensor; 2]>,
    /// The windows that layers have, each once.
    windows: Vec<Option<usize>>,
    places: Places,
}

/// Where a step's keys and values are.
#[derive(Clone, Copy)]
struct Keys<'a> {
    kept: &'a Kept,
    /// Whether each layer has its own place there, or all have one.
    layers: bool,
}

/// Blocks for whole sequences that nobody else has, and the pool of them.
fn own_blocks(spans: &[Span<'_>]) -> (KvSpec, Vec<Vec<BlockId>>) {
    let mut next = 0;
    let blocks = spans.iter().map(|span| {
        let first = next;
        next += span.tokens.div_ceil(BLOCK_TOKENS) as u32;
        (first..next).map(BlockId).collect()
    });
    let blocks = blocks.collect();
    (KvSpec::whole(BLOCK_TOKENS, next as usize), blocks)
}

/// Projects `[rows, inputs]` f32 to `[rows, outputs]` f32.
fn project(linear: &Linear, x: &Tensor) -> Result<Tensor> {
    linear::count_matmul();
    let weight = linear.weight.t()?;
    let product = match linear.weight.dtype() {
        DType::F32 => x.matmul(&weight)?,
        halves => x.to_dtype(halves)?.matmul(&weight)?.to_dtype(DType::F32)?,
    };
    match &linear.bias {
        Some(bias) => product.broadcast_add(bias),
        None => Ok(product),
    }
}

/// Takes `[rows, 2 n]` to `[rows, n]`: the first half, activated, times the second.
fn gate(activation: activation::Activation, up: &Tensor) -> Result<Tensor> {
    let half = up.dim(1)? / 2;
    let gate = activation.forward(&up.narrow(1, 0, half)?.contiguous()?)?;
    gate * up.narrow(1, half, half)?
}

/// Takes projected rows apart: queries, keys and values, `[tokens, heads, head_dim]` each.
fn separated(qkv: &Tensor, config: &DecoderConfig) -> Result<[Tensor; 3]> {
    let Heads { heads, kv_heads, head_dim } = config.heads;
    let (tokens, group) = (qkv.dim(0)?, config.heads.group());
    let (all, [of_queries, of_keys, of_values]) = match config.interleaved {
        true => ((kv_heads, group + 2), [(0, group), (group, 1), (group + 1, 1)]),
        false => {
            let both = heads + kv_heads;
            ((1, both + kv_heads), [(0, heads), (heads, kv_heads), (both, kv_heads)])
        }
    };
    let rows = qkv.reshape((tokens, all.0, all.1, head_dim))?;
    let part = |(first, count): (usize, usize)| {
        let part = rows.narrow(2, first, count)?.contiguous()?;
        part.reshape((tokens, all.0 * count, head_dim))
    };
    Ok([part(of_queries)?, part(of_keys)?, part(of_values)?])
}

/// What is added of what a block made.
fn result(norm: Option<&Norm>, out: Tensor, config: &DecoderConfig) -> Result<Tensor> {
    let out = match norm {
        Some(norm) => norm.forward(&out, config)?,
        None => out,
    };
    match config.residual_scale {
        Some(scale) => out * f64::from(scale),
        None => Ok(out),
    }
}

/// Rotates the first numbers of each head of `[tokens, heads, head_dim]`.
///
/// Where neighbours turn together, they are left half of them apart: queries and keys alike, whose
/// products are the same.
fn rotate(x: &Tensor, config: &RopeConfig, [cos, sin]: &[Tensor; 2]) -> Result<Tensor> {
    let ((tokens, heads, head_dim), dims) = (x.dims3()?, config.dims);
    let mut first = match dims == head_dim {
        true => x.clone(),
        false => x.narrow(2, 0, dims)?.contiguous()?,
    };
    if config.neighbours {
        let pairs = first.reshape((tokens, heads, dims / 2, 2))?;
        first = pairs.transpose(2, 3)?.contiguous()?.reshape((tokens, heads, dims))?;
    }
    let rotated = rope_thd(&first.unsqueeze(0)?, cos, sin)?.squeeze(0)?;
    match dims == head_dim {
        true => Ok(rotated),
        false => Tensor::cat(&[&rotated, &x.narrow(2, dims, head_dim - dims)?.contiguous()?], 2),
    }
}

impl ModelRunner for Portable {
    fn spec(&self) -> RunnerSpec {
        self.spec
    }

    fn forward(&mut self, plan: &StepPlan) -> std::result::Result<StepOutput, RunnerError> {
        let packed = Packed::check(plan, &self.spec, self.config.vocab)?;
        if let Some(adapter) = plan.rows.iter().find_map(|row| row.adapter) {
            return Err(no_adapters(adapter));
        }
        let of_tokens = self.kept.is_some() || self.config.texts.are_vectors();
        if !of_tokens && plan.rows.iter().any(|row| row.want != Want::Pooled) {
            return Err(RunnerError::Input("the model answers texts, not each token".into()));
        }
        if packed.tokens.is_empty() {
            return Ok(StepOutput::default());
        }
        self.compute(plan, &packed).map_err(|error| card::step_failure(&error))
    }

    fn prepares_shapes(&self) -> bool {
        // A card's libraries choose and load kernels by shape.
        self.device.is_cuda()
    }

    fn touched(&self) -> Bytes {
        let kept = self.kept.as_ref().map_or(0, Kept::allocated);
        let fill = (self.config.norm_fill() * size_of::<f32>()) as u64;
        Bytes(kept + fill + self.rope_bytes)
    }

    fn give_back(&mut self, chunk: usize) -> Option<Box<dyn Any + Send>> {
        Some(Box::new(self.kept.as_mut()?.give_back(chunk)?))
    }

    fn attach(
        &mut self,
        id: AdapterId,
        weights: Box<dyn Any + Send>,
    ) -> std::result::Result<Option<HeadSpec>, RunnerError> {
        drop(weights);
        Err(no_adapters(id))
    }

    fn detach(&mut self, _: AdapterId) -> Option<Box<dyn Any + Send>> {
        None
    }
}

fn no_adapters(id: AdapterId) -> RunnerError {
    RunnerError::Input(format!("adapters, {} included, are computed on the cpu only", id.0))
}
