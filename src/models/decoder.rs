//! The Llama decoder: one forward per step over the packed rows of all sequences.

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::rms_norm;
use roundhouse_engine::{KvSpec, ModelRunner, RunnerError, RunnerSpec, StepOutput, StepPlan};
use roundhouse_types::Bytes;

use crate::activation::with_floats;
use crate::attention::{self, Span};
use crate::config::llama::LlamaConfig;
use crate::gguf;
use crate::kv::{BLOCK_TOKENS, KvPool};
use crate::linear::{self, Linear};
use crate::packed::Packed;
use crate::reader::Parameter;
use crate::rope::Rope;

/// A decoder's parameters. `T` is a tensor once loaded, and nothing while bytes are counted:
/// both walk [`DecoderWeights::gather`], so neither can forget a tensor.
#[derive(Debug)]
pub(crate) struct DecoderWeights<T> {
    /// `[vocab, hidden]`.
    embeddings: T,
    layers: Vec<Layer<T>>,
    norm: T,
    /// `None` when the embeddings serve as the head.
    head: Option<Linear<T>>,
    /// `[head_dim / 2]`: what the frequencies of rotations are divided by.
    rope_factors: Option<T>,
}

#[derive(Debug)]
struct Layer<T> {
    attention_norm: T,
    /// Queries, keys and values in one.
    qkv: Linear<T>,
    attention_out: Linear<T>,
    feed_forward_norm: T,
    /// Gate and up in one.
    gate_up: Linear<T>,
    down: Linear<T>,
}

impl<T> DecoderWeights<T> {
    /// Takes every parameter, in the order of the computation.
    pub(crate) fn gather<E>(
        config: &LlamaConfig,
        prefix: &str,
        take: &mut dyn FnMut(Parameter) -> std::result::Result<T, E>,
    ) -> std::result::Result<Self, E> {
        let (hidden, vocab) = (config.hidden, config.vocab);
        let embeddings =
            take(Parameter::matrix(format!("{prefix}embed_tokens.weight"), vocab, hidden))?;
        let layers = (0..config.layers)
            .map(|index| Layer::gather(config, &format!("{prefix}layers.{index}"), take))
            .collect::<std::result::Result<_, E>>()?;
        let norm = take(Parameter::vector(format!("{prefix}norm.weight"), hidden))?;
        let head = match config.tied {
            true => None,
            false => Some(Linear::gather(take, &[("lm_head".into(), vocab)], hidden, false)?),
        };
        let half = config.heads.head_dim / 2;
        let rope_factors = match config.rope_factors {
            true => Some(take(Parameter::vector(gguf::ROPE_FACTORS, half))?),
            false => None,
        };
        Ok(Self { embeddings, layers, norm, head, rope_factors })
    }
}

impl<T> Layer<T> {
    fn gather<E>(
        config: &LlamaConfig,
        name: &str,
        take: &mut dyn FnMut(Parameter) -> std::result::Result<T, E>,
    ) -> std::result::Result<Self, E> {
        let (hidden, intermediate, heads) = (config.hidden, config.intermediate, config.heads);
        let module = |module: &str, rows: usize| (format!("{name}.{module}"), rows);
        let qkv = [
            module("self_attn.q_proj", heads.query_width()),
            module("self_attn.k_proj", heads.kv_width()),
            module("self_attn.v_proj", heads.kv_width()),
        ];
        let out = [module("self_attn.o_proj", hidden)];
        let gate_up = [module("mlp.gate_proj", intermediate), module("mlp.up_proj", intermediate)];
        let down = [module("mlp.down_proj", hidden)];
        let norm = |take: &mut dyn FnMut(Parameter) -> std::result::Result<T, E>, part: &str| {
            take(Parameter::vector(format!("{name}.{part}.weight"), hidden))
        };
        Ok(Self {
            attention_norm: norm(take, "input_layernorm")?,
            qkv: Linear::gather(take, &qkv, hidden, config.attention_bias)?,
            attention_out: Linear::gather(take, &out, heads.query_width(), config.attention_bias)?,
            feed_forward_norm: norm(take, "post_attention_layernorm")?,
            gate_up: Linear::gather(take, &gate_up, hidden, config.mlp_bias)?,
            down: Linear::gather(take, &down, intermediate, config.mlp_bias)?,
        })
    }
}

