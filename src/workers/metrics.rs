//! The crate's metrics. Models are no labels: there may be thousands.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use roundhouse_types::Bytes;

const STARTED: &str = "roundhouse_workers_started_total";
const ENDED: &str = "roundhouse_workers_ended_total";
const START_SECONDS: &str = "roundhouse_workers_start_seconds";
const CALLS: &str = "roundhouse_workers_calls_total";
const CALL_SECONDS: &str = "roundhouse_workers_call_seconds";
const REFUSED: &str = "roundhouse_workers_refused_requests_total";
const INSTALL_SECONDS: &str = "roundhouse_workers_environment_install_seconds";
const WARM_LAUNCHES: &str = "roundhouse_workers_warm_launches_total";
const WARM_RESIDENT: &str = "roundhouse_workers_warm_resident";
const WARM_BYTES: &str = "roundhouse_workers_warm_bytes";
const WARM_ENDED: &str = "roundhouse_workers_warm_ended_total";
const ISOLATED: &str = "roundhouse_workers_isolated";

/// Registers units and meanings with the installed recorder.
pub fn describe_metrics() {
    describe_counter!(STARTED, Unit::Count, "worker processes started; less ended ones: running");
    describe_counter!(
        ENDED,
        Unit::Count,
        "worker processes over, by reason: unloaded, failed_start, died, memory, temp, time"
    );
    describe_histogram!(START_SECONDS, Unit::Seconds, "from a worker's start until it is ready");
    describe_counter!(CALLS, Unit::Count, "calls that workers answered, by outcome: ok, raised");
    describe_histogram!(CALL_SECONDS, Unit::Seconds, "one call in its worker, waiting aside");
    describe_counter!(REFUSED, Unit::Count, "calls refused because they killed workers before");
    describe_histogram!(INSTALL_SECONDS, Unit::Seconds, "one installation of requirements");
    describe_counter!(
        WARM_LAUNCHES,
        Unit::Count,
        "handlers launched, by outcome: hit (forked), miss (no idle interpreter), again (the fork \
         failed, and the handler was started anew)"
    );
    describe_gauge!(WARM_RESIDENT, Unit::Count, "idle interpreters that have imported beforehand");
    describe_gauge!(WARM_BYTES, Unit::Bytes, "what idle interpreters take, as PSS");
    describe_counter!(
        WARM_ENDED,
        Unit::Count,
        "idle interpreters ended, by reason: idle, room, old (or they lacked imports), unfit (dead, \
         stopped, or their packages have changed)"
    );
    describe_gauge!(
        ISOLATED,
        Unit::Count,
        "1 where handlers are confined in full, 0 where isolation is best-effort and something is missing"
    );
}

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Unloaded,
    FailedStart,
    Died,
    Memory,
    Temp,
    Time,
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::FailedStart => "failed_start",
            Self::Died => "died",
            Self::Memory => "memory",
            Self::Temp => "temp",
            Self::Time => "time",
        }
    }
}

/// Whether a handler's start found an idle interpreter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Launched {
    Hit,
    Miss,
    Again,
}

/// Why an idle interpreter was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cooled {
    Idle,
    Room,
    Old,
    Unfit,
}

pub(crate) fn launched(how: Launched) {
    let outcome = match how {
        Launched::Hit => "hit",
        Launched::Miss => "miss",
        Launched::Again => "again",
    };
    counter!(WARM_LAUNCHES, "outcome" => outcome).increment(1);
}

pub(crate) fn warm(resident: usize, bytes: Bytes) {
    gauge!(WARM_RESIDENT).set(resident as f64);
    gauge!(WARM_BYTES).set(bytes.0 as f64);
}

pub(crate) fn cooled(why: Cooled) {
    let reason = match why {
        Cooled::Idle => "idle",
        Cooled::Room => "room",
        Cooled::Old => "old",
        Cooled::Unfit => "unfit",
    };
    counter!(WARM_ENDED, "reason" => reason).increment(1);
}

pub(crate) fn started() {
    counter!(STARTED).increment(1);
}

pub(crate) fn ready(took: Duration) {
    histogram!(START_SECONDS).record(took);
}

pub(crate) fn ended(why: End) {
    counter!(ENDED, "reason" => why.as_str()).increment(1);
}

pub(crate) fn answered(ok: bool, took: Duration) {
    counter!(CALLS, "outcome" => if ok { "ok" } else { "raised" }).increment(1);
    histogram!(CALL_SECONDS).record(took);
}

pub(crate) fn refused() {
    counter!(REFUSED).increment(1);
}

pub(crate) fn installed(took: Duration) {
    histogram!(INSTALL_SECONDS).record(took);
}

pub(crate) fn isolated(fully: bool) {
    gauge!(ISOLATED).set(if fully { 1.0 } else { 0.0 });
}
