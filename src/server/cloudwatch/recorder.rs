//! Hears what the metrics are told of loads, of requests that are answered later, of containers and of
//! cards: CloudWatch is told the same as Prometheus, and nothing is measured twice.

use std::sync::Arc;

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

use super::book::Book;
use super::figures::Figure;

/// What is heard, by the name of the metric. Each has the label `endpoint`, and `container` where it is
/// a container's.
const HEARD: [(&str, Figure); 16] = [
    ("roundhouse_gateway_container_seconds", Figure::ContainerLatency),
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

/// What is heard of cards: what of their memory is taken, what they have, and the part of their time in
/// which they computed. Label `device`.
const CARD_USED: &str = "roundhouse_card_used_bytes";
const CARD_WHOLE: &str = "roundhouse_card_memory_bytes";
const CARD_BUSY: &str = "roundhouse_card_busy_ratio";

/// A recorder that has everything told to another one, and hears some of it.
pub(crate) struct Hearing<R> {
    pub(crate) inner: R,
    pub(crate) book: Arc<Book>,
}

/// One endpoint's metric that is heard.
struct Heard {
    endpoint: String,
    container: Option<String>,
    figure: Figure,
    book: Arc<Book>,
}

impl Heard {
    fn value(&self, value: f64) {
        let value = value * self.figure.per_second();
        match &self.container {
            Some(name) => self.book.of_container(&self.endpoint, name, self.figure, value),
            None => self.book.add(&self.endpoint, self.figure, value, 1),
        }
    }
}

impl<R> Hearing<R> {
    fn heard(&self, key: &Key) -> Option<Heard> {
        let (_, figure) = HEARD.iter().find(|(name, _)| *name == key.name())?;
        let (endpoint, container) = (label(key, "endpoint")?, label(key, "container"));
        Some(Heard { endpoint, container, figure: *figure, book: self.book.clone() })
    }
}

fn label(key: &Key, name: &str) -> Option<String> {
    key.labels().find(|label| label.key() == name).map(|label| label.value().to_owned())
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
        let take: Option<fn(&Book, &str, f64)> = match key.name() {
            CARD_USED => Some(Book::card_taken),
            CARD_WHOLE => Some(Book::card_whole),
            CARD_BUSY => Some(Book::card_busy),
            _ => None,
        };
        if let Some(take) = take {
            let (device, book) = (label(key, "device").unwrap_or_default(), self.book.clone());
            return level(inner, move |value| take(&book, &device, value));
        }
        match self.heard(key) {
            Some(Heard { endpoint, figure, book, .. }) => level(inner, move |value| {
                book.level(&endpoint, figure, value * figure.per_second());
            }),
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

/// A gauge that is heard as it is set.
struct Level<T> {
    inner: Gauge,
    tell: T,
}

fn level(inner: Gauge, tell: impl Fn(f64) + Send + Sync + 'static) -> Gauge {
    Gauge::from_arc(Arc::new(Level { inner, tell }))
}

impl<T: Fn(f64)> GaugeFn for Level<T> {
    fn increment(&self, value: f64) {
        // What is heard is set.
        self.inner.increment(value);
    }

    fn decrement(&self, value: f64) {
        self.inner.decrement(value);
    }

    fn set(&self, value: f64) {
        self.inner.set(value);
        (self.tell)(value);
    }
}
