//! Containers behind an endpoint: whom a request asks of them, and what of it and of the answer passes.
//!
//! A container is named by its hostname, and that is the target's name for the policy, for limits and in
//! the access log. A pipeline goes by the name of its first container: whoever may ask that one may ask
//! all of it.

mod openai;
mod passed;

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, header};
use roundhouse_serving::Route;
use roundhouse_types::{ErrorKind, Failure, ModelId, TargetModel};
use tokio::time::{Instant, timeout_at};

use crate::addressed::no_variant;
use crate::aim::Aim;
use crate::call::Context;
use crate::capture::captured;
use crate::cut::cut_off;
use crate::error::{Error, Face};
use crate::handled::{Flow, framed, gather, no_route};
use crate::layers::Calling;
use crate::meter;
use crate::metrics::container_seconds;
use crate::permitted::permit;
use crate::sagemaker::headers::{INNER_ACCEPT, Sent, TARGET_CONTAINER};
use crate::sagemaker::{event_stream, with_variant};
use crate::state::naming::ALL_TRAFFIC;
use crate::state::{ContainerMode, Containers, EndpointContainer, EndpointFace};
use crate::state::{FromContainer, ToContainer};
use crate::stream::{INNER_TYPE, Watched};
use crate::target;
use crate::told::{Counter, Unsaid};

pub(crate) use openai::{meant, openai, tokens};
use passed::Timed;

/// What SageMaker lets through between two containers of a pipeline.
const BETWEEN_MOST: usize = 5 * 1024 * 1024;
/// How much of an error's body becomes its message.
const MESSAGE_BYTES: usize = 8192;
/// Where containers take invocations.
const INVOCATIONS: &str = "/invocations";

/// How the answer goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// `InvokeEndpoint`: whole, or an error.
    Whole,
    /// `InvokeEndpointWithResponseStream`: each piece in a message of the event stream.
    Framed,
    /// As the container sends it.
    Pieces,
}

/// The endpoint of this name and its containers, where it has such and the caller may ask one.
pub(crate) fn find<'a>(
    context: &'a Context,
    name: &str,
) -> Option<(&'a EndpointFace, &'a Containers)> {
    let endpoint = context.endpoint(name)?;
    let containers = endpoint.containers.as_ref()?;
    has_any(context, endpoint, containers).then_some((endpoint, containers))
}

/// Whether the caller may ask one of an endpoint's containers; of a pipeline the first, which speaks for
/// all of it. An endpoint where it may not is not there for it.
pub(crate) fn has_any(context: &Context, endpoint: &EndpointFace, containers: &Containers) -> bool {
    let of = match containers.mode {
        ContainerMode::Direct => containers.list.len(),
        ContainerMode::Serial => 1,
    };
    containers.list.iter().take(of).any(|it| {
        let asked = ModelId { endpoint: endpoint.name.clone(), target: it.name.clone() };
        usable(context, containers, &asked).is_some()
    })
}

/// Answers an invocation at an endpoint with containers.
///
/// # Errors
/// `InvalidRequest` where the headers name a container, variant or component that there is not, or no
/// container where one must be named; the limit that is reached; what a container failed with, and
/// which it was.
pub(crate) async fn invoke(
    context: &Context,
    (endpoint, containers): (&EndpointFace, &Containers),
    headers: &HeaderMap,
    body: Bytes,
    way: Way,
) -> Result<Response, Error> {
    let sent = Sent::with_container(headers)?;
    if let Some(id) = sent.inference_id {
        context.notes.inference_id(id);
    }
    let chosen = chosen(context, endpoint, containers, &sent)?;
    names_no_model(endpoint, containers, headers)?;
    let variant: Arc<str> = ALL_TRAFFIC.into();
    context.notes.variant(&variant);
    let capture = endpoint.capture.as_ref().filter(|_| way != Way::Pieces);
    let capture = capture.map(|it| (it, body.clone()));
    let config = &context.gateway.config;
    let (accept, timeout) = match way {
        Way::Framed => (&INNER_ACCEPT, config.stream_timeout),
        Way::Whole | Way::Pieces => (&header::ACCEPT, config.invoke_timeout),
    };
    let asking = Asking {
        chosen: &chosen,
        headers: passed::on(context, headers, accept),
        deadline: context.notes.arrived() + timeout,
    };
    let response = metered(context, asking, (INVOCATIONS, body), Form::Invocation(way)).await?;
    let response = captured(context, capture, &variant, headers, response).await;
    Ok(with_variant(response, &variant))
}

