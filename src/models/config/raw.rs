//! The keys of `config.json` that most decoder families share, and the plain decoder they
//! describe; families change what is different with them.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::decoder::{DecoderConfig, LLAMA_NAMES, LayerKind, NormKind, Texts};
use super::scaling::RopeKeys;
use super::{CONFIG, positive};
use crate::Error;
use crate::activation::Activation;
use crate::attention::Heads;

/// More layers than any model has: lists of them are made before tensors are looked for.
pub(crate) const LAYERS_MAX: usize = 1 << 16;

/// As written. What may be absent means what the family's [`Defaults`] say.
#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
}

/// What transformers takes a family's absent keys for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    /// As many as query heads if `None`.
    pub(super) kv_heads: Option<usize>,
    /// The hidden size shared among the heads if `None`.
    pub(super) head_dim: Option<usize>,
    pub(super) context: usize,
    pub(super) norm_epsilon: f64,
    pub(super) rope_theta: f64,
    /// The part of each head that is rotated.
    pub(super) rotated: f64,
    pub(super) tied: bool,
}

impl Defaults {
    /// Llama's.
    pub(super) const LLAMA: Self = Self {
        kv_heads: None,
        head_dim: None,
        context: 2048,
        norm_epsilon: 1e-6,
        rope_theta: 10_000.0,
        rotated: 1.0,
        tied: false,
    };
}

/// Reads some keys of a configuration.
pub(super) fn keys<T: DeserializeOwned>(json: &Value) -> Result<T, Error> {
    T::deserialize(json).map_err(|error| Error::config(CONFIG, error.to_string()))
}

/// A configuration with some keys under the names that most families have for them.
pub(super) fn renamed(json: &Value, names: &[(&str, &str)]) -> Value {
    let mut json = json.clone();
    if let Some(keys) = json.as_object_mut() {
        for (theirs, ours) in names {
            if let Some(value) = keys.remove(*theirs) {
                keys.insert((*ours).into(), value);
            }
        }
    }
    json
}

/// The decoder that the shared keys describe: Llama's arithmetic and names.
pub(super) fn plain(json: &Value, defaults: &Defaults) -> Result<DecoderConfig, Error> {
    let raw: Raw = keys(json)?;
    let context = raw.max_position_embeddings.unwrap_or(defaults.context);
    let norm_epsilon = raw.rms_norm_eps.unwrap_or(defaults.norm_epsilon);
    // Null is not absent: it says that the heads do not share.
    let unshared = json.get("num_key_value_heads").is_some_and(Value::is_null);
    let defaults = &Defaults { kv_heads: defaults.kv_heads.filter(|_| !unshared), ..*defaults };
    let heads = heads(&raw, defaults)?;
    positive(&[("max_position_embeddings", context)])?;
    sound("rms_norm_eps", norm_epsilon)?;
    let rope = keys::<RopeKeys>(json)?.read(heads.head_dim, context, defaults)?;
    let attention_bias = raw.attention_bias.unwrap_or(false);
    Ok(DecoderConfig {
        hidden: raw.hidden_size,
        intermediate: raw.intermediate_size,
        layers: raw.num_hidden_layers,
        heads,
        vocab: raw.vocab_size,
        context,
        kinds: vec![LayerKind { window: None, rope: Some(0) }],
        ropes: vec![rope],
        rope_factors: false,
        norm: NormKind::Rms,
        norm_epsilon: norm_epsilon as f32,
        parallel: false,
        embedding_scale: None,
        positions_before: 0,
        query_scale: 1.0 / (heads.head_dim as f32).sqrt(),
        score_cap: None,
        logit_scale: None,
        logit_cap: None,
        residual_scale: None,
        qkv_limit: None,
        norms_across_heads: false,
        qkv_bias: attention_bias,
        attention_out_bias: attention_bias,
        mlp_bias: raw.mlp_bias.unwrap_or(false),
        head_bias: false,
        interleaved: false,
        gated: true,
        activation: Activation::named(raw.hidden_act.as_deref().unwrap_or("silu"))?,
        experts: None,
        tied: raw.tie_word_embeddings.unwrap_or(defaults.tied),
        sees_behind: false,
        texts: Texts::default(),
        names: &LLAMA_NAMES,
    })
}

