//! How many tokens of prompts a step may carry.

use std::time::Duration;

use crate::scheduler::PromptLimit;

/// Follows how fast prompts are read, so that a step takes about as long as it should.
#[derive(Debug)]
pub(super) struct PromptRoom {
    /// How long a step should take while somebody waits for its end; zero: as long as it takes.
    step_time: Duration,
    /// Tokens per second of the steps that read prompts, lately.
    rate: Option<f64>,
}

/// Even where a step without prompts takes longer than it should, prompts get on.
const LEAST: usize = 32;

/// Before the first measurement: little enough for any device.
const UNKNOWN: usize = 64;

/// Somebody may come at any time, or leave: alone, a step takes no more than so many times as
/// long.
const ALONE: usize = 8;

/// Weight of the newest measurement: rates fall while a long prompt is read.
const NEWEST: f64 = 0.5;

impl PromptRoom {
    pub(super) fn new(step_time: Duration) -> Self {
        Self { step_time, rate: None }
    }

    /// What bounds the next step.
    pub(super) fn limit(&self, others_wait: bool) -> PromptLimit {
        let beside = self.tokens();
        PromptLimit { alone: beside.saturating_mul(ALONE), beside, others_wait }
    }

    /// The tokens of prompts while somebody waits.
    fn tokens(&self) -> usize {
        if self.step_time.is_zero() {
            return usize::MAX;
        }
        let Some(rate) = self.rate else {
            return UNKNOWN;
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "never negative, and the cast saturates"
        )]
        let fitting = (rate * self.step_time.as_secs_f64()) as usize;
        fitting.max(LEAST)
    }

    /// A step that read prompts has computed `tokens` tokens in all.
    pub(super) fn measured(&mut self, tokens: usize, elapsed: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let newest = tokens as f64 / elapsed.as_secs_f64().max(1e-6);
        self.rate = Some(self.rate.map_or(newest, |rate| rate + NEWEST * (newest - rate)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device whose step takes 50 ms and 2 ms for each token.
    fn step(tokens: usize) -> Duration {
        Duration::from_millis(50 + 2 * u64::try_from(tokens).unwrap())
    }

    #[test]
    fn steps_approach_the_time_that_they_should_take() {
        let mut room = PromptRoom::new(Duration::from_millis(250));
        assert_eq!(room.tokens(), UNKNOWN);
        for _ in 0..20 {
            let tokens = room.tokens();
            room.measured(tokens, step(tokens));
        }
        assert!((95..=105).contains(&room.tokens()), "{}", room.tokens());
    }

    #[test]
    fn prompts_get_on_where_any_step_takes_too_long() {
        let mut room = PromptRoom::new(Duration::from_millis(10));
        room.measured(LEAST, step(LEAST));
        assert_eq!(room.tokens(), LEAST);
    }

    #[test]
    fn without_a_limit_there_is_none() {
        let mut room = PromptRoom::new(Duration::ZERO);
        room.measured(10, step(10));
        assert_eq!(room.tokens(), usize::MAX);
    }
}
