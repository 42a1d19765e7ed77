//! ModernBERT: norms before the blocks, rotations, windows in most layers, gated feed-forward
//! blocks (Warner et al. 2024).

use serde::Deserialize;
use serde_json::Value;

use super::{Biases, EncoderConfig, MODERN, Positions, Rotated, Selects, keys};
use crate::Error;
use crate::activation::Activation;
use crate::config::raw::{keys as read, sound};
use crate::config::{CONFIG, positive};
use crate::rope::{RopeConfig, RopeScaling};

/// As written; absent keys mean what transformers takes them for.
#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    norm_eps: Option<f64>,
    norm_bias: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_activation: Option<String>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    global_attn_every_n_layers: Option<usize>,
    local_attention: Option<usize>,
    layer_types: Option<Vec<String>>,
    rope_parameters: Option<Ropes>,
    rope_scaling: Option<Value>,
}

/// The rotations as newer files write them, by the kind of layer.
#[derive(Deserialize)]
struct Ropes {
    full_attention: Option<Parameters>,
    sliding_attention: Option<Parameters>,
}

#[derive(Deserialize)]
struct Parameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

/// Reads ModernBERT's keys.
pub(super) fn modern(json: &Value) -> Result<EncoderConfig, Error> {
    let raw: Raw = read(json)?;
    let context = raw.max_position_embeddings.unwrap_or(8192);
    positive(&[
        ("hidden_size", raw.hidden_size),
        ("intermediate_size", raw.intermediate_size),
        ("vocab_size", raw.vocab_size),
        ("max_position_embeddings", context),
    ])?;
    let layers = keys::layers(raw.num_hidden_layers)?;
    let heads = keys::heads(raw.hidden_size, raw.num_attention_heads)?;
    if !heads.head_dim.is_multiple_of(2) {
        let reason = format!("heads of {} numbers cannot be rotated", heads.head_dim);
        return Err(Error::config(CONFIG, reason));
    }
    let rope = |theta: f32| RopeConfig {
        theta,
        dims: heads.head_dim,
        scaling: RopeScaling::None,
        factor: 1.0,
        neighbours: false,
    };
    let [global, local] = thetas(&raw, json)?;
    Ok(EncoderConfig {
        hidden: raw.hidden_size,
        embedding: raw.hidden_size,
        intermediate: raw.intermediate_size,
        layers,
        times: 1,
        heads,
        vocab: raw.vocab_size,
        context,
        positions: Positions::Rotated(Rotated {
            ropes: [rope(global), rope(local)],
            reach: reach(&raw, layers)?,
        }),
        token_types: 0,
        tells_pairs: false,
        norm_epsilon: sound("norm_eps", raw.norm_eps.unwrap_or(1e-5))?,
        activation: Activation::named(raw.hidden_activation.as_deref().unwrap_or("gelu"))?,
        gated: true,
        norms_first: true,
        biases: Biases {
            attention: raw.attention_bias.unwrap_or(false),
            feed_forward: raw.mlp_bias.unwrap_or(false),
            norms: raw.norm_bias.unwrap_or(false),
        },
        names: &MODERN,
    })
}

/// The bases of the rotations where layers see all, and in the others.
fn thetas(raw: &Raw, json: &Value) -> Result<[f32; 2], Error> {
    if raw.rope_scaling.as_ref().is_some_and(|scaling| !scaling.is_null()) {
        return Err(Error::config(CONFIG, "rope_scaling is not computed for ModernBERT"));
    }
    let mut global = raw.global_rope_theta.unwrap_or(160_000.0);
    // Null is not absent: it says that there is one for all.
    let is_shared = json.get("local_rope_theta").is_some_and(Value::is_null);
    let mut local = raw.local_rope_theta.unwrap_or(if is_shared { global } else { 10_000.0 });
    if let Some(ropes) = &raw.rope_parameters {
        for (rope, theta) in
            [(&ropes.full_attention, &mut global), (&ropes.sliding_attention, &mut local)]
        {
            let Some(rope) = rope else { continue };
            if let Some(kind) = rope.rope_type.as_deref().filter(|kind| *kind != "default") {
                let reason = format!("rope_type '{kind}' is not computed for ModernBERT");
                return Err(Error::config(CONFIG, reason));
            }
            *theta = rope.rope_theta.unwrap_or(*theta);
        }
    }
    Ok([sound("global_rope_theta", global)?, sound("local_rope_theta", local)?])
}

/// How far each layer sees.
fn reach(raw: &Raw, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    let every = raw.global_attn_every_n_layers.unwrap_or(3);
    let window = raw.local_attention.unwrap_or(128);
    positive(&[("global_attn_every_n_layers", every), ("local_attention", window)])?;
    if let Some(types) = raw.layer_types.as_ref().filter(|types| types.len() != layers) {
        let reason = format!("layer_types names {} layers of {layers}", types.len());
        return Err(Error::config(CONFIG, reason));
    }
    (0..layers)
        .map(|layer| {
            let sees_all = match raw.layer_types.as_ref().map(|types| types[layer].as_str()) {
                None => layer % every == 0,
                Some("full_attention") => true,
                Some("sliding_attention") => false,
                Some(other) => {
                    let reason = format!("layer type '{other}' is not computed");
                    return Err(Error::config(CONFIG, reason));
                }
            };
            Ok((!sees_all).then_some(window / 2))
        })
        .collect()
}

/// What its classifiers read.
pub(super) fn selects(json: &Value) -> Result<Selects, Error> {
    match read::<Head>(json)?.classifier_pooling.as_deref() {
        None | Some("cls") => Ok(Selects::First),
        Some("mean") => Ok(Selects::Mean),
        Some(other) => {
            let reason = format!("classifier_pooling '{other}' is not computed; cls and mean are");
            Err(Error::config(CONFIG, reason))
        }
    }
}

/// What bends the numbers in its heads.
pub(super) fn classifier_activation(json: &Value) -> Result<Activation, Error> {
    Activation::named(read::<Head>(json)?.classifier_activation.as_deref().unwrap_or("gelu"))
}

/// Whether its heads' first projection has a bias.
pub(super) fn classifier_bias(json: &Value) -> Result<bool, Error> {
    Ok(read::<Head>(json)?.classifier_bias.unwrap_or(false))
}

#[derive(Deserialize)]
struct Head {
    classifier_pooling: Option<String>,
    classifier_activation: Option<String>,
    classifier_bias: Option<bool>,
}
