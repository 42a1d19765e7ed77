//! `InvokeEndpoint`, `InvokeEndpointWithResponseStream`, `InvokeEndpointAsync` and `POST /invocations`.

pub(crate) mod asynchronous;
pub(crate) mod bodies;
pub(crate) mod event_stream;
pub(crate) mod found;
pub(crate) mod generated;
mod given;
pub(crate) mod headers;
pub(crate) mod inputs;
mod options;
pub(crate) mod raw;
pub(crate) mod session;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use roundhouse_types::TargetModel;
use serde_json::{Map, Value};

use crate::accept::{Accept, Array};
use crate::addressed::{Addressed, addressed, addressed_in};
use crate::aim::{self, ADAPTER, Aim};
use crate::answer::{Asked, Delivery, answer};
use crate::behind::{self, Way};
use crate::body::{self, Media};
use crate::call::Context;
use crate::capture::captured;
use crate::container;
use crate::error::{Error, Face};
use crate::fields::Fields;
use crate::json;
use crate::openai;
use crate::ranking;
use crate::sessions::Bound;
use crate::state::naming::ALL_TRAFFIC;
use crate::target;
use headers::{INNER_ACCEPT, Sent};
use session::Wish;

/// What boto3 shows as `InvokedProductionVariant`.
const VARIANT: HeaderName = HeaderName::from_static("x-amzn-invoked-production-variant");

pub(crate) type EndpointPath = Result<Path<String>, PathRejection>;

/// `POST /endpoints/{endpoint}/invocations`.
pub(crate) async fn invoke_endpoint(
    mut context: Context,
    path: EndpointPath,
    request: Request,
) -> Response {
    let operation = async {
        let (headers, body) = read(&context, request).await?;
        let name = endpoint_name(path)?;
        if let Some(found) = behind::find(&context, &name) {
            return behind::invoke(&context, found, &headers, body, Way::Whole).await;
        }
        let sent = Sent::read(&headers)?;
        let handlers = target::endpoint(&context, &name)?.handlers;
        let wish = wished(&mut context, &sent, &body, handlers)?;
        let endpoint = target::endpoint(&context, &name)?;
        let bound = wish.bound(&context)?;
        let unnamed = || Err(target::unnamed());
        let found = addressed_in(&context, bound.as_ref(), endpoint, &headers, &sent, unnamed)?;
        let read = Read { handlers: endpoint.handlers, gathers: true };
        let variant = found.variant.clone();
        let capture = endpoint.capture.as_ref().filter(|_| wish.asks_a_model());
        let capture = capture.map(|it| (it, body.clone()));
        let body = (&headers, body);
        let response = in_session(&context, &wish, bound.as_ref(), found, body, read).await?;
        let response = captured(&context, capture, &variant, &headers, response).await;
        Ok(with_variant(response, &variant))
    };
    operation.await.unwrap_or_else(|error: Error| error.respond(Face::Endpoint))
}

/// `POST /invocations`: the same for the only endpoint, or the one called `default`.
pub(crate) async fn invocations(mut context: Context, request: Request) -> Response {
    let uri = request.uri().clone();
    // Where the platform's models are all there is, it is answered in its own words.
    let face = match container::is_alone(&context) && !request.headers().contains_key(ADAPTER) {
        true => Face::Container,
        false => Face::Invocations,
    };
    let operation = async {
        let (headers, body) = read(&context, request).await?;
        let sent = Sent::of_platform(&headers)?;
        if let Some((aim, handlers)) = container::named(&context, &uri, &headers)? {
            let wish = wished(&mut context, &sent, &body, handlers)?;
            let bound = wish.bound(&context)?;
            let read = Read { handlers, gathers: false };
            let found = Addressed { aim, variant: ALL_TRAFFIC.into() };
            let body = (&headers, body);
            return in_session(&context, &wish, bound.as_ref(), found, body, read).await;
        }
        let default = target::default_endpoint(&context)?;
        if let Some(containers) = &default.containers {
            let found = (default, containers);
            return behind::invoke(&context, found, &headers, body, Way::Pieces).await;
        }
        let handlers = default.handlers;
        let wish = wished(&mut context, &sent, &body, handlers)?;
        let endpoint = target::default_endpoint(&context)?;
        let bound = wish.bound(&context)?;
        // Behind an endpoint of one model SageMaker passes no target model on, but this it does.
        let unnamed = || target::custom_attribute(&headers).ok_or_else(target::unnamed);
        let found = addressed_in(&context, bound.as_ref(), endpoint, &headers, &sent, unnamed)?;
        let read = Read { handlers: endpoint.handlers, gathers: false };
        let body = (&headers, body);
        in_session(&context, &wish, bound.as_ref(), found, body, read).await
    };
    operation.await.unwrap_or_else(|error| error.respond(face))
}

