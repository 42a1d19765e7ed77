//! A decoder's parameters: which there are, under which names and in which shapes.

use candle_core::{Result, Tensor};

use crate::config::decoder::{DecoderConfig, LABELS_HEAD, NormKind};
use crate::decoder::experts::Experts;
use crate::gguf;
use crate::linear::Linear;
use crate::norm::{Fill, Norm};
use crate::reader::Parameter;

pub(super) type Outcome<T, E> = std::result::Result<T, E>;
pub(super) type Take<'a, T, E> = dyn FnMut(Parameter) -> Outcome<T, E> + 'a;

/// A decoder's parameters. `T` is a tensor once loaded, and nothing while bytes are counted:
/// both walk [`DecoderWeights::gather`], so neither can forget a tensor.
#[derive(Debug)]
pub(crate) struct DecoderWeights<T> {
    /// `[vocab, hidden]`.
    pub(super) embeddings: T,
    /// `[positions before + context, hidden]`, where positions are learned.
    pub(super) positions: Option<T>,
    pub(super) layers: Vec<Layer<T>>,
    pub(super) norm: Norm<T>,
    /// `None` when the embeddings serve as the head.
    pub(super) head: Option<Linear<T>>,
    /// `[head_dim / 2]`: what the frequencies of rotations are divided by.
    pub(super) rope_factors: Option<T>,
    /// Projections of pooled vectors.
    pub(super) dense: Vec<Linear<T>>,
}

#[derive(Debug)]
pub(super) struct Layer<T> {
    /// `None` where blocks read the residual stream as it is.
    pub(super) attention_norm: Option<Norm<T>>,
    /// Queries, keys and values in one.
    pub(super) qkv: Linear<T>,
    /// Of queries and of keys.
    pub(super) head_norms: Option<[Norm<T>; 2]>,
    /// `[heads]`: the score of a key beside all others, whose value is nothing.
    pub(super) sinks: Option<T>,
    pub(super) attention_out: Linear<T>,
    pub(super) attention_result_norm: Option<Norm<T>>,
    /// `None` where the feed-forward block reads what the attention does.
    pub(super) feed_forward_norm: Option<Norm<T>>,
    pub(super) feed_forward: FeedForward<T>,
    pub(super) feed_forward_result_norm: Option<Norm<T>>,
}

/// What a layer does with each token by itself.
#[derive(Debug)]
pub(super) enum FeedForward<T> {
    /// The first projection: gate and up in one, or up alone; and the last.
    Dense {
        up: Linear<T>,
        down: Linear<T>,
    },
    Sparse(Experts<T>),
}

impl<T> DecoderWeights<T> {
    /// Takes every parameter, in the order of the computation.
    pub(crate) fn gather<E>(
        config: &DecoderConfig,
        prefix: &str,
        take: &mut Take<'_, T, E>,
    ) -> Outcome<Self, E> {
        let (hidden, vocab, names) = (config.hidden, config.vocab, config.names);
        let mut table = |name: &str, rows: usize| {
            take(Parameter::matrix(format!("{prefix}{name}.weight"), rows, hidden))
        };
        let embeddings = table(names.embeddings, vocab)?;
        let rows = config.positions_before + config.context;
        let positions = names.positions.map(|name| table(name, rows)).transpose()?;
        let layer = |index| format!("{prefix}{}.{index}", names.layers);
        let layers = (0..config.layers)
            .map(|index| Layer::gather(config, (index, &layer(index)), take))
            .collect::<Outcome<_, E>>()?;
        let norm = Norm::gather(config.norm, &format!("{prefix}{}", names.norm), hidden, take)?;
        let head = match (config.texts.labels, config.tied) {
            (Some(labels), _) => {
                let part = [(LABELS_HEAD.into(), labels)];
                Some(Linear::gather(take, &part, hidden, false)?)
            }
            (None, true) => None,
            (None, false) => {
                let part = [(names.head_under(prefix).into(), vocab)];
                Some(Linear::gather(take, &part, hidden, config.head_bias)?)
            }
        };
        let half = config.heads.head_dim / 2;
        let rope_factors = match config.rope_factors {
            true => Some(take(Parameter::vector(gguf::ROPE_FACTORS, half))?),
            false => None,
        };
        let dense = config.texts.dense.iter().map(|dense| {
            let part = [(format!("{}/linear", dense.folder), dense.outputs)];
            Linear::gather(take, &part, dense.inputs, dense.bias)
        });
        let dense = dense.collect::<Outcome<_, E>>()?;
        Ok(Self { embeddings, positions, layers, norm, head, rope_factors, dense })
    }
}

