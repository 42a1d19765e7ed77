//! `usage`: what a ledger adds up to.

use std::path::PathBuf;

use clap::Args;
use roundhouse_tenancy::usage::read::{Filter, Report, report};
use roundhouse_tenancy::{Key, Totals, parse_instant};
use roundhouse_types::{Bytes, ErrorKind, Failure, count, count_that};
use serde_json::{Value, json};

use super::output::{self, Table};
use super::{ServeFlags, environment};
use crate::admin;
use crate::config::Config;
use crate::error::Error;

/// Arguments of `usage`.
#[derive(Debug, Clone, Args)]
pub struct UsageArgs {
    /// The ledger's file; those that were put aside are found beside it.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Take the ledger that these settings name, where no file is given.
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Count lines that begin then or later: 2026-11-21 or 2026-11-21T13:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Count lines that begin before then.
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Count this tenant's alone.
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Adds the ledger up and prints it.
pub(super) fn run(args: &UsageArgs) -> Result<(), Error> {
    let time = |text: &Option<String>| match text {
        Some(text) => parse_instant(text).map(Some).map_err(Error::Usage),
        None => Ok(None),
    };
    let (from, to) = (time(&args.from)?, time(&args.to)?);
    let filter = Filter { from, to, tenant: args.tenant.clone() };
    let path = path(args)?;
    let report = report(&path, &filter).map_err(Failure::from)?;
    let counts_all = [&args.from, &args.to, &args.tenant].into_iter().all(Option::is_none);
    if report.damaged > 0 && report.sums.is_empty() && counts_all {
        let lines = count(report.damaged, "line");
        let message =
            format!("{} is no usage ledger: none of its {lines} is of one", path.display());
        return Err(Failure::new(ErrorKind::InvalidInput, message).into());
    }
    if args.json { print_json(&report) } else { print_table(&report) }
}

fn path(args: &UsageArgs) -> Result<PathBuf, Error> {
    if let Some(path) = &args.file {
        return Ok(path.clone());
    }
    let Some(config) = &args.config else {
        let told = "name the ledger by --file FILE, or the settings that do by --config FILE";
        return Err(Error::Usage(told.into()));
    };
    let (config, faults) = Config::look(config, &environment, &ServeFlags::default());
    match config.usage {
        Some(usage) => Ok(usage.path),
        None if faults.is_empty() => {
            Err(Error::Usage("these settings name no usage.file: nothing is written down".into()))
        }
        None => Err(Error::Settings(faults)),
    }
}

fn print_json(report: &Report) -> Result<(), Error> {
    let rows: Vec<Value> =
        report.sums.iter().map(|(key, totals)| admin::usage_row(key, totals)).collect();
    output::print_json(&json!({
        "usage": rows,
        "total": report.total(),
        "lines": report.lines,
        "repeated_lines": report.repeated,
        "damaged_lines": report.damaged,
    }))
}

fn print_table(report: &Report) -> Result<(), Error> {
    let mut table = Table::new(&[
        "TENANT",
        "MODEL",
        ">REQUESTS",
        ">FAILED",
        ">IN",
        ">CACHED",
        ">OUT",
        ">COMPUTE",
        ">LOADS",
        ">FETCHED",
        ">DEVICE GIB·H",
        ">HOST GIB·H",
    ]);
    for (key, totals) in &report.sums {
        table.row(cells(names(key), totals));
    }
    table.row(cells(["total".into(), String::new()], &report.total()));
    let mut text = table.render();
    if report.damaged > 0 {
        let what = ["could not be read and is not", "could not be read and are not"];
        let lines = count_that(report.damaged, "line", what);
        text.push_str(&format!("{lines} counted\n"));
    }
    output::print(&text)
}

fn names(key: &Key) -> [String; 2] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let tenant = key.tenant.as_ref().map(ToString::to_string);
    [or_dash(tenant), or_dash(key.model.as_ref().map(ToString::to_string))]
}

fn cells(names: [String; 2], totals: &Totals) -> Vec<String> {
    let counts =
        [totals.requests, totals.failed, totals.tokens_in, totals.tokens_cached, totals.tokens_out];
    let rest = [
        format!("{}.{:03}s", totals.compute_us / 1_000_000, totals.compute_us / 1000 % 1000),
        format!("{}.{:03}s", totals.load_ms / 1000, totals.load_ms % 1000),
        Bytes(totals.bytes_fetched).to_string(),
        gib_hours(totals.device_byte_seconds),
        gib_hours(totals.host_byte_seconds),
    ];
    names.into_iter().chain(counts.map(|count| count.to_string())).chain(rest).collect()
}

/// Thousandths are some seconds of a gibibyte.
fn gib_hours(byte_seconds: u64) -> String {
    let thousandths = u128::from(byte_seconds) * 1000 / (3600 * u128::from(Bytes::gib(1).0));
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}
