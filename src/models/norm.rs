//! Norms of the residual stream, of blocks' results and of single heads.

use candle_core::{Result, Tensor};
use candle_nn::ops::{layer_norm, rms_norm};
use rayon::prelude::*;

use crate::config::decoder::{DecoderConfig, NormKind};
use crate::reader::Parameter;

/// A norm's parameters. `T` is a tensor once loaded, and nothing while bytes are counted.
#[derive(Debug)]
pub(crate) struct Norm<T = Tensor> {
    weight: T,
    /// Only layer norms have one.
    bias: Option<T>,
}

impl<T> Norm<T> {
    /// Gathers `name.weight`, and `name.bias` where the kind has one.
    pub(crate) fn gather<E>(
        kind: NormKind,
        name: &str,
        width: usize,
        take: &mut dyn FnMut(Parameter) -> std::result::Result<T, E>,
    ) -> std::result::Result<Self, E> {
        let weight = take(Parameter::vector(format!("{name}.weight"), width))?;
        let bias = match kind {
            NormKind::Layer => Some(take(Parameter::vector(format!("{name}.bias"), width))?),
            NormKind::Rms | NormKind::RmsAroundOne => None,
        };
        Ok(Self { weight, bias })
    }
}

impl Norm {
    /// Brings weights that are stored around zero to where they are used.
    pub(crate) fn ready(self, kind: NormKind) -> Result<Self> {
        match kind {
            NormKind::Rms | NormKind::Layer => Ok(self),
            NormKind::RmsAroundOne => Ok(Self { weight: (self.weight + 1.0)?, ..self }),
        }
    }

    /// Norms each row of `[rows, width]`.
    pub(crate) fn forward(&self, x: &Tensor, config: &DecoderConfig) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => layer_norm(x, &self.weight, bias, config.norm_epsilon),
            None => rms_norm(x, &self.weight, config.norm_epsilon),
        }
    }

    /// The weight's numbers, for norms that are computed in place.
    pub(crate) fn numbers(&self) -> Result<Vec<f32>> {
        self.weight.to_vec1()
    }
}

/// Divides the heads of `part` in each row by their root mean square, times `weight`, in place.
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
