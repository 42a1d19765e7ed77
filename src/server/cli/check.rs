//! `roundhouse check-config`: the faults, and (`summary`) what the settings say.

mod summary;

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use self::summary::summary;
use super::{ServeFlags, environment, output};
use crate::app::budgets;
use crate::config::{Config, Fault};
use crate::error::Error;
use crate::{doctor, limits};

/// Arguments of `check-config`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The file.
    pub file: PathBuf,
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Checks the file as `serve --config` would read it here, environment included.
pub(super) fn run(args: &CheckArgs) -> Result<(), Error> {
    let seen = limits::Memory::read();
    let (config, mut faults) = Config::look(&args.file, &environment, &ServeFlags::default());
    let of_memory = |fault: &Fault| {
        ["config", "memory", "device", "tenant"].iter().any(|key| fault.key.starts_with(key))
    };
    // What was not understood is no budget that could be too large.
    if !faults.iter().any(of_memory) {
        faults.extend(budgets::faults(&config, &seen));
    }
    faults.extend(crate::app::door::faults(&config));
    // The file may be meant for another machine: what is not on this one is no fault of it.
    let mut missing = doctor::missing_folders(&config);
    missing.extend(doctor::behind::missing(&config, &seen));
    if args.json {
        let listed = |faults: &[Fault]| -> Vec<_> {
            let one = |Fault { key, message }: &Fault| json!({ "key": key, "message": message });
            faults.iter().map(one).collect()
        };
        output::print_json(&json!({
            "ok": faults.is_empty(), "faults": listed(&faults), "missing_here": listed(&missing),
            "odd": config.idle_grants().into_iter().collect::<Vec<_>>(),
        }))?;
    }
    if !faults.is_empty() {
        return Err(Error::Settings(faults));
    }
    if args.json {
        return Ok(());
    }
    output::print(&summary(&config, &seen))?;
    let missing = missing.iter().map(|fault| format!("  not on this machine: {fault}\n"));
    output::print(&missing.collect::<String>())
}
