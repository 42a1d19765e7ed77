//! `config.json` of the BERT architecture.

use serde::Deserialize;

use super::{CONFIG, parse, positive};
use crate::Error;
use crate::activation::Activation;
use crate::attention::Heads;
use crate::files::Files;

/// A BERT encoder's shape.
#[derive(Debug, Clone)]
pub(crate) struct BertConfig {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: Heads,
    pub(crate) vocab: usize,
    pub(crate) context: usize,
    pub(crate) token_types: usize,
    pub(crate) norm_epsilon: f32,
    pub(crate) activation: Activation,
}

/// As written; absent keys mean what transformers takes them for.
#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
}

impl BertConfig {
    pub(crate) fn read(files: &Files) -> Result<Self, Error> {
        let raw: Raw = parse(files, CONFIG)?;
        let (hidden, heads) = (raw.hidden_size, raw.num_attention_heads);
        let token_types = raw.type_vocab_size.unwrap_or(2);
        positive(&[
            ("hidden_size", hidden),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", heads),
            ("vocab_size", raw.vocab_size),
            ("max_position_embeddings", raw.max_position_embeddings),
            ("type_vocab_size", token_types),
        ])?;
        if !hidden.is_multiple_of(heads) {
            let reason = format!("hidden_size {hidden} is not a multiple of {heads} heads");
            return Err(Error::config(CONFIG, reason));
        }
        if let Some(kind) = raw.position_embedding_type.filter(|kind| kind != "absolute") {
            let reason = format!("position_embedding_type '{kind}' is not computed; absolute is");
            return Err(Error::config(CONFIG, reason));
        }
        if raw.is_decoder == Some(true) {
            return Err(Error::config(CONFIG, "BERT as a decoder is not computed"));
        }
        let norm_epsilon = raw.layer_norm_eps.unwrap_or(1e-12);
        if !norm_epsilon.is_finite() || norm_epsilon <= 0.0 {
            return Err(Error::config(CONFIG, format!("layer_norm_eps is {norm_epsilon}")));
        }
        Ok(Self {
            hidden,
            intermediate: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: Heads { heads, kv_heads: heads, head_dim: hidden / heads },
            vocab: raw.vocab_size,
            context: raw.max_position_embeddings,
            token_types,
            norm_epsilon: norm_epsilon as f32,
            activation: Activation::named(raw.hidden_act.as_deref().unwrap_or("gelu"))?,
        })
    }
}
