//! `/v1/responses`: OpenAI's Responses API, over the same models as chats. Nothing is stored: whoever goes
//! on with a conversation sends its items again.

use http::HeaderValue;
use roundhouse_serving::{ALTERNATIVES_MAX, Chat, FieldNames, Generation, Opening, Request};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::answer::{Ask, Asked};
use crate::error::Error;
use crate::fields::{Fields, Neutral, neutral};
use crate::forms;
use crate::json::logprob;
use crate::openai::chat::{template_kwargs, with_effort};
use crate::openai::tools::{self, Tools};
use crate::openai::{Stamp, generation, ignored_with};

mod input;
mod told;

/// How the answer's length is limited.
const MAX_TOKENS: &str = "max_output_tokens";
/// What only a server that stores conversations can do.
const OF_STORED: [&str; 3] = ["conversation", "previous_response_id", "prompt"];
/// What would change the answer and is done by nothing here.
const UNSUPPORTED: [Neutral; 4] = [
    ("context_management", neutral::empty),
    ("moderation", neutral::absent),
    ("prompt_logprobs", neutral::zero),
    ("truncation", |value| value == "disabled"),
];
/// Asks for the log-probabilities of the answer's tokens, in `include`.
const LOGPROBS: &str = "message.output_text.logprobs";

/// How the answer shall look.
pub(crate) struct ResponseAsk {
    /// The answer but for what becomes of it: its id, and what the request said.
    base: Map<String, Value>,
    pub(crate) stream: bool,
    logprobs: bool,
    /// Fields that nothing reads, as the answer tells them.
    pub(crate) ignored: Option<HeaderValue>,
}

/// What an answer repeats of its request.
struct Repeated {
    instructions: Option<String>,
    metadata: Option<Value>,
    tools: SentTools,
    parallel: bool,
    format: Value,
}

/// Reads a request. `fallback` is what the answer calls the model where the body has no `model`.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn parse(fields: &mut Fields, fallback: &str) -> Result<Asked, Error> {
    let stamp = Stamp::new("resp", fields, fallback)?;
    refuse_stored(fields)?;
    fields.refuse(&UNSUPPORTED)?;
    let instructions = fields.string("instructions")?;
    let messages = input::messages(fields, instructions.as_deref())?;
    let (sent, Tools { tools, choice: tool_choice, parallel }) = function_tools(fields)?;
    let mut template_kwargs = template_kwargs(fields)?;
    let mut reasoning = Fields::nested(object(fields, "reasoning")?, "reasoning.");
    if let Some(effort) = reasoning.string("effort")? {
        with_effort(&mut template_kwargs, effort);
    }
    let (unstored, metadata) = (unstored(fields)?, fields.take("metadata"));
    let mut text = Fields::nested(object(fields, "text")?, "text.");
    let format = text.take("format").unwrap_or_else(|| json!({"type": "text"}));
    let generation = sized_and_formed(fields, &format)?;
    tools::agree(fields, &tool_choice, generation.form.as_ref())?;
    let stream = fields.bool("stream")?.unwrap_or(false);
    // Neither padding against listeners nor a bound of tools that are not here changes an answer.
    let _ = (fields.take("stream_options"), fields.take("max_tool_calls"));
    let mut beside = [reasoning.left(), text.left()].concat();
    beside.extend(unstored);
    let ignored = ignored_with(fields, beside);
    let repeated = Repeated { instructions, metadata, tools: sent, parallel, format };
    let effort = template_kwargs.get("reasoning_effort").cloned();
    let base = base(&stamp, repeated, &generation, effort);
    let logprobs = generation.logprobs.is_some();
    let chat = Chat {
        messages,
        tools,
        tool_choice,
        parallel_tool_calls: parallel,
        template_kwargs,
        generation,
        opening: Opening::Answer,
        echo: false,
        n: 1,
    };
    let ask = ResponseAsk { base, stream, logprobs, ignored };
    Ok(Asked::new(Request::Chat(chat), Ask::Response(ask)))
}

/// Refuses what goes on after the answer, or with an answer that was given before: such are nobody's
/// here, so an engine behind us that keeps some is not asked for them either.
///
/// # Errors
/// `Field`.
pub(super) fn refuse_stored(fields: &mut Fields) -> Result<(), Error> {
    for name in OF_STORED {
        if fields.take(name).is_some() {
            let expected =
                "is not supported: nothing is stored here, send the earlier items in input";
            return Err(fields.wrong(name, expected));
        }
    }
    fields.refuse(&[("background", neutral::off)])
}

/// Takes `store`, and names it where it asks for an answer to be stored: nobody will find it. An engine
/// behind us is sent `false`.
///
/// # Errors
/// `Field`.
pub(super) fn unstored(fields: &mut Fields) -> Result<Vec<String>, Error> {
    let is_wanted = fields.bool("store")? == Some(true);
    Ok(is_wanted.then(|| "store".to_owned()).into_iter().collect())
}

