//! Qwen: biases of queries, keys and values (2, 2.5), or norms of queries and keys (3).

use serde::Deserialize;
use serde_json::Value;

use super::decoder::{DecoderConfig, LLAMA_NAMES, LayerKind, Names};
use super::raw::{Defaults, Windows, keys, plain};
use crate::Error;

/// With a norm for each head of queries and keys.
pub(super) const QWEN3_NAMES: Names =
    Names { head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..LLAMA_NAMES };

const DEFAULTS: Defaults = Defaults { kv_heads: Some(32), context: 32_768, ..Defaults::LLAMA };

/// Qwen2 and Qwen2.5.
pub(super) fn qwen2(json: &Value) -> Result<DecoderConfig, Error> {
    let config = plain(json, &DEFAULTS)?;
    Ok(DecoderConfig {
        kinds: kinds(json, config.layers)?,
        qkv_bias: true,
        attention_out_bias: false,
        mlp_bias: false,
        ..config
    })
}

/// Qwen3, dense.
pub(super) fn qwen3(json: &Value) -> Result<DecoderConfig, Error> {
    let config = plain(json, &Defaults { head_dim: Some(128), ..DEFAULTS })?;
    Ok(DecoderConfig {
        kinds: kinds(json, config.layers)?,
        mlp_bias: false,
        names: &QWEN3_NAMES,
        ..config
    })
}

/// Windows only where they are switched on, in the upper layers.
fn kinds(json: &Value, layers: usize) -> Result<Vec<LayerKind>, Error> {
    #[derive(Deserialize)]
    struct Keys {
        #[serde(default)]
        use_sliding_window: bool,
        max_window_layers: Option<usize>,
    }
    let extra: Keys = keys(json)?;
    let mut windows = Windows::read(json, Some(4096))?;
    windows.sliding_window = windows.sliding_window.filter(|_| extra.use_sliding_window);
    let lowest = extra.max_window_layers.unwrap_or(28);
    let slides = |layer| windows.sliding_window.is_some() && layer >= lowest;
    windows.kinds(layers, slides, |_, _| Some(0))
}
