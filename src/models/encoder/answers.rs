//! What becomes of the last layer's vectors: sentence vectors, or what the head makes of those that
//! rows want.

use candle_core::{Result, Tensor};
use roundhouse_engine::{RunnerError, StepPlan, Want};

use super::Encoder;
use super::weights::Head;
use crate::activation::with_floats;
use crate::adapter::{Groups, Site};
use crate::attention::Span;
use crate::config::encoder::{HeadConfig, Selects, Squash};
use crate::config::sentence::Pooling;
use crate::linear::Linear;
use crate::packed::Packed;
use crate::pooling;

impl Encoder {
    /// Refuses what this model has no answer to.
    pub(super) fn check_wants(&self, plan: &StepPlan) -> std::result::Result<(), RunnerError> {
        let of_tokens = match &self.head {
            Some(head) => head.selects == Selects::Tokens,
            None => self.sentence.dense.is_empty(),
        };
        if of_tokens {
            return Ok(());
        }
        match plan.rows.iter().all(|row| row.want == Want::Pooled) {
            true => Ok(()),
            false => Err(RunnerError::Input("the model answers texts, not each token".into())),
        }
    }

    /// The vectors that each row with an output wants, of the last layer's `x`
    /// `[tokens, hidden]`.
    pub(super) fn answers(
        &self,
        plan: &StepPlan,
        packed: &Packed<'_>,
        x: &Tensor,
        groups: &Groups,
    ) -> Result<Vec<Vec<f32>>> {
        let wants = plan.rows.iter().filter(|row| row.output).map(|row| &row.want);
        let wants: Vec<(&Want, &Span<'_>)> = wants.zip(&packed.outputs).collect();
        let (Some(config), Some(head)) = (&self.head, &self.weights.head) else {
            let vectors: Vec<Vec<f32>> = with_floats(x, |x| {
                let x = (x, self.config.hidden);
                let of = |(want, span): &(&Want, &Span<'_>)| {
                    pooling::wanted(self.sentence.pooling, want, span, x)
                };
                wants.iter().map(of).collect()
            })?;
            return self.projected(vectors, x);
        };
        let read = match config.selects {
            Selects::Mean => with_floats(x, |x| {
                let width = self.config.hidden;
                let of = |span: &Span<'_>| pooling::pool(Pooling::Mean, span.of(x, width), width);
                packed.outputs.iter().flat_map(of).collect::<Vec<f32>>()
            })
            .and_then(|means| {
                Tensor::from_vec(means, (packed.outputs.len(), self.config.hidden), x.device())
            })?,
            Selects::First | Selects::Tokens => {
                let rows: Vec<u32> =
                    wants.iter().flat_map(|(want, span)| rows(want, span)).collect();
                if rows.is_empty() {
                    return Ok(wants.iter().map(|_| Vec::new()).collect());
                }
                x.index_select(&Tensor::new(rows, x.device())?, 0)?
            }
        };
        let answers = self.through(config, head, &read, groups)?;
        with_floats(&answers, |mut answers| {
            let mut next = |(want, span): &(&Want, &Span<'_>)| {
                let (first, rest) = answers.split_at(want.vectors(span.tokens) * config.width);
                answers = rest;
                first.to_vec()
            };
            wants.iter().map(&mut next).collect()
        })
    }

    /// Pooled vectors through the projections behind the pooling, where there are any.
    fn projected(&self, vectors: Vec<Vec<f32>>, like: &Tensor) -> Result<Vec<Vec<f32>>> {
        if self.weights.dense.is_empty() || vectors.is_empty() {
            return Ok(vectors);
        }
        let shape = (vectors.len(), self.config.hidden);
        let mut x = Tensor::from_vec(vectors.concat(), shape, like.device())?;
        for (dense, linear) in self.sentence.dense.iter().zip(&self.weights.dense) {
            // No adapter changes them.
            x = linear.forward(&x, (&Groups::default(), Site::head(self.config.layers)))?;
            x = if dense.tanh { x.tanh()? } else { x };
        }
        x.to_vec2()
    }

    /// What a head makes of `[vectors, hidden]`: `[vectors, width]`.
    fn through(
        &self,
        config: &HeadConfig,
        head: &Head<Tensor>,
        x: &Tensor,
        groups: &Groups,
    ) -> Result<Tensor> {
        let layers = self.config.layers;
        let mut inner = None;
        if let (Some(dense), Some((linear, norm))) = (&config.first, &head.first) {
            let y = linear.forward(x, (groups, Site::pooler(layers)))?;
            let y = match dense.squash {
                Squash::Tanh => y.tanh()?,
                Squash::By(activation) => activation.apply(y)?,
            };
            inner = Some(match norm {
                Some(norm) => self.normed(norm, &y)?,
                None => y,
            });
        }
        // The tokens' vectors lie once, also where they are the head's weight.
        let weight = head.last.as_ref().unwrap_or(&self.weights.words).clone();
        let last = Linear { weight, bias: head.bias.clone() };
        last.forward(inner.as_ref().unwrap_or(x), (groups, Site::head(layers)))
    }
}

/// The packed rows that a row's wants are.
fn rows(want: &Want, span: &Span<'_>) -> Vec<u32> {
    let packed = |place: usize| (span.first + place) as u32;
    match want {
        Want::Pooled => vec![packed(0)],
        Want::Each => (0..span.tokens).map(packed).collect(),
        Want::At(places) => places.iter().copied().map(packed).collect(),
    }
}
