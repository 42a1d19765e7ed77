//! `roundhouse check-config`.

use std::path::PathBuf;

use clap::Args;
use roundhouse_types::Bytes;
use serde_json::json;

use super::{ServeFlags, environment, output};
use crate::app::budgets::{self, Budgets};
use crate::config::{AccessLog, Config, Fault};
use crate::error::{Error, count};
use crate::limits;

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
    if args.json {
        let listed: Vec<_> = faults
            .iter()
            .map(|Fault { key, message }| json!({ "key": key, "message": message }))
            .collect();
        output::print_json(&json!({ "ok": faults.is_empty(), "faults": listed }))?;
    }
    if !faults.is_empty() {
        return Err(Error::Settings(faults));
    }
    if args.json { Ok(()) } else { output::print(&summary(&config, &seen)) }
}

fn summary(config: &Config, seen: &limits::Memory) -> String {
    let mounts: usize = config.endpoints.iter().map(|endpoint| endpoint.mounts.len()).sum();
    let automatic =
        |size: Option<Bytes>| size.map_or_else(|| "automatic".to_owned(), |size| size.to_string());
    let mut lines = vec![
        "ok".to_owned(),
        format!("  {} with {}", count(config.endpoints.len(), "endpoint"), count(mounts, "mount")),
    ];
    for endpoint in &config.endpoints {
        for mount in &endpoint.mounts {
            let prefix =
                mount.prefix.as_ref().map(|prefix| format!("/{prefix}")).unwrap_or_default();
            lines.push(format!("    {}{prefix}  {}", endpoint.name, mount.uri));
        }
        if let Some(capture) = &endpoint.capture {
            lines.push(format!("    {} captures to {}", endpoint.name, capture.destination));
        }
    }
    lines.push(format!("  data {}, admin {}", config.listen.data, config.listen.admin));
    // Without what the machine has, automatic ones are told as such.
    let budgets = Budgets::of(&config.devices, config.memory.host, seen.automatic_budget()).ok();
    let here = |written: Option<Bytes>, found: Option<Bytes>| match (written, found) {
        (None, Some(found)) => format!("automatic, here about {found}"),
        (written, _) => automatic(written),
    };
    for (index, device) in config.devices.iter().enumerate() {
        let copies =
            device.copy_bandwidth.map(|rate| format!(", copies at {}/s", Bytes(rate.get())));
        let found = budgets.as_ref().and_then(|it| Some(it.devices.get(index)?.1));
        let (budget, copies) = (here(device.budget, found), copies.unwrap_or_default());
        lines.push(format!("  memory on {}: {budget}{copies}", device.id));
    }
    if config.devices.iter().any(|device| !device.id.is_host()) {
        let found = budgets.as_ref().map(|budgets| budgets.host);
        lines.push(format!("  memory for copies: {}", here(config.memory.host, found)));
    }
    for tenant in &config.tenants {
        let ceiling =
            tenant.ceiling.map_or_else(|| "none".to_owned(), |ceiling| ceiling.to_string());
        let (name, floor, share) = (&tenant.name, tenant.floor, tenant.share);
        lines.push(format!("  tenant {name}: floor {floor}, ceiling {ceiling}, share {share}"));
    }
    lines.push(format!("  cache {}, {}", config.cache.dir.display(), automatic(config.cache.size)));
    let access = match &config.log.access {
        AccessLog::Stderr => "standard error".into(),
        AccessLog::Off => "off".into(),
        AccessLog::File(path) => path.display().to_string(),
    };
    lines.push(format!("  access log {access}"));
    if config.container.contract {
        lines.push(format!("  container contract over {}", config.container.models_root.display()));
    }
    lines.push(String::new());
    lines.join("\n")
}
