//! `{"inputs": …, "parameters": …}`, as LMI, TGI and the Hugging Face toolkit take it.

use http::HeaderValue;
use roundhouse_serving::{
    ALTERNATIVES_MAX, Embeddings, FieldNames, Generation, Inputs, Prompt, Request, STOPS_MAX,
    TaskOptions, Truncation,
};
use serde_json::Value;

use super::given::{self, Given, Texts};
use super::options;
use crate::accept::Array;
use crate::aim::Adapters;
use crate::answer::{Ask, Asked, ignored_names};
use crate::error::Error;
use crate::fields::{Fields, Neutral, neutral};
use crate::{forms, ranking};

/// Inputs of one request at most.
pub(crate) const INPUTS_MAX: usize = 2048;

/// Parameters of the three dialects that would change the answer and that nothing here
/// honours, with the values that would not.
const UNSUPPORTED: [Neutral; 12] = [
    ("bad_words_ids", neutral::empty),
    ("best_of", neutral::one),
    ("length_penalty", neutral::one),
    ("max_length", neutral::absent),
    ("n", neutral::one),
    ("no_repeat_ngram_size", neutral::zero),
    ("num_beams", neutral::one),
    ("num_return_sequences", neutral::one),
    ("penalty_alpha", neutral::zero),
    ("prompt_logprobs", neutral::zero),
    ("typical_p", neutral::one),
    ("watermark", neutral::off),
];

/// What the fields are called.
const NAMES: FieldNames = FieldNames {
    prompt: "inputs",
    max_tokens: "parameters.max_new_tokens",
    min_tokens: "parameters.min_new_tokens",
    prefix: "parameters.",
    function: ".function",
};

/// Whose way of answering it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// LMI's and the Hugging Face toolkit's.
    Lmi,
    /// text-generation-inference's, the answer in an array or not.
    Tgi {
        /// Whether it is.
        array: bool,
    },
}

/// How the answer shall look.
pub(crate) struct InputsAsk {
    pub(crate) dialect: Dialect,
    /// `inputs` was one string.
    pub(crate) single: bool,
    pub(crate) details: bool,
    /// Whether each token comes with its likeliest alternatives.
    pub(crate) top: bool,
    pub(crate) stream: bool,
    /// How labels are put.
    pub(crate) labels: LabelShape,
    /// The texts that labels which nobody trained are of, as the answer repeats them.
    pub(crate) sequences: Option<Vec<String>>,
    /// Fields that nothing reads, as the answer tells them.
    pub(crate) ignored: Option<HeaderValue>,
}

/// How labels of classifiers are put, as the pipeline of transformers puts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum LabelShape {
    /// A list for one text; one label for each text of a list.
    #[default]
    Likeliest,
    /// A list for each text.
    Lists,
    /// The same, in a list for one text too (`return_all_scores`).
    Nested,
    /// One label, of one pair.
    One,
}

impl InputsAsk {
    /// Of one input, or of a list, with nothing said of how the answer shall look.
    fn plain(single: bool) -> Self {
        Self {
            dialect: Dialect::Lmi,
            single,
            details: false,
            top: false,
            stream: false,
            labels: LabelShape::default(),
            sequences: None,
            ignored: None,
        }
    }
}

/// The whole body is one input.
pub(crate) fn from_text(text: String) -> Asked {
    let inputs = Inputs { single: true, ..plain(vec![text]) };
    Asked::new(Request::Inputs(inputs), Ask::Inputs(InputsAsk::plain(true)))
}

/// Inputs without parameters.
fn plain(texts: Vec<String>) -> Inputs {
    let generation = Generation { names: NAMES, ..Generation::default() };
    Inputs { texts, generation, ..Inputs::default() }
}

/// The whole body is an array: of texts, or of tokens to embed.
pub(crate) fn from_array(array: Array) -> Asked {
    let ask = Ask::Inputs(InputsAsk::plain(false));
    match array {
        Array::Texts(texts) => Asked::new(Request::Inputs(plain(texts)), ask),
        Array::Tokens(rows) => {
            let inputs = rows.into_iter().map(Prompt::Tokens).collect();
            Asked::new(
                Request::Embeddings(Embeddings { inputs, dimensions: None, prompt: None }),
                ask,
            )
        }
    }
}

