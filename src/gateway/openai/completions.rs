//! `/v1/completions`.

use roundhouse_serving::{ALTERNATIVES_MAX, Completion, Piece, Prompt, Request, TokenInfo};
use serde_json::{Value, json};

use crate::answer::{Ask, Asked};
use crate::call::Generated;
use crate::error::Error;
use crate::fields::{Fields, neutral, strings, tokens};
use crate::openai::logprobs::{completion_logprobs, echoed_logprobs};
use crate::openai::{Stamp, Tally, choices, finish_reason, generation, streaming};
use crate::stream::{Transcript, openai_failure};

/// Prompts or embedding inputs of one request at most, as at OpenAI.
const PROMPTS_MAX: usize = 2048;
/// OpenAI's default.
const MAX_TOKENS: usize = 16;

/// How the answer shall look.
pub(crate) struct CompletionAsk {
    stamp: Stamp,
    pub(crate) n: usize,
    pub(crate) stream: bool,
    include_usage: bool,
    logprobs: bool,
    /// Whether the prompt comes before the answer.
    echoes: bool,
}

/// Reads a completion. `fallback` is what the answer calls the model where the body has no
/// `model`.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn parse(fields: &mut Fields, fallback: &str) -> Result<Asked, Error> {
    let stamp = Stamp::new("cmpl", fields, fallback)?;
    let prompts = prompts(fields, "prompt")?;
    fields.refuse(&[("suffix", neutral::empty)])?;
    let max_tokens = fields.count("max_tokens", 1..=usize::MAX)?.unwrap_or(MAX_TOKENS);
    let mut generation = generation(fields, Some(max_tokens))?;
    let top = fields.count("logprobs", 0..=ALTERNATIVES_MAX)?;
    generation.logprobs = top;
    let echo = fields.bool("echo")?.unwrap_or(false);
    generation.prompt_logprobs = echo && top.is_some();
    let n = choices(fields)?;
    let (stream, include_usage) = streaming(fields)?;
    let completion = Completion { prompts, generation, n, echo };
    let ask =
        CompletionAsk { stamp, n, stream, include_usage, logprobs: top.is_some(), echoes: echo };
    Ok(Asked::new(Request::Completion(completion), Ask::Completion(ask)))
}

/// Reads a text, a list of texts, a list of tokens or a list of such lists.
///
/// # Errors
/// `Field`, where it is none of these, or empty.
pub(crate) fn prompts(fields: &mut Fields, name: &str) -> Result<Vec<Prompt>, Error> {
    let prompts = match fields.take(name) {
        Some(Value::String(text)) => Some(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) => match items.first() {
            Some(Value::String(_)) => {
                strings(items).map(|texts| texts.into_iter().map(Prompt::Text).collect())
            }
            Some(Value::Number(_)) => tokens(&items).map(|ids| vec![Prompt::Tokens(ids)]),
            Some(Value::Array(_)) => items
                .iter()
                .map(|item| {
                    let ids = tokens(item.as_array().filter(|ids| !ids.is_empty())?)?;
                    Some(Prompt::Tokens(ids))
                })
                .collect(),
            _ => None,
        },
        _ => None,
    };
    prompts.filter(|prompts| prompts.len() <= PROMPTS_MAX).ok_or_else(|| {
        let expected = format!(
            "must be a string, a list of token ids, or a list of 1 to {PROMPTS_MAX} of either"
        );
        fields.wrong(name, &expected)
    })
}

impl CompletionAsk {
    /// The answer in one piece.
    pub(crate) fn whole(&self, generated: &Generated, prompt_tokens: usize) -> Value {
        let choices = generated.choices.iter().enumerate().map(|(index, choice)| {
            json!({
                "index": index,
                "text": choice.text,
                "logprobs": self.logprobs.then(|| self.logprobs(&choice.prompt, &choice.tokens, &mut 0)),
                "finish_reason": finish_reason(choice.finished.reason),
            })
        });
        let mut said = self.stamp.object("text_completion", choices.collect());
        let mut tally = Tally::new(prompt_tokens, self.n);
        for (index, choice) in generated.choices.iter().enumerate() {
            tally.finished(index, choice.finished);
        }
        said["usage"] = tally.usage();
        said
    }

    /// Of the prompt's tokens, where they were scored, and the answer's: then all are there, special
    /// ones too, since clients tell the two apart by counting.
    fn logprobs(&self, prompt: &[TokenInfo], tokens: &[TokenInfo], offset: &mut usize) -> Value {
        match self.echoes {
            true => echoed_logprobs(prompt.iter().chain(tokens), offset),
            false => completion_logprobs(tokens, offset),
        }
    }

    /// The answer as a stream of so many choices.
    pub(crate) fn transcript(self, prompt_tokens: usize, choices: usize) -> CompletionTranscript {
        let offsets = vec![0; choices];
        let tally = Tally::new(prompt_tokens, self.n);
        CompletionTranscript { ask: self, tally, offsets }
    }
}

/// A completion's stream: pieces of text, usage.
pub(crate) struct CompletionTranscript {
    ask: CompletionAsk,
    tally: Tally,
    /// Where the next token's text begins, per choice, in characters.
    offsets: Vec<usize>,
}

impl CompletionTranscript {
    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.ask.stamp.object("text_completion", choices);
        if self.ask.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl Transcript for CompletionTranscript {
    fn start(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        let mut logprobs = Value::Null;
        if self.ask.logprobs
            && !(piece.prompt.is_empty() && piece.tokens.is_empty())
            && let Some(offset) = self.offsets.get_mut(piece.choice)
        {
            logprobs = self.ask.logprobs(&piece.prompt, &piece.tokens, offset);
        }
        if let Some(finished) = piece.finished {
            self.tally.finished(piece.choice, finished);
        }
        if piece.text.is_empty() && logprobs.is_null() && piece.finished.is_none() {
            return Vec::new();
        }
        vec![self.chunk(vec![json!({
            "index": piece.choice,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finished.map(|finished| finish_reason(finished.reason)),
        })])]
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.ask.include_usage {
            return Vec::new();
        }
        let mut chunk = self.chunk(Vec::new());
        chunk["usage"] = self.tally.usage();
        vec![chunk]
    }

    fn failed(&self, error: &Error) -> Value {
        openai_failure(error)
    }
}
