//! `InvokeEndpoint`, `InvokeEndpointWithResponseStream` and `POST /invocations`.

pub(crate) mod bodies;
pub(crate) mod event_stream;
pub(crate) mod found;
pub(crate) mod generated;
mod given;
pub(crate) mod inputs;
mod options;
pub(crate) mod raw;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use roundhouse_types::{ModelId, TargetModel};
use serde_json::{Map, Value};

use crate::accept::{Accept, Array};
use crate::aim::{self, Adapters, Aim};
use crate::answer::{Asked, Delivery, answer};
use crate::body::{self, Media};
use crate::call::Context;
use crate::container;
use crate::error::{Error, Face};
use crate::fields::Fields;
use crate::json;
use crate::openai;
use crate::ranking;
use crate::state::EndpointFace;
use crate::target;

/// What boto3 shows as `InvokedProductionVariant`.
const VARIANT: HeaderName = HeaderName::from_static("x-amzn-invoked-production-variant");
/// What a client may send beside, for a handler and as a last place for the target's name.
const CUSTOM_ATTRIBUTES: HeaderName = HeaderName::from_static("x-amzn-sagemaker-custom-attributes");
/// The stream operation's own accept header.
const STREAM_ACCEPT: HeaderName = HeaderName::from_static("x-amzn-sagemaker-accept");

type EndpointPath = Result<Path<String>, PathRejection>;

/// `POST /endpoints/{endpoint}/invocations`.
pub(crate) async fn invoke_endpoint(
    context: Context,
    path: EndpointPath,
    request: Request,
) -> Response {
    let operation = async {
        let (headers, body) = read(&context, request).await?;
        let endpoint = target::endpoint(&context, &endpoint_name(path)?)?;
        target::refuse_elsewhere(&headers)?;
        let aim = aim::named(endpoint, &headers)?;
        let read = Read { handlers: endpoint.handlers, gathers: true };
        invoke_plain(&context, aim, &headers, body, read).await
    };
    with_variant(operation.await.unwrap_or_else(|error| error.respond(Face::Endpoint)))
}

/// `POST /invocations`: the same for the only endpoint, or the one called `default`.
pub(crate) async fn invocations(context: Context, request: Request) -> Response {
    let operation = async {
        let (headers, body) = read(&context, request).await?;
        if let Some(aim) = container::adapter_named(&context, &headers)? {
            let read = Read { handlers: false, gathers: false };
            return invoke_plain(&context, aim, &headers, body, read).await;
        }
        let endpoint = target::default_endpoint(&context)?;
        let aim = aim::named(endpoint, &headers)?;
        let read = Read { handlers: endpoint.handlers, gathers: false };
        invoke_plain(&context, aim, &headers, body, read).await
    };
    operation.await.unwrap_or_else(|error| error.respond(Face::Invocations))
}

/// `POST /endpoints/{endpoint}/invocations-response-stream`.
///
/// Stock SDKs cannot send a target model here, so the body and the Custom-Attributes may
/// name it too.
pub(crate) async fn invoke_endpoint_stream(
    context: Context,
    path: EndpointPath,
    request: Request,
) -> Response {
    let operation = async {
        let (headers, body) = read(&context, request).await?;
        let endpoint = target::endpoint(&context, &endpoint_name(path)?)?;
        target::refuse_elsewhere(&headers)?;
        let parsed = parse(&headers, body.clone()).await;
        let aim = stream_aim(endpoint, &headers, &parsed)?;
        let asked = if endpoint.handlers {
            let told = (true, context.notes.request_id());
            raw::asked(&headers, body, &aim, &STREAM_ACCEPT, told)
        } else {
            accepted(parsed?.asked(&aim.model)?, &headers, &STREAM_ACCEPT)?
        };
        let delivery = Delivery {
            accept: Accept::read(&headers, &STREAM_ACCEPT).unwrap_or_default(),
            events: wants_events(&headers, &STREAM_ACCEPT),
            framed: true,
            gathers: false,
            timeout: context.gateway.config.stream_timeout,
        };
        answer(&context, aim, asked, delivery).await
    };
    with_variant(operation.await.unwrap_or_else(|error| error.respond(Face::Endpoint)))
}

