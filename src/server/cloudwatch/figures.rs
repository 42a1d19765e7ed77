//! SageMaker's names for what is told, and how many values become few.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Different values that CloudWatch takes of one metric in one line.
const VALUES_MOST: usize = 100;
/// A bin's upper bound by its lower: what is told is off by less than a tenth where bins are few, sums aside.
const RATIO: f64 = 1.1;
/// The bin of what is not above zero.
const NOTHING: i32 = i32::MIN;

/// What is told, by SageMaker's names and units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    Invocations,
    InvocationsPerInstance,
    Invocation4xxErrors,
    Invocation5xxErrors,
    InvocationModelErrors,
    ModelLatency,
    OverheadLatency,
    ContainerLatency,
    ModelCacheHit,
    ModelLoadingWaitTime,
    ModelDownloadingTime,
    ModelLoadingTime,
    ModelUnloadingTime,
    LoadedModelCount,
    CpuUtilization,
    MemoryUtilization,
    DiskUtilization,
    GpuUtilization,
    GpuMemoryUtilization,
    ApproximateBacklogSize,
    ApproximateBacklogSizePerInstance,
    ApproximateAgeOfOldestRequest,
    HasBacklogWithoutCapacity,
    InvocationsProcessed,
    InvocationFailures,
    ExpiredRequests,
    RequestDownloadFailures,
    ResponseUploadFailures,
    NotificationFailures,
    RequestDownloadLatency,
    ResponseUploadLatency,
    TimeInBacklog,
    TotalProcessingTime,
}

impl Figure {
    /// Its name in CloudWatch.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Invocations => "Invocations",
            Self::InvocationsPerInstance => "InvocationsPerInstance",
            Self::Invocation4xxErrors => "Invocation4XXErrors",
            Self::Invocation5xxErrors => "Invocation5XXErrors",
            Self::InvocationModelErrors => "InvocationModelErrors",
            Self::ModelLatency => "ModelLatency",
            Self::OverheadLatency => "OverheadLatency",
            Self::ContainerLatency => "ContainerLatency",
            Self::ModelCacheHit => "ModelCacheHit",
            Self::ModelLoadingWaitTime => "ModelLoadingWaitTime",
            Self::ModelDownloadingTime => "ModelDownloadingTime",
            Self::ModelLoadingTime => "ModelLoadingTime",
            Self::ModelUnloadingTime => "ModelUnloadingTime",
            Self::LoadedModelCount => "LoadedModelCount",
            Self::CpuUtilization => "CPUUtilization",
            Self::MemoryUtilization => "MemoryUtilization",
            Self::DiskUtilization => "DiskUtilization",
            Self::GpuUtilization => "GPUUtilization",
            Self::GpuMemoryUtilization => "GPUMemoryUtilization",
            Self::ApproximateBacklogSize => "ApproximateBacklogSize",
            Self::ApproximateBacklogSizePerInstance => "ApproximateBacklogSizePerInstance",
            Self::ApproximateAgeOfOldestRequest => "ApproximateAgeOfOldestRequest",
            Self::HasBacklogWithoutCapacity => "HasBacklogWithoutCapacity",
            Self::InvocationsProcessed => "InvocationsProcessed",
            Self::InvocationFailures => "InvocationFailures",
            Self::ExpiredRequests => "ExpiredRequests",
            Self::RequestDownloadFailures => "RequestDownloadFailures",
            Self::ResponseUploadFailures => "ResponseUploadFailures",
            Self::NotificationFailures => "NotificationFailures",
            Self::RequestDownloadLatency => "RequestDownloadLatency",
            Self::ResponseUploadLatency => "ResponseUploadLatency",
            Self::TimeInBacklog => "TimeInBacklog",
            Self::TotalProcessingTime => "TotalProcessingTime",
        }
    }

    /// Its unit in CloudWatch.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Invocations
            | Self::InvocationsPerInstance
            | Self::Invocation4xxErrors
            | Self::Invocation5xxErrors
            | Self::InvocationModelErrors
            | Self::ModelCacheHit
            | Self::LoadedModelCount => "None",
            Self::ModelLatency
            | Self::OverheadLatency
            | Self::ContainerLatency
            | Self::ModelLoadingWaitTime
            | Self::ModelDownloadingTime
            | Self::ModelLoadingTime
            | Self::ModelUnloadingTime
            | Self::RequestDownloadLatency
            | Self::ResponseUploadLatency => "Microseconds",
            Self::TimeInBacklog | Self::TotalProcessingTime => "Milliseconds",
            Self::ApproximateAgeOfOldestRequest => "Seconds",
            Self::CpuUtilization
            | Self::MemoryUtilization
            | Self::DiskUtilization
            | Self::GpuUtilization
            | Self::GpuMemoryUtilization => "Percent",
            Self::ApproximateBacklogSize
            | Self::ApproximateBacklogSizePerInstance
            | Self::HasBacklogWithoutCapacity
            | Self::InvocationsProcessed
            | Self::InvocationFailures
            | Self::ExpiredRequests
            | Self::RequestDownloadFailures
            | Self::ResponseUploadFailures
            | Self::NotificationFailures => "Count",
        }
    }

    /// Whether it is told of an endpoint, whatever its variants: of what waits nobody knows which of them
    /// will answer.
    pub(super) fn is_of_endpoint(self) -> bool {
        matches!(
            self,
            Self::ApproximateBacklogSize
                | Self::ApproximateBacklogSizePerInstance
                | Self::ApproximateAgeOfOldestRequest
                | Self::HasBacklogWithoutCapacity
        )
    }

    /// How many of its unit a second is.
    pub(super) fn per_second(self) -> f64 {
        match self.unit() {
            "Microseconds" => 1e6,
            "Milliseconds" => 1e3,
            _ => 1.0,
        }
    }
}

