//! `roundhouse plan`: what models will take in memory, before anything is fetched or loaded.
//!
//! The numbers are the loader's own: the same functions say what a load is promised. Files in
//! reading order: this one (what is asked), `source` (where a target's files are and what is
//! read of them), `estimate` (what they mean), `instances` (machines), `show` (tables).

mod estimate;
mod instances;
mod show;
mod source;

use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use roundhouse_types::{Bytes, DeviceId, Failure};
use serde::Serialize;

use self::estimate::Estimate;
use self::instances::Instance;
use super::{ServeFlags, environment, output};
use crate::app::budgets::{Budgets, budgets};
use crate::config::Config;
use crate::error::Error;

/// What the process takes before the first model, measured with two threads: 6 MiB, of which
/// 2.2 MiB are a thread's stack and packing buffer.
const OVERHEAD: Bytes = Bytes::mib(2);
const OVERHEAD_OF_THREAD: Bytes = Bytes::mib(2);

/// Arguments of `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// What to plan for: a model's folder, archive or file on this machine, or one target as
    /// s3://bucket/prefix/TARGET or file:///folder/TARGET.
    #[arg(required = true, value_name = "TARGET", value_parser = NonEmptyStringValueParser::new())]
    pub targets: Vec<String>,
    /// Read settings from this file, as `serve` does, but not its stores: the region, endpoint and
    /// credentials of an s3:// target's store come from the environment.
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// The device's budget, as in 4GiB [default: as `serve` would have it on this machine].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// The disk cache of a server, running or not: what it holds of a target is known
    /// [default: the user's cache folder].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<String>,
    /// The longest sequence served, in tokens [default: 8192].
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<String>,
    /// How far a generative model's KV pool may grow, in sequences of the full context [default: 4].
    #[arg(long, value_name = "COUNT")]
    pub kv_sequences: Option<String>,
    /// The most tokens one step computes [default: 2048].
    #[arg(long, value_name = "TOKENS")]
    pub step_tokens: Option<String>,
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Everything that was found, in the shape of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    /// What models may take on the largest device, and whether that was chosen for this machine.
    budget_bytes: Bytes,
    budget_is_automatic: bool,
    /// Every device.
    devices: Vec<Place>,
    /// The settings that decide.
    context: usize,
    kv_sequences: usize,
    step_tokens: usize,
    /// What the process takes beside its models.
    overhead_bytes: Bytes,
    targets: Vec<Estimate>,
    /// Targets that cannot be planned for; nothing of them is in the total.
    failed: Vec<Unplanned>,
    total: Total,
}

/// What is wrong with a target.
#[derive(Debug, Serialize)]
struct Unplanned {
    target: String,
    kind: &'static str,
    message: String,
}

/// A device and what models may take there.
#[derive(Debug, Serialize)]
struct Place {
    id: DeviceId,
    #[serde(rename = "budget_bytes")]
    bytes: Bytes,
}

/// All targets together.
#[derive(Debug, Serialize)]
struct Total {
    /// What those that are known take.
    bytes: Bytes,
    known: usize,
    unknown: usize,
    /// Whether they fit the devices side by side, each on one of them.
    fits: bool,
    /// The smallest machines that hold them side by side.
    instances: Vec<&'static Instance>,
}

/// Looks at every target. Those that cannot be planned for fail the command, with their names, after
/// what is known of the others is printed.
pub(super) async fn run(args: &PlanArgs) -> Result<(), Error> {
    let config = settings_of(args)?;
    let budgets = budgets(&config)?;
    let (mut targets, mut failures) = (Vec::new(), Vec::new());
    for target in &args.targets {
        match source::find(target, &config, budgets.of_handlers()).await {
            Ok(found) => targets.push(Estimate::of(target, found, &config, &budgets)),
            Err(failure) => failures.push((target, failure)),
        }
    }
    if let ([], [(target, failure)]) = (&targets[..], &failures[..]) {
        let message = format!("{target}: {}", failure.message());
        return Err(Failure::new(failure.kind(), message).with_retry(failure.retry()).into());
    }
    let mut report = report(&config, &budgets, targets);
    report.failed.extend(failures.iter().map(|(target, failure)| Unplanned {
        target: (*target).clone(),
        kind: failure.kind().as_str(),
        message: failure.message().to_owned(),
    }));
    if args.json { output::print_json(&report) } else { output::print(&show::text(&report)) }?;
    let Some((_, first)) = failures.first() else { return Ok(()) };
    let names: Vec<&str> = failures.iter().map(|(target, _)| target.as_str()).collect();
    let (some, all) = (failures.len(), args.targets.len());
    let message = format!("{some} of {all} targets cannot be planned for: {}", names.join(", "));
    Err(Error::Rest(Failure::new(first.kind(), message)))
}

fn settings_of(args: &PlanArgs) -> Result<Config, Error> {
    let flags = ServeFlags {
        config: args.config.clone(),
        // Which stores are served decides nothing here, but there has to be one.
        store: vec!["file:///".into()],
        memory: args.memory.clone(),
        cache_dir: args.cache_dir.clone(),
        context: args.context.clone(),
        kv_sequences: args.kv_sequences.clone(),
        step_tokens: args.step_tokens.clone(),
        ..ServeFlags::default()
    };
    Config::load(args.config.as_deref(), &environment, &flags).map_err(Error::Settings)
}

fn report(config: &Config, budgets: &Budgets, targets: Vec<Estimate>) -> Report {
    let known: Vec<Bytes> =
        targets.iter().filter_map(|it| it.footprint).map(|footprint| footprint.total).collect();
    let sum = |total: Bytes, next: &Bytes| total.checked_add(*next).unwrap_or(Bytes(u64::MAX));
    let bytes = known.iter().fold(Bytes::ZERO, sum);
    let total = Total {
        bytes,
        known: known.len(),
        unknown: targets.len() - known.len(),
        fits: fit(&known, budgets),
        instances: instances::smallest_for(bytes),
    };
    Report {
        budget_bytes: budgets.largest(),
        devices: budgets
            .devices
            .iter()
            .map(|(id, bytes)| Place { id: *id, bytes: *bytes })
            .collect(),
        budget_is_automatic: config.devices.iter().any(|device| device.budget.is_none()),
        context: config.serving.context,
        kv_sequences: config.serving.kv_sequences,
        step_tokens: config.serving.step_tokens,
        overhead_bytes: overhead(),
        targets,
        failed: Vec::new(),
        total,
    }
}

/// Whether all of these have room at a time: the largest first, each where most is left. Others
/// might be found by trying, but so it is that loads go.
fn fit(needs: &[Bytes], budgets: &Budgets) -> bool {
    let mut needs = needs.to_vec();
    needs.sort_unstable();
    let mut left: Vec<Bytes> = budgets.devices.iter().map(|(_, budget)| *budget).collect();
    needs.iter().rev().all(|need| match left.iter_mut().max() {
        Some(most) if *most >= *need => {
            *most = most.saturating_sub(*need);
            true
        }
        _ => false,
    })
}

fn overhead() -> Bytes {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    OVERHEAD + Bytes(OVERHEAD_OF_THREAD.0.saturating_mul(threads as u64))
}
