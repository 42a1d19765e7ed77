//! Answers to `inputs`, as LMI and the Hugging Face toolkit write them.

use bytes::Bytes;
use roundhouse_serving::{
    EmbeddingsReply, Finish, Finished, LabelScore, Piece, TokenInfo, TokenPlace,
};
use serde_json::{Value, json};

use crate::call::{Choice, Generated};
use crate::error::{Error, Face};
use crate::json::logprob;
use crate::sagemaker::found::label;
use crate::sagemaker::inputs::{Dialect, InputsAsk, LabelShape};
use crate::stream::Transcript;

impl InputsAsk {
    /// One object for one string, a list for a list.
    ///
    /// # Errors
    /// `Internal` where the model answered a number of inputs that nobody sent.
    pub(crate) fn generated(&self, generated: &Generated) -> Result<Value, Error> {
        let said = generated.choices.iter().zip(&generated.prompt_tokens);
        let mut answers: Vec<Value> =
            said.map(|(choice, prompt)| self.choice(choice, *prompt, generated.seed)).collect();
        match self.dialect {
            Dialect::Tgi { array: true } => Ok(answers.into()),
            Dialect::Tgi { array: false } | Dialect::Lmi => self.one_or_all(&mut answers),
        }
    }

    fn choice(&self, choice: &Choice, prompt_tokens: usize, seed: u64) -> Value {
        let mut said = json!({"generated_text": choice.text});
        if self.details {
            let mut details = details(choice.finished, prompt_tokens, seed);
            details["prefill"] = choice.prompt.iter().map(prefilled).collect();
            details["tokens"] = choice.tokens.iter().map(|info| token(info, &info.text)).collect();
            if self.top {
                details["top_tokens"] = choice.tokens.iter().map(top).collect();
            }
            said["details"] = details;
        }
        said
    }

    /// The likeliest labels: one list for one string; for a list of strings one label each,
    /// or a list each where the client said how many.
    ///
    /// # Errors
    /// `Internal` where the model answered a number of inputs that nobody sent.
    pub(crate) fn labels(&self, inputs: &[Vec<LabelScore>]) -> Result<Value, Error> {
        if let Some(sequences) = &self.sequences {
            return self.zero_shot(sequences, inputs);
        }
        let written = |labels: &[LabelScore]| -> Value { labels.iter().map(label).collect() };
        let lists = || inputs.iter().map(|labels| written(labels)).collect();
        match (inputs, self.labels) {
            ([_], _) if self.single && self.dialect == (Dialect::Tgi { array: true }) => {
                Ok(lists())
            }
            ([only], LabelShape::One) => Ok(only.first().map(label).unwrap_or_default()),
            ([_], LabelShape::Nested) => Ok(lists()),
            ([only], _) if self.single => Ok(written(only)),
            _ if self.single => Err(Error::internal("one input has not one answer")),
            (_, LabelShape::Lists | LabelShape::Nested) => Ok(lists()),
            (many, LabelShape::Likeliest | LabelShape::One) => {
                let first: Vec<LabelScore> =
                    many.iter().filter_map(|labels| labels.first().cloned()).collect();
                Ok(written(&first))
            }
        }
    }

    /// One vector for one string, a list of them for a list.
    ///
    /// # Errors
    /// `Internal` where the model answered a number of inputs that nobody sent.
    pub(crate) fn vectors(&self, reply: &EmbeddingsReply) -> Result<Bytes, Error> {
        let text = match reply.vectors.as_slice() {
            [only] if self.single => serde_json::to_vec(only),
            _ if self.single => return Err(Error::internal("one input has not one answer")),
            many => serde_json::to_vec(many),
        };
        text.map(Bytes::from)
            .map_err(|error| Error::internal(format!("writing vectors failed: {error}")))
    }

    fn one_or_all(&self, answers: &mut Vec<Value>) -> Result<Value, Error> {
        if !self.single {
            return Ok(std::mem::take(answers).into());
        }
        match (answers.pop(), answers.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(Error::internal("one input has not one answer")),
        }
    }
}

fn details(finished: Finished, prompt_tokens: usize, seed: u64) -> Value {
    let reason = match finished.reason {
        Finish::EndOfSequence | Finish::ToolCalls => "eos_token",
        Finish::StopSequence => "stop_sequence",
        Finish::Length => "length",
    };
    json!({
        "finish_reason": reason,
        "generated_tokens": finished.generated_tokens,
        "seed": seed,
        "input_length": prompt_tokens,
    })
}

