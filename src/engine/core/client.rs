//! Whose a sequence is, and what is owed to them.

use std::sync::Arc;
use std::time::Instant;

use roundhouse_types::Failure;
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::metrics::Meters;
use crate::plan::AdapterId;
use crate::queue::Place;
use crate::request::{PromptToken, TokenResult};
use crate::sampler::{Choice, Sampler};
use crate::scheduler::Adapter;

/// The client of one sequence.
pub(super) struct Client {
    pub(super) adapter: Option<AdapterId>,
    /// Given back when it is admitted; texts of one call share theirs.
    pub(super) place: Option<Arc<Place>>,
    /// Whether it has been in a step.
    pub(super) begun: bool,
    /// Prompt tokens that were not computed for it.
    pub(super) reused: usize,
    pub(super) asked: Asked,
}

/// What it asked for.
pub(super) enum Asked {
    /// The tokens that follow.
    Tokens(Box<Writing>),
    /// What its adapter's own head makes of the whole.
    Answer(oneshot::Sender<Result<Vec<f32>, Failure>>),
}

/// A sequence that is written on.
pub(super) struct Writing {
    pub(super) tokens: mpsc::Sender<TokenResult>,
    pub(super) sampler: Sampler,
    /// Length, prompt included, at which the sequence ends.
    pub(super) limit: usize,
    /// Its prompt, while that is being scored, and what came of it.
    pub(super) scores: Option<(Vec<u32>, Vec<PromptToken>)>,
    pub(super) submitted: Instant,
    pub(super) last_token: Option<Instant>,
}

impl Client {
    /// Of a sequence that waits.
    pub(super) fn new(adapter: Option<Adapter>, place: Option<Arc<Place>>, asked: Asked) -> Self {
        let adapter = adapter.map(|adapter| adapter.id);
        Self { adapter, place, begun: false, reused: 0, asked }
    }

    /// The last that it hears.
    pub(super) fn refuse(self, failure: Failure) {
        // It may be gone, which is as good.
        match self.asked {
            Asked::Tokens(writing) => drop(writing.tokens.try_send(Err(failure))),
            Asked::Answer(answer) => drop(answer.send(Err(failure))),
        }
    }
}

impl Writing {
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        position: usize,
        meters: &Meters,
    ) -> Result<Choice, Error> {
        if !self.sampler.is_constrained() {
            return self.sampler.sample(logits, position);
        }
        let began = Instant::now();
        let choice = self.sampler.sample(logits, position);
        meters.constrained.record(began.elapsed());
        choice
    }

    /// Scores the tokens of the prompt that follow those from `position` on. What was scored before
    /// a pre-emption is not scored again.
    pub(super) fn score(
        &mut self,
        position: usize,
        logits: &[f32],
        width: usize,
    ) -> Result<(), Error> {
        let Some((prompt, scores)) = &mut self.scores else {
            return Ok(());
        };
        for (next, logits) in (position + 1..prompt.len()).zip(logits.chunks_exact(width)) {
            if next > scores.len() {
                scores.push(self.sampler.score(logits, prompt[next], next)?);
            }
        }
        Ok(())
    }

    pub(super) fn record_time(&mut self, meters: &Meters) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => meters.first_token.record(now - self.submitted),
            Some(last) => meters.next_token.record(now - last),
        }
    }
}
