//! What a run came to, in text and as data.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::chart;
use crate::client::{Outcome, Sample};
use crate::watch::Seen;

/// Everything a run has to say.
pub(crate) struct Report {
    pub(crate) title: String,
    pub(crate) elapsed: Duration,
    pub(crate) samples: Vec<Sample>,
    /// What was seen of residency; absent where nobody watched.
    pub(crate) seen: Option<Seen>,
    pub(crate) counters: BTreeMap<String, f64>,
    pub(crate) targets: Vec<String>,
    pub(crate) left_out: Vec<(String, String)>,
}

impl Report {
    /// Whether every request was answered rightly and no sample was over budget.
    pub(crate) fn clean(&self) -> bool {
        let sound = |seen: &Seen| {
            seen.over_budget == 0 && seen.double_loads == 0 && seen.failed_samples == 0
        };
        self.samples.iter().all(|s| s.outcome == Outcome::Right)
            && self.seen.as_ref().is_none_or(sound)
    }

    /// Latencies of right answers, all and by the tier the model was found in.
    pub(crate) fn by_tier(&self) -> Vec<(String, Histogram<u64>)> {
        let right = self.samples.iter().filter(|s| s.outcome == Outcome::Right);
        grouped(right.flat_map(|sample| {
            let tier = sample.tier.clone().unwrap_or_else(|| "unknown".into());
            ["all".to_owned(), tier].map(|group| (group, sample.latency))
        }))
    }

    /// The same by who asked; nothing where nobody said so.
    fn by_tenant(&self) -> Vec<(String, Histogram<u64>)> {
        let right = self.samples.iter().filter(|s| s.outcome == Outcome::Right);
        grouped(right.filter_map(|s| Some((format!("tenant {}", s.tenant?), s.latency))))
    }

    /// Of streams: from the planned time to the first piece, and between pieces.
    pub(crate) fn of_pieces(&self) -> Vec<(String, Histogram<u64>)> {
        let right = self.samples.iter().filter(|s| s.outcome == Outcome::Right);
        grouped(right.flat_map(|sample| {
            let first = sample.pieces.first().map(|at| ("first".to_owned(), *at));
            let between =
                sample.pieces.windows(2).map(|pair| ("between".to_owned(), pair[1] - pair[0]));
            first.into_iter().chain(between)
        }))
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
        line(&mut out, String::new());
        line(&mut out, table("found in", "answers", self.by_tier()));
        if !self.by_tenant().is_empty() {
            line(&mut out, table("whose", "answers", self.by_tenant()));
        }
        if !self.of_pieces().is_empty() {
            line(&mut out, table("token", "pieces", self.of_pieces()));
        }
        if let Some(seen) = &self.seen {
            line(&mut out, self.residency(seen));
        }
        let faults: Vec<_> = self.samples.iter().filter(|s| s.outcome != Outcome::Right).collect();
        for fault in faults.iter().take(5) {
            let detail: String = fault.outcome.detail().chars().take(300).collect();
            let (seconds, label) = (fault.latency.as_secs_f64(), fault.outcome.label());
            line(&mut out, format!("{} after {seconds:.1} s: {label} {detail}", fault.target));
        }
        out
    }

    /// What the server said of itself.
    fn residency(&self, seen: &Seen) -> String {
        let hits = self.samples.iter().filter(|s| s.tier.as_deref() == Some("device")).count();
        let answered = self.samples.iter().filter(|s| s.tier.is_some()).count().max(1);
        let loads = self.counter("roundhouse_residency_loads_total");
        let evictions = self.counter("roundhouse_residency_evictions_total");
        let fetched = self.counter("roundhouse_store_fetched_bytes_total");
        format!(
            "hit ratio {:.3}; {loads} loads ({:.2}/s), {evictions} evictions, {:.1} MB fetched from the store\n\
             residency sampled {} times ({} failed): budget {} bytes, at most {} granted and {} ready; \
             {} over budget, {} double loads",
            hits as f64 / answered as f64,
            loads / self.elapsed.as_secs_f64(),
            fetched / 1e6,
            seen.samples,
            seen.failed_samples,
            seen.budget,
            seen.most_granted,
            seen.most_residents,
            seen.over_budget,
            seen.double_loads
        )
    }

