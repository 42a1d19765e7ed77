//! `/v1/chat/completions`.

use http::HeaderValue;
use roundhouse_serving::{ALTERNATIVES_MAX, Chat, FieldNames, Opening, Piece, Request};
use serde_json::{Map, Value, json};

use crate::answer::{Ask, Asked};
use crate::call::Generated;
use crate::error::Error;
use crate::fields::{Fields, neutral};
use crate::openai::beside::{self, Beside};
use crate::openai::logprobs::{Calls, chat_logprobs, listed};
use crate::openai::tools::{self, Tools};
use crate::openai::{
    Stamp, Tally, UsageTold, choices, finish_reason, generation, ignored, messages, streaming,
    token_names,
};
use crate::stream::{Transcript, openai_failure};

/// How the answer's length is limited, as the rest of the server and older clients call it.
const MAX_TOKENS: &str = "max_tokens";
/// What OpenAI calls it now.
const MAX_COMPLETION_TOKENS: &str = "max_completion_tokens";

/// How the answer shall look.
pub(crate) struct ChatAsk {
    stamp: Stamp,
    pub(crate) n: usize,
    pub(crate) stream: bool,
    usage: UsageTold,
    logprobs: bool,
    names: Calls,
    beside: Beside,
    /// Whose the answer is: the assistant's, or the last message's that goes on.
    role: String,
    /// Fields that nothing reads, as the answer tells them.
    pub(crate) ignored: Option<HeaderValue>,
}

/// Reads a chat. `fallback` is what the answer calls the model where the body has no `model`.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn parse(fields: &mut Fields, fallback: &str) -> Result<Asked, Error> {
    let stamp = Stamp::new("chatcmpl", fields, fallback)?;
    let messages = messages::read(fields)?;
    let Tools { tools, choice: tool_choice, parallel: parallel_tool_calls } = tools::read(fields)?;
    fields.refuse(&[
        ("audio", neutral::absent),
        ("chat_template", neutral::absent),
        ("function_call", neutral::uncalled),
        ("functions", neutral::empty),
        ("modalities", neutral::text),
        ("web_search_options", neutral::absent),
    ])?;
    let opening = opening(fields)?;
    let echo = fields.bool("echo")?.unwrap_or(false);
    let template_kwargs = template_kwargs(fields)?;
    let newer = fields.count(MAX_COMPLETION_TOKENS, 1..=usize::MAX)?;
    let older = fields.count(MAX_TOKENS, 1..=usize::MAX)?;
    let mut generation = generation(fields, newer.or(older))?;
    tools::agree(fields, &tool_choice, generation.form.as_ref())?;
    let max_tokens = if newer.is_some() { MAX_COMPLETION_TOKENS } else { MAX_TOKENS };
    generation.names = FieldNames { prompt: "messages", max_tokens, ..FieldNames::default() };
    let logprobs = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=ALTERNATIVES_MAX)?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(fields.wrong("top_logprobs", "is allowed only where logprobs is true"));
    }
    if logprobs {
        generation.logprobs = Some(top.unwrap_or(0));
    }
    let n = choices(fields)?;
    let (stream, usage) = streaming(fields)?;
    let names = token_names(fields)?;
    let beside = Beside::read(fields, &mut generation, stream)?;
    let last = messages.last().and_then(|last| last["role"].as_str());
    let role = last.filter(|_| opening != Opening::Answer).unwrap_or("assistant").to_owned();
    let chat = Chat {
        messages,
        tools,
        tool_choice,
        parallel_tool_calls,
        template_kwargs,
        generation,
        opening,
        echo,
        n,
    };
    let ignored = ignored(fields);
    let ask = ChatAsk { stamp, n, stream, usage, logprobs, names, beside, role, ignored };
    Ok(Asked::new(Request::Chat(chat), Ask::Chat(ask)))
}

/// How the prompt ends, by `add_generation_prompt` and `continue_final_message`.
fn opening(fields: &mut Fields) -> Result<Opening, Error> {
    let answers = fields.bool("add_generation_prompt")?;
    match (fields.bool("continue_final_message")?.unwrap_or(false), answers) {
        (true, Some(true)) => {
            let expected = "is allowed only where add_generation_prompt is false";
            Err(fields.wrong("continue_final_message", expected))
        }
        (true, _) => Ok(Opening::Message),
        (false, Some(false)) => Ok(Opening::Closed),
        (false, _) => Ok(Opening::Answer),
    }
}

/// Variables for the template: `chat_template_kwargs`, and what vLLM makes one of `documents` and of
/// `reasoning_effort`. Templates that do not know them do without.
///
/// # Errors
/// `Field`.
pub(crate) fn template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, Error> {
    let mut kwargs = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(fields.wrong("chat_template_kwargs", "must be an object")),
    };
    match fields.take("documents") {
        None => {}
        Some(Value::Array(all)) if all.iter().all(Value::is_object) => {
            kwargs.insert("documents".into(), all.into());
        }
        Some(_) => return Err(fields.wrong("documents", "must be a list of objects")),
    }
    if let Some(effort) = fields.string("reasoning_effort")? {
        with_effort(&mut kwargs, effort);
    }
    Ok(kwargs)
}

