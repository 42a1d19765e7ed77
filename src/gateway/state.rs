//! What the gateway is given: settings, endpoints, and the functions it calls.

mod adapters;
mod containers;
mod deferral;
mod facts;
pub mod naming;
mod platform;
mod steps;

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Method};
use roundhouse_serving::{Answer, Invocation};
use roundhouse_tenancy::{Accounts, Current, Identity, Pattern, Policy};
use roundhouse_traces::{Trace, Tracer};
use roundhouse_types::{Bytes, EndpointName, Failure, ModelId, TargetName, Tier, Version};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::capture::Capture;
use crate::cut::Cut;
use crate::sessions::Sessions;

pub use adapters::{ContainerAdapter, ContainerAdapters, Registration, Update};
pub use containers::{
    AskContainerFn, ContainerBody, ContainerMode, Containers, EndpointContainer, FromContainer,
    ToContainer,
};
pub use deferral::{DeferFn, Deferral, Deferred, DeferredInput, Done, Due};
pub use facts::{FactsFn, KvTokens, ModelFacts};
pub use naming::{Naming, Serves, Variant};
pub use platform::{MetricsFn, PlatformFace};
pub use steps::{ContainerCall, Steps};

/// Limits and switches of the data port.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayConfig {
    /// The largest request body; larger ones are refused with 413.
    pub body_limit: Bytes,
    /// The largest answer that a handler gives in pieces to a client that takes it whole.
    pub gathered_limit: Bytes,
    /// How long a request body may take to arrive before 408.
    pub body_timeout: Duration,
    /// How long an answer of `InvokeEndpoint` or `/invocations` may take, from the request's
    /// arrival to its last byte. 60 s is SageMaker's limit and boto3's read timeout.
    pub invoke_timeout: Duration,
    /// The same for OpenAI requests and for `InvokeEndpointWithResponseStream`.
    pub stream_timeout: Duration,
    /// How long a request waits for its model to load before it is told "not ready". Below
    /// boto3's 60 s read timeout, so that the client sees the answer.
    pub hold: Duration,
    /// How long a load or unload of the container contract may take.
    pub container_timeout: Duration,
    /// Silence on a stream of server-sent events after which a comment is sent.
    pub keep_alive: Duration,
    /// Requests under way at once, `/ping` and `/models` aside; more are refused with 503.
    pub max_requests: usize,
    /// Whether responses carry the `x-roundhouse-…` headers.
    pub served_headers: bool,
    /// Whether a tenant is told how long its answer waited and where the model was found only of
    /// targets whose first segment is its name: of others it would tell how much they are used.
    pub own_waits_only: bool,
    /// What is taken for the `Accept` of requests that have none or take anything.
    pub default_accept: Option<HeaderValue>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            // SageMaker's limit for real-time inference.
            body_limit: Bytes::mib(6),
            gathered_limit: Bytes::mib(32),
            body_timeout: Duration::from_secs(30),
            invoke_timeout: Duration::from_secs(60),
            // The OpenAI clients' own default.
            stream_timeout: Duration::from_secs(600),
            hold: Duration::from_secs(55),
            // SageMaker gives a load 360 s.
            container_timeout: Duration::from_secs(350),
            keep_alive: Duration::from_secs(15),
            max_requests: 1024,
            served_headers: true,
            own_waits_only: false,
            default_accept: None,
        }
    }
}

/// Answers one invocation, as `serving::Dispatcher::invoke` does. Dropping the future
/// cancels it.
pub type InvokeFn =
    Arc<dyn Fn(Invocation) -> BoxFuture<'static, Result<Answer, Failure>> + Send + Sync>;

/// Lists an endpoint's targets in name order.
pub type ListFn =
    Arc<dyn Fn(PageWanted) -> BoxFuture<'static, Result<TargetPage, Failure>> + Send + Sync>;

/// Finds one of an endpoint's targets; a `ModelNotFound` failure where there is none.
pub type FindFn =
    Arc<dyn Fn(TargetName) -> BoxFuture<'static, Result<Target, Failure>> + Send + Sync>;

/// Tells at once what a target is a loaded adapter of; `None` for all others.
pub type BaseFn = Arc<dyn Fn(&TargetName) -> Option<TargetName> + Send + Sync>;

