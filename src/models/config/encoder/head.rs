//! The head behind an encoder: what is taken from the last layer and what becomes of it.

use crate::activation::Activation;

/// Which of a text's token vectors a head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selects {
    /// The first, for the whole text.
    First,
    /// The mean of all, for the whole text.
    Mean,
    /// Those asked for, each by itself.
    Tokens,
}

/// What bends the numbers between a head's projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Squash {
    /// The hyperbolic tangent.
    Tanh,
    /// One of those that feed-forward blocks have.
    By(Activation),
}

/// A head: perhaps a projection, bent and perhaps normed, then the last projection.
#[derive(Debug, Clone)]
pub(crate) struct HeadConfig {
    pub(crate) selects: Selects,
    pub(crate) first: Option<Dense>,
    /// The last projection.
    pub(crate) last: &'static str,
    /// Numbers that it answers with.
    pub(crate) width: usize,
    /// Whether the tokens' vectors are the last projection's weight.
    pub(crate) tied: bool,
    /// The last projection's bias, where it has one: by the first of these names that is there.
    pub(crate) bias: &'static [&'static str],
}

impl HeadConfig {
    /// A last projection alone, without a bias, of no width yet.
    pub(crate) fn labels(last: &'static str) -> Self {
        Self { selects: Selects::Tokens, first: None, last, width: 0, tied: false, bias: &[] }
    }
}

/// A head's first projection.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    pub(crate) name: &'static str,
    /// Whether that is a name of the bare encoder's.
    pub(crate) inside: bool,
    pub(crate) bias: bool,
    pub(crate) squash: Squash,
    /// The norm behind it.
    pub(crate) norm: Option<&'static str>,
    /// Numbers that it gives: the layers' width, or the embeddings' before a tied projection.
    pub(crate) width: usize,
}

/// What adapters with heads of their own may ask of an encoder, whatever its own head.
#[derive(Debug, Clone)]
pub(crate) struct Spare {
    /// Heads for labels of a text and of each token, of no width.
    pub(crate) classes: HeadConfig,
    pub(crate) token_classes: HeadConfig,
    /// The pooler, where the files have one that nothing else uses.
    pub(crate) pooler: Option<Dense>,
}