/// Old and new spelling of the log-probability, and `special`, which clients index blindly.
fn token(info: &TokenInfo, text: &str) -> Value {
    let logprob = info.logprob.map_or(Value::Null, logprob);
    json!({
        "id": info.id,
        "text": text,
        "logprob": logprob,
        "log_prob": logprob,
        "special": info.special,
    })
}

/// A token of the prompt.
fn prefilled(info: &TokenInfo) -> Value {
    json!({"id": info.id, "text": info.text, "logprob": info.logprob.map_or(Value::Null, logprob)})
}

/// The likeliest alternatives of a token.
fn top(info: &TokenInfo) -> Value {
    let alternative = |(id, text, value): &(u32, String, f32)| json!({"id": id, "text": text, "logprob": logprob(*value), "special": false});
    info.top.iter().map(alternative).collect()
}

/// A stream in LMI's and TGI's shape: one event per token, the whole text on the last.
pub(crate) struct InputsTranscript {
    prompt_tokens: usize,
    seed: u64,
    /// What has been said so far.
    text: String,
    index: usize,
    /// Whether each token comes with its likeliest alternatives.
    top: bool,
    dialect: Dialect,
    /// Stands in where text comes without a token of its own.
    last: Option<TokenInfo>,
}

impl InputsTranscript {
    pub(crate) fn new(prompt_tokens: usize, seed: u64, ask: &InputsAsk) -> Self {
        let (top, dialect) = (ask.top, ask.dialect);
        Self { prompt_tokens, seed, text: String::new(), index: 0, top, dialect, last: None }
    }

    /// Deals a piece's text out to its tokens, so that the texts of tokens that are not
    /// special add up to the text generated: to each its own where they do anyway, else
    /// all of it to the last.
    fn dealt(&self, piece: &Piece) -> Vec<(TokenInfo, String)> {
        let own: String = piece.tokens.iter().filter(|t| !t.special).map(|t| &*t.text).collect();
        let mut dealt: Vec<(TokenInfo, String)> = piece
            .tokens
            .iter()
            .map(|info| {
                let text = if info.special || own == piece.text { &*info.text } else { "" };
                (info.clone(), text.to_owned())
            })
            .collect();
        if own == piece.text {
            return dealt;
        }
        match dealt.iter_mut().rfind(|(info, _)| !info.special) {
            Some((_, text)) => text.push_str(&piece.text),
            // Text before every token is the prompt, which only the whole text repeats.
            None => {
                let carrier = self.last.clone().map(|info| (info, piece.text.clone()));
                dealt.splice(0..0, carrier);
            }
        }
        dealt
    }
}

impl Transcript for InputsTranscript {
    fn start(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        let mut dealt = self.dealt(&piece);
        self.text.push_str(&piece.text);
        if piece.finished.is_some() && dealt.is_empty() {
            // The last event needs a token; an empty one says nothing twice.
            let nothing = TokenInfo {
                id: 0,
                text: String::new(),
                logprob: Some(0.0),
                rank: None,
                special: true,
                place: TokenPlace::Hidden,
                top: Vec::new(),
            };
            dealt.push((self.last.clone().unwrap_or(nothing), String::new()));
        }
        let mut events = Vec::with_capacity(dealt.len());
        for (info, text) in dealt {
            let mut event = json!({
                "index": self.index,
                "token": token(&info, &text),
                "generated_text": null,
                "details": null,
            });
            if self.top {
                event["top_tokens"] = top(&info);
            }
            events.push(event);
            self.index += 1;
            if !info.special {
                self.last = Some(info);
            }
        }
        if let Some(finished) = piece.finished
            && let Some(event) = events.last_mut()
        {
            event["generated_text"] = self.text.as_str().into();
            event["details"] = details(finished, self.prompt_tokens, self.seed);
        }
        events
    }

    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }

    /// LMI's failure line, with the reason beside it; or TGI's error.
    fn failed(&self, error: &Error) -> Value {
        if let Dialect::Tgi { .. } = self.dialect {
            return error.object(Face::Tgi);
        }
        json!({
            "token": {"id": -1, "text": "", "logprob": -1, "log_prob": -1, "special": true, "special_token": true},
            "generated_text": "",
            "details": {"finish_reason": "error", "generated_tokens": null, "inputs": null, "tokens": null},
            "error": error.object(Face::Container)["message"],
        })
    }
}