/// Tells at once whether the server can answer.
pub type HealthFn = Arc<dyn Fn() -> Health + Send + Sync>;

/// Takes the record of a request that has ended. Must not block.
pub type AccessFn = Arc<dyn Fn(AccessRecord) + Send + Sync>;

/// All that the data port's routes work with. Owned by the router, never changed but for what
/// is offered.
pub struct GatewayState {
    /// Limits and switches.
    pub config: GatewayConfig,
    /// Tells who calls.
    pub identity: Arc<Identity>,
    /// What there is to ask and who may ask it. Replaced when the settings change; a request sees
    /// what was in force when it came.
    pub offered: Arc<Current<Offered>>,
    /// Answers invocations.
    pub invoke: InvokeFn,
    /// Tenants' limits and usage.
    pub accounts: Arc<Accounts>,
    /// Asked by `/ping`.
    pub health: HealthFn,
    /// Told about every request at its end.
    pub access: AccessFn,
    /// Gives requests their places in traces.
    pub tracer: Tracer,
    /// Takes requests whose callers do not wait, where an endpoint does.
    pub defer: Option<DeferFn>,
    /// The container contract, where it is switched on.
    pub container: Option<ContainerFace>,
    /// Stateful sessions.
    pub sessions: Sessions,
    /// Tells when what is under way must end.
    pub cut: Cut,
    /// What a platform asks beside, where one runs this server as its container.
    pub platform: Option<PlatformFace>,
}

/// What there is to ask and who may ask it: replaced together, so that no request sees the one
/// without the other.
#[derive(Default)]
pub struct Offered {
    /// The configured endpoints; names are unique.
    pub endpoints: Vec<EndpointFace>,
    /// Who may use what of them.
    pub policy: Arc<Policy>,
}

/// An endpoint as the gateway sees it.
pub struct EndpointFace {
    /// Its name.
    pub name: EndpointName,
    /// Lists what its store holds.
    pub list: ListFn,
    /// Finds one target.
    pub find: FindFn,
    /// Tells loaded adapters from other targets.
    pub base: BaseFn,
    /// Tells what is known of loaded models.
    pub facts: FactsFn,
    /// Whether its targets may be handlers or external engines: then bodies are read when the model
    /// is known.
    pub handlers: bool,
    /// Whether its targets may be external engines: then OpenAI's bodies are, too.
    pub engines: bool,
    /// What requests can name beside targets.
    pub naming: Naming,
    /// What is kept of SageMaker's operations, its OpenAI route included; absent is nothing.
    pub capture: Option<Capture>,
    /// What answers in place of targets of a store; absent where there is one.
    pub containers: Option<Containers>,
}

/// Which targets a page shall have.
#[derive(Debug, Clone, PartialEq)]
pub struct PageWanted {
    /// Only names behind this one.
    pub after: Option<String>,
    /// So many at most; one at least.
    pub limit: usize,
    /// Only names that one of these covers; absent is all. They are for the endpoint that is asked.
    pub only: Option<Vec<Pattern>>,
}

/// A page of targets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetPage {
    /// In name order.
    pub targets: Vec<Target>,
    /// Whether others follow.
    pub more: bool,
}

/// A target that an endpoint's store holds, loaded or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What requests call it.
    pub name: TargetName,
    /// When it was last changed, where the store says so.
    pub modified: Option<SystemTime>,
}

/// Whether the server can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Healthy,
    /// It cannot, and why: a failed device, a shutdown under way.
    Unhealthy(String),
}

/// The container contract's settings and its models.
pub struct ContainerFace {
    /// Whether models are loaded and unloaded by it; where not, adapters alone are.
    pub loads: bool,
    /// Every model's `url` must resolve, links followed, to somewhere below this folder.
    pub models_root: PathBuf,
    /// The models.
    pub models: Arc<dyn ContainerModels>,
    /// The adapters.
    pub adapters: Arc<dyn ContainerAdapters>,
    /// Whether they may be handlers.
    pub handlers: bool,
}

/// The models that the container contract loads and unloads. Implemented by the server;
/// tests replace it.
pub trait ContainerModels: Send + Sync {
    /// Loads the files at `path` under a name; `url` is kept for listings. The path is
    /// checked and canonical. Concurrent loads of one name are one load; one of them says
    /// `Loaded`. Dropping the future does not abandon the load.
    fn load(
        &self,
        name: String,
        url: String,
        path: PathBuf,
    ) -> BoxFuture<'static, Result<LoadOutcome, Failure>>;

