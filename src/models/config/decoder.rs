//! What the one decoder computes, as data. A family is a mapping from its `config.json` and
//! its tensors' names to this; nothing is computed for one family alone.

use serde_json::Value;

use crate::activation::Activation;
use crate::attention::Heads;
use crate::config::sentence::Dense;
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
    /// Rows of learned positions before that of a sequence's first token.
    pub(crate) positions_before: usize,
    /// What queries are multiplied by.
    pub(crate) query_scale: f32,
    /// Scores are bent to stay within plus and minus this.
    pub(crate) score_cap: Option<f32>,
    /// What logits are multiplied by.
    pub(crate) logit_scale: Option<f32>,
    /// Logits are then bent to stay within plus and minus this.
    pub(crate) logit_cap: Option<f32>,
    /// What both blocks' results are multiplied by before they are added.
    pub(crate) residual_scale: Option<f32>,
    /// Queries, keys and values are cut off at plus and minus this, behind their norms.
    pub(crate) qkv_limit: Option<f32>,
    /// Whether the norms of queries and of keys are of all heads at once, not of each.
    pub(crate) norms_across_heads: bool,
    pub(crate) qkv_bias: bool,
    pub(crate) attention_out_bias: bool,
    pub(crate) mlp_bias: bool,
    pub(crate) head_bias: bool,
    /// Whether the queries of one key head lie together with it and its values in their projection's
    /// rows.
    pub(crate) interleaved: bool,
    /// Whether the activation of one half of the first projection multiplies the other half.
    pub(crate) gated: bool,
    pub(crate) activation: Activation,
    /// Feed-forward blocks of which a token uses some, where layers have them.
    pub(crate) experts: Option<Experts>,
    /// Whether the embeddings serve as the head.
    pub(crate) tied: bool,
    /// Whether tokens see those behind them, too. Windows then reach as far to both sides.
    pub(crate) sees_behind: bool,
    /// Where it answers with no tokens.
    pub(crate) texts: Texts,
    pub(crate) names: &'static Names,
}

/// What is made of whole texts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    /// Labels that its head, [`LABELS_HEAD`], has a number for each; it then has no other.
    pub(crate) labels: Option<usize>,
    /// The token that only fills: heads for labels read the last one that is another.
    pub(crate) padding: Option<u32>,
    /// Projections of pooled vectors.
    pub(crate) dense: Vec<Dense>,
}

/// What all families call a head for labels.
pub(crate) const LABELS_HEAD: &str = "score";

impl Texts {
    /// What a configuration says of itself.
    pub(crate) fn read(json: &Value) -> Self {
        let padding = json.get("pad_token_id").and_then(Value::as_u64);
        Self { padding: padding.and_then(|id| u32::try_from(id).ok()), ..Self::default() }
    }

    /// Whether the answers are tokens' vectors as they are, or pooled.
    pub(crate) fn are_vectors(&self) -> bool {
        self.labels.is_none() && self.dense.is_empty()
    }

    /// Numbers of an answer, where `hidden` are pooled.
    pub(crate) fn width(&self, hidden: usize) -> usize {
        let projected = self.dense.last().map(|dense| dense.outputs);
        self.labels.or(projected).unwrap_or(hidden)
    }

    /// The most numbers that a projection of a text takes and gives.
    pub(crate) fn widest(&self) -> usize {
        let both = self.dense.iter().map(|dense| dense.inputs + dense.outputs);
        both.chain(self.labels).max().unwrap_or(0)
    }
}

/// The feed-forward blocks of sparse layers: a router gives each token a weight for each of them, and
/// the heaviest are computed. Gated.
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
    /// Width between the projections of the expert that all tokens use beside them, where there is one.
    pub(crate) shared: Option<usize>,
    /// Whether routers and experts have biases.
    pub(crate) biased: bool,
    /// Gates are cut off above this; what they multiply at plus and minus this, and is one more then.
    pub(crate) limit: Option<f32>,
    /// How the tensors lie that hold all experts of a layer, where the names have such.
    pub(crate) lie: Lie,
    /// The first sparse layer's index plus one; every so manieth is sparse.
    pub(crate) every: usize,
    /// Layers that are not, whatever their index.
    pub(crate) dense: Vec<usize>,
    pub(crate) names: &'static ExpertNames,
}

impl Experts {
    /// So called, in all layers, and the usual of everything else; how many there are and how wide is
    /// to be said.
    pub(crate) fn of(names: &'static ExpertNames) -> Self {
        Self {
            count: 0,
            used: 0,
            intermediate: 0,
            normalised: true,
            shared: None,
            biased: false,
            limit: None,
            lie: Lie::Rows,
            every: 1,
            dense: Vec::new(),
            names,
        }
    }
}

