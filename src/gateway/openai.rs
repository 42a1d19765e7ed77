//! OpenAI's `/v1/…`, with the extensions people know from vLLM.

mod beside;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
mod logprobs;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod responses;
mod tools;

use std::time::SystemTime;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::response::Response;
use http::HeaderValue;
use roundhouse_serving::{ANSWERS_MAX, Finish, Finished, Generation, Route, Truncation};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::accept::Accept;
use crate::addressed::Addressed;
use crate::aim::{Adapters, Aim};
use crate::answer::{Asked, Delivery, answer, ignored_names};
use crate::behind;
use crate::body;
use crate::call::Context;
use crate::capture::captured;
use crate::error::{Error, Face};
use crate::fields::{Fields, Neutral, neutral};
use crate::forms;
use crate::json;
use crate::meter::with_rate_headers;
use crate::openai::logprobs::Calls;
use crate::relayed::{self, Sent};
use crate::sagemaker;
use crate::sagemaker::inputs::sampling;
use crate::target;

/// Fields of generations that would change the answer and that nothing here honours, with
/// the values that would not.
const UNSUPPORTED: [Neutral; 7] = [
    ("allowed_token_ids", neutral::absent),
    ("bad_words", neutral::empty),
    ("length_penalty", neutral::one),
    ("logits_processors", neutral::empty),
    ("no_repeat_ngram_size", neutral::zero),
    ("typical_p", neutral::one),
    ("use_beam_search", neutral::off),
];
/// Fields that clients send as a matter of course and that change no answer.
const HARMLESS: [&str; 11] = [
    "metadata",
    "prediction",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "service_tier",
    // Our tokenizers put none there either way.
    "spaces_between_special_tokens",
    "store",
    "user",
];

/// Reads a body; the text is what the answer calls the model where the body does not name it.
pub(crate) type Parse = fn(&mut Fields, &str) -> Result<Asked, Error>;

/// How a route's requests are read and answered.
struct Reading {
    face: Face,
    parse: Parse,
    /// Where external engines take them.
    route: Option<Route>,
}

const CHAT: Reading = Reading { face: Face::OpenAi, parse: chat::parse, route: Some(Route::Chat) };

/// `POST /v1/chat/completions`.
pub(crate) async fn chat(context: Context, request: Request) -> Response {
    serve(CHAT, context, None, request).await
}

/// `POST /v1/completions`.
pub(crate) async fn completions(context: Context, request: Request) -> Response {
    let route = Some(Route::Completions);
    let reading = Reading { face: Face::OpenAi, parse: completions::parse, route };
    serve(reading, context, None, request).await
}

/// `POST /v1/embeddings`.
pub(crate) async fn embeddings(context: Context, request: Request) -> Response {
    let route = Some(Route::Embeddings);
    let reading = Reading { face: Face::OpenAi, parse: embeddings::parse, route };
    serve(reading, context, None, request).await
}

/// `POST /v1/responses`.
pub(crate) async fn responses(context: Context, request: Request) -> Response {
    let route = Some(Route::Responses);
    let reading = Reading { face: Face::OpenAi, parse: responses::parse, route };
    serve(reading, context, None, request).await
}

/// `POST /endpoints/{endpoint}/openai/v1/chat/completions`: `model` may be empty where the endpoint has
/// a target of its own, or the target model header is sent.
pub(crate) async fn endpoint_chat(
    context: Context,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    match sagemaker::endpoint_name(path) {
        Ok(endpoint) => {
            let at = Some(At { endpoint, component: None });
            serve(CHAT, context, at, request).await
        }
        Err(error) => error.respond(Face::OpenAi),
    }
}

