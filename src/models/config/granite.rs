//! Granite: Llama with multipliers, dense or with experts.

use serde::Deserialize;
use serde_json::Value;

use super::decoder::{DecoderConfig, ExpertNames, Experts, Stacked};
use super::experts::checked;
use super::raw::{Defaults, keys, plain, sound};
use crate::Error;

const EXPERTS: ExpertNames = ExpertNames {
    router: "block_sparse_moe.router.layer",
    experts: "block_sparse_moe.experts",
    up: &["input_linear"],
    down: "output_linear",
    shared: Some(("shared_mlp", None)),
    stacked: Some(Stacked {
        up: ["block_sparse_moe.input_linear.weight", ""],
        down: ["block_sparse_moe.output_linear.weight", ""],
    }),
};

/// Granite 3, dense.
pub(super) fn granite(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        embedding_multiplier: Option<f64>,
        attention_multiplier: Option<f64>,
        residual_multiplier: Option<f64>,
        logits_scaling: Option<f64>,
    }
    let extra: Keys = keys(json)?;
    let by = |key: &str, value: Option<f64>| sound(key, value.unwrap_or(1.0));
    let unless_one = |number: f32| Some(number).filter(|number| *number != 1.0);
    Ok(DecoderConfig {
        embedding_scale: unless_one(by("embedding_multiplier", extra.embedding_multiplier)?),
        query_scale: by("attention_multiplier", extra.attention_multiplier)?,
        residual_scale: unless_one(by("residual_multiplier", extra.residual_multiplier)?),
        logit_scale: unless_one(1.0 / by("logits_scaling", extra.logits_scaling)?),
        ..plain(json, &Defaults::LLAMA)?
    })
}

/// Granite 3's mixtures of experts, also with an expert of all tokens.
pub(super) fn granite_moe(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        num_local_experts: Option<usize>,
        num_experts_per_tok: Option<usize>,
        shared_intermediate_size: Option<usize>,
    }
    let extra: Keys = keys(json)?;
    let config = granite(json)?;
    let experts = Experts {
        count: extra.num_local_experts.unwrap_or(8),
        used: extra.num_experts_per_tok.unwrap_or(2),
        intermediate: config.intermediate,
        shared: extra.shared_intermediate_size.filter(|width| *width > 0),
        ..Experts::of(&EXPERTS)
    };
    Ok(DecoderConfig { mlp_bias: false, experts: Some(checked(experts)?), ..config })
}