/// How long the answer may be, what it must look like, how it is drawn and what is told of its tokens.
fn sized_and_formed(fields: &mut Fields, format: &Value) -> Result<Generation, Error> {
    let max_tokens = fields.count(MAX_TOKENS, 1..=usize::MAX)?;
    let mut generation = generation(fields, max_tokens)?;
    generation.names = FieldNames {
        prompt: "input",
        max_tokens: MAX_TOKENS,
        function: "",
        ..FieldNames::default()
    };
    if let Some(form) = forms::of_text(fields, format.clone())? {
        if let Some(other) = &generation.form {
            let expected =
                format!("says what the answer must look like, and so does {}", other.field);
            return Err(fields.wrong("text.format", &expected));
        }
        generation.form = Some(form);
    }
    let logprobs = included(fields)?;
    let top = fields.count("top_logprobs", 0..=ALTERNATIVES_MAX)?.unwrap_or(0);
    if top > 0 && !logprobs {
        let expected = format!("is allowed only where include has {LOGPROBS}");
        return Err(fields.wrong("top_logprobs", &expected));
    }
    generation.logprobs = logprobs.then_some(top);
    Ok(generation)
}

/// The answer before it has begun.
fn base(
    stamp: &Stamp,
    repeated: Repeated,
    generation: &Generation,
    effort: Option<Value>,
) -> Map<String, Value> {
    let Repeated { instructions, metadata, tools, parallel, format } = repeated;
    let fields = [
        ("id", format!("resp_{}", Uuid::new_v4().simple()).into()),
        ("object", "response".into()),
        ("created_at", stamp.created().into()),
        ("status", "in_progress".into()),
        ("background", false.into()),
        ("error", Value::Null),
        ("incomplete_details", Value::Null),
        ("instructions", instructions.into()),
        ("max_output_tokens", generation.max_tokens.into()),
        ("metadata", metadata.unwrap_or_else(|| json!({}))),
        ("model", stamp.model().into()),
        ("output", json!([])),
        ("parallel_tool_calls", parallel.into()),
        ("previous_response_id", Value::Null),
        ("reasoning", json!({"effort": effort, "summary": null})),
        ("store", false.into()),
        ("temperature", generation.temperature.map_or(Value::Null, logprob)),
        ("text", json!({"format": format})),
        ("tool_choice", tools.choice),
        ("tools", tools.tools),
        ("top_p", generation.top_p.map_or(Value::Null, logprob)),
        ("truncation", "disabled".into()),
        ("usage", Value::Null),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// An object's fields; none where it is not there.
fn object(fields: &mut Fields, name: &str) -> Result<Map<String, Value>, Error> {
    match fields.take(name) {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => Err(fields.wrong(name, "must be an object")),
    }
}

/// Whether `include` asks for log-probabilities; what else it may ask for is of tools that are not here,
/// or of reasoning that is told as text.
fn included(fields: &mut Fields) -> Result<bool, Error> {
    match fields.take("include") {
        None => Ok(false),
        Some(Value::Array(all)) if all.iter().all(Value::is_string) => {
            Ok(all.iter().any(|one| one == LOGPROBS))
        }
        Some(_) => Err(fields.wrong("include", "must be a list of strings")),
    }
}

/// Tools and their choice as the answer repeats them.
struct SentTools {
    tools: Value,
    choice: Value,
}

/// Takes `tools` and what goes with them; a chat has a function under its own name.
fn function_tools(fields: &mut Fields) -> Result<(SentTools, Tools), Error> {
    let sent = match fields.take("tools") {
        None => Vec::new(),
        Some(Value::Array(all)) => all,
        Some(_) => return Err(fields.wrong("tools", "must be a list of objects")),
    };
    let choice = fields.take("tool_choice");
    let mut chats = Vec::with_capacity(sent.len());
    for (index, tool) in sent.iter().enumerate() {
        if tool["type"] != "function" {
            let expected = "must be function: no other tools are run here";
            return Err(fields.wrong(&format!("tools[{index}].type"), expected));
        }
        if tool["name"].as_str().is_none_or(str::is_empty) {
            return Err(fields.wrong(&format!("tools[{index}].name"), "must be a name"));
        }
        let mut function = Map::new();
        for name in ["name", "description", "parameters"] {
            if let Some(value) = tool.get(name).filter(|value| !value.is_null()) {
                function.insert(name.to_owned(), value.clone());
            }
        }
        chats.push(json!({"type": "function", "function": function}));
    }
    let mut chat = Map::new();
    chat.insert("tools".to_owned(), chats.into());
    chat.insert("tool_choice".to_owned(), choice.clone().unwrap_or_default());
    let parallel = fields.take("parallel_tool_calls").unwrap_or_default();
    chat.insert("parallel_tool_calls".to_owned(), parallel);
    let tools = tools::read(&mut Fields::new(chat))?;
    let choice = choice.unwrap_or_else(|| "auto".into());
    Ok((SentTools { tools: sent.into(), choice }, tools))
}
