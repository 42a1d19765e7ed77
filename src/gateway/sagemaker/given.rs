//! What stands in `inputs`: texts, pairs of texts, questions, or a sentence with others.

use roundhouse_serving::Ranking;
use serde_json::{Map, Value};

use super::inputs::INPUTS_MAX;
use crate::error::Error;
use crate::fields::{Fields, strings};

/// The inputs as they were sent.
pub(crate) enum Given {
    Texts(Texts),
    /// A sentence to be compared with others.
    Similar(Ranking),
}

/// Texts, and the second texts of those that are pairs.
pub(crate) struct Texts {
    pub(crate) texts: Vec<String>,
    /// Empty where none is a pair.
    pub(crate) seconds: Vec<Option<String>>,
    /// There was one, not a list.
    pub(crate) single: bool,
    /// There was one object `{"text", "text_pair"}`.
    pub(crate) one_pair: bool,
}

/// Reads the field.
///
/// # Errors
/// `Field` where it is none of these.
pub(crate) fn read(fields: &mut Fields) -> Result<Given, Error> {
    match fields.take("inputs") {
        Some(Value::String(text)) => Ok(Given::Texts(Texts {
            texts: vec![text],
            seconds: Vec::new(),
            single: true,
            one_pair: false,
        })),
        Some(Value::Object(map)) if map.contains_key("source_sentence") => {
            similar(map).map(Given::Similar)
        }
        Some(Value::Object(map)) => {
            let one_pair = map.contains_key("text");
            let (text, second) = one(Value::Object(map)).ok_or_else(|| wrong(fields))?;
            let (texts, seconds) = (vec![text], vec![second]);
            Ok(Given::Texts(Texts { texts, seconds, single: true, one_pair }))
        }
        Some(Value::Array(items)) if !items.is_empty() && items.len() <= INPUTS_MAX => {
            let pairs: Option<Vec<_>> = items.into_iter().map(one).collect();
            let (texts, mut seconds): (Vec<String>, Vec<Option<String>>) =
                pairs.ok_or_else(|| wrong(fields))?.into_iter().unzip();
            if seconds.iter().all(Option::is_none) {
                seconds = Vec::new();
            }
            Ok(Given::Texts(Texts { texts, seconds, single: false, one_pair: false }))
        }
        _ => Err(wrong(fields)),
    }
}

fn wrong(fields: &Fields) -> Error {
    let expected = format!(
        "must be a string or a list of 1 to {INPUTS_MAX} strings, or, as the model takes them, \
         objects with text and text_pair, with question and context, or with source_sentence and \
         sentences"
    );
    fields.wrong("inputs", &expected)
}

/// A text, or a pair under one of its names.
fn one(value: Value) -> Option<(String, Option<String>)> {
    let mut map = match value {
        Value::String(text) => return Some((text, None)),
        Value::Object(map) => map,
        _ => return None,
    };
    let mut take = |name: &str| match map.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let pair = match (take("question"), take("text")) {
        (Some(question), None) => (question, Some(take("context")?)),
        (None, Some(text)) => (text, take("text_pair")),
        _ => return None,
    };
    map.is_empty().then_some(pair)
}

fn similar(map: Map<String, Value>) -> Result<Ranking, Error> {
    let mut fields = Fields::nested(map, "inputs.");
    let query = fields.string("source_sentence")?.unwrap_or_default();
    let documents = match fields.take("sentences") {
        Some(Value::Array(items)) if !items.is_empty() && items.len() <= INPUTS_MAX => {
            strings(items)
        }
        _ => None,
    };
    let documents = documents.ok_or_else(|| {
        let expected = format!("must be a list of 1 to {INPUTS_MAX} strings");
        fields.wrong("sentences", &expected)
    })?;
    Ok(Ranking { query, documents, raw: false, field: "inputs.sentences", alike: true })
}
