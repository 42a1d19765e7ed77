//! Containers behind an endpoint, as the gateway asks them.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use http::{HeaderMap, StatusCode};
use roundhouse_types::{Failure, TargetName, TenantName};
use tokio::time::Instant;

/// The containers that answer for an endpoint in place of targets of a store.
#[derive(Clone)]
pub struct Containers {
    /// How they are asked.
    pub mode: ContainerMode,
    /// One at least, in the order of the pipeline, with names that differ.
    pub list: Vec<Arc<EndpointContainer>>,
}

/// How the containers of an endpoint are asked (SageMaker's `InferenceExecutionConfig`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ContainerMode {
    /// Each request names one of them.
    Direct,
    /// A pipeline: the answer of each is the request of the next.
    #[default]
    Serial,
}

/// One of an endpoint's containers.
pub struct EndpointContainer {
    /// What requests and the policy call it: SageMaker's container hostname.
    pub name: TargetName,
    /// Asks it.
    pub ask: AskContainerFn,
}

/// Asks a container, and returns when its answer begins. Dropping the future, or the answer's body,
/// cancels the request.
pub type AskContainerFn =
    Arc<dyn Fn(ToContainer) -> BoxFuture<'static, Result<FromContainer, Failure>> + Send + Sync>;

/// What a container is sent, by `POST`.
#[derive(Debug, Clone)]
pub struct ToContainer {
    /// Where to.
    pub path: String,
    /// Those that it may see, and no other.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Whose request it is: places are shared by tenants.
    pub tenant: Option<TenantName>,
    /// Until when one that is starting is waited for.
    pub hold_until: Instant,
    /// When all of the answer must be there.
    pub deadline: Instant,
}

/// What a container answers, whatever its status is.
pub struct FromContainer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, but for those between neighbours.
    pub headers: HeaderMap,
    /// How long the body is, where that is known.
    pub length: Option<u64>,
    /// The body; a failure is its last item.
    pub body: ContainerBody,
}

/// Pieces of a container's answer as they come; nothing is read ahead of whoever polls it.
pub type ContainerBody = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;
