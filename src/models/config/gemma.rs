//! Gemma: norms around one, scaled embeddings, the tanh form of GELU; from 2 on norms of the
//! blocks' results and windows in turns, with soft caps (2) or norms of queries and keys (3).

use serde::Deserialize;
use serde_json::Value;

use super::CONFIG;
use super::decoder::{DecoderConfig, LLAMA_NAMES, Names, NormKind};
use super::raw::{Defaults, Windows, keys, plain, sound};
use super::scaling::{parameters, unscaled};
use crate::Error;
use crate::activation::Activation;

const GEMMA2_NAMES: Names = Names {
    result_norms: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
    feed_forward_norm: Some("pre_feedforward_layernorm"),
    ..LLAMA_NAMES
};

pub(super) const GEMMA3_NAMES: Names =
    Names { head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..GEMMA2_NAMES };

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    head_dim: Some(256),
    context: 8192,
    tied: true,
    ..Defaults::LLAMA
};

#[derive(Deserialize)]
struct Keys {
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    query_pre_attn_scalar: Option<f64>,
    sliding_window_pattern: Option<usize>,
    rope_local_base_freq: Option<f64>,
    rope_parameters: Option<Value>,
    #[serde(default)]
    use_bidirectional_attention: bool,
}

/// What all of them have in common.
fn common(json: &Value, defaults: &Defaults) -> Result<(Keys, DecoderConfig), Error> {
    let extra: Keys = keys(json)?;
    let config = plain(json, defaults)?;
    let config = DecoderConfig {
        norm: NormKind::RmsAroundOne,
        embedding_scale: Some((config.hidden as f32).sqrt()),
        mlp_bias: false,
        activation: activation(extra.hidden_activation.as_deref())?,
        ..config
    };
    Ok((extra, config))
}

fn activation(name: Option<&str>) -> Result<Activation, Error> {
    Activation::named(name.unwrap_or("gelu_pytorch_tanh"))
}

/// Gemma 1.
pub(super) fn gemma(json: &Value) -> Result<DecoderConfig, Error> {
    let (extra, config) = common(json, &Defaults { kv_heads: Some(16), ..DEFAULTS })?;
    one_way(&extra)?;
    // Its files may have both keys, of which this is the one that counts.
    Ok(DecoderConfig { activation: activation(extra.hidden_act.as_deref())?, ..config })
}

/// Gemma 2.
pub(super) fn gemma2(json: &Value) -> Result<DecoderConfig, Error> {
    let (extra, config) = common(json, &DEFAULTS)?;
    one_way(&extra)?;
    Ok(DecoderConfig {
        kinds: Windows::read(json, Some(4096))?.kinds(
            config.layers,
            |layer| layer % 2 == 0,
            |_, _| Some(0),
        )?,
        query_scale: query_scale(&extra)?,
        score_cap: cap(json, "attn_logit_softcapping", Some(50.0))?,
        logit_cap: cap(json, "final_logit_softcapping", Some(30.0))?,
        names: &GEMMA2_NAMES,
        ..config
    })
}

/// Gemma 3, the text decoder.
pub(super) fn gemma3(json: &Value) -> Result<DecoderConfig, Error> {
    if json.get("text_config").is_some() {
        return Err(Error::NotServed {
            what: "a Gemma 3 that reads images, too, for vectors or labels (text_config in \
                   config.json) is"
                .into(),
            advice: "; Gemma3ForConditionalGeneration is, and Gemma3TextModel, Gemma3ForCausalLM \
                     and Gemma3TextForSequenceClassification, which read text alone",
        });
    }
    let defaults = Defaults { context: 131_072, rope_theta: 1_000_000.0, ..DEFAULTS };
    let (extra, mut config) = common(json, &defaults)?;
    if cap(json, "attn_logit_softcapping", None)?.is_some() {
        return Err(Error::config(CONFIG, "attn_logit_softcapping is not computed for Gemma 3"));
    }
    let newer = extra.rope_parameters.as_ref().map(|rope| parameters(rope, "sliding_attention"));
    let theta = newer.and_then(|rope| rope.get("rope_theta")?.as_f64());
    let theta = theta.or(extra.rope_local_base_freq).unwrap_or(10_000.0);
    let local = unscaled(sound("rope_local_base_freq", theta)?, config.ropes[0].dims);
    config.ropes.push(local);
    let pattern = extra.sliding_window_pattern.unwrap_or(6);
    super::positive(&[("sliding_window_pattern", pattern)])?;
    let slides = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    let sees_behind = extra.use_bidirectional_attention;
    let mut windows = Windows::read(json, Some(4096))?;
    if sees_behind {
        // The key is of both sides together.
        windows.sliding_window = windows.sliding_window.map(|window| window / 2 + 1);
    }
    Ok(DecoderConfig {
        sees_behind,
        kinds: windows.kinds(config.layers, slides, |_, slides| Some(slides.into()))?,
        query_scale: query_scale(&extra)?,
        logit_cap: cap(json, "final_logit_softcapping", None)?,
        names: &GEMMA3_NAMES,
        ..config
    })
}

/// Only the third version has a mask for it.
fn one_way(extra: &Keys) -> Result<(), Error> {
    match extra.use_bidirectional_attention {
        true => Err(Error::config(CONFIG, "use_bidirectional_attention is Gemma 3's alone")),
        false => Ok(()),
    }
}

fn query_scale(extra: &Keys) -> Result<f32, Error> {
    let scalar = sound("query_pre_attn_scalar", extra.query_pre_attn_scalar.unwrap_or(256.0))?;
    Ok(1.0 / scalar.sqrt())
}

/// A soft cap: `absent` if the file has no such key, none if it is null.
fn cap(json: &Value, key: &str, absent: Option<f32>) -> Result<Option<f32>, Error> {
    match json.get(key) {
        None => Ok(absent),
        Some(Value::Null) => Ok(None),
        Some(value) => sound(key, value.as_f64().unwrap_or(f64::NAN)).map(Some),
    }
}
