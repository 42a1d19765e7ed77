//! StarCoder2: layer norms, biases, a feed-forward block without a gate. (StarCoder is a GPTBigCode.)

use serde::Deserialize;
use serde_json::Value;

use super::decoder::{DecoderConfig, LLAMA_NAMES, Names, NormKind};
use super::raw::{Defaults, Windows, keys, plain, renamed};
use crate::Error;

const NAMES: Names = Names { up: &["mlp.c_fc"], down: "mlp.c_proj", ..LLAMA_NAMES };

/// StarCoder2.
pub(super) fn starcoder2(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        use_bias: Option<bool>,
    }
    let bias = keys::<Keys>(json)?.use_bias.unwrap_or(true);
    let mut json = renamed(json, &[("norm_epsilon", "rms_norm_eps")]);
    if let Some(keys) = json.as_object_mut() {
        keys.entry("hidden_act").or_insert_with(|| "gelu_pytorch_tanh".into());
    }
    let defaults = Defaults {
        kv_heads: Some(2),
        context: 4096,
        norm_epsilon: 1e-5,
        tied: true,
        ..Defaults::LLAMA
    };
    Ok(DecoderConfig {
        kinds: Windows::read(&json, None)?.everywhere()?,
        norm: NormKind::Layer,
        qkv_bias: bias,
        attention_out_bias: bias,
        mlp_bias: bias,
        gated: false,
        names: &NAMES,
        ..plain(&json, &defaults)?
    })
}
