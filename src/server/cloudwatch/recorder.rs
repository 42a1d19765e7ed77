//! Hears what the metrics are told of loads and of requests that are answered later: CloudWatch is
//! told the same as Prometheus, and nothing is measured twice.

use std::sync::Arc;

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

use super::book::Book;
use super::figures::Figure;

/// What is heard, by the name of the metric. Each has the label `endpoint`.
const HEARD: [(&str, Figure); 15] = [
    ("roundhouse_residency_fetch_seconds", Figure::ModelDownloadingTime),
    ("roundhouse_residency_load_seconds", Figure::ModelLoadingTime),
    ("roundhouse_residency_unload_seconds", Figure::ModelUnloadingTime),
    ("roundhouse_async_backlog_requests", Figure::ApproximateBacklogSize),
    ("roundhouse_async_oldest_seconds", Figure::ApproximateAgeOfOldestRequest),
    ("roundhouse_async_processed_total", Figure::InvocationsProcessed),
    ("roundhouse_async_failures_total", Figure::InvocationFailures),
    ("roundhouse_async_expired_total", Figure::ExpiredRequests),
    ("roundhouse_async_download_failures_total", Figure::RequestDownloadFailures),
    ("roundhouse_async_upload_failures_total", Figure::ResponseUploadFailures),
    ("roundhouse_async_notification_failures_total", Figure::NotificationFailures),
    ("roundhouse_async_download_seconds", Figure::RequestDownloadLatency),
    ("roundhouse_async_upload_seconds", Figure::ResponseUploadLatency),
    ("roundhouse_async_backlog_seconds", Figure::TimeInBacklog),
    ("roundhouse_async_processing_seconds", Figure::TotalProcessingTime),
];

/// A recorder that has everything told to another one, and hears some of it.
pub(crate) struct Hearing<R> {
    pub(crate) inner: R,
    pub(crate) book: Arc<Book>,
}

/// One endpoint's metric that is heard.
struct Heard {
    endpoint: String,
    figure: Figure,
    book: Arc<Book>,
}

impl Heard {
    fn value(&self, value: f64) {
        self.book.add(&self.endpoint, self.figure, value * self.figure.per_second(), 1);
    }
}

impl<R> Hearing<R> {
    fn heard(&self, key: &Key) -> Option<Heard> {
        let (_, figure) = HEARD.iter().find(|(name, _)| *name == key.name())?;
        let endpoint = key.labels().find(|label| label.key() == "endpoint")?.value().to_owned();
        Some(Heard { endpoint, figure: *figure, book: self.book.clone() })
    }
}

impl<R: Recorder> Recorder for Hearing<R> {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, help: SharedString) {
        self.inner.describe_counter(key, unit, help);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, help: SharedString) {
        self.inner.describe_gauge(key, unit, help);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, help: SharedString) {
        self.inner.describe_histogram(key, unit, help);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let inner = self.inner.register_counter(key, metadata);
        match self.heard(key) {
            Some(heard) => Counter::from_arc(Arc::new(Counted { inner, heard })),
            None => inner,
        }
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let inner = self.inner.register_gauge(key, metadata);
        match self.heard(key) {
            Some(heard) => Gauge::from_arc(Arc::new(Level { inner, heard })),
            None => inner,
        }
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        let inner = self.inner.register_histogram(key, metadata);
        match self.heard(key) {
            Some(heard) => Histogram::from_arc(Arc::new(Measured { inner, heard })),
            None => inner,
        }
    }
}

struct Measured {
    inner: Histogram,
    heard: Heard,
}

impl HistogramFn for Measured {
    fn record(&self, value: f64) {
        self.inner.record(value);
        self.heard.value(value);
    }
}

struct Counted {
    inner: Counter,
    heard: Heard,
}

impl CounterFn for Counted {
    fn increment(&self, value: u64) {
        self.inner.increment(value);
        self.heard.book.add(&self.heard.endpoint, self.heard.figure, 1.0, value);
    }

    fn absolute(&self, value: u64) {
        // What is heard is counted by steps.
        self.inner.absolute(value);
    }
}

struct Level {
    inner: Gauge,
    heard: Heard,
}

impl GaugeFn for Level {
    fn increment(&self, value: f64) {
        // What is heard is set.
        self.inner.increment(value);
    }

    fn decrement(&self, value: f64) {
        self.inner.decrement(value);
    }

    fn set(&self, value: f64) {
        self.inner.set(value);
        let Heard { endpoint, figure, book } = &self.heard;
        book.level(endpoint, *figure, value * figure.per_second());
    }
}
