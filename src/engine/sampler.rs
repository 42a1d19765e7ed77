//! From a row of logits to a token.
//!
//! The order is Hugging Face's: the bias of single tokens, repetition, then frequency and
//! presence penalties, the masks of a constraint and of `min_tokens`, then temperature, `top_k`,
//! `top_p`, `min_p`, each over what the one before left. Ties go to the lower id.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::constraint::{Constraint, Progress};
use crate::error::Error;
use crate::request::{GenerateSpec, PromptToken, Sampling};

mod weights;

pub(crate) use weights::are_numbers;

/// What one sequence's sampling needs to remember. What it chooses depends on the logits,
/// the tokens before and (seed, position), so a recomputed sequence goes on as it would have.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    min_tokens: usize,
    stop_tokens: Vec<u32>,
    top_logprobs: usize,
    prompt_top: usize,
    /// Whether tokens of the prompt are ranked; that walks over the vocabulary for each.
    ranks_prompt: bool,
    logit_bias: Vec<(u32, f32)>,
    constraint: Option<Box<dyn Constraint>>,
    /// Prompt and generated tokens; kept only where a repetition penalty needs them.
    seen: HashSet<u32>,
    /// Occurrences of generated tokens; kept only where a penalty needs them.
    occurrences: HashMap<u32, u32>,
    generated: usize,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub(crate) id: u32,
    /// Under the model's own distribution, before penalties and filters.
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(u32, f32)>,
    /// Whether it is one of the sequence's stop tokens.
    pub(crate) stop: bool,
    /// Whether the constraint is met by it and nothing may follow.
    pub(crate) complete: bool,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    score: f32,
}

impl Sampler {
    /// The sampler of a new sequence.
    pub(crate) fn new(spec: &GenerateSpec, constraint: Option<Box<dyn Constraint>>) -> Self {
        let repetition = spec.sampling.repetition_penalty != 1.0;
        Self {
            sampling: spec.sampling,
            min_tokens: spec.min_tokens,
            stop_tokens: spec.stop_tokens.clone(),
            top_logprobs: spec.top_logprobs,
            prompt_top: spec.prompt_logprobs.unwrap_or(0),
            ranks_prompt: spec.prompt_ranks,
            logit_bias: spec.logit_bias.clone(),
            constraint,
            seen: spec.prompt.iter().copied().filter(|_| repetition).collect(),
            occurrences: HashMap::new(),
            generated: 0,
        }
    }

    /// Chooses the token at `position` of the sequence and remembers it.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for logits that are not numbers, [`Error::NothingToChoose`] where
    /// the mask leaves nothing, [`Error::Constrained`] where the constraint cannot be followed.
    /// The sequence cannot go on after any of them.
    pub(crate) fn sample(&mut self, logits: &[f32], position: usize) -> Result<Choice, Error> {
        if !are_numbers(logits) {
            return Err(Error::NotFinite { position });
        }
        let mut scores = logits.to_vec();
        for (id, bias) in &self.logit_bias {
            let score = &mut scores[*id as usize];
            *score = (*score + bias).clamp(f32::MIN, f32::MAX);
        }
        self.penalise(&mut scores);
        self.mask(&mut scores, position)?;
        let chosen = if self.sampling.temperature == 0.0 {
            likeliest(&scores)
        } else {
            draw(&scores, &self.sampling, position)
        };
        let id = chosen.ok_or(Error::NothingToChoose { position })?;
        let stop = self.stop_tokens.contains(&id);
        let progress = match &mut self.constraint {
            Some(constraint) if !stop => {
                constraint.accept(id).map_err(|source| Error::Constrained { position, source })?
            }
            _ => Progress::Open,
        };
        let (logprob, top) = scored(logits, id, self.top_logprobs);
        let choice = Choice { id, logprob, top, stop, complete: progress == Progress::Complete };
        self.remember(id);
        Ok(choice)
    }

    /// What the model gave a token that was there already, at `position`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for logits that are not numbers.
    pub(crate) fn score(
        &self,
        logits: &[f32],
        id: u32,
        position: usize,
    ) -> Result<PromptToken, Error> {
        if !are_numbers(logits) {
            return Err(Error::NotFinite { position });
        }
        let (logprob, top) = scored(logits, id, self.prompt_top);
        let rank = self.ranks_prompt.then(|| rank(logits, id));
        Ok(PromptToken { logprob, rank, top })
    }

