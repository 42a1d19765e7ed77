//! OLMo: norms without weights (1), or of the blocks' results alone, and of queries and keys across all heads
//! (2, 3); OLMoE, its mixture of experts.

use serde::Deserialize;
use serde_json::Value;

use super::decoder::{DecoderConfig, Experts, LLAMA_NAMES, Names, NormKind};
use super::experts::{QWEN_EXPERTS, checked};
use super::qwen::QWEN3_NAMES;
use super::raw::{Defaults, Windows, keys, plain, sound};
use super::scaling::unscaled;
use crate::Error;

const OLMO2_NAMES: Names = Names {
    attention_norm: None,
    result_norms: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
    feed_forward_norm: None,
    ..QWEN3_NAMES
};

const DEFAULTS: Defaults = Defaults { norm_epsilon: 1e-5, ..Defaults::LLAMA };

/// What queries, keys and values are cut off at, if they are.
fn limit(json: &Value) -> Result<Option<f32>, Error> {
    #[derive(Deserialize)]
    struct Keys {
        clip_qkv: Option<f64>,
    }
    keys::<Keys>(json)?.clip_qkv.map(|limit| sound("clip_qkv", limit)).transpose()
}

/// OLMo 1.
pub(super) fn olmo(json: &Value) -> Result<DecoderConfig, Error> {
    Ok(DecoderConfig {
        norm: NormKind::LayerBare,
        // No key says another.
        norm_epsilon: 1e-5,
        qkv_limit: limit(json)?,
        mlp_bias: false,
        names: &LLAMA_NAMES,
        ..plain(json, &DEFAULTS)?
    })
}

/// OLMo 2.
pub(super) fn olmo2(json: &Value) -> Result<DecoderConfig, Error> {
    let config = plain(json, &DEFAULTS)?;
    Ok(DecoderConfig { norms_across_heads: true, mlp_bias: false, names: &OLMO2_NAMES, ..config })
}

/// OLMo 3: windows in three of four layers, whose rotation is never stretched.
pub(super) fn olmo3(json: &Value) -> Result<DecoderConfig, Error> {
    let mut config = olmo2(json)?;
    let whole = &config.ropes[0];
    config.ropes.push(unscaled(whole.theta, whole.dims));
    let slides = |layer: usize| !(layer + 1).is_multiple_of(4);
    let windows = Windows::read(json, Some(4096))?;
    let kinds = windows.kinds(config.layers, slides, |_, slides| Some(slides.into()))?;
    Ok(DecoderConfig { kinds, ..config })
}

/// OLMoE.
pub(super) fn olmoe(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        num_experts: Option<usize>,
        num_experts_per_tok: Option<usize>,
        #[serde(default)]
        norm_topk_prob: bool,
    }
    let extra: Keys = keys(json)?;
    let config = plain(json, &Defaults { context: 4096, ..DEFAULTS })?;
    let experts = Experts {
        count: extra.num_experts.unwrap_or(64),
        used: extra.num_experts_per_tok.unwrap_or(8),
        intermediate: config.intermediate,
        normalised: extra.norm_topk_prob,
        ..Experts::of(&QWEN_EXPERTS)
    };
    Ok(DecoderConfig {
        qkv_limit: limit(json)?,
        norms_across_heads: true,
        experts: Some(checked(experts)?),
        names: &QWEN3_NAMES,
        ..config
    })
}
