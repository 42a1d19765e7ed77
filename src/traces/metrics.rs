//! What is counted of spans.

use metrics::{Unit, counter, describe_counter};

const EXPORTED: &str = "roundhouse_traces_spans_exported_total";
const DROPPED: &str = "roundhouse_traces_spans_dropped_total";

/// Registers units and help with the installed recorder.
pub fn describe_metrics() {
    describe_counter!(EXPORTED, Unit::Count, "Spans that the trace collector has taken.");
    describe_counter!(
        DROPPED,
        Unit::Count,
        "Spans that no collector has, by reason: full (the queue to it), refused (by it, or it did not answer)."
    );
}

/// Why spans were dropped.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Why {
    /// The queue was full, or closed.
    Full,
    /// The collector did not take them.
    Refused,
}

pub(crate) fn exported(spans: usize) {
    counter!(EXPORTED).increment(spans as u64);
}

pub(crate) fn dropped(why: Why, spans: usize) {
    let reason = match why {
        Why::Full => "full",
        Why::Refused => "refused",
    };
    counter!(DROPPED, "reason" => reason).increment(spans as u64);
}
