//! What the one decoder computes, as data. A family is a mapping from its `config.json` and
//! its tensors' names to this; nothing is computed for one family alone.

use crate::activation::Activation;
use crate::attention::Heads;
use crate::rope::RopeConfig;

/// A decoder's shape and arithmetic.
#[derive(Debug, Clone)]
pub(crate) struct DecoderConfig {
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Width between the projections of a feed-forward block.
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: Heads,
    pub(crate) vocab: usize,
    /// The longest sequence that the model is for, in tokens.
    pub(crate) context: usize,
    /// How layers differ, in turns: layer `i` is of kind `i` modulo their number.
    pub(crate) kinds: Vec<LayerKind>,
    /// The rotations that kinds of layers refer to.
    pub(crate) ropes: Vec<RopeConfig>,
    /// Whether a tensor divides each of their frequencies.
    pub(crate) rope_factors: bool,
    pub(crate) norm: NormKind,
    pub(crate) norm_epsilon: f32,
    /// Whether both blocks of a layer read its input, and their results are added together.
    pub(crate) parallel: bool,
    /// What embeddings are multiplied by.
    pub(crate) embedding_scale: Option<f32>,
    /// What queries are multiplied by.
    pub(crate) query_scale: f32,
    /// Scores are bent to stay within plus and minus this.
    pub(crate) score_cap: Option<f32>,
    /// Logits are bent to stay within plus and minus this.
    pub(crate) logit_cap: Option<f32>,
    pub(crate) qkv_bias: bool,
    pub(crate) attention_out_bias: bool,
    pub(crate) mlp_bias: bool,
    /// Whether queries, keys and values of one head lie together in their projection's rows.
    pub(crate) interleaved: bool,
    /// Whether the activation of one half of the first projection multiplies the other half.
    pub(crate) gated: bool,
    pub(crate) activation: Activation,
    /// Feed-forward blocks of which a token uses some, where layers have them.
    pub(crate) experts: Option<Experts>,
    /// Whether the embeddings serve as the head.
    pub(crate) tied: bool,
    pub(crate) names: &'static Names,
}

/// The feed-forward blocks of sparse layers: a router gives each token a weight for each of them, and
/// the heaviest are computed. Gated, without biases.
#[derive(Debug, Clone)]
pub(crate) struct Experts {
    /// How many a layer has.
    pub(crate) count: usize,
    /// How many of them a token uses.
    pub(crate) used: usize,
    /// Width between an expert's projections.
    pub(crate) intermediate: usize,
    /// Whether the weights of those that a token uses are made to add up to one.
    pub(crate) normalised: bool,
    /// The first sparse layer's index plus one; every so manieth is sparse.
    pub(crate) every: usize,
    /// Layers that are not, whatever their index.
    pub(crate) dense: Vec<usize>,
    pub(crate) names: &'static ExpertNames,
}

/// How a family calls the tensors of sparse layers.
#[derive(Debug)]
pub(crate) struct ExpertNames {
    pub(crate) router: &'static str,
    /// Before the number of an expert.
    pub(crate) experts: &'static str,
    /// Gate and up.
    pub(crate) up: [&'static str; 2],
    pub(crate) down: &'static str,
}

/// What may differ from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerKind {
    /// How many keys a token sees at most, its own included.
    pub(crate) window: Option<usize>,
    /// Which rotation queries and keys get, if any.
    pub(crate) rope: Option<usize>,
}

/// What a norm computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// Divided by the root mean square, times a weight.
    Rms,
    /// The same, but the files hold how much the weight differs from one.
    RmsAroundOne,
    /// Mean zero and deviation one, times a weight, plus a bias.
    Layer,
}

/// How a family calls its tensors. What has no name is not there.
#[derive(Debug)]
pub(crate) struct Names {
    /// Before every name but the head's: as a language model, and as the bare decoder.
    pub(crate) prefixes: [&'static str; 2],
    pub(crate) embeddings: &'static str,
    /// A vector for each position, added to the embeddings.
    pub(crate) positions: Option<&'static str>,
    pub(crate) layers: &'static str,
    pub(crate) attention_norm: &'static str,
    /// Queries, keys and values: one name each, or one for all.
    pub(crate) qkv: &'static [&'static str],
    /// Norms of each query head and each key head.
    pub(crate) head_norms: Option<[&'static str; 2]>,
    pub(crate) attention_out: &'static str,
    /// Norms of what the attention and the feed-forward block add.
    pub(crate) result_norms: Option<[&'static str; 2]>,
    /// Absent where the feed-forward block reads what the attention's norm gave.
    pub(crate) feed_forward_norm: Option<&'static str>,
    /// Gate and up, one name each or one for both; or up alone.
    pub(crate) up: &'static [&'static str],
    pub(crate) down: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) head: &'static str,
    /// Whether projections lie in the files as `[inputs, outputs]`.
    pub(crate) transposed: bool,
}

/// The names that most families share.
pub(crate) const LLAMA_NAMES: Names = Names {
    prefixes: ["model.", ""],
    embeddings: "embed_tokens",
    positions: None,
    layers: "layers",
    attention_norm: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    head_norms: None,
    attention_out: "self_attn.o_proj",
    result_norms: None,
    feed_forward_norm: Some("post_attention_layernorm"),
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    norm: "norm",
    head: "lm_head",
    transposed: false,
};

impl DecoderConfig {
    /// What is particular to a layer.
    pub(crate) fn kind(&self, layer: usize) -> LayerKind {
        self.kinds[layer % self.kinds.len()]
    }

    /// The experts of a layer, where it has them.
    pub(crate) fn experts(&self, layer: usize) -> Option<&Experts> {
        let is_sparse = |experts: &&Experts| {
            (layer + 1).is_multiple_of(experts.every) && !experts.dense.contains(&layer)
        };
        self.experts.as_ref().filter(is_sparse)
    }

    /// The least and the most inputs of a projection, and the most outputs.
    pub(crate) fn extents(&self) -> [usize; 3] {
        let inner = self.experts.as_ref().map_or(self.intermediate, |it| it.intermediate);
        let inputs = [self.hidden, self.intermediate, inner, self.heads.query_width()];
        let outputs =
            [self.vocab, self.hidden, self.up_width(), 2 * inner, self.heads.packed_width()];
        let [least, most] = [inputs.iter().min(), inputs.iter().max()];
        [least, most, outputs.iter().max()].map(|width| width.copied().unwrap_or(1))
    }

    /// Numbers per token of a feed-forward block's first projection.
    pub(crate) fn up_width(&self) -> usize {
        if self.gated { 2 * self.intermediate } else { self.intermediate }
    }
}
