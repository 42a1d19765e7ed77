//! DeBERTa of the second and third version: disentangled attention.

use serde::Deserialize;
use serde_json::Value;

use super::{DEBERTA, Distances, EncoderConfig, Positions, keys};
use crate::Error;
use crate::activation::Activation;
use crate::attention::Reach;
use crate::config::raw::keys as read;
use crate::config::{CONFIG, positive};

/// As written; absent keys mean what transformers takes them for.
#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    embedding_size: Option<usize>,
    max_position_embeddings: usize,
    relative_attention: Option<bool>,
    share_att_key: Option<bool>,
    pos_att_type: Option<Kinds>,
    position_buckets: Option<i64>,
    max_relative_positions: Option<i64>,
    position_biased_input: Option<bool>,
    norm_rel_ebd: Option<String>,
    conv_kernel_size: Option<usize>,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    legacy: Option<bool>,
}

/// A list, or one string with bars between.
#[derive(Deserialize)]
#[serde(untagged)]
enum Kinds {
    One(String),
    Several(Vec<String>),
}

impl Kinds {
    fn has(&self, kind: &str) -> bool {
        match self {
            Self::One(kinds) => kinds.split('|').any(|it| it.trim() == kind),
            Self::Several(kinds) => kinds.iter().any(|it| it == kind),
        }
    }
}

/// More rows than any table of distances has.
const SPAN_MAX: usize = 1 << 16;

/// Reads DeBERTa's keys.
pub(super) fn deberta(json: &Value) -> Result<EncoderConfig, Error> {
    let raw: Raw = read(json)?;
    let refuse = |reason: String| Err(Error::config(CONFIG, reason));
    if raw.embedding_size.is_some_and(|size| size != raw.hidden_size) {
        return refuse("embedding_size other than hidden_size is not computed".into());
    }
    if raw.conv_kernel_size.unwrap_or(0) > 0 {
        return refuse("a convolution (conv_kernel_size) is not computed".into());
    }
    let kinds = raw.pos_att_type.as_ref();
    let is_both = kinds.is_some_and(|kinds| kinds.has("c2p") && kinds.has("p2c"));
    let is_third = raw.relative_attention == Some(true) && raw.share_att_key == Some(true);
    if !is_both || !is_third {
        return refuse(
            "relative_attention with share_att_key and pos_att_type of c2p and p2c is computed, \
             and nothing else"
                .into(),
        );
    }
    if raw.legacy == Some(false) {
        return refuse("legacy: false is not computed".into());
    }
    let normed = match raw.norm_rel_ebd.as_deref() {
        None | Some("none") => false,
        Some(kinds) if kinds.trim() == "layer_norm" => true,
        Some(kinds) => return refuse(format!("norm_rel_ebd '{kinds}' is not computed")),
    };
    // It has no token types unless it says so, unlike those whose keys it shares.
    let token_types = raw.type_vocab_size.unwrap_or(0);
    let mut plain = json.clone();
    if let Some(keys) = plain.as_object_mut() {
        keys.insert("type_vocab_size".into(), token_types.max(1).into());
        keys.insert("layer_norm_eps".into(), raw.layer_norm_eps.unwrap_or(1e-7).into());
    }
    let config = keys::plain(&plain, &DEBERTA, None)?;
    let learned = config.learned().filter(|_| raw.position_biased_input.unwrap_or(true));
    let distances = Distances { reach: reach(&raw)?, normed };
    Ok(EncoderConfig {
        token_types,
        tells_pairs: token_types > 1,
        positions: Positions::Disentangled(learned, distances),
        ..config
    })
}

/// How distances are told apart.
fn reach(raw: &Raw) -> Result<Reach, Error> {
    let counted = |number: Option<i64>| {
        number.and_then(|number| usize::try_from(number).ok()).filter(|number| *number > 0)
    };
    let farthest = counted(raw.max_relative_positions).unwrap_or(raw.max_position_embeddings);
    let buckets = counted(raw.position_buckets);
    let span = buckets.unwrap_or(farthest);
    positive(&[("max_relative_positions", farthest)])?;
    if span > SPAN_MAX {
        return Err(Error::config(CONFIG, format!("{span} distances are no model's")));
    }
    // Their logarithms are taken over the middle one's.
    if buckets.is_some_and(|buckets| buckets < 4 || farthest <= buckets / 2 + 1) {
        let reason = format!("position_buckets {span} do not divide {farthest} distances");
        return Err(Error::config(CONFIG, reason));
    }
    Ok(Reach { span, buckets, farthest })
}

/// What bends the numbers in its pooler.
pub(super) fn pooler_activation(json: &Value) -> Result<Activation, Error> {
    #[derive(Deserialize)]
    struct Pooler {
        pooler_hidden_act: Option<String>,
        pooler_hidden_size: Option<usize>,
        hidden_size: usize,
    }
    let pooler: Pooler = read(json)?;
    if pooler.pooler_hidden_size.is_some_and(|size| size != pooler.hidden_size) {
        return Err(Error::config(
            CONFIG,
            "pooler_hidden_size other than hidden_size is not computed",
        ));
    }
    Activation::named(pooler.pooler_hidden_act.as_deref().unwrap_or("gelu"))
}
