//! SmolLM3: Llama with layers that know no positions.

use serde::Deserialize;
use serde_json::Value;

use super::CONFIG;
use super::decoder::DecoderConfig;
use super::raw::{Defaults, Windows, keys, plain};
use crate::Error;

/// SmolLM3. (SmolLM and SmolLM2 are Llamas.)
pub(super) fn smollm3(json: &Value) -> Result<DecoderConfig, Error> {
    #[derive(Deserialize)]
    struct Keys {
        #[serde(default)]
        use_sliding_window: bool,
        /// 1 for each layer that rotates, 0 for each that does not.
        no_rope_layers: Option<Vec<usize>>,
        no_rope_layer_interval: Option<usize>,
    }
    let extra: Keys = keys(json)?;
    let defaults = Defaults {
        kv_heads: Some(4),
        context: 32_768,
        rope_theta: 2_000_000.0,
        tied: true,
        ..Defaults::LLAMA
    };
    let config = plain(json, &defaults)?;
    if let Some(list) = extra.no_rope_layers.as_ref().filter(|list| list.len() != config.layers) {
        let (found, layers) = (list.len(), config.layers);
        let reason = format!("no_rope_layers names {found} layers of {layers}");
        return Err(Error::config(CONFIG, reason));
    }
    let interval = extra.no_rope_layer_interval.unwrap_or(4);
    super::positive(&[("no_rope_layer_interval", interval)])?;
    let rotates = |layer: usize| match &extra.no_rope_layers {
        Some(list) => list[layer] != 0,
        None => !(layer + 1).is_multiple_of(interval),
    };
    let mut windows = Windows::read(json, None)?;
    windows.sliding_window = windows.sliding_window.filter(|_| extra.use_sliding_window);
    let slides = |layer| windows.sliding_window.is_some() && !rotates(layer);
    let kinds = windows.kinds(config.layers, slides, |layer, _| rotates(layer).then_some(0))?;
    Ok(DecoderConfig { kinds, ..config })
}
