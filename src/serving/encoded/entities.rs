//! From the labels of tokens to entities, as the token-classification pipeline of transformers
//! finds them.

use std::sync::Arc;

use crate::encoded::softmax;
use crate::text::{Marked, TextCodec};
use crate::{Aggregation, Entity, EntityOptions, Error};

/// A token that is no special one, with the scores of all labels.
struct Token {
    word: String,
    scores: Vec<f32>,
    start: usize,
    end: usize,
    index: usize,
    /// Whether it goes on in the word of the token before.
    is_subword: bool,
}

/// A text, cut into windows where it is long.
pub(crate) struct Labelled<'a> {
    pub(crate) text: &'a str,
    pub(crate) windows: &'a [Marked],
    /// Per window the logits, token after token.
    pub(crate) logits: &'a [Vec<f32>],
    pub(crate) labels: &'a [Arc<str>],
}

/// The entities of a text.
///
/// # Errors
/// `ModelInvalid` where the artefact's decoder fails.
pub(crate) fn entities(
    of: &Labelled<'_>,
    codec: &TextCodec,
    options: &EntityOptions,
) -> Result<Vec<Entity>, Error> {
    let characters: Vec<char> = of.text.chars().collect();
    let mut found = Vec::new();
    for (marked, logits) in of.windows.iter().zip(of.logits) {
        let tokens = tokens(&characters, marked, logits, of.labels.len(), codec);
        let strategy = options.aggregation;
        let tagged = match strategy {
            Aggregation::None | Aggregation::Simple => {
                tokens.iter().map(|token| of_token(token, of.labels)).collect()
            }
            Aggregation::First | Aggregation::Average | Aggregation::Max => {
                of_words(&tokens, of.labels, strategy, codec)?
            }
        };
        let whole = match strategy {
            Aggregation::None => tagged,
            _ => grouped(&tagged, codec)?,
        };
        found.extend(
            whole.into_iter().filter(|it| !options.ignored.iter().any(|no| **no == *it.label)),
        );
    }
    if of.windows.len() > 1 {
        found = without_overlaps(found);
    }
    Ok(found)
}

fn tokens(
    characters: &[char],
    marked: &Marked,
    logits: &[f32],
    labels: usize,
    codec: &TextCodec,
) -> Vec<Token> {
    let (marks_subwords, unknown) = (codec.marks_subwords(), codec.unknown_token());
    let rows = marked.0.iter().zip(logits.chunks_exact(labels.max(1))).enumerate();
    let told = rows.filter(|(_, (mark, _))| !mark.special);
    told.map(|(index, (mark, row))| {
        let (start, end) = (mark.start, mark.end);
        let mut word = codec.word(mark.id);
        let length = end.saturating_sub(start);
        let mut is_subword = if marks_subwords {
            word.chars().count() != length
        } else {
            // Vocabularies that mark the beginnings of words: nothing blank between.
            let around = &characters
                [(start.max(1) - 1).min(characters.len())..characters.len().min(start + 1)];
            start > 0 && !around.contains(&' ')
        };
        if Some(mark.id) == unknown {
            word = characters.get(start..end).unwrap_or_default().iter().collect();
            is_subword = false;
        }
        Token { word, scores: softmax(row), start, end, index, is_subword }
    })
    .collect()
}

/// The first of the largest, as numpy finds it.
fn largest(scores: &[f32]) -> usize {
    let mut best = 0;
    for (at, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = at;
        }
    }
    best
}

fn of_token(token: &Token, labels: &[Arc<str>]) -> Entity {
    let best = largest(&token.scores);
    Entity {
        label: Arc::clone(&labels[best]),
        score: token.scores[best],
        word: token.word.clone(),
        start: token.start,
        end: token.end,
        index: Some(token.index),
    }
}

/// Words, each with one label for all of its tokens.
fn of_words(
    tokens: &[Token],
    labels: &[Arc<str>],
    strategy: Aggregation,
    codec: &TextCodec,
) -> Result<Vec<Entity>, Error> {
    tokens
        .chunk_by(|_, next| next.is_subword)
        .map(|word| of_word(word, labels, strategy, codec))
        .collect()
}

fn of_word(
    tokens: &[Token],
    labels: &[Arc<str>],
    strategy: Aggregation,
    codec: &TextCodec,
) -> Result<Entity, Error> {
    let (first, last) = (&tokens[0], &tokens[tokens.len() - 1]);
    let sureness = |token: &Token| token.scores[largest(&token.scores)];
    let scores = match strategy {
        Aggregation::Average => mean(tokens),
        Aggregation::Max => {
            let surest = |best, token| if sureness(token) > sureness(best) { token } else { best };
            tokens.iter().fold(first, surest).scores.clone()
        }
        Aggregation::None | Aggregation::Simple | Aggregation::First => first.scores.clone(),
    };
    let best = largest(&scores);
    let words = tokens.iter().map(|token| token.word.clone()).collect();
    Ok(Entity {
        label: Arc::clone(&labels[best]),
        score: scores[best],
        word: codec.joined(words)?,
        start: first.start,
        end: last.end,
        index: None,
    })
}

fn mean(tokens: &[Token]) -> Vec<f32> {
    let mut sums = vec![0.0; tokens[0].scores.len()];
    for token in tokens {
        for (sum, score) in sums.iter_mut().zip(&token.scores) {
            *sum += score;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "words have few tokens")]
    let count = tokens.len() as f32;
    sums.into_iter().map(|sum: f32| sum / count).collect()
}

/// What a label says of where in an entity a token is, and the entity's kind.
fn tag(label: &str) -> (bool, &str) {
    match label.split_at_checked(2) {
        Some(("B-", kind)) => (true, kind),
        Some(("I-", kind)) => (false, kind),
        // Labels without such marks go on.
        _ => (false, label),
    }
}

/// Neighbours of one kind are one entity, unless the second begins another.
fn grouped(tagged: &[Entity], codec: &TextCodec) -> Result<Vec<Entity>, Error> {
    let goes_on = |last: &Entity, next: &Entity| {
        let (begins, kind) = tag(&next.label);
        kind == tag(&last.label).1 && !begins
    };
    tagged.chunk_by(goes_on).map(|group| one_of(group, codec)).collect()
}

fn one_of(group: &[Entity], codec: &TextCodec) -> Result<Entity, Error> {
    let (first, last) = (&group[0], &group[group.len() - 1]);
    // Everything behind the first hyphen, whatever stands before it.
    let label = first.label.split_once('-').map_or(&*first.label, |(_, kind)| kind);
    #[expect(clippy::cast_precision_loss, reason = "a text has fewer tokens than 2^23")]
    let count = group.len() as f32;
    Ok(Entity {
        label: label.into(),
        score: group.iter().map(|entity| entity.score).sum::<f32>() / count,
        word: codec.joined(group.iter().map(|entity| entity.word.clone()).collect())?,
        start: first.start,
        end: last.end,
        index: None,
    })
}

/// Of entities that overlap, as windows of one text find them, the longest, then the surest.
fn without_overlaps(mut found: Vec<Entity>) -> Vec<Entity> {
    found.sort_by_key(|entity| entity.start);
    let mut kept: Vec<Entity> = Vec::with_capacity(found.len());
    for entity in found {
        let Some(last) = kept.last_mut().filter(|last| entity.start < last.end) else {
            kept.push(entity);
            continue;
        };
        let (length, other) = (entity.end - entity.start, last.end - last.start);
        if length > other || length == other && entity.score > last.score {
            *last = entity;
        }
    }
    kept
}
