//! GLM: neighbours in half of each head rotated, gate and up in one tensor; from 0414 on norms of the blocks'
//! results.

use serde::Deserialize;
use serde_json::Value;

use super::decoder::{DecoderConfig, LLAMA_NAMES, Names};
use super::raw::{Defaults, keys, plain};
use crate::Error;

const GLM_NAMES: Names = Names { up: &["mlp.gate_up_proj"], ..LLAMA_NAMES };

const GLM4_NAMES: Names =
    Names { result_norms: Some(["post_self_attn_layernorm", "post_mlp_layernorm"]), ..GLM_NAMES };

/// GLM-4 of 2024, and GLM-Edge.
pub(super) fn glm(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        attention_bias: Option<bool>,
    }
    let defaults = Defaults {
        kv_heads: Some(2),
        head_dim: Some(128),
        context: 131_072,
        norm_epsilon: 1.5625e-7,
        rotated: 0.5,
        ..Defaults::LLAMA
    };
    let mut config = plain(json, &defaults)?;
    config.ropes.iter_mut().for_each(|rope| rope.neighbours = true);
    Ok(DecoderConfig {
        qkv_bias: keys::<Keys>(json)?.attention_bias.unwrap_or(true),
        attention_out_bias: false,
        mlp_bias: false,
        names: &GLM_NAMES,
        ..config
    })
}

/// GLM-4-0414.
pub(super) fn glm4(json: &Value) -> Result<DecoderConfig, Error> {
    Ok(DecoderConfig { names: &GLM4_NAMES, ..glm(json)? })
}
