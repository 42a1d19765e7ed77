//! How long what is not ours works for a request.

use futures_util::{StreamExt, stream};
use roundhouse_containers::driven;
use roundhouse_types::Spent;
use tokio::time::Instant;

/// Counts how long an engine or a container works for a request: until it is dropped.
pub(crate) struct AtWork {
    /// Absent where nothing was done.
    spent: Option<Spent>,
    began: Instant,
}

impl AtWork {
    pub(crate) fn begin(spent: &Spent) -> Self {
        Self { spent: Some(spent.clone()), began: Instant::now() }
    }

    /// Counts nothing: it was not begun.
    pub(crate) fn nothing_was_done(&mut self) {
        self.spent = None;
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if let Some(spent) = self.spent.take() {
            spent.computed(self.began.elapsed());
        }
    }
}

/// A body that is worked at until its end, or until nobody wants more of it.
pub(crate) fn timed(pieces: driven::Pieces, at_work: AtWork) -> driven::Pieces {
    // In this order: what is asked is told to stop before it is counted.
    let running = Some((pieces, at_work));
    Box::pin(stream::unfold(running, async |running| {
        let (mut pieces, at_work) = running?;
        // The end lets go of both, and counts before it is told.
        let piece = pieces.next().await?;
        let more = piece.is_ok().then_some((pieces, at_work));
        Some((piece, more))
    }))
}
