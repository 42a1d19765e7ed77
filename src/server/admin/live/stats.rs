//! Samples of what requests met: latencies and counts of the last seconds, from the metrics that
//! scrapers read, so that both tell the same.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use roundhouse_residency::rfc3339;
use serde_json::{Map, Value, json};

/// Samples that are remembered: a quarter of an hour, one every five seconds.
const REMEMBERED: usize = 180;

/// Latencies that are told, by the name of their histogram.
const LATENCIES: [(&str, &str); 3] = [
    ("first_token", "roundhouse_serving_first_token_seconds"),
    ("per_token", "roundhouse_serving_output_token_seconds"),
    ("queue", "roundhouse_serving_queue_seconds"),
];
/// Counts that are told, by the name of their counter and a label that the series must have.
const COUNTS: [(&str, &str, &str); 9] = [
    ("requests", "roundhouse_serving_invocations_total", ""),
    ("answered", "roundhouse_serving_invocations_total", "outcome=\"ok\""),
    ("cancelled", "roundhouse_serving_invocations_total", "outcome=\"cancelled\""),
    ("tokens_out", "roundhouse_serving_output_tokens_total", ""),
    ("grants", "roundhouse_residency_grants_total", ""),
    ("hits", "roundhouse_residency_grants_total", "tier=\"device\""),
    ("loads", "roundhouse_residency_loads_total", ""),
    ("evictions", "roundhouse_residency_evictions_total", "reason=\"evicted\""),
    ("failures", "roundhouse_residency_failures_total", ""),
];
/// Levels that are told as they are.
const LEVELS: [(&str, &str, &str); 4] = [
    ("waiters", "roundhouse_residency_waiters", ""),
    ("regret_lower", "roundhouse_residency_regret_ratio", "bound=\"lower\""),
    ("regret_upper", "roundhouse_residency_regret_ratio", "bound=\"upper\""),
    ("regret_requests", "roundhouse_residency_regret_requests", ""),
];

/// A histogram's buckets: upper bound in seconds, and how many were at most that.
type Buckets = Vec<(f64, f64)>;

/// What the metrics said at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
struct Reading {
    latencies: BTreeMap<&'static str, Buckets>,
    counts: BTreeMap<&'static str, f64>,
    levels: BTreeMap<&'static str, f64>,
}

/// The samples of the last quarter of an hour.
pub(super) struct Stats {
    last: Option<Reading>,
    samples: VecDeque<Value>,
}

impl Stats {
    pub(super) fn new() -> Self {
        Self { last: None, samples: VecDeque::new() }
    }

    /// Takes a sample: what has come since the one before.
    pub(super) fn sample(&mut self, text: &str) -> Value {
        let now = Reading::of(text);
        let before = self.last.replace(now.clone()).unwrap_or_default();
        let sample = now.since(&before);
        if self.samples.len() == REMEMBERED {
            self.samples.pop_front();
        }
        self.samples.push_back(sample.clone());
        sample
    }

    /// All that are remembered, and what the metrics have counted since the process began.
    pub(super) fn shown(&self, every: Duration) -> Value {
        json!({"every_ms": every.as_millis(), "most": REMEMBERED, "samples": self.samples})
    }
}

impl Reading {
    fn of(text: &str) -> Self {
        let mut reading = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            reading.take(name, labels, value);
        }
        reading
    }

    fn take(&mut self, name: &str, labels: &str, value: f64) {
        if let Some(histogram) = name.strip_suffix("_bucket") {
            let told = LATENCIES.iter().find(|(_, metric)| *metric == histogram);
            let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
            if let (Some((told, _)), Some(bound)) = (told, bound) {
                let bound = bound.parse().unwrap_or(f64::INFINITY);
                add(self.latencies.entry(told).or_default(), bound, value);
            }
            return;
        }
        let is_it = |metric: &str, label: &str| metric == name && labels.contains(label);
        for (told, _, _) in COUNTS.iter().filter(|(_, metric, label)| is_it(metric, label)) {
            *self.counts.entry(told).or_default() += value;
        }
        for (told, _, _) in LEVELS.iter().filter(|(_, metric, label)| is_it(metric, label)) {
            self.levels.insert(told, value);
        }
    }

    fn since(&self, before: &Self) -> Value {
        let mut sample = Map::new();
        sample.insert("time".into(), rfc3339(SystemTime::now()).into());
        for (told, metric) in &self.counts {
            let known = before.counts.get(told).copied().unwrap_or_default();
            sample.insert((*told).into(), whole(metric - known));
        }
        // A ratio that is none is left out.
        for (told, level) in self.levels.iter().filter(|(_, level)| level.is_finite()) {
            sample.insert((*told).into(), json!(level));
        }
        let totals = self.counts.iter().map(|(told, count)| ((*told).into(), whole(*count)));
        sample.insert("totals".into(), Value::Object(totals.collect()));
        let none = Buckets::new();
        for (told, buckets) in &self.latencies {
            let known = before.latencies.get(told).unwrap_or(&none);
            let fresh: Buckets = buckets
                .iter()
                .map(|(bound, count)| (*bound, count - count_at(known, *bound)))
                .collect();
            sample.extend(summary(&fresh).map(|summary| ((*told).into(), summary)));
        }
        Value::Object(sample)
    }
}

