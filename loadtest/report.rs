//! What a run came to, in text and as data.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::json;

use crate::chart;
use crate::client::{Outcome, Sample};
use crate::watch::Seen;

/// Everything a run has to say.
pub(crate) struct Report {
    pub(crate) title: String,
    pub(crate) elapsed: Duration,
    pub(crate) samples: Vec<Sample>,
    pub(crate) seen: Seen,
    pub(crate) counters: BTreeMap<String, f64>,
    pub(crate) targets: Vec<String>,
    pub(crate) left_out: Vec<(String, String)>,
}

impl Report {
    /// Whether every request was answered rightly and no sample was over budget.
    pub(crate) fn clean(&self) -> bool {
        self.samples.iter().all(|s| s.outcome == Outcome::Right)
            && self.seen.over_budget == 0
            && self.seen.double_loads == 0
            && self.seen.failed_samples == 0
    }

    /// Latencies of right answers, all and by the tier the model was found in.
    pub(crate) fn by_tier(&self) -> Vec<(String, Histogram<u64>)> {
        let mut groups: BTreeMap<String, Histogram<u64>> = BTreeMap::new();
        for sample in self.samples.iter().filter(|s| s.outcome == Outcome::Right) {
            let tier = sample.tier.clone().unwrap_or_else(|| "unknown".into());
            for group in ["all".to_owned(), tier] {
                let micros = u64::try_from(sample.latency.as_micros()).unwrap_or(u64::MAX);
                groups.entry(group).or_insert_with(histogram).saturating_record(micros);
            }
        }
        groups.into_iter().collect()
    }

    fn counter(&self, name: &str) -> f64 {
        self.counters
            .iter()
            .filter(|(series, _)| series.split('{').next() == Some(name))
            .map(|(_, value)| value)
            .fold(0.0, |sum, value| sum + value)
    }

    fn outcomes(&self) -> BTreeMap<String, usize> {
        let mut outcomes = BTreeMap::new();
        for sample in &self.samples {
            *outcomes.entry(sample.outcome.label().to_owned()).or_insert(0) += 1;
        }
        outcomes
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let seconds = self.elapsed.as_secs_f64();
        let total = self.samples.len();
        let line = |out: &mut String, text: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{text}");
        };
        line(
            &mut out,
            format!(
                "{}: {total} requests to {} targets in {seconds:.1} s",
                self.title,
                self.targets.len()
            ),
        );
        for (name, why) in &self.left_out {
            line(
                &mut out,
                format!("left out: {name}: {}", why.chars().take(120).collect::<String>()),
            );
        }
        let outcomes: Vec<_> =
            self.outcomes().into_iter().map(|(k, n)| format!("{n} {k}")).collect();
        line(&mut out, format!("answers: {}", outcomes.join(", ")));
        line(
            &mut out,
            format!(
                "\n{:<10}{:>9}{:>11}{:>11}{:>11}{:>11}",
                "found in", "answers", "p50 ms", "p90 ms", "p99 ms", "max ms"
            ),
        );
        for (tier, h) in self.by_tier() {
            let ms = |q: f64| h.value_at_quantile(q) as f64 / 1e3;
            line(
                &mut out,
                format!(
                    "{tier:<10}{:>9}{:>11.1}{:>11.1}{:>11.1}{:>11.1}",
                    h.len(),
                    ms(0.5),
                    ms(0.9),
                    ms(0.99),
                    h.max() as f64 / 1e3
                ),
            );
        }
        let hits = self.samples.iter().filter(|s| s.tier.as_deref() == Some("device")).count();
        let answered = self.samples.iter().filter(|s| s.tier.is_some()).count().max(1);
        let loads = self.counter("roundhouse_residency_loads_total");
        let evictions = self.counter("roundhouse_residency_evictions_total");
        let fetched = self.counter("roundhouse_store_fetched_bytes_total");
        line(
            &mut out,
            format!(
                "\nhit ratio {:.3}; {loads} loads ({:.2}/s), {evictions} evictions, {:.1} MB fetched from the store",
                hits as f64 / answered as f64,
                loads / seconds,
                fetched / 1e6
            ),
        );
        line(
            &mut out,
            format!(
                "residency sampled {} times ({} failed): budget {} bytes, at most {} granted and {} ready; {} over budget, {} double loads",
                self.seen.samples,
                self.seen.failed_samples,
                self.seen.budget,
                self.seen.most_granted,
                self.seen.most_residents,
                self.seen.over_budget,
                self.seen.double_loads
            ),
        );
        let faults: Vec<_> = self.samples.iter().filter(|s| s.outcome != Outcome::Right).collect();
        for fault in faults.iter().take(5) {
            line(
                &mut out,
                format!(
                    "{} after {:.1} s: {} {}",
                    fault.target,
                    fault.latency.as_secs_f64(),
                    fault.outcome.label(),
                    fault.outcome.detail().chars().take(300).collect::<String>()
                ),
            );
        }
        out
    }

    /// Writes `report.txt`, `report.json`, `requests.csv` and `latency.svg`.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("report.txt"), self.text())?;
        let tiers: BTreeMap<_, _> = self
            .by_tier()
            .into_iter()
            .map(|(tier, h)| {
                let us = |q: f64| h.value_at_quantile(q);
                (tier, json!({"answers": h.len(), "p50_us": us(0.5), "p90_us": us(0.9), "p99_us": us(0.99), "max_us": h.max()}))
            })
            .collect();
        let data = json!({
            "title": self.title, "seconds": self.elapsed.as_secs_f64(), "targets": self.targets,
            "outcomes": self.outcomes(), "latency": tiers, "counters": self.counters,
            "residency": {
                "samples": self.seen.samples, "failed_samples": self.seen.failed_samples,
                "budget_bytes": self.seen.budget, "most_granted_bytes": self.seen.most_granted,
                "most_ready": self.seen.most_residents, "over_budget": self.seen.over_budget,
                "double_loads": self.seen.double_loads,
            },
        });
        std::fs::write(folder.join("report.json"), serde_json::to_string_pretty(&data)?)?;
        let mut csv = String::from("planned_ms,latency_ms,target,tier,outcome\n");
        for s in &self.samples {
            let (planned, latency) = (s.planned.as_secs_f64() * 1e3, s.latency.as_secs_f64() * 1e3);
            let tier = s.tier.as_deref().unwrap_or("");
            writeln!(csv, "{planned:.1},{latency:.2},{},{tier},{}", s.target, s.outcome.label())?;
        }
        std::fs::write(folder.join("requests.csv"), csv)?;
        chart::latency(&folder.join("latency.svg"), self)
    }
}

/// Three significant digits from a microsecond to an hour.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are in order")
}
