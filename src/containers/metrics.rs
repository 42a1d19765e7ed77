//! The crate's metrics. A container's name is the operator's, so there are few.

use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

const REQUESTS: &str = "roundhouse_containers_requests_total";
const HEAD_SECONDS: &str = "roundhouse_containers_head_seconds";
const IN_FLIGHT: &str = "roundhouse_containers_in_flight_requests";
const HEALTHY: &str = "roundhouse_containers_healthy";
const BROKEN: &str = "roundhouse_containers_breaker_opened_total";
const CUT: &str = "roundhouse_containers_cut_answers_total";
const STARTED: &str = "roundhouse_containers_started_total";
const ENDED: &str = "roundhouse_containers_ended_total";
const START_SECONDS: &str = "roundhouse_containers_start_seconds";

/// Registers units and meanings with the installed recorder.
pub fn describe_metrics() {
    describe_counter!(
        REQUESTS,
        Unit::Count,
        "requests to containers, by container and outcome: answered, unreachable, broke_off, \
         timed_out, left_alone, full, cancelled"
    );
    describe_histogram!(
        HEAD_SECONDS,
        Unit::Seconds,
        "from a request's start until its answer began, by container"
    );
    describe_gauge!(IN_FLIGHT, Unit::Count, "requests under way, by container");
    describe_gauge!(
        HEALTHY,
        Unit::Count,
        "1 where the last health check succeeded, else 0, by container"
    );
    describe_counter!(
        BROKEN,
        Unit::Count,
        "times a container failed so often that it was left alone, by container"
    );
    describe_counter!(
        CUT,
        Unit::Count,
        "answers that ended before their end, by container and why: cut, stalled, timed_out"
    );
    describe_counter!(STARTED, Unit::Count, "processes started, by container");
    describe_counter!(
        ENDED,
        Unit::Count,
        "processes over, by container and reason: stopped, died, failed_start"
    );
    describe_histogram!(
        START_SECONDS,
        Unit::Seconds,
        "from a process's start until it was healthy, by container"
    );
}

pub(crate) fn request(container: &Arc<str>, outcome: &'static str) {
    counter!(REQUESTS, "container" => Arc::clone(container), "outcome" => outcome).increment(1);
}

/// What each request of one container changes: looked up once.
pub(crate) struct Meters {
    answered: Counter,
    head: Histogram,
    pub(crate) in_flight: Gauge,
}

impl Meters {
    pub(crate) fn of(container: &Arc<str>) -> Self {
        let name = || Arc::clone(container);
        Self {
            answered: counter!(REQUESTS, "container" => name(), "outcome" => "answered"),
            head: histogram!(HEAD_SECONDS, "container" => name()),
            in_flight: gauge!(IN_FLIGHT, "container" => name()),
        }
    }

    pub(crate) fn answered(&self, took: Duration) {
        self.answered.increment(1);
        self.head.record(took);
    }
}

pub(crate) fn healthy(container: &Arc<str>, is_healthy: bool) {
    let value = if is_healthy { 1.0 } else { 0.0 };
    gauge!(HEALTHY, "container" => Arc::clone(container)).set(value);
}

pub(crate) fn broken(container: &Arc<str>) {
    counter!(BROKEN, "container" => Arc::clone(container)).increment(1);
}

pub(crate) fn cut(container: &Arc<str>, why: &'static str) {
    counter!(CUT, "container" => Arc::clone(container), "why" => why).increment(1);
}

pub(crate) fn started(container: &Arc<str>) {
    counter!(STARTED, "container" => Arc::clone(container)).increment(1);
}

pub(crate) fn ended(container: &Arc<str>, reason: &'static str) {
    counter!(ENDED, "container" => Arc::clone(container), "reason" => reason).increment(1);
}

pub(crate) fn ready(container: &Arc<str>, took: Duration) {
    histogram!(START_SECONDS, "container" => Arc::clone(container)).record(took);
}
