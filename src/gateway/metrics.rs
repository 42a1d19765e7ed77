//! The gateway's metrics. A histogram counts as well, so no counter stands beside it.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::Histogram;
use roundhouse_types::{EndpointName, TargetName};

/// From a request's arrival to its response's last byte, in seconds. Labels: `route`,
/// `status` (the class, as `2xx`).
const REQUEST_SECONDS: &str = "roundhouse_gateway_request_seconds";
/// From a request's arrival to its response's first body byte, in seconds. Label: `route`.
const FIRST_BYTE_SECONDS: &str = "roundhouse_gateway_first_byte_seconds";

/// From a request to a container behind an endpoint to the last byte of its answer, or to when nobody
/// wants more of it or its time is over, in seconds. Not of requests that it did not begin to answer for
/// another reason: most never reached it. Labels: `endpoint`, `container`.
const CONTAINER_SECONDS: &str = "roundhouse_gateway_container_seconds";

/// Stateful sessions opened.
const SESSIONS_OPENED: &str = "roundhouse_gateway_sessions_opened_total";
/// Stateful sessions that have ended. Label: `by` (`closed`, `expired`).
const SESSIONS_ENDED: &str = "roundhouse_gateway_sessions_ended_total";

/// Requests whose capture was given up for want of room.
const CAPTURE_DROPPED: &str = "roundhouse_gateway_captures_dropped_total";

/// Tells the metrics recorder what the metrics mean.
pub fn describe_metrics() {
    metrics::describe_histogram!(
        REQUEST_SECONDS,
        metrics::Unit::Seconds,
        "from a request's arrival to its response's last byte, by route and class of status"
    );
    metrics::describe_histogram!(
        FIRST_BYTE_SECONDS,
        metrics::Unit::Seconds,
        "from a request's arrival to its response's first body byte, by route"
    );
    metrics::describe_histogram!(
        CONTAINER_SECONDS,
        metrics::Unit::Seconds,
        "from a request to a container behind an endpoint to the last byte of its answer, or to its time-out, by endpoint and container; not of those that it refused or broke off before"
    );
    metrics::describe_counter!(
        CAPTURE_DROPPED,
        metrics::Unit::Count,
        "requests that were to be captured and found the buffer full"
    );
    metrics::describe_counter!(
        SESSIONS_OPENED,
        metrics::Unit::Count,
        "stateful sessions that were opened"
    );
    metrics::describe_counter!(
        SESSIONS_ENDED,
        metrics::Unit::Count,
        "stateful sessions that have ended: closed by their clients, or expired"
    );
}

/// How long a container takes for what it is asked.
pub(crate) fn container_seconds(endpoint: &EndpointName, container: &TargetName) -> Histogram {
    let labels = [("endpoint", endpoint.to_string()), ("container", container.to_string())];
    metrics::histogram!(CONTAINER_SECONDS, &labels)
}

/// Notes a capture that found no room.
pub(crate) fn capture_dropped() {
    metrics::counter!(CAPTURE_DROPPED).increment(1);
}

/// Notes a session that was opened.
pub(crate) fn session_opened() {
    metrics::counter!(SESSIONS_OPENED).increment(1);
}

/// Notes sessions that have ended.
pub(crate) fn sessions_ended(by: &'static str, count: u64) {
    metrics::counter!(SESSIONS_ENDED, "by" => by).increment(count);
}

/// Classes of statuses, as the label has them.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// One route's histograms. They are looked up when they are first used, and not again: by their labels
/// that takes longer than all that they record.
pub(crate) struct OfRoute {
    pub(crate) name: &'static str,
    first_byte: OnceLock<Histogram>,
    ended: [OnceLock<Histogram>; CLASSES.len()],
}

impl OfRoute {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, first_byte: OnceLock::new(), ended: Default::default() }
    }

    /// Notes a request that has ended.
    pub(crate) fn ended(&self, status: u16, elapsed: Duration) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        let histogram = self.ended[class].get_or_init(|| {
            metrics::histogram!(REQUEST_SECONDS, "route" => self.name, "status" => CLASSES[class])
        });
        histogram.record(elapsed.as_secs_f64());
    }

    /// Notes that a response's first byte goes out.
    pub(crate) fn first_byte(&self, elapsed: Duration) {
        let histogram = self
            .first_byte
            .get_or_init(|| metrics::histogram!(FIRST_BYTE_SECONDS, "route" => self.name));
        histogram.record(elapsed.as_secs_f64());
    }
}
