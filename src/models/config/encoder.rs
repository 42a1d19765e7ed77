//! What an encoder computes, whatever its family: shapes, names, and the head behind it.

use crate::activation::Activation;
use crate::attention::{Heads, Reach};
use crate::rope::RopeConfig;

mod deberta;
pub(crate) mod families;
mod head;
mod keys;
mod modern;

pub(crate) use head::{Dense, HeadConfig, Selects, Spare, Squash};

/// An encoder's shape.
#[derive(Debug, Clone)]
pub(crate) struct EncoderConfig {
    pub(crate) hidden: usize,
    /// Numbers of a token's vector before the first layer; where they are not `hidden`, they are
    /// projected.
    pub(crate) embedding: usize,
    pub(crate) intermediate: usize,
    /// Layers with weights of their own.
    pub(crate) layers: usize,
    /// How often each of them is computed before the next.
    pub(crate) times: usize,
    pub(crate) heads: Heads,
    pub(crate) vocab: usize,
    /// The longest sequence.
    pub(crate) context: usize,
    pub(crate) positions: Positions,
    /// Vectors that tell the texts of a pair apart; zero where it has none.
    pub(crate) token_types: usize,
    /// Whether second texts have the second of them.
    pub(crate) tells_pairs: bool,
    pub(crate) norm_epsilon: f32,
    pub(crate) activation: Activation,
    /// Whether the feed-forward block's first projection has a gate and what it lets through.
    pub(crate) gated: bool,
    /// Whether norms stand before the blocks, and one behind the last layer.
    pub(crate) norms_first: bool,
    pub(crate) biases: Biases,
    pub(crate) names: &'static Names,
}

/// How tokens learn their places.
#[derive(Debug, Clone)]
pub(crate) enum Positions {
    /// A vector for each, added to the embeddings.
    Learned(Learned),
    /// The same, and a number for each head and bucket of distances, added to the products of
    /// queries and keys.
    Bucketed(Learned),
    /// What each layer makes of distances is multiplied by queries and keys. A vector for each
    /// position may be added to the embeddings, too.
    Disentangled(Option<Learned>, Distances),
    /// Queries and keys are rotated, in layers that see all and in those with a window.
    Rotated(Rotated),
}

/// A table of positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Learned {
    pub(crate) rows: usize,
    /// The token that has no place: its row is its own number, and places are counted from the
    /// next. `None`: from the first row on, every token has one.
    pub(crate) padding: Option<u32>,
}

/// A table of distances, before layers make something of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Distances {
    pub(crate) reach: Reach,
    /// Whether it is normed.
    pub(crate) normed: bool,
}

/// Rotations, and layers that see all or a window.
#[derive(Debug, Clone)]
pub(crate) struct Rotated {
    /// Of the layers that see all, and of the others.
    pub(crate) ropes: [RopeConfig; 2],
    /// For each layer, how far it sees to each side; `None`: all.
    pub(crate) reach: Vec<Option<usize>>,
}

/// Which parts have biases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Biases {
    pub(crate) attention: bool,
    pub(crate) feed_forward: bool,
    pub(crate) norms: bool,
}

impl Biases {
    pub(crate) const ALL: Self = Self { attention: true, feed_forward: true, norms: true };
}

impl EncoderConfig {
    /// The table of positions, where there is one.
    pub(crate) fn learned(&self) -> Option<Learned> {
        match &self.positions {
            Positions::Learned(learned) | Positions::Bucketed(learned) => Some(*learned),
            Positions::Disentangled(learned, _) => *learned,
            Positions::Rotated(_) => None,
        }
    }

    /// Numbers per token of a feed-forward block's first projection.
    pub(crate) fn up_width(&self) -> usize {
        if self.gated { 2 * self.intermediate } else { self.intermediate }
    }
}

