//! All completions of one request, with what they hold.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::stream::SelectAll;
use roundhouse_residency::Lease;
use roundhouse_types::{Failure, ModelId};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::admission::Permit;
use crate::choice::Choice;
use crate::metrics::Record;
use crate::{Error, Piece, ServedModel};

/// What a request holds while it is answered.
pub(crate) struct Hold {
    pub(crate) lease: Lease<ServedModel>,
    pub(crate) permit: Permit,
}

/// The merged pieces of a request's choices. It owns lease and permit: with the last choice's last
/// piece, at an error, at the deadline and when dropped, the sequences are aborted first and both
/// released then.
pub(crate) struct Completions {
    model: ModelId,
    deadline: Pin<Box<Sleep>>,
    /// Choices whose last piece has not gone out.
    unfinished: usize,
    /// Gone when the stream has ended.
    running: Option<Running>,
    record: Record,
}

/// The order of the fields is the order in which they are dropped.
struct Running {
    choices: SelectAll<Choice>,
    _hold: Hold,
}

impl Completions {
    pub(crate) fn new(
        model: ModelId,
        choices: Vec<Choice>,
        hold: Hold,
        deadline: Instant,
        record: Record,
    ) -> Self {
        let unfinished = choices.len();
        let choices = choices.into_iter().collect();
        Self {
            model,
            deadline: Box::pin(sleep_until(deadline)),
            unfinished,
            running: Some(Running { choices, _hold: hold }),
            record,
        }
    }

    fn end(&mut self) {
        self.running = None;
        self.record.completed();
    }

    fn fail(&mut self, failure: Failure) -> Poll<Option<Result<Piece, Failure>>> {
        self.running = None;
        self.record.failed(failure.kind());
        Poll::Ready(Some(Err(failure)))
    }
}

impl Stream for Completions {
    type Item = Result<Piece, Failure>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(running) = &mut this.running else {
            return Poll::Ready(None);
        };
        if this.deadline.as_mut().poll(context).is_ready() {
            let deadline = Error::Deadline { model: this.model.clone() };
            return this.fail(deadline.into());
        }
        match Pin::new(&mut running.choices).poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(piece))) => {
                this.record.piece(&piece);
                if piece.finished.is_some() {
                    this.unfinished = this.unfinished.saturating_sub(1);
                    // Who has every choice's end may leave without asking for the stream's.
                    if this.unfinished == 0 {
                        this.end();
                    }
                }
                Poll::Ready(Some(Ok(piece)))
            }
            Poll::Ready(Some(Err(failure))) => this.fail(failure),
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
        }
    }
}
