//! The gateway's metrics. A histogram counts as well, so no counter stands beside it.

use std::time::Duration;

/// From a request's arrival to its response's last byte, in seconds. Labels: `route`,
/// `status` (the class, as `2xx`).
const REQUEST_SECONDS: &str = "roundhouse_gateway_request_seconds";
/// From a request's arrival to its response's first body byte, in seconds. Label: `route`.
const FIRST_BYTE_SECONDS: &str = "roundhouse_gateway_first_byte_seconds";

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

/// Notes a request that has ended.
pub(crate) fn request_ended(route: &'static str, status: u16, elapsed: Duration) {
    let class = match status {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    metrics::histogram!(REQUEST_SECONDS, "route" => route, "status" => class)
        .record(elapsed.as_secs_f64());
}

/// Notes that a response's first byte goes out.
pub(crate) fn first_byte(route: &'static str, elapsed: Duration) {
    metrics::histogram!(FIRST_BYTE_SECONDS, "route" => route).record(elapsed.as_secs_f64());
}