/// How tensors that hold all experts of a layer lie in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// `[experts, outputs, inputs]`.
    Rows,
    /// `[experts, inputs, outputs]`, of which the outputs are gate and up in turns.
    ColumnsInTurns,
    /// As MXFP4: `_blocks` of `[experts, outputs, inputs / 32, 16]` and `_scales` of
    /// `[experts, outputs, inputs / 32]`, of which the outputs are gate and up in turns.
    BlocksInTurns,
}

/// How a family calls the tensors of sparse layers.
#[derive(Debug)]
pub(crate) struct ExpertNames {
    pub(crate) router: &'static str,
    /// Before the number of an expert.
    pub(crate) experts: &'static str,
    /// Gate and up, one name each or one for both.
    pub(crate) up: &'static [&'static str],
    pub(crate) down: &'static str,
    /// The expert of all tokens, and what says by its sigmoid how much of it a token gets, unless it
    /// gets all.
    pub(crate) shared: Option<(&'static str, Option<&'static str>)>,
    /// Where the files hold all experts of a layer in one tensor.
    pub(crate) stacked: Option<Stacked>,
}

/// The names of tensors that hold all experts of a layer: each a weight and, of biased experts, a bias.
#[derive(Debug)]
pub(crate) struct Stacked {
    /// Gate and up in one.
    pub(crate) up: [&'static str; 2],
    pub(crate) down: [&'static str; 2],
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
    /// The same without a bias.
    LayerUnbiased,
    /// The same with neither.
    LayerBare,
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
    /// Absent where blocks read the residual stream as it is.
    pub(crate) attention_norm: Option<&'static str>,
    /// Queries, keys and values: one name each, or one for all.
    pub(crate) qkv: &'static [&'static str],
    /// Norms of queries and of keys.
    pub(crate) head_norms: Option<[&'static str; 2]>,
    /// What each query head's softmax has beside its keys: a score whose value is nothing.
    pub(crate) sinks: Option<&'static str>,
    pub(crate) attention_out: &'static str,
    /// Norms of what the attention and the feed-forward block add.
    pub(crate) result_norms: Option<[&'static str; 2]>,
    /// Absent where the feed-forward block reads what the attention does.
    pub(crate) feed_forward_norm: Option<&'static str>,
    /// Gate and up, one name each or one for both; or up alone.
    pub(crate) up: &'static [&'static str],
    pub(crate) down: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) head: &'static str,
    /// The head where the second prefix is before the others, if it has another name there.
    pub(crate) head_beside: Option<&'static str>,
    /// Whether projections lie in the files as `[inputs, outputs]`.
    pub(crate) transposed: bool,
}

/// The names that most families share.
pub(crate) const LLAMA_NAMES: Names = Names {
    prefixes: ["model.", ""],
    embeddings: "embed_tokens",
    positions: None,
    layers: "layers",
    attention_norm: Some("input_layernorm"),
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    head_norms: None,
    sinks: None,
    attention_out: "self_attn.o_proj",
    result_norms: None,
    feed_forward_norm: Some("post_attention_layernorm"),
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    norm: "norm",
    head: "lm_head",
    head_beside: None,
    transposed: false,
};

impl Names {
    /// The head's name in files that have this prefix before every other.
    pub(crate) fn head_under(&self, prefix: &str) -> &'static str {
        self.head_beside.filter(|_| prefix == self.prefixes[1]).unwrap_or(self.head)
    }
}

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
        let shared = self.experts.as_ref().and_then(|it| it.shared).unwrap_or(inner);
        let inputs = [self.hidden, self.intermediate, inner, shared, self.heads.query_width()];
        let widest = 2 * inner.max(shared);
        let outputs = [self.vocab, self.hidden, self.up_width(), widest, self.heads.packed_width()];
        let dense = self.texts.dense.iter();
        let inputs = inputs.into_iter().chain(dense.clone().map(|dense| dense.inputs));
        let outputs = outputs.into_iter().chain(dense.map(|dense| dense.outputs));
        let [least, most] = [inputs.clone().min(), inputs.max()];
        [least, most, outputs.chain(self.texts.labels).max()].map(|width| width.unwrap_or(1))
    }

    /// Numbers that stand in for what the files' norms are without, once for all of them.
    pub(crate) fn norm_fill(&self) -> usize {
        match self.norm {
            NormKind::Rms | NormKind::RmsAroundOne | NormKind::Layer => 0,
            NormKind::LayerUnbiased => self.hidden,
            NormKind::LayerBare => 2 * self.hidden,
        }
    }

    /// Widths of the norms of queries and of keys.
    pub(crate) fn head_norm_widths(&self) -> [usize; 2] {
        match self.norms_across_heads {
            true => [self.heads.query_width(), self.heads.kv_width()],
            false => [self.heads.head_dim; 2],
        }
    }

    /// Numbers per token of a feed-forward block's first projection.
    pub(crate) fn up_width(&self) -> usize {
        if self.gated { 2 * self.intermediate } else { self.intermediate }
    }
}
