//! Warm means: one tiny forward per step shape has run, or, where shapes need no preparation, one
//! that mixes them.

use std::collections::HashMap;
use std::vec::IntoIter;

use super::{DeviceFailure, RowOutcome, forward};
use crate::plan::{BlockId, KvSpec, ModelRunner, Row, RunnerSpec, StepPlan};
use crate::sampler::are_numbers;

/// Why a runner did not get warm.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WarmUpError {
    /// The runner refuses a shape it was loaded with, or computes what is not a number.
    Refused(String),
    /// The device failed.
    Device(DeviceFailure),
}

/// What is told of a model whose every answer would be a failure.
const NOT_FINITE: &str =
    "what it computes is not finite: its weights hold NaN or infinity, or overflow its type";

/// Tokens of the warm-up prompt.
const PROMPT: usize = 4;

/// The step shapes of a runner, each to be run once. The KV they leave in the pool is never
/// read: a sequence writes its blocks before it reads them.
pub(crate) struct WarmUp {
    plans: IntoIter<StepPlan>,
}

impl WarmUp {
    /// Nothing has run.
    pub(crate) fn new(runner: &dyn ModelRunner, spec: &RunnerSpec) -> Self {
        let mut plans =
            spec.kv.map_or_else(|| encoder_plans(spec), |kv| generative_plans(spec, kv));
        if !runner.prepares_shapes()
            && let Some(mixed) = plans.iter().position(|plan| plan.rows.len() > 1)
        {
            plans = vec![plans.swap_remove(mixed)];
        }
        Self { plans: plans.into_iter() }
    }

    /// Runs the next shape; says whether that was the last.
    pub(crate) fn step(
        &mut self,
        runner: &mut dyn ModelRunner,
        spec: &RunnerSpec,
    ) -> Result<bool, WarmUpError> {
        let Some(plan) = self.plans.next() else {
            return Ok(true);
        };
        let outcomes = forward(runner, (spec.output_width, &HashMap::new()), &plan)
            .map_err(WarmUpError::Device)?;
        for (row, outcome) in plan.rows.iter().zip(outcomes) {
            match outcome {
                RowOutcome::Failed(failure) => {
                    return Err(WarmUpError::Refused(failure.message().to_owned()));
                }
                // A row that begins later may read what an untouched pool holds.
                RowOutcome::Computed(Some(vector))
                    if row.position == 0 && !are_numbers(&vector) =>
                {
                    return Err(WarmUpError::Refused(NOT_FINITE.to_owned()));
                }
                RowOutcome::Computed(_) => {}
            }
        }
        Ok(self.plans.as_slice().is_empty())
    }
}

/// One row, then rows of different lengths.
fn encoder_plans(spec: &RunnerSpec) -> Vec<StepPlan> {
    let longest = PROMPT.min(spec.context).min(spec.step_tokens);
    let mut plans = vec![StepPlan { rows: vec![row(0, longest, &[])] }];
    if longest < spec.step_tokens {
        plans.push(StepPlan { rows: vec![row(0, longest, &[]), row(0, 1, &[])] });
    }
    plans
}

/// A prefill, a decode, a prefill beside a decode, a decode of two.
fn generative_plans(spec: &RunnerSpec, kv: KvSpec) -> Vec<StepPlan> {
    // Two sequences share what the pool always has, unless half of it holds no sequence of two tokens.
    let all = kv.floor_blocks();
    let half = if all / 2 * kv.block_tokens >= 2 { all / 2 } else { 0 };
    let blocks: Vec<BlockId> = (0..).map(BlockId).take(all).collect();
    let (first, second) = blocks.split_at(all - half);
    let prompt = |room: usize| {
        let longest = (room * kv.block_tokens).min(spec.context) - 1;
        PROMPT.min(longest).min(spec.step_tokens)
    };
    let table =
        |blocks: &[BlockId], tokens: usize| blocks[..tokens.div_ceil(kv.block_tokens)].to_vec();
    let length = prompt(first.len());
    // Where the prefill did not run before it, it reads what an untouched pool holds.
    let decode = row(length, 1, &table(first, length + 1));
    let mut plans = vec![
        StepPlan { rows: vec![row(0, length, &table(first, length))] },
        StepPlan { rows: vec![decode.clone()] },
    ];
    if half > 0 && spec.step_tokens >= 2 {
        let length = prompt(second.len()).min(spec.step_tokens - 1);
        let prefill = row(0, length, &table(second, length));
        let other = row(length, 1, &table(second, length + 1));
        plans.push(StepPlan { rows: vec![decode.clone(), prefill] });
        plans.push(StepPlan { rows: vec![decode, other] });
    }
    plans
}

fn row(position: usize, tokens: usize, blocks: &[BlockId]) -> Row {
    // Token 0 is in every vocabulary.
    Row {
        tokens: vec![0; tokens],
        position,
        blocks: blocks.to_vec(),
        output: true,
        ..Row::default()
    }
}
