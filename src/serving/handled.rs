//! What a handler or an external engine answers, with what its request holds.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use roundhouse_containers::driven;
use roundhouse_types::{Failure, ModelId};
use roundhouse_workers::{Body, Reply};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::completions::Hold;
use crate::metrics::Record;
use crate::{Error, Route};

/// A handler's answer, as it gave it.
pub struct HandledReply {
    /// 200 unless the handler set another.
    pub status: u16,
    /// What the body is written in; absent where the handler said nothing.
    pub content_type: Option<String>,
    /// Response headers that the handler set.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: HandledBody,
    /// Who answers.
    pub origin: Origin,
}

/// Who gave an answer that goes out as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A Python handler.
    Handler,
    /// An external engine, at this route of its own.
    Engine(Route),
}

/// The body of a handler's answer.
pub enum HandledBody {
    /// All of it.
    Whole(Bytes),
    /// As the handler yields it; a failure is the last item. Dropping it tells the handler to
    /// stop and releases the lease.
    Stream(Box<HandledStream>),
}

/// Pieces of a handler's answer. It owns lease and permit: at its end, at an error, at the
/// deadline and when dropped, both are released.
pub struct HandledStream {
    model: ModelId,
    deadline: Pin<Box<Sleep>>,
    /// Gone when the stream has ended. The pieces are dropped before what is held.
    running: Option<(Pieces, Hold)>,
    record: Record,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// Puts an answer together with what its request holds; a whole one holds nothing any more.
pub(crate) fn answer(
    model: ModelId,
    reply: Reply,
    hold: Hold,
    deadline: Instant,
    mut record: Record,
) -> HandledReply {
    let Reply { status, content_type, headers, body } = reply;
    let body = match body {
        Body::Whole(body) => {
            record.completed();
            HandledBody::Whole(body)
        }
        Body::Chunks(chunks) => stream(model, Box::pin(chunks), hold, deadline, record),
    };
    HandledReply { status, content_type, headers, body, origin: Origin::Handler }
}

/// The same of an external engine's answer, which always comes in pieces.
pub(crate) fn relayed(
    model: ModelId,
    (answer, route): (driven::Answer, Route),
    hold: Hold,
    deadline: Instant,
    record: Record,
) -> HandledReply {
    let driven::Answer { status, content_type, headers, body } = answer;
    let body = stream(model, body, hold, deadline, record);
    let origin = Origin::Engine(route);
    HandledReply { status, content_type, headers, body, origin }
}

fn stream(
    model: ModelId,
    pieces: Pieces,
    hold: Hold,
    deadline: Instant,
    record: Record,
) -> HandledBody {
    HandledBody::Stream(Box::new(HandledStream {
        model,
        deadline: Box::pin(sleep_until(deadline)),
        running: Some((pieces, hold)),
        record,
    }))
}

impl HandledStream {
    fn fail(&mut self, failure: Failure) -> Poll<Option<Result<Bytes, Failure>>> {
        self.running = None;
        self.record.failed(failure.kind());
        Poll::Ready(Some(Err(failure)))
    }
}

impl Stream for HandledStream {
    type Item = Result<Bytes, Failure>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some((chunks, _)) = &mut this.running else {
            return Poll::Ready(None);
        };
        if this.deadline.as_mut().poll(context).is_ready() {
            let deadline = Error::Deadline { model: this.model.clone() };
            return this.fail(deadline.into());
        }
        match chunks.as_mut().poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(piece))) => Poll::Ready(Some(Ok(piece))),
            Poll::Ready(Some(Err(failure))) => this.fail(failure),
            Poll::Ready(None) => {
                this.running = None;
                this.record.completed();
                Poll::Ready(None)
            }
        }
    }
}