    /// The loaded models, in any order. Never waits.
    fn list(&self) -> Vec<ContainerModel>;

    /// One loaded model. Never waits.
    fn get(&self, name: &str) -> Option<ContainerModel>;

    /// Unloads a model and returns when its memory is free; `false` where it was not loaded.
    fn unload(&self, name: &str) -> BoxFuture<'static, Result<bool, Failure>>;
}

/// What became of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadOutcome {
    /// It is loaded now.
    Loaded,
    /// It was loaded before.
    AlreadyLoaded,
    /// There is no memory for it now.
    NoMemory,
}

/// A model that the container contract has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerModel {
    /// The name the platform gave it.
    pub name: String,
    /// The `url` it was loaded from, as it was given.
    pub url: String,
    /// What invocations call it.
    pub model: ModelId,
}

/// One request, as the access log has it. Durations serialise as milliseconds, absent
/// facts as `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessRecord {
    /// When the request's headers had been read, in seconds since 1970.
    #[serde(serialize_with = "unix_seconds")]
    pub time: SystemTime,
    /// What `x-amzn-RequestId` says.
    #[serde(serialize_with = "text")]
    pub request_id: Uuid,
    /// Its place in a trace.
    #[serde(rename = "trace_id", serialize_with = "trace_id")]
    pub trace: Option<Trace>,
    /// The request's method.
    #[serde(serialize_with = "text")]
    pub method: Method,
    /// The name of the route, not the path.
    pub route: &'static str,
    /// Who called; nobody where requests carry no identity.
    pub tenant: Option<String>,
    /// By which credential: the id of a key, never a secret.
    pub credential: Option<Arc<str>>,
    /// The endpoint asked.
    pub endpoint: Option<EndpointName>,
    /// The target that was asked.
    pub target: Option<TargetName>,
    /// What the client called it, where that is an alias.
    pub alias: Option<TargetName>,
    /// The production variant that answered, of SageMaker's operations.
    pub variant: Option<Arc<str>>,
    /// The inference component that did.
    pub component: Option<Arc<str>>,
    /// The container behind the endpoint that was asked last.
    pub container: Option<TargetName>,
    /// What the client called the request.
    pub inference_id: Option<Arc<str>>,
    /// The version that answered.
    pub version: Option<Version>,
    /// Where the model was found.
    pub tier: Option<Tier>,
    /// How long the request waited for anything but a load.
    #[serde(rename = "queue_ms", serialize_with = "milliseconds")]
    pub queue: Option<Duration>,
    /// How long it waited for a load.
    #[serde(rename = "load_ms", serialize_with = "milliseconds")]
    pub load: Option<Duration>,
    /// From arrival to the first generated token.
    #[serde(rename = "first_token_ms", serialize_with = "milliseconds")]
    pub first_token: Option<Duration>,
    /// From arrival to the last byte, or to the client's leaving.
    #[serde(rename = "total_ms", serialize_with = "milliseconds")]
    pub total: Option<Duration>,
    /// Tokens of the prompts.
    pub tokens_in: Option<usize>,
    /// Tokens generated.
    pub tokens_out: Option<usize>,
    /// Bytes of the request body that were read.
    pub bytes_in: u64,
    /// Bytes of the response body.
    pub bytes_out: u64,
    /// The HTTP status.
    pub status: u16,
    /// Whether the response went out to its end; `false` where the client left or a stream
    /// was cut.
    pub complete: bool,
    /// What its spans need beside; of requests that are recorded.
    #[serde(skip)]
    pub steps: Option<Box<Steps>>,
}

fn unix_seconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_f64(since.as_secs_f64())
}

fn text<S: Serializer>(it: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(it)
}

fn trace_id<S: Serializer>(trace: &Option<Trace>, serializer: S) -> Result<S::Ok, S::Error> {
    trace.as_ref().map(Trace::id).serialize(serializer)
}

fn milliseconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serializer.serialize_f64(duration.as_secs_f64() * 1e3),
        None => serializer.serialize_none(),
    }
}