/// Whether the caller may ask what the headers name, for a request that is answered later.
///
/// # Errors
/// As [`invoke()`].
pub(crate) fn check(
    context: &Context,
    (endpoint, containers): (&EndpointFace, &Containers),
    headers: &HeaderMap,
) -> Result<(), Error> {
    let sent = Sent::with_container(headers)?;
    if sent.session.is_some() {
        return Err(Error::request("asynchronous requests are in no session"));
    }
    chosen(context, endpoint, containers, &sent)?;
    names_no_model(endpoint, containers, headers)
}

/// A pipeline has no models to choose from: who names one means another endpoint. A container that is
/// asked directly is told, and may have some.
fn names_no_model(
    endpoint: &EndpointFace,
    containers: &Containers,
    headers: &HeaderMap,
) -> Result<(), Error> {
    match containers.mode == ContainerMode::Serial && target::header(headers)?.is_some() {
        true => Err(Error::NotMultiModel(endpoint.name.clone())),
        false => Ok(()),
    }
}

/// Whom a request asks, in order; one at least.
fn chosen(
    context: &Context,
    endpoint: &EndpointFace,
    containers: &Containers,
    sent: &Sent<'_>,
) -> Result<Vec<Arc<EndpointContainer>>, Error> {
    if let Some(name) = sent.variant.filter(|name| *name != ALL_TRAFFIC) {
        return Err(no_variant(endpoint, name));
    }
    if let Some(name) = sent.component {
        let message = format!("inference component {name} not found at endpoint {}", endpoint.name);
        return Err(Error::request(message));
    }
    match (containers.mode, sent.container) {
        (ContainerMode::Direct, Some(name)) => {
            Ok(vec![permitted(context, endpoint, containers, name)?])
        }
        (ContainerMode::Direct, None) => Err(Error::request(format!(
            "the containers of endpoint {} are invoked directly, and the request is missing the \
             header {TARGET_CONTAINER}, which names one of them",
            endpoint.name
        ))),
        (ContainerMode::Serial, Some(name)) => Err(Error::request(format!(
            "the header {TARGET_CONTAINER} names {name}, and the containers of endpoint {} are \
             invoked one after the other",
            endpoint.name
        ))),
        (ContainerMode::Serial, None) => {
            let first = containers.list.first().map(|it| it.name.as_str()).unwrap_or_default();
            permitted(context, endpoint, containers, first)?;
            Ok(containers.list.clone())
        }
    }
}

/// The container that a name stands for, where the caller may ask it: what it may not ask is not there.
fn permitted(
    context: &Context,
    endpoint: &EndpointFace,
    containers: &Containers,
    name: &str,
) -> Result<Arc<EndpointContainer>, Error> {
    let missing =
        || Error::request(format!("container {name} not found at endpoint {}", endpoint.name));
    let target = match containers.list.iter().find(|it| it.name.as_str() == name) {
        Some(named) => named.name.clone(),
        None => TargetModel::new(name).check().map_err(|_| missing())?,
    };
    let asked = ModelId { endpoint: endpoint.name.clone(), target };
    context.notes.asked(&asked);
    let (found, model) = usable(context, containers, &asked).ok_or_else(missing)?;
    if model != asked {
        context.notes.routed(&model);
    }
    Ok(Arc::clone(found))
}

/// The container that a name of its endpoint stands for, and what that is called, where the caller may
/// ask it.
fn usable<'a>(
    context: &Context,
    containers: &'a Containers,
    asked: &ModelId,
) -> Option<(&'a Arc<EndpointContainer>, ModelId)> {
    let model = permit(context, &Aim::at(asked.clone())).ok()?.model;
    let found = containers.list.iter().find(|it| it.name == model.target)?;
    (model.endpoint == asked.endpoint).then_some((found, model))
}

/// Whom to ask, with what, until when.
struct Asking<'a> {
    chosen: &'a [Arc<EndpointContainer>],
    headers: HeaderMap,
    deadline: Instant,
}

/// What becomes of a container's answer.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// Without success it is an error.
    Invocation(Way),
    /// It goes out with its status; of SageMaker's own route without success as an error of SageMaker's.
    OpenAi { at: bool },
    /// What a tokenizer says goes out with its status. It takes no tokens.
    Tokens(Route),
}

