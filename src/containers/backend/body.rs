//! What is sent to a container, and what is read from it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use roundhouse_types::Bytes as Amount;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Inner;
use super::connection::Connection;
use crate::Error;
use crate::metrics;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body.
#[derive(Debug)]
pub struct Outgoing {
    inner: Sending,
    /// Dropped when the last of a body that comes in pieces was taken to be sent.
    pub(super) taken: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
enum Sending {
    Whole(Full<Bytes>),
    Pieces(UnsyncBoxBody<Bytes, BoxError>),
}

impl Outgoing {
    /// No body.
    pub fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    /// A body in memory; only such a request can be sent a second time.
    pub fn whole(body: Bytes) -> Self {
        Self { inner: Sending::Whole(Full::new(body)), taken: None }
    }

    /// A body that is read as fast as the container takes it.
    pub fn pieces<B>(body: B) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let body = body.map_err(Into::into).boxed_unsync();
        Self { inner: Sending::Pieces(body), taken: None }
    }

    /// The same once more, where it is in memory.
    pub(super) fn again(&self) -> Option<Self> {
        match &self.inner {
            Sending::Whole(body) => Some(Self { inner: Sending::Whole(body.clone()), taken: None }),
            Sending::Pieces(_) => None,
        }
    }

    /// What resolves when all of a body in pieces was taken to be sent; absent for one in memory.
    pub(super) fn watch(&mut self) -> Option<oneshot::Receiver<()>> {
        match self.inner {
            Sending::Whole(_) => None,
            Sending::Pieces(_) => {
                let (taken, watched) = oneshot::channel();
                self.taken = Some(taken);
                Some(watched)
            }
        }
    }
}

/// The client's body broke off.
#[derive(Debug, thiserror::Error)]
#[error("the body ended early")]
pub(super) struct Broken(#[source] BoxError);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match &mut self.inner {
            Sending::Whole(body) => ready!(Pin::new(body).poll_frame(context))
                .map(|frame| frame.map_err(|never| match never {})),
            Sending::Pieces(body) => ready!(Pin::new(body).poll_frame(context))
                .map(|frame| frame.map_err(|error| BoxError::from(Broken(error)))),
        };
        if frame.is_none() || self.is_end_stream() {
            self.taken = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Sending::Whole(body) => body.is_end_stream(),
            Sending::Pieces(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Sending::Whole(body) => body.size_hint(),
            Sending::Pieces(body) => body.size_hint(),
        }
    }
}

/// An answer's body: read as fast as it is polled, within the request's time. Holds the request's place
/// at its container; dropped before its end, it closes the connection.
pub struct Incoming {
    /// Absent when it is over.
    reading: Option<Reading>,
    /// Ends a silence; there while the container is waited for.
    silence: Option<Pin<Box<Sleep>>>,
    deadline: Instant,
    size: SizeHint,
}

struct Reading {
    body: hyper::body::Incoming,
    connection: Box<Connection>,
    backend: Arc<Inner>,
    _place: Option<Place>,
}

impl Reading {
    /// What there is of the body, after what can be read now was.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // Only driving the connection brings it on, so it need not wake anybody.
        let mut quiet = Context::from_waker(Waker::noop());
        let polled = Pin::new(&mut self.body).poll_frame(&mut quiet);
        if polled.is_ready() {
            return polled;
        }
        self.connection.drive(context);
        Pin::new(&mut self.body).poll_frame(&mut quiet)
    }

    /// All was read: its connection can be used again.
    fn ended(self) {
        self.backend.pool.put(self.connection);
    }
}

/// One of the requests that a container may have under way.
pub(super) struct Place {
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) gauge: ::metrics::Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

impl Incoming {
    pub(super) fn new(
        (body, connection): (hyper::body::Incoming, Box<Connection>),
        backend: Arc<Inner>,
        place: Option<Place>,
        deadline: Instant,
    ) -> Self {
        let size = body.size_hint();
        let is_over = body.is_end_stream();
        let reading = Reading { body, connection, backend, _place: place };
        let mut incoming = Self { reading: Some(reading), silence: None, deadline, size };
        if is_over {
            incoming.ended();
        }
        incoming
    }

    /// The whole body.
    ///
    /// # Errors
    /// `AnswerTooLarge` above the limit, as soon as that is known, and what a broken answer is.
    pub async fn collect(mut self, limit: Amount) -> Result<Bytes, Error> {
        let too_large = |reading: &Option<Reading>| {
            let container = reading.as_ref().map(|it| Arc::clone(&it.backend.config.name));
            Error::AnswerTooLarge { container: container.unwrap_or_else(|| "".into()), limit }
        };
        if self.size.lower() > limit.0 {
            return Err(too_large(&self.reading));
        }
        let mut whole = BytesMut::new();
        let mut first: Option<Bytes> = None;
        while let Some(frame) = self.frame().await {
            let Ok(piece) = frame?.into_data() else { continue };
            let read = whole.len() + first.as_ref().map_or(0, Bytes::len) + piece.len();
            if read as u64 > limit.0 {
                return Err(too_large(&self.reading));
            }
            match first.take() {
                None if whole.is_empty() => first = Some(piece),
                None => whole.extend_from_slice(&piece),
                Some(before) => {
                    whole.extend_from_slice(&before);
                    whole.extend_from_slice(&piece);
                }
            }
        }
        Ok(first.unwrap_or_else(|| whole.freeze()))
    }

    fn ended(&mut self) {
        if let Some(reading) = self.reading.take() {
            reading.ended();
        }
    }

    /// Ends the reading: the place is given back, and the connection where it is not at its end.
    fn end(&mut self, error: impl FnOnce(&Arc<Inner>) -> (&'static str, Error)) -> Option<Error> {
        let reading = self.reading.take()?;
        let (why, error) = error(&reading.backend);
        metrics::cut(&reading.backend.config.name, why);
        reading.backend.last.note(&error);
        Some(error)
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        match reading.poll(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let is_over = reading.body.is_end_stream();
                self.silence = None;
                if is_over {
                    self.ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let error = self.end(|backend| {
                    backend.cut();
                    let container = Arc::clone(&backend.config.name);
                    ("cut", Error::Cut { container, source: Arc::new(error) })
                });
                Poll::Ready(error.map(Err))
            }
            Poll::Ready(None) => {
                self.ended();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let limit = reading.backend.config.idle_timeout;
                let deadline = self.deadline;
                let until = || Box::pin(sleep_until(deadline.min(Instant::now() + limit)));
                ready!(self.silence.get_or_insert_with(until).as_mut().poll(context));
                let is_over = Instant::now() >= deadline;
                let error = self.end(|backend| {
                    let container = Arc::clone(&backend.config.name);
                    match is_over {
                        true => ("timed_out", Error::TimedOut { container }),
                        false => ("stalled", Error::Stalled { container, limit }),
                    }
                });
                Poll::Ready(error.map(Err))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reading.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.reading {
            Some(reading) => reading.body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("size", &self.size).finish_non_exhaustive()
    }
}
