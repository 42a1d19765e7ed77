//! Encoder calls under way: rows are computed whole, many calls' rows in one step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use roundhouse_types::Failure;
use tokio::sync::oneshot;

use super::RowOutcome;
use crate::account::{self, Account, Claim};
use crate::check::{RESULT_BYTES, answer_bytes};
use crate::error::Error;
use crate::metrics::{Ended, Meters};
use crate::plan::{AdapterId, Row, RunnerSpec, StepPlan};
use crate::queue::Place;
use crate::request::EncodeSpec;
use crate::scheduler::{Promised, PromptLimit, SequenceId, Turn};

/// Inputs to encode as they come from a handle, checked; at least one.
pub(crate) struct EncodeJob {
    pub(crate) id: SequenceId,
    pub(crate) inputs: Vec<EncodeSpec>,
    /// What they are computed with beside the base.
    pub(crate) adapter: Option<AdapterId>,
    pub(crate) claim: Arc<Claim>,
    pub(crate) answer: oneshot::Sender<Result<Vec<Vec<f32>>, Failure>>,
    /// Its place in the waiting queue, given back when its first row runs.
    pub(crate) place: Option<Place>,
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
    /// Bytes of what the step that is planned is answered with.
    answer_bytes: usize,
}

struct Call {
    job: EncodeJob,
    turn: Turn,
    /// How many inputs have been put in a step.
    planned: usize,
    /// Bytes of each vector that it is answered with.
    vector_bytes: usize,
    vectors: Vec<Vec<f32>>,
}

impl Call {
    /// Inputs that have not been put in a step.
    fn left(&self) -> usize {
        self.job.inputs.len() - self.planned
    }
}

impl EncodeWork {
    pub(super) fn new(spec: &RunnerSpec, step_rows: usize) -> Self {
        let step_tokens = spec.step_tokens;
        let (calls, owners) = (VecDeque::new(), Vec::new());
        Self { calls, owners, step_tokens, step_rows, answer_bytes: 0 }
    }

    /// Queues a call; `spec`: the shapes with its adapter.
    pub(super) fn submit(
        &mut self,
        job: EncodeJob,
        account: Arc<Account>,
        spec: &RunnerSpec,
        meters: &Meters,
    ) {
        let vector_bytes = answer_bytes(1, spec);
        meters.submitted.increment(job.inputs.len() as u64);
        let vectors = Vec::with_capacity(job.inputs.len());
        let turn = Turn::new(account, job.claim.priority).spending(job.claim.spent.clone());
        self.calls.push_back(Call { job, turn, planned: 0, vector_bytes, vectors });
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

    /// The next step. The call whose turn it is may take half of it, then the others go by turns
    /// and then by how many inputs they have left, the fewest first, then the first again. An
    /// input is one row, however long: the first may be longer than the `limit`.
    pub(super) fn plan(&mut self, limit: PromptLimit, meters: &Meters) -> StepPlan {
        let mut plan = StepPlan::default();
        self.owners.clear();
        self.answer_bytes = 0;
        let most = match limit.others_wait || self.calls.len() > 1 {
            true => limit.beside.min(self.step_tokens),
            false => limit.alone.min(self.step_tokens),
        };
        let promised = Promised::default();
        let rank = |index: &usize| self.calls[*index].turn.rank(&promised);
        let Some(first) = (0..self.calls.len()).min_by_key(rank) else {
            return plan;
        };
        let mut others: Vec<_> = (0..self.calls.len()).filter(|index| *index != first).collect();
        others.sort_by_key(|index| (rank(index), self.calls[*index].left()));
        self.take_rows(&mut plan, first, most.div_ceil(2), self.step_rows.div_ceil(2));
        for index in others.into_iter().chain([first]) {
            self.take_rows(&mut plan, index, most, self.step_rows);
        }
        self.age();
        meters.admitted.increment(plan.rows.len() as u64);
        meters.prefilled.increment(plan.tokens() as u64);
        plan
    }

    /// Calls that had no row in the step rise if it had rows of a higher class.
    fn age(&mut self) {
        let (owners, calls) = (&self.owners, &mut self.calls);
        let has_row = |call: &Call| owners.contains(&call.job.id);
        let highest = calls.iter().filter(|call| has_row(call)).map(|call| call.turn.class).max();
        for call in calls.iter_mut().filter(|call| !owners.contains(&call.job.id)) {
            call.turn.passed_by(highest.unwrap_or_default());
        }
    }

    /// A step's time goes to those whose rows it had.
    pub(super) fn charge(&self, plan: &StepPlan, elapsed: Duration) {
        let of = |id: &SequenceId| self.calls.iter().find(|call| call.job.id == *id);
        let rows: Vec<_> = self
            .owners
            .iter()
            .zip(&plan.rows)
            .filter_map(|(id, row)| Some((&of(id)?.turn, row.tokens.len() as u64)))
            .collect();
        account::split(elapsed, &rows);
    }

    /// Adds those whose calls it has.
    pub(super) fn accounts(&self, known: &mut Vec<Arc<Account>>) {
        for call in &self.calls {
            account::add(known, &call.turn.account);
        }
    }

    /// Adds rows of a call while the plan is not over `most` tokens, `rows` rows and the bytes of
    /// one answer with them.
    fn take_rows(&mut self, plan: &mut StepPlan, index: usize, most: usize, rows: usize) {
        let mut tokens = plan.tokens();
        let mut bytes = self.answer_bytes;
        let Some(call) = self.calls.get_mut(index) else {
            return;
        };
        while let Some(input) = call.job.inputs.get_mut(call.planned) {
            tokens += input.tokens.len();
            bytes += input.want.vectors(input.tokens.len()).saturating_mul(call.vector_bytes);
            let is_over = (tokens > most || bytes > RESULT_BYTES) && !plan.rows.is_empty();
            if is_over || plan.rows.len() >= rows {
                return;
            }
            plan.rows.push(Row {
                tokens: std::mem::take(&mut input.tokens),
                adapter: call.job.adapter,
                output: true,
                second: input.second,
                want: std::mem::take(&mut input.want),
                ..Row::default()
            });
            self.owners.push(call.job.id);
            self.answer_bytes = bytes;
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
