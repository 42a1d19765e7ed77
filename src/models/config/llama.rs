//! `config.json` of the Llama architecture.

use serde::Deserialize;
use serde_json::Value;

use super::{CONFIG, parse, positive};
use crate::Error;
use crate::activation::Activation;
use crate::attention::Heads;
use crate::files::Files;
use crate::rope::RopeScaling;

/// A Llama decoder's shape.
#[derive(Debug, Clone)]
pub(crate) struct LlamaConfig {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: Heads,
    pub(crate) vocab: usize,
    pub(crate) context: usize,
    pub(crate) norm_epsilon: f32,
    pub(crate) rope_theta: f32,
    pub(crate) rope_scaling: RopeScaling,
    /// Whether a tensor divides each frequency.
    pub(crate) rope_factors: bool,
    pub(crate) tied: bool,
    pub(crate) attention_bias: bool,
    pub(crate) mlp_bias: bool,
    pub(crate) activation: Activation,
}

/// As written; absent keys mean what transformers takes them for.
#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    /// What newer versions write instead of the two above.
    rope_parameters: Option<RawRope>,
    partial_rotary_factor: Option<f64>,
    sliding_window: Option<Value>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
}

#[derive(Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl LlamaConfig {
    pub(crate) fn read(files: &Files) -> Result<Self, Error> {
        let raw: Raw = parse(files, CONFIG)?;
        let heads = heads(&raw)?;
        if raw.sliding_window.is_some() {
            return Err(Error::config(CONFIG, "sliding_window attention is not computed"));
        }
        let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let partial =
            raw.partial_rotary_factor.or(rope.and_then(|rope| rope.partial_rotary_factor));
        if partial.is_some_and(|factor| factor != 1.0) {
            return Err(Error::config(CONFIG, "partial_rotary_factor is not computed"));
        }
        let theta = rope.and_then(|rope| rope.rope_theta).or(raw.rope_theta).unwrap_or(10_000.0);
        let norm_epsilon = raw.rms_norm_eps.unwrap_or(1e-6);
        for (key, value) in [("rope_theta", theta), ("rms_norm_eps", norm_epsilon)] {
            if !value.is_finite() || value <= 0.0 {
                return Err(Error::config(CONFIG, format!("{key} is {value}")));
            }
        }
        Ok(Self {
            hidden: raw.hidden_size,
            intermediate: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads,
            vocab: raw.vocab_size,
            context: raw.max_position_embeddings.unwrap_or(2048),
            norm_epsilon: norm_epsilon as f32,
            rope_theta: theta as f32,
            rope_scaling: rope.map_or(Ok(RopeScaling::None), scaling)?,
            rope_factors: false,
            tied: raw.tie_word_embeddings.unwrap_or(false),
            attention_bias: raw.attention_bias.unwrap_or(false),
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            activation: Activation::named(raw.hidden_act.as_deref().unwrap_or("silu"))?,
        })
    }
}

fn heads(raw: &Raw) -> Result<Heads, Error> {
    let heads = raw.num_attention_heads;
    let kv_heads = raw.num_key_value_heads.unwrap_or(heads);
    positive(&[
        ("hidden_size", raw.hidden_size),
        ("intermediate_size", raw.intermediate_size),
        ("num_hidden_layers", raw.num_hidden_layers),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("vocab_size", raw.vocab_size),
        ("max_position_embeddings", raw.max_position_embeddings.unwrap_or(1)),
    ])?;
    if !heads.is_multiple_of(kv_heads) {
        let reason = format!("{heads} attention heads do not share {kv_heads} key-value heads");
        return Err(Error::config(CONFIG, reason));
    }
    if raw.head_dim.is_none() && !raw.hidden_size.is_multiple_of(heads) {
        let reason = format!("hidden_size {} is not a multiple of {heads} heads", raw.hidden_size);
        return Err(Error::config(CONFIG, reason));
    }
    let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / heads);
    positive(&[("head_dim", head_dim)])?;
    if !head_dim.is_multiple_of(2) {
        return Err(Error::config(
            CONFIG,
            format!("head_dim {head_dim} cannot be rotated in pairs"),
        ));
    }
    Ok(Heads { heads, kv_heads, head_dim })
}

fn scaling(raw: &RawRope) -> Result<RopeScaling, Error> {
    let number = |key: &str, value: Option<f64>| match value {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value as f32),
        Some(value) => Err(Error::config(CONFIG, format!("rope scaling's {key} is {value}"))),
        None => Err(Error::config(CONFIG, format!("rope scaling has no {key}"))),
    };
    match raw.rope_type.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear(number("factor", raw.factor)?)),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: number("factor", raw.factor)?,
            low_freq_factor: number("low_freq_factor", raw.low_freq_factor)?,
            high_freq_factor: number("high_freq_factor", raw.high_freq_factor)?,
            original_context: number(
                "original_max_position_embeddings",
                raw.original_max_position_embeddings,
            )?,
        }),
        Some(other) => {
            let reason =
                format!("rope scaling '{other}' is not computed; default, linear and llama3 are");
            Err(Error::config(CONFIG, reason))
        }
    }
}
