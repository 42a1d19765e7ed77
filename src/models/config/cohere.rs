//! Command R and its successors: blocks side by side behind one layer norm without a bias, neighbours rotated,
//! logits scaled; from 2 on windows, without which layers know no positions.

use serde::Deserialize;
use serde_json::Value;

use super::decoder::{DecoderConfig, LLAMA_NAMES, Names, NormKind};
use super::raw::{Defaults, Windows, keys, plain, renamed, sound};
use super::{CONFIG, positive};
use crate::Error;

const NAMES: Names = Names { feed_forward_norm: None, ..LLAMA_NAMES };

/// Command R, and Aya of its time.
pub(super) fn cohere(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        logit_scale: Option<f64>,
        #[serde(default)]
        use_qk_norm: bool,
    }
    let extra: Keys = keys(json)?;
    if extra.use_qk_norm {
        return Err(Error::config(CONFIG, "use_qk_norm is not computed"));
    }
    let json = renamed(json, &[("layer_norm_eps", "rms_norm_eps")]);
    let defaults = Defaults { context: 8192, norm_epsilon: 1e-5, tied: true, ..Defaults::LLAMA };
    let mut config = plain(&json, &defaults)?;
    config.ropes.iter_mut().for_each(|rope| rope.neighbours = true);
    Ok(DecoderConfig {
        norm: NormKind::LayerUnbiased,
        parallel: true,
        logit_scale: Some(sound("logit_scale", extra.logit_scale.unwrap_or(0.0625))?),
        mlp_bias: false,
        names: &NAMES,
        ..config
    })
}

/// Command R7B and Command A.
pub(super) fn cohere2(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        sliding_window_pattern: Option<usize>,
    }
    let config = cohere(json)?;
    let pattern = keys::<Keys>(json)?.sliding_window_pattern.unwrap_or(4);
    positive(&[("sliding_window_pattern", pattern)])?;
    let slides = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    let windows = Windows::read(json, Some(4096))?;
    let kinds = windows.kinds(config.layers, slides, |_, slides| slides.then_some(0))?;
    Ok(DecoderConfig { kinds, ..config })
}