/// Says how much a model shall think, and by that whether it shall.
pub(crate) fn with_effort(kwargs: &mut Map<String, Value>, effort: String) {
    kwargs.entry("enable_thinking").or_insert_with(|| (effort != "none").into());
    kwargs.insert("reasoning_effort".into(), effort.into());
}

impl ChatAsk {
    /// The answer in one piece.
    pub(crate) fn whole(&self, generated: &Generated, prompt_tokens: usize) -> Value {
        let choices = generated.choices.iter().enumerate().map(|(index, choice)| {
            let mut message = json!({"role": self.role, "content": choice.text});
            if !choice.calls.is_empty() {
                message["tool_calls"] = tools::calls(&choice.calls);
                if choice.text.is_empty() {
                    message["content"] = Value::Null;
                }
            }
            let mut said = json!({
                "index": index,
                "message": message,
                "logprobs": self.logprobs.then(|| chat_logprobs(&choice.tokens, self.names)),
                "finish_reason": finish_reason(choice.finished.reason),
            });
            beside::add(&mut said, beside::TOKEN_IDS, self.beside.ids_of(&choice.tokens));
            said
        });
        let mut said = self.stamp.object("chat.completion", choices.collect());
        // A chat has one prompt, whose scores come with the first answer.
        let first = generated.choices.first();
        let scores = first.and_then(|first| self.beside.scores(&first.prompt));
        beside::add(&mut said, beside::PROMPT_LOGPROBS, scores);
        let ids = generated.prompts.first().map(|ids| json!(ids));
        beside::add(&mut said, beside::PROMPT_TOKEN_IDS, ids);
        let mut tally = Tally::new(prompt_tokens, self.n);
        for (index, choice) in generated.choices.iter().enumerate() {
            tally.finished(index, choice.finished);
        }
        said["usage"] = tally.usage();
        said
    }

    /// The answer as a stream.
    pub(crate) fn transcript(self, prompt_tokens: usize, prompts: &[Vec<u32>]) -> ChatTranscript {
        let prompt = prompts.first().map(|ids| json!(ids));
        let tally = Tally::new(prompt_tokens, self.n);
        let calls = vec![0; self.n];
        let generated = vec![0; self.n];
        ChatTranscript { ask: self, tally, calls, generated, prompt }
    }
}

/// A chat's stream: role, pieces of content, calls of tools, reason, usage.
pub(crate) struct ChatTranscript {
    ask: ChatAsk,
    tally: Tally,
    /// Calls told so far, per choice.
    calls: Vec<usize>,
    /// Tokens so far, per choice.
    generated: Vec<usize>,
    /// The prompt's tokens, where the first chunk is to have them.
    prompt: Option<Value>,
}

impl ChatTranscript {
    fn chunk(&self, choices: Vec<Value>, generated: usize) -> Value {
        let mut chunk = self.ask.stamp.object("chat.completion.chunk", choices);
        if let Some(usage) = self.tally.so_far(self.ask.usage, generated) {
            chunk["usage"] = usage;
        }
        chunk
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Value {
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        });
        self.chunk(vec![choice], self.generated.get(index).copied().unwrap_or_default())
    }
}

impl Transcript for ChatTranscript {
    fn start(&mut self) -> Vec<Value> {
        let opening = |index| {
            let delta = json!({"role": self.ask.role, "content": ""});
            self.delta(index, delta, Value::Null, None)
        };
        let mut events: Vec<Value> = (0..self.ask.n).map(opening).collect();
        if let Some(first) = events.first_mut() {
            beside::add(first, beside::PROMPT_TOKEN_IDS, self.prompt.take());
        }
        events
    }

    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        let mut events = Vec::new();
        if let Some(so_far) = self.generated.get_mut(piece.choice) {
            *so_far += piece.tokens.len();
        }
        let logprobs = match self.ask.logprobs && listed(&piece.tokens).next().is_some() {
            true => chat_logprobs(&piece.tokens, self.ask.names),
            false => Value::Null,
        };
        let ids = self.ask.beside.ids_of(&piece.tokens).filter(|_| !piece.tokens.is_empty());
        let tells = !piece.text.is_empty() || !logprobs.is_null();
        if tells || ids.is_some() {
            let delta = if tells { json!({"content": piece.text}) } else { json!({}) };
            let mut event = self.delta(piece.choice, delta, logprobs, None);
            beside::add(&mut event["choices"][0], beside::TOKEN_IDS, ids);
            events.push(event);
        }
        for call in &piece.calls {
            let Some(index) = self.calls.get_mut(piece.choice) else { break };
            let deltas = tools::deltas(*index, call);
            *index += 1;
            events.extend(deltas.map(|delta| self.delta(piece.choice, delta, Value::Null, None)));
        }
        if let Some(finished) = piece.finished {
            self.tally.finished(piece.choice, finished);
            let reason = finish_reason(finished.reason);
            events.push(self.delta(piece.choice, json!({}), Value::Null, Some(reason)));
        }
        events
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