fn heads(raw: &Raw, defaults: &Defaults) -> Result<Heads, Error> {
    let heads = raw.num_attention_heads;
    let kv_heads = raw.num_key_value_heads.or(defaults.kv_heads).unwrap_or(heads);
    positive(&[
        ("hidden_size", raw.hidden_size),
        ("intermediate_size", raw.intermediate_size),
        ("num_hidden_layers", raw.num_hidden_layers),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("vocab_size", raw.vocab_size),
    ])?;
    if !heads.is_multiple_of(kv_heads) {
        let reason = format!("{heads} attention heads do not share {kv_heads} key-value heads");
        return Err(Error::config(CONFIG, reason));
    }
    let head_dim = raw.head_dim.or(defaults.head_dim);
    if head_dim.is_none() && !raw.hidden_size.is_multiple_of(heads) {
        let reason = format!("hidden_size {} is not a multiple of {heads} heads", raw.hidden_size);
        return Err(Error::config(CONFIG, reason));
    }
    let head_dim = head_dim.unwrap_or(raw.hidden_size / heads);
    positive(&[("head_dim", head_dim)])?;
    let found = Heads { heads, kv_heads, head_dim };
    if !found.fit() {
        let reason = format!("{heads} heads of {head_dim} are no model's");
        return Err(Error::config(CONFIG, reason));
    }
    Ok(found)
}

/// Refuses what no arithmetic can be done with.
pub(super) fn sound(key: &str, value: f64) -> Result<f32, Error> {
    match value.is_finite() && value > 0.0 && (value as f32) > 0.0 {
        true => Ok(value as f32),
        false => Err(Error::config(CONFIG, format!("{key} is {value}"))),
    }
}

/// Which layers have a window, as families write it.
#[derive(Deserialize)]
pub(super) struct Windows {
    /// How many keys a token sees, its own included.
    pub(super) sliding_window: Option<usize>,
    /// A name for each layer.
    layer_types: Option<Vec<String>>,
}

impl Windows {
    /// Reads the keys; `absent` is the window where the file does not say. (Null says: none.)
    pub(super) fn read(json: &Value, absent: Option<usize>) -> Result<Self, Error> {
        let mut windows: Self = keys(json)?;
        if json.get("sliding_window").is_none() {
            windows.sliding_window = absent;
        }
        Ok(windows)
    }

    /// The same window in every layer, or in none.
    pub(super) fn everywhere(self) -> Result<Vec<LayerKind>, Error> {
        let slides = self.sliding_window.is_some();
        Self { layer_types: None, ..self }.kinds(1, |_| slides, |_, _| Some(0))
    }

    /// The kind of each layer. `slides` says which layers have the window where the file has
    /// no list; `rope`, which rotation a layer has, by its index and whether it slides.
    pub(super) fn kinds(
        &self,
        layers: usize,
        slides: impl Fn(usize) -> bool,
        rope: impl Fn(usize, bool) -> Option<usize>,
    ) -> Result<Vec<LayerKind>, Error> {
        if layers > LAYERS_MAX {
            return Err(Error::config(CONFIG, format!("num_hidden_layers is {layers}")));
        }
        if let Some(types) = self.layer_types.as_ref().filter(|types| types.len() != layers) {
            let reason = format!("layer_types names {} layers of {layers}", types.len());
            return Err(Error::config(CONFIG, reason));
        }
        let kind = |layer: usize| {
            let sliding = match self.layer_types.as_ref().map(|types| types[layer].as_str()) {
                None => slides(layer),
                Some("full_attention") => false,
                Some("sliding_attention") => true,
                Some(other) => {
                    let reason = format!("layer type '{other}' is not computed");
                    return Err(Error::config(CONFIG, reason));
                }
            };
            let window = match (sliding, self.sliding_window) {
                (false, _) => None,
                (true, Some(window)) if window > 0 => Some(window),
                (true, window) => {
                    let reason = format!("sliding_window is {}", shown(window));
                    return Err(Error::config(CONFIG, reason));
                }
            };
            Ok(LayerKind { window, rope: rope(layer, sliding) })
        };
        (0..layers).map(kind).collect()
    }
}

fn shown(window: Option<usize>) -> String {
    window.map_or_else(|| "absent".into(), |window| window.to_string())
}
