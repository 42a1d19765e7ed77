//! What surrounds every request, in one place.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use futures_util::{FutureExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use roundhouse_serving::Served;
use roundhouse_tenancy::{Caller, Durable};
use roundhouse_traces::{Context as TraceContext, Trace};
use roundhouse_types::{ErrorKind, Failure, ModelId, Places, RetryHint, TargetName, TenantName};
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};
use tracing::Instrument;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::error::{Error, Face};
use crate::identify::{Door, identify};
use crate::meter::Meter;
use crate::metrics::OfRoute;
use crate::router::{Gateway, face_of};
use crate::state::{AccessRecord, Steps};

mod calling;
mod ending;
mod held;

pub(crate) use calling::Calling;
use ending::{Ending, Observed};
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

/// The routes, and what surrounds each of their answers, outermost last:
///
/// 1. The limit is innermost, so that a refusal is observed like any answer.
/// 2. The door stands around it: who is not let in takes nobody's place.
/// 3. Around that a panic becomes a 500, wherever below it happens.
/// 4. `observed` is outermost, so that no response lacks a request id or an access record,
///    not even that of a panic.
///
/// All of them are one service: as layers of a router, each would be copied for each request, with all
/// that is in it.
struct Surrounded {
    gateway: Gateway,
    routes: Router,
    /// Absent where callers are known, and do not wait.
    door: Option<(Door, Arc<UnderWay>)>,
    /// In whose words a panic is told.
    panicked: Face,
    unmatched: Arc<OfRoute>,
}

/// Puts the layers around the routes.
pub(crate) fn around(routes: Router, gateway: &Gateway) -> Router {
    let config = &gateway.config;
    let longest = config.stream_timeout.max(config.invoke_timeout).max(config.container_timeout);
    let (most, places) = (config.max_requests, Mutex::default());
    let under_way = Arc::new(UnderWay { most, longest: longest + GRACE, places });
    let door = Some((Door::new(gateway), under_way));
    surround(gateway, routes, door, Face::Endpoint)
}

/// Puts the layers around routes of requests whose callers are known and do not wait: those of
/// [`around`] but for the door, and for the places of people who do.
pub(crate) fn around_known(routes: Router, gateway: &Gateway) -> Router {
    surround(gateway, routes, None, Face::Container)
}

fn surround(
    gateway: &Gateway,
    routes: Router,
    door: Option<(Door, Arc<UnderWay>)>,
    panicked: Face,
) -> Router {
    let (gateway, unmatched) = (gateway.clone(), Arc::new(OfRoute::new("unmatched")));
    let surrounded = Arc::new(Surrounded { gateway, routes, door, panicked, unmatched });
    Router::new().fallback_service(service_fn(move |request: Request| {
        let surrounded = Arc::clone(&surrounded);
        async move { Ok::<_, Infallible>(surrounded.observed(request).await) }
    }))
}

impl Surrounded {
    async fn observed(&self, mut request: Request) -> Response {
        let gateway = &self.gateway;
        let id = Uuid::new_v4();
        let trace = gateway.tracer.accept(request.headers());
        let span = match &trace {
            // Whoever follows a trace wants the lines that belong to it.
            Some(trace) => {
                tracing::info_span!("request", %id, method = %request.method(), trace_id = %trace.id())
            }
            None => tracing::debug_span!("request", %id, method = %request.method()),
        };
        let notes = Notes::new(id, &request, trace, &self.unmatched);
        request.extensions_mut().insert(notes.clone());
        // A client that leaves before the headers drops this future, and the ending with it.
        let mut ending = Ending {
            notes,
            access: gateway.access.clone(),
            length: None,
            started: false,
            complete: false,
        };
        let mut response = self.caught(request).instrument(span).await;
        ending.notes.lock().status = response.status().as_u16();
        response.headers_mut().insert(REQUEST_ID, ending.notes.shown_id());
        response.headers_mut().insert(PLAIN_REQUEST_ID, ending.notes.shown_id());
        // The observed body has no length of its own; a known one is said beforehand.
        ending.length = response.body().size_hint().exact();
        if let Some(length) = ending.length {
            // A HEAD's answer has its length said already, and no body.
            let entry = response.headers_mut().entry(header::CONTENT_LENGTH);
            entry.or_insert(HeaderValue::from(length));
        }
        response.map(|body| Body::from_stream(Observed { body: body.into_data_stream(), ending }))
    }

