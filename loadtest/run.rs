//! The scenarios: prepare, send, watch, report.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::Common;
use crate::client::{Client, Outcome, Sample};
use crate::report::Report;
use crate::schedule::{self, Target};
use crate::watch::{self, Watch};

/// Sends at planned times.
pub(crate) async fn open_loop(common: &Common, rate: f64, skew: f64) -> Result<ExitCode, String> {
    if !(rate > 0.0 && rate.is_finite() && skew >= 0.0) {
        return Err("--rate must be above 0 and --skew at least 0".into());
    }
    let stage = Stage::set(common).await?;
    let plan = schedule::open_loop(&stage.targets, rate, skew, common.duration(), common.seed);
    let start = Instant::now();
    let mut tasks = Vec::with_capacity(plan.len());
    for planned in plan {
        let client = stage.client.clone();
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep_until((start + planned.at).into()).await;
            client.send(&planned.case, start, planned.at).await
        }));
    }
    let mut samples = Vec::with_capacity(tasks.len());
    for task in tasks {
        samples.push(task.await.map_err(|e| format!("a request's task failed: {e}"))?);
    }
    let title = format!("open loop, {rate} requests/s, Zipf {skew}, seed {}", common.seed);
    stage.finish(common, title, start.elapsed(), samples).await
}

/// Keeps `clients` requests under way.
pub(crate) async fn closed_loop(common: &Common, clients: usize) -> Result<ExitCode, String> {
    let stage = Stage::set(common).await?;
    let start = Instant::now();
    let mut tasks = Vec::with_capacity(clients);
    for index in 0..clients {
        let (client, targets) = (stage.client.clone(), stage.targets.clone());
        let mut rng = ChaCha8Rng::seed_from_u64(common.seed.wrapping_add(index as u64));
        let until = start + common.duration();
        tasks.push(tokio::spawn(async move {
            let mut samples = Vec::new();
            while Instant::now() < until {
                let cases = &targets[rng.random_range(0..targets.len())].cases;
                let case = &cases[rng.random_range(0..cases.len())];
                samples.push(client.send(case, start, start.elapsed()).await);
            }
            samples
        }));
    }
    let mut samples = Vec::new();
    for task in tasks {
        samples.extend(task.await.map_err(|e| format!("a client's task failed: {e}"))?);
    }
    let title = format!("closed loop, {clients} clients, uniform targets, seed {}", common.seed);
    stage.finish(common, title, start.elapsed(), samples).await
}

/// What stands ready before the first request of a run.
struct Stage {
    http: reqwest::Client,
    client: Client,
    targets: Vec<Target>,
    left_out: Vec<(String, String)>,
    before: BTreeMap<String, f64>,
    watch: Watch,
}

impl Stage {
    async fn set(common: &Common) -> Result<Self, String> {
        let http = reqwest::Client::new();
        let deadline = Duration::from_secs_f64(common.deadline);
        let client = Client::new(&common.url, &common.endpoint, deadline)?;
        let (targets, left_out) = match &common.expect {
            Some(file) => {
                let text = tokio::fs::read_to_string(file)
                    .await
                    .map_err(|e| format!("{}: {e}", file.display()))?;
                (schedule::read_cases(&text)?, Vec::new())
            }
            None => probe(&http, &client, &common.url).await?,
        };
        if targets.is_empty() {
            return Err("no target answered".into());
        }
        let before = watch::counters(&http, &common.admin).await;
        let watch = Watch::start(http.clone(), &common.admin);
        Ok(Self { http, client, targets, left_out, before, watch })
    }

    async fn finish(
        self,
        common: &Common,
        title: String,
        elapsed: Duration,
        samples: Vec<Sample>,
    ) -> Result<ExitCode, String> {
        let seen = self.watch.finish().await;
        let after = watch::counters(&self.http, &common.admin).await;
        let counters = after
            .into_iter()
            .map(|(series, value)| {
                let change = value - self.before.get(&series).copied().unwrap_or(0.0);
                (series, change)
            })
            .filter(|(_, change)| *change != 0.0)
            .collect();
        let targets = self.targets.iter().map(|t| t.name.clone()).collect();
        let report =
            Report { title, elapsed, samples, seen, counters, targets, left_out: self.left_out };
        print!("{}", report.text());
        if let Some(folder) = &common.out {
            report.write(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            println!("written to {}", folder.display());
        }
        Ok(if report.clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Asks which targets there are and sends each one request; those that refuse are left out, with why.
async fn probe(
    http: &reqwest::Client,
    client: &Client,
    url: &str,
) -> Result<(Vec<Target>, Vec<(String, String)>), String> {
    let listing: Value = async {
        let url = format!("{}/v1/models?limit=1000", url.trim_end_matches('/'));
        http.get(url).send().await?.error_for_status()?.json().await
    }
    .await
    .map_err(|e: reqwest::Error| format!("listing the models: {e}"))?;
    let (mut targets, mut left_out) = (Vec::new(), Vec::new());
    for id in listing["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()) {
        let case = schedule::generic_case(id);
        let start = Instant::now();
        match client.send(&case, start, Duration::ZERO).await.outcome {
            Outcome::Right => targets.push(Target { name: id.to_owned(), cases: vec![case] }),
            other => left_out.push((id.to_owned(), other.detail().to_owned())),
        }
    }
    Ok((targets, left_out))
}
