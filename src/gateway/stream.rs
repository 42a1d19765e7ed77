//! Streams of events on their way to a client.
//!
//! A chunk is one whole event; a failure is the last event and nothing follows it that
//! would make the stream look complete.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderName, HeaderValue, header};
use roundhouse_serving::{GenerationReply, Piece, PieceStream, Taken};
use roundhouse_types::{ErrorKind, Failure};
use serde_json::Value;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::call::timed_out;
use crate::cut::{Cut, cut_off};
use crate::error::{Error, Face};
use crate::layers::Notes;
use crate::meter::Cached;
use crate::sagemaker::event_stream;

/// Where clients of the framed stream find the type of what is inside.
pub(crate) const INNER_TYPE: HeaderName = HeaderName::from_static("x-amzn-sagemaker-content-type");
/// Tells nginx to pass events on as they come.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Puts pieces into a dialect. What it returns are events in order.
pub(crate) trait Transcript: Send {
    /// Events before the first piece.
    fn start(&mut self) -> Vec<Value>;
    /// Events for one piece.
    fn piece(&mut self, piece: Piece) -> Vec<Value>;
    /// Events after the last piece.
    fn end(&mut self) -> Vec<Value>;
    /// The event that says a failure.
    fn failed(&self, error: &Error) -> Value;
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON object per line.
    JsonLines,
    /// Server-sent events; with `[DONE]` at a good end where asked.
    Sse {
        /// OpenAI's streams end with it, TGI's do not.
        done: bool,
    },
    /// Server-sent events that are called as their `type` says.
    NamedEvents,
}

/// How a stream reaches its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wire {
    pub(crate) format: Format,
    /// Whether each event is wrapped in an AWS event-stream message.
    pub(crate) framed: bool,
}

impl Wire {
    fn data(self, event: &Value) -> Bytes {
        let text = match self.format {
            Format::JsonLines => format!("{event}\n"),
            Format::Sse { .. } => format!("data: {event}\n\n"),
            Format::NamedEvents => {
                let name = event["type"].as_str().unwrap_or("message");
                format!("event: {name}\ndata: {event}\n\n")
            }
        };
        self.wrapped(text)
    }

    fn wrapped(self, text: String) -> Bytes {
        if self.framed { event_stream::part(text.as_bytes()) } else { text.into() }
    }

    fn done(self) -> Option<Bytes> {
        (self.format == Format::Sse { done: true }).then(|| self.wrapped("data: [DONE]\n\n".into()))
    }

    /// A comment that clients skip; lines of JSON have none.
    fn keep_alive(self) -> Option<Bytes> {
        (self.format != Format::JsonLines).then(|| self.wrapped(": keep-alive\n\n".into()))
    }

    fn failed(self, transcript: &dyn Transcript, error: &Error) -> Bytes {
        if self.framed {
            event_stream::exception(error)
        } else {
            self.data(&transcript.failed(error))
        }
    }

    /// The response's head.
    pub(crate) fn response(self, body: Body) -> Response {
        let inner = HeaderValue::from_static(match self.format {
            Format::JsonLines => "application/jsonlines",
            // Some clients fall back to Latin-1 without it.
            Format::Sse { .. } | Format::NamedEvents => "text/event-stream; charset=utf-8",
        });
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        if self.framed {
            headers.insert(INNER_TYPE, inner);
            headers.insert(header::CONTENT_TYPE, event_stream::CONTENT_TYPE);
        } else {
            headers.insert(header::CONTENT_TYPE, inner);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(NO_BUFFERING, HeaderValue::from_static("no"));
        response
    }
}

/// What bounds a stream and who is told about it.
pub(crate) struct Bounds {
    pub(crate) deadline: Instant,
    pub(crate) keep_alive: Duration,
    /// Answers to one prompt follow each other.
    pub(crate) choices_per_prompt: usize,
    pub(crate) notes: Notes,
    pub(crate) cut: Cut,
}

/// Streams a generation. Waits for the first piece for as long as silence is allowed, so
/// that a failure before it still has a status of its own.
///
/// # Errors
/// What fails before the first piece.
pub(crate) async fn respond(
    mut reply: GenerationReply,
    transcript: Box<dyn Transcript>,
    wire: Wire,
    bounds: Bounds,
) -> Result<Response, Error> {
    let first = timeout(bounds.keep_alive, reply.pieces.next()).await;
    let mut pump = Pump {
        unfinished: reply.prompt_tokens.len(),
        pieces: Watched::new(reply.pieces, bounds.deadline),
        _taken: reply.taken,
        transcript,
        wire,
        bounds,
        ready: VecDeque::new(),
        cached: Cached::default(),
        ended: None,
    };
    let started = pump.transcript.start();
    pump.push(started);
    match first {
        Ok(Some(Ok(piece))) => pump.piece(piece),
        Ok(Some(Err(failure))) => return Err(failure.into()),
        Ok(None) => return Err(ended_early()),
        // Silence so far: the client gets its headers now.
        Err(_) => {}
    }
    let events = stream::unfold(pump, async |mut pump| {
        let event = pump.next().await?;
        Some((Ok::<_, Failure>(event), pump))
    });
    Ok(wire.response(Body::from_stream(events)))
}

fn ended_early() -> Error {
    Error::internal("a completion ended without a reason")
}

/// Owns the pieces; dropping it aborts what is left of them.
struct Pump {
    pieces: Watched<PieceStream>,
    /// What is told takes it until it has gone out.
    _taken: Taken,
    transcript: Box<dyn Transcript>,
    wire: Wire,
    bounds: Bounds,
    /// Written and not yet sent.
    ready: VecDeque<Bytes>,
    /// Choices that have not ended.
    unfinished: usize,
    cached: Cached,
    /// Whether it ended well, when it has.
    ended: Option<bool>,
}

impl Pump {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // The end is not told before it is settled, and its usage is where it shall be.
            if let Some(complete) = self.ended {
                let unsent = self.ready.iter().map(|event| event.len() as u64).sum();
                self.bounds.notes.settle(complete, unsent).wait().await;
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended.is_some() {
                return None;
            }
            tokio::select! {
                biased;
                () = sleep_until(self.bounds.deadline) => self.fail(&timed_out()),
                () = self.bounds.cut.wait() => self.fail(&cut_off().into()),
                piece = self.pieces.next() => match piece {
                    Some(Ok(piece)) => self.piece(piece),
                    Some(Err(failure)) => self.fail(&failure.into()),
                    None if Instant::now() >= self.bounds.deadline => self.fail(&timed_out()),
                    None => self.fail(&ended_early()),
                },
                () = sleep(self.bounds.keep_alive) => self.ready.extend(self.wire.keep_alive()),
            }
        }
    }

