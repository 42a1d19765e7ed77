//! What `parameters` say to encoders, as the pipelines of transformers name it.

use roundhouse_serving::{
    Aggregation, AnswerOptions, EntityOptions, ScoreFunction, TaskOptions, VectorTask, ZeroShot,
};
use serde_json::Value;

use super::inputs::INPUTS_MAX;
use crate::error::Error;
use crate::fields::{Fields, Neutral, neutral, strings};

/// Where a candidate label stands, unless the client says otherwise.
const HYPOTHESIS: &str = "This example is {}.";
/// Entries of a list of names at most.
const NAMES_MAX: usize = 1024;
/// Tokens of an answer at most.
const ANSWER_TOKENS_MAX: usize = 512;

/// Fields beside `inputs` that would change vectors and that nothing here honours, with the values
/// that would not.
const UNSUPPORTED: [Neutral; 3] =
    [("encoding_format", is_float), ("truncate", neutral::on), ("truncation_direction", is_right)];

fn is_float(value: &Value) -> bool {
    value == "float"
}

fn is_right(value: &Value) -> bool {
    value.as_str().is_some_and(|side| side.eq_ignore_ascii_case("right"))
}

/// Reads the body's own fields and its `parameters`.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn read(body: &mut Fields, parameters: &mut Fields) -> Result<TaskOptions, Error> {
    body.refuse(&UNSUPPORTED)?;
    let in_body = body.count("dimensions", 1..=usize::MAX)?;
    let dimensions = parameters.count("dimensions", 1..=usize::MAX)?.or(in_body);
    let named = match parameters.string("task")? {
        Some(task) => Some(task),
        None => body.string("task")?,
    };
    let task = match named.as_deref() {
        None | Some("sentence-embedding") => VectorTask::Pooled,
        Some("feature-extraction") => VectorTask::Tokens,
        Some(_) => {
            let expected = "must be feature-extraction or sentence-embedding, where it is there";
            return Err(body.wrong("task", expected));
        }
    };
    if task == VectorTask::Tokens && dimensions.is_some() {
        return Err(body.wrong("dimensions", "shortens vectors of texts, not of tokens"));
    }
    let in_body = body.string("prompt_name")?;
    Ok(TaskOptions {
        task,
        dimensions,
        prompt: parameters.string("prompt_name")?.or(in_body),
        function: function(parameters)?,
        in_order: false,
        zero_shot: zero_shot(parameters)?,
        entities: entities(parameters)?,
        targets: texts(parameters, "targets")?,
        answers: answers(parameters)?,
    })
}

fn function(parameters: &mut Fields) -> Result<Option<ScoreFunction>, Error> {
    const FIELD: &str = "function_to_apply";
    match parameters.string(FIELD)?.as_deref() {
        None | Some("default") => Ok(None),
        Some("sigmoid") => Ok(Some(ScoreFunction::Sigmoid)),
        Some("softmax") => Ok(Some(ScoreFunction::Softmax)),
        Some("none") => Ok(Some(ScoreFunction::Identity)),
        Some(_) => Err(parameters.wrong(FIELD, "must be sigmoid, softmax, none or default")),
    }
}

fn zero_shot(parameters: &mut Fields) -> Result<Option<ZeroShot>, Error> {
    const FIELD: &str = "candidate_labels";
    let labels = match parameters.take(FIELD) {
        None => None,
        Some(Value::String(text)) => {
            let labels = text.split(',').map(str::trim).filter(|label| !label.is_empty());
            Some(labels.map(str::to_owned).collect())
        }
        Some(Value::Array(items)) => strings(items),
        Some(_) => Some(Vec::new()),
    };
    let template = parameters.string("hypothesis_template")?;
    let multi_label = parameters.bool("multi_label")?.or(parameters.bool("multi_class")?);
    match labels {
        None => Ok(None),
        Some(labels) if (1..=INPUTS_MAX).contains(&labels.len()) => Ok(Some(ZeroShot {
            labels,
            template: template.unwrap_or_else(|| HYPOTHESIS.into()),
            multi_label: multi_label.unwrap_or(false),
        })),
        Some(_) => {
            let expected = format!("must be 1 to {INPUTS_MAX} strings, in a list or with commas");
            Err(parameters.wrong(FIELD, &expected))
        }
    }
}

fn entities(parameters: &mut Fields) -> Result<EntityOptions, Error> {
    const FIELD: &str = "aggregation_strategy";
    let aggregation = match parameters.string(FIELD)?.as_deref() {
        None | Some("none") => Aggregation::None,
        Some("simple") => Aggregation::Simple,
        Some("first") => Aggregation::First,
        Some("average") => Aggregation::Average,
        Some("max") => Aggregation::Max,
        Some(_) => {
            return Err(parameters.wrong(FIELD, "must be none, simple, first, average or max"));
        }
    };
    let ignored = texts(parameters, "ignore_labels")?;
    let stride = parameters.count("stride", 0..=usize::MAX)?;
    if stride.is_some() && aggregation == Aggregation::None {
        return Err(parameters.wrong("stride", "needs an aggregation_strategy other than none"));
    }
    let usual = EntityOptions::default();
    Ok(EntityOptions { aggregation, ignored: ignored.unwrap_or(usual.ignored), stride })
}

fn answers(parameters: &mut Fields) -> Result<AnswerOptions, Error> {
    let usual = AnswerOptions::default();
    let longest = parameters.count("max_answer_len", 1..=ANSWER_TOKENS_MAX)?;
    let none = parameters.bool("handle_impossible_answer")?;
    let words = parameters.bool("align_to_words")?;
    Ok(AnswerOptions {
        top_k: usual.top_k,
        max_answer_len: longest.unwrap_or(usual.max_answer_len),
        max_seq_len: parameters.count("max_seq_len", 1..=usize::MAX)?,
        doc_stride: parameters.count("doc_stride", 0..=usize::MAX)?,
        handle_impossible: none.unwrap_or(usual.handle_impossible),
        align_to_words: words.unwrap_or(usual.align_to_words),
    })
}

/// A string or a list of them.
fn texts(parameters: &mut Fields, name: &str) -> Result<Option<Vec<String>>, Error> {
    let texts = match parameters.take(name) {
        None => return Ok(None),
        Some(Value::String(text)) => Some(vec![text]),
        Some(Value::Array(items)) if items.len() <= NAMES_MAX => strings(items),
        Some(_) => None,
    };
    match texts {
        Some(texts) => Ok(Some(texts)),
        None => {
            let expected = format!("must be a string or a list of at most {NAMES_MAX} strings");
            Err(parameters.wrong(name, &expected))
        }
    }
}
