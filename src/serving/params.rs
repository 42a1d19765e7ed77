//! Generation parameters: what the client set, what the artefact says, what the face assumes.

use std::hash::{BuildHasher, RandomState};

use roundhouse_engine::{GenerateSpec, RunnerSpec, Sampling};

use crate::choice::Writing;
use crate::served::GenerationDefaults;
use crate::{
    ALTERNATIVES_MAX, BIASES_MAX, Error, FieldNames, Generation, STOP_BYTES_MAX, STOPS_MAX,
    Truncation,
};

#[cfg(test)]
mod tests;

/// `max_new_tokens` of LMI where a request sets none, and no other server's way is asked for.
const INPUTS_MAX_TOKENS: usize = 30;
/// Drawn seeds are exact in clients whose numbers are doubles.
const SEED_BITS: u32 = 53;

/// Whose defaults apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    /// `inputs` and `parameters`: greedy unless something asks to sample, 30 tokens.
    Inputs,
    /// OpenAI: sampled, up to the context unless another length is usual.
    OpenAi,
}

/// Checked parameters, the same for all sequences of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parameters {
    face: Face,
    max_tokens: Option<usize>,
    usual_tokens: Option<usize>,
    min_tokens: usize,
    sampling: Sampling,
    stop_tokens: Vec<u32>,
    top_logprobs: usize,
    /// Alternatives for each token of the prompt, where that is scored.
    prompt_logprobs: Option<usize>,
    prompt_ranks: bool,
    logit_bias: Vec<(u32, f32)>,
    names: FieldNames,
    truncation: Option<Truncation>,
    /// How the answer is written.
    pub(crate) writing: Writing,
}

impl Parameters {
    /// Checks what the client set and fills in the rest.
    ///
    /// # Errors
    /// `InvalidInput` that names the field.
    pub(crate) fn resolve(
        face: Face,
        asked: &Generation,
        defaults: &GenerationDefaults,
        eos_tokens: &[u32],
        vocab: usize,
    ) -> Result<Self, Error> {
        let names = asked.names;
        let checked = || {
            check(asked)?;
            let stops = asked.stop_token_ids.iter().copied();
            known(stops, vocab, |index, _| format!("stop_token_ids[{index}]"))?;
            let biased = asked.logit_bias.iter().map(|(id, _)| *id);
            known(biased, vocab, |_, id| format!("logit_bias.{id}"))
        };
        checked().map_err(|error: Error| error.within(names.prefix))?;
        let mut stop_tokens = asked.stop_token_ids.clone();
        if !asked.ignore_eos {
            stop_tokens.extend(eos_tokens);
        }
        Ok(Self {
            face,
            max_tokens: asked.max_tokens,
            usual_tokens: asked.usual_tokens,
            min_tokens: asked.min_tokens.unwrap_or(0),
            sampling: sampling(face, asked, defaults),
            stop_tokens,
            top_logprobs: asked.logprobs.unwrap_or(0),
            prompt_logprobs: prompt_logprobs(asked),
            prompt_ranks: asked.ranked_prompt.is_some(),
            logit_bias: asked.logit_bias.clone(),
            names,
            truncation: asked.truncation,
            writing: Writing {
                stop: asked.stop.clone(),
                include_stop: asked.include_stop,
                keep_special: asked.keep_special,
            },
        })
    }

    /// The seed of the first sequence.
    pub(crate) fn seed(&self) -> u64 {
        self.sampling.seed
    }

    /// How many of a prompt's tokens are read at most, and whether the last ones are; `None` where all
    /// are.
    pub(crate) fn truncated(&self, spec: &RunnerSpec) -> Option<(usize, bool)> {
        let Truncation { most, keeps_end } = self.truncation?;
        let room = longest_sequence(spec).saturating_sub(self.max_tokens.unwrap_or(1)).max(1);
        Some((most.unwrap_or(room), keeps_end))
    }

    /// The engine's view of one sequence; the `index`th has the seed `seed + index`.
    ///
    /// # Errors
    /// `InvalidInput` where the prompt, or the prompt with the tokens asked for, does not fit the
    /// context. Only a length that the client did not set is cut to what fits.
    pub(crate) fn sequence(
        &self,
        prompt: Vec<u32>,
        index: usize,
        spec: &RunnerSpec,
    ) -> Result<GenerateSpec, Error> {
        let names = self.names;
        let place = |index: usize, _: u32| format!("{}[{index}]", names.prompt);
        known(prompt.iter().copied(), spec.output_width, place)?;
        let context = longest_sequence(spec);
        let length = prompt.len();
        if length == 0 {
            return Err(Error::field(names.prompt, "it has no tokens"));
        }
        if length >= context {
            let over = length + 1 - context;
            let message = format!(
                "it has {length} tokens, {over} too many for one token of an answer in the context of {context} tokens"
            );
            return Err(Error::Context { field: names.prompt, message });
        }
        let room = context - length;
        let max_tokens = match (self.max_tokens, self.face) {
            (Some(asked), _) if asked > room => {
                let over = asked - room;
                let message = format!(
                    "{length} tokens of prompt and {asked} new ones exceed the context of {context} tokens by {over}"
                );
                return Err(Error::Context { field: names.max_tokens, message });
            }
            (Some(asked), _) => asked,
            (None, Face::Inputs) => self.usual_tokens.unwrap_or(INPUTS_MAX_TOKENS).min(room),
            (None, Face::OpenAi) => self.usual_tokens.unwrap_or(room).min(room),
        };
        if self.min_tokens > max_tokens {
            let message = format!("{} is more than the {max_tokens} at most", self.min_tokens);
            return Err(Error::field(names.min_tokens, message));
        }
        let offset = u64::try_from(index).expect("64-bit targets only");
        let seed = self.sampling.seed.wrapping_add(offset);
        Ok(GenerateSpec {
            prompt,
            max_tokens,
            min_tokens: self.min_tokens,
            stop_tokens: self.stop_tokens.clone(),
            sampling: Sampling { seed, ..self.sampling },
            top_logprobs: self.top_logprobs,
            prompt_logprobs: self.prompt_logprobs,
            prompt_ranks: self.prompt_ranks,
            logit_bias: self.logit_bias.clone(),
        })
    }
}

