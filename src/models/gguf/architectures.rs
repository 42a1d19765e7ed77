//! The architectures of GGUF files: which family each is, and what its tensors are called.
//!
//! Metadata becomes a configuration with the keys of `config.json`, which the family's reader
//! understands: nothing of a family is written twice. What a file leaves out because llama.cpp
//! knows it is filled in here (llama.cpp, `src/models`).

use serde_json::{Map, Value as Json, json};

use super::config::Keys;
use super::{ROPE_FACTORS, Value};
use crate::Error;
use crate::config::decoder::{DecoderConfig, NormKind};
use crate::config::families;

/// What is particular to an architecture.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// As files name it.
    pub(super) name: &'static str,
    /// The family, as checkpoints name it.
    family: &'static str,
    /// Adds what its keys say beside the shared ones.
    extend: fn(&Keys<'_>, &mut Map<String, Json>) -> Result<(), Error>,
    /// Names of a layer's modules in the files and in checkpoints; a star stands for an expert's number.
    pub(super) modules: &'static [(&'static str, &'static str)],
    /// Whether rows of queries and keys were put in pairs.
    pub(super) is_paired: bool,
    /// Whether the files hold norms' weights as they are used, where checkpoints hold how much
    /// they differ from one.
    has_whole_norms: bool,
    /// Keys that it knows and others do not.
    pub(super) computes: &'static [&'static str],
}

const LLAMA_MODULES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// With norms of queries and of keys.
const QWEN3_MODULES: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// With experts, each kind of projection of all of them in one tensor.
const MIXTRAL_MODULES: [(&str, &str); 10] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_exps", "block_sparse_moe.experts.*.w1"),
    ("ffn_up_exps", "block_sparse_moe.experts.*.w3"),
    ("ffn_down_exps", "block_sparse_moe.experts.*.w2"),
];

const QWEN3_MOE_MODULES: [(&str, &str); 12] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.*.gate_proj"),
    ("ffn_up_exps", "mlp.experts.*.up_proj"),
    ("ffn_down_exps", "mlp.experts.*.down_proj"),
];

