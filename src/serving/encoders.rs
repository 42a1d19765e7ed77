//! What encoders are asked: from a request to rows for the engine, and from the engine's numbers to
//! the answer.

use finish::Finish;
use roundhouse_engine::{EncodeSpec, Want};

use crate::encoded::fills::target_tokens;
use crate::encoded::hypothesis;
use crate::encoded::spans::CONTEXT;
use crate::text::{Marked, Shorten, TextCodec, Windows};
use crate::{
    AnswerOptions, EntityOptions, Error, Labels, Prompt, Ranking, ScoreFunction, ZeroShot,
};

mod asked;
mod finish;
#[cfg(test)]
mod tests;

/// Numbers that the engine computes for one request at most, where it has several per input:
/// 32 MiB, which are some eighty as text.
const NUMBERS_MAX: usize = 8 * 1024 * 1024;
/// Labels, entities or the like that are told for one request at most: some 200 MB as JSON values.
pub(super) const TOLD_MAX: usize = 256 * 1024;
/// Bytes of text that are tokenised for one request at most, where texts are read with others, and
/// of what goes before texts.
const READ_MAX: usize = 16 * 1024 * 1024;
/// Tokens that are written out as text for one request at most.
const WRITTEN_MAX: usize = 4 * 1024 * 1024;
/// Tokens of a question with a part of its context, where the request does not say: as transformers
/// has it.
const WINDOW: usize = 384;
/// Tokens that two parts of a context share then.
const OVERLAP: usize = 128;

pub(crate) use finish::Finisher;

/// What the engine answers rows with.
pub(crate) type Numbers = Vec<Vec<f32>>;
/// A text, and the second of a pair.
pub(crate) type Pair = (String, Option<String>);

/// Work for an encoder.
#[derive(Debug)]
pub(crate) enum EncoderTask {
    Embed {
        inputs: Vec<Prompt>,
        normalize: bool,
        dimensions: Option<usize>,
    },
    TokenVectors {
        texts: Vec<String>,
    },
    Classify {
        pairs: Vec<Pair>,
        scoring: Scoring,
    },
    ZeroShot {
        texts: Vec<String>,
        labels: Labels,
        asked: ZeroShot,
    },
    Entities {
        texts: Vec<String>,
        labels: Labels,
        options: EntityOptions,
    },
    Fill {
        texts: Vec<String>,
        targets: Option<Vec<String>>,
        top_k: usize,
    },
    Answer {
        questions: Vec<(String, String)>,
        options: AnswerOptions,
    },
    /// By the vectors of query and documents.
    Compare(Ranking),
    /// By a classifier that reads both together.
    CrossEncode(Ranking),
}

/// How a classifier's logits are told.
#[derive(Debug)]
pub(crate) struct Scoring {
    pub(crate) labels: Labels,
    pub(crate) function: ScoreFunction,
    pub(crate) in_order: bool,
    pub(crate) top_k: usize,
}

/// What a request may be turned into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Rows of one request.
    pub(crate) rows: usize,
    /// Numbers of one output.
    pub(crate) width: usize,
}

/// Rows for the engine, and what becomes of their numbers.
pub(crate) struct PreparedRows {
    pub(crate) specs: Vec<EncodeSpec>,
    finish: Finish,
}

impl EncoderTask {
    /// Tokenises and checks. Takes time: belongs on a blocking thread.
    pub(crate) fn prepare(self, text: &TextCodec, limits: Limits) -> Result<PreparedRows, Error> {
        match self {
            Self::Embed { inputs, normalize, dimensions } => {
                if let Some(asked) = dimensions.filter(|asked| *asked > limits.width) {
                    let message = format!("{asked} are more than the {} there are", limits.width);
                    return Err(Error::field("dimensions", message));
                }
                let tokens = |input| match input {
                    Prompt::Text(input) => text.encode(&input, true),
                    Prompt::Tokens(tokens) => Ok(tokens),
                };
                let rows = inputs.into_iter().map(tokens);
                let specs = rows.map(|tokens| Ok(pooled(tokens?))).collect::<Result<_, Error>>()?;
                Ok(PreparedRows { specs, finish: Finish::Vectors { normalize, dimensions } })
            }
            Self::TokenVectors { texts } => {
                let rows = texts.into_iter().map(|input| text.encode(&input, true));
                let spec = |tokens| EncodeSpec { tokens, second: None, want: Want::Each };
                let specs = rows.map(|tokens| tokens.map(spec)).collect::<Result<Vec<_>, _>>()?;
                let prepared =
                    PreparedRows { specs, finish: Finish::TokenVectors { width: limits.width } };
                within(prepared.tokens(), limits.width)?;
                Ok(prepared)
            }
            Self::Classify { pairs, scoring } => {
                let rows = pairs.iter();
                let row = |(first, second): &Pair| pair(text, first, second.as_deref(), "inputs");
                let specs = rows.map(row).collect::<Result<_, _>>()?;
                Ok(PreparedRows { specs, finish: Finish::Labels(scoring) })
            }
            Self::ZeroShot { texts, labels, asked } => zero_shot(text, &texts, labels, asked),
            Self::Entities { texts, labels, options } => {
                label_tokens(text, texts, labels, options, limits)
            }
            Self::Fill { texts, targets, top_k } => masks(text, texts, targets, top_k, limits),
            Self::Answer { questions, options } => ask(text, questions, options, limits),
            Self::Compare(Ranking { query, documents, .. }) => {
                let inputs = std::iter::once(query).chain(documents);
                let rows = inputs.map(|input| Ok(pooled(text.encode(&input, true)?)));
                let specs = rows.collect::<Result<_, Error>>()?;
                Ok(PreparedRows { specs, finish: Finish::Cosines })
            }
            Self::CrossEncode(Ranking { query, documents, raw, field, .. }) => {
                let read = query.len().saturating_mul(documents.len());
                readable(read.saturating_add(bytes_of(&documents)), field)?;
                let row = |document: &String| pair(text, &query, Some(document.as_str()), field);
                let specs = documents.iter().map(row).collect::<Result<_, _>>()?;
                Ok(PreparedRows { specs, finish: Finish::Relevance { raw } })
            }
        }
    }
}