/// `POST /endpoints/{endpoint}/invocations-response-stream`.
///
/// Stock SDKs cannot send a target model here, so the body and the Custom-Attributes may
/// name it too.
pub(crate) async fn invoke_endpoint_stream(
    mut context: Context,
    path: EndpointPath,
    request: Request,
) -> Response {
    let operation = async {
        let (headers, body) = read(&context, request).await?;
        let name = endpoint_name(path)?;
        if let Some(found) = behind::find(&context, &name) {
            return behind::invoke(&context, found, &headers, body, Way::Framed).await;
        }
        let sent = Sent::read(&headers)?;
        let handlers = target::endpoint(&context, &name)?.handlers;
        let wish = wished(&mut context, &sent, &body, handlers)?;
        let endpoint = target::endpoint(&context, &name)?;
        if matches!(wish, Wish::Open { .. } | Wish::Close { .. }) {
            return Err(Error::request("sessions are opened and closed by InvokeEndpoint"));
        }
        let bound = wish.bound(&context)?;
        let parsed = parse(&headers, body.clone()).await;
        let named = || stream_target(&headers, &parsed);
        let found = addressed_in(&context, bound.as_ref(), endpoint, &headers, &sent, named)?;
        wish.answered(&context, bound.as_ref(), &found).await?;
        context.notes.variant(&found.variant);
        let Addressed { aim, variant } = found;
        let capture = endpoint.capture.as_ref().map(|it| (it, body.clone()));
        let called = target::called(&context, &headers, None, &aim);
        let asked = if endpoint.handlers {
            let told = (true, context.notes.request_id());
            raw::asked(&headers, body, (&aim, called), &INNER_ACCEPT, told)
        } else {
            accepted(parsed?.asked(&aim, &called)?, &headers, &INNER_ACCEPT)?
        };
        let delivery = Delivery {
            accept: Accept::read(&headers, &INNER_ACCEPT).unwrap_or_default(),
            events: wants_events(&headers, &INNER_ACCEPT),
            framed: true,
            gathers: false,
            timeout: context.gateway.config.stream_timeout,
        };
        let response = answer(&context, aim, asked, delivery).await?;
        let response = captured(&context, capture, &variant, &headers, response).await;
        Ok(with_variant(response, &variant))
    };
    operation.await.unwrap_or_else(|error: Error| error.respond(Face::Endpoint))
}

/// What the request wants of a session, which then decides where it is drawn to; and what its client
/// calls it. A body for what may be a handler says nothing of sessions, unless a header does.
fn wished(
    context: &mut Context,
    sent: &Sent<'_>,
    body: &Bytes,
    handlers: bool,
) -> Result<Wish, Error> {
    if let Some(id) = sent.inference_id {
        context.notes.inference_id(id);
    }
    let is_read = sent.session.is_some() || !handlers;
    let wish = Wish::read(context, sent, is_read.then_some(body))?;
    if let Some(key) = wish.key() {
        context.route_key = Some(key);
    }
    Ok(wish)
}

/// Opens, closes, or has the model answer.
async fn in_session(
    context: &Context,
    wish: &Wish,
    bound: Option<&Bound>,
    found: Addressed,
    (headers, body): (&HeaderMap, Bytes),
    read: Read,
) -> Result<Response, Error> {
    context.notes.variant(&found.variant);
    match wish.answered(context, bound, &found).await? {
        Some(response) => Ok(response),
        None => invoke_plain(context, found.aim, headers, body, read).await,
    }
}

