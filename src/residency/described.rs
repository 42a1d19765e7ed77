//! What the metrics of this crate mean.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// The part of every name that comes first.
const AREA: &str = "roundhouse_residency_";

const COUNTERS: [(&str, Unit, &str); 11] = [
    (
        "grants_total",
        Unit::Count,
        "leases granted, by endpoint and tier: where the model was found",
    ),
    ("refusals_total", Unit::Count, "requests and operators turned away, by endpoint and kind"),
    ("failures_total", Unit::Count, "loads that failed, by endpoint and stage"),
    ("loads_total", Unit::Count, "loads that became ready, by endpoint"),
    ("replications_total", Unit::Count, "loads of replicas begun, failed ones too, by endpoint"),
    ("evictions_total", Unit::Count, "residents that began to leave, by endpoint and reason"),
    ("revivals_total", Unit::Count, "residents that began to leave and serve again, by endpoint"),
    ("demotions_total", Unit::Count, "unloads that left a copy in the host's memory, by endpoint"),
    ("discards_total", Unit::Count, "copies that left the host's memory, by endpoint and reason"),
    ("kv_granted_bytes_total", Unit::Bytes, "what KV pools were granted beyond their floors"),
    (
        "kv_returned_bytes_total",
        Unit::Bytes,
        "what of that has come back; less than granted: in use",
    ),
];

const GAUGES: [(&str, Unit, &str); 16] = [
    ("budget_bytes", Unit::Bytes, "what residents may take, by device"),
    ("charged_bytes", Unit::Bytes, "what residents take, by device"),
    ("reserved_bytes", Unit::Bytes, "what is promised to loads, by device"),
    ("residents", Unit::Count, "loaded artefacts, by device"),
    ("host_budget_bytes", Unit::Bytes, "what copies may take in the host's memory"),
    ("host_charged_bytes", Unit::Bytes, "what copies take in the host's memory"),
    ("host_reserved_bytes", Unit::Bytes, "what is promised to copies that are being made"),
    ("copies", Unit::Count, "copies in the host's memory"),
    ("waiters", Unit::Count, "requests and operators that wait"),
    (
        "updates_failed",
        Unit::Count,
        "models that serve on while another version failed or the newest cannot be told",
    ),
    ("updates_waiting", Unit::Count, "models with a version that waits for an operator's word"),
    (
        "regret_ratio",
        Unit::Count,
        "loads during the latest requests by those of the offline optimum, by bound; NaN where that loads nothing",
    ),
    ("regret_loads", Unit::Count, "loads during the latest requests that requests waited for"),
    ("regret_unasked_loads", Unit::Count, "loads meanwhile that no request waited for"),
    (
        "regret_optimal_loads",
        Unit::Count,
        "what the offline optimum would have loaded, by bound: lower, upper",
    ),
    ("regret_requests", Unit::Count, "the latest requests, as regret counts them"),
];

const HISTOGRAMS: [(&str, Unit, &str); 7] = [
    ("wait_seconds", Unit::Seconds, "from request to lease, by endpoint and tier"),
    (
        "eviction_idle_seconds",
        Unit::Seconds,
        "how long residents that began to leave had not been used, by endpoint and reason",
    ),
    ("resolve_seconds", Unit::Seconds, "finding a model's version, by endpoint"),
    ("fetch_seconds", Unit::Seconds, "bringing an artefact to disk, by endpoint"),
    ("load_seconds", Unit::Seconds, "loading an artefact, by endpoint and device"),
    ("unload_seconds", Unit::Seconds, "freeing an artefact, by endpoint and device"),
    ("discard_seconds", Unit::Seconds, "freeing a copy in the host's memory, by endpoint"),
];

/// Tells the installed recorder what the metrics mean. Call once at start-up.
pub fn describe_metrics() {
    for (noun, unit, help) in COUNTERS {
        describe_counter!(format!("{AREA}{noun}"), unit, help);
    }
    for (noun, unit, help) in GAUGES {
        describe_gauge!(format!("{AREA}{noun}"), unit, help);
    }
    for (noun, unit, help) in HISTOGRAMS {
        describe_histogram!(format!("{AREA}{noun}"), unit, help);
    }
}
