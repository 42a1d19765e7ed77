//! The scenarios: prepare, send, watch, report.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::Common;
use crate::arrivals::Arrivals;
use crate::client::{Client, Outcome, Sample, Way};
use crate::face::How;
use crate::report::Report;
use crate::schedule::{self, Drawn, Planned, Replay, Target};
use crate::trace;
use crate::watch::{self, Watch};

/// Sends at times drawn beforehand, targets by Zipf's law.
pub(crate) async fn open_loop(
    common: &Common,
    arrivals: &Arrivals,
    skew: f64,
) -> Result<ExitCode, String> {
    arrivals.check()?;
    check_skew(skew)?;
    let stage = Stage::set(common).await?;
    let drawn = Drawn { targets: &stage.targets, skew, tenants: stage.tenants };
    let plan = schedule::open_loop(&drawn, arrivals, common.duration(), common.seed);
    let (rate, shape) = (arrivals.rate, arrivals.shape);
    let title =
        format!("open loop, {rate} requests/s, {shape:?}, Zipf {skew}, seed {}", common.seed);
    stage.send(common, title, plan).await
}

/// Sends at the times of a trace.
pub(crate) async fn replay(
    common: &Common,
    file: &Path,
    how: &Replay,
    skew: f64,
) -> Result<ExitCode, String> {
    check_skew(skew)?;
    if !(how.speed > 0.0 && how.speed.is_finite()) {
        return Err("--speed must be above 0".into());
    }
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
    let trace = trace::read(&text).map_err(|why| format!("{}: {why}", file.display()))?;
    let stage = Stage::set(common).await?;
    let drawn = Drawn { targets: &stage.targets, skew, tenants: stage.tenants };
    let plan = schedule::replay(&drawn, &trace, how, common.duration(), common.seed);
    let name =
        file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let title = format!("{name} at {} times its speed, seed {}", how.speed, common.seed);
    stage.send(common, title, plan).await
}

fn check_skew(skew: f64) -> Result<(), String> {
    match skew >= 0.0 && skew.is_finite() {
        true => Ok(()),
        false => Err("--skew must be at least 0".into()),
    }
}

