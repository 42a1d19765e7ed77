//! How much of its prompts one answer may repeat.

use std::cmp::Reverse;

use super::Read;
use crate::{Error, Generation};

/// Bytes that all answers of a request may repeat of it: of a prompt that is cut a chat repeats the whole
/// message.
const ECHO_BYTES_MAX: usize = 32 << 20;

/// Refuses to repeat more than that.
pub(super) fn echo_bounded(prompts: &[Read], n: usize) -> Result<(), Error> {
    let bytes = prompts.iter().map(|(_, lead)| lead.len()).sum::<usize>().saturating_mul(n);
    if bytes <= ECHO_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "the answers would repeat {bytes} bytes, more than the {ECHO_BYTES_MAX} of one request"
    );
    Err(Error::field("echo", message))
}

/// Bytes that what one answer tells of its prompts' tokens may take until it is sent: half of what all
/// answers together may ([`Room`](crate::room::Room)).
const TOLD_BYTES_MAX: u64 = 128 << 20;
/// What a log-probability takes, of a token or an alternative: the engine's word of it, ours with the
/// token's text, and the fields of JSON before they are text.
const SCORE_BYTES: u64 = 512;
/// One with its rank is told in an object of its own.
const RANKED_BYTES: u64 = 3 * SCORE_BYTES;
/// What a token takes that is told by its id alone.
const ID_BYTES: u64 = 64;

/// The bytes that what is told of prompts' tokens takes. What is told of a prompt beside the `answers` to
/// it, is told so many times as `told`.
///
/// # Errors
/// `Field` that names what asks for the most of them, where they are more than one answer may take.
pub(super) fn told_bounded(
    asked: &Generation,
    prompts: &[Read],
    answers: usize,
    told: usize,
) -> Result<u64, Error> {
    let tokens: usize = prompts.iter().map(|(tokens, _)| tokens.len()).sum();
    let alike = asked.prompt_logprobs.then_some(answers * (1 + asked.logprobs.unwrap_or(0)));
    let ranked = asked.ranked_prompt.map(|top| told * (1 + top));
    let ids = asked.prompt_ids.then_some(told);
    let mut kinds = [
        (asked.names.prompt, "log-probabilities of its tokens", alike, SCORE_BYTES),
        ("prompt_logprobs", "log-probabilities", ranked, RANKED_BYTES),
        ("return_token_ids", "ids of the prompts' tokens", ids, ID_BYTES),
    ]
    .map(|(field, what, each, bytes)| {
        let count = tokens.saturating_mul(each.unwrap_or(0));
        (field, what, count, bytes.saturating_mul(count as u64))
    });
    let bytes = kinds.iter().fold(0, |sum: u64, (.., bytes)| sum.saturating_add(*bytes));
    if bytes <= TOLD_BYTES_MAX {
        return Ok(bytes);
    }
    kinds.sort_unstable_by_key(|(.., bytes)| Reverse(*bytes));
    let [(field, what, count, _), ..] = kinds;
    let message = format!(
        "{count} {what} would be told: all that is asked of prompts takes {bytes} bytes, more than the \
         {TOLD_BYTES_MAX} of one answer"
    );
    Err(Error::field(field, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of those that are told alike.
    const SCORES_MAX: usize = 262_144;

    fn told(asked: &Generation, tokens: usize, answers: usize, told: usize) -> Result<u64, Error> {
        told_bounded(asked, &[(vec![1; tokens], String::new())], answers, told)
    }

    #[test]
    fn scores_of_one_answer_are_bounded_with_their_alternatives() {
        let alike = |top| Generation {
            logprobs: Some(top),
            prompt_logprobs: true,
            ..Generation::default()
        };
        assert_eq!(told(&alike(0), SCORES_MAX, 1, 1).unwrap(), TOLD_BYTES_MAX);
        assert!(told(&alike(1), SCORES_MAX / 2, 1, 1).is_ok());
        assert!(told(&alike(0), SCORES_MAX / 2, 2, 2).is_ok());
        let refused = told(&alike(0), SCORES_MAX + 1, 1, 1).unwrap_err();
        assert!(refused.to_string().starts_with("prompt: 262145 log-prob"), "{refused}");
        assert!(told(&alike(1), SCORES_MAX / 2, 2, 2).is_err());
        // What is told once for all answers counts once.
        let ranked = |top| Generation {
            ranked_prompt: Some(top),
            prompt_ids: true,
            ..Generation::default()
        };
        let most = usize::try_from(TOLD_BYTES_MAX / (2 * RANKED_BYTES + ID_BYTES)).unwrap();
        assert!(told(&ranked(1), most, 64, 1).is_ok());
        let refused = told(&ranked(1), most + 1, 64, 1).unwrap_err();
        assert!(refused.to_string().starts_with("prompt_logprobs: "), "{refused}");
        assert!(told(&ranked(1), most, 2, 2).is_err());
        assert_eq!(told(&Generation::default(), usize::MAX >> 40, 64, 64).unwrap(), 0);
    }

    #[test]
    fn ids_alone_are_counted_and_refused_as_such() {
        let asked = Generation { prompt_ids: true, ..Generation::default() };
        assert!(told(&asked, SCORES_MAX, 8, 8).is_ok(), "they are no log-probabilities");
        let most = usize::try_from(TOLD_BYTES_MAX / ID_BYTES).unwrap();
        let refused = told(&asked, most / 8 + 1, 8, 8).unwrap_err().to_string();
        assert!(refused.starts_with("return_token_ids: 2097160 ids"), "{refused}");
    }
}
