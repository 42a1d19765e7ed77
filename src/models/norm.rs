//! Norms of the residual stream, of blocks' results and of single heads.

use candle_core::{Device, Result, Tensor, bail};
use candle_nn::ops::{layer_norm, rms_norm};
use rayon::prelude::*;

use crate::config::decoder::{DecoderConfig, NormKind};
use crate::reader::Parameter;

/// A norm's parameters. `T` is a tensor once loaded, and nothing while bytes are counted.
#[derive(Debug)]
pub(crate) struct Norm<T = Tensor> {
    /// Absent where the files have none, until it is [`ready`](Norm::ready).
    weight: Option<T>,
    /// Only layer norms have one; absent as the weight.
    bias: Option<T>,
}

/// What stands in for the weights and biases that norms are without: ones and zeros, one of each for a
/// whole model, of its width.
#[derive(Debug)]
pub(crate) struct Fill {
    ones: Option<Tensor>,
    zeros: Option<Tensor>,
}

impl Fill {
    /// What a model's norms need of it, on its device.
    pub(crate) fn of(config: &DecoderConfig, device: &Device) -> Result<Self> {
        let all =
            |number: f32| Tensor::from_vec(vec![number; config.hidden], config.hidden, device);
        let (ones, zeros) = (|| all(1.0), || all(0.0));
        Ok(match config.norm {
            NormKind::Rms | NormKind::RmsAroundOne | NormKind::Layer => {
                Self { ones: None, zeros: None }
            }
            NormKind::LayerUnbiased => Self { ones: None, zeros: Some(zeros()?) },
            NormKind::LayerBare => Self { ones: Some(ones()?), zeros: Some(zeros()?) },
        })
    }
}

impl<T> Norm<T> {
    /// Gathers `name.weight` and `name.bias` where the kind has them.
    pub(crate) fn gather<E>(
        kind: NormKind,
        name: &str,
        width: usize,
        take: &mut dyn FnMut(Parameter) -> std::result::Result<T, E>,
    ) -> std::result::Result<Self, E> {
        let mut vector = |part: &str| take(Parameter::vector(format!("{name}.{part}"), width));
        let (weight, bias) = match kind {
            NormKind::Layer => (Some(vector("weight")?), Some(vector("bias")?)),
            NormKind::Rms | NormKind::RmsAroundOne | NormKind::LayerUnbiased => {
                (Some(vector("weight")?), None)
            }
            NormKind::LayerBare => (None, None),
        };
        Ok(Self { weight, bias })
    }
}

impl Norm {
    /// Brings weights that are stored around zero to where they are used, and fills in what a layer
    /// norm has not.
    pub(crate) fn ready(self, kind: NormKind, fill: &Fill) -> Result<Self> {
        let weight = self.weight.or_else(|| fill.ones.clone());
        let bias = self.bias.or_else(|| fill.zeros.clone());
        match (kind, weight) {
            (NormKind::RmsAroundOne, Some(weight)) => {
                Ok(Self { weight: Some((weight + 1.0)?), bias })
            }
            (_, weight) => Ok(Self { weight, bias }),
        }
    }

    /// Norms each row of `[rows, width]`.
    pub(crate) fn forward(&self, x: &Tensor, config: &DecoderConfig) -> Result<Tensor> {
        match (&self.weight, &self.bias) {
            (Some(weight), Some(bias)) => layer_norm(x, weight, bias, config.norm_epsilon),
            (Some(weight), None) => rms_norm(x, weight, config.norm_epsilon),
            (None, _) => bail!("a norm is used before it is ready"),
        }
    }

    /// The weight's numbers, for norms that are computed in place.
    pub(crate) fn numbers(&self) -> Result<Vec<f32>> {
        match &self.weight {
            Some(weight) => weight.to_vec1(),
            None => bail!("a norm of heads has no weight"),
        }
    }

    /// Norms parts of rows as wide as its weight: heads, or all of them, of `[rows, heads, head_dim]`.
    pub(crate) fn parts(&self, x: &Tensor, config: &DecoderConfig) -> Result<Tensor> {
        let width = self.weight.as_ref().map_or(1, Tensor::elem_count);
        self.forward(&x.reshape(((), width))?, config)?.reshape(x.shape())
    }
}

/// Divides the heads of `part` in each row, or all of them as one, by their root mean square, times `weight`, in place.
pub(crate) fn heads(
    rows: &mut [f32],
    (row_width, part): (usize, std::ops::Range<usize>),
    weight: &[f32],
    epsilon: f32,
) {
    rows.par_chunks_mut(row_width).with_min_len(16).for_each(|row| {
        for head in row[part.clone()].chunks_exact_mut(weight.len()) {
            let squares: f32 = head.iter().map(|x| x * x).sum();
            let scale = 1.0 / (squares / weight.len() as f32 + epsilon).sqrt();
            for (x, weight) in head.iter_mut().zip(weight) {
                *x = *x * scale * weight;
            }
        }
    });
}
