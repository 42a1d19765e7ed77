//! Metrics in Prometheus' text format.

use std::sync::Arc;
use std::time::Duration;

use metrics::set_global_recorder;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use roundhouse_types::{ErrorKind, Failure};

use crate::cloudwatch::{Book, Hearing};

/// Bounds for latencies from a hit in a millisecond to a load of minutes.
const SECONDS: [f64; 17] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 360.0,
];

/// How often histograms are drained, so that memory stays flat when nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Installs the process's recorder, where one is wanted with a book that hears what it is told.
/// Call once, inside a runtime.
///
/// # Errors
/// When a recorder is installed already.
pub(crate) fn install(book: Option<Arc<Book>>) -> Result<PrometheusHandle, Failure> {
    let unusable = |error: BuildError| Failure::from_error(ErrorKind::Internal, &error);
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .map_err(unusable)?
        .build_recorder();
    let handle = recorder.handle();
    let installed = match book {
        Some(book) => set_global_recorder(Hearing { inner: recorder, book }).is_ok(),
        None => set_global_recorder(recorder).is_ok(),
    };
    if !installed {
        return Err(Failure::new(ErrorKind::Internal, "this process has its metrics already"));
    }
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP_EVERY).await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}
