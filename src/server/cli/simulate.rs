//! `roundhouse simulate`: what a trace of requests would have met under other budgets and policies.
//!
//! Reading order: this file (the arguments and the runs), `read` (traces), `lines` (of files),
//! `fields` (columns and times), `sizes` (what models take), `rows` (the table and the JSON),
//! `picture` (the SVG).

mod fields;
mod lines;
mod picture;
pub(super) mod read;
mod rows;
mod sizes;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use roundhouse_residency::simulate::{Drive, LeastBudget, Setup, Trace, World, least_budget, run};
use roundhouse_residency::{Config as TableConfig, Policy};
use roundhouse_types::Bytes;

use self::rows::{Report, Row};
use super::{ServeFlags, environment, output};
use crate::app;
use crate::config::{Config, parse_duration};
use crate::error::Error;

/// The least bandwidth, per second: at less, what is not worth waiting for takes longer than can
/// be counted.
const LEAST_BANDWIDTH: Bytes = Bytes(1000);
/// The longest that a request may wait or be served.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Arguments of `simulate`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = FORMATS)]
pub struct SimulateArgs {
    /// A trace: an access log, or a CSV file; may be given several times, and all are replayed as one.
    #[arg(long = "trace", value_name = "FILE", required = true)]
    pub traces: Vec<PathBuf>,
    /// What residents may take, like 56GB; may be given several times.
    #[arg(long = "budget", value_name = "SIZE")]
    pub budgets: Vec<Bytes>,
    /// The same in models, where all take the same; may be given several times [default: a few
    /// shares of all models].
    #[arg(long, value_name = "COUNT", conflicts_with = "budgets")]
    pub slots: Vec<u64>,
    /// What a model takes: a size for all that are not named, or a file of lines `model=size`;
    /// both may be given.
    #[arg(long, value_name = "SIZE|FILE")]
    pub sizes: Vec<String>,
    /// Who leaves first; may be given several times [default: the server's].
    #[arg(long = "policy", value_name = "POLICY")]
    pub policies: Vec<PolicyName>,
    /// Whether the load that most requests wait for goes first; may be given several times
    /// [default: the server's].
    #[arg(long = "collation", value_name = "on|off")]
    pub collations: Vec<Switch>,
    /// Take the residency settings of this settings file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Models that are loaded from disk at a time [default: the server's].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub concurrent_loads: Option<u16>,
    /// Let time pass this many times faster between requests.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub compress: f64,
    /// Ignore the times of the trace: the next request comes when fewer than this many are
    /// unanswered.
    #[arg(long, value_name = "COUNT", conflicts_with = "compress")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub pending: Option<u32>,
    /// Bytes per second from the store, shared by fetches.
    #[arg(long, value_name = "SIZE", default_value = "1GB")]
    pub store_bandwidth: Bytes,
    /// Bytes per second from disk to the device, shared by loads.
    #[arg(long, value_name = "SIZE", default_value = "4GB")]
    pub load_bandwidth: Bytes,
    /// What the disk holds [default: everything].
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<Bytes>,
    /// All files are on disk at the beginning.
    #[arg(long)]
    pub warm_disk: bool,
    /// How long a request holds its model.
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = parse_duration)]
    pub service_time: Duration,
    /// How long a request waits for its model before it is refused.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub hold: Duration,
    /// Also find the least budget at which this share of the requests finds its model loaded.
    #[arg(long, value_name = "SHARE")]
    pub target_hit_ratio: Option<f64>,
    /// Draw a picture into this file (SVG): requests without a load over the budget.
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

const FORMATS: &str = "\
Traces:
  An access log of this server: one JSON object per line. Lines without a target, and whatever else
  stands in the same file, are left out and counted. It does not say what models take: give --sizes.
  A CSV file whose first line names its columns: `time` (seconds, or 2026-11-21 07:00:00) and
  `target`, and `bytes` where sizes are known. Other columns are left alone.
  The CSV of Alibaba's GenAI trace of 2026 (lora_request_trace.csv), by its base models.

Rows in parentheses are plain models of caching on the order of arrival, in which nothing takes
time; the optimum is what could be done at best by one who knows all requests beforehand.";

/// The policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// The least recently used leaves first.
    Lru,
    /// The one leaves first whose requests would cost least to reload, for its size.
    GreedyDual,
}

