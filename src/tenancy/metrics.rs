//! All metrics of this crate. Tenants that the settings name are a label, all others are `other`.

use std::time::Duration;

use metrics::{Counter, Unit, counter, describe_counter};

use crate::identity;
use crate::quota::Limit;

/// Requests that were admitted. Label: `tenant`.
const ADMITTED: &str = "roundhouse_tenancy_admitted_requests_total";
/// Requests that were refused. Labels: `tenant`, `limit`.
const REFUSED: &str = "roundhouse_tenancy_refused_requests_total";
/// Tokens of prompts and inputs. Label: `tenant`.
const TOKENS_IN: &str = "roundhouse_tenancy_input_tokens_total";
/// Tokens generated. Label: `tenant`.
const TOKENS_OUT: &str = "roundhouse_tenancy_output_tokens_total";
/// Time in which devices and workers computed, in microseconds. Label: `tenant`.
const COMPUTE: &str = "roundhouse_tenancy_compute_microseconds_total";
/// Lines written to the ledger.
const LINES: &str = "roundhouse_tenancy_ledger_lines_total";
/// Attempts to write to the ledger that failed; what they were to write is kept.
const FAILURES: &str = "roundhouse_tenancy_ledger_failures_total";
/// Requests whose line of their own gave way to an interval's, since the ledger fell behind.
const FOLDED: &str = "roundhouse_tenancy_ledger_folded_requests_total";

/// Tells the installed recorder what the metrics mean. Call once at start-up.
pub fn describe_metrics() {
    identity::describe_metrics();
    describe_counter!(ADMITTED, Unit::Count, "Requests admitted, by tenant");
    describe_counter!(REFUSED, Unit::Count, "Requests refused, by tenant and limit");
    describe_counter!(TOKENS_IN, Unit::Count, "Tokens of prompts and inputs, by tenant");
    describe_counter!(TOKENS_OUT, Unit::Count, "Tokens generated, by tenant");
    describe_counter!(COMPUTE, Unit::Microseconds, "Computing time, by tenant");
    describe_counter!(LINES, Unit::Count, "Lines written to the usage ledger");
    describe_counter!(FAILURES, Unit::Count, "Writes of the usage ledger that failed");
    describe_counter!(FOLDED, Unit::Count, "Requests without a line of their own in the ledger");
}

/// One tenant's counters, looked up once.
pub(crate) struct Meters {
    admitted: Counter,
    refused: [Counter; Limit::ALL.len()],
    tokens_in: Counter,
    tokens_out: Counter,
    compute: Counter,
}

impl Meters {
    pub(crate) fn of(tenant: &str) -> Self {
        let of = |name: &'static str| counter!(name, "tenant" => tenant.to_owned());
        Self {
            admitted: of(ADMITTED),
            refused: Limit::ALL.map(
                |limit| counter!(REFUSED, "tenant" => tenant.to_owned(), "limit" => limit.as_str()),
            ),
            tokens_in: of(TOKENS_IN),
            tokens_out: of(TOKENS_OUT),
            compute: of(COMPUTE),
        }
    }

    pub(crate) fn admitted(&self) {
        self.admitted.increment(1);
    }

    pub(crate) fn refused(&self, limit: Limit) {
        let index = Limit::ALL.iter().position(|other| *other == limit);
        if let Some(counter) = index.and_then(|index| self.refused.get(index)) {
            counter.increment(1);
        }
    }

    pub(crate) fn took(&self, tokens_in: u64, tokens_out: u64, compute: Duration) {
        self.tokens_in.increment(tokens_in);
        self.tokens_out.increment(tokens_out);
        self.compute.increment(u64::try_from(compute.as_micros()).unwrap_or(u64::MAX));
    }
}

impl Default for Meters {
    fn default() -> Self {
        Self::of("other")
    }
}

/// So many lines were written.
pub(crate) fn lines_written(lines: usize) {
    counter!(LINES).increment(lines as u64);
}

/// The ledger could not be written.
pub(crate) fn write_failed() {
    counter!(FAILURES).increment(1);
}

/// So many requests have no line of their own.
pub(crate) fn folded(requests: usize) {
    counter!(FOLDED).increment(requests as u64);
}
