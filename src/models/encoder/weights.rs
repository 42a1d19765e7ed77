//! An encoder's parameters: which there are, under which names and in which shapes.

use crate::attention::BUCKETS;
use crate::config::encoder::{self, EncoderConfig, HeadConfig, Positions};
use crate::config::sentence::Dense;
use crate::linear::Linear;
use crate::reader::Parameter;
use crate::tensors::TensorTable;

type Outcome<T, E> = std::result::Result<T, E>;
type Take<'a, T, E> = dyn FnMut(Parameter) -> Outcome<T, E> + 'a;

/// How this checkpoint spells what others of its family spell otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spelling {
    /// Before every name but the head's.
    pub(crate) prefix: &'static str,
    /// A norm's scale: `weight`, or `gamma` in old checkpoints.
    scale: &'static str,
    /// A norm's shift: `bias`, or `beta` in old checkpoints.
    pub(crate) shift: &'static str,
    /// The head's last bias.
    pub(crate) head_bias: Option<&'static str>,
}

impl Spelling {
    /// Finds out under which names the tensors are; where they are under none, the usual ones.
    pub(crate) fn find(
        table: &TensorTable,
        config: &EncoderConfig,
        head: Option<&HeadConfig>,
    ) -> Self {
        let names = config.names;
        let words =
            |prefix: &&&str| table.get(&format!("{prefix}{}.weight", names.words)).is_some();
        let prefix = names.prefixes.iter().find(words).unwrap_or(&names.prefixes[0]);
        let old = table.get(&format!("{prefix}{}.gamma", names.embedding_norm)).is_some();
        let (scale, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let biases = head.map_or(&[] as &[_], |head| head.bias);
        let bias = biases.iter().find(|bias| table.get(bias).is_some()).or(biases.first());
        Self { prefix, scale, shift, head_bias: bias.copied() }
    }
}

/// A layer norm's parameters.
#[derive(Debug)]
pub(crate) struct Norm<T> {
    pub(super) scale: T,
    pub(super) shift: Option<T>,
}

impl<T> Norm<T> {
    fn gather<E>(
        name: &str,
        spelling: Spelling,
        (width, has_shift): (usize, bool),
        take: &mut Take<'_, T, E>,
    ) -> Outcome<Self, E> {
        let Spelling { scale, shift, .. } = spelling;
        let scale = take(Parameter::vector(format!("{name}.{scale}"), width))?;
        let shift = match has_shift {
            true => Some(take(Parameter::vector(format!("{name}.{shift}"), width))?),
            false => None,
        };
        Ok(Self { scale, shift })
    }
}

/// What parameters are gathered for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a EncoderConfig,
    pub(crate) spelling: Spelling,
    pub(crate) head: Option<&'a HeadConfig>,
    /// Projections of the pooled vector.
    pub(crate) dense: &'a [Dense],
    /// A pooler that only adapters' heads use.
    pub(crate) pooler: Option<&'a encoder::Dense>,
}

/// An encoder's parameters; see [`crate::decoder::DecoderWeights`] for `T`.
#[derive(Debug)]
pub(crate) struct EncoderWeights<T> {
    /// `[vocab, embedding]`, `[rows, embedding]`, `[token types, embedding]`.
    pub(super) words: T,
    pub(super) positions: Option<T>,
    pub(super) token_types: Option<T>,
    pub(super) embedding_norm: Norm<T>,
    pub(super) projection: Option<Linear<T>>,
    /// `[buckets, heads]`, or `[distances, hidden]`.
    pub(super) distances: Option<T>,
    pub(super) distance_norm: Option<Norm<T>>,
    pub(super) layers: Vec<Layer<T>>,
    pub(super) final_norm: Option<Norm<T>>,
    pub(super) head: Option<Head<T>>,
    pub(super) dense: Vec<Linear<T>>,
    pub(super) pooler: Option<Linear<T>>,
}

#[derive(Debug)]
pub(super) struct Layer<T> {
    /// Queries, keys and values in one.
    pub(super) qkv: Linear<T>,
    pub(super) attention_out: Linear<T>,
    pub(super) attention_norm: Option<Norm<T>>,
    /// With its gate, where it has one.
    pub(super) up: Linear<T>,
    pub(super) down: Linear<T>,
    pub(super) norm: Norm<T>,
}

/// A head's parameters.
#[derive(Debug)]
pub(super) struct Head<T> {
    pub(super) first: Option<(Linear<T>, Option<Norm<T>>)>,
    /// `None` where the tokens' vectors serve.
    pub(super) last: Option<T>,
    pub(super) bias: Option<T>,
}