fn pooled(tokens: Vec<u32>) -> EncodeSpec {
    EncodeSpec { tokens, second: None, want: Want::Pooled }
}

/// One answer for a text or a pair; what is too long is cut.
fn pair(
    text: &TextCodec,
    first: &str,
    second: Option<&str>,
    field: &'static str,
) -> Result<EncodeSpec, Error> {
    if second.is_none() {
        return Ok(pooled(text.encode(first, true)?));
    }
    let marked = text.mark_fitted(first, second, Shorten::Longest)?;
    let marked = marked.ok_or_else(|| Error::field(field, "the model has no room for a pair"))?;
    Ok(EncodeSpec { tokens: marked.ids(), second: marked.second(), want: Want::Pooled })
}

fn each(marked: &Marked) -> EncodeSpec {
    EncodeSpec { tokens: marked.ids(), second: marked.second(), want: Want::Each }
}

/// Refuses texts that would be read too often, once with each other one.
fn readable(bytes: usize, field: &str) -> Result<(), Error> {
    if bytes > READ_MAX {
        let message = format!(
            "{bytes} bytes would be read, a text once with each other one; {READ_MAX} are the most"
        );
        return Err(Error::field(field, message));
    }
    Ok(())
}

fn bytes_of(texts: &[String]) -> usize {
    texts.iter().map(String::len).sum()
}

/// Refuses what would be more numbers than anybody reads.
fn within(outputs: usize, width: usize) -> Result<(), Error> {
    if outputs.saturating_mul(width) > NUMBERS_MAX {
        let most = NUMBERS_MAX / width.max(1);
        let message = format!("{outputs} tokens to be answered are more than the {most} at most");
        return Err(Error::field("inputs", message));
    }
    Ok(())
}

/// Each text with the sentence about each label.
fn zero_shot(
    text: &TextCodec,
    texts: &[String],
    labels: Labels,
    asked: ZeroShot,
) -> Result<PreparedRows, Error> {
    let sentences = bytes_of(&asked.labels) + asked.labels.len() * asked.template.len();
    let read = bytes_of(texts).saturating_mul(asked.labels.len());
    let read = read.saturating_add(sentences.saturating_mul(texts.len()));
    readable(read, "candidate_labels")?;
    let mut specs = Vec::with_capacity(texts.len() * asked.labels.len());
    for input in texts {
        for label in &asked.labels {
            let sentence = hypothesis(&asked.template, label)?;
            // The label is never cut.
            let marked = text.mark_fitted(input, Some(&sentence), Shorten::First)?;
            let marked = marked.ok_or_else(|| {
                Error::field("candidate_labels", "one is too long to leave room for a text")
            })?;
            let (tokens, second) = (marked.ids(), marked.second());
            specs.push(EncodeSpec { tokens, second, want: Want::Pooled });
        }
    }
    Ok(PreparedRows { specs, finish: Finish::ZeroShot { labels, asked } })
}

/// What is left of a request's rows, and of the tokens that are answered.
struct RowsLeft {
    limits: Limits,
    rows: usize,
    tokens: usize,
}

impl RowsLeft {
    fn all(limits: Limits) -> Self {
        Self { limits, rows: limits.rows, tokens: NUMBERS_MAX / limits.width.max(1) }
    }

