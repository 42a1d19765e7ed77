//! gpt-oss: experts with biases and gates that are cut off, a sink in each head's softmax, windows in every
//! other layer. Its experts are published in four bits (MXFP4).

use serde::Deserialize;
use serde_json::{Value, json};

use super::CONFIG;
use super::decoder::{DecoderConfig, ExpertNames, Experts, LLAMA_NAMES, Lie, Names, Stacked};
use super::experts::checked;
use super::raw::{Defaults, Windows, keys, plain, sound};
use crate::Error;
use crate::activation::Activation;

/// The type of model that files name.
pub(super) const TYPE: &str = "gpt_oss";
/// What `quantization_config` calls its experts' format.
pub(super) const MXFP4: &str = "mxfp4";
/// Numbers that share a scale in that format.
const TOGETHER: usize = 32;

const EXPERTS: ExpertNames = ExpertNames {
    router: "mlp.router",
    experts: "mlp.experts",
    up: &["gate_up_proj"],
    down: "down_proj",
    shared: None,
    stacked: Some(Stacked {
        up: ["mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias"],
        down: ["mlp.experts.down_proj", "mlp.experts.down_proj_bias"],
    }),
};

const NAMES: Names = Names { sinks: Some("self_attn.sinks"), ..LLAMA_NAMES };

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    head_dim: Some(64),
    context: 131_072,
    norm_epsilon: 1e-5,
    rope_theta: 150_000.0,
    ..Defaults::LLAMA
};

/// gpt-oss.
pub(super) fn gpt_oss(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        num_local_experts: Option<usize>,
        num_experts_per_tok: Option<usize>,
        swiglu_limit: Option<f64>,
        attention_bias: Option<bool>,
    }
    let extra: Keys = keys(json)?;
    let config = plain(&stretched(json), &DEFAULTS)?;
    let in_blocks = json.pointer("/quantization_config/quant_method").is_some();
    if in_blocks {
        for (key, width) in
            [("hidden_size", config.hidden), ("intermediate_size", config.intermediate)]
        {
            if !width.is_multiple_of(TOGETHER) {
                let reason = format!("{key} {width} is no multiple of {MXFP4}'s {TOGETHER}");
                return Err(Error::config(CONFIG, reason));
            }
        }
    }
    let experts = Experts {
        count: extra.num_local_experts.unwrap_or(128),
        used: extra.num_experts_per_tok.unwrap_or(4),
        intermediate: config.intermediate,
        biased: true,
        // transformers reads it of blocks, and takes 7 for floats whatever the file says; a limit that it was
        // trained with is the same however its numbers are kept.
        limit: Some(sound("swiglu_limit", extra.swiglu_limit.unwrap_or(7.0))?),
        lie: if in_blocks { Lie::BlocksInTurns } else { Lie::ColumnsInTurns },
        ..Experts::of(&EXPERTS)
    };
    let windows = Windows::read(json, Some(128))?;
    let bias = extra.attention_bias.unwrap_or(true);
    Ok(DecoderConfig {
        kinds: windows.kinds(config.layers, |layer| layer.is_multiple_of(2), |_, _| Some(0))?,
        qkv_bias: bias,
        attention_out_bias: bias,
        mlp_bias: false,
        // Whatever `hidden_act` says.
        activation: Activation::QuickGelu,
        experts: Some(checked(experts)?),
        names: &NAMES,
        ..config
    })
}

/// The configuration with the stretched rotation that it has where it does not say another.
fn stretched(json: &Value) -> Value {
    let mut json = json.clone();
    if let Some(keys) = json.as_object_mut().filter(|keys| !keys.contains_key("rope_parameters")) {
        keys.entry("rope_scaling").or_insert_with(|| {
            json!({
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "truncate": false, "original_max_position_embeddings": 4096
            })
        });
    }
    json
}