    async fn caught(&self, request: Request) -> Response {
        let answered = AssertUnwindSafe(self.let_in(request)).catch_unwind().await;
        answered.unwrap_or_else(|_| {
            Error::internal("the request handler panicked").respond(self.panicked)
        })
    }

    async fn let_in(&self, request: Request) -> Response {
        let Some((door, under_way)) = &self.door else { return self.routed(request).await };
        match identify(door, request).await {
            Ok(request) => self.placed(under_way, request).await,
            Err(refused) => refused,
        }
    }

    async fn placed(&self, under_way: &Arc<UnderWay>, request: Request) -> Response {
        if HEALTH.contains(&request.uri().path()) {
            return self.routed(request).await;
        }
        let tenant = request.extensions().get::<Caller>().and_then(|caller| caller.tenant.clone());
        if !under_way.places().take(under_way.most, tenant.as_ref()) {
            let failure = Failure::new(ErrorKind::Overloaded, "too many requests are under way")
                .with_retry(RetryHint::After(Duration::from_secs(1)));
            return Error::Failed(failure).respond(face_of(request.uri().path()));
        }
        let until = Instant::now() + under_way.longest;
        let notes = request.extensions().get::<Notes>().cloned();
        let place = Place { under_way: Arc::clone(under_way), tenant };
        // A stream is under way until its body ends, so the body owns the place.
        let response = self.routed(request).await;
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

    async fn routed(&self, request: Request) -> Response {
        let answered = self.routes.clone().oneshot(request).await;
        answered.unwrap_or_else(|never| match never {})
    }
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
    /// The request's id.
    shown: HeaderValue,
    record: Mutex<AccessRecord>,
    meter: Meter,
    unmatched: Arc<OfRoute>,
    /// Absent where no route answers.
    route: OnceLock<Arc<OfRoute>>,
}

impl Shared {
    fn route(&self) -> &OfRoute {
        self.route.get().unwrap_or(&self.unmatched)
    }
}

impl Notes {
    pub(crate) fn new(
        request_id: Uuid,
        request: &Request,
        trace: Option<Trace>,
        unmatched: &Arc<OfRoute>,
    ) -> Self {
        let steps = trace.as_ref().filter(|trace| trace.is_recorded()).map(|_| {
            let path = request.uri().path();
            let path = path[..path.floor_char_boundary(PATH_MOST)].to_owned();
            Box::new(Steps { path, ..Steps::default() })
        });
        let record = AccessRecord {
            time: SystemTime::now(),
            request_id,
            trace,
            method: request.method().clone(),
            route: unmatched.name,
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
        let shown = Hyphenated::from_uuid(request_id).to_string();
        Self(Arc::new(Shared {
            arrived: Instant::now(),
            shown: HeaderValue::from_str(&shown).expect("a UUID is ASCII"),
            record: Mutex::new(record),
            meter: Meter::default(),
            unmatched: Arc::clone(unmatched),
            route: OnceLock::new(),
        }))
    }

    /// When the request's headers had been read.
    pub(crate) fn arrived(&self) -> Instant {
        self.0.arrived
    }

    /// The route that answers; what is asked for the request belongs to its trace from here on.
    pub(crate) fn route(&self, route: &Arc<OfRoute>, headers: &mut HeaderMap) {
        let route = self.0.route.get_or_init(|| Arc::clone(route));
        let mut record = self.lock();
        record.route = route.name;
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

    /// The request's id as headers say it.
    pub(crate) fn shown_id(&self) -> HeaderValue {
        self.0.shown.clone()
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
        self.0.meter.settle(&self.lock(), complete, unsent)
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

    /// Asking its model failed.
    pub(crate) fn failed(&self, kind: ErrorKind) {
        if let Some(steps) = &mut self.lock().steps {
            steps.failed.get_or_insert(kind);
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
