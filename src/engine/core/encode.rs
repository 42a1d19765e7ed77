//! Encoder calls under way: rows are computed whole, many calls' rows in one step.

use std::collections::VecDeque;

use roundhouse_types::Failure;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::RowOutcome;
use crate::error::Error;
use crate::metrics::{Ended, Meters};
use crate::plan::{AdapterId, Row, StepPlan};
use crate::scheduler::{PromptLimit, SequenceId};

/// Inputs to encode as they come from a handle, checked; at least one.
pub(crate) struct EncodeJob {
    pub(crate) id: SequenceId,
    pub(crate) inputs: Vec<Vec<u32>>,
    /// What they are computed with beside the base.
    pub(crate) adapter: Option<AdapterId>,
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

/// The calls of an encoder's engine. A call's rows leave in the order of its inputs, so its
/// vectors arrive in order too.
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

impl Call {
    /// Inputs that have not been put in a step.
    fn left(&self) -> usize {
        self.job.inputs.len() - self.planned
    }
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

    /// Ends the calls of an adapter that leaves.
    pub(super) fn end_adapter(&mut self, adapter: AdapterId, failure: &Failure, meters: &Meters) {
        let of_it = |call: &Call| call.job.adapter == Some(adapter);
        while let Some(index) = self.calls.iter().position(of_it) {
            if let Some(call) = self.calls.remove(index) {
                meters.ended(Ended::Failed, call.job.inputs.len());
                call.job.refuse(failure.clone());
            }
        }
    }

    /// The next step. The oldest call may take half of it, then the others go by how many
    /// inputs they have left, the fewest first, then the oldest again. An input is one row,
    /// however long: the first may be longer than the `limit`.
    pub(super) fn plan(&mut self, limit: PromptLimit, meters: &Meters) -> StepPlan {
        let mut plan = StepPlan::default();
        self.owners.clear();
        let most = match limit.others_wait || self.calls.len() > 1 {
            true => limit.beside.min(self.step_tokens),
            false => limit.alone.min(self.step_tokens),
        };
        let mut others: Vec<_> = (1..self.calls.len()).collect();
        others.sort_by_key(|index| self.calls[*index].left());
        self.take_rows(&mut plan, 0, most.div_ceil(2));
        for index in others.into_iter().chain([0]) {
            self.take_rows(&mut plan, index, most);
        }
        meters.admitted.increment(plan.rows.len() as u64);
        meters.prefilled.increment(plan.tokens() as u64);
        plan
    }

    /// Adds rows of a call while the plan is not over `most` tokens with them.
    fn take_rows(&mut self, plan: &mut StepPlan, index: usize, most: usize) {
        let mut tokens = plan.tokens();
        let Some(call) = self.calls.get_mut(index) else {
            return;
        };
        while let Some(input) = call.job.inputs.get_mut(call.planned) {
            tokens += input.len();
            let is_over = tokens > most && !plan.rows.is_empty();
            if is_over || plan.rows.len() == self.step_rows {
                return;
            }
            plan.rows.push(Row {
                tokens: std::mem::take(input),
                position: 0,
                blocks: Vec::new(),
                adapter: call.job.adapter,
                output: true,
            });
            self.owners.push(call.job.id);
            call.planned += 1;
            call.job.place = None;
        }
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