/// Reads a body with `inputs`.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn parse(fields: &mut Fields) -> Result<Asked, Error> {
    let mut parameters = match fields.take("parameters") {
        None => Fields::nested(serde_json::Map::new(), "parameters."),
        Some(Value::Object(map)) => Fields::nested(map, "parameters."),
        Some(_) => return Err(fields.wrong("parameters", "must be an object")),
    };
    let adapters = Adapters::read(fields)?.or(Adapters::of_parameters(&mut parameters)?)?;
    let Texts { texts, seconds, single, one_pair } = match given::read(fields)? {
        Given::Texts(texts) => texts,
        Given::Similar(ranking) => {
            let adapters = adapters.for_all();
            return Ok(Asked { adapters, ..ranking::similar(ranking) });
        }
    };
    let stream = fields.bool("stream")?.unwrap_or(false);
    if stream && !single && texts.len() > 1 {
        return Err(fields.wrong("stream", "takes one input, not a list of several"));
    }
    let adapters = adapters.fitting(texts.len())?;
    parameters.refuse(&UNSUPPORTED)?;
    let details = parameters.bool("details")?.unwrap_or(false);
    let prefill = parameters.bool("decoder_input_details")?.unwrap_or(false);
    if prefill && (stream || !details) {
        let message = "is for answers in one piece, with details";
        return Err(parameters.wrong("decoder_input_details", message));
    }
    // As in transformers: `top_k: null` and `return_all_scores` mean all labels, the latter in the
    // artefact's order.
    let returns_all = parameters.bool("return_all_scores")?.unwrap_or(false);
    let all_labels = parameters.is_null("top_k") || returns_all;
    let in_order = returns_all && !parameters.has("top_k");
    let return_full_text = parameters.bool("return_full_text")?.unwrap_or(false);
    let in_body = fields.bool("normalize")?;
    let normalize = parameters.bool("normalize")?.or(in_body);
    let options = TaskOptions { in_order, ..options::read(fields, &mut parameters)? };
    let mut generation = generation(&mut parameters)?;
    let alternatives = parameters.count("top_n_tokens", 0..=ALTERNATIVES_MAX)?.unwrap_or(0);
    if details || stream {
        generation.logprobs = Some(alternatives);
    }
    generation.prompt_logprobs = prefill;
    let top = alternatives > 0 && generation.logprobs.is_some();
    // One name for two things: labels of a classifier, likeliest tokens of a generator.
    let top_k =
        if all_labels { Some(usize::MAX) } else { generation.top_k.filter(|count| *count > 0) };
    let labels = match (single, top_k.is_some()) {
        _ if in_order => LabelShape::Nested,
        (true, false) if one_pair => LabelShape::One,
        (true, _) | (false, false) => LabelShape::Likeliest,
        (false, true) => LabelShape::Lists,
    };
    let sequences = options.zero_shot.is_some().then(|| texts.clone());
    let ignored = ignored(fields, &parameters);
    let ask =
        InputsAsk { details, top, stream, labels, sequences, ignored, ..InputsAsk::plain(single) };
    let inputs = Inputs {
        texts,
        seconds,
        single,
        beside: 0,
        generation,
        return_full_text,
        top_k,
        normalize,
        options,
        only: None,
    };
    Ok(Asked { request: Request::Inputs(inputs), ask: Ask::Inputs(ask), adapters })
}

/// Clients of other servers send fields that mean nothing here, so those are no fault; but one
/// that is misspelt would be passed over in silence.
fn ignored(fields: &Fields, parameters: &Fields) -> Option<HeaderValue> {
    let mut names = fields.left();
    // Streams may name their model there.
    names.retain(|name| name != "model");
    names.extend(parameters.left());
    ignored_names(names)
}

fn generation(parameters: &mut Fields) -> Result<Generation, Error> {
    let do_sample = parameters.bool("do_sample")?;
    let mut generation = sampling(parameters)?;
    generation.form = forms::read(parameters)?;
    generation.names = NAMES;
    generation.max_tokens = parameters.count("max_new_tokens", 1..=usize::MAX)?;
    if let Some(most) = parameters.count("max_tokens", 1..=usize::MAX)?
        && generation.max_tokens.is_none()
    {
        generation.max_tokens = Some(most);
        generation.names.max_tokens = "parameters.max_tokens";
    }
    generation.min_tokens = parameters.count("min_new_tokens", 0..=usize::MAX)?;
    if let Some(least) = parameters.count("min_tokens", 0..=usize::MAX)?
        && generation.min_tokens.is_none()
    {
        generation.min_tokens = Some(least);
        generation.names.min_tokens = "parameters.min_tokens";
    }
    let most = parameters.count("truncate", 1..=usize::MAX)?;
    generation.truncation = most.map(|most| Truncation { most: Some(most), keeps_end: true });
    generation.stop = parameters.stop("stop")?;
    generation.stop.extend(parameters.stop("stop_sequences")?);
    if generation.stop.len() > STOPS_MAX {
        let expected = format!("must have, with stop, at most {STOPS_MAX} strings");
        return Err(parameters.wrong("stop_sequences", &expected));
    }
    generation.ignore_eos = parameters.bool("ignore_eos_token")?.unwrap_or(false)
        || parameters.bool("ignore_eos")?.unwrap_or(false);
    // LMI samples where a sampling parameter is given and nothing is said about sampling.
    let asks_to_sample = generation.temperature.is_some_and(|temperature| temperature > 0.0)
        || generation.top_p.is_some_and(|top_p| top_p < 1.0)
        || generation.top_k.is_some_and(|top_k| top_k > 0)
        || generation.min_p.is_some_and(|min_p| min_p > 0.0);
    generation.do_sample = do_sample.or(asks_to_sample.then_some(true));
    Ok(generation)
}

/// The fields that every dialect spells alike.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn sampling(fields: &mut Fields) -> Result<Generation, Error> {
    let top_p = fields.float("top_p", 0.0..=1.0)?;
    // -1 is how vLLM says "off".
    let top_k = fields.int("top_k", -1..=i64::MAX)?;
    Ok(Generation {
        temperature: fields.float("temperature", 0.0..=100.0)?,
        // 0 keeps the likeliest token alone, which the smallest positive number does too.
        top_p: top_p.map(|top_p| top_p.max(f32::MIN_POSITIVE)),
        top_k: top_k.map(|top_k| usize::try_from(top_k).unwrap_or(0)),
        min_p: fields.float("min_p", 0.0..=1.0)?,
        repetition_penalty: fields.float("repetition_penalty", 0.01..=100.0)?,
        presence_penalty: fields.float("presence_penalty", -2.0..=2.0)?,
        frequency_penalty: fields.float("frequency_penalty", -2.0..=2.0)?,
        seed: fields.seed("seed")?,
        stop_token_ids: fields.stop_tokens("stop_token_ids")?,
        include_stop: fields.bool("include_stop_str_in_output")?.unwrap_or(false),
        keep_special: !fields.bool("skip_special_tokens")?.unwrap_or(true),
        logit_bias: fields.logit_bias("logit_bias")?,
        ..Generation::default()
    })
}