/// With norms of both blocks' results, and from 3 on of queries and keys.
const GEMMA_MODULES: [(&str, &str); 13] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// With norms of both blocks' results alone, and of queries and of keys.
const OLMO2_MODULES: [(&str, &str); 11] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// With fused projections.
const PHI3_MODULES: [(&str, &str); 6] = [
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const CAPS_AND_WINDOWS: [&str; 5] = [
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.freq_base_swa",
    "attn_logit_softcapping",
    "final_logit_softcapping",
];

const LLAMA: Architecture = Architecture {
    name: "llama",
    family: "LlamaForCausalLM",
    extend: |keys, json| {
        json.insert("attention_bias".into(), keys.has("blk.0.attn_q.bias").into());
        json.insert("mlp_bias".into(), keys.has("blk.0.ffn_gate.bias").into());
        Ok(())
    },
    modules: &LLAMA_MODULES,
    is_paired: true,
    has_whole_norms: false,
    computes: &[],
};

/// What files call `llama` whose layers have experts.
static MIXTRAL: Architecture = Architecture {
    family: "MixtralForCausalLM",
    extend: |keys, json| experts(keys, json, "num_local_experts"),
    modules: &MIXTRAL_MODULES,
    computes: &["expert_count"],
    ..LLAMA
};

static ARCHITECTURES: [Architecture; 11] = [
    LLAMA,
    Architecture {
        name: "qwen2",
        family: "Qwen2ForCausalLM",
        extend: |_, _| Ok(()),
        is_paired: false,
        ..LLAMA
    },
    Architecture {
        name: "qwen3",
        family: "Qwen3ForCausalLM",
        extend: |_, _| Ok(()),
        modules: &QWEN3_MODULES,
        is_paired: false,
        ..LLAMA
    },
    Architecture {
        name: "qwen3moe",
        family: "Qwen3MoeForCausalLM",
        extend: |keys, json| {
            let inner = keys.needed("expert_feed_forward_length")?;
            json.insert("moe_intermediate_size".into(), inner.into());
            json.insert("norm_topk_prob".into(), true.into());
            experts(keys, json, "num_experts")
        },
        modules: &QWEN3_MOE_MODULES,
        is_paired: false,
        computes: &["expert_count"],
        ..LLAMA
    },
    Architecture { name: "smollm3", family: "SmolLM3ForCausalLM", extend: |_, _| Ok(()), ..LLAMA },
    Architecture {
        name: "phi3",
        family: "Phi3ForCausalLM",
        extend: phi3,
        modules: &PHI3_MODULES,
        is_paired: false,
        computes: &["attention.sliding_window"],
        ..LLAMA
    },
    Architecture {
        name: "gemma",
        family: "GemmaForCausalLM",
        extend: |_, _| Ok(()),
        is_paired: false,
        has_whole_norms: true,
        ..LLAMA
    },
    Architecture {
        name: "gemma2",
        family: "Gemma2ForCausalLM",
        extend: gemma2,
        modules: &GEMMA_MODULES,
        is_paired: false,
        has_whole_norms: true,
        computes: &CAPS_AND_WINDOWS,
    },
    Architecture {
        name: "gemma3",
        family: "Gemma3ForCausalLM",
        extend: gemma3,
        modules: &GEMMA_MODULES,
        is_paired: false,
        has_whole_norms: true,
        computes: &CAPS_AND_WINDOWS,
    },
    Architecture {
        name: "granite",
        family: "GraniteForCausalLM",
        extend: granite,
        computes: &["attention.scale", "embedding_scale", "residual_scale", "logit_scale"],
        ..LLAMA
    },
    Architecture {
        name: "olmo2",
        family: "Olmo2ForCausalLM",
        extend: |_, _| Ok(()),
        modules: &OLMO2_MODULES,
        is_paired: false,
        ..LLAMA
    },
];

/// What is served, as refusals say it.
pub(super) const SERVED: &str = "; 'llama', 'qwen2', 'qwen3', 'qwen3moe', 'smollm3', 'phi3', 'gemma', 'gemma2', 'gemma3', 'granite' and 'olmo2' are";

/// The architecture of that name, with experts or without, if it is served.
pub(super) fn find(name: &str, has_experts: bool) -> Option<&'static Architecture> {
    if has_experts && name == MIXTRAL.name {
        return Some(&MIXTRAL);
    }
    ARCHITECTURES.iter().find(|architecture| architecture.name == name)
}

impl Architecture {
    /// What a file computes.
    pub(super) fn read(&self, keys: &Keys<'_>) -> Result<DecoderConfig, Error> {
        let mut json = keys.shared(self)?;
        (self.extend)(keys, &mut json)?;
        let Some((read, _)) = families::find(self.family) else {
            return keys.refuse(format!("{} is not served", self.family));
        };
        let config = read(&Json::Object(json)).map_err(|error| match error {
            Error::Config { reason, .. } => Error::config(keys.file, reason),
            other => other,
        })?;
        let norm = match self.has_whole_norms {
            true => NormKind::Rms,
            false => config.norm,
        };
        Ok(DecoderConfig { norm, rope_factors: keys.has(ROPE_FACTORS), ..config })
    }
}

/// How many experts there are, under the family's key, and how many a token uses.
fn experts(keys: &Keys<'_>, json: &mut Map<String, Json>, count: &str) -> Result<(), Error> {
    json.insert(count.into(), keys.needed("expert_count")?.into());
    json.insert("num_experts_per_tok".into(), keys.needed("expert_used_count")?.into());
    // One is the softmax; a file that does not say means it, too.
    if keys.count("expert_gating_func")?.is_some_and(|function| function != 1) {
        return keys.refuse("experts chosen by other than the softmax are not computed");
    }
    Ok(())
}

