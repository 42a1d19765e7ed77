//! Mistral: Llama with a window over the latest keys.

use serde_json::Value;

use super::decoder::DecoderConfig;
use super::raw::{Defaults, Windows, plain};
use crate::Error;

/// Mistral 7B and its successors of the same architecture.
pub(super) fn mistral(json: &Value) -> Result<DecoderConfig, Error> {
    let defaults = Defaults { kv_heads: Some(8), context: 4096 * 32, ..Defaults::LLAMA };
    let config = plain(json, &defaults)?;
    Ok(DecoderConfig {
        kinds: Windows::read(json, Some(4096))?.everywhere()?,
        qkv_bias: false,
        attention_out_bias: false,
        mlp_bias: false,
        ..config
    })
}
