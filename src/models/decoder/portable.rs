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
    AdapterId, BlockId, KvSpec, ModelRunner, RunnerError, RunnerSpec, StepOutput, StepPlan,
};
use roundhouse_types::Bytes;

use super::weights::{FeedForward, Layer};
use super::{Answers, DecoderWeights};
use crate::activation;
use crate::attention::Span;
use crate::card;
use crate::config::decoder::DecoderConfig;
use crate::config::sentence::Pooling;
use crate::kv::{BLOCK_TOKENS, KvDtype};
use crate::linear::{self, Linear};
use crate::norm::Norm;
use crate::packed::Packed;
use crate::pooling;
use crate::rope::Rope;

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
        let DecoderWeights { embeddings, positions, layers, norm, head, rope_factors } =
            weights.ready(config.norm)?;
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
        let x = x.index_select(&Tensor::new(packed.places(plan), &self.device)?, 0)?;
        let x = self.norm.forward(&x, &self.config)?;
        // [vectors, vocab]
        let vectors = project(&self.head, &x)?.to_vec2()?;
        Ok(super::answered(plan, vectors, self.config.logit_cap))
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
        let x = self.norm.forward(x, &self.config)?.flatten_all()?.to_vec1()?;
        let wants = plan.rows.iter().filter(|row| row.output).map(|row| &row.want);
        let of = (x.as_slice(), self.config.hidden);
        let rows = wants.zip(&packed.outputs);
        let rows = rows.map(|(want, span)| pooling::wanted(pooling, want, span, of)).collect();
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
            x = (x + rows(table, &step.positions)?)?;
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
        let (heads, tokens) = (config.heads, x.dim(0)?);
        let normed = layer.attention_norm.forward(x, config)?;
        let qkv = project(&layer.qkv, &normed)?;
        drop(normed);
        // [tokens, heads of queries, then of keys, then of values, head_dim]
        let all = heads.heads + 2 * heads.kv_heads;
        let qkv = match config.interleaved {
            true => {
                let apart = qkv.reshape((tokens, heads.heads, 3, heads.head_dim))?;
                apart.transpose(1, 2)?.contiguous()?.reshape((tokens, all, heads.head_dim))?
            }
            false => qkv.reshape((tokens, all, heads.head_dim))?,
        };
        let mut queries = qkv.narrow(1, 0, heads.heads)?.contiguous()?;
        let mut keys = qkv.narrow(1, heads.heads, heads.kv_heads)?.contiguous()?;
        let values = qkv.narrow(1, heads.heads + heads.kv_heads, heads.kv_heads)?;
        if let Some([of_queries, of_keys]) = &layer.head_norms {
            queries = of_queries.forward(&queries, config)?;
            keys = of_keys.forward(&keys, config)?;
        }
        let kind = config.kind(index);
        if let Some(rope) = kind.rope {
            let dims = config.ropes[rope].dims;
            queries = rotate(&queries, dims, &step.rotations[rope])?;
            keys = rotate(&keys, dims, &step.rotations[rope])?;
        }
        let kept = keys_of.kept;
        let place = if keys_of.layers { index } else { 0 };
        kept.write(place, &step.places, &Tensor::cat(&[&keys, &values.contiguous()?], 1)?)?;
        let queries = (queries * f64::from(config.query_scale))?;
        let window = step.windows.iter().position(|window| *window == kind.window);
        let Some(window) = window else { bail!("layer {index} has a window unplanned for") };
        let of = scores::Attention { heads, cap: config.score_cap, layer: place, window };
        let out = scores::attend(of, &queries, &step.places, kept)?;
        let out = project(&layer.attention_out, &out)?;
        match &layer.attention_result_norm {
            Some(norm) => norm.forward(&out, config),
            None => Ok(out),
        }
    }

    fn feed_forward(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        let (layer, config) = (&self.layers[index], &self.config);
        let norm = layer.feed_forward_norm.as_ref().unwrap_or(&layer.attention_norm);
        let normed = norm.forward(x, config)?;
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
        match &layer.feed_forward_result_norm {
            Some(norm) => norm.forward(&out, config),
            None => Ok(out),
        }
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

/// Rotates the first `dims` numbers of each head of `[tokens, heads, head_dim]`.
fn rotate(x: &Tensor, dims: usize, [cos, sin]: &[Tensor; 2]) -> Result<Tensor> {
    let head_dim = x.dim(2)?;
    let first = match dims == head_dim {
        true => x.clone(),
        false => x.narrow(2, 0, dims)?.contiguous()?,
    };
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
        Bytes(kept + self.rope_bytes)
    }

    fn give_back(&mut self, chunk: usize) -> Option<Box<dyn Any + Send>> {
        Some(Box::new(self.kept.as_mut()?.give_back(chunk)?))
    }

    fn attach(
        &mut self,
        id: AdapterId,
        weights: Box<dyn Any + Send>,
    ) -> std::result::Result<(), RunnerError> {
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