/// The container contract's invocation of a model that it has loaded.
///
/// # Errors
/// Everything that fails before the response's first byte.
pub(crate) async fn invoke_loaded(
    mut context: Context,
    aim: Aim,
    headers: &HeaderMap,
    body: Bytes,
    read: Read,
) -> Result<Response, Error> {
    let sent = Sent::of_platform(headers)?;
    let wish = wished(&mut context, &sent, &body, read.handlers)?;
    let bound = wish.bound(&context)?;
    let found = Addressed { aim, variant: ALL_TRAFFIC.into() };
    in_session(&context, &wish, bound.as_ref(), found, (headers, body), read).await
}

/// A request that was deferred, when it is its turn. What names its target is what it is for a
/// stream, whose clients cannot send one either.
///
/// # Errors
/// Everything that fails before the response's first byte.
pub(crate) async fn invoke_due(
    context: &Context,
    path: EndpointPath,
    request: Request,
) -> Result<Response, Error> {
    let (headers, body) = read_known(context, request).await?;
    let name = endpoint_name(path)?;
    if let Some(found) = behind::find(context, &name) {
        return behind::invoke(context, found, &headers, body, Way::Whole).await;
    }
    let sent = Sent::read(&headers)?;
    if let Some(id) = sent.inference_id {
        context.notes.inference_id(id);
    }
    let endpoint = target::endpoint(context, &name)?;
    let parsed = parse(&headers, body.clone()).await;
    let named = || stream_target(&headers, &parsed);
    let Addressed { aim, variant } = addressed(context, endpoint, &headers, &sent, named)?;
    context.notes.variant(&variant);
    let read = Read { handlers: endpoint.handlers, gathers: true };
    let capture = endpoint.capture.as_ref().map(|it| (it, body.clone()));
    let response = invoke_plain(context, aim, &headers, body, read).await?;
    Ok(captured(context, capture, &variant, &headers, response).await)
}

/// How a request that is not framed is read and answered.
#[derive(Clone, Copy)]
pub(crate) struct Read {
    /// Whether its models may be handlers.
    pub(crate) handlers: bool,
    /// Whether what a handler yields in pieces goes out as one.
    pub(crate) gathers: bool,
}

/// Reads, parses and answers a request that is not framed.
async fn invoke_plain(
    context: &Context,
    aim: Aim,
    headers: &HeaderMap,
    body: Bytes,
    read: Read,
) -> Result<Response, Error> {
    let called = target::called(context, headers, None, &aim);
    let asked = if read.handlers {
        let told = (!read.gathers, context.notes.request_id());
        raw::asked(headers, body, (&aim, called), &header::ACCEPT, told)
    } else {
        accepted(parse(headers, body).await?.asked(&aim, &called)?, headers, &header::ACCEPT)?
    };
    let delivery = Delivery {
        // Where a handler answers, what it makes of the header is its own.
        accept: Accept::read(headers, &header::ACCEPT).unwrap_or_default(),
        events: wants_events(headers, &header::ACCEPT),
        framed: false,
        gathers: read.gathers,
        timeout: context.gateway.config.invoke_timeout,
    };
    answer(context, aim, asked, delivery).await
}

/// Reads the body before anything is refused: a client that is still sending does not see
/// an answer.
pub(crate) async fn read(context: &Context, request: Request) -> Result<(HeaderMap, Bytes), Error> {
    let mut headers = request.headers().clone();
    let named = aim::queried(&mut headers, request.uri());
    let body = body::read(request, &context.gateway.config, &context.notes).await?;
    named.map(|()| (headers, body))
}

/// A body that is in memory, and was held against its limits.
async fn read_known(context: &Context, request: Request) -> Result<(HeaderMap, Bytes), Error> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await;
    let body = body.map_err(|error| Error::internal(format!("a body in memory: {error}")))?;
    context.notes.read(body.len() as u64);
    Ok((parts.headers, body))
}

