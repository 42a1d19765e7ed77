//! All metrics of this crate. Labels are bounded: endpoints, operations, outcomes.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::Error;

/// Bytes of artefacts that arrived from a store to be kept on disk. Label `endpoint`.
/// Reads of headers and listings are not in it.
pub const FETCHED_BYTES: &str = "roundhouse_store_fetched_bytes_total";
/// Bytes read from a store to look into a file. Label `endpoint`.
pub const INSPECTED_BYTES: &str = "roundhouse_store_inspected_bytes_total";
/// Bytes read from a store of objects that are no artefacts: inputs of requests. Label `endpoint`.
pub const OBJECT_READ_BYTES: &str = "roundhouse_store_object_read_bytes_total";
/// Bytes of objects that were written to a store. Label `endpoint`.
pub const OBJECT_WRITTEN_BYTES: &str = "roundhouse_store_object_written_bytes_total";
/// Requests to stores. Labels `endpoint`, `operation` (`list`, `head`, `get`, `put`), `outcome`.
pub const REQUESTS: &str = "roundhouse_store_requests_total";
/// Requests that were made again after a failure. Label `endpoint`.
pub const RETRIES: &str = "roundhouse_store_retries_total";
/// Time from the beginning of a fetch to whole on disk, in seconds. Labels
/// `endpoint`, `outcome`.
pub const FETCH_SECONDS: &str = "roundhouse_store_fetch_seconds";
/// Bytes that the disk cache may hold.
pub const DISK_BUDGET: &str = "roundhouse_store_disk_budget_bytes";
/// Bytes that the disk cache holds or has promised, partial files and archives included.
pub const DISK_USED: &str = "roundhouse_store_disk_used_bytes";
/// Versions of adapters that are whole on disk.
pub const DISK_ADAPTERS: &str = "roundhouse_store_disk_adapters";
/// What a tenant's versions take of the disk, with their part of what several hold and what its
/// fetches are promised. Label `tenant`: those that the settings promise something of the disk, or
/// give a ceiling there.
pub const TENANT_DISK: &str = "roundhouse_store_tenant_disk_bytes";
/// Artefacts and abandoned partial fetches removed to make room. Label `what`
/// (`artefact`, `partial`).
pub const EVICTIONS: &str = "roundhouse_store_evictions_total";

/// Bytes that fetches held to a tenant's load bandwidth were let bring. Label `tenant`, one that
/// the settings name.
pub const PACED_BYTES: &str = "roundhouse_store_paced_bytes_total";
/// Time that parts of such fetches waited for it, in milliseconds, each on its own. Label `tenant`.
pub const PACED_WAIT: &str = "roundhouse_store_paced_wait_milliseconds_total";

/// Tells the installed recorder what the metrics mean. Call once at start-up.
pub fn describe_metrics() {
    let counters = [
        (FETCHED_BYTES, Unit::Bytes, "bytes of artefacts that arrived from a store, by endpoint"),
        (INSPECTED_BYTES, Unit::Bytes, "bytes read from a store to look into a file, by endpoint"),
        (
            OBJECT_READ_BYTES,
            Unit::Bytes,
            "bytes of requests' inputs read from a store, by endpoint",
        ),
        (OBJECT_WRITTEN_BYTES, Unit::Bytes, "bytes of objects written to a store, by endpoint"),
        (REQUESTS, Unit::Count, "requests to stores, by endpoint, operation and outcome"),
        (RETRIES, Unit::Count, "requests to stores made again after a failure, by endpoint"),
        (PACED_BYTES, Unit::Bytes, "bytes fetched within a tenant's load bandwidth, by tenant"),
        (
            PACED_WAIT,
            Unit::Milliseconds,
            "time that parts of fetches waited for their tenant's load bandwidth, by tenant",
        ),
        (EVICTIONS, Unit::Count, "artefacts and partial fetches removed from the disk for room"),
    ];
    for (name, unit, help) in counters {
        describe_counter!(name, unit, help);
    }
    describe_histogram!(
        FETCH_SECONDS,
        Unit::Seconds,
        "from the beginning of a fetch to whole on disk, by endpoint and outcome"
    );
    describe_gauge!(DISK_BUDGET, Unit::Bytes, "what the disk cache may hold");
    describe_gauge!(
        TENANT_DISK,
        Unit::Bytes,
        "what versions of tenants with a floor or ceiling on disk take there, by tenant"
    );
    describe_gauge!(DISK_USED, Unit::Bytes, "what the disk cache holds or has promised");
    describe_gauge!(DISK_ADAPTERS, Unit::Count, "versions of adapters that are whole on disk");
}

pub(crate) fn request(endpoint: &str, operation: &'static str, outcome: &'static str) {
    counter!(REQUESTS, "endpoint" => endpoint.to_owned(), "operation" => operation, "outcome" => outcome)
        .increment(1);
}

pub(crate) fn retried(endpoint: &str) {
    counter!(RETRIES, "endpoint" => endpoint.to_owned()).increment(1);
}

pub(crate) fn read(endpoint: &str, purpose: Purpose, bytes: u64) {
    let name = match purpose {
        Purpose::Fetch => FETCHED_BYTES,
        Purpose::Inspect => INSPECTED_BYTES,
        Purpose::Object => OBJECT_READ_BYTES,
    };
    counter!(name, "endpoint" => endpoint.to_owned()).increment(bytes);
}

pub(crate) fn paced(tenant: &str, bytes: u64, waited: Duration) {
    let milliseconds = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    counter!(PACED_BYTES, "tenant" => tenant.to_owned()).increment(bytes);
    counter!(PACED_WAIT, "tenant" => tenant.to_owned()).increment(milliseconds);
}

pub(crate) fn written(endpoint: &str, bytes: u64) {
    counter!(OBJECT_WRITTEN_BYTES, "endpoint" => endpoint.to_owned()).increment(bytes);
}

pub(crate) fn fetch(endpoint: &str, outcome: &'static str, took: Duration) {
    histogram!(FETCH_SECONDS, "endpoint" => endpoint.to_owned(), "outcome" => outcome)
        .record(took.as_secs_f64());
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
pub(crate) fn disk(budget: u64, used: u64) {
    gauge!(DISK_BUDGET).set(budget as f64);
    gauge!(DISK_USED).set(used as f64);
}

/// So many more adapters are on disk.
pub(crate) fn disk_adapters(more: i8) {
    gauge!(DISK_ADAPTERS).increment(more);
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
pub(crate) fn tenant_disk(tenant: &str, bytes: u64) {
    gauge!(TENANT_DISK, "tenant" => tenant.to_owned()).set(bytes as f64);
}

pub(crate) fn evicted(what: &'static str) {
    counter!(EVICTIONS, "what" => what).increment(1);
}

/// Why bytes are read from a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To keep a file on disk.
    Fetch,
    /// To look into a file.
    Inspect,
    /// For somebody who asked for the whole object.
    Object,
}

/// A failure as the `outcome` label says it.
pub(crate) fn outcome(error: &Error) -> &'static str {
    match error {
        Error::ObjectNotFound { .. } | Error::ModelNotFound { .. } => "not_found",
        Error::AccessDenied { .. }
        | Error::KmsDenied { .. }
        | Error::NoCredentials { .. }
        | Error::Archived { .. } => "denied",
        Error::Throttled { .. } => "throttled",
        Error::Unavailable { .. } => "unavailable",
        Error::Changed { .. } => "changed",
        _ => "error",
    }
}
