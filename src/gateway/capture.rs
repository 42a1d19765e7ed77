//! What an endpoint keeps of requests and answers: copies on their way to whoever writes them down.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::SystemTime;

use axum::body::{Body, BodyDataStream, HttpBody, to_bytes};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, header};
use uuid::Uuid;

use crate::call::Context;
use crate::metrics;
use crate::sagemaker::event_stream;
use crate::sagemaker::headers::INFERENCE_ID;
use crate::stream::INNER_TYPE;

/// What an endpoint keeps, and who takes it.
#[derive(Clone)]
pub struct Capture {
    /// Of ten thousand requests, so many.
    pub sampling: u16,
    /// Whether requests are kept.
    pub input: bool,
    /// Whether answers are.
    pub output: bool,
    /// Whether what they hold is left out, and only said that they were.
    pub redacted: bool,
    /// Bytes that are kept of a request or an answer at most.
    pub most: usize,
    /// Where what is kept finds room.
    pub room: CaptureRoom,
    /// Takes what was kept. Must not block.
    pub take: Arc<dyn Fn(Captured) + Send + Sync>,
}

/// A request and its answer, as far as they are kept. Holds its room.
pub struct Captured {
    /// The request's id.
    pub id: Uuid,
    /// What the client called it.
    pub inference_id: Option<String>,
    /// When it was answered.
    pub time: SystemTime,
    /// The variant that answered.
    pub variant: Arc<str>,
    /// The request.
    pub input: Option<Payload>,
    /// The answer.
    pub output: Option<Payload>,
    /// Given back when all is written, or lost.
    pub held: Held,
}

/// A body, as far as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// What it is written in.
    pub content_type: Option<String>,
    /// Its bytes; absent where they are left out.
    pub data: Option<Bytes>,
    /// Whether there were more.
    pub is_cut: bool,
}

/// Bytes for what is kept and not yet written. Clones are the same room.
#[derive(Debug, Clone)]
pub struct CaptureRoom {
    most: usize,
    held: Arc<AtomicUsize>,
}

impl CaptureRoom {
    /// So many bytes.
    pub fn new(most: usize) -> Self {
        Self { most, held: Arc::default() }
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.most);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// A part of the room, given back when it is dropped.
#[derive(Debug)]
pub struct Held {
    room: CaptureRoom,
    bytes: usize,
}

impl Held {
    fn more(&mut self, bytes: usize) -> bool {
        let has_room = self.room.take(bytes);
        if has_room {
            self.bytes += bytes;
        }
        has_room
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a captured request takes in memory beside its payloads, roughly.
const LINE: usize = 1024;

/// Keeps a request and its answer, where its endpoint does and it is one of those that are drawn. The
/// answer goes out as it would, and what is kept of it is taken at its end.
pub(crate) async fn captured(
    context: &Context,
    capture: Option<(&Capture, Bytes)>,
    variant: &Arc<str>,
    headers: &HeaderMap,
    response: Response,
) -> Response {
    let id = context.notes.request_id();
    let Some((capture, body)) = capture.filter(|(it, _)| is_drawn(id, it.sampling)) else {
        return response;
    };
    if !response.status().is_success() {
        return response;
    }
    let mut keeping = Keeping {
        id,
        inference_id: text(headers, &INFERENCE_ID),
        variant: variant.clone(),
        input: None,
        output_type: text(response.headers(), &INNER_TYPE)
            .or_else(|| text(response.headers(), &header::CONTENT_TYPE)),
        is_framed: response.headers().contains_key(&INNER_TYPE),
        output: BytesMut::new(),
        is_cut: false,
        held: Held { room: capture.room.clone(), bytes: 0 },
        capture: Some(capture.clone()),
    };
    let named = [&keeping.inference_id, &keeping.output_type];
    let named: usize = named.into_iter().flatten().map(String::len).sum();
    if !keeping.take(LINE + named) {
        return response;
    }
    if capture.input {
        keeping.input(text(headers, &header::CONTENT_TYPE), &body);
    }
    if !capture.output {
        return response;
    }
    let is_whole = response.body().size_hint().exact().is_some();
    let (parts, body) = response.into_parts();
    let body = match is_whole {
        true => {
            // It is there already, and keeps its length.
            let whole = to_bytes(body, usize::MAX).await.unwrap_or_default();
            keeping.output(&whole);
            Body::from(whole)
        }
        false => Body::from_stream(Kept { body: body.into_data_stream(), keeping }),
    };
    Response::from_parts(parts, body)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// By the request's id, which is random: so a request is drawn or not, whoever asks.
fn is_drawn(id: Uuid, sampling: u16) -> bool {
    id.as_u64_pair().1 % 10_000 < u64::from(sampling)
}

/// What is kept of a request that is being answered; handed on when it is dropped, at the answer's end
/// or where that was cut.
struct Keeping {
    id: Uuid,
    inference_id: Option<String>,
    variant: Arc<str>,
    input: Option<Payload>,
    output_type: Option<String>,
    /// Whether pieces are messages of an event stream.
    is_framed: bool,
    output: BytesMut,
    is_cut: bool,
    held: Held,
    /// Gone where there was no room.
    capture: Option<Capture>,
}

impl Keeping {
    fn input(&mut self, content_type: Option<String>, body: &Bytes) {
        let Some(capture) = &self.capture else { return };
        let kept = body.len().min(capture.most);
        let data = match capture.redacted {
            true => None,
            // A copy: a slice would hold all of a larger body.
            false if kept < body.len() => Some(Bytes::copy_from_slice(&body[..kept])),
            false => Some(body.clone()),
        };
        let bytes =
            data.as_ref().map_or(0, Bytes::len) + content_type.as_ref().map_or(0, String::len);
        self.input = Some(Payload { content_type, data, is_cut: kept < body.len() });
        self.take(bytes);
    }

    fn output(&mut self, piece: &Bytes) {
        let Some(capture) = self.capture.as_ref().filter(|it| !it.redacted) else { return };
        let inner = if self.is_framed { event_stream::payload(piece) } else { Some(piece.clone()) };
        let Some(piece) = inner else { return };
        let kept = piece.len().min(capture.most - self.output.len());
        self.is_cut |= kept < piece.len();
        if self.take(kept) {
            self.output.extend_from_slice(&piece[..kept]);
        }
    }

    fn take(&mut self, bytes: usize) -> bool {
        let has_room = self.held.more(bytes);
        if !has_room && self.capture.take().is_some() {
            (self.input, self.output) = (None, BytesMut::new());
            self.held = Held { room: self.held.room.clone(), bytes: 0 };
            metrics::capture_dropped();
        }
        has_room
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        let Some(capture) = self.capture.take() else { return };
        let output = capture.output.then(|| Payload {
            content_type: self.output_type.take(),
            data: (!capture.redacted).then(|| std::mem::take(&mut self.output).freeze()),
            is_cut: self.is_cut,
        });
        let room = self.held.room.clone();
        (capture.take)(Captured {
            id: self.id,
            inference_id: self.inference_id.take(),
            time: SystemTime::now(),
            variant: self.variant.clone(),
            input: self.input.take(),
            output,
            held: std::mem::replace(&mut self.held, Held { room, bytes: 0 }),
        });
    }
}

/// A body on its way out, of which is kept what goes by.
struct Kept {
    body: BodyDataStream,
    keeping: Keeping,
}

impl Stream for Kept {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let polled = this.body.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(piece))) = &polled {
            this.keeping.output(piece);
        }
        polled
    }
}
