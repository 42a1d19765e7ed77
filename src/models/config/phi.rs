//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: Llama with fused projections.

use serde_json::Value;

use super::decoder::{DecoderConfig, LLAMA_NAMES, Names};
use super::raw::{Defaults, Windows, plain};
use crate::Error;

/// One tensor for queries, keys and values, one for gate and up, in our own order.
const NAMES: Names =
    Names { qkv: &["self_attn.qkv_proj"], up: &["mlp.gate_up_proj"], ..LLAMA_NAMES };

/// The context that is meant where a file does not say which one was trained on.
const TRAINED_CONTEXT: u64 = 4096;

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
