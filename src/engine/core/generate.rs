//! Sequences under way: what is sampled from their rows and to whom it goes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse_types::Failure;
use tokio::sync::mpsc;

use super::RowOutcome;
use super::client::{Asked, Client, Writing};
use crate::account::{Account, Claim, DECODED};
use crate::check::longest_sequence;
use crate::constraint::Constraint;
use crate::metrics::{Ended, Meters};
use crate::plan::{AdapterId, KvSpec, Row, RunnerSpec, StepPlan, Want};
use crate::queue::Place;
use crate::request::{FinishReason, GenerateSpec, TokenOut, TokenResult};
use crate::sampler::{Choice, Sampler};
use crate::scheduler::{Adapter, Limits, PromptLimit, Scheduler, SequenceId, Turn};

/// A sequence as it comes from a handle, checked.
pub(crate) struct GenerateJob {
    pub(crate) id: SequenceId,
    pub(crate) spec: GenerateSpec,
    /// What it is computed with beside the base.
    pub(crate) adapter: Option<Adapter>,
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    pub(crate) claim: Arc<Claim>,
    /// Holds every token the sequence can yield: sending never waits.
    pub(crate) tokens: mpsc::Sender<TokenResult>,
    /// Its place in the waiting queue, given back when it is admitted.
    pub(crate) place: Option<Place>,
    pub(crate) submitted: Instant,
}

impl GenerateJob {
    /// Ends it before it began.
    pub(super) fn refuse(self, failure: Failure) {
        // The client may be gone, which is as good.
        let _ = self.tokens.try_send(Err(failure));
    }
}

/// The sequences of a generative engine and their clients.
///
/// Every sequence is in the scheduler and in `clients`, or in neither, and its channel gets
/// exactly one ending: a token with a finish reason, a head's answer, or an error.
pub(super) struct GenerateWork {
    pub(super) scheduler: Scheduler,
    pub(super) clients: HashMap<SequenceId, Client>,
    /// Whose the rows of the step under way are.
    owners: Vec<SequenceId>,
    longest: usize,
}

impl GenerateWork {
    pub(super) fn new(spec: &RunnerSpec, kv: KvSpec, running: usize, reuse: bool) -> Self {
        let limits = Limits { kv, step_tokens: spec.step_tokens, running, reuse };
        Self {
            scheduler: Scheduler::new(limits),
            clients: HashMap::new(),
            owners: Vec::new(),
            longest: longest_sequence(spec),
        }
    }

    pub(super) fn submit(&mut self, job: GenerateJob, account: Arc<Account>, meters: &Meters) {
        let writing = Box::new(Writing {
            tokens: job.tokens,
            sampler: Sampler::new(&job.spec, job.constraint),
            limit: job.spec.prompt.len().saturating_add(job.spec.max_tokens).min(self.longest),
            scores: job.spec.prompt_logprobs.map(|_| (job.spec.prompt.clone(), Vec::new())),
            submitted: job.submitted,
            last_token: None,
        });
        let place = job.place.map(Arc::new);
        let client = Client::new(job.adapter, place, Asked::Tokens(writing));
        self.clients.insert(job.id, client);
        let turn = Turn::of(account, &job.claim);
        self.scheduler.submit_with(job.id, job.spec.prompt, job.adapter, turn);
        if job.spec.prompt_logprobs.is_some() {
            self.scheduler.score(job.id);
        }
        meters.submitted.increment(1);
    }

