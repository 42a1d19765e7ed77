//! The streams of events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::frames::{Frame, missed};
use super::{Live, Reading, Taken, Wants};
use crate::admin::{Pass, Refusal};

/// Silence on an event stream after which a comment is sent, so that proxies keep it open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The state, what changes in it, samples and decisions. Ends where the reader falls behind.
pub(in crate::admin) async fn live(
    State(live): State<Arc<Live>>,
    Extension(pass): Extension<Pass>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    answer(&live, Wants::All, &headers, pass).await
}

/// Decisions as they are made. A reader that falls behind is told how many it missed.
pub(in crate::admin) async fn events(
    State(live): State<Arc<Live>>,
    Extension(pass): Extension<Pass>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    answer(&live, Wants::Decisions, &headers, pass).await
}

async fn answer(
    live: &Live,
    wants: Wants,
    headers: &HeaderMap,
    pass: Pass,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>> + use<>>, Refusal> {
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let Reading { first, at, rest, taken } = live.read(wants, seen.map(str::to_owned)).await?;
    let reader = Reader { rest, at, wants, taken, holds: Box::new(move || pass.holds()) };
    let rest = stream::unfold(reader, async |mut reader| {
        reader.next().await.map(|frames| (stream::iter(frames), reader))
    });
    let frames = stream::iter(first).chain(rest.flatten());
    Ok(Sse::new(frames.map(Into::into)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// One who reads what all are told.
pub(super) struct Reader {
    pub(super) rest: Receiver<Frame>,
    /// The number of the last decision that it was told.
    pub(super) at: u64,
    pub(super) wants: Wants,
    pub(super) taken: Arc<Taken>,
    /// Whether it may still be told anything: asked before each frame, as keys are revoked while
    /// streams go on.
    pub(super) holds: Box<dyn Fn() -> bool + Send>,
}

impl Reader {
    /// What it is told next; before a decision, how many it missed. `None` where no more follows.
    pub(super) async fn next(&mut self) -> Option<Vec<Frame>> {
        self.taken.waits();
        let frames = self.hear().await.filter(|_| (self.holds)());
        self.taken.is_given();
        frames
    }

    async fn hear(&mut self) -> Option<Vec<Frame>> {
        loop {
            let frame = match (self.rest.recv().await, self.wants) {
                (Ok(frame), _) => frame,
                // The next decision tells how many it were.
                (Err(RecvError::Lagged(_)), Wants::Decisions) => continue,
                (Err(_), _) => return None,
            };
            match (frame.id, self.wants) {
                (Some(id), _) => {
                    let gap = id.number.saturating_sub(self.at + 1);
                    self.at = id.number;
                    let gap = (gap > 0).then(|| missed(gap));
                    return Some(gap.into_iter().chain([frame]).collect());
                }
                (None, Wants::All) => return Some(vec![frame]),
                (None, Wants::Decisions) => {}
            }
        }
    }
}
