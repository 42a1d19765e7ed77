//! From logits of beginnings and ends to the parts of a context that answer a question, as the
//! question-answering pipeline of transformers finds them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::text::Marked;
use crate::{AnswerOptions, SpanAnswer};

/// Which of a pair's texts is the context.
pub(crate) const CONTEXT: usize = 1;
/// Candidates that are looked at for each answer, since some become the same word.
const PER_ANSWER: usize = 2;
const MORE_CANDIDATES: usize = 10;

/// A question's context in windows.
pub(crate) struct Asked<'a> {
    pub(crate) context: &'a str,
    pub(crate) windows: &'a [Marked],
    /// Per window the logits of a beginning and an end, token after token.
    pub(crate) logits: &'a [Vec<f32>],
    /// The token that stands for the whole: no answer.
    pub(crate) class: Option<u32>,
}

/// A beginning and an end in a window.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    first: usize,
    last: usize,
    score: f32,
}

/// The answers, likeliest first, `top_k` at most.
pub(crate) fn answers(of: &Asked<'_>, options: &AnswerOptions) -> Vec<SpanAnswer> {
    let characters: Vec<char> = of.context.chars().collect();
    let most = match options.align_to_words {
        true => options.top_k.saturating_mul(PER_ANSWER).saturating_add(MORE_CANDIDATES),
        false => options.top_k,
    };
    let mut none = f32::INFINITY;
    let mut found: Vec<SpanAnswer> = Vec::new();
    // By their texts in lower case: equal ones are one answer.
    let mut known: HashMap<String, usize> = HashMap::new();
    for (marked, logits) in of.windows.iter().zip(of.logits) {
        let (mut starts, mut ends) = probabilities(marked, logits, of.class);
        if let (Some(start), Some(end)) = (starts.first_mut(), ends.first_mut()) {
            none = none.min(*start * *end);
            (*start, *end) = (0.0, 0.0);
        }
        for candidate in candidates(&starts, &ends, options.max_answer_len, most) {
            let (start, end) = characters_of(marked, candidate, options.align_to_words);
            let answer: String = characters.get(start..end).unwrap_or_default().iter().collect();
            let score = candidate.score;
            match known.entry(answer.to_lowercase()) {
                Entry::Occupied(same) => found[*same.get()].score += score,
                Entry::Vacant(new) => {
                    new.insert(found.len());
                    found.push(SpanAnswer { score, start, end, answer });
                }
            }
        }
    }
    if options.handle_impossible && none.is_finite() {
        found.push(SpanAnswer { score: none, start: 0, end: 0, answer: String::new() });
    }
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(options.top_k);
    found
}

/// The probabilities of beginnings and ends. Only the context has any, and the token that stands
/// for the whole.
fn probabilities(marked: &Marked, logits: &[f32], class: Option<u32>) -> (Vec<f32>, Vec<f32>) {
    let of = |side: usize| {
        let rows = marked.0.iter().zip(logits.chunks_exact(2));
        let masked: Vec<f32> = rows
            .map(|(mark, row)| {
                let counts = mark.text == Some(CONTEXT) || Some(mark.id) == class;
                if counts { row[side] } else { -10_000.0 }
            })
            .collect();
        super::softmax(&masked)
    };
    (of(0), of(1))
}

/// The likeliest pairs of a beginning and an end that is not before it and not too far.
fn candidates(starts: &[f32], ends: &[f32], longest: usize, most: usize) -> Vec<Candidate> {
    let mut all = Vec::new();
    for (first, start) in starts.iter().enumerate() {
        let last = ends.len().min(first.saturating_add(longest));
        for (last, end) in ends.iter().enumerate().take(last).skip(first) {
            let score = start * end;
            if score > 0.0 {
                all.push(Candidate { first, last, score });
            }
        }
    }
    let by_score = |a: &Candidate, b: &Candidate| b.score.total_cmp(&a.score);
    if all.len() > most && most > 0 {
        all.select_nth_unstable_by(most - 1, by_score);
        all.truncate(most);
    }
    all.sort_by(by_score);
    all
}

/// Where a candidate's characters are: its words' where they are to be whole.
fn characters_of(marked: &Marked, candidate: Candidate, align_to_words: bool) -> (usize, usize) {
    let Candidate { first, last, .. } = candidate;
    let has_words = |at: usize| marked.0[at].word.is_some();
    if align_to_words && has_words(first) && has_words(last) {
        return (marked.word_of(first, CONTEXT).0, marked.word_of(last, CONTEXT).1);
    }
    (marked.0[first].start, marked.0[last].end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_not_before_its_beginning_and_not_too_far() {
        let found = candidates(&[0.0, 0.5, 0.5], &[0.0, 0.9, 0.1], 2, 10);
        let places: Vec<_> = found.iter().map(|it| (it.first, it.last)).collect();
        assert_eq!(places, [(1, 1), (1, 2), (2, 2)]);
        assert_eq!(candidates(&[0.5, 0.1], &[0.1, 0.9], 1, 10).len(), 2);
        assert_eq!(
            candidates(&[0.5, 0.1], &[0.1, 0.9], 2, 1),
            [Candidate { first: 0, last: 1, score: 0.45 }]
        );
    }
}
