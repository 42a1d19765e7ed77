//! OpenAI's routes at endpoints with containers: the body goes on as it came, to the same path, and the
//! answer comes back as it is.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, header};
use roundhouse_serving::Route;
use roundhouse_types::ModelId;

use super::{Asking, Form, metered, passed, permitted};
use crate::aim::Aim;
use crate::call::Context;
use crate::capture::captured;
use crate::error::Error;
use crate::meter::with_rate_headers;
use crate::permitted::permit;
use crate::sagemaker::headers::{Sent, TARGET_CONTAINER};
use crate::sagemaker::with_variant;
use crate::state::naming::ALL_TRAFFIC;
use crate::state::{ContainerMode, Containers, EndpointContainer, EndpointFace};
use crate::target;

/// The endpoint that a body's `model` means, and the container where it names one too, where that endpoint
/// has containers: `endpoint`, `endpoint:hostname`, or a hostname at the only endpoint or the one that
/// the path names.
pub(crate) fn meant<'a, 'b>(
    context: &'a Context,
    fixed: Option<&'a EndpointFace>,
    model: &'b str,
) -> Option<(&'a EndpointFace, &'a Containers, Option<&'b str>)> {
    let named = target::answering(context, model);
    if let Some(face) = fixed.is_none().then_some(named).flatten() {
        return Some((face, face.containers.as_ref()?, None));
    }
    let (face, name) = target::split(context, fixed, model).ok()?;
    let containers = face.containers.as_ref()?;
    // What the caller may not ask is not there, and shows by no other error that it is.
    let is_there = containers.list.iter().any(|it| {
        let aim = Aim::at(ModelId { endpoint: face.name.clone(), target: it.name.clone() });
        it.name.as_str() == name && permit(context, &aim).is_ok()
    });
    // Elsewhere it is the container's own word for its model.
    let is_prefixed = name.len() < model.len();
    Some((face, containers, Some(name).filter(|_| is_there || is_prefixed)))
}

/// Answers a request of one of OpenAI's routes. Of `/v1/…` an error of the container goes out as it is;
/// of SageMaker's own route (`at`) as its `ModelError`.
///
/// # Errors
/// Where the endpoint is a pipeline; where the body and the headers name no container, or none that the
/// caller may ask; the limit that is reached; a container that gave no answer.
pub(crate) async fn openai(
    context: &Context,
    (endpoint, containers, named): (&EndpointFace, &Containers, Option<&str>),
    headers: &HeaderMap,
    (path, body): (&str, Bytes),
    at: bool,
) -> Result<Response, Error> {
    let chosen = [one(context, (endpoint, containers, named), headers)?];
    let variant: Arc<str> = ALL_TRAFFIC.into();
    context.notes.variant(&variant);
    // SageMaker's route has a prefix of its own.
    let path = path.rsplit_once("/openai").map_or(path, |(_, rest)| rest);
    let asking = Asking {
        chosen: &chosen,
        headers: passed::on(context, headers, &header::ACCEPT),
        deadline: context.notes.arrived() + context.gateway.config.stream_timeout,
    };
    let capture = endpoint.capture.as_ref().filter(|_| at).map(|it| (it, body.clone()));
    let response = metered(context, asking, (path, body), Form::OpenAi { at }).await;
    let response = response.map(with_rate_headers)?;
    if !at {
        return Ok(response);
    }
    let response = captured(context, capture, &variant, headers, response).await;
    Ok(with_variant(response, &variant))
}

/// Answers a request of a route that asks a tokenizer: the container's own words.
///
/// # Errors
/// As [`openai()`]; `InvalidInput` where the container has no such route.
pub(crate) async fn tokens(
    context: &Context,
    found: (&EndpointFace, &Containers, Option<&str>),
    headers: &HeaderMap,
    (route, body): (Route, Bytes),
) -> Result<Response, Error> {
    let chosen = [one(context, found, headers)?];
    context.notes.variant(&ALL_TRAFFIC.into());
    let asking = Asking {
        chosen: &chosen,
        headers: passed::on(context, headers, &header::ACCEPT),
        deadline: context.notes.arrived() + context.gateway.config.stream_timeout,
    };
    let path = route.of_tokenizer().unwrap_or_default();
    metered(context, asking, (path, body), Form::Tokens(route)).await
}

/// The container that a request names, or the only one.
fn one(
    context: &Context,
    (endpoint, containers, named): (&EndpointFace, &Containers, Option<&str>),
    headers: &HeaderMap,
) -> Result<Arc<EndpointContainer>, Error> {
    let sent = Sent::with_container(headers)?;
    if containers.mode == ContainerMode::Serial && containers.list.len() > 1 {
        return Err(Error::request(format!(
            "the containers of endpoint {} are invoked one after the other, and this route asks one",
            endpoint.name
        )));
    }
    let only = match containers.list.as_slice() {
        [only] => Some(only.name.as_str()),
        _ => None,
    };
    let name = sent.container.or(named).or(only).ok_or_else(|| {
        let expected = format!(
            "must name a container of endpoint {0}, as {0}:hostname (or send {TARGET_CONTAINER})",
            endpoint.name
        );
        Error::field("model", &expected)
    })?;
    permitted(context, endpoint, containers, name)
}