/// `POST /endpoints/{endpoint}/inference-components/{component}/openai/v1/chat/completions`.
pub(crate) async fn component_chat(
    context: Context,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Response {
    match path {
        Ok(Path((endpoint, component))) => {
            let at = Some(At { endpoint, component: Some(component) });
            serve(CHAT, context, at, request).await
        }
        Err(_) => Error::request("a name in the path is not UTF-8").respond(Face::OpenAi),
    }
}

/// What a path names.
struct At {
    endpoint: String,
    component: Option<String>,
}

/// A request whose body names its model, answered in a dialect.
pub(crate) async fn serve_as(
    face: Face,
    context: Context,
    request: Request,
    parse: Parse,
) -> Response {
    serve(Reading { face, parse, route: None }, context, None, request).await
}

async fn serve(reading: Reading, context: Context, at: Option<At>, request: Request) -> Response {
    let Reading { face, parse, route } = reading;
    let operation = async {
        let path = request.uri().path().to_owned();
        let (headers, body) = sagemaker::read(&context, request).await?;
        let fixed = match &at {
            Some(at) => Some(target::endpoint(&context, &at.endpoint)?),
            None => None,
        };
        body::only_json(&headers)?;
        let mut fields = Fields::new(json::object(body.clone()).await?);
        context.notes.meter().asks(&fields);
        let name = fields.string("model")?.unwrap_or_default();
        if let Some(found) = behind::meant(&context, fixed, &name) {
            return behind::openai(&context, found, &headers, (&path, body), at.is_some()).await;
        }
        let component = at.as_ref().and_then(|at| at.component.as_deref());
        let Addressed { aim, variant } = match fixed {
            Some(endpoint) => target::openai_at(&context, endpoint, &headers, component, &name)?,
            None => target::openai(&context, &headers, &name)?,
        };
        let own = target::called(&context, &headers, component, &aim);
        // Where a header names another, that one answers, and the answer says so.
        let is_other = name.is_empty() || target::is_overruled(&context, &headers, &aim, &name)?;
        let echo = if is_other { &own } else { &name };
        // Of what is kept of an endpoint's requests are those to SageMaker's own route for it.
        let capture = fixed.and_then(|it| it.capture.as_ref()).map(|it| (it, body.clone()));
        let relays = route.filter(|_| target::has_engines(&context, &aim.model));
        let (asked, gathers) = match relays {
            Some(route) => {
                let mut ignored = None;
                if route == Route::Responses {
                    responses::refuse_stored(&mut fields)?;
                    ignored = ignored_names(responses::unstored(&mut fields)?);
                }
                let stream = fields.bool("stream")?.unwrap_or(false);
                let sent = Sent { body, parse, echo: echo.to_owned(), route, stream, ignored };
                (relayed::asked(&headers, sent, &aim, context.notes.request_id()), !stream)
            }
            None => (asked(&mut fields, &aim, echo, parse)?, true),
        };
        let timeout = context.gateway.config.stream_timeout;
        let accept = Accept::default();
        let delivery = Delivery { accept, events: true, framed: false, gathers, timeout };
        let response = answer(&context, aim, asked, delivery).await.map(with_rate_headers)?;
        if at.is_none() {
            return Ok(response);
        }
        context.notes.variant(&variant);
        let response = captured(&context, capture, &variant, &headers, response).await;
        Ok(sagemaker::with_variant(response, &variant))
    };
    operation.await.unwrap_or_else(|error: Error| error.respond(face))
}

/// What a body asks that may name an adapter of `aim`; its answer calls the model `echo` where the body
/// does not name it, and the adapter where one counts, as where a header names that.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn asked(
    fields: &mut Fields,
    aim: &Aim,
    echo: &str,
    parse: impl FnOnce(&mut Fields, &str) -> Result<Asked, Error>,
) -> Result<Asked, Error> {
    let adapters = Adapters::read(fields)?.for_all();
    let heeded = aim.heeds(adapters.clone());
    if heeded.called().is_some() {
        // It says what the adapter is one of.
        fields.string("model")?;
    }
    let echo = heeded.called().unwrap_or(echo);
    Ok(Asked { adapters, ..parse(fields, echo)? })
}

/// What every object of one answer repeats.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    id: String,
    created: u64,
    model: String,
}

impl Stamp {
    /// A fresh id, for a model as the client called it: its `model` if it is still there.
    pub(crate) fn new(prefix: &str, fields: &mut Fields, fallback: &str) -> Result<Self, Error> {
        let named = fields.string("model")?.filter(|name| !name.is_empty());
        Ok(Self {
            id: format!("{prefix}-{}", Uuid::new_v4().simple()),
            created: unix_seconds(SystemTime::now()),
            model: named.unwrap_or_else(|| fallback.to_owned()),
        })
    }

    /// The answer's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// When it was asked for, in seconds since 1970.
    pub(crate) fn created(&self) -> u64 {
        self.created
    }