    pub(super) fn abort(&mut self, id: SequenceId, meters: &Meters) {
        if self.clients.contains_key(&id) {
            drop(self.remove(id, Ended::Aborted, meters));
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.clients.is_empty()
    }

    pub(super) fn running(&self) -> usize {
        self.scheduler.running()
    }

    /// Sequences that have run and wait to be computed again.
    pub(super) fn preempted(&self) -> usize {
        let begun = self.clients.values().filter(|client| client.begun).count();
        begun - self.scheduler.running()
    }

    pub(super) fn end(&mut self, failure: &Failure, meters: &Meters) {
        let ids: Vec<_> = self.clients.keys().copied().collect();
        for id in ids {
            self.fail(id, failure.clone(), meters);
        }
    }

    /// Ends the sequences of an adapter that leaves.
    pub(super) fn end_adapter(&mut self, adapter: AdapterId, failure: &Failure, meters: &Meters) {
        let of_it = self.clients.iter().filter(|(_, client)| client.adapter == Some(adapter));
        let ids: Vec<_> = of_it.map(|(id, _)| *id).collect();
        for id in ids {
            self.fail(id, failure.clone(), meters);
        }
    }

    /// The next step, and how many of its tokens are of prompts.
    pub(super) fn plan(&mut self, limit: PromptLimit, meters: &Meters) -> (StepPlan, usize) {
        let before = self.scheduler.blocks();
        let step = self.scheduler.plan(limit);
        let after = self.scheduler.blocks();
        meters.blocks_taken.increment(after.saturating_sub(before) as u64);
        meters.blocks_freed.increment(before.saturating_sub(after) as u64);
        meters.preempted.increment(step.preempted as u64);
        meters.reused.increment(step.reused as u64);
        meters.decoded.increment(step.decoded as u64);
        meters.prefilled.increment((step.plan.tokens() - step.decoded) as u64);
        for (id, found) in step.admitted.iter().zip(&step.found) {
            let client = self.clients.get_mut(id).expect("every sequence has its client");
            if !client.begun {
                client.begun = true;
                client.reused = *found;
                client.place = None;
                meters.admitted.increment(1);
            }
        }
        self.owners = step.owners;
        let prompts = step.plan.tokens() - step.decoded;
        (step.plan, prompts)
    }

    /// A step's time goes to those whose rows it had.
    pub(super) fn charge(&mut self, plan: &StepPlan, elapsed: Duration) {
        let counts = plan.rows.iter().map(|row| match row.output && row.tokens.len() == 1 {
            true => DECODED,
            false => row.tokens.len() as u64,
        });
        self.scheduler.charge(&self.owners, counts, elapsed);
        self.scheduler.measured(plan.tokens(), elapsed);
    }

    /// Adds those whose work it has.
    pub(super) fn accounts(&self, known: &mut Vec<Arc<Account>>) {
        self.scheduler.accounts(known);
    }

    /// Takes the rows' outcomes in; returns how many sequences ended.
    pub(super) fn finish(
        &mut self,
        plan: &StepPlan,
        outcomes: Vec<RowOutcome>,
        meters: &Meters,
    ) -> usize {
        let before = self.clients.len();
        let owners = std::mem::take(&mut self.owners);
        for ((id, row), outcome) in owners.into_iter().zip(&plan.rows).zip(outcomes) {
            match outcome {
                RowOutcome::Failed(failure) => self.fail(id, failure, meters),
                RowOutcome::Computed(output) => {
                    self.scheduler.computed(id, row.tokens.len());
                    if let Some(logits) = output {
                        self.answer(id, row, &logits, meters);
                    }
                }
            }
        }
        before - self.clients.len()
    }

    /// Takes a row's vectors in: scores of the prompt, and what the next token is sampled from.
    fn answer(&mut self, id: SequenceId, row: &Row, logits: &[f32], meters: &Meters) {
        let client = self.clients.get_mut(&id).expect("every sequence has its client");
        let Asked::Tokens(writing) = &mut client.asked else {
            return self.answered(id, logits, meters);
        };
        if row.want != Want::Each {
            return self.next_token(id, row, logits, meters);
        }
        let width = logits.len() / row.tokens.len();
        if let Err(error) = writing.score(row.position, logits, width) {
            return self.fail(id, error.into(), meters);
        }
        if self.scheduler.is_computed(id) {
            self.next_token(id, row, &logits[logits.len() - width..], meters);
        }
    }

    /// Samples the token after a row and sends it.
    fn next_token(&mut self, id: SequenceId, row: &Row, logits: &[f32], meters: &Meters) {
        let position = row.position + row.tokens.len();
        let Some(Client { asked: Asked::Tokens(writing), reused, .. }) = self.clients.get_mut(&id)
        else {
            return;
        };
        let choice = match writing.choose(logits, position, meters) {
            Ok(choice) => choice,
            Err(error) => return self.fail(id, error.into(), meters),
        };
        let finish = if choice.stop {
            Some(FinishReason::StopToken)
        } else if choice.complete {
            Some(FinishReason::Complete)
        } else if position + 1 >= writing.limit {
            Some(FinishReason::Length)
        } else {
            None
        };
        writing.record_time(meters);
        let Choice { id: token_id, logprob, top, .. } = choice;
        let prompt = writing.scores.take().map_or_else(Vec::new, |(_, scores)| scores);
        let token = TokenOut { id: token_id, logprob, top, prompt, reused: *reused, finish };
        let client_gone = writing.tokens.try_send(Ok(token)).is_err();
        match finish {
            Some(FinishReason::StopToken | FinishReason::Complete) => {
                drop(self.remove(id, Ended::Stop, meters));
            }
            Some(FinishReason::Length) => drop(self.remove(id, Ended::Length, meters)),
            None if client_gone => drop(self.remove(id, Ended::Aborted, meters)),
            None => self.scheduler.append(id, token_id),
        }
    }

    pub(super) fn fail(&mut self, id: SequenceId, failure: Failure, meters: &Meters) {
        if let Some(client) = self.remove(id, Ended::Failed, meters) {
            client.refuse(failure);
        }
    }

    /// Takes a sequence out; its client, who has not heard of it yet.
    pub(super) fn remove(
        &mut self,
        id: SequenceId,
        reason: Ended,
        meters: &Meters,
    ) -> Option<Client> {
        let before = self.scheduler.blocks();
        self.scheduler.remove(id);
        meters.blocks_freed.increment((before - self.scheduler.blocks()) as u64);
        meters.ended(reason, 1);
        self.clients.remove(&id)
    }
}
