//! All metrics of this crate. The label `endpoint` is bounded by the settings.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const BACKLOG: &str = "roundhouse_async_backlog_requests";
const BACKLOG_BYTES: &str = "roundhouse_async_backlog_bytes";
const RUNNING: &str = "roundhouse_async_running_requests";
const OLDEST: &str = "roundhouse_async_oldest_seconds";
const ACCEPTED: &str = "roundhouse_async_accepted_total";
const REFUSED: &str = "roundhouse_async_refused_total";
const PROCESSED: &str = "roundhouse_async_processed_total";
const FAILURES: &str = "roundhouse_async_failures_total";
const EXPIRED: &str = "roundhouse_async_expired_total";
const POSTPONED: &str = "roundhouse_async_postponed_total";
const DOWNLOAD_FAILURES: &str = "roundhouse_async_download_failures_total";
const UPLOAD_FAILURES: &str = "roundhouse_async_upload_failures_total";
const GIVEN_UP: &str = "roundhouse_async_given_up_total";
const NOTICE_FAILURES: &str = "roundhouse_async_notification_failures_total";
const IN_BACKLOG: &str = "roundhouse_async_backlog_seconds";
const PROCESSING: &str = "roundhouse_async_processing_seconds";
const DOWNLOAD: &str = "roundhouse_async_download_seconds";
const UPLOAD: &str = "roundhouse_async_upload_seconds";

/// Registers units and help.
pub fn describe_metrics() {
    let gauges = [
        (BACKLOG, Unit::Count, "Asynchronous requests that wait, by endpoint."),
        (BACKLOG_BYTES, Unit::Bytes, "What asynchronous requests take on disk, by endpoint."),
        (RUNNING, Unit::Count, "Asynchronous requests that run, by endpoint."),
        (OLDEST, Unit::Seconds, "How long the oldest that waits has been waiting, by endpoint."),
    ];
    for (name, unit, help) in gauges {
        describe_gauge!(name, unit, help);
    }
    let counters = [
        (ACCEPTED, "Asynchronous requests that were accepted, by endpoint."),
        (REFUSED, "Asynchronous requests that found the queue full, by endpoint."),
        (PROCESSED, "Asynchronous requests whose object is in the store, by endpoint."),
        (FAILURES, "Those of them that failed, by endpoint."),
        (EXPIRED, "Those of them that waited too long for their turn, by endpoint."),
        (POSTPONED, "Times that a request was put back: limits, loads, by endpoint."),
        (DOWNLOAD_FAILURES, "Inputs that could not be read, by endpoint."),
        (UPLOAD_FAILURES, "Times that an object could not be written, by endpoint."),
        (GIVEN_UP, "Objects that the store did not take and that were given up, by endpoint."),
        (NOTICE_FAILURES, "Notices that nobody took, by endpoint."),
    ];
    for (name, help) in counters {
        describe_counter!(name, Unit::Count, help);
    }
    let histograms = [
        (IN_BACKLOG, "From acceptance to the first turn, by endpoint."),
        (PROCESSING, "From acceptance to the object in the store, by endpoint."),
        (DOWNLOAD, "How long inputs took to read, by endpoint."),
        (UPLOAD, "How long objects took to write, by endpoint."),
    ];
    for (name, help) in histograms {
        describe_histogram!(name, Unit::Seconds, help);
    }
}

/// One endpoint's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Of<'a>(pub(crate) &'a str);

/// What stands where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Levels {
    pub(crate) waiting: usize,
    pub(crate) running: usize,
    pub(crate) bytes: u64,
    pub(crate) oldest: Duration,
}

impl Of<'_> {
    fn count(self, name: &'static str) {
        counter!(name, "endpoint" => self.0.to_owned()).increment(1);
    }

    fn took(self, name: &'static str, time: Duration) {
        histogram!(name, "endpoint" => self.0.to_owned()).record(time.as_secs_f64());
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    pub(crate) fn levels(self, levels: Levels) {
        let set = |name: &'static str, value: f64| {
            gauge!(name, "endpoint" => self.0.to_owned()).set(value);
        };
        set(BACKLOG, levels.waiting as f64);
        set(RUNNING, levels.running as f64);
        set(BACKLOG_BYTES, levels.bytes as f64);
        set(OLDEST, levels.oldest.as_secs_f64());
    }

    pub(crate) fn accepted(self) {
        self.count(ACCEPTED);
    }

    pub(crate) fn refused(self) {
        self.count(REFUSED);
    }

    pub(crate) fn processed(self, is_failure: bool, is_expired: bool, time: Duration) {
        self.count(PROCESSED);
        if is_failure {
            self.count(FAILURES);
        }
        if is_expired {
            self.count(EXPIRED);
        }
        self.took(PROCESSING, time);
    }

    pub(crate) fn begun(self, waited: Duration) {
        self.took(IN_BACKLOG, waited);
    }

    pub(crate) fn postponed(self) {
        self.count(POSTPONED);
    }

    pub(crate) fn downloaded(self, is_good: bool, time: Duration) {
        match is_good {
            true => self.took(DOWNLOAD, time),
            false => self.count(DOWNLOAD_FAILURES),
        }
    }

    pub(crate) fn uploaded(self, is_good: bool, time: Duration) {
        match is_good {
            true => self.took(UPLOAD, time),
            false => self.count(UPLOAD_FAILURES),
        }
    }

    pub(crate) fn given_up(self) {
        self.count(GIVEN_UP);
    }

    pub(crate) fn not_told(self) {
        self.count(NOTICE_FAILURES);
    }
}