/// Keeps `clients` requests under way.
pub(crate) async fn closed_loop(common: &Common, clients: usize) -> Result<ExitCode, String> {
    let stage = Stage::set(common).await?;
    let start = Instant::now();
    let mut tasks = Vec::with_capacity(clients);
    for index in 0..clients {
        let (client, targets) = (stage.client.clone(), stage.targets.clone());
        let tenants = stage.tenants;
        let mut rng = ChaCha8Rng::seed_from_u64(common.seed.wrapping_add(index as u64));
        let until = start + common.duration();
        tasks.push(tokio::spawn(async move {
            let mut samples = Vec::new();
            while Instant::now() < until {
                let cases = &targets[rng.random_range(0..targets.len())].cases;
                let case = &cases[rng.random_range(0..cases.len())];
                let tenant = (tenants > 0).then(|| rng.random_range(0..tenants));
                samples.push(client.send(case, tenant, start, start.elapsed()).await);
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
    /// How many keys there are.
    tenants: usize,
    left_out: Vec<(String, String)>,
    /// Counters at the beginning, and the watch; where there is an admin port.
    watched: Option<(String, BTreeMap<String, f64>, Watch)>,
}

impl Stage {
    async fn set(common: &Common) -> Result<Self, String> {
        let http = reqwest::Client::new();
        let keys = match &common.keys {
            None => Vec::new(),
            Some(file) => keys(file).await?,
        };
        let tenants = keys.len();
        let client = Client::new(Way {
            base: common.url.clone(),
            face: common.face,
            how: How {
                endpoint: common.endpoint.clone(),
                stream: common.stream,
                base: common.adapters_of.clone(),
                adapters: common.adapters_in,
            },
            keys,
            deadline: Duration::from_secs_f64(common.deadline),
        })?;
        let (targets, left_out) = match (&common.expect, common.targets.is_empty()) {
            (Some(file), _) => {
                let text = tokio::fs::read_to_string(file)
                    .await
                    .map_err(|e| format!("{}: {e}", file.display()))?;
                (schedule::read_cases(&text)?, Vec::new())
            }
            (None, false) => probe(&client, tenants, common, common.targets.clone()).await,
            (None, true) => {
                probe(&client, tenants, common, listed(&http, &common.url).await?).await
            }
        };
        if targets.is_empty() {
            let why: Vec<_> = left_out.iter().map(|(name, why)| format!("{name}: {why}")).collect();
            return Err(format!("no target answered: {}", why.join("; ")));
        }
        let watched = match common.admin.as_str() {
            "none" => None,
            admin => {
                let before = watch::counters(&http, admin).await;
                Some((admin.to_owned(), before, Watch::start(http.clone(), admin)))
            }
        };
        Ok(Self { http, client, targets, tenants, left_out, watched })
    }

    /// Sends a plan and reports.
    async fn send(
        self,
        common: &Common,
        title: String,
        plan: Vec<Planned>,
    ) -> Result<ExitCode, String> {
        let start = Instant::now();
        let mut tasks = Vec::with_capacity(plan.len());
        for planned in plan {
            let client = self.client.clone();
            tasks.push(tokio::spawn(async move {
                tokio::time::sleep_until((start + planned.at).into()).await;
                client.send(&planned.case, planned.tenant, start, planned.at).await
            }));
        }
        let mut samples = Vec::with_capacity(tasks.len());
        for task in tasks {
            samples.push(task.await.map_err(|e| format!("a request's task failed: {e}"))?);
        }
        self.finish(common, title, start.elapsed(), samples).await
    }

    async fn finish(
        self,
        common: &Common,
        title: String,
        elapsed: Duration,
        samples: Vec<Sample>,
    ) -> Result<ExitCode, String> {
        let (seen, counters) = match self.watched {
            None => (None, BTreeMap::new()),
            Some((admin, before, watch)) => {
                let seen = watch.finish().await;
                let after = watch::counters(&self.http, &admin).await;
                let change = |(series, value): (String, f64)| {
                    let change = value - before.get(&series).copied().unwrap_or(0.0);
                    (series, change)
                };
                let changed = after.into_iter().map(change).filter(|(_, change)| *change != 0.0);
                (Some(seen), changed.collect())
            }
        };
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

/// The keys of a file: the last word of each line.
async fn keys(file: &Path) -> Result<Vec<String>, String> {
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
    let keys: Vec<String> =
        text.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect();
    match keys.is_empty() {
        true => Err(format!("{}: no key in it", file.display())),
        false => Ok(keys),
    }
}

/// Which targets the server lists.
async fn listed(http: &reqwest::Client, url: &str) -> Result<Vec<String>, String> {
    let listing: Value = async {
        let url = format!("{}/v1/models?limit=1000", url.trim_end_matches('/'));
        http.get(url).send().await?.error_for_status()?.json().await
    }
    .await
    .map_err(|e: reqwest::Error| format!("listing the models (name them by --targets): {e}"))?;
    let ids = listing["data"].as_array().into_iter().flatten();
    Ok(ids.filter_map(|model| model["id"].as_str()).map(str::to_owned).collect())
}

/// Sends each target one request; those that refuse are left out, with why.
async fn probe(
    client: &Client,
    tenants: usize,
    common: &Common,
    names: Vec<String>,
) -> (Vec<Target>, Vec<(String, String)>) {
    let (mut targets, mut left_out) = (Vec::new(), Vec::new());
    for name in names {
        let case = schedule::generic_case(&name, common.tokens, common.exact);
        let tenant = (tenants > 0).then_some(0);
        match client.send(&case, tenant, Instant::now(), Duration::ZERO).await.outcome {
            Outcome::Right => targets.push(Target { name, cases: vec![case] }),
            other => left_out.push((name, format!("{} {}", other.label(), other.detail()))),
        }
    }
    (targets, left_out)
}