/// A body whose media type is understood.
enum Parsed {
    Object(Map<String, Value>),
    Text(String),
    Array(Array),
}

async fn parse(headers: &HeaderMap, body: Bytes) -> Result<Parsed, Error> {
    match body::media(headers)? {
        Media::Json => Ok(Parsed::Object(json::object(body).await?)),
        Media::Lines => Ok(Parsed::Object(bodies::from_lines(body).await?)),
        Media::Csv => Ok(Parsed::Object(bodies::from_csv(body).await?)),
        Media::Npy => Ok(Parsed::Array(bodies::from_npy(body).await?)),
        Media::Text => Ok(Parsed::Text(bodies::text(body)?)),
    }
}

/// Refuses a request whose answer cannot be in any form that the client takes, before it is
/// answered. Streams have forms of their own.
fn accepted(asked: Asked, headers: &HeaderMap, name: &HeaderName) -> Result<Asked, Error> {
    if !asked.ask.streams() {
        Accept::read(headers, name)?;
    }
    Ok(asked)
}

impl Parsed {
    /// What is asked, by the field that is there, as LMI tells its schemas apart. An answer calls the
    /// model `called` where the body names neither a model nor an adapter.
    fn asked(self, aim: &Aim, called: &str) -> Result<Asked, Error> {
        let map = match self {
            Self::Object(map) => map,
            Self::Text(text) => return Ok(inputs::from_text(text)),
            Self::Array(array) => return Ok(inputs::from_array(array)),
        };
        let mut fields = Fields::new(map);
        if fields.has("inputs") && !fields.has("messages") && !fields.has("prompt") {
            return inputs::parse(&mut fields);
        }
        openai::asked(&mut fields, aim, called, parse_any)
    }
}

/// Reads a body without `inputs` by the field that is there.
fn parse_any(fields: &mut Fields, echo: &str) -> Result<Asked, Error> {
    if fields.has("messages") {
        openai::chat::parse(fields, echo)
    } else if fields.has("prompt") {
        openai::completions::parse(fields, echo)
    } else if fields.has("input") {
        openai::embeddings::parse(fields, echo)
    } else if fields.has("query") {
        ranking::parse(fields, echo)
    } else if fields.has("requestType") {
        Err(Error::field("requestType", "must be the only field of the body"))
    } else {
        Err(Error::input("the body must have one of inputs, messages, prompt, input or query"))
    }
}

/// The stream's target where no header names it: the body's `model`, else `target-model=` among the
/// Custom-Attributes.
fn stream_target(
    headers: &HeaderMap,
    parsed: &Result<Parsed, Error>,
) -> Result<TargetModel, Error> {
    let in_body = match parsed {
        Ok(Parsed::Object(map)) => map.get("model").and_then(Value::as_str),
        Ok(Parsed::Text(_) | Parsed::Array(_)) | Err(_) => None,
    };
    if let Some(name) = in_body.filter(|name| !name.is_empty()) {
        return Ok(TargetModel::new(name));
    }
    let named = target::custom_attribute(headers);
    if let (None, Err(error)) = (&named, parsed) {
        return Err(error.clone());
    }
    named.ok_or_else(|| {
        Error::request(
            "the request names no target model: send X-Amzn-SageMaker-Target-Model, a field \
             model in the body, or target-model=… in X-Amzn-SageMaker-Custom-Attributes",
        )
    })
}

/// Whether server-sent events are asked for.
fn wants_events(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(name).iter().any(|value| {
        value.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains("text/event-stream"))
    })
}

/// The path's endpoint, percent-decoded once.
pub(crate) fn endpoint_name(path: EndpointPath) -> Result<String, Error> {
    match path {
        Ok(Path(name)) => Ok(name),
        Err(_) => Err(Error::request("the endpoint's name in the path is not UTF-8")),
    }
}

pub(crate) fn with_variant(mut response: Response, variant: &str) -> Response {
    if response.status().is_success()
        && let Ok(variant) = HeaderValue::from_str(variant)
    {
        response.headers_mut().insert(VARIANT, variant);
    }
    response
}
