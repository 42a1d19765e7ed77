//! What the JSON beside the weights says, checked: nothing is computed differently from
//! what a file asks for; what we do not compute is refused by name.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Error;
use crate::files::Files;

mod cohere;
pub(crate) mod decoder;
pub(crate) mod encoder;
pub(crate) mod experts;
mod falcon;
pub(crate) mod families;
mod gemma;
mod glm;
mod gpt;
mod gpt_oss;
mod granite;
mod llama;
mod mistral;
mod olmo;
mod opt;
mod phi;
pub(crate) mod prompts;
mod qwen;
pub(crate) mod raw;
mod scaling;
pub(crate) mod sentence;
mod smollm;
mod starcoder;
mod wrapped;

/// The main configuration file.
pub(crate) const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// Keys of `config.json` whose null says something that their absence does not: no window, no cap,
/// heads that do not share, one base for all rotations, the whole of a head rotated, no stretching.
const NULLS: [&str; 7] = [
    "sliding_window",
    "num_key_value_heads",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "local_rope_theta",
    "rotary_dim",
    "rope_scaling",
];

/// The parts of `config.json` that every architecture has.
#[derive(Debug, Deserialize)]
pub(crate) struct Head {
    #[serde(default)]
    pub(crate) architectures: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) model_type: Option<String>,
    #[serde(default)]
    quantization_config: Option<Value>,
    /// Null where it is absent.
    #[serde(default)]
    eos_token_id: Value,
    /// The keys of the part that reads text, where there are others.
    #[serde(default)]
    text_config: Value,
}

/// How the model's authors would sample, where they said so (`generation_config.json`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether to sample at all; otherwise greedy.
    pub do_sample: Option<bool>,
    /// The temperature.
    pub temperature: Option<f32>,
    /// Keep the smallest set of tokens whose probabilities reach this.
    pub top_p: Option<f32>,
    /// Keep this many likeliest tokens.
    pub top_k: Option<usize>,
    /// Keep tokens at least this fraction as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Weakens tokens seen before.
    pub repetition_penalty: Option<f32>,
}

/// What turns class logits into scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreFunction {
    /// One label is right.
    Softmax,
    /// Each label is right or not.
    Sigmoid,
    /// The numbers are the answer (regression).
    Identity,
}

/// A classifier's labels, in the order of its logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Their names.
    pub names: Vec<String>,
    /// Whether several may be right at once.
    pub multi_label: bool,
    /// What turns logits into scores.
    pub function: ScoreFunction,
}

/// Reads a JSON file of the artefact.
pub(crate) fn parse<T: DeserializeOwned>(files: &Files, path: &str) -> Result<T, Error> {
    let Some(content) = files.contents.get(path) else {
        return Err(Error::config(path, "is not there, or too large"));
    };
    serde_json::from_slice(content).map_err(|error| Error::config(path, error.to_string()))
}

/// Reads `config.json` without the keys that are null: transformers writes them where it knows a key
/// and has no value for it, and means what it takes absent keys for.
pub(crate) fn keys(files: &Files) -> Result<Value, Error> {
    let mut json = parse(files, CONFIG)?;
    drop_nulls(&mut json);
    Ok(json)
}

fn drop_nulls(json: &mut Value) {
    if let Value::Object(keys) = json {
        keys.retain(|key, value| !value.is_null() || NULLS.contains(&key.as_str()));
        keys.values_mut().for_each(drop_nulls);
    }
}

impl Head {
    pub(crate) fn read(files: &Files) -> Result<Self, Error> {
        let head: Self = parse(files, CONFIG)?;
        let quantization = head.quantization_config.as_ref();
        if let Some(quantization) = quantization.filter(|_| !head.has_read_blocks()) {
            let method = match quantization.get("quant_method").and_then(Value::as_str) {
                Some(method) => format!("by '{}', ", method.escape_debug()),
                None => String::new(),
            };
            return Err(Error::NotServed {
                what: format!(
                    "a quantised checkpoint ({method}quantization_config in config.json) is"
                ),
                advice: "; GGUF files are, and weights in F32, F16 or BF16, which model.quantize \
                         in roundhouse.toml makes q8_0 or q4_k",
            });
        }
        Ok(head)
    }

    /// Whether it is quantised in the one way that is read of the one family that has it.
    fn has_read_blocks(&self) -> bool {
        let method = self.quantization_config.as_ref().and_then(|it| it.get("quant_method"));
        let is_mxfp4 = method.and_then(Value::as_str) == Some(gpt_oss::MXFP4);
        is_mxfp4 && self.model_type.as_deref() == Some(gpt_oss::TYPE)
    }
}

