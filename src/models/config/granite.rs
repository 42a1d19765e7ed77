//! Granite: Llama with multipliers.

use serde::Deserialize;
use serde_json::Value;

use super::decoder::DecoderConfig;
use super::raw::{Defaults, keys, plain, sound};
use crate::Error;

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
