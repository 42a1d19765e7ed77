//! `InvokeEndpointAsync`: requests whose callers do not wait.
//!
//! Stock SDKs cannot send a target model here. What names one is looked at when the request comes, and
//! whether its sender may ask that; both again when it is its turn. Of an input in a store only what
//! the headers say is known before.

use std::cell::Cell;
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use roundhouse_types::ErrorKind;
use serde_json::json;

use super::headers::{INNER_ACCEPT, Sent};
use super::{EndpointPath, endpoint_name, parse, read, stream_target};
use crate::addressed::addressed;
use crate::call::Context;
use crate::error::{Error, Face};
use crate::state::{Deferral, DeferredInput, EndpointFace};
use crate::{behind, permitted, target};

const CONTENT_TYPE: &str = "x-amzn-sagemaker-content-type";
const INPUT_LOCATION: &str = "x-amzn-sagemaker-inputlocation";
const EXTENSION: &str = "x-amzn-sagemaker-s3outputpathextension";
const FILENAME: &str = "x-amzn-sagemaker-filename";
const TTL: &str = "x-amzn-sagemaker-requestttlseconds";
const TIMEOUT: &str = "x-amzn-sagemaker-invocationtimeoutseconds";
const INFERENCE_ID: &str = "x-amzn-sagemaker-inference-id";
const CUSTOM_ATTRIBUTES: &str = "x-amzn-sagemaker-custom-attributes";
const OUTPUT: HeaderName = HeaderName::from_static("x-amzn-sagemaker-outputlocation");
const FAILURE: HeaderName = HeaderName::from_static("x-amzn-sagemaker-failurelocation");

/// What is about the queue and not for the model.
const OURS: [&str; 7] =
    [CONTENT_TYPE, "x-amzn-sagemaker-accept", INPUT_LOCATION, EXTENSION, FILENAME, TTL, TIMEOUT];
/// What else of a request is kept for the model and for finding it.
const KEPT: &str = "x-amzn-sagemaker-";
const ROUTE_KEY: &str = "x-roundhouse-route-key";
/// SageMaker's limit for an input that is sent along.
const INLINE_MOST: usize = 128_000;
/// The longest type and the longest Custom-Attributes.
const TEXT_MOST: usize = 1024;

/// `POST /endpoints/{endpoint}/async-invocations`.
pub(crate) async fn invoke_endpoint_async(
    context: Context,
    path: EndpointPath,
    request: Request,
) -> Response {
    deferred(&context, path, request).await.unwrap_or_else(|error| error.respond(Face::Endpoint))
}

async fn deferred(
    context: &Context,
    path: EndpointPath,
    request: Request,
) -> Result<Response, Error> {
    let (headers, body) = read(context, request).await?;
    let endpoint = target::endpoint(context, &endpoint_name(path)?)?;
    let Some(defer) = &context.gateway.defer else {
        let message = format!("endpoint {} takes no asynchronous requests", endpoint.name);
        return Err(Error::request(message));
    };
    let input = input(&headers, body)?;
    let asked = limits(&headers)?;
    let kept = for_the_model(&headers)?;
    check_target(context, endpoint, &kept, &input).await?;
    let deferral = Deferral {
        endpoint: endpoint.name.clone(),
        caller: context.caller.clone(),
        inference_id: asked.inference_id,
        input,
        headers: kept
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect(),
        content_type: text(&headers, CONTENT_TYPE, 0..=TEXT_MOST)?.map(str::to_owned),
        ttl: asked.ttl,
        timeout: asked.timeout,
        extension: asked.extension,
        filename: asked.filename,
    };
    let told = defer(deferral).await?;
    let body = json!({"InferenceId": told.inference_id});
    let mut response = (StatusCode::ACCEPTED, axum::Json(body)).into_response();
    for (name, location) in [(OUTPUT, told.output), (FAILURE, told.failure)] {
        let value = HeaderValue::from_maybe_shared(Bytes::from(location));
        let value = value.map_err(|_| Error::internal("a location is no header's value"))?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// Exactly one of a location and a body.
fn input(headers: &HeaderMap, body: Bytes) -> Result<DeferredInput, Error> {
    let location = text(headers, INPUT_LOCATION, 1..=TEXT_MOST)?;
    match location {
        Some(_) if !body.is_empty() => Err(Error::request(
            "the request has both an input location and a body: send exactly one of them",
        )),
        None if body.is_empty() => Err(Error::request(
            "the request has neither an input location nor a body: send exactly one of them",
        )),
        None if body.len() > INLINE_MOST => {
            let length = body.len();
            let message = format!(
                "the body has {length} bytes and may have {INLINE_MOST}: put it into the store and \
                 send its location"
            );
            Err(Error::request(message))
        }
        None => Ok(DeferredInput::Inline(body)),
        Some(location) if location.starts_with("https://") => Err(Error::request(
            "the input location must be an s3:// URI: inputs are not fetched over https",
        )),
        Some(location) => Ok(DeferredInput::At(location.to_owned())),
    }
}

/// What a request says of itself.
struct Limits {
    inference_id: Option<String>,
    ttl: Duration,
    timeout: Duration,
    extension: Option<String>,
    filename: Option<String>,
}

fn limits(headers: &HeaderMap) -> Result<Limits, Error> {
    let id = text(headers, INFERENCE_ID, 1..=64)?;
    if id.is_some_and(|id| id.starts_with(' ')) {
        return Err(illegal(INFERENCE_ID, "must not begin with a blank"));
    }
    let extension = text(headers, EXTENSION, 1..=512)?;
    if let Some(extension) = extension {
        let legal = |it: u8| it.is_ascii_alphanumeric() || b"!_.*'()/-".contains(&it);
        if !extension.bytes().all(legal) {
            return Err(illegal(EXTENSION, "may have letters, digits and !_.*'()/- only"));
        }
    }
    let filename = text(headers, FILENAME, 1..=32)?;
    if let Some(name) = filename {
        let legal = |it: u8| it.is_ascii_alphanumeric() || b"-_.".contains(&it);
        let begins = name.as_bytes()[0].is_ascii_alphanumeric();
        if !begins || !name.bytes().all(legal) || name.matches('.').count() > 1 {
            let expected = "must begin with a letter or digit and have letters, digits, -, _ and at \
                            most one dot";
            return Err(illegal(FILENAME, expected));
        }
    }
    text(headers, CUSTOM_ATTRIBUTES, 0..=TEXT_MOST)?;
    Ok(Limits {
        inference_id: id.map(str::to_owned),
        ttl: seconds(headers, TTL, 60..=21_600, 21_600)?,
        timeout: seconds(headers, TIMEOUT, 1..=3600, 900)?,
        extension: extension.map(str::to_owned),
        filename: filename.map(str::to_owned),
    })
}

/// A header of printable characters that may be there once.
fn text<'a>(
    headers: &'a HeaderMap,
    name: &str,
    length: std::ops::RangeInclusive<usize>,
) -> Result<Option<&'a str>, Error> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(illegal(name, "is there more than once"));
    }
    let text = std::str::from_utf8(value.as_bytes()).ok();
    let text = text.filter(|text| !text.chars().any(char::is_control));
    let text = text.ok_or_else(|| illegal(name, "must be printable text"))?;
    if !length.contains(&text.len()) {
        let expected = format!("must have {} to {} bytes", length.start(), length.end());
        return Err(illegal(name, &expected));
    }
    Ok(Some(text))
}

