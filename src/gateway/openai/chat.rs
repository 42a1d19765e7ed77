//! `/v1/chat/completions`.

use roundhouse_serving::{ALTERNATIVES_MAX, Chat, Piece, Request};
use serde_json::{Map, Value, json};

use crate::answer::{Ask, Asked};
use crate::call::Generated;
use crate::error::Error;
use crate::fields::{Fields, neutral};
use crate::openai::logprobs::chat_logprobs;
use crate::openai::{Stamp, choices, finish_reason, generation, messages, streaming, usage};
use crate::stream::{Transcript, openai_failure};

/// How the answer shall look.
pub(crate) struct ChatAsk {
    stamp: Stamp,
    pub(crate) n: usize,
    pub(crate) stream: bool,
    include_usage: bool,
    logprobs: bool,
}

/// Reads a chat. `fallback` is what the answer calls the model where the body has no `model`.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn parse(fields: &mut Fields, fallback: &str) -> Result<Asked, Error> {
    let stamp = Stamp::new("chatcmpl", fields, fallback)?;
    let messages = messages::read(fields)?;
    let tools = tools(fields)?;
    fields.refuse(&[
        ("add_generation_prompt", neutral::on),
        ("audio", neutral::absent),
        ("chat_template", neutral::absent),
        ("continue_final_message", neutral::off),
        ("function_call", neutral::absent),
        ("functions", neutral::empty),
    ])?;
    let template_kwargs = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(fields.wrong("chat_template_kwargs", "must be an object")),
    };
    let newer = fields.count("max_completion_tokens", 1..=usize::MAX)?;
    let max_tokens = newer.or(fields.count("max_tokens", 1..=usize::MAX)?);
    let mut generation = generation(fields, max_tokens)?;
    let logprobs = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=ALTERNATIVES_MAX)?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(fields.wrong("top_logprobs", "is allowed only where logprobs is true"));
    }
    if logprobs {
        generation.logprobs = Some(top.unwrap_or(0));
    }
    let n = choices(fields)?;
    let (stream, include_usage) = streaming(fields)?;
    let chat = Chat { messages, tools, template_kwargs, generation, n };
    let ask = ChatAsk { stamp, n, stream, include_usage, logprobs };
    Ok(Asked::new(Request::Chat(chat), Ask::Chat(ask)))
}

/// `tools` go to the template; nothing here can force a call.
fn tools(fields: &mut Fields) -> Result<Option<Vec<Value>>, Error> {
    let tools = match fields.take("tools") {
        None => None,
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => Some(items),
        Some(_) => return Err(fields.wrong("tools", "must be a list of objects")),
    };
    match fields.take("tool_choice") {
        None => Ok(tools),
        Some(choice) if choice == "auto" => Ok(tools),
        Some(choice) if choice == "none" => Ok(None),
        Some(_) => Err(fields.wrong("tool_choice", "supports auto and none only")),
    }
}

impl ChatAsk {
    /// The answer in one piece.
    pub(crate) fn whole(&self, generated: &Generated, prompt_tokens: usize) -> Value {
        let choices = generated.choices.iter().enumerate().map(|(index, choice)| {
            json!({
                "index": index,
                "message": {"role": "assistant", "content": choice.text},
                "logprobs": self.logprobs.then(|| chat_logprobs(&choice.tokens)),
                "finish_reason": finish_reason(choice.finished.reason),
            })
        });
        let mut said = self.stamp.object("chat.completion", choices.collect());
        let completion_tokens =
            generated.choices.iter().map(|choice| choice.finished.generated_tokens).sum();
        said["usage"] = usage(prompt_tokens, completion_tokens);
        said
    }

    /// The answer as a stream.
    pub(crate) fn transcript(self, prompt_tokens: usize) -> ChatTranscript {
        ChatTranscript { ask: self, prompt_tokens, completion_tokens: 0 }
    }
}

/// A chat's stream: role, pieces of content, reason, usage.
pub(crate) struct ChatTranscript {
    ask: ChatAsk,
    prompt_tokens: usize,
    completion_tokens: usize,
}

impl ChatTranscript {
    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.ask.stamp.object("chat.completion.chunk", choices);
        if self.ask.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Value {
        self.chunk(vec![json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        })])
    }
}

impl Transcript for ChatTranscript {
    fn start(&mut self) -> Vec<Value> {
        let opening = |index| {
            let delta = json!({"role": "assistant", "content": ""});
            self.delta(index, delta, Value::Null, None)
        };
        (0..self.ask.n).map(opening).collect()
    }

    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        let mut events = Vec::new();
        let logprobs = match self.ask.logprobs && piece.tokens.iter().any(|token| !token.special) {
            true => chat_logprobs(&piece.tokens),
            false => Value::Null,
        };
        if !piece.text.is_empty() || !logprobs.is_null() {
            let delta = json!({"content": piece.text});
            events.push(self.delta(piece.choice, delta, logprobs, None));
        }
        if let Some(finished) = piece.finished {
            self.completion_tokens += finished.generated_tokens;
            let reason = finish_reason(finished.reason);
            events.push(self.delta(piece.choice, json!({}), Value::Null, Some(reason)));
        }
        events
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.ask.include_usage {
            return Vec::new();
        }
        let mut chunk = self.chunk(Vec::new());
        chunk["usage"] = usage(self.prompt_tokens, self.completion_tokens);
        vec![chunk]
    }

    fn failed(&self, error: &Error) -> Value {
        openai_failure(error)
    }
}
