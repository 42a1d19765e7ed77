//! What becomes of the last layer's vectors: sentence vectors, or what the head makes of those that
//! rows want.

use candle_core::{Result, Tensor};
use roundhouse_engine::{Row, RunnerError, StepPlan, Want};

use super::Encoder;
use super::weights::{Head, Norm};
use crate::activation::with_floats;
use crate::adapter::{First, Groups, Headed, Mix, OwnHead, Site};
use crate::attention::Span;
use crate::config::encoder::{Dense, HeadConfig, Selects, Squash};
use crate::config::sentence::Pooling;
use crate::linear::Linear;
use crate::packed::Packed;
use crate::pooling;

/// What a row wants, and where it lies.
type Wanted<'a> = (&'a Want, &'a Span<'a>);

impl Encoder {
    /// Refuses what this model, or the row's adapter, has no answer to.
    pub(super) fn check_wants(&self, plan: &StepPlan) -> std::result::Result<(), RunnerError> {
        let own_of_tokens = match &self.head {
            Some(head) => head.selects == Selects::Tokens,
            None => self.sentence.dense.is_empty(),
        };
        let is_answered = |row: &Row| {
            let of_tokens = match self.adapters.head(row.adapter) {
                Some(own) => own.config.selects == Selects::Tokens,
                None => own_of_tokens,
            };
            of_tokens || row.want == Want::Pooled
        };
        match plan.rows.iter().all(is_answered) {
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
        mix: &Mix,
    ) -> Result<Vec<Vec<f32>>> {
        let wants = plan.rows.iter().filter(|row| row.output).map(|row| &row.want);
        let wants: Vec<Wanted<'_>> = wants.zip(&packed.outputs).collect();
        if mix.heads.is_empty() {
            return self.plain(&wants, x, &mix.outputs);
        }
        let mut rows = vec![None; wants.len()];
        for Headed { head, rows: places, groups } in &mix.heads {
            let own: Vec<Wanted<'_>> = places.iter().map(|place| wants[*place]).collect();
            let answers = match self.selected(head.config.selects, &own, x)? {
                None => vec![Vec::new(); own.len()],
                Some(read) => {
                    dealt(&own, head.config.width, &self.through_own(head, &read, groups)?)?
                }
            };
            places.iter().zip(answers).for_each(|(place, answer)| rows[*place] = Some(answer));
        }
        let others = wants.iter().zip(&rows).filter(|(_, row)| row.is_none());
        let others: Vec<Wanted<'_>> = others.map(|(want, _)| *want).collect();
        let mut others = match others.is_empty() {
            true => Vec::new(),
            false => self.plain(&others, x, &mix.outputs)?,
        }
        .into_iter();
        Ok(rows.into_iter().map(|row| row.or_else(|| others.next()).unwrap_or_default()).collect())
    }

    /// What the model's own head makes of them, or their vectors where it has none.
    fn plain(&self, wants: &[Wanted<'_>], x: &Tensor, groups: &Groups) -> Result<Vec<Vec<f32>>> {
        let (Some(config), Some(head)) = (&self.head, &self.weights.head) else {
            let vectors: Vec<Vec<f32>> = with_floats(x, |x| {
                let x = (x, self.config.hidden);
                let of = |(want, span): &Wanted<'_>| {
                    pooling::wanted(self.sentence.pooling, want, span, x)
                };
                wants.iter().map(of).collect()
            })?;
            return self.projected(vectors, x);
        };
        match self.selected(config.selects, wants, x)? {
            None => Ok(vec![Vec::new(); wants.len()]),
            Some(read) => dealt(wants, config.width, &self.through(config, head, &read, groups)?),
        }
    }

    /// What a head reads: `[vectors, hidden]`; `None` where nothing is wanted.
    fn selected(
        &self,
        selects: Selects,
        wants: &[Wanted<'_>],
        x: &Tensor,
    ) -> Result<Option<Tensor>> {
        match selects {
            Selects::Mean => {
                let means = with_floats(x, |x| {
                    let width = self.config.hidden;
                    let of = |(_, span): &Wanted<'_>| {
                        pooling::pool(Pooling::Mean, span.of(x, width), width)
                    };
                    wants.iter().flat_map(of).collect::<Vec<f32>>()
                })?;
                Tensor::from_vec(means, (wants.len(), self.config.hidden), x.device()).map(Some)
            }
            Selects::First | Selects::Tokens => {
                let rows: Vec<u32> =
                    wants.iter().flat_map(|(want, span)| rows(want, span)).collect();
                if rows.is_empty() {
                    return Ok(None);
                }
                x.index_select(&Tensor::new(rows, x.device())?, 0).map(Some)
            }
        }
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
            inner = Some(self.bent(dense, y, norm.as_ref())?);
        }
        // The tokens' vectors lie once, also where they are the head's weight.
        let weight = head.last.as_ref().unwrap_or(&self.weights.words).clone();
        let last = Linear { weight, bias: head.bias.clone() };
        last.forward(inner.as_ref().unwrap_or(x), (groups, Site::head(layers)))
    }

    /// The same by an adapter's own head.
    fn through_own(&self, head: &OwnHead, x: &Tensor, groups: &Groups) -> Result<Tensor> {
        let layers = self.config.layers;
        let site = Site::pooler(layers);
        let of_base = self.weights.head.as_ref().and_then(|head| head.first.as_ref());
        let mut inner = None;
        if let Some(dense) = &head.config.first {
            let (y, norm) = match (head.first, of_base, &self.weights.pooler) {
                (First::Head, Some((linear, norm)), _) => {
                    (linear.forward(x, (groups, site))?, norm.as_ref())
                }
                (First::Pooler, _, Some(linear)) => (linear.forward(x, (groups, site))?, None),
                _ => (groups.alone(site, x, dense.width)?, None),
            };
            inner = Some(self.bent(dense, y, norm)?);
        }
        groups.alone(Site::head(layers), inner.as_ref().unwrap_or(x), head.config.width)
    }

    /// What a head's first projection gave, bent and perhaps normed.
    fn bent(&self, dense: &Dense, y: Tensor, norm: Option<&Norm<Tensor>>) -> Result<Tensor> {
        let y = match dense.squash {
            Squash::Tanh => y.tanh()?,
            Squash::By(activation) => activation.apply(y)?,
        };
        match norm {
            Some(norm) => self.normed(norm, &y),
            None => Ok(y),
        }
    }
}

/// A head's answers by the rows that want them.
fn dealt(wants: &[Wanted<'_>], width: usize, answers: &Tensor) -> Result<Vec<Vec<f32>>> {
    with_floats(answers, |mut answers| {
        let mut next = |(want, span): &Wanted<'_>| {
            let (first, rest) = answers.split_at(want.vectors(span.tokens) * width);
            answers = rest;
            first.to_vec()
        };
        wants.iter().map(&mut next).collect()
    })
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
