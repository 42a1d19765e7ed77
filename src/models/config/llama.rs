//! Llama, and StableLM, which has its names.

use serde::Deserialize;
use serde_json::Value;

use super::CONFIG;
use super::decoder::{DecoderConfig, LLAMA_NAMES, Names, NormKind};
use super::raw::{Defaults, keys, plain, renamed};
use crate::Error;

/// StableLM where both blocks of a layer read one norm.
const STABLELM_PARALLEL: Names = Names { feed_forward_norm: None, ..LLAMA_NAMES };

/// Llama 1 to 3.x.
pub(super) fn llama(json: &Value) -> Result<DecoderConfig, Error> {
    // A `sliding_window` is left over from what a file was made of: transformers reads none here.
    let config = plain(json, &Defaults::LLAMA)?;
    // It does read this one, and fails.
    if config.ropes.iter().any(|rope| rope.dims != config.heads.head_dim) {
        return Err(Error::config(CONFIG, "partial_rotary_factor is not computed for Llama"));
    }
    Ok(config)
}

/// StableLM: layer norms, a part of each head rotated.
pub(super) fn stablelm(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        #[serde(default)]
        use_qkv_bias: bool,
        #[serde(default)]
        qk_layernorm: bool,
        #[serde(default)]
        use_parallel_residual: bool,
    }
    let extra: Keys = keys(json)?;
    if extra.qk_layernorm {
        return Err(Error::config(CONFIG, "qk_layernorm is not computed"));
    }
    let defaults = Defaults {
        kv_heads: Some(32),
        context: 4096,
        norm_epsilon: 1e-5,
        rotated: 0.25,
        ..Defaults::LLAMA
    };
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        parallel: extra.use_parallel_residual,
        qkv_bias: extra.use_qkv_bias,
        attention_out_bias: false,
        mlp_bias: false,
        names: if extra.use_parallel_residual { &STABLELM_PARALLEL } else { &LLAMA_NAMES },
        ..plain(&renamed(json, &[("layer_norm_eps", "rms_norm_eps")]), &defaults)?
    })
}
