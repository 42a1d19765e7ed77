//! The keys of rotary embeddings: base, rotated part, and how frequencies are stretched.

use serde::Deserialize;
use serde_json::Value;

use super::CONFIG;
use super::raw::{Defaults, sound};
use crate::Error;
use crate::rope::{RopeConfig, RopeScaling};

/// As written in `config.json`.
#[derive(Deserialize)]
pub(super) struct RopeKeys {
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    /// What newer versions write instead of the two above: for all layers or for each type.
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    /// The older name of the same.
    #[serde(rename = "type")]
    kind: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
}

/// The parameters of newer files for one type of layer.
pub(super) fn parameters<'a>(value: &'a Value, layer_type: &str) -> &'a Value {
    value.get(layer_type).unwrap_or(value)
}

/// A rotation that is not stretched.
pub(super) fn unscaled(theta: f32, dims: usize) -> RopeConfig {
    RopeConfig { theta, dims, scaling: RopeScaling::None, factor: 1.0, neighbours: false }
}

impl RopeKeys {
    /// The rotation of all layers, or of those with full attention where types differ.
    pub(super) fn read(
        self,
        head_dim: usize,
        context: usize,
        defaults: &Defaults,
    ) -> Result<RopeConfig, Error> {
        let rope = match &self.rope_parameters {
            Some(value) => {
                let value = parameters(value, "full_attention");
                let read = RawRope::deserialize(value);
                Some(read.map_err(|error| Error::config(CONFIG, error.to_string()))?)
            }
            None => self.rope_scaling,
        };
        let rope = rope.as_ref();
        let theta = rope.and_then(|rope| rope.rope_theta).or(self.rope_theta);
        let theta = sound("rope_theta", theta.unwrap_or(defaults.rope_theta))?;
        let part = self.partial_rotary_factor.or(rope.and_then(|rope| rope.partial_rotary_factor));
        let part = part.unwrap_or(defaults.rotated);
        if !(part > 0.0 && part <= 1.0) {
            return Err(Error::config(CONFIG, format!("partial_rotary_factor is {part}")));
        }
        let dims = (head_dim as f64 * part) as usize;
        if dims == 0 || !dims.is_multiple_of(2) {
            let reason =
                format!("{dims} numbers of head_dim {head_dim} cannot be rotated in pairs");
            return Err(Error::config(CONFIG, reason));
        }
        let Some(rope) = rope else { return Ok(unscaled(theta, dims)) };
        let trained = self.original_max_position_embeddings;
        let trained = trained.or(rope.original_max_position_embeddings);
        let model = Model { theta, dims, context: context as f64, trained };
        let (scaling, factor) = rope.scaling(&model)?;
        Ok(RopeConfig { theta, dims, scaling, factor, neighbours: false })
    }
}

/// What a scaling depends on beside its own keys.
struct Model {
    theta: f32,
    dims: usize,
    /// The context that the model is for.
    context: f64,
    /// The context that it was first trained on, where that is said.
    trained: Option<f64>,
}

fn number(key: &str, value: Option<f64>) -> Result<f64, Error> {
    match value {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        Some(value) => Err(Error::config(CONFIG, format!("rope scaling's {key} is {value}"))),
        None => Err(Error::config(CONFIG, format!("rope scaling has no {key}"))),
    }
}

/// The same of a key that may be absent.
fn number_or(key: &str, value: Option<f64>, default: f64) -> Result<f64, Error> {
    number(key, value.or(Some(default)))
}

impl RawRope {
    /// How frequencies are stretched, and what sines and cosines are multiplied by.
    fn scaling(&self, model: &Model) -> Result<(RopeScaling, f32), Error> {
        match self.rope_type.as_deref().or(self.kind.as_deref()) {
            // `dynamic` changes nothing up to the context trained on, and no more is served:
            // beyond it, frequencies grow with a sequence, and keys in a cache cannot follow.
            None | Some("default" | "dynamic") => Ok((RopeScaling::None, 1.0)),
            Some("linear") => Ok((RopeScaling::Linear(number("factor", self.factor)? as f32), 1.0)),
            Some("llama3") => Ok((self.llama3()?, 1.0)),
            Some("yarn") => self.yarn(model),
            // `su` is what the first checkpoints called it.
            Some("longrope" | "su") => self.longrope(model),
            Some(other) => {
                let reason = format!(
                    "rope scaling '{other}' is not computed; default, linear, dynamic, llama3, \
                     yarn and longrope are"
                );
                Err(Error::config(CONFIG, reason))
            }
        }
    }

    fn llama3(&self) -> Result<RopeScaling, Error> {
        let original = self.original_max_position_embeddings;
        Ok(RopeScaling::Llama3 {
            factor: number("factor", self.factor)? as f32,
            low_freq_factor: number("low_freq_factor", self.low_freq_factor)? as f32,
            high_freq_factor: number("high_freq_factor", self.high_freq_factor)? as f32,
            original_context: number("original_max_position_embeddings", original)? as f32,
        })
    }

    fn yarn(&self, model: &Model) -> Result<(RopeScaling, f32), Error> {
        let factor = number("factor", self.factor)?;
        let original = number_or("original_max_position_embeddings", model.trained, model.context)?;
        let (dims, theta) = (model.dims as f64, f64::from(model.theta));
        // The pair of dimensions that turns so often within the context trained on.
        let pair_of = |turns: f64| {
            dims * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
        };
        let mut low = pair_of(number_or("beta_fast", self.beta_fast, 32.0)?);
        let mut high = pair_of(number_or("beta_slow", self.beta_slow, 1.0)?);
        if self.truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        if !low.is_finite() || !high.is_finite() {
            return Err(Error::config(CONFIG, format!("rope_theta {theta} cannot be scaled")));
        }
        let grown = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let implied = match (self.mscale, self.mscale_all_dim) {
            (Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => grown(scale) / grown(all),
            _ => grown(1.0),
        };
        let multiplier = number_or("attention_factor", self.attention_factor, implied)?;
        let scaling =
            RopeScaling::Yarn { factor: factor as f32, low: low as f32, high: high as f32 };
        Ok((scaling, multiplier as f32))
    }

    fn longrope(&self, model: &Model) -> Result<(RopeScaling, f32), Error> {
        let original = number_or("original_max_position_embeddings", model.trained, model.context)?;
        let factor = match model.trained {
            Some(trained) => model.context / trained,
            None => number_or("factor", self.factor, 1.0)?,
        };
        let implied = match factor <= 1.0 {
            true => 1.0,
            false => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let multiplier = number_or("attention_factor", self.attention_factor, implied)?;
        let factors = |key: &str, list: &Option<Vec<f64>>| {
            let Some(list) = list else { return number(key, None).map(|_| Vec::new()) };
            if list.len() != model.dims / 2 {
                let (found, expected) = (list.len(), model.dims / 2);
                let reason = format!("rope scaling's {key} has {found} numbers, not {expected}");
                return Err(Error::config(CONFIG, reason));
            }
            list.iter().map(|value| number(key, Some(*value)).map(|value| value as f32)).collect()
        };
        let scaling = RopeScaling::Long {
            short: factors("short_factor", &self.short_factor)?,
            long: factors("long_factor", &self.long_factor)?,
            original_context: original as usize,
        };
        Ok((scaling, multiplier as f32))
    }
}