impl<T> EncoderWeights<T> {
    /// Takes every parameter, in the order of the computation.
    pub(crate) fn gather<E>(parts: Parts<'_>, take: &mut Take<'_, T, E>) -> Outcome<Self, E> {
        let Parts { config, spelling, head, dense, pooler } = parts;
        let (names, prefix) = (config.names, spelling.prefix);
        let mut table = |name: &str, rows: usize, width: usize| {
            take(Parameter::matrix(format!("{prefix}{name}.weight"), rows, width))
        };
        let words = table(names.words, config.vocab, config.embedding)?;
        let positions = match (names.positions, config.learned()) {
            (Some(name), Some(learned)) => Some(table(name, learned.rows, config.embedding)?),
            _ => None,
        };
        let token_types = match names.token_types {
            Some(name) if config.token_types > 0 => {
                Some(table(name, config.token_types, config.embedding)?)
            }
            _ => None,
        };
        let norm = |take: &mut Take<'_, T, E>, name: &str, width: usize| {
            Norm::gather(&format!("{prefix}{name}"), spelling, (width, config.biases.norms), take)
        };
        let embedding_norm = norm(take, names.embedding_norm, config.embedding)?;
        let projection = match names.projection {
            Some(name) if config.embedding != config.hidden => {
                let part = [(format!("{prefix}{name}"), config.hidden)];
                Some(Linear::gather(take, &part, config.embedding, true)?)
            }
            _ => None,
        };
        let shape = match &config.positions {
            Positions::Bucketed(_) => Some((BUCKETS, config.heads.heads)),
            Positions::Disentangled(_, distances) => {
                Some((2 * distances.reach.span, config.hidden))
            }
            Positions::Learned(_) | Positions::Rotated(_) => None,
        };
        let distances = match (names.distances, shape) {
            (Some(name), Some((rows, columns))) => {
                let name = format!("{prefix}{name}.weight");
                Some(take(Parameter::matrix(name, rows, columns))?)
            }
            _ => None,
        };
        let distance_norm = match (names.distance_norm, &config.positions) {
            (Some(name), Positions::Disentangled(_, distances)) if distances.normed => {
                Some(norm(take, name, config.hidden)?)
            }
            _ => None,
        };
        let layers = (0..config.layers)
            .map(|index| Layer::gather(config, spelling, index, take))
            .collect::<Outcome<_, E>>()?;
        let final_norm =
            names.final_norm.map(|name| norm(take, name, config.hidden)).transpose()?;
        let head = head.map(|head| Head::gather(head, parts, take)).transpose()?;
        let dense = dense
            .iter()
            .map(|dense| {
                let part = [(format!("{}/linear", dense.folder), dense.outputs)];
                Linear::gather(take, &part, dense.inputs, dense.bias)
            })
            .collect::<Outcome<_, E>>()?;
        let pooler = pooler
            .map(|pooler| {
                let part = [(format!("{prefix}{}", pooler.name), pooler.width)];
                Linear::gather(take, &part, config.hidden, pooler.bias)
            })
            .transpose()?;
        Ok(Self {
            words,
            positions,
            token_types,
            embedding_norm,
            projection,
            distances,
            distance_norm,
            layers,
            final_norm,
            head,
            dense,
            pooler,
        })
    }
}

impl<T> Layer<T> {
    fn gather<E>(
        config: &EncoderConfig,
        spelling: Spelling,
        index: usize,
        take: &mut Take<'_, T, E>,
    ) -> Outcome<Self, E> {
        let (hidden, names, biases) = (config.hidden, config.names, config.biases);
        let name = |part: &str| format!("{}{}.{index}.{part}", spelling.prefix, names.layers);
        let each = config.heads.packed_width() / names.qkv.len();
        let qkv: Vec<(String, usize)> = names.qkv.iter().map(|part| (name(part), each)).collect();
        let (attention, feed_forward) = (biases.attention, biases.feed_forward);
        let norm = |take: &mut Take<'_, T, E>, part: &str| {
            Norm::gather(&name(part), spelling, (hidden, biases.norms), take)
        };
        let unnormed = names.first_unnormed && index == 0;
        let qkv = Linear::gather(take, &qkv, hidden, attention)?;
        let attended = config.heads.query_width();
        let out = [(name(names.attention_out), hidden)];
        let attention_out = Linear::gather(take, &out, attended, attention)?;
        let attention_norm = match unnormed {
            true => None,
            false => Some(norm(take, names.attention_norm)?),
        };
        let up = [(name(names.up), config.up_width())];
        let up = Linear::gather(take, &up, hidden, feed_forward)?;
        let down = [(name(names.down), hidden)];
        let down = Linear::gather(take, &down, config.intermediate, feed_forward)?;
        let norm = norm(take, names.feed_forward_norm)?;
        Ok(Self { qkv, attention_out, attention_norm, up, down, norm })
    }
}

impl<T> Head<T> {
    fn gather<E>(
        head: &HeadConfig,
        parts: Parts<'_>,
        take: &mut Take<'_, T, E>,
    ) -> Outcome<Self, E> {
        let Parts { config, spelling, .. } = parts;
        let (first, inputs) = match &head.first {
            None => (None, config.hidden),
            Some(dense) => {
                let before = if dense.inside { spelling.prefix } else { "" };
                let part = [(format!("{before}{}", dense.name), dense.width)];
                let linear = Linear::gather(take, &part, config.hidden, dense.bias)?;
                let shape = (dense.width, config.biases.norms);
                let norm = dense.norm.map(|name| Norm::gather(name, spelling, shape, take));
                (Some((linear, norm.transpose()?)), dense.width)
            }
        };
        let last = match head.tied {
            true => None,
            false => {
                let name = format!("{}.weight", head.last);
                Some(take(Parameter::matrix(name, head.width, inputs))?)
            }
        };
        let bias = match spelling.head_bias {
            Some(name) => Some(take(Parameter::vector(name, head.width))?),
            None => None,
        };
        Ok(Self { first, last, bias })
    }
}
