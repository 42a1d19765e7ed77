//! `/v1/completions`.

use futures_util::StreamExt;
use http::HeaderValue;
use roundhouse_serving::{
    ALTERNATIVES_MAX, Completion, Config, Finish, Finished, GenerationReply, Piece, Prompt,
    Request, TokenInfo,
};
use serde_json::{Value, json};

use crate::answer::{Ask, Asked};
use crate::call::Generated;
use crate::error::Error;
use crate::fields::{Fields, neutral, strings, tokens};
use crate::openai::beside::{self, Beside};
use crate::openai::logprobs::{Calls, completion_logprobs, echoed_logprobs};
use crate::openai::{
    Stamp, Tally, UsageTold, choices, finish_reason, generation, ignored, streaming, token_names,
};
use crate::stream::{Transcript, openai_failure};

/// OpenAI's default.
const MAX_TOKENS: usize = 16;

/// How the answer shall look.
pub(crate) struct CompletionAsk {
    stamp: Stamp,
    pub(crate) n: usize,
    pub(crate) stream: bool,
    usage: UsageTold,
    /// With how many alternatives to each token, where log-probabilities are told.
    logprobs: Option<usize>,
    names: Calls,
    beside: Beside,
    /// Whether the prompt comes before the answer.
    echoes: bool,
    /// Whether it is all of the answer.
    is_prompt_alone: bool,
    /// Fields that nothing reads, as the answer tells them.
    pub(crate) ignored: Option<HeaderValue>,
}

/// Reads a completion. `fallback` is what the answer calls the model where the body has no
/// `model`.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn parse(fields: &mut Fields, fallback: &str) -> Result<Asked, Error> {
    let stamp = Stamp::new("cmpl", fields, fallback)?;
    let n = choices(fields)?;
    let most = Config::default().max_sequences;
    let prompts = prompts(fields, "prompt", most)?;
    if n * prompts.len() > most {
        let expected = format!(
            "times the {} entries of prompt is {}, more than the {most} answers of one request",
            prompts.len(),
            n * prompts.len()
        );
        return Err(fields.wrong("n", &expected));
    }
    fields.refuse(&[("suffix", neutral::empty)])?;
    let echo = fields.bool("echo")?.unwrap_or(false);
    let max_tokens = fields.count("max_tokens", usize::from(!echo)..=usize::MAX)?;
    let is_prompt_alone = max_tokens == Some(0);
    // Scores come with the first token, so one is drawn all the same.
    let mut generation = generation(fields, max_tokens.map(|most| most.max(1)))?;
    generation.usual_tokens = Some(MAX_TOKENS);
    if is_prompt_alone && generation.min_tokens.is_some_and(|least| least > 0) {
        return Err(fields.wrong("min_tokens", "must be at most max_tokens"));
    }
    let top = fields.count("logprobs", 0..=ALTERNATIVES_MAX)?;
    generation.logprobs = top;
    generation.prompt_logprobs = echo && top.is_some();
    let (stream, usage) = streaming(fields)?;
    let names = token_names(fields)?;
    let beside = Beside::read(fields, &mut generation, stream)?;
    let completion = Completion { prompts, generation, n, echo };
    let ask = CompletionAsk {
        stamp,
        n,
        stream,
        usage,
        logprobs: top,
        names,
        beside,
        echoes: echo,
        is_prompt_alone,
        ignored: ignored(fields),
    };
    Ok(Asked::new(Request::Completion(completion), Ask::Completion(ask)))
}

/// Reads a text, a list of texts, a list of tokens or a list of such lists, `most` at most.
///
/// # Errors
/// `Field`, where it is none of these, empty or too long.
pub(crate) fn prompts(fields: &mut Fields, name: &str, most: usize) -> Result<Vec<Prompt>, Error> {
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
    prompts.filter(|prompts| prompts.len() <= most).ok_or_else(|| {
        let expected =
            format!("must be a string, a list of token ids, or a list of 1 to {most} of either");
        fields.wrong(name, &expected)
    })
}

impl CompletionAsk {
    /// The reply without the tokens that nobody asked for.
    pub(crate) fn asked_for(&self, reply: GenerationReply) -> GenerationReply {
        if !self.is_prompt_alone {
            return reply;
        }
        let pieces = reply.pieces.map(|piece| piece.map(without_tokens));
        GenerationReply { pieces: Box::pin(pieces), ..reply }
    }

