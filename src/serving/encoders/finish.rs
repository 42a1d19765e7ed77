//! From the engine's numbers to the answer.

use roundhouse_types::ModelId;

use super::{Numbers, Scoring, TOLD_MAX};
use crate::encoded::entities::{Labelled, entities};
use crate::encoded::fills::{Masked, fills};
use crate::encoded::spans::{Asked, answers};
use crate::encoded::{cosines, label_scores, normalize, sigmoid, zero_shot_scores};
use crate::text::{Marked, TextCodec};
use crate::{
    AnswerOptions, EmbeddingsReply, EntityOptions, Error, Labels, Reply, ScoresReply,
    TokenVectorsReply, ZeroShot,
};

/// What becomes of the numbers.
pub(super) enum Finish {
    Vectors { normalize: bool, dimensions: Option<usize> },
    TokenVectors { width: usize },
    Labels(Scoring),
    ZeroShot { labels: Labels, asked: ZeroShot },
    Entities { texts: Vec<(String, Vec<Marked>)>, labels: Labels, options: EntityOptions },
    Fills { texts: Vec<(Vec<u32>, Vec<usize>)>, targets: Option<Vec<u32>>, top_k: usize },
    Answers { contexts: Vec<(String, Vec<Marked>)>, options: AnswerOptions },
    Cosines,
    Relevance { raw: bool },
}

/// Makes the answer of the engine's numbers.
pub(crate) struct Finisher {
    pub(super) finish: Finish,
    pub(super) prompt_tokens: usize,
}

impl Finisher {
    /// Whether that takes time and belongs on a blocking thread.
    pub(crate) fn is_long(&self) -> bool {
        match self.finish {
            Finish::Vectors { .. } | Finish::Labels(_) | Finish::Relevance { .. } => false,
            Finish::TokenVectors { .. }
            | Finish::ZeroShot { .. }
            | Finish::Entities { .. }
            | Finish::Fills { .. }
            | Finish::Answers { .. }
            | Finish::Cosines => true,
        }
    }

    /// The answer. `numbers` are one row's after the other's.
    ///
    /// # Errors
    /// `ModelFailed` where the numbers do not match what was asked; `ModelInvalid` where the
    /// artefact's decoder fails.
    pub(crate) fn answer(
        self,
        model: &ModelId,
        text: &TextCodec,
        numbers: Numbers,
    ) -> Result<Reply, Error> {
        let broken = |message| Error::Broken { model: model.clone(), message };
        if numbers.iter().flatten().any(|number| !number.is_finite()) {
            return Err(broken("its numbers are not finite"));
        }
        let reply = self.reply(text, numbers)?;
        reply.ok_or_else(|| broken("its numbers do not match what was asked"))
    }

    /// `None` where the numbers do not match what was asked.
    fn reply(self, text: &TextCodec, numbers: Numbers) -> Result<Option<Reply>, Error> {
        let prompt_tokens = self.prompt_tokens;
        Ok(match self.finish {
            Finish::Vectors { normalize, dimensions } => {
                let vectors = shortened(numbers, normalize, dimensions);
                Some(Reply::Embeddings(EmbeddingsReply { vectors, prompt_tokens }))
            }
            Finish::TokenVectors { width } => {
                let tokens =
                    |row: &Vec<f32>| row.chunks(width.max(1)).map(<[f32]>::to_vec).collect();
                let inputs = numbers.iter().map(tokens).collect();
                Some(Reply::TokenVectors(TokenVectorsReply { inputs, prompt_tokens }))
            }
            Finish::Labels(Scoring { labels, function, in_order, top_k }) => {
                let scored = |row: &Vec<f32>| label_scores(row, &labels, function, in_order, top_k);
                numbers.iter().map(scored).collect::<Option<_>>().map(Reply::Classification)
            }
            Finish::ZeroShot { labels, asked } => {
                let of_text = |rows: &[Vec<f32>]| zero_shot_scores(rows, &labels, &asked);
                let texts = numbers.chunks(asked.labels.len().max(1));
                texts.map(of_text).collect::<Option<_>>().map(Reply::Classification)
            }
            Finish::Entities { texts, labels, options } => {
                found(&texts, &labels, &options, text, &numbers)?.map(Reply::Entities)
            }
            Finish::Fills { texts, targets, top_k } => {
                let filled = texts.iter().zip(&numbers).map(|((tokens, masks), logits)| {
                    fills(&Masked { tokens, masks, logits }, text, targets.as_deref(), top_k)
                });
                Some(Reply::Fills(filled.collect::<Result<_, _>>()?))
            }
            Finish::Answers { contexts, options } => {
                let class = text.class_token();
                let rows = fitting(&contexts, &numbers, 2);
                let answered = |rows: Vec<&[Vec<f32>]>| {
                    let each = contexts.iter().zip(rows).map(|((context, windows), logits)| {
                        answers(&Asked { context, windows, logits, class }, &options)
                    });
                    Reply::Answers(each.collect())
                };
                rows.map(answered)
            }
            Finish::Cosines => {
                let scores = cosines(&numbers);
                Some(Reply::Scores(ScoresReply { scores, prompt_tokens }))
            }
            Finish::Relevance { raw } => relevance(&numbers, raw)
                .map(|scores| Reply::Scores(ScoresReply { scores, prompt_tokens })),
        })
    }
}

/// Vectors with so many numbers; what was shortened has length 1 again.
fn shortened(mut vectors: Numbers, unit: bool, dimensions: Option<usize>) -> Numbers {
    for vector in &mut vectors {
        let is_shortened = dimensions.is_some_and(|most| most < vector.len());
        vector.truncate(dimensions.unwrap_or(usize::MAX));
        if unit || is_shortened {
            normalize(vector);
        }
    }
    vectors
}

/// Scores of a classifier with one label.
fn relevance(numbers: &[Vec<f32>], raw: bool) -> Option<Vec<f32>> {
    let score = |row: &Vec<f32>| match row.as_slice() {
        [logit] => Some(if raw { *logit } else { sigmoid(*logit) }),
        _ => None,
    };
    numbers.iter().map(score).collect()
}

fn found(
    texts: &[(String, Vec<Marked>)],
    labels: &Labels,
    options: &EntityOptions,
    codec: &TextCodec,
    numbers: &[Vec<f32>],
) -> Result<Option<Vec<Vec<crate::Entity>>>, Error> {
    let Some(rows) = fitting(texts, numbers, labels.names.len()) else { return Ok(None) };
    let found = texts.iter().zip(rows).map(|((text, windows), logits)| {
        entities(&Labelled { text, windows, logits, labels: &labels.names }, codec, options)
    });
    let (mut all, mut told) = (Vec::with_capacity(texts.len()), 0);
    for entities in found {
        let entities = entities?;
        told += entities.len();
        if told > TOLD_MAX {
            let message = format!("more than {TOLD_MAX} entities are in them");
            return Err(Error::field("inputs", message));
        }
        all.push(entities);
    }
    Ok(Some(all))
}

/// The rows of each text's windows, where all are there and have `width` numbers for each token.
fn fitting<'a>(
    texts: &[(String, Vec<Marked>)],
    rows: &'a [Vec<f32>],
    width: usize,
) -> Option<Vec<&'a [Vec<f32>]>> {
    let mut rest = rows;
    let mut groups = Vec::with_capacity(texts.len());
    for (_, windows) in texts {
        let (group, others) = rest.split_at_checked(windows.len())?;
        let mut both = windows.iter().zip(group);
        if !both.all(|(marked, row)| marked.0.len() * width == row.len()) {
            return None;
        }
        groups.push(group);
        rest = others;
    }
    Some(groups)
}