impl<T> Layer<T> {
    fn gather<E>(
        config: &DecoderConfig,
        (index, name): (usize, &str),
        take: &mut Take<'_, T, E>,
    ) -> Outcome<Self, E> {
        let (hidden, heads, names) = (config.hidden, config.heads, config.names);
        let linear = |take: &mut Take<'_, T, E>,
                      modules: &[&str],
                      rows: &[usize],
                      (inputs, bias): (usize, bool)| {
            let modules = modules.iter().map(|module| format!("{name}.{module}"));
            let parts: Vec<(String, usize)> = modules.zip(rows.iter().copied()).collect();
            Linear::gather_lying(take, &parts, (inputs, names.transposed), bias)
        };
        let norm = |take: &mut Take<'_, T, E>, part: &str, width: usize| {
            Norm::gather(config.norm, &format!("{name}.{part}"), width, take)
        };
        let qkv_rows = match names.qkv.len() {
            1 => vec![heads.packed_width()],
            _ => vec![heads.query_width(), heads.kv_width(), heads.kv_width()],
        };
        let attended = heads.query_width();
        let result_norm = |block: usize| names.result_norms.map(|names| names[block]);

        let attention_norm =
            names.attention_norm.map(|name| norm(take, name, hidden)).transpose()?;
        let qkv = linear(take, names.qkv, &qkv_rows, (hidden, config.qkv_bias))?;
        let head_norms = match names.head_norms {
            Some([queries, keys]) => {
                let [of_queries, of_keys] = config.head_norm_widths();
                let queries = norm(take, queries, of_queries)?;
                Some([queries, norm(take, keys, of_keys)?])
            }
            None => None,
        };
        let sinks = names.sinks.map(|sinks| format!("{name}.{sinks}"));
        let sinks = sinks.map(|name| take(Parameter::vector(name, heads.heads))).transpose()?;
        let out_bias = config.attention_out_bias;
        let out = linear(take, &[names.attention_out], &[hidden], (attended, out_bias))?;
        let out_norm = result_norm(0).map(|name| norm(take, name, hidden)).transpose()?;
        let fed_norm = names.feed_forward_norm.map(|name| norm(take, name, hidden)).transpose()?;
        let feed_forward = match config.experts(index) {
            Some(experts) => FeedForward::Sparse(Experts::gather(experts, name, hidden, take)?),
            None => {
                let up_rows = vec![config.up_width() / names.up.len(); names.up.len()];
                let up = linear(take, names.up, &up_rows, (hidden, config.mlp_bias))?;
                let inputs = (config.intermediate, config.mlp_bias);
                let down = linear(take, &[names.down], &[hidden], inputs)?;
                FeedForward::Dense { up, down }
            }
        };
        let down_norm = result_norm(1).map(|name| norm(take, name, hidden)).transpose()?;
        Ok(Self {
            attention_norm,
            qkv,
            head_norms,
            sinks,
            attention_out: out,
            attention_result_norm: out_norm,
            feed_forward_norm: fed_norm,
            feed_forward,
            feed_forward_result_norm: down_norm,
        })
    }
}

impl DecoderWeights<Tensor> {
    /// The parameters as they are used.
    pub(super) fn ready(self, config: &DecoderConfig) -> Result<Self> {
        let fill = &Fill::of(config, self.embeddings.device())?;
        let layers = self.layers.into_iter().map(|layer| layer.ready(config.norm, fill));
        let layers = layers.collect::<Result<_>>()?;
        Ok(Self { layers, norm: self.norm.ready(config.norm, fill)?, ..self })
    }

    /// The numbers of the norms of queries and of keys, layer by layer.
    pub(super) fn head_norms(&self) -> Result<Vec<[Vec<f32>; 2]>> {
        let norms = self.layers.iter().filter_map(|layer| layer.head_norms.as_ref());
        norms.map(|[queries, keys]| Ok([queries.numbers()?, keys.numbers()?])).collect()
    }

    /// The sinks of all heads, layer by layer.
    pub(super) fn sinks(&self) -> Result<Vec<Vec<f32>>> {
        self.layers.iter().filter_map(|layer| layer.sinks.as_ref()).map(Tensor::to_vec1).collect()
    }
}

impl Layer<Tensor> {
    fn ready(self, kind: NormKind, fill: &Fill) -> Result<Self> {
        let optional = |norm: Option<Norm>| norm.map(|norm| norm.ready(kind, fill)).transpose();
        let head_norms = match self.head_norms {
            Some([queries, keys]) => Some([queries.ready(kind, fill)?, keys.ready(kind, fill)?]),
            None => None,
        };
        Ok(Self {
            attention_norm: optional(self.attention_norm)?,
            head_norms,
            attention_result_norm: optional(self.attention_result_norm)?,
            feed_forward_norm: optional(self.feed_forward_norm)?,
            feed_forward_result_norm: optional(self.feed_forward_result_norm)?,
            ..self
        })
    }
}