/// How a family calls its tensors. What has no name is not there.
#[derive(Debug)]
pub(crate) struct Names {
    /// Before every name but the head's: as part of a whole, and as the bare encoder.
    pub(crate) prefixes: [&'static str; 2],
    pub(crate) words: &'static str,
    pub(crate) positions: Option<&'static str>,
    pub(crate) token_types: Option<&'static str>,
    pub(crate) embedding_norm: &'static str,
    /// From the embeddings' width to the layers'.
    pub(crate) projection: Option<&'static str>,
    /// A number for each bucket of distances and head, or a vector for each distance.
    pub(crate) distances: Option<&'static str>,
    pub(crate) distance_norm: Option<&'static str>,
    pub(crate) layers: &'static str,
    /// Queries, keys and values: one name each, or one for all.
    pub(crate) qkv: &'static [&'static str],
    pub(crate) attention_out: &'static str,
    pub(crate) attention_norm: &'static str,
    /// Whether the first layer has no norm of its own, its input being normed already.
    pub(crate) first_unnormed: bool,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) feed_forward_norm: &'static str,
    pub(crate) final_norm: Option<&'static str>,
}

/// The names that BERT has and many share.
pub(crate) const BERT: Names = Names {
    prefixes: ["", "bert."],
    words: "embeddings.word_embeddings",
    positions: Some("embeddings.position_embeddings"),
    token_types: Some("embeddings.token_type_embeddings"),
    embedding_norm: "embeddings.LayerNorm",
    projection: None,
    distances: None,
    distance_norm: None,
    layers: "encoder.layer",
    qkv: &["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    first_unnormed: false,
    up: "intermediate.dense",
    down: "output.dense",
    feed_forward_norm: "output.LayerNorm",
    final_norm: None,
};

/// RoBERTa's and XLM-RoBERTa's.
pub(crate) const ROBERTA: Names = Names { prefixes: ["", "roberta."], ..BERT };

/// ELECTRA's.
pub(crate) const ELECTRA: Names =
    Names { prefixes: ["", "electra."], projection: Some("embeddings_project"), ..BERT };

/// ALBERT's.
pub(crate) const ALBERT: Names = Names {
    prefixes: ["", "albert."],
    projection: Some("encoder.embedding_hidden_mapping_in"),
    layers: "encoder.albert_layer_groups",
    qkv: &[
        "albert_layers.0.attention.query",
        "albert_layers.0.attention.key",
        "albert_layers.0.attention.value",
    ],
    attention_out: "albert_layers.0.attention.dense",
    attention_norm: "albert_layers.0.attention.LayerNorm",
    up: "albert_layers.0.ffn",
    down: "albert_layers.0.ffn_output",
    feed_forward_norm: "albert_layers.0.full_layer_layer_norm",
    ..BERT
};

/// DistilBERT's.
pub(crate) const DISTILBERT: Names = Names {
    prefixes: ["", "distilbert."],
    token_types: None,
    layers: "transformer.layer",
    qkv: &["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    attention_out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    feed_forward_norm: "output_layer_norm",
    ..BERT
};

/// MPNet's.
pub(crate) const MPNET: Names = Names {
    prefixes: ["", "mpnet."],
    token_types: None,
    distances: Some("encoder.relative_attention_bias"),
    qkv: &["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attention_out: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..BERT
};

/// DeBERTa's of the second and third version.
pub(crate) const DEBERTA: Names = Names {
    prefixes: ["", "deberta."],
    distances: Some("encoder.rel_embeddings"),
    distance_norm: Some("encoder.LayerNorm"),
    qkv: &["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"],
    ..BERT
};

/// ModernBERT's.
pub(crate) const MODERN: Names = Names {
    prefixes: ["", "model."],
    words: "embeddings.tok_embeddings",
    positions: None,
    token_types: None,
    embedding_norm: "embeddings.norm",
    projection: None,
    distances: None,
    distance_norm: None,
    layers: "layers",
    qkv: &["attn.Wqkv"],
    attention_out: "attn.Wo",
    attention_norm: "attn_norm",
    first_unnormed: true,
    up: "mlp.Wi",
    down: "mlp.Wo",
    feed_forward_norm: "mlp_norm",
    final_norm: Some("final_norm"),
};
