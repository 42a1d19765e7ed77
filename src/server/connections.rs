//! How many connections a port holds, and who makes room for one more.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;
use tower::Service;
use tracing::warn;

/// Descriptors of the process beside one port's connections: files, sockets to stores, other ports.
const DESCRIPTORS_BESIDE: u64 = 1024;

/// Has the system allow as many file descriptors as so many connections need, as far as it may.
pub(crate) fn allow(connections: usize) {
    let wanted = DESCRIPTORS_BESIDE + connections as u64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|allowed| allowed >= wanted) {
        return;
    }
    let allowed = limit.maximum.map_or(wanted, |most| most.min(wanted));
    let raised = Rlimit { current: Some(allowed), maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of file descriptors stays as it is");
    } else if allowed < wanted {
        warn!(
            allowed,
            wanted,
            "listen.max_connections is more than the system's limit of file descriptors allows"
        );
    }
}

/// The connections of one port. Each has a place until it ends.
///
/// 1. No more than `most` have a place.
/// 2. Where one more comes, the one that has been idle for longest leaves: whoever holds connections
///    and asks nothing, or sends its headers by the byte, is in the way of its like only.
/// 3. One with a request under way stays; if all are, the newcomer is refused.
pub(crate) struct Connections {
    most: usize,
    began: Instant,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    places: HashMap<u64, Arc<State>>,
    next: u64,
}

struct State {
    /// Requests whose answer has not gone out.
    under_way: AtomicUsize,
    /// When it had one last, or came, in microseconds of the port's time.
    idle_since: AtomicU64,
    leave: CancellationToken,
}

/// A connection's place; dropped, it is free.
pub(crate) struct Place {
    connections: Arc<Connections>,
    id: u64,
    state: Arc<State>,
}

impl Connections {
    /// Room for so many.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, began: Instant::now(), open: Mutex::default() })
    }

    /// A place for a newcomer; `None` where all connections are busy.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open();
        if open.places.len() >= self.most && !leave_one(&mut open) {
            return None;
        }
        let id = open.next;
        open.next += 1;
        let state = Arc::new(State {
            under_way: AtomicUsize::new(0),
            idle_since: AtomicU64::new(self.now()),
            leave: CancellationToken::new(),
        });
        open.places.insert(id, state.clone());
        Some(Place { connections: self.clone(), id, state })
    }

    /// Has one that is idle leave, where file descriptors ran out before places did.
    pub(crate) fn make_room(&self) {
        leave_one(&mut self.open());
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // A panic while it was held leaves whole entries behind.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the one that has been idle for longest to leave; false where none is idle. Its place is
/// free at once.
fn leave_one(open: &mut Open) -> bool {
    let idle = open.places.iter().filter(|(_, it)| it.under_way.load(Ordering::Acquire) == 0);
    let longest = idle.min_by_key(|(id, it)| (it.idle_since.load(Ordering::Relaxed), **id));
    let Some(id) = longest.map(|(id, _)| *id) else {
        return false;
    };
    if let Some(state) = open.places.remove(&id) {
        state.leave.cancel();
    }
    true
}

impl Place {
    /// Returns when the connection is to leave.
    pub(crate) async fn left(&self) {
        self.state.leave.cancelled().await;
    }

    /// Answers as `inner` does, and counts what is under way.
    pub(crate) fn counting<S>(&self, inner: S) -> Counting<S> {
        Counting { inner, connections: self.connections.clone(), state: self.state.clone() }
    }
}

/// A service that counts what is under way on its connection.
#[derive(Clone)]
pub(crate) struct Counting<S> {
    inner: S,
    connections: Arc<Connections>,
    state: Arc<State>,
}

impl<S, R> Service<R> for Counting<S>
where
    S: Service<R, Response = Response, Future: Send + 'static>,
{
    type Response = Response<Counted>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Counted>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.state.under_way.fetch_add(1, Ordering::AcqRel);
        let busy = Busy { connections: self.connections.clone(), state: self.state.clone() };
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Counted { body, _busy: busy })) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().places.remove(&self.id);
    }
}

/// A request under way.
struct Busy {
    connections: Arc<Connections>,
    state: Arc<State>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.idle_since.store(self.connections.now(), Ordering::Relaxed);
        self.state.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An answer's body, which is under way until it is dropped.
pub(crate) struct Counted {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::extract::Request;
    use tower::ServiceExt;

    use super::*;

    async fn busy(place: &Place) -> Response<Counted> {
        let service = tower::service_fn(async |_: Request| {
            Ok::<_, Infallible>(Response::new(Body::from("here")))
        });
        place.counting(service).oneshot(Request::new(Body::empty())).await.unwrap()
    }

    #[tokio::test]
    async fn the_one_that_was_idle_for_longest_makes_room_and_busy_ones_stay() {
        let connections = Connections::new(3);
        let places: Vec<_> = (0..3).map(|_| connections.enter().unwrap()).collect();
        let answer = busy(&places[0]).await;
        let fourth = connections.enter().unwrap();
        places[1].left().await;
        assert!(!places[2].state.leave.is_cancelled());
        // Its place was free already: another one's is not taken for it.
        drop(busy(&places[2]).await);
        let fifth = connections.enter().unwrap();
        fourth.left().await;
        let answers = [busy(&places[2]).await, busy(&fifth).await];
        assert!(connections.enter().is_none(), "all are busy");
        drop(answer);
        assert!(connections.enter().is_some());
        places[0].left().await;
        drop(answers);
        drop((places, fourth, fifth));
        assert_eq!(connections.open().places.len(), 0);
    }
}
