//! How many connections a port holds, and who makes room for one more.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::Service;
use tracing::warn;

/// Descriptors of the process beside one port's connections: files, sockets to stores, other ports.
const DESCRIPTORS_BESIDE: u64 = 1024;

/// How long a client may leave lying what it could have taken of its answer, and keep its place.
const UNTAKEN_MOST: Duration = Duration::from_secs(30);

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
/// 3. One with a request under way stays for as long as the answer may take. Where it is older than
///    that, or its client has not taken for half a minute what there is of the answer, it leaves,
///    too: asking once is no way to keep a place for ever. Its oldest request counts.
/// 4. If none may be asked to leave, the newcomer is refused.
pub(crate) struct Connections {
    most: usize,
    /// The longest that a request may take and keep its connection's place.
    grace: Duration,
    began: Instant,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    places: HashMap<u64, Arc<State>>,
    next: u64,
}

struct State {
    requests: Mutex<Requests>,
    leave: CancellationToken,
}

/// What is under way on a connection. Times are those of the port.
struct Requests {
    /// In the order in which they came. One or a few: what is over leaves its room to the next one.
    under_way: Vec<Request>,
    next: u64,
    /// When it had one last, or came.
    idle_since: Duration,
}

/// A request whose answer has not gone out.
struct Request {
    id: u64,
    began: Duration,
    /// Since when there is some of its answer that the client does not take.
    untaken_since: Option<Duration>,
}

impl State {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        // A panic while it was held leaves whole entries behind.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when nothing is under way; absent where something is.
    fn idle_since(&self) -> Option<Duration> {
        let requests = self.requests();
        requests.under_way.is_empty().then_some(requests.idle_since)
    }

    /// When its oldest request began, where that has had its time.
    fn overdue_since(&self, now: Duration, grace: Duration) -> Option<Duration> {
        let requests = self.requests();
        let oldest = requests.under_way.first()?;
        let most = grace.min(UNTAKEN_MOST);
        let untaken = oldest.untaken_since.is_some_and(|it| now.saturating_sub(it) >= most);
        (untaken || now.saturating_sub(oldest.began) >= grace).then_some(oldest.began)
    }
}

/// A connection's place; dropped, it is free.
pub(crate) struct Place {
    connections: Arc<Connections>,
    id: u64,
    state: Arc<State>,
}

impl Connections {
    /// Room for so many, whose requests take no longer than `grace`.
    pub(crate) fn new(most: usize, grace: Duration) -> Arc<Self> {
        Arc::new(Self { most, grace, began: Instant::now(), open: Mutex::default() })
    }

    /// A place for a newcomer; `None` where no connection may be asked to leave.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open();
        if open.places.len() >= self.most && !self.leave_one(&mut open) {
            return None;
        }
        let id = open.next;
        open.next += 1;
        let state = Arc::new(State {
            requests: Mutex::new(Requests {
                under_way: Vec::new(),
                next: 0,
                idle_since: self.now(),
            }),
            leave: CancellationToken::new(),
        });
        open.places.insert(id, state.clone());
        Some(Place { connections: self.clone(), id, state })
    }

    /// Has one leave that may, where file descriptors ran out before places did.
    pub(crate) fn make_room(&self) {
        self.leave_one(&mut self.open());
    }

    /// Tells the one that has been idle for longest to leave, or where none is idle the one whose
    /// request is the most overdue; false where there is none. Its place is free at once.
    fn leave_one(&self, open: &mut Open) -> bool {
        let longest = |since: &dyn Fn(&State) -> Option<Duration>| {
            let may_leave = open.places.iter().filter_map(|(id, it)| Some((since(it)?, *id)));
            may_leave.min().map(|(_, id)| id)
        };
        let overdue = || {
            let now = self.now();
            longest(&|it| it.overdue_since(now, self.grace))
        };
        let Some(id) = longest(&State::idle_since).or_else(overdue) else {
            return false;
        };
        if let Some(state) = open.places.remove(&id) {
            state.leave.cancel();
        }
        true
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // A panic while it was held leaves whole entries behind.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let busy = Busy::begin(self.connections.clone(), self.state.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            busy.lies_untaken(true);
            Ok(answer.map(|body| Counted { body, busy }))
        })
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
    id: u64,
}

impl Busy {
    fn begin(connections: Arc<Connections>, state: Arc<State>) -> Self {
        let began = connections.now();
        let mut requests = state.requests();
        let id = requests.next;
        requests.next += 1;
        requests.under_way.push(Request { id, began, untaken_since: None });
        drop(requests);
        Self { connections, state, id }
    }

    /// Says whether it is the client that is waited for, from now on.
    fn lies_untaken(&self, is_untaken: bool) {
        let now = self.connections.now();
        let mut requests = self.state.requests();
        if let Some(request) = requests.under_way.iter_mut().find(|it| it.id == self.id) {
            request.untaken_since = is_untaken.then_some(now);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut requests = self.state.requests();
        requests.idle_since = self.connections.now();
        requests.under_way.retain(|it| it.id != self.id);
    }
}

/// An answer's body, which is under way until it is dropped.
pub(crate) struct Counted {
    body: Body,
    busy: Busy,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // It is asked for more only when the client takes what it was given.
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.busy.lies_untaken(frame.is_ready());
        frame
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

    const GRACE: Duration = Duration::from_secs(300);

    async fn busy(place: &Place) -> Response<Counted> {
        let service = tower::service_fn(async |_: Request| {
            Ok::<_, Infallible>(Response::new(Body::from("here")))
        });
        place.counting(service).oneshot(Request::new(Body::empty())).await.unwrap()
    }

    #[tokio::test]
    async fn the_one_that_was_idle_for_longest_makes_room_and_busy_ones_stay() {
        let connections = Connections::new(3, GRACE);
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
    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_its_answer_makes_room_before_long() {
        let connections = Connections::new(2, GRACE);
        let places: Vec<_> = (0..2).map(|_| connections.enter().unwrap()).collect();
        let untaken = busy(&places[1]).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        let later = [busy(&places[0]).await, busy(&places[1]).await];
        tokio::time::advance(UNTAKEN_MOST - Duration::from_secs(1)).await;
        let newcomer = connections.enter().unwrap();
        places[1].left().await;
        assert!(!places[0].state.leave.is_cancelled());
        drop((untaken, later, newcomer));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_keeps_its_place_for_as_long_as_its_answer_may_take() {
        let connections = Connections::new(1, GRACE);
        let place = connections.enter().unwrap();
        let service = tower::service_fn(async |_: Request| {
            let slow = futures_util::stream::pending::<Result<Bytes, Infallible>>();
            Ok::<_, Infallible>(Response::new(Body::from_stream(slow)))
        });
        let asked = place.counting(service).oneshot(Request::new(Body::empty()));
        let mut answer = asked.await.unwrap();
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(answer.body_mut()).poll_frame(&mut context).is_pending());
        tokio::time::advance(GRACE / 2).await;
        // A younger one does not make it young.
        let younger = busy(&place).await;
        drop(younger);
        tokio::time::advance(GRACE / 2 - Duration::from_millis(1)).await;
        assert!(connections.enter().is_none(), "its answer may still come");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(connections.enter().is_some());
        place.left().await;
        drop(answer);
    }
}
