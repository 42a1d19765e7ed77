//! What a platform asks of its container's port beside the models.

use std::sync::Arc;

/// Writes all metrics in Prometheus' text format.
pub type MetricsFn = Arc<dyn Fn() -> String + Send + Sync>;

/// What is answered where a platform runs this server as its container.
pub struct PlatformFace {
    /// `GET /metrics`: the platform scrapes the port that it knows.
    pub metrics: MetricsFn,
    /// `GET /execution-parameters`: requests that a batch job may have under way.
    pub transforms: usize,
}
