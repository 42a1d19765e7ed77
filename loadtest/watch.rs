//! What the server says of itself while the load runs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How often residency is sampled.
const SAMPLE_EVERY: Duration = Duration::from_millis(50);

/// Residency as seen from outside, sampled.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) samples: u64,
    pub(crate) budget: u64,
    pub(crate) most_granted: u64,
    pub(crate) most_residents: usize,
    /// Samples in which charged + reserved exceeded the budget.
    pub(crate) over_budget: u64,
    /// Samples in which one version was loading twice on one device.
    pub(crate) double_loads: u64,
    pub(crate) failed_samples: u64,
}

/// Samples `/admin/v1/residency` until told to stop.
pub(crate) struct Watch {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Seen>,
}

impl Watch {
    pub(crate) fn start(http: reqwest::Client, admin: &str) -> Self {
        let url = format!("{}/admin/v1/residency", admin.trim_end_matches('/'));
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut seen = Seen::default();
            let mut ticks = tokio::time::interval(SAMPLE_EVERY);
            loop {
                tokio::select! {
                    _ = &mut stopped => return seen,
                    _ = ticks.tick() => match read(&http, &url).await {
                        Some(residency) => seen.add(&residency),
                        None => seen.failed_samples += 1,
                    },
                }
            }
        });
        Self { stop, task }
    }

    pub(crate) async fn finish(self) -> Seen {
        // A watcher that already ended has nothing to be told.
        let _ = self.stop.send(());
        self.task.await.unwrap_or_default()
    }
}

impl Seen {
    fn add(&mut self, residency: &Value) {
        self.samples += 1;
        for device in residency["devices"].as_array().into_iter().flatten() {
            let bytes = |key: &str| device[key].as_u64().unwrap_or(0);
            let granted = bytes("charged_bytes") + bytes("reserved_bytes");
            self.budget = bytes("budget_bytes");
            self.most_granted = self.most_granted.max(granted);
            self.over_budget += u64::from(granted > bytes("budget_bytes"));
            let residents = device["residents"].as_array().map_or(&[][..], Vec::as_slice);
            let held = residents.iter().filter(|r| r["state"] == "ready").count();
            self.most_residents = self.most_residents.max(held);
        }
        let mut loading = BTreeMap::new();
        for load in residency["loads"].as_array().into_iter().flatten() {
            let key = format!("{}:{}@{}", load["target"], load["version"], load["device"]);
            *loading.entry(key).or_insert(0) += 1;
        }
        self.double_loads += u64::from(loading.values().any(|&n: &u32| n > 1));
    }
}

async fn read(http: &reqwest::Client, url: &str) -> Option<Value> {
    http.get(url).send().await.ok()?.error_for_status().ok()?.json().await.ok()
}

/// The counters of `/metrics` whose name begins with `roundhouse_`, by name and labels.
pub(crate) async fn counters(http: &reqwest::Client, admin: &str) -> BTreeMap<String, f64> {
    let url = format!("{}/metrics", admin.trim_end_matches('/'));
    let Ok(response) = http.get(url).send().await else { return BTreeMap::new() };
    let Ok(text) = response.text().await else { return BTreeMap::new() };
    text.lines()
        .filter(|line| line.starts_with("roundhouse_"))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let name = series.split('{').next()?;
            let counts = ["_total", "_sum", "_count"].iter().any(|s| name.ends_with(s));
            counts.then(|| value.parse().ok().map(|v| (series.to_owned(), v))).flatten()
        })
        .collect()
}