/// Adds a series to the sum of all series of a histogram, which have the same bounds.
fn add(buckets: &mut Buckets, bound: f64, count: f64) {
    match buckets.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
        Some((_, sum)) => *sum += count,
        None => {
            let at = buckets.partition_point(|(known, _)| *known < bound);
            buckets.insert(at, (bound, count));
        }
    }
}

fn count_at(buckets: &Buckets, bound: f64) -> f64 {
    buckets.iter().find(|(known, _)| known.total_cmp(&bound).is_eq()).map_or(0.0, |it| it.1)
}

/// How many there were, and between which times they lie; `None` where there were none.
fn summary(buckets: &Buckets) -> Option<Value> {
    let count = buckets.last()?.1;
    let at = |share: f64| quantile(buckets, share * count);
    (count > 0.0)
        .then(|| json!({"count": whole(count), "p50": at(0.5), "p95": at(0.95), "p99": at(0.99)}))
}

/// The time that so many did not exceed, as if each bucket's were spread evenly over it. Of those
/// beyond the last bound it is that bound.
fn quantile(buckets: &Buckets, rank: f64) -> f64 {
    let (mut lower, mut below) = (0.0, 0.0);
    for (upper, count) in buckets {
        if *count >= rank {
            if upper.is_infinite() {
                break;
            }
            let share = if *count > below { (rank - below) / (count - below) } else { 1.0 };
            return lower + (upper - lower) * share;
        }
        (lower, below) = (*upper, *count);
    }
    lower
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts are whole")]
fn whole(count: f64) -> Value {
    json!(count.max(0.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(first: [u32; 4], ok: u32, waiters: u32) -> String {
        let mut text = String::from("# HELP x y\n");
        for endpoint in ["a", "b"] {
            for (bound, count) in ["0.1", "0.2", "0.4", "+Inf"].iter().zip(first) {
                text.push_str(&format!(
                    "roundhouse_serving_first_token_seconds_bucket{{endpoint=\"{endpoint}\",le=\"{bound}\"}} {count}\n"
                ));
            }
        }
        text.push_str(&format!(
            "roundhouse_serving_invocations_total{{outcome=\"ok\"}} {ok}\n\
             roundhouse_serving_invocations_total{{outcome=\"throttled\"}} 1\n\
             roundhouse_residency_waiters {waiters}\n\
             roundhouse_residency_regret_ratio{{bound=\"lower\"}} NaN\n"
        ));
        text
    }

    #[test]
    fn a_sample_tells_what_came_since_the_one_before() {
        let mut stats = Stats::new();
        stats.sample(&told([10, 10, 10, 10], 4, 0));
        let sample = stats.sample(&told([10, 12, 14, 14], 9, 3));
        assert_eq!(sample["requests"], 5);
        assert_eq!((&sample["answered"], &sample["totals"]["answered"]), (&json!(5), &json!(9)));
        assert_eq!(sample["waiters"], 3.0);
        assert!(sample.get("regret_lower").is_none(), "{sample}");
        let first = &sample["first_token"];
        assert_eq!(first["count"], 8, "of both endpoints");
        assert!((first["p50"].as_f64().unwrap() - 0.2).abs() < 1e-9, "{first}");
        let quiet = stats.sample(&told([10, 12, 14, 14], 9, 0));
        assert!(quiet.get("first_token").is_none(), "{quiet}");
        assert_eq!(stats.shown(Duration::from_secs(5))["samples"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn samples_and_their_times_have_a_bound() {
        let mut stats = Stats::new();
        for _ in 0..REMEMBERED * 2 {
            stats.sample("");
        }
        assert_eq!(stats.samples.len(), REMEMBERED);
        let beyond = vec![(0.1, 0.0), (360.0, 0.0), (f64::INFINITY, 5.0)];
        assert!((quantile(&beyond, 2.5) - 360.0).abs() < 1e-9);
    }
}
