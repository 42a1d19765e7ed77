//! What a request means to an encoder.

use roundhouse_types::ModelId;

use super::{EncoderTask, Pair, READ_MAX, Scoring, TOLD_MAX};
use crate::prompts::before;
use crate::served::{EngineModel, Purpose};
use crate::task::{counted, wrong_kind};
use crate::{
    Config, EmbeddingPrompts, Embeddings, Error, Inputs, Labels, Prompt, Ranking, Request,
    TaskOptions, VectorTask,
};

/// Answers per question at most.
const SPANS_MAX: usize = 100;
/// Fills per mask where the request does not say.
const FILLS: usize = 5;

impl EncoderTask {
    /// Decides what `request` asks of `model`.
    ///
    /// # Errors
    /// `InvalidInput` where the model is of another kind, or the request has too many parts, those
    /// counted that it is turned into.
    pub(crate) fn new(
        request: Request,
        id: &ModelId,
        model: &EngineModel,
        config: &Config,
    ) -> Result<Self, Error> {
        let most = config.max_inputs;
        match (request, model.purpose()) {
            (Request::Raw(_), _) => {
                Err(Error::Broken { model: id.clone(), message: "the body was not read" })
            }
            (Request::Inputs(inputs), purpose) => {
                counted("inputs", inputs.texts.len(), most)?;
                of_inputs(inputs, purpose, most)
                    .unwrap_or_else(|| Err(wrong_kind(id, model.kind())))
            }
            (Request::Embeddings(embeddings), Purpose::Embedding { normalize, prompts }) => {
                let Embeddings { inputs, dimensions, prompt } = embeddings;
                counted("input", inputs.len(), most)?;
                let text = prompts.named(prompt.as_deref())?;
                let tokens = inputs.iter().any(|input| matches!(input, Prompt::Tokens(_)));
                if tokens && prompt.is_some() {
                    return Err(Error::field("prompt_name", "goes before texts, not tokens"));
                }
                prompted("input", text, inputs.len())?;
                let inputs = inputs.into_iter().map(|input| match input {
                    Prompt::Text(input) => Prompt::Text(before(text, input)),
                    Prompt::Tokens(tokens) => Prompt::Tokens(tokens),
                });
                Ok(Self::Embed { inputs: inputs.collect(), normalize: *normalize, dimensions })
            }
            (Request::Ranking(ranking), Purpose::Embedding { prompts, .. }) => {
                // The query is a row too.
                counted(ranking.field, ranking.documents.len(), most.saturating_sub(1))?;
                Ok(Self::Compare(with_prompts(ranking, prompts)?))
            }
            (Request::Ranking(ranking), Purpose::Classification(labels))
                if labels.names.len() == 1 =>
            {
                counted(ranking.field, ranking.documents.len(), most)?;
                Ok(Self::CrossEncode(ranking))
            }
            (
                Request::Chat(_)
                | Request::Completion(_)
                | Request::Embeddings(_)
                | Request::Ranking(_)
                | Request::Tokens(_),
                _,
            ) => Err(wrong_kind(id, model.kind())),
        }
    }
}

/// `None` for a model that is no encoder.
fn of_inputs(inputs: Inputs, purpose: &Purpose, most: usize) -> Option<Result<EncoderTask, Error>> {
    if inputs.generation.truncation.is_some() && !matches!(purpose, Purpose::Generative { .. }) {
        let message = "this model cuts texts to what it takes by itself";
        return Some(Err(Error::field("parameters.truncate", message)));
    }
    let Inputs { texts, seconds, top_k, normalize: asked, options, .. } = inputs;
    let task = match purpose {
        Purpose::Generative { .. } => return None,
        Purpose::Embedding { normalize, prompts } => only_texts(&seconds, &options)
            .and_then(|()| prompts.named(options.prompt.as_deref()))
            .and_then(|prompt| embed(texts, prompt, asked.unwrap_or(*normalize), &options)),
        Purpose::Classification(labels) => {
            vectors_not_asked(&options).and_then(|()| match options.zero_shot.is_some() {
                true => zero_shot(texts, &seconds, labels, options, most),
                false => classify(texts, seconds, labels, &options, top_k),
            })
        }
        Purpose::TokenClassification(labels) => {
            only_texts(&seconds, &options).and_then(|()| vectors_not_asked(&options)).map(|()| {
                EncoderTask::Entities { texts, labels: labels.clone(), options: options.entities }
            })
        }
        Purpose::FillMask => only_texts(&seconds, &options)
            .and_then(|()| vectors_not_asked(&options))
            .and_then(|()| at_least_one(top_k.unwrap_or(FILLS)))
            .map(|top_k| EncoderTask::Fill { texts, targets: options.targets, top_k }),
        Purpose::QuestionAnswering => vectors_not_asked(&options)
            .and_then(|()| questions(texts, seconds))
            .and_then(|questions| {
                let mut options = options.answers;
                options.top_k = at_least_one(top_k.unwrap_or(options.top_k))?;
                if options.top_k > SPANS_MAX {
                    let message =
                        format!("{} are more than the {SPANS_MAX} answers at most", options.top_k);
                    return Err(Error::field("top_k", message));
                }
                Ok(EncoderTask::Answer { questions, options })
            }),
    };
    Some(task)
}

