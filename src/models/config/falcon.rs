//! Falcon: queries that share one key head, or some, in one tensor. (Falcon 3 is a Llama.)

use serde::Deserialize;
use serde_json::Value;

use super::CONFIG;
use super::decoder::{DecoderConfig, LLAMA_NAMES, Names, NormKind};
use super::raw::{Defaults, keys, plain, renamed};
use crate::Error;

/// Where both blocks of a layer read one norm.
const ONE_NORM: Names = Names {
    prefixes: ["transformer.", ""],
    embeddings: "word_embeddings",
    layers: "h",
    qkv: &["self_attention.query_key_value"],
    attention_out: "self_attention.dense",
    feed_forward_norm: None,
    up: &["mlp.dense_h_to_4h"],
    down: "mlp.dense_4h_to_h",
    norm: "ln_f",
    ..LLAMA_NAMES
};

/// Where each has its own.
const TWO_NORMS: Names =
    Names { attention_norm: Some("ln_attn"), feed_forward_norm: Some("ln_mlp"), ..ONE_NORM };

/// Where one block follows the other.
const IN_TURN: Names = Names { feed_forward_norm: LLAMA_NAMES.feed_forward_norm, ..ONE_NORM };

/// As written.
#[derive(Deserialize)]
struct Keys {
    num_attention_heads: usize,
    hidden_size: usize,
    num_kv_heads: Option<usize>,
    num_ln_in_parallel_attn: Option<usize>,
    #[serde(default)]
    alibi: bool,
    #[serde(default)]
    new_decoder_architecture: bool,
    multi_query: Option<bool>,
    parallel_attn: Option<bool>,
    #[serde(default)]
    bias: bool,
}

/// Falcon 1 and 2.
pub(super) fn falcon(json: &Value) -> Result<DecoderConfig, Error> {
    let extra: Keys = keys(json)?;
    if extra.alibi {
        return Err(Error::config(CONFIG, "alibi is not computed"));
    }
    let (parallel, is_new) = (extra.parallel_attn.unwrap_or(true), extra.new_decoder_architecture);
    let norms = extra.num_ln_in_parallel_attn.unwrap_or(if is_new { 2 } else { 1 });
    let names = match (is_new, parallel, norms) {
        (true, true, 2) => &TWO_NORMS,
        (_, true, 1) => &ONE_NORM,
        (false, false, _) => &IN_TURN,
        _ => {
            let reason = format!(
                "num_ln_in_parallel_attn {norms} with parallel_attn {parallel} and \
                 new_decoder_architecture {is_new} is not computed"
            );
            return Err(Error::config(CONFIG, reason));
        }
    };
    let is_one = !is_new && extra.multi_query.unwrap_or(true);
    let kv_heads = match (is_one, is_new) {
        (true, _) => 1,
        (false, true) => extra.num_kv_heads.unwrap_or(extra.num_attention_heads),
        (false, false) => extra.num_attention_heads,
    };
    let names_of_keys = [
        ("ffn_hidden_size", "intermediate_size"),
        ("activation", "hidden_act"),
        ("layer_norm_epsilon", "rms_norm_eps"),
    ];
    let mut json = renamed(json, &names_of_keys);
    if let Some(keys) = json.as_object_mut() {
        let inner = extra.hidden_size.saturating_mul(4);
        keys.entry("intermediate_size").or_insert_with(|| inner.into());
        keys.entry("hidden_act").or_insert_with(|| "gelu".into());
        keys.insert("num_key_value_heads".into(), kv_heads.into());
    }
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        parallel,
        qkv_bias: extra.bias,
        attention_out_bias: extra.bias,
        mlp_bias: extra.bias,
        interleaved: !is_one,
        gated: false,
        names,
        ..plain(&json, &Defaults { norm_epsilon: 1e-5, tied: true, ..Defaults::LLAMA })?
    })
}