    /// What the client called the model.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// An object of the answer.
    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

/// Seconds since 1970; 0 before.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The generation fields that chats and completions share, all but the log-probabilities.
fn generation(fields: &mut Fields, max_tokens: Option<usize>) -> Result<Generation, Error> {
    fields.refuse(&UNSUPPORTED)?;
    let mut generation = sampling(fields)?;
    generation.max_tokens = max_tokens;
    generation.form = forms::read(fields)?;
    generation.min_tokens = fields.count("min_tokens", 0..=usize::MAX)?;
    generation.stop = fields.stop("stop")?;
    generation.ignore_eos = fields.bool("ignore_eos")?.unwrap_or(false);
    generation.add_special = fields.bool("add_special_tokens")?;
    generation.truncation = truncation(fields)?;
    Ok(generation)
}

/// `truncate_prompt_tokens`, where -1 is what there is room for, and `truncation_side`.
fn truncation(fields: &mut Fields) -> Result<Option<Truncation>, Error> {
    let most = fields.int("truncate_prompt_tokens", -1..=i64::MAX)?;
    let keeps_end = match fields.string("truncation_side")?.as_deref() {
        None | Some("left") => true,
        Some("right") => false,
        Some(_) => return Err(fields.wrong("truncation_side", "must be left or right")),
    };
    if most == Some(0) {
        return Err(fields.wrong("truncate_prompt_tokens", "must be -1 or at least 1"));
    }
    let most = most.map(|most| usize::try_from(most).ok());
    Ok(most.map(|most| Truncation { most, keeps_end }))
}

/// What log-probabilities call tokens.
fn token_names(fields: &mut Fields) -> Result<Calls, Error> {
    let by_id = fields.bool("return_tokens_as_token_ids")?.unwrap_or(false);
    Ok(if by_id { Calls::Id } else { Calls::Text })
}

/// The fields that nothing has read, as the answer tells them.
fn ignored(fields: &mut Fields) -> Option<HeaderValue> {
    ignored_with(fields, Vec::new())
}

/// The same, with others.
fn ignored_with(fields: &mut Fields, mut beside: Vec<String>) -> Option<HeaderValue> {
    for name in HARMLESS {
        fields.take(name);
    }
    beside.extend(fields.left());
    ignored_names(beside)
}

/// `n`, and `best_of` where it says no more than that.
fn choices(fields: &mut Fields) -> Result<usize, Error> {
    let n = fields.count("n", 1..=ANSWERS_MAX)?.unwrap_or(1);
    if fields.count("best_of", 1..=ANSWERS_MAX)?.is_some_and(|best_of| best_of != n) {
        return Err(fields.wrong("best_of", "is not supported unless it equals n"));
    }
    Ok(n)
}

/// When a stream tells usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UsageTold {
    Never,
    AtTheEnd,
    /// Also with each chunk, as far as it has come.
    Always,
}

/// `stream`, and when usage is wanted in it.
fn streaming(fields: &mut Fields) -> Result<(bool, UsageTold), Error> {
    let stream = fields.bool("stream")?.unwrap_or(false);
    let options = match fields.take("stream_options") {
        None => return Ok((stream, UsageTold::Never)),
        Some(Value::Object(options)) => options,
        Some(_) => return Err(fields.wrong("stream_options", "must be an object")),
    };
    if !stream {
        return Err(fields.wrong("stream_options", "is allowed only where stream is true"));
    }
    let mut options = Fields::nested(options, "stream_options.");
    let usage = options.bool("include_usage")?.unwrap_or(false);
    let each = options.bool("continuous_usage_stats")?.unwrap_or(false);
    Ok((
        stream,
        match (usage, each) {
            (false, _) => UsageTold::Never,
            (true, false) => UsageTold::AtTheEnd,
            (true, true) => UsageTold::Always,
        },
    ))
}

/// What one answer's tokens add up to.
#[derive(Debug)]
struct Tally {
    prompt_tokens: usize,
    completion_tokens: usize,
    /// Per prompt, of its choices that have ended the one with the fewest.
    cached: Vec<Option<usize>>,
    choices_per_prompt: usize,
}

impl Tally {
    fn new(prompt_tokens: usize, choices_per_prompt: usize) -> Self {
        Self { prompt_tokens, completion_tokens: 0, cached: Vec::new(), choices_per_prompt }
    }

    /// Counts a choice that has ended. A prompt counts once, so what is cached of it is what the
    /// choice found that computed it first.
    fn finished(&mut self, choice: usize, finished: Finished) {
        self.completion_tokens += finished.generated_tokens;
        let prompt = choice / self.choices_per_prompt.max(1);
        if self.cached.len() <= prompt {
            self.cached.resize(prompt + 1, None);
        }
        let cached = &mut self.cached[prompt];
        *cached = Some(
            cached.map_or(finished.cached_tokens, |so_far| so_far.min(finished.cached_tokens)),
        );
    }

    /// What a chunk says of a stream that is under way: nothing but that it will be told, or what one
    /// choice has cost so far.
    fn so_far(&self, told: UsageTold, generated: usize) -> Option<Value> {
        match told {
            UsageTold::Never => None,
            UsageTold::AtTheEnd => Some(Value::Null),
            UsageTold::Always => Some(json!({
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": generated,
                "total_tokens": self.prompt_tokens + generated,
            })),
        }
    }

    fn usage(&self) -> Value {
        let cached: usize = self.cached.iter().flatten().sum();
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        })
    }
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::EndOfSequence | Finish::StopSequence => "stop",
        Finish::ToolCalls => "tool_calls",
        Finish::Length => "length",
    }
}
