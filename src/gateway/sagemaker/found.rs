//! What encoders found, as the pipelines of transformers and the Hugging Face toolkit write it.

use bytes::Bytes;
use roundhouse_serving::{Entity, Fill, LabelScore, SpanAnswer, TokenVectorsReply};
use serde_json::{Value, json};

use crate::error::Error;
use crate::json::decimal;
use crate::sagemaker::inputs::{Dialect, InputsAsk};

impl InputsAsk {
    /// Labels that nobody trained: an object for each text.
    ///
    /// # Errors
    /// `Internal` where the model answered a number of inputs that nobody sent.
    pub(crate) fn zero_shot(
        &self,
        sequences: &[String],
        scored: &[Vec<LabelScore>],
    ) -> Result<Value, Error> {
        let object = |(sequence, labels): (&String, &Vec<LabelScore>)| {
            if self.dialect == (Dialect::Tgi { array: true }) {
                return labels.iter().map(label).collect();
            }
            let names: Value = labels.iter().map(|it| &*it.label).collect();
            let scores: Value = labels.iter().map(|it| decimal(it.score)).collect();
            json!({"sequence": sequence, "labels": names, "scores": scores})
        };
        self.each(sequences.iter().zip(scored).map(object).collect(), false)
    }

    /// What was found in each text.
    ///
    /// # Errors
    /// As [`zero_shot`](Self::zero_shot).
    pub(crate) fn entities(&self, inputs: &[Vec<Entity>]) -> Result<Value, Error> {
        let list = |found: &Vec<Entity>| found.iter().map(entity).collect();
        self.each(inputs.iter().map(list).collect(), false)
    }

    /// What may stand in place of each mask; of one mask without a list of masks.
    ///
    /// # Errors
    /// As [`zero_shot`](Self::zero_shot).
    pub(crate) fn fills(&self, inputs: &[Vec<Vec<Fill>>]) -> Result<Value, Error> {
        let list = |fills: &Vec<Fill>| -> Value { fills.iter().map(fill).collect() };
        let masks = |masks: &Vec<Vec<Fill>>| match masks.as_slice() {
            [only] => list(only),
            several => several.iter().map(list).collect(),
        };
        self.each(inputs.iter().map(masks).collect(), true)
    }

    /// The answers to each question; one alone without a list.
    ///
    /// # Errors
    /// As [`zero_shot`](Self::zero_shot).
    pub(crate) fn answers(&self, inputs: &[Vec<SpanAnswer>]) -> Result<Value, Error> {
        let answers = |answers: &Vec<SpanAnswer>| match answers.as_slice() {
            [only] => span(only),
            several => several.iter().map(span).collect(),
        };
        self.each(inputs.iter().map(answers).collect(), true)
    }

    /// What belongs to one input, or a list; `lone` are lists of one input treated as the input.
    fn each(&self, mut answers: Vec<Value>, lone: bool) -> Result<Value, Error> {
        if !(self.single || lone && answers.len() == 1) {
            return Ok(answers.into());
        }
        match (answers.pop(), answers.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(Error::internal("one input has not one answer")),
        }
    }
}

/// A list per text of vectors of its tokens, also of one text.
///
/// # Errors
/// `Internal` where they cannot be written.
pub(crate) fn token_vectors(reply: &TokenVectorsReply) -> Result<Bytes, Error> {
    serde_json::to_vec(&reply.inputs)
        .map(Bytes::from)
        .map_err(|error| Error::internal(format!("writing vectors failed: {error}")))
}

pub(super) fn label(label: &LabelScore) -> Value {
    json!({"label": &*label.label, "score": decimal(label.score)})
}

fn entity(entity: &Entity) -> Value {
    let Entity { label, score, word, start, end, index } = entity;
    let score = decimal(*score);
    match index {
        Some(index) => json!({
            "entity": &**label, "score": score, "index": index, "word": word, "start": start,
            "end": end,
        }),
        None => json!({
            "entity_group": &**label, "score": score, "word": word, "start": start, "end": end,
        }),
    }
}

fn fill(fill: &Fill) -> Value {
    let Fill { score, token, token_str, sequence } = fill;
    json!({
        "score": decimal(*score), "token": token, "token_str": token_str, "sequence": sequence,
    })
}

fn span(answer: &SpanAnswer) -> Value {
    let SpanAnswer { score, start, end, answer } = answer;
    json!({"score": decimal(*score), "start": start, "end": end, "answer": answer})
}
