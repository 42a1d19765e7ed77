//! What becomes of whole texts: one vector, perhaps projected, or a head's numbers for labels.

use candle_core::{Result, Tensor};
use roundhouse_engine::{Row, RunnerError, StepOutput, StepPlan, Want};

use super::Decoder;
use crate::activation::with_floats;
use crate::adapter::{Headed, Mix, Site};
use crate::attention::Span;
use crate::config::sentence::Pooling;
use crate::packed::Packed;
use crate::pooling;

/// A row with an output, and where it lies.
type Wanted<'a> = (&'a Row, &'a Span<'a>);

impl Decoder {
    /// Refuses what the model, or the row's adapter, has no answer to.
    pub(super) fn check_wants(&self, plan: &StepPlan) -> std::result::Result<(), RunnerError> {
        let of_tokens = self.pool.is_some() || self.config.texts.are_vectors();
        let is_answered = |row: &Row| {
            row.want == Want::Pooled || (of_tokens && self.adapters.head(row.adapter).is_none())
        };
        match plan.rows.iter().all(is_answered) {
            true => Ok(()),
            false => Err(RunnerError::Input("the model answers texts, not each token".into())),
        }
    }

    /// What rows want, of the last layer's `x` `[tokens, hidden]`.
    pub(super) fn texts(
        &self,
        plan: &StepPlan,
        packed: &Packed<'_>,
        (x, mix): (&Tensor, &Mix),
        pooling: Pooling,
    ) -> Result<StepOutput> {
        let x = self.norm.forward(x, &self.config)?;
        let layers = self.layers.len();
        mix.tokens.shift(Site::norm(layers), &x)?;
        let outputs = plan.rows.iter().filter(|row| row.output);
        let wants: Vec<Wanted<'_>> = outputs.zip(&packed.outputs).collect();
        let rows = self.answered_apart(mix, wants.len(), |headed| {
            let own: Vec<Wanted<'_>> = headed.rows.iter().map(|place| wants[*place]).collect();
            self.last(&own, &x)
        })?;
        let others = wants.iter().zip(&rows).filter(|(_, row)| row.is_none());
        let others: Vec<Wanted<'_>> = others.map(|(want, _)| *want).collect();
        let others = match (others.is_empty(), self.config.texts.labels) {
            (true, _) => Vec::new(),
            (false, Some(_)) => {
                let place = (&mix.outputs, Site::head(layers));
                self.head.forward(&self.last(&others, &x)?, place)?.to_vec2()?
            }
            (false, None) => self.pooled(&others, &x, pooling)?,
        };
        let mut others = others.into_iter();
        let rows = rows.into_iter().map(|row| row.or_else(|| others.next()).unwrap_or_default());
        Ok(StepOutput { rows: rows.collect() })
    }

    /// What adapters' own heads make of sequences that end with these rows, beside those that go on;
    /// `x`: the last layer's `[tokens, hidden]`.
    pub(super) fn of_own_heads(
        &self,
        packed: &Packed<'_>,
        (x, mix): (&Tensor, &Mix),
    ) -> Result<Vec<Option<Vec<f32>>>> {
        self.answered_apart(mix, packed.outputs.len(), |Headed { rows, groups, .. }| {
            let places = rows.iter().map(|place| packed.outputs[*place].last_row()).collect();
            self.read_at(places, x, groups)
        })
    }

    /// The answers of adapters' own heads among so many `outputs`, of what each reads.
    fn answered_apart(
        &self,
        mix: &Mix,
        outputs: usize,
        read: impl Fn(&Headed) -> Result<Tensor>,
    ) -> Result<Vec<Option<Vec<f32>>>> {
        let site = Site::head(self.layers.len());
        let mut rows = vec![None; outputs];
        for headed in &mix.heads {
            let (x, width) = (read(headed)?, headed.head.config.width);
            let answers = headed.groups.alone(site, &x, width)?.to_vec2()?;
            headed.rows.iter().zip(answers).for_each(|(row, answer)| rows[*row] = Some(answer));
        }
        Ok(rows)
    }

    /// The vectors that heads for labels read: `[rows, hidden]`.
    fn last(&self, wants: &[Wanted<'_>], x: &Tensor) -> Result<Tensor> {
        let places: Vec<u32> =
            wants.iter().map(|(row, span)| last(row, span, self.config.texts.padding)).collect();
        x.index_select(&Tensor::new(places, x.device())?, 0)
    }

    /// Pooled vectors through the projections behind the pooling, where there are any.
    fn pooled(&self, wants: &[Wanted<'_>], x: &Tensor, pooling: Pooling) -> Result<Vec<Vec<f32>>> {
        let width = self.config.hidden;
        let vectors: Vec<Vec<f32>> = with_floats(x, |x| {
            let of =
                |(row, span): &Wanted<'_>| pooling::wanted(pooling, &row.want, span, (x, width));
            wants.iter().map(of).collect()
        })?;
        if self.dense.is_empty() {
            return Ok(vectors);
        }
        let mut x = Tensor::from_vec(vectors.concat(), (vectors.len(), width), x.device())?;
        for (dense, linear) in self.config.texts.dense.iter().zip(&self.dense) {
            x = linear.alone(&x)?;
            x = if dense.tanh { x.tanh()? } else { x };
        }
        x.to_vec2()
    }
}

/// The packed index of a row's last token that is not padding; of nothing else, the first.
pub(super) fn last(row: &Row, span: &Span<'_>, padding: Option<u32>) -> u32 {
    let place = row.tokens.iter().rposition(|token| Some(*token) != padding);
    u32::try_from(span.first + place.unwrap_or(0)).expect("a step's tokens fit in 32 bits")
}