    /// Whether each of its tokens costs more than choosing it.
    pub(crate) fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    fn remember(&mut self, id: u32) {
        self.generated += 1;
        if self.sampling.repetition_penalty != 1.0 {
            self.seen.insert(id);
        }
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.occurrences.entry(id).or_default() += 1;
        }
    }

    fn penalise(&self, scores: &mut [f32]) {
        let penalty = self.sampling.repetition_penalty;
        for id in &self.seen {
            // A prompt may hold tokens the head does not produce.
            if let Some(score) = scores.get_mut(*id as usize) {
                let penalised = if *score < 0.0 { *score * penalty } else { *score / penalty };
                *score = penalised.clamp(f32::MIN, f32::MAX);
            }
        }
        for (id, count) in &self.occurrences {
            let score = &mut scores[*id as usize];
            #[expect(clippy::cast_precision_loss, reason = "counts stay below the context")]
            let frequency = self.sampling.frequency_penalty * *count as f32;
            let penalised = *score - frequency - self.sampling.presence_penalty;
            *score = penalised.clamp(f32::MIN, f32::MAX);
        }
    }

    /// Masks what the constraint does not allow, and stop tokens where the sequence may not end:
    /// by the constraint, or before `min_tokens`. Where a constraint leaves nothing but the end,
    /// the sequence ends even before `min_tokens`.
    fn mask(&mut self, scores: &mut [f32], position: usize) -> Result<(), Error> {
        let early = self.generated < self.min_tokens;
        let Some(constraint) = &mut self.constraint else {
            if early {
                for id in &self.stop_tokens {
                    if let Some(score) = scores.get_mut(*id as usize) {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
            return Ok(());
        };
        let allowed =
            constraint.allowed().map_err(|source| Error::Constrained { position, source })?;
        let ends: Vec<(usize, f32)> = self
            .stop_tokens
            .iter()
            .filter_map(|id| Some((*id as usize, *scores.get(*id as usize)?)))
            .collect();
        keep(scores, allowed.tokens);
        let goes_on = |scores: &[f32]| {
            (0..)
                .zip(scores)
                .any(|(id, score)| *score > f32::NEG_INFINITY && !self.stop_tokens.contains(&id))
        };
        if (early || !allowed.may_end) && goes_on(scores) {
            ends.iter().for_each(|(id, _)| scores[*id] = f32::NEG_INFINITY);
        } else if allowed.may_end {
            ends.iter().for_each(|(id, score)| scores[*id] = *score);
        }
        Ok(())
    }
}

/// A token's log-probability under the model's own distribution, and the likeliest ones' with theirs.
fn scored(logits: &[f32], id: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let normaliser = weights::log_sum_exp(logits);
    let logprob = logprob(logits[id as usize], normaliser);
    (logprob, alternatives(logits, top, normaliser))
}

/// A token's place among all by likelihood, from 1, in the order of [`likelier`]. Counted without a
/// branch: so it costs no more than a pass over the logits.
fn rank(logits: &[f32], id: u32) -> usize {
    let (lower, rest) = logits.split_at(id as usize);
    let own = rest[0];
    let before = lower.iter().filter(|score| score.total_cmp(&own).is_ge()).count();
    let behind = rest.iter().filter(|score| score.total_cmp(&own).is_gt()).count();
    1 + before + behind
}

/// Masks all scores but those whose bit is set.
fn keep(scores: &mut [f32], bits: &[u32]) {
    let mut words = bits.iter();
    for scores in scores.chunks_mut(u32::BITS as usize) {
        let word = words.next().copied().unwrap_or(0);
        if word == u32::MAX {
            continue;
        }
        for (bit, score) in scores.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Likelier first; equal ones by id.
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

fn candidates(scores: &[f32]) -> Vec<Candidate> {
    (0..)
        .zip(scores)
        .filter(|(_, score)| **score > f32::NEG_INFINITY)
        .map(|(id, score)| Candidate { id, score: *score })
        .collect()
}

fn likeliest(scores: &[f32]) -> Option<u32> {
    let best = weights::largest(scores);
    let is_best = |(_, score): &(u32, &f32)| **score == best && best > f32::NEG_INFINITY;
    (0..).zip(scores).find(is_best).map(|(id, _)| id)
}

fn draw(scores: &[f32], sampling: &Sampling, position: usize) -> Option<u32> {
    let best = weights::largest(scores);
    if best == f32::NEG_INFINITY {
        return None;
    }
    // Relative to the likeliest, which weighs 1, so that no temperature overflows.
    let weights = weights::weigh(scores, best, sampling.temperature);
    let chance = uniform(sampling.seed, position);
    if sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p <= 0.0 {
        let all = drawn(&weights, chance);
        return all.and_then(|index| u32::try_from(index).ok());
    }
    let weight = |c: &Candidate| f64::from(weights[c.id as usize]);
    let mut left = candidates(scores);
    if sampling.top_k > 0 && sampling.top_k < left.len() {
        left.select_nth_unstable_by(sampling.top_k - 1, likelier);
        left.truncate(sampling.top_k);
        left.sort_unstable_by(likelier);
    }
    if sampling.top_p < 1.0 {
        keep_nucleus(&mut left, f64::from(sampling.top_p), weight);
    }
    if sampling.min_p > 0.0 {
        left.retain(|c| weight(c) >= f64::from(sampling.min_p));
    }
    let kept: Vec<f32> = left.iter().map(|c| weights[c.id as usize]).collect();
    drawn(&kept, chance).map(|index| left[index].id)
}

/// The index that a number in [0, 1) falls to, by the weights in their order.
fn drawn(weights: &[f32], chance: f64) -> Option<usize> {
    let sums: Vec<f64> = weights::sums(weights).collect();
    let mut rest = chance * sums.iter().sum::<f64>();
    for (part, sum) in sums.iter().enumerate() {
        if rest >= *sum {
            rest -= sum;
            continue;
        }
        for (index, weight) in weights.iter().enumerate().skip(part * weights::PART) {
            rest -= f64::from(*weight);
            if rest < 0.0 {
                return Some(index);
            }
        }
        break;
    }
    // Rounding may leave a sliver past the last one.
    weights.iter().rposition(|weight| *weight > 0.0)
}

/// Keeps the fewest likeliest candidates whose share of the weight reaches `top_p`.
fn keep_nucleus(left: &mut Vec<Candidate>, top_p: f64, weight: impl Fn(&Candidate) -> f64) {
    // A nucleus is small as a rule: sorting a whole vocabulary would cost more than the rest.
    const FIRST_LOOK: usize = 256;
    let wanted = top_p * left.iter().map(&weight).sum::<f64>();
    let mut look = FIRST_LOOK;
    loop {
        let prefix = look.min(left.len());
        if prefix < left.len() {
            left.select_nth_unstable_by(prefix - 1, likelier);
        }
        left[..prefix].sort_unstable_by(likelier);
        let mut reached = 0.0;
        for (index, candidate) in left[..prefix].iter().enumerate() {
            reached += weight(candidate);
            if reached >= wanted {
                left.truncate(index + 1);
                return;
            }
        }
        if prefix == left.len() {
            return;
        }
        look = look.saturating_mul(8);
    }
}

/// A number in [0, 1) that depends on seed and position alone.
fn uniform(seed: u64, position: usize) -> f64 {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(position as u64);
    // The 53 bits that a double holds.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let numerator = (random.next_u64() >> 11) as f64;
    numerator / (1_u64 << 53) as f64
}

#[expect(clippy::cast_possible_truncation, reason = "reported in single precision")]
fn logprob(logit: f32, normaliser: f64) -> f32 {
    (f64::from(logit) - normaliser) as f32
}

fn alternatives(logits: &[f32], count: usize, normaliser: f64) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut all = candidates(logits);
    if count < all.len() {
        all.select_nth_unstable_by(count - 1, likelier);
        all.truncate(count);
    }
    all.sort_unstable_by(likelier);
    all.iter().map(|c| (c.id, logprob(c.score, normaliser))).collect()
}

#[cfg(test)]
mod tests;
