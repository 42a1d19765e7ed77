//! When what was done for a request was done.

use std::time::Duration;

use roundhouse_traces::SpanId;
use roundhouse_types::{ErrorKind, TargetName};

/// What the spans of a request need beside what is logged of it. Times count from its arrival.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Steps {
    /// The path, without a query; the beginning of a long one.
    pub path: String,
    /// When its model was asked for.
    pub invoked: Option<Duration>,
    /// Why its model did not answer, where asking it failed.
    pub failed: Option<ErrorKind>,
    /// How long devices computed for it.
    pub compute: Duration,
    /// The containers that were asked, in order.
    pub calls: Vec<ContainerCall>,
}

/// A container that was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerCall {
    /// By which span it was asked.
    pub span: SpanId,
    /// Its hostname.
    pub container: TargetName,
    /// When it was asked.
    pub began: Duration,
    /// When its answer had come to its end, or was given up; absent where that is still to come.
    pub ended: Option<Duration>,
    /// What it answered; absent where it did not.
    pub status: Option<u16>,
}
