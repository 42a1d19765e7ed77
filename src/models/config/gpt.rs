//! GPT-2 and its kin, GPT-NeoX and GPT-J: layer norms, biases, feed-forward blocks without a gate.

use serde::Deserialize;
use serde_json::Value;

use super::CONFIG;
use super::decoder::{DecoderConfig, LLAMA_NAMES, LayerKind, Names, NormKind};
use super::raw::{Defaults, keys, plain, renamed};
use crate::Error;

const GPT2_NAMES: Names = Names {
    prefixes: ["transformer.", ""],
    embeddings: "wte",
    positions: Some("wpe"),
    layers: "h",
    attention_norm: Some("ln_1"),
    qkv: &["attn.c_attn"],
    attention_out: "attn.c_proj",
    feed_forward_norm: Some("ln_2"),
    up: &["mlp.c_fc"],
    down: "mlp.c_proj",
    norm: "ln_f",
    transposed: true,
    ..LLAMA_NAMES
};

const BIGCODE_NAMES: Names = Names { transposed: false, ..GPT2_NAMES };

const GPTJ_NAMES: Names = Names {
    positions: None,
    qkv: &["attn.q_proj", "attn.k_proj", "attn.v_proj"],
    attention_out: "attn.out_proj",
    feed_forward_norm: None,
    up: &["mlp.fc_in"],
    down: "mlp.fc_out",
    transposed: false,
    ..GPT2_NAMES
};

/// What GPT-2 and its kin call the keys of others.
const GPT2_KEYS: [(&str, &str); 7] = [
    ("n_embd", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_positions", "max_position_embeddings"),
    ("n_inner", "intermediate_size"),
    ("activation_function", "hidden_act"),
    ("layer_norm_epsilon", "rms_norm_eps"),
];

const NEOX_NAMES: Names = Names {
    prefixes: ["gpt_neox.", ""],
    embeddings: "embed_in",
    qkv: &["attention.query_key_value"],
    attention_out: "attention.dense",
    up: &["mlp.dense_h_to_4h"],
    down: "mlp.dense_4h_to_h",
    norm: "final_layer_norm",
    head: "embed_out",
    ..LLAMA_NAMES
};

/// The keys of GPT-2's kin under the names of others, with what they mean where they are absent.
fn gpt2_keys(json: &Value, activation: &str) -> Value {
    let mut json = renamed(json, &GPT2_KEYS);
    let hidden = json.get("hidden_size").and_then(Value::as_u64);
    if let (Some(hidden), Some(keys)) = (hidden, json.as_object_mut()) {
        keys.entry("intermediate_size").or_insert_with(|| hidden.saturating_mul(4).into());
        keys.entry("hidden_act").or_insert_with(|| activation.into());
    }
    json
}

/// GPT-2: learned positions, projections transposed.
pub(super) fn gpt2(json: &Value) -> Result<DecoderConfig, Error> {
    let config = learned(json, &gpt2_keys(json, "gelu_new"))?;
    Ok(DecoderConfig { names: &GPT2_NAMES, ..config })
}

/// GPTBigCode, as StarCoder is: GPT-2 whose queries share one key head.
pub(super) fn gpt_bigcode(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        multi_query: Option<bool>,
    }
    let is_shared = keys::<Keys>(json)?.multi_query.unwrap_or(true);
    let mut renamed = gpt2_keys(json, "gelu_pytorch_tanh");
    if let Some(keys) = renamed.as_object_mut() {
        keys.remove("num_key_value_heads");
        if is_shared {
            keys.insert("num_key_value_heads".into(), 1.into());
        }
    }
    let config = learned(json, &renamed)?;
    Ok(DecoderConfig { interleaved: !is_shared, names: &BIGCODE_NAMES, ..config })
}

