//! A handler's or an external engine's answer as a response: its bytes, untouched.

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use roundhouse_serving::{HandledBody, HandledReply, HandledStream, Origin, Route};
use roundhouse_types::{ErrorKind, Failure};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::answer::Delivery;
use crate::call::{Context, timed_out};
use crate::cut::{Cut, cut_off};
use crate::error::{Error, Face};
use crate::layers::Notes;
use crate::sagemaker::{event_stream, session};
use crate::stream::{INNER_TYPE, Watched};
use crate::told::Counter;

/// The response headers that a handler may set; all others are ours or the connection's.
const ALLOWED: &str = "x-amzn-sagemaker-";
/// What the type of server-sent events begins with.
const EVENTS: &[u8] = b"text/event-stream";
/// How much of an error's body becomes its message.
const MESSAGE_BYTES: usize = 8192;

/// Writes the answer.
///
/// # Errors
/// The handler's own failure before the first byte; an answer whose status is none of success,
/// where the client expects such as an error; an answer in pieces that is too large to be
/// gathered.
pub(crate) async fn respond(
    context: &Context,
    reply: HandledReply,
    delivery: Delivery,
    deadline: Instant,
) -> Result<Response, Error> {
    let HandledReply { status, content_type, headers, body, origin } = reply;
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let gathers = delivery.gathers || !status.is_success();
    let limit = gathers.then(|| context.gateway.config.gathered_limit.as_usize());
    let (whole, pieces) = begun(body, limit, deadline).await?;
    if let Origin::Engine(route) = origin
        && let Some(failure) = no_route(route, status, &whole)
    {
        return Err(failure.into());
    }
    let is_error = status.is_client_error() || status.is_server_error();
    let is_own = matches!(origin, Origin::Engine(route) if route != Route::Invocations);
    if !(status.is_success() || is_own && is_error) {
        return Err(refused(status, &whole));
    }
    let content_type = content_type
        .and_then(|text| HeaderValue::from_str(&text).ok())
        .unwrap_or(HeaderValue::from_static("application/octet-stream"));
    // What a tokenizer says took no model.
    let is_counted = matches!(origin, Origin::Engine(route) if route.of_tokenizer().is_none())
        && status.is_success();
    let mut counter = match is_counted {
        true => Counter::of_engine(&context.notes),
        false => Counter::nothing(),
    };
    let mut response = match (pieces, delivery.framed) {
        (None, false) => {
            counter.read_whole(&whole).await;
            Response::new(Body::from(whole))
        }
        (None, true) => {
            counter.read_whole(&whole).await;
            let parts = event_stream::parts(&whole).into_iter().map(Ok::<_, Failure>);
            Response::new(Body::from_stream(stream::iter(parts)))
        }
        (Some(pieces), framed) => {
            let pieces = Watched::new(pieces, deadline);
            let pieces = Flow::new((Some(whole), counter), pieces, deadline, context);
            let is_events = content_type.as_bytes().starts_with(EVENTS);
            match (framed, is_events.then_some(origin)) {
                (false, Some(Origin::Engine(route))) => {
                    Response::new(Body::from_stream(told_as_event(pieces.stream(), route)))
                }
                // A failure cuts the connection: the client must not take what it has for all of it.
                (false, _) => Response::new(Body::from_stream(pieces.stream())),
                (true, _) => Response::new(Body::from_stream(self::framed(pieces.stream()))),
            }
        }
    };
    if is_error {
        *response.status_mut() = status;
    }
    set_headers(response.headers_mut(), (content_type, headers), delivery.framed);
    Ok(response)
}

