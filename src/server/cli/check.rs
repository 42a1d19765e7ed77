//! `roundhouse check-config`.

use std::path::PathBuf;

use clap::Args;
use roundhouse_types::Bytes;
use serde_json::json;

use super::{ServeFlags, environment, output};
use crate::config::{AccessLog, Config, Fault};
use crate::error::{Error, count};

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
    let checked = Config::load(Some(&args.file), &environment, &ServeFlags::default());
    if args.json {
        let faults = checked.as_ref().err().map(Vec::as_slice).unwrap_or_default();
        let listed: Vec<_> = faults
            .iter()
            .map(|Fault { key, message }| json!({ "key": key, "message": message }))
            .collect();
        output::print_json(&json!({ "ok": faults.is_empty(), "faults": listed }))?;
    }
    let config = checked.map_err(Error::Settings)?;
    if args.json { Ok(()) } else { output::print(&summary(&config)) }
}

fn summary(config: &Config) -> String {
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
    }
    lines.push(format!("  data {}, admin {}", config.listen.data, config.listen.admin));
    for device in &config.devices {
        let copies =
            device.copy_bandwidth.map(|rate| format!(", copies at {}/s", Bytes(rate.get())));
        let (budget, copies) = (automatic(device.budget), copies.unwrap_or_default());
        lines.push(format!("  memory {budget} on {}{copies}", device.id));
    }
    if config.devices.iter().any(|device| !device.id.is_host()) {
        lines.push(format!("  memory {} for copies", automatic(config.memory.host)));
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