    /// The answer in one piece.
    pub(crate) fn whole(&self, generated: &Generated, prompt_tokens: usize) -> Value {
        let choices = generated.choices.iter().enumerate().map(|(index, choice)| {
            let mut said = json!({
                "index": index,
                "text": choice.text,
                "logprobs": self.logprobs(&choice.prompt, &choice.tokens, &mut 0),
                "finish_reason": finish_reason(choice.finished.reason),
            });
            let prompt = index / self.n;
            // The first of a prompt's answers has its scores.
            let scored = generated.choices.get(prompt * self.n);
            let scores = scored.and_then(|first| self.beside.scores(&first.prompt));
            beside::add(&mut said, beside::PROMPT_LOGPROBS, scores);
            let ids = generated.prompts.get(prompt).map(|ids| json!(ids));
            beside::add(&mut said, beside::PROMPT_TOKEN_IDS, ids);
            beside::add(&mut said, beside::TOKEN_IDS, self.beside.ids_of(&choice.tokens));
            said
        });
        let mut said = self.stamp.object("text_completion", choices.collect());
        let mut tally = Tally::new(prompt_tokens, self.n);
        for (index, choice) in generated.choices.iter().enumerate() {
            tally.finished(index, choice.finished);
        }
        said["usage"] = tally.usage();
        said
    }

    /// Of the prompt's tokens, where they were scored, and the answer's: then all are there, the
    /// end too, since clients tell the two apart by counting. `null` where nobody asked.
    fn logprobs(&self, prompt: &[TokenInfo], tokens: &[TokenInfo], offset: &mut usize) -> Value {
        match (self.logprobs, self.echoes) {
            (None, _) => Value::Null,
            (Some(most), true) => {
                echoed_logprobs(prompt.iter().chain(tokens), offset, self.names, most)
            }
            (Some(_), false) => completion_logprobs(tokens, offset, self.names),
        }
    }

    /// The answer as a stream of so many choices.
    pub(crate) fn transcript(
        self,
        (prompt_tokens, prompts): (usize, &[Vec<u32>]),
        choices: usize,
    ) -> CompletionTranscript {
        let prompt_of = |choice: usize| prompts.get(choice / self.n).map(|ids| json!(ids));
        let prompts = (0..choices).map(prompt_of).collect();
        let offsets = vec![0; choices];
        let tally = Tally::new(prompt_tokens, self.n);
        let generated = vec![0; choices];
        CompletionTranscript { ask: self, tally, offsets, generated, prompts }
    }
}

/// A piece as an answer of no tokens has it: the prompt's stays as it is.
fn without_tokens(piece: Piece) -> Piece {
    if piece.tokens.is_empty() && piece.finished.is_none() {
        return piece;
    }
    let none = |end| Finished { reason: Finish::Length, generated_tokens: 0, ..end };
    Piece { text: String::new(), tokens: Vec::new(), finished: piece.finished.map(none), ..piece }
}

/// A completion's stream: pieces of text, usage.
pub(crate) struct CompletionTranscript {
    ask: CompletionAsk,
    tally: Tally,
    /// Where the next token's text begins, per choice, in characters.
    offsets: Vec<usize>,
    /// Tokens so far, per choice.
    generated: Vec<usize>,
    /// Per choice the tokens of its prompt, where its first chunk is to have them, until then.
    prompts: Vec<Option<Value>>,
}

impl CompletionTranscript {
    fn chunk(&self, choices: Vec<Value>, generated: usize) -> Value {
        let mut chunk = self.ask.stamp.object("text_completion", choices);
        if let Some(usage) = self.tally.so_far(self.ask.usage, generated) {
            chunk["usage"] = usage;
        }
        chunk
    }
}

impl Transcript for CompletionTranscript {
    fn start(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        let mut generated = 0;
        if let Some(so_far) = self.generated.get_mut(piece.choice) {
            *so_far += piece.tokens.len();
            generated = *so_far;
        }
        let mut logprobs = Value::Null;
        if self.ask.logprobs.is_some()
            && !(piece.prompt.is_empty() && piece.tokens.is_empty())
            && let Some(offset) = self.offsets.get_mut(piece.choice)
        {
            logprobs = self.ask.logprobs(&piece.prompt, &piece.tokens, offset);
        }
        if let Some(finished) = piece.finished {
            self.tally.finished(piece.choice, finished);
        }
        let ids = self.ask.beside.ids_of(&piece.tokens);
        let tells_ids = ids.is_some() && !piece.tokens.is_empty();
        if piece.text.is_empty() && logprobs.is_null() && piece.finished.is_none() && !tells_ids {
            return Vec::new();
        }
        let mut choice = json!({
            "index": piece.choice,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finished.map(|finished| finish_reason(finished.reason)),
        });
        let prompt = self.prompts.get_mut(piece.choice).and_then(Option::take);
        beside::add(&mut choice, beside::PROMPT_TOKEN_IDS, prompt);
        beside::add(&mut choice, beside::TOKEN_IDS, ids);
        vec![self.chunk(vec![choice], generated)]
    }

    fn end(&mut self) -> Vec<Value> {
        if self.ask.usage == UsageTold::Never {
            return Vec::new();
        }
        let mut chunk = self.chunk(Vec::new(), 0);
        chunk["usage"] = self.tally.usage();
        vec![chunk]
    }

    fn failed(&self, error: &Error) -> Value {
        openai_failure(error)
    }
}