/// What a metric was in one period: its least, its most and its sum as they were, the values
/// between them in bins. Has a bound, however many values there are.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Distribution {
    bins: BTreeMap<i32, Bin>,
    least: f64,
    most: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bin {
    sum: f64,
    count: u64,
}

impl Distribution {
    /// Adds a value; what is no number is none.
    pub(super) fn add(&mut self, value: f64) {
        self.add_many(value, 1);
    }

    /// Adds the same value several times.
    pub(super) fn add_many(&mut self, value: f64, count: u64) {
        if !value.is_finite() || count == 0 {
            return;
        }
        let is_first = self.bins.is_empty();
        self.least = if is_first { value } else { self.least.min(value) };
        self.most = if is_first { value } else { self.most.max(value) };
        let bin = self.bins.entry(bin_of(value)).or_default();
        bin.sum += value * float(count);
        bin.count += count;
    }

    /// Adds all of another one.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.bins.is_empty() {
            return;
        }
        let is_first = self.bins.is_empty();
        self.least = if is_first { other.least } else { self.least.min(other.least) };
        self.most = if is_first { other.most } else { self.most.max(other.most) };
        for (at, bin) in &other.bins {
            let ours = self.bins.entry(*at).or_default();
            ours.sum += bin.sum;
            ours.count += bin.count;
        }
    }

    /// How many values there were.
    pub(super) fn count(&self) -> u64 {
        self.bins.values().map(|bin| bin.count).sum()
    }

    /// All of them together.
    pub(super) fn sum(&self) -> f64 {
        // Of nothing it is 0, where the standard library's is -0.
        self.bins.values().fold(0.0, |sum, bin| sum + bin.sum)
    }

    /// As CloudWatch reads it; `None` where there is nothing.
    pub(super) fn shown(&self) -> Option<Value> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let bins = coarse(&self.bins);
        let values: Vec<f64> = bins.values().map(|bin| bin.sum / float(bin.count)).collect();
        let counts: Vec<u64> = bins.values().map(|bin| bin.count).collect();
        Some(json!({
            "Values": values, "Counts": counts, "Min": self.least, "Max": self.most,
            "Sum": self.sum(), "Count": count,
        }))
    }
}

/// Bins that are twice as wide until there are few enough.
fn coarse(bins: &BTreeMap<i32, Bin>) -> BTreeMap<i32, Bin> {
    let mut bins = bins.clone();
    while bins.len() > VALUES_MOST {
        let mut wider = BTreeMap::<i32, Bin>::new();
        for (at, bin) in bins {
            let at = if at == NOTHING { at } else { at.div_euclid(2) };
            let sum = wider.entry(at).or_default();
            sum.sum += bin.sum;
            sum.count += bin.count;
        }
        bins = wider;
    }
    bins
}

#[expect(clippy::cast_possible_truncation, reason = "of a finite number it is below ten thousand")]
fn bin_of(value: f64) -> i32 {
    if value > 0.0 { (value.ln() / RATIO.ln()).floor() as i32 } else { NOTHING }
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(shown: &Value, member: &str) -> Vec<f64> {
        shown[member].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect()
    }

    #[test]
    fn a_million_different_values_fit_and_their_sum_is_whole() {
        let mut distribution = Distribution::default();
        for number in 0..100_000_u32 {
            // From 0 to an hour in microseconds, more of the small ones.
            distribution.add((f64::from(number) / 1e5).powi(4) * 3.6e9);
        }
        let shown = distribution.shown().unwrap();
        let (values, counts) = (numbers(&shown, "Values"), numbers(&shown, "Counts"));
        assert!(values.len() <= VALUES_MOST && values.len() > 40, "{}", values.len());
        assert_eq!(values.len(), counts.len());
        let told: f64 = values.iter().zip(&counts).map(|(value, count)| value * count).sum();
        let sum = shown["Sum"].as_f64().unwrap();
        assert!((told / sum - 1.0).abs() < 1e-9 && (sum / 7.2e13 - 1.0).abs() < 1e-3, "{sum}");
        assert_eq!((counts.iter().sum::<f64>(), shown["Count"].as_f64()), (1e5, Some(1e5)));
        assert!(values.is_sorted());
        assert!(shown["Min"].as_f64().unwrap() <= values[0]);
        assert!(*values.last().unwrap() <= shown["Max"].as_f64().unwrap());
    }

    #[test]
    fn few_values_are_told_as_they_are() {
        let mut hits = Distribution::default();
        hits.add(0.0);
        hits.add_many(1.0, 3);
        hits.add(f64::NAN);
        let mut all = Distribution::default();
        all.merge(&Distribution::default());
        all.merge(&hits);
        let wanted = json!({
            "Values": [0.0, 1.0], "Counts": [1, 3], "Min": 0.0, "Max": 1.0, "Sum": 3.0, "Count": 4,
        });
        assert_eq!(all.shown(), Some(wanted));
        assert_eq!(Distribution::default().shown(), None);
    }
}