fn embed(
    texts: Vec<String>,
    prompt: &str,
    normalize: bool,
    options: &TaskOptions,
) -> Result<EncoderTask, Error> {
    let all = |texts: Vec<String>| {
        prompted("inputs", prompt, texts.len())?;
        Ok(texts.into_iter().map(|text| before(prompt, text)).collect::<Vec<_>>())
    };
    Ok(match options.task {
        // The pipeline of transformers knows nothing of prompts: only what a request names goes
        // before these.
        VectorTask::Tokens if options.prompt.is_none() => EncoderTask::TokenVectors { texts },
        VectorTask::Tokens => EncoderTask::TokenVectors { texts: all(texts)? },
        VectorTask::Pooled => EncoderTask::Embed {
            inputs: all(texts)?.into_iter().map(Prompt::Text).collect(),
            normalize,
            dimensions: options.dimensions,
        },
    })
}

/// Refuses prompts that are more together than a request may read: they are the model's, not the
/// caller's, and cost it nothing to send.
fn prompted(field: &str, prompt: &str, texts: usize) -> Result<(), Error> {
    let bytes = prompt.len().saturating_mul(texts);
    if bytes > READ_MAX {
        let message = format!(
            "the model's prompt before {texts} texts makes {bytes} bytes, {READ_MAX} are the most"
        );
        return Err(Error::field(field, message));
    }
    Ok(())
}

/// The same texts, with what goes before them.
pub(super) fn with_prompts(ranking: Ranking, prompts: &EmbeddingPrompts) -> Result<Ranking, Error> {
    let (query, document) = match ranking.alike {
        true => (prompts.usual(), prompts.usual()),
        false => (prompts.of_query(), prompts.of_document()),
    };
    prompted(ranking.field, document, ranking.documents.len())?;
    let documents = ranking.documents.into_iter().map(|text| before(document, text)).collect();
    Ok(Ranking { query: before(query, ranking.query), documents, ..ranking })
}

fn classify(
    texts: Vec<String>,
    seconds: Vec<Option<String>>,
    labels: &Labels,
    options: &TaskOptions,
    top_k: Option<usize>,
) -> Result<EncoderTask, Error> {
    let function = options.function.unwrap_or(labels.scores);
    let top_k = at_least_one(top_k.unwrap_or(1))?;
    if texts.len().saturating_mul(top_k.min(labels.names.len())) > TOLD_MAX {
        return Err(Error::field("top_k", format!("more than {TOLD_MAX} labels would be told")));
    }
    let scoring = Scoring { labels: labels.clone(), function, in_order: options.in_order, top_k };
    let seconds = seconds.into_iter().chain(std::iter::repeat(None));
    let pairs: Vec<Pair> = texts.into_iter().zip(seconds).collect();
    Ok(EncoderTask::Classify { pairs, scoring })
}

fn zero_shot(
    texts: Vec<String>,
    seconds: &[Option<String>],
    labels: &Labels,
    options: TaskOptions,
    most: usize,
) -> Result<EncoderTask, Error> {
    let Some(asked) = options.zero_shot else {
        return Err(Error::field("candidate_labels", "there are none"));
    };
    if seconds.iter().any(Option::is_some) {
        return Err(Error::field("inputs", "they are pairs, and candidate_labels take texts"));
    }
    if labels.names.len() < 2 {
        let message = "the model has one label and cannot tell what follows from a text";
        return Err(Error::field("candidate_labels", message));
    }
    counted("candidate_labels", asked.labels.len(), most / texts.len())?;
    Ok(EncoderTask::ZeroShot { texts, labels: labels.clone(), asked })
}

fn questions(
    texts: Vec<String>,
    seconds: Vec<Option<String>>,
) -> Result<Vec<(String, String)>, Error> {
    let both: Option<Vec<String>> = seconds.into_iter().collect();
    match both {
        Some(contexts) if contexts.len() == texts.len() => {
            Ok(texts.into_iter().zip(contexts).collect())
        }
        _ => Err(Error::field("inputs", "each must have question and context")),
    }
}

/// Refuses pairs, and labels that only classifiers can be asked about.
fn only_texts(seconds: &[Option<String>], options: &TaskOptions) -> Result<(), Error> {
    if seconds.iter().any(Option::is_some) {
        return Err(Error::field("inputs", "this model takes texts, not pairs of them"));
    }
    if options.zero_shot.is_some() {
        return Err(Error::field("candidate_labels", "this model is no classifier"));
    }
    Ok(())
}

/// Refuses what only embedding models have.
fn vectors_not_asked(options: &TaskOptions) -> Result<(), Error> {
    if options.prompt.is_some() {
        return Err(Error::field("prompt_name", "only embedding models have prompts"));
    }
    match options.task {
        VectorTask::Pooled => Ok(()),
        VectorTask::Tokens => {
            Err(Error::field("task", "feature-extraction takes an embedding model"))
        }
    }
}

fn at_least_one(top_k: usize) -> Result<usize, Error> {
    match top_k {
        0 => Err(Error::field("top_k", "0 is not at least 1")),
        top_k => Ok(top_k),
    }
}
