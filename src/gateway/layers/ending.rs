//! The end of a request: its answer's body on its way out, and its record.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::BodyDataStream;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use super::Notes;
use crate::state::AccessFn;

/// Ends a request's record exactly once, when it is dropped.
pub(super) struct Ending {
    pub(super) notes: Notes,
    pub(super) access: AccessFn,
    /// The body's length, where it is known: nobody polls such a body past its last byte.
    pub(super) length: Option<u64>,
    pub(super) started: bool,
    pub(super) complete: bool,
}

impl Ending {
    fn piece(&mut self, length: usize) {
        let elapsed = self.notes.0.arrived.elapsed();
        let mut record = self.notes.lock();
        record.bytes_out += length as u64;
        if !self.started {
            self.started = true;
            self.notes.0.route().first_byte(elapsed);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let elapsed = self.notes.0.arrived.elapsed();
        let record = {
            let mut record = self.notes.lock();
            record.total = Some(elapsed);
            // Of what has no count of its own, such as labels, what its model was given to read.
            let read = usize::try_from(self.notes.0.meter.spent().tokens_in()).unwrap_or_default();
            record.tokens_in = record.tokens_in.or((read > 0).then_some(read));
            if let Some(steps) = &mut record.steps {
                steps.compute = self.notes.0.meter.spent().compute();
            }
            record.complete =
                self.complete || self.length.is_some_and(|length| record.bytes_out >= length);
            record.clone()
        };
        // What was not settled before its last byte: errors, cut streams, clients that left.
        let is_good = record.complete && record.status < 400;
        drop(self.notes.0.meter.settle(&record, is_good, 0));
        self.notes.0.route().ended(record.status, elapsed);
        (self.access)(record);
    }
}

/// A response's body on its way out.
pub(super) struct Observed {
    pub(super) body: BodyDataStream,
    pub(super) ending: Ending,
}

impl Stream for Observed {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let polled = this.body.poll_next_unpin(context);
        match &polled {
            Poll::Ready(Some(Ok(piece))) => this.ending.piece(piece.len()),
            Poll::Ready(None) => this.ending.complete = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }
}
