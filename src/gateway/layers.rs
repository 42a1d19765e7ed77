//! What surrounds every request, in one place.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use roundhouse_serving::Served;
use roundhouse_tenancy::{Caller, Durable};
use roundhouse_traces::{Context as TraceContext, Trace};
use roundhouse_types::{ErrorKind, Failure, ModelId, Places, RetryHint, TargetName, TenantName};
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;
use uuid::Uuid;

use crate::error::{Error, Face};
use crate::identify::{Door, identify};
use crate::meter::Meter;
use crate::metrics;
use crate::router::{Gateway, face_of};
use crate::state::{AccessFn, AccessRecord, Steps};

mod calling;
mod held;

pub(crate) use calling::Calling;
use held::Held;

/// What boto3 shows as `ResponseMetadata.RequestId`.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
/// The same for clients of OpenAI's API and of multi-model-server.
const PLAIN_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What SageMaker's health checks ask for stays outside the limit of requests under way.
const HEALTH: [&str; 4] = ["/ping", "/health", "/models", "/metrics"];

/// How much later than the last deadline a stream's place is taken from a client that does not read:
/// who does is told how it ended.
const GRACE: Duration = Duration::from_secs(1);
/// The longest path that a span shows, in bytes.
const PATH_MOST: usize = 256;

/// Puts the layers around the routes, outermost last:
///
/// 1. `limit` is innermost, so that a refusal is observed like any answer.
/// 2. `identify` stands around it: who is not let in takes nobody's place.
/// 3. The panic layer stands around it: a panic anywhere below becomes a 500.
/// 4. `observe` is outermost, so that no response lacks a request id or an access record,
///    not even that of a panic.
pub(crate) fn around(router: Router, gateway: &Gateway) -> Router {
    let config = &gateway.config;
    let longest = config.stream_timeout.max(config.invoke_timeout).max(config.container_timeout);
    let (most, places) = (config.max_requests, Mutex::default());
    let limit_state = Arc::new(UnderWay { most, longest: longest + GRACE, places });
    router
        .layer(from_fn_with_state(limit_state, limit))
        .layer(from_fn_with_state(Door::new(gateway), identify))
        .layer(CatchPanicLayer::custom(|_| {
            Error::internal("the request handler panicked").respond(Face::Endpoint)
        }))
        .layer(from_fn_with_state(gateway.clone(), observe))
}

/// Puts the layers around routes of requests whose callers are known and do not wait: those of
/// [`around`] but for the door, and for the places of people who do.
pub(crate) fn around_known(router: Router, gateway: &Gateway) -> Router {
    router
        .layer(CatchPanicLayer::custom(|_| {
            Error::internal("the request handler panicked").respond(Face::Container)
        }))
        .layer(from_fn_with_state(gateway.clone(), observe))
}

/// The requests under way.
struct UnderWay {
    most: usize,
    /// The longest that one may take.
    longest: Duration,
    /// Held for a look-up and an addition.
    places: Mutex<Places<TenantName>>,
}

impl UnderWay {
    fn places(&self) -> MutexGuard<'_, Places<TenantName>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them; dropped at its end.
struct Place {
    under_way: Arc<UnderWay>,
    tenant: Option<TenantName>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.under_way.places().give(self.tenant.as_ref());
    }
}

async fn limit(State(under_way): State<Arc<UnderWay>>, request: Request, next: Next) -> Response {
    if HEALTH.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let tenant = request.extensions().get::<Caller>().and_then(|caller| caller.tenant.clone());
    if !under_way.places().take(under_way.most, tenant.as_ref()) {
        let failure = Failure::new(ErrorKind::Overloaded, "too many requests are under way")
            .with_retry(RetryHint::After(Duration::from_secs(1)));
        return Error::Failed(failure).respond(face_of(request.uri().path()));
    }
    let until = Instant::now() + under_way.longest;
    let notes = request.extensions().get::<Notes>().cloned();
    let place = Place { under_way, tenant };
    // A stream is under way until its body ends, so the body owns the place.
    let response = next.run(request).await;
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let held = Held::new(place, until, move || {
        // Nobody waits for its line: the client has not read the answer that it would be behind.
        drop(notes.map(|notes| notes.settle(false, 0)));
    });
    response.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |piece| {
            let _held = &held;
            piece
        }))
    })
}