/// An answer whose body has begun: its first piece, and the others where it is told as they come. With
/// `limit` all of it is one piece of so many bytes at most.
async fn begun(
    body: HandledBody,
    limit: Option<usize>,
    deadline: Instant,
) -> Result<(Bytes, Option<Box<HandledStream>>), Error> {
    let mut pieces = match (body, limit) {
        (HandledBody::Whole(body), _) => return Ok((body, None)),
        (HandledBody::Stream(pieces), Some(limit)) => {
            return Ok((gather(pieces, limit, deadline).await?, None));
        }
        (HandledBody::Stream(pieces), None) => pieces,
    };
    // A failure before the first piece still has a status of its own.
    match timeout_at(deadline, pieces.next()).await.map_err(|_| timed_out())? {
        Some(first) => Ok((first?, Some(pieces))),
        None => Ok((Bytes::new(), None)),
    }
}

/// The answer's type, and those of the handler's headers that it may set.
fn set_headers(
    out: &mut HeaderMap,
    (content_type, headers): (HeaderValue, Vec<(String, String)>),
    framed: bool,
) {
    if framed {
        out.insert(INNER_TYPE, content_type);
        out.insert(header::CONTENT_TYPE, event_stream::CONTENT_TYPE);
    } else {
        out.insert(header::CONTENT_TYPE, content_type);
    }
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value))
            && name.as_str().starts_with(ALLOWED)
            && name != INNER_TYPE
            && !session::OURS.contains(&name)
        {
            out.insert(name, value);
        }
    }
}

/// Says so where whoever was asked has no such route for its tokenizer, or none for responses: not every
/// engine has one. Its own words for that would be read as our having none: it was asked for a model that
/// it has.
pub(crate) fn no_route(route: Route, status: StatusCode, body: &[u8]) -> Option<Failure> {
    const HAVE_NOT: [StatusCode; 3] =
        [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];
    if !HAVE_NOT.contains(&status) {
        return None;
    }
    let path = match route {
        Route::Responses if !is_of_model(body) => "/v1/responses",
        route => route.of_tokenizer()?,
    };
    let what = format!("what serves this model has no route {path} (it answered {status})");
    Some(Failure::new(ErrorKind::InvalidInput, what))
}

/// Whether an error is about the model that was named, in OpenAI's words or in vLLM's.
fn is_of_model(body: &[u8]) -> bool {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    said["error"]["code"] == "model_not_found" || said["error"]["param"] == "model"
}

/// All pieces, where the client takes them as one.
pub(crate) async fn gather(
    mut pieces: impl Stream<Item = Result<Bytes, Failure>> + Unpin,
    limit: usize,
    deadline: Instant,
) -> Result<Bytes, Error> {
    let (mut first, mut whole) = (Bytes::new(), BytesMut::new());
    while let Some(piece) = timeout_at(deadline, pieces.next()).await.map_err(|_| timed_out())? {
        let piece = piece?;
        if first.len() + whole.len() + piece.len() > limit {
            let message = format!("the answer is larger than {limit} bytes");
            return Err(Failure::new(ErrorKind::ModelFailed, message).into());
        }
        // One that comes in one piece is not copied.
        if first.is_empty() && whole.is_empty() {
            first = piece;
            continue;
        }
        whole.extend_from_slice(&std::mem::take(&mut first));
        whole.extend_from_slice(&piece);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

/// Pieces of an answer on their way to the client; a failure is the last of them.
pub(crate) struct Flow<S> {
    first: Option<Bytes>,
    counter: Counter,
    pieces: Watched<S>,
    deadline: Instant,
    cut: Cut,
    notes: Notes,
    has_failed: bool,
}

impl<S: Stream<Item = Result<Bytes, Failure>> + Unpin + Send + 'static> Flow<S> {
    /// Pieces that are let go of at the deadline, behind one that is there already.
    pub(crate) fn new(
        (first, counter): (Option<Bytes>, Counter),
        pieces: Watched<S>,
        deadline: Instant,
        context: &Context,
    ) -> Self {
        let (cut, notes) = (context.gateway.cut.clone(), context.notes.clone());
        Self { first, counter, pieces, deadline, cut, notes, has_failed: false }
    }

    async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        if let Some(first) = self.first.take() {
            self.counter.read(&first);
            return Some(Ok(first));
        }
        if self.has_failed {
            return None;
        }
        let next = tokio::select! {
            biased;
            next = self.pieces.next() => next,
            () = self.cut.wait() => Some(Err(cut_off())),
        };
        let failure = match next {
            Some(Ok(piece)) => {
                self.counter.read(&piece);
                return Some(Ok(piece));
            }
            Some(Err(failure)) => failure,
            // It was let go of while the client did not read.
            None if Instant::now() >= self.deadline => late(),
            None => {
                self.counter.ended();
                return None;
            }
        };
        self.counter.ended();
        self.has_failed = true;
        self.pieces.let_go();
        // Whoever is told of it in the answer's own words sees that end as any other.
        drop(self.notes.settle(false, 0));
        Some(Err(failure))
    }

    pub(crate) fn stream(self) -> impl Stream<Item = Result<Bytes, Failure>> + Send {
        stream::unfold(self, async |mut flow| Some((flow.next().await?, flow)))
    }
}