/// Asks within the caller's limits, and writes the last answer.
async fn metered(
    context: &Context,
    asking: Asking<'_>,
    (path, body): (&str, Bytes),
    form: Form,
) -> Result<Response, Error> {
    let levels = meter::admit_raw(context)?;
    let deadline = asking.deadline;
    let answered = async {
        let (last, answer) = through(context, asking, body, path).await?;
        let status = answer.status;
        if let Form::Tokens(route) = form
            && let Some(failure) = no_route(route, status, &[])
        {
            return Err(of(&last, failure));
        }
        let counter = match (status.is_success(), form) {
            (false, _) | (_, Form::Tokens(_)) => Counter::nothing(),
            (true, form) => counter(context, &answer, form),
        };
        match form {
            Form::OpenAi { at: false } | Form::Tokens(_) => {
                let how = (Way::Pieces, counter);
                let mut response = written(context, &last, answer, how, deadline).await?;
                *response.status_mut() = status;
                Ok(response)
            }
            Form::OpenAi { at: true } if !status.is_success() => {
                Ok(refused(&last, answer, deadline).await.respond(Face::Endpoint))
            }
            Form::Invocation(_) if !status.is_success() => {
                Err(refused(&last, answer, deadline).await)
            }
            Form::Invocation(way) => {
                written(context, &last, answer, (way, counter), deadline).await
            }
            Form::OpenAi { at: true } => {
                written(context, &last, answer, (Way::Pieces, counter), deadline).await
            }
        }
    };
    let response = tokio::select! {
        biased;
        response = answered => response?,
        () = context.gateway.cut.wait() => return Err(cut_off().into()),
    };
    let mut response = meter::settled(&context.notes, response).await;
    response.extensions_mut().insert(levels);
    Ok(response)
}

/// Asks one container after the other; the last one's answer.
async fn through(
    context: &Context,
    mut asking: Asking<'_>,
    mut body: Bytes,
    path: &str,
) -> Result<(Arc<EndpointContainer>, FromContainer), Error> {
    let accept = asking.headers.get(header::ACCEPT).cloned();
    let mut left = asking.chosen.iter().peekable();
    while let Some(container) = left.next() {
        let next = left.peek();
        // What the client takes is for the last one to know.
        match (next, &accept) {
            (None, Some(accept)) => drop(asking.headers.insert(header::ACCEPT, accept.clone())),
            _ => drop(asking.headers.remove(header::ACCEPT)),
        }
        let Some(next) = next else {
            let headers = std::mem::take(&mut asking.headers);
            let answer = ask(context, container, (headers, body), path, asking.deadline).await?;
            return Ok((Arc::clone(container), answer));
        };
        let sent = (asking.headers.clone(), body);
        let answer = ask(context, container, sent, path, asking.deadline).await?;
        if !answer.status.is_success() {
            return Err(refused(container, answer, asking.deadline).await);
        }
        asking.headers.remove(header::CONTENT_ENCODING);
        match answer.headers.get(header::CONTENT_TYPE).cloned() {
            Some(media) => drop(asking.headers.insert(header::CONTENT_TYPE, media)),
            None => drop(asking.headers.remove(header::CONTENT_TYPE)),
        }
        // A language model may stand anywhere in a pipeline.
        let mut counter = counter(context, &answer, Form::Invocation(Way::Whole));
        body = between(container, next, answer, asking.deadline).await?;
        counter.read_whole(&body).await;
    }
    Err(Error::internal("an endpoint with containers has none"))
}

/// Counts the tokens that an answer says it took. At OpenAI's routes a language model answers, whose
/// tokens are guessed where it says nothing.
fn counter(context: &Context, answer: &FromContainer, form: Form) -> Counter {
    let unsaid = match form {
        Form::OpenAi { .. } => Unsaid::Guessed,
        Form::Invocation(_) | Form::Tokens(_) => Unsaid::Nothing,
    };
    Counter::of_container(&context.notes, &answer.headers, unsaid)
}

async fn ask(
    context: &Context,
    container: &EndpointContainer,
    (mut headers, body): (HeaderMap, Bytes),
    path: &str,
    deadline: Instant,
) -> Result<FromContainer, Error> {
    let notes = &context.notes;
    notes.container(&container.name);
    let hold_until = (notes.arrived() + context.gateway.config.hold).min(deadline);
    let calling = Calling::begin(notes, &container.name, &mut headers);
    let tenant = context.caller.tenant.clone();
    let path = path.to_owned();
    let request = ToContainer { path, headers, body, tenant, hold_until, deadline };
    let began = Instant::now();
    let took = notes.model().map(|asked| container_seconds(&asked.endpoint, &container.name));
    let asked = timeout_at(deadline, (container.ask)(request)).await;
    let answer = asked.unwrap_or_else(|_| Err(late(container))).map_err(|failure| {
        // It had all that time. Other failures mostly never reached it, and would make it look fast.
        if let Some(took) = took.as_ref().filter(|_| failure.kind() == ErrorKind::TimedOut) {
            took.record(began.elapsed());
        }
        of(container, failure)
    })?;
    if let Some(calling) = &calling {
        calling.answered(answer.status);
    }
    let spent = (notes.meter().spent().clone(), took);
    let body = Timed::new(answer.body, (began, calling), spent);
    Ok(FromContainer { body: Box::pin(body), ..answer })
}

