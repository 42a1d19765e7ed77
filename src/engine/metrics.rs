//! The crate's metrics. All are sums over the process's engines: no model labels.

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};

const STEP: &str = "roundhouse_engine_step_seconds";
const STEP_ROWS: &str = "roundhouse_engine_step_rows";
const PREFILLED: &str = "roundhouse_engine_prefilled_tokens_total";
const REUSED: &str = "roundhouse_engine_reused_tokens_total";
const DECODED: &str = "roundhouse_engine_decoded_tokens_total";
const SUBMITTED: &str = "roundhouse_engine_sequences_submitted_total";
const ADMITTED: &str = "roundhouse_engine_sequences_admitted_total";
const ENDED: &str = "roundhouse_engine_sequences_ended_total";
const PREEMPTED: &str = "roundhouse_engine_preemptions_total";
const BLOCKS_TAKEN: &str = "roundhouse_engine_kv_blocks_taken_total";
const BLOCKS_FREED: &str = "roundhouse_engine_kv_blocks_freed_total";
const FIRST_TOKEN: &str = "roundhouse_engine_time_to_first_token_seconds";
const CONSTRAINED: &str = "roundhouse_engine_constrained_choice_seconds";
const NEXT_TOKEN: &str = "roundhouse_engine_time_per_output_token_seconds";

/// Registers units and meanings with the installed recorder.
pub fn describe() {
    describe_histogram!(STEP, Unit::Seconds, "one step: plan, forward, sampling");
    describe_histogram!(STEP_ROWS, Unit::Count, "sequences that shared a step's forward");
    describe_counter!(PREFILLED, Unit::Count, "prompt tokens computed, recomputed ones included");
    describe_counter!(REUSED, Unit::Count, "tokens whose keys and values were in the pool already");
    describe_counter!(DECODED, Unit::Count, "sampled tokens computed");
    describe_counter!(
        SUBMITTED,
        Unit::Count,
        "sequences and encoder inputs accepted; less admitted and those ended before: waiting"
    );
    describe_counter!(
        ADMITTED,
        Unit::Count,
        "sequences and encoder inputs that began to run; less ended ones: running"
    );
    describe_counter!(
        ENDED,
        Unit::Count,
        "sequences and encoder inputs over, by reason: stop, length, encoded, aborted, failed"
    );
    describe_counter!(
        PREEMPTED,
        Unit::Count,
        "sequences that gave their KV blocks back to recompute later"
    );
    describe_counter!(BLOCKS_TAKEN, Unit::Count, "KV blocks taken; less freed ones: in use");
    describe_counter!(BLOCKS_FREED, Unit::Count, "KV blocks given back");
    describe_histogram!(FIRST_TOKEN, Unit::Seconds, "from submission to the first token");
    describe_histogram!(
        CONSTRAINED,
        Unit::Seconds,
        "choosing one token of a sequence with a constraint, on the lane"
    );
    describe_histogram!(NEXT_TOKEN, Unit::Seconds, "from one token of a sequence to its next");
}

/// Why a sequence ended, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Stop,
    Length,
    Encoded,
    Aborted,
    Failed,
}

/// One engine's handles on the metrics, looked up once.
pub(crate) struct Meters {
    pub(crate) step_seconds: Histogram,
    pub(crate) step_rows: Histogram,
    pub(crate) prefilled: Counter,
    pub(crate) reused: Counter,
    pub(crate) decoded: Counter,
    pub(crate) submitted: Counter,
    pub(crate) admitted: Counter,
    pub(crate) preempted: Counter,
    pub(crate) blocks_taken: Counter,
    pub(crate) blocks_freed: Counter,
    pub(crate) first_token: Histogram,
    pub(crate) next_token: Histogram,
    pub(crate) constrained: Histogram,
    stop: Counter,
    length: Counter,
    encoded: Counter,
    aborted: Counter,
    failed: Counter,
}

impl Meters {
    /// Looks the handles up with the recorder that is installed now.
    pub(crate) fn new() -> Self {
        Self {
            step_seconds: histogram!(STEP),
            step_rows: histogram!(STEP_ROWS),
            prefilled: counter!(PREFILLED),
            reused: counter!(REUSED),
            decoded: counter!(DECODED),
            submitted: counter!(SUBMITTED),
            admitted: counter!(ADMITTED),
            preempted: counter!(PREEMPTED),
            blocks_taken: counter!(BLOCKS_TAKEN),
            blocks_freed: counter!(BLOCKS_FREED),
            first_token: histogram!(FIRST_TOKEN),
            next_token: histogram!(NEXT_TOKEN),
            constrained: histogram!(CONSTRAINED),
            stop: counter!(ENDED, "reason" => "stop"),
            length: counter!(ENDED, "reason" => "length"),
            encoded: counter!(ENDED, "reason" => "encoded"),
            aborted: counter!(ENDED, "reason" => "aborted"),
            failed: counter!(ENDED, "reason" => "failed"),
        }
    }

    /// Counts `sequences` that ended.
    pub(crate) fn ended(&self, reason: Ended, sequences: usize) {
        let counter = match reason {
            Ended::Stop => &self.stop,
            Ended::Length => &self.length,
            Ended::Encoded => &self.encoded,
            Ended::Aborted => &self.aborted,
            Ended::Failed => &self.failed,
        };
        counter.increment(sequences as u64);
    }
}
