//! OPT: learned positions, layer norms first, biases, the positive part.

use serde::Deserialize;
use serde_json::Value;

use super::CONFIG;
use super::decoder::{DecoderConfig, LLAMA_NAMES, LayerKind, Names, NormKind};
use super::raw::{Defaults, keys, plain, renamed};
use crate::Error;

const NAMES: Names = Names {
    prefixes: ["model.decoder.", "decoder."],
    positions: Some("embed_positions"),
    attention_norm: Some("self_attn_layer_norm"),
    attention_out: "self_attn.out_proj",
    feed_forward_norm: Some("final_layer_norm"),
    up: &["fc1"],
    down: "fc2",
    norm: "final_layer_norm",
    ..LLAMA_NAMES
};

/// OPT, all sizes but the one (350m) that norms behind its blocks.
pub(super) fn opt(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        hidden_size: usize,
        word_embed_proj_dim: Option<usize>,
        do_layer_norm_before: Option<bool>,
        #[serde(default, rename = "_remove_final_layer_norm")]
        remove_final_layer_norm: bool,
        layer_norm_elementwise_affine: Option<bool>,
        enable_bias: Option<bool>,
    }
    let extra: Keys = keys(json)?;
    let refuse = |reason: &str| Err(Error::config(CONFIG, reason));
    if extra.word_embed_proj_dim.is_some_and(|width| width != extra.hidden_size) {
        return refuse("word_embed_proj_dim other than hidden_size is not computed");
    }
    if !extra.do_layer_norm_before.unwrap_or(true) {
        return refuse("do_layer_norm_before false is not computed");
    }
    if extra.remove_final_layer_norm {
        return refuse("_remove_final_layer_norm is not computed");
    }
    let names = [("ffn_dim", "intermediate_size"), ("activation_function", "hidden_act")];
    let mut json = renamed(json, &names);
    if let Some(keys) = json.as_object_mut() {
        keys.entry("intermediate_size").or_insert_with(|| 3072.into());
        keys.entry("hidden_act").or_insert_with(|| "relu".into());
    }
    let bias = extra.enable_bias.unwrap_or(true);
    let has_weights = extra.layer_norm_elementwise_affine.unwrap_or(true);
    Ok(DecoderConfig {
        kinds: vec![LayerKind { window: None, rope: None }],
        ropes: Vec::new(),
        norm: if has_weights { NormKind::Layer } else { NormKind::LayerBare },
        positions_before: 2,
        qkv_bias: bias,
        attention_out_bias: bias,
        mlp_bias: bias,
        gated: false,
        names: &NAMES,
        ..plain(&json, &Defaults { norm_epsilon: 1e-5, tied: true, ..Defaults::LLAMA })?
    })
}