/// A loaded decoder with its KV pool.
#[derive(Debug)]
pub(crate) struct Decoder {
    config: LlamaConfig,
    spec: RunnerSpec,
    embeddings: Tensor,
    layers: Vec<Layer<Tensor>>,
    norm: Tensor,
    head: Linear,
    rope: Rope,
    pool: KvPool,
}

impl Decoder {
    pub(crate) fn new(
        config: LlamaConfig,
        weights: DecoderWeights<Tensor>,
        context: usize,
        step_tokens: usize,
        blocks: usize,
    ) -> Result<Self> {
        let DecoderWeights { embeddings, layers, norm, head, rope_factors } = weights;
        let head = head.unwrap_or_else(|| Linear { weight: embeddings.clone(), bias: None });
        let kv = KvSpec { block_tokens: BLOCK_TOKENS, blocks };
        let spec = RunnerSpec { output_width: config.vocab, context, step_tokens, kv: Some(kv) };
        let factors = match &rope_factors {
            Some(factors) => factors.to_vec1()?,
            None => Vec::new(),
        };
        let (head_dim, theta) = (config.heads.head_dim, config.rope_theta);
        let rope = Rope::divided(head_dim, theta, config.rope_scaling, &factors, context);
        let pool = KvPool::new(config.heads, config.layers, blocks);
        Ok(Self { config, spec, embeddings, layers, norm, head, rope, pool })
    }

    /// Bytes of the KV pool in full.
    pub(crate) fn kv_bytes(&self) -> u64 {
        self.pool.bytes()
    }

    fn compute(&mut self, packed: &Packed<'_>) -> Result<StepOutput> {
        for span in &packed.spans {
            self.pool.touch(span.blocks);
        }
        // [tokens, hidden]
        let mut x = linear::rows(&self.embeddings, &packed.tokens)?;
        for index in 0..self.layers.len() {
            let mixed = self.attend(index, &x, &packed.spans)?;
            x = (x + mixed)?;
            x = (&x + self.feed_forward(index, &x)?)?;
        }
        if packed.outputs.is_empty() {
            return Ok(StepOutput::default());
        }
        let last: Vec<u32> = packed.outputs.iter().map(|span| span.last_row()).collect();
        let x = x.index_select(&Tensor::new(last, &Device::Cpu)?, 0)?;
        let x = rms_norm(&x, &self.norm, self.config.norm_epsilon)?;
        // [outputs, vocab]
        Ok(StepOutput { rows: self.head.forward(&x)?.to_vec2()? })
    }

    fn attend(&mut self, index: usize, x: &Tensor, spans: &[Span<'_>]) -> Result<Tensor> {
        let (layer, heads) = (&self.layers[index], self.config.heads);
        let normed = rms_norm(x, &layer.attention_norm, self.config.norm_epsilon)?;
        let qkv = layer.qkv.forward(&normed)?;
        let mut qkv = with_floats(&qkv, <[f32]>::to_vec)?;
        let out = attention::causal(heads, &self.rope, &mut self.pool, index, spans, &mut qkv);
        let out = Tensor::from_vec(out, (x.dim(0)?, heads.query_width()), x.device())?;
        layer.attention_out.forward(&out)
    }

    fn feed_forward(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        let layer = &self.layers[index];
        let normed = rms_norm(x, &layer.feed_forward_norm, self.config.norm_epsilon)?;
        let gated = self.config.activation.gate(&layer.gate_up.forward(&normed)?)?;
        layer.down.forward(&gated)
    }
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
        self.compute(&packed).map_err(|error| RunnerError::Device(error.to_string()))
    }

    fn touched(&self) -> Bytes {
        Bytes(self.pool.touched() + self.rope.bytes())
    }
}
