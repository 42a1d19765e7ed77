//! From a vocabulary's logits to what may stand in place of a mask.

use crate::encoded::softmax;
use crate::text::TextCodec;
use crate::{Error, Fill};

/// A text with masks.
pub(crate) struct Masked<'a> {
    pub(crate) tokens: &'a [u32],
    /// Where its masks are.
    pub(crate) masks: &'a [usize],
    /// Per mask the logits of all tokens.
    pub(crate) logits: &'a [f32],
}

/// For each mask the likeliest tokens, `top_k` at most, of `targets` where they are given.
///
/// # Errors
/// `ModelInvalid` where the artefact's decoder fails.
pub(crate) fn fills(
    of: &Masked<'_>,
    codec: &TextCodec,
    targets: Option<&[u32]>,
    top_k: usize,
) -> Result<Vec<Vec<Fill>>, Error> {
    let vocabulary = of.logits.len() / of.masks.len().max(1);
    let rows = of.logits.chunks_exact(vocabulary.max(1));
    let of_mask = |(mask, logits): (&usize, &[f32])| {
        let best = likeliest(&softmax(logits), targets, top_k);
        best.into_iter().map(|(token, score)| fill(of, codec, *mask, (token, score))).collect()
    };
    of.masks.iter().zip(rows).map(of_mask).collect()
}

fn fill(
    of: &Masked<'_>,
    codec: &TextCodec,
    mask: usize,
    (token, score): (u32, f32),
) -> Result<Fill, Error> {
    let mut tokens = of.tokens.to_vec();
    tokens[mask] = token;
    let padding = codec.padding_token();
    tokens.retain(|token| Some(*token) != padding);
    // The other masks are to be seen.
    let sequence = codec.decoded(&tokens, of.masks.len() > 1)?;
    Ok(Fill { score, token, token_str: codec.decoded(&[token], true)?, sequence })
}

/// The likeliest tokens with their probabilities, the first first.
fn likeliest(scores: &[f32], targets: Option<&[u32]>, top_k: usize) -> Vec<(u32, f32)> {
    let scored = |token: u32| Some((token, *scores.get(token as usize)?));
    let mut known: Vec<(u32, f32)> = match targets {
        Some(targets) => targets.iter().copied().filter_map(scored).collect(),
        None => (0_u32..).zip(scores.iter().copied()).collect(),
    };
    let by_score = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if known.len() > top_k && top_k > 0 {
        known.select_nth_unstable_by(top_k - 1, by_score);
    }
    known.truncate(top_k);
    known.sort_unstable_by(by_score);
    known
}

/// The tokens that a client names, once each: the vocabulary's, or what a text begins with.
///
/// # Errors
/// `InvalidInput` where none is left; `ModelInvalid` where the tokenizer fails.
pub(crate) fn target_tokens(targets: &[String], codec: &TextCodec) -> Result<Vec<u32>, Error> {
    let mut tokens = Vec::with_capacity(targets.len());
    for target in targets {
        let known = codec.tokenizer().token_to_id(target);
        let token = match known {
            Some(token) => Some(token),
            None => codec.encode(target, false)?.first().copied(),
        };
        tokens.extend(token);
    }
    tokens.sort_unstable();
    tokens.dedup();
    if tokens.is_empty() {
        return Err(Error::field("targets", "none of them is a token"));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_tokens_come_first_and_only_of_those_that_are_named() {
        let scores = [0.1, 0.4, 0.05, 0.4, 0.05];
        assert_eq!(likeliest(&scores, None, 3), [(1, 0.4), (3, 0.4), (0, 0.1)]);
        assert_eq!(likeliest(&scores, Some(&[2, 3, 99]), 5), [(3, 0.4), (2, 0.05)]);
        assert_eq!(likeliest(&scores, None, 99).len(), 5);
    }
}