/// End-of-sequence tokens: those of both files that name any, sorted.
pub(crate) fn eos_tokens(files: &Files, head: &Head) -> Result<Vec<u32>, Error> {
    const KEY: &str = "eos_token_id";
    let mut ids = token_ids(CONFIG, KEY, &head.eos_token_id)?;
    if let Some(value) = head.text_config.get(KEY).filter(|_| ids.is_empty()) {
        ids.extend(token_ids(CONFIG, KEY, value)?);
    }
    if let Some(value) = generation(files)?.get(KEY) {
        ids.extend(token_ids(GENERATION, KEY, value)?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// One token id or several: both are written. Null and negative numbers stand for no token.
fn token_ids(path: &str, key: &str, value: &Value) -> Result<Vec<u32>, Error> {
    let id = |value: &Value| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(Some(id)),
        None if value.is_null() || value.as_i64().is_some_and(|id| id < 0) => Ok(None),
        None => Err(Error::config(path, format!("{key} is neither a token id nor a list of them"))),
    };
    let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    values.iter().filter_map(|value| id(value).transpose()).collect()
}

/// The keys of `generation_config.json`, none without the file.
fn generation(files: &Files) -> Result<Map<String, Value>, Error> {
    match files.contents.contains_key(GENERATION) {
        true => parse(files, GENERATION),
        false => Ok(Map::new()),
    }
}

/// Sampling defaults, all absent without the file.
pub(crate) fn generation_defaults(files: &Files) -> Result<GenerationDefaults, Error> {
    let keys = &generation(files)?;
    // Negative and zero both say that it is off.
    let top_k = optional::<i64>(keys, "top_k")?.and_then(|count| usize::try_from(count).ok());
    Ok(GenerationDefaults {
        do_sample: optional(keys, "do_sample")?,
        temperature: optional(keys, "temperature")?,
        top_p: optional(keys, "top_p")?,
        top_k: top_k.filter(|count| *count > 0),
        min_p: optional(keys, "min_p")?,
        repetition_penalty: optional(keys, "repetition_penalty")?,
    })
}

/// A key of `generation_config.json`; null is as good as absent.
fn optional<T: DeserializeOwned>(keys: &Map<String, Value>, key: &str) -> Result<Option<T>, Error> {
    let value = keys.get(key).map_or(Ok(None), Option::deserialize);
    value.map_err(|error| Error::config(GENERATION, format!("{key}: {error}")))
}

#[derive(Deserialize)]
struct RawLabels {
    #[serde(default)]
    id2label: Option<BTreeMap<String, String>>,
    #[serde(default)]
    num_labels: Option<usize>,
    #[serde(default)]
    problem_type: Option<String>,
}

const MULTI_LABEL: &str = "multi_label_classification";
const REGRESSION: &str = "regression";

/// A classifier's labels from `config.json`, by the rules of transformers.
pub(crate) fn labels(files: &Files) -> Result<Labels, Error> {
    let raw: RawLabels = parse(files, CONFIG)?;
    let names = match raw.id2label {
        Some(map) => ordered(map)?,
        None => {
            let count = raw.num_labels.unwrap_or(2);
            positive(&[("num_labels", count)])?;
            (0..count.min(LABELS_MAX)).map(|id| format!("LABEL_{id}")).collect()
        }
    };
    Ok(Labels::of(names, raw.problem_type.as_deref()))
}

/// What a `config.json` says of labels, where it need not be a model's.
#[derive(Debug, Clone)]
pub(crate) struct ToldLabels {
    pub(crate) names: Option<Vec<String>>,
    pub(crate) problem: Option<String>,
}

/// Reads it where it is there.
pub(crate) fn told_labels(files: &Files) -> Result<Option<ToldLabels>, Error> {
    if !files.contents.contains_key(CONFIG) {
        return Ok(None);
    }
    let raw: RawLabels = parse(files, CONFIG)?;
    let names = raw.id2label.map(ordered).transpose()?;
    Ok(Some(ToldLabels { names, problem: raw.problem_type }))
}

impl Labels {
    /// Of these names, with the scores that transformers gives problems of that type.
    pub(crate) fn of(names: Vec<String>, problem: Option<&str>) -> Self {
        let multi_label = problem == Some(MULTI_LABEL);
        let function = match problem {
            Some(REGRESSION) => ScoreFunction::Identity,
            _ if multi_label || names.len() == 1 => ScoreFunction::Sigmoid,
            _ => ScoreFunction::Softmax,
        };
        Self { names, multi_label, function }
    }

    /// The type of problem, where it is not told by the labels' number.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        match self.function {
            ScoreFunction::Identity => Some(REGRESSION),
            _ if self.multi_label => Some(MULTI_LABEL),
            _ => None,
        }
    }

    /// About what they take.
    pub(crate) fn bytes(&self) -> u64 {
        // As they are here, and again in serving's words.
        self.names.iter().map(|name| 2 * (name.len() + size_of::<String>()) as u64).sum()
    }
}

/// More labels than any classifier has; a larger number is a fault of the file.
const LABELS_MAX: usize = 1 << 20;

/// Labels in the order of their ids, which must be 0, 1, 2 and so on.
fn ordered(map: BTreeMap<String, String>) -> Result<Vec<String>, Error> {
    let mut by_id = BTreeMap::new();
    for (id, name) in map {
        let id: usize = id
            .parse()
            .map_err(|_| Error::config(CONFIG, format!("id2label key '{id}' is not a number")))?;
        by_id.insert(id, name);
    }
    if by_id.is_empty() || by_id.keys().copied().ne(0..by_id.len()) {
        return Err(Error::config(CONFIG, "id2label does not number the labels from 0 on"));
    }
    Ok(by_id.into_values().collect())
}

/// Refuses zeros, and numbers no tensor dimension can have.
pub(crate) fn positive(fields: &[(&str, usize)]) -> Result<(), Error> {
    for (key, value) in fields {
        if *value == 0 || *value > u32::MAX as usize {
            return Err(Error::config(CONFIG, format!("{key} is {value}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