/// The longest sequence that context and KV pool allow.
fn longest_sequence(spec: &RunnerSpec) -> usize {
    let pool = spec.kv.map_or(usize::MAX, |kv| kv.blocks.saturating_mul(kv.block_tokens));
    spec.context.min(pool)
}

fn check(asked: &Generation) -> Result<(), Error> {
    let positive = f32::MIN_POSITIVE..=f32::MAX;
    let ranges = [
        ("temperature", asked.temperature, 0.0..=f32::MAX, "a number from 0 on"),
        ("top_p", asked.top_p, f32::MIN_POSITIVE..=1.0, "above 0 and at most 1"),
        ("min_p", asked.min_p, 0.0..=1.0, "between 0 and 1"),
        ("repetition_penalty", asked.repetition_penalty, positive, "a number above 0"),
        ("presence_penalty", asked.presence_penalty, -2.0..=2.0, "between -2 and 2"),
        ("frequency_penalty", asked.frequency_penalty, -2.0..=2.0, "between -2 and 2"),
    ];
    for (field, value, range, words) in ranges {
        if let Some(value) = value
            && !range.contains(&value)
        {
            return Err(Error::field(field, format!("{value} is not {words}")));
        }
    }
    if asked.max_tokens == Some(0) {
        return Err(Error::field("max_tokens", "0 is not at least 1"));
    }
    for (field, count) in [("logprobs", asked.logprobs), ("prompt_logprobs", asked.ranked_prompt)] {
        if count.is_some_and(|count| count > ALTERNATIVES_MAX) {
            return Err(Error::field(field, format!("more than {ALTERNATIVES_MAX} alternatives")));
        }
    }
    if asked.stop.len() > STOPS_MAX || asked.stop_token_ids.len() > STOPS_MAX {
        let field = if asked.stop.len() > STOPS_MAX { "stop" } else { "stop_token_ids" };
        return Err(Error::field(field, format!("more than {STOPS_MAX} entries")));
    }
    if asked.logit_bias.len() > BIASES_MAX {
        return Err(Error::field("logit_bias", format!("more than {BIASES_MAX} entries")));
    }
    if let Some((id, bias)) =
        asked.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias))
    {
        let message = format!("{bias} is not between -100 and 100");
        return Err(Error::field(format!("logit_bias.{id}"), message));
    }
    for (index, stop) in asked.stop.iter().enumerate() {
        if stop.is_empty() {
            return Err(Error::field(format!("stop[{index}]"), "it is empty"));
        }
        if stop.len() > STOP_BYTES_MAX {
            let message = format!("it is longer than {STOP_BYTES_MAX} bytes");
            return Err(Error::field(format!("stop[{index}]"), message));
        }
    }
    Ok(())
}

/// How many alternatives to score a prompt's tokens with: as many as any part of the answer tells.
fn prompt_logprobs(asked: &Generation) -> Option<usize> {
    let alike = asked.prompt_logprobs.then_some(asked.logprobs.unwrap_or(0));
    alike.max(asked.ranked_prompt)
}

/// Refuses ids outside the vocabulary: a runner would fail on them. `place` names one by its index and by
/// itself.
fn known(
    ids: impl Iterator<Item = u32>,
    vocab: usize,
    place: impl Fn(usize, u32) -> String,
) -> Result<(), Error> {
    let is_known = |id: u32| usize::try_from(id).is_ok_and(|id| id < vocab);
    match ids.enumerate().find(|(_, id)| !is_known(*id)) {
        None => Ok(()),
        Some((index, id)) => {
            let message = format!("{id} is not in the vocabulary of {vocab} tokens");
            Err(Error::field(place(index, id), message))
        }
    }
}

fn sampling(face: Face, asked: &Generation, defaults: &GenerationDefaults) -> Sampling {
    let shaped = asked.temperature.is_some() || asked.top_p.is_some() || asked.top_k.is_some();
    // The client's word, then its hints, then the artefact's word, then the face's habit.
    let sampled = match (asked.do_sample, shaped, defaults.do_sample, face) {
        (Some(sampled), ..) => sampled,
        (None, true, ..) => true,
        (None, false, Some(sampled), _) => sampled,
        (None, false, None, face) => face == Face::OpenAi,
    };
    let temperature = asked.temperature.or(defaults.temperature).unwrap_or(1.0);
    Sampling {
        temperature: if sampled { temperature } else { 0.0 },
        top_p: asked.top_p.or(defaults.top_p).unwrap_or(1.0),
        top_k: asked.top_k.or(defaults.top_k).unwrap_or(0),
        min_p: asked.min_p.or(defaults.min_p).unwrap_or(0.0),
        repetition_penalty: asked.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
        presence_penalty: asked.presence_penalty.unwrap_or(0.0),
        frequency_penalty: asked.frequency_penalty.unwrap_or(0.0),
        seed: asked.seed.unwrap_or_else(draw_seed),
    }
}

/// The standard library's only source of randomness: the keys of a fresh hash map.
fn draw_seed() -> u64 {
    RandomState::new().hash_one(0_u8) >> (u64::BITS - SEED_BITS)
}