impl PolicyName {
    fn policy(self) -> Policy {
        match self {
            Self::Lru => Policy::LeastRecentlyUsed,
            Self::GreedyDual => Policy::GreedyDual,
        }
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Reads the trace, replays it under every combination, and prints what came of it.
pub(super) fn simulate(args: &SimulateArgs) -> Result<(), Error> {
    args.check()?;
    let mut read = read::read(&args.traces)?;
    let mut notes = read.notes();
    sizes::apply(&mut read, &args.sizes, &mut notes)?;
    let trace = read.trace;
    let budgets = args.budgets(&trace)?;
    let configs = args.configs()?;
    let mut rows = Vec::new();
    for budget in &budgets {
        for config in &configs {
            let setup = args.setup(config, *budget);
            rows.push(Row::of_run(config, *budget, run(&trace, &setup)));
        }
        rows.extend(rows::references(&trace, *budget, args.pending));
    }
    rows::hold_against_optimum(&mut rows);
    let targets = args.targets(&trace, &configs);
    let slot = trace.equal_size();
    let report = Report { notes, requests: trace.requests().len(), slot, rows, targets };
    if let Some(path) = &args.picture {
        let drawn = picture::draw(&report, trace.models().len());
        std::fs::write(path, drawn)
            .map_err(|source| Error::io(format!("cannot write {}", path.display()), source))?;
    }
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

impl SimulateArgs {
    fn check(&self) -> Result<(), Error> {
        let ratio = self.target_hit_ratio;
        let budget = format!("is above zero and at most {}", sizes::COUNTED);
        let is_budget = |budget: &Bytes| (Bytes(1)..=sizes::COUNTED).contains(budget);
        let asked = [
            ("--compress", (1e-3..=1e9).contains(&self.compress), "lies between 0.001 and 1e9"),
            ("--store-bandwidth", self.store_bandwidth >= LEAST_BANDWIDTH, "is 1kB at least"),
            ("--load-bandwidth", self.load_bandwidth >= LEAST_BANDWIDTH, "is 1kB at least"),
            ("--service-time", self.service_time <= LONGEST, "is 8760h at most"),
            ("--hold", self.hold <= LONGEST, "is 8760h at most"),
            ("--budget", self.budgets.iter().all(is_budget), budget.as_str()),
            ("--slots", !self.slots.contains(&0), "is above zero"),
            (
                "--target-hit-ratio",
                ratio.is_none_or(|ratio| (0.0..=1.0).contains(&ratio)),
                "lies between 0 and 1, like 0.9",
            ),
        ];
        match asked.into_iter().find(|(_, holds, _)| !holds) {
            Some((flag, _, what)) => Err(Error::Usage(format!("{flag} {what}"))),
            None => Ok(()),
        }
    }

    /// What was asked for; else shares of all models, from a 32nd to a half.
    fn budgets(&self, trace: &Trace) -> Result<Vec<Bytes>, Error> {
        if !self.budgets.is_empty() {
            return Ok(self.budgets.clone());
        }
        let Some(size) = trace.equal_size() else {
            let why = "models take different sizes: give --budget in bytes";
            return Err(Error::Usage(why.into()));
        };
        let models = trace.models().len() as u64;
        let mut slots = self.slots.clone();
        if slots.is_empty() {
            slots = [32, 16, 8, 4, 2].map(|share| models.div_ceil(share).max(1)).to_vec();
            slots.dedup();
        }
        let budget = |slots: &u64| {
            let fault = || Error::Usage(format!("--slots {slots} are more than can be counted"));
            size.checked_mul(*slots).filter(|all| *all <= sizes::COUNTED).ok_or_else(fault)
        };
        slots.iter().map(budget).collect()
    }

    /// What the table is told, for each combination asked for.
    fn configs(&self) -> Result<Vec<TableConfig>, Error> {
        let mut base = match &self.config {
            None => TableConfig::default(),
            Some(file) => {
                let flags = ServeFlags::default();
                let config = Config::load(Some(file), &environment, &flags);
                app::residency_settings(&config.map_err(Error::Settings)?)
            }
        };
        if let Some(loads) = self.concurrent_loads {
            base.max_loads = loads.into();
        }
        let mut policies: Vec<Policy> = self.policies.iter().map(|name| name.policy()).collect();
        if policies.is_empty() {
            policies.push(base.policy);
        }
        let mut collations: Vec<bool> = self.collations.iter().map(|s| *s == Switch::On).collect();
        if collations.is_empty() {
            collations.push(base.collation.most_waited_first);
        }
        let mut configs = Vec::new();
        for policy in policies {
            for most_waited_first in &collations {
                let mut config = TableConfig { policy, ..base.clone() };
                config.collation.most_waited_first = *most_waited_first;
                configs.push(config);
            }
        }
        Ok(configs)
    }

    fn setup(&self, config: &TableConfig, budget: Bytes) -> Setup {
        let world = World {
            store_bandwidth: self.store_bandwidth,
            load_bandwidth: self.load_bandwidth,
            on_disk: self.warm_disk,
            disk: self.disk,
            service: self.service_time,
            ..World::default()
        };
        let drive = match self.pending {
            Some(pending) => Drive::Closed { pending: pending as usize },
            None => Drive::Open { compress: self.compress },
        };
        Setup { config: config.clone(), budget, world, drive, hold: self.hold }
    }

    /// The least budget for the target, by rule; none where no budget reaches it.
    fn targets(
        &self,
        trace: &Trace,
        configs: &[TableConfig],
    ) -> Vec<(String, f64, Option<LeastBudget>)> {
        let Some(ratio) = self.target_hit_ratio else {
            return Vec::new();
        };
        let least = |config: &TableConfig| {
            let setup = self.setup(config, Bytes::ZERO);
            (rows::rule(config), ratio, least_budget(trace, &setup, ratio))
        };
        configs.iter().map(least).collect()
    }
}

#[cfg(test)]
mod tests;