    /// A text in windows, if its rows are left.
    fn windows(
        &mut self,
        marked: Marked,
        text: usize,
        (limit, overlap): (usize, usize),
        field: &str,
    ) -> Result<Vec<Marked>, Error> {
        // More windows than these have more tokens than are left; one is built in any case.
        let most = self.rows.min(self.tokens / limit.max(1) + 1);
        match marked.windows(text, limit, overlap, most) {
            Windows::These(windows) => {
                self.rows -= windows.len();
                let tokens: usize = windows.iter().map(|window| window.0.len()).sum();
                self.tokens = self.tokens.saturating_sub(tokens);
                Ok(windows)
            }
            Windows::NoRoom { around } => {
                let message = format!(
                    "an overlap of {overlap} tokens leaves no room in {limit}, of which {around} \
                     are not the text's"
                );
                Err(Error::field(field, message))
            }
            Windows::TooMany(parts) => {
                let all = self.limits.rows;
                let message =
                    format!("one would be read in {parts} parts where {most} of {all} are left");
                Err(Error::field("inputs", message))
            }
        }
    }
}

fn label_tokens(
    text: &TextCodec,
    texts: Vec<String>,
    labels: Labels,
    options: EntityOptions,
    limits: Limits,
) -> Result<PreparedRows, Error> {
    let mut left = RowsLeft::all(limits);
    let mut specs = Vec::with_capacity(texts.len());
    let mut inputs = Vec::with_capacity(texts.len());
    for input in texts {
        let windows = match options.stride {
            Some(stride) => {
                let marked = text.mark(&input, None)?;
                left.windows(marked, 0, (text.limit(), stride), "stride")?
            }
            None => text.mark_fitted(&input, None, Shorten::Longest)?.into_iter().collect(),
        };
        specs.extend(windows.iter().map(each));
        inputs.push((input, windows));
    }
    let prepared =
        PreparedRows { specs, finish: Finish::Entities { texts: inputs, labels, options } };
    within(prepared.tokens(), limits.width)?;
    Ok(prepared)
}

fn masks(
    text: &TextCodec,
    texts: Vec<String>,
    targets: Option<Vec<String>>,
    top_k: usize,
    limits: Limits,
) -> Result<PreparedRows, Error> {
    let mask = text.mask_token().ok_or_else(|| {
        Error::field("inputs", "the artefact's tokenizer has no token for a mask")
    })?;
    let targets = targets.map(|targets| target_tokens(&targets, text)).transpose()?;
    let mut specs = Vec::with_capacity(texts.len());
    let mut inputs = Vec::with_capacity(texts.len());
    let (mut found, mut written) = (0_usize, 0_usize);
    for input in texts {
        let tokens = text.encode(&input, true)?;
        let at = |(at, token): (usize, &u32)| (*token == mask).then_some(at);
        let positions: Vec<usize> = tokens.iter().enumerate().filter_map(at).collect();
        if positions.is_empty() {
            let (name, limit) = (text.word(mask), text.limit());
            let message = format!("one has no {name} among its first {limit} tokens");
            return Err(Error::field("inputs", message));
        }
        found += positions.len();
        let told = targets.as_ref().map_or(limits.width, Vec::len).min(top_k);
        let of_input = positions.len().saturating_mul(told).saturating_mul(tokens.len().max(16));
        written = written.saturating_add(of_input);
        let want = Want::At(positions.clone());
        specs.push(EncodeSpec { tokens: tokens.clone(), second: None, want });
        inputs.push((tokens, positions));
    }
    within(found, limits.width)?;
    if written > WRITTEN_MAX {
        let message =
            format!("the answers would have {written} tokens; {WRITTEN_MAX} are the most");
        return Err(Error::field("top_k", message));
    }
    Ok(PreparedRows { specs, finish: Finish::Fills { texts: inputs, targets, top_k } })
}

fn ask(
    text: &TextCodec,
    questions: Vec<(String, String)>,
    options: AnswerOptions,
    limits: Limits,
) -> Result<PreparedRows, Error> {
    let limit = options.max_seq_len.unwrap_or(WINDOW).min(text.limit());
    let overlap = options.doc_stride.unwrap_or((limit / 2).min(OVERLAP));
    let mut left = RowsLeft::all(limits);
    let mut specs = Vec::with_capacity(questions.len());
    let mut contexts = Vec::with_capacity(questions.len());
    for (question, context) in questions {
        let marked = text.mark(&question, Some(&context))?;
        let windows = left.windows(marked, CONTEXT, (limit, overlap), "doc_stride")?;
        specs.extend(windows.iter().map(each));
        contexts.push((context, windows));
    }
    let prepared = PreparedRows { specs, finish: Finish::Answers { contexts, options } };
    within(prepared.tokens(), limits.width)?;
    Ok(prepared)
}

impl PreparedRows {
    /// Tokens of all rows.
    pub(crate) fn tokens(&self) -> usize {
        self.specs.iter().map(|spec| spec.tokens.len()).sum()
    }

    /// The rows, and what becomes of their numbers.
    pub(crate) fn split(self) -> (Vec<EncodeSpec>, Finisher) {
        let prompt_tokens = self.tokens();
        (self.specs, Finisher { finish: self.finish, prompt_tokens })
    }
}