    /// Writes `report.txt`, `report.json`, `requests.csv` and `latency.svg`.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("report.txt"), self.text())?;
        let residency = self.seen.as_ref().map(|seen| {
            json!({
                "samples": seen.samples, "failed_samples": seen.failed_samples,
                "budget_bytes": seen.budget, "most_granted_bytes": seen.most_granted,
                "most_ready": seen.most_residents, "over_budget": seen.over_budget,
                "double_loads": seen.double_loads,
            })
        });
        let data = json!({
            "title": self.title, "seconds": self.elapsed.as_secs_f64(), "targets": self.targets,
            "outcomes": self.outcomes(), "latency": figures(self.by_tier()),
            "tenants": figures(self.by_tenant()), "pieces": figures(self.of_pieces()),
            "counters": self.counters, "residency": residency,
        });
        std::fs::write(folder.join("report.json"), serde_json::to_string_pretty(&data)?)?;
        let mut csv =
            String::from("planned_ms,latency_ms,first_ms,pieces,tenant,target,tier,outcome\n");
        for s in &self.samples {
            let (planned, latency) = (s.planned.as_secs_f64() * 1e3, s.latency.as_secs_f64() * 1e3);
            let tier = s.tier.as_deref().unwrap_or("");
            let first = s
                .pieces
                .first()
                .map_or_else(String::new, |at| format!("{:.2}", at.as_secs_f64() * 1e3));
            let tenant = s.tenant.map_or_else(String::new, |tenant| tenant.to_string());
            let (pieces, outcome) = (s.pieces.len(), s.outcome.label());
            writeln!(
                csv,
                "{planned:.1},{latency:.2},{first},{pieces},{tenant},{},{tier},{outcome}",
                s.target
            )?;
        }
        std::fs::write(folder.join("requests.csv"), csv)?;
        chart::latency(&folder.join("latency.svg"), self)
    }
}

/// A histogram for each group, in the groups' order.
fn grouped(times: impl Iterator<Item = (String, Duration)>) -> Vec<(String, Histogram<u64>)> {
    let mut groups: BTreeMap<String, Histogram<u64>> = BTreeMap::new();
    for (group, time) in times {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        groups.entry(group).or_insert_with(histogram).saturating_record(micros);
    }
    groups.into_iter().collect()
}

/// Quantiles for people.
fn table(what: &str, counted: &str, groups: Vec<(String, Histogram<u64>)>) -> String {
    let mut out = format!(
        "{what:<10}{counted:>9}{:>11}{:>11}{:>11}{:>11}\n",
        "p50 ms", "p90 ms", "p99 ms", "max ms"
    );
    for (group, h) in groups {
        let ms = |q: f64| h.value_at_quantile(q) as f64 / 1e3;
        let max = h.max() as f64 / 1e3;
        let row = [ms(0.5), ms(0.9), ms(0.99), max].map(|it| format!("{it:>11.1}")).concat();
        out += &format!("{group:<10}{:>9}{row}\n", h.len());
    }
    out
}

/// Quantiles for programs.
fn figures(groups: Vec<(String, Histogram<u64>)>) -> BTreeMap<String, Value> {
    let figure = |(group, h): (String, Histogram<u64>)| {
        let us = |q: f64| h.value_at_quantile(q);
        let (p50, p90, p99) = (us(0.5), us(0.9), us(0.99));
        let figures = json!({
            "answers": h.len(), "p50_us": p50, "p90_us": p90, "p99_us": p99, "max_us": h.max(),
        });
        (group, figures)
    };
    groups.into_iter().map(figure).collect()
}

/// Three significant digits from a microsecond to an hour.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are in order")
}