/// How a request that is not framed is read and answered.
#[derive(Clone, Copy)]
pub(crate) struct Read {
    /// Whether its models may be handlers.
    pub(crate) handlers: bool,
    /// Whether what a handler yields in pieces goes out as one.
    pub(crate) gathers: bool,
}

/// Reads, parses and answers a request that is not framed. Also the container contract's.
pub(crate) async fn invoke_plain(
    context: &Context,
    aim: Aim,
    headers: &HeaderMap,
    body: Bytes,
    read: Read,
) -> Result<Response, Error> {
    let asked = if read.handlers {
        let told = (!read.gathers, context.notes.request_id());
        raw::asked(headers, body, &aim, &header::ACCEPT, told)
    } else {
        accepted(parse(headers, body).await?.asked(&aim.model)?, headers, &header::ACCEPT)?
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
    let headers = request.headers().clone();
    let body = body::read(request, &context.gateway.config, &context.notes).await?;
    Ok((headers, body))
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
    /// What is asked, by the field that is there, as LMI tells its schemas apart.
    fn asked(self, model: &ModelId) -> Result<Asked, Error> {
        let map = match self {
            Self::Object(map) => map,
            Self::Text(text) => return Ok(inputs::from_text(text)),
            Self::Array(array) => return Ok(inputs::from_array(array)),
        };
        let mut fields = Fields::new(map);
        let fallback = model.target.as_str();
        if fields.has("inputs") && !fields.has("messages") && !fields.has("prompt") {
            return inputs::parse(&mut fields);
        }
        let adapters = Adapters::read(&mut fields)?;
        let asked = if fields.has("messages") {
            openai::chat::parse(&mut fields, fallback)
        } else if fields.has("prompt") {
            openai::completions::parse(&mut fields, fallback)
        } else if fields.has("input") {
            openai::embeddings::parse(&mut fields, fallback)
        } else if fields.has("query") {
            ranking::parse(&mut fields, fallback)
        } else if fields.has("requestType") {
            Err(Error::field("requestType", "is not supported: there are no stateful sessions"))
        } else {
            Err(Error::input("the body must have one of inputs, messages, prompt, input or query"))
        };
        Ok(Asked { adapters, ..asked? })
    }
}

/// Whom a stream asks: the adapter header, else the stream's model.
fn stream_aim(
    endpoint: &EndpointFace,
    headers: &HeaderMap,
    parsed: &Result<Parsed, Error>,
) -> Result<Aim, Error> {
    match aim::header(headers)? {
        Some(_) => aim::named(endpoint, headers),
        None => stream_model(endpoint, headers, parsed).map(Aim::at),
    }
}

/// The stream's model: header, else the body's `model`, else `target-model=` among the
/// Custom-Attributes.
fn stream_model(
    endpoint: &EndpointFace,
    headers: &HeaderMap,
    parsed: &Result<Parsed, Error>,
) -> Result<ModelId, Error> {
    if let Some(name) = target::header(headers)? {
        return target::model(endpoint, &name);
    }
    let in_body = match parsed {
        Ok(Parsed::Object(map)) => map.get("model").and_then(Value::as_str),
        Ok(Parsed::Text(_) | Parsed::Array(_)) | Err(_) => None,
    };
    if let Some(name) = in_body.filter(|name| !name.is_empty()) {
        return target::model(endpoint, &TargetModel::new(name));
    }
    let named = target::custom_attribute(headers);
    if let (None, Err(error)) = (&named, parsed) {
        return Err(error.clone());
    }
    let name = named.ok_or_else(|| {
        Error::request(
            "the request names no target model: send X-Amzn-SageMaker-Target-Model, a field \
             model in the body, or target-model=… in X-Amzn-SageMaker-Custom-Attributes",
        )
    })?;
    target::model(endpoint, &name)
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

fn with_variant(mut response: Response) -> Response {
    if response.status().is_success() {
        response.headers_mut().insert(VARIANT, HeaderValue::from_static("AllTraffic"));
    }
    response
}