/// One container's answer as the next one's request.
async fn between(
    container: &EndpointContainer,
    next: &EndpointContainer,
    mut answer: FromContainer,
    deadline: Instant,
) -> Result<Bytes, Error> {
    let status = answer.status.as_u16();
    let too_large = |length: String| {
        let (from, to) = (&container.name, &next.name);
        let message = format!(
            "Received response from {from} with status code {status}. However, the request payload \
             from {from} to {to} is {length} bytes, which has exceeded the maximum limit of 5 MB."
        );
        of(container, Failure::new(ErrorKind::ModelFailed, message).with_status(status))
    };
    let limit = BETWEEN_MOST as u64;
    if let Some(length) = answer.length.filter(|length| *length > limit) {
        return Err(too_large(length.to_string()));
    }
    let mut whole = BytesMut::new();
    while let Some(piece) = next_piece(container, &mut answer, deadline).await? {
        if whole.len() + piece.len() > BETWEEN_MOST {
            return Err(too_large(format!("more than {limit}")));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

async fn next_piece(
    container: &EndpointContainer,
    answer: &mut FromContainer,
    deadline: Instant,
) -> Result<Option<Bytes>, Error> {
    match timeout_at(deadline, answer.body.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(Some(Err(failure))) => Err(of(container, failure)),
        Err(_) => Err(of(container, late(container))),
    }
}

/// An answer as its client wants it.
async fn written(
    context: &Context,
    container: &EndpointContainer,
    mut answer: FromContainer,
    (way, mut counter): (Way, Counter),
    deadline: Instant,
) -> Result<Response, Error> {
    let limit = context.gateway.config.gathered_limit;
    let is_small = answer.length.is_some_and(|length| length <= limit.0);
    let media = answer.headers.get(header::CONTENT_TYPE).cloned();
    let media = media.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let back = passed::back(&answer.headers);
    let body = if way == Way::Whole || (way == Way::Pieces && is_small) {
        let gathered = gather(&mut answer.body, limit.as_usize(), deadline).await;
        let gathered = gathered.map_err(|error| of_error(container, error))?;
        counter.read_whole(&gathered).await;
        Body::from(gathered)
    } else {
        // A failure before the first piece still has a status of its own.
        let first = next_piece(container, &mut answer, deadline).await?;
        let pieces = Watched::new(answer.body, deadline);
        let flow = Flow::new((first, counter), pieces, deadline, context);
        match way {
            Way::Framed => Body::from_stream(framed(flow.stream())),
            // A failure cuts the connection: the client must not take what it has for all of it.
            Way::Whole | Way::Pieces => Body::from_stream(flow.stream()),
        }
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.extend(back);
    if way == Way::Framed {
        headers.insert(INNER_TYPE, media);
        headers.insert(header::CONTENT_TYPE, event_stream::CONTENT_TYPE);
    } else {
        headers.insert(header::CONTENT_TYPE, media);
    }
    Ok(response)
}

/// An answer whose status is none of success: its body is the message.
async fn refused(
    container: &EndpointContainer,
    mut answer: FromContainer,
    deadline: Instant,
) -> Error {
    let mut shown = BytesMut::new();
    while shown.len() < MESSAGE_BYTES {
        match next_piece(container, &mut answer, deadline).await {
            Ok(Some(piece)) => shown.extend_from_slice(&piece),
            // What is there of it says more than that it broke off.
            Ok(None) | Err(_) => break,
        }
    }
    shown.truncate(MESSAGE_BYTES);
    let message = String::from_utf8_lossy(&shown).trim().to_owned();
    let status = answer.status.as_u16();
    // What is neither an answer nor an error would confuse whoever stands between.
    let status = if (400..600).contains(&status) { status } else { 500 };
    of(container, Failure::new(ErrorKind::ModelFailed, message).with_status(status))
}

fn of(container: &EndpointContainer, failure: Failure) -> Error {
    Error::OfContainer { container: container.name.clone(), failure }
}

fn of_error(container: &EndpointContainer, error: Error) -> Error {
    match error {
        Error::Failed(failure) => of(container, failure),
        other => other,
    }
}

fn late(container: &EndpointContainer) -> Failure {
    let message = format!(
        "Your invocation timed out while waiting for a response from container {}.",
        container.name
    );
    Failure::new(ErrorKind::TimedOut, message)
}