async fn observe(State(gateway): State<Gateway>, mut request: Request, next: Next) -> Response {
    let id = Uuid::new_v4();
    let trace = gateway.tracer.accept(request.headers());
    let span = match &trace {
        // Whoever follows a trace wants the lines that belong to it.
        Some(trace) => {
            tracing::info_span!("request", %id, method = %request.method(), trace_id = %trace.id())
        }
        None => tracing::debug_span!("request", %id, method = %request.method()),
    };
    let notes = Notes::new(id, &request, trace);
    request.extensions_mut().insert(notes.clone());
    // A client that leaves before the headers drops this future, and the ending with it.
    let mut ending = Ending {
        notes,
        access: gateway.access.clone(),
        length: None,
        started: false,
        complete: false,
    };
    let mut response = next.run(request).instrument(span).await;
    ending.notes.lock().status = response.status().as_u16();
    let text = HeaderValue::from_str(&id.to_string()).expect("a UUID is ASCII");
    response.headers_mut().insert(REQUEST_ID, text.clone());
    response.headers_mut().insert(PLAIN_REQUEST_ID, text);
    // The observed body has no length of its own; a known one is said beforehand.
    ending.length = response.body().size_hint().exact();
    if let Some(length) = ending.length {
        // A HEAD's answer has its length said already, and no body.
        let entry = response.headers_mut().entry(header::CONTENT_LENGTH);
        entry.or_insert(HeaderValue::from(length));
    }
    response.map(|body| Body::from_stream(Observed { body: body.into_data_stream(), ending }))
}

/// What a request has taken so far.
pub(crate) struct Taken {
    pub(crate) target: Option<TargetName>,
    pub(crate) total: Duration,
    pub(crate) queue: Duration,
    pub(crate) load: Duration,
    pub(crate) tokens_in: Option<usize>,
    pub(crate) tokens_out: Option<usize>,
}

/// What is learned about a request while it is served; read once, at its end. Shared by
/// the request's handler, its response's body and nobody else.
#[derive(Clone)]
pub(crate) struct Notes(Arc<Shared>);

struct Shared {
    arrived: Instant,
    record: Mutex<AccessRecord>,
    meter: Meter,
}

impl Notes {
    pub(crate) fn new(request_id: Uuid, request: &Request, trace: Option<Trace>) -> Self {
        let steps = trace.as_ref().filter(|trace| trace.is_recorded()).map(|_| {
            let path = request.uri().path();
            let path = path[..path.floor_char_boundary(PATH_MOST)].to_owned();
            Box::new(Steps { path, ..Steps::default() })
        });
        let record = AccessRecord {
            time: SystemTime::now(),
            request_id,
            trace,
            method: request.method().to_string(),
            route: "unmatched",
            tenant: None,
            credential: None,
            endpoint: None,
            target: None,
            alias: None,
            variant: None,
            component: None,
            container: None,
            inference_id: None,
            version: None,
            tier: None,
            queue: None,
            load: None,
            first_token: None,
            total: None,
            tokens_in: None,
            tokens_out: None,
            bytes_in: 0,
            bytes_out: 0,
            // What a proxy logs for a client that left before the answer.
            status: 499,
            complete: false,
            steps,
        };
        let (record, meter) = (Mutex::new(record), Meter::default());
        Self(Arc::new(Shared { arrived: Instant::now(), record, meter }))
    }

    /// When the request's headers had been read.
    pub(crate) fn arrived(&self) -> Instant {
        self.0.arrived
    }

    /// The route that answers; what is asked for the request belongs to its trace from here on.
    pub(crate) fn route(&self, route: &'static str, headers: &mut HeaderMap) {
        let mut record = self.lock();
        record.route = route;
        match &record.trace {
            Some(trace) => trace.context().write(headers),
            // What was no context is not passed on as one.
            None => TraceContext::erase(headers),
        }
    }

    pub(crate) fn caller(&self, caller: &Caller) {
        let mut record = self.lock();
        record.tenant = caller.tenant.as_ref().map(ToString::to_string);
        record.credential = caller.credential.clone();
    }

    pub(crate) fn read(&self, bytes: u64) {
        self.lock().bytes_in = bytes;
    }

    pub(crate) fn request_id(&self) -> Uuid {
        self.lock().request_id
    }

    pub(crate) fn bytes_in(&self) -> u64 {
        self.lock().bytes_in
    }

    /// Tokens of the prompt and of the answer.
    #[cfg(test)]
    pub(crate) fn tokens(&self) -> (Option<usize>, Option<usize>) {
        let record = self.lock();
        (record.tokens_in, record.tokens_out)
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.0.meter
    }

