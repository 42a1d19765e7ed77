//! Mixtures of experts: Mixtral, and Qwen's.

use serde::Deserialize;
use serde_json::Value;

use super::decoder::{DecoderConfig, ExpertNames, Experts};
use super::raw::{Defaults, LAYERS_MAX, Windows, keys, plain};
use super::{CONFIG, positive, qwen};
use crate::Error;

/// More experts than any layer has: a list of them is made before tensors are looked for.
pub(crate) const EXPERTS_MAX: usize = 1 << 12;

/// Wider experts than any model has: twice as much must be a number, too.
const WIDTH_MAX: usize = 1 << 24;

pub(crate) const MIXTRAL_EXPERTS: ExpertNames = ExpertNames {
    router: "block_sparse_moe.gate",
    experts: "block_sparse_moe.experts",
    up: &["w1", "w3"],
    down: "w2",
    shared: None,
    stacked: None,
};

pub(crate) const QWEN_EXPERTS: ExpertNames = ExpertNames {
    router: "mlp.gate",
    experts: "mlp.experts",
    up: &["gate_proj", "up_proj"],
    down: "down_proj",
    shared: Some(("mlp.shared_expert", Some("mlp.shared_expert_gate"))),
    stacked: None,
};

/// Mixtral: Mistral whose every layer is sparse.
pub(super) fn mixtral(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        num_local_experts: Option<usize>,
        num_experts_per_tok: Option<usize>,
    }
    let extra: Keys = keys(json)?;
    let defaults = Defaults {
        kv_heads: Some(8),
        context: 4096 * 32,
        norm_epsilon: 1e-5,
        rope_theta: 1e6,
        ..Defaults::LLAMA
    };
    let config = plain(json, &defaults)?;
    let experts = Experts {
        count: extra.num_local_experts.unwrap_or(8),
        used: extra.num_experts_per_tok.unwrap_or(2),
        intermediate: config.intermediate,
        ..Experts::of(&MIXTRAL_EXPERTS)
    };
    Ok(DecoderConfig {
        kinds: Windows::read(json, None)?.everywhere()?,
        qkv_bias: false,
        attention_out_bias: false,
        mlp_bias: false,
        experts: Some(checked(experts)?),
        ..config
    })
}

/// The keys that Qwen's have in common.
#[derive(Deserialize)]
struct Qwen {
    num_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    moe_intermediate_size: Option<usize>,
    shared_expert_intermediate_size: Option<usize>,
    decoder_sparse_step: Option<usize>,
    #[serde(default)]
    norm_topk_prob: bool,
    mlp_only_layers: Option<Vec<usize>>,
    #[serde(default)]
    use_sliding_window: bool,
    qkv_bias: Option<bool>,
}

impl Qwen {
    /// Adds experts, by default so many of which so many are used and that are so wide, and windows.
    fn sparse(
        self,
        (json, config): (&Value, DecoderConfig),
        [count, used, intermediate]: [usize; 3],
        shared: Option<usize>,
    ) -> Result<DecoderConfig, Error> {
        let experts = Experts {
            count: self.num_experts.unwrap_or(count),
            used: self.num_experts_per_tok.unwrap_or(used),
            intermediate: self.moe_intermediate_size.unwrap_or(intermediate),
            normalised: self.norm_topk_prob,
            shared,
            every: self.decoder_sparse_step.unwrap_or(1),
            dense: self.mlp_only_layers.unwrap_or_default(),
            ..Experts::of(&QWEN_EXPERTS)
        };
        let mut windows = Windows::read(json, Some(4096))?;
        windows.sliding_window = windows.sliding_window.filter(|_| self.use_sliding_window);
        let (kinds, experts) = (windows.everywhere()?, Some(checked(experts)?));
        Ok(DecoderConfig { kinds, mlp_bias: false, experts, ..config })
    }
}

/// Qwen2 whose layers are sparse, or some of them, with an expert of all tokens.
pub(super) fn qwen2_moe(json: &Value) -> Result<DecoderConfig, Error> {
    let extra: Qwen = keys(json)?;
    let shared = extra.shared_expert_intermediate_size.unwrap_or(5632);
    let defaults = Defaults { kv_heads: Some(16), context: 32_768, ..Defaults::LLAMA };
    let config = DecoderConfig {
        qkv_bias: extra.qkv_bias.unwrap_or(true),
        attention_out_bias: false,
        ..plain(json, &defaults)?
    };
    extra.sparse((json, config), [60, 4, 1408], Some(shared))
}

/// Qwen3 whose layers are sparse, or some of them.
pub(super) fn qwen3_moe(json: &Value) -> Result<DecoderConfig, Error> {
    let extra: Qwen = keys(json)?;
    let defaults = Defaults { kv_heads: Some(4), context: 32_768, ..Defaults::LLAMA };
    let config = DecoderConfig { names: &qwen::QWEN3_NAMES, ..plain(json, &defaults)? };
    extra.sparse((json, config), [128, 8, 768], None)
}

/// Refuses numbers of experts that no layer has.
pub(super) fn checked(experts: Experts) -> Result<Experts, Error> {
    positive(&[
        ("the number of experts", experts.count),
        ("num_experts_per_tok", experts.used),
        ("the width of experts", experts.intermediate),
        ("shared_expert_intermediate_size", experts.shared.unwrap_or(1)),
        ("decoder_sparse_step", experts.every),
    ])?;
    let width = experts.intermediate.max(experts.shared.unwrap_or(0));
    if width > WIDTH_MAX {
        return Err(Error::config(CONFIG, format!("experts are {width} wide")));
    }
    if experts.count > EXPERTS_MAX || experts.used > experts.count {
        let reason = format!("{} of {} experts for a token", experts.used, experts.count);
        return Err(Error::config(CONFIG, reason));
    }
    if experts.dense.len() > LAYERS_MAX {
        return Err(Error::config(CONFIG, "mlp_only_layers names more layers than there are"));
    }
    Ok(experts)
}
