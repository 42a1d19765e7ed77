//! `roundhouse check-config`.

use std::path::PathBuf;

use clap::Args;
use roundhouse_containers::multi_model;
use roundhouse_tenancy::{AuthConfig, Limits};
use roundhouse_types::{Bytes, EndpointName, TargetName, TenantName};
use serde_json::json;

use super::{ServeFlags, environment, output};
use crate::app::budgets::{self, Budgets};
use crate::config::{
    AccessLog, Config, ContainerOrigin, EngineKind, EngineRule, Fault, ModelMemory, TlsFiles,
    show_duration,
};
use crate::error::{Error, count};
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
        for container in endpoint.containers.iter().flat_map(|behind| &behind.containers) {
            let origin = match &container.origin {
                ContainerOrigin::Url(url) => url.to_string(),
                ContainerOrigin::Command(command) => command.program.display().to_string(),
            };
            lines.push(format!("    {}:{}  {origin}", endpoint.name, container.hostname));
        }
        for rule in &endpoint.engines {
            lines.push(format!("    {} {}", endpoint.name, engine(rule)));
        }
        if let Some(capture) = &endpoint.capture {
            lines.push(format!("    {} captures to {}", endpoint.name, capture.destination));
        }
    }
    if config.aliases.count() > 0 {
        let number = config.aliases.count();
        lines.push(format!("  {number} alias{}", if number == 1 { "" } else { "es" }));
    }
    lines.extend(dead_aliases(config));
    lines.extend(config.idle_grants().map(|why| format!("  odd: {why}")));
    lines.push(format!(
        "  data {}{}, admin {}{}",
        config.listen.data,
        encrypted(config.tls.data.as_ref()),
        config.listen.admin,
        encrypted(config.tls.admin.as_ref()),
    ));
    lines.push(format!("  callers {}", callers(&config.auth)));
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
        let loads = tenant.load_bandwidth.map(|rate| format!(", loads at {rate}/s"));
        let loads = loads.unwrap_or_default();
        let disk = match (tenant.disk_floor, tenant.disk_ceiling) {
            (Bytes::ZERO, None) => String::new(),
            (floor, None) => format!(", floor on disk {floor}"),
            (floor, Some(ceiling)) => format!(", on disk floor {floor}, ceiling {ceiling}"),
        };
        let invoke: Vec<String> = tenant.grants.invoke.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "  tenant {name}: floor {floor}, ceiling {ceiling}, share {share}{disk}{loads}, may invoke {}",
            if invoke.is_empty() { "nothing".to_owned() } else { invoke.join(" ") },
        ));
    }
    lines.push(format!("  cache {}, {}", config.cache.dir.display(), automatic(config.cache.size)));
    let access = match &config.log.access {
        AccessLog::Stderr => "standard error".into(),
        AccessLog::Off => "off".into(),
        AccessLog::File(path) => path.display().to_string(),
    };
    lines.push(format!("  access log {access}"));
    if let Some(usage) = &config.usage {
        lines.push(format!("  usage {}", usage.path.display()));
    }
    lines.extend(beside(config));
    if config.container.contract {
        lines.push(format!("  container contract over {}", config.container.models_root.display()));
    }
    if let Some(folder) = &config.container.model_dir {
        lines.push(format!("  one model: {}", folder.display()));
    }
    if !config.container.unheeded.is_empty() {
        lines.push(format!("  of no effect here: {}", config.container.unheeded.join(", ")));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Aliases that stand for nothing which whoever may say them may ask.
fn dead_aliases(config: &Config) -> Vec<String> {
    if !config.auth.asks() || config.tenants.is_empty() {
        return Vec::new();
    }
    let dead = config.aliases.all().filter(|(tenant, _, _, alias)| {
        let mut saying = config
            .tenants
            .iter()
            .filter(|it| tenant.is_none_or(|tenant| it.name == tenant.as_str()))
            .flat_map(|it| &it.grants.invoke);
        !saying.any(|pattern| alias.targets().any(|target| pattern.matches(target)))
    });
    let line =
        |(tenant, endpoint, name, _): (Option<&TenantName>, &EndpointName, &TargetName, _)| {
            let whose = tenant
                .map_or_else(|| "no tenant may".to_owned(), |it| format!("tenant {it} may not"));
            format!(
                "  odd: alias {endpoint}:{name} stands for nothing: {whose} invoke what it names"
            )
        };
    dead.map(line).collect()
}

/// What else is set, beside what every server has.
fn beside(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for tenant in &config.tenants {
        let limits: Vec<String> =
            config.quota_rules().named.get(tenant.name.as_str()).map(told).unwrap_or_default();
        if !limits.is_empty() {
            lines.push(format!("  limits of {}: {}", tenant.name, limits.join(", ")));
        }
    }
    let others = told(&config.quota_rules().others);
    if !others.is_empty() {
        lines.push(format!("  limits of other tenants: {}", others.join(", ")));
    }
    for endpoint in config.endpoints.iter().filter(|it| it.asynchronous.is_some()) {
        lines.push(format!("  {} takes requests whose callers do not wait", endpoint.name));
    }
    if let Some(dir) = &config.async_dir {
        lines.push(format!("  their queue is in {}", dir.display()));
    }
    match &config.sessions {
        Some(sessions) => lines.push(format!("  sessions, {} at most", sessions.most)),
        None => lines.push("  no sessions".to_owned()),
    }
    if let Some(traces) = &config.traces {
        lines.push(format!("  traces to {}", traces.url));
    }
    lines
}

/// A tenant's limits, those that it has.
fn told(limits: &Limits) -> Vec<String> {
    let count = |name: &str, number: Option<u64>| number.map(|it| format!("{name} {it}"));
    let said = [
        limits.requests.as_ref().map(|rate| format!("requests per second {}", rate.per_second)),
        count("tokens in per minute", limits.tokens_in_per_minute),
        count("tokens out per minute", limits.tokens_out_per_minute),
        count("requests under way", limits.concurrent_requests.map(u64::from)),
        count("requests per day", limits.requests_per_day),
        count("tokens per day", limits.tokens_per_day),
        limits.compute_per_day.map(|time| format!("compute per day {}s", time.as_secs())),
    ];
    said.into_iter().flatten().collect()
}

/// What an engine is, and what its targets are charged with.
fn engine(rule: &EngineRule) -> String {
    let program = |command: &[String]| command.first().cloned().unwrap_or_default();
    let targets = &rule.target;
    let idle = rule.idle_ttl.map(|ttl| format!(", unused for {} at most", show_duration(ttl)));
    let idle = idle.unwrap_or_default();
    match &rule.kind {
        EngineKind::Started(spec) => {
            let program = program(&spec.command);
            format!("starts {program} for {targets}, {} each{idle}", spec.memory)
        }
        EngineKind::Contained(rule) => {
            let origin = match &rule.spec.origin {
                multi_model::ContainerOrigin::Url(url) => url.to_string(),
                multi_model::ContainerOrigin::Command(it) => program(&it.command),
            };
            let memory = match rule.memory {
                ModelMemory::Each(memory) => format!("{memory} each"),
                ModelMemory::OfFiles { thousandths } => {
                    format!("{} times their files", thousandths as f64 / 1000.0)
                }
            };
            format!("loads {targets} into {origin}, {memory}{idle}")
        }
    }
}

fn encrypted(files: Option<&TlsFiles>) -> &'static str {
    match files {
        Some(_) => " (TLS)",
        None => "",
    }
}

/// How callers are told apart.
fn callers(auth: &AuthConfig) -> String {
    let ways = [
        ("keys", auth.keys.is_some()),
        ("tokens", !auth.oidc.is_empty()),
        ("AWS's own credentials", auth.iam.is_some()),
        ("a proxy's header", auth.proxy.is_some()),
        ("certificates", auth.certificates),
    ];
    let ways: Vec<&str> = ways.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    match (ways.is_empty(), auth.anonymous) {
        (true, _) => "are not asked who they are".to_owned(),
        (false, false) => format!("by {}", ways.join(", ")),
        (false, true) => format!("by {}, or nobody's tenant", ways.join(", ")),
    }
}