    /// Settles the request's account, unless that was done; `unsent` bytes of its answer are on
    /// their way.
    pub(crate) fn settle(&self, complete: bool, unsent: u64) -> Durable {
        if self.0.meter.is_settled() {
            return Durable::now();
        }
        let record = self.lock().clone();
        self.0.meter.settle(&record, complete, unsent)
    }

    pub(crate) fn asked(&self, model: &ModelId) {
        let mut record = self.lock();
        record.endpoint = Some(model.endpoint.clone());
        record.target = Some(model.target.clone());
        record.alias = None;
    }

    /// Its model is asked for; where there are several, the first.
    pub(crate) fn invoked(&self) {
        let elapsed = self.0.arrived.elapsed();
        if let Some(steps) = &mut self.lock().steps {
            steps.invoked.get_or_insert(elapsed);
        }
    }

    /// What was asked stands for this target.
    pub(crate) fn routed(&self, model: &ModelId) {
        let mut record = self.lock();
        record.alias = record.target.replace(model.target.clone());
    }

    /// The production variant that answers.
    pub(crate) fn variant(&self, name: &Arc<str>) {
        self.lock().variant = Some(name.clone());
    }

    /// The inference component that does.
    pub(crate) fn component(&self, name: &str) {
        self.lock().component = Some(name.into());
    }

    /// The container behind the endpoint that is asked.
    pub(crate) fn container(&self, name: &TargetName) {
        self.lock().container = Some(name.clone());
    }

    /// What the client calls the request.
    pub(crate) fn inference_id(&self, id: &str) {
        self.lock().inference_id = Some(id.into());
    }

    pub(crate) fn served(&self, served: &Served) {
        let mut record = self.lock();
        record.version = Some(served.version.clone());
        record.tier = Some(served.tier);
        record.queue = Some(served.queue);
        record.load = Some(served.load);
    }

    /// The model that was asked.
    pub(crate) fn model(&self) -> Option<ModelId> {
        let record = self.lock();
        let named = record.endpoint.clone().zip(record.target.clone());
        named.map(|(endpoint, target)| ModelId { endpoint, target })
    }

    /// The target that was asked.
    pub(crate) fn target(&self) -> Option<TargetName> {
        self.lock().target.clone()
    }

    /// What it has taken so far.
    pub(crate) fn taken(&self) -> Taken {
        let record = self.lock();
        Taken {
            target: record.target.clone(),
            total: self.0.arrived.elapsed(),
            queue: record.queue.unwrap_or_default(),
            load: record.load.unwrap_or_default(),
            tokens_in: record.tokens_in,
            tokens_out: record.tokens_out,
        }
    }

    pub(crate) fn prompt(&self, tokens: usize) {
        self.lock().tokens_in = Some(tokens);
    }

    /// Counts what one more model read for it.
    pub(crate) fn add_prompt(&self, tokens: usize) {
        *self.lock().tokens_in.get_or_insert(0) += tokens;
    }

    /// How long ago the request came.
    pub(crate) fn elapsed(&self) -> Duration {
        self.0.arrived.elapsed()
    }

    /// The first token came so long after the request; what was noted before holds.
    pub(crate) fn first_token(&self, elapsed: Duration) {
        self.lock().first_token.get_or_insert(elapsed);
    }

    /// Counts generated tokens; the first ones also stop the first token's clock.
    pub(crate) fn generated(&self, tokens: usize) {
        if tokens == 0 {
            return;
        }
        let elapsed = self.0.arrived.elapsed();
        let mut record = self.lock();
        record.first_token.get_or_insert(elapsed);
        *record.tokens_out.get_or_insert(0) += tokens;
    }

    fn lock(&self) -> MutexGuard<'_, AccessRecord> {
        // A panic while it was held leaves plain facts behind, still worth logging.
        self.0.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a request's record exactly once, when it is dropped.
struct Ending {
    notes: Notes,
    access: AccessFn,
    /// The body's length, where it is known: nobody polls such a body past its last byte.
    length: Option<u64>,
    started: bool,
    complete: bool,
}

impl Ending {
    fn piece(&mut self, length: usize) {
        let elapsed = self.notes.0.arrived.elapsed();
        let mut record = self.notes.lock();
        record.bytes_out += length as u64;
        if !self.started {
            self.started = true;
            metrics::first_byte(record.route, elapsed);
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
        metrics::request_ended(record.route, record.status, elapsed);
        (self.access)(record);
    }
}

/// A response's body on its way out.
struct Observed {
    body: BodyDataStream,
    ending: Ending,
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
