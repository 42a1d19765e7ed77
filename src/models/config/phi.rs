//! Phi: blocks side by side behind one layer norm (1, 1.5, 2), and Llama with fused projections (3, 3.5,
//! 4 and 4-mini).

use serde::Deserialize;
use serde_json::Value;

use super::CONFIG;
use super::decoder::{DecoderConfig, LLAMA_NAMES, Names, NormKind};
use super::raw::{Defaults, Windows, keys, plain, renamed};
use crate::Error;

const PHI_NAMES: Names = Names {
    attention_out: "self_attn.dense",
    feed_forward_norm: None,
    up: &["mlp.fc1"],
    down: "mlp.fc2",
    norm: "final_layernorm",
    ..LLAMA_NAMES
};

/// One tensor for queries, keys and values, one for gate and up, in our own order.
const NAMES: Names =
    Names { qkv: &["self_attn.qkv_proj"], up: &["mlp.gate_up_proj"], ..LLAMA_NAMES };

/// The context that is meant where a file does not say which one was trained on.
const TRAINED_CONTEXT: u64 = 4096;

/// Phi-1, Phi-1.5 and Phi-2.
pub(super) fn phi(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        #[serde(default)]
        qk_layernorm: bool,
    }
    if keys::<Keys>(json)?.qk_layernorm {
        return Err(Error::config(CONFIG, "qk_layernorm is not computed"));
    }
    let mut json = renamed(json, &[("layer_norm_eps", "rms_norm_eps")]);
    if let Some(keys) = json.as_object_mut() {
        keys.entry("hidden_act").or_insert_with(|| "gelu_new".into());
    }
    let defaults = Defaults { norm_epsilon: 1e-5, rotated: 0.5, ..Defaults::LLAMA };
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        parallel: true,
        qkv_bias: true,
        attention_out_bias: true,
        mlp_bias: true,
        head_bias: true,
        gated: false,
        names: &PHI_NAMES,
        ..plain(&json, &defaults)?
    })
}

/// Phi-3 and what came after under its name.
pub(super) fn phi3(json: &Value) -> Result<DecoderConfig, Error> {
    let mut json = json.clone();
    if let Some(keys) = json.as_object_mut() {
        keys.entry("original_max_position_embeddings").or_insert_with(|| TRAINED_CONTEXT.into());
    }
    // What the first files called `yarn` is the scaling that later got a name of its own.
    if let Some(kind) = json.pointer_mut("/rope_scaling/type").filter(|kind| *kind == "yarn") {
        *kind = "longrope".into();
    }
    let defaults = Defaults { context: 4096, norm_epsilon: 1e-5, ..Defaults::LLAMA };
    Ok(DecoderConfig {
        kinds: Windows::read(&json, None)?.everywhere()?,
        qkv_bias: false,
        attention_out_bias: false,
        mlp_bias: false,
        names: &NAMES,
        ..plain(&json, &defaults)?
    })
}