/// Each piece is a part of the event stream, and a failure its last message.
pub(crate) fn framed(
    pieces: impl Stream<Item = Result<Bytes, Failure>> + Send,
) -> impl Stream<Item = Result<Bytes, Failure>> + Send {
    pieces
        .map(|piece| match piece {
            Ok(piece) => event_stream::parts(&piece),
            Err(failure) => vec![event_stream::exception(&failure.into())],
        })
        .flat_map(|parts| stream::iter(parts.into_iter().map(Ok)))
}

/// A failure is an event as OpenAI's clients read it: they know a cut connection from nothing else.
fn told_as_event(
    pieces: impl Stream<Item = Result<Bytes, Failure>> + Send,
    route: Route,
) -> impl Stream<Item = Result<Bytes, Failure>> + Send {
    pieces.map(move |piece| {
        Ok(piece.unwrap_or_else(|failure| {
            let mut object = Error::from(failure).object(Face::OpenAi);
            let mut name = "";
            if route == Route::Responses {
                // Its events have names, and this one says the error itself.
                name = "event: error\n";
                object["type"] = "error".into();
                for field in ["code", "message", "param"] {
                    object[field] = object["error"][field].clone();
                }
            }
            // What came before may have broken off within an event.
            Bytes::from(format!("\n\n{name}data: {object}\n\n"))
        }))
    })
}

fn late() -> Failure {
    Failure::new(ErrorKind::TimedOut, "the answer did not end in time")
}

/// A container's error answer: its body is the message.
fn refused(status: StatusCode, body: &[u8]) -> Error {
    let shown = &body[..body.len().min(MESSAGE_BYTES)];
    let message = String::from_utf8_lossy(shown).trim().to_owned();
    // What is neither an answer nor an error would confuse whoever stands between.
    let status = if (400..600).contains(&status.as_u16()) { status.as_u16() } else { 500 };
    Failure::new(ErrorKind::ModelFailed, message).with_status(status).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_breaks_off_its_events_is_told_by_one_more() {
        let failure = Failure::new(ErrorKind::ModelFailed, "engine e:a broke its answer off");
        let pieces = [Ok(Bytes::from_static(b"data: {\"half")), Err(failure)];
        for (route, begins) in
            [(Route::Chat, "\n\ndata: "), (Route::Responses, "\n\nevent: error\ndata: ")]
        {
            let told = told_as_event(stream::iter(pieces.clone()), route);
            let told: Vec<_> = told.collect().await;
            let text = std::str::from_utf8(told[1].as_ref().unwrap()).unwrap();
            let object = text.strip_prefix(begins).unwrap().strip_suffix("\n\n").unwrap();
            let object: serde_json::Value = serde_json::from_str(object).unwrap();
            let message = "engine e:a broke its answer off";
            assert_eq!(object["error"]["message"], message);
            let (kind, said) = (object.get("type"), object.get("message"));
            let is_named = route == Route::Responses;
            assert_eq!(kind.is_some_and(|it| it == "error"), is_named);
            assert_eq!(said.is_some_and(|it| it == message), is_named);
            assert_eq!(told.len(), 2);
        }
    }
}
