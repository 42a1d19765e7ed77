//! How does HTTP say it: the data port's routes, bodies, streams and errors.
//!
//! Reading order: [`state`] (what the gateway is given), `router` (which path means what),
//! `layers` (what surrounds every request), `identify` (who calls), `target`, `aim` and `addressed`
//! (which model is meant), `permitted` (whether the caller may ask it, and what it stands for),
//! `body` and `fields` (what the client sent), `sagemaker`, `openai`, `tgi`, `tei`, `ranking`,
//! `tokens` and `container` (the faces), `sessions` (what outlives a request), `answer`, `accept`, `each`, `call`
//! and `stream` (from an invocation to bytes), `deferred` (the same for callers who do not wait),
//! `capture` (what is kept of both), `meter` (what it is charged
//! and took), `error` (the one error table).
//!
//! What holds:
//! 1. Every response carries `x-amzn-RequestId`, and every request ends in exactly one
//!    access record, when its last byte is out or its client has left.
//! 2. Statuses and error bodies are made in `error` alone (`/ping`'s 503 aside).
//! 3. An error body is a JSON object of at most a few kilobytes, and after a failure no
//!    stream looks complete.
//! 4. A chunk of a streamed response is one whole event.
//! 5. Dropping a response drops the model's stream, which aborts its sequences.

mod accept;
mod addressed;
mod aim;
mod answer;
mod behind;
mod body;
mod call;
mod capture;
mod container;
mod cut;
mod deferred;
mod each;
mod error;
mod fields;
mod forms;
mod handled;
mod identify;
mod json;
mod kept;
mod layers;
mod meter;
mod metrics;
mod openai;
mod openapi;
mod permitted;
mod platform;
mod ranking;
mod relayed;
mod router;
mod sagemaker;
mod sessions;
mod spans;
pub mod state;
mod stream;
mod target;
mod tei;
mod tgi;
mod tokens;
mod told;

pub use capture::{Capture, CaptureRoom, Captured, Held, Payload};
pub use cut::{Cut, CutOff};
pub use deferred::Later;
pub use metrics::describe_metrics;
pub use router::router;
pub use sessions::{SessionLimits, Sessions};
pub use spans::{HaltedLoad, LoadStage, request_spans};
pub use state::{
    AccessRecord, AskContainerFn, ContainerAdapter, ContainerAdapters, ContainerBody,
    ContainerCall, ContainerFace, ContainerMode, ContainerModel, ContainerModels, Containers,
    DeferFn, Deferral, Deferred, DeferredInput, Done, Due, EndpointContainer, EndpointFace,
    FactsFn, FromContainer, GatewayConfig, GatewayState, Health, KvTokens, LoadOutcome, MetricsFn,
    ModelFacts, Naming, Offered, PageWanted, PlatformFace, Registration, Serves, Steps, Target,
    TargetPage, ToContainer, Update, Variant,
};