/// GPT-J: blocks side by side behind one norm, neighbours in a part of each head rotated.
pub(super) fn gptj(json: &Value) -> Result<DecoderConfig, Error> {
    let mut renamed = gpt2_keys(json, "gelu_new");
    let count = |key: &str| renamed.get(key).and_then(Value::as_u64);
    let rotated = match renamed.get("rotary_dim") {
        Some(value) => value.as_u64(),
        None => Some(64),
    };
    let Some(rotated) = rotated else {
        return Err(Error::config(CONFIG, "rotary_dim is no number of dimensions"));
    };
    let shape = (count("hidden_size"), count("num_attention_heads").filter(|heads| *heads > 0));
    if let ((Some(hidden), Some(heads)), Some(keys)) = (shape, renamed.as_object_mut()) {
        let head = hidden / heads;
        if rotated == 0 || rotated > head || !rotated.is_multiple_of(2) {
            let reason = format!(
                "rotary_dim is {rotated}: an even number of a head's {head} dimensions is rotated"
            );
            return Err(Error::config(CONFIG, reason));
        }
        // What is behind the point is cut off.
        let part = ((rotated as f64 + 0.5) / head as f64).min(1.0);
        keys.insert("partial_rotary_factor".into(), part.into());
    }
    let mut config = plain(&renamed, &Defaults { norm_epsilon: 1e-5, ..Defaults::LLAMA })?;
    config.ropes.iter_mut().for_each(|rope| rope.neighbours = true);
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        parallel: true,
        qkv_bias: false,
        attention_out_bias: false,
        mlp_bias: true,
        head_bias: true,
        gated: false,
        names: &GPTJ_NAMES,
        ..config
    })
}

/// What GPT-2 and GPTBigCode have in common, of the keys as they are and as others name them.
fn learned(json: &Value, renamed: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        scale_attn_weights: Option<bool>,
        #[serde(default)]
        scale_attn_by_inverse_layer_idx: bool,
        #[serde(default)]
        add_cross_attention: bool,
    }
    let extra: Keys = keys(json)?;
    for (key, is) in [
        ("scale_attn_by_inverse_layer_idx", extra.scale_attn_by_inverse_layer_idx),
        ("add_cross_attention", extra.add_cross_attention),
    ] {
        if is {
            return Err(Error::config(CONFIG, format!("{key} is not computed")));
        }
    }
    let defaults = Defaults { context: 1024, norm_epsilon: 1e-5, tied: true, ..Defaults::LLAMA };
    let config = plain(renamed, &defaults)?;
    let scaled = extra.scale_attn_weights.unwrap_or(true);
    Ok(DecoderConfig {
        kinds: vec![LayerKind { window: None, rope: None }],
        ropes: Vec::new(),
        norm: NormKind::Layer,
        query_scale: if scaled { config.query_scale } else { 1.0 },
        qkv_bias: true,
        attention_out_bias: true,
        mlp_bias: true,
        gated: false,
        ..config
    })
}

/// GPT-NeoX and Pythia: queries, keys and values interleaved by head.
pub(super) fn gpt_neox(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        use_parallel_residual: Option<bool>,
        attention_bias: Option<bool>,
    }
    const NAMES: [(&str, &str); 3] = [
        ("rotary_pct", "partial_rotary_factor"),
        ("rotary_emb_base", "rope_theta"),
        ("layer_norm_eps", "rms_norm_eps"),
    ];
    let extra: Keys = keys(json)?;
    let mut json = renamed(json, &NAMES);
    if let Some(keys) = json.as_object_mut() {
        keys.entry("hidden_act").or_insert_with(|| "gelu".into());
    }
    let defaults = Defaults { norm_epsilon: 1e-5, rotated: 0.25, ..Defaults::LLAMA };
    let bias = extra.attention_bias.unwrap_or(true);
    let config = plain(&json, &defaults)?;
    if config.heads.kv_heads != config.heads.heads {
        let reason = "query_key_value is not computed with shared key-value heads";
        return Err(Error::config(CONFIG, reason));
    }
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        parallel: extra.use_parallel_residual.unwrap_or(true),
        qkv_bias: bias,
        attention_out_bias: bias,
        mlp_bias: true,
        interleaved: true,
        gated: false,
        names: &NEOX_NAMES,
        ..config
    })
}