fn seconds(
    headers: &HeaderMap,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
    unsaid: u64,
) -> Result<Duration, Error> {
    let Some(text) = text(headers, name, 0..=TEXT_MOST)? else {
        return Ok(Duration::from_secs(unsaid));
    };
    match text.trim().parse() {
        Ok(seconds) if range.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => {
            let (least, most) = (range.start(), range.end());
            Err(illegal(name, &format!("must be a whole number from {least} to {most}")))
        }
    }
}

fn illegal(name: &str, expected: &str) -> Error {
    Error::request(format!("the header {name} {expected}"))
}

/// The headers of the request that the model is sent: this operation has types of its own names.
fn for_the_model(headers: &HeaderMap) -> Result<HeaderMap, Error> {
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let others = [ROUTE_KEY, header::CONTENT_ENCODING.as_str()];
        let is_sent = name.as_str().starts_with(KEPT) || others.contains(&name.as_str());
        if is_sent && !OURS.contains(&name.as_str()) {
            kept.append(name.clone(), value.clone());
        }
    }
    // Clients that are no SDK may say the types as anybody does.
    let own = HeaderName::from_static(CONTENT_TYPE);
    for (own, usual) in [(own, header::CONTENT_TYPE), (INNER_ACCEPT, header::ACCEPT)] {
        text(headers, own.as_str(), 0..=TEXT_MOST)?;
        let said = headers.get(&own).or_else(|| headers.get(&usual));
        // What HTTP clients say that mean nothing by it.
        if let Some(value) = said.filter(|value| value.as_bytes() != b"*/*") {
            kept.insert(usual, value.clone());
        }
    }
    Ok(kept)
}

/// Whether the caller may ask what the request names, as far as that is known yet. It costs nothing:
/// the request is charged when it is answered.
async fn check_target(
    context: &Context,
    endpoint: &EndpointFace,
    kept: &HeaderMap,
    input: &DeferredInput,
) -> Result<(), Error> {
    if let Some(containers) = &endpoint.containers {
        return behind::check(context, (endpoint, containers), kept);
    }
    let sent = Sent::read(kept)?;
    if sent.session.is_some() {
        return Err(Error::request("asynchronous requests are in no session"));
    }
    let parsed = match input {
        DeferredInput::Inline(body) => Some(parse(kept, body.clone()).await),
        DeferredInput::At(_) => None,
    };
    // The input may name it, and is not here yet.
    let is_open = Cell::new(false);
    let elsewhere = || match (&parsed, target::custom_attribute(kept)) {
        (Some(parsed), _) => stream_target(kept, parsed),
        (None, Some(named)) => Ok(named),
        (None, None) => {
            is_open.set(true);
            Err(target::unnamed())
        }
    };
    let found = match addressed(context, endpoint, kept, &sent, elsewhere) {
        Err(_) if is_open.get() => return Ok(()),
        found => found.map_err(as_request)?,
    };
    context.notes.asked(&found.aim.model);
    permitted::permit(context, &found.aim)?;
    Ok(())
}

/// No model was asked yet, so it is none of a model's errors.
fn as_request(error: Error) -> Error {
    match error.kind() {
        ErrorKind::InvalidInput | ErrorKind::UnsupportedMediaType => {
            let message = format!(
                "the request names no target model that can be read: send target-model=… in \
                 X-Amzn-SageMaker-Custom-Attributes ({error})"
            );
            Error::request(message)
        }
        _ => error,
    }
}