/// Multipliers; of queries the usual one where there is none.
fn granite(keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    (LLAMA.extend)(keys, json)?;
    let head_dim = json["head_dim"].as_f64().unwrap_or(1.0);
    for (theirs, ours, absent) in [
        ("attention.scale", "attention_multiplier", 1.0 / head_dim.sqrt()),
        ("embedding_scale", "embedding_multiplier", 1.0),
        ("residual_scale", "residual_multiplier", 1.0),
        ("logit_scale", "logits_scaling", 1.0),
    ] {
        let is_off = keys.get(theirs).is_some_and(super::config::is_off);
        let by = if is_off { None } else { keys.float(theirs)? };
        json.insert(ours.into(), by.map_or(absent, f64::from).into());
    }
    Ok(())
}

fn phi3(keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    for name in ["rope_factors_long.weight", "rope_factors_short.weight"] {
        if keys.has(name) {
            return Err(Error::NotServed {
                what: format!("a GGUF file of Phi-3 with tensor '{name}' is"),
                advice: "; its checkpoint in safetensors is",
            });
        }
    }
    window(keys, json, None)
}

fn gemma2(keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    for (theirs, ours, default) in [
        ("attn_logit_softcapping", "attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", "final_logit_softcapping", 30.0),
    ] {
        let cap = keys.float(theirs)?.map_or(default, f64::from);
        json.insert(ours.into(), cap.into());
    }
    query_scale(keys, json, 46)?;
    window(keys, json, Some((4096, 2)))
}

fn gemma3(keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    if let Some(cap) = keys.float("final_logit_softcapping")? {
        json.insert("final_logit_softcapping".into(), f64::from(cap).into());
    }
    let local = keys.float("rope.freq_base_swa")?.map_or(10_000.0, f64::from);
    json.insert("rope_local_base_freq".into(), local.into());
    query_scale(keys, json, 62)?;
    let pattern = if keys.get("attention.sliding_window").is_some() { 6 } else { 1 };
    window(keys, json, Some((4096, pattern)))
}

/// Queries are scaled by their own width, but for the largest model, known by its layers.
fn query_scale(keys: &Keys<'_>, json: &mut Map<String, Json>, largest: u64) -> Result<(), Error> {
    let count = |key: &str| keys.needed(key).map(|number| number as u64);
    let scalar = match count("block_count")? == largest {
        true => count("embedding_length")? / count("attention.head_count")?,
        false => json["head_dim"].as_u64().unwrap_or_default(),
    };
    json.insert("query_pre_attn_scalar".into(), scalar.into());
    Ok(())
}

/// The window; and which layers have it, where not all do: every one but each of the pattern's
/// last.
fn window(
    keys: &Keys<'_>,
    json: &mut Map<String, Json>,
    pattern: Option<(usize, usize)>,
) -> Result<(), Error> {
    let off = keys.get("attention.sliding_window").is_some_and(super::config::is_off);
    let window = match off {
        true => None,
        false => keys.count("attention.sliding_window")?,
    };
    let Some((default, pattern)) = pattern else {
        json.insert("sliding_window".into(), json!(window));
        return Ok(());
    };
    let layers = keys.needed("block_count")?;
    let slides: Vec<bool> = match keys.get("attention.sliding_window_pattern") {
        Some(Value::Array(array)) if array.count() == layers as u64 => array.switches().collect(),
        Some(Value::Array(array)) => {
            let reason = format!("attention.sliding_window_pattern is of {} layers", array.count());
            return keys.refuse(format!("its {reason}, not {layers}"));
        }
        Some(_) => {
            let pattern = keys.needed("attention.sliding_window_pattern")?;
            repeated(layers, pattern)
        }
        None => repeated(layers, pattern),
    };
    let names = slides.iter().map(|slides| match slides {
        true => "sliding_attention",
        false => "full_attention",
    });
    json.insert("layer_types".into(), names.collect());
    json.insert("sliding_window".into(), window.unwrap_or(default).into());
    Ok(())
}

fn repeated(layers: usize, pattern: usize) -> Vec<bool> {
    (1..=layers).map(|layer| !layer.is_multiple_of(pattern)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_is_a_family_that_is_served_and_said_to_be() {
        for architecture in ARCHITECTURES.iter().chain([&MIXTRAL]) {
            assert!(families::find(architecture.family).is_some(), "{}", architecture.family);
            assert!(SERVED.contains(&format!("'{}'", architecture.name)), "{}", architecture.name);
        }
    }
}
