//! Encoder calls under way: rows are computed whole, many calls' rows in one step.

use std::collections::VecDeque;

use roundhouse_types::Failure;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::RowOutcome;
use crate::error::Error;
use crate::metrics::{Ended, Meters};
use crate::plan::{Row, StepPlan};
use crate::scheduler::SequenceId;

/// Inputs to encode as they come from a handle, checked; at least one.
pub(crate) struct EncodeJob {
    pub(crate) id: SequenceId,
    pub(crate) inputs: Vec<Vec<u32>>,
    pub(crate) answer: oneshot::Sender<Result<Vec<Vec<f32>>, Failure>>,
    /// Its place in the waiting queue, given back when its first row runs.
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

impl EncodeJob {
    /// Ends it before it began.
    pub(super) fn refuse(self, failure: Failure) {
        let _ = self.answer.send(Err(failure));
    }
}

/// The calls of an encoder's engine. First come, first served: rows leave in the order of
/// calls and inputs, so a call's vectors arrive in order too.
pub(super) struct EncodeWork {
    calls: VecDeque<Call>,
    /// Whose the rows of the step under way are.
    owners: Vec<SequenceId>,
    step_tokens: usize,
    step_rows: usize,
}

struct Call {
    job: EncodeJob,
    /// How many inputs have been put in a step.
    planned: usize,
    vectors: Vec<Vec<f32>>,
}

impl EncodeWork {
    pub(super) fn new(step_tokens: usize, step_rows: usize) -> Self {
        Self { calls: VecDeque::new(), owners: Vec::new(), step_tokens, step_rows }
    }

    pub(super) fn submit(&mut self, job: EncodeJob, meters: &Meters) {
        meters.submitted.increment(job.inputs.len() as u64);
        let vectors = Vec::with_capacity(job.inputs.len());
        self.calls.push_back(Call { job, planned: 0, vectors });
    }

    pub(super) fn abort(&mut self, id: SequenceId, meters: &Meters) {
        if let Some(call) = self.remove(id) {
            meters.ended(Ended::Aborted, call.job.inputs.len());
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Calls with a row in a step.
    pub(super) fn running(&self) -> usize {
        self.calls.iter().filter(|call| call.planned > 0).count()
    }

    pub(super) fn end(&mut self, failure: &Failure, meters: &Meters) {
        for call in self.calls.drain(..) {
            meters.ended(Ended::Failed, call.job.inputs.len());
            call.job.refuse(failure.clone());
        }
    }

    pub(super) fn plan(&mut self, meters: &Meters) -> StepPlan {
        let mut plan = StepPlan::default();
        let mut tokens = 0;
        self.owners.clear();
        'step: for call in &mut self.calls {
            while let Some(input) = call.job.inputs.get_mut(call.planned) {
                tokens += input.len();
                if tokens > self.step_tokens || plan.rows.len() == self.step_rows {
                    break 'step;
                }
                plan.rows.push(Row {
                    tokens: std::mem::take(input),
                    position: 0,
                    blocks: Vec::new(),
                    adapter: None,
                    output: true,
                });
                self.owners.push(call.job.id);
                call.planned += 1;
                call.job.place = None;
            }
        }
        meters.admitted.increment(plan.rows.len() as u64);
        meters.prefilled.increment(plan.tokens() as u64);
        plan
    }

    /// Takes the rows' outcomes in; returns how many calls ended.
    pub(super) fn finish(&mut self, outcomes: Vec<RowOutcome>, meters: &Meters) -> usize {
        let before = self.calls.len();
        for (id, outcome) in std::mem::take(&mut self.owners).into_iter().zip(outcomes) {
            // Gone if an input before this one failed.
            let Some(call) = self.calls.iter_mut().find(|call| call.job.id == id) else {
                continue;
            };
            let failure = match outcome {
                RowOutcome::Failed(failure) => failure,
                RowOutcome::Computed(vector) => {
                    let vector = vector.unwrap_or_default();
                    if vector.iter().all(|number| number.is_finite()) {
                        call.vectors.push(vector);
                        self.answer_if_done(id, meters);
                        continue;
                    }
                    Error::NotFinite { position: 0 }.into()
                }
            };
            if let Some(call) = self.remove(id) {
                meters.ended(Ended::Failed, call.job.inputs.len());
                call.job.refuse(failure);
            }
        }
        before - self.calls.len()
    }

    fn answer_if_done(&mut self, id: SequenceId, meters: &Meters) {
        let done = |call: &Call| call.job.id == id && call.vectors.len() == call.job.inputs.len();
        if !self.calls.iter().any(done) {
            return;
        }
        if let Some(call) = self.remove(id) {
            meters.ended(Ended::Encoded, call.job.inputs.len());
            // The client may have left meanwhile.
            let _ = call.job.answer.send(Ok(call.vectors));
        }
    }

    fn remove(&mut self, id: SequenceId) -> Option<Call> {
        let index = self.calls.iter().position(|call| call.job.id == id)?;
        self.calls.remove(index)
    }
}