    fn piece(&mut self, piece: Piece) {
        self.bounds.notes.generated(piece.tokens.len());
        if let Some(finished) = piece.finished {
            let prompt = piece.choice / self.bounds.choices_per_prompt.max(1);
            self.cached.finished(prompt, finished.cached_tokens);
            self.unfinished = self.unfinished.saturating_sub(1);
        }
        let events = self.transcript.piece(piece);
        self.push(events);
        if self.unfinished == 0 {
            let events = self.transcript.end();
            self.push(events);
            self.ready.extend(self.wire.done());
            self.end(true);
        }
    }

    fn fail(&mut self, error: &Error) {
        if error.kind() == ErrorKind::Internal {
            tracing::error!(%error, "a stream failed by a fault of ours");
        } else {
            tracing::debug!(%error, "a stream failed");
        }
        self.ready.push_back(self.wire.failed(self.transcript.as_ref(), error));
        self.end(false);
    }

    /// Lets go of the model before the client has read the rest.
    fn end(&mut self, complete: bool) {
        self.ended = Some(complete);
        self.bounds.notes.meter().cached(self.cached.sum());
        self.pieces.let_go();
    }

    fn push(&mut self, events: Vec<Value>) {
        self.ready.extend(events.iter().map(|event| self.wire.data(event)));
    }
}

/// A model's pieces, let go of at the deadline even where nobody asks for them: a client
/// that stops reading must not hold a model. What was let go of has no further pieces.
pub(crate) struct Watched<S> {
    held: Arc<Mutex<Option<S>>>,
    watchdog: AbortHandle,
}

impl<S: Send + 'static> Watched<S> {
    pub(crate) fn new(pieces: S, deadline: Instant) -> Self {
        let held = Arc::new(Mutex::new(Some(pieces)));
        let watched = Arc::downgrade(&held);
        let watching = tokio::spawn(async move {
            sleep_until(deadline).await;
            if let Some(held) = watched.upgrade() {
                take(&held);
            }
        });
        Self { held, watchdog: watching.abort_handle() }
    }
}

impl<S> Watched<S> {
    pub(crate) fn let_go(&self) {
        take(&self.held);
    }
}

/// A panic while it was held leaves a stream that may still be dropped.
fn take<S>(held: &Mutex<Option<S>>) {
    let pieces = held.lock().unwrap_or_else(PoisonError::into_inner).take();
    // Outside the lock: dropping it runs other crates' code.
    drop(pieces);
}

impl<S: Stream + Unpin> Stream for Watched<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_mut() {
            Some(pieces) => pieces.poll_next_unpin(context),
            None => Poll::Ready(None),
        }
    }
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        self.watchdog.abort();
        self.let_go();
    }
}

/// A whole answer as a framed stream: one message, several where it is long.
pub(crate) fn framed_whole(body: &[u8], content_type: HeaderValue, ends_line: bool) -> Response {
    let mut line = body.to_vec();
    line.extend(ends_line.then_some(b'\n'));
    let events = stream::iter(event_stream::parts(&line).into_iter().map(Ok::<_, Failure>));
    let wire = Wire { format: Format::JsonLines, framed: true };
    let mut response = wire.response(Body::from_stream(events));
    response.headers_mut().insert(INNER_TYPE, content_type);
    response
}

/// Says an error as OpenAI's streams do, in the dialect of the route it came by.
pub(crate) fn openai_failure(error: &Error) -> Value {
    error.object(Face::OpenAi)
}
